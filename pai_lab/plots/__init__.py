"""Every figure of the house, in one style: a method has the same colour and marker in every lesson.

    pai.plots.accuracy(table, chance=0.1, dense=0.605)  # against sparsity, or x="compression"
    pai.plots.pareto(table, cost="macs")                # also multiples, history, prediction, mask, density, scores

Each function takes an `ax` or opens a figure of its own, and returns the Axes. The title is left free: write
there what the reader should see. The facts (counts, seeds, what the band is) stand in the caption below the
x-axis. Data are fractions in [0, 1]; percent appears only here.
"""

from pai_lab.plots.allocation import budgets
from pai_lab.plots.curves import accuracy, history, multiples, prediction
from pai_lab.plots.duels import duel
from pai_lab.plots.frame import (
    ALARM,
    COLOURS,
    GONE,
    GUESS,
    INK,
    KEPT,
    LOOKS,
    QUIET,
    SILENT,
    SMALL,
    SPARE_MARKERS,
    STYLE,
    TEXT,
    looks,
    percent,
    spread,
    style,
)
from pai_lab.plots.masks import AXIS_ENDS, density, mask, scores
from pai_lab.plots.structures import coupling, kernels
from pai_lab.plots.tradeoff import front, pareto

__all__ = [
    "ALARM", "AXIS_ENDS", "COLOURS", "GONE", "GUESS", "INK", "KEPT", "LOOKS", "QUIET", "SILENT", "SMALL",
    "SPARE_MARKERS", "STYLE", "TEXT", "accuracy", "budgets", "coupling", "density", "duel", "front", "history",
    "kernels", "looks", "mask", "multiples", "pareto", "percent", "prediction", "scores", "spread", "style",
]  # fmt: skip
