"""Checks of functions that a reader writes: each names the first broken property and the smallest counterexample.

check("magnitude_mask", my_function)
"""

import copy
from collections.abc import Mapping

import torch

from pai_lab.catalog import nearest

_CHECKS = {}


def checks(properties):
    """Register a check under the name of the function that is to be written.

    It takes the reader's function, calls it, smallest case first, and yields after a call (property, does it
    hold, what came instead). That inputs stay untouched is checked for all."""
    _CHECKS[properties.__name__] = properties
    return properties


def check(name, function):
    """Check a function that the reader wrote against the properties of `name`.

    All hold: prints them and returns True. One is broken: AssertionError that names the first one and the
    smallest counterexample. The function still raises NotImplementedError: prints "not done yet" and
    returns False.
    """
    if name not in _CHECKS:
        raise nearest("check", name, _CHECKS)
    if not callable(function):
        raise TypeError(f"check({name!r}, ...) takes your function itself, got {function!r}")
    watched, held = _Watched(name, function), []
    try:
        for what, holds, instead in _CHECKS[name](watched):
            if not holds:
                raise _broken(name, what, watched.call, instead)
            held.append(what)
    except NotImplementedError as stub:
        print(f"not done yet: {name}{f' ({stub})' if str(stub) else ''}")
        return False
    print(f"ok: {name}: {', '.join([*dict.fromkeys(held), 'leaves its input untouched'])}")
    return True


class _Watched:
    """The reader's function: keeps the last call in words, and fails if it raises or changes its input."""

    def __init__(self, name, function):
        self.name, self.function, self.call = name, function, ""

    def __call__(self, *inputs):
        given = copy.deepcopy(inputs)  # the check's own stay whole, also for the next run of the cell
        self.call = f"{self.name}({', '.join(map(brief, inputs))})"
        try:
            result = self.function(*given)
        except NotImplementedError:
            raise
        except Exception as error:
            raised = f"raised {type(error).__name__}: {error}"
            raise _broken(self.name, "runs without an error", self.call, raised) from error
        if not same(given, inputs):
            now = f"its input is now: {brief(given)}"
            raise _broken(self.name, "leaves its input untouched", self.call, now)
        return result


def _broken(name, what, call, instead):
    return AssertionError(f"{name}: broken: {what}.\nSmallest counterexample: {call}\n{instead}")


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    return all(map(same, a, b)) if isinstance(a, tuple) else a == b


def brief(value):
    """A value in a few words: small tensors with their numbers, large ones by shape."""
    if isinstance(value, torch.Tensor):
        return str(_rounded(value.tolist())) if value.numel() <= 12 else f"<tensor {tuple(value.shape)}>"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {brief(v)}" for key, v in value.items()) + "}"
    if isinstance(value, tuple):
        return ", ".join(map(brief, value))
    return repr(value)


def _rounded(value):
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return value if isinstance(value, bool) else float(f"{value:.4g}")


def is_mask(got):
    return isinstance(got, torch.Tensor) and got.dtype == torch.bool


def kept_beats_removed(values, keep):
    """Every kept value is at least as large as every removed one."""
    return not keep.any() or bool(keep.all()) or bool(values[keep].min() >= values[~keep].max())


def came(got):
    return f"returned {brief(got)}" + (f" of dtype {got.dtype}" if isinstance(got, torch.Tensor) else "")
