"""Structures: a reduction of weight scores to unit scores, beside plain loops."""

import numpy as np
import pytest
import torch

import pai_lab as pai
from pai_lab.structures import reduce_to_units

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
