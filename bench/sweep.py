"""What a sweep costs beside its runs; prints a Markdown table.

python bench/sweep.py         # all, about 3 minutes on two cores
python bench/sweep.py folder  # one of them
"""

import os
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

os.environ["CI"] = "1"  # no progress bars between the rows

import joblib
import torch
from run import row

import pai_lab as pai
from pai_lab import records

FOLDER = TemporaryDirectory()


def multiply(seed, rounds):
    """A run of equal work for every seed: it needs a core and little memory, as training a small network does."""
    torch.set_num_threads(1)
    x, started, busy = torch.randn(64, 64, generator=torch.manual_seed(seed)), time.perf_counter(), time.process_time()
    for _ in range(rounds):
        x = torch.tanh(x @ x)
    return {"share": (time.process_time() - busy) / (time.perf_counter() - started)}


def nothing(seed):
    return {"value": seed}


def seconds(run, grid, jobs, **fixed):
    """Wall-clock time of a sweep into a new folder, and its table."""
    with joblib.parallel_config(n_jobs=jobs):
        started = time.perf_counter()
        table = pai.sweep(run, grid, folder=Path(FOLDER.name, f"{time.time_ns()}"), fixed=fixed)
        return time.perf_counter() - started, table


def two_processes():
    """16 equal runs of about 2 s: two warm processes against one after another, in turn, so that both see the same
    machine; the first sweep of a session starts the processes, and each imports torch."""
    rounds = 10_000
    multiply(0, 1000)
    started = time.perf_counter()
    multiply(0, rounds)
    rounds = int(2 * rounds / (time.perf_counter() - started))
    cold, _ = seconds(nothing, {"seed": range(2)}, 2)
    total, shares = {1: 0, 2: 0}, {1: [], 2: []}
    for seed in (0, 8):
        for jobs in (1, 2):
            took, table = seconds(multiply, {"seed": range(seed, seed + 8)}, jobs, rounds=rounds)
            total[jobs] += took
            shares[jobs] += list(table.share)
    one, two = total.values()
    got = " and ".join(f"{100 * sum(share) / len(share):.0f}%" for share in shares.values())
    beside = f"serial {one:.1f} s, two processes {two:.1f} s, on {got} of a core each; cold start {cold:.1f} s"
    row("16 runs of about 2 s, two warm processes on two cores", f"{one / two:.2f} times as fast", ">= 1.8", beside)


def overhead():
    """A run that does nothing, in a warm process: its way there, its file, its row in the table."""
    seconds(nothing, {"seed": range(4)}, 2)
    each = {jobs: median(seconds(nothing, {"seed": range(300)}, jobs)[0] / 300 for _ in range(3)) for jobs in (2, 1)}
    beside = f"in this process {1e3 * each[1]:.1f} ms"
    row("overhead a run, two warm processes", f"{1e3 * each[2]:.1f} ms", "< 30 ms", beside)


def folder():
    """Reading 10,000 results, each as large as an experiment's."""
    fixed = {"data": "digits", "model": "mlp", "method": "random", "epochs": 1}
    made = Path(FOLDER.name, "made")
    with joblib.parallel_config(n_jobs=1):
        pai.sweep(pai.experiment, {"seed": [0], "sparsity": [0.5]}, folder=made, fixed=fixed)
    record = records.read(made, next(made.iterdir()).stem)
    for seed in range(1, 10_000):
        settings = record["settings"] | {"seed": seed}
        record |= {"settings": settings, "key": records.key(record["run"], settings)}
        records.write(made, record)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        assert len(pai.results(made)) == 10_000
        times.append(time.perf_counter() - started)
    size = next(made.iterdir()).stat().st_size
    row("reading 10,000 results", f"{median(times):.1f} s", "< 5 s", f"{size} bytes each; the files just written")


ALL = {"processes": two_processes, "overhead": overhead, "folder": folder}

if __name__ == "__main__":
    print("| what | measured | goal | beside it |\n|---|---|---|---|")
    for name in sys.argv[1:] or ALL:
        ALL[name]()
    FOLDER.cleanup()
