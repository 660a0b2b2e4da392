"""What goes together, as pictures: masks of one convolution kernel by kernel, and the tensors that one channel touches.

pai.plots.kernels({"filter": mask, "2:4": other}, "conv2"); pai.plots.coupling(channels(model), "conv2.weight", 3)
"""

import math

import numpy as np
import torch

from pai_lab.catalog import nearest
from pai_lab.mask import Mask
from pai_lab.plots.frame import ALARM, GONE, QUIET, SMALL, SMALL_PRINT, TEXT, canvas, percent, style

BEHIND = "#E9EEF3"  # entries that stay


@style()
def kernels(masks, layer, most=8, *, ax=None):
    """One convolution under several masks: each row of squares is a filter, each column an input channel, each square
    a kernel; black = kept. The panels are `ax.child_axes`.

    `masks` maps labels to masks that name `layer`, with weights (out, in, kh, kw); the first `most` filters and
    inputs are drawn, the share kept is of the whole layer. ValueError for no masks, an unknown layer, or one that is
    no 2-D convolution.
    """
    if not masks:
        raise ValueError("no masks: kernels compares at least one, {label: mask}")
    found = {label: _convolution(mask, layer) for label, mask in masks.items()}
    columns = math.ceil(math.sqrt(2 * len(found))) if len(found) > 3 else len(found)
    ax, panels = _panels(ax, len(found), columns, 0.78)
    for panel, (label, flags) in zip(panels, found.items(), strict=True):
        shown = flags[:most, :most].permute(0, 2, 1, 3)
        outs, high, ins, wide = shown.shape
        panel.imshow(shown.reshape(outs * high, ins * wide).numpy(), cmap="Greys", vmin=0, vmax=1)
        panel.hlines(np.arange(1, outs) * high - 0.5, -0.5, ins * wide - 0.5, color=GONE, linewidth=1.5)
        panel.vlines(np.arange(1, ins) * wide - 0.5, -0.5, outs * high - 0.5, color=GONE, linewidth=1.5)
        panel.set_title(f"{label}: {percent(flags.float().mean().item())}", fontsize=TEXT, loc="center", pad=5)
    out, into, high, wide = flags.shape
    part = "" if max(out, into) <= most else f"; drawn: the first {min(most, out)} x {min(most, into)} kernels"
    name = layer.removesuffix(".weight")
    _small_print(ax, f"{name}, {out} filters (rows) of {into} kernels {high}x{wide}; black = kept{part}")
    return ax


@style()
def coupling(found, group, unit, *, ax=None):
    """All that goes with one channel: each layer's parameters as (out, in), the entries of the channel in red.

    `found` is `pai_lab.coupled.channels(model)`; `group` and `unit` name the channel. A BatchNorm's scale and shift
    stand side by side. The panels are `ax.child_axes`. ValueError for an unknown group or unit.
    """
    if group not in found.units:
        raise nearest("group", group, found.units)
    if not 0 <= unit < found.units[group]:
        raise ValueError(f"group {group!r} has the channels 0 to {found.units[group] - 1}, got {unit}")
    stay = torch.arange(found.units[group]) != unit
    layers = {}
    for name, kept in found.expand({group: stay}).items():
        if not kept.all():
            layers.setdefault(name.rpartition(".")[0], []).append(_matrix(kept))
    ax, panels = _panels(ax, len(layers), min(len(layers), 5), 0.6)
    for panel, (layer, parts) in zip(panels, layers.items(), strict=True):
        lit = torch.cat(parts, 1).numpy()
        picture = np.where(lit[..., None], _rgb(ALARM), _rgb(BEHIND))
        panel.imshow(picture, aspect="equal", interpolation="none")
        panel.set_title(f"{_two_lines(layer)}\n{_where(lit)}", fontsize=SMALL, loc="center", pad=4)
    entries = sum(int((~kept).sum()) for kept in found.expand({group: stay}).values())
    _small_print(ax, f"channel {unit} of {group}: {entries:,} parameters in {len(layers)} layers; rows = outputs")
    return ax


def _convolution(mask, layer):
    mask = Mask(mask)
    layer = layer if layer in mask else f"{layer}.weight"
    if layer not in mask:
        raise nearest("layer", layer, mask)
    if mask[layer].ndim != 4:
        raise ValueError(f"{layer!r} has the shape {tuple(mask[layer].shape)}; kernels draws (out, in, kh, kw)")
    return mask[layer].cpu()


def _matrix(kept):
    """Where entries go, as (outputs, inputs); a vector is a column."""
    return ~(kept.cpu().flatten(2).any(2) if kept.ndim > 2 else kept.cpu().view(len(kept), -1))


def _where(lit):
    for word, flags in (("row", lit.all(1)), ("column", lit.all(0))):
        if flags.any():
            return f"{flags.sum()} {word}{'s' * int(flags.sum() > 1)}"


def _two_lines(layer):
    """A name inside blocks is broken after the block: "stage1.0", "conv2"."""
    parts = layer.split(".")
    return ".".join(parts[:2]) + "\n" + ".".join(parts[2:]) if len(parts) > 2 else layer


def _rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.uint8)


def _panels(ax, number, columns, height):
    """The Axes, invisible, with so many frames inside, without ticks; `height` is a frame's part of its line."""
    rows = math.ceil(number / columns)
    ax = canvas(ax, (9, 0.6 + 7.5 / columns / height * rows))
    ax.set_axis_off()
    panels = []
    for i in range(number):
        y, x = divmod(i, columns)
        panel = ax.inset_axes(((x + 0.03) / columns, 1 - (y + 0.97) / rows, 0.94 / columns, height / rows), anchor="N")
        panel.set(xticks=[], yticks=[])
        panel.grid(False)
        panel.spines[:].set(visible=True, color=QUIET, linewidth=0.8)
        panels.append(panel)
    return ax, panels


def _small_print(ax, text):
    ax.text(0.5, -0.01, text, transform=ax.transAxes, **SMALL_PRINT)
