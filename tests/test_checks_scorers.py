"""The checks of the scorers lesson: right functions pass, one wrong function per property is caught and named."""

import inspect
import re

import pytest
import torch
from torch import nn

import pai_lab as pai
from pai_lab import checks
from pai_lab.checks import watch
from pai_lab.checks.scorers import _CASES


def synflow_scores(weights):
    """The function of the lesson."""
    sizes = {name: weight.abs().requires_grad_() for name, weight in weights.items()}
    signal = torch.ones(next(iter(sizes.values())).shape[1])
    for size in sizes.values():
        signal = size @ signal
    slopes = torch.autograd.grad(signal.sum(), list(sizes.values()))
    return {name: size.detach() * slope for (name, size), slope in zip(sizes.items(), slopes, strict=True)}


def by_flow(weights, change=torch.abs, ends=torch.ones, last=torch.ones):
    """The same without autograd: what arrives at a weight from below, times itself, times what it sends on."""
    sizes = [change(weight) for weight in weights.values()]
    up, down = [ends(sizes[0].shape[1])], [last(sizes[-1].shape[0])]
    for size in sizes[:-1]:
        up.append(size @ up[-1])
    for size in sizes[:0:-1]:
        down.append(down[-1] @ size)
    parts = zip(weights, up, sizes, reversed(down), strict=True)
    return {name: after[:, None] * size * before for name, before, size, after in parts}


def chain(weights):
    layers = [nn.Linear(*reversed(w.shape), bias=False) for w in weights.values()]
    for layer, weight in zip(layers, weights.values(), strict=True):
        layer.weight.data.copy_(weight)
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


def package(weights):
    """The package's own criterion, on a net made of these weights."""
    model = chain(weights)
    batch = (torch.zeros(1, next(iter(weights.values())).shape[1]), torch.zeros(1, dtype=torch.long))
    return dict(zip(weights, pai.score(model, "synflow", batch).values(), strict=True))


RIGHT = {"autograd": synflow_scores, "two passes": by_flow, "package": package}


@pytest.mark.parametrize("function", RIGHT.values(), ids=RIGHT)
def test_a_right_function_passes(function, capsys):
    assert checks.check("synflow_scores", function)
    assert capsys.readouterr().out.startswith("ok: synflow_scores: ")


@pytest.mark.parametrize("weights", _CASES)
def test_a_score_is_what_all_paths_through_the_weight_carry(weights):
    """The third road: each path from input to output, one by one."""
    sizes = [weight.abs() for weight in weights.values()]
    paths = torch.cartesian_prod(*(torch.arange(n) for n in [sizes[0].shape[1], *(len(s) for s in sizes)]))
    want = [torch.zeros_like(size) for size in sizes]
    for path in paths.tolist():
        steps = list(zip(path[1:], path[:-1], strict=True))
        carried = torch.stack([size[step] for size, step in zip(sizes, steps, strict=True)]).prod()
        for total, step in zip(want, steps, strict=True):
            total[step] += carried
    for got, total in zip(synflow_scores(weights).values(), want, strict=True):
        torch.testing.assert_close(got, total)


def each(change):
    return lambda weights: {name: change(scores) for name, scores in synflow_scores(weights).items()}


def slopes(weights):
    """dR/d|w| alone."""
    sizes = {name: weight.abs().requires_grad_() for name, weight in weights.items()}
    signal = torch.ones(next(iter(sizes.values())).shape[1])
    for size in sizes.values():
        signal = size @ signal
    return dict(zip(weights, torch.autograd.grad(signal.sum(), list(sizes.values())), strict=True))


def share_of_the_layer(weights):
    return {name: weight.abs() * (synflow_scores(weights)[name] > 0) for name, weight in weights.items()}


def of_equal_sums(weights):
    """Every layer sums to R, but inside the layers it is only the size that counts."""
    found = share_of_the_layer(weights)
    total = float(sum(synflow_scores(weights)[next(iter(weights))].flatten()))
    return {name: scores / scores.sum() * total for name, scores in found.items()}


def swapped(weights):
    """Right sums into and out of every unit, at the wrong inputs."""
    found, first = synflow_scores(weights), next(iter(weights))
    whole = (weights[first] != 0).all(1, keepdim=True)
    return found | {first: torch.where(whole, found[first].flip(1), found[first])}


def in_place(weights):
    for weight in weights.values():
        weight.abs_()
    return synflow_scores(weights)


WRONG = {
    "returns a dict with the same layers": lambda w: list(synflow_scores(w).values()),
    "with the same layers": lambda w: dict(reversed(synflow_scores(w).items())),
    "every score is a float tensor": each(lambda s: s.tolist()),
    "a float tensor": each(lambda s: s.long()),
    "every score has its weight's shape": each(torch.flatten),
    "no score carries a gradient": each(lambda s: s.requires_grad_()),
    "no score is negative": lambda w: by_flow(w, change=torch.clone),
    "the signs of the weights play no part": lambda w: by_flow(w, change=torch.relu),
    "a weight of 0 scores 0": slopes,
    "every layer's scores sum to the same number": share_of_the_layer,
    "that number is the flow R": lambda w: by_flow(w, change=torch.square),
    "is the flow R": lambda w: by_flow(w, last=lambda n: torch.full((n,), 1 / n)),  # the mean output
    "the flow R": each(lambda s: s / s.sum()),
    "what flows into a hidden unit flows out of it": of_equal_sums,
    "equals |w| * dR/d|w|": swapped,
    "leaves its input untouched": in_place,
    "runs without an error": lambda w: synflow_scores(w | {"z": torch.ones(1, 9)}),
}


@pytest.mark.parametrize(("word", "function"), WRONG.items(), ids=WRONG)
def test_a_wrong_function_is_caught_and_its_property_named(word, function):
    with pytest.raises(AssertionError) as caught:
        checks.check("synflow_scores", function)
    headline, example, *_ = str(caught.value).splitlines()
    assert headline.startswith("synflow_scores: broken: ") and word in headline
    assert example.startswith("Smallest counterexample: synflow_scores(")


def test_each_property_has_a_wrong_function():
    told = set(re.findall(r'yield "([^"]+)"', inspect.getsource(watch._CHECKS["synflow_scores"])))
    told |= {"leaves its input untouched", "runs without an error"}
    assert all(any(word in one for word in WRONG) for one in told)


def test_a_stub_is_not_a_failure(capsys):
    def stub(weights):
        raise NotImplementedError("the flow first")

    assert checks.check("synflow_scores", stub) is False
    assert "not done yet" in capsys.readouterr().out
