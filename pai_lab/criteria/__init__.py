"""Criteria: one function per score, `f(model, batch, mask, **options) -> {name: tensor}`, higher = keep.

One file per family; importing this package registers them all.
"""

from pai_lab.criteria import data_free, first_order, flow, gates, meta, ntk, second_order, walks

__all__ = ["data_free", "first_order", "flow", "gates", "meta", "ntk", "second_order", "walks"]
