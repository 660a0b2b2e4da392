"""Scores from the gradient of the training loss.

pai.score(model, "snip", data.score_batch(per_class=10))
"""

import torch
import torch.nn.functional as F

from pai_lab.catalog import criterion
from pai_lab.functional import forward, masked, prunable

TRACK = {"when": "before", "track": "sparse selection", "needs": "labelled batch"}


def loss_gradients(model, batch, mask):
    """(weights, gradients) of the mean cross-entropy at the masked weights: two mappings name -> tensor.

    `batch` is (x, y) or a list of such pairs; over a list the gradients are averaged by sample count. Dense: a
    removed weight has the gradient that it would have at 0. Cost: 1 FB per sample.
    """
    tensors = masked(model, mask)
    weights = {name: tensors[name] for name in prunable(model)}
    pairs = batch if isinstance(batch, list) else [batch]
    samples = sum(len(x) for x, _ in pairs)
    total = None
    for x, y in pairs:
        loss = cross_entropy(forward(model, tensors, x), y) * (len(x) / samples)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        total = gradients if total is None else torch._foreach_add(total, gradients)
    return weights, dict(zip(weights, total, strict=True))


def cross_entropy(output, y):
    """Mean cross-entropy. ValueError if a label is no class of the output (a GPU would only abort)."""
    if not isinstance(output, torch.Tensor) or output.ndim < 2:
        got = tuple(getattr(output, "shape", ())) or type(output).__name__
        raise ValueError(f"the model's output must be a tensor (samples, classes, ...), got {got}")
    if int(y.max()) >= output.shape[1]:
        raise ValueError(f"label {int(y.max())} needs a class that the output of shape {tuple(output.shape)} lacks")
    return F.cross_entropy(output, y)


@criterion(
    criterion="|w * dL/dw|", family="first order", paper="Lee et al., SNIP", year=2019, cost="1 FB per sample",
    defaults={"mode": "train"}, **TRACK,
)  # fmt: skip
def snip(model, batch, mask):
    """|w * dL/dw|: how fast the loss changes when the connection is scaled down. 1 FB per sample."""
    weights, gradients = loss_gradients(model, batch, mask)
    return {name: w.detach().mul_(gradients[name]).abs_() for name, w in weights.items()}  # in our own copy
