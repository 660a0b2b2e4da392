"""SynFlow and SynFlow-L2 beside hand numbers, sums over all paths, conservation laws and finite differences."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pai_lab as pai

BOTH = ["synflow", "synflow_l2"]
SIZE = {"synflow": torch.abs, "synflow_l2": torch.square}


def seeded(make, seed=0, double=True):
    torch.manual_seed(seed)
    model = make()
    return model.double() if double else model


def inputs(*shape, n=1):
    return torch.zeros(n, *shape), torch.zeros(n, dtype=torch.int64)


def total(scores):
    return [float(s.sum()) for s in scores.values()]


def state(model):
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    flags = [m.training for m in model.modules()]
    return {n: t.detach().clone() for n, t in tensors}, [p.grad for p in model.parameters()], flags


def by_hand():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2], [3, 4]]))
        model[2].weight.copy_(torch.tensor([[5.0, -6]]))
    return model


def dense_chain():
    return nn.Sequential(*(nn.Linear(i, o) for i, o in ((3, 4), (4, 2), (2, 3))))


class Net(nn.Module):
    """Grouped, depthwise and strided convolutions, BatchNorm, a skip and a projection."""

    def __init__(self, act=nn.ReLU):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped, self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.shortcut, self.act, self.head = nn.Conv2d(8, 8, 1, 2), act(), nn.Linear(8, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        x = self.act(self.bn(self.stem(x)))
        x = self.act(self.depthwise(self.act(self.grouped(x))) + self.shortcut(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


# -- closed forms ----------------------------------------------------------------------------------
def test_synflow_l2_by_hand():
    # squares: [[1, 4], [9, 16]] and [25, 36]; hidden units 5 and 25; R = 25*5 + 36*25 = 1025
    for double in (True, False):
        scores = pai.score(seeded(by_hand, double=double), "synflow_l2", inputs(2))
        assert scores["0.weight"].tolist() == [[25, 100], [324, 576]]
        assert scores["2.weight"].tolist() == [[125, 900]]
        assert total(scores) == [1025, 1025] and scores.budget == 1


@pytest.mark.parametrize("criterion", BOTH)
def test_a_score_is_the_sum_over_the_paths_through_the_weight(criterion):
    model = seeded(dense_chain)
    one, two, three = (SIZE[criterion](w.detach()) for w in pai.prunable(model).values())
    expected = {"0.weight": torch.zeros(4, 3), "1.weight": torch.zeros(2, 4), "2.weight": torch.zeros(3, 2)}
    expected = {n: t.double() for n, t in expected.items()}
    for i, j, k, o in itertools.product(range(3), range(4), range(2), range(3)):
        path = one[j, i] * two[k, j] * three[o, k]
        expected["0.weight"][j, i] += path
        expected["1.weight"][k, j] += path
        expected["2.weight"][o, k] += path
    for name, scores in pai.score(model, criterion, inputs(3)).items():
        assert torch.allclose(scores, expected[name], rtol=1e-13)


@pytest.mark.parametrize("criterion", BOTH)
def test_what_flows_into_a_unit_flows_out_and_every_layer_has_it_all(criterion):
    scores = list(pai.score(seeded(dense_chain), criterion, inputs(3)).values())
    for below, above in itertools.pairwise(scores):
        assert torch.allclose(below.sum(1), above.sum(0), rtol=1e-12)
        assert below.sum().item() == pytest.approx(above.sum().item(), rel=1e-12)


@pytest.mark.parametrize("criterion", BOTH)
@pytest.mark.parametrize("pool", [nn.AvgPool2d, nn.MaxPool2d])
def test_conservation_with_norm_biases_and_pooling(criterion, pool):
    def make():
        layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), pool(2), nn.Conv2d(6, 4, 2), nn.LeakyReLU(0.1)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3))

    model = seeded(make)
    with torch.no_grad():
        for tensor in itertools.chain(model.parameters(), (model[1].running_mean,)):
            tensor.normal_()
        model[1].running_var.uniform_(0.5, 2)
    found = total(pai.score(model, criterion, inputs(2, 8, 8)))
    assert max(found) - min(found) < 1e-12 * found[0] and found[0] > 0
    trained = total(pai.score(model, criterion, inputs(2, 8, 8), mode="train"))
    assert max(trained) > 1.01 * min(trained)  # batch statistics break it


@pytest.mark.parametrize("criterion", BOTH)
def test_a_branch_carries_less_and_the_cut_through_it_and_its_shortcut_all(criterion):
    scores = pai.score(seeded(Net), criterion, inputs(2, 6, 6))
    flows = {name.removesuffix(".weight"): float(s.sum()) for name, s in scores.items()}
    assert flows["stem"] == pytest.approx(flows["head"], rel=1e-12)
    assert flows["grouped"] == pytest.approx(flows["depthwise"], rel=1e-12) and flows["grouped"] < flows["stem"]
    assert flows["depthwise"] + flows["shortcut"] == pytest.approx(flows["head"], rel=1e-12)
    assert flows["unused"] == 0


@pytest.mark.parametrize("criterion", BOTH)
def test_scores_are_slopes_in_a_factor_on_the_positive_weight(criterion):
    model, ones, h = seeded(Net), torch.ones(1, 2, 6, 6, dtype=torch.float64), 1e-6
    positive = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, parameter in positive.named_parameters():
            parameter.zero_() if name.endswith("bias") else parameter.copy_(SIZE[criterion](parameter))
    for name, scores in pai.score(model, criterion, inputs(2, 6, 6)).items():
        for place in (0, scores.numel() // 2, scores.numel() - 1):
            flows = []
            for factor in (1 + h, 1 - h):
                twin = copy.deepcopy(positive)
                with torch.no_grad():
                    twin.get_parameter(name).view(-1)[place] *= factor
                    flows.append(twin(ones).sum().item())
            slope = (flows[0] - flows[1]) / (2 * h)
            assert slope == pytest.approx(scores.flatten()[place].item(), abs=1e-8 * flows[0])


def test_l2_is_synflow_of_the_net_of_squares():
    model = seeded(Net)
    squares = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in squares.parameters():
            parameter.square_()
    l2, of_squares = pai.score(model, "synflow_l2", inputs(2, 6, 6)), pai.score(squares, "synflow", inputs(2, 6, 6))
    assert all(torch.equal(l2[n], of_squares[n]) for n in l2)


def test_the_slopes_of_l2_add_up_to_the_trace_of_the_path_kernel():
    model = seeded(dense_chain)
    weights = tuple(w.detach() for w in pai.prunable(model).values())

    def paths(one, two, three):  # the value of every path from input i over j and k to output o
        return torch.einsum("ji,kj,ok->ijko", one, two, three).flatten()

    jacobian = torch.cat([j.flatten(1) for j in torch.autograd.functional.jacobian(paths, weights)], 1)
    scores = pai.score(model, "synflow_l2", inputs(3)).values()
    trace = sum(float((s / w.square()).sum()) for s, w in zip(scores, weights, strict=True))
    assert trace == pytest.approx(float(torch.trace(jacobian @ jacobian.T)), rel=1e-12)


# -- what a net may look like ----------------------------------------------------------------------
class Twice(nn.Module):
    """A shared module, a weight tied to another layer, and two weights that are added."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.tied = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.tied.weight, self.again = self.two.weight, self.one

    def forward(self, x):
        return F.linear(self.again(self.tied(self.one(x))), self.one.weight + self.two.weight)


@pytest.mark.parametrize("criterion", BOTH)
def test_shared_modules_and_tied_weights_sum_over_their_places(criterion):
    model = seeded(Twice)
    free = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(4))).double()
    a, b = (SIZE[criterion](w.detach()) for w in (model.one.weight, model.two.weight))
    with torch.no_grad():
        for layer, weight in zip(free, (a, b, a, a + b), strict=True):
            layer.weight.copy_(weight)
    shares = list(pai.score(free, "synflow", inputs(4)).values())
    scores = pai.score(model, criterion, inputs(4))
    assert list(scores) == ["one.weight", "two.weight"]
    assert torch.allclose(scores["one.weight"], shares[0] + shares[2] + shares[3] * a / (a + b), rtol=1e-12)
    assert torch.allclose(scores["two.weight"], shares[1] + shares[3] * b / (a + b), rtol=1e-12)


@pytest.mark.parametrize("criterion", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scoring_leaves_no_trace_in_any_dtype_or_layout(criterion, dtype):
    model = seeded(Net).to(dtype)
    plain = pai.score(model, criterion, inputs(2, 6, 6))
    model = model.to(memory_format=torch.channels_last)
    (tensors, grads, flags), random = state(model), torch.get_rng_state()
    scores = pai.score(model, criterion, inputs(2, 6, 6))
    after, grads_after, flags_after = state(model)
    assert all(torch.equal(tensors[n], after[n]) for n in after) and flags == flags_after
    assert grads == grads_after == [None] * len(grads) and torch.equal(random, torch.get_rng_state())
    for name in scores:
        assert scores[name].dtype == torch.float64 and torch.allclose(scores[name], plain[name], rtol=1e-12)


@pytest.mark.parametrize("criterion", BOTH)
def test_removed_weights_score_zero_and_carry_nothing(criterion):
    model = seeded(Net)
    mask = pai.prune(model, "random", 0.7)
    scores = pai.score(model, criterion, inputs(2, 6, 6), mask=mask)
    alone = pai.score(mask.apply(copy.deepcopy(model)), criterion, inputs(2, 6, 6))
    assert all((scores[n][~mask[n]] == 0).all() and torch.equal(scores[n], alone[n]) for n in scores)


@pytest.mark.parametrize("criterion", BOTH)
def test_he_nets_of_thirty_layers_stay_finite(criterion):
    def deep():
        layers = [nn.Linear(512, 512, bias=False) for _ in range(30)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        return nn.Sequential(*layers)

    model = seeded(deep, double=False)
    scores = pai.score(model, criterion, inputs(512))
    found = total(scores)
    assert all(s.isfinite().all() for s in scores.values())
    assert found[0] > 0 and found == pytest.approx([found[0]] * 30, rel=1e-10)
    ranks = scores["0.weight"].flatten().unique()
    assert len(ranks) > 0.99 * 512 * 512  # the order is one of weights, not of overflow
    if criterion == "synflow":
        assert math.log10(found[0]) > 38.6  # beyond float32


@pytest.mark.parametrize("act", [nn.ReLU6, nn.ELU, nn.SELU, nn.PReLU])
def test_what_positive_signals_pass_in_proportion_is_no_obstacle(act):
    plain, other = (pai.score(seeded(lambda a=a: Net(a)), "synflow", inputs(2, 6, 6)) for a in (nn.ReLU, act))
    for name in plain:  # SELU's gain multiplies each path once per activation: three, two on the shortcut
        if act is not nn.SELU:
            assert torch.allclose(plain[name], other[name], rtol=1e-12)
    assert total(other)[0] == pytest.approx(float(other["head.weight"].sum()), rel=1e-12)


# -- where it is not defined -----------------------------------------------------------------------
class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.inside(x, x, x, need_weights=False)[0].mean(1))


class Kernel(nn.Module):
    """Attention by torch's own kernel: with equal tokens its output is proportional to the input all the same."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))


class Named(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.one, self.two, self.function = nn.Linear(4, 5), nn.Linear(5, 2), function

    def forward(self, x):
        return self.two(self.function(self.one(x)))


@pytest.mark.parametrize("criterion", BOTH)
@pytest.mark.parametrize(
    "layer, name",
    [
        (nn.GELU(), "gelu"),
        (nn.SiLU(), "silu"),
        (nn.Tanh(), "tanh"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Hardswish(), "hardswish"),
        (nn.LayerNorm(5), "layer_norm"),
        (lambda x: x.softmax(1), "softmax"),
        (lambda x: torch.log_softmax(x, 1), "log_softmax"),
    ],
)
def test_the_operation_that_breaks_the_flow_is_named(criterion, layer, name):
    with pytest.raises(ValueError, match=f"calls {name},.*Identity"):
        pai.score(seeded(lambda: Named(layer)), criterion, inputs(4))


def test_softmax_at_the_output_and_attention_are_named():
    with pytest.raises(ValueError, match="softmax"):
        pai.score(seeded(lambda: nn.Sequential(nn.Linear(4, 2), nn.Softmax(1))), "synflow", inputs(4))
    with pytest.raises(ValueError, match="multi_head_attention_forward"):
        pai.score(seeded(Attention), "synflow", inputs(3, 4))
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        pai.score(seeded(Kernel), "synflow", inputs(3, 4))
    convs = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(ValueError, match="group_norm"):
        pai.score(convs, "synflow", inputs(2, 6, 6))


@pytest.mark.parametrize("function", [torch.square, torch.exp, lambda x: x / x.norm(), lambda x: x + 0.1, torch.sqrt])
def test_what_has_no_name_on_the_list_is_found_by_its_slope(function):
    model = seeded(lambda: Named(function))
    before = state(model)[0]
    with pytest.raises(ValueError, match="Named does not grow in proportion"):
        pai.score(model, "synflow", inputs(4))
    assert all(torch.equal(t, before[n]) for n, t in model.named_parameters())


def test_a_net_with_two_outputs_is_an_error():
    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(TypeError, match="must be Tensor, not tuple"):
        pai.score(Pair(3, 2), "synflow", inputs(3))


# -- the rounds ------------------------------------------------------------------------------------
@pytest.mark.parametrize("criterion", BOTH)
def test_a_hundred_rounds_keep_the_net_in_one_piece(criterion):
    model = seeded(lambda: nn.Sequential(*(nn.Linear(i, o) for i, o in ((30, 20), (20, 20), (20, 5)))))
    one, hundred = (pai.prune(model, criterion, 1 - 12 / 1100, batch=inputs(30), iterations=n) for n in (1, 100))
    flows = [total(pai.score(model, criterion, inputs(30), mask=mask)) for mask in (one, hundred)]
    assert one.kept == hundred.kept == 12 and hundred.budget == 100
    assert flows[1] == pytest.approx([flows[1][0]] * 3, rel=1e-12) and flows[1][0] > flows[0][0] >= 0
