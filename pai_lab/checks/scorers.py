"""Checks of the scorers at initialization that a reader writes.

lesson.check("synflow_scores", my_function)
"""

from collections.abc import Mapping

import torch

from pai_lab.checks.watch import brief, came, checks

_ONE = {"a": torch.tensor([[2.0]])}
_HAND = {"a": torch.tensor([[1.0, -2.0], [3.0, 4.0]]), "b": torch.tensor([[5.0, -6.0]])}  # flow 57
_WIDE = {
    "a": torch.tensor([[1.0, -1.0], [0.0, 2.0], [3.0, 0.5]]),
    "b": torch.tensor([[2.0, -1.0, 1.0], [0.0, 4.0, -3.0]]),
}
_DEEP = _WIDE | {"c": torch.tensor([[1.0, -2.0], [0.5, 3.0]])}
_CASES = [_ONE, _HAND, _WIDE, _DEEP]


@checks
def synflow_scores(function):
    """{layer: weight (out, in)}, first layer first -> {layer: scores}: |w| times the slope of the flow, which is the
    sum of the outputs of the chain of |W| for an input of ones."""
    for weights in _CASES:
        got = function(weights)
        same = isinstance(got, Mapping) and list(got) == list(weights)
        yield "returns a dict with the same layers", same, came(got)
        tensors = all(isinstance(s, torch.Tensor) and s.is_floating_point() for s in got.values())
        yield "every score is a float tensor", tensors, came(got)
        fits = all(got[name].shape == weights[name].shape for name in weights)
        yield (
            "every score has its weight's shape",
            fits,
            f"returned the shapes {[tuple(s.shape) for s in got.values()]}",
        )
        yield "no score carries a gradient", not any(s.requires_grad for s in got.values()), "some require a gradient"
    for weights in _CASES:
        got = function(weights)
        yield "no score is negative", all(bool((s >= 0).all()) for s in got.values()), came(got)
    got = function(_HAND)
    other = function({name: weight.abs() for name, weight in _HAND.items()})
    yield "the signs of the weights play no part", _close(got, other), f"{came(other)}; with signs {brief(got)}"
    got = function(_WIDE)
    yield "a weight of 0 scores 0", all(not got[n][w == 0].any() for n, w in _WIDE.items()), came(got)
    for weights in _CASES:
        got, want = function(weights), _flow(weights)
        sums = {name: float(scores.sum()) for name, scores in got.items()}
        alike = max(sums.values()) - min(sums.values()) <= 1e-4 * max(map(abs, sums.values()))
        yield "every layer's scores sum to the same number", alike, f"{came(got)}: the sums are {_words(sums)}"
        right = all(abs(total - want) <= 1e-4 * want for total in sums.values())
        yield "that number is the flow R", right, f"{came(got)}: the sums are {_words(sums)}, and R is {want:g}"
    for weights in (_HAND, _WIDE, _DEEP):
        got, names = function(weights), list(weights)
        for below, above in zip(names, names[1:], strict=False):
            into, out = got[below].sum(1), got[above].sum(0)
            instead = f"{came(got)}: into the units {brief(into)}, out of them {brief(out)}"
            yield "what flows into a hidden unit flows out of it", torch.allclose(into.float(), out.float()), instead
    got, want = function(_HAND), {"a": torch.tensor([[5.0, 10], [18, 24]]), "b": torch.tensor([[15.0, 42]])}
    yield "equals |w| * dR/d|w|", _close(got, want), f"{came(got)}, not {brief(want)}"


def _flow(weights):
    x = torch.ones(next(iter(weights.values())).shape[1])
    for weight in weights.values():
        x = weight.abs() @ x
    return float(x.sum())


def _close(a, b):
    return all(torch.allclose(a[name].float(), b[name].float()) for name in b)


def _words(sums):
    return ", ".join(f"{total:.4g}" for total in sums.values())
