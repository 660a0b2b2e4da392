"""PHEW: every kept weight on a whole path, exactly as many as asked, and walks with the odds of the paper."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pai_lab as pai
from pai_lab.criteria.walks import visit
from pai_lab.criteria.wiring import Wiring


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def inputs(*shape):
    return torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64)


def chain(*sizes):
    return seeded(lambda: nn.Sequential(*(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))))


def on(model, batch, kept, **options):
    scores = pai.score(model, "phew", batch, kept=kept, **options)
    assert all(set(s.unique().tolist()) <= {0.0, 1.0} for s in scores.values())
    return pai.Mask({name: s.bool() for name, s in scores.items()})


def wiring(model, *shape):
    weights = pai.prunable(model)
    starts = dict(zip(weights, itertools.accumulate((w.numel() for w in weights.values()), initial=0), strict=False))
    net = Wiring(model, shape, {id(w): starts[n] for n, w in weights.items()})
    net.load(torch.cat([w.detach().abs().flatten() for w in weights.values()]).numpy())
    return net, starts


def without_effect(model, mask, shape):
    """Kept weights through which no signal passes: slopes of the masked net of |w|, mean for max."""
    twin = copy.deepcopy(model).double().eval()
    for module in twin.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode))
            if isinstance(child, (nn.ReLU, nn.ReLU6)):
                setattr(module, name, nn.Identity())
    for name, parameter in twin.named_parameters():
        parameter.data = torch.ones_like(parameter) if parameter.ndim > 1 or "bias" not in name else parameter.data * 0
        parameter.data *= mask.get(name, torch.ones((), dtype=torch.bool))
    twin(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
    slopes = {n: twin.get_parameter(n).grad for n in mask}
    return sum(int((mask[n] & (torch.zeros(1) if s is None else s).eq(0)).sum()) for n, s in slopes.items())


# -- whole paths -----------------------------------------------------------------------------------
def closed(layers):
    """Numpy: is each kept weight of a chain of matrices on a path from the first to the last?"""
    reached = [np.ones(layers[0].shape[1], bool)]
    for w in layers:
        reached.append((w & reached[-1]).any(1))
    used = [np.ones(layers[-1].shape[0], bool)]
    for w in reversed(layers):
        used.append((w & used[-1][:, None]).any(0))
    used.reverse()
    return all((w <= (reached[k] & used[k + 1][:, None])).all() for k, w in enumerate(layers))


@settings(max_examples=25)
@given(st.lists(st.integers(2, 6), min_size=2, max_size=5), st.data())
def test_a_chain_keeps_exactly_so_many_and_all_of_them_on_paths(sizes, data):
    model = chain(*sizes)
    total = sum(w.numel() for w in pai.prunable(model).values())
    kept = data.draw(st.integers(len(sizes) - 1, total))
    mask = on(model, inputs(sizes[0]), kept, seed=data.draw(st.integers(0, 99)))
    layers = [keep.numpy() for keep in mask.values()]
    assert mask.kept == kept and closed(layers) and without_effect(model, mask, sizes[:1]) == 0


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.one, self.two, self.last = (nn.Linear(6, 6, bias=False) for _ in range(4))

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.two(self.one(x).relu()))


@pytest.mark.parametrize("kept", [2, 4, 5, 9, 40, 143, 144])
def test_a_skip_connection_in_plain_numpy(kept):
    mask = on(seeded(Residual), inputs(6), kept)
    first, one, two, last = (mask[f"{n}.weight"].numpy() for n in ("first", "one", "two", "last"))
    below = first.any(1)
    inside = (one & below).any(1)
    here = below | (two & inside).any(1)
    above = last.any(0)
    needed = (two & above[:, None]).any(0)
    used = above | (one & needed[:, None]).any(0)
    assert mask.kept == kept
    assert (first <= used[:, None]).all() and (last <= here).all()
    assert (one <= (below & needed[:, None])).all() and (two <= (inside & above[:, None])).all()


class Mixed(nn.Module):
    """Grouped, depthwise, dilated and strided convolutions, a projection, a concatenation, a shuffle, pools."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.pool = nn.Conv2d(2, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1)
        self.grouped, self.depthwise = nn.Conv2d(8, 8, 3, 2, 1, groups=2), nn.Conv2d(8, 8, 3, 1, 2, 2, groups=8)
        self.shortcut, self.wide = nn.Conv2d(8, 8, 1, 2), nn.Conv2d(16, 6, (1, 3), padding=(0, 1))
        self.act, self.head, self.out = nn.ReLU6(), nn.Linear(24, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = self.pool(self.act(self.bn(self.stem(x))))
        y = self.depthwise(self.act(self.grouped(x)))
        y += 0.5 * self.shortcut(x)
        one, two = torch.cat([y, y.view(1, 2, 4, *y.shape[2:]).transpose(1, 2).reshape(y.shape)], 1).chunk(2, 1)
        x = F.avg_pool2d(self.wide(torch.cat((one, two), dim=1)), 2, ceil_mode=True)
        return self.out(self.head(torch.flatten(x, 1)).relu())


NETS = {
    "mlp": lambda: (pai.build("mlp", pai.load("digits"), seed=0), (1, 8, 8)),
    "vgg6_bn": lambda: (pai.build("vgg6_bn", pai.load("digits"), seed=0), (1, 8, 8)),
    "resnet20": lambda: (pai.build("resnet20", pai.load("digits"), seed=0), (1, 8, 8)),
    "mixed": lambda: (seeded(Mixed), (2, 14, 14)),
}


@pytest.mark.parametrize("density", [0.6, 0.1, 0.01])
@pytest.mark.parametrize("name", NETS)
def test_no_kept_weight_is_without_effect(name, density):
    model, shape = NETS[name]()
    kept = max(round(density * pai.Mask.dense(model).total), 25)
    mask = on(model, inputs(*shape), kept)
    assert mask.kept == kept and without_effect(model, mask, shape) == 0
    chance = pai.prune(model, "random", 1 - kept / mask.total)
    assert density > 0.1 or without_effect(model, chance, shape) > 0  # the measure can see them


@pytest.mark.parametrize(
    "name", ["shufflenet_v2_x0_5", "mobilenet_v2", pytest.param("resnet18", marks=pytest.mark.long)]
)
def test_torchvision_nets_are_walked_as_they_are(name):
    from torchvision import models

    model = seeded(lambda: getattr(models, name)(num_classes=10))
    mask = on(model, inputs(3, 32, 32), 5000)
    assert mask.kept == 5000 and without_effect(model, mask, (3, 32, 32)) == 0


def test_entries_that_only_ever_see_padding_are_never_passed():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1), nn.Flatten()))
    centres = pai.Mask({n: torch.zeros_like(w).bool() for n, w in pai.prunable(model).items()})
    for keep in centres.values():
        keep[..., 1, 1] = True
    assert on(model, inputs(3, 1, 1), 20) == centres
    with pytest.raises(ValueError, match="1 are missing"):
        on(model, inputs(3, 1, 1), 21)
    # on 2x2 places two steps in one direction leave the image, though each kernel has such an entry
    mask = on(model, inputs(3, 2, 2), 30)
    assert without_effect(model, mask, (3, 2, 2)) == 0


@pytest.mark.parametrize("options", [{}, {"iterations": 3}, {"exclude": ["conv1.weight", "fc.weight"]}])
def test_prune_asks_for_the_number_it_needs(options):
    model, shape = NETS["vgg6_bn"]()
    mask = pai.prune(model, "phew", 0.97, batch=inputs(*shape), **options)
    assert mask.kept == round(0.03 * mask.total) and without_effect(model, mask, shape) == 0
    assert mask == pai.prune(model, "phew", 0.97, batch=inputs(*shape), **options) and mask.budget == 0
    assert mask != pai.prune(model, "phew", 0.97, batch=inputs(*shape), seed=1, **options)


# -- the odds --------------------------------------------------------------------------------------
def weights_of(walk, weight):
    """One row of weights per walk: every walk passes as many."""
    order = np.lexsort((weight, walk))
    walks, count = np.unique(walk, return_counts=True)
    return walks, weight[order].reshape(len(walks), count[0])


def chi_square(found, expected):
    return float(((found - expected) ** 2 / expected).sum())


def test_paths_of_a_chain_come_with_the_odds_of_the_paper():
    model = chain(2, 2, 2)
    one, two = np.array([[1, 3], [2, 2]]), np.array([[1, 4], [5, 1]])
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -3], [2, 2]]))
        model[1].weight.copy_(torch.tensor([[-1.0, 4], [-5, 1]]))
    net, _ = wiring(model, 2)
    walks, passed = weights_of(*net.walks(40_000, np.random.default_rng(0)))
    assert len(walks) == 40_000
    for parity in (0, 1):
        found, expected = np.zeros((2, 2, 2)), np.zeros((2, 2, 2))
        for a, b in passed[walks % 2 == parity]:  # weight 2 j + i, and 4 + 2 k + j
            found[a % 2, a // 2, (b - 4) // 2] += 1
            assert a // 2 == (b - 4) % 2
        for i, j, k in itertools.product(range(2), repeat=3):
            forward = one[j, i] / one[:, i].sum() * two[k, j] / two[:, j].sum()
            backward = two[k, j] / two[k].sum() * one[j, i] / one[j].sum()
            expected[i, j, k] = 10_000 * (backward if parity else forward)
        starts = found.sum((0, 1)) if parity else found.sum((1, 2))
        assert starts.tolist() == [10_000, 10_000]  # one after the other
        assert chi_square(found, expected) < 28  # six free numbers: 1 in 10,000


def test_the_entry_of_a_kernel_is_drawn_by_its_size_among_those_inside_the_image():
    model = seeded(lambda: nn.Sequential(nn.Conv1d(1, 1, 3, padding=1, bias=False), nn.Flatten()))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[[1.0, -2, 5]]]))
    net, _ = wiring(model, 1, 2)
    walks, passed = weights_of(*net.walks(24_000, np.random.default_rng(0)))
    # two places: forward from the first, entries 0 (to the second) and 1 (to itself); from the second 1 and 2;
    # backward from the first, entries 1 and 2; from the second 0 and 1
    expected = 6000 * np.array([1 / 3, 2 / 3 + 2 / 7, 5 / 7])
    for parity in (0, 1):
        found = np.bincount(passed[walks % 2 == parity, 0], minlength=3)
        assert chi_square(found, expected) < 18.5  # two free numbers: 1 in 10,000


def test_branches_are_taken_alike():
    net, starts = wiring(seeded(Residual), 6)
    walk, weight = net.walks(20_000, np.random.default_rng(0))
    for parity in (0, 1):
        inside = (weight >= starts["one.weight"]) & (weight < starts["two.weight"]) & (walk % 2 == parity)
        assert abs(inside.sum() - 5000) < 4 * 50  # half of 10,000


def test_walks_keep_to_their_group():
    model = seeded(lambda: nn.Sequential(nn.Conv1d(4, 6, 1, groups=2), nn.Conv1d(6, 2, 1, groups=2), nn.Flatten()))
    net, _ = wiring(model, 4, 1)
    _, passed = weights_of(*net.walks(2000, np.random.default_rng(0)))
    out, second = passed[:, 0] // 2, passed[:, 1] - 12  # weights (6, 2) and (2, 3)
    assert (out // 3 == second // 3).all() and (out % 3 == second % 3).all()


def test_larger_weights_are_kept_sooner():
    model = chain(30, 30, 10)
    mask = on(model, inputs(30), 200)
    for name, weight in pai.prunable(model).items():
        assert weight.detach().abs()[mask[name]].mean() > 1.2 * weight.detach().abs().mean()


# -- masks, layouts, traces ------------------------------------------------------------------------
def test_removed_weights_are_not_passed_and_unnamed_layers_not_counted():
    model = chain(8, 8, 8, 4)
    mask = pai.prune(model, "random", 0.5)
    found = on(model, inputs(8), 30, mask=mask)
    assert found.kept == 30 and (found & mask) == found
    partial = pai.Mask({n: m for n, m in pai.Mask.dense(model).items() if n != "1.weight"})
    found = on(model, inputs(8), 30, mask=partial)
    assert sum(int(found[n].sum()) for n in partial) == 30 and found["1.weight"].all()
    assert without_effect(model, pai.Mask({n: found[n] for n in partial}), (8,)) == 0


def test_shared_modules_and_tied_weights_are_on_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.tied = (nn.Linear(4, 4, bias=False) for _ in range(3))
            self.tied.weight, self.again = self.two.weight, self.one

        def forward(self, x):
            return self.again(self.tied(self.one(x))).relu()

    model = seeded(Twice)
    for kept in (3, 10, 31, 32):
        mask = on(model, inputs(4), kept)
        assert list(mask) == ["one.weight", "two.weight"] and mask.kept == kept
        assert without_effect(model, pai.Mask(dict(mask)), (4,)) == 0


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_trace_in_any_dtype_and_layout(dtype, mode):
    model = seeded(Mixed).to(dtype)
    plain = on(model, inputs(2, 14, 14), 300)
    model = model.to(memory_format=torch.channels_last).train()
    before = {n: t.detach().clone() for n, t in itertools.chain(model.named_parameters(), model.named_buffers())}
    random = torch.get_rng_state()
    scores = pai.score(model, "phew", inputs(2, 14, 14), kept=300, mode=mode)
    after = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
    assert all(torch.equal(before[n], after[n]) for n in before) and model.training and model.bn.training
    assert torch.equal(random, torch.get_rng_state()) and scores.budget == 0
    assert all(torch.equal(plain[n], scores[n].bool()) for n in plain)
    assert not torch.equal(plain["head.weight"], on(model, inputs(2, 14, 14), 300, seed=1)["head.weight"])


def test_units_that_the_output_never_sees_are_left_alone():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.aside, self.unused = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            x = self.one(x)
            self.aside(x)
            return self.two(x)[:, :2]

    mask = on(seeded(Aside), inputs(4), 20)
    assert not mask["aside.weight"].any() and not mask["unused.weight"].any() and not mask["two.weight"][2:].any()
    with pytest.raises(ValueError, match="make up exactly 40 weights: 16 are missing"):
        on(seeded(Aside), inputs(4), 40)


def test_what_cannot_be_met():
    model = chain(6, 6, 6, 3)
    with pytest.raises(ValueError, match="exactly 2 weights: 2 are missing"):
        on(model, inputs(6), 2)  # a path has three
    for kept in (-1, 91, 3.0, True, None):
        with pytest.raises(ValueError, match="kept is a number of weights from 0 to 90"):
            pai.score(model, "phew", inputs(6), kept=kept)
    assert on(model, inputs(6), 90).kept == 90
    assert not any(s.any() for s in pai.score(model, "phew", inputs(6), kept=0).values())


def test_a_walk_that_does_not_fit_is_passed_over():
    class Fixed:
        """Walks of 3, 3 and 1 weights."""

        def load(self, sizes):
            pass

        def walks(self, n, rng):
            return np.array([0, 0, 0, 1, 1, 1, 2]), np.array([0, 1, 2, 0, 3, 4, 5])

    flags = np.zeros(7, bool)
    visit(Fixed(), np.ones(7, np.float32), flags, 4, np.random.default_rng(0))
    assert np.flatnonzero(flags).tolist() == [0, 1, 2, 5]


# -- where walks are not defined -------------------------------------------------------------------
class Gated(nn.Linear):
    def forward(self, x):
        return super().forward(x) * x


class Computed(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / self.weight.norm())


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


class Broadcast(nn.Linear):
    def forward(self, x):
        return super().forward(x)[:, :1] + x


@pytest.mark.parametrize(
    "model, message",
    [
        (Gated(4, 4), "'mul'"),
        (nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (4, 1)), nn.ConvTranspose1d(4, 2, 1)), "'conv_transpose1d'"),
        (nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (4, 1)), nn.Upsample(2)), "'interpolate'"),
        (Computed(4, 4), r"a weight \(4, 4\) that is no layer's own"),
        (Pair(4, 4), "must be one tensor"),
        (Broadcast(4, 4), "'add'"),
    ],
)
def test_the_operation_that_cannot_be_walked_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        pai.score(model, "phew", inputs(4), kept=8)


def test_attention_is_named():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.inside(x, x, x, need_weights=False)[0].mean(1))

    with pytest.raises(ValueError, match="'multi_head_attention_forward'"):
        pai.score(Attention(), "phew", inputs(3, 4), kept=8)


def test_linear_layers_on_tokens_and_means_over_them():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.embed, self.head = nn.Linear(5, 5, bias=False), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):  # (1, 5 tokens, 4 features)
            x = self.embed(x).relu()
            x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
            return self.head(x.mean(dim=1))

    model = seeded(Tokens)
    for kept in (4, 20, 60):
        mask = on(model, inputs(5, 4), kept)
        assert mask.kept == kept and without_effect(model, mask, (5, 4)) == 0


def test_walks_decide_where_they_go():
    model = pai.build("mlp", pai.load("digits"))
    for options in ({"scope": "erk"}, {"floor": 1}):
        with pytest.raises(ValueError, match="phew decides where its weights lie"):
            pai.prune(model, "phew", 0.9, batch=pai.load("digits").score_batch(), **options)
