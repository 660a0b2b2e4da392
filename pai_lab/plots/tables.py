"""Tables of results, checked before anything is drawn: who has which accuracy where.

drawn, y = runs(table, "sparsity", "method", None, [("dense", 0.605)])
"""

import numpy as np
import pandas as pd


def runs(table, x, by, y, lines, within=()):
    """The rows as they are drawn: DataFrame(name, x, point, panel, seed, y); and the column the accuracy is from.

    Rows of one panel, name and point differ by their seed. `point` is what was asked for, where the table says so:
    what is left can differ a little between seeds. ValueError as `pai.plots.accuracy` tells.
    """
    table = pd.DataFrame(table)
    if table.empty:
        raise ValueError("the table of results is empty: there is nothing to draw")
    y = y or ("test_accuracy" if "test_accuracy" in table else "val_accuracy")
    if x == "compression" and x not in table:
        table = table.assign(compression=_compression(table))
    point = _point(table, x)
    need(table, [*within, by, x, point, "seed", y], "table")
    _check(table, x, by, y, [*within, by, point, "seed"])
    for name, value in lines:
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} must be a fraction in [0, 1], got {value}")
    places, points = (table[c].round(6) if c.endswith("sparsity") else table[c] for c in (x, point))
    panel = list(zip(*(table[column] for column in within), strict=True)) if within else [()] * len(table)
    columns = {"name": table[by], "x": places, "point": points, "panel": panel, "seed": table["seed"], "y": table[y]}
    drawn = pd.DataFrame(columns)
    _check_seeds(table, drawn, by, point)
    return drawn, y


def means(drawn):
    """One row per panel, name and point: the means x and y, std (over n - 1), low, high, n; along x."""
    found = drawn.groupby(["panel", "name", "point"], sort=False)
    spread = {"std": ("y", "std"), "low": ("y", "min"), "high": ("y", "max"), "n": ("y", "size")}
    return found.agg(x=("x", "mean"), y=("y", "mean"), **spread).reset_index().sort_values("x", kind="stable")


def need(table, columns, what):
    """ValueError for the first column that is not there, with those that are."""
    for column in columns:
        if column not in table:
            raise ValueError(f"the {what} has no column {column!r}; it has: {', '.join(map(str, table)) or 'none'}")


def _point(table, x):
    """The column whose values tell operating points apart."""
    if x in ("sparsity", "compression", "sparse_macs", "bitmap_bytes", "kept"):
        return "asked_sparsity" if "asked_sparsity" in table else "sparsity" if x != "compression" else x
    return x


def _compression(table):
    """Weights over weights kept; inf where nothing is kept."""
    if {"weights", "kept"} <= set(table):
        return table.weights / table.kept.astype(float)
    need(table, ["sparsity"], "table")
    return 1 / (1 - table.sparsity.round(6))


def _check(table, x, by, y, key):
    wrong = table[~table[y].between(0, 1)]
    if len(wrong):
        row = wrong.iloc[0]
        raise ValueError(
            f"{len(wrong)} of {len(table)} rows have no {y} in [0, 1]; the first has {row[y]} "
            f"({by} {row[by]}, {x} {row[x]}, seed {row['seed']}). Data are fractions (0.605, not 60.5); "
            "leave failed runs out"
        )
    if table[[*key, x]].isna().any(axis=None):
        raise ValueError(f"some rows have no {', '.join(dict.fromkeys([*key[:-1], x]))} or seed (NaN): leave them out")
    if x.endswith("sparsity") and not table[x].between(0, 1, inclusive="left").all():
        raise ValueError("sparsity must lie in [0, 1): what is left is drawn on a log scale, and 0 has no place")
    if x == "compression" and not table[x].between(1, np.inf, inclusive="left").all():
        raise ValueError("compression must be finite and at least 1: a network without weights has no place there")


def _check_seeds(table, drawn, by, point):
    key = ["panel", "name", "point", "seed"]
    twice = drawn.duplicated(key, keep=False).to_numpy()
    if not twice.any():
        return
    first = drawn[twice].iloc[0]
    same = table[[tuple(row) == tuple(first[key]) for row in drawn[key].itertuples(index=False)]]
    measured = ("accuracy", "loss", "seconds")
    differ = [c for c in same if same[c].astype(str).nunique() > 1 and not c.endswith(measured)]
    raise ValueError(
        f"{by} {first['name']}, {point} {first.point}, seed {first.seed} occurs {len(same)} times; these rows "
        f"differ in {', '.join(differ) or 'nothing'}. Select rows such that each seed counts once"
    )
