"""The project's own promises: dependencies agree everywhere, rooms stand on their floors, the README runs."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# The house's plan: a room imports only from floors below its own. The lowest three are the ground that the nouns
# stand on: names and their errors, files, running a model without a trace, pictures.
PLAN = """
catalog storage
functional image_folder records
graph
mask data models
criteria structures scopes schedules checkpoints
allocation coupled
pruning training
surgery shift collapse controls
metrics tickets sparse_training mask_learning penalties learned_criterion
sweep plots checks
lesson explore
"""
FLOORS = {room: floor for floor, rooms in enumerate(PLAN.strip().splitlines(), -3) for room in rooms.split()}
# The only step on one floor: multiply-adds are counted in the names of prunable weights.
NEXT_DOOR = {("models", "mask")}

HEAVY = ["joblib", "dask", "pandas", "matplotlib", "seaborn", "sklearn", "torchvision", "ipywidgets", "anywidget"]


def requirements(lines):
    """{canonical name: Requirement}, and no name twice."""
    parsed = [Requirement(line) for line in lines]
    by_name = {canonicalize_name(one.name): one for one in parsed}
    assert len(by_name) == len(parsed)
    return by_name


def pinned():
    """{canonical name: Version} of constraints.txt."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "one exact public version a line"
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


DEPENDENCIES = requirements(PROJECT["dependencies"])
EXTRAS = [requirements(lines) for lines in PROJECT["optional-dependencies"].values()]


# Dependencies


def test_constraints_cover_every_dependency():
    versions = pinned()
    for name, requirement in [item for group in (DEPENDENCIES, *EXTRAS) for item in group.items()]:
        assert name in versions, f"constraints.txt has no version for {name}"
        assert versions[name] in requirement.specifier


def test_torch_and_torchvision_are_partners():
    versions, offset = pinned(), 15  # torch 2.N goes with torchvision 0.(N + 15)
    assert versions["torch"].major == 2 and versions["torchvision"].major == 0
    assert versions["torchvision"].minor - versions["torch"].minor == offset
    lowest = [Version(str(DEPENDENCIES[name].specifier).removeprefix(">=")) for name in ("torch", "torchvision")]
    assert lowest[1].minor - lowest[0].minor == offset


def test_environment_yml_lists_the_same_dependencies():
    # conda's dask is a bundle of much else; sweeps need the two that pip's names mean
    conda_names, only_on_pip = {"torch": "pytorch", "dask": "dask-core"}, {"mnist1d", "torch-pruning"}
    needed = DEPENDENCIES | requirements(PROJECT["optional-dependencies"]["sweep"])
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    [pip] = [one["pip"] for one in listed if isinstance(one, dict)]
    conda = [one for one in listed if isinstance(one, str) and not one.startswith(("python=", "pip"))]
    wanted = [f"{conda_names.get(n, n)}{r.specifier}" for n, r in needed.items() if n not in only_on_pip]
    assert sorted(conda) == sorted(wanted)
    assert sorted(pip) == sorted([*only_on_pip, "-e ."])


def test_ruff_is_the_same_everywhere():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    [rev] = [one["rev"] for one in hooks if one["repo"].endswith("/ruff-pre-commit")]
    assert Version(rev) == pinned()["ruff"]


def test_changelog_names_the_version():
    assert f"## {PROJECT['version']} " in (ROOT / "CHANGELOG.md").read_text()


def test_notebooks_are_marked_as_generated():
    lines = [line.split() for line in (ROOT / ".gitattributes").read_text().splitlines()]
    assert ["notebooks/*.ipynb", "linguist-generated=true", "-diff"] in lines


# Rooms and floors


def modules():
    """(path, room) of every module but the vocabulary."""
    paths = [path.relative_to(ROOT / "pai_lab") for path in sorted((ROOT / "pai_lab").rglob("*.py"))]
    return [(path, path.parts[0].removesuffix(".py")) for path in paths if path != Path("__init__.py")]


def imported_rooms(path):
    """The parts of pai_lab that a module imports, lazily or not; "" stands for the vocabulary itself."""
    package = ("pai_lab", *path.parts[:-1])
    for node in ast.walk(ast.parse((ROOT / "pai_lab" / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "pai_lab" else [module]
        for name in names:
            if name.split(".")[0] == "pai_lab":
                yield (name.split(".") + [""])[1]


def test_the_import_reader_sees_every_spelling(tmp_path, monkeypatch):
    (tmp_path / "pai_lab" / "criteria").mkdir(parents=True)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    spellings = {
        "from pai_lab import plots": "plots",
        "from pai_lab.plots import curve": "plots",
        "import pai_lab.plots": "plots",
        "import pai_lab as pai": "",
        "def f():\n    from .. import plots": "plots",
        "from ..plots import curve": "plots",
        "from .flow import synflow": "criteria",
        "from . import flow": "criteria",
        "import torch": None,
    }
    for source, room in spellings.items():
        (tmp_path / "pai_lab" / "criteria" / "one.py").write_text(source)
        assert list(imported_rooms(Path("criteria/one.py"))) == ([] if room is None else [room]), source


@pytest.mark.parametrize(("path", "room"), [pytest.param(*one, id=str(one[0])) for one in modules()])
def test_a_room_imports_only_from_floors_below(path, room):
    assert room in FLOORS, f"pai_lab/{path} has no floor: add it to the house's plan, or move it into a room"
    for other in imported_rooms(path):
        below = other in FLOORS and FLOORS[other] < FLOORS[room]
        assert other == room or below or (room, other) in NEXT_DOOR, (
            f"pai_lab/{path} imports {other or 'the vocabulary'}, which is not below it"
        )


def test_no_room_is_a_lumber_room():
    lumber = {"utils", "util", "common", "helpers", "misc", "tools"}
    assert [path for path, room in modules() if path.stem in lumber or room in lumber] == []


# What a reader does first


def python(code, folder, **environment):
    """Runs code in a fresh Python, in another folder; what it printed, or the failure with its traceback."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | environment,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light(tmp_path):
    loaded = python("import sys, pai_lab; print(*sys.modules)", tmp_path).split()
    assert "torch" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_the_readme_example_runs_as_written(tmp_path):
    [example, *_] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    python(example, tmp_path, CI="1")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)", text)
    local = [link.split("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_no_file_names_a_path_of_one_machine():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    personal = re.compile(rb"(?<![\w./])(?:/(?:home|Users|root|work|tmp/ipykernel\w*)/\w|file:///|[A-Z]:\\Users)")
    paths = [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    own = Path(__file__)
    texts = ((path, path.read_bytes()) for path in paths if path.is_file() and path != own)
    assert [(path.name, found[0]) for path, text in texts if (found := personal.search(text))] == []
