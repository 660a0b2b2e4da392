# %% [markdown]
# # 01 Structures: what you remove decides what you save
#
# **Claim.** The same number of weights, removed in another shape, saves other things: accuracy, parameters,
# multiply-adds, bytes and milliseconds are five different scales, and a zero moves only some of them.
#
# **Time** 40 minutes to read; the cells run in about half a minute. **You need** [lesson 00](00_start_here.ipynb).
# **Afterwards you can**
#
# 1. *draw* and *write* masks of any structure, 2:4 among them;
# 2. *remove* channels for good, with all that is coupled to them, and prove that the outputs are the same;
# 3. *measure* what a mask saves: in bytes of a file and in milliseconds.

# %%
from copy import deepcopy

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import display
from safetensors.torch import save
from torch import nn
from torch.nn.utils import prune as torch_prune

import pai_lab as pai
from pai_lab import coupled, lesson, plots
from pai_lab.metrics import break_even

lesson.begin(1)

# %% [markdown]
# ## Warm-up, and a commitment
#
# First three questions on lesson 00; then **commit before you look**.
#
# Take a trained network of six convolutions with BatchNorm. A **filter** is all that makes one output channel of a
# convolution. Set half of the filters of every layer to zero: `mask.apply(model)`.
#
# **CSR** (compressed sparse rows) is a format for sparse matrices: it stores the kept values and, for each one, the number
# of its column. Now remove half of the single weights. How large is that file?
#
# At last, keep one weight in eight, by magnitude, in four shapes, and train two more epochs: any *weight*, one of *every
# eight* along the inputs (called 1:8), whole *kernels* (the 3x3 of one input and one output), whole *channels*.

# %%
lesson.recall(
    "What does a mask hold for each weight, and what does the value mean?", "a bool: True = kept, False = removed"
)
lesson.recall(
    "Sparsity 0.75, sixteen weights. How many stay?", "4",
    "exactly `round((1 - 0.75) * 16)`", options=["4", "12", "about 4"],
)  # fmt: skip
lesson.recall(
    "A mask was applied once, before training. How sparse is the network after it?", "hardly at all",
    "each step moves every weight that has a gradient; the mask must be held", options=["as before", "hardly at all"],
)  # fmt: skip
lesson.predict(
    "time", "Half of the filters are zeros. How long does a forward pass take, against the dense network?",
    choices=["about half", "about three quarters", "about the same"],
)  # fmt: skip
lesson.predict("csr", "Half of the weights are zeros. How large is CSR, in percent of the dense file?", unit="%")
lesson.predict("order", "Most accurate first?", order=["weight", "N:M", "kernel", "channel"], unit="%")

# %% [markdown]
# ## The smallest case, by hand
#
# The matrix of lesson 00: four outputs (rows), four inputs (columns). Half of it stays, by size, in three structures.
# **2:4** keeps the best two of every four weights along the inputs. It is one case of **N:M**. A *filter* of a matrix is a
# row; *input* is a column. Beside the masks: bytes. A dense file has 16 numbers of 4 bytes. A **bitmap** has one bit per
# weight and the 8 kept numbers. CSR has the 8 numbers, 8 columns of 2 bytes and 5 row pointers of 2 bytes.

# %%
# NBVAL_CHECK_OUTPUT
W = torch.tensor([[1.0, -9.0, 2.0, 0.5], [8.0, 0.1, -3.0, 1.5], [-0.2, 4.0, -7.0, 2.5], [0.3, -1.2, 0.7, 6.0]])
halves = {"2:4": None, "filter": 0.5, "input": 0.5}
hand = {name: pai.allocate({"w": W.abs()}, half, structure=name)["w"] for name, half in halves.items()}
for name, keep in hand.items():
    print(f"{name:6}", keep.int().tolist())
assert hand["2:4"].int().tolist() == [[0, 1, 1, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]]
assert hand["filter"].any(1).tolist() == [False, True, True, False]  # sums 12.5, 12.6, 13.7, 8.2
assert hand["input"].any(0).tolist() == [False, True, True, False]  # sums 9.5, 14.3, 12.7, 10.5
linear = nn.Linear(4, 4, bias=False)
linear.weight.data = W.clone()
tiny = pai.stored_bytes(linear, pai.Mask({"weight": hand["2:4"]})).set_index("format").bytes
print({name: int(tiny[name]) for name in ("dense", "bitmap", "csr")})
assert (tiny.dense, tiny.bitmap, tiny.csr) == (16 * 4, 16 // 8 + 8 * 4, 8 * (4 + 2) + 5 * 2)

# %% [markdown]
# ## Write it
#
# `two_of_four` takes scores and returns the mask. For a convolution (out, in, height, width) the fours run along the
# input channels, at each place of the kernel: hardware multiplies in that order. Empty it, write it, then break it: leave
# out both `movedim`.


# %%
def two_of_four(scores):
    last = scores.movedim(1, -1)  # inputs last: what follows each other here goes in one group
    groups = last.reshape(-1, 4)
    best = groups.argsort(dim=1, descending=True)[:, :2]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter(1, best, True)
    return mask.view(last.shape).movedim(-1, 1)


lesson.check("two_of_four", two_of_four)
assert torch.equal(two_of_four(W.abs()), hand["2:4"])

# %% [markdown]
# ## One budget, many shapes
#
# The network is `vgg6_bn`, the data are 8x8 **digits**. We train it for a few epochs. Then we prune the same convolution in
# eight structures; `scope="layer"` gives every layer the same share. Some structures take no sparsity: *pattern* keeps 4 of
# 9 places of each kernel, *shift* keeps 1.

# %%
data = pai.load("digits")
dense = pai.build("vgg6_bn", data, seed=0)
print(pai.train(dense, data, epochs=4, seed=0).metrics)
free = ["weight", "kernel", "row", "filter", "channel"]
masks = {name: pai.prune(dense, "magnitude", 0.5, structure=name, scope="layer") for name in free}
ends = {"2:4": "conv1.weight", "pattern": "fc.weight", "shift": ()}  # one input, no kernel: these do not fit
masks |= {name: pai.prune(dense, "magnitude", structure=name, exclude=layer) for name, layer in ends.items()}
plots.kernels(masks, "conv2").set_title("From dust to blocks: the coarser, the fewer ways to choose")
plt.show()

# %% [markdown]
# *Channel* keeps a quarter, not a half: it removes rows of this layer *and* the columns of channels that the layer
# before no longer makes. That is **coupling**.
#
# ## Why a filter cannot go alone
#
# Its output feeds others. First trap: a filter of zeros does not put out zeros. BatchNorm subtracts a mean, divides by a
# deviation, scales and shifts: an input of zero becomes the constant beta - gamma * mu / sigma. By hand: mu = 0.5, sigma
# squared = 4, gamma = 2, beta = 1.5.

# %%
bn = nn.BatchNorm2d(1).eval()
for tensor, value in [(bn.running_mean, 0.5), (bn.running_var, 4.0), (bn.weight, 2.0), (bn.bias, 1.5)]:
    tensor.data.fill_(value)
constant = bn(torch.zeros(1, 1, 1, 1)).item()
assert abs(constant - (1.5 - 2 * 0.5 / 2)) < 1e-6
x, net = data.val[0], masks["filter"].apply(deepcopy(dense)).eval()
with torch.inference_mode():
    after = net[:3](x)  # conv1, bn1, relu1
silent = ~masks["filter"]["conv1.weight"].flatten(1).any(1)
spread = after[:, silent].std((0, 2, 3)).max().item()
lesson.say(
    "By hand: {constant:.4f}. In the network {n} filters of conv1 are zeros; over {samples} images and all places their "
    "outputs vary by {spread:.1g}, and the largest stands at {level:.2f}: no zero, a constant.",
    constant=constant, n=int(silent.sum()), samples=len(x), spread=spread, level=after[:, silent].max().item(),
)  # fmt: skip

# %% [markdown]
# So `pai.remove` refuses to cut a filter that still speaks. `pai.whole_channels` adds what belongs to it: the BatchNorm
# entries and the columns of the next layer. This changes what the network computes. The cut after it does not.

# %%
try:
    pai.remove(dense, masks["filter"])
except ValueError as refused:
    print(str(refused)[:160], "...")
whole = pai.whole_channels(dense, masks["filter"])
small, masked = pai.remove(dense, whole), whole.apply(deepcopy(dense))
with torch.inference_mode():
    gap = (small.eval()(x) - masked.eval()(x)).abs().max().item()
    shift = pai.shifted(dense.conv2, masks["shift"]["conv2.weight"])  # a 3x3 of one weight is a shift and a 1x1
    feed = torch.randn(8, 16, 8, 8)
    one = masks["shift"].apply(deepcopy(dense)).conv2(feed)
    shift_gap = (shift(feed) - one).abs().max().item()
count = {name: sum(p.numel() for p in model.parameters()) for name, model in [("dense", dense), ("small", small)]}
lesson.say(
    "{dense:,} parameters became {small:,}. Masked and removed differ by at most {gap:.0e} in any output: rounding. "
    "Also the shift layer equals its masked convolution up to {shift_gap:.0e}, in {bits:.0%} of the bits.",
    gap=gap, shift_gap=shift_gap, bits=shift.bits / (32 * dense.conv2.weight.numel()), **count,
)  # fmt: skip

# %% [markdown]
# Second trap: the **residual add**. In a ResNet all blocks of a stage add into one stream. A channel of the stream is
# written by the first convolution *and* by the last one of each block. Remove a filter in one of them, and the others
# still write. Count the red lines.

# %% tags=["explorable"]
residual = pai.build("resnet20", data, seed=0)
chain, stream = coupled.channels(dense), coupled.channels(residual)
figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 9.8), height_ratios=[1, 2.7], layout="constrained")
plots.coupling(chain, "conv2.weight", 3, ax=top).set_title("In a chain, a channel lives in three layers")
plots.coupling(stream, "conv1.weight", 3, ax=bottom).set_title("In a residual stage, it lives in every block")
plt.show()
writer = torch.ones_like(residual.stage1[0].conv2.weight, dtype=torch.bool)
writer[3] = False  # one filter of the stream, in one of its writers
alone = pai.Mask({"stage1.0.conv2.weight": writer})
same = pai.remove(residual, pai.whole_channels(residual, alone))
together = pai.remove(residual, pai.prune(residual, "magnitude", 0.25, structure="channel"))
block = pai.prune(residual, "magnitude", 0.34, structure="block")
size = {key: sum(p.numel() for p in net.parameters()) for key, net in
        {"full": residual, "alone": same, "together": together, "blocks": pai.remove(residual, block)}.items()}  # fmt: skip
lesson.say(
    "ResNet-20 has {full:,} parameters; {alone:,} after one writer lost a filter: nothing could go. A quarter of the "
    "channels, removed together, leaves {together:,}; whole blocks beside a shortcut can go too, and leave {blocks:,}.",
    **size,
)  # fmt: skip

# %% [markdown]
# ## What a zero saves
#
# The left picture stores the whole network with single weights removed. **gzip** is the file, zeros and all, packed. It
# needs no format, so anybody gets it for free. CSR breaks even only where its line crosses 100%. The right picture
# times one forward pass. `pai.latency` warms up first, then runs all networks in turn, on one thread: shared machines are
# faster in one second than in the next.

# %% tags=["explorable"]
grid = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
stored = pd.concat(
    [pai.stored_bytes(dense, pai.prune(dense, "magnitude", s, scope="layer")).assign(sparsity=s) for s in grid]
)
stored["share"] = 1 / stored.ratio
forms = {"dense": dense, "masked weights": masks["weight"], "masked 2:4": masks["2:4"], "masked filters": masks["filter"],
         "masked channels": whole}  # fmt: skip
nets = {name: mask if mask is dense else mask.apply(deepcopy(dense)) for name, mask in forms.items()}
nets["removed channels"] = small
speed = pai.latency(nets, data.test[0][:128], repeats=60).set_index("model")
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.4), layout="constrained")
colours = {"dense": plots.INK, "csr": plots.GUESS, "bitmap": plots.KEPT, "gzip": "#009E73"}
places = {"dense": (0.8, 1.03), "csr": (0.12, 1.36), "bitmap": (0.02, 1.03), "gzip": (0.08, 0.72)}
for name, colour in colours.items():
    line = stored[stored.format == name]
    left.plot(line.sparsity, line.share, color=colour)
    left.text(*places[name], name, color=colour, fontweight="bold")
even = 1 - break_even(dense.conv6.weight.shape)["csr"]
left.axvline(even, color=plots.QUIET, linestyle=":")
left.text(even + 0.02, 1.35, f"CSR breaks even\nat {even:.0%} (conv6)", va="center", fontsize=plots.SMALL)
left.set(xlim=(0, 1), ylim=(0, 1.6), xlabel="sparsity of single weights", ylabel="bytes / dense bytes")
left.set_title("Half the weights, not half the bytes")
right.barh(speed.index, speed["median"], color=[plots.GONE] * 5 + [plots.KEPT])
right.errorbar(speed["median"], speed.index, xerr=[speed["median"] - speed.q1, speed.q3 - speed["median"]],
               fmt="none", ecolor=plots.INK, capsize=5)  # fmt: skip
right.invert_yaxis()
right.set(xlabel="ms for 128 images; bar: median of 60, line: quartiles", xlim=(0, None))
right.set_title("Zeros take as long as weights")
plt.show()

# %%
rows = {}
for name, mask in {"weights": masks["weight"], "filters": masks["filter"], "channels": whole}.items():
    told = pai.report(dense, mask)
    rows[name] = {
        "zeros": told.sparsity, "effective": told.effective_sparsity, "MACs if skipped": told.sparse_macs / told.macs,
        "bitmap bytes": told.bitmap_bytes / told.dense_bytes, "dense bytes": 1.0,
        "time": speed.ratio[f"masked {name}"],
    }  # fmt: skip
cut = pai.report(small, pai.Mask.dense(small))
rows["channels, removed"] = rows["channels"] | {
    "MACs if skipped": cut.macs / told.macs, "dense bytes": cut.dense_bytes / told.dense_bytes,
    "time": speed.ratio["removed channels"],
}  # fmt: skip
display(pd.DataFrame(rows).T.map("{:.0%}".format))
choices = {"about half": 0.5, "about three quarters": 0.75, "about the same": 1.0}
lesson.reveal("time", min(choices, key=lambda name: abs(choices[name] - speed.ratio["masked filters"])))
at_half = stored[stored.sparsity == 0.5].set_index("format")
lesson.reveal("csr", at_half.share["csr"])
lesson.say(
    "At sparsity 50%: CSR {csr:.0%} of the dense bytes, bitmap {bitmap:.0%}, gzip {gzip:.0%}. Masked filters took "
    "{filters:.0%} of the dense time, removed channels {removed:.0%}, with {macs:.0%} of the multiply-adds.",
    **at_half.share[["csr", "bitmap", "gzip"]], filters=speed.ratio["masked filters"],
    removed=speed.ratio["removed channels"], macs=cut.macs / told.macs,
)  # fmt: skip

# %% [markdown]
# Read along the rows. *Zeros* and *effective* are sparsities; the others are shares of the dense network. **MACs** are multiply-adds, the arithmetic,
# *if* every zero is skipped; torch skips none. **Effective** sparsity counts also the weights on no path from input to
# output: whoever reads a silent filter computes for nothing. 2:4 is faster only on hardware with sparse units and kernels
# that use them; here it is one more dense product.
#
# ## torch's own tools
#
# `torch.nn.utils.prune` masks by **reparametrization**: the Parameter becomes `weight_orig`, a buffer `weight_mask` stands
# beside it, and `weight` is their product, made anew before every forward pass. The optimizer still moves `weight_orig`.
# The masks translate both ways.

# %%
# NBVAL_CHECK_OUTPUT
theirs = deepcopy(dense)
layers = [(module, "weight") for module in theirs.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=0.5)
ours = pai.prune(dense, "magnitude", 0.5)
print("the same mask:", pai.Mask.from_torch(theirs) == ours, "kept:", ours.kept)
held = ours.to_torch(deepcopy(dense))
print("there and back:", pai.Mask.from_torch(held) == ours)
print("conv2 has:", sorted({name for name, _ in [*held.conv2.named_parameters(), *held.conv2.named_buffers()]}))
grown = sum(t.numel() * t.element_size() for t in held.state_dict().values())
plain = sum(t.numel() * t.element_size() for t in dense.state_dict().values())
print("bytes of the state:", plain, "before,", grown, "with torch's masks attached")

# %% [markdown]
# The "pruned" file is nearly twice as large, until `torch.nn.utils.prune.remove` makes the zeros permanent.
#
# ## The measurement: what a structure costs
#
# Five seeds: train 8 epochs, remove the same number of *weights* in each structure, train 2 more epochs under the mask.
# Grey is the baseline: the same structure, chosen at random. N:M is 2:4, 1:4, 1:8, 1:16, by sparsity. Channels are coupled;
# the other three leave conv1, 0.2% of the weights, whole. Validation accuracy; `results/make_structures.py` made the table.

# %%
table = pd.read_csv("results/structures.csv")
whole_nets = table[table.structure == "dense"].val_accuracy.mean()
pruned = table[table.structure != "dense"]
figure, axes = plt.subplots(1, 4, figsize=(14, 4.6), sharey=True, layout="constrained")
for ax, name in zip(axes, ["weight", "N:M", "kernel", "channel"], strict=True):
    for criterion, colour in (("random", plots.QUIET), ("magnitude", plots.KEPT)):
        part = pruned[(pruned.structure == name) & (pruned.criterion == criterion)]
        ax.plot(part.asked_sparsity, part.val_accuracy, "o", color=colour, markersize=5, alpha=0.5)
        ax.plot(part.groupby("asked_sparsity").val_accuracy.mean(), color=colour)
    ax.axhline(whole_nets, color=plots.INK, linestyle="--", linewidth=1.5)
    ax.axhline(0.1, color=plots.QUIET, linestyle=":", linewidth=1.5)
    ax.yaxis.set_major_formatter("{x:.0%}")
    ax.set(ylim=(0, 1.02), xlim=(0.45, 1), xticks=[0.5, 0.75, 0.875], title=name, xlabel="sparsity of weights")
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
axes[0].set_ylabel("validation accuracy")
axes[0].text(0.47, 0.12, "chance", fontsize=plots.SMALL)
axes[3].text(0.47, 0.89, "dashed: dense", fontsize=plots.SMALL)
axes[0].text(0.47, 0.48, "magnitude", color=plots.KEPT, fontweight="bold")
axes[0].text(0.47, 0.39, "random", color=plots.QUIET, fontweight="bold")
figure.suptitle("The finer the structure, the more the choice is worth (n = 5 seeds)", fontsize=18)
plt.show()
by = pruned.groupby(["criterion", "asked_sparsity", "structure"]).val_accuracy.mean()
lesson.reveal("order", by["magnitude", 0.875].to_dict())
gain = by["magnitude", 0.875] - by["random", 0.875]
lesson.say(
    "At 50% all four keep at least {least:.1%} (dense {dense:.1%}). At 87.5% the choice by magnitude is worth {fine:.0f} "
    "points over random for weights, {block:.0f} for N:M, {kernel:.0f} for kernels, {coarse:.0f} for channels.",
    least=by["magnitude", 0.5].min(), dense=whole_nets, fine=100 * gain["weight"], block=100 * gain["N:M"],
    kernel=100 * gain["kernel"], coarse=100 * gain["channel"],
)  # fmt: skip

# %% [markdown]
# N:M follows the free choice of weights closely: that is its appeal. Kernels lose most. And at high sparsity *channels* win,
# even at random. This departs from the literature, where finer structures keep more accuracy. A guess: the narrow, dense
# network recovers fast, and the wide, sparse one had two epochs only. We have not tested it; E3 does.
#
# **What would change your mind?** One small network, one easy data set, two epochs. Give both more, and look again. And at
# equal *milliseconds* only the removed channels compete here. Ask always: equal in what?
#
# ## Find the flaw
#
# A published-style report of a compression. What is wrong? Write the `assert` first. The cell after it fails on purpose.

# %%
mask = pai.prune(dense, "magnitude", 0.9)
shipped = mask.apply(deepcopy(dense))
nonzeros = sum(int(w.count_nonzero()) for w in pai.prunable(shipped).values())
claimed = nonzeros * 32 // 8
print(f"model size {claimed / 1000:.1f} kB: {plain / claimed:.1f}x compression")

# %% tags=["raises-exception"]
file = save(shipped.state_dict())  # the bytes of a safetensors file
assert len(file) <= 1.05 * claimed, f"the file has {len(file) / 1000:.1f} kB, not {claimed / 1000:.1f}"

# %% [markdown]
# Nonzeros times 32 bit is the size of no file: a reader could not put the numbers back in place. Biases and BatchNorm are
# missing, too. Second line of our checklist: **weigh the file, time the forward pass.**
#
# ## Checkpoint

# %%
assert gap < 1e-4 and shift_gap < 1e-4, "removed equals masked"
assert size["alone"] == size["full"] > size["together"], "a filter of a residual stream does not go alone"
read = pai.effective(dense, masks["filter"])
assert read.sparsity > masks["filter"].sparsity + 0.1, "silent filters are read in vain"
assert len(file) > plain and pai.stored_bytes(dense, mask).bytes.min() > claimed, "no format is as small as the claim"
assert by["magnitude", 0.5].min() > 0.95, "half of the weights can go in any of the four structures"
assert gain["weight"] > gain["channel"] + 0.1, "the finer the structure, the more the choice is worth"

# %% [markdown]
# **Exercises.** *E1 (5 min)* Above which sparsity does a bitmap beat dense? Ask `break_even`, then derive it: one bit
# against 32. *E2 (15 min)* `pai.latency` with `x` of one image, then of 512. When does removing channels pay less, and why?
# *E3
# (open)* Run one seed of the table with ten more epochs instead of two. Do channels still win at 87.5%? Then fold the constants of
# silent filters into the next layer before you remove them. Where is this exact, and what does zero padding break?
#
# **Summary.** A structure is what goes together. Fine structures leave more to choose, coarse ones can be cut out. A filter goes only
# with its channel: BatchNorm, readers, and in a residual stage all writers. A mask saves nothing until a format or a smaller
# network uses it. Equal in what: weights, multiply-adds, bytes or time?
#
# **Glossary.** *Structure* what is removed together. *Kernel* the weights between one input and one output channel. *Filter* all
# weights of one output channel. *N:M* N of every M consecutive weights stay. *Coupled* can only go together. *MAC* one
# multiply-add. *CSR, bitmap* formats for sparse weights. *Break-even* where a format is as large as dense.
#
# **Further reading.** [Pruning filters for efficient convnets](https://arxiv.org/abs/1608.08710) (Li 2017): the L1 norm of
# filters, and what they did at residual adds. [Exploring the granularity of sparsity](https://arxiv.org/abs/1705.08922)
# (Mao 2017): accuracy against regularity, with index cost. [Accelerating sparse deep neural
# networks](https://arxiv.org/abs/2104.08378) (Mishra 2021): 2:4 in hardware.
# [DepGraph](https://arxiv.org/abs/2301.12900) (Fang 2023): coupling found by machine.
