"""The mask: which weights are kept, by name; immutable, exact, and the only thing that training has to hold.

mask = pai.prune(model, "magnitude", 0.9); mask.sparsity, mask.layers(), mask.overlap(other)
"""

import hashlib
from collections.abc import Mapping

import torch

from pai_lab import storage
from pai_lab.functional import PRUNABLE, fit, prunable


class Mask(Mapping):
    """An immutable mapping from parameter name to a bool tensor of the parameter's shape; True = kept.

    All counts run over weights, that is tensors of two or more dimensions; one-dimensional entries (the bias and
    BatchNorm entries of a channel mask) travel with the mask but are not counted. `budget` is what finding the
    mask cost, in forward+backward passes of one sample.
    """

    def __init__(self, tensors, budget=0):
        tensors = dict(tensors)
        if not tensors:
            raise ValueError("a mask needs at least one tensor; got an empty mapping")
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.bool:
                got = getattr(tensor, "dtype", type(tensor).__name__)
                raise TypeError(f"mask {name!r} must be a bool tensor, got {got}; use for example `scores > threshold`")
        self._tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.budget = budget

    @classmethod
    def holding(cls, tensors, budget=0):
        """A mask of bool tensors that nobody else holds: they are not copied."""
        mask = cls.__new__(cls)
        mask._tensors, mask.budget = dict(tensors), budget
        return mask

    @classmethod
    def dense(cls, model, exclude=()):
        """The mask that keeps every prunable weight."""
        return cls({name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(model, exclude).items()})

    def __getitem__(self, name):
        return self._tensors[name]

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self):
        return len(self._tensors)

    def __eq__(self, other):
        if not isinstance(other, Mask):
            return NotImplemented
        return list(self) == list(other) and all(_same(self[name], other[name]) for name in self)

    __hash__ = None

    def __getstate__(self):
        return self._tensors, self.budget

    def __setstate__(self, state):
        self._tensors, self.budget = state

    # -- counts ------------------------------------------------------------------------------------------------
    @property
    def _weights(self):
        least = min(2, max(t.ndim for t in self.values()))
        return {name: t for name, t in self.items() if t.ndim >= least}

    @property
    def total(self):
        """Number of weights."""
        return sum(t.numel() for t in self._weights.values())

    @property
    def kept(self):
        """Number of kept weights."""
        return sum(int(t.count_nonzero()) for t in self._weights.values())

    @property
    def density(self):
        """Kept / total, in [0, 1]."""
        return self.kept / self.total

    @property
    def sparsity(self):
        """Removed / total, in [0, 1]."""
        return (self.total - self.kept) / self.total

    @property
    def compression(self):
        """Total / kept; inf for an empty mask."""
        return self.total / self.kept if self.kept else float("inf")

    def layers(self):
        """One row per layer: layer, shape, total, kept, density (a DataFrame)."""
        import pandas as pd

        rows = [(n, tuple(t.shape), t.numel(), int(t.count_nonzero())) for n, t in self._weights.items()]
        table = pd.DataFrame(rows, columns=["layer", "shape", "total", "kept"])
        return table.assign(density=table.kept / table.total)

    def collapsed(self):
        """Names of the layers that keep nothing: no signal passes them, unless a skip connection goes around."""
        return [name for name, t in self._weights.items() if not t.any()]

    def overlap(self, other):
        """Jaccard overlap with another mask of the same shapes: kept in both / kept in either; 1 for equal ones.
        Two independent random masks of density d overlap by d / (2 - d)."""
        either = (self | other).kept
        return (self & other).kept / either if either else 1.0

    @property
    def fingerprint(self):
        """16 hex digits that change with any name, shape or bit."""
        digest = hashlib.sha256()
        for name, t in self.items():
            digest.update(f"{name}{tuple(t.shape)}".encode())
            digest.update(t.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    # -- algebra: all return a new mask -------------------------------------------------------------------------
    def __and__(self, other):
        return self._zip(other, torch.logical_and)

    def __or__(self, other):
        return self._zip(other, torch.logical_or)

    def __invert__(self):
        return Mask({name: ~t for name, t in self.items()}, self.budget)

    def _zip(self, other, operation):
        if not isinstance(other, Mask):
            raise TypeError(f"a mask combines with a mask, not with {type(other).__name__}")
        fit(self, other, "the other mask")
        fit(other, self, "this mask")
        tensors = {name: operation(t, other[name].to(t.device)) for name, t in self.items()}
        return Mask(tensors, self.budget + other.budget)

    def shuffled(self, seed=0):
        """The layerwise shuffle: as many kept weights in each layer, at random places (Frankle 2021's check)."""
        generator = torch.Generator().manual_seed(seed ^ 0x5FF1E)  # not the numbers that drew a model's weights
        mixed = {
            name: t.flatten()[torch.randperm(t.numel(), generator=generator).to(t.device)].view_as(t)
            for name, t in self.items()
        }
        return Mask(mixed, self.budget)

    # -- on a model ----------------------------------------------------------------------------------------------
    def apply(self, model):
        """Set the removed weights of `model` to exactly 0, in place, once. Returns the model.
        ValueError if names or shapes do not fit; nothing is changed then."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        fit(self, parameters, type(model).__name__)
        with torch.no_grad():
            for name, keep in self.items():
                parameters[name].masked_fill_(~keep.to(parameters[name].device), 0)
        return model

    def hold(self, model, optimizer):
        """Keep the removed weights at exactly 0 through training: applied now and after each `optimizer.step()`.

        Returns a handle with `.mask`, `.update(new)`, `.check()`, `.remove()`. Optimizers lose their hooks on
        deepcopy, pickle and load_state_dict: hold again then. ValueError as for `apply`."""
        return Hold(self, model, optimizer)

    def to_torch(self, model):
        """Hand the mask to `torch.nn.utils.prune` (custom_from_mask on each layer), in place. Returns the model."""
        from torch.nn.utils import prune

        parameters = dict(model.named_parameters(remove_duplicate=False))
        fit(self, parameters, type(model).__name__)
        keep = {id(parameters[name]): flags for name, flags in self.items()}
        for name, parameter in parameters.items():  # a shared weight is masked wherever it stands
            if id(parameter) in keep:
                prefix, _, key = name.rpartition(".")
                prune.custom_from_mask(model.get_submodule(prefix), key, keep[id(parameter)].to(parameter.device))
        return model

    @classmethod
    def from_torch(cls, model):
        """The mask that `torch.nn.utils.prune` holds on a model; layers that it does not hold are dense."""
        tensors, seen = {}, set()
        for prefix, module in model.named_modules():
            if isinstance(module, PRUNABLE):
                weight = module._parameters.get("weight_orig", module._parameters.get("weight"))
                if id(weight) in seen:  # a shared weight has one entry, as in `prunable`
                    continue
                seen.add(id(weight))
                name = f"{prefix}.weight" if prefix else "weight"
                held = module._buffers.get("weight_mask")
                tensors[name] = torch.ones_like(module.weight, dtype=torch.bool) if held is None else held.bool()
        return cls(tensors)

    # -- files ---------------------------------------------------------------------------------------------------
    def save(self, path):
        """Write one safetensors file, atomically (a crash leaves the old file or none)."""
        storage.write(path, self, {"kind": "pai_lab mask", "budget": self.budget, "order": list(self)})

    @classmethod
    def load(cls, path):
        """Read a mask written by `save`. ValueError if the file is cut short or holds something else."""
        tensors, facts = storage.read(path, "pai_lab mask")
        return cls({name: tensors[name] for name in facts["order"]}, facts["budget"])

    # -- looks ---------------------------------------------------------------------------------------------------
    def __repr__(self):
        empty = f", collapsed: {', '.join(self.collapsed())}" if self.collapsed() else ""
        return f"Mask({self.kept:,} of {self.total:,} weights kept, sparsity {self.sparsity:.4f}{empty})"

    def _repr_html_(self):
        fill = "<td><div style='background:#d9e2ec;width:12em'><div style='background:#0072b2;height:1em;width:{:.2%}'>"
        rows = "".join(
            f"<tr><td style='text-align:left'>{r.layer}</td><td>{' x '.join(map(str, r.shape))}</td>"
            f"<td>{r.total:,}</td><td>{r.kept:,}</td><td>{r.density:.2%}</td>{fill.format(r.density)}</div></div></td></tr>"
            for r in self.layers().itertuples()
        )
        head = "".join(f"<th>{c}</th>" for c in ("layer", "shape", "weights", "kept", "density", ""))
        empty = "".join(f"<p><b>Layer collapse:</b> {name} keeps nothing.</p>" for name in self.collapsed())
        return (
            f"<p><b>{self.kept:,}</b> of {self.total:,} weights kept: sparsity <b>{self.sparsity:.2%}</b>, "
            f"compression {self.compression:.3g}x</p>{empty}<table><tr>{head}</tr>{rows}</table>"
        )


class Hold:
    """A mask held on a model through an optimizer's steps; made by `Mask.hold`.

    After each step the held weights are multiplied in place by the mask, kept as floats (on a CPU twice as fast
    as bool). Gradients stay dense. `mask` is the one in force.
    """

    def __init__(self, mask, model, optimizer):
        parameters = dict(model.named_parameters(remove_duplicate=False))
        fit(mask, parameters, type(model).__name__)
        self.optimizer = optimizer
        self._parameters = [parameters[name] for name in mask]
        self.mask = mask
        self._set(mask)
        self._hook = optimizer.register_step_post_hook(self)

    @torch.no_grad()
    def __call__(self, *_):
        torch._foreach_mul_(self._parameters, self._floats)

    def _set(self, mask):
        self._floats = [torch.empty_like(p).copy_(t) for p, t in zip(self._parameters, mask.values(), strict=True)]
        self.mask = mask
        with torch.no_grad():  # masked_fill and not a product: also a NaN or -0.0 becomes exactly 0
            for parameter, keep in zip(self._parameters, mask.values(), strict=True):
                parameter.masked_fill_(~keep.to(parameter.device), 0)

    def update(self, new):
        """Hold another mask of the same layers. Removed weights become 0 at once; every optimizer state tensor
        of the weight's shape is zeroed where a weight is removed or regrown, so that old momentum cannot move it."""
        if list(new) != list(self.mask):
            raise ValueError(f"the new mask names {list(new)}; this handle holds {list(self.mask)}")
        fit(new, dict(zip(self.mask, self._parameters, strict=True)), "the held model")
        with torch.no_grad():
            for name, parameter in zip(new, self._parameters, strict=True):
                stays = (new[name] & self.mask[name]).to(parameter.device)
                for value in self.optimizer.state.get(parameter, {}).values():
                    if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                        value.masked_fill_(~stays, 0)
        self._set(new)

    @torch.no_grad()
    def mask_gradients(self):
        """Zero the gradients of removed weights (before a gradient norm is clipped, say)."""
        for parameter, keep in zip(self._parameters, self._floats, strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(keep)

    @torch.no_grad()
    def check(self):
        """RuntimeError that names the layer if a removed weight is not 0 (NaN, a diverged training, is let pass)."""
        for name, parameter in zip(self.mask, self._parameters, strict=True):
            if torch.nan_to_num(parameter.masked_fill(self.mask[name].to(parameter.device), 0)).any():
                raise RuntimeError(
                    f"removed weights of {name!r} are not 0: the optimizer lost its mask hook (deepcopy, pickle and "
                    "load_state_dict drop it); call mask.hold(model, optimizer) again"
                )

    def remove(self):
        """Let go: later steps may move every weight."""
        self._hook.remove()


def _same(a, b):
    return a.shape == b.shape and torch.equal(a, b.to(a.device))
