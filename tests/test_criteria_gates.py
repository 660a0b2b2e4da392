"""Scores of gates beside finite differences and derivatives taken with plain hooks on copies, in float64."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pai_lab as pai

GATES = ["bn_gate", "taylor_gate", "skeletonization"]


def norm(channels):
    """A BatchNorm whose statistics, scale and shift are all its own."""
    layer = nn.BatchNorm2d(channels)
    for tensor, low, high in ((layer.weight, 0.5, 2), (layer.bias, -1, 1), (layer.running_mean, -1, 1)):
        nn.init.uniform_(tensor, low, high)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer


class Plain(nn.Sequential):
    """Convolutions with and without BatchNorm, grouped and depthwise, and linear layers; smooth."""

    gates = {"conv": "norm", "deep": "deep_norm", "group": "group", "fc": "fc", "out": "out"}  # layer -> gated module

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(2, 4, 3), norm(4), nn.Tanh()
        self.deep, self.deep_norm, self.act2 = nn.Conv2d(4, 4, 3, groups=4, bias=False), norm(4), nn.Softplus()
        self.group, self.act3, self.flat = nn.Conv2d(4, 6, 1, groups=2), nn.Tanh(), nn.Flatten()
        self.fc, self.act4, self.out = nn.Linear(24, 5), nn.Tanh(), nn.Linear(5, 3)


class Residual(nn.Module):
    """Two branches that add up, one of them with BatchNorm behind an in-place activation."""

    gates = {"stem": "norm", "inside": "inside_norm", "after": "after", "skip": "skip", "out": "out"}

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.inside, self.inside_norm = nn.Conv2d(2, 4, 3), norm(4), nn.Conv2d(4, 4, 1), norm(4)
        self.after, self.act, self.late_norm = nn.Conv2d(4, 4, 1), nn.ELU(inplace=True), norm(4)
        self.skip, self.out = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).tanh()
        inside = self.inside_norm(self.inside(x)).tanh()
        inside = self.late_norm(self.act(self.after(inside)))
        return self.out((inside + self.skip(x)).tanh().mean((2, 3)))


class Shared(nn.Module):
    """A convolution and its BatchNorm that run twice, tied linear layers, and a layer that never runs."""

    gates = {"stem": "stem", "twice": "norm", "one": "one", "out": "out"}

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.norm = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1), norm(4)
        self.one, self.two, self.never, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.two.weight = self.one.weight

    def forward(self, x):
        x = self.stem(x).tanh()
        for _ in range(2):
            x = self.norm(self.twice(x)).tanh()
        return self.out(self.two(self.one(x.mean((2, 3))).tanh()).tanh())


NETS = [Plain, Residual, Shared]


def build(net, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return net().to(dtype).eval()


def a_batch(n=7, seed=1, dtype=torch.float64):
    generator = torch.manual_seed(seed)
    return torch.randn(n, 2, 6, 6, generator=generator).to(dtype), torch.randint(3, (n,), generator=generator)


def modules_of(model, layer):
    """Whose outputs the gate of a layer multiplies: also those of the layer that is tied to it."""
    return [model.get_submodule(model.gates[layer])] + ([model.two] if layer == "one" else [])


def hooked(model, layer, gate):
    """Multiply the layer's units by a vector."""

    def times(module, inputs, output):
        return output * gate.view(-1, *[1] * (output.ndim - 2))

    return [module.register_forward_hook(times) for module in modules_of(model, layer)]


def loss_with(model, layer, gate, batch, error=F.cross_entropy):
    hooks = hooked(model, layer, gate)
    try:
        return error(model(batch[0]), batch[1])
    finally:
        for hook in hooks:
            hook.remove()


def derivative(model, layer, batch, error=F.cross_entropy, train=False):
    """dE/dz by central differences on a copy."""
    model = copy.deepcopy(model).train(train)
    units = len(model.get_submodule(layer).weight)
    found = torch.zeros(units, dtype=torch.float64)
    with torch.no_grad():
        for unit in range(units):
            high, low = torch.ones(2, units, dtype=torch.float64)
            high[unit] += 1e-5
            low[unit] -= 1e-5
            step = loss_with(model, layer, high, batch, error) - loss_with(model, layer, low, batch, error)
            found[unit] = step / 2e-5
    return found


def per_unit(scores):
    """The score of each unit; every weight of a unit carries the same."""
    flat = scores.flatten(1)
    assert (flat == flat[:, :1]).all()
    return flat[:, 0]


def absolute_error(output, y):
    return sum(abs(t - o) for t, o in zip(F.one_hot(y, 3).T, output.softmax(1).T, strict=True)).mean()


# -- the derivative --------------------------------------------------------------------------------
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("train", [False, True])
def test_the_gate_is_the_central_difference(net, train):
    model, batch, mode = build(net), a_batch(), "train" if train else "eval"
    taylor, relevance = (pai.score(model, name, batch, mode=mode) for name in GATES[1:])
    for layer in model.gates:
        expected = derivative(model, layer, batch, train=train)
        assert expected.abs().max() > 1e-4
        assert (per_unit(relevance[f"{layer}.weight"]) + expected).abs().max() < 1e-9
        assert (per_unit(taylor[f"{layer}.weight"]) - expected**2).abs().max() < 1e-9
    assert taylor.budget == relevance.budget == 7


@pytest.mark.parametrize("net", NETS)
def test_the_gate_is_the_sum_of_output_times_its_derivative(net):
    model, (x, y) = build(net), a_batch()
    relevance, twin = pai.score(model, "skeletonization", (x, y)), copy.deepcopy(model)
    for layer in model.gates:
        seen = []
        hooks = [
            m.register_forward_hook(lambda m, i, o, s=seen: (s.append(o), o * 1)[1]) for m in modules_of(twin, layer)
        ]
        gradients = torch.autograd.grad(F.cross_entropy(twin(x), y), seen)
        for hook in hooks:
            hook.remove()
        dims = [[d for d in range(o.ndim) if d != 1] for o in seen]
        expected = sum((g * o).sum(d) for g, o, d in zip(gradients, seen, dims, strict=True))
        assert (per_unit(relevance[f"{layer}.weight"]) + expected).abs().max() < 1e-14


@pytest.mark.parametrize("net", NETS)
def test_relevance_of_the_absolute_error(net):
    model, batch = build(net), a_batch()
    relevance = pai.score(model, "skeletonization", batch, error="absolute")
    for layer in model.gates:
        expected = -derivative(model, layer, batch, absolute_error)
        assert (per_unit(relevance[f"{layer}.weight"]) - expected).abs().max() < 1e-9


def test_an_unused_layer_scores_0_and_no_other():
    model, batch = build(Shared), a_batch()
    for criterion in GATES:
        scores = pai.score(model, criterion, batch)
        assert list(scores) == [f"{n}.weight" for n in ("stem", "twice", "one", "never", "out")]
        assert (scores["never.weight"] == 0).all() and all(s.any() for n, s in scores.items() if n != "never.weight")


def test_a_relu_behind_the_gate_changes_nothing():
    model, batch = build(Plain), a_batch()
    model.act, model.act4 = nn.ReLU(), nn.ReLU(inplace=True)
    relevance = pai.score(model, "skeletonization", batch)
    model.gates = {"conv": "act", "fc": "act4"}  # the differences are taken behind the activation
    for layer in model.gates:
        expected = derivative(model, layer, batch)
        assert (per_unit(relevance[f"{layer}.weight"]) + expected).abs().max() < 1e-9


# -- minibatches -----------------------------------------------------------------------------------
def pieces():
    x, y = a_batch(n=9)
    return [(x[:2], y[:2]), (x[2:3], y[2:3]), (x[3:], y[3:])]


def of_each_batch(model, layer, pairs):
    """The derivative of each minibatch's mean loss, by autograd through hooks."""
    gate = torch.ones(len(model.get_submodule(layer).weight), dtype=torch.float64, requires_grad=True)
    return [torch.autograd.grad(loss_with(model, layer, gate, pair), gate)[0] for pair in pairs]


@pytest.mark.parametrize("net", NETS)
def test_a_list_of_minibatches_is_the_formula_over_minibatches(net):
    model, pairs = build(net), pieces()
    taylor, relevance = (pai.score(model, name, pairs) for name in GATES[1:])
    absolute = pai.score(model, "taylor_gate", pairs, form="absolute")
    singles = [(x[i : i + 1], y[i : i + 1]) for x, y in pairs for i in range(len(x))]
    for layer in model.gates:
        one, two, three = of_each_batch(model, layer, pairs)
        name = f"{layer}.weight"
        assert torch.allclose(per_unit(taylor[name]), (2 * one**2 + two**2 + 6 * three**2) / 9, rtol=1e-11, atol=1e-18)
        assert torch.allclose(per_unit(relevance[name]), -(2 * one + two + 6 * three) / 9, rtol=1e-11, atol=1e-15)
        each = sum(d.abs() for d in of_each_batch(model, layer, singles))
        assert torch.allclose(per_unit(absolute[name]), each / each.norm(), rtol=1e-11, atol=1e-15)
        assert per_unit(absolute[name]).norm() == pytest.approx(1, rel=1e-12)
    assert taylor.budget == 9


def test_the_split_counts_for_squares_and_not_for_relevances():
    model, pairs = build(Plain), pieces()
    whole = tuple(torch.cat(part) for part in zip(*pairs, strict=True))
    for criterion, options, same in (
        ("skeletonization", {}, True), ("taylor_gate", {"form": "absolute"}, True), ("taylor_gate", {}, False)
    ):  # fmt: skip
        one, many = (pai.score(model, criterion, batch, **options) for batch in (whole, pairs))
        assert same == all(torch.allclose(one[n], many[n], rtol=1e-10, atol=1e-14) for n in one)


def test_the_2017_form_is_the_mean_of_activation_times_gradient():
    model, (x, y) = build(Plain), a_batch()
    found = per_unit(pai.score(model, "taylor_gate", (x, y), form="absolute")["conv.weight"])
    maps = []
    hook = model.norm.register_forward_hook(lambda m, i, output: maps.append(output))
    losses = [F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
    gradients = [torch.autograd.grad(loss, z)[0] for loss, z in zip(losses, maps, strict=True)]
    hook.remove()
    theta = sum((g * z).mean((0, 2, 3)).abs() for g, z in zip(gradients, maps, strict=True)) / len(x)
    assert torch.allclose(found, theta / (theta**2).sum().sqrt(), rtol=1e-12)


# -- what a score means ----------------------------------------------------------------------------
def two_units():
    """Hidden unit 0 speaks for class 0, unit 1 against it."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight[:], model[0].bias[:] = torch.tensor([[2.0], [1.0]]), torch.tensor([1.0, 0.0])
        model[2].weight[:] = torch.tensor([[0.5, -1.0], [-0.5, 1.0]])
    return model, (torch.ones(1, 1).double(), torch.zeros(1, dtype=torch.int64))


def test_a_harmful_unit_has_negative_relevance_and_goes_first():
    model, batch = two_units()
    # hidden (3, 1); logits (0.5, -0.5); p = sigmoid(1); unit u adds (v, -v), so -dE/da = 2 v (1 - p)
    rest = 1 - 1 / (1 + math.exp(-1))
    relevance = per_unit(pai.score(model, "skeletonization", batch)["0.weight"])
    assert relevance.tolist() == pytest.approx([2 * 1.5 * rest, -2 * rest], rel=1e-12)
    squares = per_unit(pai.score(model, "taylor_gate", batch)["0.weight"])
    assert squares.tolist() == pytest.approx([9 * rest**2, 4 * rest**2], rel=1e-12)
    mask = pai.prune(model, "skeletonization", 0.5, batch=batch, structure="filter")
    assert mask["0.weight"].tolist() == [[True], [False]] and mask["2.weight"].all()
    loss = [F.cross_entropy(net(batch[0]), batch[1]) for net in (model, mask.apply(copy.deepcopy(model)))]
    assert loss[1] < loss[0]
    absolute = per_unit(pai.score(model, "skeletonization", batch, error="absolute")["0.weight"])
    assert absolute.tolist() == pytest.approx(
        [2 * r * (1 - rest) for r in relevance.tolist()], rel=1e-12
    )  # E = 2 (1 - p)


def rescaled(model, factors):
    """The same function in eval mode, with each filter before the BatchNorm multiplied."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for tensor, power in (
            (twin.conv.weight, 1), (twin.conv.bias, 1), (twin.norm.running_mean, 1), (twin.norm.running_var, 2)
        ):  # fmt: skip
            tensor *= factors.view(-1, *[1] * (tensor.ndim - 1)) ** power
    return twin


def test_the_scale_of_a_filter_before_batch_norm_counts_for_norms_only():
    model, batch = build(Plain), a_batch()
    model.norm.eps = 1e-30
    other = rescaled(model, torch.tensor([4.0, 0.25, 1, 16]).double())
    assert torch.allclose(model(batch[0]), other(batch[0]), rtol=1e-12)
    for criterion in [*GATES, "filter_l1", "filter_l2"]:
        one, two = (per_unit(pai.score(net, criterion, batch)["conv.weight"]) for net in (model, other))
        assert torch.allclose(one, two, rtol=1e-10) is (criterion in GATES)
        if criterion not in GATES:
            assert one.argsort().tolist() != two.argsort().tolist()


# -- gamma -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("net", NETS)
def test_bn_gate_is_the_gamma_right_behind(net):
    model, batch = build(net), a_batch()
    with torch.no_grad():
        model.norm.weight[1] *= -1
    scores = pai.score(model, "bn_gate", batch)
    for layer, behind in model.gates.items():
        gamma = model.get_submodule(behind).weight.abs() if "norm" in behind else torch.ones(1).double()
        assert (per_unit(scores[f"{layer}.weight"]) == gamma).all()
    assert scores.budget == 1
    other = pai.score(model, "bn_gate", [(batch[0][:1] * float("nan"), batch[1][:1])])  # only the shape is read
    assert all(torch.equal(scores[n], other[n]) for n in scores)


def test_a_gamma_of_0_cuts_the_filter_off():
    model, (x, y) = build(Plain), a_batch()
    with torch.no_grad():
        model.norm.weight[2] = 0
    for mode in (False, True):
        twin = copy.deepcopy(model).train(mode)
        F.cross_entropy(twin(x), y).backward()
        dead = twin.conv.weight.grad.flatten(1).abs().sum(1) == 0
        assert dead.tolist() == [False, False, True, False]
    assert torch.equal(per_unit(pai.score(model, "bn_gate", (x, y))["conv.weight"]) == 0, dead)
    sizes = {"conv": 4, "deep": 4, "group": 6, "fc": 5}
    mask = pai.prune(model, "bn_gate", 1 / sum(sizes.values()), batch=(x, y), structure="filter")
    assert not mask["conv.weight"][2].any() and mask.kept == mask.total - 18


def test_bn_gate_needs_batch_norm():
    batch = torch.ones(2, 4), torch.tensor([0, 1])
    for model in (nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))):
        with pytest.raises(ValueError, match="bn_gate needs a BatchNorm .* has none. Use filter_l1"):
            pai.score(model, "bn_gate", batch)


class Called(nn.Module):
    """BatchNorm as a function, in both spellings; layers with keywords; something harmless before a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Conv1d(3, 3, 1, bias=False) for _ in range(4))
        self.gammas = nn.Parameter(torch.tensor([[1.0, -2, 3], [4, 5, 6], [0.1, 0.2, 0.3], [0.4, 0.1, 0.1]]))
        self.free, self.drop = nn.BatchNorm1d(3, affine=False), nn.Dropout()

    def forward(self, x):
        x = F.conv1d(x, weight=self.one.weight)
        x = F.batch_norm(x, None, None, self.gammas[0], training=True)
        x = torch.batch_norm(self.two(x), self.gammas[1], None, None, None, True, 0.1, 1e-5, False)
        x = self.free(self.three(x))
        one, two = (F.batch_norm(self.four(x), None, None, self.gammas[i], None, True) for i in (2, 3))
        return (one + two).mean(2)


def test_functional_batch_norm_and_one_without_gamma():
    torch.manual_seed(0)
    model = Called().double()
    batch = torch.randn(5, 3, 4).double(), torch.randint(3, (5,))
    scores = pai.score(model, "bn_gate", batch)
    found = {name: per_unit(s).tolist() for name, s in scores.items()}
    fourth = pytest.approx([0.4, 0.2, 0.3])  # two runs: the larger
    expected = {"one.weight": [1, 2, 3], "two.weight": [4, 5, 6], "three.weight": [1, 1, 1], "four.weight": fourth}
    assert found == expected
    relevance = pai.score(model, "skeletonization", batch)  # the scale before a BatchNorm would have derivative 0
    assert all(s.abs().min() > 1e-6 for s in relevance.values())


def test_units_of_a_sequence_are_in_its_last_dimension():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm, self.out = nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

        def forward(self, x):
            return self.out(self.norm(self.fc(x)).tanh()).mean(1)  # (n, 5 places, 5 units): the norm sees the places

    torch.manual_seed(0)
    model, (x, y) = Sequence().double().eval(), (torch.randn(6, 5, 2).double(), torch.randint(3, (6,)))
    gate = torch.ones(5, dtype=torch.float64, requires_grad=True)
    hook = model.fc.register_forward_hook(lambda m, i, output: output * gate)
    (expected,) = torch.autograd.grad(F.cross_entropy(model(x), y), gate)
    hook.remove()
    assert torch.allclose(per_unit(pai.score(model, "skeletonization", (x, y))["fc.weight"]), -expected, rtol=1e-12)
    with pytest.raises(ValueError, match="has none"):
        pai.score(model, "bn_gate", (x, y))


def test_a_layer_that_sees_one_image_at_a_time():
    class OneByOne(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return torch.stack([self.out(self.conv(image).tanh().mean((1, 2))) for image in x])

    model, (x, y) = build(OneByOne), a_batch()
    gate = torch.ones(4, 1, 1, dtype=torch.float64, requires_grad=True)
    hook = model.conv.register_forward_hook(lambda m, i, output: output * gate)
    (expected,) = torch.autograd.grad(F.cross_entropy(model(x), y), gate)
    hook.remove()
    found = per_unit(pai.score(model, "skeletonization", (x, y))["conv.weight"])
    assert torch.allclose(found, -expected.flatten(), rtol=1e-11)


# -- with the pipeline -----------------------------------------------------------------------------
def snapshot(model):
    tensors = {n: t.clone() for n, t in model.state_dict().items()}
    return tensors, [m.training for m in model.modules()], torch.get_rng_state(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("criterion", GATES)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_trace_in_any_dtype_and_memory_format(criterion, net, dtype):
    model, (x, y) = build(net, dtype=dtype), a_batch(dtype=dtype)
    model.out.bias.grad = torch.ones_like(model.out.bias)
    model.train()
    before = snapshot(model)
    scores = pai.score(model, criterion, (x, y))
    after = snapshot(model)
    assert all(torch.equal(after[0][n], t) for n, t in before[0].items()) and before[1] == after[1]
    assert torch.equal(before[2], after[2]) and all(a is b for a, b in zip(before[3], after[3], strict=True))
    assert not any(m._forward_hooks for m in model.modules())
    if dtype is torch.bfloat16:
        exact = pai.score(model.double(), criterion, (x.double(), y))
        assert all((scores[n].double() - s).norm() <= 0.1 * s.norm() + 1e-9 for n, s in exact.items())
    else:
        last = pai.score(
            model.to(memory_format=torch.channels_last), criterion, (x.to(memory_format=torch.channels_last), y)
        )
        tight = 1e-12 if dtype is torch.float64 else 1e-4
        assert all((last[n] - s).norm() <= tight * s.norm() for n, s in scores.items())


@pytest.mark.parametrize("criterion", GATES)
def test_gates_look_at_the_pruned_net(criterion):
    model, batch = build(Residual), a_batch()
    keep = torch.tensor([True, False, True, True])
    tensors = {"norm.weight": keep, "norm.bias": keep, "stem.weight": keep.view(-1, 1, 1, 1).expand(4, 2, 3, 3)}
    mask = pai.Mask(tensors)
    masked, applied = pai.score(model, criterion, batch, mask=mask), mask.apply(copy.deepcopy(model))
    plain = pai.score(applied, criterion, batch)
    assert all(torch.equal(masked[n], plain[n]) for n in plain)
    assert per_unit(masked["stem.weight"])[1] == 0  # a channel of zeros has no say


@pytest.mark.parametrize("criterion", GATES)
def test_filters_go_over_rounds_and_stay_away(criterion):
    model, batch = build(Plain), a_batch()
    masks = [
        mask
        for _, mask in pai.pruning.rounds(
            model, criterion, 0.5, batch=batch, structure="filter", iterations=3, floor=1, schedule="linear"
        )
    ]
    units = [sum(int(m.flatten(1).any(1).sum()) for n, m in mask.items() if n != "out.weight") for mask in masks]
    assert units[-1] == round(0.5 * 19) and units == sorted(units, reverse=True)
    assert all((late & early) == late for early, late in zip(masks, masks[1:], strict=False))
    assert masks[-1]["out.weight"].all() and not masks[-1].collapsed()
    with pytest.raises(ValueError, match="filter"):
        pai.prune(model, criterion, 0.5, batch=batch)


def test_weights_without_units_of_their_own_are_named():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(5, 3, bias=False), nn.Linear(5, 3, bias=False)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(F.linear(x, self.one.weight + self.two.weight))

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm, self.attention = nn.Linear(5, 4), nn.BatchNorm1d(4), nn.MultiheadAttention(4, 2)

        def forward(self, x):
            x = self.norm(self.fc(x))
            return self.attention(x, x, x)[0]

    batch = torch.randn(6, 5), torch.randint(3, (6,))
    for net, name in ((Sum, "one.weight"), (Attention, "attention.out_proj.weight")):
        for criterion in GATES:
            with pytest.raises(ValueError, match=f"{name}' has no output of its own"):
                pai.score(net(), criterion, batch)


@pytest.mark.parametrize(
    "criterion, options, message",
    [
        ("taylor_gate", {"form": "square"}, "Did you mean 'squared'"),
        ("skeletonization", {"error": "cross_entropy"}, "Did you mean 'cross-entropy'"),
    ],
)
def test_unknown_options_name_the_nearest(criterion, options, message):
    with pytest.raises(ValueError, match=message):
        pai.score(build(Plain), criterion, a_batch(), **options)


@pytest.mark.parametrize("criterion, options", [("taylor_gate", {}), ("skeletonization", {"error": "absolute"})])
def test_labels_out_of_range_and_missing_batches(criterion, options):
    x, y = a_batch()
    with pytest.raises(ValueError, match="label 3 needs a class"):
        pai.score(build(Plain), criterion, (x, y.clamp_min(1) + 1), **options)
    with pytest.raises(ValueError, match="needs a batch"):
        pai.score(build(Plain), criterion, **options)


def test_half_precision_does_not_lose_small_squares():
    model, (x, y) = build(Plain, dtype=torch.float16), a_batch(dtype=torch.float16)
    with torch.no_grad():
        model.out.weight *= 2e-3  # derivatives of 1e-4: their squares are below float16
    scores = per_unit(pai.score(model, "taylor_gate", (x, y))["fc.weight"])
    exact = per_unit(pai.score(model.double(), "taylor_gate", (x.double(), y))["fc.weight"])
    assert scores.dtype == torch.float32 and exact.max() < 6e-8
    assert (scores.double() - exact).norm() < 0.1 * exact.norm()
