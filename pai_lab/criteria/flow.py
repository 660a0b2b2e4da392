"""Scores of the flow of signal through the net, with no data.

pai.prune(model, "synflow", 0.98, batch=data.score_batch())     # only the shape of x is read
"""

import torch

from pai_lab.catalog import criterion
from pai_lab.functional import forward, masked, prunable


@criterion(
    criterion="|w| * dR/d|w|, R = 1' prod|W| 1", family="flow", when="before", track="sparse selection",
    paper="Tanaka et al., SynFlow", year=2020, needs="input shape", cost="1 FB of one sample per round",
    defaults={"mode": "eval", "iterations": 100, "schedule": "exponential"},
)  # fmt: skip
def synflow(model, batch, mask):
    """|w| * dR/d|w| for R = sum of the outputs of the net with |w| for w and an input of ones: each weight's share
    of the flow of paths. Biases and shifts are 0, so the flow is the same through every layer. 1 FB of one sample,
    in float64 (float32 overflows in deep nets), on the CPU where the device has no float64."""
    x = (batch[0] if isinstance(batch, list) else batch)[0]
    device = "cpu" if x.device.type == "mps" else x.device
    tensors = masked(model, mask, dtype=torch.float64, device=device)
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.endswith(("bias", "running_mean")):
                tensor.zero_()
            elif tensor.is_floating_point():
                tensor.abs_()
    weights = {name: tensors[name] for name in prunable(model)}
    ones = torch.ones(1, *x.shape[1:], dtype=torch.float64, device=device)
    gradients = torch.autograd.grad(forward(model, tensors, ones).sum(), list(weights.values()))
    return {n: w.detach().mul_(g) for (n, w), g in zip(weights.items(), gradients, strict=True)}  # in our own copy
