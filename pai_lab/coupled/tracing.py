"""The channels that go together, as Torch-Pruning's dependency graph finds them.

found = channels(model); found.units
"""

from collections import Counter
from typing import NamedTuple

import torch
from torch import nn

from pai_lab.coupled.units import Coupled, Entry, example, run, twin
from pai_lab.functional import prunable, seeded

CONV, NORM = nn.modules.conv._ConvNd, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
ENTRANCES = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def channels(model, x=None, exclude=()):
    """The channels that a model can lose: `Coupled`, one unit for all that must go with one output channel.

    Through Torch-Pruning's dependency graph: bias, BatchNorm and the consumers' columns (H*W of them after a
    flatten), depthwise filters, all layers that write to one residual stream, offsets in a concatenation. In a
    grouped convolution a unit holds the same channel of every group. In no unit: the model's inputs and outputs,
    rows of the weights in `exclude`, layers with a tied weight, and what passes a layer of another kind
    (attention, recurrent nets, a free matrix). `x` is a batch of inputs; None takes zeros of `model.input_shape`.

    ValueError if x does not fit, if the model cannot be traced, or if no channel is left. The model is not
    touched. Cost: two forward passes of one sample. Fang et al., DepGraph: towards any structural pruning, 2023.
    """
    candidates = prunable(model, exclude)
    net, x = twin(model), example(model, x)
    names = {part: name for name, part in [*net.named_parameters(), *net.named_modules()]}
    with seeded(0, x.device), torch.enable_grad():
        run(net, x)
        try:
            graph, entrance = _traced(net, x)
            layers = [net.get_submodule(name.rpartition(".")[0]) for name in prunable(net)]
            layers = [layer for layer in layers if layer in graph.module2node and _sides(layer)]
            places = _places([*layers, *(part for part in graph.module2node if part in names)])
            links = _links(graph, entrance, layers, places)
        except Exception as error:  # whatever it stumbles on
            raise ValueError(f"Torch-Pruning cannot follow the channels of {type(model).__name__}: {error}") from error
    stays = [places[layer, "out"] for layer in layers if _weight(names[layer]) not in candidates] + _tied(net, places)
    links += [(numbers, torch.zeros_like(numbers)) for numbers in stays]
    links += [_across_groups(layer, numbers) for (layer, _), numbers in places.items()]
    label = _components(1 + sum(map(len, places.values())), *map(torch.cat, zip(*links, strict=True)))
    entries, units = _grouped(label, layers, places, names)
    if not units:
        raise ValueError(
            f"{type(model).__name__} has no channel to remove: each one reaches the model's input or output, is "
            "excluded, or passes a layer of an unknown kind"
        )
    return Coupled(model, entries, units)


def _traced(net, x):
    """Torch-Pruning's graph of `net`, and the layer that stands for its input: the graph knows layers only, so
    without it channels that are added to the input would look free. Outputs are cloned, so that each is marked."""
    import torch_pruning

    entrance = None
    if x.is_floating_point() and x.ndim in ENTRANCES:
        entrance = ENTRANCES[x.ndim](x.shape[1], device=x.device, dtype=x.dtype)
    graph = torch_pruning.DependencyGraph().build_dependency(
        nn.Sequential(net) if entrance is None else nn.Sequential(entrance, net), x, verbose=False,
        forward_fn=lambda whole, x: whole(x),
        output_transform=lambda out: [one.clone() for one in torch_pruning.utils.flatten_as_list(out)],
    )  # fmt: skip
    return graph, entrance


def _sides(layer):
    """{"out": channels, "in": channels} of a layer of a known kind; only "out" if a channel just passes it."""
    if isinstance(layer, nn.Linear):
        return {"out": layer.out_features, "in": layer.in_features}
    if isinstance(layer, CONV) and not (layer.transposed and layer.groups > 1):
        if layer.groups == layer.out_channels > 1:  # depthwise
            return {"out": layer.groups} if layer.in_channels == layer.groups else {}
        return {"out": layer.out_channels, "in": layer.in_channels}
    if isinstance(layer, nn.GroupNorm):
        return {"out": layer.num_channels}
    if isinstance(layer, NORM):
        return {"out": layer.num_features}
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return {"out": layer.normalized_shape[0]}
    if isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
        return {"out": layer.num_parameters}
    if isinstance(layer, nn.Parameter) and layer.numel() == max(layer.shape, default=0):  # a free scale per channel
        return {"out": layer.numel()}
    return {}


def _tensors(layer, side):
    """{tensor's key: dimension} of the tensors in which a channel of this side has entries of its own."""
    if isinstance(layer, nn.Parameter):
        return {"": layer.shape.index(layer.numel())}
    rows = 1 if getattr(layer, "transposed", False) else 0
    if side == "in":
        return {"weight": 1 - rows}
    dims = {"weight": rows, "bias": 0, "running_mean": 0, "running_var": 0}
    return {key: dim for key, dim in dims.items() if getattr(layer, key, None) is not None}


def _places(layers):
    """{(layer, side): a number for each channel}, all different, the rows of weights first. Number 0 stands for all
    that stays: the input, the output, what is excluded or unknown."""
    sizes = {(layer, "out"): _sides(layer)["out"] for layer in layers if _sides(layer)}
    sizes |= {(layer, side): size for layer in layers for side, size in _sides(layer).items()}
    numbers = torch.arange(1, 1 + sum(sizes.values()))
    return dict(zip(sizes, numbers.split(list(sizes.values())), strict=True))


class Place(NamedTuple):
    """A channel on its way through the graph: `idx` where it is now, `root_idx` in the layer where it began."""

    idx: int
    root_idx: int


def _links(graph, entrance, layers, places):
    """Pairs of numbers that go together, as Torch-Pruning's graph leads from each row of each weight.
    ValueError if it knows only some of the channels that enter a layer."""
    links = []
    known, reached = torch.zeros(2, 1 + sum(map(len, places.values())), dtype=torch.bool)
    for root in layers if entrance is None else [entrance, *layers]:
        own = places[root, "out"] if root is not entrance else torch.zeros(len(entrance.weight), dtype=torch.int64)
        for (node, handler), found in _followed(graph, root, len(own), len(known)).items():
            numbers = places.get((node.module, "out" if graph.is_out_channel_pruning_fn(handler) else "in"))
            if numbers is None and node.type != graph.ops.OPTYPE.OUTPUT and graph.get_out_channels(node) is None:
                continue  # a function of each channel
            index, first = (torch.tensor(one) for one in zip(*found, strict=True))
            if numbers is None:
                links.append((own[first], torch.zeros_like(first)))
                continue
            if root is entrance:  # where channels are not dimension 1 (tokens) it says too much
                index, first = (ends[index < len(numbers)] for ends in (index, first))
            elif index.max() >= len(numbers):
                raise ValueError(f"it finds a channel {index.max()} in {node.name}")
            links.append((own[first], numbers[index]))
            known[numbers[index]] = True
            reached[numbers[index]] |= root is not entrance
    for (layer, _), numbers in places.items():
        if reached[numbers].any() and not known[numbers].all():
            raise ValueError(f"only some of the channels that enter {layer} are known")
    return links


def _followed(graph, root, size, most):
    """{(node, what is removed there): places} that the output channels of one layer reach. Torch-Pruning's own
    walk keeps one origin for each place; halves of a gate that meet again have two. ValueError for a place from
    `most` on: some windowed attentions make it multiply them for ever."""
    seen, start = {}, {Place(i, i) for i in range(size)}
    todo = [(graph.module2node[root], graph.get_pruner_of_module(root).prune_out_channels, start)]
    while todo:
        node, handler, found = todo.pop()
        new = found - seen.setdefault((node, handler), set())
        seen[node, handler] |= new
        for edge in node.dependencies if new else ():
            if edge.is_triggered_by(handler):
                there = list(new)
                for mapping in edge.index_mapping:
                    there = there if mapping is None else mapping(there)
                if there and max(there).idx >= most:
                    raise ValueError(f"it finds more channels at {edge.target.name} than all layers have")
                todo.append((edge.target, edge.handler, set(there)))
    return {key: found for key, found in seen.items() if found}


def _across_groups(layer, numbers):
    """Links between the same channel of every group of a grouped convolution or GroupNorm."""
    depthwise = "in" not in _sides(layer)  # there each channel is a group of its own
    groups = getattr(layer, "num_groups", 1 if depthwise else getattr(layer, "groups", 1))
    return numbers, numbers[torch.arange(len(numbers)) % (len(numbers) // groups)]


def _tied(net, places):
    """The numbers of layers that share a parameter with another layer."""
    holders = Counter(id(p) for module in net.modules() for p in module._parameters.values() if p is not None)
    layers = {layer for layer, _ in places if isinstance(layer, nn.Module)}
    tied = {layer for layer in layers if any(holders[id(p)] > 1 for p in layer._parameters.values())}
    return [numbers for (layer, _), numbers in places.items() if layer in tied]


def _components(size, a, b):
    """For each of `size` numbers the smallest that it is linked to, over any number of links a[i] - b[i]."""
    label = torch.arange(size)
    while True:
        low = torch.minimum(label[a], label[b])
        lower = label.scatter_reduce(0, a, low, "amin").scatter_reduce(0, b, low, "amin")
        if torch.equal(lower, label):
            return label
        label = lower


def _grouped(label, layers, places, names):
    """({group: [Entry]}, {group: units}): a unit is a label that is a row's number, a group the layers that share
    units."""
    owner = torch.cat([torch.zeros(1).long(), *(torch.full_like(places[m, "out"], i) for i, m in enumerate(layers))])
    rows = label[: len(owner)].nonzero().flatten()
    first = _components(len(layers), owner[label[rows]], owner[rows])  # for each layer the first of its group
    unit = torch.where(label < len(owner), label, 0)
    group = torch.where(unit > 0, first[owner[unit]], -1)
    members = {g: label[group == g].unique() for g in group.unique().tolist() if g >= 0}
    title = {g: _weight(names[layers[g]]) for g in members}
    entries = {title[g]: [] for g in members}
    for (layer, side), numbers in places.items():
        for g in group[numbers].unique().tolist():
            index = (group[numbers] == g).nonzero().flatten()
            for key, dim in _tensors(layer, side).items() if g >= 0 else ():
                tensor = getattr(layer, key) if key else layer
                inside = index[
                    index < tensor.shape[dim]
                ]  # in a grouped convolution's columns the first group stands for all
                name = f"{names[layer]}.{key}".strip(".")
                entries[title[g]].append(
                    Entry(name, dim, torch.searchsorted(members[g], label[numbers[inside]]), inside)
                )
    return entries, {title[g]: len(units) for g, units in members.items()}


def _weight(layer):
    return f"{layer}.weight" if layer else "weight"
