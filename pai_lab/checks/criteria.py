"""Checks of how a reader measures, guesses and ranks: the loss change of a single weight, and LAMP.

check("leave_one_out", my_function)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pai_lab.checks.watch import brief, came, checks


@dataclass(frozen=True)
class Loss:
    """A loss of one weight tensor that says what it is in a counterexample."""

    name: str
    value: Callable

    def __call__(self, weight):
        return self.value(weight)

    def __repr__(self):
        return f"<loss: {self.name}>"


_SUM = Loss("sum of w", lambda w: w.sum())
_SQUARES = Loss("sum of w^2 / 2", lambda w: w.square().sum() / 2)
_SHARED = Loss("(sum of w)^2 / 2", lambda w: w.sum().square() / 2)  # no weight acts alone
_W = torch.tensor([[2.0, -3.0], [0.0, 5.0]])


@checks
def leave_one_out(function):
    """loss (a function of the weight), weight -> for each weight, the loss with it at 0 minus the loss as it is."""
    for loss in (_SUM, _SQUARES, _SHARED):
        got = function(loss, _W)
        yield "returns a float tensor", isinstance(got, torch.Tensor) and got.is_floating_point(), came(got)
        yield "keeps the weight's shape", got.shape == _W.shape, f"returned the shape {tuple(got.shape)}"
    got = function(_SUM, _W)
    yield "a weight of 0 changes nothing", got[1, 0] == 0, came(got)
    yield "is the loss without minus the loss with, sign included", _close(got, -_W), came(got)
    got, want = function(_SQUARES, _W), -_W.square() / 2
    yield "is the whole step to 0, not the slope", _close(got, want), _instead(got, want)
    ones = torch.ones(1, 3)
    got, want = function(_SHARED, ones), torch.full((1, 3), -2.5)
    yield "puts each weight back before the next one goes", _close(got, want), _instead(got, want)


@checks
def guessed_change(function):
    """weight, gradient, curvature -> the change of the loss when w goes to 0, to second order: -g w + h w^2 / 2."""
    w, g, h = torch.tensor([3.0, -1.0, 0.0]), torch.tensor([2.0, 4.0, 5.0]), torch.tensor([2.0, 32.0, 8.0])
    none = torch.zeros(3)
    for gradient, curvature in ((g, none), (none, h), (g, h)):
        got = function(w, gradient, curvature)
        yield "returns a float tensor", isinstance(got, torch.Tensor) and got.is_floating_point(), came(got)
        yield "keeps the weight's shape", got.shape == w.shape, f"returned the shape {tuple(got.shape)}"
        yield "a weight of 0 changes nothing", got[2] == 0, came(got)
    got, want = function(w, g, none), torch.tensor([-6.0, 4.0, 0.0])
    yield "without curvature: -g w, since w moves by -w", _close(got, want), _instead(got, want)
    got, want = function(w, none, h), torch.tensor([9.0, 16.0, 0.0])
    yield "without a gradient: h w^2 / 2, which is OBD", _close(got, want), _instead(got, want)
    got, want = function(w, g, h), torch.tensor([3.0, 20.0, 0.0])
    yield "adds both terms", _close(got, want), _instead(got, want)


@checks
def lamp_score(function):
    """weight -> w^2 / the sum of all squares of the layer that are at least as large; no two are equal in size."""
    small, layer = torch.tensor([0.1, 0.5, -2.0]), torch.tensor([[1.0, -3.0], [2.0, -0.5]])
    for weight in (small, layer):
        got = function(weight)
        yield "returns a float tensor", isinstance(got, torch.Tensor) and got.is_floating_point(), came(got)
        yield "keeps the weight's shape", got.shape == weight.shape, f"returned the shape {tuple(got.shape)}"
        top = got.flatten()[weight.abs().argmax()]
        yield "the layer's largest weight scores 1", _close(top, torch.ones(())), came(got)
        ranks = weight.abs().flatten().argsort()
        yield "ranks a layer as |w| does", torch.equal(got.flatten().argsort(), ranks), came(got)
    other = torch.tensor([[1 / 14, 1.0], [4 / 13, 0.25 / 14.25]])
    for weight, want in ((small, torch.tensor([0.01 / 4.26, 0.25 / 4.25, 1.0])), (layer, other)):
        got = function(weight)
        yield "divides by the sum of the squares at or above its own", _close(got, want), _instead(got, want)


def _close(got, want):
    return torch.allclose(got.double(), want.double(), rtol=1e-4, atol=1e-6)


def _instead(got, want):
    return f"{came(got)}, not {brief(want)}"
