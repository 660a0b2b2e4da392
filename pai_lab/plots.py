"""Every figure of the house, in one style: a method has the same colour and marker in every lesson.

    pai.plots.accuracy(table, chance=0.1, dense=0.605)  # also mask, density, scores, history, prediction

Each function takes an `ax` or opens a figure of its own, and returns the Axes. The title is left free: write
there what the reader should see. The facts (counts, seeds, what the band is) stand in the caption below the
x-axis. Data are fractions in [0, 1]; percent appears only here.
"""

import math
import textwrap
from collections.abc import Mapping
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter
from matplotlib.transforms import offset_copy

from pai_lab.allocation import allocate
from pai_lab.catalog import nearest
from pai_lab.mask import Mask

INK, QUIET, KEPT, GONE, ALARM, GUESS = "#1a1a1a", "#5f5f5f", "#0072B2", "#C9C9C9", "#C1121F", "#D55E00"
TEXT, SMALL = 16, 13
STYLE = {
    "figure.figsize": (9, 5.2), "figure.dpi": 100, "figure.facecolor": "white", "savefig.facecolor": "white",
    "font.family": "sans-serif", "font.size": TEXT, "axes.labelsize": TEXT, "axes.titlesize": 18,
    "axes.titlelocation": "left", "axes.titlepad": 12, "xtick.labelsize": 15, "ytick.labelsize": 15,
    "axes.facecolor": "white", "axes.edgecolor": QUIET, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": QUIET, "ytick.color": QUIET, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#E3E3E3", "lines.linewidth": 2.5, "lines.markersize": 9, "legend.frameon": False,
}  # fmt: skip

# Okabe and Ito's colours without the yellow (too pale on white), and darker ones after Tol. No two methods
# share colour and marker; those that share a colour belong to different families.
COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #882255 #332288 #999933 #1a1a1a #767676".split()
LOOKS = {
    "dense": ("#1a1a1a", "o"), "random": ("#767676", "X"), "erk": ("#009E73", "P"),
    "magnitude": ("#E69F00", "s"), "snip": ("#D55E00", "^"), "grasp": ("#CC79A7", "D"),
    "synflow": ("#0072B2", "o"), "iterative_snip": ("#56B4E9", "v"), "force": ("#882255", "*"),
    "ntk_sap": ("#332288", "p"), "prospr": ("#999933", "h"), "phew": ("#009E73", "d"),
    "sbp_sr": ("#CC79A7", "p"), "set": ("#E69F00", "v"), "rigl": ("#0072B2", "s"),
}  # fmt: skip
SPARE_MARKERS = ("<", ">", "8", "H")
SILENT = [*backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE), "agg"]
AXIS_ENDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 1)
SPARSITIES = (0, 0.5, 0.8, *(1 - k * 10.0**-d for d in range(1, 7) for k in (1, 0.5, 0.2)))


@contextmanager
def style():
    """A context (or decorator) in which figures have the house's style; the settings are back after it."""
    # Not rc_context: a notebook's backend, loaded by the first figure, turns on that figures are shown, and
    # rc_context would turn it off again.
    before = {key: mpl.rcParams[key] for key in STYLE}
    mpl.rcParams.update(STYLE)
    try:
        yield
    finally:
        mpl.rcParams.update(before)


def looks(methods):
    """Colour and marker of each method: name -> (colour, marker), all different up to 44 unknown names.

    Names in `LOOKS` always look the same. The others, in alphabetical order, take the next colour that nobody
    has in this figure, with a marker that no named method uses.
    """
    chosen = {name: LOOKS[name] for name in methods if name in LOOKS}
    spare = [(colour, marker) for marker in SPARE_MARKERS for colour in COLOURS]
    for name in sorted({name for name in methods if name not in LOOKS}, key=str):
        used = {colour for colour, _ in chosen.values()}
        free = [look for look in spare if look not in chosen.values()] or spare
        chosen[name] = next((look for look in free if look[0] not in used), free[0])
    return {name: chosen[name] for name in methods}


# -- masks -------------------------------------------------------------------------------------------------
@style()
def mask(mask, layer=None, *, ax=None):
    """A mask as a picture: black = kept, white = removed; one row per output, one column per input weight.

    `mask` maps names to bool tensors; a tensor (out, in, k, k) is drawn as (out, in*k*k). `layer` names
    one; without it all layers are drawn, each in a frame of its own (`ax.child_axes`). Long sides (over 512
    weights, over 256 in a small frame) are averaged in blocks, so that the grey is the true density.
    ValueError for an unknown layer.
    """
    mask = Mask(mask)
    table = mask.layers().set_index("layer")
    if layer is None and len(table) > 1:
        return _all_layers(mask, table, ax)
    layer = table.index[0] if layer is None else _layer(layer, table.index)
    ax = _axes(ax)
    down, across = _picture(ax, mask[layer], 512)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel(f"input weights ({' × '.join(map(str, mask[layer].shape[1:]))})")
    ax.set_ylabel(f"outputs ({len(mask[layer])})")
    average = "" if down * across == 1 else f"; one pixel = mean of {down} × {across} weights"
    _caption(ax, f"{_short(layer)}: {_share(table.loc[layer])}; black = kept{average}")
    if not table.loc[layer].kept:
        ax.text(0.5, 0.5, "EMPTY", transform=ax.transAxes, ha="center", color=ALARM, fontweight="bold")
    return ax


def _all_layers(mask, table, ax):
    columns = math.ceil(math.sqrt(len(table)))
    rows = math.ceil(len(table) / columns)
    ax = _axes(ax, (9, max(5.2, 1.7 * rows)))
    ax.set_axis_off()
    width = 0.9 * ax.get_figure(root=True).get_figwidth() * 72 * ax.get_position().width / columns
    size = min(TEXT, width / (0.6 * max(len(_short(name)) for name in table.index)))
    for i, row in enumerate(table.itertuples()):
        y, x = divmod(i, columns)
        small = ax.inset_axes((x / columns, 1 - (y + 0.95) / rows, 0.92 / columns, 0.6 / rows), anchor="NW")
        _picture(small, mask[row.Index], 256)
        small.set(xticks=[], yticks=[])
        alarm = {} if row.kept else {"color": ALARM, "fontweight": "bold"}
        density = percent(row.density) if row.kept else "EMPTY"
        small.set_title(f"{_short(row.Index)}\n{density}", fontsize=size, pad=4, linespacing=1.1, **alarm)
        small.spines[:].set(color=ALARM if alarm else QUIET, linewidth=2.5 if alarm else 0.8)
    ax.text(0.5, -0.01, f"{_share(mask)}; black = kept", transform=ax.transAxes, **_SMALL_PRINT)
    return ax


def _picture(ax, keep, most):
    """Draw one unrolled layer; returns how many rows and columns of weights one pixel stands for."""
    flat = keep.reshape(len(keep), -1).cpu().numpy()
    density, block = _blocks(flat, most)
    (height, width), half = flat.shape, 0.5
    ax.imshow(
        density, cmap="Greys", vmin=0, vmax=1, extent=(-half, width - half, height - half, -half),
        interpolation="antialiased", aspect="equal" if 0.4 < height / width < 2.5 else "auto",
    )  # fmt: skip
    ax.grid(False)
    ax.spines[:].set(visible=True)
    if max(flat.shape) <= 16:  # single weights are visible: separate them
        ax.hlines(np.arange(1, height) - half, -half, width - half, color=GONE, linewidth=1)
        ax.vlines(np.arange(1, width) - half, -half, height - half, color=GONE, linewidth=1)
    return block


def _blocks(flat, most):
    """Means over blocks, such that no side is longer than `most`; the last block of a side may be smaller."""
    density, block = flat.astype(np.float64), tuple(math.ceil(side / most) for side in flat.shape)
    for axis, (side, step) in enumerate(zip(flat.shape, block, strict=True)):
        starts = np.arange(0, side, step)
        sizes = np.diff(np.append(starts, side))
        density = np.add.reduceat(density, starts, axis=axis) / np.expand_dims(sizes, 1 - axis)
    return density, block


@style()
def density(mask, *, ax=None):
    """The density of each layer as bars, kept / total at the right, and an alarm on an emptied layer.

    `mask` maps names to bool tensors. The axis starts at 0 and ends at 100%, or at a round number above the
    densest layer when all are below 20%; the dashed line is the density of the whole network.
    """
    mask = Mask(mask)
    table = mask.layers()
    height = min(0.45 * len(table), 12)
    ax = _axes(ax, (9, 2.2 + height))
    size = min(TEXT, 55 * height / len(table))  # a deep network: smaller print, not a longer page
    ax.barh(table.index, table.density, color=KEPT, height=0.7)
    ax.axvline(mask.density, color=INK, linestyle="--", linewidth=1.5, gid="whole")
    for row in table.itertuples():
        alarm = {} if row.kept else {"color": ALARM, "fontweight": "bold"}
        text = percent(row.density).rjust(7, "\u2007") if row.kept else "EMPTY "  # \u2007: as wide as a digit
        ax.annotate(
            f"{text}  {row.kept:,} / {row.total:,}", (1.02, row.Index), xycoords=ax.get_yaxis_transform(),
            va="center", fontsize=size, annotation_clip=False, gid="label", **alarm,
        )  # fmt: skip
        if alarm:
            ax.plot(0, row.Index, "X", color=ALARM, markersize=13, transform=_shifted(ax, ax.transData, 12))
    end = next(end for end in AXIS_ENDS if table.density.max() <= end)
    ax.set(xlim=(0, end), ylim=(len(table) - 0.5, -0.5))
    ax.set_yticks(table.index, map(_short, table.layer), fontsize=size)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.6g}")
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("weights kept in the layer (%)" + ("" if end == 1 else f", axis ends at {100 * end:g}%"))
    _caption(ax, f"right: kept / total; dashed: whole network, {_share(mask)}")
    return ax


# -- scores ------------------------------------------------------------------------------------------------
@style()
def scores(scores, sparsity=None, layer=None, *, ax=None):
    """Histogram of scores (name -> tensor, higher = keep), cut at `sparsity`: grey goes, blue stays.

    The cut is that of `pai.allocate`: exactly `round((1 - sparsity) * n)` of all given scores stay. `layer`
    shows one layer under this same global cut; for a cut of its own, pass that layer alone. The x-axis is
    logarithmic, and says so, when no score is negative and the positive ones span more than two decades;
    exact zeros then get a bar of their own at the left. ValueError for NaN or inf, an unknown layer, a
    sparsity outside [0, 1].
    """
    layer = None if layer is None else _layer(layer, scores)
    keep = allocate(scores, sparsity or 0, allow_empty=True)
    parts = {name: (_flat(score), _flat(keep[name]) > 0) for name, score in scores.items()}
    values, stays = (np.concatenate(part) for part in zip(*parts.values(), strict=True))
    shown, stay = (values, stays) if layer is None else parts[layer]
    cut, tied = _cut(values, stays)
    ax = _axes(ax)
    edges, zero = _bins(ax, shown, values, cut)
    drawn = np.where(shown == 0, zero, shown)
    kept, gone = (np.histogram(drawn[part], edges)[0] for part in (stay, ~stay))
    ax.stairs(gone, edges, fill=True, color=GONE, gid="removed")
    ax.stairs(gone + kept, edges, baseline=gone, fill=True, color=KEPT, gid="kept")
    ax.set(ylim=(0, 1.3 * (gone + kept).max()), ylabel="number of scores")
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if cut is not None:
        ax.axvline(cut or zero, ymax=0.8, color=INK, linestyle="--", linewidth=2, gid="cut")
    if sparsity is not None:
        bold = {"transform": ax.transAxes, "va": "top", "fontweight": "bold", "gid": "label"}
        ax.text(0.01, 0.98, f"removed {(~stay).sum():,}\n{percent((~stay).mean())}", color=QUIET, **bold)
        ax.text(0.99, 0.98, f"kept {stay.sum():,}\n{percent(stay.mean())}", color=KEPT, ha="right", **bold)
    where = "" if layer is None else f"{_short(layer)} under the cut of all {len(values):,} scores; "
    line = "" if cut is None else f"; dashed: the cut at sparsity {percent(sparsity)}{tied}"
    _caption(ax, f"{where}{len(shown):,} scores{line}")
    return ax


def _flat(tensor):
    return tensor.detach().cpu().double().flatten().numpy()


def _cut(values, stays):
    """A number between the last score that stays and the first that goes, or None; and a word on ties."""
    if stays.all() or not stays.any():
        return None, ""
    last, first = values[stays].min(), values[~stays].max()
    if last == first:
        go, equal = (values[~stays] == last).sum(), (values == last).sum()
        return last, f"; {go:,} of {equal:,} equal scores at the cut go"
    middle = math.sqrt(last * first) if first > 0 else (last + first) / 2
    return (middle if first < middle else last), ""


def _bins(ax, shown, values, cut):
    """Edges of about 60 bins, one at the cut, and where zeros are drawn; logarithmic where it is honest."""
    span = shown if cut is None else np.append(shown, cut)
    above = values[values > 0]
    if values.min() < 0 or not len(above) or above.max() < 100 * above.min():
        ax.set_xlabel("score")
        return _steps(span.min(), span.max(), cut), 0
    ax.set_xscale("log")
    span = np.log(span[span > 0] if (span > 0).any() else above)
    edges = np.exp(_steps(span.min(), span.max(), np.log(cut) if cut else None))
    if cut:
        edges[np.isclose(edges, cut, rtol=1e-9, atol=0)] = cut
    zeros, step = (shown == 0).sum(), edges[1] / edges[0]
    ax.set_xlabel("score, logarithmic axis" + (f" (bar at the left: {zeros:,} exact zeros)" if zeros else ""))
    bar = edges[0] / step ** np.array([4, 2]) if zeros or cut == 0 else []
    return np.concatenate([bar, edges]), edges[0] / step**3


def _steps(low, high, cut):
    """Equal steps over [low, high], one of them at the cut."""
    step = (high - low) / 60 or 0.05 * (abs(low) or 1)
    start = low - step / 2 if cut is None else cut - math.ceil((cut - low) / step + 0.01) * step
    edges = start + step * np.arange(math.ceil((high - start) / step + 0.01) + 1)
    return edges if cut is None else np.where(np.isclose(edges, cut, rtol=0, atol=step / 1e6), cut, edges)


# -- training and results ----------------------------------------------------------------------------------
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
    ax, style, labels = _axes(ax), looks(groups), []
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
    _accuracy_axis(ax, y) if y == "accuracy" else ax.set(ylim=(0, None), ylabel=y)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    n = [table.run.nunique() for table in tables.values()]
    many = "mean ± 1 standard deviation of " if max(n) > 1 else ""
    _caption(ax, f"solid: validation, dashed: training; {many}{_number(n, 'run')}")
    _label_ends(ax, labels)
    return ax


def _epochs(group, y):
    """One table of all rows of a run, or of a list of runs; the column `run` counts them."""
    single = hasattr(group, "history") or (len(group) and isinstance(group[0], Mapping))
    runs = [getattr(run, "history", run) for run in ([group] if single else group)]
    table = pd.DataFrame([dict(row, run=i) for i, rows in enumerate(runs) for row in rows])
    _need(table, ["epoch", f"train_{y}", f"val_{y}"], "history")
    return table


@style()
def accuracy(table, x="sparsity", by="method", *, y=None, band="std", chance=None, dense=None, ax=None):
    """Accuracy against sparsity: per method a line through the means, a band, and the seeds as points.

    `table` is a DataFrame or a list of dicts, one row per run, with the columns `by`, `x`, seed and an
    accuracy: `y`, or else test_accuracy, or else val_accuracy, as fractions. `band` is "std" (the sample's,
    over n - 1) or "minmax". `chance` and `dense` are fractions, drawn as labelled lines. The axis of an `x`
    that ends in "sparsity" is logarithmic in what is left. ValueError for an empty table, a missing column,
    NaN, an accuracy outside [0, 1], a seed that occurs twice.
    """
    table = pd.DataFrame(table)
    y = y or ("test_accuracy" if "test_accuracy" in table else "val_accuracy")
    _check_results(table, x, by, y, {"chance": chance, "dense": dense})
    if band not in ("std", "minmax"):
        raise nearest("band", band, ("std", "minmax"))
    ax, style, labels = _axes(ax), looks(list(table[by].unique())), []
    lines = table.assign(x=table[x].round(6) if x.endswith("sparsity") else table[x])
    for name, (colour, marker) in style.items():
        rows = lines[lines[by] == name]
        at = rows.groupby("x")[y]
        mean = at.mean()
        low, high = (mean - at.std(), mean + at.std()) if band == "std" else (at.min(), at.max())
        ax.fill_between(mean.index, low, high, color=colour, alpha=0.18, linewidth=0, gid=f"{name} band")
        dots = {"markersize": 5, "markeredgewidth": 0, "alpha": 0.45, "gid": f"{name} seeds"}
        ax.plot(rows.x, rows[y], marker, color=colour, **dots)
        ax.plot(mean.index, mean, marker=marker, color=colour, markeredgecolor="white", gid=str(name))
        labels.append((mean.index[-1], mean.iloc[-1], str(name), colour, marker))
    for name, value, line in (("dense", dense, "--"), ("chance", chance, ":")):
        if value is not None:
            ax.axhline(value, color=QUIET, linestyle=line, linewidth=2, zorder=1, gid=f"{name} line")
            labels.append((None, value, f"{name} {percent(value)}", QUIET, None))
    _accuracy_axis(ax, y.replace("_", " "))
    _sparsity_axis(ax, lines.x) if x.endswith("sparsity") else ax.set_xlabel(x.replace("_", " "))
    n = lines.groupby([by, "x"])[y].count()
    what = {"std": "± 1 standard deviation", "minmax": "lowest to highest"}[band]
    seeds = f"line: mean, band: {what}, points: {_number(n, 'seed')}"
    _caption(ax, seeds if n.max() > 1 else f"{_number(n, 'seed')}: a single run per point, so no band")
    _label_ends(ax, labels)
    return ax


def _check_results(table, x, by, y, lines):
    if table.empty:
        raise ValueError("the table of results is empty: there is nothing to draw")
    _need(table, [by, x, "seed", y], "table")
    wrong = table[~table[y].between(0, 1)]
    if len(wrong):
        row = wrong.iloc[0]
        raise ValueError(
            f"{len(wrong)} of {len(table)} rows have no {y} in [0, 1]; the first has {row[y]} "
            f"({by} {row[by]}, {x} {row[x]}, seed {row['seed']}). Data are fractions (0.605, not 60.5); "
            "leave failed runs out"
        )
    if table[[by, x, "seed"]].isna().any(axis=None):
        raise ValueError(f"some rows have no {by}, {x} or seed (NaN): leave them out")
    if x.endswith("sparsity") and not table[x].between(0, 1, inclusive="left").all():
        raise ValueError("sparsity must lie in [0, 1): what is left is drawn on a log scale, and 0 has no place")
    for name, value in lines.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} must be a fraction in [0, 1], got {value}")
    key = [by, x, "seed"]
    if len(twice := table[table.duplicated(key, keep=False)]):
        run = twice.iloc[0]
        same = twice[(twice[key] == run[key]).all(axis=1)]
        measured = ("accuracy", "loss", "seconds")
        differ = [c for c in same if same[c].astype(str).nunique() > 1 and not c.endswith(measured)]
        raise ValueError(
            f"{by} {run[by]}, {x} {run[x]}, seed {run['seed']} occurs {len(same)} times; these rows "
            f"differ in {', '.join(differ) or 'nothing'}. Select rows such that each seed counts once"
        )


@style()
def prediction(answer, truth, unit="", *, ax=None):
    """A prediction beside what was measured, on one line: diamond = predicted (None: skipped), dots = the
    seeds of `truth` (a number or several). With the unit "%" both are fractions."""
    seen = np.atleast_1d(np.asarray(truth, dtype=float))
    ax = _axes(ax, (9, 2.2))
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


# -- what figures share ------------------------------------------------------------------------------------
_SMALL_PRINT = {"ha": "center", "va": "top", "fontsize": SMALL, "color": QUIET, "gid": "caption"}


def _axes(ax, size=None):
    """The Axes to draw on. Where nobody looks (a backend that only writes files) the figure is not handed to
    pyplot, which would keep it, and warn after twenty."""
    if ax is not None:
        return ax
    figure = Figure if plt.get_backend().lower() in SILENT else plt.figure
    return figure(figsize=size, layout="constrained").subplots()


def _short(name):
    return name.removesuffix(".weight")


def _layer(name, allowed):
    """The full name of a layer that may be given as figures show it, without ".weight"."""
    full = name if name in allowed else f"{name}.weight"
    if full not in allowed:
        raise nearest("layer", name, allowed)
    return full


def percent(fraction):
    """'12.3%', with more digits where one would read 0 or 100 and it is not."""
    digits = next((d for d in range(1, 6) if 0 < round(100 * fraction, d) < 100), 1)
    return f"{100 * fraction:.{digits}f}%"


def _share(counts):
    return f"{counts.kept:,} of {counts.total:,} weights kept ({percent(counts.density)})"


def _number(counts, word):
    few, many = min(counts), max(counts)
    return f"n = {few if few == many else f'{few} to {many}'} {word}{'s' * (many != 1)}"


def _need(table, columns, what):
    for column in columns:
        if column not in table:
            raise ValueError(f"the {what} has no column {column!r}; it has: {', '.join(map(str, table)) or 'none'}")


def _caption(ax, text):
    ax.annotate(
        textwrap.fill(text, 66), (0.5, 0), (0, -5), xycoords=ax.xaxis.label, textcoords="offset points",
        annotation_clip=False, **_SMALL_PRINT,
    )  # fmt: skip


def _shifted(ax, transform, points):
    return offset_copy(transform, ax.get_figure(root=True), x=points, units="points")


def _accuracy_axis(ax, name):
    ax.set(ylim=(-0.02, 1.02), yticks=np.linspace(0, 1, 6), ylabel=f"{name} (%)")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))


def _sparsity_axis(ax, values):
    """Equal steps for equal factors in what is left, so that 90, 99 and 99.9 % stand apart."""
    ax.set_xscale("function", functions=(_decades, lambda decades: 1 - 10.0**-decades))
    low, high = values.min(), values.max()
    left, right = _decades(np.array([low, high]))
    room = 0.04 * max(right - left, 0.5)
    ax.set_xlim(1 - 10 ** (room - left), 1 - 10 ** -(right + room))
    ticks = [s for s in SPARSITIES if left - room < _decades(s) < right + room] or sorted({low, high})
    if right - left > 3.2:  # too many to read: whole decades only
        ticks = [s for s in ticks if abs(_decades(s) - round(_decades(s))) < 1e-6]
    ax.set_xticks(ticks, [f"{100 * tick:.7g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("sparsity: weights removed (%), log scale of what is left")


def _decades(sparsity):
    return -np.log10(1 - np.minimum(sparsity, 1 - 1e-9))


def _label_ends(ax, labels):
    """Write names right of the axes, each near the height where its line ends, so that none overlap.

    `labels`: (x where the line ends or None for the right edge, y, text, colour, marker or None)."""
    figure = ax.get_figure(root=True)
    figure.draw_without_rendering()  # settles the layout: now the axes has its height
    box = ax.get_window_extent()
    line = 1.3 * TEXT * figure.dpi / 72
    gap = min(line, box.height / max(len(labels), 1))
    data = ax.transData - ax.transAxes
    ends = [data.transform((ax.get_xlim()[1] if x is None else x, y)) for x, y, *_ in labels]
    heights = spread([y for _, y in ends], gap / box.height, 0, 1)
    for end, height, (_, _, text, colour, marker) in zip(ends, heights, labels, strict=True):
        near, far = _shifted(ax, ax.transAxes, 20), _shifted(ax, ax.transAxes, 32)
        leader = ConnectionPatch(end, (1, height), ax.transAxes, near, color=colour, linewidth=1.2)
        ax.add_artist(leader).set_clip_on(False)
        if marker:
            ax.plot([1], [height], marker, color=colour, transform=near, clip_on=False)
        ax.text(1, height, text, transform=far, va="center", fontsize=TEXT * gap / line, gid="label")


def spread(wanted, gap, low, high):
    """Places nearest to the wanted ones (least squares), in their order, at least `gap` apart, inside
    [low, high] where there is room. Too close neighbours are pooled, as in isotonic regression."""
    order = np.argsort(wanted, kind="stable")
    pools = []
    for rank, i in enumerate(order):
        pools.append((wanted[i] - rank * gap, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    level = np.repeat([a for a, _ in pools], [n for _, n in pools])
    places = np.empty(len(order))
    places[order] = np.clip(level, low, max(low, high - (len(order) - 1) * gap)) + gap * np.arange(len(order))
    return places.tolist()
