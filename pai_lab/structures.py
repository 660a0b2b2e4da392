"""What is removed together: a structure names the dimensions of a weight that one unit spans.

weight (out, in, kh, kw): a `filter` spans (in, kh, kw), so its scores have shape (out, 1, 1, 1)
"""

import torch

from pai_lab.catalog import find, nearest, register


@register("structure", structure="single weights: no dense speed-up", family="unstructured")
def weight(ndim):
    return ()


@register(
    "structure",
    structure="whole rows W[o]: a neuron or an output channel",
    family="structured",
    year=2017,
    paper="Li et al., Pruning filters for efficient convnets",
)
def filter(ndim):
    return tuple(range(1, ndim))


def _first(scores, dims, keepdim):
    for dim in dims:
        scores = scores.narrow(dim, 0, 1)
    return scores


REDUCTIONS = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax, "first": _first}


def reduce_to_units(scores, structure="weight", reduce="mean"):
    """One score per unit: shape (out, in, ...) with 1 in each dimension that the structure spans.

    `reduce` is `mean`, `sum`, `max`, or `first` (the unit's first entry, for scores that are random per unit).
    ValueError for an unknown structure or reduction.
    """
    if reduce not in REDUCTIONS:
        raise nearest("reduction", reduce, REDUCTIONS)
    dims = find("structure", structure).function(scores.ndim)
    if not dims:
        return scores
    return REDUCTIONS[reduce](scores if scores.is_floating_point() else scores.float(), dims, keepdim=True)
