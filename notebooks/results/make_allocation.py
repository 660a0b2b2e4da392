"""The measured table behind lesson 03: how far criteria and scopes compress a net, and what the split of a budget buys.

    python notebooks/results/make_allocation.py     # writes allocation.csv; goes on where it was interrupted

digits, VGG6 with BatchNorm, five seeds. About 10 minutes on two cores.
"""

from pathlib import Path

import pandas as pd

import pai_lab as pai
from pai_lab.collapse import critical_compression, maximal_compression
from pai_lab.metrics import effective

HERE = Path(__file__).parent
ONE_ROUND = ["random", "magnitude", "lamp", "snip", "grasp"]
ROUNDS = [1, 2, 3, 5, 10, 20, 30, 50, 100]
WHERE = ["layer", "erk", "igq", "smart", "balanced", "global snip", "global synflow"]
WHICH = ["random", "magnitude", "snip", "synflow"]
KEEP = [
    "study", "data", "model", "criterion", "scope", "iterations", "critical", "maximal", "where", "which",
    "asked_sparsity", "sparsity", "seed", "epochs", "batch_size", "lr", "optimizer", "val_accuracy", "test_accuracy",
    "effective_sparsity", "weights", "kept", "macs", "sparse_macs", "budget_train", "budget_scoring", "initial",
    "device", "pai_lab", "torch", "python", "processor",
]  # fmt: skip


def critical(*, data, model, criterion, scope, iterations, seed):
    """How far one criterion compresses one net before a layer is empty."""
    loaded = pai.load(data)
    net, batch = pai.build(model, loaded, seed=seed), loaded.score_batch(per_class=10, seed=seed)
    found = critical_compression(net, criterion, batch=batch, scope=scope, iterations=iterations, seed=seed)
    return {"critical": found, "maximal": maximal_compression(net)}


@pai.method
def spend(model, data, sparsity, seed, epochs, *, where, which, **training):
    """Prune by the criterion `which` inside each layer, to as many weights a layer as `where` says, then train.
    `where` is a scope, or "global snip": the counts that SNIP's one ranking over all layers leaves."""
    batch, scope = data.score_batch(per_class=10, seed=seed), where
    if where.startswith("global "):
        by = where.removeprefix("global ")
        counts = pai.prune(model, by, sparsity, batch=batch, seed=seed, allow_empty=True).layers()
        scope = same_counts(dict(zip(counts.layer, counts.kept.tolist(), strict=True)))
    mask = pai.prune(model, which, sparsity, batch=batch, scope=scope, seed=seed, allow_empty=True)
    run = pai.train(model, data, mask=mask, epochs=epochs, seed=seed, **training)
    run.metrics["effective_sparsity"] = effective(model, mask).sparsity
    return run


def same_counts(counts):
    return lambda layers, kept: counts


def critical_points():
    fixed = {"data": "digits", "model": "vgg6_bn"}
    for seed in range(5):
        for criterion in ONE_ROUND:
            yield fixed | {"criterion": criterion, "scope": "global", "iterations": 1, "seed": seed}
        yield fixed | {"criterion": "iterative_snip", "scope": "global", "iterations": 30, "seed": seed}
        for rounds in ROUNDS:
            yield fixed | {"criterion": "synflow", "scope": "global", "iterations": rounds, "seed": seed}


def accuracy_points():
    fixed = {"data": "digits", "model": "vgg6_bn", "epochs": 15}
    for seed in range(5):
        yield fixed | {"method": "random", "sparsity": 0.0, "seed": seed}
        for sparsity in (0.95, 0.98):
            pruned = fixed | {"method": "spend", "sparsity": sparsity, "seed": seed}
            yield pruned | {"where": "global magnitude", "which": "magnitude"}
            for where in WHERE:
                for which in WHICH:
                    yield pruned | {"where": where, "which": which}


if __name__ == "__main__":
    folder = HERE.parents[1] / "build" / "allocation"
    found = pai.sweep(critical, list(critical_points()), folder=folder).assign(study="compression")
    trained = pai.sweep(pai.experiment, list(accuracy_points()), folder=folder).assign(study="accuracy")
    table = pd.concat([found, trained])[KEEP]
    table = table.sort_values(["study", "criterion", "scope", "iterations", "asked_sparsity", "where", "which", "seed"])
    table.to_csv(HERE / "allocation.csv", index=False, float_format="%.6g")
    print(pai.checklist(trained).to_string())
