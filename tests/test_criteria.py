"""The scores themselves, beside closed forms, finite differences and conservation laws, in float64."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune as torch_prune

import pai_lab as pai
from pai_lab.criteria.first_order import loss_gradients


def seeded(make, seed=0, double=True):
    torch.manual_seed(seed)
    model = make()
    return model.double() if double else model


def smooth():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Softplus(), nn.Linear(6, 3))


def relu_chain():
    return nn.Sequential(
        nn.Linear(6, 8, bias=False),
        nn.ReLU(),
        nn.Linear(8, 7, bias=False),
        nn.ReLU(),
        nn.Linear(7, 4, bias=False),
    )


def conv_chain(pool=nn.AvgPool2d):
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.ReLU(),
        pool(2),
        nn.Conv2d(6, 5, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 4, bias=False),
    )


def with_norm():
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def a_batch(shape=(5,), n=12, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=generator)


def flux(scores):
    return [float(s.sum()) for s in scores.values()]


# -- SNIP ------------------------------------------------------------------------------------------
def test_snip_is_the_slope_of_the_loss_in_a_factor_on_the_weight():
    model, (x, y), h = seeded(smooth), a_batch(), 1e-6
    scores = pai.score(model, "snip", (x, y))
    for name, weight in pai.prunable(model).items():
        for place in torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(1))[:8].tolist():
            losses = []
            for factor in (1 + h, 1 - h):
                twin = copy.deepcopy(model)
                with torch.no_grad():
                    twin.get_parameter(name).view(-1)[place] *= factor
                    losses.append(F.cross_entropy(twin(x), y).item())
            slope = (losses[0] - losses[1]) / (2 * h)
            assert abs(abs(slope) - scores[name].flatten()[place].item()) < 1e-8


def test_snip_on_a_linear_model_in_closed_form():
    model, (x, y) = seeded(lambda: nn.Linear(5, 3, bias=False)), a_batch()
    error = (x @ model.weight.detach().T).softmax(1) - F.one_hot(y, 3)  # d loss / d output
    expected = (model.weight.detach() * (error.T @ x) / len(x)).abs()
    assert (pai.score(model, "snip", (x, y))["weight"] - expected).abs().max() < 1e-15


def test_signed_snip_sums_to_the_same_in_every_layer_of_a_relu_net():
    for make, shape in ((relu_chain, (6,)), (conv_chain, (2, 8, 8))):
        weights, gradients = loss_gradients(seeded(make), a_batch(shape), None)
        sums = [float((w * gradients[n]).sum().detach()) for n, w in weights.items()]
        assert max(sums) - min(sums) < 1e-12 and abs(sums[0]) > 1e-3


def test_unequal_batches_in_a_list_are_one_batch_in_eval_mode():
    model, (x, y) = seeded(with_norm), a_batch(n=17)
    pairs = [(x[:3], y[:3]), (x[3:4], y[3:4]), (x[4:], y[4:])]
    whole = pai.score(model, "snip", (x, y), mode="eval")
    parts = pai.score(model, "snip", pairs, mode="eval")
    assert all((whole[n] - parts[n]).abs().max() < 1e-12 for n in whole)
    assert whole.budget == parts.budget == 17
    differs = pai.score(model, "snip", [pairs[0], pairs[2]], mode="train")
    assert any((whole[n] - differs[n]).abs().max() > 1e-6 for n in whole)


def test_the_mode_counts_and_the_models_own_flag_does_not():
    model, batch = seeded(with_norm), a_batch()
    train, evaluating = (pai.score(model, "snip", batch, mode=mode) for mode in ("train", "eval"))
    assert any((train[n] - evaluating[n]).abs().max() > 1e-4 for n in train)
    for flag in (True, False):
        model.train(flag)
        again = pai.score(model, "snip", batch)  # snip's own choice: batch statistics
        assert all(torch.equal(again[n], train[n]) for n in train)
        assert model.training is flag


def test_a_filter_before_train_mode_batch_norm_has_no_scale():
    def make():
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False),
            nn.BatchNorm2d(4, eps=1e-30),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 3),
        )

    model = seeded(make).train()
    weights, gradients = loss_gradients(model, a_batch((2, 4, 4)), None)
    products = (weights["0.weight"] * gradients["0.weight"]).detach().flatten(1)
    assert products.sum(1).abs().max() < 1e-15 < 1e-3 < products.abs().sum()


def test_gradients_at_removed_places_are_dense():
    model, (x, y) = seeded(smooth), a_batch()
    mask = pai.prune(model, "magnitude", 0.5)
    _, gradients = loss_gradients(model, (x, y), mask)
    pruned = mask.apply(copy.deepcopy(model))
    F.cross_entropy(pruned(x), y).backward()
    for name, weight in pai.prunable(pruned).items():
        assert torch.allclose(gradients[name], weight.grad, atol=1e-15) and gradients[name][~mask[name]].abs().sum() > 0
    scores = pai.score(model, "snip", (x, y), mask=mask)
    assert all((scores[n][~mask[n]] == 0).all() for n in scores)


class Sum(nn.Module):
    """Two weights that are added: their gradients may come back as one tensor."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 3, bias=False), nn.Linear(5, 3, bias=False)

    def forward(self, x):
        return F.linear(x, self.one.weight + self.two.weight)


def test_snip_where_two_weights_share_one_gradient():
    model, (x, y) = seeded(Sum), a_batch()
    joint = (model.one.weight + model.two.weight).detach()
    gradient = ((x @ joint.T).softmax(1) - F.one_hot(y, 3)).T @ x / len(x)
    for name, scores in pai.score(model, "snip", (x, y)).items():
        assert (scores - (model.get_parameter(name) * gradient).abs()).abs().max() < 1e-14


# -- SynFlow ---------------------------------------------------------------------------------------
def by_hand():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2], [3, 4]]))
        model[2].weight.copy_(torch.tensor([[5.0, -6]]))
    return model


@pytest.mark.parametrize("double", [True, False])
def test_synflow_by_hand(double):
    scores = pai.score(
        seeded(by_hand, double=double), "synflow", (torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    )
    assert scores["0.weight"].tolist() == [[5, 10], [18, 24]] and scores["2.weight"].tolist() == [[15, 42]]
    assert flux(scores) == [57, 57] and scores.budget == 1


def absolute(model):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.abs_()
    return twin


@pytest.mark.parametrize("pool", [nn.AvgPool2d, nn.MaxPool2d])
def test_the_flow_is_the_same_through_every_layer(pool):
    model = seeded(lambda: conv_chain(pool))
    scores = pai.score(model, "synflow", a_batch((2, 8, 8)))
    total = absolute(model)(torch.ones(1, 2, 8, 8, dtype=torch.float64)).sum().item()
    assert flux(scores) == pytest.approx([total] * 3, rel=1e-12)
    assert all((s >= 0).all() for s in scores.values())


def test_what_flows_into_a_unit_flows_out():
    scores = pai.score(seeded(relu_chain), "synflow", a_batch((6,)))
    for below, above in (("0.weight", "2.weight"), ("2.weight", "4.weight")):
        assert torch.allclose(scores[below].sum(1), scores[above].sum(0), rtol=1e-12)


def test_a_skip_connection_takes_its_share():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inside, self.last = (nn.Linear(6, 6, bias=False) for _ in range(3))

        def forward(self, x):
            h = self.first(x)
            return self.last(h + self.inside(h).relu())

    first, inside, last = flux(pai.score(seeded(Residual), "synflow", a_batch((6,))))
    assert first == pytest.approx(last, rel=1e-12) and inside < 0.99 * first


def noisy():
    """Biases, shifts and running means that would inject flow if they were let."""
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 4),
    )
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "bias") and module.bias is not None:
                module.bias.normal_()
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_()
    return model


def test_biases_and_running_means_inject_no_flow():
    flows = flux(pai.score(seeded(noisy), "synflow", a_batch((2, 6, 6))))
    assert flows == pytest.approx([flows[0]] * 3, rel=1e-12)


def test_synflow_reads_neither_the_data_nor_the_labels():
    model = seeded(noisy, double=False)
    (x, y), (other, labels) = a_batch((2, 6, 6)), a_batch((2, 6, 6), n=3, classes=100, seed=5)
    one, two = pai.score(model, "synflow", (x, y)), pai.score(model, "synflow", (other * 1e9, labels))
    three = pai.score(model.train(), "synflow", [(other.float() * float("nan"), labels)])
    assert all(torch.equal(one[n], two[n]) and torch.equal(one[n], three[n]) for n in one)


def test_synflow_in_a_deep_net_does_not_overflow():
    def deep():
        layers = [nn.Linear(512, 512, bias=False) for _ in range(30)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        return nn.Sequential(*layers)

    model = seeded(deep, double=False)
    assert absolute(model)(torch.ones(1, 512)).isinf().any()  # the trap: float32 overflows
    scores = pai.score(model, "synflow", (torch.zeros(2, 512), torch.zeros(2, dtype=torch.int64)))
    assert all(s.isfinite().all() and s.dtype == torch.float64 for s in scores.values())
    assert flux(scores) == pytest.approx([flux(scores)[0]] * 30, rel=1e-10)
    mask = pai.prune(
        model, "synflow", 0.99, batch=(torch.zeros(2, 512), torch.zeros(2, dtype=torch.int64)), iterations=1
    )
    assert mask.kept == round(0.01 * 30 * 512 * 512)


def test_a_hundred_rounds_spare_the_layer_that_one_round_empties():
    def bottleneck():
        # every layer carries the same flow: the more weights it has, the less each one scores
        return nn.Sequential(*(nn.Linear(i, o, bias=False) for i, o in ((100, 100), (100, 10), (10, 100), (100, 2))))

    model = seeded(bottleneck)
    batch = (torch.zeros(1, 100), torch.zeros(1, dtype=torch.int64))
    # 24 of 12,200 weights are kept, 4 layers: at least one weight in each is possible
    one, hundred = (pai.prune(model, "synflow", 1 - 24 / 12_200, batch=batch, iterations=n) for n in (1, 100))
    assert one.kept == hundred.kept == 24
    assert one.collapsed() and not hundred.collapsed()
    alive = hundred.apply(absolute(model))(torch.ones(1, 100, dtype=torch.float64))
    assert alive.sum() > 0


# -- random and magnitude --------------------------------------------------------------------------
@pytest.mark.parametrize("structure", ["weight", "filter"])
def test_random_layer_counts_are_hypergeometric(structure):
    model = nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 300), nn.Linear(300, 10))
    sizes = [2000, 12000, 3000] if structure == "weight" else [40, 300]
    total, kept = sum(sizes), round(0.2 * sum(sizes))
    for seed in range(5):
        mask = pai.prune(model, "random", 0.8, seed=seed, structure=structure)
        counts = [int((m if structure == "weight" else m.any(1)).sum()) for m in mask.values()][: len(sizes)]
        for count, n in zip(counts, sizes, strict=True):
            sigma = math.sqrt(kept * (n / total) * (1 - n / total) * (total - kept) / (total - 1))
            assert abs(count - kept * n / total) < 5 * sigma
    assert mask == pai.prune(model, "random", 0.8, seed=4, structure=structure)
    assert mask != pai.prune(model, "random", 0.8, seed=3, structure=structure)


def test_random_filters_of_wide_and_narrow_layers_are_as_likely():
    # the mean of many weights' scores would be close to 1/2, and narrow filters would win both ends
    model = nn.Sequential(nn.Linear(2, 200), nn.Linear(200, 200), nn.Linear(200, 2))
    kept = [pai.prune(model, "random", 0.9, seed=s, structure="filter") for s in range(20)]
    narrow, wide = (sum(int(m[n].any(1).sum()) for m in kept) for n in ("0.weight", "1.weight"))
    assert narrow + wide == 20 * 40 and abs(narrow - 400) < 5 * math.sqrt(800 / 4)


def test_random_scores_are_uniform():
    scores = pai.score(nn.Linear(300, 100), "random")["weight"].flatten().sort().values
    assert (scores - torch.linspace(0, 1, 30_000)).abs().max() < 2 / math.sqrt(30_000)  # Kolmogorov-Smirnov


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.93])
def test_magnitude_agrees_with_torch(sparsity):
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 10)), double=False)
    reference = copy.deepcopy(model)
    layers = [(reference[0], "weight"), (reference[2], "weight")]
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=sparsity)
    assert pai.prune(model, "magnitude", sparsity) == pai.Mask.from_torch(reference)
    local = copy.deepcopy(model)
    for layer in (local[0], local[2]):
        torch_prune.l1_unstructured(layer, "weight", amount=sparsity)
    expected = pai.Mask.from_torch(local)
    found = pai.prune(model, "magnitude", sparsity, scope="layer")
    if expected.kept == found.kept:  # torch rounds each layer on its own
        assert found == expected
    only = pai.prune(model, "magnitude", sparsity, exclude=["2.weight"])
    assert torch.equal(only["0.weight"], expected["0.weight"]) and list(only) == ["0.weight"]


def test_magnitude_filters_agree_with_torch():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 10)), double=False)
    reference = copy.deepcopy(model)
    torch_prune.ln_structured(reference[0], "weight", amount=3, n=1, dim=0)
    mask = pai.prune(model, "magnitude", 3 / 8, structure="filter")
    assert torch.equal(mask["0.weight"], reference[0].weight_mask.bool()) and mask["2.weight"].all()


def test_magnitude_is_the_absolute_weight():
    model = seeded(smooth)
    for name, scores in pai.score(model, "magnitude").items():
        assert torch.equal(scores, model.get_parameter(name).abs()) and not scores.requires_grad
