"""Schedules: closed forms, the exact end, and no way back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pai_lab.schedules import exponential, linear, sparsities

SPARSITY = st.floats(0, 1)


def test_closed_forms():
    assert exponential(0.01, 0.5) == pytest.approx(0.1, rel=1e-15)
    assert linear(0.01, 0.5) == pytest.approx(0.505, rel=1e-15)
    # 10,000-fold in four rounds: a tenth stays each time
    assert [1 - s for s in sparsities("exponential", 0.9999, 4)] == pytest.approx([0.1, 0.01, 0.001, 0.0001])
    assert sparsities("linear", 0.8, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])


@given(SPARSITY, st.integers(1, 40), st.sampled_from(["linear", "exponential"]))
def test_ends_exactly_and_never_turns_back(sparsity, iterations, schedule):
    steps = sparsities(schedule, sparsity, iterations)
    assert len(steps) == iterations and steps[-1] == sparsity
    assert all(0 <= s <= 1 for s in steps)
    kept = [round((1 - s) * 10_000) for s in steps]
    assert kept == sorted(kept, reverse=True)


def test_linear_removes_as_many_each_round_and_exponential_the_same_share():
    lost = [round((1 - s) * 10**6) for s in [0, *sparsities("linear", 0.9, 9)]]
    assert {a - b for a, b in zip(lost, lost[1:], strict=False)} == {100_000}
    left = [1 - s for s in [0, *sparsities("exponential", 0.99, 10)]]
    assert [b / a for a, b in zip(left, left[1:], strict=False)] == pytest.approx([0.01**0.1] * 10)


def test_a_function_of_ones_own():
    assert sparsities(lambda density, progress: 1.0, 0.5, 3) == [0, 0, 0.5]


@pytest.mark.parametrize("iterations", [0, -1, 2.0, "3", True, None])
def test_iterations_out_of_range(iterations):
    with pytest.raises(ValueError, match="iterations"):
        sparsities("linear", 0.5, iterations)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="Did you mean 'exponential'"):
        sparsities("exponentiall", 0.5, 3)
