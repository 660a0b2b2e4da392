"""Measured milliseconds of a forward pass: the only speed-up that a user has.

pai.latency({"dense": model, "removed": smaller}, torch.zeros(64, 3, 32, 32))
"""

import time
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from pai_lab.functional import in_mode

WARM_UP = 3  # rounds that are not counted: the first ones choose algorithms and fill caches


def latency(models, x, repeats=30, threads=1):
    """Forward time of models on one batch: a DataFrame (model, median, q1, q3, ratio), in milliseconds.

    `models` is a mapping name -> module, or one module; `x` a batch, or the shape of one (filled with zeros). All
    models run once per round, in turn, because a machine is faster in one second than in the next; `ratio` is the
    median over rounds of a model's time by that of the first. Eval mode, inference mode, `threads` torch threads.
    Models, modes and the number of threads are as before. Zeros take as long as weights: a mask alone gains
    nothing. ValueError for no models, or fewer than one round or thread. Cost: (repeats + 3) forward passes each.
    """
    import pandas as pd

    models = {type(models).__name__: models} if isinstance(models, nn.Module) else dict(models)
    _check(models, repeats, threads)
    x = x if isinstance(x, torch.Tensor) else torch.zeros(*x, device=_device(models))
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(in_mode(model, False))
        stack.enter_context(_threads(threads))
        stack.enter_context(torch.inference_mode())
        rounds = [_round(models, x, i) for i in range(WARM_UP + repeats)][WARM_UP:]
    times = pd.DataFrame(rounds)[list(models)]
    quartiles = times.quantile([0.5, 0.25, 0.75]).T.set_axis(["median", "q1", "q3"], axis=1)
    ratio = times.div(times.iloc[:, 0], axis=0).median()
    return quartiles.assign(ratio=ratio).rename_axis("model").reset_index()


def _round(models, x, i):
    """{name: milliseconds} of one pass each; every other round backwards, so that no model always goes first."""
    return {name: _time(models[name], x) for name in (list(models) if i % 2 == 0 else list(models)[::-1])}


def _time(model, x):
    _wait(x)
    started = time.perf_counter()
    model(x)
    _wait(x)
    return 1000 * (time.perf_counter() - started)


def _wait(x):
    if x.is_cuda:  # a GPU answers before it is done
        torch.cuda.synchronize(x.device)


def _device(models):
    return next((p.device for model in models.values() for p in model.parameters()), None)


def _check(models, repeats, threads):
    if not models:
        raise ValueError("latency needs at least one model: give a module, or a mapping name -> module")
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise TypeError(f"models[{name!r}] must be a torch.nn.Module, got {type(model).__name__}")
    for what, number in (("repeats", repeats), ("threads", threads)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{what} must be an integer from 1 on, got {number!r}")


@contextmanager
def _threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
