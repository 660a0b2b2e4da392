"""Curvature scores beside explicit Hessians, linear systems of numpy and closed forms, in float64."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

import pai_lab as pai
from pai_lab.criteria import second_order as so

EVERY = [("grasp", {}), ("obs", {"curvature": "fisher"}), ("obs", {"curvature": "gauss_newton"})]
EVERY += [("obd", {"curvature": c}) for c in so.CURVATURES]


def hessian(function):
    return lambda w: torch.autograd.functional.hessian(function, w)


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make().double()


def tanh_net():
    """43 parameters, 35 of them weights."""
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def softmax_regression():
    return nn.Linear(4, 3, bias=False)


def with_norm():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4), nn.MaxPool2d(2),
        nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


class Spare(nn.Module):
    """A layer that the output does not use, and two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.idle, self.last = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 3)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight

    def forward(self, x):
        return self.last(self.tied(self.first(x).tanh()).tanh())


def a_batch(shape=(4,), n=12, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=generator)


def cut(batch, *places):
    edges = [0, *places, len(batch[0])]
    return [tuple(t[a:b] for t in batch) for a, b in zip(edges, edges[1:], strict=False)]


def joined(scores):
    return torch.cat([s.detach().flatten() for s in scores.values()])


def flat_loss(model, x, y, temperature=1, output=False):
    """(f, w): the loss (or the logits) as a function of all weights in one vector, and the vector."""
    weights = pai.prunable(model)
    rest = {n: t.detach() for n, t in [*model.named_parameters(), *model.named_buffers()] if n not in weights}

    def function(vector, x=x, y=y):
        parts = vector.split([w.numel() for w in weights.values()])
        own = {n: part.view(w.shape) for (n, w), part in zip(weights.items(), parts, strict=True)}
        logits = functional_call(model, (own, rest), (x,))
        return logits if output else F.cross_entropy(logits / temperature, y)

    return function, joined(weights)


def near(one, other, tolerance=1e-14):
    return float((one - other).detach().abs().max()) < tolerance


# -- products with the Hessian -------------------------------------------------------------------------------------
def test_grasp_of_a_quadratic_by_hand():
    a = torch.tensor([[2.0, 1], [1, 3]], dtype=torch.float64)
    w = torch.tensor([1.0, -1], dtype=torch.float64, requires_grad=True)
    (product,) = so.hessian_product(w @ a @ w / 2, [w])
    assert product.tolist() == [0, -5] and (w * product).tolist() == [0, 5]
    assert (w * product).sum().item() == 5 == (a @ w).square().sum().item()  # |g|^2, for a pure quadratic


@given(seed=st.integers(0, 10_000), n=st.integers(1, 6), m=st.integers(1, 5))
@settings(max_examples=30)
def test_products_rows_and_diagonal_of_any_quadratic(seed, n, m):
    generator = torch.Generator().manual_seed(seed)
    a, v, start = (torch.randn(n + m, k, generator=generator, dtype=torch.float64) for k in (n + m, 1, 1))
    one, two = start[:n, 0].clone().requires_grad_(), start[n:].clone().requires_grad_()

    def loss():
        both = torch.cat([one, two[:, 0]])
        return both @ a @ both / 2

    h = (a + a.T) / 2
    product = so.hessian_product(loss(), [one, two], [v[:n, 0], v[n:]])
    assert near(torch.cat([p.flatten() for p in product]), h @ v[:, 0], 1e-12)
    assert near(torch.cat([d.flatten() for d in so.exact_diagonal(loss(), [one, two])]), h.diagonal(), 1e-12)
    rows = torch.stack(list(so.hessian_rows(so.slopes(loss(), [one, two])[1], two)))
    assert near(rows, h[n:, n:], 1e-12)


def test_what_bends_nothing_has_no_curvature():
    w, idle = torch.ones(3, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    for loss, bend in ((w.sum(), 0.0), (w.square().sum(), 4.0)):  # H = 2, g = 2
        product, none = so.hessian_product(loss, [w, idle])
        assert product.tolist() == [bend] * 3 and none.tolist() == [[0.0, 0.0]] * 2
    assert [d.tolist() for d in so.exact_diagonal(w.sum(), [w, idle])] == [[0.0] * 3, [[0.0] * 2] * 2]
    assert so.hutchinson(w.sum(), [w], 2)[0].tolist() == [0.0] * 3


# -- GraSP -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1, 5.0, 200])
def test_grasp_is_the_explicit_hessian_times_the_gradient(temperature):
    model, (x, y) = seeded(tanh_net), a_batch()
    loss, w = flat_loss(model, x, y, temperature)
    expected = w * (hessian(loss)(w) @ grad(loss)(w))
    found = joined(pai.score(model, "grasp", (x, y), temperature=temperature)) / temperature**2
    assert near(found, expected, 1e-14 * float(expected.abs().max()) + 1e-17)
    assert (found < 0).any() and (found > 0).any()


def test_grasp_is_the_slope_of_the_gradient_flow():
    model, (x, y), h = seeded(tanh_net), a_batch(), 1e-5
    loss, w = flat_loss(model, x, y)
    found = joined(pai.score(model, "grasp", (x, y), temperature=1))
    for k in range(0, 35, 3):
        step = torch.zeros_like(w)
        step[k] = h * w[k]  # a factor on one weight
        flows = [grad(loss)(w + s).square().sum() for s in (step, -step)]
        assert abs((flows[0] - flows[1]) / (2 * h) - 2 * found[k]) < 1e-9


def test_the_temperature_is_not_just_a_scale():
    model, batch = seeded(tanh_net), a_batch()
    one, two = (joined(pai.score(model, "grasp", batch, temperature=t)) for t in (1, 200))
    assert torch.corrcoef(torch.stack([one, two]))[0, 1] < 0.999


def test_grasp_of_a_pruned_net_is_that_of_a_pruned_copy():
    model, batch = seeded(tanh_net), a_batch()
    mask = pai.prune(model, "magnitude", 0.5)
    scores = pai.score(model, "grasp", batch, mask=mask, temperature=1)
    loss, w = flat_loss(mask.apply(copy.deepcopy(model)), *batch)
    assert near(joined(scores), w * (hessian(loss)(w) @ grad(loss)(w)))
    assert all((s[~mask[n]] == 0).all() for n, s in scores.items())
    masks = [m for _, m in pai.rounds(model, "grasp", 0.9, batch=batch, iterations=5)]
    assert all((b & ~a).kept == 0 for a, b in zip(masks, masks[1:], strict=False)) and masks[-1].kept == 3


@given(cuts=st.lists(st.integers(2, 10), min_size=1, max_size=3, unique=True).map(sorted))
@settings(max_examples=10)
def test_grasp_over_a_list_is_that_of_the_mean_loss(cuts):
    model, batch = seeded(tanh_net), a_batch()
    whole, parts = (pai.score(model, "grasp", b) for b in (batch, cut(batch, *cuts)))
    assert near(joined(whole), joined(parts), 1e-13) and parts.budget == 2 * whole.budget == 72


def test_grasp_over_a_list_in_train_mode_is_one_loss_with_statistics_for_each_batch():
    model, batch = seeded(with_norm).train(), a_batch()
    pairs = cut(batch, 4)
    losses = [flat_loss(model, *pair) for pair in pairs]
    w = losses[0][1]

    def loss(vector):
        return sum(f(vector) * len(pair[1]) / 12 for (f, _), pair in zip(losses, pairs, strict=True))

    model[1].track_running_stats, model[1].running_mean, model[1].running_var = False, None, None
    expected = w * (hessian(loss)(w) @ grad(loss)(w))
    found = joined(pai.score(model, "grasp", pairs, temperature=1))
    assert near(found, expected) and not near(found, joined(pai.score(model, "grasp", batch, temperature=1)), 1e-3)


@pytest.mark.parametrize("temperature", [0, -1, float("inf"), float("nan")])
def test_a_temperature_that_is_none_is_an_error(temperature):
    with pytest.raises(ValueError, match="temperature must be a positive number, got"):
        pai.score(seeded(tanh_net), "grasp", a_batch(), temperature=temperature)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        q = self.first(x).view(-1, 1, 4, 2)
        return self.last(F.scaled_dot_product_attention(q, q, q).flatten(1))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0] ** 2 * slope


class Cubed(nn.Sequential):
    def forward(self, x):
        return self[1](Cube.apply(self[0](x)))


@pytest.mark.parametrize("criterion, options", [EVERY[0], EVERY[-2], EVERY[-1], ("obs", {"curvature": "exact"})])
def test_an_operation_without_a_second_derivative_is_an_error_that_names_it(criterion, options):
    x, y = a_batch()
    for model, message in (
        (Attention(), "scaled_dot_product.* is not implemented"),
        (Cubed(nn.Linear(4, 5), nn.Linear(5, 3)), "marked once_differentiable: it has no second derivative"),
    ):
        with pytest.raises(ValueError, match=message):
            pai.score(model, criterion, (x.float(), y), **options)
        assert pai.score(model, "obd", (x.float(), y)).budget == 12  # the Fisher needs none


# -- OBD -------------------------------------------------------------------------------------------------------------
def regression():
    generator = torch.Generator().manual_seed(3)
    x, t = (torch.randn(9, k, generator=generator, dtype=torch.float64) for k in (4, 1))
    return seeded(lambda: nn.Linear(4, 1, bias=False)), x, t


def test_obd_of_linear_regression_in_closed_form():
    model, x, t = regression()
    tensors = pai.masked(model)
    w = tensors["weight"]

    def loss(output, t):
        return (output - t).square().mean() / 2

    (h,) = so.exact_diagonal(loss(pai.forward(model, tensors, x), t), [w])
    assert near(h[0], x.square().mean(0))
    residual = (x @ w.detach().T - t)[:, 0]
    rows = so.sample_gradients(model, tensors, [w], (x, t), lambda output, t: [loss(output, t)])
    fisher = sum(g.square() for (g,) in rows)
    assert near(fisher[0], (residual[:, None] * x).square().mean(0))
    slope = (residual[:, None] * x).mean(0)
    for k in range(4):  # the loss is quadratic: removing a weight changes it by just this
        gone = w.detach().clone()
        gone[0, k] = 0
        rise = loss(x @ gone.T, t) - loss(x @ w.detach().T, t)
        assert abs(rise - (-slope[k] * w[0, k] + h[0, k] * w[0, k] ** 2 / 2)) < 1e-14


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_exact_diagonal_is_that_of_the_explicit_hessian(mode):
    model, (x, y) = seeded(with_norm), a_batch()
    pai.evaluate(model, (x, y))
    found = joined(pai.score(model, "obd", (x, y), curvature="exact", mode=mode))
    if mode == "train":
        model[1].track_running_stats, model[1].running_mean, model[1].running_var = False, None, None
    loss, w = flat_loss(model.train(mode == "train"), x, y)
    assert near(found, hessian(loss)(w).diagonal() * w**2 / 2)
    assert (found < 0).any()  # off a minimum the saliency is honest: the loss is expected to fall


def test_over_a_list_the_diagonals_are_those_of_the_whole():
    model, batch = seeded(tanh_net), a_batch()
    for curvature in ("fisher", "gauss_newton", "exact"):
        whole, parts = (joined(pai.score(model, "obd", b, curvature=curvature)) for b in (batch, cut(batch, 5, 6)))
        assert near(whole, parts, 1e-15)


def test_hutchinson_is_off_by_the_rest_of_the_row():
    model, (x, y), samples = seeded(tanh_net), a_batch(), 300
    loss, w = flat_loss(model, x, y)
    h = hessian(loss)(w)
    found = joined(pai.score(model, "obd", (x, y), curvature="hutchinson", samples=samples)) / (w**2 / 2)
    sigma = ((h - h.diag().diag()).square().sum(1) / samples).sqrt()
    z = (found - h.diagonal()) / sigma
    assert z.abs().max() < 5 and 0.5 < z.square().mean() < 2
    again = joined(pai.score(model, "obd", (x, y), curvature="hutchinson", samples=samples)) / (w**2 / 2)
    assert torch.equal(again, found)  # seeded
    other = joined(pai.score(model, "obd", (x, y), curvature="hutchinson", samples=samples, seed=1)) / (w**2 / 2)
    assert not torch.equal(other, found)


def test_one_draw_of_hutchinson_is_exact_where_the_hessian_is_diagonal():
    w = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    (found,) = so.hutchinson((w**4).sum(), [w], 1)
    assert near(found, 12 * w.detach() ** 2)


@pytest.mark.parametrize("samples", [0, -1, 2.5, True])
def test_hutchinson_needs_a_number_of_samples(samples):
    with pytest.raises(ValueError, match="samples must be an integer from 1 on, got"):
        pai.score(seeded(tanh_net), "obd", a_batch(), curvature="hutchinson", samples=samples)


def test_fisher_is_the_mean_of_each_samples_squared_gradient():
    model, (x, y) = seeded(convolutions), a_batch((2, 5, 5), n=10)
    model.train()(x)  # running statistics that are not those of the batch
    model.eval()
    total, weights = 0, pai.prunable(model)
    for i in range(10):
        twin = copy.deepcopy(model)
        F.cross_entropy(twin(x[i : i + 1]), y[i : i + 1]).backward()
        total = total + joined({n: w.grad for n, w in pai.prunable(twin).items()}) ** 2 / 10
    scores = pai.score(model, "obd", (x, y))
    assert near(joined(scores), total * joined(weights) ** 2 / 2, 1e-16) and scores.budget == 10
    loss, w = flat_loss(model, x, y)
    batched = vmap(lambda x, y: grad(loss)(w, x[None], y[None]))(x, y)
    assert near(joined(scores), batched.square().mean(0) * w**2 / 2, 1e-16)


def test_gauss_newton_is_exact_where_the_logits_are_linear():
    dense = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    everywhere = nn.Conv2d(2, 3, 1)  # a label at each place of the image
    for model, x, y in (
        (dense.double(), *a_batch()),
        (everywhere.double(), a_batch((2, 3, 2))[0], torch.arange(72).view(12, 3, 2) % 3),
    ):
        one, two = (joined(pai.score(model, "obd", (x, y), curvature=c)) for c in ("gauss_newton", "exact"))
        assert near(one, two) and one.max() > 1e-3


def test_gauss_newton_is_the_jacobian_around_the_hessian_of_the_output():
    model, (x, y) = seeded(tanh_net), a_batch()
    logits, w = flat_loss(model, x, y, output=True)
    jacobian, p = jacrev(logits)(w), logits(w).softmax(1)
    middle = p.diag_embed() - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("nck,ncd,ndk->k", jacobian, middle, jacobian) / len(x)
    found = joined(pai.score(model, "obd", (x, y), curvature="gauss_newton"))
    assert near(found, expected * w**2 / 2) and (found >= 0).all()
    whole = torch.einsum("nck,ncd,ndj->kj", jacobian, middle, jacobian) / len(x)
    _, blocks = so.layer_hessians(model, (x, y), None, ["2.weight"], "gauss_newton", 0.25)
    assert near(blocks["2.weight"], whole[20:, 20:] + 0.25 * torch.eye(15, dtype=torch.float64))


def test_gauss_newton_of_a_sure_model_is_finite():
    model, (x, y) = seeded(softmax_regression), a_batch()
    scores = pai.score(nn.Sequential(model, nn.Hardtanh(-1e4, 1e4)), "obd", (x * 1e6, y), curvature="gauss_newton")
    assert joined(scores).isfinite().all()


def test_the_curvature_must_be_known():
    for criterion, other in (("obd", "'hutchinson'"), ("obs", "'exact'")):
        with pytest.raises(ValueError, match=f"unknown curvature 'fischer'. Did you mean 'fisher'.*{other}"):
            pai.score(seeded(tanh_net), criterion, a_batch(), curvature="fischer")
    with pytest.raises(ValueError, match="unknown curvature 'hutchinson'"):
        pai.score(seeded(tanh_net), "obs", a_batch(), curvature="hutchinson")


@pytest.mark.parametrize("criterion", ["obd", "obs"])
@pytest.mark.parametrize("curvature", ["fisher", "gauss_newton"])
def test_under_batch_statistics_no_sample_has_a_gradient(criterion, curvature):
    model = seeded(with_norm)
    with pytest.raises(ValueError, match="'1' takes statistics of the batch.*mode='eval'"):
        pai.score(model, criterion, a_batch(), curvature=curvature, mode="train")
    model[1] = nn.BatchNorm1d(5, track_running_stats=False).double()
    with pytest.raises(ValueError, match="'1' takes statistics of the batch"):
        pai.score(model, criterion, a_batch(), curvature=curvature)
    assert pai.score(model, criterion, a_batch(), curvature="exact", **{"damping": 9.0} if criterion == "obs" else {})


def test_the_exact_diagonal_of_a_large_model_states_its_cost():
    with pytest.raises(ValueError, match="double backward pass for each of 20,100 weights; at most 20,000: use"):
        pai.score(nn.Linear(201, 100), "obd", (torch.zeros(1, 201), torch.tensor([0])), curvature="exact")


# -- OBS -------------------------------------------------------------------------------------------------------------
def quadratic_by_numpy(h, w, removed):
    """(d, rise): the least d'Hd / 2 with d = -w at the removed places, from the whole Lagrangian system."""
    n, places = len(w), np.flatnonzero(removed)
    system = np.zeros((n + len(places),) * 2)
    system[:n, :n] = h
    system[range(n, n + len(places)), places] = system[places, range(n, n + len(places))] = 1
    d = np.linalg.solve(system, np.concatenate([np.zeros(n), -w[places]]))[:n]
    return d, d @ h @ d / 2


def explicit(model, x, y, damping):
    loss, w = flat_loss(model, x, y)
    return (hessian(loss)(w) + damping * torch.eye(len(w), dtype=torch.float64)).numpy(), w.numpy()


def test_the_saliency_is_the_least_rise_of_the_quadratic_model():
    model, (x, y) = seeded(softmax_regression), a_batch()
    h, w = explicit(model, x, y, 0.01)
    found = joined(pai.score(model, "obs", (x, y), curvature="exact", damping=0.01)).numpy()
    rises = [quadratic_by_numpy(h, w, np.arange(12) == k)[1] for k in range(12)]
    assert np.abs(found - rises).max() < 1e-12
    assert (found <= np.diag(h) * w**2 / 2 + 1e-15).all()  # who may make up for it never loses more than OBD
    linear = joined(pai.score(model, "obs", (x, y), curvature="gauss_newton", damping=0.01)).numpy()
    assert np.abs(found - linear).max() < 1e-12


@given(removed=st.lists(st.booleans(), min_size=12, max_size=12).filter(any), damping=st.sampled_from([1e-3, 0.1, 10]))
@settings(max_examples=40)
def test_the_update_is_the_solution_of_the_constrained_quadratic(removed, damping):
    model, (x, y) = seeded(softmax_regression), a_batch()
    removed = np.array(removed)
    mask = pai.Mask({"weight": torch.from_numpy(~removed).view(3, 4)})
    h, w = explicit(model, x, y, damping)
    found = so.obs_update(model, (x, y), mask, curvature="exact", damping=damping)["weight"]
    assert found.shape == (3, 4) and ((model.weight + found)[~mask["weight"]] == 0).all()
    expected, _ = quadratic_by_numpy(h, w, removed)
    assert np.abs(found.flatten().numpy() - expected).max() < 1e-10
    inverse, e = np.linalg.inv(h), np.eye(12)[:, removed]  # -H^-1 E (E'H^-1 E)^-1 w, the formula of the papers
    formula = -inverse @ e @ np.linalg.solve(e.T @ inverse @ e, w[removed])
    assert np.abs(found.flatten().numpy() - formula).max() < 1e-10


def test_the_update_for_one_weight_is_hassibis():
    model, (x, y), q = seeded(softmax_regression), a_batch(), 7
    h, w = explicit(model, x, y, 1e-2)
    mask = pai.Mask({"weight": (torch.arange(12) != q).view(3, 4)})
    found = so.obs_update(model, (x, y), mask, curvature="gauss_newton", damping=1e-2)["weight"].flatten().numpy()
    inverse = np.linalg.inv(h)
    assert np.abs(found + w[q] / inverse[q, q] * inverse[:, q]).max() < 1e-12
    saliency = joined(pai.score(model, "obs", (x, y), curvature="exact", damping=1e-2))[q]
    assert abs(found @ h @ found / 2 - saliency) < 1e-13


def test_each_layer_is_on_its_own_and_layers_that_lose_nothing_are_left_out():
    model, batch = seeded(tanh_net), a_batch(n=60)
    mask = pai.prune(model, "magnitude", 0.4, scope="layer")
    both = so.obs_update(model, batch, mask, curvature="gauss_newton")
    for name in both:
        alone = so.obs_update(model, batch, pai.Mask({name: mask[name]}), curvature="gauss_newton")
        assert list(alone) == [name] and near(alone[name], both[name], 1e-15)
    assert list(both) == list(mask) and so.obs_update(model, batch, pai.Mask.dense(model)) == {}
    nothing = pai.Mask({"0.weight": torch.zeros(5, 4, dtype=torch.bool)})
    assert torch.equal(so.obs_update(model, batch, nothing)["0.weight"], -model[0].weight)


def test_at_a_minimum_the_update_saves_most_of_the_loss():
    model, batch = seeded(softmax_regression), a_batch(n=60)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    optimizer.step(closure)
    least = closure().item()
    mask = pai.prune(model, "obs", 0.5, batch=batch, curvature="exact")
    change = so.obs_update(model, batch, mask, curvature="exact")["weight"]
    plain, updated = mask.apply(copy.deepcopy(model)), copy.deepcopy(model)
    with torch.no_grad():
        updated.weight += change
    plain, updated = (F.cross_entropy(m(batch[0]), batch[1]).item() - least for m in (plain, updated))
    assert 0 < updated < 0.5 * plain
    h, _ = explicit(model, *batch, 0)
    assert abs(updated - change.flatten().numpy() @ h @ change.flatten().numpy() / 2) < 0.1 * updated


def test_obs_of_a_pruned_layer_lets_only_kept_weights_make_up():
    model, (x, y) = seeded(softmax_regression), a_batch()
    keep = torch.tensor([True, True, False, True] * 3)
    mask = pai.Mask({"weight": keep.view(3, 4)})
    found = joined(pai.score(model, "obs", (x, y), mask=mask, curvature="exact", damping=0.02)).numpy()
    h, w = explicit(mask.apply(copy.deepcopy(model)), x, y, 0.02)
    h, w = h[np.ix_(keep, keep)], w[keep]
    rises = [quadratic_by_numpy(h, w, np.arange(9) == k)[1] for k in range(9)]
    assert np.abs(found[keep] - rises).max() < 1e-12 and (found[~keep] == 0).all()
    masks = [m for _, m in pai.rounds(model, "obs", 0.75, batch=(x, y), iterations=4)]
    assert all((b & ~a).kept == 0 for a, b in zip(masks, masks[1:], strict=False)) and masks[-1].kept == 3


def test_a_hessian_that_is_not_positive_definite_is_an_error():
    model, batch = seeded(tanh_net), a_batch()
    for call in (
        lambda **o: pai.score(model, "obs", batch, **o),
        lambda **o: so.obs_update(model, batch, pai.prune(model, "magnitude", 0.2), **o),
    ):
        with pytest.raises(ValueError, match="'0.weight' is not positive definite: take more damping"):
            call(curvature="exact", damping=0)
    with pytest.raises(ValueError, match="not positive definite"):  # 12 samples, 20 weights: singular
        pai.score(model, "obs", batch, damping=-1e-3)


def test_a_large_layer_is_an_error_that_states_its_memory():
    model, batch = nn.Sequential(nn.Linear(9, 120), nn.ReLU(), nn.Linear(120, 50)), (torch.randn(3, 9), torch.arange(3))
    with pytest.raises(ValueError, match=r"'2.weight' has 6,000 weights: their Hessian would take 0.3 GB.*exclude"):
        pai.score(model, "obs", batch)
    mask = pai.prune(model, "magnitude", 0.5)
    with pytest.raises(ValueError, match="'2.weight' has 6,000 weights"):
        so.obs_update(model, batch, mask)
    small = pai.prune(model, "obs", 0.5, batch=batch, exclude=["2.weight"])
    assert list(small) == ["0.weight"] == list(so.obs_update(model, batch, small)) and small.kept == 540


def test_a_mask_of_another_model_is_an_error():
    with pytest.raises(ValueError, match="this mask is for another model"):
        so.obs_update(seeded(tanh_net), a_batch(), pai.Mask({"weight": torch.zeros(2, 2, dtype=torch.bool)}))


# -- all of them -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("criterion, options", EVERY)
def test_what_is_unused_scores_zero_and_what_is_shared_scores_as_one(criterion, options):
    model, batch = seeded(Spare), a_batch()
    scores = pai.score(model, criterion, batch, **options)
    assert list(scores) == ["first.weight", "idle.weight", "last.weight"]
    if criterion == "obs":  # nothing but damping holds it
        assert near(scores["idle.weight"], model.idle.weight**2 * 1e-4 / 2, 1e-15)
    else:
        assert (scores["idle.weight"] == 0).all()
    assert scores["first.weight"].abs().min() > 0
    if options.get("curvature") == "exact":
        loss, w = flat_loss(model, *batch)
        assert near(joined(scores), hessian(loss)(w).diagonal() * w**2 / 2)


@pytest.mark.parametrize("criterion, options", EVERY)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_other_dtypes_and_memory_formats_leave_no_trace(criterion, options, dtype):
    model, (x, y) = seeded(convolutions).to(dtype), a_batch((2, 5, 5))
    model.to(memory_format=torch.channels_last), model[1].eval()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    batch = x.to(dtype, memory_format=torch.channels_last), y
    scores = pai.score(model, criterion, batch, **options)
    mask = pai.prune(model, criterion, 0.7, batch=batch, **options)
    so.obs_update(model, batch, mask)
    assert mask.kept == round(0.3 * 52) and all(s.dtype == dtype for s in scores.values())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]) and tensor.stride() == state[name].stride()
    assert torch.equal(random, torch.get_rng_state()) and modes == [m.training for m in model.modules()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    if dtype != torch.bfloat16:
        plain = copy.deepcopy(model).double().to(memory_format=torch.contiguous_format)
        reference = pai.score(plain, criterion, (x, y), **options)
        if options.get("curvature") != "hutchinson":  # whose signs follow the memory
            assert near(joined(scores).double(), joined(reference), 1e-4 * float(joined(reference).abs().max()))


@pytest.mark.parametrize("criterion, options", EVERY)
def test_a_batch_of_one_and_labels_out_of_range(criterion, options):
    model, (x, y) = seeded(with_norm), a_batch(n=1)
    assert pai.score(model, criterion, (x, y), mode="eval", **options).budget == (3 if criterion == "grasp" else 1)
    with pytest.raises(ValueError, match="more than 1 value per channel when training|statistics of the batch"):
        pai.score(model, criterion, (x, y), mode="train", **options)
    with pytest.raises(ValueError, match="label 3 needs a class"):
        pai.score(model, criterion, (x, y * 0 + 3), mode="eval", **options)


def test_defaults_are_in_the_catalogue():
    table = pai.catalog("criterion").set_index("name")
    assert table.loc["grasp"].defaults == "mode=train, passes=3" and table.loc["grasp"].year == 2020
    assert table.loc["obd"].defaults == table.loc["obs"].defaults == "mode=eval"
    model, batch = seeded(with_norm), a_batch()
    assert torch.equal(
        joined(pai.score(model, "grasp", batch)),
        joined(pai.score(model, "grasp", batch, mode="train", temperature=200)),
    )
