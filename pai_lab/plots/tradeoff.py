"""What accuracy costs: every method's points, and the front that no point beats.

pai.plots.pareto(table, cost="macs"); pai.plots.front(table, cost="bytes")
"""

import math

import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter

from pai_lab.catalog import nearest
from pai_lab.plots.frame import (
    INK,
    QUIET,
    SMALL,
    accuracy_axis,
    canvas,
    caption,
    count,
    label_ends,
    log_axis,
    looks,
    references,
    style,
)
from pai_lab.plots.tables import means, need, runs

# What is left, what the dense network has, and how it is called.
COSTS = {
    "macs": ("sparse_macs", "macs", "multiply-adds left"),
    "bytes": ("bitmap_bytes", "dense_bytes", "bytes left"),
    "weights": ("kept", "weights", "weights left"),
}
ASSUMED = {
    "macs": "; multiply-adds left if every zero is skipped",
    "bytes": "; bytes left if a bitmap and the kept weights are stored",
    "weights": "",
}


def front(table, cost="macs", by="method", *, y=None):
    """The Pareto front over all methods, by increasing cost: the points that no other point beats.

    A point is the mean over the seeds of one `by` and one asked_sparsity (or else sparsity): its accuracy, and the
    cost that is left, "macs" (column sparse_macs), "bytes" (bitmap_bytes) or "weights" (kept). Another beats it that
    costs no more and is no less accurate, and better in one of both. DataFrame(`by`, sparsity, cost, accuracy, n),
    under the names of the table's columns. The means are noisy, and a front picks the lucky ones: choose with
    y="val_accuracy". ValueError as in `pareto`.
    """
    drawn, y = _drawn(table, cost, by, y)
    best = _best(means(drawn))
    point = "asked_sparsity" if "asked_sparsity" in pd.DataFrame(table) else "sparsity"
    names = {"name": by, "point": point, "x": COSTS[cost][0], "y": y, "n": "n"}
    return best[list(names)].rename(columns=names).reset_index(drop=True)


def _drawn(table, cost, by, y, lines=()):
    if cost not in COSTS:
        raise nearest("cost", cost, COSTS)
    column = COSTS[cost][0]
    drawn, y = runs(table, column, by, y, lines)
    if not (drawn.x > 0).all():
        raise ValueError(f"{column} must be above 0: costs are drawn on a log scale, and 0 has no place")
    return drawn, y


def _best(points):
    """Of points with x and y, those that no other beats, along x; equal points stay together."""
    highest = points.groupby("x").y.max()
    cheaper = highest.cummax().shift(fill_value=-np.inf)
    return points[(points.y == points.x.map(highest)) & (points.y > points.x.map(cheaper))].sort_values("x")


@style()
def pareto(table, cost="macs", by="method", *, y=None, chance=None, dense=None, ax=None):
    """Accuracy against the cost that is left, on a log axis, cheaper to the right: means, seeds, Pareto front.

    `cost` is "macs" (the column sparse_macs), "bytes" (bitmap_bytes) or "weights" (kept); the dense network's cost
    (macs, dense_bytes, weights) is a vertical line. The front is a step: at each cost, the best mean accuracy that
    this cost or less buys; `front` gives its points. The rest, and the errors, are as in `accuracy`. ValueError also
    for a cost that is not above 0.
    """
    drawn, y = _drawn(table, cost, by, y, [("chance", chance), ("dense", dense)])
    full = COSTS[cost][1]
    need(pd.DataFrame(table), [full], "table")
    whole = np.sort(pd.DataFrame(table)[full].unique())
    ax, labels, points = canvas(ax), [], means(drawn)
    best, reach = _best(points), [*drawn.x, *whole]
    step = {"drawstyle": "steps-post", "color": INK, "linewidth": 3, "gid": "front"}
    ax.plot([*best.x, max(reach)], [*best.y, best.y.iloc[-1]], **step)
    for name, (colour, marker) in looks(list(drawn.name.unique())).items():
        rows, mean = drawn[drawn.name == name], points[points.name == name]
        dots = {"markersize": 5, "markeredgewidth": 0, "alpha": 0.45, "gid": f"{name} seeds"}
        ax.plot(rows.x, rows.y, marker, color=colour, **dots)
        ax.plot(mean.x, mean.y, marker, color=colour, markeredgecolor="white", gid=str(name))
        labels.append((mean.x.iloc[0], mean.y.iloc[0], str(name), colour, marker))
    labels.append((best.x.iloc[0], best.y.iloc[0], "Pareto front", INK, None))
    labels += references(ax, dense, chance)
    accuracy_axis(ax, y.replace("_", " "))
    fit = log_axis(ax, pd.Series(reach), short_number)
    ax.invert_xaxis()
    _dense_costs(ax, whole)
    ax.set_xlabel(f"{COSTS[cost][2]}, log scale: fewer to the right")
    what = "large points: means, small:" if points.n.max() > 1 else "a single run per point,"
    caption(ax, f"{what} {count(points.n, 'seed')}; step: the best for this cost or less{ASSUMED[cost]}")
    label_ends(ax, labels)
    fit()
    return ax


def _dense_costs(ax, costs):
    """A vertical line per dense cost; the words stand one above the other, so that none overlap."""
    for i, cost in enumerate(costs):
        ax.axvline(cost, color=QUIET, linestyle="--", linewidth=1.5, zorder=1, gid="dense cost")
        ax.annotate(
            f"dense {short_number(cost)}", (cost, 0), (6, 4 + 1.3 * SMALL * i), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=SMALL, color=QUIET, va="bottom", gid="dense cost label",
        )  # fmt: skip


def short_number(number):
    """'55.6k', '1.2M': three digits, rounded, and the thousands as a letter."""
    if not number:
        return "0"
    digits = 2 - math.floor(math.log10(abs(number)))
    return EngFormatter(sep="")(round(float(number), digits))
