"""Runs the lessons: each notebooks/py/NN_name.py, the source, becomes notebooks/NN_name.ipynb with outputs.

python notebooks/build.py           # every lesson, one after another
python notebooks/build.py 03        # those whose name starts so
"""

import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
SECONDS = 60  # what a lesson may take: over it is a warning, machines differ
BYTES = 1_500_000
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(source):
    """The notebook of one source file, run in this Python; CellExecutionError as soon as a cell fails."""
    notebook = jupytext.read(source)
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=600,
        coalesce_streams=True,
        record_timing=False,  # or every run would change every cell
        extra_arguments=["--log-level=ERROR"],  # a warning about local TCP sockets at every start
        resources={"metadata": {"path": str(HERE)}},
    ).execute()
    return notebook


def tidy(notebook):
    """Keeps what a reader needs. Widgets go: on another machine they are dead, and their state is large."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"  # a random one would change at every run
        cell.metadata = {key: cell.metadata[key] for key in ("nbgrader", "tags") if key in cell.metadata}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    return nbformat.from_dict(notebook)


def build(source):
    """Runs one lesson and writes it next to this file; SystemExit if it fails or is too large."""
    start = time.perf_counter()
    try:
        text = nbformat.writes(tidy(execute(source))) + "\n"
    except CellExecutionError as error:
        sys.exit(f"{source.stem}: {error}")
    seconds, size = time.perf_counter() - start, len(text.encode())
    if size > BYTES:
        sys.exit(f"{source.stem}: {size:,} bytes, more than {BYTES:,}; fewer or smaller figures")
    (HERE / f"{source.stem}.ipynb").write_text(text, encoding="utf-8", newline="\n")
    slow = f"  <- over {SECONDS} s" if seconds > SECONDS else ""
    print(f"{source.stem:<32} {seconds:5.1f} s  {size / 1e6:4.2f} MB{slow}", flush=True)


if __name__ == "__main__":
    os.environ["CI"] = "1"  # the kernels inherit it: no progress bars in saved outputs
    wanted = tuple(sys.argv[1:]) or ("",)
    sources = [path for path in sorted((HERE / "py").glob("[0-9]*.py")) if path.stem.startswith(wanted)]
    if not sources and sys.argv[1:]:
        sys.exit(f"no lesson in notebooks/py starts with {' or '.join(wanted)}")
    for path in sources:
        build(path)
