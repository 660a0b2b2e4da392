"""Resuming: after a crash, bit for bit what an uninterrupted training gives; or a refusal that says why."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pai_lab as pai


def toy():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(150) % 3
    x = torch.randn(150, 4, generator=generator) * 0.4 + F.one_hot(y, 4)
    return pai.Data("toy", (x[:50], y[:50]), (x[50:100], y[50:100]), (x[100:], y[100:]), augment=jitter)


def jitter(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def net(width=16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 3))


DATA = toy()
MASK = pai.prune(net(), "random", 0.6)


class Crash(pai.Callback):
    """Raise once a number of steps is reached."""

    def __init__(self, step, error=OSError):
        self.step, self.error = step, error

    def on_step(self, training):
        if training.step == self.step:
            raise self.error("power cut")


def fit(path, model=None, data=DATA, **options):
    defaults = {"epochs": 4, "batch_size": 16, "progress": False, "mask": MASK, "seed": 3}
    return pai.train(model or net(), data, checkpoint=path, **(defaults | options))


def rows(run):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.history]


def assert_same(one, two):
    assert rows(one) == rows(two) and one.metrics == two.metrics and one.budget == two.budget and one.mask == two.mask
    for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


SETTINGS = [
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01, "lr": 0.05},
    {"optimizer": "sgd", "lr": 0.05},
    {"optimizer": "adam"},
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"mask": None},
    {"optimizer": lambda parameters, lr: torch.optim.RMSprop(parameters, lr=lr, momentum=0.5)},
    {"schedule": "constant"},
]


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("crash", [6, 12])
def test_resuming_equals_never_stopping(tmp_path, options, crash):
    path = tmp_path / "run"
    whole = fit(None, **options)
    with pytest.raises(OSError, match="power cut"):
        fit(path, callbacks=[Crash(crash)], **options)
    torch.manual_seed(99)  # the world has moved on
    other = net()
    with torch.no_grad():
        other[0].weight.normal_()
    random = torch.get_rng_state()
    resumed = fit(path, other, **options)
    assert_same(whole, resumed)
    assert torch.equal(torch.get_rng_state(), random)
    assert [f.name for f in tmp_path.iterdir()] == ["run"]


def test_resuming_after_ctrl_c(tmp_path):
    run = fit(tmp_path / "run", callbacks=[Crash(10, KeyboardInterrupt)])
    assert run.interrupted and len(run.history) == 2
    assert_same(fit(None), fit(tmp_path / "run"))


def test_a_finished_checkpoint_gives_the_run_back(tmp_path):
    class Count(pai.Callback):
        steps = 0

        def on_step(self, training):
            self.steps += 1

    first, count = fit(tmp_path / "run"), Count()
    saved = (tmp_path / "run").read_bytes()
    again = fit(str(tmp_path / "run"), callbacks=[count])
    assert_same(first, again)
    assert count.steps == 0 and again.table().equals(first.table()) and (tmp_path / "run").read_bytes() == saved


def test_a_stopped_run_stays_stopped(tmp_path):
    class Stop(pai.Callback):
        def on_epoch(self, training):
            training.stop = training.epoch == 2

    first = fit(tmp_path / "run", callbacks=[Stop()])
    assert len(first.history) == 2
    assert_same(first, fit(tmp_path / "run"))


class Regrow(pai.Callback):
    def on_epoch(self, training):
        training.handle.update(training.handle.mask.shuffled(training.epoch))


def test_a_changed_mask_is_resumed(tmp_path):
    whole = fit(None, callbacks=[Regrow()])
    with pytest.raises(OSError, match="power cut"):
        fit(tmp_path / "run", callbacks=[Regrow(), Crash(10)])
    assert_same(whole, fit(tmp_path / "run", callbacks=[Regrow()]))


def test_the_mask_is_held_after_resuming(tmp_path):
    with pytest.raises(OSError, match="power cut"):
        fit(tmp_path / "run", callbacks=[Crash(6)])

    class Watch(pai.Callback):
        def on_step(self, training):
            assert all((w[~MASK[n]] == 0).all() for n, w in pai.prunable(training.model).items())

    assert fit(tmp_path / "run", callbacks=[Watch()]).mask == MASK


def test_the_scoring_budget_survives(tmp_path):
    mask = pai.Mask(MASK, budget=30)
    with pytest.raises(OSError, match="power cut"):
        fit(tmp_path / "run", mask=mask, callbacks=[Crash(6)])
    assert fit(tmp_path / "run", mask=mask).budget == {"train": 200, "scoring": 30, "total": 230}


def test_a_tied_weight(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3))
        model[2].weight = model[0].weight
        return model

    model = tied()
    start = copy.deepcopy(model)
    mask = pai.prune(model, "magnitude", 0.5)
    whole = fit(None, copy.deepcopy(start), mask=mask)
    with pytest.raises(OSError, match="power cut"):
        fit(tmp_path / "run", model, mask=mask, callbacks=[Crash(6)])
    resumed = fit(tmp_path / "run", tied(), mask=mask)
    assert_same(whole, resumed)
    assert resumed.model[0].weight is resumed.model[2].weight


def test_a_shuffling_loader(tmp_path):
    def loader():
        return DataLoader(TensorDataset(*DATA.train), 16, shuffle=True)

    whole = fit(None, data=loader())
    with pytest.raises(OSError, match="power cut"):
        fit(tmp_path / "run", data=loader(), callbacks=[Crash(6)])
    resumed = fit(tmp_path / "run", data=loader())
    assert [row["train_loss"] for row in whole.history] == [row["train_loss"] for row in resumed.history]
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


# -- refusals: nothing is changed ------------------------------------------------------------------
def refused(path, match, model=None, **options):
    model = model or net()
    before, file = copy.deepcopy(model.state_dict()), path.read_bytes()
    with pytest.raises(ValueError, match=match):
        fit(path, model, **options)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()) and path.read_bytes() == file


@pytest.fixture
def path(tmp_path):
    fit(tmp_path / "run", epochs=2)
    return tmp_path / "run"


@pytest.mark.parametrize(
    "options, shown",
    [
        ({"epochs": 5}, "epochs: 2 there, 5 now"),
        ({"lr": 0.5}, "lr: 0.002 there, 0.5 now"),
        ({"seed": 4}, "seed: 3 there, 4 now"),
        ({"optimizer": "sgd"}, "optimizer: 'adam' there, 'sgd' now"),
        ({"batch_size": 8}, "batch_size: 16"),
        ({"schedule": "constant"}, "schedule"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"mask": MASK.shuffled(1)}, "mask"),
        ({"mask": None}, "mask"),
        ({"data": pai.Data("other", DATA.train, DATA.val, DATA.test)}, "data: 'toy' there, 'other' now"),
    ],
)
def test_other_settings_are_shown(path, options, shown):
    refused(path, shown, **({"epochs": 2} | options))


def test_another_split_of_the_same_name_is_refused(path):
    (x, y), val, test = DATA.train, DATA.val, DATA.test
    other = pai.Data("toy", val, (x, y), test, augment=jitter)
    refused(path, "data|split", epochs=2, data=other)


def test_another_model_is_refused(tmp_path):
    fit(tmp_path / "run", mask=None)
    refused(tmp_path / "run", "another model.*0.weight", net(width=8), mask=None)
    longer = nn.Sequential(*net(), nn.Linear(3, 3))
    refused(tmp_path / "run", "another model.*5.weight", longer, mask=None)


@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_a_half_written_file_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "half-written", epochs=2)


def test_a_file_of_another_kind_is_refused(path):
    MASK.save(path)
    refused(path, "no pai_lab checkpoint", epochs=2)


def test_a_crash_while_writing_leaves_the_last_whole_one(tmp_path, monkeypatch):
    import os

    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise OSError("power cut")
        real(source, target)

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(OSError, match="power cut"):
        fit(tmp_path / "run")
    monkeypatch.undo()
    assert [f.name for f in tmp_path.iterdir()] == ["run"]
    assert_same(fit(None), fit(tmp_path / "run"))
