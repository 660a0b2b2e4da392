"""pai_lab: neural-network pruning, above all before training, to learn and to test.

Every pruning method answers three questions, and the package is built from their nouns:

- what is removed together: a **structure** (`weight`, `filter`, ...);
- which of them: a **criterion** (`snip`, `synflow`, ...) gives scores, a **scope** allocates the budget over layers,
  and both make a **mask**, exact to the last weight;
- when and how fast: a **method** (once before training, over a **schedule**, while training).

    data  = pai.load("mnist1d")                                    # tensors in memory, fixed splits
    model = pai.build("mlp", data, seed=0)                         # a plain torch.nn.Module
    mask  = pai.prune(model, "synflow", sparsity=0.98, batch=data.score_batch(per_class=10))
    run   = pai.train(model, data, mask=mask, epochs=30, seed=0)   # history, metrics, budget
    pai.report(model, mask)                                        # what was removed, what it really saves

`pai.catalog()` is the map of the field. `pai.plots`, `pai.lesson` and `pai.explore` load when first used.
"""

from importlib import import_module as _import

from pai_lab.allocation import allocate
from pai_lab.catalog import catalog, criterion, method, names
from pai_lab.collapse import critical_compression, maximal_compression
from pai_lab.controls import corrupted, inverted, reinitialised
from pai_lab.criteria.second_order import obs_update
from pai_lab.data import Data, load
from pai_lab.functional import forward, masked, prunable
from pai_lab.mask import Mask
from pai_lab.metrics import dead_units, effective, latency, overlap, rank_correlation, report, stored_bytes
from pai_lab.models import build, describe, macs
from pai_lab.pruning import prune, rounds, score
from pai_lab.records import checklist, compare, results
from pai_lab.shift import shifted
from pai_lab.surgery import remove, whole_channels
from pai_lab.sweep import experiment, sweep
from pai_lab.training import Callback, Run, evaluate, train

__version__ = "0.1.0"
__all__ = [
    "Callback", "Data", "Mask", "Run", "allocate", "build", "catalog", "checklist", "compare", "corrupted",
    "criterion", "critical_compression", "dead_units", "describe", "effective", "evaluate", "experiment", "explore",
    "forward", "inverted", "latency", "lesson", "load", "macs", "masked", "maximal_compression", "method", "names",
    "obs_update", "overlap", "plots", "prunable", "prune", "rank_correlation", "reinitialised", "remove", "report",
    "results", "rounds", "score", "shifted", "stored_bytes", "sweep", "train", "whole_channels",
]  # fmt: skip


def __getattr__(name):
    if name in ("explore", "lesson", "plots"):
        return _import(f"pai_lab.{name}")
    raise AttributeError(f"module 'pai_lab' has no attribute {name!r}")
