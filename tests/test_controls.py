"""Sanity checks: what each control changes, what it must not change, and that all cost the same."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pai_lab as pai
from pai_lab import controls
from pai_lab.catalog import find
from pai_lab.controls import APART, corrupted, inverted, reinitialised


def toy():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(180) % 3
    x = torch.randn(180, 4, generator=generator) * 0.3 + F.one_hot(y, 4)
    return pai.Data("toy", (x[:60], y[:60]), (x[60:120], y[60:120]), (x[120:], y[120:]))


def small(data):
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, len(data.classes)))


DATA, TOTAL = toy(), 4 * 16 + 16 * 8 + 8 * 3
BATCH = DATA.score_batch(per_class=5)
CHECKS = ["shuffled", "reinitialised", "inverted", "corrupted", "random_ratios"]


def net(seed=1):
    return pai.build(small, DATA, seed=seed)


def run(method, sparsity=0.5, seed=1, epochs=2, **options):
    recipe = find("method", method).function
    return recipe(net(), DATA, sparsity, seed, epochs, **({"per_class": 5, "progress": False} | options))


def counts(mask):
    return [int(flags.sum()) for flags in mask.values()]


def snip_mask(sparsity=0.5, seed=1, **options):
    return pai.prune(net(), "snip", sparsity, batch=DATA.score_batch(per_class=5, seed=seed), seed=seed, **options)


def same(one, two):
    return all(torch.equal(a, two.state_dict()[name]) for name, a in one.state_dict().items())


# -- inverted --------------------------------------------------------------------------------------
def smooth(data):
    """No dead units: no two scores are equal."""
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, len(data.classes)))


@pytest.mark.parametrize("criterion", ["magnitude", "snip", "gradient"])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
def test_inverted_keeps_what_the_criterion_removes(criterion, sparsity):
    model, settings = pai.build(smooth, DATA), {"batch": BATCH, "mode": "train"}
    scores = torch.cat([values.flatten() for values in pai.score(model, criterion, **settings).values()])
    assert scores.unique().numel() == TOTAL
    for scope in ("global", "layer"):
        top = pai.prune(model, criterion, 1 - sparsity, scope=scope, **settings)
        low = pai.prune(model, inverted(criterion), sparsity, scope=scope, **settings)
        assert low == ~top


def test_inverted_scores_are_the_order_reversed():
    model = pai.build(smooth, DATA)
    scores, negated = (pai.score(model, one, BATCH, mode="train") for one in ("snip", inverted("snip")))
    for name, values in scores.items():
        assert torch.equal(values.flatten().argsort(), negated[name].flatten().argsort().flip(0))


def test_scores_of_zero_give_no_nan():
    flat = inverted(lambda model, batch, mask: {n: torch.zeros_like(w) for n, w in pai.prunable(model).items()})
    assert all((values == 0).all() for values in pai.score(net(), flat).values())
    assert pai.prune(net(), flat, 0.5).kept == TOTAL // 2


def test_inverted_takes_the_options_and_keeps_the_name():
    assert inverted("snip").__name__ == "inverted snip"
    with pytest.raises(TypeError, match="inverted taylor.*'acumulate'.*Did you mean 'accumulate'"):
        pai.score(net(), inverted("taylor"), BATCH, acumulate="abs")
    squared = pai.score(net(), inverted("taylor"), [BATCH, BATCH], accumulate="squared")
    assert all((values <= 0).all() for values in squared.values())
    with pytest.raises(ValueError, match="Did you mean 'snip'"):
        inverted("snipp")


def test_inverted_on_a_function_of_the_readers_own_leaves_no_trace():
    def careless(model, batch, mask):
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        return {name: w.grad.abs() for name, w in pai.prunable(model).items()}

    model = net()
    pai.score(model, inverted(careless), BATCH)
    assert all(p.grad is None for p in model.parameters())


# -- corrupted -------------------------------------------------------------------------------------
def test_corrupted_labels_keep_the_class_histogram():
    x, y = corrupted(BATCH, "labels", seed=3)
    assert torch.equal(x, BATCH[0]) and not torch.equal(y, BATCH[1])
    assert torch.equal(y.bincount(), BATCH[1].bincount())
    again = corrupted(BATCH, "labels", seed=3)[1]
    assert torch.equal(y, again) and not torch.equal(y, corrupted(BATCH, "labels", seed=4)[1])


def test_labels_mix_over_a_list_of_batches():
    """Also single samples: within each of them there would be nothing to permute."""
    pairs = [(x[None], y[None]) for x, y in zip(*BATCH, strict=True)]
    mixed = corrupted(pairs, "labels", seed=1)
    assert [len(y) for _, y in mixed] == [1] * 15 and torch.equal(torch.cat([x for x, _ in mixed]), BATCH[0])
    labels = torch.cat([y for _, y in mixed])
    assert torch.equal(labels.bincount(), BATCH[1].bincount()) and not torch.equal(labels, BATCH[1])


@pytest.mark.parametrize("shape", [(5, 40), (5, 1, 40), (5, 3, 4, 5), (5, 2, 3, 2, 3)])
def test_corrupted_inputs_keep_the_pixels_of_each_sample(shape):
    x, y = torch.arange(5 * 40 * 10.0)[: torch.Size(shape).numel()].view(shape), torch.arange(5)
    mixed, labels = corrupted((x, y), "inputs", seed=2)
    assert torch.equal(labels, y) and mixed.shape == x.shape
    places = x.unsqueeze(1) if x.ndim == 2 else x
    places, found = places.flatten(2), mixed.view(places.shape).flatten(2)
    orders = []
    for before, after in zip(places, found, strict=True):
        pixels = [tuple(column) for column in before.T.tolist()]
        orders.append([pixels.index(tuple(column)) for column in after.T.tolist()])  # whole pixels, all channels
        assert sorted(orders[-1]) == list(range(len(pixels))) != orders[-1]
    assert len(set(map(tuple, orders))) == 5  # each sample has an order of its own


def test_corruption_leaves_the_generator_and_the_batch_alone():
    before, x, y = torch.get_rng_state(), *(t.clone() for t in BATCH)
    for what in ("labels", "inputs"):
        corrupted(BATCH, what)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(x, BATCH[0]) and torch.equal(y, BATCH[1])
    with pytest.raises(ValueError, match="Did you mean 'labels'"):
        corrupted(BATCH, "label")


# -- reinitialised ---------------------------------------------------------------------------------
IMAGES = pai.Data("images", *[(torch.rand(4, 1, 8, 8), torch.arange(4))] * 3)


@pytest.mark.parametrize("name", ["mlp", "vgg6_bn", "resnet20"])
def test_reinitialised_is_what_build_draws_from_that_seed(name):
    model = pai.build(name, IMAGES, seed=1)
    model(torch.rand(4, 1, 8, 8))  # moves the running statistics of BatchNorm
    before, state = deepcopy(model.state_dict()), torch.get_rng_state()
    fresh = reinitialised(model, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items()) and fresh is not model
    assert same(fresh, pai.build(name, IMAGES, seed=2)) and same(fresh, reinitialised(model, seed=2))
    for n, weight in pai.prunable(model).items():
        assert weight.shape == fresh.state_dict()[n].shape and not torch.equal(weight, fresh.state_dict()[n])


@pytest.mark.parametrize("init", ["xavier_normal", "kaiming_normal", lambda w: nn.init.uniform_(w, 2, 3)])
def test_reinitialised_from_the_same_distribution(init):
    model, expected = (pai.build("mlp", IMAGES, seed=seed, init=init) for seed in (1, 2))
    assert same(reinitialised(model, 2, init=init), expected)
    model.init = init
    assert same(reinitialised(model, 2), expected)


def test_what_cannot_be_drawn_again():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.scale = nn.Linear(4, 3), nn.Parameter(torch.ones(3))

        def init(self):
            """No name of a distribution."""

    with pytest.raises(ValueError, match=r"the model \(Own\) has no reset_parameters"):
        reinitialised(Own())
    with pytest.raises(ValueError, match=r"body \(Own\)"):
        reinitialised(nn.ModuleDict({"body": Own()}))
    with pytest.raises(ValueError, match="Did you mean 'xavier_normal'"):
        reinitialised(net(), init="xavier")


# -- the recipes -----------------------------------------------------------------------------------
def test_shuffled_keeps_the_counts_and_overlaps_by_chance():
    mask, wide = snip_mask(), nn.Sequential(nn.Linear(4, 200), nn.ReLU(), nn.Linear(200, 300), nn.Linear(300, 3))
    found = run("shuffled")
    assert counts(found.mask) == counts(mask) and found.mask != mask
    assert found.mask == mask.shuffled(1 + APART)
    mask = pai.prune(wide, "magnitude", 0.9, scope="layer")
    size, kept = mask["2.weight"].numel(), int(mask["2.weight"].sum())
    d = kept / size
    for seed in range(3):
        both = int((mask["2.weight"] & mask.shuffled(seed)["2.weight"]).sum())
        sigma = (kept * d * (1 - d) * (size - kept) / (size - 1)) ** 0.5  # hypergeometric
        assert abs(both - kept * d) < 5 * sigma
        overlap = both / (2 * kept - both)
        assert overlap == pytest.approx(d / (2 - d), rel=5 * sigma / (kept * d) * 1.2)


def test_reinitialised_trains_the_mask_from_other_weights():
    model, mask = net(), snip_mask()
    seen = []

    class First(pai.Callback):
        def on_start(self, training):
            seen.append(deepcopy(training.model.state_dict()))

    found = find("method", "reinitialised").function(
        model, DATA, 0.5, 1, 2, per_class=5, progress=False, callbacks=[First()]
    )
    assert found.mask == mask and found.model is model
    start = mask.apply(reinitialised(net(), 1 + APART)).state_dict()
    assert all(torch.equal(start[name], tensor) for name, tensor in seen[0].items())


def test_inverted_runs_the_rounds_of_its_criterion():
    mask = pai.prune(
        net(), inverted("synflow"), 0.5, batch=BATCH, mode="eval", iterations=100, schedule="exponential", seed=1
    )
    found = run("inverted", criterion="synflow")
    assert found.mask == mask and found.budget["scoring"] == 100
    assert run("inverted", criterion="synflow", iterations=1).budget["scoring"] == 1


def test_corrupted_scores_on_other_data_than_it_trains_on():
    x, y = DATA.score_batch(per_class=5, seed=1)
    for what in ("labels", "inputs"):
        expected = pai.prune(net(), "snip", 0.5, batch=corrupted((x, y), what, 1 + APART), seed=1)
        found = run("corrupted", corruption=what)
        assert found.mask == expected != snip_mask()
    for what in ("labels", "inputs"):  # data-free criteria do not care
        assert run("corrupted", criterion="magnitude", corruption=what).mask == pai.prune(net(), "magnitude", 0.5)


@pytest.mark.parametrize("structure", ["weight", "input", "filter"])
def test_random_ratios_has_the_counts_of_the_criterion(structure):
    mask, found = snip_mask(structure=structure), run("random_ratios", structure=structure).mask
    assert counts(found) == counts(mask) and found != mask
    random = pai.prune(net(), "random", 0.5, structure=structure, seed=1)
    assert counts(random) != counts(mask)  # these are not the ratios of chance
    if structure == "filter":
        assert all(torch.equal(flags.any(1), flags.all(1)) for flags in found.values())


@pytest.mark.parametrize("method", CHECKS)
@pytest.mark.parametrize("criterion", ["snip", "iterative_snip"])
def test_every_control_costs_what_its_criterion_costs(method, criterion):
    plain = pai.experiment(
        data=DATA, model=small, method=criterion, sparsity=0.5, seed=1, epochs=2, per_class=5, batch_size=20
    )
    found = run(method, criterion=criterion, batch_size=20)
    assert found.budget == {key: plain[f"budget_{key}"] for key in ("train", "scoring", "total")}
    assert found.metrics["sparsity"] == 0.5 and found.mask.kept == TOTAL // 2
    assert [row["step"] for row in found.history] == [3, 6] and found.config["seed"] == 1


@pytest.mark.parametrize("method", [*CHECKS, "magnitude_after_training"])
def test_controls_run_by_name_and_give_the_same_twice(method):
    assert method in pai.names("method") and find("method", method).function.__module__ == controls.__name__
    settings = {"data": DATA, "model": small, "method": method, "sparsity": 0.8, "seed": 2, "epochs": 3}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    rows = [pai.experiment(**settings, per_class=5, lr=0.01, batch_size=30) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    one, two = ({k: v for k, v in row.items() if k != "seconds"} for row in rows)
    assert one == two and one["budget_train"] == 180 and one["lr"] == 0.01
    assert one["sparsity"] == pytest.approx(0.8, abs=1 / TOTAL)
    dense = pai.experiment(**settings | {"sparsity": 0})
    assert dense["sparsity"] == 0 and dense["budget_scoring"] == 0


def test_half_the_epochs_dense_and_half_under_the_mask():
    found = run("magnitude_after_training", sparsity=0.9, epochs=5, batch_size=20)
    dense = pai.train(net(), DATA, epochs=2, batch_size=20, seed=1, progress=False)
    mask = pai.prune(dense.model, "magnitude", 0.9, seed=1)
    rest = pai.train(dense.model, DATA, mask=mask, epochs=3, batch_size=20, seed=1 + APART, progress=False)
    assert found.mask == mask and found.metrics == rest.metrics and same(found.model, rest.model)
    assert found.budget == {"train": 300, "scoring": 0, "total": 300}
    rows = found.table()
    assert rows.epoch.tolist() == [1, 2, 3, 4, 5] and rows.step.tolist() == [3, 6, 9, 12, 15]
    assert rows.sparsity.tolist() == [0, 0] + [mask.sparsity] * 3 and rows.seconds.is_monotonic_increasing
    assert rows.val_loss.tolist() == [row["val_loss"] for row in dense.history + rest.history]
    assert (found.config["epochs"], found.config["dense_epochs"], found.config["seed"]) == (5, 2, 1)


def test_a_checkpoint_for_each_half(tmp_path):
    class Stop(pai.Callback):
        def on_epoch(self, training):
            if stop and training.handle:
                raise KeyboardInterrupt

    settings = {"epochs": 4, "batch_size": 20, "callbacks": [Stop()]}
    stop = False
    whole = run("magnitude_after_training", **settings)
    stop = True
    assert run("magnitude_after_training", checkpoint=tmp_path / "run", **settings).interrupted
    stop = False
    resumed = run("magnitude_after_training", checkpoint=tmp_path / "run", **settings)
    assert resumed.metrics == whole.metrics and same(resumed.model, whole.model) and resumed.budget == whole.budget
    assert resumed.table().epoch.tolist() == [1, 2, 3, 4] and len(list(tmp_path.iterdir())) == 2


def test_an_interrupt_of_the_dense_half_ends_the_run():
    class Stop(pai.Callback):
        def on_step(self, training):
            raise KeyboardInterrupt

    assert run("magnitude_after_training", callbacks=[Stop()]).interrupted


@pytest.mark.parametrize(
    "method, options, error, words",
    [
        ("shuffled", {"structure": "filter"}, ValueError, "random_ratios"),
        ("random_ratios", {"structure": "2:4", "sparsity": None}, ValueError, "no ratios"),
        ("corrupted", {"corruption": "label"}, ValueError, "Did you mean 'labels'"),
        ("inverted", {"criterion": "snipp"}, ValueError, "Did you mean 'snip'"),
        ("magnitude_after_training", {"epochs": 1}, ValueError, "epochs must be an integer from 2 on"),
        ("magnitude_after_training", {"sparsity": 90}, ValueError, "0.9"),
        ("magnitude_after_training", {"scope": "globl"}, ValueError, "Did you mean 'global'"),
        ("magnitude_after_training", {"criterion": "snip"}, TypeError, "criterion"),
        ("shuffled", {"batchsize": 3}, TypeError, "batchsize"),
    ],
)
def test_errors_come_before_anything_is_changed(method, options, error, words):
    model, before = net(), net()
    arguments = {"sparsity": 0.5, "seed": 1, "epochs": 2, "per_class": 5, "progress": False} | options
    with pytest.raises(error, match=words):
        find("method", method).function(model, DATA, **arguments)
    assert same(model, before)
