"""Scores of gates: a factor of 1 on each output unit of a layer, and how the error changes with it.

pai.prune(model, "taylor_gate", 0.5, batch=data.score_batch(per_class=10), structure="filter")
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from pai_lab.catalog import criterion, nearest
from pai_lab.criteria.first_order import cross_entropy, shares
from pai_lab.functional import forward, masked, prunable

GATES = {
    "family": "gates", "when": "after", "structure": "filter, channel", "defaults": {"mode": "eval", "unit": "filter"}
}  # fmt: skip
BY_ERROR = {"needs": "labelled batch", "cost": "1 FB per sample"}

LAYERS = (F.conv1d, F.conv2d, F.conv3d, F.linear)
NORMS = {F.batch_norm: 3, torch.batch_norm: 1}  # the place of gamma among the arguments


@dataclass
class Run:
    """One run of a layer: its name, the gate on its output (of the output's shape, but 1 in all dimensions besides
    samples and units), and the |gamma| of the BatchNorm behind it (ones if it has none)."""

    name: str
    gate: torch.Tensor
    gamma: torch.Tensor
    normed: bool = False


class Gates(TorchFunctionMode):
    """While it is active, every run of a layer has its output multiplied by ones: `runs` lists these gates.

    `weights` maps names to the tensors that the model runs with; a layer is known by its weight, so a shared layer
    has as many runs as it is called. Where a BatchNorm reads the output of a convolution or linear layer as it is,
    the gate stands behind the BatchNorm; with anything between the two (an activation, a view, an addition) it
    stands behind the layer.
    """

    def __init__(self, weights):
        super().__init__()
        self.names = {id(weight): name for name, weight in weights.items()}
        self.runs, self._outputs = [], {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if function in LAYERS:
            return self._layer(output, _argument(args, kwargs, 1, "weight"))
        if function in NORMS:
            gamma = _argument(args, kwargs, NORMS[function], "weight")
            return self._norm(_argument(args, kwargs, 0, "input"), gamma, output)
        return output

    def _layer(self, output, weight):
        if id(weight) not in self.names:
            return output
        shape = [1] * output.ndim
        shape[0], shape[1 - weight.ndim] = len(output), len(weight)  # one gate per sample: their sum is the unit's
        run = Run(self.names[id(weight)], _ones(output, shape), weight.new_ones(len(weight)))
        self.runs.append(run)
        gated = output * run.gate
        if output.ndim == weight.ndim:  # units in dimension 1, where BatchNorm has its channels
            self._outputs[id(gated)] = run, gated  # holds the tensor, so that its id stays its own
        return gated

    def _norm(self, source, gamma, output):
        run, _ = self._outputs.get(id(source), (None, None))
        if run is None or source._version:  # a version above 0: an in-place activation has been there
            return output
        if not run.normed:
            run.gate, run.normed = _ones(output, run.gate.shape), True
            run.gamma = run.gamma if gamma is None else gamma.detach().abs()
        return output * run.gate


def gated(model, tensors, x):
    """(output, runs) of the model with `tensors` (from `masked`) and a gate on each run of each prunable layer.

    ValueError if the output depends on a weight that runs in no plain convolution or linear call: there is no unit
    to put a gate on. A weight that the output does not use has no run."""
    weights = {name: tensors[name] for name in prunable(model)}
    with Gates(weights) as gates:
        output = forward(model, tensors, x)
    blind = set(weights) - {run.name for run in gates.runs}
    blind = {name: weight for name, weight in weights.items() if name in blind}
    if blind and torch.is_tensor(output):
        found = torch.autograd.grad(output.sum(), list(blind.values()), allow_unused=True, retain_graph=True)
        for name, gradient in zip(blind, found, strict=True):
            if gradient is not None:
                raise ValueError(
                    f"{name!r} has no output of its own to put a gate on: {type(model).__name__} uses it outside of "
                    "conv1d, conv2d, conv3d and linear; score single weights instead (magnitude, snip)"
                )
    return output, gates.runs


def gate_scores(model, batch, mask, score, error=cross_entropy):
    """The mean over minibatches, by sample count, of `score(derivative)` -> (out,): {layer: (out, 1, ...)}.

    The derivative, (samples, out), is that of error(output, y), a mean over the minibatch, with respect to each
    sample's gate, summed over the runs of a shared layer; its sum over the samples is the unit's dE/dz at z = 1.
    In float32 at least: the square of a half-precision derivative would underflow. Unused layers get 0."""
    tensors = masked(model, mask)
    layers = prunable(model)
    total = {name: torch.zeros(len(w), device=w.device) for name, w in layers.items()}
    for x, y, share in shares(batch):
        output, runs = gated(model, tensors, x)
        found = torch.autograd.grad(error(output, y), [run.gate for run in runs], materialize_grads=True)
        derivatives = {}
        for run, gradient in zip(runs, found, strict=True):
            gradient = gradient.reshape(-1, len(run.gamma)).to(torch.promote_types(gradient.dtype, torch.float32))
            derivatives[run.name] = derivatives.get(run.name, 0) + gradient
        for name, derivative in derivatives.items():
            total[name] = total[name] + share * score(derivative)
    return {name: total[name].view(-1, *[1] * (w.ndim - 1)) for name, w in layers.items()}


@criterion(
    criterion="|gamma| of the BatchNorm behind a filter", paper="Liu et al., Network slimming", year=2017,
    needs="input shape", cost="1 F of one sample", **GATES,
)  # fmt: skip
def bn_gate(model, batch, mask):
    """|gamma| of the BatchNorm that directly follows each filter, shape (out, 1, ...): meant for nets trained with
    an L1 penalty on gamma. One sample of ones runs through the net to see what follows what.

    A layer with no BatchNorm behind it scores 1, as one with gamma = 1 (or with no gamma); that is above most gammas
    after training, so it is hardly pruned: exclude it or use scope="layer". With several BatchNorms, as in a shared
    layer, the largest |gamma| counts. A layer that never runs scores 0. At a new model all gammas are 1: ties. A
    global ranking may empty a layer: floor=1. ValueError for a net in which no BatchNorm follows a layer. 1 F of one
    sample."""
    layers = prunable(model)
    x = torch.ones_like((batch[0] if isinstance(batch, list) else batch)[0][:1])
    _, runs = gated(model, masked(model, mask), x)
    if not any(run.normed for run in runs):
        raise ValueError(
            f"bn_gate needs a BatchNorm directly behind a convolution or linear layer; {type(model).__name__} has "
            "none. Use filter_l1 or taylor_gate, or build a model with BatchNorm"
        )
    scores = {name: torch.zeros_like(w[(slice(None),) + (slice(1),) * (w.ndim - 1)]) for name, w in layers.items()}
    for run in runs:
        scores[run.name] = torch.maximum(scores[run.name], run.gamma.view_as(scores[run.name]))
    return scores


FORMS = {"squared": lambda d: d.sum(0).square(), "absolute": lambda d: d.abs().sum(0)}


@criterion(
    criterion="(dL/dz)^2, z a gate on the filter's output", paper="Molchanov et al., Importance estimation", year=2019,
    **GATES, **BY_ERROR,
)  # fmt: skip
def taylor_gate(model, batch, mask, form="squared"):
    """The first-order change of the loss when a filter's output is switched off, shape (out, 1, ...). The gate z = 1
    multiplies the output of the BatchNorm behind the filter, or of the filter where there is none, bias included.

    `form="squared"` is the mean over minibatches of (dL/dz)^2 (Molchanov 2019); minibatches count by their samples.
    `form="absolute"` is the mean over samples of |dL/dz|, divided by its L2 norm over the layer (Molchanov et al.,
    Pruning convolutional neural networks, 2017; the 1/HW of the paper cancels in that division; a ReLU after the
    gate changes nothing). ValueError for another form. 1 FB per sample."""
    if form not in FORMS:
        raise nearest("form", form, FORMS)
    scores = gate_scores(model, batch, mask, FORMS[form])
    if form == "squared":
        return scores
    return {name: F.normalize(s, dim=0, eps=torch.finfo(s.dtype).tiny) for name, s in scores.items()}


def absolute_error(output, y):
    """Mean over the samples of sum_k |t_k - o_k|, for o the softmax of the output and t one-hot. Errors as in
    `cross_entropy`."""
    cross_entropy(output, y)  # for its checks
    target = F.one_hot(y, output.shape[1]).movedim(-1, 1)
    return (target - output.softmax(1)).abs().sum(1).mean()


ERRORS = {"cross-entropy": cross_entropy, "absolute": absolute_error}


@criterion(
    criterion="-dE/da, a the attention to a unit", paper="Mozer & Smolensky, Skeletonization", year=1988,
    **GATES, **BY_ERROR,
)  # fmt: skip
def skeletonization(model, batch, mask, error="cross-entropy"):
    """The relevance -dE/da at a = 1 of each unit, to first order E(without it) - E(with it), shape (out, 1, ...).
    Signed: a negative relevance is a unit that does harm, and it goes first.

    The attention a multiplies the layer's output (behind its BatchNorm, if any) and so stands before the activation:
    for ReLU that is the same as behind it, as in the paper. `error` is "cross-entropy", or "absolute" for the
    paper's sum |t - o| on softmax outputs; means over the samples, also over minibatches, where the paper takes a
    running mean. ValueError for another error. 1 FB per sample."""
    if error not in ERRORS:
        raise nearest("error", error, ERRORS)
    return gate_scores(model, batch, mask, lambda d: -d.sum(0), ERRORS[error])


def _ones(output, shape):
    return output.new_ones(shape, requires_grad=True)


def _argument(args, kwargs, place, name):
    return args[place] if len(args) > place else kwargs.get(name)
