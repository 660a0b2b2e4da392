"""NTK-SAP beside the linear net's closed form, the explicit kernel, and finite differences in the mask."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pai_lab as pai
from pai_lab.criteria.ntk import distance


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make().double()


def smooth():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


class Net(nn.Module):
    """Grouped and depthwise convolutions, BatchNorm, dropout, a skip, a tied weight and a layer that is never used."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped, self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.tied, self.head, self.unused = nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Linear(8, 3), nn.Linear(3, 3)
        self.tied.weight, self.drop = self.depthwise.weight, nn.Dropout(0.5)

    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        x = (self.tied(self.depthwise(self.grouped(x).relu())) + self.drop(x)).relu()
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def inputs(*shape, n=8):
    return torch.zeros(n, *shape, dtype=torch.float64), torch.zeros(n, dtype=torch.int64)


def ones_like(model):
    return {n: torch.ones_like(w).requires_grad_() for n, w in pai.prunable(model).items()}


def test_a_linear_net_in_closed_form():
    # f = (w * m) x: the mean of d/dm is 2 epsilon^2 m x_j^2, whatever w and whatever the row
    model, x, draws, epsilon = seeded(lambda: nn.Linear(3, 4, bias=False)), torch.tensor([[1.0, -2, 0.5]]), 2500, 0.1
    mask = ones_like(model)
    with torch.no_grad():
        mask["weight"][0, 1] = 0
    total = 0
    for _ in range(draws):
        total = total + torch.autograd.grad(distance(model, mask, x.double(), epsilon), mask["weight"])[0]
    m = mask["weight"].detach()
    mean = 2 * epsilon**2 * m * x**2
    # d = 2 (e m x) e_j x_j: variance 4 epsilon^4 x_j^2 (sum of m x^2 over all, plus m x_j^2 once more)
    sigma = 2 * epsilon**2 * x.abs() * ((m * x**2).sum(1, keepdim=True) + m * x**2).sqrt() / draws**0.5
    assert ((total / draws - mean).abs() < 4.5 * sigma).all()


def test_the_scores_of_a_linear_net_are_equal_up_to_chance():
    # the inputs are N(0, 1), so that the mean of x_j^2 is 1: each weight scores 2 epsilon^2 per sample
    model, (epsilon, draws, n) = seeded(lambda: nn.Linear(3, 4, bias=False)), (0.05, 200, 50)
    scores = pai.score(model, "ntk_sap", inputs(3, n=n), epsilon=epsilon, draws=draws)["weight"]
    relative = scores / (2 * epsilon**2 * n * draws)
    # per draw of e: variance (e_j^2: 2) + cross terms over samples (2 others, about 1/n each): sigma^2 < 2.2 / draws
    assert (relative - 1).abs().max() < 4.5 * (2.2 / draws) ** 0.5
    assert scores.std() > 0


def moved(model, mask, x, epsilon):
    """`distance` in plain formulas, BatchNorm held at the statistics of the dense net: constants of the derivative."""
    torch.manual_seed(7)
    shifts = {n: epsilon * torch.randn_like(w) for n, w in pai.prunable(model).items()}
    first = F.linear(x, model[0].weight, model[0].bias)
    mean, deviation = first.mean(0), (first.var(0) + model[1].eps).sqrt()
    outputs = []
    for factor in (0, 1):
        one, two = (m * (model.get_parameter(n) + factor * shifts[n]) for n, m in mask.items())
        hidden = ((F.linear(x, one, model[0].bias) - mean) / deviation * model[1].weight + model[1].bias).tanh()
        outputs.append(F.linear(hidden, two, model[3].bias))
    return (outputs[0] - outputs[1]).square().sum().item()


def test_the_derivative_is_exact():
    model, mask, h = seeded(smooth), ones_like(seeded(smooth)), 1e-6
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(7)
    value = distance(model, mask, x, 0.1)
    assert value.item() == pytest.approx(moved(model, mask, x, 0.1), rel=1e-12)
    for name, gradient in zip(mask, torch.autograd.grad(value, list(mask.values())), strict=True):
        for place in range(0, gradient.numel(), 5):
            ends = []
            for step in (h, -h):
                leaf = mask[name].detach().clone()
                leaf.view(-1)[place] += step
                ends.append(moved(model, mask | {name: leaf}, x, 0.1))
            slope = (ends[0] - ends[1]) / (2 * h)
            assert abs(slope - gradient.flatten()[place].item()) < 1e-8


def test_the_mean_distance_is_the_trace_of_the_kernel():
    # to first order in epsilon: the mean of |f(w + e) - f(w)|^2 is epsilon^2 |df/dw|^2, here from the explicit Jacobian
    model, epsilon, draws = seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))), 1e-4, 600
    x, mask = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), ones_like(model)
    names = list(mask)

    def outputs(*weights):
        return pai.forward(model, pai.masked(model) | dict(zip(names, weights, strict=True)), x)

    jacobians = torch.autograd.functional.jacobian(outputs, tuple(model.get_parameter(n).detach() for n in names))
    trace = sum(j.square().sum() for j in jacobians).item()
    values = torch.tensor([distance(model, mask, x, epsilon).item() for _ in range(draws)]) / epsilon**2
    assert abs(values.mean() - trace) < 4.5 * values.std() / draws**0.5 < 0.2 * trace


def test_the_weights_are_drawn_anew():
    model, other = seeded(smooth), seeded(smooth, seed=1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(100)
    one, two = (pai.score(m, "ntk_sap", inputs(4)) for m in (model, other))
    assert all(torch.equal(one[n], two[n]) for n in one)  # the model's own weights play no part
    assert any(not torch.equal(one[n], s) for n, s in pai.score(model, "ntk_sap", inputs(4), seed=1).items())


def test_a_layer_that_cannot_be_drawn_keeps_its_weights():
    class Gain(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

        def forward(self, x):
            return self.value * x

    def scored(value):
        model = seeded(lambda: nn.Sequential(nn.Linear(4, 3), Gain(value)))
        return pai.score(model, "ntk_sap", inputs(4))["0.weight"]

    assert torch.allclose(scored(5.0), 25 * scored(1.0), rtol=1e-12)  # a distance squared


def test_draws_and_pairs_add_up():
    model = seeded(smooth)
    two = pai.score(model, "ntk_sap", inputs(4), draws=2)
    pairs = pai.score(model, "ntk_sap", [inputs(4), inputs(4)])
    assert all(torch.equal(two[n], pairs[n]) for n in two)  # the same random numbers in the same order
    assert two.budget == pairs.budget == 2 * 3 * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_net_any_dtype_and_no_trace(dtype):
    model, (x, y) = seeded(Net).to(dtype).train(), inputs(2, 6, 6)
    x = x.to(dtype)
    if dtype == torch.float32:
        model = model.to(memory_format=torch.channels_last)
    before = {n: t.detach().clone() for n, t in itertools.chain(model.named_parameters(), model.named_buffers())}
    momenta, random = [model.bn.momentum, model.training], torch.get_rng_state()
    scores = pai.score(model, "ntk_sap", (x, y))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items() if n in before)
    assert [model.bn.momentum, model.training] == momenta and torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert list(scores) == list(pai.prunable(model))
    assert all(s.isfinite().all() and not s.requires_grad for s in scores.values())
    assert (scores["unused.weight"] == 0).all() and all(scores[n].any() for n in scores if n != "unused.weight")
    assert {s.dtype for s in scores.values()} == {torch.float32 if dtype == torch.bfloat16 else dtype}


def test_a_removed_input_has_no_say_in_the_rest():
    model = seeded(lambda: nn.Linear(3, 4, bias=False))
    dense = torch.ones(4, 3, dtype=torch.bool)
    dense[:, 2] = False
    scores = pai.score(model, "ntk_sap", inputs(3), mask=pai.Mask({"weight": dense}), draws=300)["weight"]
    # E d/dm_j = 2 epsilon^2 m_j x_j^2: only chance, of either sign, is left where m is 0
    assert scores[:, 2].max() < 0.35 * scores[:, :2].min()


def test_it_prunes_in_twenty_rounds_and_leaves_no_layer_empty():
    model = seeded(lambda: nn.Sequential(*(nn.Linear(i, o) for i, o in ((20, 30), (30, 30), (30, 3)))))
    masks = [mask for _, mask in pai.rounds(model, "ntk_sap", 0.95, batch=inputs(20))]
    assert len(masks) == 20 and masks[-1].kept == round(0.05 * masks[-1].total) and not masks[-1].collapsed()
    assert masks[-1].budget == 20 * 3 * 8
    assert masks[-1] == pai.prune(model, "ntk_sap", 0.95, batch=inputs(20))


@pytest.mark.parametrize(
    "options",
    [{"epsilon": 0}, {"epsilon": -1}, {"epsilon": float("nan")}, {"draws": 0}, {"draws": 1.5}, {"draws": True}],
)
def test_wrong_options(options):
    with pytest.raises(ValueError, match="epsilon must be above 0 and draws an integer from 1 on"):
        pai.score(seeded(smooth), "ntk_sap", inputs(4), **options)


def test_a_batch_of_one_under_batch_norm_is_an_error():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        pai.score(seeded(smooth), "ntk_sap", inputs(4, n=1))
