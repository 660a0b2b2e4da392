"""Checks of how a reader splits a budget over layers.

lesson.check("erk_densities", my_function)
"""

from collections.abc import Mapping
from math import isclose, isfinite, prod

from pai_lab.checks.watch import came, checks

_TWO = {"a": (2, 2), "b": (4, 4)}  # wishes 1 and 1/2
_CONV = {"a": (4, 1, 3, 3), "b": (8, 8, 3, 3)}  # 17/36 and 22/576
_LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
# At 0.44 fc3 is full; what it cannot hold then fills fc2 as well.
_CASES = [(_TWO, 0.5), (_TWO, 0.75), (_CONV, 0.1), (_CONV, 0.5), (_LENET, 0.01), (_LENET, 0.1), (_LENET, 0.44)]


@checks
def erk_densities(function):
    """{layer: shape}, density -> {layer: density}: sum(shape) / prod(shape) times one factor, never above 1, and
    density * weights in all."""
    for shapes, density in [({"a": (2, 3)}, 0.5), *_CASES, (_TWO, 1.0)]:
        got = function(shapes, density)
        same = isinstance(got, Mapping) and list(got) == list(shapes)
        yield "returns a dict with the same layers", same, came(got)
        yield "every density is a finite number from 0 on", all(map(_is_density, got.values())), came(got)
    for shapes, density in [({"a": (2, 3)}, 0.5), *_CASES, (_TWO, 1.0)]:
        got = function(shapes, density)
        yield "no layer keeps more than it has", max(map(float, got.values())) <= 1 + 1e-6, came(got)
    for shapes, density in _CASES:
        got, sizes = function(shapes, density), {name: prod(shape) for name, shape in shapes.items()}
        kept, want = sum(float(got[name]) * sizes[name] for name in sizes), density * sum(sizes.values())
        instead = f"{came(got)}: {kept:.6g} weights in all, not {want:.6g}"
        yield "keeps density * weights in all", isclose(kept, want, rel_tol=1e-6), instead
    for shapes, density in _CASES:
        got = function(shapes, density)
        factors = {n: float(got[n]) * prod(shape) / sum(shape) for n, shape in shapes.items()}
        free = [factors[name] for name in shapes if float(got[name]) < 1 - 1e-6]
        instead = f"{came(got)}: divided by sum(shape) / prod(shape) these are {_brief(factors.values())}"
        yield "layers that are not full share one factor", max(free) <= min(free) * (1 + 1e-6), instead
        full = [factors[name] for name in shapes if float(got[name]) >= 1 - 1e-6]
        enough = all(factor <= max(free) * (1 + 1e-6) for factor in full)
        yield "a layer is full only if its share asks for that", enough, instead
    got = function(_TWO, 1.0)
    yield "density 1 keeps everything", all(isclose(float(d), 1, rel_tol=1e-6) for d in got.values()), came(got)


def _is_density(value):
    try:
        return isfinite(float(value)) and float(value) >= 0
    except (TypeError, ValueError):
        return False


def _brief(numbers):
    return ", ".join(f"{number:.4g}" for number in numbers)
