"""Scopes: where the budget goes. References: printed densities, exact fractions, the published loops."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pai_lab as pai
from pai_lab.allocation import apportion
from pai_lab.scopes import Layer, quotas

LENET = [(300, 784), (100, 300), (10, 100)]
STAGES = [(16, 16, 3, 3)] * 6, [(32, 16, 3, 3)] + [(32, 32, 3, 3)] * 5, [(64, 32, 3, 3)] + [(64, 64, 3, 3)] * 5
RESNET20 = [(16, 3, 3, 3), *STAGES[0], *STAGES[1], (32, 16, 1, 1), *STAGES[2], (64, 32, 1, 1), (10, 64)]
QUOTA_SCOPES = [name for name in pai.names("scope") if name != "global"]


def layers_of(shapes, units=None):
    sizes = units or [math.prod(shape) for shape in shapes]
    return {f"{i}.weight": Layer(n, shape) for i, (n, shape) in enumerate(zip(sizes, shapes, strict=True))}


def kept_by(scope, shapes, kept, units=None):
    """Kept units of each layer, as `allocate` counts them."""
    layers = layers_of(shapes, units)
    sizes = [layer.units for layer in layers.values()]
    return apportion(list(quotas(scope, layers, kept).values()), kept, [0] * len(sizes), sizes)


def within_one(counts, exact):
    """Largest remainders: each count is the exact quota rounded up or down."""
    assert len(counts) == len(exact)
    assert all(abs(count - quota) < 1 + 1e-6 for count, quota in zip(counts, exact, strict=True)), (counts, exact)


# -- the printed densities -------------------------------------------------------------------------
@pytest.mark.parametrize("scope", ["er", "erk"])
@pytest.mark.parametrize(
    "density, expected",
    [
        (0.1, (0.0795678, 0.2301887, 1.0)),
        (0.05, (0.0384841, 0.1113342, 0.9185069)),
        (0.01, (0.00769683, 0.0222668, 0.1837014)),
    ],
)
def test_erdos_renyi_of_lenet(scope, density, expected):
    kept = round(density * 266_200)
    counts = kept_by(scope, LENET, kept)
    assert sum(counts) == kept
    within_one(counts, [d * math.prod(shape) for d, shape in zip(expected, LENET, strict=True)])
    if max(expected) < 1:  # the shares say it to all printed digits
        shares = quotas(scope, layers_of(LENET), kept).values()
        found = [share * kept / sum(shares) / math.prod(s) for share, s in zip(shares, LENET, strict=True)]
        assert found == pytest.approx(expected, abs=5.1e-8)


def test_erdos_renyi_kernel_of_resnet20():
    counts = kept_by("erk", RESNET20, 27_090)  # 10% of 270,896
    densities = [count / math.prod(shape) for count, shape in zip(counts, RESNET20, strict=True)]
    assert sum(counts) == 27_090 and len(counts) == 22
    stages = [[0.2802] * 6, [0.1991] + [0.1290] * 5, [0.0940] + [0.0617] * 5]
    expected = [0.9830, *stages[0], *stages[1], 1.0, *stages[2], 0.8128, 1.0]
    slack = [1 / math.prod(shape) + 6e-5 for shape in RESNET20]  # one weight, and the printed digits
    assert all(abs(d - e) < s for d, e, s in zip(densities, expected, slack, strict=True))


@pytest.mark.parametrize(
    "density, expected", [(0.1, (0.0644465, 0.3506772, 0.9418672)), (0.01, (0.00462025, 0.0351131, 0.5219259))]
)
def test_igq_of_lenet(density, expected):
    kept = round(density * 266_200)
    shares = quotas("igq", layers_of(LENET), kept).values()
    found = [share / math.prod(shape) for share, shape in zip(shares, LENET, strict=True)]
    assert found == pytest.approx(expected, rel=1e-6) and sum(shares) == pytest.approx(kept, rel=1e-12)
    counts = kept_by("igq", LENET, kept)
    assert sum(counts) == kept
    within_one(counts, list(shares))


# -- one formula each, written again as in its paper -----------------------------------------------
SHAPE = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(1, 5)),
)
SHAPES = st.lists(SHAPE, min_size=1, max_size=7)
DENSITY = st.one_of(st.floats(1e-4, 0.9999), st.floats(-4, -1e-4).map(lambda power: 10**power))


def budget(shapes, density):
    return max(round(density * sum(map(math.prod, shapes))), 1)


def densest_first(shapes, kept, power):
    """Evci's loop in exact fractions: layers whose density would exceed 1 are dense, and the rest is solved again."""
    sizes, dense = list(map(math.prod, shapes)), set()
    while len(dense) < len(sizes):
        rest = [i for i in range(len(sizes)) if i not in dense]
        epsilon = Fraction(kept - sum(sizes[i] for i in dense)) / sum(power[i] * sizes[i] for i in rest)
        largest = max(power[i] for i in rest)
        if epsilon * largest <= 1:
            break
        dense |= {i for i in rest if power[i] == largest}
    return [sizes[i] if i in dense else epsilon * power[i] * sizes[i] for i in range(len(sizes))]


@given(SHAPES, DENSITY)
def test_erk_and_er_are_the_published_loop(shapes, density):
    kept = budget(shapes, density)
    scores = {f"{i}": torch.zeros(shape) for i, shape in enumerate(shapes)}
    for scope, seen in (("erk", slice(None)), ("er", slice(2))):
        power = [Fraction(sum(shape[seen]), math.prod(shape[seen])) for shape in shapes]
        mask = pai.allocate(scores, 1 - kept / sum(map(math.prod, shapes)), scope=scope)
        counts = [int(flags.sum()) for flags in mask.values()]
        assert sum(counts) == kept
        within_one(counts, densest_first(shapes, kept, power))


@given(SHAPES, DENSITY)
def test_igq_has_one_force(shapes, density):
    """d = 1 / (1 + F n) turned round: (1/d - 1) / n is the same F in each layer, and the total is right."""
    kept = budget(shapes, density)
    layers = layers_of(shapes)
    shares = quotas("igq", layers, kept)
    assert sum(shares.values()) == pytest.approx(kept, rel=1e-9)
    forces = [(layer.units / shares[name] - 1) / layer.units for name, layer in layers.items()]
    assert max(forces) == pytest.approx(min(forces), rel=1e-6, abs=1e-12)
    within_one(kept_by("igq", shapes, kept), list(shares.values()))


VGG = [(16, 1, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (10, 64)]


def gale(shapes, kept):
    """The sparsities of uniform+ as published: a dense first convolution, the last layer at most 0.8."""
    sizes = list(map(math.prod, shapes))
    sparsity = Fraction(sum(sizes) - kept, sum(sizes) - sizes[0])  # of the rest
    last = min(sparsity, Fraction(4, 5))
    middle = sparsity + (sparsity - last) * sizes[-1] / sum(sizes[1:-1])
    return [sizes[0], *(n * (1 - middle) for n in sizes[1:-1]), sizes[-1] * (1 - last)]


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.79, 0.81, 0.9, 0.98])
def test_uniform_plus_is_the_published_one(sparsity):
    kept = round((1 - sparsity) * sum(map(math.prod, VGG)))
    counts = kept_by("uniform+", VGG, kept)
    assert sum(counts) == kept and counts[0] == 144
    within_one(counts, gale(VGG, kept))
    assert counts[-1] >= 0.2 * 640 - 1


@pytest.mark.parametrize(
    "shapes, sparsity, dense, last",
    [
        (LENET, 0.5, False, None),  # no convolution: no layer is dense
        (LENET, 0.95, False, 0.2),
        (VGG[:-1], 0.5, True, None),  # no linear layer: nothing is spared at the end
        (VGG[:-1], 0.95, True, None),
        ([(8, 3, 3, 3), (10, 8)], 0.2, True, None),  # the last layer takes all the rest
        ([(50, 50)], 0.95, False, None),  # a single layer
        ([(8, 3, 3, 3)], 0.95, False, None),
    ],
)
def test_uniform_plus_without_one_of_the_two(shapes, sparsity, dense, last):
    sizes = list(map(math.prod, shapes))
    kept = round((1 - sparsity) * sum(sizes))
    fixed = {0: sizes[0]} if dense else {}
    if last:
        fixed[len(sizes) - 1] = last * sizes[-1]
    rest = (kept - sum(fixed.values())) / sum(n for i, n in enumerate(sizes) if i not in fixed)
    within_one(kept_by("uniform+", shapes, kept), [fixed.get(i, rest * n) for i, n in enumerate(sizes)])


@pytest.mark.parametrize("kept", [1, 100, 144, 200, 271])  # 144 + 128 alone are 272
def test_uniform_plus_is_uniform_where_its_rule_cannot_be(kept):
    assert kept_by("uniform+", VGG, kept) == kept_by("layer", VGG, kept)
    assert kept_by("uniform+", VGG, 272) == [144, 0, 0, 0, 128]


def su(shapes, kept):
    """Smart ratios: the published loop, with what does not fit handed to the next layer."""
    sizes = list(map(math.prod, shapes))
    last = Fraction(3, 10) * sizes.pop() if len(shapes) > 1 and len(shapes[-1]) == 2 else None
    depth = len(sizes)
    ratios = [(depth - place + 1) ** 2 + (depth - place + 1) for place in range(1, depth + 1)]
    scale = (kept - (last or 0)) / Fraction(sum(r * n for r, n in zip(ratios, sizes, strict=True)))
    result, extra = [], Fraction(0)
    for ratio, n in zip(ratios, sizes, strict=True):
        wanted = scale * ratio * n + extra
        extra = max(wanted - n, Fraction(0))
        result.append(min(wanted, Fraction(n)))
    assert extra == 0
    return result + ([last] if last is not None else [])


@pytest.mark.parametrize("shapes", [VGG, LENET, VGG[:-1], [(30, 30), (10, 30)]])
@pytest.mark.parametrize("sparsity", [0.75, 0.9, 0.95])
def test_smart_ratios_are_the_published_loop(shapes, sparsity):
    kept = round((1 - sparsity) * sum(map(math.prod, shapes)))
    if kept < 0.3 * math.prod(shapes[-1]):
        return
    counts = kept_by("smart", shapes, kept)
    assert sum(counts) == kept
    within_one(counts, su(shapes, kept))


def test_smart_ratios_overflow_to_the_next_layer():
    counts = kept_by("smart", VGG, 10_000)  # of 26,256: the first layers are full
    assert counts[:2] == [144, 2304] and counts[-1] == 192
    within_one(counts, su(VGG, 10_000))


@pytest.mark.parametrize("kept", [1, 50, 191])  # 0.3 of the last layer are 192
def test_smart_ratios_that_cannot_keep_the_last_layer(kept):
    counts = kept_by("smart", VGG, kept)
    assert sum(counts) == kept and counts[-1] <= math.ceil(640 * kept / 26_256)


@given(SHAPES, DENSITY)
def test_balanced_with_caps(shapes, density):
    kept, sizes = budget(shapes, density), list(map(math.prod, shapes))
    share, full = Fraction(kept, len(sizes)), set()
    while more := {i for i, n in enumerate(sizes) if n < share} - full:
        full |= more
        if len(full) < len(sizes):
            share = Fraction(kept - sum(sizes[i] for i in full), len(sizes) - len(full))
    within_one(kept_by("balanced", shapes, kept), [min(share, n) for n in sizes])


# -- a dict of densities, a function ---------------------------------------------------------------
def test_a_dict_is_exact():
    scores = {"a": torch.rand(10, 10), "b": torch.rand(5, 8), "c": torch.rand(3, 4)}
    mask = pai.allocate(scores, 1 - 62 / 152, scope={"c": 1, "a": 0.31, "b": 0.475})
    assert [int(flags.sum()) for flags in mask.values()] == [31, 19, 12]
    empty = pai.allocate(scores, 1 - 12 / 152, scope={"a": 0, "b": 0.0, "c": 1.0})
    assert empty.collapsed() == ["a", "b"] and empty["c"].all()


@given(st.lists(st.tuples(st.integers(1, 10**7), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_densities_of_a_mask_give_its_counts(rows):
    counts = [round(n * density) for n, density in rows]
    if not sum(counts):
        return
    shapes = [(n, 1) for n, _ in rows]
    densities = {f"{i}.weight": count / n for i, (count, (n, _)) in enumerate(zip(counts, rows, strict=True))}
    assert kept_by(densities, shapes, sum(counts)) == counts


@pytest.mark.parametrize("size", [(10, 10), (2000, 1500)])
def test_densities_that_do_not_sum_say_the_sparsity_to_pass(size):
    scores, scope = {"a": torch.zeros(size), "b": torch.zeros(size)}, {"a": 0.123456789, "b": 0.3}
    with pytest.raises(ValueError, match="pass sparsity=") as error:
        pai.allocate(scores, 0.9, scope=scope)
    sparsity = float(str(error.value).rpartition("=")[2])
    n = math.prod(size)
    assert sparsity == pytest.approx(1 - 0.423456789 / 2, abs=0.5 / n)
    counts = [int(flags.sum()) for flags in pai.allocate(scores, sparsity, scope=scope).values()]
    within_one(counts, [0.123456789 * n, 0.3 * n])


@pytest.mark.parametrize(
    "scope, words",
    [
        ({"a": 0.5}, r"\['a', 'b'\]"),
        ({"a": 0.5, "b": 0.5, "c": 0.5}, r"\['a', 'b'\]"),
        ({}, r"\['a', 'b'\]"),
        ({"a": 1.5, "b": 0}, r"\[0, 1\].*'a': 1.5"),
        ({"a": -0.1, "b": 1}, r"\[0, 1\].*'a': -0.1"),
        ({"a": float("nan"), "b": 0.5}, r"\[0, 1\]"),
        ({"a": 0.2, "b": 0.2}, "sparsity=0.8"),
    ],
)
def test_a_dict_that_does_not_fit(scope, words):
    with pytest.raises(ValueError, match=words):
        pai.allocate({"a": torch.rand(10, 10), "b": torch.rand(10, 10)}, 0.5, scope=scope)


def test_a_function_sees_units_shapes_and_the_budget():
    seen = {}

    def by_outputs(layers, kept):
        seen.update(layers, kept=kept)
        return {name: layer.shape[0] for name, layer in layers.items()}

    scores = {"a": torch.rand(6, 4, 3, 3), "b": torch.rand(2, 12)}
    mask = pai.allocate(scores, 0.5, scope=by_outputs, structure="kernel")
    assert seen == {"a": Layer(24, (6, 4, 3, 3)), "b": Layer(24, (2, 12)), "kept": 24}
    assert [int(mask["a"].any(-1).any(-1).sum()), int(mask["b"].sum())] == [18, 6]
    ranked = pai.allocate(scores, 0.5, scope=lambda layers, kept: None)
    assert ranked == pai.allocate(scores, 0.5)


def test_shares_of_any_size_do():
    scores = {"a": torch.rand(10, 10), "b": torch.rand(10, 10)}
    for unit in (1e-320, 1e-30, 1e30, 1e307):
        mask = pai.allocate(scores, 0.8, scope=lambda layers, kept, unit=unit: {"a": 3 * unit, "b": unit})
        assert [int(flags.sum()) for flags in mask.values()] == [30, 10]


# -- for all of them -------------------------------------------------------------------------------
@given(st.data())
def test_counts_are_exact_and_fit(data):
    """Also with units that are no weights, and with layers of up to a billion units."""
    shapes = data.draw(st.lists(SHAPE, min_size=1, max_size=12))
    size = st.one_of(st.integers(1, 9), st.integers(1, 10**9))
    units = data.draw(st.one_of(st.none(), st.lists(size, min_size=len(shapes), max_size=len(shapes))))
    sizes = units or list(map(math.prod, shapes))
    kept = data.draw(st.one_of(st.integers(0, sum(sizes)), DENSITY.map(lambda d: round(d * sum(sizes)))))
    for scope in QUOTA_SCOPES:
        counts = kept_by(scope, shapes, kept, sizes)
        assert sum(counts) == kept and all(0 <= c <= n for c, n in zip(counts, sizes, strict=True)), scope


@pytest.mark.parametrize("scope", QUOTA_SCOPES)
def test_a_thousand_layers(scope):
    shapes = [(8 + i % 97, 4 + i % 89, *([3, 3] if i % 2 else [])) for i in range(1000)]
    total = sum(map(math.prod, shapes))
    for kept in (total // 1000, total // 10, total - 1):
        counts = kept_by(scope, shapes, kept)
        assert sum(counts) == kept and all(0 <= c <= math.prod(s) for c, s in zip(counts, shapes, strict=True))


def test_the_same_shapes_get_the_same_share():
    for scope in ("layer", "er", "erk", "igq", "balanced"):
        assert kept_by(scope, [(7, 5)] * 3, 41) == [14, 14, 13]  # ties to the earlier layer
