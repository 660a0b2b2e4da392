"""The measured table behind lesson 01: one budget of weights, removed in four structures from one trained network.

    python notebooks/results/make_structures.py     # writes structures.csv, with the versions it was made by

digits, VGG6 with BatchNorm, five seeds. About 4 minutes of CPU time, spread over the cores.
"""

from copy import deepcopy
from pathlib import Path

import pandas as pd
import torch
from joblib import Parallel, delayed

import pai_lab as pai
from pai_lab.records import provenance

HERE = Path(__file__).parent
BLOCKS = {0.5: "2:4", 0.75: "1:4", 0.875: "1:8", 0.9375: "1:16"}  # the N:M of each sparsity
STRUCTURES = ["weight", "N:M", "kernel", "channel"]
DENSE_EPOCHS, MORE_EPOCHS = 8, 2


def weights(model):
    return sum(weight.numel() for weight in pai.prunable(model).values())


def mask_of(model, criterion, structure, sparsity, seed):
    """The mask that removes as many weights as N:M does, or as near as whole units allow; alike in each layer."""
    first = {} if structure == "channel" else {"exclude": ["conv1.weight"]}  # N:M does not fit one input channel
    if structure == "N:M":
        return pai.prune(model, criterion, structure=BLOCKS[sparsity], seed=seed, **first)
    low, high, total, masks = 0.0, 1.0, weights(model), []
    for _ in range(12):  # the sparsity of units is not that of weights: a channel goes from two layers
        middle = (low + high) / 2
        mask = pai.prune(model, criterion, middle, structure=structure, scope="layer", seed=seed, floor=1, **first)
        masks.append(mask)
        low, high = (middle, high) if (mask.total - mask.kept) / total < sparsity else (low, middle)
    return min(masks, key=lambda mask: abs((mask.total - mask.kept) / total - sparsity))


def study(seed):
    """All rows of one seed: the dense network, then each structure, sparsity and criterion from its weights."""
    torch.set_num_threads(1)
    data = pai.load("digits")
    dense = pai.build("vgg6_bn", data, seed=seed)
    run = pai.train(dense, data, epochs=DENSE_EPOCHS, seed=seed, progress=False)
    rows = [{"structure": "dense", "criterion": "none", "asked_sparsity": 0.0, "sparsity": 0.0} | run.metrics]
    for structure in STRUCTURES:
        for sparsity in BLOCKS:
            for criterion in ("magnitude", "random"):
                # another seed than the weights': the same one would draw the same numbers for both
                mask = mask_of(dense, criterion, structure, sparsity, 1000 + seed)
                net = mask.apply(deepcopy(dense))
                at_once = pai.evaluate(net, data.val)["accuracy"]
                run = pai.train(net, data, mask=mask, epochs=MORE_EPOCHS, seed=seed, progress=False)
                asked = {"structure": structure, "criterion": criterion, "asked_sparsity": sparsity}
                removed = (mask.total - mask.kept) / weights(dense)
                rows.append(asked | run.metrics | {"sparsity": removed, "at_once": at_once})
    return [row | {"seed": seed} for row in rows]


if __name__ == "__main__":
    rows = sum(Parallel(n_jobs=-1)(delayed(study)(seed) for seed in range(5)), [])
    made = {
        "data": "digits", "model": "vgg6_bn", "dense_epochs": DENSE_EPOCHS, "more_epochs": MORE_EPOCHS, "device": "cpu",
    } | provenance()  # fmt: skip
    table = pd.DataFrame(rows).assign(**made).sort_values(["structure", "criterion", "asked_sparsity", "seed"])
    table.to_csv(HERE / "structures.csv", index=False, float_format="%.6g")
    print(table.groupby(["structure", "criterion", "asked_sparsity"])[["sparsity", "at_once", "val_accuracy"]].mean())
