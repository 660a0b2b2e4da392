"""Overlap and rank correlation: by hand, by closed forms, by simulation, by scipy."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from pai_lab import Mask
from pai_lab.metrics import overlap, rank_correlation


def mask(**layers):
    """mask(a="1100 1010"): one row per word."""
    return Mask(
        {name: torch.tensor([[c == "1" for c in row] for row in rows.split()]) for name, rows in layers.items()}
    )


def random(density, seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return Mask({f"{i}": torch.rand(shape, generator=generator) < density for i, shape in enumerate(shapes)})


def test_by_hand():
    table = overlap(mask(a="1111 0000", b="10"), mask(a="1100 1100", b="11")).set_index("layer")
    a, b, whole, given_layers = (table.loc[n] for n in ("a", "b", "all", "all, given the layers"))
    # layer a: 4 and 4 of 8 kept, 2 in both, 6 in either; by chance 2 in both, 6 in either
    assert (a.density_a, a.density_b, a.jaccard, a.chance, a.corrected) == (0.5, 0.5, 2 / 6, 0.5 * 0.5 / 0.75, 0)
    # layer b: 1 and 2 of 2 kept, 1 in both, and so by chance
    assert (b.density_a, b.density_b, b.jaccard, b.chance, b.corrected) == (0.5, 1, 0.5, 0.5, 0)
    # together 5 and 6 of 10: 3 in both, 8 in either; by chance 5 * 6 / 10 = 3 in both
    assert (whole.density_a, whole.density_b, whole.jaccard) == (0.5, 0.6, 3 / 8)
    assert whole.chance == pytest.approx(0.5 * 0.6 / (0.5 + 0.6 - 0.5 * 0.6)) == pytest.approx(3 / 8)
    assert given_layers.jaccard == 3 / 8 and given_layers.chance == (2 + 1) / (6 + 2)


def test_masks_that_share_nothing_but_the_densities_of_their_layers():
    """Layer a is whole in both, layer b nearly empty: a large overlap, and all of it from the layers."""
    table = overlap(mask(a="1111", b="1000 0000"), mask(a="1111", b="0000 0001")).set_index("layer")
    whole, given_layers = table.loc["all"], table.loc["all, given the layers"]
    assert whole.jaccard == 4 / 6 and whole.chance == pytest.approx(25 / 12 / (10 - 25 / 12)) and whole.corrected > 0.5
    assert given_layers.chance == pytest.approx((4 + 1 / 8) / (4 + 15 / 8)) and given_layers.corrected < 0


def test_ends():
    one = mask(a="1100", b="1111", c="0000")
    table = overlap(one, one).set_index("layer")
    assert table.jaccard.tolist() == [1] * 5
    assert table.corrected["a"] == table.corrected["all"] == 1
    assert table.chance["b"] == table.chance["c"] == 1  # nothing else can happen there
    assert table.corrected.isna().to_dict() == {
        "a": False, "b": True, "c": True, "all": False, "all, given the layers": False,
    }  # fmt: skip
    apart = overlap(one, ~one).set_index("layer")
    assert apart.jaccard.tolist() == [0] * 5 and apart.corrected["a"] == pytest.approx(-(1 / 3) / (2 / 3))


@settings(max_examples=30)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32))
def test_it_agrees_with_the_mask_and_is_symmetric(first, second, seed):
    a, b = random(first, seed, (3, 4), (2, 3, 2, 2)), random(second, seed + 1, (3, 4), (2, 3, 2, 2))
    table, turned = overlap(a, b).set_index("layer"), overlap(b, a).set_index("layer")
    assert table.jaccard["all"] == pytest.approx(a.overlap(b))
    assert np.allclose(table[["jaccard", "chance"]], turned[["jaccard", "chance"]])
    assert ((table.jaccard >= 0) & (table.jaccard <= 1) & (table.chance >= 0) & (table.chance <= 1 + 1e-12)).all()


def test_chance_is_what_random_masks_have():
    """d / (2 - d) for equal densities: 0.0526 for 0.1. 200,000 weights: six standard errors are 0.005."""
    rows = [overlap(random(d, 1, (400, 500)), random(e, 2, (400, 500))).iloc[0] for d, e in ((0.1, 0.1), (0.3, 0.6))]
    assert rows[0].chance == pytest.approx(0.1 / 1.9, abs=2e-3) and rows[0].jaccard == pytest.approx(0.0526, abs=5e-3)
    assert rows[1].chance == pytest.approx(0.18 / 0.72, abs=2e-3) and rows[1].jaccard == pytest.approx(0.25, abs=5e-3)
    assert all(abs(row.corrected) < 6e-3 for row in rows)


def test_entries_of_one_dimension_are_not_counted():
    a = Mask({"w": torch.tensor([[True, False]]), "b": torch.tensor([True])})
    assert overlap(a, a).layer.tolist() == ["w", "all", "all, given the layers"]


def test_masks_of_other_models():
    one = mask(a="10")
    for other in (mask(b="10"), mask(a="101"), mask(a="10", b="1")):
        with pytest.raises(ValueError, match="another model"):
            overlap(one, other)
    with pytest.raises(TypeError, match="mask"):
        overlap(one, {"a": one["a"]})


# -- ranks -------------------------------------------------------------------------------------------------------------
def rank(a, b):
    return rank_correlation(a, b).set_index("layer").spearman


def test_ranks_by_hand():
    a = {"one": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "two": torch.tensor([[5.0, 6.0]])}
    b = {"one": torch.tensor([[10.0, 30.0], [20.0, 40.0]]), "two": torch.tensor([[60.0, -50.0]])}
    found = rank(a, b)
    assert found["one"] == pytest.approx(1 - 6 * (0 + 1 + 1 + 0) / (4 * 15))  # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert found["two"] == pytest.approx(-1)
    # together 1 2 3 4 5 6 against ranks 2 4 3 5 6 1
    assert found["all"] == pytest.approx(1 - 6 * (1 + 4 + 0 + 1 + 1 + 25) / (6 * 35))


def test_ties_share_their_rank():
    """1 1 2 have the ranks 1.5 1.5 3, and 1 2 3 their own: covariance 1.5, variances 1.5 and 2."""
    found = rank({"a": torch.tensor([[1.0, 1.0, 2.0]])}, {"a": torch.tensor([[1.0, 2.0, 3.0]])})
    assert found["a"] == pytest.approx(1.5 / (1.5 * 2) ** 0.5)


def test_only_the_order_counts():
    a = {"a": torch.randn(7, 9, generator=torch.Generator().manual_seed(0)), "b": torch.arange(6.0).view(2, 3)}
    assert rank(a, {n: t.exp() for n, t in a.items()}).tolist() == pytest.approx([1, 1, 1])
    assert rank(a, {n: -t.double() for n, t in reversed(a.items())}).tolist() == pytest.approx([-1, -1, -1])
    assert rank({"b": a["b"].bfloat16()}, {"b": a["b"].bool()})["b"] == pytest.approx((5 / 35 * 3) ** 0.5)


@settings(max_examples=30)
@given(st.integers(3, 30), st.integers(0, 2**32))
def test_the_same_as_scipy(n, seed):
    x, y = np.random.default_rng(seed).integers(0, 6, (2, 1, n)).astype(float)
    assume(len(np.unique(x)) > 1 and len(np.unique(y)) > 1)
    found = rank({"a": torch.from_numpy(x)}, {"a": torch.from_numpy(y)})
    assert found.tolist() == pytest.approx([stats.spearmanr(x[0], y[0]).statistic] * 2)


def test_a_constant_has_no_order():
    found = rank({"a": torch.ones(2, 2), "b": torch.eye(2)}, {"a": torch.eye(2), "b": torch.eye(2)})
    assert np.isnan(found["a"]) and found["b"] == pytest.approx(1)


def test_scores_of_other_models():
    a = {"a": torch.eye(2)}
    for b in ({}, {"b": torch.eye(2)}, {"a": torch.eye(2), "b": torch.eye(2)}):
        with pytest.raises(ValueError, match="same layers"):
            rank_correlation(a, b)
    with pytest.raises(ValueError, match=r"'a' .*\(2, 2\) and \(2, 1\)"):
        rank_correlation(a, {"a": torch.ones(2, 1)})
