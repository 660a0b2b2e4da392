"""The pipeline: score -> reduce to units -> allocate -> Mask, once or over a schedule.

mask = pai.prune(model, "synflow", sparsity=0.98, batch=data.score_batch(per_class=10))
"""

import math
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from inspect import signature
from types import SimpleNamespace

import torch

from pai_lab import coupled, criteria  # noqa: F401  (they fill the registry)
from pai_lab.allocation import allocate, check_sparsity, count
from pai_lab.catalog import check_options, find
from pai_lab.functional import check_seed, fit, in_mode, prunable, seeded
from pai_lab.graph import output_layers
from pai_lab.mask import Mask
from pai_lab.schedules import sparsities
from pai_lab.structures import Fixed, Spans, bind, find_structure

# A model drawn from the same seed has used the generator's first numbers for its weights: scores take others.
APART = 0x5C0FE5


class Scores(dict):
    """Parameter name -> tensor of the parameter's shape, higher = keep; `budget` is what they cost, in
    forward+backward passes of one sample."""

    budget = 0


def score(model, criterion, batch=None, *, mask=None, mode=None, seed=0, exclude=(), **options):
    """The criterion's score of every prunable weight; the model is byte for byte as before.

    `criterion` is a name or a function (model, batch, mask, **options) -> mapping. `batch` is (x, y), or a list of
    such pairs, on the model's device. The net is looked at with `mask` in force. `mode` ("train" or "eval") says
    which BatchNorm statistics count; None takes the criterion's own choice (eval if it has none). `seed` fixes what
    is random in the criterion or the model.

    ValueError for an unknown name, a missing, empty or unfit batch, labels out of range, or scores that are not
    finite or not of the weights' names and shapes; TypeError for an unknown option.
    """
    entry = find("criterion", criterion)
    mode = _checked_mode(entry, mode, options)
    if isinstance(batch, list) and len(batch) == 2 and all(map(torch.is_tensor, batch)):
        batch = tuple(batch)  # [x, y], as a DataLoader hands it out
    weights = prunable(model, exclude)
    device = next(iter(weights.values())).device
    _check_batch(entry, batch, model, device)
    if mask is not None:
        fit(mask, dict(model.named_parameters(remove_duplicate=False)), type(model).__name__)
    # a function of the reader's own may call model(x) and backward(): it gets a copy to do so
    net = model if entry.function.__module__.startswith("pai_lab.") else deepcopy(model)
    check_seed(seed)
    with seeded(seed ^ APART, device), in_mode(net, mode == "train"), _counted(net) as passes, torch.enable_grad():
        try:
            found = entry.function(net, batch, mask, **options)
        except (RuntimeError, ValueError) as error:
            alone = "more than 1 value per channel" in str(error)  # batch statistics of one sample
            if isinstance(error, ValueError) and not alone:
                raise
            hint = ". Give more samples, or mode='eval'" if alone else ""
            where = f"{type(model).__name__}{_shape(batch)}"
            raise ValueError(f"{entry.name} cannot score {where}: {error}{hint}") from error
    if not isinstance(found, Mapping):
        raise TypeError(f"criterion {entry.name!r} must return a mapping name -> scores, got {type(found).__name__}")
    scores = Scores({name: _fitted(entry.name, found, name, w) for name, w in weights.items()})
    scores.budget = round(sum(passes) * entry.defaults.get("passes", 1))
    return scores


def prune(
    model, criterion, sparsity=None, *, batch=None, structure="weight", scope="global", schedule=None, iterations=None,
    floor=0, exclude=(), seed=0, allow_empty=False, **options,
):  # fmt: skip
    """The mask that keeps exactly `round((1 - sparsity) * n)` of the n units with the highest scores.

    `iterations` rounds of score and allocate follow `schedule` down to `sparsity`; None takes the criterion's
    default (one round, unless it says more). What is removed stays removed, unless the criterion revives. Larger
    structures than single weights never remove the model's outputs: those layers stay dense and are not counted
    in n. `exclude` names layers that are not pruned and not in the mask. `batch` is as in `score`, or a function
    round -> batch. `options` go to the criterion (and `mode`). The model is not changed.

    `sparsity=0` is a true no-op: all True, nothing scored. Errors as in `score` and `allocate`, before anything is
    done. Cost: the criterion's, times the rounds; `mask.budget` has it.
    """
    steps = rounds(
        model, criterion, sparsity, batch=batch, structure=structure, scope=scope, schedule=schedule,
        iterations=iterations, floor=floor, exclude=exclude, seed=seed, allow_empty=allow_empty, **options,
    )  # fmt: skip
    for step in steps:
        mask = step[1]
        del step  # its scores are as large as the model: let go before the next round
    if not allow_empty and structure != "block" and (empty := mask.collapsed()):  # a shortcut goes around a block
        warnings.warn(f"layer collapse at sparsity {sparsity}: {', '.join(empty)} keep nothing", stacklevel=2)
    return mask


def rounds(
    model, criterion, sparsity, *, batch=None, structure="weight", scope="global", schedule=None, iterations=None,
    floor=0, exclude=(), seed=0, allow_empty=False, **options,
):  # fmt: skip
    """The rounds of `prune`, one at a time: yields (scores, mask) after each; the last mask is `prune`'s.
    With sparsity 0 it yields the dense mask once, with no scores."""
    entry, mode = find("criterion", criterion), options.pop("mode", None)
    steps = _steps(entry, sparsity, structure, schedule, iterations)
    mode = _checked_mode(entry, mode, options)
    if not isinstance(scope, Mapping):
        find("scope", scope)
    if _takes_kept(entry) and (scope != "global" or floor):
        raise ValueError(f"{entry.name} decides where its weights lie: it takes scope 'global' and floor 0")
    mask = dense = Mask.dense(model, exclude)
    if sparsity == 0:
        yield Scores(), dense
        return
    first = batch(0) if callable(batch) else batch
    _check_batch(entry, first, model, next(iter(dense.values())).device)
    found = bind(structure, model, _inputs(first), exclude)
    if entry.defaults.get("unit") == "filter" and not isinstance(found, Spans):
        # its scores say nothing of a channel's consumers
        found = SimpleNamespace(reduce=partial(found.reduce, producers=True), expand=found.expand)
    names = candidates(found, dense, model, first, structure)
    if not isinstance(found, Fixed):
        units = found.reduce({n: dense[n] for n in names}, "max")
        count(sparsity, sum(flags.numel() for flags in units.values()), allow_empty)
    spent, revives = 0, entry.defaults.get("revives")
    for number, step in enumerate(steps):
        now = batch(number) if callable(batch) and number else first
        asked = {"kept": count(step, dense.total, allow_empty)} if _takes_kept(entry) else {}
        scores = score(
            model, criterion, now, mask=mask, mode=mode, seed=seed + number * 1_000_003, exclude=exclude,
            **options, **asked,
        )  # fmt: skip
        whole = len(names) == len(mask)
        part = allocate(
            {name: scores[name] for name in names}, step, scope=scope, structure=found, floor=floor, seed=seed,
            reduce=entry.defaults.get("reduce", "mean"), allow_empty=allow_empty,
            within=None if revives else mask if whole else Mask.holding({n: mask[n] for n in names}),
        )  # fmt: skip
        spent += scores.budget
        mask = part if len(part) == len(dense) else Mask.holding({**dense, **part})
        mask.budget = spent
        yield scores, mask
        del scores, part


def _steps(entry, sparsity, structure, schedule, iterations):
    """The sparsity of each round; [None] for a structure that fixes its own count. Errors before anything is done."""
    unit = entry.defaults.get("unit", structure)
    if structure != unit and (unit, structure) != ("filter", "channel"):
        raise ValueError(f"{entry.name} scores units of structure {unit!r}, not {structure!r}")
    if isinstance(find_structure(structure), Fixed):
        if sparsity is not None or iterations not in (None, 1):
            raise ValueError(
                f"{structure} fixes its own count in one round: sparsity must be None and iterations 1, got "
                f"{sparsity!r} and {iterations!r}"
            )
        return [None]
    return sparsities(
        schedule or entry.defaults.get("schedule", "exponential"), check_sparsity(sparsity),
        entry.defaults.get("iterations", 1) if iterations is None else iterations,
    )  # fmt: skip


def candidates(structure, weights, model, batch=None, name="unit"):
    """Names of the weights that can lose units: a unit that is all of an output of the model is never removed."""
    whole = [n for n, t in weights.items() if isinstance(structure, Spans) and structure.holds_outputs(t.ndim)]
    outputs = output_layers(model, _inputs(batch)) if whole else []
    found = [n for n in weights if n not in whole or n not in outputs]
    if not found:
        raise ValueError(f"the model's output is all that is left: there is no {name} to remove")
    return found


def _takes_kept(entry):
    """True for a criterion that cannot be scored without the number of weights to keep."""
    return "kept" in signature(entry.function).parameters


def _checked_mode(entry, mode, options):
    """The mode in force; ValueError or TypeError if it, or an option, is none of the criterion's."""
    check_options(entry, options, ("model", "batch", "mask"))
    mode = mode or entry.defaults.get("mode", "eval")
    if mode not in ("train", "eval"):
        raise ValueError(f"mode must be 'train' or 'eval', got {mode!r}")
    return mode


@contextmanager
def _counted(model):
    """A list that grows by the batch size at each forward pass of the model."""
    counts = []
    hook = model.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    try:
        yield counts
    finally:
        hook.remove()


def _fitted(criterion, found, name, weight):
    if name not in found:
        raise ValueError(f"criterion {criterion!r} returned no score for {name!r}; it returned {list(found)}")
    scores = found[name]
    try:
        if scores.ndim not in (0, weight.ndim):  # (out,) would be read as a score per input
            raise RuntimeError
        scores = scores.detach().expand(weight.shape)
    except (RuntimeError, AttributeError):
        got = tuple(getattr(scores, "shape", ())) or type(scores).__name__
        raise ValueError(f"criterion {criterion!r} scored {name!r} {tuple(weight.shape)} with {got}") from None
    low, high = torch.aminmax(scores.reshape(-1))  # carries NaN; twenty times faster than isfinite
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(f"criterion {criterion!r} gave NaN or infinite scores in {name!r}; nothing was pruned")
    return scores


def _inputs(batch):
    """The x of a batch, or of its first pair; None if there is no batch yet."""
    first = batch[0] if isinstance(batch, list) and batch else batch
    return first[0] if isinstance(first, (tuple, list)) and first else None


def _shape(batch):
    x = _inputs(batch)
    return "" if x is None else f" on a batch of shape {tuple(x.shape)}"


def _check_batch(entry, batch, model, device):
    needs = entry.facts.get("needs", "")
    if batch is None:
        if needs in ("labelled batch", "input shape"):
            raise ValueError(f"{entry.name} needs a batch: pass batch=data.score_batch(per_class=10)")
        return
    if isinstance(batch, list) and not batch:
        raise ValueError("the batch is an empty list; a batch is a pair (x, y) or a list of pairs")
    for pair in batch if isinstance(batch, list) else [batch]:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(torch.is_tensor(t) for t in pair)):
            raise ValueError(f"a batch is a pair (x, y) of tensors or a list of pairs, got {type(pair).__name__}")
        _check_pair(*pair, model, device)


def _check_pair(x, y, model, device):
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"a batch needs as many labels as samples, at least one; got {len(x)} and {len(y)}")
    if y.dtype != torch.int64 or int(y.min()) < 0:
        raise ValueError(f"labels are class numbers from 0 on, dtype int64; got {y.dtype}, smallest {y.min().item()}")
    shape = getattr(model, "input_shape", None)
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(f"the model takes inputs of shape {tuple(shape)}; this batch has {tuple(x.shape[1:])}")
    if x.device != device or y.device != device:
        raise ValueError(f"the batch is on {x.device} and the model on {device}; move it with .to({str(device)!r})")
