"""Sweeps in real processes: workers, schedulers and sweeps are killed in the middle, and no result is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RUNS = """
import os, signal, time
from pathlib import Path

def run(seed, log, pause=0.2, deadly=False):
    with open(log, "a") as file:
        file.write(f"{seed} {os.getpid()}\\n")
    time.sleep(pause)
    if deadly and seed == 3 and not Path("died").exists():
        Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"value": 7 * seed, "pid": os.getpid()}
"""

SWEEP = """
import sys
from pathlib import Path
import joblib
import pai_lab as pai
from runs import run

def sweep(n, **fixed):
    table = pai.sweep(run, {"seed": range(n)}, folder="results", fixed={"log": str(Path("log").absolute())} | fixed)
    print(table[["seed", "value", "pid"]].to_json(orient="records"), flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """start(*arguments) runs this Python in tmp_path, in a process group of its own that ends with the test."""
    (tmp_path / "runs.py").write_text(RUNS)
    (tmp_path / "sweeps.py").write_text(SWEEP)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1", "CI": "1"}
    started = []

    def run(*arguments):
        code = [sys.executable, "-W", "error::UserWarning", *arguments]
        with open(tmp_path / f"{len(started)}.out", "w") as out, open(tmp_path / f"{len(started)}.err", "w") as err:
            one = subprocess.Popen(
                code, cwd=tmp_path, env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=out, stderr=err,
            )  # fmt: skip
        one.out, one.err = Path(out.name), Path(err.name)
        started.append(one)
        return one

    yield run
    for one in started:
        try:
            os.killpg(one.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        one.wait(10)


@pytest.fixture
def cluster(start, tmp_path):
    """A Dask scheduler and one-thread workers on the loopback: cluster(2) returns scheduler, [worker, worker]."""
    pytest.importorskip("distributed")

    def up(workers):
        known = ["--scheduler-file", "cluster.json", "--host", "127.0.0.1", "--no-dashboard"]
        scheduler = start("-m", "distributed.cli.dask_scheduler", "--port", "0", *known)
        until(lambda: (tmp_path / "cluster.json").exists(), scheduler)
        command = ("-m", "distributed.cli.dask_worker", *known, "--nthreads", "1", "--no-nanny")
        return scheduler, [start(*command) for _ in range(workers)]

    return up


CLIENT = """
from sweeps import *
from distributed import Client
client = Client(scheduler_file="cluster.json", timeout=30)
client.wait_for_workers(int(sys.argv[1]), timeout=30)
joblib.parallel_config(backend="dask")
"""


def until(true, process=None, seconds=60):
    """Waits until true() holds; fails if the process ends before, or after some seconds."""
    for _ in range(20 * seconds):
        if true():
            return
        assert process is None or process.poll() is None, process.err.read_text()
        time.sleep(0.05)
    pytest.fail(f"nothing happened in {seconds} s\n{process and process.err.read_text()}")


def finished(process, seconds=100):
    """The tables that a process printed, as lists of dicts, once it has ended well."""
    assert process.wait(seconds) == 0, process.err.read_text()
    return [json.loads(line) for line in process.out.read_text().splitlines() if line.startswith("[")]


def starts(folder):
    """How often each seed was started; and the processes that did it."""
    lines = [line.split() for line in (folder / "log").read_text().splitlines()] if (folder / "log").exists() else []
    return Counter(int(seed) for seed, _ in lines), {int(pid) for _, pid in lines}


def stored(folder):
    """The seeds with a result; every file in the folder must be whole."""
    records = [json.loads(path.read_text()) for path in (folder / "results").glob("*.json")]
    assert not list((folder / "results").glob("*.corrupt"))
    return {record["settings"]["seed"] for record in records if record["result"]["value"] is not None}


def every(n):
    return [{"seed": seed, "value": 7 * seed} for seed in range(n)]


def without_pid(table):
    return [{"seed": row["seed"], "value": row["value"]} for row in table]


def test_a_killed_dask_worker_loses_no_run(cluster, start, tmp_path):
    _, (one, other) = cluster(2)
    sweep = start("-c", CLIENT + "sweep(40)\nsweep(43)", "2")
    until(lambda: sum(starts(tmp_path)[0].values()) >= 12 and len(starts(tmp_path)[1]) == 2, sweep)
    one.kill()
    at_kill = stored(tmp_path)
    table, more = finished(sweep)
    assert without_pid(table) == every(40) and without_pid(more) == every(43)
    assert stored(tmp_path) == set(range(43))
    started, by = starts(tmp_path)
    assert set(started) == set(range(43)) and sum(started.values()) <= 43 + 2 and at_kill
    assert by == {one.pid, other.pid}  # and not the client, also when one worker is left


def test_a_killed_dask_scheduler_is_said_and_keeps_what_is_done(cluster, start, tmp_path):
    scheduler, _ = cluster(1)
    code = """
for _ in range(2):
    try:
        sweep(40)
    except RuntimeError as error:
        print(error)
        Path("said").touch()
with joblib.parallel_config(backend="loky", n_jobs=1):
    sweep(12)
"""
    sweep = start("-c", CLIENT + code, "1")
    until(lambda: sum(starts(tmp_path)[0].values()) >= 4, sweep)
    scheduler.kill()
    until((tmp_path / "said").exists, sweep, seconds=15)
    kept = stored(tmp_path)
    [table] = finished(sweep)
    said = sweep.out.read_text()
    assert said.count("DaskDistributedBackend) are gone") == 2 and "scheduler" in said and "call again" in said
    assert kept >= {0, 1, 2} and without_pid(table) == every(12)
    assert all(starts(tmp_path)[0][seed] == 1 for seed in kept)


def test_a_killed_sweep_goes_on_where_it_was(start, tmp_path):
    code = "from sweeps import *\njoblib.parallel_config(n_jobs=int(sys.argv[1]))\nsweep(16)"
    first = start("-c", code, "2")
    until(lambda: len(list(tmp_path.glob("results/*.json"))) >= 4, first)
    first.kill()
    kept = stored(tmp_path)
    assert 4 <= len(kept) < 16
    [table] = finished(start("-c", code, "1"))
    assert without_pid(table) == every(16) and stored(tmp_path) == set(range(16))
    started, _ = starts(tmp_path)
    assert all(started[seed] == 1 for seed in kept) and set(started) == set(range(16))


def test_an_interrupted_sweep_keeps_what_is_finished(start, tmp_path):
    code = """
from sweeps import *
for number, jobs in enumerate((2, 2, 1)):
    joblib.parallel_config(n_jobs=jobs)
    try:
        sweep(24)
    except KeyboardInterrupt:
        Path(f"interrupted{number}").touch()
"""
    sweep, kept = start("-c", code), {}
    for number, interrupt in enumerate((os.kill, os.killpg)):  # as Jupyter does; as Ctrl-C in a terminal
        until(lambda had=kept: len(list(tmp_path.glob("results/*.json"))) >= len(had) + 4, sweep)
        interrupt(sweep.pid, signal.SIGINT)
        until((tmp_path / f"interrupted{number}").exists, sweep)
        assert len(kept) < len(stored(tmp_path)) < 24
        kept = {seed: starts(tmp_path)[0][seed] for seed in stored(tmp_path)}
    [table] = finished(sweep)
    assert sweep.out.read_text().count("the same call goes on from there") == 2
    assert "Traceback" not in sweep.err.read_text()
    assert without_pid(table) == every(24) and stored(tmp_path) == set(range(24))
    assert kept.items() <= starts(tmp_path)[0].items()


def test_two_sweeps_share_a_folder(start, tmp_path):
    code = "from sweeps import *\njoblib.parallel_config(n_jobs=1)\nsweep(30, pause=0.05)"
    both = [start("-c", code) for _ in range(2)]
    for one in both:
        assert [without_pid(table) for table in finished(one)] == [every(30)]
    assert stored(tmp_path) == set(range(30)) and len(list((tmp_path / "results").iterdir())) == 30


def test_a_killed_process_of_this_machine_is_said(start, tmp_path):
    code = """
from sweeps import *
joblib.parallel_config(n_jobs=2)
try:
    sweep(8, deadly=True)
except RuntimeError as error:
    print(error)
joblib.parallel_config(n_jobs=1)
sweep(8, deadly=True)
"""
    sweep = start("-c", code)
    [table] = finished(sweep)
    assert without_pid(table) == every(8)
    assert "the workers (LokyBackend) are gone" in sweep.out.read_text()


MINE = """
import json
import joblib
import numpy as np
import pai_lab as pai

@pai.criterion
def mine(model, batch, mask, *, power=2):
    return {name: w.detach().abs() ** power for name, w in pai.prunable(model).items()}

if __name__ == "__main__":
    grid = {"method": ["mine", "snip"], "sparsity": np.array([0.5, 0.9]), "seed": range(1, 2), "lr": [np.float32(0.25)]}
    fixed = {"data": "digits", "model": "mlp", "epochs": np.int64(1), "momentum": 0.5, "optimizer": "sgd"}
    for jobs in (2, 1):
        with joblib.parallel_config(n_jobs=jobs):
            table = pai.sweep(pai.experiment, grid, folder=f"jobs{jobs}", fixed=fixed)
        assert not table.attrs["failed"]
        print(json.dumps(table.to_dict("records")))
"""


def test_a_readers_criterion_and_the_same_numbers_in_every_process(start, tmp_path):
    (tmp_path / "script.py").write_text(MINE)
    in_workers, here = finished(start("script.py"))
    assert [row["method"] for row in here] == ["mine", "mine", "snip", "snip"]
    assert [row["asked_sparsity"] for row in here] == [0.5, 0.9, 0.5, 0.9] and {row["power"] for row in here[:2]} == {2}
    times = {"seconds": None}
    assert [row | times for row in in_workers] == [row | times for row in here]
    names = [{path.name for path in (tmp_path / f"jobs{jobs}").iterdir()} for jobs in (1, 2)]
    assert names[0] == names[1] and len(names[0]) == 4


def test_the_sweeps_of_the_readme_run_as_written(cluster, start, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    [local] = [block for block in blocks if "pai.sweep" in block and "Client" not in block]
    [remote] = [block for block in blocks if "Client" in block]
    here = start("-c", local)
    assert here.wait(100) == 0, here.err.read_text()
    cluster(2)
    address = json.loads((tmp_path / "cluster.json").read_text())["address"]
    assert "127.0.0.1:8786" in remote
    there = start("-c", remote.replace("127.0.0.1:8786", address).replace('folder="runs"', 'folder="again"'))
    assert there.wait(100) == 0, there.err.read_text()
    one, two = (process.out.read_text().split(" item ")[0].rstrip() for process in (here, there))
    one_runs, two_runs = ({path.name for path in (tmp_path / name).glob("*.json")} for name in ("runs", "again"))
    assert one_runs == two_runs and len(one_runs) == 12
    assert one == two and "synflow" in one  # the same numbers, wherever they were computed
