"""What pruning removed, and what it really saves: weights and multiplications, beside what a file still holds.

pai.report(model, mask)
"""

from dataclasses import dataclass

from pai_lab.functional import fit, prunable
from pai_lab.mask import Mask
from pai_lab.models import macs


@dataclass(frozen=True)
class Report:
    """The savings of a mask on a model. `layers` is a DataFrame (layer, total, kept, density, macs, sparse_macs);
    the rest are totals. Bytes are those of the model's parameters and buffers: `dense_bytes` as any file of the
    masked model has them, `bitmap_bytes` if only kept weights and one bit per prunable weight were stored."""

    layers: object
    weights: int
    kept: int
    macs: int
    sparse_macs: int
    dense_bytes: int
    bitmap_bytes: int
    collapsed: list

    def __str__(self):
        removed = 1 - self.kept / self.weights
        lines = [
            f"{removed:.2%} of {self.weights:,} prunable weights removed: {self.kept:,} kept",
            f"multiply-adds: {self.macs:,} dense; {self.sparse_macs:,} if every zero is skipped "
            f"({self.macs / max(self.sparse_macs, 1):.1f}x fewer). Dense hardware skips none",
            f"bytes: {self.dense_bytes:,} stored dense, zeros and all; {self.bitmap_bytes:,} as a bitmap plus "
            f"kept weights ({self.dense_bytes / self.bitmap_bytes:.1f}x smaller)",
        ]
        lines += [f"layer collapse: {name} keeps nothing" for name in self.collapsed]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self):
        head, *rest = (f"<p>{line}.</p>" for line in str(self).splitlines())
        table = self.layers.to_html(index=False, border=0, formatters={"density": "{:.2%}".format}, justify="right")
        return head + "".join(rest) + table


def report(model, mask, input_shape=None):
    """A Report on `mask` for `model`. `input_shape` of one sample defaults to `model.input_shape`.

    A multiply-add is counted as 1; BatchNorm, ReLU and additions as 0. A layer's share of multiply-adds that
    remains is its density. ValueError if the mask is for another model.
    """
    if not isinstance(mask, Mask):
        raise TypeError(f"report(model, mask) takes a Mask, got {type(mask).__name__}")
    fit(mask, dict(model.named_parameters(remove_duplicate=False)), type(model).__name__)
    table = Mask({name: mask.get(name, kept) for name, kept in Mask.dense(model).items()}).layers()
    counted = macs(model, input_shape)
    table["macs"] = [counted[name] for name in table.layer]
    table["sparse_macs"] = [round(m * d) for m, d in zip(table.macs, table.density, strict=True)]
    tensors = [*model.parameters(), *model.buffers()]
    stored = sum(t.numel() * t.element_size() for t in tensors)
    width = next(iter(prunable(model).values())).element_size()
    removed = int((table.total - table.kept).sum())
    return Report(
        table.drop(columns="shape"), int(table.total.sum()), int(table.kept.sum()), int(table.macs.sum()),
        int(table.sparse_macs.sum()), stored, stored - removed * width + -(-int(table.total.sum()) // 8),
        mask.collapsed(),
    )  # fmt: skip
