"""experiment: names in, flat numbers out, the same ones every time; sweep: every point once, in this process."""

import json
import math
import os
from functools import partial
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import joblib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pai_lab as pai
from pai_lab.catalog import _REGISTRY
from pai_lab.sweep import methods, resolve


def toy():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(180) % 3
    x = torch.randn(180, 4, generator=generator) * 0.3 + F.one_hot(y, 4)
    return pai.Data("toy", (x[:60], y[:60]), (x[60:120], y[60:120]), (x[120:], y[120:]))


def small(data):
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, len(data.classes)))


DATA = toy()
SETTINGS = {"data": DATA, "model": small, "method": "snip", "sparsity": 0.5, "seed": 1, "epochs": 2}


def run(**change):
    return pai.experiment(**(SETTINGS | {"batch_size": 20, "per_class": 5} | change))


@pytest.fixture(autouse=True)
def own_methods(monkeypatch):
    monkeypatch.setitem(_REGISTRY, "method", dict(_REGISTRY["method"]))


def test_a_flat_row_of_plain_values():
    row = run(lr=0.01)
    assert json.loads(json.dumps(row)) == row
    assert all(type(value) in (str, int, float, bool) for value in row.values())
    asked = {
        "data": "toy",
        "model": "small",
        "method": "snip",
        "asked_sparsity": 0.5,
        "seed": 1,
        "epochs": 2,
        "lr": 0.01,
    }
    assert asked.items() <= row.items()
    total = 4 * 16 + 16 * 8 + 8 * 3
    assert row["sparsity"] == 1 - round(0.5 * total) / total
    assert row["budget_train"] == 120 and row["budget_scoring"] == 15 and row["budget_total"] == 135
    assert 0 <= row["val_accuracy"] <= 1 and 0 <= row["test_accuracy"] <= 1 and row["seconds"] > 0
    assert math.isfinite(row["test_loss"])


@pytest.mark.parametrize("method", ["snip", "synflow", "random", "magnitude"])
def test_every_criterion_is_a_method_and_the_same_twice(method):
    torch.manual_seed(1)
    one = run(method=method)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = run(method=method)
    assert torch.equal(torch.get_rng_state(), before)
    assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in two.items() if k != "seconds"}
    assert method in methods() and one["method"] == method
    assert run(method=method, seed=2)["test_loss"] != one["test_loss"]


@pytest.mark.parametrize("method", ["snip", "random"])
def test_it_is_prune_then_train(method):
    model = pai.build(small, DATA, seed=1)
    mask = pai.prune(model, method, 0.5, batch=DATA.score_batch(per_class=5, seed=1), seed=1)
    expected = pai.train(model, DATA, mask=mask, epochs=2, batch_size=20, seed=1, progress=False)
    assert expected.metrics.items() <= run(method=method).items()


def test_sparsity_zero_is_the_dense_net():
    row = run(sparsity=0, method="synflow")
    assert row["sparsity"] == 0 and row["budget_scoring"] == 0


def test_options_go_where_they_belong():
    seen = {}

    def sgd(parameters, lr):
        seen["lr"] = lr
        return torch.optim.SGD(parameters, lr)

    row = run(
        structure="filter",
        scope="layer",
        optimizer=sgd,
        lr=0.3,
        schedule="constant",
        mode="eval",
        iterations=2,
    )
    assert seen == {"lr": 0.3} and row["optimizer"] == "sgd" and row["structure"] == "filter" and row["iterations"] == 2
    total = 4 * 16 + 16 * 8 + 8 * 3
    assert row["sparsity"] == (8 * 4 + 4 * 16) / total  # half of the rows of both hidden layers, none of the output's
    assert row["budget_scoring"] == 30


def test_an_option_that_nobody_takes():
    with pytest.raises(TypeError, match="batch_sise"):
        run(batch_sise=3)


@pytest.mark.parametrize("threads", [1, 2])
def test_one_thread_inside_and_as_before_outside(threads):
    inside = []

    def method(model, data, sparsity, seed, epochs, **options):
        inside.append(torch.get_num_threads())
        if sparsity == 1:
            raise ZeroDivisionError
        return pai.train(model, data, epochs=epochs, seed=seed, progress=False)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        run(method=method)
        with pytest.raises(ZeroDivisionError):
            run(method=method, sparsity=1)
        assert inside == [1, 1] and torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_function_and_a_registered_method():
    given = []

    @pai.method("half and half", family="mine")
    def recipe(model, data, sparsity, seed, epochs, *, twist=1, per_class=None, **options):
        given.append((sparsity, seed, epochs, twist))
        mask = pai.prune(model, "magnitude", sparsity, seed=seed)
        return pai.train(model, data, mask=mask, epochs=epochs, seed=seed, **options)

    by_name = run(method="half and half", twist=3)
    by_function = run(method=recipe, twist=3)
    assert given == [(0.5, 1, 2, 3)] * 2 and "half and half" in methods()
    assert by_name["method"] == "half and half" and by_function["method"] == "recipe"
    assert by_name["test_loss"] == by_function["test_loss"] and by_name["twist"] == 3


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown method 'synflo'.*Did you mean 'synflow'") as error:
        run(method="synflo")
    assert all(repr(name) in str(error.value) for name in ("random", "magnitude", "snip"))
    with pytest.raises(ValueError, match="Did you mean 'mlp'"):
        run(model="mlpp")
    with pytest.raises(ValueError, match="Did you mean"):
        run(data="digit")
    with pytest.raises(ValueError, match="Allowed"):
        resolve(None)


@pytest.mark.parametrize(
    "change, words",
    [({"sparsity": 90}, "0.9"), ({"epochs": 0}, "epochs"), ({"seed": -1}, "seed"), ({"init": "he"}, "init")],
)
def test_errors_are_those_of_the_parts(change, words):
    with pytest.raises(ValueError, match=words):
        run(**change)


def test_an_interrupt_is_raised_and_not_recorded(capsys):
    class Interrupt(pai.Callback):
        def on_step(self, training):
            raise KeyboardInterrupt

    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[Interrupt()])
    assert torch.get_num_threads() == before


def test_by_name_on_a_real_data_set():
    row = pai.experiment(data="digits", model="lenet_300_100", method="random", sparsity=0.5, seed=0, epochs=3)
    assert (row["data"], row["model"], row["budget_train"]) == ("digits", "lenet_300_100", 3 * 897)
    assert row["sparsity"] == pytest.approx(0.5, abs=1e-4) and row["test_accuracy"] > 0.7


# A grid of runs


def work(seed, rate=0.5, note="", broken="", kind="good"):
    """A run that fails as long as a file named `broken` holds its seed; counts its calls in `CALLS`."""
    CALLS.append(seed)
    if broken and str(seed) in Path(broken).read_text().split():
        raise ZeroDivisionError(f"seed {seed} is broken")
    result = {"good": {"value": rate * seed}, "tensor": torch.ones(2), "nothing": None, "nested": {"value": [1]}}
    if kind == "exit":
        raise SystemExit("no more")
    return result[kind]


CALLS = []


@pytest.fixture
def here(tmp_path):
    """Sweeps in this process; gives a folder for results."""
    CALLS.clear()
    with joblib.parallel_config(n_jobs=1):
        yield tmp_path / "results"


def test_all_points_once_and_none_again(here):
    grid = {"rate": np.array([0.5, 2.0]), "seed": range(3)}
    table = pai.sweep(work, grid, folder=here, fixed={"note": "x"})
    assert list(table.value) == [0, 0.5, 1, 0, 2, 4] and list(table.rate) == [0.5] * 3 + [2.0] * 3
    assert list(table.seed) == [0, 1, 2] * 2 and set(table.note) == {"x"} and set(table.kind) == {"good"}
    assert set(table.pai_lab) == {pai.__version__} and table.attrs == {"versions": [pai.__version__], "failed": []}
    assert len(CALLS) == 6 and (table.seconds >= 0).all()
    some = [{"seed": seed, "rate": rate} for rate in (0.5, 2) for seed in (2, 1)]
    again = pai.sweep(work, some, folder=here, fixed={"note": "x"})
    assert len(CALLS) == 6 + 2  # the whole number 2 is another setting than 2.0: who is asked may care
    assert list(again.value) == [1, 0.5, 4, 2]
    stored = pai.results(here)
    assert len(stored) == 8 and set(stored.columns) == set(table.columns)


def test_a_default_is_a_setting(here):
    def same(seed, rate=0.5):
        CALLS.append(rate)
        return {"value": rate}

    def other(seed, rate=0.25):
        CALLS.append(rate)
        return {"value": rate}

    other.__qualname__ = same.__qualname__  # the same function after an edit of its default
    for run, value in ((same, 0.5), (other, 0.25), (same, 0.5)):
        assert list(pai.sweep(run, {"seed": [1]}, folder=here).value) == [value]
    assert list(pai.sweep(other, {"seed": [1], "rate": [0.5]}, folder=here).value) == [0.5]
    assert CALLS == [0.5, 0.25]


def test_what_a_file_keeps(here):
    pai.sweep(work, {"seed": [3]}, folder=here)
    [path] = here.iterdir()
    record = json.loads(path.read_text())
    settings = {"seed": 3, "rate": 0.5, "note": "", "broken": "", "kind": "good"}
    assert record["settings"] == settings and record["point"] == {"seed": 3} and record["result"]["value"] == 1.5
    assert record["provenance"]["pai_lab"] == pai.__version__ and record["key"] == path.stem


def test_another_version_is_a_hit_and_said(here, monkeypatch):
    pai.sweep(work, {"seed": [1]}, folder=here)
    monkeypatch.setattr(pai, "__version__", "9.9")
    with pytest.warns(UserWarning, match=f"mixes runs of pai_lab {pai_version()} and 9.9"):
        table = pai.sweep(work, {"seed": [1, 2]}, folder=here)
    assert CALLS == [1, 2] and list(table.pai_lab) == [pai_version(), "9.9"]


def pai_version():
    return version("pai_lab")


def test_a_failed_run_is_recorded_and_only_it_is_tried_again(here, tmp_path, capsys):
    (tmp_path / "broken").write_text("1 3")
    grid, fixed = {"seed": range(5)}, {"broken": str(tmp_path / "broken")}
    table = pai.sweep(work, grid, folder=here, fixed=fixed)
    assert list(table.seed) == [0, 2, 4] and [one["seed"] for one in table.attrs["failed"]] == [1, 3]
    said = capsys.readouterr().out
    assert "2 of 5 runs failed" in said and "ZeroDivisionError: seed 3 is broken" in said
    assert len(pai.results(here).attrs["failed"]) == 2 and any("Traceback" in p.read_text() for p in here.iterdir())
    CALLS.clear()
    (tmp_path / "broken").write_text("3")
    table = pai.sweep(work, grid, folder=here, fixed=fixed)
    assert CALLS == [1, 3] and list(table.seed) == [0, 1, 2, 4]
    (tmp_path / "broken").write_text("")
    table = pai.sweep(work, grid, folder=here, fixed=fixed)
    assert CALLS == [1, 3, 3] and list(table.seed) == list(range(5)) and table.attrs["failed"] == []
    assert pai.results(here).attrs["failed"] == [] and len(list(here.iterdir())) == 5


def test_when_all_runs_fail(here, capsys):
    for kind, words in {
        "tensor": "got Tensor",
        "nothing": "got NoneType",
        "nested": "'value' is list",
        "exit": "SystemExit: no more",
    }.items():
        table = pai.sweep(work, {"seed": [1, 2]}, folder=here, fixed={"kind": kind})
        assert len(table) == 0 and len(table.attrs["failed"]) == 2
        assert capsys.readouterr().out.count(words) == 2


def test_a_corrupt_result_is_named_and_run_again(here):
    pai.sweep(work, {"seed": range(3)}, folder=here)
    path = sorted(here.iterdir())[1]
    path.write_text(path.read_text()[:50])
    with pytest.warns(UserWarning, match=f"{path.name} is no whole result; set aside as .*{path.stem}.corrupt"):
        table = pai.sweep(work, {"seed": range(3)}, folder=here)
    assert list(table.value) == [0, 0.5, 1] and len(CALLS) == 4
    assert pai.sweep(work, {"seed": range(3)}, folder=here).equals(table) and len(CALLS) == 4


def test_an_interrupt_in_this_process(here, capsys):
    def once(seed):
        CALLS.append(seed)
        if seed == 2 and len(CALLS) == 3:
            raise KeyboardInterrupt
        return {"value": seed}

    with pytest.raises(KeyboardInterrupt):
        pai.sweep(once, {"seed": range(4)}, folder=here)
    assert "the same call goes on from there" in capsys.readouterr().out and len(list(here.iterdir())) == 2
    assert list(pai.sweep(once, {"seed": range(4)}, folder=here).value) == [0, 1, 2, 3]
    assert CALLS == [0, 1, 2, 2, 3]


def test_a_folder_relative_to_here(here, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()

    def moves(seed):
        os.chdir(tmp_path / "elsewhere")  # as a worker that stands in another folder
        return {"value": seed}

    monkeypatch.chdir(tmp_path)
    pai.sweep(moves, {"seed": range(3)}, folder="mine")
    monkeypatch.chdir(tmp_path)
    assert len(pai.results("mine")) == 3 and not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    "grid, fixed, error, words",
    [
        ({}, None, ValueError, "the grid is empty"),
        ([], None, ValueError, "the grid is empty"),
        ({"seed": []}, None, ValueError, "the grid is empty"),
        ({"seed": 3}, None, TypeError, r"grid\['seed'\] must be a list.*3; one value belongs in fixed"),
        ({"seed": [1], "note": "abc"}, None, TypeError, r"grid\['note'\] must be a list"),
        ([1, 2], None, TypeError, "list of dicts; it holds 1"),
        ({"seed": [1, 2, 1]}, None, ValueError, r"more than once: \{'seed': 1\}"),
        ([{"seed": 1}, {"seed": 1, "rate": 0.5}], None, ValueError, "more than once"),
        ({"seed": np.array([1, 1])}, None, ValueError, "more than once"),
        ({"seed": [1], "note": [torch.ones(1)]}, None, TypeError, "setting note=tensor.*JSON"),
        ({"seed": [1], "note": [open]}, None, TypeError, "setting note=.*Register it"),
        ({"seed": [1]}, {"note": {1, 2}}, TypeError, "setting note="),
        ({"seed": [1], "rate": [float("nan")]}, None, ValueError, "setting rate=nan"),
        ({"seed": [1]}, {"seed": 2}, ValueError, r"\['seed'\] stand both in grid and fixed"),
        ({"seed": [1], "ratte": [1]}, None, ValueError, "unknown setting of .*work 'ratte'. Did you mean 'rate'"),
        ({"rate": [1]}, None, TypeError, "work needs seed"),
    ],
)
def test_bad_grids_are_refused_before_anything_runs(here, grid, fixed, error, words):
    with pytest.raises(error, match=words):
        pai.sweep(work, grid, folder=here, fixed=fixed)
    assert CALLS == [] and not here.exists()


@pytest.mark.parametrize("run", [lambda seed: {"value": seed}, partial(work, rate=1), Mock()])
def test_a_run_without_a_name_is_refused(here, run):
    with pytest.raises(TypeError, match="no name to find its results by"):
        pai.sweep(run, {"seed": [1]}, folder=here)


EXPERIMENT = {"data": "digits", "model": "mlp", "epochs": 1, "sparsity": 0.5}


@pytest.mark.parametrize(
    "grid, words",
    [
        ({"method": ["random", "synflo"]}, "unknown method 'synflo'. Did you mean 'synflow'"),
        ({"method": ["snip"], "learning_rte": [1]}, "unknown setting of criterion snip 'learning_rte'"),
        ({"method": ["snip"], "batchsize": [1]}, "Did you mean 'batch_size'"),
        ({"method": ["snip"], "per_clas": [1]}, "Did you mean 'per_class'"),
        ({"method": ["strict"], "twst": [1]}, "Did you mean 'twist'"),
    ],
)
def test_unknown_settings_of_an_experiment(here, grid, words):
    @pai.method
    def strict(model, data, sparsity, seed, epochs, *, twist=1):
        return None

    with pytest.raises(ValueError, match=words):
        pai.sweep(pai.experiment, grid | {"seed": [1]}, folder=here, fixed=EXPERIMENT)
    with pytest.raises(TypeError, match="needs seed"):
        pai.sweep(pai.experiment, grid, folder=here, fixed=EXPERIMENT)


def test_a_folder_that_cannot_be_written(here, tmp_path):
    (tmp_path / "file").write_text("")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for folder in [tmp_path / "file", tmp_path / "file" / "below"] + ([closed] if os.geteuid() else []):
        with pytest.raises(OSError, match=r"results cannot be written to .*Give another folder="):
            pai.sweep(work, {"seed": [1]}, folder=folder)
    assert CALLS == []


def test_the_rows_of_experiments(here):
    grid = {"method": ["random", "magnitude"], "sparsity": [0, 0.9], "seed": [np.int64(1)]}
    table = pai.sweep(pai.experiment, grid, folder=here, fixed={"data": "digits", "model": "mlp", "epochs": 1})
    assert list(table.asked_sparsity) == [0, 0.9] * 2 and table.attrs["failed"] == []
    columns = "sparsity kept weights macs sparse_macs dense_bytes bitmap_bytes budget_train budget_scoring budget_total"
    columns += " device seconds pai_lab torch python machine init optimizer lr batch_size structure scope initial"
    assert set(columns.split()) <= set(table)
    assert list(table.sparsity) == list(1 - table.kept / table.weights) and table.initial.nunique() == 1
    assert table.sparsity.to_numpy() == pytest.approx([0, 0.9] * 2, abs=1e-4)
    assert (table.lr == 2e-3).all() and (table.structure == "weight").all() and (table.device == "cpu").all()
    row = pai.experiment(data="digits", model="mlp", method="magnitude", sparsity=0.9, seed=1, epochs=1)
    stored = table.iloc[3].to_dict()
    assert {k: v for k, v in row.items() if k != "seconds"}.items() <= stored.items()
    assert pai.checklist(table).ok.sum() >= 6 and len(pai.compare(table)) == 4


def test_the_settings_of_a_criterion_and_a_method_are_resolved(here, monkeypatch):
    monkeypatch.setitem(_REGISTRY, "criterion", dict(_REGISTRY["criterion"]))

    @pai.criterion("mine", defaults={"mode": "train"})
    def mine(model, batch, mask, *, power=2, norm=torch.abs):
        return {name: w.detach().abs() ** power for name, w in pai.prunable(model).items()}

    @pai.method("recipe")
    def recipe(model, data, sparsity, seed, epochs, *, lr=0.125, twist=3, **options):
        return pai.train(model, data, epochs=epochs, seed=seed, lr=lr, **options)

    table = pai.sweep(pai.experiment, {"method": ["mine", "recipe"], "seed": [1]}, folder=here, fixed=EXPERIMENT)
    assert table.attrs["failed"] == []
    one, two = (json.loads(path.read_text())["settings"] for path in sorted(here.iterdir(), key=_method))
    assert (one["power"], one["norm"], one["criterion_mode"], one["lr"]) == (2, "abs", "train", 2e-3)
    assert (two["lr"], two["twist"]) == (0.125, 3) and "power" not in two


def _method(path):
    return json.loads(path.read_text())["settings"]["method"]
