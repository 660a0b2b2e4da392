"""Coupled structures: groups of hand-made nets written out entry by entry; reductions beside plain loops."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import pai_lab as pai
from pai_lab.coupled import blocks, channels

IMAGE = torch.zeros(2, 2, 4, 4)
IMAGES = SimpleNamespace(input_shape=(3, 16, 16), classes=range(10), name="images")


class Net(nn.Module):
    """A net whose forward is given: Net(lambda net, x: ..., conv=..., fc=...)."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def gone(found, group, unit):
    """{parameter: the places that go with one unit}."""
    kept = torch.arange(found.units[group]) != unit
    return {name: ~keep for name, keep in found.expand({group: kept}).items() if not keep.all()}


def written(model, **places):
    """{parameter: bool tensor, True at the given places}; `a__weight` stands for a.weight."""
    shapes, flags = dict(model.named_parameters()), {}
    for name, place in places.items():
        name = name.replace("__", ".").replace("L", "")
        flags[name] = torch.zeros_like(shapes[name], dtype=torch.bool)
        flags[name][place] = True
    return flags


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


ALL = slice(None)


def chain():
    """(2, 4, 4) -> 3 channels with BatchNorm -> 4 channels, 2x2 -> flattened to 16 -> 5 -> 2 outputs."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2),
    )  # fmt: skip


def residual():
    """A stem, a block with an identity shortcut, a block whose shortcut is a convolution."""
    wide, c = dict(kernel_size=3, padding=1, bias=False), nn.Conv2d

    def run(net, x):
        x = net.stem(x)
        x = torch.relu(x + net.a2(net.bn(net.a1(x)).relu()))
        x = torch.relu(net.short(x) + net.b2(net.b1(x).relu()))
        return net.fc(x.mean((2, 3)))

    return Net(
        run, stem=c(2, 4, **wide), a1=c(4, 3, **wide), bn=nn.BatchNorm2d(3), a2=c(3, 4, **wide), b1=c(4, 6, **wide),
        b2=c(6, 5, **wide), short=c(4, 5, 1), fc=nn.Linear(5, 2),
    )  # fmt: skip


# Channels: which entries go together


def test_a_chain_with_batchnorm_and_a_flatten():
    net = chain()
    found = channels(net, IMAGE)
    assert found.units == {"0.weight": 3, "3.weight": 4, "7.weight": 5}
    same(
        gone(found, "0.weight", 1),
        written(net, L0__weight=1, L0__bias=1, L1__weight=1, L1__bias=1, L3__weight=(ALL, 1)),
    )
    # channel 2 of four owns the columns 8 to 11 of the sixteen
    columns = (ALL, slice(8, 12))
    same(gone(found, "3.weight", 2), written(net, L3__weight=2, L3__bias=2, L7__weight=columns))
    same(gone(found, "7.weight", 4), written(net, L7__weight=4, L7__bias=4, L9__weight=(ALL, 4)))


def test_input_shape_stands_for_x():
    net = chain()
    net.input_shape = (2, 4, 4)
    assert channels(net).units == channels(net, IMAGE).units
    perceptron = nn.Sequential(nn.Flatten(), nn.Linear(40, 5), nn.ReLU(), nn.Linear(5, 3))
    perceptron.input_shape = (1, 40)
    assert channels(perceptron).units == {"1.weight": 5}


def test_a_residual_stream_is_one_group():
    net = residual()
    found = channels(net, IMAGE)
    assert found.units == {"stem.weight": 4, "a1.weight": 3, "b1.weight": 6, "b2.weight": 5}
    stream = written(
        net, stem__weight=3, a1__weight=(ALL, 3), a2__weight=3, b1__weight=(ALL, 3), short__weight=(ALL, 3)
    )
    same(gone(found, "stem.weight", 3), stream)
    inside = written(net, a1__weight=0, bn__weight=0, bn__bias=0, a2__weight=(ALL, 0))
    same(gone(found, "a1.weight", 0), inside)
    stage = written(net, b2__weight=1, short__weight=1, short__bias=1, fc__weight=(ALL, 1))
    same(gone(found, "b2.weight", 1), stage)


def test_depthwise_filters_go_with_their_channel():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.PReLU(4), nn.Conv2d(4, 3, 1), nn.Flatten(),
        nn.Linear(48, 2),
    )  # fmt: skip
    found = channels(net, IMAGE)
    assert found.units == {"0.weight": 4, "3.weight": 3}
    flags = written(net, L0__weight=2, L0__bias=2, L1__weight=2, L1__bias=2, L2__weight=2, L3__weight=(ALL, 2))
    same(gone(found, "0.weight", 2), flags)


def test_a_grouped_convolution_stays_equal_in_all_groups():
    net = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2),
    )  # fmt: skip
    found = channels(net, IMAGE)
    assert found.units == {"0.weight": 3, "2.weight": 2, "4.weight": 3}
    # inputs 1 and 4 of six are each the second of their group: column 1 of the (4, 3, 3, 3) weight
    flags = written(net, L0__weight=[1, 4], L0__bias=[1, 4], L2__weight=(ALL, 1))
    same(gone(found, "0.weight", 1), flags)
    flags = written(net, L2__weight=[0, 2], L2__bias=[0, 2], L4__weight=(ALL, [0, 2]))
    same(gone(found, "2.weight", 0), flags)


def test_concatenation_shifts_the_columns():
    def run(net, x):
        x = torch.cat([x, net.a(x)], 1)
        x = torch.cat([x, net.b(x)], 1)
        return net.fc(net.bn(x).relu().mean((2, 3)))

    c = dict(kernel_size=3, padding=1)
    net = Net(run, a=nn.Conv2d(2, 4, **c), b=nn.Conv2d(6, 3, **c), bn=nn.BatchNorm2d(9), fc=nn.Linear(9, 2))
    found = channels(net, IMAGE)
    assert found.units == {"a.weight": 4, "b.weight": 3}
    at = 2 + 1  # after the two channels of the input
    flags = written(net, a__weight=1, a__bias=1, b__weight=(ALL, at), bn__weight=at, bn__bias=at, fc__weight=(ALL, at))
    same(gone(found, "a.weight", 1), flags)
    at = 6 + 2
    same(
        gone(found, "b.weight", 2),
        written(net, b__weight=2, b__bias=2, bn__weight=at, bn__bias=at, fc__weight=(ALL, at)),
    )


def test_halves_of_a_gate_go_together():
    def run(net, x):
        a, b = net.conv(x).chunk(2, 1)
        return net.fc((a * b.sigmoid()).mean((2, 3)))

    net = Net(run, conv=nn.Conv2d(2, 6, 3, padding=1), fc=nn.Linear(3, 2))
    found = channels(net, IMAGE)
    assert found.units == {"conv.weight": 3}
    same(gone(found, "conv.weight", 2), written(net, conv__weight=[2, 5], conv__bias=[2, 5], fc__weight=(ALL, 2)))


def test_one_stream_added_to_two_of_a_concatenation():
    """c[0:2] meets a and c[2:5] meets b: three layers, five units, one group."""

    def run(net, x):
        return net.fc((torch.cat([net.a(x), net.b(x)], 1) + net.c(x)).relu().mean((2, 3)))

    c = nn.Conv2d
    net = Net(run, a=c(2, 2, 1), b=c(2, 3, 1, bias=False), c=c(2, 5, 1, bias=False), fc=nn.Linear(5, 2))
    found = channels(net, IMAGE)
    assert found.units == {"a.weight": 5}
    same(gone(found, "a.weight", 1), written(net, a__weight=1, a__bias=1, c__weight=1, fc__weight=(ALL, 1)))
    same(gone(found, "a.weight", 3), written(net, b__weight=1, c__weight=3, fc__weight=(ALL, 3)))


def test_a_convolution_that_is_used_twice():
    def run(net, x):
        x = net.stem(x)
        return net.fc(net.conv(net.conv(x).relu()).relu().mean((2, 3)))

    net = Net(run, stem=nn.Conv2d(2, 3, 1), conv=nn.Conv2d(3, 3, 1, bias=False), fc=nn.Linear(3, 2))
    found = channels(net, IMAGE)
    assert found.units == {"stem.weight": 3}
    flags = written(net, stem__weight=1, stem__bias=1, conv__weight=1, fc__weight=(ALL, 1))
    flags["conv.weight"][:, 1] = True
    same(gone(found, "stem.weight", 1), flags)


def test_transposed_convolutions_and_free_scales():
    def run(net, x):
        x = net.conv(x) * net.scale
        return net.head((net.up(net.down(x)) + x).relu()).mean((2, 3))

    net = Net(
        run, conv=nn.Conv2d(2, 3, 1), down=nn.Conv2d(3, 4, 2, 2), up=nn.ConvTranspose2d(4, 3, 2, 2),
        head=nn.Conv2d(3, 2, 1),
    )  # fmt: skip
    net.scale = nn.Parameter(torch.ones(1, 3, 1, 1))
    found = channels(net, IMAGE)
    assert found.units == {"conv.weight": 3, "down.weight": 4}
    flags = written(
        net, conv__weight=2, conv__bias=2, scale=(ALL, 2), down__weight=(ALL, 2), up__weight=(ALL, 2), up__bias=2,
        head__weight=(ALL, 2),
    )  # fmt: skip
    same(gone(found, "conv.weight", 2), flags)
    same(gone(found, "down.weight", 1), written(net, down__weight=1, down__bias=1, up__weight=1))


def test_a_layer_norm_is_touched():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
    found = channels(net, torch.zeros(1, 3))
    flags = written(net, L0__weight=3, L0__bias=3, L1__weight=3, L1__bias=3, L3__weight=(ALL, 3))
    same(gone(found, "0.weight", 3), flags)


@pytest.mark.parametrize("length", [8, 10])
def test_one_dimensional_convolutions(length):
    net = nn.Sequential(
        nn.Conv1d(2, 3, 3, bias=False), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * (length - 2), 2)
    )
    found = channels(net, torch.zeros(1, 2, length))
    assert found.units == {"0.weight": 3}
    columns = (ALL, slice(2 * (length - 2), 3 * (length - 2)))
    same(gone(found, "0.weight", 2), written(net, L0__weight=2, L1__weight=2, L1__bias=2, L4__weight=columns))


@pytest.mark.parametrize("name", ["lenet5", "vgg6_bn", "resnet20"])
def test_groups_of_the_house_models(name):
    found = channels(pai.build(name, IMAGES))
    expected = {
        "lenet5": {"conv1.weight": 20, "conv2.weight": 50, "fc1.weight": 500},
        "vgg6_bn": {f"conv{i}.weight": n for i, n in enumerate((16, 16, 32, 32, 64, 64), 1)},
        # three streams (stem, and two that start at the first block's last convolution) and nine blocks' insides
        "resnet20": {"conv1.weight": 16, "stage2.0.conv2.weight": 32, "stage3.0.conv2.weight": 64}
        | {f"stage{s}.{b}.conv1.weight": 8 * 2**s for s in (1, 2, 3) for b in range(3)},
    }
    assert found.units == expected[name]
    assert list(found.units) == [n for n in pai.prunable(pai.build(name, IMAGES)) if n in found.units]


# What is in no group


def test_channels_that_meet_the_input_or_the_output_stay():
    def run(net, x):
        x = x + net.a(x)  # as wide as the input
        x = net.b(x)
        return x + net.d(net.c(x).relu())  # the output

    c = nn.Conv2d
    net = Net(run, a=c(2, 2, 1), b=c(2, 4, 1), c=c(4, 3, 1), d=c(3, 4, 1))
    assert channels(net, IMAGE).units == {"c.weight": 3}
    features = Net(lambda net, x: (y := net.b(net.a(x)), net.c(y.relu())), a=c(2, 2, 1), b=c(2, 4, 1), c=c(4, 3, 1))
    assert channels(features, IMAGE).units == {"a.weight": 2}  # y is an output as well


def test_excluded_layers_keep_their_rows():
    net = residual()
    assert list(channels(net, IMAGE, exclude="a2.weight").units) == ["a1.weight", "b1.weight", "b2.weight"]
    found = channels(net, IMAGE, exclude=["fc.weight", "short.weight"])
    assert list(found.units) == ["stem.weight", "a1.weight", "b1.weight"]
    assert gone(found, "stem.weight", 0)["short.weight"][:, 0].all()  # its columns still follow
    with pytest.raises(ValueError, match="Did you mean 'stem.weight'"):
        channels(net, IMAGE, exclude="stemm.weight")


def test_layers_with_a_tied_weight_stay():
    net = nn.Sequential(
        nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    assert len(channels(net, torch.zeros(1, 3)).units) == 3
    net[2].weight = net[0].weight
    assert channels(net, torch.zeros(1, 3)).units == {"4.weight": 4}


def test_layers_of_an_unknown_kind_hold_their_channels():
    def run(net, x):
        x = net.a(x)
        x = x + net.attention(x, x, x)[0]
        return net.d(net.c(x).relu()).mean(1)

    parts = dict(attention=nn.MultiheadAttention(4, 2, batch_first=True), c=nn.Linear(4, 5), d=nn.Linear(5, 2))
    assert channels(Net(run, a=nn.Linear(3, 4), **parts), torch.zeros(1, 6, 3)).units == {"c.weight": 5}
    net = Net(lambda net, x: net.c(net.b(net.a(x).relu() @ net.free).relu()), a=nn.Linear(3, 4), b=nn.Linear(4, 5))
    net.c, net.free = nn.Linear(5, 2), nn.Parameter(torch.randn(4, 4))
    assert channels(net, torch.zeros(1, 3)).units == {"b.weight": 5}


# Errors


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="no channel to remove"):
        channels(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="no input_shape"):
        channels(chain())
    with pytest.raises(ValueError, match=r"cannot run on inputs of shape \(3, 4, 4\)"):
        channels(chain(), torch.zeros(1, 3, 4, 4))
    for empty in (torch.zeros(0, 2, 4, 4), torch.tensor(1.0), [1, 2]):
        with pytest.raises(ValueError, match="x must be a batch"):
            channels(chain(), empty)
    with pytest.raises(ValueError, match="no prunable weight"):
        channels(nn.Sequential(nn.ReLU()), IMAGE)


def test_a_model_that_cannot_be_traced():
    silent = Net(lambda net, x: net.b(net.a(x).detach()).detach(), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    with pytest.raises(ValueError, match="cannot follow the channels of Net"):
        channels(silent, torch.zeros(1, 3))
    shuffled = Net(lambda net, x: net.b(net.a(x)[:, [0, 2]]), a=nn.Linear(3, 4), b=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="cannot follow the channels of Net"):
        channels(shuffled, torch.zeros(1, 3))


# Nothing is left on the model


@pytest.mark.parametrize("find", [channels, blocks])
def test_the_model_is_as_before(find):
    net, calls = residual(), []
    net(IMAGE + 1).sum().backward()
    net.bn.eval()
    net.a1.weight.requires_grad_(False)
    hook = net.a1.register_forward_hook(lambda *_: calls.append(1))
    before, gradients = copy.deepcopy(net.state_dict()), [copy.deepcopy(p.grad) for p in net.parameters()]
    parameters, modes, rng = list(net.parameters()), [m.training for m in net.modules()], torch.get_rng_state()
    with torch.no_grad():
        found = find(net, IMAGE)
    assert "stem.weight" in found.units or "a1.weight" in found.units
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert not net.a1.weight.requires_grad and net.a2.weight.requires_grad
    assert [m.training for m in net.modules()] == modes and torch.equal(torch.get_rng_state(), rng)
    assert calls == [] and len(net.a1._forward_hooks) == 1 and not net.stem._forward_hooks
    hook.remove()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_layouts(dtype):
    net = chain().to(dtype, memory_format=torch.channels_last)
    assert channels(net, IMAGE.to(dtype)).units == {"0.weight": 3, "3.weight": 4, "7.weight": 5}


# Scores of units, masks of units


def loops(found, net, scores, group, unit, how, producers):
    """The unit's rows and columns, one number at a time."""
    values = []
    for entry in found.entries[group]:
        if entry.name not in scores or (producers and entry.dim):
            continue
        for place, one in zip(entry.index.tolist(), entry.unit.tolist(), strict=True):
            if one == unit:
                values.append(scores[entry.name].select(entry.dim, place).flatten().double().numpy())
    numbers = np.concatenate(values)
    return {"mean": numbers.mean(), "sum": numbers.sum(), "max": numbers.max(), "first": numbers[0]}[how]


@pytest.mark.parametrize("producers", [False, True])
@pytest.mark.parametrize("how", ["mean", "sum", "max", "first"])
@pytest.mark.parametrize("make", [chain, residual])
def test_reductions_beside_loops(make, how, producers):
    net, generator = make(), torch.Generator().manual_seed(1)
    found = channels(net, IMAGE)
    scores = {n: torch.rand(w.shape, generator=generator, dtype=torch.float64) for n, w in pai.prunable(net).items()}
    units = found.reduce(scores, how, producers)
    assert {group: len(one) for group, one in units.items()} == found.units
    for group, one in units.items():
        expected = [loops(found, net, scores, group, unit, how, producers) for unit in range(len(one))]
        np.testing.assert_allclose(one.numpy(), expected, rtol=1e-13)


@pytest.mark.parametrize("how", ["mean", "sum", "max"])
def test_a_unit_is_scored_by_the_weights_that_go_with_it(how):
    """By the mask, not by the entries: right where no weight is in a row and a column of one unit."""
    net, generator = residual(), torch.Generator().manual_seed(2)
    found = channels(net, IMAGE)
    scores = {n: torch.rand(w.shape, generator=generator) for n, w in pai.prunable(net).items()}
    for group, one in found.reduce(scores, how).items():
        for unit, score in enumerate(one):
            places = gone(found, group, unit)
            weights = torch.cat([scores[n][flags] for n, flags in places.items() if n in scores])
            expected = {"mean": weights.mean(), "sum": weights.sum(), "max": weights.max()}[how]
            torch.testing.assert_close(score, expected, rtol=1e-5, atol=0)


def test_first_is_one_draw_per_unit():
    net = residual()
    found = channels(net, IMAGE)
    scores = {name: torch.rand(w.shape) for name, w in pai.prunable(net).items()}
    units = found.reduce(scores, "first")
    for group, one in units.items():
        assert torch.equal(one, scores[group][:, 0, 0, 0])
    assert len(torch.cat(list(units.values())).unique()) == sum(found.units.values())


def test_scores_of_some_layers_do():
    net = residual()
    found = channels(net, IMAGE)
    scores = {n: torch.rand(w.shape) for n, w in pai.prunable(net).items() if n not in ("fc.weight", "stem.weight")}
    units = found.reduce(scores, "mean", producers=True)
    torch.testing.assert_close(units["stem.weight"], scores["a2.weight"].mean((1, 2, 3)))
    del scores["b1.weight"]
    with pytest.raises(ValueError, match="units of group 'b1.weight' have no scores"):
        found.reduce(scores, producers=True)
    with pytest.raises(ValueError, match="Did you mean 'mean'"):
        found.reduce(scores, "meen")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_units_of_other_types(dtype):
    net = chain()
    scores = {name: torch.rand(w.shape).to(dtype) for name, w in pai.prunable(net).items()}
    found = channels(net, IMAGE)
    assert found.reduce(scores)["0.weight"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    largest = found.reduce(scores, "max", producers=True)["0.weight"]
    assert torch.equal(largest, scores["0.weight"].flatten(1).amax(1))


def test_live_units_of_a_mask():
    net = residual()
    found = channels(net, IMAGE)
    kept = {group: torch.arange(size) % 3 != 1 for group, size in found.units.items()}
    mask = pai.Mask(found.expand(kept))
    alive = found.reduce(mask, "max")
    assert all(flags.dtype == torch.bool for flags in alive.values())
    same(alive, kept)
    same({group: ~flags for group, flags in found.removed(mask).items()}, kept)
    filters = pai.Mask({"a1.weight": (torch.arange(3) != 1).view(3, 1, 1, 1).expand(3, 4, 3, 3)})
    assert found.removed(filters, producers=True)["a1.weight"].tolist() == [False, True, False]
    assert not any(flags.any() for flags in found.removed(filters).values())


def test_expand_names_all_that_any_group_touches():
    net = chain()
    found = channels(net, IMAGE)
    masks = found.expand({})
    assert set(masks) == {name for name, _ in net.named_parameters()} - {"9.bias"}  # of the output
    assert all(keep.all() and keep.shape == net.get_parameter(name).shape for name, keep in masks.items())
    assert list(masks) == [name for name, _ in net.named_parameters() if name in masks]
    with pytest.raises(ValueError, match="Did you mean '0.weight'"):
        found.expand({"0.weigh": torch.ones(3, dtype=torch.bool)})
    for wrong in (torch.ones(4, dtype=torch.bool), torch.ones(3)):
        with pytest.raises(ValueError, match="'0.weight' has 3 units"):
            found.expand({"0.weight": wrong})


# Blocks


def test_the_blocks_of_resnet20():
    net = pai.build("resnet20", IMAGES)
    found = blocks(net)
    # nine blocks, and two of them begin a stage beside a convolution
    assert found.units == {
        f"stage{s}.{b}.conv1.weight": 1 for s in (1, 2, 3) for b in range(3) if (s, b) not in ((2, 0), (3, 0))
    }
    masks = found.expand({"stage2.1.conv1.weight": torch.tensor([False])})
    inside = {n for n, _ in net.named_parameters() if n.startswith("stage2.1.")}
    assert len(inside) == 6 and inside == {n for n, keep in masks.items() if not keep.any()}
    assert all(keep.all() for n, keep in masks.items() if n not in inside)


def test_a_block_without_its_branch_is_the_identity():
    net, x = pai.build("resnet20", IMAGES).eval(), torch.randn(3, 3, 16, 16)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias), nn.init.normal_(module.running_mean)
    seen = []
    net.stage1[1].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    pai.Mask(blocks(net).expand({"stage1.1.conv1.weight": torch.tensor([False])})).apply(net)(x)
    assert torch.equal(seen[0][0], seen[0][1]) and seen[0][0].any()  # after a ReLU already


def test_which_branches_are_blocks():
    def run(net, x):
        x = net.stem(x)
        x = x + net.a(x).relu()  # a block
        x = net.b(x) + x  # also on the left
        x = x + net.twice(x)
        x = x + net.twice(x)  # its weight is needed elsewhere
        x = x + net.outer(x + net.inner(x))  # the outer branch holds another
        x += net.inplace(x)
        x = net.short(x) + net.c(x)  # no identity
        return net.fc(x.mean((2, 3)))

    names = "stem a b twice outer inner inplace short c".split()
    net = Net(run, **{n: nn.Conv2d(2, 2, 3, padding=1) for n in names}, fc=nn.Linear(2, 2))
    found = blocks(net, IMAGE)
    assert list(found.units) == [f"{n}.weight" for n in ("a", "b", "inner", "inplace")]
    assert list(blocks(net, IMAGE, exclude=["a.weight", "inner.weight"]).units) == ["b.weight", "inplace.weight"]
    scores = {n: torch.rand(w.shape) for n, w in pai.prunable(net).items()}
    torch.testing.assert_close(found.reduce(scores)["b.weight"], scores["b.weight"].mean().view(1))
    assert found.reduce(scores, "first")["a.weight"].item() == scores["a.weight"][0, 0, 0, 0].item()


def test_a_branch_at_the_output_stays():
    c = nn.Linear
    net = Net(lambda net, x: (y := net.a(x).relu()) + net.b(y), a=c(3, 4), b=c(4, 4))
    with pytest.raises(ValueError, match="no residual branch"):
        blocks(net, torch.zeros(1, 3))
    net = Net(lambda net, x: x + net.b(net.a(x).relu()), a=c(3, 4), b=c(4, 3))
    followed = nn.Sequential(net, nn.Linear(3, 2))
    assert blocks(followed, torch.zeros(1, 3)).units == {"0.a.weight": 1}  # also beside the input itself


@pytest.mark.parametrize(
    "make", [chain, lambda: Net(lambda net, x: net.b(net.a(x)), a=nn.Conv2d(2, 2, 1), b=nn.ReLU())]
)
def test_no_blocks(make):
    with pytest.raises(ValueError, match="no residual branch beside an identity shortcut"):
        blocks(make(), IMAGE)
