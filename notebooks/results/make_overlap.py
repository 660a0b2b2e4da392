"""The measured tables behind lesson 04's masks: how much two scorers share, and what each of them reads.

    python notebooks/results/make_overlap.py     # writes overlap.csv

mnist1d, MLP 40-128x4-10 before training, sparsity 0.95, five seeds. Half a minute.
"""

from itertools import combinations
from pathlib import Path

import pai_lab as pai

HERE = Path(__file__).parent
SETTING = {"data": "mnist1d", "model": "mlp", "sparsity": 0.95}
SCORERS = [
    "magnitude", "snip", "iterative_snip", "force", "prospr", "grasp", "synflow", "synflow_l2", "phew", "ntk_sap",
]  # fmt: skip
NEW = 1_000  # added to the seed of whatever is changed


def overlaps(*, data, model, sparsity, seed):
    """One seed: the overlaps of all pairs of scorers, and of each with itself after one of its inputs is changed."""
    data = pai.load(data)
    net, batch = pai.build(model, data, seed=seed), data.score_batch(per_class=10, seed=seed)
    changed = {
        "another batch": (net, data.score_batch(per_class=10, seed=seed + NEW)),
        "permuted labels": (net, pai.corrupted(batch, "labels", seed=seed + NEW)),
        "permuted inputs": (net, pai.corrupted(batch, "inputs", seed=seed + NEW)),
        "other weights": (pai.reinitialised(net, seed=seed + NEW), batch),
    }

    def mask(scorer, net, batch):
        return pai.prune(net, scorer, sparsity, batch=batch, seed=seed, allow_empty=True)

    masks = {scorer: mask(scorer, net, batch) for scorer in SCORERS}
    found = {(a, b): row(masks[a], masks[b]) for a, b in combinations(SCORERS, 2)}
    for scorer in SCORERS:
        for what, inputs in changed.items():
            found[scorer, what] = row(masks[scorer], mask(scorer, *inputs))
    return {f"{a}|{b}|{key}": value for (a, b), values in found.items() for key, value in values.items()}


def row(a, b):
    """Overlap beside two chances: of masks that share the total density only, and of those that share the layers'."""
    table = pai.overlap(a, b).set_index("layer")
    total, layers = table.loc["all"], table.loc["all, given the layers"]
    return {
        "jaccard": total.jaccard, "chance": total.chance, "chance_in_layers": layers.chance,
        "above_chance": total.corrected, "above_chance_in_layers": layers.corrected,
    }  # fmt: skip


def tidy(table):
    """One row per seed and pair."""
    names = [column for column in table if "|" in column]
    long = table.melt(["data", "model", "sparsity", "seed", "pai_lab", "torch", "python", "processor"], names)
    long[["a", "b", "key"]] = long.variable.str.split("|", expand=True)
    keys = [column for column in long if column not in ("variable", "value", "key")]
    return long.pivot(index=keys, columns="key", values="value").reset_index()


if __name__ == "__main__":
    points = [SETTING | {"seed": seed} for seed in range(5)]
    table = tidy(pai.sweep(overlaps, points, folder=HERE.parents[1] / "build" / "overlap"))
    table = table.sort_values(["a", "b", "seed"])
    table.to_csv(HERE / "overlap.csv", index=False, float_format="%.4g")
    print(
        table.groupby(["a", "b"])[["jaccard", "chance_in_layers", "above_chance_in_layers"]].mean().round(3).to_string()
    )
