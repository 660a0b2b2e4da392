"""Scores that look at nothing but the weights, or at nothing at all.

pai.score(model, "magnitude")["0.weight"]
"""

import torch

from pai_lab.catalog import criterion
from pai_lab.functional import prunable

BOTH = {"when": "before, after", "needs": "nothing", "cost": "0"}


@criterion(criterion="U(0, 1)", family="random", defaults={"reduce": "first"}, **BOTH)
def random(model, batch, mask):
    """A uniform number per weight (one per unit for larger structures): the baseline of every comparison. 0 FB."""
    return {name: torch.rand(w.shape, dtype=torch.float32).to(w.device) for name, w in prunable(model).items()}


@criterion(
    criterion="|w|", family="magnitude", paper="Han et al., Learning both weights and connections", year=2015, **BOTH
)
def magnitude(model, batch, mask):
    """|w|. With BatchNorm a filter's scale is free, so a global ranking of |w| is a convention, not a fact. 0 FB."""
    return {name: w.detach().abs() for name, w in prunable(model).items()}
