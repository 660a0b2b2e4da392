"""What all figures share: the style, one look per method, axes, captions, and labels that do not overlap.

with pai.plots.style(): ...
"""

import math
import textwrap
from contextlib import contextmanager
from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import offset_copy

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


# -- the parts of a figure --------------------------------------------------------------------------------
SMALL_PRINT = {"ha": "center", "va": "top", "fontsize": SMALL, "color": QUIET, "gid": "caption"}


def canvas(ax, size=None):
    """The Axes to draw on. Where nobody looks (a backend that only writes files) the figure is not handed to
    pyplot, which would keep it, and warn after twenty."""
    if ax is not None:
        return ax
    figure = Figure if plt.get_backend().lower() in SILENT else plt.figure
    return figure(figsize=size, layout="constrained").subplots()


def percent(fraction):
    """'12.3%', with more digits where one would read 0 or 100 and it is not."""
    digits = next((d for d in range(1, 6) if 0 < round(100 * fraction, d) < 100), 1)
    return f"{100 * fraction:.{digits}f}%"


def count(counts, word):
    few, many = min(counts), max(counts)
    return f"n = {few if few == many else f'{few} to {many}'} {word}{'s' * (many != 1)}"


def caption(ax, text):
    ax.annotate(
        textwrap.fill(text, 66), (0.5, 0), (0, -5), xycoords=ax.xaxis.label, textcoords="offset points",
        annotation_clip=False, **SMALL_PRINT,
    )  # fmt: skip


def shifted(ax, transform, points):
    return offset_copy(transform, ax.get_figure(root=True), x=points, units="points")


def accuracy_axis(ax, name):
    ax.set(ylim=(-0.02, 1.02), yticks=np.linspace(0, 1, 6), ylabel=f"{name} (%)")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))


def references(ax, dense=None, chance=None):
    """Lines across the axes at two accuracies, if they are given; returns their labels for `label_ends`."""
    labels = []
    for name, value, line in (("dense", dense, "--"), ("chance", chance, ":")):
        if value is not None:
            ax.axhline(value, color=QUIET, linestyle=line, linewidth=2, zorder=1, gid=f"{name} line")
            labels.append((None, value, f"{name} {percent(value)}", QUIET, None))
    return labels


def sparsity_axis(ax, values):
    """Equal steps for equal factors in what is left, so that 90, 99 and 99.9 % stand apart. Returns `fit`."""
    ax.set_xscale("function", functions=(_decades, lambda decades: 1 - 10.0**-decades))
    ax.set_xlabel("sparsity: weights removed (%), log scale of what is left")
    low, high = (10 ** _decades(end) for end in (values.min(), values.max()))
    return _log_ticks(ax, low, high, lambda factor: 1 - 1 / factor, lambda sparsity: f"{100 * sparsity:.7g}")


def _decades(sparsity):
    return -np.log10(1 - np.minimum(sparsity, 1 - 1e-9))


def log_axis(ax, values, text):
    """A logarithmic axis around all values; `text` turns a tick into its label. Returns `fit`."""
    ax.set_xscale("log")
    return _log_ticks(ax, values.min(), values.max(), lambda value: value, text)


def _log_ticks(ax, low, high, place, text):
    """Limits around [low, high], ticks at 1, 2, 5, 10, 20, ... of which `fit()` labels what the width has room for.

    The width is known after the layout, so `fit` is returned, to be called again."""
    room = max(high / low, 10**0.5) ** 0.04
    start, stop = low / room, high * room
    every, tens = (_round_numbers(start, stop, steps) for steps in ((1, 2, 5), (1,)))
    every = every or sorted({low, high})
    ax.set_xlim(place(start), place(stop))

    def fit():
        decade = ax.get_window_extent().width * 72 / ax.get_figure(root=True).dpi / math.log10(stop / start)
        few = (some for some in (every, tens, tens[::2]) if some and _apart(some, map(text, map(place, some)), decade))
        ticks = next(few, every[:1])
        ax.set_xticks([place(tick) for tick in ticks], [text(place(tick)) for tick in ticks])
        ax.set_xticks([place(tick) for tick in every if tick not in ticks], minor=True)

    fit()
    return fit


def _round_numbers(low, high, steps):
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [k * 10.0**power for power in powers for k in steps if low < k * 10.0**power < high]


def _apart(ticks, texts, decade):
    """Whether labels keep apart where a decade is so many points wide: a digit has 0.64 of the text's height."""
    ends = [(decade * math.log10(tick), 0.32 * 15 * len(text) + 4) for tick, text in zip(ticks, texts, strict=True)]
    return all(b - a > half + other for (a, half), (b, other) in pairwise(ends))


def label_ends(ax, labels, around=None):
    """Write names right of the axes, each near the height where its line ends, so that none overlap.

    `labels`: (x where the line ends or None for the right edge, y or None for no line, text, colour, marker or
    None). They may use the height of `around`, an Axes that holds `ax`."""
    figure = ax.get_figure(root=True)
    near, far = shifted(ax, ax.transAxes, 20), shifted(ax, ax.transAxes, 32)
    texts = [ax.text(1, 0.5, text, transform=far, va="center", gid="label") for _, _, text, *_ in labels]
    figure.draw_without_rendering()  # settles the layout: now the axes has its height
    box, room = ax.get_window_extent(), (around or ax).get_window_extent()
    line = 1.3 * TEXT * figure.dpi / 72
    gap = min(line, room.height / max(len(labels), 1))
    data = ax.transData - ax.transAxes
    ends = [(1, 0) if y is None else data.transform((ax.get_xlim()[1] if x is None else x, y)) for x, y, *_ in labels]
    low, high = (room.y0 - box.y0) / box.height, (room.y1 - box.y0) / box.height
    heights = spread([y for _, y in ends], gap / box.height, low, high)
    for written, end, height, (_, y, _, colour, marker) in zip(texts, ends, heights, labels, strict=True):
        written.set(y=height, fontsize=TEXT * gap / line)
        if y is not None:
            leader = ConnectionPatch(end, (1, height), ax.transAxes, near, color=colour, linewidth=1.2)
            ax.add_artist(leader).set_clip_on(False)
        if marker:
            ax.plot([1], [height], marker, color=colour, transform=near, clip_on=False)


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
