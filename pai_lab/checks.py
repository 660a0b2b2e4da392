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
        self.call = f"{self.name}({', '.join(map(_brief, inputs))})"
        try:
            result = self.function(*given)
        except NotImplementedError:
            raise
        except Exception as error:
            raised = f"raised {type(error).__name__}: {error}"
            raise _broken(self.name, "runs without an error", self.call, raised) from error
        if not _same(given, inputs):
            now = f"its input is now: {_brief(given)}"
            raise _broken(self.name, "leaves its input untouched", self.call, now)
        return result


def _broken(name, what, call, instead):
    return AssertionError(f"{name}: broken: {what}.\nSmallest counterexample: {call}\n{instead}")


def _same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(_same(a[name], b[name]) for name in a)
    return all(map(_same, a, b)) if isinstance(a, tuple) else a == b


def _brief(value):
    """A value in a few words: small tensors with their numbers, large ones by shape."""
    if isinstance(value, torch.Tensor):
        return str(_rounded(value.tolist())) if value.numel() <= 12 else f"<tensor {tuple(value.shape)}>"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_brief(v)}" for key, v in value.items()) + "}"
    if isinstance(value, tuple):
        return ", ".join(map(_brief, value))
    return repr(value)


def _rounded(value):
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return value if isinstance(value, bool) else float(f"{value:.4g}")


_SMALL = torch.tensor([[1.0, -4.0], [3.0, -2.0]])
_CONV = torch.linspace(-1, 2, 54).view(3, 2, 3, 3)  # no two of equal size


def _is_mask(got):
    return isinstance(got, torch.Tensor) and got.dtype == torch.bool


def _kept_beats_removed(values, keep):
    """Every kept value is at least as large as every removed one."""
    return not keep.any() or bool(keep.all()) or bool(values[keep].min() >= values[~keep].max())


def _came(got):
    return f"returned {_brief(got)}" + (f" of dtype {got.dtype}" if isinstance(got, torch.Tensor) else "")


@checks
def magnitude_mask(function):
    """weight, sparsity -> bool mask of its shape: of n weights the round((1 - sparsity) n) largest stay."""
    cases = [(_SMALL, 0.5), (_SMALL, 0.25), (torch.arange(1.0, 11), 0.9), (_CONV, 0.8)]
    equal = [(torch.ones(1, 2), 0.5), (torch.tensor([[2.0, -2.0, 0.0, 0.0]]), 0.75), (torch.zeros(2, 3), 0.5)]
    three = torch.tensor([1.0, 2.0, 3.0])
    for weight, sparsity in [*cases, (_SMALL, 0.0), (_SMALL, 1.0), *equal, (three, 0.5)]:
        got = function(weight, sparsity)
        yield "returns a bool tensor (True = kept)", _is_mask(got), _came(got)
        yield "keeps the weight's shape", got.shape == weight.shape, f"returned the shape {tuple(got.shape)}"
    got = function(_SMALL, 0.0)
    yield "sparsity 0 keeps everything", bool(got.all()), _came(got)
    got = function(_SMALL, 1.0)
    yield "sparsity 1 removes everything", not got.any(), _came(got)
    for weight, sparsity in cases:
        got, n = function(weight, sparsity), weight.numel()
        kept, want = int(got.sum()), round((1 - sparsity) * n)
        instead = f"kept {kept} of {n}, not {want}"
        yield "keeps exactly round((1 - sparsity) * n) weights", kept == want, instead
    for weight, sparsity in cases:
        got = function(weight, sparsity)
        yield "keeps the largest |w|", _kept_beats_removed(weight.abs(), got), _came(got)
    for weight, sparsity in equal:
        kept, want = int(function(weight, sparsity).sum()), round((1 - sparsity) * weight.numel())
        yield "the count is exact also among equal weights", kept == want, f"kept {kept}, not {want}"
    kept = int(function(three, 0.5).sum())
    yield "rounds the number of kept weights: round(1.5) = 2", kept == 2, f"kept {kept}, not 2"


@checks
def global_masks(function):
    """{layer: scores}, sparsity -> {layer: bool mask}: the best of all layers together stay."""
    two = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([[3.0, 4.0]])}
    signed = {"a": torch.tensor([-3.0, 1.0]), "b": torch.tensor([[-2.0], [2.0]])}
    many = {"a": _CONV, "b": 3 * _SMALL, "c": -_CONV.flatten()[:20] / 7}
    ties = {"a": torch.ones(1, 2), "b": torch.ones(3)}
    cases = [(two, 0.5), (signed, 0.5), (many, 0.9)]
    for scores, sparsity in [*cases, (two, 0.0), (two, 1.0), (ties, 0.4)]:
        got = function(scores, sparsity)
        same = isinstance(got, Mapping) and list(got) == list(scores)
        yield "returns a dict with the same layers", same, _came(got)
        yield "every mask is a bool tensor (True = kept)", all(map(_is_mask, got.values())), _came(got)
        fits = all(got[name].shape == scores[name].shape for name in scores)
        shapes = f"returned the shapes {[tuple(m.shape) for m in got.values()]}"
        yield "every mask has the shape of its scores", fits, shapes
    got = function(two, 0.0)
    yield "sparsity 0 keeps everything", all(m.all() for m in got.values()), _came(got)
    got = function(two, 1.0)
    yield "sparsity 1 removes everything", not any(m.any() for m in got.values()), _came(got)
    for scores, sparsity in cases:
        got = function(scores, sparsity)
        values, keep = (torch.cat([part[name].flatten() for name in scores]) for part in (scores, got))
        word = "one threshold for all layers, and the highest scores stay, signs included"
        yield word, _kept_beats_removed(values, keep), _came(got)
    for scores, sparsity in [*cases, (ties, 0.4)]:
        got, n = function(scores, sparsity), sum(s.numel() for s in scores.values())
        kept, want = sum(int(m.sum()) for m in got.values()), round((1 - sparsity) * n)
        also = ", also among equal scores" if scores is ties else ""
        word = f"keeps exactly round((1 - sparsity) * n) in total{also}"
        yield word, kept == want, f"kept {kept} of {n}, not {want}"


@checks
def snip_score(function):
    """weight, gradient -> |weight * gradient|, elementwise."""
    w, g = torch.tensor([[2.0, -3.0], [0.0, 1.0]]), torch.tensor([[5.0, 1.0], [7.0, -2.0]])
    got = function(w, g)
    yield "returns a float tensor", isinstance(got, torch.Tensor) and got.is_floating_point(), _came(got)
    yield "keeps the weight's shape", got.shape == w.shape, f"returned the shape {tuple(got.shape)}"
    yield "a weight of 0 scores 0", got[1, 0] == 0, _came(got)
    got = function(w, torch.zeros_like(g))
    yield "a gradient of 0 scores 0", not got.any(), _came(got)
    got = function(w, g)
    yield "no score is negative", bool((got >= 0).all()), _came(got)
    for word, twice in (("weight", function(2 * w, g)), ("gradient", function(w, 2 * g))):
        right = torch.allclose(twice, 2 * got)
        yield f"twice the {word} gives twice the score", right, f"{_came(twice)}; before {_brief(got)}"
    got = function(w, g)
    yield "equals |weight * gradient|", torch.allclose(got.float(), (w * g).abs()), _came(got)
