"""Units whose weights are spread over several layers: one score for each, and the mask of those that stay.

found = channels(model); kept = {group: scores > 0.1 for group, scores in found.reduce(scores).items()}
"""

from copy import deepcopy
from typing import NamedTuple

import torch

from pai_lab.catalog import nearest
from pai_lab.functional import prunable
from pai_lab.structures import REDUCTIONS


class Entry(NamedTuple):
    """A part of one tensor: place `index[i]` of its dimension `dim` belongs to unit `unit[i]`."""

    name: str
    dim: int
    unit: torch.Tensor
    index: torch.Tensor


class Coupled:
    """Units whose weights are spread over several layers, in groups; made by `channels` and `blocks`.

    `units` is {group: number of units}; a group has the name of its first weight, in module order. `entries` is
    {group: [Entry]}, rows of weights first: parameters and, for removal, BatchNorm's running statistics.
    """

    def __init__(self, model, entries, units):
        self.entries, self.units = entries, units
        self._weights = frozenset(prunable(model))
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def parameters(self, group, producers=False):
        """The group's entries that are parameters; with `producers` only those that are rows of prunable weights."""
        entries = [e for e in self.entries[group] if e.name in self._shapes]
        return [e for e in entries if e.name in self._weights and e.dim == 0] if producers else entries

    def reduce(self, scores, how="mean", producers=False):
        """{group: one score per unit}, from {parameter name: scores of the parameter's shape}.

        A unit's weights are its rows and columns in the coupled prunable weights that `scores` names. `mean` is over
        all of them at once: a large layer counts more. A weight in a row and a column of the same unit counts twice.
        `producers` leaves the columns out: for criteria that score whole filters. `first` is the first entry of the
        unit's first row: independent between units. A mask and "max" give True for the units that are alive.
        ValueError for an unknown reduction, or a unit without scores.
        """
        if how not in REDUCTIONS:
            raise nearest("reduction", how, REDUCTIONS)
        return {group: self._reduced(group, scores, how, producers) for group in self.units}

    def _reduced(self, group, scores, how, producers):
        entries = [e for e in self.parameters(group, producers) if e.name in self._weights and e.name in scores]
        unit = torch.cat([e.unit for e in entries]) if entries else torch.empty(0)
        if len(unit.unique()) < self.units[group]:
            raise ValueError(f"some units of group {group!r} have no scores; there are scores of {list(scores)}")
        given, size = scores[entries[0].name], self.units[group]
        rows = torch.cat([_rows(scores[e.name], e, "sum" if how == "mean" else how) for e in entries])
        found = _pooled(unit, rows, how, size)
        if how == "mean":
            weights = [torch.full_like(e.index, scores[e.name].narrow(e.dim, 0, 1).numel()) for e in entries]
            found = found / _pooled(unit, torch.cat(weights), "sum", size)
        keeps_type = how in ("max", "first") or given.dtype == torch.float64
        return found.to(given.device, given.dtype if keeps_type else torch.float32)

    def expand(self, kept):
        """{parameter name: bool tensor, True = kept} from {group: bool tensor, one flag per unit}.

        All parameters that any group touches: weights (rows and columns), biases, BatchNorm's weight and bias. A
        group that `kept` leaves out stays whole. ValueError for an unknown group, a wrong length or type.
        """
        for group, flags in kept.items():
            if group not in self.units:
                raise nearest("group", group, self.units)
            if flags.dtype != torch.bool or flags.shape != (self.units[group],):
                got = f"{flags.dtype} of shape {tuple(flags.shape)}"
                raise ValueError(f"group {group!r} has {self.units[group]} units: it takes as many bools, got {got}")
        device = next((flags.device for flags in kept.values()), "cpu")
        touched = {e.name for group in self.units for e in self.parameters(group)}
        masks = {n: torch.ones(s, dtype=torch.bool, device=device) for n, s in self._shapes.items() if n in touched}
        for group, flags in kept.items():
            for entry in self.parameters(group):
                masks[entry.name].index_fill_(entry.dim, entry.index[~flags.cpu()[entry.unit]].to(device), False)
        return masks

    def removed(self, mask, producers=False):
        """{group: bool tensor, True for the units of which `mask` keeps nothing}; what it does not name is kept.
        With `producers` only the unit's rows of prunable weights are looked at."""
        return {group: self._removed(group, mask, producers) for group in self.units}

    def _removed(self, group, mask, producers):
        gone = torch.ones(self.units[group], dtype=torch.bool)
        for entry in self.parameters(group, producers):
            kept = torch.ones(len(entry.index), dtype=torch.bool)
            if entry.name in mask:
                flags = mask[entry.name].cpu().movedim(entry.dim, 0)
                kept = flags.reshape(len(flags), -1).any(1)[entry.index]
            gone[entry.unit[kept]] = False
        return gone


def _rows(scores, entry, how):
    """One number for each index of the entry, on the CPU, where sums of duplicates have a fixed order."""
    scores = scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
    dims = [dim for dim in range(scores.ndim) if dim != entry.dim]
    return REDUCTIONS[how](scores, dims, keepdim=True).flatten().cpu().double()[entry.index]


def _pooled(unit, rows, how, size):
    if how == "max":
        return rows.new_full((size,), -torch.inf).scatter_reduce(0, unit, rows, "amax")
    if how == "first":
        places = torch.arange(len(unit))
        return rows[places.new_full((size,), len(unit)).scatter_reduce(0, unit, places, "amin")]
    return rows.new_zeros(size).index_add(0, unit, rows)


def twin(model):
    """A copy to run at will: eval mode, no hooks, a gradient for every floating parameter."""
    net = deepcopy(model).eval()
    for module in net.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            hooks.clear()
    for parameter in net.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return net


def example(model, x=None):
    """One sample to trace with: the first of the batch `x`, or zeros of `model.input_shape`. ValueError without."""
    if x is None:
        shape = getattr(model, "input_shape", None)
        if shape is None:
            raise ValueError(f"{type(model).__name__} has no input_shape: give a batch of inputs")
        weight = next(iter(prunable(model).values()))
        return torch.zeros(1, *shape, dtype=weight.dtype, device=weight.device)
    if not torch.is_tensor(x) or x.ndim == 0 or len(x) == 0:
        got = tuple(x.shape) if torch.is_tensor(x) else type(x).__name__
        raise ValueError(f"x must be a batch of inputs, at least one sample; got {got}")
    return x[:1].detach().clone()


def run(net, x):
    """net(x); ValueError that names the shape if x does not fit."""
    try:
        return net(x)
    except RuntimeError as error:
        raise ValueError(f"{type(net).__name__} cannot run on inputs of shape {tuple(x.shape[1:])}: {error}") from error
