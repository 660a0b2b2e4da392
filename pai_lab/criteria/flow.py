"""Scores of the flow of signal through the net, with no data.

pai.prune(model, "synflow", 0.98, batch=data.score_batch())     # only the shape of x is read
"""

import math
from functools import partial

import torch
from torch.overrides import TorchFunctionMode

from pai_lab.catalog import criterion
from pai_lab.functional import forward, masked, prunable

# Where these run, the output is no sum over paths of the products of their weights.
NO_PATHS = {
    *("softmax", "log_softmax", "softmin", "gumbel_softmax", "logsigmoid", "sigmoid", "tanh", "softplus", "softsign"),
    *("gelu", "silu", "mish", "hardswish", "hardsigmoid", "tanhshrink", "softshrink", "hardshrink"),
    *("layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "rnn_tanh", "lstm", "gru"),
    *("scaled_dot_product_attention", "multi_head_attention_forward"),
}
FLOW = {
    "family": "flow", "when": "before", "track": "sparse selection", "needs": "input shape",
    "cost": "1 FB of one sample per round", "defaults": {"mode": "eval", "iterations": 100, "schedule": "exponential"},
}  # fmt: skip


class _OnlyPaths(TorchFunctionMode):
    """Inside the block an operation through which no paths run is an error that names it, and ReLU6 clips nothing:
    the sum over paths has no upper end."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in NO_PATHS:
            raise ValueError(
                f"this net calls {name}, whose output does not grow in proportion to its input: the flow of paths is "
                "not defined there. Score the net with ReLU or nn.Identity in its place"
            )
        if name in ("relu6", "hardtanh"):
            return torch.relu(args[0])
        return function(*args, **(kwargs or {}))


@criterion(criterion="|w| * dR/d|w|, R = 1' prod|W| 1", paper="Tanaka et al., SynFlow", year=2020, **FLOW)
def synflow(model, batch, mask):
    """|w| * dR/d|w| for R = sum of the outputs of the net with |w| for w and an input of ones: each weight's share
    of the flow of paths. Biases and shifts are 0, so the flow is the same through every layer. 1 FB of one sample,
    in float64 (float32 overflows in deep nets), on the CPU where the device has no float64. ValueError if the net
    is more than paths: softmax, attention, smooth activations, normalisation by the sample's own statistics."""
    return _flow(model, batch, mask, torch.abs_)


@criterion(
    criterion="w^2 * dR/dw^2, R = 1' prod W^2 1", paper="Gebhart et al., A unified paths perspective", year=2021, **FLOW
)
def synflow_l2(model, batch, mask):
    """SynFlow with squares for absolute values: w^2 * dR/dw^2, each weight's share of the squared paths; the dR/dw^2
    add up to the trace of the path kernel. All parameters are squared, BatchNorm's gains too; what is no parameter
    (running variances, averages of pooling) acts as it is. Else as SynFlow; 1 FB of one sample."""
    return _flow(model, batch, mask, torch.square_)


def _flow(model, batch, mask, positive):
    """w * dR/dw for the net whose parameters `positive` made so. A layer's score takes the place of its weights as
    soon as backward has both, so that no second copy of the weights is ever held."""
    x = (batch[0] if isinstance(batch, list) else batch)[0]
    tensors = masked(model, mask, dtype=torch.float64, device="cpu" if x.device.type == "mps" else x.device)
    _without_signs(tensors, positive)
    weights, scores = {name: tensors[name] for name in prunable(model)}, {}
    for name, weight in weights.items():
        weight.register_post_accumulate_grad_hook(partial(_multiply, scores, name))
    one = next(iter(weights.values()))
    ones = torch.ones(1, *x.shape[1:], dtype=one.dtype, device=one.device, requires_grad=True)
    with _OnlyPaths():
        flow = torch.sum(forward(model, tensors, ones.clone()))
    flow.backward(inputs=[ones, *weights.values()])
    _check_proportional(model, flow.item(), ones.grad.sum().item())
    return {name: scores[name] if name in scores else torch.zeros_like(w) for name, w in weights.items()}


@torch.no_grad()
def _without_signs(tensors, positive):
    for name, tensor in {id(tensor): (name, tensor) for name, tensor in tensors.items()}.values():
        if name.endswith(("bias", "running_mean")):
            tensor.zero_()
        elif tensor.is_floating_point():
            (positive if tensor.requires_grad else torch.abs_)(tensor)


def _multiply(scores, name, weight):
    scores[name], weight.grad = weight.detach().mul_(weight.grad), None


def _check_proportional(model, flow, slope):
    """A sum over paths is proportional to the input, so that x * dR/dx = R (Euler). Batch statistics, which a
    reader may ask for by mode="train", are known to break it."""
    if not model.training and math.isfinite(flow) and not math.isclose(flow, slope, rel_tol=1e-6):
        raise ValueError(
            f"the output of {type(model).__name__} does not grow in proportion to its input (flow {flow:.6g}, slope "
            f"{slope:.6g}): something in it is more than weights, ReLU, pooling and BatchNorm, so SynFlow is undefined"
        )
