"""Training curves, and accuracy against sparsity or compression: means, bands, and every seed.

pai.plots.accuracy(table, x="compression"); pai.plots.multiples(table, columns="data"); pai.plots.history(run)
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pai_lab.catalog import nearest
from pai_lab.plots.frame import (
    GUESS,
    KEPT,
    TEXT,
    accuracy_axis,
    canvas,
    caption,
    count,
    label_ends,
    log_axis,
    looks,
    percent,
    references,
    sparsity_axis,
    style,
)
from pai_lab.plots.tables import means, need, runs

BANDS = {"std": "± 1 standard deviation", "minmax": "lowest to highest"}


# -- training ----------------------------------------------------------------------------------------------
@style()
def history(runs, y="accuracy", *, ax=None):
    """Training curves over epochs: validation solid, training dashed; `y` is accuracy or loss.

    `runs` is one run, a list of runs (seeds: mean and a band of one standard deviation), or a dict label ->
    one of these. A run is a Run, or a list of rows with the columns epoch, train_<y> and val_<y>.
    """
    if y not in ("accuracy", "loss"):
        raise nearest("curve", y, ("accuracy", "loss"))
    groups = runs if isinstance(runs, Mapping) else {"": runs}
    tables = {label: _epochs(group, y) for label, group in groups.items()}
    if not tables:
        raise ValueError("no runs: got an empty dict")
    ax, style, labels = canvas(ax), looks(groups), []
    for label, table in tables.items():
        colour, marker = style[label] if label else (KEPT, "o")
        for name, line, extra in (("train", "--", {"linewidth": 1.8}), ("val", "-", {"marker": marker})):
            by_epoch = table.groupby("epoch")[f"{name}_{y}"]
            mean, std = by_epoch.mean(), by_epoch.std()
            gid, every = f"{label} {name}".strip(), max(len(mean) // 8, 1)
            ax.plot(mean.index, mean, line, color=colour, markevery=every, gid=gid, **extra)
            ax.fill_between(mean.index, mean - std, mean + std, color=colour, alpha=0.18, lw=0, gid=f"{gid} band")
            if mean.notna().any() and (name == "val" or not label):
                text = label or {"train": "training", "val": "validation"}[name]
                labels.append((mean.last_valid_index(), mean.dropna().iloc[-1], text, colour, extra.get("marker")))
    accuracy_axis(ax, y) if y == "accuracy" else ax.set(ylim=(0, None), ylabel=y)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    n = [table.run.nunique() for table in tables.values()]
    many = "mean ± 1 standard deviation of " if max(n) > 1 else ""
    caption(ax, f"solid: validation, dashed: training; {many}{count(n, 'run')}")
    label_ends(ax, labels)
    return ax


def _epochs(group, y):
    """One table of all rows of a run, or of a list of runs; the column `run` counts them."""
    single = hasattr(group, "history") or (len(group) and isinstance(group[0], Mapping))
    runs = [getattr(run, "history", run) for run in ([group] if single else group)]
    table = pd.DataFrame([dict(row, run=i) for i, rows in enumerate(runs) for row in rows])
    need(table, ["epoch", f"train_{y}", f"val_{y}"], "history")
    return table


# -- tables of results -------------------------------------------------------------------------------------
@style()
def accuracy(table, x="sparsity", by="method", *, y=None, band="std", chance=None, dense=None, ax=None):
    """Accuracy against sparsity: per method a line through the means, a band, and the seeds as points.

    `table` is a DataFrame or a list of dicts, one row per run, with the columns `by`, `x`, seed and an
    accuracy: `y`, or else test_accuracy, or else val_accuracy, as fractions. Seeds are averaged that share
    asked_sparsity, or else sparsity. `band` is "std" (the sample's, over n - 1) or "minmax". `chance` and
    `dense` are fractions, drawn as labelled lines. The axis of an `x` that ends in "sparsity" is logarithmic
    in what is left; so is that of x="compression", weights / kept (without these columns: 1 / (1 - sparsity)).
    ValueError for an empty table, a missing column, NaN, an accuracy outside [0, 1], a seed that occurs twice,
    a network with no weights left.
    """
    if band not in BANDS:
        raise nearest("band", band, BANDS)
    drawn, y = runs(table, x, by, y, [("chance", chance), ("dense", dense)])
    ax = canvas(ax)
    labels = _curves(ax, drawn, looks(list(drawn.name.unique())), band) + references(ax, dense, chance)
    accuracy_axis(ax, y.replace("_", " "))
    fit = _x_axis(ax, x, drawn.x)
    caption(ax, _facts(drawn, band))
    label_ends(ax, labels)
    fit()
    return ax


def _curves(ax, drawn, style, band):
    """Line, band and points of each name; returns the labels."""
    labels, points = [], means(drawn)
    for name, (colour, marker) in style.items():
        rows, mean = drawn[drawn.name == name], points[points.name == name]
        if rows.empty:
            continue
        low, high = (mean.y - mean["std"], mean.y + mean["std"]) if band == "std" else (mean.low, mean.high)
        ax.fill_between(mean.x, low, high, color=colour, alpha=0.18, linewidth=0, gid=f"{name} band")
        dots = {"markersize": 5, "markeredgewidth": 0, "alpha": 0.45, "gid": f"{name} seeds"}
        ax.plot(rows.x, rows.y, marker, color=colour, **dots)
        ax.plot(mean.x, mean.y, marker=marker, color=colour, markeredgecolor="white", gid=str(name))
        labels.append((mean.x.iloc[-1], mean.y.iloc[-1], str(name), colour, marker))
    return labels


def _x_axis(ax, x, values):
    """Scale, limits and label; returns what fits the ticks to the width, once the layout is done."""
    if x.endswith("sparsity"):
        return sparsity_axis(ax, values)
    ax.set_xlabel(x.replace("_", " "))
    if x != "compression":
        return lambda: None
    ax.set_xlabel("compression: weights / weights kept, log scale")
    return log_axis(ax, values, lambda factor: f"{factor:.7g}×")


def _facts(drawn, band):
    n = means(drawn).n
    if n.max() == 1:
        return f"{count(n, 'seed')}: a single run per point, so no band"
    return f"line: mean, band: {BANDS[band]}, points: {count(n, 'seed')}"


@style()
def multiples(
    table, columns="data", rows=None, *, x="sparsity", by="method", y=None, band="std", chance=None, dense=None, ax=None
):
    """Accuracy in small panels with common axes: one panel (`ax.child_axes`) per value of the column `columns`.

    With `rows`, the name of another column, the panels are a grid; without it three stand side by side, and then
    the next line begins. `chance` and `dense` are fractions, or dicts from a value of `columns` to one. The rest is
    as in `accuracy`. ValueError also for more than 24 panels, and a dict with a value that the column does not have.
    """
    if band not in BANDS:
        raise nearest("band", band, BANDS)
    within = [columns] if rows is None else [columns, rows]
    lines = {"dense": dense, "chance": chance}
    checks = [(name, v) for name, line in lines.items() for v in (line.values() if _varies(line) else [line])]
    drawn, y = runs(table, x, by, y, checks, within)
    keys, width = _grid(drawn.panel.unique(), rows)
    for line in filter(_varies, lines.values()):
        for value in set(line) - {key[0] for key in keys}:
            raise nearest(columns, value, sorted({key[0] for key in keys}, key=str))
    if len(keys) > 24:
        raise ValueError(f"{len(keys)} panels, for each {' and '.join(within)}, are too many to read: 24 at most")
    ax, panels = _panels(ax, len(keys), width)
    style, ends, fits = looks(list(drawn.name.unique())), [], []
    for panel, key in zip(panels, keys, strict=True):
        labels = _curves(panel, drawn[drawn.panel == key], style, band)
        if not labels:
            panel.text(0.5, 0.5, "no runs", transform=panel.transAxes, ha="center")
        panel.set_title(", ".join(_value(*pair) for pair in zip(within, key, strict=True)), fontsize=TEXT, pad=6)
        accuracy_axis(panel, y.replace("_", " "))
        fits.append(_x_axis(panel, x, drawn.x))
        ends.append(labels + _references(panel, key[0], lines))
    _common_labels(ax, panels, width)
    caption(ax, f"one panel per {' and '.join(within)}; {_facts(drawn, band)}")
    last = max(range(width - 1, len(panels), width), key=lambda i: len(ends[i]))
    written = {label[2] for label in ends[last]}
    missing = [(None, None, str(name), *look) for name, look in style.items() if str(name) not in written]
    label_ends(panels[last], ends[last] + missing, ax)
    for fit in fits:
        fit()
    return ax


def _varies(line):
    return isinstance(line, Mapping)


def _grid(found, rows):
    """All panels' keys, line by line, and how many stand side by side."""
    across, *down = (sorted(set(values), key=lambda v: (isinstance(v, str), v)) for values in zip(*found, strict=True))
    if rows is None:
        return [(value,) for value in across], min(len(across), 3)
    return [(value, row) for row in down[0] for value in across], len(across)


def _references(panel, value, lines):
    """Lines of one panel; where they vary between panels, the words at the right leave out the number."""
    here = {name: line.get(value) if _varies(line) else line for name, line in lines.items()}
    labels = references(panel, **here)
    return [(x, y, text.split()[0] if _varies(lines[text.split()[0]]) else text, *look) for x, y, text, *look in labels]


def _value(column, value):
    return value if isinstance(value, str) else f"{column} {value}".replace("_", " ")


def _panels(ax, number, width):
    """The Axes, invisible, with so many panels inside, at most `width` side by side."""
    height = math.ceil(number / width)
    ax = canvas(ax, (7 + 2 * width, 2 + 3.2 * height))
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    inch = ax.get_figure(root=True).dpi / ax.get_window_extent().height
    w, h = (1 + 0.03) / width, (1 + 0.1 * inch) / height
    places = [(i % width * w, 1 - (i // width + 1) * h + 0.1 * inch) for i in range(number)]
    return ax, [ax.inset_axes((left, low, w - 0.03, h - 0.5 * inch)) for left, low in places]


def _common_labels(ax, panels, width):
    """One label per axis for all panels; numbers only at the left, and where no panel is below."""
    ax.set_xlabel(panels[0].get_xlabel(), labelpad=30)
    ax.set_ylabel(panels[0].get_ylabel(), labelpad=42)
    for i, panel in enumerate(panels):
        panel.set(xlabel="", ylabel="")
        panel.tick_params(labelleft=i % width == 0, labelbottom=i + width >= len(panels))


@style()
def prediction(answer, truth, unit="", *, ax=None):
    """A prediction beside what was measured, on one line: diamond = predicted (None: skipped), dots = the
    seeds of `truth` (a number or several). With the unit "%" both are fractions."""
    seen = np.atleast_1d(np.asarray(truth, dtype=float))
    ax = canvas(ax, (9, 2.2))
    ax.plot(seen, np.zeros_like(seen), "o", color=KEPT, alpha=0.6, markersize=11, gid="measured")
    spots = [(seen.mean(), "measured", KEPT, 16)]
    if answer is not None:
        ax.plot([answer], [0], "D", color=GUESS, markersize=13, gid="predicted")
        spots.append((answer, "predicted", GUESS, -16))
    for value, word, colour, lift in spots:
        number = percent(value) if unit == "%" else f"{value:.4g} {unit}".strip()
        ax.annotate(
            f"{word} {number}", (value, 0), (0, lift), textcoords="offset points", color=colour, ha="center",
            va="bottom" if lift > 0 else "top", fontweight="bold", annotation_clip=False, gid="label",
        )  # fmt: skip
    ax.set(ylim=(-1, 1), yticks=[], xlabel="" if unit == "%" else unit)
    ax.margins(x=0.2)
    if unit == "%":
        ax.set_xlim(-0.02, 1.02)
        ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.spines["left"].set_visible(False)
    return ax
