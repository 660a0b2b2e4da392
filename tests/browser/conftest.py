"""One JupyterLab and one browser for all browser tests; a fresh kernel for each test.

They need playwright for Python and Debian's chromium. Without them the tests skip, with the command that installs
what is missing; with PAI_REQUIRE_BROWSER=1 they fail instead.
"""

import os
import secrets
import shutil
from pathlib import Path

import nbformat
import pytest
from harness import CHROMIUM, KERNEL, Notebook, Server, chromium


def missing(command):
    """Skip, or fail where a browser is required."""
    words = f"the browser tests need {command}"
    pytest.fail(words) if os.environ.get("PAI_REQUIRE_BROWSER") == "1" else pytest.skip(words)


@pytest.fixture(scope="session")
def playwright():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright: pip install playwright")
    if not Path(CHROMIUM).exists():
        missing("chromium: apt-get update && apt-get install -y chromium")
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="session")
def server(playwright, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jupyter")
    (folder / "notebooks").mkdir()
    running = Server(folder, folder / "notebooks")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def context(playwright, tmp_path_factory):
    """A browser with a profile of its own."""
    running = chromium(playwright, tmp_path_factory.mktemp("profile"), color_scheme="light")
    yield running
    running.close()


@pytest.fixture
def page(context):
    tab = context.new_page()
    tab.set_default_timeout(20_000)
    yield tab
    tab.close()


@pytest.fixture
def opened(server, page):
    """opened(path or list of cell sources) -> Notebook: a copy in JupyterLab, its kernel shut down afterwards."""

    def open_(what):
        target = server.folder / "notebooks" / f"{secrets.token_hex(4)}.ipynb"
        if isinstance(what, (str, Path)):
            shutil.copy(what, target)
            if (tables := Path(what).with_name("results")).is_dir():  # the measured tables that a lesson reads
                shutil.copytree(tables, target.with_name("results"), dirs_exist_ok=True)
        else:
            cells = [nbformat.v4.new_code_cell(source) for source in what]
            nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), target)
        return Notebook(server, page, target.name)

    yield open_
    page.goto("about:blank")
    server.end_sessions()
