"""Ways to spend one budget, side by side: the density of each layer, empty layers, and the multiply-adds that are left.

pai.plots.budgets({"uniform": a, "erk": b}, pai.macs(model))
"""

import numpy as np
from matplotlib.colors import LogNorm

from pai_lab.mask import Mask
from pai_lab.plots.frame import ALARM, GONE, INK, KEPT, SMALL, TEXT, canvas, caption, percent, style

NOTHING = "#F9E3E4"  # behind an empty layer


@style()
def budgets(masks, macs=None, *, ax=None):
    """A table of densities: one row per mask, one column per layer; the darker, the denser; EMPTY in red.

    `masks` maps labels to masks of one net. `macs` maps its layers to their dense multiply-adds (`pai.macs(model)`):
    bars at the right then show the share that is left if every zero is skipped (in an inset, `ax.child_axes`).
    ValueError if there is no mask, if they have different layers, or if `macs` lacks one of them.
    """
    tables = {label: Mask(mask).layers().set_index("layer") for label, mask in masks.items()}
    layers, total = _common(tables, macs)
    density = np.array([table.density for table in tables.values()])
    ax = canvas(ax, (1.15 * len(layers) + (6.2 if macs else 3.4), 0.52 * len(tables) + 2.4))
    shown = np.ma.masked_equal(density, 0)
    shades = LogNorm(min(shown.min(), 0.1), 1) if shown.count() else None
    ax.imshow(shown, cmap="Blues", norm=shades, aspect="auto", gid="densities")
    ax.set_facecolor(NOTHING)
    for edge in range(1, len(layers)):
        ax.axvline(edge - 0.5, color="white", linewidth=1.5)
    for edge in range(1, len(tables)):
        ax.axhline(edge - 0.5, color="white", linewidth=3)
    for (row, column), value in np.ndenumerate(density):
        text = {"color": "white" if value > 0.25 else INK} if value else {"color": ALARM, "fontweight": "bold"}
        word = percent(value) if value else "EMPTY"
        ax.text(column, row, word, ha="center", va="center", fontsize=SMALL, gid="density", **text)
    names = [f"{name.removesuffix('.weight')}\n{count:,}" for name, count in zip(layers, total, strict=True)]
    ax.set_xticks(range(len(layers)), names, fontsize=SMALL)
    ax.set_yticks(range(len(tables)), tables, fontsize=TEXT)
    ax.grid(False)
    ax.tick_params(length=0)
    ax.set_xlabel("layer, and the weights it has")
    kept = sorted({int(table.kept.sum()) for table in tables.values()})
    number = f"{kept[0]:,}" + (f" to {kept[-1]:,}" if len(kept) > 1 else "")
    whole = int(total.sum())
    caption(ax, f"each row keeps {number} of {whole:,} weights; in the cells: the share of a layer that is kept")
    if macs:
        _bars(ax, density @ np.array([macs[name] for name in layers]) / sum(macs[name] for name in layers))
    return ax


def _common(tables, macs):
    """The layers that all masks have, and how many weights each has."""
    if not tables:
        raise ValueError("no masks: budgets compares at least one, {label: mask}")
    first_label, first = next(iter(tables.items()))
    for label, table in tables.items():
        if not table.total.equals(first.total):
            raise ValueError(
                f"the masks of {first_label!r} and {label!r} have different layers: compare masks of one net"
            )
    if missing := [name for name in first.index if macs is not None and name not in macs]:
        raise ValueError(f"macs lacks {', '.join(missing)}; pai.macs(model) has each layer")
    return list(first.index), first.total


def _bars(ax, shares):
    """Bars right of the table, row by row: the share of the dense multiply-adds that is left."""
    side = ax.inset_axes((1.04, 0, 0.38, 1))
    side.barh(range(len(shares)), shares, color=KEPT, height=0.6, gid="macs")
    for row, share in enumerate(shares):
        side.annotate(percent(share), (share, row), (5, 0), textcoords="offset points", va="center", fontsize=SMALL)
    side.set(ylim=ax.get_ylim(), xlim=(0, 1.35 * max(*shares, 1e-3)), yticks=[], xticks=[])
    side.set_xlabel("multiply-adds left\n(share of the dense net's)", fontsize=SMALL)
    side.grid(False)
    side.spines[["bottom"]].set_visible(False)
    side.spines["left"].set_color(GONE)
