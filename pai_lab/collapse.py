"""Layer collapse: how far a criterion compresses a net before a layer is left with nothing.

critical_compression(model, "synflow", batch=batch) / maximal_compression(model)     # 1: as far as there is
"""

from functools import partial
from math import isqrt

from pai_lab.allocation import allocate
from pai_lab.catalog import find
from pai_lab.functional import prunable
from pai_lab.pruning import _takes_kept, rounds


def maximal_compression(model, exclude=()):
    """Weights per layer: the largest compression that still leaves each layer one weight. `exclude` names layers
    that are not pruned. ValueError if no prunable weight is left. Tanaka et al., SynFlow, 2020."""
    weights = prunable(model, exclude)
    return sum(w.numel() for w in weights.values()) / len(weights)


def critical_compression(
    model, criterion, *, batch=None, scope="global", iterations=None, schedule=None, tolerance=0.01, seed=0,
    exclude=(), **options,
):  # fmt: skip
    """All weights / the fewest that a criterion can keep with none of the layers empty: from 1 (dense) to
    `maximal_compression`. Settings and `options` are those of `prune`, for single weights.

    Found by bisection of the number of kept weights, in the logarithm. In one round the scores do not depend on that
    number: they are made once, and the answer is exact. Over several rounds each step prunes anew, until the answer
    is known to a factor of 1 + `tolerance` (0: exactly); it is never too high.

    Bisection finds one boundary between a net that holds and one that does not. One round with distinct scores has
    no other; over rounds, or where ties are drawn, a net may collapse at one size and hold at a smaller one. With
    skip connections an empty layer need not cut the net, and a net can be cut with no layer empty.

    ValueError for a negative tolerance; other errors as in `prune`. The model is not changed. Cost: the criterion's,
    once; over rounds log2(log(maximal) / tolerance) times (SynFlow: some 1,000 FB of one sample; a step ends with
    the round that empties a layer). Tanaka et al., SynFlow, 2020.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance is a relative error, from 0 on; got {tolerance!r}")
    entry, weights = find("criterion", criterion), prunable(model, exclude)
    total, least = sum(w.numel() for w in weights.values()), len(weights)
    pruned = partial(
        rounds, model, criterion, batch=batch, structure="weight", scope=scope, schedule=schedule,
        iterations=iterations, floor=0, exclude=exclude, seed=seed, allow_empty=True, **options,
    )  # fmt: skip
    planned = entry.defaults.get("iterations", 1) if iterations is None else iterations
    if planned == 1 and not _takes_kept(entry):
        scores, _ = next(pruned(1 - least / total))
        return total / _fewest(
            lambda kept: not allocate(scores, 1 - kept / total, scope=scope, seed=seed).collapsed(), least, total
        )
    revives = entry.defaults.get("revives")
    return total / _fewest(lambda kept: _hold(pruned(1 - kept / total), revives), least, total, tolerance)


def _hold(steps, revives):
    """True if no layer is empty after the last round. One that is empty stays so, unless the criterion revives."""
    for _, mask in steps:
        full = not mask.collapsed()
        if not full and not revives:
            break
    return full


def _fewest(holds, low, high, tolerance=0):
    """The smallest number from `low` to `high` that `holds`, to a factor of 1 + tolerance; `high` always does."""
    if low == high or holds(low):
        return low
    while high - low > 1 and high > low * (1 + tolerance):
        middle = min(max(isqrt(low * high), low + 1), high - 1)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
