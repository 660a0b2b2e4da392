"""Results on disk, one JSON file a run; tables of them, fair comparisons, and what a claim still lacks.

table = pai.results("runs"); pai.compare(table, by="method"); pai.checklist(table)
"""

import hashlib
import json
import os
import platform
import secrets
import sys
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from pai_lab.catalog import nearest


# -- one record ----------------------------------------------------------------------------------------------------
def plain(name, value):
    """A setting in the form that JSON keeps: numbers, text, None, lists and dicts of them. TypeError names it."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (Real, np.bool_)):
        if not np.isfinite(float(value)):
            raise ValueError(f"setting {name}={value!r} is not finite; JSON cannot keep it")
        return _number(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(f"{name}[{key!r}]", one) for key, one in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [plain(f"{name}[{place}]", one) for place, one in enumerate(value)]
    hint = " Register it (@pai.method, @pai.criterion) and give its name." if callable(value) else ""
    raise TypeError(
        f"setting {name}={value!r} cannot be written as JSON, so its results could not be found again.{hint}"
    )


def flat(result):
    """What a run returned, if it is a flat dict of numbers, text and None; TypeError names what is not."""
    if not isinstance(result, Mapping) or not result:
        raise TypeError(f"a run must return a flat dict of numbers and names, got {type(result).__name__}")
    out = {}
    for key, value in result.items():
        if not isinstance(key, str) or not (value is None or isinstance(value, (str, bool, np.bool_, Real))):
            raise TypeError(f"a run must return numbers and names; {key!r} is {type(value).__name__}: use float(...)")
        out[key] = value if value is None or isinstance(value, str) else _number(value)
    return out


def _number(value):
    """A number of any library as Python's own bool, int or float."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return int(value) if isinstance(value, Integral) else float(value)


def name(run):
    """The name of a run function, as it stands in its records; TypeError if it has none to be found again by."""
    if not hasattr(run, "__qualname__") or "<lambda>" in run.__qualname__:
        raise TypeError(f"run={run!r} has no name to find its results by: write it as a function with def")
    return f"{run.__module__}.{run.__qualname__}"


def key(run, settings):
    """The hash that names a result: of the run function's name and all its resolved settings."""
    text = json.dumps([run, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def provenance():
    """Versions and machine of this process."""
    import torch

    house = sys.modules[__package__]  # a room imports no vocabulary, and without it is no room
    return {
        "pai_lab": house.__version__, "torch": torch.__version__, "python": platform.python_version(),
        "machine": platform.machine(), "processor": f"{os.cpu_count()} cores",
    }  # fmt: skip


# -- a folder of them ----------------------------------------------------------------------------------------------
def prepare(folder):
    """Make the folder; OSError that says what to do if results cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(4)}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"results cannot be written to {folder}: {error}. Give another folder=") from error


def write(folder, record):
    """Write a record, all or nothing. A failed run never replaces a finished one."""
    path = Path(folder) / f"{record['key']}.json"
    if "error" in record and _finished(path):
        return
    part = path.with_name(f".{record['key']}.{secrets.token_hex(4)}.part")
    try:
        part.write_text(json.dumps(record, indent=1))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _finished(path):
    try:
        return "result" in json.loads(path.read_text())
    except (OSError, ValueError):
        return False


def read(folder, key):
    """The record of a finished run; None if there is none, it failed, or its file is corrupt (then set aside)."""
    record = _parsed(Path(folder) / f"{key}.json")
    return record if record and "result" in record else None


def _parsed(path):
    """A record, or None: no file, or a corrupt one, which is renamed and named in a warning."""
    try:
        record = json.loads(path.read_text())
        whole = {"provenance", "point"} <= set(record) and (isinstance(record.get("result"), dict) or "error" in record)
        if whole and record["key"] == path.stem == key(record["run"], record["settings"]):
            return record
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    aside = path.with_suffix(".corrupt")
    try:
        os.replace(path, aside)
    except FileNotFoundError:  # another sweep was faster
        return None
    warnings.warn(f"{path.name} is no whole result; set aside as {aside}, and not used", stacklevel=4)
    return None


def table(records):
    """One tidy row a run: settings, results, provenance. Says so if the runs are of several package versions."""
    import pandas as pd

    rows = [_row(record) for record in records]
    versions = sorted({row["pai_lab"] for row in rows})
    if len(versions) > 1:
        warnings.warn(f"this table mixes runs of pai_lab {' and '.join(versions)}", stacklevel=3)
    found = pd.DataFrame(rows)
    found.attrs["versions"] = versions
    return found


def _row(record):
    settings = {k: v if not isinstance(v, (list, dict)) else json.dumps(v) for k, v in record["settings"].items()}
    return settings | record["result"] | record["provenance"]


def results(folder):
    """Every finished run in a folder as a tidy table: settings, results, budget, versions, device, seconds.

    `table.attrs["failed"]` lists the settings of failed runs. A corrupt file is renamed, named in a warning, and
    not used. FileNotFoundError if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of results at {folder}")
    paths = sorted(folder.glob("[0-9a-f]" * 24 + ".json"))  # other files that lie there are not ours
    found = [record for path in paths if (record := _parsed(path)) is not None]
    whole = table([record for record in found if "result" in record])
    whole.attrs["failed"] = [record["settings"] for record in found if "error" in record]
    return whole


# -- fair comparisons ----------------------------------------------------------------------------------------------
POINT = ("data", "model", "asked_sparsity", "structure")


def compare(
    table, *, by="method", metric=None, baseline=None, at=None, over="seed", unequal_budgets=False, confidence=0.95,
    seed=0,
):  # fmt: skip
    """Mean, std and n of a metric per `by` at each operating point, and paired differences to a baseline.

    A row of the answer: the columns of `at` (default: data, model, asked_sparsity, structure, as far as they are
    there), `by`, n, mean, std (over n - 1), and over the seeds that it shares with `baseline` (default "random")
    pairs, difference, low, high: the mean paired difference and its bootstrap interval (10,000 resamplings of the
    seeds). `metric` is test_accuracy, or val_accuracy where there is none.

    ValueError if a column is missing, if runs that would be averaged or compared had different training budgets
    (unless `unequal_budgets`), if a seed occurs twice at a point, or if no seed is shared with the baseline.
    """
    metric = metric or ("test_accuracy" if "test_accuracy" in table else "val_accuracy")
    at = [column for column in POINT if column in table] if at is None else list(at)
    for column in (by, metric, over, *at):
        if column not in table:
            raise nearest("column", column, list(table.columns))
    baseline = baseline if baseline is not None else "random" if "random" in set(table[by]) else table[by].iloc[0]
    if baseline not in set(table[by]):
        raise nearest("baseline", baseline, sorted(map(str, table[by].unique())))
    rows = []
    for point, group in table.groupby(at, dropna=False) if at else [((), table)]:
        point = dict(zip(at, point, strict=True))
        _check_point(group, point, by, over, metric, unequal_budgets)
        base = group[group[by] == baseline].set_index(over)[metric]
        for name, runs in group.groupby(by, sort=False, dropna=False):
            values = runs.set_index(over)[metric]
            row = {"n": len(values), "mean": values.mean(skipna=False), "std": values.std(skipna=False)}
            rows.append(point | {by: name} | row | _paired(values, base, name, baseline, point, confidence, seed))
    import pandas as pd

    return pd.DataFrame(rows)


def _check_point(group, point, by, over, metric, unequal_budgets):
    twice = group[group.duplicated([by, over], keep=False)]
    if len(twice):
        several = twice.groupby([by, over]).nunique().gt(1).any()
        differ = [column for column in several.index[several] if column not in ("seconds", metric)]
        raise ValueError(f"{over}s occur more than once at {point}; put what differs in at=: {', '.join(differ[:8])}")
    if "budget_train" in group and group.budget_train.nunique() > 1 and not unequal_budgets:
        shown = group.groupby(by).budget_train.unique().map(sorted).map(str).to_dict()
        raise ValueError(
            f"the runs at {point} had different training budgets ({shown} sample passes): averaging or "
            "comparing them is not fair. Train them equally long, or pass unequal_budgets=True"
        )


def _paired(values, base, name, baseline, point, confidence, seed):
    """Mean difference over common seeds with its bootstrap interval; nothing for the baseline itself."""
    if name == baseline or base.empty:
        return {"pairs": 0, "difference": np.nan, "low": np.nan, "high": np.nan}
    common = values.index.intersection(base.index)
    if common.empty:
        raise ValueError(f"{name} and {baseline} share no seed at {point}: a paired difference needs common seeds")
    gaps = (values[common] - base[common]).to_numpy(float)
    draws = np.random.default_rng(seed).integers(0, len(gaps), (10_000, len(gaps)))
    edge = (1 - confidence) / 2
    low, high = np.quantile(gaps[draws].mean(1), [edge, 1 - edge]) if len(gaps) > 1 else (np.nan, np.nan)
    return {"pairs": len(gaps), "difference": gaps.mean(), "low": low, "high": high}


def checklist(table, *, by="method"):
    """What a table of results still lacks for a fair claim, after ShrinkBench's checklist (Blalock 2020).

    A DataFrame: item, ok, found. It looks at columns only: what was not recorded counts as missing.
    """
    import pandas as pd

    if by not in table:
        raise nearest("column", by, list(table.columns))
    level = "asked_sparsity" if "asked_sparsity" in table else "sparsity" if "sparsity" in table else None
    pruned = table[table[level] > 0] if level else table
    points = int(pruned.groupby(by)[level].nunique().min()) if level and len(pruned) else 0
    runs = [c for c in (by, level, *POINT[:2]) if c and c in table]
    seeds = int(table.groupby(runs).seed.nunique().min()) if "seed" in table and runs else 0
    start = _one_value(table, "initial", ("data", "model", "seed"))
    equal = _one_value(table, "budget_train", ("data", "model"))
    has = set(table.columns)
    items = [
        ("sizes, raw and relative", {"weights", "kept"} <= has, "weights, kept: the ratio follows"),
        ("both metrics: size and multiply-adds", {"kept", "macs", "sparse_macs"} <= has, "kept, macs, sparse_macs"),
        ("validation to choose and test to report", {"val_accuracy", "test_accuracy"} <= has, "two accuracies"),
        ("at least five operating points", points >= 5, f"{points} sparsities above 0 in the poorest {by}"),
        ("at least three seeds", seeds >= 3, f"{seeds} seeds at the poorest point"),
        ("the same initial model for every method", start, "fingerprint of the initial weights per seed"),
        ("equal training budgets", equal, "budget_train per data set and model"),
        ("a random baseline", "random" in set(table[by]), f"{by}s: {', '.join(map(str, table[by].unique()))}"),
        ("the dense network", bool(level) and bool((table[level] == 0).any()), "a run at sparsity 0"),
    ]  # fmt: skip
    return pd.DataFrame(items, columns=["item", "ok", "found"])


def _one_value(table, column, within):
    """Whether a column is known for every run, and the same for all that share the columns `within`."""
    if not {column, *within} <= set(table.columns) or table[column].isna().any():
        return False
    return bool((table.groupby(list(within))[column].nunique() == 1).all())
