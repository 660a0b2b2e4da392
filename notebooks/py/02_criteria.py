# %% [markdown]
# # 02 Criteria: a score is a guess at a loss change
#
# **Claim.** A criterion guesses how much the loss changes when one weight goes. Whether the guess is good depends on
# where you stand: before training or after it, on data the network has learned or on others. And a good guess about
# one weight is not yet a good guess about a thousand.
#
# **Time** 40 minutes to read; the cells run in under a minute. **You need** [lesson 00](00_start_here.ipynb),
# and for the part on filters [lesson 01](01_structures.ipynb). **Afterwards you can**
#
# 1. *measure* the true loss change of a weight, and *judge* any score by it;
# 2. *name* the assumption behind each classical criterion, and *say* where it fails;
# 3. *tell* a good guess from a good network.

# %%
import copy
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F

import pai_lab as pai
from pai_lab import lesson, metrics, models, plots
from pai_lab.criteria.first_order import loss_gradients
from pai_lab.data import stratified

torch.set_num_threads(1)  # nets this small: a second thread only waits for the first
lesson.begin(2)

# %%
lesson.recall(
    "What does a criterion return, and which weights stay?",
    "One number per weight; exactly the round((1 - sparsity) n) highest stay",
)
lesson.recall(
    "All weights of a filter are zero, and a BatchNorm stands behind it. What does its channel send on?",
    "a constant",
    "BatchNorm still adds its own shift. So a filter is only gone when its gate behind the BatchNorm is 0.",
    options=["nothing", "a constant", "noise"],
)
lesson.recall(
    "In lesson 00 magnitude emptied layers of a fresh network. Why?",
    "PyTorch draws larger weights where a layer has fewer inputs",
    "One ranking over all layers then keeps almost only the first layer.",
)

# %% [markdown]
# ## The question behind every score
#
# Set one weight to zero, leave the others, and read the loss again. Loss without minus loss with is the **leave-one-out
# change**: the truth about this weight, on this batch. It costs a forward pass per weight, so criteria guess it. With the
# slope $g$ (gradient) and the curvature $h$ (second derivative) of the loss along a weight $w$, a Taylor series says
#
# $$\text{change} \;=\; -g\,w \;+\; \tfrac12\,h\,w^2 \;+\; \dots$$
#
# | criterion | score | what it assumes |
# |---|---|---|
# | random | any number | nothing is known |
# | magnitude | $\lvert w\rvert$ | slope and curvature are the same everywhere |
# | LAMP | $w^2$ / sum of the layer's squares that are no smaller | as magnitude, in shares of a layer |
# | gradient | $\lvert g\rvert$ | every weight takes the same step |
# | Taylor | $\lvert g\,w\rvert$ | the first term is all; only its size counts |
# | OBD (optimal brain damage) | $\tfrac12 h\,w^2$ | the slope is zero, as at a minimum (**extremal**) |
# | filter norm | mean $\lvert w\rvert$ of a filter | magnitude, for filters |
# | BN gate | $\lvert\gamma\rvert$ of the BatchNorm behind a filter | a small scale does little |
# | skeletonization | $-\partial L/\partial a$ for a factor $a=1$ on a unit | the first term, with its sign |

# %%
lesson.predict(
    "half",
    "A trained network is right on about 96% of unseen digits. Measure the exact leave-one-out change of every weight "
    "on 300 held-out examples, and remove at once the half with the lowest changes. How accurate is what is left, "
    "without any more training?",
    unit="%",
)
lesson.predict(
    "order",
    "Now 80% go at once, by each of these scores. Which network is the most accurate, which the least?",
    order=["random", "magnitude", "taylor", "obd", "true_change"],
    unit="%",
)

# %% [markdown]
# ## The smallest case, by hand
#
# Two weights, $w = (3, 1)$, and a loss that is a bowl: $L = \tfrac12\,[\,2\,(w_1-a_1)^2 + 32\,(w_2-a_2)^2\,]$ with its
# minimum at $a$. The curvatures are 2 and 32. Training has either arrived, $a = (3, 1)$, or not, $a = (3, \tfrac14)$.
# In a third loss two weights do the same job: $L = \tfrac12\,(w_1+w_2-2)^2$ at $w = (1, 1)$.

# %%
# NBVAL_CHECK_OUTPUT
w, h = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 32.0])


def bowl(minimum):
    return lambda w: (h * (w - torch.tensor(minimum)) ** 2).sum() / 2


def without(loss, w, *gone):
    zeroed = w.clone()
    zeroed[list(gone)] = 0
    return float(loss(zeroed) - loss(w))


arrived, under_way = bowl([3.0, 1.0]), bowl([3.0, 0.25])
print("|w|                  ", w.abs().tolist(), "-> magnitude removes the second")
print("OBD, h w^2 / 2       ", (h * w**2 / 2).tolist(), "-> OBD removes the first")
print("true, at the minimum ", [without(arrived, w, k) for k in (0, 1)])
print("true, still under way", [without(under_way, w, k) for k in (0, 1)])
twins, ones = (lambda w: (w.sum() - 2) ** 2 / 2), torch.ones(2)
print("twins: each alone    ", [without(twins, ones, k) for k in (0, 1)], "and both", without(twins, ones, 0, 1))
assert (h * w**2 / 2).tolist() == [9, 16] == [without(arrived, w, k) for k in (0, 1)]

# %% [markdown]
# At the minimum magnitude pays 16 where OBD pays 9. Under way, OBD protects the very weight whose removal would
# *lower* the loss by 8: the slope, which it takes for zero, is 24. And the twins cost 0.5 each, but 2 together.
#
# ## Write it
#
# The truth, and the guess with both terms. Empty the functions and write them yourself. Then break them: leave each
# weight at zero when the next one goes, or return the size instead of the signed change.


# %%
def leave_one_out(loss, weight):
    changes, start = torch.zeros_like(weight), loss(weight)
    for k in range(weight.numel()):
        without = weight.clone()
        without.view(-1)[k] = 0
        changes.view(-1)[k] = loss(without) - start
    return changes


def guessed_change(weight, gradient, curvature):
    return -gradient * weight + curvature * weight**2 / 2


lesson.check("leave_one_out", leave_one_out)
lesson.check("guessed_change", guessed_change)
slope = h * (w - torch.tensor([3.0, 0.25]))
assert torch.equal(leave_one_out(under_way, w), guessed_change(w, slope, h))

# %% [markdown]
# ## A real network
#
# Digits, 64-32-10, ReLU: small enough for the truth about every weight. A criterion never sees the test set. We keep 300
# training examples out of the training, to score on, and also score on the examples that the network learns, until it
# fits them: as near to a minimum as we get.


# %%
def true_changes(model, batch):
    tensors, (x, y), found = pai.masked(model), batch, {}
    for name in pai.prunable(model):

        def loss(weight, name=name):
            return F.cross_entropy(pai.forward(model, tensors | {name: weight}, x), y)

        with torch.no_grad():
            found[name] = leave_one_out(loss, tensors[name])
    return found


digits = pai.load("digits")
x, y = digits.train
learn, held = stratified(y, 300, seed=0)
data, slice_ = replace(digits, train=(x[learn], y[learn])), (x[held], y[held])
small = partial(models.perceptron, hidden=(32,))
initial = pai.build(small, data, seed=0)
trained = pai.train(copy.deepcopy(initial), data, epochs=60, lr=1e-2, seed=0).model
for name, part in {"training set": data.train, "held-out slice": slice_, "validation": data.val}.items():
    found = pai.evaluate(trained, part)
    print(f"{name:15} {len(part[1])} examples: loss {found['loss']:.3f}, accuracy {found['accuracy']:.1%}")


# %%
def terms(model, batch):
    """The truth and the two guesses at it: {what: {layer: tensor}}."""
    weights, gradients = loss_gradients(model, batch, None)
    first = {name: -(w * gradients[name]).detach() for name, w in weights.items()}
    second = pai.score(model, "obd", batch, curvature="gauss_newton")
    return {"truth": true_changes(model, batch), "first": first, "second": second}


places = {
    "before training": terms(initial, slice_),
    "trained, held-out slice": terms(trained, slice_),
    "trained, training set": terms(trained, data.train),
}
formulas = {"first": "first term, $-g\\,w$", "second": "second term, $h\\,w^2/2$"}
figure, axes = plt.subplots(2, 3, figsize=(14, 8.6), layout="constrained")
for column, (place, found) in zip(axes.T, places.items(), strict=True):
    truth = torch.cat([t.flatten() for t in found["truth"].values()])
    for ax, (term, formula) in zip(column, formulas.items(), strict=True):
        guess = torch.cat([t.flatten() for t in found[term].values()])
        low, high = float(min(guess.min(), truth.min())), float(max(guess.max(), truth.max()))
        ax.plot([low, high], [low, high], color=plots.INK, linewidth=1.2, zorder=3)
        ax.plot(guess, truth, ".", color=plots.KEPT, markersize=6, alpha=0.4, markeredgewidth=0)
        rank = metrics.rank_correlation(found[term], found["truth"]).spearman.iloc[-1]
        ax.set_title(f"{place}\nrank correlation {rank:.2f}", fontsize=plots.TEXT)
        ax.set_xlabel(formula)
        ax.locator_params(nbins=4)
for ax in axes[:, 0]:
    ax.set_ylabel("true change")
figure.suptitle("The slope tells all before training, the curvature on fitted data", x=0.01, ha="left")
figure.supxlabel(
    "line: guess = truth; each dot one of 2,368 weights; one seed", fontsize=plots.SMALL, color=plots.QUIET
)
plt.show()

# %% [markdown]
# Read the columns. **Before training** every change is a slope; OBD takes it for zero. **On the training set** the trained
# network stands near a minimum: the slopes have gone, and OBD's assumption holds. **On the held-out slice** it stands
# on a slope again: it minimised another loss.
#
# ## Average first, or square first?
#
# Near a minimum the mean gradient vanishes because the examples pull in opposite directions, not because none
# pulls. So the order of averaging and taking sizes matters. Taylor has three variants: $|w\,\bar g|$ of the mean gradient,
# the mean of $|w\,g_n|$ over examples $n$, and the mean of $(w\,g_n)^2$. The last is OBD in disguise: twice it, with
# the mean of $g_n^2$ for the curvature (the empirical Fisher, the default of `"obd"`).

# %%
singles = list(zip(*(part.split(1) for part in data.train), strict=True))


def typical(model, batch, accumulate):
    scores = pai.score(model, "taylor", batch, accumulate=accumulate)
    return torch.cat([s.flatten() for s in scores.values()]).median().item()


before, after = ([typical(net, data.train, "mean"), typical(net, singles, "abs")] for net in (initial, trained))
squared = pai.score(trained, "taylor", singles, accumulate="squared")
fisher = pai.score(trained, "obd", data.train)
assert all(torch.allclose(squared[name], 2 * fisher[name], rtol=1e-4) for name in squared)
lesson.say(
    "Through training the score of the typical weight on the training set falls {mean:,.0f}-fold if gradients are "
    "averaged first, {each:,.0f}-fold if sizes are: on a fully fitted set the first drowns first in rounding errors. "
    "{dead} scores are exactly 0 either way: weights of ReLUs that never fire.",
    mean=before[0] / after[0], each=before[1] / after[1], dead=sum(int((s == 0).sum()) for s in squared.values()),
)  # fmt: skip

# %% [markdown]
# ## Two scorers on one layer
#
# Are two criteria really different? The rank correlation compares all weights, the overlap only those that are kept;
# chance is what two random masks would share. The flat row at the bottom: dead ReLUs, tied at 0 by OBD.

# %% tags=["explorable"]
layer = ["fc1.weight"]
magnitude = {name: pai.score(trained, "magnitude")[name] for name in layer}
obd = {name: places["trained, training set"]["second"][name] for name in layer}
plots.duel(magnitude, obd, 0.8, names=("magnitude", "OBD")).set_title("Alike in rank, less alike in what they keep")
plt.show()

# %% [markdown]
# ## The measurement
#
# Five seeds, made by `results/make_criteria.py`. Each score is ranked against the true change, and against its size:
# whoever drops the sign can only hope for the second. `obd` takes the Gauss-Newton curvature (exact here, up to kinks of
# the ReLU), `obd_fisher` the Fisher one; `taylor_signed` is $-g\,w$, and `both_terms` adds `obd` to it.


# %%
def dots(panels, methods, title):
    figure, axes = plt.subplots(
        1, len(panels), figsize=(14, 0.55 * len(methods) + 2.4), sharey=True, layout="constrained"
    )
    kinds = {
        "spearman": ("true change", plots.KEPT, "o", -0.13),
        "spearman_size": ("size of it", plots.GUESS, "^", 0.13),
    }
    for ax, (name, part) in zip(axes, panels.items(), strict=True):
        for place, method in enumerate(methods):
            seeds = part[part.method == method]
            for key, (word, colour, marker, lift) in kinds.items():
                ax.plot(seeds[key], [place + lift] * len(seeds), marker, color=colour, alpha=0.35, markersize=6)
                label = {"label": f"with the {word}"} if ax is axes[0] and place == 0 else {}
                ax.plot(seeds[key].mean(), place + lift, marker, color=colour, markeredgecolor="white", **label)
            if seeds.spearman.isna().all():
                ax.text(0.05, place, "all scores are equal", va="center", fontsize=plots.SMALL, color=plots.QUIET)
        ax.axvline(0, color=plots.QUIET, linewidth=1.2)
        ax.set(xlim=(-0.55, 1.05), xlabel="rank correlation", yticks=range(len(methods)), yticklabels=methods)
        ax.set_title(name, fontsize=plots.TEXT)
    axes[0].invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2)
    figure.suptitle(f"{title} (n = {part.seed.nunique()} seeds)", x=0.01, ha="left")
    plt.show()


table = pd.read_csv("results/criteria.csv")
ranked = {cell: part for cell, part in table[table.asked_sparsity.isna()].groupby(["level", "moment", "scored_on"])}
three = {
    "before training": ranked["weight", "initial", "held-out slice"],
    "trained, held-out slice": ranked["weight", "trained", "held-out slice"],
    "trained, training set": ranked["weight", "trained", "training set"],
}
named = ["random", "magnitude", "lamp", "gradient", "taylor", "obd", "obd_fisher", "taylor_signed", "both_terms"]
dots(three, named, "No criterion guesses well everywhere; both terms together do")

# %% [markdown]
# Magnitude, which looks at no data, guesses well on fitted data and poorly before training. On the held-out slice only
# those that keep the slope's sign get the *sign* right.
#
# ## Whole filters
#
# A factor $a = 1$ on a filter's output, a **gate**, turns the filter into one number. It belongs *behind* the BatchNorm.
# In front of it scaling a filter changes nothing in training mode: BatchNorm divides the scale out. So the sum of
# $w\,g$ over a filter is zero, an identity, and "sum, then take the size" ranks rounding errors.

# %%
conv = partial(models.vgg, plan="16 16 M 32 32", norm=True)
net = pai.build(conv, data, seed=0).double()
weights = [w for name, w in pai.prunable(net).items() if name.startswith("conv")]
for mode in (True, False):
    loss = F.cross_entropy(net.train(mode)(slice_[0].double()), slice_[1])
    products = [(w * g).flatten(1).detach() for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True)]
    part = sum(p.sum(1).abs().sum() for p in products) / sum(p.abs().sum() for p in products)
    print(
        f"{'train' if mode else 'eval ':5} mode: |sum of w g| is {part:.0e} of the sum of |w g|, over {len(weights)} layers"
    )
    if mode:
        assert part < 1e-3
two = {
    "before training": ranked["unit", "initial", "held-out slice"],
    "trained, held-out slice": ranked["unit", "trained", "held-out slice"],
}
units = ["random", "filter_l1", "filter_l2", "bn_gate", "skeletonization", "taylor_gate, one batch", "taylor_gate"]
dots(two, units, "Filters: one batch hides the slope, minibatches show it")

# %% [markdown]
# The truth here is the loss with a gate at 0. `taylor_gate` squares the gate's slope. Over one large batch of a trained
# net the slope has nearly vanished; over minibatches of 30 the squares have not. Skeletonization averages and keeps the
# sign: the best guess before training, a mediocre one after. The BN gate is meant for nets trained with a penalty
# on $\gamma$ (lesson 07, to come); here it points, if anywhere, the wrong way. With 96 filters chance alone strays by 0.1.
#
# ## From one weight to many
#
# Now prune the trained perceptron at once, scored on the slice or on the training set: accuracy as pruned, and after ten
# epochs of fine-tuning for all. `obd in rounds` removes a part, scores again, and removes more, in ten rounds.

# %%
pruned = table[(table.level == "weight") & (table.asked_sparsity > 0)]
dense = table.query("level == 'weight' and asked_sparsity == 0").raw_accuracy.mean()
stages = {"raw_accuracy": "as pruned", "val_accuracy": "fine-tuned"}
shown = ["random", "magnitude", "taylor", "obd", "obd in rounds", "true_change"]
long = pruned[pruned.method.isin(shown)].melt(
    ["method", "asked_sparsity", "seed", "scored_on"], list(stages), "stage", "validation_accuracy"
)
long = long.assign(stage=long.stage.map(stages)).rename(columns={"scored_on": "scoring data"})
axes = plots.multiples(
    long, "scoring data", "stage", x="asked_sparsity", y="validation_accuracy", chance=0.1, dense=dense
)
axes.set_title("The exact answer about one weight is a bad answer about many")
plt.show()

# %%
on_slice, on_train = (pruned[pruned.scored_on == part] for part in ("held-out slice", "training set"))
half = on_slice[(on_slice.method == "true_change") & (on_slice.asked_sparsity == 0.5)].raw_accuracy
at_80 = on_slice[on_slice.asked_sparsity == 0.8].groupby("method").raw_accuracy.mean()
lesson.reveal("half", half.tolist())
lesson.reveal("order", {name: at_80[name] for name in ["random", "magnitude", "taylor", "obd", "true_change"]})
truth = places["trained, held-out slice"]["truth"]
mask, cut = pai.allocate(truth, 0.5), copy.deepcopy(trained)
mask.apply(cut)
start, end = (pai.evaluate(model, slice_)["loss"] for model in (trained, cut))
promised = start + sum(float(change[~mask[name]].sum()) for name, change in truth.items())
at_90 = {part: rows[rows.asked_sparsity == 0.9].groupby("method").val_accuracy.mean() for part, rows in
         {"slice": on_slice, "train": on_train}.items()}  # fmt: skip
lesson.say(
    "Live, seed 0: the loss on the slice is {start:.2f}. If the changes of the removed half added up, it would become "
    "{promised:.2f}, which no cross-entropy can be. It becomes {end:.2f}. At 90%, fine-tuned, five seeds: magnitude "
    "{slice[magnitude]:.0%}, LAMP {slice[lamp]:.0%}, OBD at once {slice[obd]:.0%}, OBD in rounds "
    "{slice[obd in rounds]:.0%}; Taylor {slice[taylor]:.0%} from the slice and {train[taylor]:.0%} from the training set.",
    start=start, promised=promised, end=end, **at_90,
)  # fmt: skip
filters = table.query("level == 'unit' and asked_sparsity == 0.1 and scored_on == 'held-out slice'")
lesson.say(
    "Filters, 10% of each layer removed at once, as pruned: random {random:.0%}, filter norm {filter_l1:.0%}, gate Taylor "
    "{taylor_gate:.0%}, the true change {true_change:.0%}. With so few gone at once, the better guess is the better net.",
    **filters.groupby("method").raw_accuracy.mean()[["random", "filter_l1", "taylor_gate", "true_change"]],
)  # fmt: skip

# %% [markdown]
# Many weights each lower the slice's loss a little when they go, for the same reason. Remove them together and the net
# runs far past the minimum, like the twins. The exact change is then no better than random at 50%, and scoring it
# again in rounds does not save it (see the table). OBD, which never promises a gain, is safe at first, and in rounds the
# best we tried. On the training set hardly anything can be gained; truth and guesses agree, and up to 80%,
# random aside, the choice matters little. Usual advice is to score on held-out data; here Taylor and the truth did better on the training
# set. LAMP ranks a layer as magnitude does: its lead is one of allocation ([lesson 03](03_allocation.ipynb)).
#
# **What would change your mind?** One tiny net, one data set. The order near 95% varies with the seed. In larger nets
# one weight matters less, and its guess may hold for longer.
#
# ## Find the flaw
#
# A careful notebook fixes its seeds and measures the baseline first: random pruning before training, at 80%. What is
# wrong? You have the tool: compare two scores. Write an `assert` before you read on.

# %%
# NBVAL_CHECK_OUTPUT
seed = 0
torch.manual_seed(seed)
model = small(data)
first_weights = {name: w.detach().clone() for name, w in pai.prunable(model).items()}
torch.manual_seed(seed)  # so that the baseline can be reproduced
baseline = {name: torch.rand_like(w) for name, w in first_weights.items()}
mask = pai.allocate(baseline, 0.8)
accuracy = pai.train(model, data, mask=mask, epochs=20, seed=seed).metrics["val_accuracy"]
print(f"random pruning: {mask.kept} of {mask.total} weights kept; trained, better than chance: {accuracy > 0.2}")

# %% tags=["raises-exception"]
followed = metrics.rank_correlation(baseline, first_weights).set_index("layer").spearman
assert followed.abs().max() < 0.2, f"the random scores rank {followed.idxmax()} as its weights: {followed.max():.2f}"

# %% [markdown]
# One seed drew the weights and the scores, so both are the same numbers: in the first layer "random" kept no negative
# weight. An early table of this lesson had this flaw. Its random row gave it away, off zero by the same
# amount on every seed. For our checklist: **the baseline correlates with nothing.** `pai.score` draws from another
# stream.
#
# ## Checkpoint


# %%
def mean(cell, method, key="spearman"):
    part = ranked[cell]
    return part[part.method == method][key].mean()


before, fitted = ("weight", "initial", "held-out slice"), ("weight", "trained", "training set")
assert mean(before, "taylor", "spearman_size") > 0.9 > mean(before, "obd", "spearman_size"), "slopes before training"
assert abs(mean(before, "obd")) < 0.1 < 0.9 < mean(fitted, "obd"), "OBD needs a minimum"
assert mean(fitted, "magnitude") > 0.7 > mean(before, "magnitude", "spearman_size"), "training makes magnitude a guess"
assert min(mean(cell, "both_terms") for cell in (before, fitted)) > 0.9, "both terms guess well"
assert at_80["magnitude"] > at_80["true_change"] + 0.3, "exact about one, wrong about many"
assert at_90["slice"]["obd in rounds"] > at_90["slice"]["obd"] + 0.1, "score again"

# %% [markdown]
# **Exercises.** *E1 (5 min)* Repeat the duel for `fc2.weight`, then for Taylor against OBD before training. Which pair
# shares least? *E2 (15 min)* Write `lamp_score(weight)` for one layer, then `lesson.check("lamp_score", lamp_score)`. Why
# is its rank correlation with magnitude 1 in every layer, but less over all? *E3 (open)* Beat `obd in rounds` at 90% on
# three seeds, without the test set. Does the size of both terms help?
#
# **Summary.** A score guesses what the loss does when one weight goes. Before training the slope decides, at a minimum
# the curvature; OBD assumes a minimum. Average first, and a fitted net has no slope left. Gates stand behind the
# BatchNorm. The best guess about one weight is not the best mask: score in rounds, and beside random.
#
# **Glossary.** *Leave-one-out change* loss without a weight minus loss with it. *Slope, curvature* first and second
# derivative of the loss along one weight. *Extremal* at a minimum, slope zero. *Gate* a factor of 1 on a unit's output.
# *Rank correlation* 1 for the same order, 0 for none.
#
# **Further reading.** [Optimal brain damage](https://papers.nips.cc/paper/250-optimal-brain-damage) (LeCun 1990): where
# the assumptions are spelt out. [Skeletonization](https://papers.nips.cc/paper/119-skeletonization) (Mozer 1988): gates,
# thirty years early. [Importance estimation](https://arxiv.org/abs/1906.10771) (Molchanov 2019): Taylor on gates, against
# the truth. [LAMP](https://arxiv.org/abs/2010.07611) (Lee 2021): magnitude with a layer's share.
