"""A net as units and what feeds what, for walks along its weights from input to output and back.

net = Wiring(model, shape, starts); net.load(sizes); walk, weight = net.walks(1000, rng)
"""

from math import prod

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pai_lab.functional import in_mode

SUMS = {"add", "iadd", "radd", "sub", "isub", "rsub"}
POINTWISE = {
    *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus"),
    *("hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh", "softsign", "logsigmoid", "softmax", "log_softmax"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "mul", "imul", "rmul", "div", "truediv"),
    *("itruediv", "neg", "clamp", "to", "float", "double", "half", "bfloat16", "type"),
}
MOVES = {
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "movedim", "swapaxes"),
    *("t", "getitem", "get", "chunk", "split", "narrow", "select", "unbind", "cat", "concat", "stack", "contiguous"),
    *("clone", "detach", "flip", "roll", "repeat", "expand", "pad", "channel_shuffle", "view_as", "reshape_as"),
    *("size", "dim", "ndimension", "numel", "nelement", "len", "stride", "is_contiguous", "is_floating_point"),
}


class Units(torch.Tensor):
    """The numbers of units in the place of their values: 1, 2, ...; 0 is padding."""


class Wiring(TorchFunctionMode):
    """Which unit feeds which, for one sample of `shape`; `starts` says where each weight, by id, begins among all.

    The model runs once on the numbers of its input units: what only moves values moves the numbers; convolutions,
    linear layers, pools and additions are recorded, and put out new numbers. ValueError that names the operation if
    it is none of these and more than an activation or a norm.
    """

    def __init__(self, model, shape, starts):
        super().__init__()
        self.starts, self.layers, self.firsts, self.turn = starts, [], [1], 0
        inputs = self._new((1, *shape))
        with in_mode(model, False), torch.no_grad(), self:
            outputs = model.forward(inputs)  # no pass of values: not counted as one
        if not isinstance(outputs, Units):
            raise ValueError(f"the output of {type(model).__name__} must be one tensor that comes from its input")
        self.ends = (_ids(inputs), _ids(outputs))
        feeds = [layer.ids for layer in self.layers] + [_ids(outputs)]
        ids, sizes = np.concatenate(feeds), [len(feed) for feed in feeds]
        order = np.argsort(ids, kind="stable")
        self.feeds_from = np.searchsorted(ids[order], np.arange(self.firsts[-1] + 1))
        self.feeds_from[0] = self.feeds_from[1]  # padding feeds nothing
        self.feeds_layer = np.repeat(np.arange(len(feeds)), sizes)[order]
        self.feeds_spot = np.concatenate([np.arange(size) for size in sizes])[order]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(function, "__name__", "").strip("_")
        units = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Units)]
        if not units or name in MOVES:
            return function(*args, **kwargs)
        if name in LAYERS:
            return LAYERS[name](self, function, *args, **kwargs)
        if name in SUMS and len(units) == 2 and units[0].shape == units[1].shape:
            return self.record(Sum(*map(_ids, units)), units[0].shape)
        if name in SUMS | POINTWISE and len(units) == 1:
            return units[0]
        raise ValueError(
            f"walks cannot pass {name!r} in this net. They know convolutions, linear layers, pools, the sum of two "
            "branches, activations and norms, and what moves values without a change"
        )

    def _new(self, shape):
        first = self.firsts[-1]
        self.firsts.append(first + prod(shape))
        return torch.arange(first, self.firsts[-1]).view(shape).as_subclass(Units)

    def record(self, layer, shape):
        self.layers.append(layer)
        return self._new(shape)

    def start(self, weight):
        if id(weight) not in self.starts:
            raise ValueError(f"walks cannot pass a weight {tuple(weight.shape)} that is no layer's own parameter")
        return self.starts[id(weight)]

    # -- walks ---------------------------------------------------------------------------------------------------
    def load(self, sizes):
        """Take the odds of all steps from `sizes`, |w| of all weights in one array."""
        for layer in self.layers:
            layer.load(sizes)

    def walks(self, n, rng):
        """The passages of `n` walks, every other one backward: (number of the walk, weight), two arrays. Walks that
        end on the way are left out."""
        turns = self.turn + np.arange(n // 2)
        self.turn += n // 2
        none = np.zeros(0, int)
        passages = [(none, none, none > 0)]
        for parity, (go, ends) in enumerate(zip((self._down, self._up), self.ends, strict=True)):
            trail, arrived = go(ends[turns % len(ends)], rng)
            passages += [(2 * walk + parity, weight, arrived[walk]) for walk, weight in trail]
        walk, weight, whole = (np.concatenate(parts) for parts in zip(*passages, strict=True))
        return walk[whole], weight[whole]

    def _down(self, unit, rng):
        trail, (at, spot) = [], self._onward(unit, rng)
        for k, layer in enumerate(self.layers):
            here = np.flatnonzero(at == k)
            out, weight, alive = layer.down(spot[here], rng)
            at[here], spot[here] = self._onward(np.where(alive, self.firsts[k + 1] + out, 0), rng)
            trail += [] if weight is None else [(here[alive], weight[alive])]
        return trail, at == len(self.layers)

    def _onward(self, unit, rng):
        """The layer that a unit goes into, each with the same odds, and its number there; -1 for none."""
        first, after = self.feeds_from[unit], self.feeds_from[unit + 1]
        choice = np.minimum(first + (rng.random(len(unit)) * (after - first)).astype(int), len(self.feeds_spot) - 1)
        return np.where(after > first, self.feeds_layer[choice], -1), self.feeds_spot[choice]

    def _up(self, unit, rng):
        trail, unit = [], unit.copy()
        for k in reversed(range(len(self.layers))):
            here = np.flatnonzero((unit >= self.firsts[k + 1]) & (unit < self.firsts[k + 2]))
            spot, weight, alive = self.layers[k].up(unit[here] - self.firsts[k + 1], rng)
            unit[here] = np.where(alive, self.layers[k].ids[spot], 0)
            trail += [] if weight is None else [(here[alive], weight[alive])]
        return trail, (unit > 0) & (unit < self.firsts[1])


def _ids(units):
    return units.as_subclass(torch.Tensor).flatten().numpy()


def _shape_after(function, *args, **options):
    def empty(leaf):
        return torch.empty(leaf.shape, device="meta") if isinstance(leaf, torch.Tensor) else leaf

    return function(*map(empty, args), **options).shape


# -- the operations that are recorded: (net, function, its arguments as torch has them) ----------------------------
def _conv(net, function, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    shape = _shape_after(function, x, weight, None, stride, padding, dilation, groups)
    space, kernel, dilation = x.shape[2:], weight.shape[2:], _each(dilation, x.ndim - 2)
    if isinstance(padding, str):
        padding = [d * (k - 1) // 2 if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    windows = _sliding(space, shape[2:], kernel, stride, padding, dilation)
    return net.record(Layer(_ids(x), prod(space), windows, net.start(weight), weight.shape, groups), shape)


def _linear(net, function, x, weight, bias=None):
    x = x.movedim(-1, 0)  # all that is not a feature is a place
    places = prod(x.shape[1:])
    layer = Layer(_ids(x), places, np.arange(places)[:, None], net.start(weight), weight.shape)
    return net.record(layer, (weight.shape[0], *x.shape[1:])).movedim(0, -1)


def _max_pool(net, function, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, **_):
    shape = _shape_after(function, x, kernel_size, stride, padding, dilation=dilation, ceil_mode=ceil_mode)
    return _pool(net, x, shape, kernel_size, stride, padding, dilation)


def _avg_pool(net, function, x, kernel_size, stride=None, padding=0, ceil_mode=False, *_, **__):
    shape = _shape_after(function, x, kernel_size, stride, padding, ceil_mode)
    return _pool(net, x, shape, kernel_size, stride, padding, 1)


def _pool(net, x, shape, kernel, stride, padding, dilation):
    windows = _sliding(x.shape[2:], shape[2:], kernel, stride or kernel, padding, dilation)
    return net.record(Layer(_ids(x), prod(x.shape[2:]), windows), shape)


def _adaptive_pool(net, function, x, output_size, **_):
    shape = _shape_after(function, x, output_size)
    return net.record(Layer(_ids(x), prod(x.shape[2:]), _adaptive(x.shape[2:], shape[2:])), shape)


def _mean(net, function, x, dim=None, keepdim=False, **_):
    dims = range(x.ndim) if dim is None else [d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)]
    shape = _shape_after(function, x, dim=tuple(dims), keepdim=keepdim)
    places = prod(x.shape[d] for d in dims)
    x = x.permute([d for d in range(x.ndim) if d not in dims] + list(dims))
    return net.record(Layer(_ids(x), places, np.arange(places)[None]), shape)


LAYERS = {f"conv{d}d": _conv for d in (1, 2, 3)} | {"linear": _linear, "mean": _mean, "sum": _mean, "amax": _mean}
for _d in (1, 2, 3):
    LAYERS |= {f"max_pool{_d}d": _max_pool, f"avg_pool{_d}d": _avg_pool}
    LAYERS |= {f"adaptive_{kind}_pool{_d}d": _adaptive_pool for kind in ("max", "avg")}


# -- what a walk passes: units come in by `ids`, their numbers in the net, and go out as 0, 1, ... -----------------
class Sum:
    """An addition: two inputs with the same number of units, joined one to one."""

    def __init__(self, one, two):
        self.ids = np.concatenate([one, two])

    def load(self, sizes):
        pass

    def down(self, spot, rng):
        return spot % (len(self.ids) // 2), None, np.full(len(spot), True)

    def up(self, out, rng):
        return out + len(self.ids) // 2 * rng.integers(2, size=len(out)), None, np.full(len(out), True)


class Layer:
    """A convolution; a linear layer is one without space, a pool one without weights.

    Units are numbered over channels, then places. `windows[q, e]` is the place that entry e of the kernel sees from
    place q of the output, -1 for none. `start` is where its weights (out, in, entries) begin among all.
    """

    def __init__(self, ids, places, windows, start=None, shape=None, groups=1):
        self.ids, self.places, self.windows, self.start, self.groups = ids, places, windows, start, groups
        self.shape = shape and (*shape[:2], windows.shape[1])
        self.back = np.full((places, windows.shape[1]), -1)  # the place from which entry e sees place p
        q, e = np.nonzero(windows >= 0)
        self.back[windows[q, e], e] = q

    def load(self, sizes):
        if self.shape:
            outs, ins, entries = self.shape
            self.sizes = sizes[self.start :][: outs * ins * entries].reshape(self.shape)
            kernels = self.sizes.sum(2, dtype=np.float64).reshape(self.groups, -1, ins)
            self.to_in = kernels.reshape(outs, ins).cumsum(1)
            self.to_out = kernels.swapaxes(1, 2).reshape(self.groups * ins, -1).cumsum(1)

    def down(self, spot, rng):
        channel, place = np.divmod(spot, self.places)
        out, inside = channel, None
        if self.shape:
            group, inside = np.divmod(channel, self.shape[1])
            out = group * (self.shape[0] // self.groups) + _pick(self.to_out[channel], rng)[0]
        entry, weight, alive = self._through(out, inside, self.back[place], rng)
        return out * len(self.windows) + self.back[place, entry], weight, alive

    def up(self, out, rng):
        channel, place = np.divmod(out, len(self.windows))
        out, inside = channel, None
        if self.shape:
            inside = _pick(self.to_in[out], rng)[0]
            channel = out // (self.shape[0] // self.groups) * self.shape[1] + inside
        entry, weight, alive = self._through(out, inside, self.windows[place], rng)
        return channel * self.places + self.windows[place, entry], weight, alive

    def _through(self, out, inside, there, rng):
        odds = (there >= 0) * self.sizes[out, inside] if self.shape else there >= 0
        entry, alive = _pick(odds.cumsum(1, dtype=np.float64), rng)
        weight = self.start + (out * self.shape[1] + inside) * self.shape[2] + entry if self.shape else None
        return entry, weight, alive


def _windows(sizes, axes):
    """What each place of an output sees, from what it sees along each axis: (places, entries)."""
    windows = np.zeros((1, 1), int)
    for size, axis in zip(sizes, axes, strict=True):
        before, now = windows[:, None, :, None], axis[None, :, None, :]
        seen = np.where((before >= 0) & (now >= 0) & (now < size), before * size + now, -1)
        windows = seen.reshape(len(windows) * len(axis), -1)
    return windows


def _sliding(sizes, outs, kernel, stride, padding, dilation):
    each = (_each(v, len(sizes)) for v in (kernel, stride, padding, dilation))
    axes = zip(outs, *each, strict=True)
    return _windows(sizes, [np.arange(out)[:, None] * s - p + np.arange(k) * d for out, k, s, p, d in axes])


def _each(value, axes):
    """One number per axis, as torch takes them: a number, a tuple, or a tuple of one."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * (axes // len(values))


def _adaptive(sizes, outs):
    axes = []
    for size, out in zip(sizes, outs, strict=True):
        first, last = np.arange(out) * size // out, -(-np.arange(1, out + 1) * size // out)
        seen = first[:, None] + np.arange((last - first).max())
        axes.append(np.where(seen < last[:, None], seen, -1))
    return _windows(sizes, axes)


def _pick(odds, rng):
    """An index for each row of cumulated odds; and whether the row has any."""
    last = odds[:, -1:]
    return (odds <= rng.random(last.shape) * last).sum(1).clip(max=odds.shape[1] - 1), last[:, 0] > 0
