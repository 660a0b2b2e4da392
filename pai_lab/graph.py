"""The graph of layers, read off autograd: run one sample, walk back from the output.

output_layers(model, x)     # the weights whose outputs are the model's
"""

from graphlib import TopologicalSorter

import torch

from pai_lab.functional import forward, in_mode, masked, prunable, seeded


def output_layers(model, x=None):
    """Names of the prunable weights whose outputs are the model's: the last ones on each path to the output.

    Found by running one sample and walking back from the output. `x` is a batch of inputs; without it the model's
    `input_shape` serves, and without that (or for inputs that are no floats) the layer that the model defines last
    is taken. ValueError if the output has no gradient. Cost: one forward pass.
    """
    tensors, names = masked(model), list(prunable(model))
    if x is None and getattr(model, "input_shape", None) is not None:
        x = torch.zeros(1, *model.input_shape, dtype=tensors[names[0]].dtype, device=tensors[names[0]].device)
    if x is None or not x.is_floating_point():
        return names[-1:]
    x = x[:1].detach().clone().requires_grad_()
    with seeded(0, x.device), in_mode(model, False), torch.enable_grad():
        try:
            output = forward(model, tensors, x.clone())  # a net may overwrite its input, never a leaf
        except RuntimeError as error:
            shape = tuple(x.shape[1:])
            raise ValueError(f"{type(model).__name__} cannot run on inputs of shape {shape}: {error}") from error
    node = getattr(output, "grad_fn", None)
    if node is None:
        raise ValueError(f"the output of {type(model).__name__} has no gradient: its last layers cannot be found")
    leaves, found, seen, todo = leaves_below(node), set(), set(), [node]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        inputs = [child for child, _ in node.next_functions if child is not None]
        # a branch that does not come from the input is a parameter, perhaps rescaled on its way
        here = set().union(*(leaves[child] for child in inputs if id(x) not in leaves[child]))
        here = {name for name in names if id(tensors[name]) in here}
        found |= here
        sums = node.name().startswith(("AddBackward", "SubBackward", "CatBackward", "StackBackward"))
        todo += [] if here and not sums else [child for child in inputs if id(x) in leaves[child]]
    return [name for name in names if name in found]


def below(nodes):
    """The autograd graph under some nodes: each node -> the nodes that it reads, in an order that ends with `nodes`."""
    graph, todo = {}, list(nodes)
    while todo:
        one = todo.pop()
        if one not in graph:
            graph[one] = [child for child, _ in one.next_functions if child is not None]
            todo += graph[one]
    return {one: graph[one] for one in TopologicalSorter(graph).static_order()}


def leaves_below(node):
    """For each node of an autograd graph the ids of the leaf tensors below it."""
    graph, leaves = below([node]), {}
    for one in graph:
        own = {id(one.variable)} if hasattr(one, "variable") else set()
        leaves[one] = own.union(*(leaves[child] for child in graph[one]))
    return leaves
