"""The checks of the structures lesson: right functions pass, one wrong function per property is caught and named."""

import ast
import inspect
from itertools import combinations

import pytest
import torch

import pai_lab as pai
from pai_lab import checks
from pai_lab.checks import watch


def two_of_four(scores):
    """The function of the lesson."""
    last = scores.movedim(1, -1)
    groups = last.reshape(-1, 4)
    best = groups.argsort(dim=1, descending=True, stable=True)[:, :2]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter(1, best, True)
    return mask.view(last.shape).movedim(-1, 1)


def by_trying_all_pairs(scores):
    """The same by another way: of the six pairs in each four, the one of the largest sum."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for start in range(0, scores.shape[1], 4):
        four = scores[:, start : start + 4]
        sums = torch.stack([four[:, a] + four[:, b] for a, b in combinations(range(4), 2)])
        for number, pair in enumerate(combinations(range(4), 2)):
            for place in pair:
                mask[:, start + place] |= sums.argmax(0) == number
    return mask


def package(scores):
    return pai.allocate({"w": scores}, None, structure="2:4")["w"]


RIGHT = {"lesson": two_of_four, "pairs": by_trying_all_pairs, "package": package}


@pytest.mark.parametrize("function", RIGHT.values(), ids=RIGHT)
def test_a_right_function_passes(function, capsys):
    assert checks.check("two_of_four", function)
    assert capsys.readouterr().out.startswith("ok: two_of_four: ")


def threshold(scores):
    """Everything from the second highest score on: equal scores stay together."""
    last = scores.movedim(1, -1)
    groups = last.reshape(-1, 4)
    keep = groups >= groups.topk(2).values[:, 1:]
    return keep.view(last.shape).movedim(-1, 1)


def along_the_kernel(scores):
    """Fours in the order of memory: for a convolution they mix places of one kernel."""
    return two_of_four(scores.reshape(-1, 4)).view(scores.shape)


def half_of_each_row(scores):
    flat = scores.flatten(1)
    best = flat.argsort(dim=1, descending=True)[:, : flat.shape[1] // 2]
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, best, True).view(scores.shape)


def overwriting(scores):
    keep = two_of_four(scores)
    scores.masked_fill_(~keep, 0)
    return keep


WRONG = {
    "returns a bool tensor": lambda s: two_of_four(s).float(),
    "keeps the shape of the scores": lambda s: two_of_four(s).flatten(),
    "keeps two of every four consecutive inputs": half_of_each_row,
    "keeps two of every": lambda s: two_of_four(s) & (s > 3),
    "keeps the two highest": lambda s: two_of_four(-s),
    "signs included": lambda s: two_of_four(s.abs()),
    "also among equal scores": threshold,
    "run along its input channels": along_the_kernel,
    "leaves its input untouched": overwriting,
    "runs without an error": lambda s: two_of_four(s)[7],
}


@pytest.mark.parametrize(("word", "function"), WRONG.items(), ids=WRONG)
def test_a_wrong_function_is_caught_and_its_property_named(word, function):
    with pytest.raises(AssertionError) as caught:
        checks.check("two_of_four", function)
    headline, example, *instead = str(caught.value).splitlines()
    assert headline.startswith("two_of_four: broken: ") and word in headline
    assert example.startswith("Smallest counterexample: two_of_four(") and instead


def test_every_property_has_a_function_that_breaks_it():
    tree = ast.parse(inspect.getsource(watch._CHECKS["two_of_four"]))
    properties = {node.value.elts[0].value for node in ast.walk(tree) if isinstance(node, ast.Yield)}
    assert len(properties) == 6
    for one in properties:
        assert any(word in one for word in WRONG), one
