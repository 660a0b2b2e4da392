"""Removal: the smaller net computes what the masked one does, with BatchNorm statistics drawn at random."""

import copy
import pickle
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torchvision
from torch import nn

import pai_lab as pai
from pai_lab.coupled import blocks, channels
from pai_lab.surgery import Nothing, remove, whole_channels

IMAGES = SimpleNamespace(input_shape=(3, 32, 32), classes=range(10), name="images")
SIGNAL = SimpleNamespace(input_shape=(1, 40), classes=range(10), name="signal")


class Net(nn.Module):
    """A net whose forward is given: Net(lambda net, x: ..., conv=..., fc=...)."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


@torch.no_grad()
def drawn(net, seed=0):
    """All parameters and statistics at random, of a size that neither grows nor shrinks the signal."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                scale = 1 if parameter.ndim < 2 else (2 / parameter[0].numel()) ** 0.5
                parameter.normal_(0, scale, generator=generator).add_(name == "weight" and parameter.ndim < 2)
        for name, buffer in module._buffers.items():
            buffer.zero_() if name == "num_batches_tracked" else buffer.uniform_(0.3, 2, generator=generator)
    return net.eval()


def torchvision_net(name):
    """Made without its slow initialization; VGG's classifier (120 million weights) is replaced by a small one."""
    with torch.device("meta"):
        net = getattr(torchvision.models, name)(weights=None, **({"width_mult": 0.5} if "mobile" in name else {}))
    if hasattr(net, "classifier") and name.startswith("vgg"):
        net.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 10))
    net = net.to_empty(device="cpu")
    net.input_shape = (3, 32, 32)
    return net


def dense():
    """Two layers of a DenseNet: BatchNorm over the concatenation, then a convolution whose channels are added to it."""

    def run(net, x):
        x = net.stem(x)
        for bn, conv in ((net.bn1, net.conv1), (net.bn2, net.conv2)):
            x = torch.cat([x, conv(bn(x).relu())], 1)
        return net.fc(net.pool(net.bn3(x).relu()).flatten(1))

    return Net(
        run, stem=nn.Conv2d(3, 8, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(8), conv1=nn.Conv2d(8, 5, 3, padding=1),
        bn2=nn.BatchNorm2d(13), conv2=nn.Conv2d(13, 4, 1), bn3=nn.BatchNorm2d(17), pool=nn.AdaptiveAvgPool2d(2),
        fc=nn.Linear(68, 10),
    )  # fmt: skip


def grouped():
    """A ResNeXt block: a convolution in four groups between two that are not."""

    def run(net, x):
        x = net.stem(x)
        x = x + net.b(net.bn(net.mid(net.a(x).sigmoid())).relu())
        return net.fc(x.mean((2, 3)))

    return Net(
        run, stem=nn.Conv2d(3, 8, 3, 2), a=nn.Conv2d(8, 12, 1), mid=nn.Conv2d(12, 16, 3, padding=1, groups=4),
        bn=nn.BatchNorm2d(16), b=nn.Conv2d(16, 8, 1, bias=False), fc=nn.Linear(8, 10),
    )  # fmt: skip


def gated():
    """A squeeze-and-excitation gate, a free scale, PReLU, InstanceNorm and a transposed convolution."""

    def run(net, x):
        x = net.norm(net.conv(x)) * net.scale
        x = x * net.excite(net.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return net.fc(net.act(net.up(x)).flatten(1))

    net = Net(
        run, conv=nn.Conv2d(3, 6, 3, 4), norm=nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
        squeeze=nn.Conv2d(6, 4, 1), excite=nn.Conv2d(4, 6, 1), up=nn.ConvTranspose2d(6, 5, 2, 2), act=nn.PReLU(5),
        fc=nn.Linear(5 * 16 * 16, 10),
    )  # fmt: skip
    net.scale = nn.Parameter(torch.empty(6, 1, 1))
    return net


NETS = {name: lambda name=name: pai.build(name, IMAGES) for name in ("lenet5", "vgg6_bn", "resnet20")}
NETS |= {"mlp": lambda: pai.build("mlp", SIGNAL)}
NETS |= {name: lambda name=name: torchvision_net(name) for name in ("resnet18", "vgg11_bn", "mobilenet_v2")}
NETS |= {make.__name__: make for make in (dense, grouped, gated)}


def made(name, dtype=torch.float32):
    net = drawn(NETS[name]()).to(dtype)
    net.input_shape = getattr(net, "input_shape", (3, 32, 32))
    return net, torch.randn(2, *net.input_shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def some(found, density=0.6, seed=0):
    """Each unit kept with this probability, and always one in each layer."""
    generator = torch.Generator().manual_seed(seed)
    kept = {group: torch.rand(size, generator=generator) < density for group, size in found.units.items()}
    for group, flags in kept.items():
        for entry in found.parameters(group, producers=True):
            flags[entry.unit[-1]] |= not flags[entry.unit].any()
    return kept


def masked(net, mask):
    return mask.apply(copy.deepcopy(net))


def close(output, expected):
    """Equal to 1e-5 of the largest output (1e-12 in double)."""
    scale = expected.abs().max()
    assert scale > 0 and (output - expected).abs().max() <= (1e-12 if output.dtype == torch.float64 else 1e-5) * scale


# The oracle


LARGE = ("resnet18", "vgg11_bn", "mobilenet_v2")  # no other case in double than in single precision


@pytest.mark.parametrize(
    ("name", "dtype"), [(n, torch.float32) for n in NETS] + [(n, torch.float64) for n in NETS if n not in LARGE]
)
def test_removed_is_masked(name, dtype):
    net, x = made(name, dtype)
    mask = pai.Mask(channels(net).expand(some(channels(net))))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    small = remove(net, mask)
    close(small(x), masked(net, mask)(x))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert (small(x) - net(x)).abs().max() > 0.01 * net(x).abs().max()  # and the mask does something
    # what the mask keeps is what is there
    left = {name: parameter.numel() for name, parameter in small.named_parameters()}
    kept = {name: int(mask[name].sum()) if name in mask else p.numel() for name, p in net.named_parameters()}
    assert left == kept
    if hasattr(net, "stem") or name in ("lenet5", "vgg6_bn", "resnet20", "mlp", "mobilenet_v2"):
        # dense multiply-adds per weight are the image's places: the same in both nets
        places = {n: count // pai.prunable(net)[n].numel() for n, count in pai.macs(net).items()}
        assert pai.macs(small) == {n: places[n] * kept[n] for n in places}


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "mobilenet_v2"])
def test_removed_blocks_are_masked_blocks(name):
    net, x = made(name)
    found = blocks(net)
    kept = {group: torch.tensor([i % 2 == 1]) for i, group in enumerate(found.units)}
    mask = pai.Mask(found.expand(kept))
    small = remove(net, mask)
    assert torch.equal(small(x), masked(net, mask)(x))
    counts = {n: int(mask[n].sum()) if n in mask else p.numel() for n, p in net.named_parameters()}
    assert sum(p.numel() for p in small.parameters()) == sum(counts.values()) < sum(p.numel() for p in net.parameters())
    assert sum(pai.macs(small).values()) == sum(m for n, m in pai.macs(net).items() if counts[n])
    assert any(isinstance(module, Nothing) for module in small.modules())


def test_channels_and_blocks_at_once():
    net, x = made("resnet20")
    mask = pai.Mask(channels(net).expand(some(channels(net))))
    masks = blocks(net).expand({"stage1.1.conv1.weight": torch.tensor([False])})
    mask = pai.Mask({name: keep & masks.get(name, True) for name, keep in mask.items()})
    small = remove(net, mask)
    close(small(x), masked(net, mask)(x))
    assert isinstance(small.stage1[1].conv2, Nothing) and small.stage1[2].conv2.weight.shape[0] < 16


@st.composite
def recipes(draw):
    """Layers of a small net: (kind, width, bias), and a seed."""
    kinds = st.sampled_from(["conv", "bn", "relu", "sigmoid", "depthwise", "grouped", "residual", "cat", "pool"])
    return draw(st.lists(st.tuples(kinds, st.integers(1, 3)), min_size=1, max_size=7)), draw(st.integers(0, 99))


class Recipe(nn.Module):
    def __init__(self, kinds):
        super().__init__()
        self.kinds, self.layers, width = [kind for kind, _ in kinds], nn.ModuleList([nn.Conv2d(2, 4, 1)]), 4
        for kind, size in kinds:
            out = {"conv": 2 * size, "cat": width + size}.get(kind, width)
            groups = {"depthwise": width, "grouped": 2 if width % 2 == 0 else 1}.get(kind, 1)
            layer = nn.Conv2d(width, size if kind == "cat" else out, 3, padding=1, groups=groups, bias=size > 1)
            other = {
                "bn": nn.BatchNorm2d(width),
                "relu": nn.ReLU(),
                "sigmoid": nn.Sigmoid(),
                "pool": nn.MaxPool2d(2, 1),
            }
            self.layers.append(other.get(kind, layer))
            width = out
        self.head, self.fc = nn.Conv2d(width, 3, 1), nn.Linear(4 * 3, 3)

    def forward(self, x):
        x = self.layers[0](x)
        for kind, layer in zip(self.kinds, list(self.layers)[1:], strict=True):
            y = layer(x)
            x = x + y if kind == "residual" else torch.cat([x, y], 1) if kind == "cat" else y
        return self.fc(nn.functional.adaptive_avg_pool2d(self.head(x).relu(), 2).flatten(1))


@hypothesis.given(recipes())
@hypothesis.settings(max_examples=20)
def test_removed_is_masked_in_nets_of_any_order(recipe):
    kinds, seed = recipe
    net = drawn(Recipe(kinds), seed).double()
    x = torch.randn(2, 2, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = channels(net, x)
    mask = pai.Mask(found.expand(some(found, 0.5, seed)))
    small = remove(net, mask, input_shape=(2, 12, 12))
    torch.testing.assert_close(small(x), masked(net, mask)(x), rtol=1e-11, atol=1e-11)
    assert sum(p.numel() for p in small.parameters()) == sum(
        int(mask[n].sum()) if n in mask else p.numel() for n, p in net.named_parameters()
    )


# What the smaller net is


def test_the_smaller_net_is_a_plain_model():
    net, x = made("resnet20")
    net.train()
    net.conv1.weight.requires_grad_(False)
    net(x).sum().backward()
    mask = pai.Mask(channels(net).expand(some(channels(net))))
    rng = torch.get_rng_state()
    with torch.no_grad():
        small = remove(net, mask)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(module.training for module in small.modules())
    assert not small.conv1.weight.requires_grad and small.fc.weight.requires_grad
    assert small.name == "resnet20" and pai.describe(small).widths != pai.describe(net).widths
    assert type(small) is type(net) and small.stage1[0].conv1.out_channels == small.stage1[0].bn1.num_features < 16
    again = pickle.loads(pickle.dumps(copy.deepcopy(small))).eval()
    assert torch.equal(again(x), small.eval()(x))
    small.train().zero_grad()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.01, momentum=0.9)
    before = copy.deepcopy(small.state_dict())
    nn.functional.cross_entropy(small(x), torch.tensor([1, 2])).backward()
    optimizer.step()
    moved = [name for name, p in small.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) == len(list(small.parameters())) - 1  # all but the frozen one


def test_weights_removed_inside_channels_that_stay_are_zero():
    net, x = made("vgg6_bn")
    found = channels(net)
    mask = pai.Mask(found.expand(some(found)))
    generator = torch.Generator().manual_seed(5)
    holes = {n: keep & (torch.rand(keep.shape, generator=generator) < 0.8) if keep.ndim > 1 else keep
             for n, keep in mask.items()}  # fmt: skip
    holes["fc.weight"] = mask["fc.weight"]
    small = remove(net, pai.Mask(holes))
    close(small(x), masked(net, pai.Mask(holes))(x))
    assert small.conv3.weight.numel() == int(mask["conv3.weight"].sum())
    assert int((small.conv3.weight != 0).sum()) == int(holes["conv3.weight"].sum())


def test_a_mask_that_removes_nothing_copies():
    net, x = made("lenet5")
    small = remove(net, pai.Mask.dense(net))
    assert small is not net and torch.equal(small(x), net(x))
    assert all(a is not b and torch.equal(a, b) for a, b in zip(small.parameters(), net.parameters(), strict=True))


def test_a_channel_that_is_not_zero_at_zero():
    """A sigmoid makes 0.5 of a removed channel; its columns are removed as well, so the smaller net is exact."""
    net = drawn(nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3))).double()
    kept = torch.tensor([True, False, True, True, False, True])
    mask = pai.Mask(channels(net, torch.zeros(1, 4).double()).expand({"0.weight": kept}))
    x = torch.randn(5, 4, dtype=torch.float64)
    small = remove(net, mask, input_shape=(4,))
    close(small(x), masked(net, mask)(x))
    w, b = net[0].weight[kept], net[0].bias[kept]
    close(small(x), (x @ w.T + b).sigmoid() @ net[2].weight[:, kept].T + net[2].bias)


# Filters and whole channels


def constant():
    """One channel that is removed and one that stays; BatchNorm as in the textbook example."""
    net = drawn(nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1, bias=False)))
    with torch.no_grad():
        net[1].running_mean.fill_(0.5), net[1].running_var.fill_(4), net[1].weight.fill_(2), net[1].bias.fill_(1.5)
    keep = torch.tensor([True, False]).view(2, 1, 1, 1)
    return net, pai.Mask({"0.weight": keep, "2.weight": torch.ones(1, 2, 1, 1, dtype=torch.bool)})


def test_a_removed_filter_still_emits_a_constant():
    net, mask = constant()
    x = torch.randn(1, 1, 3, 3)
    emitted = masked(net, mask)[:2](x)[0, 1]
    torch.testing.assert_close(emitted, torch.full((3, 3), 1.0000006), rtol=0, atol=1e-7)
    with pytest.raises(
        ValueError, match=r"filters of 1 of the 2 channels of '0.weight'.*whole_channels\(model, mask\)"
    ):
        remove(net, mask, input_shape=(1, 3, 3))
    whole = whole_channels(net, mask, x)
    assert torch.equal(masked(net, whole)[:2](x)[0, 1], torch.zeros(3, 3))
    assert {n: keep.flatten().tolist() for n, keep in whole.items()} == {
        "0.weight": [True, False], "1.weight": [True, False], "1.bias": [True, False], "2.weight": [True, False],
    }  # fmt: skip
    small = remove(net, whole, input_shape=(1, 3, 3))
    close(small(x), masked(net, whole)(x))
    assert small[0].weight.shape == (1, 1, 1, 1) and small[2].weight.shape == (1, 1, 1, 1)


def test_filter_masks_become_channel_masks():
    net, x = made("vgg6_bn")
    mask = pai.prune(net, "magnitude", 0.5, structure="filter", batch=(x, torch.tensor([0, 1])), floor=1)
    assert all(keep.ndim > 1 for keep in mask.values())
    whole = whole_channels(net, mask)
    assert all((whole[name] | ~keep).any() and not (whole[name] & ~keep).any() for name, keep in mask.items())
    dead = ~mask["conv2.weight"].flatten(1).any(1)
    assert torch.equal(dead, ~whole["bn2.bias"]) and torch.equal(dead, ~whole["bn2.weight"])
    assert torch.equal(dead, ~whole["conv3.weight"].any((0, 2, 3)))
    assert whole.budget == mask.budget and whole_channels(net, whole) == whole
    small = remove(net, whole)
    close(small(x), masked(net, whole)(x))
    assert small.conv2.out_channels == int((~dead).sum())


def test_all_layers_of_a_stream_must_lose_the_filter():
    net, x = made("resnet20")
    writers = ["conv1.weight", *(f"stage1.{b}.conv2.weight" for b in range(3))]
    flags = {name: keep.clone() for name, keep in pai.Mask.dense(net).items()}
    for name in writers[:-1]:
        flags[name][3] = False
    assert whole_channels(net, pai.Mask(flags)) == pai.Mask(flags)
    flags[writers[-1]][3] = False
    whole = whole_channels(net, pai.Mask(flags))
    assert not whole["bn1.bias"][3] and not whole["stage2.0.shortcut.conv.weight"][:, 3].any()
    small = remove(net, whole)
    close(small(x), masked(net, whole)(x))
    assert small.conv1.out_channels == 15 and small.stage1[0].conv1.out_channels == 16


def test_filters_that_lose_all_their_inputs_go_too():
    net = drawn(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
    flags = {name: torch.ones_like(w, dtype=torch.bool) for name, w in pai.prunable(net).items()}
    flags["0.weight"][0] = False
    flags["2.weight"][1, 1] = False  # unit 1 reads only unit 0
    whole = whole_channels(net, pai.Mask(flags), torch.zeros(1, 3))
    assert whole["2.bias"].tolist() == [True, False] and whole["4.weight"].tolist() == [[True, False]] * 2
    assert [tuple(w.shape) for w in pai.prunable(remove(net, whole, (3,))).values()] == [(1, 3), (1, 1), (2, 1)]


# Errors, raised before anything is changed


def test_an_empty_layer_is_named():
    net, _ = made("lenet5")
    found = channels(net)
    mask = pai.Mask(found.expand({"conv2.weight": torch.zeros(50, dtype=torch.bool)}))
    with pytest.raises(ValueError, match="nothing would pass 'conv2'"):
        remove(net, mask)


def test_masks_and_shapes_of_other_models():
    net, _ = made("lenet5")
    with pytest.raises(ValueError, match="this mask is for another model"):
        remove(net, pai.Mask({"conv1.weight": torch.ones(2, 2, dtype=torch.bool)}))
    with pytest.raises(ValueError, match="cannot run on inputs of shape"):
        remove(net, pai.Mask.dense(net), input_shape=(3, 30, 20))
    del net.input_shape
    with pytest.raises(ValueError, match="no input_shape"):
        remove(net, pai.Mask.dense(net))


@pytest.mark.parametrize("norm", [lambda: nn.GroupNorm(2, 4), lambda: nn.LayerNorm(4)])
def test_norms_over_channels_are_named(norm):
    layer = norm()
    head = nn.Linear(4, 2) if isinstance(layer, nn.LayerNorm) else nn.Conv2d(4, 2, 1)
    net = drawn(nn.Sequential(nn.Linear(3, 4) if isinstance(head, nn.Linear) else nn.Conv2d(3, 4, 1), layer, head))
    shape = (3,) if isinstance(head, nn.Linear) else (3, 2, 2)
    found = channels(net, torch.zeros(1, *shape))
    mask = pai.Mask(found.expand({"0.weight": torch.arange(found.units["0.weight"]) > 0}))
    with pytest.raises(ValueError, match="pass '1', a (Group|Layer)Norm"):
        remove(net, mask, shape)


def test_what_torch_pruning_does_not_see_is_found_out():
    def half(net, x):
        return pai.Mask(channels(net, x).expand({"a.weight": torch.arange(4) > 1}))

    x = torch.zeros(1, 3)
    net = drawn(Net(lambda net, x: net.b(net.a(x).softmax(1)), a=nn.Linear(3, 4), b=nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="computes something else"):
        remove(net, half(net, x), (3,))
    net.run = lambda net, x: net.b(net.a(x).view(-1, 4))
    with pytest.raises(ValueError, match="its forward fixes sizes"):
        remove(net, half(net, x), (3,))
