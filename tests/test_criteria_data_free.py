"""LAMP, filter norms and FPGM beside hand-made numbers, exact fractions and plain loops."""

import copy
from fractions import Fraction
from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

import pai_lab as pai

UNITS = ["filter_l1", "filter_l2", "fpgm"]
NEW = ["lamp", *UNITS]


def linear(rows, dtype=torch.float64):
    """A bias-free linear layer with these rows."""
    rows = torch.tensor(rows, dtype=dtype)
    layer = nn.Linear(rows.shape[1], rows.shape[0], bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(rows)
    return layer


def conv_net(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(),
        nn.Conv2d(6, 4, 1, groups=2), nn.Flatten(), nn.Linear(16, 3),
    ).to(dtype)  # fmt: skip


def per_unit(scores):
    """The score of each unit; every weight of a unit carries the same."""
    flat = scores.flatten(1)
    assert (flat == flat[:, :1]).all()
    return flat[:, 0]


# -- LAMP ------------------------------------------------------------------------------------------
def test_lamp_by_hand():
    scores = pai.score(linear([[0.1, 0.5, -2.0]]), "lamp")["weight"][0]
    expected = [Fraction(1, 426), Fraction(1, 17), Fraction(1)]  # 0.01 / 4.26, 0.25 / 4.25, 4 / 4
    assert scores.tolist() == pytest.approx([float(f) for f in expected], rel=1e-15)
    assert expected[0] == pytest.approx(Fraction(234742, 10**8), rel=1e-5) and scores[2] == 1


WHOLE = st.lists(st.integers(-6, 6), min_size=1, max_size=12)


@given(WHOLE)
def test_lamp_is_the_formula_in_exact_fractions(weights):
    scores = pai.score(linear([weights]), "lamp")["weight"][0].tolist()
    squares = [w * w for w in weights]
    for square, score in zip(squares, scores, strict=True):
        if squares.count(square) == 1 and square:
            assert score == pytest.approx(float(Fraction(square, sum(s for s in squares if s >= square))), rel=1e-13)
    ranked = sorted(squares)
    each = [float(Fraction(s, sum(ranked[i:]))) if s else 0.0 for i, s in enumerate(ranked)]
    assert sorted(scores) == pytest.approx(sorted(each), rel=1e-13)  # of equal squares each has a sum of its own
    for i, j in ((i, j) for i in range(len(weights)) for j in range(len(weights))):
        if squares[i] < squares[j] or (squares[i] == squares[j] > 0 and i < j):
            assert scores[i] < scores[j]


@given(st.lists(st.lists(st.sampled_from([-2, -1, 1, 2, 3, 100]), min_size=1, max_size=9), min_size=1, max_size=5),
       st.floats(0, 1))  # fmt: skip
def test_lamp_empties_no_layer_before_the_layers_outnumber_the_weights(layers, share):
    scores = {f"{i}": pai.score(linear([weights]), "lamp")["weight"] for i, weights in enumerate(layers)}
    total = sum(map(len, layers))
    kept = len(layers) + round(share * (total - len(layers)))
    mask = pai.allocate(scores, 1 - kept / total)
    assert mask.kept == kept and not mask.collapsed()
    if len(layers) > 1:  # one less, and the last of some layer goes
        fewer = pai.allocate(scores, 1 - (len(layers) - 1) / total)
        assert len(fewer.collapsed()) == 1


def test_lamp_of_the_pruned_net_is_lamp_of_what_is_left():
    model = conv_net()
    mask = pai.prune(model, "random", 0.6, seed=3)
    scores = pai.score(model, "lamp", mask=mask)
    for name, weight in pai.prunable(model).items():
        left = weight.detach()[mask[name]]
        alone = pai.score(linear([left.tolist()]), "lamp")["weight"][0]
        assert torch.allclose(scores[name][mask[name]], alone, rtol=1e-13, atol=0)
        assert (scores[name][~mask[name]] == 0).all()
    fewer = pai.prune(model, "lamp", 0.9, iterations=4)
    assert fewer.kept == round(0.1 * fewer.total) and not fewer.collapsed()


def test_lamp_does_not_see_the_scale_of_a_layer_and_magnitude_does():
    model, scaled = conv_net(), conv_net()
    with torch.no_grad():
        scaled[0].weight *= 2.0**-6
    one, two = pai.score(model, "lamp"), pai.score(scaled, "lamp")
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert pai.prune(model, "lamp", 0.7) == pai.prune(scaled, "lamp", 0.7)
    assert pai.prune(model, "magnitude", 0.7) != pai.prune(scaled, "magnitude", 0.7)


def test_lamp_in_a_layer_ranks_as_magnitude():
    model = conv_net(torch.float32)
    lamp, magnitude = (pai.prune(model, name, 0.8, scope="layer") for name in ("lamp", "magnitude"))
    assert lamp == magnitude


def test_lamp_of_small_weights_beside_large_ones():
    scores = pai.score(linear([[1e-30, 2e-30, 1.0, 1e15]], torch.float32), "lamp")["weight"][0]
    assert (scores > 0).all() and scores.tolist() == pytest.approx([1e-90, 4e-90, 1e-30, 1], rel=1e-6)
    assert pai.score(linear([[0.0, 0.0]]), "lamp")["weight"].tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="NaN"):
        pai.score(linear([[1.0, float("nan")]]), "lamp")


# -- norms of filters ------------------------------------------------------------------------------
def test_filter_norms_by_hand():
    layer = linear([[3.0, -4.0], [0.0, 5.0], [1.0, 1.0]])
    assert per_unit(pai.score(layer, "filter_l1")["weight"]).tolist() == [3.5, 2.5, 1]
    expected = [sqrt(12.5), sqrt(12.5), 1]
    assert per_unit(pai.score(layer, "filter_l2")["weight"]).tolist() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("criterion, n", [("filter_l1", 1), ("filter_l2", 2)])
def test_filter_norms_agree_with_torch_within_a_layer(criterion, n):
    model = conv_net(torch.float32)
    reference = copy.deepcopy(model)
    for layer in (0, 3, 5):
        torch_prune.ln_structured(reference[layer], "weight", amount=0.5, n=n, dim=0)
    assert pai.prune(model, criterion, 0.5, structure="filter", scope="layer") == pai.Mask.from_torch(reference)


@pytest.mark.parametrize("criterion", ["filter_l1", "filter_l2"])
def test_filters_of_equal_weights_score_alike_in_layers_of_any_size(criterion):
    model = conv_net()
    for weight in pai.prunable(model).values():
        nn.init.constant_(weight, -0.5)
    assert all((s - 0.5).abs().max() < 1e-15 for s in pai.score(model, criterion).values())


# -- FPGM ------------------------------------------------------------------------------------------
def test_fpgm_by_hand():
    # On a line the geometric median is the median, 3, though 0 has the smallest norm.
    line = linear([[0.0], [1.0], [3.0], [7.0], [20.0]])
    sums = [31, 28, 26, 30, 69]
    assert per_unit(pai.score(line, "fpgm")["weight"]).tolist() == pytest.approx([s / 4 for s in sums], rel=1e-15)
    # The corners of a square far from 0 and its centre: the centre goes first, the norms would keep it.
    square = linear([[9.0, 9.0], [9.0, 11.0], [11.0, 9.0], [11.0, 11.0], [10.0, 10.0], [0.1, 0.1]])
    model = nn.Sequential(square, linear([[1.0] * 6]))
    for criterion, first in (("fpgm", 4), ("filter_l2", 5)):
        mask = pai.prune(
            model, criterion, 1 / 6, structure="filter", batch=(torch.ones(1, 2).double(), torch.tensor([0]))
        )
        assert mask["0.weight"].all(1).tolist() == [i != first for i in range(6)]


def test_fpgm_measures_filters_and_not_their_absolute_values():
    scores = per_unit(pai.score(linear([[1.0, 1.0], [-1.0, -1.0]]), "fpgm")["weight"])
    assert scores.tolist() == pytest.approx([2, 2], rel=1e-15)  # distance sqrt(8), one other, filters of 2 weights


def test_fpgm_is_the_loop_over_pairs():
    model = conv_net()
    for name, scores in pai.score(model, "fpgm").items():
        filters = [f.flatten() for f in model.get_parameter(name).detach()]
        for i, score in enumerate(per_unit(scores)):
            total = sum(((filters[i] - other) ** 2).sum().sqrt() for other in filters)
            assert score == pytest.approx(float(total / (len(filters) - 1) / len(filters[0]) ** 0.5), rel=1e-12)


def test_fpgm_compares_with_the_filters_that_are_left():
    model = linear(torch.randn(9, 5, generator=torch.manual_seed(0)).tolist())
    gone = torch.zeros(9, 5, dtype=torch.bool)
    gone[[1, 4, 8]] = True
    scores = per_unit(pai.score(model, "fpgm", mask=pai.Mask({"weight": ~gone}))["weight"])
    alone = per_unit(pai.score(linear(model.weight[~gone[:, 0]].tolist()), "fpgm")["weight"])
    assert torch.allclose(scores[~gone[:, 0]], alone, rtol=1e-12)
    single = gone.clone().fill_(True)
    single[2] = False
    assert per_unit(pai.score(model, "fpgm", mask=pai.Mask({"weight": ~single}))["weight"])[2] == 0


def test_fpgm_of_equally_spread_layers_is_alike():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 30), nn.Linear(30, 200), nn.Conv2d(30, 100, 3))
    for weight in pai.prunable(model).values():
        nn.init.normal_(weight, std=0.7)
    means = [float(s.mean()) for s in pai.score(model, "fpgm").values()]
    assert means == pytest.approx([0.7 * sqrt(2)] * 3, rel=0.03)  # E|a - b|^2 = 2 std^2 per weight


def test_like_filters_have_no_distance_in_float32():
    model = nn.Linear(300, 40)
    with torch.no_grad():
        model.weight[:] = 100 * torch.randn(300)
    assert pai.score(model, "fpgm")["weight"].abs().max() < 1e-5  # float32 products are 0.03 off


# -- all of them -----------------------------------------------------------------------------------
class Odd(nn.Module):
    """A layer that runs twice, two layers that share a weight, and one that never runs."""

    def __init__(self):
        super().__init__()
        self.twice, self.one, self.two, self.never = (nn.Linear(4, 4) for _ in range(4))
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(self.twice(self.twice(x))))


@pytest.mark.parametrize("criterion", NEW)
@pytest.mark.parametrize("make", [conv_net, lambda dtype: Odd().to(dtype)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_net_and_dtype_and_no_trace(criterion, make, dtype):
    model = make(dtype).to(memory_format=torch.channels_last)
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    scores = pai.score(model, criterion)
    assert list(scores) == list(pai.prunable(model)) and scores.budget == 0
    assert all(scores[n].shape == w.shape and scores[n].isfinite().all() for n, w in pai.prunable(model).items())
    again = pai.score(make(dtype) if make is conv_net else model, criterion)
    assert all(torch.allclose(scores[n], again[n], rtol=1e-12) for n in scores)  # whatever the memory format
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("criterion", UNITS)
def test_unit_criteria_score_filters_only(criterion):
    batch = (torch.ones(1, 2, 6, 6).double(), torch.tensor([0]))
    with pytest.raises(ValueError, match="filter"):
        pai.prune(conv_net(), criterion, 0.5, batch=batch)
    mask = pai.prune(conv_net(), criterion, 0.5, batch=batch, structure="filter", floor=1)
    assert sum(int(m.flatten(1).any(1).sum()) for m in list(mask.values())[:-1]) == 8 and mask["7.weight"].all()
