"""Effective weights against a graph of single numbers: one node per activation, one edge per product."""

from itertools import accumulate, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pai_lab as pai
from pai_lab import Mask
from pai_lab.metrics import dead_units, effective


# -- the oracle: plain search in an explicit graph -----------------------------------------------------------------
class Graph:
    """Nodes are numbers; an edge may carry the index of a weight, and is there only if that weight is kept."""

    def __init__(self, mask, *shape):
        self.mask = {name: keep.numpy() for name, keep in mask.items()}
        self.nodes, self.edges = 0, []
        self.input = self.new(*shape)

    def new(self, *shape):
        first, self.nodes = self.nodes, self.nodes + int(np.prod(shape))
        return np.arange(first, self.nodes).reshape(shape)

    def join(self, sources, target, weight=None):
        if weight is None or self.mask[weight[0]][weight[1:]]:
            self.edges += [(int(source), int(target), weight) for source in np.ravel(sources)]

    def linear(self, x, name):
        out = self.new(len(self.mask[name]))
        for o, i in product(range(len(out)), range(len(x))):
            self.join(x[i], out[o], (name, o, i))
        return out

    def conv(self, x, name, stride=1, padding=0, groups=1):
        filters, depth, height, width = self.mask[name].shape
        sides = [(side + 2 * padding - k) // stride + 1 for side, k in zip(x.shape[1:], (height, width), strict=True)]
        out = self.new(filters, *sides)
        for o, i, r, c in np.ndindex(filters, depth, height, width):
            channel = o // (filters // groups) * depth + i
            for y, z in np.ndindex(*sides):
                row, column = y * stride + r - padding, z * stride + c - padding
                if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                    self.join(x[channel, row, column], out[o, y, z], (name, o, i, r, c))
        return out

    def pool(self, x, side):
        out = self.new(len(x), x.shape[1] // side, x.shape[2] // side)
        for o, y, z in np.ndindex(*out.shape):
            self.join(x[o, y * side : (y + 1) * side, z * side : (z + 1) * side], out[o, y, z])
        return out

    def add(self, a, b):
        out = self.new(*a.shape)
        for term in (a, b):
            for source, target in zip(term.flat, out.flat, strict=True):
                self.join(source, target)
        return out

    def search(self, start, forwards):
        onward, found, todo = {}, set(map(int, np.ravel(start))), list(map(int, np.ravel(start)))
        for source, target, _ in self.edges:
            a, b = (source, target) if forwards else (target, source)
            onward.setdefault(a, []).append(b)
        while todo:
            new = set(onward.get(todo.pop(), [])) - found
            found |= new
            todo += new
        return found

    def effective(self, output):
        reached, heard = self.search(self.input, True), self.search(output, False)
        found = {name: np.zeros_like(keep) for name, keep in self.mask.items()}
        for source, target, weight in self.edges:
            if weight and source in reached and target in heard:
                found[weight[0]][weight[1:]] = True
        return Mask({name: torch.from_numpy(keep) for name, keep in found.items()})


def random_mask(model, density, seed):
    generator = torch.Generator().manual_seed(seed)
    return Mask({n: torch.rand(w.shape, generator=generator) < density for n, w in pai.prunable(model).items()})


def full(model, **removed):
    """Everything kept but the named entries: fc1=[(0, 1)] removes fc1.weight[0, 1]."""
    tensors = {n: t.clone() for n, t in Mask.dense(model).items()}
    for name, places in removed.items():
        for place in places:
            tensors[f"{name}.weight"][place] = False
    return Mask(tensors)


def mlp(*sizes):
    layers = {}
    for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False), 1):
        layers |= {f"fc{i}": nn.Linear(fan_in, fan_out), f"relu{i}": nn.ReLU()}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    model.input_shape = sizes[:1]
    return model


# -- by hand -------------------------------------------------------------------------------------------------------
def test_a_dead_hidden_unit_by_hand():
    """2 inputs, 2 + 2 hidden units, 1 output. Unit 1 of layer 1 has no input left, unit 0 of layer 2 no output."""
    model = mlp(2, 2, 2, 1)
    mask = full(model, fc1=[(1, 0), (1, 1)], fc3=[(0, 0)])
    paths = effective(model, mask)
    assert paths["fc1.weight"].tolist() == [[True, True], [False, False]]
    assert paths["fc2.weight"].tolist() == [[False, False], [True, False]]  # row 0 goes nowhere, column 1 is silent
    assert paths["fc3.weight"].tolist() == [[False, True]]
    assert (mask.kept, paths.kept) == (7, 4) and paths.sparsity == 1 - 4 / 10
    rows = dead_units(model, mask).set_index("layer")
    assert rows.loc["fc1.weight"].to_dict() == {"units": 2, "unreachable": 1, "unheard": 0, "dead": 1}
    assert rows.loc["fc2.weight"].to_dict() == {"units": 2, "unreachable": 0, "unheard": 1, "dead": 1}
    assert rows.loc["fc3.weight"].to_dict() == {"units": 1, "unreachable": 0, "unheard": 0, "dead": 0}


def test_a_kernel_entry_that_sees_only_padding_is_on_no_path():
    one_pixel = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))
    centre = torch.zeros(1, 1, 3, 3).bool()
    centre[0, 0, 1, 1] = True
    assert effective(one_pixel, Mask.dense(one_pixel), (1, 1, 1)) == Mask({"0.weight": centre})
    assert effective(one_pixel, Mask.dense(one_pixel), (1, 2, 2)).kept == 9
    wide = nn.Sequential(nn.Conv2d(1, 1, 5, padding=2))  # on 2x2 pixels the offsets -1, 0, 1 see some: 3x3 of 5x5
    assert effective(wide, Mask.dense(wide), (1, 2, 2))["0.weight"][0, 0].tolist() == [
        [0 < r < 4 and 0 < c < 4 for c in range(5)] for r in range(5)
    ]
    strided = nn.Sequential(nn.Conv2d(1, 1, 3, stride=2, padding=1))  # one place, at the corner: offsets 0 and 1
    assert effective(strided, Mask.dense(strided), (1, 2, 2))["0.weight"][0, 0].int().tolist() == [
        [0, 0, 0], [0, 1, 1], [0, 1, 1],
    ]  # fmt: skip


def test_where_a_unit_is_heard_must_be_where_it_is_reached():
    """Channel 0 arrives in the left pixel only, and only the right one goes on: reached and heard, yet dead."""
    model = nn.Sequential(nn.Conv2d(1, 1, (1, 3), padding=(0, 1)), nn.Flatten(), nn.Linear(2, 1))
    right_to_left = torch.tensor([False, False, True]).view(1, 1, 1, 3)
    mask = Mask({"0.weight": right_to_left, "2.weight": torch.tensor([[False, True]])})
    assert effective(model, mask, (1, 1, 2)).kept == 0
    assert dead_units(model, mask, (1, 1, 2)).values.tolist() == [["0.weight", 1, 0, 0, 1], ["2.weight", 1, 1, 0, 1]]


POOLS = [nn.MaxPool2d((1, 2)), nn.AvgPool2d((1, 2)), nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d(1)]


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: type(pool).__name__)
def test_a_pool_hears_its_whole_window(pool):
    """One pixel between two of padding: the left output sees it with entry 1, the right one with entry 0."""
    model = nn.Sequential(nn.Conv2d(1, 1, (1, 2), padding=(0, 1)), pool)
    assert effective(model, Mask.dense(model), (1, 1, 1)) == Mask.dense(model)


def test_a_constant_is_no_path():
    """METHODS of a dead channel: BatchNorm (mean .5, variance 4, scale 2, shift 1.5) turns 0 into 1, not into 0."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 1, 1)).eval()
    norm = model[1]
    with torch.no_grad():
        for tensor, value in ((norm.running_mean, 0.5), (norm.running_var, 4), (norm.weight, 2), (norm.bias, 1.5)):
            tensor.fill_(value)
        constant = norm(torch.zeros(1, 1, 1, 1)).item()
    assert constant == pytest.approx(1.5 - 2 * 0.5 / 2, abs=1e-5)
    mask = Mask({"0.weight": torch.zeros(1, 1, 1, 1).bool(), "3.weight": torch.ones(1, 1, 1, 1).bool()})
    assert effective(model, mask, (1, 2, 2)).kept == 0
    with torch.no_grad():
        mask.apply(model)
        assert model(torch.zeros(1, 1, 2, 2)).unique().item() != model[3].bias.item()  # it still speaks


def test_a_batchnorm_scale_that_the_mask_removes_cuts_its_channel():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    scale = torch.tensor([True, False])
    mask = Mask(dict(Mask.dense(model)) | {"1.weight": scale, "0.bias": scale})
    paths = effective(model, mask, (1, 2, 2))
    assert paths["0.weight"].flatten().tolist() == paths["2.weight"].flatten().tolist() == [True, False]
    assert torch.equal(paths["1.weight"], scale) and torch.equal(paths["0.bias"], scale)


# -- against the graph -----------------------------------------------------------------------------------------------
@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 5), min_size=4, max_size=5), st.floats(0, 1), st.integers(0, 2**32),
)  # fmt: skip
def test_any_mlp(sizes, density, seed):
    model = mlp(*sizes)
    mask = random_mask(model, density, seed)
    graph = Graph(mask, sizes[0])
    x = graph.input
    for name in mask:
        x = graph.linear(x, name)
    paths = effective(model, mask)
    assert paths == graph.effective(x)
    assert paths & mask == paths and effective(model, paths) == paths


class Net(nn.Module):
    """All of them small; `graph` says the same as `forward`, in the words of the oracle."""

    shape = (2, 5, 5)

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 2, bias=False)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.b(F.relu(self.a(x)))).flatten(1))

    def graph(self, g, x):
        return g.linear(g.conv(g.conv(x, "a.weight"), "b.weight").ravel(), "head.weight")


class Padded(Net):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Conv2d(3, 3, 3, stride=2, padding=1)

    def graph(self, g, x):
        return g.linear(g.conv(g.conv(x, "a.weight", 2, 1), "b.weight", 2, 1).ravel(), "head.weight")


class Residual(Padded):
    shape = (3, 3, 3)

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
        self.norm, self.short, self.head = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Linear(27, 1)

    def forward(self, x):
        out = self.norm(self.b(F.relu(self.a(x), inplace=True)))
        out += self.short(x)
        return self.head((out + 0.5 * out).flatten(1))

    def graph(self, g, x):
        inside = g.conv(g.conv(x, "a.weight", padding=1), "b.weight", padding=1)
        return g.linear(g.add(inside, g.conv(x, "short.weight")).ravel(), "head.weight")


class Identity(Residual):
    """The shortcut has no weight: a mask without convolutions still lets the signal through."""

    def forward(self, x):
        return self.head(torch.add(self.b(self.a(x)), x).reshape(len(x), -1))

    def graph(self, g, x):
        inside = g.conv(g.conv(x, "a.weight", padding=1), "b.weight", padding=1)
        return g.linear(g.add(inside, x).ravel(), "head.weight")


class Concatenated(Net):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 2, 2), nn.Conv2d(2, 3, 2, bias=False), nn.Linear(20, 2)

    def forward(self, x):
        first, second = self.a(x), F.leaky_relu(self.b(x))
        return self.head(F.max_pool2d(torch.cat([second, first], dim=1), 2).view(1, -1))

    def graph(self, g, x):
        whole = np.concatenate([g.conv(x, "b.weight"), g.conv(x, "a.weight")])
        return g.linear(g.pool(whole, 2).ravel(), "head.weight")


class Depthwise(Net):
    shape = (2, 4, 4)

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=4)
        self.c, self.head = nn.Conv2d(4, 6, 1, groups=2), nn.Linear(6, 2)

    def forward(self, x):
        x = self.c(F.relu6(self.b(self.a(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def graph(self, g, x):
        x = g.conv(g.conv(g.conv(x, "a.weight"), "b.weight", groups=4), "c.weight", groups=2)
        return g.linear(g.pool(x, 2).ravel(), "head.weight")


class Twice(Net):
    """One convolution runs twice, and its weight is effective if one of the two is on a path."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 2), nn.Identity()
        self.head = nn.Linear(18, 2)

    def forward(self, x):
        return self.head(self.a(self.a(x)).flatten(1))

    def graph(self, g, x):
        return g.linear(g.conv(g.conv(x, "a.weight"), "a.weight").ravel(), "head.weight")


@pytest.mark.parametrize("net", [Net, Padded, Residual, Identity, Concatenated, Depthwise, Twice])
@pytest.mark.parametrize("density", [0.1, 0.2, 0.35, 0.6, 1.0])
def test_any_net(net, density):
    model = net()
    for seed in range(6):
        mask = random_mask(model, density, seed)
        graph = Graph(mask, *model.shape)
        expected = graph.effective(model.graph(graph, graph.input))
        paths = effective(model, mask, model.shape)
        assert paths == expected, (mask, paths, expected)
        assert paths & mask == paths and effective(model, paths, model.shape) == paths


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_a_mask_of_whole_paths_is_all_effective(seed, walks):
    model, random = mlp(4, 6, 5, 3), np.random.default_rng(seed)
    tensors = {n: torch.zeros_like(t) for n, t in Mask.dense(model).items()}
    for _ in range(walks):
        units = [random.integers(size) for size in (4, 6, 5, 3)]
        for name, i, o in zip(tensors, units, units[1:], strict=False):
            tensors[name][o, i] = True
    assert effective(model, Mask(tensors)) == Mask(tensors)


def test_the_flow_of_synflow_sees_the_same_paths():
    """With every weight 1 the SynFlow score counts a weight's paths: where it is 0 there is none."""
    data = SimpleNamespace(input_shape=(3, 8, 8), classes=range(10), name="blank")
    model = pai.build("resnet20", data)
    with torch.no_grad():
        for weight in pai.prunable(model).values():
            weight.fill_(1)
    mask = random_mask(model, 0.02, 0)
    scores = pai.score(model, "synflow", (torch.zeros(1, 3, 8, 8), torch.zeros(1).long()), mask=mask)
    paths = effective(model, mask)
    assert paths == Mask({name: scores[name] > 0 for name in mask}) and 0 < paths.kept < mask.kept


def test_no_depth_overflows_or_underflows():
    deep = mlp(*[8] * 400)  # 8^399 paths
    assert effective(deep, Mask.dense(deep)) == Mask.dense(deep)
    one_way = Mask({name: torch.eye(8).bool() for name in Mask.dense(deep)})
    assert effective(deep, one_way) == one_way
    sparse = random_mask(deep, 0.4, 0)
    layers = [t.numpy() for t in sparse.values()]
    reached = list(accumulate(layers, lambda x, w: (w @ x) > 0, initial=np.ones(8, bool)))
    heard = list(accumulate(layers[::-1], lambda x, w: (x @ w) > 0, initial=np.ones(8, bool)))[::-1]
    expected = {n: t & np.outer(heard[i + 1], reached[i]) for i, (n, t) in enumerate(zip(sparse, layers, strict=True))}
    assert effective(deep, sparse) == Mask({name: torch.from_numpy(t) for name, t in expected.items()})
    assert 0 < effective(deep, sparse).kept < sparse.kept


def test_ends():
    model = mlp(3, 4, 2)
    assert effective(model, ~Mask.dense(model)).kept == 0
    assert dead_units(model, ~Mask.dense(model)).dead.tolist() == [4, 2]
    assert effective(model, Mask.dense(model)) == Mask.dense(model)
    assert dead_units(model, Mask.dense(model)).dead.tolist() == [0, 0]
    assert effective(model, Mask(dict(Mask.dense(model)), budget=7)).budget == 8


def test_what_the_mask_leaves_out_is_dense():
    model = mlp(2, 2, 2)
    part = Mask({"fc1.weight": torch.tensor([[True, False], [False, False]])})
    assert effective(model, part) == part
    rows = dead_units(model, part).set_index("layer")
    assert rows.unreachable.to_dict() == {"fc1.weight": 1, "fc2.weight": 0}


# -- what nets do ------------------------------------------------------------------------------------------------------
class Wired(nn.Module):
    """Two linear layers 3 -> 3 -> 3 with something in between."""

    def __init__(self, between):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.scale, self.register = nn.Parameter(torch.zeros(3)), between
        self.register_buffer("gate", torch.tensor([1.0, 0.0, -2.0]))
        self.input_shape = (3,)

    def forward(self, x):
        return self.two(self.register(self, self.one(x)))


def in_place(self, x):
    x.add_(1).relu_()
    x *= -0.1
    return x


def statement(self, x):
    out = torch.zeros_like(x)
    out.add_(x)
    return out


def without_gradients(self, x):
    with torch.no_grad():
        return x * 2


THROUGH = {
    "shift": lambda self, x: 1 - (x + self.gate) - 3,
    "small scale": lambda self, x: -1e-9 * x / 1e9,
    "a scale that starts at 0": lambda self, x: x * self.scale,
    "a shape that broadcasts": lambda self, x: (x + torch.ones(4, 1, 3)).mean((0, 1)).unsqueeze(0),
    "activations": lambda self, x: F.gelu(x).sigmoid().clamp(0, 1).pow(2).softmax(-1).log_softmax(1),
    "normalisation": lambda self, x: F.normalize(F.layer_norm(x, (3,))),
    "moves": lambda self, x: torch.cat(x.view(1, 3, 1).transpose(1, 2).chunk(3, 2)[::-1], -1).flip(-1).squeeze(1),
    "indices": lambda self, x: x[:, None, :][:, 0],
    "dropout": lambda self, x: F.dropout(x, 0.999, training=self.training),
    "in place": in_place,
    "an accumulator": statement,
    "frozen part": without_gradients,
    "type": lambda self, x: x.to(x.dtype).float(),
    "eval mode": lambda self, x: x.detach() if self.training else x,
}


@pytest.mark.parametrize("between", THROUGH.values(), ids=THROUGH)
def test_what_passes_each_unit_to_itself(between):
    mask = {"one.weight": torch.ones(3, 3).bool(), "two.weight": torch.ones(3, 3).bool()}
    mask["one.weight"][1], mask["two.weight"][:, 2] = False, False
    found = effective(Wired(between), Mask(mask))
    assert found["one.weight"].int().tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert found["two.weight"].int().tolist() == [[1, 0, 0]] * 3


ZEROS = {
    "a fixed gate": lambda self, x: x * self.gate,
    "a factor 0": lambda self, x: torch.cat([x[:, :1], x[:, 1:2].mul(0), x[:, 2:]], 1),
    "no copy": lambda self, x: torch.stack([x[:, 0], torch.zeros_like(x[:, 1]), x[:, 2]], 1),
}


@pytest.mark.parametrize("between", ZEROS.values(), ids=ZEROS)
def test_a_constant_zero_stops_a_path(between):
    found = effective(Wired(between), Mask.dense(Wired(between)))
    assert found["one.weight"].all(1).tolist() == found["two.weight"].all(0).tolist() == [True, False, True]
    assert found.kept == 12


STOPS = {
    "matmul": lambda self, x: x @ x.T @ x,
    "mul of two signals": lambda self, x: x * x.sigmoid(),
    "einsum": lambda self, x: torch.einsum("bi,ij->bj", x, torch.eye(3)),
    "data": lambda self, x: x.data,
    "detach": lambda self, x: x.detach(),
    "__setitem__": lambda self, x: x.__setitem__(0, 0) or x,
    "transpose_": lambda self, x: x.transpose_(0, 1),
    "max_pool1d with dilation": lambda self, x: F.max_pool1d(x, 2, 1, 0, 2),
    "max_pool1d_with_indices": lambda self, x: F.max_pool1d(x, 2, return_indices=True)[0],
}


@pytest.mark.parametrize("named, between", STOPS.items(), ids=STOPS)
def test_what_is_not_known_is_named(named, between):
    with pytest.raises(ValueError, match=f"no paths are defined through [a-zA-Z_.]*{named}"):
        effective(Wired(between), Mask.dense(Wired(between)))


def test_attention_is_not_known():
    model = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)
    with pytest.raises(ValueError, match="no paths are defined through"):
        effective(model, Mask.dense(model), (5, 4))


def test_a_tied_weight_counts_in_each_of_its_uses():
    """An autoencoder with one weight: entry (0, 1) is on a path only in the decoder."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.code = nn.Linear(2, 2, bias=False)

        def forward(self, x):
            return F.linear(self.code(x)[:, :1] * torch.ones(2), self.code.weight.t())

    model = Tied()
    mask = Mask({"code.weight": torch.tensor([[True, False], [False, True]])})
    assert effective(model, mask, (2,)) == mask  # (1, 1): not in the encoder, whose unit 1 is dropped

    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), second)
    assert effective(model, Mask.dense(model), (2,)) == Mask.dense(model)


def test_in_place_changes_stay_in_place():
    """relu(x) is not x: the branch that is added to it in place must not leak into x, or into what a layer gave."""

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(2, 2) for _ in range(3))

        def forward(self, x):
            x *= 2  # nor into our own input
            first = self.a(x)
            active = F.relu(first)
            active += self.b(x)
            first_again = self.c(first)
            first += active
            return first_again

    model = Branch()
    mask = full(model, a=[(1, 0), (1, 1)])
    found = effective(model, mask, (2,))
    assert found["c.weight"].tolist() == [[True, False]] * 2 and not found["b.weight"].any()
    rows = dead_units(model, mask, (2,)).set_index("layer")
    assert rows.unreachable.to_dict() == {"a.weight": 1, "b.weight": 0, "c.weight": 0}
    assert rows.unheard.to_dict() == {"a.weight": 0, "b.weight": 2, "c.weight": 0}


def test_units_of_a_layer_over_tokens():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    found = dead_units(model, full(model, **{"0": [(1, 0), (1, 1)]}), (7, 2))
    assert found.values.tolist() == [["0.weight", 3, 1, 0, 1], ["2.weight", 2, 0, 0, 0]]


def test_a_layer_that_never_runs_is_on_no_path():
    model = Wired(lambda self, x: x)
    model.spare = nn.Linear(3, 2)
    found = effective(model, Mask.dense(model))
    assert found.collapsed() == ["spare.weight"] and found.kept == 18
    assert dead_units(model, Mask.dense(model)).values.tolist()[-1] == ["spare.weight", 2, 2, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_and_memory_formats(dtype):
    model = Depthwise()
    mask = random_mask(model, 0.3, 1)
    expected = effective(model, mask, model.shape)
    assert effective(Depthwise().to(dtype), mask, model.shape) == expected
    assert effective(model.to(memory_format=torch.channels_last), mask, model.shape) == expected


def test_one_and_three_dimensions():
    for dims, conv, pool in ((1, nn.Conv1d, nn.MaxPool1d), (3, nn.Conv3d, nn.MaxPool3d)):
        model = nn.Sequential(
            conv(1, 2, 3, padding=1, padding_mode="circular"), pool(2), nn.Flatten(), nn.LazyLinear(1)
        )
        model(torch.zeros(1, 1, *[4] * dims))
        mask = Mask(dict(Mask.dense(model)) | {"3.weight": torch.arange(2 * 2**dims).view(1, -1) < 2**dims})
        found = effective(model, mask, (1, *[4] * dims))
        assert found["0.weight"].flatten(1).all(1).tolist() == [True, False]
        assert not found["0.weight"][1].any() and found["3.weight"].equal(mask["3.weight"])


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11_bn", "shufflenet_v2_x0_5"])
def test_torchvision(name):
    """Dense nets have paths through everything, sparse ones not. Values do not matter: none are drawn."""
    from torchvision import models

    with torch.device("meta"):
        model = getattr(models, name)(num_classes=2)
        model = model.features if name == "vgg11_bn" else model
    model.to_empty(device="cpu")
    assert effective(model, Mask.dense(model), (3, 64, 64)) == Mask.dense(model)
    mask = random_mask(model, 0.1, 0)
    found = effective(model, mask, (3, 64, 64))
    assert found & mask == found and 0 < found.kept < mask.kept
    assert effective(model, found, (3, 64, 64)) == found


# -- manners -----------------------------------------------------------------------------------------------------------
def test_no_trace():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(8, 2)).train()
    model[1].eval()
    shared = model[1].running_mean
    before, random = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    modes, needs = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    effective(model, Mask.dense(model), (1, 4, 4))
    with pytest.raises(ValueError, match="cannot take an input of shape"):
        effective(model, Mask.dense(model), (1, 5, 5))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()) and model[1].running_mean is shared
    assert torch.equal(torch.get_rng_state(), random) and modes == [m.training for m in model.modules()]
    assert needs == [p.requires_grad for p in model.parameters()] and all(p.grad is None for p in model.parameters())
    with torch.no_grad():  # also there
        assert effective(model, Mask.dense(model), (1, 4, 4)).kept == Mask.dense(model).kept


def test_errors():
    model = mlp(2, 2)
    with pytest.raises(TypeError, match="Mask.dense"):
        effective(model, dict(Mask.dense(model)))
    with pytest.raises(ValueError, match="another model"):
        effective(model, Mask({"foo.weight": torch.ones(2, 2).bool()}))
    with pytest.raises(ValueError, match="input_shape"):
        effective(nn.Linear(2, 2), Mask.dense(nn.Linear(2, 2)))
    pair = Wired(lambda self, x: x)
    pair.two = nn.LSTM(3, 3)
    with pytest.raises(ValueError, match="lstm"):
        effective(pair, Mask.dense(pair))
    deaf = Wired(lambda self, x: x)
    deaf.forward = lambda x: torch.zeros(1)
    with pytest.raises(ValueError, match="must be a tensor that depends on its input"):
        effective(deaf, Mask.dense(deaf))
