"""Checks of what a reader writes about structures: 2:4 masks.

lesson.check("two_of_four", my_function)
"""

import torch

from pai_lab.checks.watch import came, checks, is_mask, kept_beats_removed

_ROW = torch.tensor([[1.0, 4.0, 3.0, 2.0]])
_SIGNED = torch.tensor([[-5.0, 1.0, -2.0, -3.0]])
_TWO_GROUPS = torch.tensor([[8.0, 7.0, 6.0, 5.0, 1.0, 2.0, 3.0, 4.0], [1.0, -8.0, 2.0, 7.0, 3.0, 6.0, -4.0, 5.0]])
_TIES = torch.tensor([[2.0, 2.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
_CONV = torch.tensor([3.0, 9.0, 1.0, 4.0, 7.0, 2.0, 8.0, 6.0]).view(1, 4, 1, 2)  # two places, four inputs


@checks
def two_of_four(function):
    """scores (out, in) or (out, in, kh, kw) -> bool mask of that shape: of every four consecutive inputs the two with
    the highest scores stay, for a convolution at each place of the kernel."""
    for scores in (_ROW, _SIGNED, _TWO_GROUPS, _TIES, _CONV):
        got = function(scores)
        yield "returns a bool tensor (True = kept)", is_mask(got), came(got)
        yield "keeps the shape of the scores", got.shape == scores.shape, f"returned the shape {tuple(got.shape)}"
    for scores in (_ROW, _TWO_GROUPS):
        got = function(scores)
        yield "keeps two of every four consecutive inputs", _two_each(got), came(got)
    for scores in (_ROW, _SIGNED, _TWO_GROUPS):
        got = function(scores)
        yield "keeps the two highest scores of each four, signs included", _best(scores, got), came(got)
    got = function(_TIES)
    yield "keeps exactly two also among equal scores", _two_each(got), came(got)
    got = function(_CONV)
    right = _two_each(got) and _best(_CONV, got)
    yield "a convolution's fours run along its input channels, place by place", right, came(got)


def _fours(tensor):
    return tensor.movedim(1, -1).reshape(-1, 4)


def _two_each(got):
    return bool((_fours(got).sum(1) == 2).all())


def _best(scores, got):
    return all(kept_beats_removed(*four) for four in zip(_fours(scores), _fours(got), strict=True))
