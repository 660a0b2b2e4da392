"""Ratios of speed and memory, each pair measured side by side in one run; prints a Markdown table.

python bench/run.py             # all, about 6 minutes on two cores
python bench/run.py hold select # some of them
"""

import gc
import os
import subprocess
import sys
import time
from copy import deepcopy
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

import pai_lab as pai
from pai_lab.allocation import apportion, select
from pai_lab.scopes import Layer, quotas

ROWS = []


def row(what, measured, goal, beside=""):
    ROWS.append((what, measured, goal, beside))
    print("| " + " | ".join(ROWS[-1]) + " |", flush=True)


def side_by_side(functions, rounds, warm=True):
    """Seconds per call of each function, in turn, `rounds` times; medians and the ratios to the first."""
    times = {name: [] for name in functions}
    for function in functions.values() if warm else ():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started)
    first = next(iter(times))
    ratios = {n: median(a / b for a, b in zip(t, times[first], strict=True)) for n, t in times.items()}
    return {n: median(t) for n, t in times.items()}, ratios


def image_data(size, classes=100, n=200):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 3, size, size, generator=generator), torch.arange(n) % classes
    return pai.Data(name="random images", train=(x, y), val=(x, y), test=(x, y))


def hold():
    """A training step under a held mask against the dense step, and under torch's own pruning."""
    for data_name, model_name, goal in (("mnist1d", "mlp", "1.05"), ("digits", "vgg6_bn", "1.02")):
        data = pai.load(data_name)
        x, y = (t[:64] for t in data.train)

        def stepper(kind, data=data, model_name=model_name, x=x, y=y):
            model = pai.build(model_name, data, seed=0)
            mask = pai.prune(model, "magnitude", 0.9)
            if kind == "torch":
                mask.to_torch(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            if kind == "held":
                mask.hold(model, optimizer)

            def steps():
                for _ in range(20):
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()

            return steps

        torch.set_num_threads(1)
        _, ratios = side_by_side({kind: stepper(kind) for kind in ("dense", "held", "torch")}, 60)
        torch.set_num_threads(os.cpu_count())
        row(
            f"a training step of {model_name} on {data_name} with `Mask.hold` / dense",
            f"{ratios['held']:.3f}",
            goal,
            f"`torch.nn.utils.prune` {ratios['torch']:.3f}",
        )


def selection():
    """Exact selection of k among 15 million scores against numpy's partition on distinct ones."""
    n, rng = 15_000_000, np.random.default_rng(0)
    distinct = rng.standard_normal(n).astype(np.float32)
    tied = np.where(rng.random(n) < 0.9, np.float32(0), distinct)
    k = n // 10
    work = {
        "partition": lambda: np.partition(distinct, n - k),
        "select": lambda: select(distinct, k, None, np.random.default_rng(0)),
        "tied": lambda: select(tied, k, None, np.random.default_rng(0)),
    }
    seconds, ratios = side_by_side(work, 9)
    as_torch = torch.from_numpy(distinct)
    others = {"kthvalue": lambda: as_torch.kthvalue(n - k), "sort": lambda: as_torch.sort()}
    _, slow = side_by_side({"partition": work["partition"]} | others, 3)
    words = f"partition {1e3 * seconds['partition']:.0f} ms; `torch.kthvalue` {slow['kthvalue']:.0f}"
    words += f", `torch.sort` {slow['sort']:.0f} times it"
    row("exact selection among 15 M distinct scores / `numpy.partition`", f"{ratios['select']:.2f}", "3", words)
    row("the same with 90% equal scores / `numpy.partition` on distinct ones", f"{ratios['tied']:.2f}", "3")


def plain(net, x, y):
    """One forward+backward in train mode: the lower bound of a first-order score."""
    net.train()
    torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()))


def scoring():
    """SNIP and GraSP against one forward+backward of their batch."""
    data = image_data(32)
    model = pai.build("vgg16_bn", data, seed=0)
    batch = tuple(t[:100] for t in data.train)
    work = {"plain": lambda: plain(model, *batch)}
    work |= {name: lambda name=name: pai.score(model, name, batch) for name in ("snip", "grasp")}
    seconds, ratios = side_by_side(work, 7)
    beside = f"{seconds['plain']:.1f} s"
    row("SNIP scores, VGG-16, batch 100 / one forward+backward", f"{ratios['snip']:.2f}", "1.1", beside)
    row("GraSP scores, VGG-16, batch 100 / one forward+backward", f"{ratios['grasp']:.2f}", "4", beside)


def synflow():
    """SynFlow's 100 rounds against 100 forward+backward passes of one sample in the same dtype."""
    model = pai.build("vgg16_bn", image_data(32), seed=0)
    double = deepcopy(model).double().eval()
    one = torch.ones(1, 3, 32, 32, dtype=torch.float64)

    def hundred():
        for _ in range(100):
            torch.autograd.grad(double(one).sum(), list(double.parameters()))

    batch = (one.float(), torch.zeros(1, dtype=torch.int64))
    work = {"plain": hundred, "synflow": lambda: pai.prune(model, "synflow", 0.99, batch=batch)}
    seconds, ratios = side_by_side(work, 3, warm=False)
    beside = f"{seconds['plain']:.0f} s"
    row(
        "SynFlow, 100 rounds to 99%, VGG-16 / 100 forward+backward of one sample",
        f"{ratios['synflow']:.2f}",
        "1.7",
        beside,
    )


def iterative():
    """FORCE and iterative SNIP, 30 rounds, against 30 forward+backward passes."""
    data = image_data(32, classes=10)
    model = pai.build("resnet20", data, seed=0)
    batch = tuple(t[:100] for t in data.train)

    def thirty():
        for _ in range(30):
            plain(model, *batch)

    work = {"plain": thirty}
    for name in ("force", "iterative_snip"):
        work[name] = lambda name=name: pai.prune(model, name, 0.98, batch=batch, allow_empty=True)
    seconds, ratios = side_by_side(work, 3, warm=False)
    for name in ("force", "iterative_snip"):
        row(f"{name}, 30 rounds, ResNet-20, batch 100 / 30 forward+backward", f"{ratios[name]:.2f}", "1.15",
            f"{seconds['plain']:.0f} s")  # fmt: skip


def layers():
    """Budgets for 1,000 layers; effective sparsity of a deep net."""
    shapes = np.random.default_rng(0).integers(1, 512, (1000, 2))
    found = {f"layer {i}": Layer(int(a * b * 9), (int(a), int(b), 3, 3)) for i, (a, b) in enumerate(shapes)}
    total = sum(layer.units for layer in found.values())

    def split(scope):
        wanted = quotas(scope, found, total // 50)
        return apportion(list(wanted.values()), total // 50, [0] * 1000, [layer.units for layer in found.values()])

    seconds, _ = side_by_side({scope: lambda scope=scope: split(scope) for scope in ("erk", "igq")}, 15)
    for scope in seconds:
        row(f"{scope.upper()} on 1,000 layers", f"{1e3 * seconds[scope]:.1f} ms", "10 ms")
    model = pai.build("resnet56", image_data(32), seed=0)
    mask = pai.prune(model, "random", 0.98)
    seconds, _ = side_by_side({"effective": lambda: pai.effective(model, mask)}, 9)
    row("effective sparsity, ResNet-56", f"{seconds['effective']:.2f} s", "0.3 s")


def criteria():
    """Every criterion on ResNet-18 (11 M weights), batch 20, one round, beside one forward+backward of that batch."""
    data = image_data(32, classes=10)
    model = pai.build("resnet18", data, seed=0)
    batch = tuple(t[:20] for t in data.train)
    plain(model, *batch)
    for name in pai.names("criterion"):
        try:
            options = {"kept": 110_000} if name == "phew" else {}
            once = {"plain": lambda: plain(model, *batch)}
            once["score"] = lambda name=name, options=options: pai.score(model, name, batch, **options)
            seconds, ratios = side_by_side(once, 3, warm=False)
            row(f"{name}, ResNet-18, batch 20 / one forward+backward", f"{ratios['score']:.2f}", "",
                f"{seconds['score']:.2f} s")  # fmt: skip
        except ValueError as error:
            row(f"{name}, ResNet-18", "not for this size", "", str(error)[:80])


MEMORY = """
import gc, sys, torch
sys.path.insert(0, "bench")
import pai_lab as pai
from run import image_data
what, kind = sys.argv[1:]
double = kind == "synflow"
def score(model, data, batch):
    pai.prune(model, kind, 0.9, batch=batch, iterations=2)
def plain(model, data, batch):
    weights = pai.masked(model, dtype=torch.float64 if double else None)
    x = torch.ones(1, *model.input_shape, dtype=torch.float64) if double else batch[0]
    model.train(not double)
    torch.autograd.grad(pai.forward(model, weights, x).sum(), [weights[n] for n in pai.prunable(model)])
def run(name):
    data = image_data(32)
    model = pai.build(name, data, seed=0)
    batch = tuple(t[: 2 if double else 100] for t in data.train)
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    {"score": score, "plain": plain}[what](model, data, batch)
    return (status("VmHWM") - before) / sum(w.numel() for w in pai.prunable(model).values()) / (8 if double else 4)
def status(key):
    return 1024 * int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1])
run("resnet20")  # libraries load what they need
print(run("vgg16_bn"))
"""


def memory():
    """Peak memory of pruning, in tensors of the weights' size, beyond model and activations.

    A plain forward+backward on a copy of the weights holds two such tensors (copy, gradients) and the
    activations; what pruning peaks at beyond it is therefore added to two. Each in a process of its own.
    """

    def peak(what, kind):
        command = [sys.executable, "-c", MEMORY, what, kind]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    for kind in ("snip", "grasp", "synflow", "force"):
        found = {what: median(peak(what, kind) for _ in range(3)) for what in ("score", "plain")}
        extra = 2 + max(found["score"] - found["plain"], 0)
        words = f"peak {found['score']:.1f}, plain forward+backward {found['plain']:.1f}"
        row(f"peak memory of pruning by {kind}, VGG-16, in tensors of the weights' size", f"{extra:.1f}", "4", words)


def imports():
    """`import pai_lab` over `import torch`, each in a fresh process."""

    def seconds(module):
        code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    seconds("pai_lab")
    pairs = [(seconds("torch"), seconds("pai_lab")) for _ in range(9)]
    extra = median(b - a for a, b in pairs)
    row("`import pai_lab` over `import torch`", f"{extra:.2f} s", "0.3 s", f"torch {median(a for a, _ in pairs):.1f} s")


ALL = {
    "hold": hold, "select": selection, "scoring": scoring, "synflow": synflow, "iterative": iterative, "layers": layers,
    "criteria": criteria, "memory": memory, "imports": imports,
}  # fmt: skip

if __name__ == "__main__":
    print("| what | measured | at most | beside it |\n|---|---|---|---|")
    for name in sys.argv[1:] or ALL:
        ALL[name]()
        gc.collect()
