# %% [markdown]
# # 00 Start here: three questions describe every pruning method
#
# **Claim.** *What* is removed together, *which* of it, and *when*: answer these three questions and you have named a
# pruning method. Each answer is one small, exchangeable part.
#
# **Time** 35 minutes to read; the cells run in under a minute on a laptop. **You need** Python and a first look at
# PyTorch; nothing about pruning. **Afterwards you can**
#
# 1. *prune* a network before it is trained, to an exact sparsity;
# 2. *train* what is left, and *compare* methods at equal budget over several seeds;
# 3. *bring* your own network and your own criterion, in five lines each.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

import pai_lab as pai
from pai_lab import lesson, plots

lesson.begin(0)

# %% [markdown]
# ## Three questions
#
# A network has far more weights than it needs. **Pruning** sets some of them to zero and keeps them there. The part
# that stays is drawn by a **mask**: one True (kept) or False (removed) per weight. **Sparsity** is the fraction
# removed, **density** the fraction kept. Every method that finds a mask answers three questions:
#
# | question | name | some answers |
# |---|---|---|
# | What is removed together? | **structure** | single weights, whole filters |
# | Which of it? | **criterion** (a score; the highest stay) | chance, size, effect on the loss, flow of signal |
# | When, and how fast? | **method** | once before training, in rounds, while training |
#
# This course is about the boldest answer to the third: prune **at initialization**, before the first training step.
# The network has learned nothing yet. Can a score know which weights will matter?
#
# **Commit before you look.** We will remove 98 of every 100 weights of a small network that has never been trained,
# by four criteria: at *random*; the smallest *magnitude* first; *SNIP*, the weights whose removal changes the loss
# least; *SynFlow*, the weights that carry the least signal. Then we train what is left.

# %%
lesson.predict(
    "order",
    "Which network will be the most accurate after training, which the least?",
    order=["random", "magnitude", "snip", "synflow"],
    unit="%",
)
lesson.predict(
    "accuracy",
    "How accurate will the best of the four be? Ten classes, so guessing gives 10%; the dense network reaches about 50%.",
    unit="%",
)

# %% [markdown]
# ## The smallest case, by hand
#
# One layer, sixteen weights, sparsity 0.75. Exactly `round((1 - 0.75) * 16) = 4` weights stay. By magnitude these are
# -9, 8, -7 and 6. The sign plays no part.

# %%
# NBVAL_CHECK_OUTPUT
W = torch.tensor([[1.0, -9.0, 2.0, 0.5], [8.0, 0.1, -3.0, 1.5], [-0.2, 4.0, -7.0, 2.5], [0.3, -1.2, 0.7, 6.0]])
by_hand = pai.allocate({"layer.weight": W.abs()}, sparsity=0.75)["layer.weight"]
print(by_hand.int())
print("kept:", W[by_hand].tolist())
assert sorted(W[by_hand].tolist()) == [-9.0, -7.0, 6.0, 8.0]

# %% [markdown]
# ## Write it
#
# Magnitude pruning of one layer, from its definition. `lesson.check` tries it on small cases; if a property is broken
# it names the first one. Break it on purpose: drop the `.abs()`, or keep `>` a threshold instead of the first `k`,
# and run the cell again.


# %%
def magnitude_mask(weight, sparsity):
    k = round((1 - sparsity) * weight.numel())  # how many stay, exactly
    order = weight.abs().flatten().argsort(descending=True)
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[order[:k]] = True
    return mask.view_as(weight)


lesson.check("magnitude_mask", magnitude_mask)
assert torch.equal(magnitude_mask(W, 0.75), by_hand)

# %% [markdown]
# Why the first `k`, and not all above a threshold? Scores can be equal. A threshold then keeps all of them or none, and
# the network is not as sparse as it claims. From here on we import what we have written once.
#
# ## The whole pipeline in four lines
#
# The data are **mnist1d**: 40 numbers per example, ten classes, hard enough that methods differ, small enough to train
# in seconds. The network is a perceptron with four hidden layers of 128 units.

# %%
data = pai.load("mnist1d")
model = pai.build("mlp", data, seed=0)
mask = pai.prune(model, "synflow", sparsity=0.98, batch=data.score_batch(per_class=10))
mask

# %%
# NBVAL_CHECK_OUTPUT
print(f"{mask.kept} of {mask.total} weights kept, and round((1 - 0.98) * {mask.total}) = {round(0.02 * mask.total)}")
print("layers with nothing left:", mask.collapsed())

# %% [markdown]
# `prune` did nothing but: **score** every weight, **allocate** the budget over the layers, return the **mask**. The
# model is untouched. `train` then holds the mask: a removed weight is exactly zero after every step. We train the dense
# network and the pruned one from the same initial weights, in the same order of data.

# %%
EPOCHS = 10
dense = pai.train(pai.build("mlp", data, seed=0), data, epochs=EPOCHS, seed=0)
sparse = pai.train(model, data, mask=mask, epochs=EPOCHS, seed=0)
plots.history({"dense": dense, "2% kept": sparse})
plt.show()
pai.report(model, mask)

# %% [markdown]
# Read the report twice. The arithmetic shrinks fifty-fold *if* the zeros are skipped. A dense file and a dense matrix
# product skip none of them. What pruning really saves depends on the structure; that is lesson 01.
#
# ## The playground
#
# The picture shows one state: SynFlow at 98%. Every layer keeps something. Below it is the live one. Move the
# **sparsity**, change the **method**, and watch which layers pay. Press **Train** to put a point on the chart; a few
# points make a curve. Try to find a sparsity at which *magnitude* empties a layer and *synflow* does not.

# %% tags=["explorable"]
play = pai.explore.playground(method="synflow", sparsity=0.98)
play.figure()

# %% tags=["explorable"]
play

# %% [markdown]
# ## The measurement
#
# One run is an anecdote. Here is each criterion at two sparsities: the same budget for all, three seeds, and *random*
# as the baseline that every claim must beat. A seed draws the initial weights, the scoring batch
# and the order of the data. We read the **validation** accuracy; the test set is for the end of a study.

# %%
METHODS, SPARSITIES, SEEDS = ["random", "magnitude", "snip", "synflow"], [0.9, 0.98], [0, 1, 2]
rows = [
    pai.experiment(data=data, model="mlp", method=method, sparsity=sparsity, seed=seed, epochs=EPOCHS)
    for method in METHODS
    for sparsity in SPARSITIES
    for seed in SEEDS
]
dense_accuracy = dense.metrics["val_accuracy"]
plots.accuracy(rows, y="val_accuracy", chance=0.1, dense=dense_accuracy)
plt.show()

# %%
mean = {
    method: sum(r["val_accuracy"] for r in rows if r["method"] == method and r["asked_sparsity"] == 0.98) / len(SEEDS)
    for method in METHODS
}
lesson.reveal("order", mean)
lesson.reveal("accuracy", max(mean.values()))
lesson.say(
    "At 98% sparsity the four networks reach {random:.0%} (random), {magnitude:.0%} (magnitude), {snip:.0%} (SNIP) and "
    "{synflow:.0%} (SynFlow). The dense one reaches {dense:.0%} (one seed). Budget: {epochs} epochs each, {seeds} seeds.",
    **mean, dense=dense_accuracy, epochs=EPOCHS, seeds=len(SEEDS),
)  # fmt: skip

# %% [markdown]
# **What would change your mind?** Three seeds on one small data set. A criterion could win here and lose elsewhere: on
# the digits data, random masks with good layer ratios beat SNIP at 90 to 95%. And no score here has used what training
# teaches. Lesson 04 asks what these scorers really know; lesson 11 compares all methods fairly.
#
# ## Find the flaw
#
# This loop is written in the style of many a published notebook. It prunes 98%, trains for a few steps, and prints its
# sparsity and its accuracy. What is wrong? Write an `assert` that catches it before you read on.

# %%
flawed = pai.build("mlp", data, seed=0)
mask.apply(flawed)  # 98% of the weights are now zero
optimizer = torch.optim.Adam(flawed.parameters(), lr=2e-3)
x, y = data.train
for start in range(0, 1280, 64):
    optimizer.zero_grad()
    F.cross_entropy(flawed(x[start : start + 64]), y[start : start + 64]).backward()
    optimizer.step()
accuracy = pai.evaluate(flawed, data.val)["accuracy"]
print(f"a network of sparsity {mask.sparsity:.2%} reaches {accuracy:.0%} after {len(range(0, 1280, 64))} steps")

# %% tags=["raises-exception"]
zeros = sum(int((w == 0).sum()) for w in pai.prunable(flawed).values())
assert zeros >= mask.total - mask.kept, f"only {zeros / mask.total:.2%} of the weights are zero"

# %% [markdown]
# The mask was applied once. Each optimizer step then moved every weight that has a gradient, and the network filled up
# again. `pai.train` holds the mask through every step, and checks it after every epoch. This assert is the first
# line of our checklist for pruning papers: **count the zeros after training, not before.**
#
# ## Your own network, your own criterion
#
# Any `torch.nn.Module` will do. A criterion is a function `(model, batch, mask) -> {name: scores}`; higher means keep.
# Registered, it has a name in the playground, in experiments and in the catalogue.

# %%
mine = nn.Sequential(
    nn.Unflatten(1, (1, 40)), nn.Conv1d(1, 16, 5, stride=2), nn.ReLU(),
    nn.Conv1d(16, 32, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(224, 10),
)  # fmt: skip


@pai.criterion
def smallest_gradient(model, batch, mask):
    weights, (x, y) = pai.masked(model, mask), batch
    loss = F.cross_entropy(pai.forward(model, weights, x), y)
    names = list(pai.prunable(model))
    gradients = torch.autograd.grad(loss, [weights[name] for name in names])
    return {name: -gradient.abs() for name, gradient in zip(names, gradients, strict=True)}


my_mask = pai.prune(mine, "smallest_gradient", 0.9, batch=data.score_batch())
my_run = pai.train(mine, data, mask=my_mask, epochs=3, seed=0)
my_mask

# %% [markdown]
# ## The map
#
# The catalogue lists every part by name: what it answers, when it works, what it needs, what it costs. It grows with the
# lessons, and your own criterion is already in it.

# %%
pai.catalog("criterion")[["name", "criterion", "when", "needs", "cost", "paper", "year"]]

# %% [markdown]
# ## Checkpoint
#
# If these three hold on your machine, you have seen what this lesson claims.

# %%
assert mask.kept == round((1 - 0.98) * mask.total), "the sparsity is exact"
assert all((w[~mask[name]] == 0).all() for name, w in pai.prunable(model).items()), "removed weights stayed zero"
assert mean["synflow"] > mean["random"] + 0.05, "at 98% a flow criterion beats chance by more than 5 points"

# %% [markdown]
# **Exercises.** *E1 (5 min)* Prune by `"synflow"` with `iterations=1` and compare `mask.layers()`. What did the rounds
# change? *E2 (15 min)* Set `structure="filter"` in `pai.prune`. Why does the last layer stay dense? *E3 (open)* Write a
# criterion that beats SNIP at 98% on three seeds, without looking at the test set.
#
# **Summary.** A mask says which weights stay. Structure, criterion and method are the three choices that make it. Counts
# are exact. The mask must be held in training. One seed is an anecdote, and random is the baseline.
#
# **Glossary.** *Sparsity* fraction removed. *Density* fraction kept. *Compression* 1 / density. *Mask* which weights stay.
# *Criterion* a score per weight. *Scope* how the budget is split over layers. *Layer collapse* a layer with nothing left.
#
# **Further reading.** [What is the state of neural network pruning?](https://arxiv.org/abs/2003.03033) (Blalock 2020):
# why claims so often do not compare. [SNIP](https://arxiv.org/abs/1810.02340) (Lee 2019): the first score at
# initialization. [SynFlow](https://arxiv.org/abs/2006.05467) (Tanaka 2020): why layers collapse, and how not to.
# [Why are we missing the mark?](https://arxiv.org/abs/2009.08576) (Frankle 2021): the checks every such score must pass.
