"""Physical removal: the smaller network that computes what the masked one computes.

small = remove(model, whole_channels(model, pai.prune(model, "magnitude", 0.5, structure="filter")))
"""

from copy import deepcopy

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pai_lab.coupled import channels
from pai_lab.coupled.branches import branches
from pai_lab.coupled.tracing import CONV, NORM
from pai_lab.coupled.units import example, twin
from pai_lab.functional import fit, prunable, seeded
from pai_lab.mask import Mask

CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of the largest output; other types are coarser: 0.1


class Nothing(nn.Module):
    """Stands where a layer of a removed branch stood, and emits zeros of its input's shape: a branch beside an
    identity ends in the shape in which it began."""

    def forward(self, x):
        return torch.zeros_like(x)


def remove(model, mask, input_shape=None):
    """A smaller copy of `model`, without the channels and residual branches that `mask` removes whole.

    A channel goes if all its entries are False: rows, bias, BatchNorm, the consumers' columns; a mask of structure
    "channel" has them. A branch beside an identity shortcut goes if all its parameters are False (structure
    "block"): its layers become `Nothing`. Other removed weights are 0 in the copy. In eval mode the copy computes
    what the masked model computes; this is tried on a random input. The model is not changed. `input_shape` of one
    sample defaults to `model.input_shape`. Cost: a few forward passes of one sample.

    ValueError for a mask of another model; filters removed without the rest of their channel (`whole_channels` adds
    it); a layer that would keep no channel; a layer that normalizes over channels (GroupNorm, LayerNorm), where
    those that are left would change; a model that cannot be traced or that fixes its own sizes.
    """
    flags, x = _by_name(model, mask), _random(model, input_shape)
    small = mask.apply(deepcopy(model))
    empty = {name for name, kept in flags.items() if not kept.any()}
    gone = set().union(*(names for names in branches(model, x).values() if empty.issuperset(names)))
    _slice(small, _cuts(model, channels(model, x), flags, gone))
    _replace(small, gone)
    _compare(mask.apply(twin(model)), twin(small), x)
    return small


def whole_channels(model, mask, x=None):
    """`mask`, with the rest of each channel whose filters it removes, in all layers that write to it.

    A removed filter is no removed channel: it still emits its bias, or BatchNorm's constant beta - gamma mu / sigma.
    This removes bias, BatchNorm's entries and the consumers' columns as well, which changes what the network
    computes, and goes on with the filters that lose all their weights by it. `x` and errors as in `channels`.
    """
    flags, found = _by_name(model, mask), channels(model, x)
    while True:
        rows, whole = found.removed(flags, producers=True), found.removed(flags)
        if all(torch.equal(rows[group] & whole[group], rows[group]) for group in rows):
            return Mask({name: flags[name] for name, _ in model.named_parameters() if name in flags}, mask.budget)
        for name, kept in found.expand({group: ~dead for group, dead in rows.items()}).items():
            flags[name] = flags[name] & kept.to(flags[name].device) if name in flags else kept


def _by_name(model, mask):
    """The mask's tensors by each parameter's first name. ValueError if the mask is for another model."""
    named = dict(model.named_parameters(remove_duplicate=False))
    fit(mask, named, type(model).__name__)
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {first[id(named[name])]: flags for name, flags in mask.items()}


def _random(model, input_shape):
    """A random sample for `model`."""
    weight = next(iter(prunable(model).values()))
    x = example(model, None if input_shape is None else weight.new_zeros(1, *input_shape))
    with seeded(0):
        return torch.randn(x.shape).to(x)


def _cuts(model, found, flags, gone):
    """{(tensor name, dimension): places to remove}; `gone` names the parameters of removed branches."""
    rows, whole, cuts = found.removed(flags, producers=True), found.removed(flags), {}
    groups = [g for g in found.units if not gone.issuperset(e.name for e in found.parameters(g, producers=True))]
    for group in groups:
        for name, dim, unit, index in found.entries[group]:
            places = index[whole[group][unit]]
            if len(places) and name not in gone:
                cuts[name, dim] = torch.cat([cuts.get((name, dim), places[:0]), places])
    for name, dim in cuts:
        _check_layer(model, name, len(cuts[name, dim]) == _tensor(model, name).shape[dim])
    for group in groups:
        if half := int((rows[group] & ~whole[group]).sum()):
            raise ValueError(
                f"the mask removes the filters of {half} of the {found.units[group]} channels of {group!r}, but not "
                "their bias, BatchNorm and consumers: they still emit a constant, and no smaller network computes "
                "the same. Remove these too: remove(model, whole_channels(model, mask))"
            )
    return cuts


def _check_layer(model, name, empty):
    layer = name.rpartition(".")[0]
    kind = type(model.get_submodule(layer))
    if empty:
        raise ValueError(f"nothing would pass {layer!r}: the mask removes all of its channels")
    if issubclass(kind, (nn.GroupNorm, nn.LayerNorm)):
        raise ValueError(
            f"channels that the mask removes pass {layer!r}, a {kind.__name__}: it normalizes over channels, so a "
            "smaller network computes something else"
        )


def _tensor(net, name):
    layer, _, key = name.rpartition(".")
    return getattr(net.get_submodule(layer), key)


def _slice(net, cuts):
    """Remove places from tensors, in place, and set the layers' sizes to what is left."""
    for (name, dim), places in cuts.items():
        layer, _, key = name.rpartition(".")
        tensor = _tensor(net, name)
        keep = torch.ones(tensor.shape[dim], dtype=torch.bool).index_fill(0, places, False).nonzero().flatten()
        left = tensor.detach().index_select(dim, keep.to(tensor.device))
        parameter = isinstance(tensor, nn.Parameter)
        left = nn.Parameter(left, requires_grad=tensor.requires_grad) if parameter else left
        setattr(net.get_submodule(layer), key, left)
    for name in dict.fromkeys(name.rpartition(".")[0] for name, _ in cuts):
        _resize(net.get_submodule(name))


def _resize(layer):
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, CONV):
        a, b = layer.weight.shape[:2]
        layer.groups = a if layer.groups == layer.in_channels == layer.out_channels else layer.groups
        layer.out_channels, layer.in_channels = (b, a) if layer.transposed else (a, b * layer.groups)
    elif isinstance(layer, NORM):
        layer.num_features = len(layer.running_mean if layer.weight is None else layer.weight)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(layer.weight)


def _replace(net, gone):
    """`Nothing` for every layer that holds parameters in `gone`, in place. What has layers inside stays, with zeros:
    it may do more than they do, and attention reads the weights of its last layer."""
    layers = {net.get_submodule(name.rpartition(".")[0]) for name in gone}
    for parent in [*net.modules()]:
        for key, layer in parent._modules.items() if not isinstance(parent, nn.MultiheadAttention) else ():
            if layer in layers and not list(layer.children()):
                parent._modules[key] = Nothing()


@torch.no_grad()
def _compare(masked, small, x):
    """ValueError unless both nets compute the same."""
    try:
        with seeded(0, x.device):
            outputs = tree_leaves(small(x))
    except Exception as error:
        raise ValueError(f"the smaller {type(small).__name__} cannot run, its forward fixes sizes: {error}") from error
    with seeded(0, x.device):
        wanted = tree_leaves(masked(x))
    for output, expected in zip(outputs, wanted, strict=True):
        error = (output - expected).abs().max() if output.shape == expected.shape else torch.inf
        if not error <= CLOSE.get(x.dtype, 0.1) * expected.abs().max():
            raise ValueError(
                f"the smaller {type(small).__name__} computes something else (off by up to {error:.2g}): some function "
                "in it mixes channels in a way that Torch-Pruning does not see"
            )
