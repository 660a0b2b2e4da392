"""The report: what a mask removed from a model, and what that really saves.

pai.report(model, mask)
"""

from dataclasses import dataclass

from pai_lab.functional import fit
from pai_lab.mask import Mask
from pai_lab.metrics.effective import flow
from pai_lab.metrics.stored import bitmap, dense, packed_bytes
from pai_lab.models import macs


@dataclass(frozen=True)
class Report:
    """The savings of a mask on a model. `layers` is a DataFrame (layer, total, kept, density, effective, dead_units,
    macs, sparse_macs); the rest are totals. `effective` counts the kept weights on a path from input to output; it
    is None, and `note` says why, if the model does what has no known paths. Bytes are those of the model's state:
    `dense_bytes` as any file of the masked model has them, `bitmap_bytes` if only kept weights and one bit per
    prunable weight were stored."""

    layers: object
    weights: int
    kept: int
    effective: int | None
    macs: int
    sparse_macs: int
    dense_bytes: int
    bitmap_bytes: int
    collapsed: list
    note: str = ""

    @property
    def sparsity(self):
        """Removed / all prunable weights, in [0, 1]."""
        return 1 - self.kept / self.weights

    @property
    def effective_sparsity(self):
        """The fraction of prunable weights on no path, in [sparsity, 1]; NaN where `effective` is None."""
        return float("nan") if self.effective is None else 1 - self.effective / self.weights

    @property
    def compression(self):
        """All / kept prunable weights; inf if none is kept."""
        return self.weights / self.kept if self.kept else float("inf")

    @property
    def speedup(self):
        """Dense / sparse multiply-adds: theoretical, measured is `pai.latency`. inf if none is left."""
        return self.macs / self.sparse_macs if self.sparse_macs else float("inf")

    def __str__(self):
        lines = [
            f"{self.sparsity:.2%} of {self.weights:,} prunable weights removed: {self.kept:,} kept",
            self._paths(),
            f"multiply-adds: {self.macs:,} dense; {self.sparse_macs:,} if every zero is skipped "
            f"({self.speedup:.1f}x fewer). Dense hardware skips none",
            f"bytes: {self.dense_bytes:,} stored dense, zeros and all; {self.bitmap_bytes:,} as a bitmap plus "
            f"kept weights ({self.dense_bytes / self.bitmap_bytes:.1f}x smaller)",
        ]
        lines += [f"layer collapse: {name} keeps nothing" for name in self.collapsed]
        return "\n".join(lines)

    __repr__ = __str__

    def _paths(self):
        if self.effective is None:
            return f"effective weights: not counted, {self.note}"
        on = f"{self.effective:,} of them on a path from input to output"
        return f"{on}: effective sparsity {self.effective_sparsity:.2%}"

    def _repr_html_(self):
        head, *rest = (f"<p>{line}.</p>" for line in str(self).splitlines())
        table = self.layers.to_html(index=False, border=0, formatters={"density": "{:.2%}".format}, justify="right")
        return head + "".join(rest) + table


def report(model, mask, input_shape=None):
    """A Report on `mask` for `model`. `input_shape` of one sample defaults to `model.input_shape`.

    A multiply-add is counted as 1; BatchNorm, ReLU and additions as 0. A layer's share of multiply-adds that
    remains is its density. ValueError if the mask is for another model. Cost: 1 FB and 1 F of one sample.
    """
    if not isinstance(mask, Mask):
        raise TypeError(f"report(model, mask) takes a Mask, got {type(mask).__name__}")
    fit(mask, dict(model.named_parameters(remove_duplicate=False)), type(model).__name__)
    counted = macs(model, input_shape)
    whole = {name: mask.get(name, kept) for name, kept in Mask.dense(model).items()}
    whole = Mask.holding(whole | {name: kept for name, kept in mask.items() if kept.ndim < 2})
    table = whole.layers().drop(columns="shape")
    try:
        paths, note = flow(model, whole, input_shape), ""
    except ValueError as unknown:  # the rest of the report still holds
        paths, note = None, str(unknown)
    if paths:
        table["effective"] = paths.mask.layers().kept
        table["dead_units"] = [paths.units[name].dead for name in table.layer]
    table["macs"] = [counted[name] for name in table.layer]
    table["sparse_macs"] = [round(m * d) for m, d in zip(table.macs, table.density, strict=True)]
    return Report(
        table, whole.total, whole.kept, paths.mask.kept if paths else None, int(table.macs.sum()),
        int(table.sparse_macs.sum()), packed_bytes(model, mask, dense), packed_bytes(model, mask, bitmap),
        mask.collapsed(), note,
    )  # fmt: skip
