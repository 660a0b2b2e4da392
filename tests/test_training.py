"""The loop: bit for bit repeatable, masks held, hooks obeyed, interrupts survived, settings checked first."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pai_lab as pai
from pai_lab.training import Loaders, batches, steps_per_epoch


def toy(n=150, seed=0, **change):
    """Three separable clouds in the plane of 4 features."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = torch.randn(n, 4, generator=generator) * 0.3 + F.one_hot(y, 4)
    third = n // 3
    parts = {
        "train": (x[:third], y[:third]),
        "val": (x[third : 2 * third], y[third : 2 * third]),
        "test": (x[2 * third :], y[2 * third :]),
    }
    return pai.Data("toy", **(parts | change))


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


DATA = toy()
X, Y = DATA.train


def fit(model=None, data=DATA, **options):
    return pai.train(model or net(), data, **({"epochs": 3, "batch_size": 16, "progress": False} | options))


def mask_for(model, sparsity=0.6):
    return pai.prune(model, "random", sparsity)


def same(one, two):
    """Two histories, wall time aside."""
    drop = [[{k: v for k, v in row.items() if k != "seconds"} for row in run.history] for run in (one, two)]
    return drop[0] == drop[1]


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


# -- what comes out --------------------------------------------------------------------------------
def test_it_learns():
    run = fit(epochs=40, lr=0.02, optimizer="adam")
    assert run.metrics["test_accuracy"] > 0.95 and run.metrics["val_accuracy"] > 0.95
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"]


def test_the_same_seed_is_the_same_bit_for_bit():
    torch.manual_seed(1)
    one = fit(seed=7)
    torch.manual_seed(2)
    two = fit(seed=7)
    assert same(one, two) and equal(one.model, two.model) and one.metrics == two.metrics
    assert not same(one, fit(seed=8))


@pytest.mark.parametrize("kind", ["tensors", "loader"])
def test_the_global_random_state_is_untouched(kind):
    data = DATA if kind == "tensors" else DataLoader(TensorDataset(X, Y), 16, shuffle=True)
    model = net()
    before = torch.get_rng_state()
    fit(model, data)
    assert torch.equal(torch.get_rng_state(), before)


def test_history_metrics_budget_and_config():
    model = net()
    mask = pai.prune(model, "snip", 0.5, batch=DATA.score_batch(per_class=4))
    run = fit(model, mask=mask, epochs=2, batch_size=20, lr=0.01)
    columns = "epoch step lr sparsity train_loss train_accuracy val_loss val_accuracy seconds"
    assert list(run.table().columns) == columns.split() and run.table().epoch.tolist() == [1, 2]
    assert run.table().step.tolist() == [3, 6] and set(run.table().sparsity) == {mask.sparsity}
    assert run.budget == {"train": 100, "scoring": 12, "total": 112}
    assert run.metrics["sparsity"] == mask.sparsity and run.mask == mask and run.model is model
    val, test = pai.evaluate(model, DATA.val), pai.evaluate(model, DATA.test)
    assert run.metrics["val_accuracy"] == run.history[-1]["val_accuracy"] == val["accuracy"]
    assert (run.metrics["test_accuracy"], run.metrics["test_loss"]) == (test["accuracy"], test["loss"])
    assert run.history[-1]["val_loss"] == val["loss"] and not run.interrupted
    assert run.config["lr"] == 0.01 and run.config["epochs"] == 2 and run.config["mask"] == mask.fingerprint
    assert fit(epochs=1).budget == {"train": 50, "scoring": 0, "total": 50}
    assert all(p.grad is None for p in model.parameters())


def test_the_loss_of_an_epoch_is_the_mean_over_samples():
    model = nn.Sequential(nn.Linear(4, 3))
    start = copy.deepcopy(model)
    run = fit(model, optimizer="sgd", lr=0, epochs=1, batch_size=16)  # nothing moves
    assert equal(model, start)
    found = run.history[0]
    assert found["train_loss"] == pytest.approx(F.cross_entropy(start(X), Y).item(), rel=1e-6)
    assert found["train_accuracy"] == (start(X).argmax(1) == Y).sum().item() / len(Y)


def test_one_step_of_sgd_by_hand():
    model = nn.Linear(4, 3, bias=False)
    weight = model.weight.detach().clone()
    gradient = ((X @ weight.T).softmax(1) - F.one_hot(Y, 3)).T @ X / len(X)
    fit(model, optimizer="sgd", lr=0.5, weight_decay=0.1, epochs=1, batch_size=len(X), schedule="constant")
    assert torch.allclose(model.weight, weight - 0.5 * (gradient + 0.1 * weight), atol=1e-6)


def test_evaluate_by_hand():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    x, y = torch.tensor([[3.0, 0], [0, 1], [2, 0], [0, 0.5]]), torch.tensor([0, 1, 1, 1])
    found = pai.evaluate(model, (x, y))
    log = [
        math.log1p(math.exp(-3)),
        math.log1p(math.exp(-1)),
        math.log1p(math.exp(2)),
        math.log1p(math.exp(-0.5)),
    ]
    assert found["loss"] == pytest.approx(sum(log) / 4, rel=1e-6) and found["accuracy"] == 0.75
    loader = DataLoader(TensorDataset(x, y), batch_size=3)
    assert pai.evaluate(model, loader) == pytest.approx(found)
    many = pai.evaluate(model, (x.repeat(700, 1), y.repeat(700)))  # more than one batch
    assert many == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("flags", [(True,) * 6, (False,) * 6, (True, False, False, True, False, True)])
def test_evaluate_puts_every_flag_back(flags):
    model = net()
    for module, flag in zip(model.modules(), flags, strict=True):
        module.training = flag
    buffers = copy.deepcopy(model.state_dict())
    pai.evaluate(model, DATA.val)
    assert tuple(m.training for m in model.modules()) == flags
    assert all(torch.equal(t, buffers[n]) for n, t in model.state_dict().items())
    with pytest.raises(RuntimeError):
        pai.evaluate(model, (X[:, :2], Y))
    assert tuple(m.training for m in model.modules()) == flags


def test_evaluate_of_nothing_is_told():
    with pytest.raises(ValueError, match="empty|sample"):
        pai.evaluate(net(), (X[:0], Y[:0]))


def test_the_progress_bar_stays_silent_or_warns_of_nothing(capsys):
    run = fit(progress=True)
    assert same(run, fit()) and capsys.readouterr().out == ""


# -- the order of the samples ----------------------------------------------------------------------
@pytest.mark.parametrize("n, size", [(897, 64), (5, 64), (64, 64), (65, 64), (10, 1)])
def test_batches_cover_each_sample_once_in_even_sizes(n, size):
    x = torch.arange(n).float()[:, None]
    found = list(batches((x, torch.arange(n)), size, torch.Generator().manual_seed(0)))
    assert len(found) == steps_per_epoch((x, x), size) == math.ceil(n / size)
    sizes = [len(y) for _, y in found]
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
    order = torch.cat([y for _, y in found])
    assert order.sort().values.tolist() == list(range(n)) and all(torch.equal(a[:, 0].long(), b) for a, b in found)
    assert n < 3 or order.tolist() != list(range(n))
    assert torch.cat([y for _, y in batches((x, torch.arange(n)), size)]).tolist() == list(range(n))


def test_every_epoch_has_an_order_of_its_own():
    class Order(pai.Callback):
        seen = []

        def on_step(self, training):
            self.seen.append(training.batch[1])

    data = toy(train=(X, torch.arange(len(X)) % 3))
    fit(data=data, callbacks=[Order()], epochs=2, batch_size=len(X))
    assert not torch.equal(*Order.seen)


# -- settings --------------------------------------------------------------------------------------
def test_cosine_ends_near_zero_and_constant_stays():
    class Rates(pai.Callback):
        def on_start(self, training):
            self.seen = []

        def on_step(self, training):
            self.seen.append(training.optimizer.param_groups[0]["lr"])

    rates = Rates()
    fit(callbacks=[rates], epochs=10, lr=0.1)
    expected = [0.1 * (1 + math.cos(math.pi * k / 40)) / 2 for k in range(40)]
    assert rates.seen == pytest.approx(expected) and rates.seen[-1] < 0.001 * rates.seen[0] * 2
    fit(callbacks=[rates], epochs=2, lr=0.1, schedule="constant")
    assert set(rates.seen) == {0.1}
    run = fit(callbacks=[rates], epochs=2, lr=0.1, schedule=lambda progress: 1 - progress)
    assert rates.seen == pytest.approx([0.1 * (1 - k / 8) for k in range(8)])
    assert run.history[-1]["lr"] == rates.seen[-1]


def test_an_optimizer_of_ones_own():
    made = []

    def rmsprop(parameters, lr):
        made.append(torch.optim.RMSprop(parameters, lr=lr))
        return made[0]

    model = net()
    mask = mask_for(model)
    run = fit(model, optimizer=rmsprop, mask=mask, epochs=1)
    assert made and run.config["optimizer"] == "rmsprop" and not made[0]._optimizer_step_post_hooks
    assert all((w[~mask[n]] == 0).all() for n, w in pai.prunable(model).items())


SETTINGS = [
    ({"epochs": 0}, "epochs"),
    ({"epochs": 1.5}, "epochs"),
    ({"epochs": True}, "epochs"),
    ({"batch_size": 0}, "batch_size"),
    ({"batch_size": "64"}, "batch_size"),
    ({"lr": -1}, "lr"),
    ({"lr": float("nan")}, "lr"),
    ({"lr": "0.1"}, "lr"),
    ({"lr": float("inf")}, "lr"),
    ({"momentum": -0.1, "optimizer": "sgd"}, "momentum"),
    ({"momentum": 0.9}, "sgd"),
    ({"weight_decay": -1}, "weight_decay"),
    ({"optimizer": "adan"}, "'adam'"),
    ({"optimizer": None}, "optimizer"),
    ({"schedule": "cosin"}, "'cosine'"),
    ({"schedule": None}, "schedule"),
    ({"seed": -1}, "seed"),
    ({"seed": "a"}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"callbacks": pai.Callback()}, "callback"),
    ({"callbacks": [3]}, "callback"),
    ({"mask": {"0.weight": torch.ones(16, 4).bool()}}, "mask|Mask"),
    ({"device": "gpu"}, "device"),
    ({"mask": pai.Mask({"7.weight": torch.ones(2, 2).bool()})}, "another model"),
    ({"mask": pai.Mask({"0.weight": torch.ones(4, 16).bool()})}, "another model"),
    ({"optimizer": lambda parameters, lr: None}, "optimizer"),
    (
        {"weight_decay": 0.1, "optimizer": lambda parameters, lr: torch.optim.SGD(parameters, lr)},
        "weight_decay",
    ),
]


class Loose:
    """Data of one's own that nobody checked."""

    def __init__(self, **parts):
        self.name, self.augment = "loose", None
        self.train, self.val, self.test = ({"train": (X, Y), "val": (X, Y), "test": (X, Y)} | parts).values()

    def to(self, device):
        return self


UNFIT = [
    {"train": (X, Y + 1)},
    {"train": (X, Y - 1)},
    {"train": (X, torch.full_like(Y, -100))},
    {"train": (X, Y.int())},
    {"train": (X, Y.float())},
    {"train": (X[:, :2], Y)},
    {"train": (X, Y[:9])},
    {"train": (X[:0], Y[:0])},
    {"train": (X.double(), Y)},
    {"val": (X, Y + 1)},
    {"test": (X, Y + 1)},
    {"test": (X[:, :2], Y)},
    {"val": (X[:0], Y[:0])},
]


def unchanged_by(model, *arguments, error=(ValueError, TypeError), match=None, **options):
    for module in (model[1], model[3]):
        module.eval()
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.get_rng_state()
    with pytest.raises(error, match=match):
        fit(model, *arguments, **options)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()), "the weights changed"
    assert [m.training for m in model.modules()] == flags, "the modes changed"
    assert torch.equal(torch.get_rng_state(), random), "the random state changed"


@pytest.mark.parametrize("change, words", SETTINGS)
def test_settings_out_of_range_change_nothing(change, words):
    model = net()
    kind = (ValueError, TypeError, RuntimeError) if "device" in change else (ValueError, TypeError)
    unchanged_by(model, match=words, error=kind, **({"mask": mask_for(model)} | change))


@pytest.mark.parametrize("parts", UNFIT, ids=lambda parts: next(iter(parts)))
def test_unfit_data_change_nothing(parts):
    model = net()
    unchanged_by(model, Loose(**parts), mask=mask_for(model))


def test_data_of_the_wrong_kind_change_nothing():
    class Endless(IterableDataset):
        def __iter__(self):
            return zip(X, Y, strict=True)

    for data in (None, 3, "mnist1d", (pair for pair in [(X, Y)]), DataLoader(Endless(), 4), []):
        model = net()
        unchanged_by(model, data, mask=mask_for(model))


def test_a_model_that_gives_more_than_logits_is_told():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x), x

    with pytest.raises((ValueError, TypeError), match="output"):
        fit(Pair())
    with pytest.raises((ValueError, TypeError), match="output"):
        pai.score(Pair(), "snip", (X, Y))


# -- masks -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
        {"optimizer": "adam"},
        {"optimizer": "adamw", "weight_decay": 0.1},
    ],
)
def test_the_mask_is_held(options):
    class Watch(pai.Callback):
        steps = 0

        def on_step(self, training):
            self.steps += 1
            assert all((w[~mask[n]] == 0).all() for n, w in pai.prunable(training.model).items())

    model = net()
    mask, watch = mask_for(model), Watch()
    run = fit(model, mask=mask, callbacks=[watch], **options)
    assert (
        watch.steps == 12 and run.mask == mask and all((w[~mask[n]] == 0).all() for n, w in pai.prunable(model).items())
    )
    assert all((w[mask[n]] != 0).all() for n, w in pai.prunable(model).items())


@pytest.mark.parametrize("dense", [False, True])
def test_gradients_of_removed_weights(dense):
    class Look(pai.Callback):
        dense_gradients = dense
        found = []

        def on_backward(self, training):
            self.found += [w.grad[~mask[n]].abs().sum().item() for n, w in pai.prunable(training.model).items()]

    model = net()
    mask = mask_for(model)
    one = fit(model, mask=mask, callbacks=[Look()])
    assert (sum(Look.found) > 0) is dense and len(Look.found) == 24
    assert same(one, fit(net(), mask=mask))  # looking changes nothing


def test_a_changing_mask_is_recorded():
    class Regrow(pai.Callback):
        def on_epoch(self, training):
            training.handle.update(training.handle.mask.shuffled(training.epoch))

    model = net()
    mask = mask_for(model)
    run = fit(model, mask=mask, callbacks=[Regrow()])
    assert run.mask == mask.shuffled(1).shuffled(2).shuffled(3) and run.metrics["sparsity"] == mask.sparsity
    assert all((w[~run.mask[n]] == 0).all() for n, w in pai.prunable(model).items())


def test_a_lost_mask_is_noticed():
    class Lose(pai.Callback):
        dense_gradients = True

        def on_step(self, training):
            training.optimizer._optimizer_step_post_hooks.clear()

    model = net()
    with pytest.raises(RuntimeError, match="hold"):
        fit(model, mask=mask_for(model), callbacks=[Lose()])


@pytest.mark.parametrize("callbacks", [[], [pai.Callback()]])
@pytest.mark.parametrize("masked", ["frozen", "both", None])
def test_a_frozen_part(masked, callbacks):
    model = net()
    model[0].weight.requires_grad_(False)
    mask = mask_for(model) if masked else None
    if masked == "frozen":
        mask = pai.Mask({"0.weight": mask["0.weight"]})
    expected = model[0].weight.clone() if mask is None else model[0].weight * mask["0.weight"]
    head = model[4].weight.detach().clone()
    fit(model, mask=mask, callbacks=callbacks)
    assert torch.equal(model[0].weight, expected) and not torch.equal(model[4].weight, head)
    assert not model[0].weight.requires_grad


# -- callbacks -------------------------------------------------------------------------------------
def test_the_hooks_come_in_order():
    class Log(pai.Callback):
        def __init__(self, name, log):
            self.name, self.log = name, log

        def __getattribute__(self, hook):
            if not hook.startswith("on_"):
                return super().__getattribute__(hook)
            return lambda training: self.log.append(
                (self.name, hook, training.step, training.epoch, len(training.history))
            )

    log = []
    fit(callbacks=[Log("a", log), Log("b", log)], epochs=2, batch_size=25)
    expected, step = [("on_start", 0, 0, 0)], 0
    for epoch in range(2):
        for _ in range(2):
            expected += [("on_backward", step, epoch, epoch), ("on_step", step + 1, epoch, epoch)]
            step += 1
        expected.append(("on_epoch", step, epoch + 1, epoch + 1))
    expected.append(("on_end", 4, 2, 2))
    assert log == [(name, *row) for row in expected for name in "ab"]


@pytest.mark.parametrize("answer, moves", [(False, False), (True, True), (None, True), (0, True)])
def test_only_false_skips_the_step(answer, moves):
    class Answer(pai.Callback):
        def on_backward(self, training):
            return answer

    model = net()
    start = model[0].weight.detach().clone()
    run = fit(model, callbacks=[pai.Callback(), Answer(), pai.Callback()])
    assert torch.equal(model[0].weight, start) is not moves and run.history[-1]["step"] == 12


def test_stop_ends_after_this_step():
    class Stop(pai.Callback):
        ended = False

        def on_step(self, training):
            training.stop = training.step == 6

        def on_end(self, training):
            self.ended = True

    stop = Stop()
    run = fit(callbacks=[stop], epochs=9)
    assert [row["step"] for row in run.history] == [4, 6] and stop.ended and not run.interrupted
    assert "test_accuracy" in run.metrics and run.budget["train"] == 50 + 26  # batches of 13, 13, 12, 12


@pytest.mark.parametrize(
    "hook, at, rows",
    [("on_backward", 6, 1), ("on_step", 7, 1), ("on_epoch", 4, 1), ("on_start", 0, 0), ("on_end", 12, 3)],
)
def test_an_interrupt_keeps_what_there_is(hook, at, rows, capsys):
    class Interrupt(pai.Callback):
        def go(self, training):
            if training.step == at:
                if hook == "on_backward":  # between the step and the mask
                    with torch.no_grad():
                        training.model[0].weight.add_(1)
                raise KeyboardInterrupt

    setattr(Interrupt, hook, Interrupt.go)
    model = net()
    mask = mask_for(model)
    run = fit(model, mask=mask, callbacks=[Interrupt()])
    assert run.interrupted and len(run.history) == rows and "interrupted" in capsys.readouterr().out
    assert all((w[~mask[n]] == 0).all() for n, w in pai.prunable(model).items())
    assert "test_accuracy" not in run.metrics and run.metrics["sparsity"] == mask.sparsity
    assert ("val_accuracy" in run.metrics) == bool(rows)
    fit(model, mask=mask)  # the model is usable


def test_an_interrupted_epoch_is_paid_for():
    class Interrupt(pai.Callback):
        def on_step(self, training):
            if training.step == 2:
                raise KeyboardInterrupt

    assert fit(callbacks=[Interrupt()], batch_size=25).budget["train"] == 50


def test_an_error_lets_go_of_the_mask():
    class Fail(pai.Callback):
        def on_step(self, training):
            self.optimizer = training.optimizer
            raise ZeroDivisionError

    model, fail = net(), Fail()
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        fit(model, mask=mask_for(model), callbacks=[fail])
    assert not fail.optimizer._optimizer_step_post_hooks and torch.equal(torch.get_rng_state(), before)


# -- loaders, augmentation -------------------------------------------------------------------------
def test_a_loader_alone_and_in_the_place_of_data():
    dataset = TensorDataset(X, Y)
    run = fit(data=DataLoader(dataset, 20, shuffle=True), epochs=2)
    assert run.budget["train"] == 100 and run.history[-1]["step"] == 6
    assert math.isnan(run.history[-1]["val_accuracy"]) and "test_accuracy" not in run.metrics
    whole = Loaders(
        DataLoader(dataset, 20),
        DataLoader(TensorDataset(*DATA.val), 7),
        DataLoader(TensorDataset(*DATA.test), 7),
    )
    run = fit(data=whole, epochs=1)
    test = pai.evaluate(run.model, DATA.test)
    assert run.metrics["test_accuracy"] == test["accuracy"] and run.metrics["test_loss"] == pytest.approx(test["loss"])
    assert run.history[0]["val_accuracy"] == pai.evaluate(run.model, DATA.val)["accuracy"]


def test_the_same_seed_is_the_same_with_a_loader():
    runs = [fit(data=DataLoader(TensorDataset(X, Y), 20, shuffle=True), seed=3) for _ in range(2)]
    assert same(*runs) and equal(runs[0].model, runs[1].model)


def test_a_list_of_batches_is_a_loader():
    parts = [(X[:20], Y[:20]), (X[20:40], Y[20:40])]
    assert fit(data=parts, epochs=1).budget["train"] == 40


def test_a_pair_alone():
    assert fit(data=(X, Y), epochs=1).budget["train"] == 50


def test_augmentation_is_for_training_only():
    seen = []

    def negative(x, generator):
        seen.append((len(x), generator))
        return -x

    data = toy(augment=negative)
    run = fit(data=data, epochs=1)
    assert sum(n for n, _ in seen) == 50 and all(isinstance(g, torch.Generator) for _, g in seen)
    assert run.metrics["test_loss"] == pai.evaluate(run.model, data.test)["loss"]
    plain = fit(data=toy(train=(-X, Y)), epochs=1)
    assert same(run, plain)
