"""Scores from the gradient of the training loss.

pai.score(model, "snip", data.score_batch(per_class=10))
"""

import torch
import torch.nn.functional as F

from pai_lab.catalog import criterion, nearest
from pai_lab.functional import forward, masked, prunable

TRACK = {"when": "before", "track": "sparse selection", "needs": "labelled batch"}


def loss_gradients(model, batch, mask):
    """(weights, gradients) of the mean cross-entropy at the masked weights: two mappings name -> tensor.

    `batch` is (x, y) or a list of such pairs; over a list the gradients are averaged by sample count. Dense: a
    removed weight has the gradient that it would have at 0. A weight that the output does not use has gradient 0.
    ValueError if a label is no class of the output. Cost: 1 FB per sample.
    """
    tensors = masked(model, mask)
    weights = {name: tensors[name] for name in prunable(model)}
    total = None
    for x, y, share in shares(batch):
        loss = cross_entropy(forward(model, tensors, x), y) * share
        gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        total = gradients if total is None else torch._foreach_add(total, gradients)
    return weights, dict(zip(weights, total, strict=True))


def shares(batch):
    """(x, y, share) for each pair of a batch; `share` is its part of all samples, the shares sum to 1."""
    pairs = batch if isinstance(batch, list) else [batch]
    samples = sum(len(x) for x, _ in pairs)
    return [(x, y, len(x) / samples) for x, y in pairs]


def cross_entropy(output, y, temperature=1):
    """Mean cross-entropy of output / temperature. ValueError if a label is no class of the output (a GPU would only
    abort)."""
    if not isinstance(output, torch.Tensor) or output.ndim < 2:
        got = tuple(getattr(output, "shape", ())) or type(output).__name__
        raise ValueError(f"the model's output must be a tensor (samples, classes, ...), got {got}")
    if int(y.max()) >= output.shape[1]:
        raise ValueError(f"label {int(y.max())} needs a class that the output of shape {tuple(output.shape)} lacks")
    return F.cross_entropy(output if temperature == 1 else output / temperature, y)


@criterion(
    criterion="|w * dL/dw|", family="first order", paper="Lee et al., SNIP", year=2019, cost="1 FB per sample",
    defaults={"mode": "train"}, **TRACK,
)  # fmt: skip
def snip(model, batch, mask):
    """|w * dL/dw|: how fast the loss changes when the connection is scaled down. 1 FB per sample."""
    weights, gradients = loss_gradients(model, batch, mask)
    return {name: w.detach().mul_(gradients[name]).abs_() for name, w in weights.items()}  # in our own copy


@criterion(
    criterion="|w * dL/dw|, again on what is left", family="first order",
    paper="de Jorge et al., Progressive skeletonization", year=2021, cost="1 FB per sample and round",
    defaults={"mode": "train", "iterations": 30, "schedule": "exponential"}, **TRACK,
)  # fmt: skip
def iterative_snip(model, batch, mask):
    """SNIP, again and again on what is left: what goes in one round stays removed (also Verdenius et al., SNIP-it,
    2020). One round is SNIP. 1 FB per sample and round."""
    return snip(model, batch, mask)


@criterion(
    criterion="|w * dL/dw'|, w' = w under the mask", family="first order",
    paper="de Jorge et al., Progressive skeletonization", year=2021, cost="1 FB per sample and round",
    defaults={"mode": "train", "iterations": 30, "schedule": "exponential", "revives": True}, **TRACK,
)  # fmt: skip
def force(model, batch, mask):
    """|w * dL/dw'| with the original w, and the gradient in the pruned net (FORCE): a removed weight that the
    pruned net misses scores high, and may come back. With no mask it is SNIP. 1 FB per sample and round."""
    _, gradients = loss_gradients(model, batch, mask)
    return {name: (w.detach() * gradients[name]).abs_() for name, w in prunable(model).items()}


@criterion(
    criterion="|dL/dw|", family="first order", when="before, after", needs="labelled batch", cost="1 FB per sample",
    defaults={"mode": "eval"},
)  # fmt: skip
def gradient(model, batch, mask):
    """|dL/dw|: SNIP without the weight, to see what the product adds; it also serves to regrow. 1 FB per sample."""
    _, gradients = loss_gradients(model, batch, mask)
    return {name: g.abs() for name, g in gradients.items()}


@criterion(
    criterion="|w * dL/dw| on a trained net", family="first order", when="after", needs="labelled batch",
    paper="Molchanov et al., Importance estimation", year=2019, cost="1 FB per sample", defaults={"mode": "eval"},
)  # fmt: skip
def taylor(model, batch, mask, *, accumulate="mean"):
    """How much the loss changes, to first order, when w goes. `accumulate` says how the batches b of a list become
    one, each weighted by its samples: "mean" |w * mean_b g_b| (which vanishes where training has converged), "abs"
    mean_b |w * g_b|, or "squared" mean_b (w * g_b)^2, Molchanov's. With one batch all three rank alike; a list of
    single samples tells them apart most. ValueError for another name. 1 FB per sample."""
    powers = {"mean": 1, "abs": 1, "squared": 2}
    if accumulate not in powers:
        raise nearest("accumulate", accumulate, powers)
    if accumulate == "mean":
        return snip(model, batch, mask)
    total = {name: torch.zeros_like(w) for name, w in prunable(model).items()}
    for x, y, share in shares(batch):
        for name, score in snip(model, (x, y), mask).items():
            total[name] += share * score ** powers[accumulate]
    return total
