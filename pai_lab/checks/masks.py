"""Checks of the first functions that a reader writes: masks from scores, SNIP's formula.

lesson.check("magnitude_mask", my_function)
"""

from collections.abc import Mapping

import torch

from pai_lab.checks.watch import brief, came, checks, is_mask, kept_beats_removed

_SMALL = torch.tensor([[1.0, -4.0], [3.0, -2.0]])
_CONV = torch.linspace(-1, 2, 54).view(3, 2, 3, 3)  # no two of equal size


@checks
def magnitude_mask(function):
    """weight, sparsity -> bool mask of its shape: of n weights the round((1 - sparsity) n) largest stay."""
    cases = [(_SMALL, 0.5), (_SMALL, 0.25), (torch.arange(1.0, 11), 0.9), (_CONV, 0.8)]
    equal = [(torch.ones(1, 2), 0.5), (torch.tensor([[2.0, -2.0, 0.0, 0.0]]), 0.75), (torch.zeros(2, 3), 0.5)]
    three = torch.tensor([1.0, 2.0, 3.0])
    for weight, sparsity in [*cases, (_SMALL, 0.0), (_SMALL, 1.0), *equal, (three, 0.5)]:
        got = function(weight, sparsity)
        yield "returns a bool tensor (True = kept)", is_mask(got), came(got)
        yield "keeps the weight's shape", got.shape == weight.shape, f"returned the shape {tuple(got.shape)}"
    got = function(_SMALL, 0.0)
    yield "sparsity 0 keeps everything", bool(got.all()), came(got)
    got = function(_SMALL, 1.0)
    yield "sparsity 1 removes everything", not got.any(), came(got)
    for weight, sparsity in cases:
        got, n = function(weight, sparsity), weight.numel()
        kept, want = int(got.sum()), round((1 - sparsity) * n)
        instead = f"kept {kept} of {n}, not {want}"
        yield "keeps exactly round((1 - sparsity) * n) weights", kept == want, instead
    for weight, sparsity in cases:
        got = function(weight, sparsity)
        yield "keeps the largest |w|", kept_beats_removed(weight.abs(), got), came(got)
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
        yield "returns a dict with the same layers", same, came(got)
        yield "every mask is a bool tensor (True = kept)", all(map(is_mask, got.values())), came(got)
        fits = all(got[name].shape == scores[name].shape for name in scores)
        shapes = f"returned the shapes {[tuple(m.shape) for m in got.values()]}"
        yield "every mask has the shape of its scores", fits, shapes
    got = function(two, 0.0)
    yield "sparsity 0 keeps everything", all(m.all() for m in got.values()), came(got)
    got = function(two, 1.0)
    yield "sparsity 1 removes everything", not any(m.any() for m in got.values()), came(got)
    for scores, sparsity in cases:
        got = function(scores, sparsity)
        values, keep = (torch.cat([part[name].flatten() for name in scores]) for part in (scores, got))
        word = "one threshold for all layers, and the highest scores stay, signs included"
        yield word, kept_beats_removed(values, keep), came(got)
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
    yield "returns a float tensor", isinstance(got, torch.Tensor) and got.is_floating_point(), came(got)
    yield "keeps the weight's shape", got.shape == w.shape, f"returned the shape {tuple(got.shape)}"
    yield "a weight of 0 scores 0", got[1, 0] == 0, came(got)
    got = function(w, torch.zeros_like(g))
    yield "a gradient of 0 scores 0", not got.any(), came(got)
    got = function(w, g)
    yield "no score is negative", bool((got >= 0).all()), came(got)
    for word, twice in (("weight", function(2 * w, g)), ("gradient", function(w, 2 * g))):
        right = torch.allclose(twice, 2 * got)
        yield f"twice the {word} gives twice the score", right, f"{came(twice)}; before {brief(got)}"
    got = function(w, g)
    yield "equals |weight * gradient|", torch.allclose(got.float(), (w * g).abs()), came(got)
