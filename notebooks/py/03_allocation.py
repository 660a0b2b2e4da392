# %% [markdown]
# # 03 Allocation and layer collapse: where the budget goes
#
# **Claim.** *Where* the budget goes matters more than *which* weights get it. We test this, and find where it stops.
#
# **Time** 40 minutes to read; the cells run in under a minute on a laptop. **You need**
# [00 Start here](00_start_here.ipynb): masks, criteria, sparsity. **Afterwards you can**
#
# 1. *split* a budget of weights over layers in eight ways, and write one of them yourself;
# 2. *predict* when a layer runs empty, from nothing but the layers' shapes;
# 3. *compare* two pruned networks fairly: same weights kept, multiply-adds told, paths counted.

# %%
from math import prod

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

import pai_lab as pai
from pai_lab import lesson, plots
from pai_lab.collapse import critical_compression, maximal_compression
from pai_lab.metrics import effective

lesson.begin(3)

# %%
lesson.recall(
    "A mask keeps 1 of every 50 weights. What are its sparsity and its compression?",
    "98%, and 50 times",
    "Sparsity is the fraction removed; compression is all weights over kept weights.",
)
lesson.recall(
    "Why keep the first k of the ranked weights, and not all above a threshold?",
    "Scores can be equal",
    "A threshold then keeps all equal ones or none, and the count is no longer what was asked for.",
)
lesson.recall(
    "Which baseline must every criterion beat?",
    "random",
    "at the same number of weights kept, over several seeds",
    options=["the dense network", "random", "magnitude"],
)

# %% [markdown]
# ## Two decisions in one
#
# A mask answers two questions that we have not told apart so far. *How many* weights does each layer keep? And *which*
# ones, inside the layer? The first is the **allocation** (its rule is called a **scope**), the second the criterion.
#
# With one **global** ranking the scores answer both at once. If a layer's scores are all small, it keeps nothing. No
# signal passes it: this is **layer collapse**. The other way is to fix a count for each layer first.
#
# The network here is a small VGG: six 3x3 convolutions with BatchNorm and one linear layer. The data are digits, 8x8
# images in ten classes. **Commit before you look.**

# %%
data = pai.load("digits")
net = pai.build("vgg6_bn", data, seed=0)
batch = data.score_batch(per_class=10)
weights = pai.prunable(net)
n = sum(w.numel() for w in weights.values())
print(f"{n:,} weights in {len(weights)} layers:", {name.split(".")[0]: w.numel() for name, w in weights.items()})
lesson.predict(
    "empty", f"One ranking of |w| over all {n:,} initial weights empties a layer at which compression?", unit="x"
)
lesson.predict(
    "matters",
    "50 times fewer weights, trained. On average, what moves the accuracy more: another split over the layers, or "
    "another criterion inside them?",
    choices=["the split", "the criterion", "about the same"],
)

# %% [markdown]
# ## The smallest case, by hand
#
# Three layers, sixteen scores, and four weights may stay. The layer `a` has large scores, as a layer with few inputs has
# when PyTorch draws its weights. One ranking gives it everything.

# %%
# NBVAL_CHECK_OUTPUT
scores = {
    "a": torch.tensor([[9.0, 8.0], [7.0, 6.0]]),
    "b": torch.tensor([[5.0, 4.5, 4.0, 3.5], [3.2, 2.8, 2.4, 2.2]]),
    "c": torch.tensor([[2.0, 1.5], [1.0, 0.5]]),
}
one_ranking = pai.allocate(scores, 0.75)
per_layer = pai.allocate(scores, 0.75, scope="layer")
print("global ", one_ranking.layers().kept.tolist(), "empty:", one_ranking.collapsed())
print("uniform", per_layer.layers().kept.tolist(), "empty:", per_layer.collapsed())
assert one_ranking.kept == per_layer.kept == 4
assert one_ranking.collapsed() == ["b", "c"] and per_layer.layers().kept.tolist() == [1, 2, 1]

# %% [markdown]
# ## Eight rules
#
# A layer has $N_l$ weights and the shape (out, in, $k_h$, $k_w$). $d$ is the density of the whole network.
#
# | scope | density of a layer |
# |---|---|
# | `global` | whatever one ranking leaves |
# | `layer` (uniform) | $d$ everywhere |
# | `uniform+` | first convolution 1, last linear layer at least 0.2, the rest equal |
# | `er` (Erdős–Rényi) | in proportion to (in + out) / (in · out) |
# | `erk` | in proportion to (in + out + $k_h$ + $k_w$) / (in · out · $k_h$ · $k_w$) |
# | `igq` (ideal gas quotas) | $1 / (1 + F N_l)$, with $F$ such that the total is right |
# | `smart` (smart ratios) | falls with depth $l$ of $L$: $(L-l+1)^2 + (L-l+1)$; last linear layer 0.3 |
# | `balanced` | the same *number* in each layer |
#
# None but `global` looks at a score. All but uniform have one thing in common: small layers are kept denser.
#
# ## Write it
#
# **ERK** multiplies each layer's share by one factor such that the total is right. But a small layer may then hold more
# than it has. It is **full**: set it to 1 and solve for the others again, because what it cannot hold must go elsewhere.
# That may fill another layer. Empty the function and write the loop yourself. Then break it: cut at 1 and do not solve
# again.


# %%
def erk_densities(shapes, density):
    size, full = {name: prod(shape) for name, shape in shapes.items()}, {}
    while True:
        rest = {name: sum(shape) for name, shape in shapes.items() if name not in full}
        budget = density * sum(size.values()) - sum(size[name] for name in full)
        factor = budget / sum(rest.values())  # sum(rest) = sum of (share * size)
        found = {name: factor * rest[name] / size[name] for name in rest}
        too_much = {name: 1.0 for name in found if found[name] > 1 + 1e-9}
        if not too_much:
            return {name: (full | found)[name] for name in shapes}
        full |= too_much


lesson.check("erk_densities", erk_densities)
shapes = {name: tuple(w.shape) for name, w in weights.items()}
mine = erk_densities(shapes, 0.02)
size_of = pai.score(net, "magnitude")
erk = pai.allocate(size_of, 0.98, scope="erk")
print({name.split(".")[0]: f"{mine[name] * w.numel():.1f} -> {int(erk[name].sum())}" for name, w in weights.items()})
assert all(abs(mine[name] * w.numel() - erk[name].sum()) < 1 for name, w in weights.items())
assert pai.allocate(size_of, 0.98, scope=mine) == erk  # a dict of densities is a scope, too

# %% [markdown]
# The package rounds to whole weights so that the total is exact: the largest remainders are rounded up.
#
# ## One budget, eight ways to spend it
#
# Every row below keeps the same number of weights. Read a row from left to right, then its bar. The image shrinks on its way
# through the net, and a convolution uses each weight once per pixel. So a weight in `conv2` costs many more multiply-adds
# (**MACs**) than one in `conv6`.

# %% tags=["explorable"]
spent = {scope: pai.allocate(size_of, 0.98, scope=scope) for scope in pai.names("scope")}
reports = {scope: pai.report(net, mask) for scope, mask in spent.items()}
macs_left = [saved.sparse_macs for saved in reports.values()]
axes = plots.budgets(spent, pai.macs(net))
axes.set_title(
    f"As many weights, up to {max(macs_left) / min(macs_left):.1f} times the arithmetic; "
    f"one ranking empties {len(spent['global'].collapsed())} layers"
)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
for scope in ("layer", "erk", "balanced"):
    saved = reports[scope]
    print(f"{scope:9} {saved.kept:,} weights kept, {saved.sparse_macs:7,} of {saved.macs:,} MACs left")
assert len({mask.kept for mask in spent.values()}) == 1

# %% [markdown]
# "98% sparse" says nothing about the arithmetic. A fair comparison tells both numbers.
#
# ## How far can we go?
#
# **Maximal compression** is $N / L$: one weight left in each of $L$ layers. **Critical compression** is how far a method
# gets before a layer is empty. For one ranking of $|w|$ we can compute it without drawing a weight. PyTorch draws a
# layer's weights from the uniform distribution on $\pm 1/\sqrt{\text{fan-in}}$, where fan-in is the number of inputs
# of a unit. The layer with the largest fan-in is empty when the cut reaches its bound.

# %%
bound = {name: w[0].numel() ** -0.5 for name, w in weights.items()}
cut = min(bound.values())
left = sum(w.numel() * (1 - cut / bound[name]) for name, w in weights.items())
maximal = maximal_compression(net)
measured = {name: critical_compression(net, name, batch=batch) for name in ("magnitude", "snip")}
measured["synflow, 1 round"] = critical_compression(net, "synflow", batch=batch, iterations=1)
lesson.say(
    "From the shapes alone, |w| empties a layer at {theory:.2f}x; with the weights of seed 0 it happens beyond {magnitude:.2f}x. "
    "SNIP gets to {snip:.0f}x, SynFlow in one round to {once:.1f}x. The maximum is {maximal:,.0f}x.",
    theory=n / left, magnitude=measured["magnitude"], snip=measured["snip"], once=measured["synflow, 1 round"],
    maximal=maximal,
)  # fmt: skip

# %% [markdown]
# That was one seed. Now five seeds, more criteria, and four fixed splits. With a fixed split the criterion plays no part:
# the counts depend on shapes only. `results/make_allocation.py` made the table.

# %%
table = pd.read_csv("results/allocation.csv")
found = table.query("study == 'compression'")
rounds = found.iterations.map(lambda k: f", {k:.0f} round{'s' * (k > 1)}")
label = found.criterion + rounds.where(found.criterion.isin(["synflow", "iterative_snip"]), "")
shown = found.assign(label=label)[~((found.criterion == "synflow") & ~found.iterations.isin([1, 10, 100]))]
ranked = {name: rows.critical.to_list() for name, rows in shown.groupby("label")}
rows = dict(sorted(ranked.items(), key=lambda row: np.mean(row[1])))
rows |= {f"fixed: {s}": [critical_compression(net, "random", scope=s)] for s in ("layer", "erk", "igq", "balanced")}

figure, axes = plt.subplots(figsize=(10, 6.5), layout="constrained")
for place, (name, values) in enumerate(rows.items()):
    colour = plots.QUIET if name.startswith("fixed") else plots.KEPT
    axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.5, clip_on=False)
    axes.text(1.02, place, f"{np.mean(values):,.0f}×", transform=axes.get_yaxis_transform(), va="center")
axes.axvline(maximal, color=plots.INK, linestyle="--", linewidth=1.5)
axes.axhline(len(ranked) - 0.5, color=plots.GONE)
axes.text(maximal, -0.75, f"maximal {maximal:,.0f}×", ha="center", color=plots.QUIET, fontsize=plots.SMALL)
axes.set(xscale="log", xlim=(1, 2e4), yticks=range(len(rows)), ylim=(len(rows) - 0.4, -0.6))
axes.set_yticklabels(rows)
axes.set_xlabel(f"critical compression (dots: n = {found.seed.nunique()} seeds; right: mean)")
axes.set_title("One ranking empties a layer early, unless it looks again", pad=24)
plt.show()

# %% [markdown]
# SynFlow in one round is almost as bad as magnitude; SynFlow in 100 rounds never empties a layer. Why? Its scores are
# conserved: in each layer they sum to the same total, so a *large* layer has *small* scores, and goes first. After a
# round its few survivors share that total. They score higher, and are safe. Each round must be small enough for that.
# LAMP needs no rounds: the best weight of each layer scores 1.

# %%
flow = found.query("criterion == 'synflow'")
mean_flow = flow.groupby("iterations").critical.mean()
figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
axes.loglog(flow.iterations, flow.critical, "o", color=plots.KEPT, alpha=0.35, markersize=6)
axes.loglog(mean_flow.index, mean_flow, "-", color=plots.KEPT)
axes.axhline(maximal, color=plots.INK, linestyle="--", linewidth=1.5)
axes.text(1, maximal * 1.15, f"maximal: {maximal:,.0f}×")
axes.set(ylim=(1, 4e4), xticks=mean_flow.index, ylabel="critical compression")
axes.set_xticklabels([f"{k:.0f}" for k in mean_flow.index])
axes.set_xlabel(f"SynFlow rounds (dots: n = {flow.seed.nunique()} seeds, line: mean)")
axes.minorticks_off()
axes.set_title(f"Ten rounds reach {mean_flow[10] / mean_flow[1]:.0f} times further than one")
plt.show()
lesson.reveal("empty", found.query("criterion == 'magnitude'").critical.tolist())

# %% [markdown]
# ## The claim, tested
#
# We cross the two decisions. *Where*: the counts of a fixed split, or the counts that SNIP's or SynFlow's global ranking
# leaves. *Which*: inside each layer, these counts are filled by any criterion, random included. Everything else is
# equal: weights kept, epochs, seeds. In the figure, moving *up or down* changes the split; moving *sideways* along a
# row changes the criterion. We read validation accuracy.

# %%
trained = table.query("study == 'accuracy'")
dense = trained[trained.asked_sparsity == 0].val_accuracy.mean()
pruned = trained[trained["where"].notna()]
order = pruned[pruned.asked_sparsity == 0.98].groupby("where").val_accuracy.mean().sort_values().index.tolist()
looks = plots.looks(["random", "magnitude", "snip", "synflow"])
figure, panels = plt.subplots(1, 2, figsize=(12, 5.6), sharey=True, layout="constrained")
for axes, sparsity in zip(panels, (0.95, 0.98), strict=True):
    at = pruned[pruned.asked_sparsity == sparsity]
    for shift, (name, (colour, marker)) in enumerate(looks.items()):
        rows = at[at.which == name]
        places = rows["where"].map(order.index) + 0.19 * (shift - 1.5)
        axes.plot(rows.val_accuracy, places, marker, color=colour, alpha=0.3, markersize=5, clip_on=False)
        mean = rows.groupby("where").val_accuracy.mean()
        places = [order.index(where) + 0.19 * (shift - 1.5) for where in mean.index]
        axes.plot(mean, places, marker, color=colour, label=name, markeredgecolor="white", clip_on=False)
    for value, line in ((0.1, ":"), (dense, "--")):
        axes.axvline(value, color=plots.QUIET, linestyle=line, linewidth=2, zorder=1)
    axes.set(xlim=(0, 1.02), yticks=range(len(order)), xticks=np.linspace(0, 1, 6), title=f"{sparsity:.0%} removed")
    axes.set_xticklabels([f"{x:.0%}" for x in np.linspace(0, 1, 6)])
    axes.set_yticklabels(order)
panels[0].legend(title="which (criterion)", loc=(0.1, 0.25), fontsize=plots.SMALL, title_fontsize=plots.SMALL)
panels[0].set_ylabel("where (split)")
seeds = f"small: n = {pruned.seed.nunique()} seeds, large: mean; dotted: chance, dashed: dense"
figure.supxlabel(f"validation accuracy ({seeds})", fontsize=plots.TEXT)
figure.suptitle("A bad split sinks every criterion", fontsize=18)
plt.show()


# %%
def swap(means):
    """Mean change of accuracy when one decision is swapped and the other kept: (where, which)."""
    gap = [(means - means.shift(k)).abs().stack() for k in range(1, len(means))]
    across = [(means.T - means.T.shift(k)).abs().stack() for k in range(1, len(means.T))]
    return [100 * pd.concat(parts).mean() for parts in (gap, across)]


crossed = pruned[pruned["where"] != "global magnitude"]
denser = crossed[crossed["where"].isin(["erk", "igq", "smart", "balanced"])]
moved = {}
for menu, rows in {"all": crossed, "small layers denser": denser}.items():
    for sparsity, some in rows.groupby("asked_sparsity"):
        moved[menu, f"{sparsity:.0%}"] = swap(some.pivot_table(index="where", columns="which", values="val_accuracy"))
moved = pd.DataFrame(moved, index=["another split", "another criterion"]).T.rename_axis(["menu", "sparsity"])
print("On average, accuracy moves by so many points:")
display(moved.round(1))
split, which = moved.loc[("all", "98%")]
calm_split, calm_which = moved.loc[("small layers denser", "98%")]
at_98 = crossed[crossed.asked_sparsity == 0.98].groupby(["where", "which"]).val_accuracy.mean()
in_denser = denser[denser.asked_sparsity == 0.98].groupby("which").val_accuracy.mean()
more = "the split" if split > which else "the criterion"
lesson.reveal("matters", more if abs(split - which) > 2 else "about the same")
lesson.say(
    "With all splits on the menu, at 98% another split moves accuracy by {split:.0f} points on average, another "
    "criterion by {which:.0f}. SNIP's own split gives {own:.0%}; the same scores in ERK's split give {erk:.0%}. Among the "
    "four rules that keep small layers denser it is {calm_split:.1f} points for the split and {calm_which:.1f} for "
    "the criterion. There random weights reach {random:.0%}, magnitude {magnitude:.0%}, SynFlow {synflow:.0%}, SNIP {snip:.0%}.",
    split=split, which=which, calm_split=calm_split, calm_which=calm_which, own=at_98["global snip", "snip"],
    erk=at_98["erk", "snip"], **in_denser,
)  # fmt: skip

# %% [markdown]
# So the claim holds. No criterion repairs a *bad* split: in the uniform row the clever ones do no better than random. SNIP
# fails at 98% by its split, although no layer is empty yet. And in a *good* split no criterion here clearly beats random weights:
# what these scores know is mostly *where*. It has a limit, too. Between sensible splits little is left to win, and the
# choice inside the layers moves more than the choice among the rules.
#
# **What would change your mind?** The answer depends on the menu: add a worse split, and "where" wins by more. Our net
# has a tiny first layer, which a uniform split starves. One net, one easy data set, two sparsities. And beware of the
# baseline: our first table said that random weights spoil a good split. The random scores had been drawn from the same seed
# as the initial weights, so that "random" kept the most positive ones.
#
# ## Empty is not the same as cut
#
# With all layers alive, is the network connected? And with an empty layer, is it cut? A weight is **effective** if it lies
# on a path of kept weights from input to output.

# %%
residual = pai.build("resnet20", data, seed=0)
for name, model, criterion, scope, times in (
    ("VGG6", net, "random", "layer", 200), ("VGG6", net, "random", "balanced", 200),
    ("ResNet-20", residual, "magnitude", "global", 50),
):  # fmt: skip
    some = pai.prune(model, criterion, 1 - 1 / times, scope=scope, allow_empty=True)
    on_path, empty = effective(model, some).kept, f"{len(some.collapsed())} of {len(some)} layers empty"
    print(f"{name:10}{criterion:10}{scope:9}{some.kept:6,} kept, {on_path:6,} effective, {empty}")

# %% [markdown]
# A uniform random VGG keeps weights in every layer, and almost none is on a path. A residual net loses many layers
# and stays connected: the signal takes the shortcuts. For it, critical compression says little. So report **effective sparsity**, not only empty layers.
#
# ## Find the flaw
#
# "Our method keeps the first and last layer dense and prunes the others uniformly. At 98% sparsity it beats balanced
# allocation." Both sparsities are printed. What is wrong? Write the assert before you read on; the cell after this one
# fails on purpose.

# %%
ends = ["conv1.weight", "fc.weight"]
ours = pai.prune(net, "magnitude", 0.98, scope="layer", exclude=ends)  # first and last layer are left dense
theirs = pai.prune(net, "magnitude", 0.98, scope="balanced")
for name, mask in (("ours", ours), ("balanced", theirs)):
    run = pai.train(pai.build("vgg6_bn", data, seed=0), data, mask=mask, epochs=15, seed=0)
    print(f"{name:8} sparsity {mask.sparsity:.2%}, accuracy {run.metrics['val_accuracy']:.0%}")


# %% tags=["raises-exception"]
def kept_in(model, mask):
    return sum(int(mask[name].sum()) if name in mask else w.numel() for name, w in pai.prunable(model).items())


assert kept_in(net, ours) == kept_in(net, theirs), f"{kept_in(net, ours):,} weights against {kept_in(net, theirs):,}"

# %%
room = (theirs.kept - sum(weights[name].numel() for name in ends)) / (n - sum(weights[name].numel() for name in ends))
fair = pai.prune(net, "magnitude", 0.98, scope={name: 1.0 if name in ends else room for name in weights})
run = pai.train(pai.build("vgg6_bn", data, seed=0), data, mask=fair, epochs=15, seed=0)
lesson.say(
    "Layers that are left out of the mask are left out of its sparsity, too. Our net kept {more:.0%} more weights than its rival. "
    "With the same split at the same count it reaches {fair:.0%}. The second line of our checklist: **count the kept "
    "weights over the whole network, pruned or not.**",
    more=kept_in(net, ours) / theirs.kept - 1, fair=run.metrics["val_accuracy"],
)  # fmt: skip

# %% [markdown]
# ## Checkpoint
#
# If these hold on your machine, the counts, the collapse and the claim with its limit are as shown here.

# %%
critical = found[found.criterion != "synflow"].groupby("criterion").critical.mean()
assert fair.kept == theirs.kept == round(0.02 * n), "the fair comparison is fair"
assert abs(n / left / critical["magnitude"] - 1) < 0.05, "shapes alone predict where magnitude collapses"
assert critical["magnitude"] < critical["snip"] < critical["iterative_snip"] < maximal, "rounds help SNIP, too"
assert mean_flow[1] < 0.01 * mean_flow[10] and mean_flow[100] == mean_flow.max(), "SynFlow needs its rounds"
assert split > 2 * which and split > 3 * calm_split, "a bad split costs more than any criterion"
assert in_denser["random"] > in_denser.max() - 0.03, "in a good split random weights are as good as any"

# %% [markdown]
# **Exercises.** *E1 (5 min)* Four weights in a chain, one per layer, have equal SynFlow scores. What does
# `scores > threshold` keep when one must go? (In a stored run of the SynFlow authors all layers emptied at once.) *E2 (15 min)* Write `igq` by bisection on $F$ and pass it as
# `scope=` a function `(layers, kept) -> shares`. At which compression does it empty a layer? *E3 (open)* Find a split that
# beats `balanced` at 98% at no more MACs, on five seeds, chosen on validation.
#
# **Summary.** A mask decides how many per layer, and which. One global ranking decides both, and may empty layers. Rounds,
# or fixed counts, prevent that. A bad split sinks every criterion; in a good one random weights do as well. Tell weights,
# MACs and effective weights, each over the whole network.
#
# **Glossary.** *Allocation, scope* how the budget is split over layers. *Full layer* one that keeps all it has.
# *Maximal compression* weights per layer. *Critical compression* the largest with no empty layer. *MAC* one
# multiply-add. *Effective weight* one on a path from input to output.
#
# **Further reading.** [SynFlow](https://arxiv.org/abs/2006.05467) (Tanaka 2020): critical compression, and why conserved
# scores collapse. [RigL](https://arxiv.org/abs/1911.11134) (Evci 2020): ERK. [Sanity-checking](https://arxiv.org/abs/2009.11094)
# (Su 2020): random masks with smart ratios match clever ones. [Connectivity matters](https://arxiv.org/abs/2107.02306)
# (Vysogorets 2023): effective sparsity, and IGQ. [Missing the mark](https://arxiv.org/abs/2009.08576) (Frankle 2021):
# shuffling weights inside layers costs most criteria nothing.
