"""Whole experiments by name, and grids of them: resumable, on one laptop or a cluster.

grid = {"method": ["random", "synflow"], "sparsity": [0.9, 0.98], "seed": range(5)}
table = pai.sweep(pai.experiment, grid, folder="runs", fixed={"data": "digits", "model": "mlp", "epochs": 20})
"""

import hashlib
import inspect
import os
import time
import traceback
from contextlib import closing, contextmanager
from itertools import product
from pathlib import Path

import torch

from pai_lab import records
from pai_lab.catalog import adopt, find, names, nearest, of_the_reader
from pai_lab.controls import scoring_batches
from pai_lab.data import load
from pai_lab.mask import Mask
from pai_lab.metrics import report
from pai_lab.models import build
from pai_lab.pruning import prune
from pai_lab.training import train

TRAINING = {
    key: p.default
    for key, p in inspect.signature(train).parameters.items()
    if key not in ("model", "data", "mask", "epochs", "seed", "progress", "callbacks", "checkpoint", "device")
}
RUNNING = {*TRAINING, "progress", "callbacks", "checkpoint", "device"}
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
PRUNING = {"structure": "weight", "scope": "global", "iterations": None, "floor": 0, "per_class": 10}


# -- one experiment ------------------------------------------------------------------------------------------------
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
        loaded = load(data) if isinstance(data, (str, Path)) else data
        net = build(model, loaded, seed=seed, init=init)
        initial = _fingerprint(net)
        run = recipe(net, loaded, sparsity, seed, epochs, **({"progress": False} | options))
        seconds = time.perf_counter() - started
    if run.interrupted:
        raise KeyboardInterrupt
    row = {
        "data": loaded.name, "model": _name(model), "method": _name(method), "init": _name(init),
        "asked_sparsity": sparsity, "seed": seed, "epochs": epochs, "initial": initial,
    }  # fmt: skip
    shown = {k: _name(v) for k, v in options.items() if isinstance(v, (str, int, float)) or callable(v)}
    budget = {f"budget_{k}": v for k, v in run.budget.items()}
    saved = report(net, run.mask or Mask.dense(net))
    sizes = {k: getattr(saved, k) for k in ("weights", "kept", "macs", "sparse_macs", "dense_bytes", "bitmap_bytes")}
    device = next(net.parameters()).device.type
    paths = {"effective_sparsity": saved.effective_sparsity}
    return row | shown | run.metrics | paths | sizes | budget | {"device": device, "seconds": seconds}


def _fingerprint(model):
    """16 hex digits of all the model's tensors: two runs started from the same model if theirs agree."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _defaults(point):
    """The settings of an experiment that a point leaves to the house: a stored run is only a hit under the same.
    ValueError for a method, or an option of one, that there is not."""
    resolve(point["method"])
    kind = "method" if point["method"] in names("method") else "criterion"
    entry = find(kind, point["method"])
    parameters = list(inspect.signature(entry.function).parameters.values())[5 if kind == "method" else 3 :]
    own = {p.name: _name(p.default) for p in parameters if p.default is not p.empty}
    if all(p.kind is not p.VAR_KEYWORD for p in parameters):
        known = [*inspect.signature(experiment).parameters, *(p.name for p in parameters)]
        known += [*RUNNING, *PRUNING, "mode", "exclude", "allow_empty"] if kind == "criterion" else ["progress"]
        for name in point:
            if name not in known:
                raise nearest(f"setting of {kind} {entry.name}", name, known)
    return TRAINING | PRUNING | own | {f"criterion_{name}": value for name, value in entry.defaults.items()}


experiment.defaults = _defaults


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
    """Pruning at initialization: a mask from balanced scoring batches of the training set, a fresh one each round, then
    train under it."""
    chosen = {key: options.pop(key) for key in list(options) if key in RUNNING}
    batch = scoring_batches(data, per_class, seed)
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


# -- a grid of them ------------------------------------------------------------------------------------------------
def sweep(run, grid, *, folder, fixed=None):
    """Run `run(**settings)` for every point of a grid that has no result yet; all the grid's results as a table.

    `run` is `pai.experiment`, or any function of keyword arguments that returns a flat dict of numbers and names.
    `grid` is a dict name -> values (all combinations) or a list of dicts; `fixed` goes to every run. A finished run
    is one JSON file in `folder`, named by the hash of all resolved settings, so that an interrupted sweep goes on
    where it was, and two sweeps can share a folder. Runs go to joblib: processes on this machine, one thread each,
    or whatever `joblib.parallel_config(...)` says around the call (a Dask cluster, say).

    A run that raises is recorded with its error and tried again by the next call; the others finish, and
    `table.attrs["failed"]` lists its settings. KeyboardInterrupt keeps what is finished.

    ValueError or TypeError before anything runs for an empty grid, duplicate points, an unknown setting, or a value
    that JSON cannot hold (it is named); OSError for a folder that cannot be written; RuntimeError for a cluster
    that is gone (what is done is kept).
    """
    todo, title, folder = {}, records.name(run), Path(folder).absolute()  # workers may stand in another folder
    for point in _points(grid, dict(fixed or {})):
        point, settings = _resolved(run, point)
        key = records.key(title, settings)
        if key in todo:
            raise ValueError(f"the same settings stand in the grid more than once: {point}")
        todo[key] = (point, settings)
    records.prepare(folder)
    done = {key: found for key in todo if (found := records.read(folder, key)) is not None}
    missing = {key: pair for key, pair in todo.items() if key not in done}
    failed = _run_all(run, missing, done, folder)
    table = records.table([done[key] for key in todo if key in done])
    table.attrs["failed"] = [record["settings"] for record in failed]
    if failed:
        print(f"{len(failed)} of {len(todo)} runs failed; the next call tries them again:")
        for record in failed:
            print(f"  {record['point']}: {record['error']}")
    return table


def _points(grid, fixed):
    """The points of a grid as dicts, `fixed` included."""
    if isinstance(grid, dict):
        for name, values in grid.items():
            if isinstance(values, str) or not hasattr(values, "__iter__"):
                raise TypeError(f"grid[{name!r}] must be a list of values, got {values!r}; one value belongs in fixed")
        points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    else:
        points = list(grid)
        if wrong := [point for point in points if not isinstance(point, dict)]:
            raise TypeError(f"the grid must be a dict of lists, or a list of dicts; it holds {wrong[0]!r}")
    if not points or points == [{}]:
        raise ValueError("the grid is empty: give a dict of lists, each with a value, or a list of dicts")
    if both := set(fixed) & {name for point in points for name in point}:
        raise ValueError(f"{sorted(both)} stand both in grid and fixed; give each in one of them")
    return [fixed | point for point in points]


def _resolved(run, point):
    """The point, and all settings of the run with its defaults, in the form that JSON keeps. ValueError or
    TypeError if the run takes no such setting, or lacks one."""
    parameters = inspect.signature(run).parameters.values()
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    if len(named) == len(parameters):
        for name in point:
            if name not in named:
                raise nearest(f"setting of {records.name(run)}", name, named)
    lacking = [p.name for p in parameters if p.default is p.empty and p.kind in NAMED and p.name not in point]
    if lacking:
        raise TypeError(f"{records.name(run)} needs {', '.join(lacking)}: give it in grid or fixed")
    own = {p.name: p.default for p in parameters if p.default is not p.empty and p.kind is not p.VAR_KEYWORD}
    point = {name: records.plain(name, value) for name, value in point.items()}
    defaults = run.defaults(point) if hasattr(run, "defaults") else {}
    settings = {name: records.plain(name, value) for name, value in (own | defaults).items()} | point
    return point, dict(sorted(settings.items()))


def _run_all(run, missing, done, folder):
    """Run what is missing through joblib; fills `done`, returns the records of failed runs."""
    from joblib import delayed
    from tqdm.auto import tqdm

    failed = []
    if not missing:
        return failed
    tasks = (delayed(_one)(run, key, *pair, str(folder), of_the_reader()) for key, pair in missing.items())
    with (
        tqdm(total=len(missing), disable=bool(os.environ.get("CI")), unit="run") as bar,
        closing(_ended(tasks, folder)) as ended,
    ):
        try:
            for record in ended:
                records.write(folder, record)  # again, for a worker that does not see the folder
                if "error" in record:
                    failed.append(record)
                else:
                    done[record["key"]] = record
                bar.update()
                bar.set_postfix_str(_last(record))
        except KeyboardInterrupt:
            print(f"interrupted: finished runs are kept in {folder}; the same call goes on from there")
            raise
    return failed


def _ended(tasks, folder):
    """The records of the tasks as they end, from the workers that joblib is told to use."""
    from joblib import Parallel
    from joblib.parallel import get_active_backend

    backend, jobs = get_active_backend()
    dask = getattr(backend, "client", None)
    if dask:  # joblib would take a cluster of one thread for none, and run in this process instead
        counted = backend.effective_n_jobs
        backend.effective_n_jobs = lambda jobs: max(2, counted(jobs))
    parallel = Parallel(
        n_jobs=-1 if jobs is None else jobs, return_as="generator_unordered", batch_size=1,
        pre_dispatch="all" if dask else "2 * n_jobs",  # for workers that join later; loky's interrupt needs it short
    )  # fmt: skip
    try:
        if dask and dask.status != "running":  # joblib would wait for it, much longer than a reader does
            raise ConnectionError(f"no connection to the Dask scheduler, the client is {dask.status}")
        yield from parallel(tasks)
    except Exception as error:
        raise RuntimeError(
            f"the workers ({type(backend).__name__}) are gone or out of order. Finished runs are kept in {folder}; "
            f"start workers again, or mend what failed, and call again. It was {type(error).__name__}: {error}"
        ) from error


def _last(record):
    """The last result in a few words: its point and its accuracy."""
    if "error" in record:
        return record["error"][:60]
    result = record["result"]
    shown = [str(result[k]) for k in ("method", "asked_sparsity", "seed") if k in result]
    accuracy = result.get("val_accuracy")
    return " ".join(shown + ([f"{100 * accuracy:.1f}%"] if isinstance(accuracy, float) else []))


def _one(run, key, point, settings, folder, entries):
    """One run, in a worker: its record, written at once where the folder can be seen."""
    adopt(entries)
    if (found := records.read(folder, key)) is not None:  # another sweep was faster
        return found
    record = {"key": key, "run": records.name(run), "point": {k: settings[k] for k in point}, "settings": settings}
    started = time.perf_counter()
    try:
        result = records.flat(run(**point))
        record["result"] = {"seconds": time.perf_counter() - started} | result
    except (Exception, SystemExit) as error:
        record |= {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    record["provenance"] = records.provenance()
    if Path(folder).is_dir():
        records.write(folder, record)
    return record
