"""A convolution with one weight in each kernel, run as what it is: 1x1 convolutions on shifted inputs.

layer = shifted(conv, mask["conv.weight"]); layer(x); layer.bits
"""

import math
from itertools import product

import torch
from torch import nn
from torch.nn import functional as F

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}  # by the number of kernel dimensions


def shifted(conv, keep=None):
    """The layer that computes what `conv` does with one weight kept in each kernel (structure "shift").

    `keep` is the mask of `conv.weight`, one True in each kernel. None reads it from the weights that are not 0; a
    kernel of zeros is then stored as a 0 at its first position. The new layer has copies of the weights and of the
    bias; stride, padding of any mode, dilation and groups are `conv`'s. Wu et al., Shift, 2018; Hacene et al.,
    Attention based pruning for shift networks, 2019.
    TypeError if `conv` is no Conv1d, Conv2d or Conv3d; ValueError for another number of weights in a kernel.
    """
    if not isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise TypeError(f"shifted takes a Conv1d, Conv2d or Conv3d, got {type(conv).__name__}")
    least, flags = (0, conv.weight != 0) if keep is None else (1, keep)
    if flags.dtype != torch.bool or flags.shape != conv.weight.shape:
        got = f"{flags.dtype} of shape {tuple(flags.shape)}"
        raise ValueError(f"keep must be a bool tensor of shape {tuple(conv.weight.shape)}, got {got}")
    counts = flags.flatten(2).sum(2)
    if wrong := int(((counts > 1) | (counts < least)).sum()):
        raise ValueError(
            f"a shift layer keeps one weight in each kernel; {wrong} of {counts.numel()} kernels keep another number "
            f"(up to {int(counts.max())}). Prune with structure='shift' first"
        )
    return Shifted(conv, flags.to(conv.weight.device))


class Shifted(nn.Module):
    """The sum over kernel positions p of a 1x1 convolution, with the weights at p, of the input shifted by p.

    `weight` and `position` have shape (out, in / groups): the value, and the place in the flattened kernel. Each 1x1
    convolution reads only the input channels that it needs (if groups = 1): with one shift per input channel, as in
    the first shift networks, the multiply-adds are those of one 1x1 convolution; with all positions in use, up to
    those of the dense layer. Made by `shifted`.
    """

    def __init__(self, conv, keep):
        super().__init__()
        position = keep.flatten(2).int().argmax(2)
        values = conv.weight.detach().flatten(2).gather(2, position[..., None])[..., 0]
        self.weight = nn.Parameter(values)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        self.register_buffer("position", position)
        self.kernel_size, self.stride, self.dilation, self.groups = (
            conv.kernel_size, conv.stride, conv.dilation, conv.groups,
        )  # fmt: skip
        self.padding = list(conv._reversed_padding_repeated_twice)  # a number, "same" or "valid": all are here
        self.padding_mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode

    @property
    def bits(self):
        """Stored bits: for each kernel a weight and ceil(log2(kernel positions)) bits of its place, and the bias."""
        width = 8 * self.weight.element_size()
        place = math.ceil(math.log2(math.prod(self.kernel_size)))
        return self.weight.numel() * (width + place) + (0 if self.bias is None else self.bias.numel() * width)

    def forward(self, x):
        x, ones = F.pad(x, self.padding, self.padding_mode), (1,) * len(self.kernel_size)
        output = 0 if self.bias is None else self.bias.view(-1, *ones)
        for number, place in enumerate(product(*map(range, self.kernel_size))):
            here = self.position == number
            if here.any():
                window, weight = x[self._window(place, x.shape)], (self.weight * here).view(*here.shape, *ones)
                if self.groups == 1:
                    used = here.any(0).nonzero().flatten()
                    window, weight = window.index_select(-1 - len(ones), used), weight[:, used]
                output = output + CONVOLVE[len(ones)](window, weight, groups=self.groups)
        return output

    def _window(self, place, shape):
        """The entries of the padded input that a kernel position meets."""
        slices = [...]
        for at, size, kernel, stride, dilation in zip(
            place, shape[-len(place) :], self.kernel_size, self.stride, self.dilation, strict=True
        ):
            steps = (size - dilation * (kernel - 1) - 1) // stride
            slices.append(slice(at * dilation, at * dilation + steps * stride + 1, stride))
        return tuple(slices)
