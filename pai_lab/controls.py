"""Sanity checks of pruning at initialization: does it matter which weights, which values, which data?

pai.experiment(data="digits", model="mlp", method="shuffled", criterion="snip", sparsity=0.95, seed=0, epochs=20)
"""

from copy import deepcopy
from functools import wraps
from inspect import signature

import torch

from pai_lab.catalog import find, method, nearest
from pai_lab.functional import seeded
from pai_lab.models import INITS, fill
from pai_lab.pruning import prune, rounds
from pai_lab.structures import Fixed, bind
from pai_lab.training import train

APART = 500_000_003  # added to a run's seed where a control must not repeat the run's own draws
CHECK = {"when": "before", "family": "sanity check", "year": 2021,
         "paper": "Frankle et al., Pruning neural networks at initialization"}  # fmt: skip
TRAINING = set(signature(train).parameters) - {"model", "data", "mask", "epochs", "seed"}


# -- what is changed -----------------------------------------------------------------------------------------------
def inverted(criterion):
    """The criterion with its scores negated: what it would remove first is kept. For distinct scores the masks of
    both at sparsities s and 1 - s have no weight in common.

    `criterion` is a name or a function; its defaults (mode, rounds, ...) stay in force."""
    entry = find("criterion", criterion)

    @wraps(entry.function)
    def negated(model, batch, mask, **options):
        return {name: -scores for name, scores in entry.function(model, batch, mask, **options).items()}

    negated.__name__ = f"inverted {entry.name}"
    return negated


def corrupted(batch, what="labels", seed=0):
    """The batch with its labels permuted over all samples, or ("inputs") the pixels of each sample permuted, each in
    its own order, the channels of a pixel together. Class counts and pixel values stay.

    `batch` is (x, y) with x of shape (n, length) or (n, channels, ...), or a list of such pairs. The global RNG is
    untouched. ValueError for another `what`. Su et al., Sanity-checking pruning methods, 2020.
    """
    if what not in ("labels", "inputs"):
        raise nearest("corruption", what, ("labels", "inputs"))
    if not isinstance(batch, list):
        return corrupted([batch], what, seed)[0]
    generator = torch.Generator().manual_seed(seed)
    if what == "inputs":
        return [(_scattered(x, generator), y) for x, y in batch]
    labels = torch.cat([y for _, y in batch])
    labels = labels[torch.randperm(len(labels), generator=generator).to(labels.device)]
    return list(zip((x for x, _ in batch), labels.split([len(y) for _, y in batch]), strict=True))


def _scattered(x, generator):
    flat = x.flatten(2) if x.ndim > 2 else x.unsqueeze(1)
    order = torch.rand(len(x), 1, flat.shape[2], generator=generator).argsort(2)
    return flat.gather(2, order.to(x.device).expand_as(flat)).view_as(x)


def reinitialised(model, seed=0, init=None):
    """A copy of the model with fresh weights, biases and BatchNorm. `init` is as in `build`; None draws as `build` did
    for this model, and as torch does for one that it did not build. The model and the global RNG are untouched.
    ValueError that names a module whose parameters nobody can draw: it has no `reset_parameters`."""
    init = init or vars(model).get("init", "default")
    if not callable(init) and init not in INITS:
        raise nearest("init", init, INITS)
    fresh, device = deepcopy(model).cpu(), next(model.parameters()).device
    own = {name: module for name, module in fresh.named_modules() if [*module.parameters(recurse=False)]}
    for name, module in own.items():
        if not hasattr(module, "reset_parameters"):
            raise ValueError(
                f"{name or 'the model'} ({type(module).__name__}) has no reset_parameters() to draw it anew"
            )
    with seeded(seed):
        for module in own.values():
            module.reset_parameters()
        if init != "default":
            fill(fresh, init if callable(init) else INITS[init])
    return fresh.to(device)


# -- recipes: scoring batches, seeds and training are those of pruning at initialization by the criterion -----------
def _parts(options):
    """The options of `train`, and the others: those of `prune` and of the criterion."""
    return [{k: v for k, v in options.items() if (k in TRAINING) is trains} for trains in (True, False)]


def scoring_batches(data, per_class, seed):
    """Round -> a balanced scoring batch of its own, from the training set."""
    return lambda number: data.score_batch(per_class=per_class, seed=seed + number * 1_000_003)


@method("shuffled", method="the mask's entries permuted within each layer", **CHECK)
def shuffled(model, data, sparsity, seed, epochs, *, criterion="snip", per_class=10, **options):
    """As many weights in each layer, at random places: does it matter which? ValueError for larger structures than
    single weights: `random_ratios` is this check for them."""
    training, pruning = _parts(options)
    if pruning.get("structure", "weight") != "weight":
        raise ValueError(
            f"a shuffle moves single weights and breaks units of {pruning['structure']!r}; use method='random_ratios'"
        )
    batch = scoring_batches(data, per_class, seed)
    mask = prune(model, criterion, sparsity, batch=batch, seed=seed, **pruning)
    return train(model, data, mask=mask.shuffled(seed + APART), epochs=epochs, seed=seed, **training)


@method("reinitialised", method="the mask on freshly drawn weights", **CHECK)
def reinitialised_weights(model, data, sparsity, seed, epochs, *, criterion="snip", per_class=10, **options):
    """The mask of one draw of the weights, trained from another draw: do the values matter that were scored?"""
    training, pruning = _parts(options)
    fresh, batch = reinitialised(model, seed + APART), scoring_batches(data, per_class, seed)
    mask = prune(model, criterion, sparsity, batch=batch, seed=seed, **pruning)
    model.load_state_dict(fresh.state_dict())
    return train(model, data, mask=mask, epochs=epochs, seed=seed, **training)


@method("inverted", method="the lowest scores kept", **CHECK)
def inverted_scores(model, data, sparsity, seed, epochs, *, criterion="snip", per_class=10, **options):
    """What the criterion would remove first is kept: does its ranking say anything?"""
    training, pruning = _parts(options)
    batch = scoring_batches(data, per_class, seed)
    mask = prune(model, inverted(criterion), sparsity, batch=batch, seed=seed, **pruning)
    return train(model, data, mask=mask, epochs=epochs, seed=seed, **training)


@method(
    "corrupted", method="scored with permuted labels or pixels", when="before", family="sanity check",
    paper="Su et al., Sanity-checking pruning methods", year=2020,
)  # fmt: skip
def corrupted_data(
    model, data, sparsity, seed, epochs, *, criterion="snip", per_class=10, corruption="labels", **options
):
    """Scored on a `corrupted` batch ("labels" or "inputs"), trained on the true one: does the mask know the task?"""
    training, pruning = _parts(options)
    batch = scoring_batches(data, per_class, seed)
    mask = prune(
        model, criterion, sparsity, seed=seed, batch=lambda number: corrupted(batch(number), corruption, seed + APART),
        **pruning,
    )  # fmt: skip
    return train(model, data, mask=mask, epochs=epochs, seed=seed, **training)


@method(
    "random_ratios", method="random units, as many in each layer as the criterion keeps", when="before",
    family="sanity check", paper="Liu et al., The unreasonable effectiveness of random pruning", year=2022,
)  # fmt: skip
def random_ratios(model, data, sparsity, seed, epochs, *, criterion="snip", per_class=10, **options):
    """Random pruning with the layer densities of another criterion, whose scoring is counted in the budget. For
    single weights it is `shuffled` by another road; it also serves larger structures."""
    training, pruning = _parts(options)
    batch, units = scoring_batches(data, per_class, seed), {"structure": "weight", "exclude": ()}
    mask = prune(model, criterion, sparsity, batch=batch, seed=seed, **pruning)
    units |= {key: pruning[key] for key in units if key in pruning}
    found = bind(units["structure"], model, batch(0)[0], units["exclude"])
    if isinstance(found, Fixed):
        raise ValueError(f"{units['structure']!r} fixes the count of every layer: there are no ratios to take over")
    kept = {name: int(flags.count_nonzero()) for name, flags in found.reduce(mask, "max").items()}
    drawn = prune(
        model, "random", sparsity, batch=batch, seed=seed + APART, allow_empty=True,
        scope=lambda layers, _: {name: kept[name] for name in layers}, **units,
    )  # fmt: skip
    drawn.budget = mask.budget
    return train(model, data, mask=drawn, epochs=epochs, seed=seed, **training)


@method(
    "magnitude_after_training", method="train, prune by magnitude, train on", criterion="magnitude", when="after",
    family="baseline", paper="Han et al., Learning both weights and connections", year=2015,
)  # fmt: skip
def magnitude_after_training(model, data, sparsity, seed, epochs, *, per_class=10, **options):
    """What pruning at initialization must be measured against, at the same number of epochs: dense for epochs // 2,
    one-shot magnitude, the rest under the mask. Each half has its own schedule of the learning rate and its own
    data order; history and budget count both. With a `checkpoint` the dense half has one of its own beside it.
    ValueError for fewer than 2 epochs."""
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 2:
        raise ValueError(
            f"epochs must be an integer from 2 on, half of it dense and half under the mask; got {epochs!r}"
        )
    training, pruning = _parts(options)
    pruning |= {"batch": scoring_batches(data, per_class, seed), "seed": seed}
    next(rounds(model, "magnitude", sparsity, **pruning))  # its errors come before anything is changed
    beside = {"checkpoint": f"{training['checkpoint']}.dense"} if training.get("checkpoint") else {}
    dense = train(model, data, epochs=epochs // 2, seed=seed, **training | beside)
    if dense.interrupted:
        return dense
    mask = prune(model, "magnitude", sparsity, **pruning)
    run = train(model, data, mask=mask, epochs=epochs - epochs // 2, seed=seed + APART, **training)
    return _joined(dense, run)


def _joined(first, second):
    """The second Run, with the first before it: epochs, steps, seconds and passes count on."""
    start = {key: sum(row[key] for row in first.history[-1:]) for key in ("epoch", "step", "seconds")}
    second.history[:] = first.history + [row | {k: row[k] + v for k, v in start.items()} for row in second.history]
    second.budget |= {key: second.budget[key] + first.budget["train"] for key in ("train", "total")}
    dense = first.config["epochs"]
    second.config |= {"epochs": dense + second.config["epochs"], "dense_epochs": dense, "seed": first.config["seed"]}
    return second
