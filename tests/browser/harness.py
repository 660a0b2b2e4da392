"""A real JupyterLab on a free local port, and a notebook in it, driven by playwright and Debian's chromium."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("PAI_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --force-color-profile=srgb"
).split()
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
QUIET = {"fetchNews": "false", "checkForUpdates": False}  # no news pop-up over the notebook


class Server:
    """JupyterLab on a free local port, with settings, kernels and files of its own."""

    def __init__(self, folder, root):
        self.folder, self.token = folder, secrets.token_hex(16)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        places = {name: folder / name.lower() for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")}
        environment = os.environ | {f"JUPYTER_{name}": str(place) for name, place in places.items()}
        environment |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "IPYTHONDIR": str(folder / "ipython")}
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
        settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(QUIET))
        self.log = open(folder / "server.log", "wb")  # noqa: SIM115 (closed in stop)
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={self.port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}",
                f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True",
                "--ServerApp.jpserver_extensions=jupyterlab_jupytext=False",
            ],
            env=environment, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        self.wait()

    def ask(self, path, method="GET"):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or "null")

    def wait(self, seconds=60):
        end = time.monotonic() + seconds
        while True:
            try:
                return self.ask("/api/status")
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None or time.monotonic() > end:
                    self.stop()
                    raise RuntimeError((self.folder / "server.log").read_text()[-3000:]) from None
                time.sleep(0.2)

    def end_sessions(self):
        for session in self.ask("/api/sessions"):
            self.ask(f"/api/sessions/{session['id']}", "DELETE")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Notebook:
    """An open notebook in JupyterLab."""

    def __init__(self, server, page, name):
        self.server, self.page = server, page
        page.goto(f"http://127.0.0.1:{server.port}/lab/tree/{name}?reset&token={server.token}")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        page.evaluate("jupyterapp.shell.currentWidget.sessionContext.ready")
        self.idle()

    def idle(self, seconds=60):
        """Until the kernel has nothing to do."""
        self.page.wait_for_selector(
            ".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached", timeout=1000 * seconds
        )

    def run_all(self, seconds=120):
        """Run all cells and wait for the last one."""
        self.page.set_default_timeout(1000 * seconds)
        self.page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        self.page.set_default_timeout(20_000)

    def start(self):
        """Run all cells, without waiting."""
        self.page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")

    def errors(self):
        """What the cells' outputs hold as errors, but for cells that are meant to fail."""
        return self.page.evaluate(
            """() => [...jupyterapp.shell.currentWidget.content.model.cells].map((cell) => cell.toJSON())
                .filter((cell) => !(cell.metadata.tags || []).includes("raises-exception"))
                .flatMap((cell) => (cell.outputs || []).filter((o) => o.output_type === "error"))
                .map((o) => `${o.ename}: ${o.evalue}`)"""
        )

    def outputs(self):
        """The text outputs of all cells, one string each."""
        return self.page.evaluate(
            """() => [...jupyterapp.shell.currentWidget.content.model.cells].map((cell) => (cell.toJSON().outputs || [])
                .map((o) => [o.text ?? o.data?.["text/plain"] ?? ""].flat().join("")).join(""))"""
        )


def chromium(playwright, profile, **options):
    """A headless browser with a profile of its own."""
    size = {"width": 1400, "height": 1000}
    return playwright.chromium.launch_persistent_context(
        profile, executable_path=CHROMIUM, headless=True, args=FLAGS, viewport=size, **options
    )
