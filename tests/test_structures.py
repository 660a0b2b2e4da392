"""Structures: reductions, fixed counts and what is protected, beside plain loops over single weights."""

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pai_lab as pai
from pai_lab.structures import patterns, reduce_to_units, spanning

SHAPES = [(3, 4), (3, 4, 5), (3, 2, 3, 3), (2, 2, 2, 2, 2)]
LOOPS = {"mean": np.mean, "sum": np.sum, "max": np.max, "first": lambda block: block.flat[0]}


@pytest.mark.parametrize("reduce", LOOPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_filter_is_a_whole_row(shape, reduce):
    scores = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    units = reduce_to_units(scores, "filter", reduce)
    assert units.shape == (shape[0],) + (1,) * (len(shape) - 1)
    expected = [LOOPS[reduce](row) for row in scores.numpy()]
    np.testing.assert_allclose(units.flatten().numpy(), expected, rtol=1e-14)


# The unit of the weight at a place (o, i, ...), in words of its own for each number of dimensions.
UNIT = {
    "weight": lambda place: place,
    "kernel": lambda place: place[:2],
    "row": lambda place: place[:-1],  # all of W[o, i, (d,) r]; of a linear layer W[o]
    "column": lambda place: place if len(place) == 3 else (*place[:-2], place[-1]),
    "filter": lambda place: place[:1],
    "input": lambda place: place[1:2],
}


def test_every_spanning_structure_is_tested_here():
    assert set(spanning()) == set(UNIT)


def members(structure, shape):
    """{unit: its places in order}, by looking at each single weight."""
    units = {}
    for place in np.ndindex(*shape):
        units.setdefault(UNIT[structure](place), []).append(place)
    return units


@pytest.mark.parametrize("reduce", LOOPS)
@pytest.mark.parametrize("structure", UNIT)
@pytest.mark.parametrize("shape", SHAPES)
def test_units_are_what_a_loop_finds(structure, shape, reduce):
    scores = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = reduce_to_units(scores, structure, reduce)
    units = members(structure, shape)
    assert found.numel() == len(units) and found.ndim == len(shape)
    spread = found.expand(shape).numpy()
    for places in units.values():
        block = np.array([scores[place] for place in places])
        assert [spread[place] for place in places] == pytest.approx([LOOPS[reduce](block)] * len(places), rel=1e-14)


@pytest.mark.parametrize("structure", UNIT)
@pytest.mark.parametrize("shape", SHAPES)
def test_whole_units_are_kept_the_best_first(structure, shape):
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    mask = pai.allocate({"a": scores}, 0.6, structure=structure)["a"]
    units = members(structure, shape)
    kept = {unit: {bool(mask[place]) for place in places} for unit, places in units.items()}
    assert all(len(flags) == 1 for flags in kept.values())  # all of a unit or nothing
    means = {unit: float(np.mean([scores[place] for place in places])) for unit, places in units.items()}
    best = sorted(units, key=means.get)[-round(0.4 * len(units)) :]
    assert {unit for unit, flags in kept.items() if True in flags} == set(best)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_is_itself(shape):
    scores = torch.rand(shape)
    assert torch.equal(reduce_to_units(scores, "weight"), scores)


def test_unknown_names():
    with pytest.raises(ValueError, match="Did you mean 'filter'"):
        reduce_to_units(torch.ones(2, 2), "filters")
    with pytest.raises(ValueError, match="Did you mean 'mean'"):
        reduce_to_units(torch.ones(2, 2), "filter", "meen")


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float16, torch.bfloat16])
def test_scores_of_any_real_dtype_reduce(dtype):
    scores = torch.tensor([[0, 0, 0], [1, 1, 1], [0, 1, 1], [0, 0, 1]]).to(dtype)
    mask = pai.allocate({"a": scores}, 0.5, structure="filter")
    assert mask["a"].any(1).tolist() == [False, True, True, False]


def test_a_structure_of_ones_own_plugs_in():
    def kernel(ndim):
        return tuple(range(2, ndim))

    scores = {"a": torch.rand(4, 3, 3, 3), "b": torch.rand(2, 5, 3, 3)}
    mask = pai.allocate(scores, 0.5, structure=kernel)
    kept = torch.cat([mask[n].flatten(2).any(2).flatten() for n in scores])
    assert torch.equal(kept, torch.cat([mask[n].flatten(2).all(2).flatten() for n in scores]))
    sums = torch.cat([scores[n].sum((2, 3)).flatten() for n in scores])
    assert set(sums.topk(11).indices.tolist()) == set(kept.nonzero().flatten().tolist())


# -- what stays out of reach -----------------------------------------------------------------------
def convnet():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


BATCH = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


@pytest.mark.parametrize("structure", ["filter", "row"])
def test_what_makes_an_output_is_never_removed(structure):
    mask = pai.prune(convnet(), "magnitude", 0.8, structure=structure, batch=BATCH)
    assert mask["7.weight"].all()
    units = {n: len({UNIT[structure](p) for p in np.ndindex(*m.shape)}) for n, m in mask.items() if n != "7.weight"}
    kept = {n: len({UNIT[structure](p) for p in map(tuple, mask[n].nonzero().tolist())}) for n in units}
    assert sum(kept.values()) == round(0.2 * sum(units.values()))  # the output layer is not counted


@pytest.mark.parametrize("structure", ["weight", "kernel", "column", "input"])
def test_other_units_of_the_output_layer_may_go(structure):
    mask = pai.prune(convnet(), "magnitude", 0.8, structure=structure, scope="layer")
    units = {UNIT[structure](place) for place in np.ndindex(3, 8)}
    kept = {UNIT[structure](tuple(place)) for place in mask["7.weight"].nonzero().tolist()}
    assert 0 < len(kept) <= round(0.2 * len(units)) + 1


def test_both_of_two_outputs_are_protected():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            hidden = self.body(x).relu()
            return self.one(hidden) + self.two(hidden)

    mask = pai.prune(Heads(), "magnitude", 0.5, structure="filter", batch=(torch.ones(3, 4), torch.arange(3)))
    assert mask["one.weight"].all() and mask["two.weight"].all() and mask["body.weight"].any(1).sum() == 3


def test_nothing_but_outputs():
    with pytest.raises(ValueError, match="no filter to remove"):
        pai.prune(nn.Sequential(nn.Linear(4, 3)), "magnitude", 0.5, structure="filter")
    pai.prune(nn.Sequential(nn.Linear(4, 3)), "magnitude", 0.5, structure="kernel")


# -- N of every M ----------------------------------------------------------------------------------
def groups(tensor, m):
    """Every m consecutive weights along the inputs, at one output and one place of the kernel."""
    for place in np.ndindex(tensor.shape[0], tensor.shape[1] // m, *tensor.shape[2:]):
        yield torch.stack([tensor[(place[0], place[1] * m + j, *place[2:])] for j in range(m)])


@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (3, 8), (1, 2)])
@pytest.mark.parametrize("shape", [(3, 8), (2, 8, 3), (3, 8, 2, 3), (2, 8, 1, 2, 2)])
def test_n_of_m_keeps_the_best_of_each_group(n, m, shape):
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    mask = pai.allocate({"a": scores}, None, structure=f"{n}:{m}")["a"]
    assert mask.is_contiguous() and mask.sum() * m == mask.numel() * n
    for kept, values in zip(groups(mask, m), groups(scores, m), strict=True):
        assert kept.sum() == n and set(values[kept].tolist()) == set(values.topk(n).values.tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_of_equal_scores_the_first_stay(dtype):
    mask = pai.allocate({"a": torch.ones(2, 8, 2, 2, dtype=dtype)}, None, structure="2:4")["a"]
    assert all(kept.tolist() == [True, True, False, False] for kept in groups(mask, 4))
    scores = torch.tensor([[1, 0, 1, 1, 0, 0, 0, 1]]).to(dtype)
    expected = [[True, False, True, False, True, False, False, True]]
    assert pai.allocate({"a": scores}, None, structure="2:4")["a"].tolist() == expected


def test_layers_that_do_not_fit_stay_dense_and_are_named():
    net = convnet()  # inputs 2, 6, 20, 8
    with pytest.warns(UserWarning, match=r"2:4 needs .* 4 divides: 0\.weight, 2\.weight stay dense"):
        mask = pai.prune(net, "magnitude", structure="2:4")
    assert mask["0.weight"].all() and mask["2.weight"].all() and mask.total - mask.kept == 80 + 12
    with pytest.raises(ValueError, match=r"16 divides; no layer has that: 0\.weight \(6, 2, 3, 3\)"):
        pai.prune(net, "magnitude", structure="1:16")


def test_every_criterion_takes_a_fixed_count():
    net = convnet()
    for criterion in ("snip", "synflow"):  # synflow's 100 rounds become one
        with pytest.warns(UserWarning, match="stay dense"):
            mask = pai.prune(net, criterion, structure="2:4", batch=BATCH)
        scores = pai.score(net, criterion, BATCH)["7.weight"]
        for kept, values in zip(groups(mask["7.weight"], 4), groups(scores, 4), strict=True):
            assert values[kept].min() >= values[~kept].max()


@pytest.mark.parametrize("structure", ["4:4", "5:4", "0:4", "0:0"])
def test_n_lies_below_m(structure):
    with pytest.raises(ValueError, match=f"0 < N < M; got {structure}"):
        pai.allocate({"a": torch.ones(4, 8)}, None, structure=structure)


@pytest.mark.parametrize("structure", ["2:4", "pattern", "shift"])
def test_a_fixed_count_takes_no_other(structure):
    scores = {"a": torch.rand(4, 8, 3, 3)}
    for settings, words in [
        ({"sparsity": 0.5}, "must be None, got 0.5"),
        ({"sparsity": 0}, "must be None, got 0"),
        ({"sparsity": None, "scope": "layer"}, "a scope or a floor"),
        ({"sparsity": None, "floor": 1}, "a scope or a floor"),
    ]:
        with pytest.raises(ValueError, match=words):
            pai.allocate(scores, structure=structure, **settings)
    for settings in ({"sparsity": 0.5}, {"sparsity": 0}, {"iterations": 3}):
        with pytest.raises(ValueError, match="fixes its own count"):
            pai.prune(convnet(), "magnitude", structure=structure, **settings)
    scores["a"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        pai.allocate(scores, None, structure=structure)
    with pytest.raises(TypeError, match="sparsity must be a number"):
        pai.allocate({"a": torch.rand(3, 3)}, None)


# -- patterns --------------------------------------------------------------------------------------
def test_the_best_of_all_patterns_with_the_centre():
    scores = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(5))
    mask = pai.allocate({"a": scores}, None, structure="pattern")["a"]
    ring = [0, 1, 2, 3, 5, 6, 7, 8]
    choices = [{4, *three} for three in combinations(ring, 3)]
    assert len(choices) == 56
    for kernel, kept in zip(scores.reshape(-1, 9), mask.reshape(-1, 9), strict=True):
        best = max(choices, key=lambda places, kernel=kernel: sum(float(kernel[p]) for p in places))
        assert set(kept.nonzero().flatten().tolist()) == best


def test_a_library_of_ones_own():
    library = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [1, 1]], [[1, 0], [0, 1]]]).bool()
    kernels = torch.tensor([[[[1.0, 2], [3, 4]], [[5, 0], [0, 1]], [[1, 1], [1, 1]]]])
    mask = pai.allocate({"a": kernels}, None, structure=patterns(library))["a"][0]
    assert torch.equal(mask, library[[1, 2, 0]])  # of equal sums the first


def test_kernels_of_another_size_stay_dense():
    scores = {"a": torch.rand(2, 2, 3, 3), "b": torch.rand(2, 2, 1, 1), "c": torch.rand(2, 4), "d": torch.rand(2, 2, 3)}
    with pytest.warns(UserWarning, match="kernels of size 3x3: b, c, d stay dense"):
        mask = pai.allocate(scores, None, structure="pattern")
    assert mask["a"].sum() == 16 and all(mask[n].all() for n in "bcd")
    with pytest.raises(ValueError, match="kernels of size 5x5; no layer has that"):
        pai.allocate(scores, None, structure=patterns(torch.ones(1, 5, 5, dtype=torch.bool)))


@pytest.mark.parametrize(
    "library",
    [torch.ones(2, 3, 3), torch.ones(3, 3, dtype=torch.bool), torch.ones(0, 3, 3, dtype=torch.bool), [[True]], None],
)
def test_what_is_no_library(library):
    with pytest.raises(ValueError, match="bool tensor"):
        patterns(library)


# -- shifts ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (4, 3, 5), (2, 2, 2, 2, 2), (3, 2, 1, 1)])
def test_one_weight_of_each_kernel(shape):
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    mask = pai.allocate({"a": scores}, None, structure="shift")["a"]
    assert (mask.flatten(2).sum(-1) == 1).all()
    assert torch.equal(scores[mask].view(shape[:2]), scores.flatten(2).amax(-1))


def test_linear_layers_have_no_kernel_to_shift():
    mask = pai.prune(convnet(), "magnitude", structure="shift")
    assert mask["5.weight"].all() and mask["7.weight"].all()
    assert [int(mask[n].sum()) for n in ("0.weight", "2.weight")] == [12, 30]


def test_it_is_a_shift_and_a_1x1_convolution():
    torch.manual_seed(1)
    x, weight = torch.randn(2, 3, 6, 7, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    mask = pai.allocate({"a": weight.abs()}, None, structure="shift")["a"]
    expected = torch.zeros(2, 4, 6, 7, dtype=torch.float64)
    padded = F.pad(x, (1, 1, 1, 1))
    for o, i, r, c in mask.nonzero().tolist():
        expected[:, o] += weight[o, i, r, c] * padded[:, i, r : r + 6, c : c + 7]
    torch.testing.assert_close(F.conv2d(x, weight * mask, padding=1), expected, rtol=1e-12, atol=1e-12)


@given(st.sampled_from(["1:2", "2:4", "pattern", "shift"]), st.integers(0, 99))
def test_a_fixed_count_within_a_mask_revives_none(structure, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = {"a": torch.rand(2, 4, 3, 3, generator=generator)}
    within = pai.Mask({"a": torch.rand(2, 4, 3, 3, generator=generator) < 0.7})
    mask = pai.allocate(scores, None, structure=structure, within=within)
    assert mask == pai.allocate(scores, None, structure=structure) & within
