"""Look at a model, or run it with other weights, and leave no trace on it.

weights = masked(model, mask); output = forward(model, weights, x)
"""

from contextlib import contextmanager

import torch
from torch import nn
from torch.func import functional_call

from pai_lab.catalog import nearest

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def prunable(model, exclude=()):
    """The prunable weights of a model: name -> Parameter, in module order.

    The `weight` of every convolution and linear layer, first, last and 1x1 shortcuts included; never a bias or
    BatchNorm. A weight that two layers share appears once. `exclude` lists names to leave out.
    ValueError if nothing is left, if a name in `exclude` is unknown, or if torch's own pruning holds a layer.
    """
    found, seen = {}, set()
    for prefix, module in model.named_modules():
        if not isinstance(module, PRUNABLE):
            continue
        weight = module._parameters.get("weight")
        if weight is None:
            raise ValueError(
                f"layer {prefix!r} has no plain weight: torch.nn.utils.prune or a parametrization holds it. "
                "Take the mask with pai.Mask.from_torch(model), then torch.nn.utils.prune.remove it"
            )
        if id(weight) not in seen:
            seen.add(id(weight))
            found[f"{prefix}.weight" if prefix else "weight"] = weight
    for name in [exclude] if isinstance(exclude, str) else exclude:
        if name not in found:
            raise nearest("layer in exclude", name, found)
        del found[name]
    if not found:
        raise ValueError(f"{type(model).__name__} has no prunable weight: no Conv or Linear layer is left to prune")
    return found


def masked(model, mask=None, *, dtype=None, device=None):
    """What `forward` needs to run a pruned copy: name -> tensor, the model itself untouched.

    Parameters become detached leaves `W * m` that require a gradient (also at pruned places: dense gradients);
    buffers are cloned. A tensor shared by several modules is cloned once. `dtype` converts the floating ones.
    ValueError if the mask is for another model.
    """
    keep = {}
    if mask is not None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        fit(mask, parameters, type(model).__name__)
        keep = {id(parameters[name]): flags for name, flags in mask.items()}
    tensors, clones = {}, {}
    for prefix, module in model.named_modules():
        for source, leaf in ((module._parameters, True), (module._buffers, False)):
            for key, tensor in source.items():
                if tensor is None:
                    continue
                if id(tensor) not in clones:
                    clones[id(tensor)] = _clone(tensor, keep.get(id(tensor)), leaf, dtype, device)
                tensors[f"{prefix}.{key}" if prefix else key] = clones[id(tensor)]
    return tensors


def _clone(tensor, keep, leaf, dtype, device):
    floating = tensor.is_floating_point()
    copy = tensor.detach().to(device=device, dtype=dtype if floating else None, copy=True)
    if keep is not None:
        copy.masked_fill_(~keep.to(copy.device), 0)  # a product with bools takes twice as long
    return copy.requires_grad_(leaf and floating)


def forward(model, weights, *inputs):
    """The model's output with `weights` (from `masked`) in place of its own. The model's own tensors stay as they
    are, also where modules are shared (torch's default, `tie_weights=True`, would leave the copies inside)."""
    return functional_call(model, weights, inputs, tie_weights=False)


def fit(mask, tensors, what):
    """ValueError, before anything is changed, if a name or shape of `mask` does not fit `tensors` of `what`."""
    for name, keep in mask.items():
        if name not in tensors:
            there = ", ".join(list(tensors)[:8])
            raise ValueError(f"this mask is for another model: {what} has no {name!r}; it has {there}, ...")
        if tensors[name].shape != keep.shape:
            raise ValueError(
                f"this mask is for another model: {name!r} is {tuple(keep.shape)} in the mask and "
                f"{tuple(tensors[name].shape)} in {what}"
            )


@contextmanager
def in_mode(model, training):
    """Train or eval mode for a block; then each module has its own mode again."""
    flags = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield model
    finally:
        for module, flag in flags:
            module.training = flag


def check_seed(seed):
    """ValueError unless `seed` is an integer in [0, 2**63)."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer from 0 on, got {seed!r}")


@contextmanager
def seeded(seed, device="cpu"):
    """Inside the block torch's global generators (the CPU's, and `device`'s if it has its own) start from `seed`;
    afterwards they are as before. ValueError as in `check_seed`."""
    check_seed(seed)
    device = torch.device(device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield
