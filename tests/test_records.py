"""Results on disk, fair comparisons and the checklist, against hand-made tables and other people's statistics."""

import itertools
import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

import pai_lab as pai
from pai_lab import records


def record(seed=0, version="1.0", run="mine.run", **result):
    settings = {"seed": seed, "method": "random"}
    return {
        "key": records.key(run, settings), "run": run, "point": settings, "settings": settings,
        "result": {"value": seed / 2} | result, "provenance": records.provenance() | {"pai_lab": version},
    }  # fmt: skip


# One record


@pytest.mark.parametrize(
    "given, kept",
    [
        (np.float32(0.25), 0.25), (np.int64(3), 3), (np.bool_(True), True), (True, True), (None, None), ("a", "a"),
        (Path("a/b"), "a/b"), ((1, np.int8(2)), [1, 2]), (range(3), [0, 1, 2]), ({"a": (1.5,)}, {"a": [1.5]}),
        (Fraction(1, 4), 0.25), (np.str_("a"), "a"),
    ],
)  # fmt: skip
def test_a_setting_in_the_form_that_json_keeps(given, kept):
    found = records.plain("x", given)
    assert found == kept and type(found) is type(kept) or isinstance(found, str)
    assert json.loads(json.dumps(found)) == kept


@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.ones(2), {1, 2}, object(), torch.relu, 1j, b"a"])
def test_a_value_that_json_cannot_hold_is_named(value):
    with pytest.raises(TypeError, match=r"setting lr=.*cannot be written as JSON"):
        records.plain("lr", value)
    with pytest.raises(TypeError, match=r"setting lr\['a'\]\[1\]="):
        records.plain("lr", {"a": [0, value]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("-inf")])
def test_a_value_that_is_not_finite_is_named(value):
    with pytest.raises(ValueError, match="setting lr=.*not finite"):
        records.plain("lr", value)


def test_a_result_is_flat_numbers_and_names():
    result = {"a": np.float64(0.5), "b": np.int32(2), "c": "x", "d": None, "e": np.bool_(False), "f": Fraction(1, 2)}
    found = records.flat(result)
    assert found == {"a": 0.5, "b": 2, "c": "x", "d": None, "e": False, "f": 0.5}
    assert [type(v) for v in found.values()] == [float, int, str, type(None), bool, float]


@pytest.mark.parametrize(
    "result, words",
    [
        (None, "got NoneType"), (torch.ones(1), "got Tensor"), ({}, "flat dict"), (3.0, "got float"),
        ({"a": torch.tensor(1.0)}, "'a' is Tensor: use float"), ({"a": [1]}, "'a' is list"), ({1: 2}, "1 is int"),
    ],
)  # fmt: skip
def test_a_result_that_is_not_is_refused(result, words):
    with pytest.raises(TypeError, match=words):
        records.flat(result)


# A folder


def test_written_and_read(tmp_path):
    one = record(seed=3)
    records.write(tmp_path, one)
    assert records.read(tmp_path, one["key"]) == one and records.read(tmp_path, "0" * 24) is None
    assert [path.name for path in tmp_path.iterdir()] == [f"{one['key']}.json"]


def test_a_failed_run_is_no_result_and_never_replaces_one(tmp_path):
    good = record()
    bad = {k: v for k, v in good.items() if k != "result"} | {"error": "ValueError: no", "traceback": ""}
    records.write(tmp_path, bad)
    assert records.read(tmp_path, bad["key"]) is None
    table = pai.results(tmp_path)
    assert len(table) == 0 and table.attrs["failed"] == [bad["settings"]]
    for one in (good, bad):
        records.write(tmp_path, one)
    assert records.read(tmp_path, good["key"]) == good and pai.results(tmp_path).attrs["failed"] == []


def test_a_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        records.write(tmp_path, record() | {"result": object()})
    assert list(tmp_path.iterdir()) == []


def change(**with_):
    return lambda text: json.dumps(json.loads(text) | with_)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[1, 2]", lambda text: "null",
        lambda text: text.encode()[:40] + b"\xff\xfe", change(result=None), change(result=[1]), change(key="0" * 24),
        change(settings={"seed": 1, "method": "random"}), change(run="other.run"), change(settings=3),
        lambda text: text.replace('"provenance"', '"provenence"'),
    ],
)  # fmt: skip
def test_a_corrupt_file_is_named_and_set_aside(tmp_path, damage):
    one, other = record(seed=0), record(seed=1)
    for good in (one, other):
        records.write(tmp_path, good)
    path = tmp_path / f"{one['key']}.json"
    damaged = damage(path.read_text())
    path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    kept = path.read_bytes()
    with pytest.warns(UserWarning, match=f"{one['key']}.json is no whole result; set aside"):
        table = pai.results(tmp_path)
    assert list(table.seed) == [1] and (tmp_path / f"{one['key']}.corrupt").read_bytes() == kept
    assert not path.exists() and records.read(tmp_path, one["key"]) is None


def test_a_result_under_another_name_is_not_trusted(tmp_path):
    one, other = record(seed=0), record(seed=1)
    records.write(tmp_path, one)
    shutil.copy(tmp_path / f"{one['key']}.json", tmp_path / f"{other['key']}.json")
    with pytest.warns(UserWarning, match=f"{other['key']}.json is no whole result"):
        assert records.read(tmp_path, other["key"]) is None


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    records.write(tmp_path, record())
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / f".{'0' * 24}.abcd.part").write_text('{"half')  # what a killed process leaves behind
    assert len(pai.results(tmp_path)) == 1 and (tmp_path / "package.json").exists()


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of results"):
        pai.results(tmp_path / "none")


def test_mixed_versions_are_said(tmp_path):
    for seed, version in enumerate(["1.0", "1.1", "1.0"]):
        records.write(tmp_path, record(seed, version))
    with pytest.warns(UserWarning, match="mixes runs of pai_lab 1.0 and 1.1"):
        table = pai.results(tmp_path)
    assert table.attrs["versions"] == ["1.0", "1.1"]
    assert {"pai_lab", "torch", "python", "machine", "processor"} <= set(table)


# Comparisons


def runs(values, by="method", **columns):
    """A table of runs from {name: {seed: value}}."""
    rows = [{by: n, "seed": s, "test_accuracy": v} for n, found in values.items() for s, v in found.items()]
    return pd.DataFrame(rows).assign(**{"data": "digits", "model": "mlp", "asked_sparsity": 0.9} | columns)


ACCURACIES = {
    "random": dict(enumerate([0.50, 0.55, 0.45, 0.52, 0.61, 0.48])),
    "snip": dict(enumerate([0.70, 0.66, 0.71, 0.69, 0.77, 0.64])),
    "synflow": dict(enumerate([0.55, 0.52, 0.48, 0.56, 0.60])),
}


def test_mean_std_and_n_are_those_of_the_statistics_books():
    found = pai.compare(runs(ACCURACIES).sample(frac=1, random_state=0)).set_index("method")
    for name, values in ACCURACIES.items():
        values = np.array(list(values.values()))
        assert found.n[name] == len(values) and found["mean"][name] == pytest.approx(values.sum() / len(values))
        assert found["std"][name] == pytest.approx(np.sqrt(((values - values.mean()) ** 2).sum() / (len(values) - 1)))


def test_the_paired_difference_and_its_interval_are_scipys():
    table = pai.compare(runs(ACCURACIES), confidence=0.9).set_index("method")
    for name in ("snip", "synflow"):
        gaps = [value - ACCURACIES["random"][seed] for seed, value in ACCURACIES[name].items()]
        low, high = scipy.stats.bootstrap(
            (gaps,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=1
        ).confidence_interval
        assert table.pairs[name] == len(gaps) and table.difference[name] == pytest.approx(np.mean(gaps))
        assert (table.low[name], table.high[name]) == (pytest.approx(low, abs=2e-3), pytest.approx(high, abs=2e-3))
    assert table.pairs["random"] == 0 and np.isnan(table.difference["random"])


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_the_interval_is_that_of_all_resamplings(n):
    """For few seeds all n^n resamplings can be listed: a bound lies where 2.5% of their means are beyond it."""
    gaps = np.array([0.01, 0.05, -0.02, 0.11, 0.04])[:n]
    table = {"random": dict.fromkeys(range(n), 0.5), "snip": dict(enumerate(0.5 + gaps))}
    found = pai.compare(runs(table)).iloc[1]
    means = np.sort([np.mean(gaps[list(draw)]) for draw in itertools.product(range(n), repeat=n)])
    # 10,000 draws know a share of 2.5% to about 0.3%
    around = np.quantile(means, [0.02, 0.03, 0.97, 0.98], method="inverted_cdf")
    assert around[0] - 1e-12 <= found.low <= around[1] + 1e-12
    assert around[2] - 1e-12 <= found.high <= around[3] + 1e-12


def test_only_common_seeds_are_paired():
    table = {"random": {0: 0.5, 1: 0.6}, "snip": {1: 0.7, 2: 0.1, 3: 0.2}}
    found = pai.compare(runs(table)).set_index("method")
    assert found.pairs["snip"] == 1 and found.difference["snip"] == pytest.approx(0.1) and found.n["snip"] == 3
    assert np.isnan(found.low["snip"]) and np.isnan(found.high["snip"])  # one pair says nothing about the spread
    assert found["std"]["snip"] == pytest.approx(np.std([0.7, 0.1, 0.2], ddof=1))


def test_no_common_seed_is_refused():
    with pytest.raises(ValueError, match="snip and random share no seed at .*0.9"):
        pai.compare(runs({"random": {0: 0.5}, "snip": {1: 0.7}}))


def test_every_operating_point_is_compared_for_itself():
    halves = {n: {s: v / 2 for s, v in found.items()} for n, found in ACCURACIES.items()}
    both = pd.concat([runs(halves, asked_sparsity=0.98), runs(ACCURACIES)])
    whole = pai.compare(both)
    assert list(whole.asked_sparsity) == [0.9] * 3 + [0.98] * 3
    pd.testing.assert_frame_equal(whole[:3], pai.compare(runs(ACCURACIES)))
    assert list(whole["mean"][3:]) == pytest.approx(list(whole["mean"][:3] / 2))


def test_a_point_without_the_baseline_has_means_and_no_difference():
    both = pd.concat([runs(ACCURACIES), runs({"snip": {0: 0.3, 1: 0.4}}, asked_sparsity=0.98)])
    last = pai.compare(both).iloc[-1]
    assert last["mean"] == pytest.approx(0.35) and last.pairs == 0 and np.isnan(last.difference)


def test_runs_that_lack_a_column_of_the_point_are_not_dropped():
    both = pd.concat([runs(ACCURACIES, structure="filter"), runs({"dense": {0: 0.9}})])
    found = pai.compare(both)
    assert list(found.method) == ["random", "snip", "synflow", "dense"] and found["mean"].iloc[-1] == 0.9


def test_a_missing_value_is_not_averaged_away():
    found = pai.compare(runs(ACCURACIES | {"snip": {0: 0.7, 1: float("nan"), 2: 0.8}})).set_index("method")
    assert np.isnan(found["mean"]["snip"]) and np.isnan(found["std"]["snip"]) and np.isnan(found.difference["snip"])
    assert not np.isnan(found["mean"]["random"])


def test_other_columns_baselines_and_metrics():
    table = runs({2: {0: 0.1, 1: 0.3}, 4: {0: 0.4, 1: 0.5}}, by="epochs").rename(columns={"seed": "fold"})
    table["loss"] = 1 - table.test_accuracy
    found = pai.compare(table, by="epochs", metric="loss", baseline=4, over="fold", at=["data"])
    assert list(found.columns) == "data epochs n mean std pairs difference low high".split()
    assert found.difference[0] == pytest.approx(0.25)
    by_validation = table.drop(columns="test_accuracy").assign(val_accuracy=0.5)
    assert list(pai.compare(by_validation, by="epochs", over="fold")["mean"]) == [0.5, 0.5]
    assert len(pai.compare(table, by="epochs", over="fold", at=[])) == 2


@pytest.mark.parametrize(
    "asked, words",
    [
        ({"by": "metod"}, "unknown column 'metod'. Did you mean 'method'"), ({"metric": "test_acc"}, "unknown column"),
        ({"baseline": "rando"}, "Did you mean 'random'"), ({"at": ["modell"]}, "Did you mean 'model'"),
        ({"by": "seed", "over": "method", "baseline": 9}, "unknown baseline 9"),
    ],
)  # fmt: skip
def test_unknown_names(asked, words):
    with pytest.raises(ValueError, match=words):
        pai.compare(runs(ACCURACIES), **asked)


def test_unequal_training_budgets_are_refused_unless_told():
    table = runs(ACCURACIES)
    equal = table.assign(budget_train=1000, budget_scoring=range(len(table)))
    pd.testing.assert_frame_equal(pai.compare(equal), pai.compare(table))
    between = equal.assign(budget_train=1000 + 10 * (table.method == "snip"))
    within = equal.assign(budget_train=1000 + 10 * ((table.method == "snip") & (table.seed == 0)))
    for unequal in (between, within):
        with pytest.raises(ValueError, match=r"different training budgets.*1010.*unequal_budgets=True"):
            pai.compare(unequal)
        pd.testing.assert_frame_equal(pai.compare(unequal, unequal_budgets=True), pai.compare(table))
    per_point = pd.concat([equal, equal.assign(asked_sparsity=0.98, budget_train=7)])
    assert len(pai.compare(per_point)) == 6


def test_a_seed_twice_is_refused_and_what_differs_is_named():
    table = runs(ACCURACIES).assign(lr=0.1, seconds=range(17))
    with pytest.raises(ValueError, match="seeds occur more than once.*at=.*: lr"):
        pai.compare(pd.concat([table, table.assign(lr=0.2)]))
    both = pai.compare(pd.concat([table, table.assign(lr=0.2)]), at=["lr"])
    assert list(both.lr) == [0.1] * 3 + [0.2] * 3


# The checklist


def fair():
    """A table that lacks nothing."""
    cells = itertools.product(["random", "snip"], [0, 0.5, 0.8, 0.9, 0.95, 0.98], range(3))
    return pd.DataFrame(
        [
            {"method": m, "asked_sparsity": s, "seed": n, "data": "digits", "model": "mlp", "initial": f"abc{n}",
             "budget_train": 100, "weights": 10, "kept": 5, "macs": 9, "sparse_macs": 4, "val_accuracy": 0.5,
             "test_accuracy": 0.4}
            for m, s, n in cells
        ]
    )  # fmt: skip


def lacking(table):
    found = pai.checklist(table)
    return set(found.item[~found.ok.astype(bool)])


def test_nothing_lacks_and_the_found_words():
    found = pai.checklist(fair())
    assert found.ok.all() and list(found.columns) == ["item", "ok", "found"] and len(found) == 9


METHOD, LEVEL, SEED = "method", "asked_sparsity", "seed"
FLIPS = {
    "sizes, raw and relative": lambda t: t.drop(columns="weights"),
    "both metrics: size and multiply-adds": lambda t: t.drop(columns="sparse_macs"),
    "validation to choose and test to report": lambda t: t.drop(columns="val_accuracy"),
    "at least five operating points": lambda t: t[(t[METHOD] == "random") | (t[LEVEL] != 0.9)],
    "at least three seeds": lambda t: t[(t[METHOD] == "random") | (t[LEVEL] != 0.9) | (t[SEED] != 2)],
    "the same initial model for every method": lambda t: t.assign(initial=t.initial + (t[METHOD] == "snip").map(str)),
    "equal training budgets": lambda t: t.assign(budget_train=100 + (t[METHOD] == "snip")),
    "a random baseline": lambda t: t.replace({METHOD: {"random": "synflow"}}),
    "the dense network": lambda t: t[t[LEVEL] > 0],
}


@pytest.mark.parametrize("item", FLIPS)
def test_each_item_flips_alone(item):
    assert lacking(FLIPS[item](fair())) == {item}


def test_what_was_not_recorded_is_missing():
    assert lacking(fair()[["method"]]) == set(FLIPS) - {"a random baseline"}
    assert "the same initial model for every method" in lacking(fair().drop(columns=["data", "model", "seed"]))
    assert lacking(fair().drop(columns="initial")) == {"the same initial model for every method"}
    with pytest.raises(ValueError, match="Did you mean 'method'"):
        pai.checklist(fair(), by="methodd")


def test_an_initial_model_known_for_some_runs_only_is_missing():
    table = fair()
    table.loc[table.method == "snip", "initial"] = None
    assert lacking(table) == {"the same initial model for every method"}
