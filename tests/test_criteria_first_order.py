"""Gradient scores beside finite differences, closed forms and loops that prune a real copy, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pai_lab as pai
from pai_lab.criteria.first_order import loss_gradients

FAMILY = ["snip", "iterative_snip", "force", "gradient", "taylor"]


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make().double()


def smooth():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Softplus(), nn.Linear(6, 3))


def with_norm():
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def mixed():
    """Grouped and depthwise convolutions, max pooling, no bias: degree one in every layer."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(8, 6, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4, bias=False),
    )  # fmt: skip


class Spare(nn.Module):
    """A layer that the output does not use, a layer used twice, and two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.idle, self.twice = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 6)
        self.tied, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
        self.tied.weight = self.twice.weight

    def forward(self, x):
        return self.last(self.tied(self.twice(self.twice(self.first(x)).tanh()).tanh()).tanh())


def a_batch(shape=(5,), n=12, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=generator)


def cut(batch, *places):
    """The batch as a list of pairs, cut at the places."""
    edges = [0, *places, len(batch[0])]
    return [tuple(t[a:b] for t in batch) for a, b in zip(edges, edges[1:], strict=False)]


def backward(model, x, y):
    """Gradients the plain way: {name: tensor} of a copy."""
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(x), y).backward()
    return {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in pai.prunable(twin).items()}


def slope(model, name, place, x, y, h=1e-6, start=None):
    """dL/dw by central differences around the weight's own value, or around `start`."""
    losses = []
    for step in (h, -h):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            flat = twin.get_parameter(name).view(-1)
            flat[place] = (flat[place] if start is None else start) + step
            losses.append(F.cross_entropy(twin(x), y).item())
    return (losses[0] - losses[1]) / (2 * h)


def places(weight, many=6):
    return torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(1))[:many].tolist()


def gap(one, other):
    assert list(one) == list(other)
    return max(float((one[n] - other[n]).abs().max()) for n in one)


# -- gradient and Taylor -----------------------------------------------------------------------------------------
def test_gradient_is_the_absolute_slope():
    model, (x, y) = seeded(smooth), a_batch()
    scores = pai.score(model, "gradient", (x, y))
    for name, weight in pai.prunable(model).items():
        for k in places(weight):
            assert abs(scores[name].flatten()[k].item() - abs(slope(model, name, k, x, y))) < 1e-8


def products(model, pairs):
    """w * gradient of softmax regression, in closed form, for each pair."""
    w = model.weight.detach()
    return [w * (((x @ w.T).softmax(1) - F.one_hot(y, 3)).T @ x) / len(x) for x, y in pairs]


@given(cuts=st.lists(st.integers(1, 11), max_size=4, unique=True).map(sorted))
@settings(max_examples=25)
def test_the_three_ways_to_accumulate_taylor_in_closed_form(cuts):
    model, batch = seeded(lambda: nn.Linear(5, 3, bias=False)), a_batch()
    pairs = cut(batch, *cuts)
    parts, shares = products(model, pairs), [len(x) / 12 for x, _ in pairs]
    expected = {
        "mean": sum(p * s for p, s in zip(parts, shares, strict=True)).abs(),
        "abs": sum(p.abs() * s for p, s in zip(parts, shares, strict=True)),
        "squared": sum(p**2 * s for p, s in zip(parts, shares, strict=True)),
    }
    for how, values in expected.items():
        found = pai.score(model, "taylor", pairs, accumulate=how)
        assert (found["weight"] - values).abs().max() < 1e-15 and found.budget == 12
    assert gap(pai.score(model, "taylor", pairs), {"weight": expected["mean"]}) < 1e-15  # the default


def test_where_training_has_converged_only_the_mean_vanishes():
    model, (x, y) = nn.Linear(2, 2, bias=False).double(), a_batch((2,), n=4, classes=2)
    x, y = torch.eye(2, dtype=torch.float64).repeat(2, 1), torch.tensor([0, 1, 1, 0])  # no label follows from x
    with torch.no_grad():
        model.weight.fill_(1.0)  # equal chances: the best there is
    singles = cut((x, y), 1, 2, 3)
    mean, absolute, squared = (
        pai.score(model, "taylor", singles, accumulate=a)["weight"] for a in ("mean", "abs", "squared")
    )
    assert mean.abs().max() < 1e-16
    # each sample's gradient is +-1/2 in the column of its input, and half of the samples have that input
    assert torch.allclose(absolute, torch.full((2, 2), 0.25, dtype=torch.float64))
    assert torch.allclose(squared, torch.full((2, 2), 0.125, dtype=torch.float64))


def test_an_unknown_way_to_accumulate_names_the_nearest():
    with pytest.raises(ValueError, match="unknown accumulate 'square'. Did you mean 'squared'.*'mean', 'abs'"):
        pai.score(seeded(smooth), "taylor", a_batch(), accumulate="square")


def test_taylor_and_gradient_look_at_running_statistics_and_snip_at_the_batch():
    model, batch = seeded(with_norm), a_batch()
    train, evaluating = (pai.score(model, "snip", batch, mode=mode) for mode in ("train", "eval"))
    assert gap(pai.score(model, "taylor", batch), evaluating) == 0 < 1e-4 < gap(train, evaluating)
    for name in ("iterative_snip", "force"):
        assert gap(pai.score(model, name, batch), train) == 0
    weights = {n: w.detach().abs() for n, w in pai.prunable(model).items()}
    product = {n: g * weights[n] for n, g in pai.score(model, "gradient", batch).items()}
    assert gap(product, evaluating) < 1e-16


# -- conservation ------------------------------------------------------------------------------------------------
def test_the_signed_sum_is_the_same_in_grouped_depthwise_and_pointwise_layers():
    weights, gradients = loss_gradients(seeded(mixed), a_batch((4, 6, 6), classes=4), None)
    sums = [float((w * gradients[n]).sum().detach()) for n, w in weights.items()]
    assert max(sums) - min(sums) < 1e-12 and abs(sums[0]) > 1e-3


def test_a_filter_before_batch_statistics_has_no_scale_also_in_groups():
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=4, bias=False),
            nn.BatchNorm2d(8, eps=1e-30),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 3),
        )  # fmt: skip
    ).train()
    weights, gradients = loss_gradients(model, a_batch((4, 4, 4)), None)
    flat = (weights["0.weight"] * gradients["0.weight"]).detach().flatten(1)
    assert flat.sum(1).abs().max() < 1e-15 < 1e-3 < flat.abs().sum()


# -- iterative SNIP and FORCE ------------------------------------------------------------------------------------
def by_hand(model, x, y, sparsity, rounds, revive):
    """The masks of iterative SNIP or FORCE, on real pruned copies, with a sort."""
    dense = {n: w.detach() for n, w in pai.prunable(model).items()}
    total, masks = sum(w.numel() for w in dense.values()), []
    keep = {n: torch.ones_like(w, dtype=torch.bool) for n, w in dense.items()}
    for k in range(1, rounds + 1):
        pruned = copy.deepcopy(model)
        for name, weight in pai.prunable(pruned).items():
            weight.data[~keep[name]] = 0
        gradients = backward(pruned, x, y)
        scores = torch.cat([(dense[n] * gradients[n]).abs().flatten() for n in dense])
        if not revive:
            scores[~torch.cat([m.flatten() for m in keep.values()])] = -1
        stay = torch.zeros(total, dtype=torch.bool)
        stay[scores.argsort(descending=True)[: round(total * (1 - sparsity) ** (k / rounds))]] = True
        parts = stay.split([w.numel() for w in dense.values()])
        keep = {n: part.view(dense[n].shape) for n, part in zip(dense, parts, strict=True)}
        masks.append(keep)
    return masks


@pytest.mark.parametrize("criterion, revive", [("iterative_snip", False), ("force", True)])
def test_every_round_is_that_of_a_loop_by_hand(criterion, revive):
    model, (x, y) = seeded(smooth), a_batch(n=30)
    found = [mask for _, mask in pai.rounds(model, criterion, 0.9, batch=(x, y), iterations=8)]
    expected = by_hand(model, x, y, 0.9, 8, revive)
    for mask, keep in zip(found, expected, strict=True):
        assert all(torch.equal(mask[n], keep[n]) for n in keep)
    comebacks = sum((later & ~earlier).kept for earlier, later in zip(found, found[1:], strict=False))
    assert (comebacks > 0) == revive


@pytest.mark.parametrize("criterion", ["iterative_snip", "force"])
def test_one_round_is_snip_and_thirty_are_the_default(criterion):
    model, batch = seeded(smooth), a_batch(n=9)
    snip = pai.prune(model, "snip", 0.8, batch=batch)
    assert pai.prune(model, criterion, 0.8, batch=batch, iterations=1) == snip
    assert gap(pai.score(model, criterion, batch), pai.score(model, "snip", batch)) == 0
    many = pai.prune(model, criterion, 0.8, batch=batch)
    assert many.kept == snip.kept and many != snip and many.budget == 30 * 9


def test_iterative_snip_is_nested_with_fresh_batches_and_other_schedules():
    model = seeded(smooth)
    for schedule in ("exponential", "linear"):
        steps = pai.rounds(
            model, "iterative_snip", 0.95, batch=lambda k: a_batch(seed=k), iterations=10, schedule=schedule
        )
        masks = [mask for _, mask in steps]
        assert all((later & ~earlier).kept == 0 for earlier, later in zip(masks, masks[1:], strict=False))


def test_force_scores_a_removed_weight_by_the_slope_around_zero():
    model, (x, y) = seeded(smooth), a_batch()
    mask = pai.prune(model, "magnitude", 0.6)
    pruned, scores = mask.apply(copy.deepcopy(model)), pai.score(model, "force", (x, y), mask=mask)
    for name, weight in pai.prunable(model).items():
        removed = (~mask[name]).flatten().nonzero().flatten().tolist()[:6]
        kept = mask[name].flatten().nonzero().flatten().tolist()[:3]
        for k in removed + kept:
            w = weight.detach().flatten()[k].item()
            fd = slope(pruned, name, k, x, y, start=0.0 if k in removed else None)
            assert abs(scores[name].flatten()[k].item() - abs(w * fd)) < 1e-9
    assert min(float(scores[n][~mask[n]].sum()) for n in scores) > 0
    assert all((s[~mask[n]] == 0).all() for n, s in pai.score(model, "snip", (x, y), mask=mask).items())


# -- all of them -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("criterion", FAMILY)
def test_four_times_four_is_sixteen_in_eval_mode_only(criterion):
    model, batch = seeded(with_norm), a_batch(n=16)
    fours = cut(batch, 4, 8, 12)
    whole, parts = (pai.score(model, criterion, b, mode="eval") for b in (batch, fours))
    assert gap(whole, parts) < 1e-16 and whole.budget == parts.budget == 16
    whole, parts = (pai.score(model, criterion, b, mode="train") for b in (batch, fours))
    assert gap(whole, parts) > 1e-3


@pytest.mark.parametrize("criterion", FAMILY)
def test_what_is_unused_scores_zero_and_what_is_shared_scores_as_one(criterion):
    model, (x, y) = seeded(Spare), a_batch()
    scores, gradients = pai.score(model, criterion, (x, y)), backward(model, x, y)
    assert list(scores) == ["first.weight", "idle.weight", "twice.weight", "last.weight"]
    assert (scores["idle.weight"] == 0).all() and scores["twice.weight"].abs().sum() > 0
    for name, w in pai.prunable(model).items():
        expected = gradients[name] if criterion == "gradient" else w.detach() * gradients[name]
        assert (scores[name] - expected.abs()).abs().max() < 1e-15


@pytest.mark.parametrize("how", ["abs", "squared"])
def test_taylor_over_a_list_with_an_unused_layer(how):
    scores = pai.score(seeded(Spare), "taylor", cut(a_batch(), 5), accumulate=how)
    assert (scores["idle.weight"] == 0).all() and (scores["first.weight"] > 0).all()


@pytest.mark.parametrize("criterion", FAMILY)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_other_dtypes_and_memory_formats_leave_no_trace(criterion, dtype):
    model, (x, y) = seeded(mixed).to(dtype), a_batch((4, 6, 6), classes=4)
    model, x = model.to(memory_format=torch.channels_last), x.to(dtype, memory_format=torch.channels_last)
    model[3].eval()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    scores = pai.score(model, criterion, (x, y))
    plain = pai.score(copy.deepcopy(model).to(memory_format=torch.contiguous_format), criterion, (x.contiguous(), y))
    for name, weight in pai.prunable(model).items():
        assert scores[name].dtype == dtype and torch.equal(weight, state[name]) and weight.grad is None
        assert torch.allclose(scores[name], plain[name], rtol=0.1, atol=0.05 * float(plain[name].max()))
    assert torch.equal(random, torch.get_rng_state()) and modes == [m.training for m in model.modules()]
    assert pai.prune(model, criterion, 0.75, batch=(x, y)).kept == round(0.25 * sum(s.numel() for s in scores.values()))


@pytest.mark.parametrize("criterion", FAMILY)
def test_a_batch_of_one_under_batch_statistics_is_an_error_and_fine_without(criterion):
    small = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    one = torch.tensor([1])
    for model, x in ((small, torch.randn(1, 1, 3, 3)), (with_norm(), torch.randn(1, 5))):
        with pytest.raises(ValueError, match="more than 1 value per channel when training"):
            pai.score(model, criterion, (x, one), mode="train")
        assert pai.score(model, criterion, (x, one), mode="eval").budget == 1


@pytest.mark.parametrize("criterion", FAMILY)
def test_labels_beyond_the_classes_and_other_shapes_are_errors(criterion):
    model, (x, y) = seeded(smooth), a_batch()
    with pytest.raises(ValueError, match=r"label 3 needs a class that the output of shape \(12, 3\) lacks"):
        pai.score(model, criterion, (x, torch.full_like(y, 3)))
    with pytest.raises(ValueError, match=rf"{criterion} cannot score Sequential on a batch of shape \(12, 4\)"):
        pai.score(model, criterion, (x[:, :4], y))
    with pytest.raises(ValueError, match="NaN or infinite scores"):
        pai.score(model, criterion, (x * float("nan"), y))


@pytest.mark.parametrize("criterion", FAMILY)
@pytest.mark.parametrize("structure", ["weight", "filter"])
def test_an_all_zero_input_is_all_ties_and_still_exact(criterion, structure):
    model, (x, y) = seeded(lambda: nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))), a_batch()
    mask = pai.prune(model, criterion, 0.5, batch=(x * 0, y), structure=structure, iterations=2)
    units = mask["0.weight"].any(1) if structure == "filter" else torch.cat([m.flatten() for m in mask.values()])
    assert int(units.sum()) == len(units) // 2
