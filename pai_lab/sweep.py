"""Whole experiments by name: build, score, prune, train, measure; names in, flat numbers out.

pai.experiment(data="mnist1d", model="mlp", method="synflow", sparsity=0.98, seed=0, epochs=30)
"""

import inspect
import time
from contextlib import contextmanager

import torch

from pai_lab.catalog import find, names, nearest
from pai_lab.data import load
from pai_lab.models import build
from pai_lab.pruning import prune
from pai_lab.training import train

TRAINING = set(inspect.signature(train).parameters) - {"model", "data", "mask", "epochs", "seed"}


def experiment(*, data, model, method, sparsity, seed, epochs, init="default", **options):
    """One run on one thread: its settings and its results in a flat dict of numbers and names.

    `data`, `model`, `method` are names or what stands for them (a Data, a function data -> module, a function
    (model, data, sparsity, seed, epochs, **options) -> Run). Options of `train` go to the training, all others to
    the method. Accuracies are fractions. KeyboardInterrupt is raised, not recorded. The same settings on the same
    machine give the same numbers. Errors as in `load`, `build`, `prune`, `train`.
    """
    recipe = resolve(method)
    with _one_thread():
        started = time.perf_counter()
        loaded = load(data) if isinstance(data, str) else data
        net = build(model, loaded, seed=seed, init=init)
        run = recipe(net, loaded, sparsity, seed, epochs, **({"progress": False} | options))
        seconds = time.perf_counter() - started
    if run.interrupted:
        raise KeyboardInterrupt
    row = {
        "data": loaded.name, "model": _name(model), "method": _name(method), "init": _name(init),
        "asked_sparsity": sparsity, "seed": seed, "epochs": epochs,
    }  # fmt: skip
    shown = {k: _name(v) for k, v in options.items() if isinstance(v, (str, int, float)) or callable(v)}
    budget = {f"budget_{k}": v for k, v in run.budget.items()}
    return row | shown | run.metrics | budget | {"seconds": seconds}


def resolve(method):
    """The recipe (model, data, sparsity, seed, epochs, **options) -> Run that a method's name or function means.
    The name of a criterion means: prune by it at initialization, then train."""
    if callable(method) or method in names("method"):
        return find("method", method).function
    if method not in names("criterion"):
        raise nearest("method", method, methods())

    def recipe(model, data, sparsity, seed, epochs, **options):
        return prune_then_train(model, data, sparsity, seed, epochs, criterion=method, **options)

    return recipe


def methods():
    """Every name that `experiment(method=...)` takes: registered methods, then criteria."""
    return names("method") + [name for name in names("criterion") if name not in names("method")]


def prune_then_train(model, data, sparsity, seed, epochs, *, criterion, per_class=10, **options):
    """Pruning at initialization: one mask from a balanced scoring batch of the training set, then train under it."""
    chosen = {key: options.pop(key) for key in list(options) if key in TRAINING}
    batch = data.score_batch(per_class=per_class, seed=seed)
    mask = prune(model, criterion, sparsity, batch=batch, seed=seed, **options)
    return train(model, data, mask=mask, epochs=epochs, seed=seed, **chosen)


def _name(thing):
    return getattr(thing, "__name__", repr(thing)) if callable(thing) else thing


@contextmanager
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
