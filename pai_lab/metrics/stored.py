"""Bytes of a pruned model in a file: zeros cost as much as weights until the format leaves them out.

pai.stored_bytes(model, mask)       # dense, bitmap, csr, gzip, safetensors
"""

import gzip
from bisect import bisect_right

import torch

from pai_lab.functional import masked, prunable


def stored_bytes(model, mask, dtype=None):
    """Bytes of the masked model per format: a DataFrame (format, bytes, ratio), ratio = dense bytes / bytes.

    dense: every distinct tensor of the state, raw, zeros and all. bitmap: of a prunable weight one bit per entry and
    the kept values. csr: the kept values, a column index for each and a pointer per row, of the weight flattened to
    (out, rest). gzip: the dense bytes at level 9, the same on every run. safetensors: the file, header included.
    What is not prunable stands dense in every format. Values have the model's own width, or that of a floating
    `dtype`. ValueError if the mask is for another model. Cost: gzip takes a second or so per 10 million weights.
    """
    import pandas as pd
    from safetensors.torch import save

    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"weights are stored as floating numbers, not as {dtype}; take for example torch.float16")
    weights = masked(model, mask, dtype=dtype, device="cpu")
    state = {name: weights[name].detach().contiguous() for name in _state(model)}
    raw = b"".join(t.reshape(-1).view(torch.uint8).numpy().tobytes() for t in state.values())
    sizes = {
        "dense": len(raw),
        "bitmap": packed_bytes(model, mask, bitmap, dtype),
        "csr": packed_bytes(model, mask, csr, dtype),
        "gzip": len(gzip.compress(raw, 9, mtime=0)),
        "safetensors": len(save(state)),
    }
    table = pd.DataFrame(sizes.items(), columns=["format", "bytes"])
    return table.assign(ratio=len(raw) / table.bytes)


def packed_bytes(model, mask, size, dtype=None):
    """Bytes of the masked model where `size(shape, kept, width)` gives those of a prunable weight; all else dense."""
    names, total = {id(weight): name for name, weight in prunable(model).items()}, 0
    for tensor in _state(model).values():
        width = (dtype if dtype and tensor.is_floating_point() else tensor.dtype).itemsize
        name, kept = names.get(id(tensor)), tensor.numel()
        if name in mask:
            kept = int(mask[name].count_nonzero())
        total += size(tensor.shape, kept, width) if name else kept * width
    return total


def _state(model):
    """What a file of the model holds: name -> tensor, each tensor once."""
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor):
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def dense(shape, kept, width=4):
    """Bytes of a weight with all its zeros."""
    return torch.Size(shape).numel() * width


def bitmap(shape, kept, width=4):
    """Bytes of a weight as one bit per entry, in whole bytes, and its kept values of `width` bytes."""
    return -(-torch.Size(shape).numel() // 8) + kept * width


def csr(shape, kept, width=4):
    """Bytes of a weight, flattened to (out, rest), as compressed sparse rows: kept values, a column index for each,
    and out + 1 row pointers. Indices are 16-bit integers where those are large enough, else 32-bit."""
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    return kept * (width + _index(columns - 1)) + (rows + 1) * _index(kept)


def _index(largest):
    return 2 if largest < 2**15 else 4


def break_even(shape, width=4):
    """The largest density at which a weight of this shape is no larger than dense: {"bitmap": ..., "csr": ...}.
    `width` is the bytes of one value. About 1 - 1 / (8 width), and width / (width + index width); 0 means never."""
    total = torch.Size(shape).numel()

    def largest(size):
        fitting = bisect_right(range(total + 1), total * width, key=lambda kept: size(shape, kept, width))
        return max(0, fitting - 1) / total

    return {"bitmap": largest(bitmap), "csr": largest(csr)}
