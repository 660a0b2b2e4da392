"""The pipeline: score -> reduce to units -> allocate -> Mask, once or over a schedule.

    mask = pai.prune(model, "synflow", sparsity=0.98, batch=data.score_batch(per_class=10))
"""

import math
from contextlib import contextmanager

import torch

from pai_lab import criteria  # noqa: F401  (fills the registry)
from pai_lab.allocation import allocate, check_sparsity
from pai_lab.catalog import check_options, find
from pai_lab.mask import Mask, forward, masked, prunable
from pai_lab.schedules import sparsities
from pai_lab.seeding import seeded


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
    check_options(entry, options, ("model", "batch", "mask"))
    weights = prunable(model, exclude)
    device = next(iter(weights.values())).device
    _check_batch(entry, batch, model, device)
    mode = mode or entry.defaults.get("mode", "eval")
    if mode not in ("train", "eval"):
        raise ValueError(f"mode must be 'train' or 'eval', got {mode!r}")
    with seeded(seed, device), _in_mode(model, mode == "train"), _counted(model) as count, torch.enable_grad():
        try:
            found = entry.function(model, batch, mask, **options)
        except RuntimeError as error:
            raise ValueError(f"{entry.name} cannot score {type(model).__name__}{_shape(batch)}: {error}") from error
    scores = Scores({name: _fitted(entry.name, found, name, w) for name, w in weights.items()})
    scores.budget = sum(count)
    return scores


def prune(
    model, criterion, sparsity, *, batch=None, structure="weight", scope="global", schedule=None, iterations=None,
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
    *_, (_, mask) = rounds(
        model, criterion, sparsity, batch=batch, structure=structure, scope=scope, schedule=schedule,
        iterations=iterations, floor=floor, exclude=exclude, seed=seed, allow_empty=allow_empty, **options,
    )  # fmt: skip
    return mask


def rounds(
    model, criterion, sparsity, *, batch=None, structure="weight", scope="global", schedule=None, iterations=None,
    floor=0, exclude=(), seed=0, allow_empty=False, **options,
):  # fmt: skip
    """The rounds of `prune`, one at a time: yields (scores, mask) after each; the last mask is `prune`'s.
    With sparsity 0 it yields the dense mask once, with no scores."""
    check_sparsity(sparsity)
    entry = find("criterion", criterion)
    if entry.defaults.get("unit", structure) != structure:
        raise ValueError(f"{entry.name} scores units of structure {entry.defaults['unit']!r}, not {structure!r}")
    steps = sparsities(
        schedule or entry.defaults.get("schedule", "exponential"), sparsity,
        iterations or entry.defaults.get("iterations", 1) if iterations is None else iterations,
    )  # fmt: skip
    mask = dense = Mask.dense(model, exclude)
    if sparsity == 0:
        yield Scores(), dense
        return
    fixed = [] if structure == "weight" else output_layers(model, _inputs(batch))
    candidates = [name for name in dense if name not in fixed]
    if not candidates:
        raise ValueError(f"the model's output is all that is left: there is no {structure} to remove")
    spent = 0
    for number, step in enumerate(steps):
        now = batch(number) if callable(batch) else batch
        scores = score(model, criterion, now, mask=mask, seed=seed + number * 1_000_003, exclude=exclude, **options)
        part = allocate(
            {name: scores[name] for name in candidates}, step, scope=scope, structure=structure, floor=floor, seed=seed,
            reduce=entry.defaults.get("reduce", "mean"), allow_empty=allow_empty,
            within=None if entry.defaults.get("revives") else Mask({name: mask[name] for name in candidates}),
        )  # fmt: skip
        spent += scores.budget
        mask = Mask({**dense, **part}, budget=spent)
        yield scores, mask


def output_layers(model, x=None):
    """Names of the prunable weights whose outputs are the model's: the last ones on each path to the output.

    Found by running one sample and walking back from the output. `x` is a batch of inputs; without it the model's
    `input_shape` serves, and without that the layer that the model defines last is taken. Cost: one forward pass.
    """
    names = list(prunable(model))
    shape = getattr(model, "input_shape", None)
    if x is None and shape is None:
        return names[-1:]
    tensors = masked(model)
    inputs = x[:1] if x is not None else torch.zeros(1, *shape, device=tensors[names[0]].device)
    with seeded(0, inputs.device), _in_mode(model, False), torch.enable_grad():
        output = forward(model, tensors, inputs)
    by_leaf = {id(tensors[name]): name for name in names}
    found, seen, todo = set(), set(), [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        below = [child for child, _ in node.next_functions if child is not None]
        here = {by_leaf[id(leaf)] for leaf in map(_leaf, below) if id(leaf) in by_leaf}
        found |= here
        todo += [] if here else below
    return [name for name in names if name in found]


def _leaf(node):
    """The leaf tensor behind a node, seen through the transpose of a linear layer's weight; None elsewhere."""
    while node.name().startswith("TBackward"):
        node = node.next_functions[0][0]
    return getattr(node, "variable", None)


@contextmanager
def _in_mode(model, training):
    flags = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


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
    first = batch[0] if isinstance(batch, list) else batch
    return first[0] if isinstance(first, (tuple, list)) else None


def _shape(batch):
    x = _inputs(batch)
    return "" if x is None else f" on a batch of shape {tuple(x.shape)}"


def _check_batch(entry, batch, model, device):
    needs = entry.facts.get("needs", "")
    if batch is None:
        if needs in ("labelled batch", "input shape"):
            raise ValueError(f"{entry.name} needs a batch: pass batch=data.score_batch(per_class=10)")
        return
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
