"""What is removed together: single weights, parts of a kernel, whole filters, or a pattern that fixes its own count.

weight (out, in, kh, kw): a `filter` spans (in, kh, kw), so its scores have shape (out, 1, 1, 1)
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch

from pai_lab.catalog import Entry, find, names, nearest, register

# -- units that span dimensions of one weight: a function ndim -> dimensions -------------------------------------------


@register("structure", structure="single weights: no dense speed-up", family="unstructured")
def weight(ndim):
    return ()


@register(
    "structure", structure="2-D kernels W[o, i]; a weight of a linear layer", family="structured", year=2017,
    paper="Mao et al., Exploring the granularity of sparsity",
)  # fmt: skip
def kernel(ndim):
    return tuple(range(2, ndim))


@register(
    "structure", structure="rows of a kernel W[o, i, r]; of a linear layer W[o]", family="structured", year=2015,
    paper="Anwar et al., Structured pruning of deep convolutional neural networks",
)  # fmt: skip
def row(ndim):
    return (ndim - 1,)


@register(
    "structure", structure="columns of a kernel W[o, i, :, c]; of a linear layer W[:, i]", family="structured",
    year=2015, paper="Anwar et al., Structured pruning of deep convolutional neural networks",
)  # fmt: skip
def column(ndim):
    return () if ndim == 3 else (ndim - 2,)  # the kernel of a 1-D convolution is one row


@register(
    "structure", structure="W[o]: a neuron or an output channel", family="structured", year=2017,
    paper="Li et al., Pruning filters for efficient convnets",
)  # fmt: skip
def filter(ndim):
    return tuple(range(1, ndim))


@register(
    "structure", structure="W[:, i]: what one layer reads of an input channel", family="structured", year=2017,
    paper="He et al., Channel pruning for accelerating very deep neural networks",
)  # fmt: skip
def input(ndim):
    return (0, *range(2, ndim))


# -- structures that fix their own count: a layer's scores -> its mask -------------------------------------------------


@dataclass(frozen=True)
class Fixed:
    """A structure with its count built in. `choose(scores)` gives the bool mask of one layer, or None where the layer
    does not fit and stays dense; `fits` says in words what does."""

    choose: Callable
    fits: str
    __name__: str = "fixed"

    def __call__(self, scores):
        return self.choose(scores)


def n_of_m(n, m):
    """N:M sparsity: the best n of every m consecutive weights along the inputs (for a convolution: along the input
    channels, for each place in the kernel). Equal scores: the first stay. A layer whose number of inputs m does not
    divide stays dense. ValueError unless 0 < n < m."""
    if not 0 < n < m:
        raise ValueError(f"N:M keeps N of every M weights with 0 < N < M; got {n}:{m}")

    def choose(scores):
        if scores.shape[1] % m:
            return None
        last = scores.movedim(1, -1)
        groups = last.reshape(-1, m)
        best = groups.argsort(dim=1, descending=True, stable=True)[:, :n]
        mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, True)
        return mask.view(last.shape).movedim(-1, 1).contiguous()

    return Fixed(choose, f"a number of inputs that {m} divides", f"{n}:{m}")


def patterns(library):
    """Each kernel keeps the pattern of `library`, a bool tensor (patterns, kh, kw), whose scores sum to most (the first
    of equal ones). Layers with kernels of another size stay dense."""
    if not isinstance(library, torch.Tensor) or library.dtype != torch.bool or library.ndim != 3 or not len(library):
        raise ValueError(
            "a pattern library is a bool tensor (patterns, kh, kw), True = kept, with at least one pattern"
        )
    size = tuple(library.shape[1:])

    def choose(scores):
        if scores.shape[2:] != size:
            return None
        flat = library.to(scores.device).flatten(1)
        best = (scores.double().flatten(2) @ flat.T.double()).argmax(-1)
        return flat[best].view(scores.shape)

    return Fixed(choose, f"kernels of size {'x'.join(map(str, size))}", "patterns")


def _one_per_kernel(scores):
    flat = scores.flatten(2) if scores.ndim > 2 else scores.unsqueeze(-1)
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, flat.argmax(-1, keepdim=True), True).view(scores.shape)


def _four_of_nine():
    """The 56 patterns that keep the centre of a 3x3 kernel and three of its other eight places."""
    library = torch.zeros(56, 9, dtype=torch.bool)
    for row, others in zip(library, combinations((0, 1, 2, 3, 5, 6, 7, 8), 3), strict=True):
        row[[4, *others]] = True
    return library.view(56, 3, 3)


register(
    "structure", "pattern", method="fixed count", structure="4 of 9 places of each 3x3 kernel, its centre always",
    family="semi-structured", year=2020, paper="Ma et al., PCONV; Niu et al., PatDNN",
)(patterns(_four_of_nine()))  # fmt: skip
register(
    "structure", "shift", structure="one weight of each kernel: a shift and a 1x1 convolution", method="fixed count",
    family="semi-structured", year=2019, paper="Hacene et al., Attention based pruning for shift networks",
)(Fixed(_one_per_kernel, "any layer", "shift"))  # fmt: skip
register(
    "structure", "2:4", structure="2 of every 4 weights along the inputs (any N:M by its name)", method="fixed count",
    family="semi-structured", year=2021, paper="Mishra et al., Accelerating sparse deep neural networks",
)(n_of_m(2, 4))  # fmt: skip


# -- scores of weights -> scores of units ------------------------------------------------------------------------------


def _first(scores, dims, keepdim):
    for dim in dims:
        scores = scores.narrow(dim, 0, 1)
    return scores


REDUCTIONS = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax, "first": _first}


@dataclass(frozen=True)
class Spans:
    """Units that lie in one weight each and span the dimensions `dims(ndim)` of it."""

    dims: Callable

    def reduce(self, scores, how="mean", producers=False):
        """{name: scores of weights} -> {name: scores of units}, 1 in each dimension that a unit spans."""
        return {name: reduce_to_units(score, self.dims, how) for name, score in scores.items()}

    def expand(self, kept):
        """{name: flags of units} -> {parameter name: flags that broadcast to it}: the same."""
        return kept

    def holds_outputs(self, ndim):
        """True if a unit of a weight with `ndim` dimensions is all that makes one output."""
        return ndim > 1 and set(self.dims(ndim)) == set(range(1, ndim))


def find_structure(what):
    """A name, a function ndim -> dimensions, or a structure itself -> what `reduce`s and `expand`s, a `Fixed`, or (for
    `channel` and `block`) the catalogue's entry, still to be bound to a model. ValueError for an unknown name."""
    if hasattr(what, "reduce") or isinstance(what, Fixed):
        return what
    if isinstance(what, str) and (found := re.fullmatch(r"(\d+):(\d+)", what)):
        return n_of_m(*map(int, found.groups()))
    entry = find("structure", what)
    if isinstance(entry.function, Fixed):
        return entry.function
    return entry if entry.defaults.get("coupled") else Spans(entry.function)


def bind(what, model, x=None, exclude=()):
    """`find_structure`, bound to a model where the structure needs one."""
    found = find_structure(what)
    return found.function(model, x, exclude) if isinstance(found, Entry) else found


def spanning():
    """The names of the structures whose units lie in one weight each."""
    return [name for name in names("structure") if isinstance(find_structure(name), Spans)]


def reduce_to_units(scores, structure="weight", reduce="mean"):
    """One score per unit: shape (out, in, ...) with 1 in each dimension that the structure spans.

    `reduce` is `mean`, `sum`, `max`, or `first` (the unit's first entry, for scores that are random per unit).
    ValueError for an unknown structure or reduction, or a structure whose units are no part of one weight.
    """
    if reduce not in REDUCTIONS:
        raise nearest("reduction", reduce, REDUCTIONS)
    found = find_structure(structure)
    if not isinstance(found, Spans):
        raise ValueError(f"units of {structure!r} do not span dimensions of one weight; {spanning()} do")
    dims = found.dims(scores.ndim)
    if not dims:
        return scores
    return REDUCTIONS[reduce](scores if scores.is_floating_point() else scores.float(), dims, keepdim=True)
