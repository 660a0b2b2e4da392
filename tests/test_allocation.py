"""Allocation: exact counts, the best kept, fair ties. References: full sorts, fractions, brute force."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pai_lab as pai
from pai_lab.allocation import apportion, kth_largest, select
from pai_lab.structures import spanning

FLAT = {"distinct": None, "constant": 1, "zeros": 0, "few": 3, "mostly equal": 0.9}


def numbers(kind, size, rng):
    """1-D scores of one kind, float32."""
    if kind == "distinct":
        return rng.permutation(size).astype(np.float32)
    if kind in ("constant", "zeros"):
        return np.full(size, FLAT[kind], np.float32)
    if kind == "few":
        return rng.integers(0, 3, size).astype(np.float32)
    values = rng.permutation(size).astype(np.float32) - size / 2
    values[rng.random(size) < 0.9] = 0.5
    return values


def layered(kind, shapes, seed):
    rng = np.random.default_rng(seed)
    values = numbers(kind, sum(map(math.prod, shapes)), rng)
    parts = np.split(values, np.cumsum([math.prod(s) for s in shapes])[:-1])
    return {
        f"{i}.weight": torch.from_numpy(p.copy()).view(s) for i, (p, s) in enumerate(zip(parts, shapes, strict=True))
    }


SHAPES = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=4,
)


# -- exact counts ----------------------------------------------------------------------------------
@given(
    SHAPES,
    st.sampled_from(list(FLAT)),
    st.floats(0, 1),
    st.sampled_from(["global", "layer"]),
    st.sampled_from(["weight", "filter"]),
    st.integers(0, 99),
)
def test_exactly_round_of_the_rest_is_kept(shapes, kind, sparsity, scope, structure, seed):
    scores = layered(kind, shapes, seed)
    mask = pai.allocate(scores, sparsity, scope=scope, structure=structure, seed=seed, allow_empty=True)
    assert list(mask) == list(scores) and all(mask[n].shape == scores[n].shape for n in scores)
    units = {n: m.flatten(1).any(1) if structure == "filter" else m.flatten() for n, m in mask.items()}
    total = sum(u.numel() for u in units.values())
    assert sum(int(u.sum()) for u in units.values()) == round((1 - sparsity) * total)
    if structure == "filter":  # whole rows
        assert all(torch.equal(m.flatten(1).any(1), m.flatten(1).all(1)) for m in mask.values())
    if scope == "layer":  # as even as whole numbers can be
        assert all(abs(int(u.sum()) - (1 - sparsity) * u.numel()) < 1 + 1e-9 for u in units.values())


@given(SHAPES, st.floats(0, 1), st.integers(0, 99))
def test_the_best_of_all_layers_are_kept(shapes, sparsity, seed):
    scores = layered("distinct", shapes, seed)
    mask = pai.allocate(scores, sparsity, allow_empty=True)
    joined = torch.cat([s.flatten() for s in scores.values()])
    kept = torch.cat([m.flatten() for m in mask.values()])
    order = torch.argsort(joined, descending=True)
    assert set(order[: int(kept.sum())].tolist()) == set(kept.nonzero().flatten().tolist())


@given(SHAPES, st.floats(0, 1), st.integers(0, 99))
def test_the_best_of_each_layer_are_kept(shapes, sparsity, seed):
    scores = layered("distinct", shapes, seed)
    mask = pai.allocate(scores, sparsity, scope="layer", allow_empty=True)
    for name, score in scores.items():
        count = int(mask[name].sum())
        assert set(score.flatten().topk(count).indices.tolist()) == set(
            mask[name].flatten().nonzero().flatten().tolist()
        )


KINDS = {
    "normal": lambda normal, rng: normal,
    "positive": lambda normal, rng: np.abs(normal),
    "ties": lambda normal, rng: np.round(normal),
    "zeros": lambda normal, rng: 0 * normal,  # half of them -0.0
    "constant": lambda normal, rng: np.full_like(normal, 0.1),
    "denormal": lambda normal, rng: normal * 1e-42,
    "mixed": lambda normal, rng: normal * 10.0 ** rng.integers(-30, 31, normal.shape),
    "mostly dead": lambda normal, rng: normal * (rng.random(normal.shape) < 0.1),
}
# The dimensions of a weight that a unit spans, by the number of dimensions.
SPANS = {
    "weight": {2: (), 3: (), 4: ()}, "kernel": {2: (), 3: (2,), 4: (2, 3)}, "row": {2: (1,), 3: (2,), 4: (3,)},
    "column": {2: (0,), 3: (), 4: (2,)}, "filter": {2: (1,), 3: (1, 2), 4: (1, 2, 3)},
    "input": {2: (0,), 3: (0, 2), 4: (0, 2, 3)},
}  # fmt: skip
ANY_SHAPE = st.one_of(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)),
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
)
ANY_SPARSITY = st.one_of(
    st.sampled_from([1e-4, 0.5, 0.9, 0.99, 0.999, 0.9999]),
    st.floats(1e-4, 0.9999),
    st.floats(-4, -0.1).map(lambda power: 1 - 10**power),
)
CASES = st.tuples(
    st.lists(ANY_SHAPE, min_size=1, max_size=5), st.sampled_from(list(KINDS)), st.sampled_from(spanning()),
    st.sampled_from(pai.names("scope")), ANY_SPARSITY, st.integers(0, 3), st.sampled_from([1, 0.9, 0.3, 0]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip


def units_of(flags, structure):
    """One flag per unit, 1-D: whether any of its weights is there."""
    for dim in sorted(SPANS[structure][flags.ndim], reverse=True):
        flags = flags.any(dim)
    return flags.flatten()


def counts_are_exact(case):
    """Whatever is scored and asked: `round((1 - sparsity) * n)` units, or an error that says what cannot be."""
    shapes, kind, structure, scope, sparsity, floor, alive, seed = case
    rng, scores, within = np.random.default_rng(seed), {}, {}
    for i, shape in enumerate(shapes):
        scores[f"{i}"] = torch.from_numpy(KINDS[kind](rng.standard_normal(shape), rng).astype(np.float32))
        within[f"{i}"] = torch.from_numpy(rng.random(shape) < alive)
    room = {n: units_of(flags, structure) for n, flags in within.items()}
    kept = round((1 - sparsity) * sum(map(len, room.values())))
    least = sum(min(floor, int(flags.sum())) for flags in room.values())
    asked = {"structure": structure, "scope": scope, "floor": floor, "seed": seed % 97, "allow_empty": True}
    asked["within"] = None if alive == 1 else pai.Mask(within)
    if kept < least or kept > sum(int(flags.sum()) for flags in room.values()):
        with pytest.raises(ValueError, match="floor" if kept < least else "left to choose from"):
            pai.allocate(scores, sparsity, **asked)
        return
    mask = pai.allocate(scores, sparsity, **asked)
    found = {n: units_of(flags, structure) for n, flags in mask.items()}
    assert sum(int(flags.sum()) for flags in found.values()) == kept
    for n, flags in mask.items():
        assert found[n].sum() >= min(floor, int(room[n].sum())) and not (found[n] & ~room[n]).any()
        whole = flags | ~within[n]  # all of a unit, but for what is already gone
        for dim in SPANS[structure][flags.ndim]:
            whole = whole.all(dim, keepdim=True)
        assert flags.shape == scores[n].shape and torch.equal(whole & within[n], flags)


@settings(max_examples=500)
@given(CASES)
def test_any_scores_any_structure_any_scope(case):
    counts_are_exact(case)


@pytest.mark.long
@settings(max_examples=10_000)
@given(CASES)
def test_any_scores_any_structure_any_scope_at_length(case):
    counts_are_exact(case)


def test_every_spanning_structure_is_among_them():
    assert set(spanning()) == set(SPANS)


@settings(max_examples=50)
@given(st.lists(ANY_SHAPE, min_size=1, max_size=5), st.sampled_from(spanning()), st.integers(1, 4))
def test_a_floor_that_is_too_high_says_what_works(shapes, structure, floor):
    scores = {f"{i}": torch.zeros(shape) for i, shape in enumerate(shapes)}
    sizes = [units_of(s == 0, structure).numel() for s in scores.values()]
    with pytest.raises(ValueError, match="sparsity is at most") as error:
        pai.allocate(scores, 1, structure=structure, floor=floor, allow_empty=True)
    works = float(str(error.value).rpartition(" ")[2])
    mask = pai.allocate(scores, works, structure=structure, floor=floor)
    assert [int(units_of(m, structure).sum()) for m in mask.values()] == [min(floor, n) for n in sizes]
    with pytest.raises(ValueError, match="sparsity is at most"):
        pai.allocate(scores, min(works + 1 / sum(sizes), 1), structure=structure, floor=floor, allow_empty=True)


def test_what_a_floor_allows_is_exact_in_a_large_net():
    scores = {"a": torch.zeros(3000, 1000), "b": torch.zeros(3, 5)}
    with pytest.raises(ValueError, match="sparsity is at most") as error:
        pai.allocate(scores, 0.999999, floor=7)
    assert pai.allocate(scores, float(str(error.value).rpartition(" ")[2]), floor=7).kept == 14


@given(SHAPES, st.sampled_from(list(FLAT)), st.floats(0, 1), st.integers(0, 99))
def test_nothing_kept_is_below_what_is_removed(shapes, kind, sparsity, seed):
    scores = layered(kind, shapes, seed)
    mask = pai.allocate(scores, sparsity, allow_empty=True)
    joined = torch.cat([s.flatten() for s in scores.values()])
    kept = torch.cat([m.flatten() for m in mask.values()])
    if kept.any() and not kept.all():
        assert joined[kept].min() >= joined[~kept].max()


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.floats(0, 1),
    st.integers(1, 2),
    st.integers(0, 99),
)
def test_floor_keeps_the_best_that_a_floor_allows(sizes, sparsity, floor, seed):
    scores = layered("distinct", [(1, n) for n in sizes], seed)
    total, least = sum(sizes), sum(min(floor, n) for n in sizes)
    kept = round((1 - sparsity) * total)
    if kept < least:
        with pytest.raises(ValueError, match="floor"):
            pai.allocate(scores, sparsity, floor=floor, allow_empty=True)
        return
    mask = pai.allocate(scores, sparsity, floor=floor)
    values = torch.cat([s.flatten() for s in scores.values()]).tolist()
    layer = [i for i, n in enumerate(sizes) for _ in range(n)]
    best = max(  # every choice there is
        sum(values[i] for i in chosen)
        for chosen in itertools.combinations(range(total), kept)
        if all(sum(layer[i] == j for i in chosen) >= min(floor, n) for j, n in enumerate(sizes))
    )
    assert sum(float(scores[n][mask[n]].sum()) for n in scores) == best
    assert mask.kept == kept


@given(
    SHAPES,
    st.sampled_from(list(FLAT)),
    st.floats(0, 1),
    st.sampled_from(["global", "layer"]),
    st.integers(0, 99),
)
def test_within_a_mask_what_is_gone_stays_gone_and_counts(shapes, kind, sparsity, scope, seed):
    scores = layered(kind, shapes, seed)
    generator = torch.Generator().manual_seed(seed)
    within = pai.Mask({n: torch.rand(s.shape, generator=generator) < 0.6 for n, s in scores.items()})
    kept = round((1 - sparsity) * within.total)
    if kept > within.kept:
        with pytest.raises(ValueError, match="left to choose from"):
            pai.allocate(scores, sparsity, scope=scope, within=within, allow_empty=True)
        return
    mask = pai.allocate(scores, sparsity, scope=scope, within=within, allow_empty=True, seed=seed)
    assert mask.kept == kept and (mask & within) == mask
    if scope == "global" and 0 < kept < within.kept:
        alive = torch.cat([scores[n][within[n]] for n in scores])
        chosen = torch.cat([scores[n][mask[n]] for n in scores])
        assert chosen.sort().values.tolist() == alive.sort().values[-kept:].tolist()


def test_within_a_partial_mask_and_units():
    scores = {"a": torch.tensor([[5.0, 5], [4, 4], [3, 3]]), "b": torch.tensor([[9.0, 9]])}
    within = pai.Mask({"a": torch.tensor([[False, False], [True, True], [True, True]])})
    mask = pai.allocate(scores, 0.5, structure="filter", within=within)
    assert mask["a"].tolist() == [[False] * 2, [True] * 2, [False] * 2] and mask["b"].all()


def test_units_within_single_weights_revive_none():
    within = pai.Mask({"a": torch.tensor([[True, False], [True, True], [False, False]])})
    mask = pai.allocate({"a": torch.tensor([[9.0, 9], [1, 1], [5, 5]])}, 1 / 3, structure="filter", within=within)
    assert (mask & within) == mask


# -- ties ------------------------------------------------------------------------------------------
def chi_square(counts, expected, variance):
    """Sum of squared deviations in units of the variance, one degree of freedom short of len(counts)."""
    counts = np.asarray(counts, float)
    return ((counts - expected) ** 2).sum() / variance


@pytest.mark.parametrize("shape", [(64, 32), (400, 600)])  # drawn directly, and through random keys
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.999])
def test_ties_are_drawn_evenly_over_the_filters(shape, sparsity):
    scores = {"a": torch.zeros(shape)}
    mask = pai.allocate(scores, sparsity, seed=1)
    assert mask == pai.allocate(scores, sparsity, seed=1) != pai.allocate(scores, sparsity, seed=2)
    n, kept, (rows, row) = mask.total, mask.kept, shape
    variance = row * kept / n * (1 - kept / n) * (n - row) / (n - 1)  # hypergeometric
    found = chi_square(mask["a"].sum(1), row * kept / n, variance) * (rows - 1) / rows
    assert abs(found - (rows - 1)) < 6 * (2 * (rows - 1)) ** 0.5  # also not too even
    columns = mask["a"].sum(0)
    assert abs(columns[::4].sum() / columns.sum() - 0.25) < 5 / kept**0.5


def test_every_choice_among_ties_is_as_likely():
    drawn = [
        tuple(pai.allocate({"a": torch.zeros(1, 5)}, 0.6, seed=s)["a"][0].nonzero().flatten().tolist())
        for s in range(1000)
    ]
    counts = [drawn.count(pair) for pair in itertools.combinations(range(5), 2)]
    assert sum(counts) == 1000 and chi_square(counts, 100, 100) < 28  # 9 degrees of freedom, p < 0.001


def test_ties_at_the_edge_only():
    scores = torch.tensor([[3.0, 1, 1, 1, 0, 2, 1, 0]])
    for seed in range(20):
        kept = pai.allocate({"a": scores}, 0.5, seed=seed)["a"][0]
        assert kept[0] and kept[5] and not kept[4] and not kept[7] and kept.sum() == 4


# -- the K-th value --------------------------------------------------------------------------------
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=60), st.data())
def test_kth_largest_is_what_a_sort_says(values, data):
    values = np.asarray(values, np.float32)
    k = data.draw(st.integers(1, values.size))
    assert kth_largest(values, k) == np.sort(values)[values.size - k]


def large(kind):
    size, rng = 1_200_007, np.random.default_rng(0)
    if kind == "sorted":
        return np.arange(size, dtype=np.float32)
    if kind == "periodic":  # a sample with a fixed stride sees one value only
        return np.tile(np.arange(12, dtype=np.float32), size // 12 + 1)[:size]
    if kind == "two blocks":
        return np.repeat(np.float32([2, 1]), [size // 3, size - size // 3])
    return numbers(kind, size, rng)


@pytest.mark.parametrize("kind", ["distinct", "constant", "few", "mostly equal", "sorted", "periodic", "two blocks"])
def test_kth_largest_of_a_million(kind):
    values = large(kind)
    falling = np.sort(values)[::-1]
    blocks = np.flatnonzero(falling[1:] != falling[:-1]) + 1 if kind != "distinct" else []
    around = [k + d for k in blocks[:: max(len(blocks) // 4, 1)][:4] for d in (0, 1, 2)]
    for k in [1, 2, values.size // 10, values.size // 2, values.size - 1, values.size, *around]:
        assert kth_largest(values, k) == falling[k - 1], k


@pytest.mark.parametrize("kind", ["distinct", "constant", "mostly equal", "two blocks"])
def test_select_of_a_million(kind):
    values, rng = large(kind), np.random.default_rng(1)
    live = rng.random(values.size) < 0.7
    equal = np.sort(values[live])[::-1]
    above = int(np.count_nonzero(equal > np.median(equal)))  # just above the block of ties that holds the median
    for kept in {above, above + 1, above + 1000, values.size // 3} - {0}:
        keep = select(values, kept, live, rng)
        assert np.count_nonzero(keep) == kept and not (keep & ~live).any()
        assert values[keep].min() >= values[live & ~keep].max()


def test_the_pool_can_be_empty_or_full():
    values = np.float32([1, 2, 3])
    assert not select(values, 0, None, np.random.default_rng(0)).any()
    assert select(values, 3, None, np.random.default_rng(0)).all()
    live = np.array([True, False, True])
    assert select(values, 2, live, np.random.default_rng(0)).tolist() == live.tolist()
    assert not select(values, 0, np.zeros(3, bool), np.random.default_rng(0)).any()


# -- whole numbers in proportion -------------------------------------------------------------------
def largest_remainder(shares, total):
    """Hamilton's method in exact fractions; ties to the earlier one."""
    quota = [Fraction(total) * share / sum(shares) for share in shares]
    counts = [math.floor(q) for q in quota]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - quota[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8), st.integers(0, 10**7))
def test_apportion_is_the_largest_remainder(shares, total):
    most = [total] * len(shares)
    assert apportion(shares, total, [0] * len(shares), most) == largest_remainder(shares, total)


def test_ties_go_to_the_earlier():
    assert apportion([1, 1, 1], 4, [0] * 3, [9] * 3) == [2, 1, 1]
    assert apportion([1, 1, 1], 5, [0] * 3, [9] * 3) == [2, 2, 1]
    assert apportion([3, 3, 3, 3], 6, [0] * 4, [3] * 4) == [2, 2, 1, 1]


SHARE = st.one_of(st.just(0), st.integers(1, 50))


@given(st.lists(st.tuples(SHARE, st.integers(0, 9), st.integers(0, 40)), min_size=1, max_size=6), st.data())
def test_apportion_meets_its_bounds_and_its_sum(rows, data):
    shares, least, most = [r[0] for r in rows], [r[1] for r in rows], [r[1] + r[2] for r in rows]
    if not any(shares):
        shares[0] = 1
    total = data.draw(st.integers(sum(least), sum(most)))
    counts = apportion(shares, total, least, most)
    assert sum(counts) == total
    assert all(low <= count <= high for low, count, high in zip(least, counts, most, strict=True))
    # one common factor explains all layers with a share that are not at a bound, up to the rounding
    free = [(c, s) for c, s, low, high in zip(counts, shares, least, most, strict=True) if s and low < c < high]
    assert max(((c - 1) / s for c, s in free), default=0) < min(((c + 1) / s for c, s in free), default=1)


def test_a_full_layer_passes_the_rest_on():
    assert apportion([8, 1, 1], 10, [0, 0, 0], [4, 9, 9]) == [4, 3, 3]
    assert apportion([100, 1, 1], 12, [0, 5, 0], [50, 9, 9]) == [7, 5, 0]


def test_a_scope_of_ones_own():
    scores = {"a": torch.rand(10, 10), "b": torch.rand(10, 10)}
    mask = pai.allocate(scores, 0.8, scope=lambda layers, kept: {"a": 3, "b": 1})
    assert [int(m.sum()) for m in mask.values()] == [30, 10]
    full = pai.allocate(scores, 0.3, scope=lambda layers, kept: {"a": 0, "b": 1})  # b holds 100 of the 140
    assert [int(m.sum()) for m in full.values()] == [40, 100]


@pytest.mark.parametrize("shares", [{"a": 1}, {"a": -1, "b": 2}, {"a": 0, "b": 0}, {"a": float("nan"), "b": 1}])
def test_a_scope_with_unfit_shares_is_an_error(shares):
    with pytest.raises(ValueError, match="share|scope"):
        pai.allocate({"a": torch.rand(3, 3), "b": torch.rand(3, 3)}, 0.5, scope=lambda layers, kept: shares)


# -- bad input -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "sparsity, kind, words",
    [
        (90, ValueError, "0.9"),
        (98.5, ValueError, "0.985"),
        (-0.1, ValueError, r"\[0, 1\]"),
        (1.2, ValueError, r"\[0, 1\]"),
        (float("nan"), ValueError, r"\[0, 1\]"),
        (float("inf"), ValueError, r"\[0, 1\]"),
        ("0.9", TypeError, "0.9"),
        (True, TypeError, "True"),
        (None, TypeError, "None"),
        ([0.9], TypeError, "0.9"),
        (1, ValueError, "allow_empty"),
        (0.999, ValueError, "allow_empty"),
    ],
)
def test_sparsity_out_of_range(sparsity, kind, words):
    with pytest.raises(kind, match=words):
        pai.allocate({"a": torch.rand(3, 3)}, sparsity)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_name_the_layer(bad):
    scores = {"first": torch.rand(3, 3), "second": torch.rand(3, 3)}
    scores["second"][1, 1] = bad
    for structure in ("weight", "filter"):
        with pytest.raises(ValueError, match="'second'"):
            pai.allocate(scores, 0.5, structure=structure)


@pytest.mark.parametrize("floor", [-1, 1.5, "1", None])
def test_floor_is_a_count(floor):
    with pytest.raises((ValueError, TypeError), match="floor"):
        pai.allocate({"a": torch.rand(3, 3)}, 0.5, floor=floor)


def test_other_bad_inputs():
    scores = {"a": torch.rand(3, 3)}
    with pytest.raises(ValueError, match="no scores"):
        pai.allocate({}, 0.5)
    with pytest.raises(ValueError, match="Did you mean 'global'"):
        pai.allocate(scores, 0.5, scope="globl")
    with pytest.raises(ValueError, match="Did you mean 'filter'"):
        pai.allocate(scores, 0.5, structure="filt")
    with pytest.raises(ValueError, match="another model"):
        pai.allocate(scores, 0.5, within=pai.Mask({"b": torch.ones(3, 3, dtype=torch.bool)}))
    with pytest.raises(ValueError, match="another model"):
        pai.allocate(scores, 0.5, within=pai.Mask({"a": torch.ones(3, 4, dtype=torch.bool)}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_any_real_dtype(dtype):
    values = torch.tensor([[1, 4, 2], [8, 5, 7]]).to(dtype)
    assert pai.allocate({"a": values}, 0.5)["a"].tolist() == [[False, False, False], [True, True, True]]


def test_scores_in_any_layout_and_with_a_gradient():
    scores = torch.rand(4, 3, 5, 5)
    plain = pai.allocate({"a": scores}, 0.7)
    assert pai.allocate({"a": scores.to(memory_format=torch.channels_last)}, 0.7) == plain
    assert pai.allocate({"a": scores.clone().requires_grad_()}, 0.7) == plain
