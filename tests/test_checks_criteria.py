"""The checks of the criteria lesson: right functions pass, one wrong function per property is caught and named."""

import ast
import inspect

import pytest
import torch

from pai_lab import checks
from pai_lab.checks import watch
from pai_lab.criteria.data_free import lamp


def leave_one_out(loss, weight):
    changes, start = torch.zeros_like(weight), loss(weight)
    for k in range(weight.numel()):
        without = weight.clone()
        without.view(-1)[k] = 0
        changes.view(-1)[k] = loss(without) - start
    return changes


def in_the_readers_own_copy(loss, weight):
    """The same, in the tensor it was given, each weight put back."""
    changes, start, flat = torch.zeros_like(weight), loss(weight), weight.view(-1)
    for k in range(len(flat)):
        kept = flat[k].item()
        flat[k] = 0
        changes.view(-1)[k] = loss(weight) - start
        flat[k] = kept
    return changes


def all_at_once(loss, weight):
    """One row of `without` per weight."""
    without = weight.flatten() * (1 - torch.eye(weight.numel()))
    return (torch.stack([loss(row.view(weight.shape)) for row in without]) - loss(weight)).view(weight.shape)


def guessed_change(weight, gradient, curvature):
    return -gradient * weight + curvature * weight.square() / 2


def lamp_score(weight):
    squares, order = weight.flatten().square().sort()
    shares = squares / squares.flip(0).cumsum(0).flip(0)
    return torch.empty_like(shares).scatter_(0, order, shares).view(weight.shape)


def lamp_by_definition(weight):
    squares = weight.square()
    return squares / torch.stack([squares[squares >= s].sum() for s in squares.flatten()]).view(weight.shape)


def packages_lamp(weight):
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight = torch.nn.Parameter(weight.reshape(1, -1))
    return lamp(layer, None, None)["weight"].view(weight.shape)


RIGHT = [
    ("leave_one_out", leave_one_out), ("leave_one_out", in_the_readers_own_copy), ("leave_one_out", all_at_once),
    ("guessed_change", guessed_change), ("lamp_score", lamp_score), ("lamp_score", lamp_by_definition),
    ("lamp_score", packages_lamp),
]  # fmt: skip


@pytest.mark.parametrize(("name", "function"), RIGHT, ids=[function.__name__ for _, function in RIGHT])
def test_a_right_function_passes(name, function, capsys):
    assert checks.check(name, function)
    assert capsys.readouterr().out.startswith(f"ok: {name}: ")


def slope(loss, weight):
    """What an infinitely small step would say, times the whole step."""
    weight = weight.clone().requires_grad_()
    loss(weight).backward()
    return -weight.detach() * weight.grad


def never_put_back(loss, weight):
    changes, start, without = torch.zeros_like(weight), loss(weight), weight.clone()
    for k in range(weight.numel()):
        without.view(-1)[k] = 0
        changes.view(-1)[k] = loss(without) - start
    return changes


def put_back_as_the_difference(loss, weight):
    """Forgets the others, but counts only what each one adds: right wherever every weight acts alone."""
    changes, before, without = torch.zeros_like(weight), loss(weight), weight.clone()
    for k in range(weight.numel()):
        without.view(-1)[k] = 0
        changes.view(-1)[k] = loss(without) - before
        before = loss(without)
    return changes


def left_at_zero(loss, weight):
    found = leave_one_out(loss, weight)
    weight[0, 0] = 0
    return found


WRONG_CHANGES = {
    "returns a float tensor": lambda loss, w: leave_one_out(loss, w).tolist(),
    "keeps the weight's shape": lambda loss, w: leave_one_out(loss, w).flatten(),
    "a weight of 0 changes nothing": lambda loss, w: leave_one_out(loss, w) + loss(w),
    "a weight of 0": never_put_back,
    "the loss without minus the loss with": lambda loss, w: -leave_one_out(loss, w),
    "sign included": lambda loss, w: leave_one_out(loss, w).abs(),
    "the whole step to 0, not the slope": slope,
    "puts each weight back before the next one goes": put_back_as_the_difference,
    "leaves its input untouched": left_at_zero,
    "runs without an error": lambda loss, w: loss(w)[0],
}
WRONG_GUESSES = {
    "returns a float tensor": lambda w, g, h: guessed_change(w, g, h).tolist(),
    "keeps the weight's shape": lambda w, g, h: guessed_change(w, g, h).view(-1, 1),
    "a weight of 0 changes nothing": lambda w, g, h: -g + h * w.square() / 2,
    "without curvature: -g w": lambda w, g, h: g * w + h * w.square() / 2,
    "since w moves by -w": lambda w, g, h: (g * w).abs() + h * w.square() / 2,
    "h w^2 / 2, which is OBD": lambda w, g, h: -g * w + h * w.square(),
    "without a gradient": lambda w, g, h: -g * w + (h * w).square() / 2,
    "adds both terms": lambda w, g, h: torch.where(g == 0, h * w.square() / 2, -g * w),
    "leaves its input untouched": lambda w, g, h: guessed_change(w, g, h).add(0 * w.neg_()),
    "runs without an error": lambda w, g, h: w @ g @ h,
}


def of_the_whole_layer(weight):
    return weight.square() / weight.square().sum()


def of_the_largest(weight):
    return weight.square() / weight.square().max()


def upside_down(weight):
    """The largest is right, and all others stand in reverse order."""
    shares = lamp_score(weight)
    return torch.where(shares == 1, shares, 1 - shares)


def of_those_above_only(weight):
    """Forgets its own square, except for the largest, which has none above."""
    squares = weight.square()
    above = torch.stack([squares[squares > s].sum() for s in squares.flatten()]).view(weight.shape)
    return torch.where(above == 0, torch.ones(()), squares / (100 * above))


WRONG_LAMP = {
    "returns a float tensor": lambda w: lamp_score(w).tolist(),
    "keeps the weight's shape": lambda w: lamp_score(w).view(-1, 1),
    "the layer's largest weight scores 1": of_the_whole_layer,
    "ranks a layer as |w| does": upside_down,
    "divides by the sum of the squares at or above its own": of_the_largest,
    "at or above": of_those_above_only,
    "leaves its input untouched": lambda w: lamp_score(w.abs_()),
    "runs without an error": lambda w: w[9],
}
WRONG = [
    pytest.param(name, word, function, id=f"{name}: {word}")
    for name, wrong in (
        ("leave_one_out", WRONG_CHANGES),
        ("guessed_change", WRONG_GUESSES),
        ("lamp_score", WRONG_LAMP),
    )
    for word, function in wrong.items()
]


@pytest.mark.parametrize(("name", "word", "function"), WRONG)
def test_a_wrong_function_is_caught_and_its_property_named(name, word, function):
    with pytest.raises(AssertionError) as caught:
        checks.check(name, function)
    headline, example, *instead = str(caught.value).splitlines()
    assert headline.startswith(f"{name}: broken: ") and word in headline
    assert example.startswith(f"Smallest counterexample: {name}(") and instead


@pytest.mark.parametrize("name", ["leave_one_out", "guessed_change", "lamp_score"])
def test_every_property_has_a_function_that_breaks_it(name, capsys):
    checks.check(name, dict(RIGHT)[name])
    told = capsys.readouterr().out
    words = [param.values[1] for param in WRONG if param.values[0] == name]
    tree = ast.parse(inspect.getsource(watch._CHECKS[name]))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    properties = [text for text in texts if len(text) > 12 and text in told and text[0] != " "]  # no ends of f-strings
    assert properties
    for one in properties:
        assert any(word in one for word in words), one


def test_the_counterexample_names_the_loss(capsys):
    with pytest.raises(AssertionError, match=r"leave_one_out\(<loss: sum of w\^2 / 2>, \[\[2.0, -3.0\]"):
        checks.check("leave_one_out", slope)


def test_a_stub_is_not_done_yet(capsys):
    def stub(weight):
        raise NotImplementedError

    assert checks.check("lamp_score", stub) is False
    assert capsys.readouterr().out == "not done yet: lamp_score\n"
