"""Effective weights: the kept ones that lie on a path from the input to the output; and the units that lie on none.

paths = pai.effective(model, mask); paths.sparsity      # never below mask.sparsity
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode, resolve_name

from pai_lab.functional import fit, forward, in_mode, masked, prunable, seeded
from pai_lab.mask import Mask
from pai_lab.models import _shape


def effective(model, mask, input_shape=None):
    """The Mask of the kept weights that lie on a path of kept weights from an input to an output.

    `effective(model, mask).sparsity` is the effective sparsity, never below `mask.sparsity`. Weights that the mask
    leaves out count as kept, a shared weight if it is on a path in any of its uses, a kernel entry that only ever
    sees padding never. Activations and normalisations pass each unit to itself; a pool hears its whole window. A
    unit that emits a constant (a bias, a BatchNorm shift) is no path. One-dimensional entries of the mask stay.
    `input_shape` of one sample defaults to `model.input_shape`. ValueError if the mask is for another model, or if
    the model does what has no known paths (attention, gates: the operation is named). Cost: 1 FB of one sample.
    Vysogorets and Kempe, Connectivity matters, 2021.
    """
    return flow(model, mask, input_shape).mask


def dead_units(model, mask, input_shape=None):
    """Output units on no path, per layer: a DataFrame (layer, units, unreachable, unheard, dead).

    `unreachable`: no path from the input; `unheard`: none to the output; `dead`: none through it. A dead unit may
    still emit a constant. A layer that never runs is all dead. Errors and cost as for `effective`.
    """
    import pandas as pd

    rows = [(name, *counts) for name, counts in flow(model, mask, input_shape).units.items()]
    return pd.DataFrame(rows, columns=["layer", *Units._fields])


class Units(NamedTuple):
    """How many output units a layer has; on how many no path arrives, goes on, or both at one place."""

    units: int
    unreachable: int
    unheard: int
    dead: int


class Flow(NamedTuple):
    """`mask`: the kept weights on a path; `units`: layer -> Units."""

    mask: Mask
    units: dict


def flow(model, mask, input_shape=None):
    """What `effective` and `dead_units` show, from one forward and backward pass over zeros and ones."""
    if not isinstance(mask, Mask):
        raise TypeError(f"paths are those of a Mask, got {type(mask).__name__}; Mask.dense(model) keeps everything")
    fit(mask, dict(model.named_parameters(remove_duplicate=False)), type(model).__name__)
    shape, layers = _shape(model, input_shape), list(prunable(model))
    tensors = _zeros_and_ones(model, mask)
    leaves = {name: tensors[name].requires_grad_() for name in [*mask, *(n for n in layers if n not in mask)]}
    uses, output = _run(model, tensors, torch.ones(1, *shape, device=leaves[layers[0]].device))
    if not isinstance(output, torch.Tensor) or not output.requires_grad:
        raise ValueError(f"the output of {type(model).__name__} must be a tensor that depends on its input")
    wanted, ones = [*leaves.values(), *(use.output for use in uses)], torch.ones_like(output)
    gradients = torch.autograd.grad(output, wanted, ones, allow_unused=True, materialize_grads=True)
    found = {
        name: keep & (gradient > 0.5).to(keep.device) if keep.ndim > 1 else keep
        for (name, keep), gradient in zip(mask.items(), gradients, strict=False)  # the mask's leaves come first
    }
    units = {name: _count(leaves[name], uses, gradients[len(leaves) :]) for name in layers}
    return Flow(Mask.holding(found, mask.budget + 1), units)


@torch.no_grad()
def _zeros_and_ones(model, mask):
    """`masked` tensors that hold the mask, and 1 where it says nothing. Constants of the model stay."""
    tensors = masked(model, dtype=torch.float32)
    for name, _ in model.named_parameters(remove_duplicate=False):
        tensors[name].requires_grad_(False).fill_(1)
    for name, keep in mask.items():
        tensors[name].copy_(keep)
    return tensors


def _run(model, tensors, x):
    """(uses of layers, output) of the model on zeros and ones."""
    x.requires_grad_()
    with in_mode(model, False), seeded(0, x.device), torch.enable_grad(), Paths() as paths:
        try:
            return paths.uses, forward(model, tensors, x.clone())  # a net may overwrite its input, never a leaf
        except RuntimeError as error:
            shape = tuple(x.shape[1:])
            raise ValueError(f"{type(model).__name__} cannot take an input of shape {shape}: {error}") from error


def _count(weight, uses, gradients):
    """The Units of one layer: one is reached, heard or alive if it is so in any use, at any place."""
    reached = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    heard, alive = reached.clone(), reached.clone()
    for use, gradient in zip(uses, gradients, strict=True):
        if use.weight is weight:
            ins, outs = (t.movedim(use.dim, 0).flatten(1) > 0.5 for t in (use.output, gradient))
            reached, heard = reached | ins.any(1), heard | outs.any(1)
            alive |= (ins & outs).any(1)
    return Units(len(weight), *(int((~flags).sum()) for flags in (reached, heard, alive)))


class Binary(torch.autograd.Function):
    """1 where x > least, else 0, of values and of gradients: counts of paths would overflow in deep nets."""

    @staticmethod
    def forward(ctx, x, least):
        ctx.least = least
        return (x > least).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return (gradient > ctx.least).to(gradient.dtype), None


# -- what each operation does to zeros and ones --------------------------------------------------------------------
# Whole numbers come out of a layer, unless a fast algorithm for convolutions rounds; fractions out of an average.
def counted(function, input, *args, **kwargs):
    return Binary.apply(function(Binary.apply(input, 0.5), *args, **kwargs), 0.5)


def averaged(function, input, *args, **kwargs):
    return Binary.apply(function(Binary.apply(input, 0), *args, **kwargs), 0)


def layer(function, input, weight, bias=None, *args, **kwargs):
    return counted(function, input, weight, None, *args, **kwargs)


def pooled(function, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, **kwargs):
    """The average in place of the maximum, whose gradient would reach one element only."""
    if torch.as_tensor(dilation).max() > 1:
        raise _unknown(function, " with dilation")
    average = getattr(F, function.__name__.replace("max", "avg"))
    return averaged(average, input, kernel_size, stride, padding, ceil_mode)


def pooled_to(function, input, output_size, **kwargs):
    return averaged(getattr(F, function.__name__.replace("max", "avg")), input, output_size)


def same(function, input, *args, **kwargs):
    return input.clone()  # a net may go on in place


def normalised(function, input, running_mean, running_var, weight=None, *args, **kwargs):
    """The same, but a BatchNorm scale that the mask removes cuts its channel."""
    return input * weight.view(-1, *[1] * (input.ndim - 2)) if _depends(weight) else input.clone()


def padded(function, input, pad, mode="constant", value=None):
    return function(input, pad, mode)


def joined(function, input, other, **kwargs):
    """A sum; what does not depend on the input is a shift, and no path."""
    shape = torch.broadcast_shapes(*(t.shape for t in (input, other) if isinstance(t, torch.Tensor)))
    return Binary.apply(sum(t for t in (input, other) if _depends(t)).expand(shape), 0.5)


def scaled(function, input, other, **kwargs):
    """A product or quotient with a constant: only its zeros matter."""
    signal, constant = (input, other) if _depends(input) else (other, input)
    if _depends(constant):
        raise _unknown(function, " of two signals")
    return signal * (torch.as_tensor(constant, device=signal.device) != 0)


def moved(function, *args, **kwargs):
    return function(*args, **kwargs)


KNOWN = {
    layer: "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    pooled: "max_pool1d max_pool2d max_pool3d",
    pooled_to: "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
    averaged: "mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
    normalised: "batch_norm",
    padded: "pad",
    joined: "add sub __rsub__",
    scaled: "mul multiply div divide true_divide __rdiv__",
    same: """
        relu relu6 hardtanh leaky_relu prelu rrelu elu selu celu gelu silu mish softplus softsign sigmoid log_sigmoid
        tanh tanhshrink hardswish hardsigmoid hardshrink softshrink _threshold threshold softmax log_softmax softmin
        clamp neg abs square sqrt exp pow to float double half bfloat16 type_as
        dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout
        layer_norm group_norm instance_norm rms_norm local_response_norm normalize
    """,
    moved: """
        flatten unflatten view view_as reshape reshape_as permute transpose swapaxes movedim t T mT squeeze unsqueeze
        contiguous clone cat concat concatenate stack chunk split unbind narrow select index_select __getitem__ expand
        expand_as repeat tile roll flip channel_shuffle pixel_shuffle pixel_unshuffle
        zeros_like ones_like full_like new_zeros new_ones new_full
        size dim numel shape ndim dtype device layout is_cuda is_nested requires_grad stride __len__
        is_floating_point is_contiguous
    """,
}
HANDLERS = {name: handler for handler, names in KNOWN.items() for name in names.split()}


class Use(NamedTuple):
    """One call of a layer: its weight, its output, and the dimension of the output that its units are."""

    weight: torch.Tensor
    output: torch.Tensor
    dim: int


class Paths(TorchFunctionMode):
    """Every operation on a signal acts on zeros and ones; `uses` are the calls of layers."""

    def __init__(self):
        super().__init__()
        self.uses = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.__name__
        if name == "_set_grad_enabled":  # paths also pass what a net runs without gradients
            return None
        if not any(map(_depends, (*args, *kwargs.values()))):
            return function(*args, **kwargs)
        if name == "__get__":
            name = getattr(function.__self__, "__name__", name)
        handler, plain = HANDLERS.get(name), HANDLERS.get(name.removesuffix("_"))
        in_place = handler is None and plain in (same, joined, scaled)  # add_, relu_, ...
        if handler is None and not in_place:
            raise _unknown(function)
        result = (handler or plain)(function, *args, **kwargs)
        if handler is layer:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.uses.append(Use(weight, result, -1 if name == "linear" else 1))
            return result.clone()  # the net may go on in place
        return args[0].copy_(result) if in_place else result


def _depends(thing):
    """Whether a signal or a weight of the mask is in it: those alone require gradients."""
    if isinstance(thing, (list, tuple)):
        return any(map(_depends, thing))
    return isinstance(thing, torch.Tensor) and thing.requires_grad


def _unknown(function, how=""):
    name = resolve_name(function) or function.__name__
    return ValueError(
        f"no paths are defined through {name}{how}. Known are linear layers and convolutions, activations, "
        "normalisations, pools, sums, scales by a constant, concatenation and reshapes"
    )
