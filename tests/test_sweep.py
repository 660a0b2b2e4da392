"""experiment: names in, flat numbers out, the same ones every time."""

import json
import math

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
