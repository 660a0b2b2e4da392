"""Two scorers on the same weights: every weight's rank under both, and who keeps which.

pai.plots.duel(scores_a, scores_b, 0.9, names=("magnitude", "obd"))
"""

import numpy as np

from pai_lab.allocation import allocate
from pai_lab.metrics import overlap, rank_correlation
from pai_lab.plots.frame import GONE, INK, KEPT, QUIET, canvas, caption, percent, style

MOST = 5_000  # points that are drawn
LOOKS = {"both": (KEPT, "o"), "first": ("#D55E00", "^"), "second": ("#009E73", "v"), "neither": (GONE, "o")}


@style()
def duel(a, b, sparsity, names=("a", "b"), *, ax=None):
    """Two scores of the same weights, drawn by rank: 0 is the first to go, 1 the last; four groups by who keeps it.

    `a` and `b` map the same parameter names to tensors of the same shapes, higher = keep; for one layer pass that
    layer alone. Each is cut by `pai.allocate`, so each keeps exactly `round((1 - sparsity) * n)`. Equal scores share
    their mean rank. Of more than 5,000 weights that many are drawn, at even steps; all counts are of all weights.
    ValueError for other names or shapes, NaN or inf, a sparsity outside [0, 1].
    """
    masks = [allocate(scores, sparsity, allow_empty=True) for scores in (a, b)]
    correlation = rank_correlation(a, b).spearman.iloc[-1]
    shared = overlap(*masks).set_index("layer").loc["all"]
    ranks = [_ranks(scores, a) for scores in (a, b)]
    groups = _groups(*(np.concatenate([mask[name].flatten().cpu() for name in a]) for mask in masks))
    ax, total = canvas(ax, (10, 6.2)), len(ranks[0])
    shown = np.arange(total) % -(-total // MOST) == 0
    for name, (colour, marker) in reversed(LOOKS.items()):
        x, y = (rank[groups[name] & shown] for rank in ranks)
        ax.plot(x, y, marker, color=colour, markersize=4.5, markeredgewidth=0, alpha=0.7, gid=name)
    for line in (ax.axvline, ax.axhline):
        line(1 - masks[0].kept / total, color=INK, linestyle="--", linewidth=1.5, gid="cut")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    ax.set_xlabel(f"rank by {names[0]} (0 goes first, 1 goes last)")
    ax.set_ylabel(f"rank by {names[1]}")
    _counts(ax, {name: int(group.sum()) for name, group in groups.items()}, names)
    drawn = "" if shown.all() else f", {shown.sum():,} drawn"
    told = "rank correlation not defined" if np.isnan(correlation) else f"rank correlation {correlation:.2f}"
    caption(
        ax, f"{total:,} weights{drawn}; {told} (Spearman); overlap of the kept {percent(shared.jaccard)} (Jaccard), "
        f"by chance {percent(shared.chance)}; dashed: the cuts at sparsity {percent(sparsity)}",
    )  # fmt: skip
    return ax


def _ranks(scores, order):
    """Ranks in [0, 1] of all scores together, in the layers' `order`; equal scores share the mean of theirs."""
    from scipy.stats import rankdata

    flat = np.concatenate([scores[name].detach().cpu().double().flatten().numpy() for name in order])
    return (rankdata(flat) - 1) / max(len(flat) - 1, 1)


def _groups(first, second):
    both, neither = first & second, ~(first | second)
    return {"both": both, "first": first & ~second, "second": second & ~first, "neither": neither}


def _counts(ax, counts, names):
    """The four groups in words, right of the picture."""
    words = {"both": "kept by both", "first": f"only {names[0]}", "second": f"only {names[1]}", "neither": "by neither"}
    for place, (name, word) in enumerate(words.items()):
        colour, marker = LOOKS[name]
        high = 0.92 - 0.16 * place
        ax.plot(1.06, high, marker, color=colour, markersize=11, transform=ax.transAxes, clip_on=False)
        text = f"{word}\n{counts[name]:,}"
        ax.text(
            1.1, high, text, color=QUIET if name == "neither" else INK, va="center", transform=ax.transAxes, gid="count"
        )
