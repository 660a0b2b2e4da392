"""Scores that look at nothing but the weights, or at nothing at all.

pai.score(model, "magnitude")["0.weight"]
"""

import torch

from pai_lab.catalog import criterion
from pai_lab.functional import masked, prunable

BOTH = {"when": "before, after", "needs": "nothing", "cost": "0"}
UNITS = {"structure": "filter, channel", "defaults": {"unit": "filter"}}


@criterion(criterion="U(0, 1)", family="random", defaults={"reduce": "first"}, **BOTH)
def random(model, batch, mask):
    """A uniform number per weight (one per unit for larger structures): the baseline of every comparison. 0 FB."""
    return {name: torch.rand(w.shape, dtype=torch.float32).to(w.device) for name, w in prunable(model).items()}


@criterion(
    criterion="|w|", family="magnitude", paper="Han et al., Learning both weights and connections", year=2015, **BOTH
)
def magnitude(model, batch, mask):
    """|w|. With BatchNorm a filter's scale is free, so a global ranking of |w| is a convention, not a fact. 0 FB."""
    return {name: w.detach().abs() for name, w in prunable(model).items()}


@criterion(
    criterion="w^2 / sum of w'^2 over all |w'| >= |w| of its layer", family="magnitude",
    paper="Lee et al., Layer-adaptive sparsity for the magnitude-based pruning", year=2021, **BOTH,
)  # fmt: skip
def lamp(model, batch, mask):
    """w^2 divided by the sum of the squares that rank at or above it in its layer: in (0, 1], 1 for the layer's
    largest. So a global ranking empties no layer before it keeps as few weights as there are layers.

    Of equal squares the first in the layer ranks lowest, each with a sum of its own: a layer of equal weights still
    has a 1. Weights that are removed, or 0, add nothing and score 0. In float64 (on the CPU where the device has
    none): float32 would lose small squares beside large sums. 0 FB."""
    scores = {}
    for name, w in _exact(model, mask):
        squares, order = w.square().flatten().sort(stable=True)
        at_or_above = squares.flip(0).cumsum(0).flip(0)
        shares = squares / at_or_above.clamp_min(torch.finfo(w.dtype).tiny)  # 0 / 0 is 0, and NaN stays NaN
        scores[name] = torch.empty_like(shares).scatter_(0, order, shares).view(w.shape)
    return scores


@criterion(
    criterion="mean |w| of a filter", family="filter norm",
    paper="Li et al., Pruning filters for efficient convnets", year=2017, **UNITS, **BOTH,
)  # fmt: skip
def filter_l1(model, batch, mask):
    """The mean of |w| over each filter W[o], shape (out, 1, ...). Within a layer this ranks as Li's sum does; the
    mean lets one global ranking compare layers whose filters have other sizes. Removed weights count as 0. 0 FB."""
    return {name: w.abs().mean(tuple(range(1, w.ndim)), keepdim=True) for name, w in _exact(model, mask)}


@criterion(
    criterion="root mean square of a filter", family="filter norm",
    paper="He et al., Soft filter pruning", year=2018, **UNITS, **BOTH,
)  # fmt: skip
def filter_l2(model, batch, mask):
    """The root mean square of each filter W[o], shape (out, 1, ...). Within a layer it ranks as the L2 norm does;
    the mean lets one global ranking compare layers, as in `filter_l1`. Removed weights count as 0. 0 FB."""
    squares = ((name, w.square()) for name, w in _exact(model, mask))
    return {name: s.mean(tuple(range(1, s.ndim)), keepdim=True).sqrt() for name, s in squares}


@criterion(
    criterion="mean distance to the layer's other filters", family="filter distance",
    paper="He et al., Filter pruning via geometric median", year=2019, **UNITS, **BOTH,
)  # fmt: skip
def fpgm(model, batch, mask):
    """How far a filter lies from the others of its layer: the lowest is nearest to their geometric median, and the
    others can best stand in for it (FPGM). Shape (out, 1, ...).

    The paper compares within a layer, by the sum of distances: scope="layer" is its method. Here it is the mean over
    the layer's other filters that are left, per square root of the filter size. That ranks a layer's filters alike,
    and equally spread weights score alike in layers of any width and filter size, which a global ranking needs. A
    filter alone in its layer scores 0: a global ranking wants floor=1. In float64, where the distance of like filters
    is safe. 0 FB; time grows with out^2."""
    scores = {}
    for name, w in _exact(model, mask):
        filters = left = w.flatten(1)
        if mask is not None and name in mask:
            left = filters[mask[name].to(w.device).flatten(1).any(1)]
        distance = torch.cdist(filters, left).sum(1) / max(len(left) - 1, 1)
        scores[name] = (distance / filters.shape[1] ** 0.5).view(-1, *[1] * (w.ndim - 1))
    return scores


def _exact(model, mask):
    """(name, W * m in float64), layer by layer; on the CPU where the device has no float64."""
    tensors = masked(model, mask)
    for name in prunable(model):
        w = tensors[name].detach()
        yield name, w.to("cpu" if w.device.type == "mps" else w.device, torch.float64)
