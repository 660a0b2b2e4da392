"""Masks and scores as pictures: what is kept, where, and why.

pai.plots.mask(mask); pai.plots.density(mask); pai.plots.scores(scores, 0.9)
"""

import math

import numpy as np
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from pai_lab.allocation import allocate
from pai_lab.catalog import nearest
from pai_lab.mask import Mask
from pai_lab.plots.frame import (
    ALARM,
    GONE,
    INK,
    KEPT,
    QUIET,
    SMALL_PRINT,
    TEXT,
    canvas,
    caption,
    percent,
    shifted,
    style,
)

AXIS_ENDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 1)


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
    ax = canvas(ax)
    down, across = _picture(ax, mask[layer], 512)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel(f"input weights ({' × '.join(map(str, mask[layer].shape[1:]))})")
    ax.set_ylabel(f"outputs ({len(mask[layer])})")
    average = "" if down * across == 1 else f"; one pixel = mean of {down} × {across} weights"
    caption(ax, f"{_short(layer)}: {_share(table.loc[layer])}; black = kept{average}")
    if not table.loc[layer].kept:
        ax.text(0.5, 0.5, "EMPTY", transform=ax.transAxes, ha="center", color=ALARM, fontweight="bold")
    return ax


def _all_layers(mask, table, ax):
    columns = math.ceil(math.sqrt(len(table)))
    rows = math.ceil(len(table) / columns)
    ax = canvas(ax, (9, max(5.2, 1.7 * rows)))
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
    ax.text(0.5, -0.01, f"{_share(mask)}; black = kept", transform=ax.transAxes, **SMALL_PRINT)
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
    ax = canvas(ax, (9, 2.2 + height))
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
            ax.plot(0, row.Index, "X", color=ALARM, markersize=13, transform=shifted(ax, ax.transData, 12))
    end = next(end for end in AXIS_ENDS if table.density.max() <= end)
    ax.set(xlim=(0, end), ylim=(len(table) - 0.5, -0.5))
    ax.set_yticks(table.index, map(_short, table.layer), fontsize=size)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.6g}")
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("weights kept in the layer (%)" + ("" if end == 1 else f", axis ends at {100 * end:g}%"))
    caption(ax, f"right: kept / total; dashed: whole network, {_share(mask)}")
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
    ax = canvas(ax)
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
    caption(ax, f"{where}{len(shown):,} scores{line}")
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


def _short(name):
    return name.removesuffix(".weight")


def _layer(name, allowed):
    """The full name of a layer that may be given as figures show it, without ".weight"."""
    full = name if name in allowed else f"{name}.weight"
    if full not in allowed:
        raise nearest("layer", name, allowed)
    return full


def _share(counts):
    return f"{counts.kept:,} of {counts.total:,} weights kept ({percent(counts.density)})"
