"""What pruning removed and what that saves: weights, paths, multiply-adds, bytes, milliseconds; how masks differ.

pai.report(model, mask); pai.effective(model, mask).sparsity; pai.latency({"dense": a, "removed": b}, x)
"""

from pai_lab.metrics.effective import dead_units, effective
from pai_lab.metrics.latency import latency
from pai_lab.metrics.overlap import overlap, rank_correlation
from pai_lab.metrics.report import Report, report
from pai_lab.metrics.stored import break_even, stored_bytes

__all__ = [
    "Report", "break_even", "dead_units", "effective", "latency", "overlap", "rank_correlation", "report",
    "stored_bytes",
]  # fmt: skip
