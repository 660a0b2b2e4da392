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
# 3. *bring* your own network and your own criterion, in a few lines each.

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display
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
# | What is removed together? | **structure** | single weights, kernels, whole channels |
# | Which of it? | **criterion** (a score; the highest stay) | random numbers, size, effect on the loss, flow of signal |
# | When, and how fast? | **method** | once before training, in rounds, while training |
#
# In code, the name of a criterion given as `method=` means: prune by it once at initialization, then train.
#
# This course is about the boldest answer to the third: prune **at initialization**, before the first training step.
# The network has learned nothing yet. Can a score know which weights will matter?
#
# **Commit before you look.** We will remove 98 of every 100 weights of a small network that has never been trained,
# by four criteria. *Random* removes any. *Magnitude* removes the smallest. *SNIP* removes those that, by one gradient on
# a labelled batch, matter least to the loss. *SynFlow* needs no data: it makes every weight positive, sends ones through
# the network, and removes the weights that carry the least of that flow. Then we train what is left.

# %%
lesson.predict(
    "order",
    "Which network will be the most accurate after training, which the least?",
    order=["random", "magnitude", "snip", "synflow"],
    unit="%",
)
lesson.predict(
    "accuracy",
    "How accurate will the best of the four be? There are ten classes, so guessing gives 10%.",
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
# Magnitude pruning of one layer, from its definition; `pai.allocate` above is the package's own. Empty the function and
# write it yourself first. `lesson.check` tries it on small cases and names the first broken property. Then break it on
# purpose: drop the `.abs()`, or keep every weight `>=` the k-th largest.


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
initial = pai.build("mlp", data, seed=0)
batch = data.score_batch(per_class=10)
mask = pai.prune(initial, "synflow", sparsity=0.98, batch=batch)
mask

# %%
# NBVAL_CHECK_OUTPUT
print(f"{mask.kept} of {mask.total} weights kept, and round((1 - 0.98) * {mask.total}) = {round(0.02 * mask.total)}")
print("layers with nothing left:", mask.collapsed())

# %% [markdown]
# `prune` **scores** every weight, **allocates** what may stay over the layers, and returns the **mask**. SynFlow repeats
# this in 100 small rounds. The **scope** says how the layers share: `global` is one ranking over all of them, `layer`
# gives each the same density. The model is untouched. `train` then holds the mask: a removed weight is exactly zero after
# every step. We train the dense network and the pruned one from the same initial weights, in the same order of data.

# %%
EPOCHS = 30
dense = pai.train(pai.build("mlp", data, seed=0), data, epochs=EPOCHS, seed=0)
sparse = pai.train(pai.build("mlp", data, seed=0), data, mask=mask, epochs=EPOCHS, seed=0)
plots.history({"dense": dense, "2% kept": sparse}).set_title("2% of the weights still learn, but less")
plt.show()
pai.report(sparse.model, mask)

# %% [markdown]
# Read the report twice. The arithmetic shrinks as it says *if* the zeros are skipped. A dense file and a dense matrix
# product skip none of them. What pruning really saves depends on the structure ([lesson 01](01_structures.ipynb)).
#
# ## The playground
#
# The picture shows one state: SynFlow at 98%. Every layer keeps something. When you run the lesson, the live one stands
# below it. Move the **sparsity**, change the **method**, and watch which layers pay. Press **Train** to put a point on
# the chart; a few points make a curve. Find a sparsity at which *magnitude* empties a layer and *synflow* does not.

# %% tags=["explorable"]
play = pai.explore.playground(method="synflow", sparsity=0.98)
display(play.figure())
play

# %% [markdown]
# ## The measurement
#
# One run is an anecdote. The table was measured before: the same epochs for every criterion, five seeds, and *random* as
# the baseline that every claim must beat. A seed draws the initial weights, the scoring batch and the order of the data.
# Here we read the **validation** accuracy; the test set is for the end of a study. `results/make_start_here.py` made the
# table. One of its points we measure again, live.

# %%
table = pd.read_csv("results/start_here.csv").query("data == 'mnist1d'")
pruned, unpruned = table[table.asked_sparsity > 0], table[table.asked_sparsity == 0]
axes = plots.accuracy(pruned, x="asked_sparsity", y="val_accuracy", chance=0.1, dense=unpruned.val_accuracy.mean())
axes.set_title("Above 90%, the criterion decides")
plt.show()
live = pai.experiment(data=data, model="mlp", method="snip", sparsity=0.98, seed=0, epochs=EPOCHS)

# %%
at_98 = pruned[pruned.asked_sparsity == 0.98]
mean = at_98.groupby("method").val_accuracy.mean().to_dict()
lesson.reveal("order", mean)
lesson.reveal("accuracy", max(mean.values()))
gone = pai.prune(initial, "magnitude", 0.98).collapsed()
lesson.say(
    "At 98% sparsity the four networks reach {random:.0%} (random), {magnitude:.0%} (magnitude), {snip:.0%} (SNIP) and "
    "{synflow:.0%} (SynFlow) on average over {seeds} seeds; the dense one reaches {dense:.0%}. Live, SNIP with seed 0 "
    "reached {live:.0%}. Magnitude leaves {empty} of {layers} layers empty (**layer collapse**): it can only guess.",
    **mean, seeds=at_98.seed.nunique(), dense=unpruned.val_accuracy.mean(), live=live["val_accuracy"],
    empty=len(gone), layers=len(mask),
)  # fmt: skip

# %% [markdown]
# Why does magnitude fail so badly? PyTorch draws larger initial weights where a layer has fewer inputs. One ranking over
# all layers then keeps almost only the first layer. And two methods that both guess have no order.
#
# **What would change your mind?** Five seeds on one small data set. A criterion could win here and lose elsewhere. And no
# score here has used what training teaches. [Lesson 04](04_pruning_at_initialization.ipynb) asks what these scorers
# really know.
#
# ## Find the flaw
#
# This loop is written in the style of many a published notebook. It prunes 98%, trains for five epochs, and prints its
# sparsity and a fine accuracy. What is wrong? Write an `assert` that catches it before you read on. The cell after it
# fails on purpose.

# %%
flawed = pai.build("mlp", data, seed=0)
mask.apply(flawed)  # 98% of the weights are now zero
optimizer = torch.optim.Adam(flawed.parameters(), lr=2e-3)
x, y = data.train
for start in 5 * list(range(0, len(x), 64)):
    optimizer.zero_grad()
    F.cross_entropy(flawed(x[start : start + 64]), y[start : start + 64]).backward()
    optimizer.step()
accuracy = pai.evaluate(flawed, data.val)["accuracy"]
print(f"a network of sparsity {mask.sparsity:.2%} reaches {accuracy:.0%} after five epochs")

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
# Registered, it has a name in the playground, in experiments and in the catalogue. The one below is bad, on purpose.

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


my_mask = pai.prune(mine, "smallest_gradient", 0.9, batch=batch)
my_run = pai.train(mine, data, mask=my_mask, epochs=5, seed=0)
print(my_mask, f"validation accuracy {my_run.metrics['val_accuracy']:.0%}", sep="\n")

# %% [markdown]
# ## The claim, tested
#
# Change one answer at a time, keep the other two, and look at what each layer keeps. Five rows, five different methods.

# %%
changed = {
    "as above": mask,
    "what: filters": pai.prune(initial, "synflow", 0.98, structure="filter", batch=batch),
    "which: magnitude": pai.prune(initial, "magnitude", 0.98),
    "when: in one round": pai.prune(initial, "synflow", 0.98, iterations=1, batch=batch),
    "when: after training": pai.prune(dense.model, "magnitude", 0.98),
}
for name, other in changed.items():
    print(f"{name:22}", other.layers().kept.tolist())

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
# If these hold on your machine, the counts, the held mask and the lead over random are as shown here.

# %%
assert mask.kept == round((1 - 0.98) * mask.total), "the sparsity is exact"
assert all((w[~mask[name]] == 0).all() for name, w in pai.prunable(sparse.model).items()), "removed weights stayed zero"
assert mean["synflow"] > mean["random"] + 0.05, "at 98% SynFlow beats random by more than 5 points"
assert len({tuple(other.layers().kept) for other in changed.values()}) == len(changed), "every answer matters"

# %% [markdown]
# **Exercises.** *E1 (5 min)* Prune `initial` by `"synflow"` with `iterations=1` and look at `.layers()`. What do the rounds
# prevent? *E2 (15 min)* Set `structure="filter"`. Why does the last layer stay dense, and why is `mask.sparsity` not
# 0.98? *E3 (open)* Train with `mask.shuffled(seed=1)`: as many weights in each layer, at other places. Then write a
# criterion that beats SNIP at 98% on three seeds, without looking at the test set.
#
# **Summary.** A mask says which weights stay. Structure, criterion and method are the three choices that make it. Counts
# are exact. The mask must be held in training. One seed is an anecdote, and random is the baseline.
#
# **Glossary.** *Sparsity* fraction removed. *Density* fraction kept. *Compression* 1 / density. *Mask* which weights stay.
# *Criterion* a score per weight. *Scope* how the budget is split over layers. *Layer collapse* a layer with nothing left.
#
# **Further reading.** [What is the state of neural network pruning?](https://arxiv.org/abs/2003.03033) (Blalock 2020):
# why claims so often do not compare. [SNIP](https://arxiv.org/abs/1810.02340) (Lee 2019): the paper that
# started pruning at initialization. [SynFlow](https://arxiv.org/abs/2006.05467) (Tanaka 2020): why layers collapse, and how not to.
# [Why are we missing the mark?](https://arxiv.org/abs/2009.08576) (Frankle 2021): the checks every such score must pass.
