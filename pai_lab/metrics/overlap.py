"""Do two masks keep the same weights, two criteria rank them alike? Always beside what chance would give.

pai.overlap(snip_mask, synflow_mask); pai.rank_correlation(snip_scores, synflow_scores)
"""

import torch


def overlap(a, b):
    """Jaccard overlap of two masks against chance: a DataFrame (layer, density_a, density_b, jaccard, chance,
    corrected), one row per layer, then two for the whole masks.

    jaccard = kept in both / kept in either, 1 if nothing is kept. chance = d_a d_b / (d_a + d_b - d_a d_b), what
    random masks of these densities have on average: expected both / expected either. corrected = (jaccard - chance)
    / (1 - chance): 1 for equal masks, 0 for chance, not defined (NaN) where chance is 1. The row "all" knows only
    the two total densities; "all, given the layers" knows the layers' densities: two masks that only share those
    stand above chance in the first and at chance in the second. ValueError if names or shapes differ.
    """
    import pandas as pd

    both = a & b
    rows = [(n, a[n].numel(), *(int(m[n].count_nonzero()) for m in (a, b, both))) for n in a.layers().layer]
    table = pd.DataFrame(rows, columns=["layer", "total", "a", "b", "both"]).set_index("layer").astype(float)
    table["expected"] = table.a * table.b / table.total
    whole = table.sum()
    table.loc["all"] = {**whole, "expected": whole.a * whole.b / whole.total}
    table.loc["all, given the layers"] = whole
    table["density_a"], table["density_b"] = table.a / table.total, table.b / table.total
    table["jaccard"] = _jaccard(table, table.both)
    table["chance"] = _jaccard(table, table.expected)
    table["corrected"] = (table.jaccard - table.chance) / (1 - table.chance)
    return table.drop(columns=["total", "a", "b", "both", "expected"]).reset_index()


def _jaccard(table, both):
    either = table.a + table.b - both
    return (both / either.where(either > 0)).fillna(1.0)


def rank_correlation(a, b):
    """Spearman's rank correlation of two scores: a DataFrame (layer, spearman), one row per layer, then "all".

    `a` and `b` map the same names to tensors of the same shapes. Equal scores share the average of their ranks; in
    [-1, 1]; NaN where all scores of a layer are equal. "all" ranks the scores of all layers together. ValueError if
    names or shapes differ.
    """
    import pandas as pd

    _check(a, b)
    rows = [(name, _spearman(a[name], b[name])) for name in a]
    rows.append(("all", _spearman(*(torch.cat([scores[n].flatten().cpu() for n in a]) for scores in (a, b)))))
    return pd.DataFrame(rows, columns=["layer", "spearman"])


def _check(a, b):
    if not a or set(a) != set(b):
        raise ValueError(f"both scores need the same layers, and at least one: got {list(a)} and {list(b)}")
    for name in a:
        if a[name].shape != b[name].shape:
            shapes = f"{tuple(a[name].shape)} and {tuple(b[name].shape)}"
            raise ValueError(
                f"{name!r} has scores of shapes {shapes}: compare weights with weights, filters with filters"
            )


def _spearman(a, b):
    """The correlation of the ranks."""
    from scipy.stats import rankdata

    x, y = (rankdata(t.detach().flatten().double().cpu().numpy()) for t in (a, b))
    x, y = x - x.mean(), y - y.mean()
    spread = ((x @ x) * (y @ y)) ** 0.5
    return float(x @ y / spread) if spread else float("nan")
