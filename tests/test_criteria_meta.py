"""ProsPr beside real training by torch's own SGD, and finite differences of its result, in float64."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pai_lab as pai


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make().double()


def smooth():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Softplus(), nn.Linear(6, 3))


def with_norm():
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3))


class Net(nn.Module):
    """Grouped and depthwise convolutions, BatchNorm, a skip, a tied weight and a layer that is never used."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped, self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.tied, self.head, self.unused = nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Linear(8, 3), nn.Linear(3, 3)
        self.tied.weight = self.depthwise.weight

    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        x = (self.tied(self.depthwise(self.grouped(x).relu())) + x).relu()
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def a_batch(shape=(5,), n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=generator)


def trained(model, pairs, steps, lr, momentum, mask=None):
    """The loss after real training: torch.optim.SGD on a copy, batch after batch; and the copy, with gradients."""
    net = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    if mask is not None:
        mask.hold(net, optimizer)
    for step in range(steps + 1):
        x, y = pairs[step % len(pairs)]
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        if step < steps:
            optimizer.step()
    return loss.item(), net


def scaled(model, name, place, factor):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.get_parameter(name).view(-1)[place] *= factor
    return twin


def slopes_agree(model, pairs, scores, mask=None, h=1e-5, places=4, **sgd):
    for name, one in scores.items():
        for place in torch.randperm(one.numel(), generator=torch.Generator().manual_seed(1))[:places].tolist():
            up, down = (trained(scaled(model, name, place, f), pairs, mask=mask, **sgd)[0] for f in (1 + h, 1 - h))
            assert abs(abs(up - down) / (2 * h) - one.flatten()[place].item()) < 1e-8


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("make", [smooth, with_norm])
def test_a_score_is_the_slope_of_the_loss_after_training(make, momentum, batches):
    model, pairs = seeded(make), [a_batch(seed=s) for s in range(batches)]
    options = dict(steps=2, lr=0.3, momentum=momentum)
    batch = pairs if batches > 1 else pairs[0]
    slopes_agree(model, pairs, pai.score(model, "prospr", batch, **options), **options)


def test_the_default_is_three_steps_and_a_short_list_starts_again():
    model, pairs = seeded(smooth), [a_batch(seed=s) for s in range(2)]
    scores = pai.score(model, "prospr", pairs)
    slopes_agree(model, pairs, scores, places=2, steps=3, lr=0.5, momentum=0.9)
    assert scores.budget == 10 * 12  # 3 K + 1


def test_removed_weights_do_not_grow_back_on_the_way():
    model, pairs = seeded(smooth), [a_batch()]
    mask, options = pai.prune(model, "random", 0.5), dict(steps=3, lr=0.3, momentum=0.9)
    scores = pai.score(model, "prospr", pairs, mask=mask, **options)
    slopes_agree(model, pairs, scores, mask=mask, **options)
    assert all((scores[n][~mask[n]] == 0).all() and scores[n][mask[n]].any() for n in scores)


@pytest.mark.parametrize("make, shape", [(smooth, (5,)), (with_norm, (5,)), (Net, (2, 6, 6))])
@pytest.mark.parametrize("order", ["full", "first"])
def test_no_steps_are_snip(make, shape, order):
    model, batch = seeded(make), a_batch(shape)
    for mask in (None, pai.prune(model, "random", 0.4)):
        for mode in ("train", "eval"):
            ahead = pai.score(model, "prospr", batch, steps=0, order=order, mask=mask, mode=mode)
            snip = pai.score(model, "snip", batch, mask=mask, mode=mode)
            assert all(torch.equal(ahead[n], snip[n]) for n in snip)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_first_order_is_the_last_gradient_times_the_first_weight(momentum):
    model, pairs = seeded(with_norm), [a_batch(seed=s) for s in range(4)]
    options = dict(steps=3, lr=0.3, momentum=momentum)
    _, net = trained(model, pairs, **options)
    first, full = (pai.score(model, "prospr", pairs, order=order, **options) for order in ("first", "full"))
    for name, scores in first.items():
        expected = (net.get_parameter(name).grad * model.get_parameter(name)).abs()
        assert torch.allclose(scores, expected, rtol=1e-10, atol=1e-14)
        assert (scores - full[name]).abs().max() > 1e-4


def test_one_step_on_a_quadratic_in_closed_form():
    # the chain rule through one step: dL/dc = w * (1 - lr H)' g(w - lr g(w)), H the Hessian of softmax regression
    model, (x, y), lr = seeded(lambda: nn.Linear(4, 3, bias=False)), a_batch((4,)), 0.7
    weight = model.weight.detach()

    def gradient(w):
        return ((x @ w.T).softmax(1) - F.one_hot(y, 3)).T @ x / len(x)

    p = (x @ weight.T).softmax(1)
    curvature = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    hessian = torch.einsum("nab,ni,nj->aibj", curvature, x, x).reshape(12, 12) / len(x)
    last = gradient(weight - lr * gradient(weight)).reshape(-1)
    expected = (weight.reshape(-1) * (last - lr * hessian @ last)).abs().reshape(3, 4)
    found = pai.score(model, "prospr", (x, y), steps=1, lr=lr, momentum=0.5)["weight"]
    assert (found - expected).abs().max() < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("order", ["full", "first"])
def test_any_net_any_dtype_and_no_trace(dtype, order):
    model, (x, y) = seeded(Net).to(dtype), a_batch((2, 6, 6))
    x = x.to(dtype)
    if dtype == torch.float64:
        plain = pai.score(model, "prospr", (x, y), order=order)
        model = model.to(memory_format=torch.channels_last)
    before = {n: t.detach().clone() for n, t in itertools.chain(model.named_parameters(), model.named_buffers())}
    random = torch.get_rng_state()
    scores = pai.score(model, "prospr", (x, y), order=order)
    assert list(scores) == [n for n in before if n.endswith("weight") and before[n].ndim > 1]  # the tied one once
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items() if n in before)
    assert all(p.grad is None for p in model.parameters()) and torch.equal(random, torch.get_rng_state())
    assert all(not s.requires_grad and s.dtype == dtype and s.isfinite().all() for s in scores.values())
    assert (scores["unused.weight"] == 0).all() and all(scores[n].any() for n in scores if n != "unused.weight")
    if dtype == torch.float64:
        assert all(torch.allclose(scores[n], plain[n], rtol=1e-8, atol=1e-12) for n in scores)


def test_it_prunes_to_the_weight():
    model, batch = seeded(Net), a_batch((2, 6, 6))
    mask = pai.prune(model, "prospr", 0.8, batch=batch)
    assert mask.kept == round(0.2 * mask.total) and mask.budget == 10 * 12
    assert mask == pai.prune(model, "prospr", 0.8, batch=batch)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": -1}, "steps.*got -1"),
        ({"steps": 1.5}, "steps.*got 1.5"),
        ({"steps": True}, "steps.*got True"),
        ({"lr": 0}, "lr=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"momentum": 1}, "momentum=1"),
        ({"order": "second"}, "unknown order 'second'.*'full', 'first'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        pai.score(seeded(smooth), "prospr", a_batch(), **options)


def test_a_training_that_diverges_and_a_missing_class_are_errors():
    with pytest.raises(ValueError, match="NaN or infinite"):
        pai.score(seeded(smooth).float(), "prospr", (a_batch()[0].float(), a_batch()[1]), lr=1e38)
    with pytest.raises(ValueError, match="label 3"):
        pai.score(seeded(smooth), "prospr", (a_batch()[0], torch.full((12,), 3)))
