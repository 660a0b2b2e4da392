"""What a machine can see of a lesson: it is in step with its source, was run, and keeps to the skeleton."""

from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
LESSONS = sorted(FOLDER.glob("[0-9]*.ipynb"))

lessons = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def content(notebook):
    """What source and notebook share. Time stamps say nothing here; jupytext's own test is too strict."""
    return [
        (c.cell_type, c.source.rstrip(), sorted(c.metadata.get("tags", [])), c.metadata.get("nbgrader"))
        for c in notebook.cells
    ]


def test_every_source_has_its_lesson():
    assert [path.stem for path in sorted((FOLDER / "py").glob("[0-9]*.py"))] == [path.stem for path in LESSONS]


@lessons
def test_in_step_with_its_source(path):
    text = (FOLDER / "py" / f"{path.stem}.py").read_text()
    assert not text.startswith("# ---"), "a header; the kernel is named in the .ipynb"
    source = jupytext.reads(text, "py:percent")
    assert content(read(path)) == content(source), f"make notebooks LESSON={path.stem}"


@lessons
def test_was_run_and_shows_it(path):
    cells = code(read(path))
    assert any(cell.outputs for cell in cells)
    assert all(cell.execution_count for cell in cells)
    for cell in cells:
        failed = any(output.output_type == "error" for output in cell.outputs)
        assert failed == ("raises-exception" in cell.metadata.get("tags", [])), cell.source


@lessons
def test_carries_no_widget_state(path):
    notebook = read(path)
    assert "widgets" not in notebook.metadata
    kinds = {kind for cell in code(notebook) for output in cell.outputs for kind in output.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" not in kinds
    assert path.stat().st_size <= 1_500_000


@lessons
def test_runs_in_any_python(path):
    assert read(path).metadata.kernelspec.name == "python3"


@lessons
def test_keeps_to_the_skeleton(path):
    notebook = read(path)
    assert 18 <= len(notebook.cells) <= 30
    assert sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown") <= 1500
    for cell in code(notebook):
        assert len(cell.source.splitlines()) < 40, cell.source
        assert not cell.source.rstrip().endswith(";"), cell.source
