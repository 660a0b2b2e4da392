"""The order in which units go: what a threshold explorable sends to the browser once, to be cut at any sparsity there.

ranking = rank(model, "synflow", 0.95, batch=batch)      # ranking.mask(0.95) is the mask of pai.prune
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from pai_lab.allocation import allocate, apportion
from pai_lab.catalog import find
from pai_lab.mask import Mask, prunable
from pai_lab.pruning import candidates, rounds
from pai_lab.scopes import Layer, quotas
from pai_lab.structures import find_structure, reduce_to_units

# The slider's scale: steps of 1, 2, 5 in shrinking tenths, close to even steps in the logarithm of what is left.
TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
STEPS = (0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001, 0.0001)
TOP = 65535
BINS = 64


def stops(*extra):
    """The sparsities that the slider visits, ascending, as exact decimals; `extra` ones are put in."""
    grid = {round(a + i * step, 4) for a, b, step in zip(TICKS, TICKS[1:], STEPS, strict=False)
            for i in range(round((b - a) / step) + 1)}  # fmt: skip
    return sorted(grid | set(extra))


@dataclass(frozen=True)
class Ranking:
    """Units in their order of removal. Exactly `prune`'s mask at the sparsity `settled`. Elsewhere the counts are
    exact, too, but equal scores may be chosen otherwise, and an iterative criterion is on its way to `settled`.

    `shapes`: every layer's weight shape; `units`: the shape of its units, for the layers that can lose any;
    `values`: per layer one number for each unit, the least goes first; `keep`: which units the mask at `settled`
    keeps. `scores`: those of a one-shot criterion, from which `settle` goes elsewhere; None for an iterative one.
    """

    shapes: dict
    units: dict
    values: dict = field(repr=False)
    keep: dict = field(repr=False)
    settled: float
    settings: dict  # scope, structure, seed, reduce: as `allocate` takes them
    scores: dict | None = field(repr=False)
    shared: dict = field(repr=False, default_factory=dict)  # sorted values, common to all that `settle` makes

    @property
    def total(self):
        """Number of units."""
        return sum(values.size for values in self.values.values())

    def kept(self, sparsity):
        """The house's count: how many units stay."""
        return round((1 - sparsity) * self.total)

    def layer_counts(self, sparsities):
        """{layer: how many units stay, an int array over the sparsities}; they sum to `kept`."""
        kept, layers = (
            [self.kept(s) for s in sparsities],
            {n: Layer(v.size, self.shapes[n]) for n, v in self.values.items()},
        )
        most = [layer.units for layer in layers.values()]
        shares = [quotas(self.settings["scope"], layers, k) for k in kept]
        if shares[0] is None:
            table = self._above_one_cut(kept)
        else:
            table = np.array(
                [apportion([*q.values()], k, [0] * len(most), most) for q, k in zip(shares, kept, strict=True)]
            )
        for row, sparsity in enumerate(sparsities):
            if sparsity == self.settled:
                table[row] = [keep.sum() for keep in self.keep.values()]
        return dict(zip(layers, table.T, strict=True))

    def _above_one_cut(self, kept):
        """Counts (cuts, layers) above the one cut that leaves `kept` units; among units that equal the cut, each
        layer has its share."""
        if not self.shared:
            self.shared.update({name: np.sort(v) for name, v in self.values.items()})
            self.shared[None] = np.sort(np.concatenate(list(self.values.values())))
        every = self.shared[None]
        cuts = every[np.clip(every.size - np.array(kept), 0, every.size - 1)]
        layers = [self.shared[name] for name in self.values]
        at_least = np.stack([v.size - np.searchsorted(v, cuts, "left") for v in layers], 1)
        above = np.stack([v.size - np.searchsorted(v, cuts, "right") for v in layers], 1)
        for row, k in enumerate(kept):
            if at_least[row].sum() != k:
                equal = at_least[row] - above[row]
                at_least[row] = above[row] + apportion(equal, k - above[row].sum(), np.zeros_like(equal), equal)
        return at_least

    def order(self, name):
        """A layer's units, the first to go first; equal values mixed, so that no corner of the layer goes first."""
        values = self.values[name]
        mixed = np.random.default_rng(self.settings["seed"]).permutation(values.size)
        order = mixed[np.argsort(values[mixed])]
        return order[np.argsort(self.keep[name][order].view(np.uint8), kind="stable")]

    def mask(self, sparsity):
        """The Mask at a sparsity, over all layers."""
        found, counts = {}, {} if sparsity == self.settled else self.layer_counts([sparsity])
        for name, shape in self.shapes.items():
            if name not in self.units:
                found[name] = torch.ones(shape, dtype=torch.bool)
                continue
            stay = self.keep[name]
            if counts:
                stay = np.zeros(stay.size, bool)
                stay[self.order(name)[stay.size - counts[name][0] :]] = True
            found[name] = torch.from_numpy(stay).view(self.units[name]).expand(shape)
        return Mask(found)

    def ranks(self, name):
        """uint16, one per weight of a layer, row by row: how many of the layer's n weights go before it, scaled to
        at most 65,535: top = min(n, 65535). Where `c` weights go, one stays if its rank is at least
        floor(top c / n): exactly for layers up to 65,535 units, else within one part in 65,535."""
        shape = self.shapes[name]
        if name not in self.units:
            return np.zeros(np.prod(shape), np.uint16)
        order = self.order(name)
        ranks = np.empty(order.size, np.uint16)
        ranks[order] = np.arange(order.size) * min(np.prod(shape), TOP) // order.size
        return np.ascontiguousarray(np.broadcast_to(ranks.reshape(self.units[name]), shape)).ravel()


def rank(model, criterion, sparsity, *, batch=None, structure="weight", scope="global", seed=0):
    """The Ranking of a criterion (name or function), settled at `sparsity`, a number in (0, 1]. Errors and cost as
    for `pai.prune`."""
    entry, shapes = find("criterion", criterion), {name: tuple(w.shape) for name, w in prunable(model).items()}
    settings = {"structure": structure, "scope": scope, "seed": seed}
    names = candidates(find_structure(structure), prunable(model), model, batch, structure)
    values, gone_in, left = None, 0, True
    found = rounds(model, criterion, sparsity, batch=batch, allow_empty=True, **settings)
    settings["reduce"] = entry.defaults.get("reduce", "mean")
    for number, (scores, mask) in enumerate(found, 1):  # a unit keeps the score of the round in which it goes
        score = _joined({n: reduce_to_units(scores[n], structure, settings["reduce"]) for n in names})
        keep = _joined(kept_units(mask, names, structure))
        goes = left & ~keep
        values = score if values is None else np.where(keep | goes, score, values)
        gone_in, left = np.where(goes, number, gone_in), keep
    if number > 1:  # earlier rounds first, then lower scores
        order = np.lexsort((values, np.where(keep, number + 1, gone_in)))
        values = np.empty(len(order), np.int32)
        values[order] = np.arange(len(order), dtype=np.int32)
    units = {name: tuple(unit.shape) for name, unit in kept_units(mask, names, structure).items()}
    edges = np.cumsum([np.prod(shape) for shape in units.values()])[:-1]
    parts = [dict(zip(names, np.split(joined, edges), strict=True)) for joined in (values, keep)]
    return Ranking(shapes, units, *parts, sparsity, settings, {n: scores[n] for n in names} if number == 1 else None)


def settle(ranking, sparsity):
    """A one-shot criterion's Ranking, settled at another sparsity without scoring again; any other as it was."""
    if sparsity == ranking.settled or ranking.scores is None:
        return ranking
    mask = allocate(ranking.scores, sparsity, allow_empty=True, **ranking.settings)
    keep = kept_units(mask, ranking.units, ranking.settings["structure"])
    return replace(ranking, keep={n: unit.cpu().numpy().ravel() for n, unit in keep.items()}, settled=sparsity)


def looks_same(before, after):
    """True if a picture drawn from `before` is right at the sparsity where `after` is settled: the counts agree, and
    in no layer does a unit that goes equal one that stays, so that there is but one choice."""
    if before.scores is None or before.scores is not after.scores:
        return False
    counts = before.layer_counts([after.settled])
    for name, keep in after.keep.items():
        stay, go = after.values[name][keep], after.values[name][~keep]
        if stay.size != counts[name][0] or (stay.size and go.size and go.max() >= stay.min()):
            return False
    return True


def kept_units(mask, names, structure):
    """{layer: bool tensor with one entry per unit}."""
    return {name: reduce_to_units(mask[name], structure, "max").bool() for name in names}


def _joined(tensors):
    return np.concatenate([t.detach().cpu().flatten().numpy() for t in tensors.values()])


# -- to the browser ----------------------------------------------------------------------------------------------
def scene(ranking, sparsity, title=""):
    """What the canvas needs of a ranking, but for the arrays of the chosen layer: layers, stops, counts at each stop
    (bytes of uint32, stops x layers), a note. `sparsity` is a stop too."""
    sparsities = stops(sparsity)
    counts = ranking.layer_counts(sparsities)
    sizes = {name: int(np.prod(shape)) for name, shape in ranking.shapes.items()}
    whole = np.ones(len(sparsities), int)
    kept = [counts[n] * (size // ranking.values[n].size) if n in counts else whole * size for n, size in sizes.items()]
    iterative = ranking.scores is None
    found = {
        "title": title, "stops": sparsities, "ticks": list(TICKS),
        "kept": np.stack(kept, 1).astype(np.uint32).tobytes(),
        "layers": [_about(ranking, name) for name in ranking.shapes],
        "note": f"order of removal towards {100 * ranking.settled:.4g} %" if iterative else "",
    }  # fmt: skip
    structure = ranking.settings["structure"]
    if structure != "weight":
        units = np.array([ranking.kept(s) for s in sparsities], np.uint32)
        found["unit"] = {"name": f"{structure}s", "total": ranking.total, "kept": units.tobytes()}
    return found


def detail(ranking, weight, name):
    """A layer's arrays for the canvas: `ranks` (uint16), `bins` (uint8, its weights in 64 bins over +-limit)."""
    weight = weight.detach().flatten()
    limit = float(weight.abs().max()) or 1.0
    bins = ((weight / limit + 1) * (BINS / 2)).floor_().clamp_(0, BINS - 1).to(torch.uint8)
    ranks = ranking.ranks(name)
    return {"layer": name, "ranks": ranks.tobytes(), "bins": bins.cpu().numpy().tobytes(), "limit": limit}


def short(name):
    """The layer's name without ".weight"."""
    return name.removesuffix(".weight")


def _about(ranking, name):
    shape = ranking.shapes[name]
    rows, cols = shape[0], int(np.prod(shape[1:]))
    axes = ["output", "input"] if len(shape) == 2 else ["output channel", "input channel and place in the kernel"]
    return {
        "name": name, "label": short(name), "shape": list(shape), "rows": rows, "cols": cols, "total": rows * cols,
        "fixed": name not in ranking.units, "axes": axes,
    }  # fmt: skip
