"""The checks of the allocation lesson: right functions pass, one wrong function per property is caught and named."""

import ast
import inspect
from math import prod

import numpy as np
import pytest
import torch

import pai_lab as pai
from pai_lab import checks
from pai_lab.checks import watch
from pai_lab.checks.allocation import _CASES

LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}


def wish(shape):
    return sum(shape) / prod(shape)


def erk_densities(shapes, density):
    """The loop of the lesson: layers that would hold more than they have are full, and the rest is solved again."""
    size, full = {name: prod(shape) for name, shape in shapes.items()}, {}
    while True:
        rest = {name: sum(shape) for name, shape in shapes.items() if name not in full}
        factor = (density * sum(size.values()) - sum(size[name] for name in full)) / sum(rest.values())
        found = {name: factor * rest[name] / size[name] for name in rest}
        more = {name: 1.0 for name in found if found[name] > 1 + 1e-9}
        if not more:
            return {name: (full | found)[name] for name in shapes}
        full |= more


def by_bisection(shapes, density):
    """The same densities by another way: one factor for all, cut at 1."""
    low, high = 0.0, max(prod(shape) for shape in shapes.values())
    for _ in range(200):
        factor = (low + high) / 2
        found = {name: min(1.0, factor * wish(shape)) for name, shape in shapes.items()}
        kept = sum(found[name] * prod(shape) for name, shape in shapes.items())
        low, high = (factor, high) if kept < density * sum(map(prod, shapes.values())) else (low, factor)
    return found


RIGHT = {
    "loop": erk_densities,
    "bisection": by_bisection,
    "torch scalars": lambda s, d: {n: torch.tensor(v) for n, v in erk_densities(s, d).items()},
    "numpy scalars": lambda s, d: {n: np.float32(v) for n, v in erk_densities(s, d).items()},
}


@pytest.mark.parametrize("function", RIGHT.values(), ids=RIGHT)
def test_a_right_function_passes(function, capsys):
    assert checks.check("erk_densities", function)
    assert capsys.readouterr().out.startswith("ok: erk_densities: ")


@pytest.mark.parametrize(
    ("density", "published"),
    [
        (0.1, (0.0795678, 0.2301887, 1.0)),
        (0.05, (0.0384841, 0.1113342, 0.9185069)),
        (0.01, (0.0076968, 0.0222668, 0.1837014)),
    ],
)
def test_the_reference_of_these_tests_gives_the_known_densities_of_lenet(density, published):
    assert list(erk_densities(LENET, density).values()) == pytest.approx(published, abs=1e-6)


@pytest.mark.parametrize(("shapes", "density"), _CASES)
def test_the_package_splits_alike_to_the_last_weight(shapes, density):
    scores = {name: torch.rand(shape) for name, shape in shapes.items()}
    mask = pai.allocate(scores, 1 - density, scope="erk")
    for name, want in erk_densities(shapes, density).items():
        assert abs(int(mask[name].sum()) - want * prod(shapes[name])) < 1


def clamped(shapes, density):
    return {name: min(d, 1.0) for name, d in unbounded(shapes, density).items()}


def unbounded(shapes, density):
    factor = density * sum(map(prod, shapes.values())) / sum(map(sum, shapes.values()))
    return {name: factor * wish(shape) for name, shape in shapes.items()}


def solved_once_more(shapes, density):
    """Fills what is over, solves again once, and does not look whether that fills another layer."""
    first = unbounded(shapes, density)
    full = {name for name in first if first[name] > 1}
    rest = {name: sum(shape) for name, shape in shapes.items() if name not in full}
    left = density * sum(map(prod, shapes.values())) - sum(prod(shapes[name]) for name in full)
    return {n: 1.0 if n in full else left / max(sum(rest.values()), 1) * wish(s) for n, s in shapes.items()}


def er_densities(shapes, density):
    """ER: in and out count, the kernel does not."""
    flat = {name: (shape[0] * prod(shape[2:]), shape[1]) for name, shape in shapes.items()}
    if all(len(shape) == 2 for shape in shapes.values()):
        return erk_densities(shapes, density)
    return erk_densities(flat, density)


def smallest_first(shapes, density):
    """Fills small layers one after the other."""
    left, found = density * sum(map(prod, shapes.values())), {}
    for name in sorted(shapes, key=lambda n: prod(shapes[n])):
        found[name] = min(1.0, left / prod(shapes[name]))
        left -= found[name] * prod(shapes[name])
    return {name: found[name] for name in shapes}


def first_layer_dense(shapes, density):
    """The right densities, but the first layer is kept whole where the budget allows it."""
    first, *others = shapes
    left = density * sum(map(prod, shapes.values())) - prod(shapes[first])
    if not others or left <= 0:
        return erk_densities(shapes, density)
    rest = {name: shapes[name] for name in others}
    found = erk_densities(rest, left / sum(map(prod, rest.values())))
    return {first: 1.0} | found


def spoiling(shapes, density):
    found = erk_densities(shapes, density)
    shapes.clear()
    return found


WRONG = {
    "returns a dict with the same layers": lambda s, d: list(erk_densities(s, d).values()),
    "with the same layers": lambda s, d: dict(reversed(erk_densities(s, d).items())),
    "every density is a finite number from 0 on": lambda s, d: {n: f"{v:.0%}" for n, v in erk_densities(s, d).items()},
    "a finite number": lambda s, d: {n: v if d < 1 else float("nan") for n, v in erk_densities(s, d).items()},
    "no layer keeps more than it has": unbounded,
    "no layer keeps more": solved_once_more,
    "density 1 keeps everything": lambda s, d: erk_densities(s, min(d, 0.9)),
    "keeps density * weights in all": clamped,
    "density * weights": lambda s, d: erk_densities(s, d if d in (0.5, 1) else 1 - d),
    "layers that are not full share one factor": lambda s, d: dict.fromkeys(s, d),
    "share one factor": er_densities,
    "a layer is full only if its share asks for that": first_layer_dense,
    "only if its share asks": smallest_first,
    "leaves its input untouched": spoiling,
    "runs without an error": lambda s, d: {n: sum(shape) / shape[2] for n, shape in s.items()},
}


@pytest.mark.parametrize(("word", "function"), WRONG.items(), ids=WRONG)
def test_a_wrong_function_is_caught_and_its_property_named(word, function):
    with pytest.raises(AssertionError) as caught:
        checks.check("erk_densities", function)
    headline, example, *instead = str(caught.value).splitlines()
    assert headline.startswith("erk_densities: broken: ") and word in headline
    assert example.startswith("Smallest counterexample: erk_densities(") and instead


def test_every_property_has_a_function_that_breaks_it(capsys):
    checks.check("erk_densities", erk_densities)
    told = capsys.readouterr().out
    tree = ast.parse(inspect.getsource(watch._CHECKS["erk_densities"]))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    properties = [text for text in texts if len(text) > 12 and text in told and text[0] != " "]  # no ends of f-strings
    assert properties
    for one in properties:
        assert any(word in one for word in WRONG), one


def test_a_stub_is_not_done_yet(capsys):
    def stub(shapes, density):
        raise NotImplementedError

    assert checks.check("erk_densities", stub) is False
    assert capsys.readouterr().out == "not done yet: erk_densities\n"
