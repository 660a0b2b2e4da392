"""Scores of how much a weight moves the function, whatever the data: the neural tangent kernel.

pai.prune(model, "ntk_sap", 0.98, batch=data.score_batch())     # only the shape of x is read
"""

from copy import deepcopy

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pai_lab.catalog import criterion
from pai_lab.criteria.meta import replaced
from pai_lab.functional import forward, masked, prunable


@criterion(
    criterion="|d/dm |f(x; m * w) - f(x; m * (w + e))|^2|", family="neural tangent kernel", when="before",
    track="sparse selection", paper="Wang et al., NTK-SAP", year=2023, needs="input shape",
    cost="3 FB per sample and round", defaults={"mode": "eval", "iterations": 20, "schedule": "exponential"},
)  # fmt: skip
def ntk_sap(model, batch, mask, *, epsilon=0.01, draws=1):
    """|d/dm sum_x |f(x; m * w) - f(x; m * (w + e))|^2| with e ~ N(0, epsilon^2) on every weight, whose mean is
    epsilon^2 times the trace of the neural tangent kernel: how much a weight lets the function move. The weights w
    are drawn anew from each layer's own initialisation, the inputs x from N(0, 1) in the batch's shape.

    The gradient is summed over `draws` such draws for each pair of the batch, then abs. BatchNorm takes the
    statistics of x in the net w * m, for both nets. Layers with no `reset_parameters` keep their weights.
    ValueError for an `epsilon` not above 0 or fewer than 1 draw. Cost: 3 forward and 2 backward passes per sample.
    """
    if not epsilon > 0 or isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"epsilon must be above 0 and draws an integer from 1 on; got {epsilon!r} and {draws!r}")
    weights = prunable(model)
    # half precision would round the difference away
    dtype = torch.promote_types(next(iter(weights.values())).dtype, torch.float32)
    leaves = {name: torch.ones_like(w, dtype=dtype) for name, w in weights.items()}
    leaves |= {name: mask[name].to(m) for name, m in leaves.items() if mask is not None and name in mask}
    leaves = {name: m.requires_grad_() for name, m in leaves.items()}
    total = dict.fromkeys(leaves, 0)
    for x, _ in (batch if isinstance(batch, list) else [batch]) * draws:
        noise = torch.randn(x.shape, dtype=dtype, device=x.device)
        moved = distance(_drawn_anew(model).to(dtype), leaves, noise, epsilon)
        gradients = torch.autograd.grad(moved, list(leaves.values()), materialize_grads=True)
        total = {name: total[name] + g for name, g in zip(leaves, gradients, strict=True)}
    return {name: g.abs_() for name, g in total.items()}


def _drawn_anew(model):
    twin = deepcopy(model)
    for module in twin.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return twin


def distance(net, leaves, x, epsilon):
    """sum_x |f(x; m * w) - f(x; m * (w + e))|^2 of a net that is ours to change, as a function of the masks m:
    `leaves`, name -> tensor. Both take the BatchNorm statistics that x has at m * w."""
    tensors = masked(net)

    def output(shift):
        new = {id(tensors[n]): m * (tensors[n].detach() + shift(tensors[n])) for n, m in leaves.items()}
        return forward(net, replaced(tensors, new), x)

    for module in net.eval().modules():
        if isinstance(module, _BatchNorm):
            module.train().momentum = 1.0
    with torch.no_grad():
        output(torch.zeros_like)
    net.eval()
    still, moved = output(torch.zeros_like), output(lambda w: epsilon * torch.randn_like(w))
    return (still - moved).square().sum()
