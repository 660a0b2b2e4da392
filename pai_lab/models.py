"""The networks, as plain modules: by name, fitted to a data set, drawn from a seed; and what each one costs.

model = pai.build("resnet20", pai.load("cifar10"), seed=0); pai.describe(model)
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import groupby, pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import nn

from pai_lab.catalog import nearest
from pai_lab.functional import PRUNABLE, forward, in_mode, masked, prunable, seeded
from pai_lab.graph import below


def build(name_or_callable, data, *, seed=0, init="default"):
    """A new model for `data`: a name in `MODELS`, or a callable `(data) -> nn.Module`.

    `seed` draws the weights and leaves the global generators as they were. `init` is "default" (torch's),
    "kaiming_normal", "xavier_normal", or a callable that fills one weight in place; all but the default set
    biases to 0. Sets `model.input_shape` and `model.init`. ValueError for an unknown name, or data that the model
    cannot take.
    """
    if not callable(init) and init not in INITS:
        raise nearest("init", init, INITS)
    if isinstance(name_or_callable, nn.Module):
        raise TypeError("build makes a new model: give a name or a function of the data, not a model")
    make = name_or_callable if callable(name_or_callable) else _fitting(name_or_callable, data)
    with seeded(seed), torch.device("cpu"):
        model = make(data)
        if not isinstance(model, nn.Module):
            raise TypeError(f"{make!r} must return a torch.nn.Module, got {type(model).__name__}")
        if init != "default":
            fill(model, init if callable(init) else INITS[init])
    model.input_shape, model.init = tuple(data.input_shape), init
    if make is not name_or_callable:
        model.name = name_or_callable
    return model


@torch.no_grad()
def fill(model, draw):
    """Draw every prunable weight anew, in place; biases become 0."""
    for module in model.modules():
        if isinstance(module, PRUNABLE):
            draw(module.weight)
            if module.bias is not None:
                module.bias.zero_()


def _fitting(name, data):
    """The maker of the named model, once it is sure that data of this shape fits."""
    if not isinstance(name, str) or name not in MODELS:
        raise nearest("model", name, MODELS)
    shape = tuple(data.input_shape)
    if not _fits(MODELS[name], shape):
        fitting = ", ".join(other for other, model in MODELS.items() if _fits(model, shape))
        side = MODELS[name].least
        raise ValueError(
            f"{name} needs images (channels, height, width) of at least {side}x{side}; the input shape of "
            f"{data.name!r} is {shape}. These fit: {fitting}"
        )
    return MODELS[name].make


def _fits(model, shape):
    return model.least == 0 or (len(shape) == 3 and min(shape[1:]) >= model.least)


# -- architectures: each a function of the data that returns a module ------------------------------------
def perceptron(data, hidden):
    """Fully connected with ReLU; any input is flattened."""
    layers, sizes = OrderedDict(flatten=nn.Flatten()), [prod(data.input_shape), *hidden]
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes), 1):
        layers[f"fc{i}"], layers[f"relu{i}"] = nn.Linear(fan_in, fan_out), nn.ReLU()
    layers[f"fc{len(sizes)}"] = nn.Linear(sizes[-1], len(data.classes))
    return nn.Sequential(layers)


def lenet5(data):
    """LeNet-5 in the form that the pruning papers use (20 and 50 channels, 500 hidden units)."""
    channels, height, width = data.input_shape
    flat = 50 * prod(((side - 4) // 2 - 4) // 2 for side in (height, width))
    layers = OrderedDict(
        conv1=nn.Conv2d(channels, 20, 5), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(20, 50, 5), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2), flatten=nn.Flatten(),
        fc1=nn.Linear(flat, 500), relu3=nn.ReLU(), fc2=nn.Linear(500, len(data.classes)),
    )  # fmt: skip
    return nn.Sequential(layers)


def vgg(data, plan, norm):
    """3x3 convolutions after `plan` (channels; "M" halves the image), global average pooling, one linear."""
    layers, channels, i = OrderedDict(), data.input_shape[0], 0
    for step in plan.split():
        if step == "M":
            layers[f"pool{i}"] = nn.MaxPool2d(2)
            continue
        i, before, channels = i + 1, channels, int(step)
        layers[f"conv{i}"] = nn.Conv2d(before, channels, 3, padding=1, bias=not norm)
        if norm:
            layers[f"bn{i}"] = nn.BatchNorm2d(channels)
        layers[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(layers | _head(channels, data))


def _head(channels, data):
    fc = nn.Linear(channels, len(data.classes))
    return OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=fc)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: the identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu1, self.relu2, self.shortcut = nn.ReLU(), nn.ReLU(), nn.Identity()
        if stride > 1 or channels != width:
            conv = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(width)))

    def forward(self, x):
        inside = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(inside + self.shortcut(x))


def resnet(data, widths, blocks):
    """The CIFAR form: a 3x3 stem, then one stage of `blocks` blocks per width, each at half the size."""
    stem = nn.Conv2d(data.input_shape[0], widths[0], 3, padding=1, bias=False)
    layers = OrderedDict(conv1=stem, bn1=nn.BatchNorm2d(widths[0]), relu1=nn.ReLU())
    channels = widths[0]
    for i, width in enumerate(widths, 1):
        stage = [Block(channels, width, stride=2 if i > 1 else 1)]
        stage += [Block(width, width, stride=1) for _ in range(blocks - 1)]
        layers[f"stage{i}"], channels = nn.Sequential(*stage), width
    return nn.Sequential(layers | _head(channels, data))


class Model(NamedTuple):
    make: Callable
    least: int = 0  # smallest side of an image; 0: any input


VGG6 = "16 16 M 32 32 M 64 64"
VGG11 = "64 M 128 M 256 256 M 512 512 M 512 512"
VGG16 = "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512"
VGG19 = "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512"

MODELS = {
    "mlp": Model(partial(perceptron, hidden=(128, 128, 128, 128))),
    "lenet_300_100": Model(partial(perceptron, hidden=(300, 100))),
    "lenet5": Model(lenet5, least=16),
    "vgg6": Model(partial(vgg, plan=VGG6, norm=False), least=4),
    "vgg6_bn": Model(partial(vgg, plan=VGG6, norm=True), least=4),
    "vgg11": Model(partial(vgg, plan=VGG11, norm=False), least=16),
    "vgg11_bn": Model(partial(vgg, plan=VGG11, norm=True), least=16),
    "vgg16": Model(partial(vgg, plan=VGG16, norm=False), least=16),
    "vgg16_bn": Model(partial(vgg, plan=VGG16, norm=True), least=16),
    "vgg19_bn": Model(partial(vgg, plan=VGG19, norm=True), least=16),
    "resnet20": Model(partial(resnet, widths=(16, 32, 64), blocks=3), least=8),
    "resnet32": Model(partial(resnet, widths=(16, 32, 64), blocks=5), least=8),
    "resnet56": Model(partial(resnet, widths=(16, 32, 64), blocks=9), least=8),
    "resnet18": Model(partial(resnet, widths=(64, 128, 256, 512), blocks=2), least=8),
}
INITS = {
    "default": None,
    "kaiming_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "xavier_normal": nn.init.xavier_normal_,
}


# -- what a model costs ----------------------------------------------------------------------------------
def macs(model, input_shape=None):
    """Dense multiply-adds of one example: weight name -> int, in the names and order of `prunable(model)`.

    Convolutions and linear layers count, groups, stride and padding respected; biases and BatchNorm do not.
    A layer that never runs has 0; one that runs twice counts twice. `input_shape` (without the batch)
    is `model.input_shape` unless given. Nothing is left on the model. ValueError if it cannot take the input.
    """
    return _trace(model, input_shape)[0]


def _trace(model, input_shape):
    """(macs, depth) of one forward pass on a zero example, in eval mode, with copied weights and buffers."""
    shape = _shape(model, input_shape)
    names = {id(weight): name for name, weight in prunable(model).items()}
    counts, nodes = dict.fromkeys(names.values(), 0), set()

    def watch(module, name):
        def count(module, inputs, output):
            counts[name] += output.numel() * prod(module.weight.shape[1:])
            nodes.add(output.grad_fn)

        return module.register_forward_hook(count)

    weights = masked(model)
    first = next(t for t in weights.values() if t.is_floating_point())
    layers = [module for module in model.modules() if isinstance(module, PRUNABLE)]
    handles = [watch(module, names[id(module.weight)]) for module in layers]
    try:
        with in_mode(model, False), seeded(0), torch.enable_grad():
            forward(model, weights, torch.zeros(1, *shape, dtype=first.dtype, device=first.device))
    except RuntimeError as error:
        raise ValueError(f"{type(model).__name__} cannot take an input of shape {shape}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return counts, _depth(nodes - {None})


def _shape(model, input_shape):
    shape = getattr(model, "input_shape", None) if input_shape is None else input_shape
    if shape is None:
        raise ValueError(f"{type(model).__name__} has no input_shape: give one, such as (3, 32, 32)")
    return tuple(shape)


def _depth(layers):
    """The most layers on any one path: `layers` are their nodes in the autograd graph."""
    graph = below(layers)
    depth = {}
    for node in graph:
        depth[node] = (node in layers) + max((depth[parent] for parent in graph[node]), default=0)
    return max(depth.values(), default=0)


@dataclass(frozen=True)
class Description:
    """What a model is and costs: all `parameters`, the `prunable` weights among them, `macs` per example.
    `depth` is the most weight layers on one path (1x1 shortcuts run beside it); `widths` the output sizes of
    the layers in order, repeats and the classifier left out: widths[0] is *the* width."""

    name: str
    input_shape: tuple
    parameters: int
    prunable: int
    macs: int
    depth: int
    widths: tuple
    _rows: list

    def layers(self):
        """One row per layer: layer, shape, weights, macs (a DataFrame)."""
        import pandas as pd

        return pd.DataFrame(self._rows, columns=["layer", "shape", "weights", "macs"])

    def _facts(self):
        return {
            "input": "x".join(map(str, self.input_shape)),
            "parameters": f"{self.parameters:,}",
            "prunable weights": f"{self.prunable:,} in {len(self._rows)} layers",
            "MACs": f"{self.macs:,}",
            "depth": str(self.depth),
            "width": " - ".join(map(str, self.widths)),
        }

    def __repr__(self):
        return f"{self.name}: " + ", ".join(f"{fact} {value}" for fact, value in self._facts().items())

    def _repr_html_(self):
        rows = (f"<tr><th>{fact}</th><td>{value}</td></tr>" for fact, value in self._facts().items())
        return f"<table><caption>{escape(self.name)}</caption>{''.join(rows)}</table>"


def describe(model, input_shape=None):
    """Parameters, prunable weights, MACs, depth and widths of a model, as a `Description`. `input_shape` and
    errors as for `macs`; nothing is left on the model."""
    counts, depth = _trace(model, input_shape)
    weights = prunable(model)
    rows = [(name, tuple(w.shape), w.numel(), counts[name]) for name, w in weights.items()]
    widths = tuple(width for width, _ in groupby(w.shape[0] for w in weights.values()))
    return Description(
        str(getattr(model, "name", type(model).__name__)), _shape(model, input_shape),
        sum(p.numel() for p in model.parameters()), sum(w.numel() for w in weights.values()),
        sum(counts.values()), depth, widths[:-1] or widths, rows,
    )  # fmt: skip
