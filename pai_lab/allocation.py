"""How many units stay in each layer, and which: scores in, an exact mask out.

pai.allocate(scores, 0.9) keeps exactly round((1 - 0.9) * n) weights, the best of all layers together
"""

import warnings
from numbers import Real

import numpy as np
import torch

from pai_lab.catalog import Entry
from pai_lab.functional import fit
from pai_lab.mask import Mask
from pai_lab.scopes import Layer, quotas
from pai_lab.structures import Fixed, find_structure

SAMPLE = 30_000  # scores looked at to bracket the K-th one


def allocate(
    scores, sparsity, *, scope="global", structure="weight", reduce="mean", floor=0, seed=0, within=None,
    allow_empty=False,
):  # fmt: skip
    """Keep exactly `round((1 - sparsity) * n)` of the n units, the highest scores first.

    `scores` maps parameter names to tensors of the parameter's shape, higher = keep. `structure` says what a unit
    is, `reduce` how its score comes from its weights'. `scope` says how the budget is split: a name, a dict {layer:
    density}, or a function ({layer: Layer(units, shape)}, kept) -> {layer: share} (None for one global ranking).
    `floor` units stay in each layer at least. `within` is a mask: what it has removed is no candidate, and still
    counts in n. Equal scores at the edge are chosen at random by `seed`. The mask lies where the scores lie.

    Structures that fix their own count (`2:4`, `pattern`, `shift`) take `sparsity` None, and no scope or floor; a
    UserWarning names the layers that do not fit and stay dense.

    ValueError for a sparsity outside [0, 1], NaN or infinite scores (names the layer), a floor or a `within` that
    cannot be met, or nothing kept, unless `allow_empty`.
    """
    found = find_structure(structure)
    if not isinstance(found, Fixed):
        check_sparsity(sparsity)
    if isinstance(floor, bool) or not isinstance(floor, int) or floor < 0:
        raise ValueError(f"floor is a number of units per layer, a whole number from 0 on; got {floor!r}")
    if not scores:
        raise ValueError("there are no scores: an empty mapping has nothing to allocate")
    if isinstance(found, Entry):
        raise ValueError(
            f"the units of {structure!r} depend on the model: call pai.prune, or pass "
            f"structure=pai.structures.bind({structure!r}, model)"
        )
    if within is not None:
        fit({n: within[n] for n in within if within[n].ndim > 1 or n in scores}, scores, "the scores")
    if isinstance(found, Fixed):
        return _fixed(found, scores, sparsity, scope, floor, within)
    units = found.reduce(scores, reduce)
    values = {name: _finite(name, unit) for name, unit in units.items()}
    live = {name: None for name in units}
    if within is not None:
        live |= {n: _numpy(alive) for n, alive in found.reduce(within, "max").items() if n in units}
        live = {
            n: None if flags is None or flags.all() else flags.astype(bool, copy=False) for n, flags in live.items()
        }
    kept = count(sparsity, sum(v.size for v in values.values()), allow_empty)
    layers = {n: Layer(v.size, tuple(scores[n].shape)) for n, v in values.items()}
    keep = _choose(values, live, layers, kept, scope, floor, np.random.default_rng(seed))
    kept_units = {n: torch.from_numpy(keep[n]).view(u.shape).to(u.device) for n, u in units.items()}
    if list(units) == list(scores) and all(kept_units[n].shape == scores[n].shape for n in units):
        return Mask.holding(kept_units)
    mask = {n: f.expand_as(scores[n]) if n in scores else f for n, f in found.expand(kept_units).items()}
    if within is not None:  # a unit that is kept revives none of its removed weights
        mask |= {n: mask[n] & within[n].to(mask[n].device) for n in within if n in mask}
    return Mask(mask)


def _fixed(structure, scores, sparsity, scope, floor, within):
    """The mask of a structure that fixes its own count."""
    name = structure.__name__
    if sparsity is not None:
        raise ValueError(f"{name} fixes its own count: sparsity must be None, got {sparsity!r}")
    if scope != "global" or floor:
        raise ValueError(f"{name} fixes the count of every layer: a scope or a floor has nothing to decide")
    for layer, score in scores.items():
        _finite(layer, score)
    found = {layer: structure.choose(score.detach()) for layer, score in scores.items()}
    dense = [layer for layer, keep in found.items() if keep is None]
    if len(dense) == len(found):
        shapes = ", ".join(f"{layer} {tuple(score.shape)}" for layer, score in list(scores.items())[:8])
        raise ValueError(f"{name} needs {structure.fits}; no layer has that: {shapes}")
    if dense:
        warnings.warn(f"{name} needs {structure.fits}: {', '.join(dense)} stay dense", stacklevel=3)
    mask = {n: torch.ones_like(scores[n], dtype=torch.bool) if keep is None else keep for n, keep in found.items()}
    if within is not None:
        mask |= {n: mask[n] & within[n].to(mask[n].device) for n in within}
    return Mask(mask)


def check_sparsity(sparsity):
    """`sparsity` itself; ValueError or TypeError unless it is a number in [0, 1]."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise TypeError(f"sparsity must be a number in [0, 1], got {sparsity!r}")
    if not 0 <= sparsity <= 1:
        hint = f". Did you mean {sparsity / 100:g}?" if 2 <= sparsity <= 100 else ""
        raise ValueError(f"sparsity is the fraction removed, in [0, 1]; got {sparsity}{hint}")
    return sparsity


def count(sparsity, total, allow_empty=False):
    """How many of `total` units stay: `round((1 - sparsity) * total)`. ValueError if none, unless `allow_empty`."""
    kept = round((1 - sparsity) * total)
    if kept == 0 and not allow_empty:
        raise ValueError(
            f"sparsity {sparsity} of {total} units keeps none: no signal passes such a network. "
            "Lower the sparsity, or pass allow_empty=True"
        )
    return kept


def _finite(name, unit):
    values = _numpy(unit)
    low, high = torch.aminmax(torch.from_numpy(values))  # carries NaN
    if not np.isfinite([low, high]).all():
        bad = values.size - np.count_nonzero(np.isfinite(values))
        raise ValueError(f"{bad} of {values.size} scores of {name!r} are NaN or infinite; nothing was pruned")
    return values


def _numpy(tensor):
    tensor = tensor.detach().cpu().flatten()
    return (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()


def _choose(values, live, layers, kept, scope, floor, rng):
    room = {name: values[name].size if live[name] is None else int(live[name].sum()) for name in values}
    least = {name: min(floor, room[name]) for name in values}
    if sum(least.values()) > kept:
        total = sum(v.size for v in values.values())
        raise ValueError(
            f"a floor of {floor} units in each of {len(layers)} layers keeps at least {sum(least.values())}, and only "
            f"{kept} are to be kept: with this floor the sparsity is at most {1 - sum(least.values()) / total:.10g}"
        )
    if kept > sum(room.values()):
        raise ValueError(f"{kept} units are to be kept, and only {sum(room.values())} are left to choose from")
    wanted = quotas(scope, layers, kept)
    if wanted is not None:
        counts = apportion(list(wanted.values()), kept, list(least.values()), list(room.values()))
        return {n: select(values[n], count, live[n], rng) for n, count in zip(layers, counts, strict=True)}
    if not floor:
        return _globally(values, live, kept, rng)
    held = {n: select(values[n], least[n], live[n], rng) for n in layers}
    rest = {n: ~held[n] if live[n] is None else live[n] & ~held[n] for n in layers}
    more = _globally(values, rest, kept - sum(least.values()), rng)
    return {n: held[n] | more[n] for n in layers}


def _globally(values, live, kept, rng):
    return dict(zip(values, _select(list(values.values()), kept, list(live.values()), rng), strict=True))


def apportion(shares, total, least, most):
    """Whole numbers that sum to `total`, in proportion to `shares` as far as the bounds allow.

    least[i] <= result[i] <= most[i]; largest remainder, ties to the earlier one.
    """
    shares, least, most = (np.asarray(x, float) for x in (shares, least, most))
    shares = np.maximum(shares / shares.max(), 1e-12)  # a layer with no share gets what no other layer can hold
    quota = total * shares / shares.sum()
    if (quota < least).any() or (quota > most).any():  # some layer is full or at its floor: find the common factor
        low, high = 0.0, most.max() / shares.min()
        while low < (factor := (low + high) / 2) < high:
            low, high = (factor, high) if np.clip(factor * shares, least, most).sum() < total else (low, factor)
        quota = np.clip(high * shares, least, most)
    counts = np.floor(quota + 1e-9)
    by_remainder = np.argsort(-np.round(quota - counts, 9), kind="stable")
    open_places = by_remainder[(counts < most)[by_remainder]]
    counts[open_places[: int(total - counts.sum())]] += 1
    return counts.astype(int).tolist()


def select(values, kept, live=None, rng=None):
    """Flags of the `kept` highest of a 1-D array, exactly: all above the K-th value, then a random draw among those
    equal to it. `live` flags the candidates. Cost: a few passes over the values, no sort."""
    return _select([values], kept, [live], rng)[0]


def _select(parts, kept, live, rng):
    """`select` over several arrays at once, never joined in memory but for their candidates."""

    def among(flags):
        return [flag if alive is None else flag & alive for flag, alive in zip(flags, live, strict=True)]

    pool = [v if alive is None else _taken(v, alive) for v, alive in zip(parts, live, strict=True)]
    pool = pool[0] if len(pool) == 1 else np.concatenate(pool)
    if kept in (0, pool.size):
        return among([np.full(v.size, bool(kept)) for v in parts])
    edge = kth_largest(pool, kept)
    missing, ties = kept - np.count_nonzero(pool > edge), np.count_nonzero(pool == edge)
    del pool
    if missing == ties:
        return among([v >= edge for v in parts])
    equal = np.concatenate(among([v == edge for v in parts]))
    drawn = np.split(_draw(equal, missing, ties, rng), np.cumsum([v.size for v in parts])[:-1])
    return [above | extra for above, extra in zip(among([v > edge for v in parts]), drawn, strict=True)]


def _taken(values, flags):
    """values[flags], in a third of the time."""
    return values.take(np.flatnonzero(flags))


def _draw(equal, missing, ties, rng):
    """`missing` of the `ties` flags at random. Among many, 16-bit random keys decide all but the few at the edge."""
    if ties <= SAMPLE:
        drawn, places, rest = np.zeros(equal.size, bool), np.flatnonzero(equal), missing
    else:
        keys = rng.integers(0, 1 << 64, equal.size // 4 + 1, np.uint64).view(np.uint16)[: equal.size]
        share = missing / ties
        spread = 6 * (share * (1 - share) / ties) ** 0.5
        low, high = (min(max(int((share + sign * spread) * 65536) + sign, 0), 65535) for sign in (-1, 1))
        drawn = equal & (keys < low)
        places = np.flatnonzero(equal & (keys - np.uint16(low) <= high - low))
        rest = missing - np.count_nonzero(drawn)
        if not 0 <= rest <= places.size:  # six standard deviations off: once in 10^9 draws
            return _draw(equal, missing, ties, rng)
    drawn[rng.permutation(places)[:rest]] = True
    return drawn


def kth_largest(values, k):
    """The k-th largest of a 1-D array (k from 1 on), exactly, also when most values are equal.

    A sorted sample brackets it; counts over all values prove the bracket; only the few values inside are
    partitioned. numpy.partition alone is many times slower on equal values.
    """
    if values.size > 1_000_000:
        sample = np.sort(values[:: values.size // SAMPLE])
        place, margin = (1 - k / values.size) * sample.size, 3 * sample.size**0.5
        low, high = sample[[int(max(place - margin, 0)), int(min(place + margin, sample.size - 1))]]
        from_high = np.count_nonzero(values >= high)
        inside = _taken(values, (values > low) & (values < high))
        if k <= from_high and k > np.count_nonzero(values > high):
            return high
        if from_high < k <= from_high + inside.size:
            values, k = inside, k - from_high
        elif low < high and 0 < k - from_high - inside.size <= np.count_nonzero(values == low):
            return low
    return np.partition(values, values.size - k)[values.size - k]
