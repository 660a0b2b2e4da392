"""The measured tables behind lesson 04: scorers at initialization, and the sanity checks on three of them.

    python notebooks/results/make_scorers.py     # writes scorers.csv and sanity.csv; goes on where it was interrupted

mnist1d, MLP 40-128x4-10, 30 epochs, five seeds; 12 scorers at four sparsities, magnitude after training at the same
number of epochs, and the dense network. About 20 minutes on two cores.
"""

from itertools import product
from math import prod, sqrt
from pathlib import Path

import torch

import pai_lab as pai

HERE = Path(__file__).parent
SETTING = {"data": "mnist1d", "model": "mlp", "epochs": 30}
SCORERS = [
    "random", "magnitude", "snip", "iterative_snip", "force", "grasp", "synflow", "synflow_l2", "phew", "ntk_sap",
    "prospr",
]  # fmt: skip
SPARSITIES = [0.9, 0.95, 0.98, 0.99]
CHECKED = ["snip", "grasp", "synflow"]
CHECKS = ["shuffled", "shuffled_in_units", "reinitialised", "inverted", "corrupted"]
KEEP = [
    "data", "model", "method", "criterion", "scope", "draws", "asked_sparsity", "sparsity", "effective_sparsity",
    "seed", "epochs", "val_accuracy", "test_accuracy", "kept", "sparse_macs", "budget_train",
    "budget_scoring", "initial", "device", "pai_lab", "torch", "python", "processor",
]  # fmt: skip


@pai.method
def shuffled_in_units(model, data, sparsity, seed, epochs, *, criterion, **training):
    """The criterion's mask, each layer's entries shuffled among the rows and columns that it uses: the same layers'
    densities and the same units, other weights between them."""
    batch = data.score_batch(per_class=10, seed=seed)
    mask = pai.prune(model, criterion, sparsity, batch=batch, seed=seed)
    moved = in_units(mask, seed + 1_000)
    moved.budget = mask.budget
    return pai.train(model, data, mask=moved, epochs=epochs, seed=seed, **training)


def in_units(mask, seed):
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, keep in mask.items():
        places = (keep.any(1, keepdim=True) & keep.any(0, keepdim=True)).nonzero()
        chosen = places[torch.randperm(len(places), generator=generator)[: keep.count_nonzero()]]
        found[name] = torch.zeros_like(keep)
        found[name][chosen[:, 0], chosen[:, 1]] = True
    return pai.Mask(found)


@pai.method
def narrow(model, data, sparsity, seed, epochs, **training):
    """No scorer, few units: in each hidden layer only so many that random weights fill half of what joins them."""
    shapes = {name: weight.shape for name, weight in pai.prunable(model).items()}
    first, *hidden, last = shapes.values()
    kept, ends = round((1 - sparsity) * sum(map(prod, shapes.values()))), first[1] + last[0]
    units = round(
        (sqrt(ends**2 + 8 * len(hidden) * kept) - ends) / (2 * len(hidden))
    )  # h units^2 + ends units = 2 kept
    scores, generator = {}, torch.Generator().manual_seed(seed + 1_000)
    for name, shape in shapes.items():
        scores[name] = torch.rand(shape, generator=generator)
        used = scores[name][: shape[0] if shape == last else units, : shape[1] if shape == first else units]
        used += 1
    return pai.train(model, data, mask=pai.allocate(scores, sparsity), epochs=epochs, seed=seed, **training)


def scorers():
    """Every scorer and the contrasts, at every sparsity and seed; the dense network once per seed."""
    for seed in range(5):
        yield SETTING | {"method": "random", "sparsity": 0.0, "seed": seed}
        for method, sparsity in product([*SCORERS, "magnitude_after_training"], SPARSITIES):
            yield SETTING | {"method": method, "sparsity": sparsity, "seed": seed}
        for sparsity in SPARSITIES:
            for method in ("random", "magnitude_after_training"):
                yield SETTING | {"method": method, "scope": "erk", "sparsity": sparsity, "seed": seed}
            yield SETTING | {"method": "narrow", "sparsity": sparsity, "seed": seed}
            # one draw of weights, noise and inputs is what the criterion takes by default; its paper takes many
            yield SETTING | {"method": "ntk_sap", "draws": 10, "sparsity": sparsity, "seed": seed}


def checks():
    """The sanity checks, each with each criterion that is checked."""
    for seed, check, criterion, sparsity in product(range(5), CHECKS, CHECKED, [0.9, 0.98]):
        yield SETTING | {"method": check, "criterion": criterion, "sparsity": sparsity, "seed": seed}
    for seed, criterion, sparsity in product(range(5), CHECKED, [0.9, 0.98]):
        yield SETTING | {"method": criterion, "sparsity": sparsity, "seed": seed}


if __name__ == "__main__":
    for name, points in (("scorers", scorers), ("sanity", checks)):
        table = pai.sweep(pai.experiment, list(points()), folder=HERE.parents[1] / "build" / "scorers")
        table = table[[column for column in KEEP if column in table]]
        order = [c for c in ("criterion", "method", "scope", "draws", "asked_sparsity", "seed") if c in table]
        table.sort_values(order).to_csv(HERE / f"{name}.csv", index=False, float_format="%.6g")
        print(table.groupby(order[:-1], dropna=False).val_accuracy.mean().unstack().round(3).to_string())
