"""The residual branches that can go as a whole, as the autograd graph of one sample shows them.

found = blocks(model); found.units
"""

import torch

from pai_lab.coupled.units import Coupled, Entry, example, run, twin
from pai_lab.functional import prunable, seeded
from pai_lab.graph import below, output_layers


def blocks(model, x=None, exclude=()):
    """The residual branches F of x + F(x) with an identity shortcut, each a group of one unit: `Coupled`.

    A unit is all parameters of the branch (weights, biases, BatchNorm's weight and bias): without them it adds 0.
    Not among them: branches beside a convolution, those that hold a weight in `exclude`, one of the model's output
    layers or one that is also used elsewhere, and those that contain another. `x` as in `channels`. ValueError if x
    does not fit or if there is no such branch. The model is not touched. Cost: two forward passes of one sample.
    """
    candidates, shapes = prunable(model, exclude), {name: p.shape for name, p in model.named_parameters()}
    entries = {
        group: [Entry(n, 0, torch.zeros(shapes[n][0]).long(), torch.arange(shapes[n][0])) for n in names]
        for group, names in branches(model, x).items()
        if candidates.keys() >= prunable(model).keys() & set(names)
    }
    if not entries:
        raise ValueError(
            f"{type(model).__name__} has no residual branch beside an identity shortcut: there is no block to remove"
        )
    return Coupled(model, entries, dict.fromkeys(entries, 1))


def branches(model, x=None):
    """{name of its first weight: names of its parameters} of each branch that `blocks` can remove. A scalar gain is
    left out: what it scales is 0."""
    net, x = twin(model), example(model, x)
    with seeded(0, x.device), torch.enable_grad():
        x = x.requires_grad_() if x.is_floating_point() else x
        output = run(net, x.clone())  # a net may overwrite its input, never a leaf
        outer = {id(net.get_parameter(name)) for name in output_layers(net, x)}
    all_found = [{id(leaf) for leaf in leaves} for leaves in _branches(below([output.grad_fn]), x)]
    smallest = [one for one in all_found if not one & outer and not any(other < one for other in all_found)]
    found = {}
    for name, weight in prunable(net).items():
        for branch in [one for one in smallest if id(weight) in one]:
            found[name] = [n for n, parameter in net.named_parameters() if id(parameter) in branch and parameter.ndim]
            smallest.remove(branch)
    return found


def _branches(graph, x):
    """For each sum of a node and of something computed from it alone: the leaves that are used there and only there."""
    users = {node: set() for node in graph}
    for node, inputs in graph.items():
        for one in inputs:
            users[one].add(node)
    for node, inputs in graph.items():
        if node.name().startswith("AddBackward") and len(inputs) == 2:
            for skip, end in (inputs, inputs[::-1]):
                inside = _down_to(skip, end, graph)
                leaves = [one for one in inside if hasattr(one, "variable")]
                only_here = all(users[leaf] <= inside and leaf.variable is not x for leaf in leaves)
                if only_here and users[skip] & inside:
                    yield [leaf.variable for leaf in leaves]


def _down_to(last, node, graph):
    """All nodes below a node, itself included, that can be reached without passing `last`."""
    found, todo = set(), [node]
    while todo:
        one = todo.pop()
        if one is not last and one not in found:
            found.add(one)
            todo += graph[one]
    return found
