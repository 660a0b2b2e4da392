"""The measured table behind lesson 02: how well criteria guess a loss change, and what is left after pruning by them.

    python notebooks/results/make_criteria.py     # writes criteria.csv; goes on where it was interrupted

digits: 597 examples to learn from, 300 of the training set held out for scoring. Single weights of a perceptron
64-32-10, filters of a small convolutional net with BatchNorm; five seeds. About 10 minutes on two cores.
"""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

import pai_lab as pai
from pai_lab.criteria.first_order import loss_gradients
from pai_lab.data import stratified
from pai_lab.functional import seeded
from pai_lab.metrics import rank_correlation
from pai_lab.models import perceptron, vgg

HERE = Path(__file__).parent
NETS = {
    "weight": (partial(perceptron, hidden=(32,)), {"epochs": 60, "lr": 1e-2}),
    "unit": (partial(vgg, plan="16 16 M 32 32", norm=True), {"epochs": 15}),
}
TUNING = {"epochs": 10, "lr": 2e-3}
SPARSITIES = {"weight": [0.5, 0.7, 0.8, 0.9, 0.95], "unit": [0.1, 0.25, 0.5]}
ROUNDS = [0.2, 0.35, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


# -- the truth, and guesses that the package does not have -------------------------------------------------------------
@torch.no_grad()
def changes(model, batch, tensors, units):
    """The loss without each unit minus the loss with all. `units`: lists of entries (flat tensor, place)."""
    x, y = batch

    def loss():
        return F.cross_entropy(pai.forward(model, tensors, x), y).double()

    start, found = loss(), []
    for unit in units:
        before = [entries[place].item() for entries, place in unit]
        for entries, place in unit:
            entries[place] = 0
        found.append(loss() - start)
        for (entries, place), value in zip(unit, before, strict=True):
            entries[place] = value
    return torch.stack(found)


@pai.criterion
def true_change(model, batch, mask):
    """Of each single weight; 0 for those that are gone."""
    tensors = {name: t.detach() for name, t in pai.masked(model, mask).items()}
    found = {}
    for name in pai.prunable(model):
        flat = tensors[name].view(-1)
        alive = flat.nonzero().flatten().tolist()
        found[name] = torch.zeros(len(flat), dtype=torch.float64)
        found[name][alive] = changes(model, batch, tensors, [[(flat, k)] for k in alive])
        found[name] = found[name].view(tensors[name].shape)
    return found


@pai.criterion
def true_size(model, batch, mask):
    return {name: change.abs() for name, change in true_change(model, batch, mask).items()}


@pai.criterion(criterion="loss without a channel - loss", defaults={"unit": "filter"})
def true_unit_change(model, batch, mask):
    """Of each channel: a gate of 0 behind its BatchNorm."""
    tensors = {name: t.detach() for name, t in pai.masked(model, mask).items()}
    found = {}
    for name, weight in pai.prunable(model).items():
        norm = name.replace("conv", "bn").removesuffix(".weight")
        units = [[(tensors[f"{norm}.{part}"], k) for part in ("weight", "bias")] for k in range(len(weight))]
        known = name.startswith("conv")
        found[name] = changes(model, batch, tensors, units) if known else torch.zeros(len(weight))
        found[name] = found[name].view(-1, *[1] * (weight.ndim - 1))
    return found


@pai.criterion
def taylor_signed(model, batch, mask):
    weights, gradients = loss_gradients(model, batch, mask)
    return {name: -(w * gradients[name]).detach() for name, w in weights.items()}


@pai.criterion
def both_terms(model, batch, mask):
    first = pai.score(model, "taylor_signed", batch, mask=mask)
    second = pai.score(model, "obd", batch, mask=mask, curvature="gauss_newton")
    return {name: first[name] + second[name] for name in first}


def in_pieces(batch, size=30):
    return list(zip(*(part.split(size) for part in batch), strict=True))


# method: (criterion, options, whether the batch comes in minibatches)
GUESSES = {
    "weight": {
        **{name: (name, {}, False) for name in ("random", "magnitude", "lamp", "gradient", "taylor", "taylor_signed")},
        "obd_fisher": ("obd", {}, False), "obd": ("obd", {"curvature": "gauss_newton"}, False),
        "both_terms": ("both_terms", {}, False), "true_change": ("true_change", {}, False),
        "true_size": ("true_size", {}, False),
    },
    "unit": {
        **{name: (name, {}, False) for name in ("random", "filter_l1", "filter_l2", "bn_gate", "skeletonization")},
        "taylor_gate, one batch": ("taylor_gate", {}, False), "taylor_gate": ("taylor_gate", {}, True),
        "true_change": ("true_unit_change", {}, False),
    },
}  # fmt: skip
PRUNED = {
    "weight": ["random", "magnitude", "lamp", "taylor", "obd", "both_terms", "true_change", "true_size"],
    "unit": ["random", "filter_l1", "bn_gate", "taylor_gate", "skeletonization", "true_change"],
}


# -- one cell of the table ---------------------------------------------------------------------------------------------
def setting(level, moment, scored_on, seed):
    """Data without the held-out slice, the net, the scoring batch."""
    data = pai.load("digits")
    x, y = data.train
    learn, held = stratified(y, 300, seed)
    data = replace(data, train=(x[learn], y[learn]))
    make, how = NETS[level]
    model = pai.build(make, data, seed=seed)
    if moment == "trained":
        pai.train(model, data, **how, seed=seed, progress=False)
    return data, model, data.train if scored_on == "training set" else (x[held], y[held])


def scored(level, method, model, batch, seed, mask=None):
    criterion, options, pieces = GUESSES[level][method]
    batch = in_pieces(batch) if pieces else batch
    scores = pai.score(model, criterion, batch, mask=mask, seed=seed, **options)
    if level == "weight":
        return scores
    if method == "random":
        with seeded(seed + 1_000):  # not the numbers that drew the weights
            scores = {name: torch.rand(len(s), *[1] * (s.ndim - 1)) for name, s in scores.items()}
    return {name: s[:, :1, :1, :1] for name, s in scores.items() if s.ndim == 4}


def ranks(level, model, batch, seed):
    """Rank correlation of each guess with the true change, and with its size; None where all scores are equal."""
    guesses = {method: scored(level, method, model, batch, seed) for method in GUESSES[level] if method != "true_size"}
    truth = guesses.pop("true_change")
    size = {name: t.abs() for name, t in truth.items()}
    for method, scores in guesses.items():
        for key, target in (("spearman", truth), ("spearman_size", size)):
            found = rank_correlation(scores, target).spearman.iloc[-1]
            yield f"{method}||{key}", None if pd.isna(found) else found


def masks(level, method, model, batch, seed):
    """(sparsity, mask): one-shot, or "obd in rounds": scored again on what is left."""
    if method.endswith(" in rounds"):
        mask = None
        for step in ROUNDS:
            scores = scored(level, method.removesuffix(" in rounds"), model, batch, seed, mask)
            mask = pai.allocate(scores, step, within=mask, seed=seed)
            if step in SPARSITIES[level]:
                yield step, mask
    elif level == "weight":
        scores = scored(level, method, model, batch, seed)
        for sparsity in SPARSITIES[level]:
            yield sparsity, pai.allocate(scores, sparsity, seed=seed)
    else:
        criterion, options, pieces = GUESSES[level][method]
        given = in_pieces(batch) if pieces else batch
        for sparsity in SPARSITIES[level]:
            how = {"structure": "channel", "scope": "layer", "batch": given, "seed": seed}
            yield sparsity, pai.prune(model, criterion, sparsity, **how, **options)


def accuracies(level, method, model, data, batch, seed):
    """Validation accuracy as pruned, and after the same short training for all; test accuracy after it."""
    for sparsity, mask in masks(level, method, model, batch, seed):
        net = copy.deepcopy(model)
        mask.apply(net)
        yield f"{method}|{sparsity}|raw_accuracy", pai.evaluate(net, data.val)["accuracy"]
        yield f"{method}|{sparsity}|raw_loss", pai.evaluate(net, batch)["loss"]
        run = pai.train(net, data, mask=mask, **TUNING, seed=seed, progress=False)
        for part in ("val_accuracy", "test_accuracy"):
            yield f"{method}|{sparsity}|{part}", run.metrics[part]


def measured(level, moment, scored_on, seed):
    """All numbers of one net and one scoring batch: {"method|sparsity|what": number}."""
    torch.set_num_threads(1)
    data, model, batch = setting(level, moment, scored_on, seed)
    found = dict(ranks(level, model, batch, seed))
    if moment == "trained":
        rounds = ["obd in rounds", "true_change in rounds"] * (level == "weight" and scored_on != "training set")
        for method in [*PRUNED[level], *rounds]:
            found |= accuracies(level, method, model, data, batch, seed)
        found["dense|0.0|raw_accuracy"] = pai.evaluate(model, data.val)["accuracy"]
        found["dense|0.0|raw_loss"] = pai.evaluate(model, batch)["loss"]
    return found


def tidy(table):
    """One row for each method, sparsity and cell."""
    numbers = [column for column in table if column.count("|") == 2]
    same = ["level", "moment", "scored_on", "seed", "pai_lab", "torch", "python", "processor"]
    long = table.melt(same, numbers).dropna(subset="value")
    long[["method", "asked_sparsity", "what"]] = long.pop("variable").str.split("|", expand=True)
    index = [*same[:3], "method", "asked_sparsity", *same[3:]]
    return long.pivot(index=index, columns="what", values="value").reset_index()


if __name__ == "__main__":
    cells = [("initial", "held-out slice"), ("trained", "held-out slice"), ("trained", "training set")]
    points = [
        {"level": level, "moment": moment, "scored_on": part, "seed": seed}
        for seed in range(5) for level in NETS for moment, part in cells
    ]  # fmt: skip
    table = tidy(pai.sweep(measured, points, folder=HERE.parents[1] / "build" / "criteria"))
    table.to_csv(HERE / "criteria.csv", index=False, float_format="%.5g")
    print(table.groupby(["level", "moment", "scored_on", "method"]).spearman.mean().unstack().round(2).to_string())
