"""How fast the playground answers in a real browser, as a markdown table: key to pixels, a drag, the first picture.

    .venv/bin/python bench/latency.py          # needs playwright and chromium, see CONTRIBUTING.md; about 2 minutes

One Arrow key on the focused slider: from the keydown event's time stamp to the message task after the animation frame
in which the canvas was drawn, that is, a frame handed to the compositor, software-rendered, not light on a screen. A
key counts only if no other drawing follows for 300 ms. Drag: 60 mouse moves aimed at 60 Hz; the frames drawn. First
picture: from running the cell to the same point of the first frame. Kernel, server and browser share the machine.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))
from harness import KERNEL, Notebook, Server, chromium

KEYS, WARM, MOVES = 56, 2, 60
NETS = {  # state of the playground: goals for p95 (ms), frames, first picture (s)
    "mnist1d, mlp": ({"data": "mnist1d", "model": "mlp"}, (33, 45, 1.5)),
    "cifar10, resnet18": ({"data": "cifar10", "model": "resnet18"}, (33, 45, 4.0)),
}
WATCH = """(() => {
  const raf = window.requestAnimationFrame, draw = CanvasRenderingContext2D.prototype.drawImage;
  const { port1, port2 } = new MessageChannel(), bench = (window.bench = { keys: [], paints: [] });
  let inside = false, drawn = false;
  port1.onmessage = () => { if (drawn) { drawn = false; bench.paints.push(performance.now()); } };
  window.requestAnimationFrame = (f) => raf((now) => {
    inside = true;
    try { f(now); } finally { inside = false; if (drawn) port2.postMessage(0); }
  });
  CanvasRenderingContext2D.prototype.drawImage = function (...args) {
    if (this.canvas.classList.contains("pai-canvas")) {
      drawn = true;
      if (!inside) raf(() => port2.postMessage(0));
    }
    return draw.apply(this, args);
  };
  addEventListener("keydown", (event) => bench.keys.push(event.timeStamp), true);
})()"""


def first_picture(notebook):
    """Seconds from running the second cell to the first frame; and the slider's locator."""
    page = notebook.page
    run = "jupyterapp.commands.execute('notebook:run-cell')"
    page.evaluate(f"jupyterapp.shell.currentWidget.content.activeCellIndex = 0; {run}")
    notebook.idle(120)
    page.wait_for_timeout(500)
    page.evaluate(
        f"jupyterapp.shell.currentWidget.content.activeCellIndex = 1; window.start = performance.now(); void {run}"
    )
    page.wait_for_function("bench.paints.length > 0", timeout=120_000)
    seconds = page.evaluate("(bench.paints[0] - window.start) / 1000")
    notebook.idle(120)
    page.wait_for_timeout(1000)
    return seconds


def quiet(page, milliseconds=300):
    """Wait until nothing has been drawn for a while; the number of frames so far."""
    page.wait_for_function(
        f"bench.paints.length && performance.now() - bench.paints.at(-1) > {milliseconds}", timeout=60_000
    )
    return page.evaluate("bench.paints.length")


def one_key(page, key):
    """Milliseconds from this key to its frame; None if it drew more than once."""
    before = quiet(page)
    page.keyboard.press(key)
    page.wait_for_function(f"bench.paints.length > {before}", timeout=60_000)
    after = quiet(page)
    return page.evaluate(f"bench.paints[{before}] - bench.keys.at(-1)") if after == before + 1 else None


def drag(page, slider):
    """Frames drawn during 60 moves of the mouse along the slider."""
    box = slider.bounding_box()
    y, x0, width = box["y"] + 15, box["x"] + 0.3 * box["width"], 0.6 * box["width"]
    quiet(page)
    page.mouse.move(x0, y)
    page.mouse.down()
    before, started = quiet(page), time.perf_counter()
    for move in range(1, MOVES + 1):
        page.mouse.move(x0 + width * move / MOVES, y)
        time.sleep(max(0, started + move / 60 - time.perf_counter()))
    frames = page.evaluate("bench.paints.length") - before
    page.mouse.up()
    return frames


def measure(server, page, state):
    """(p50 ms, p95 ms, counted keys, frames, first picture s) of one net."""
    target = server.folder / "notebooks" / f"{state['model']}.ipynb"
    sources = ["import pai_lab as pai", f"pai.explore.playground(**{state!r})"]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), target)
    notebook = Notebook(server, page, target.name)
    first = first_picture(notebook)
    slider = page.locator(".pai-range")
    slider.scroll_into_view_if_needed()
    slider.focus()
    times = [one_key(page, key) for key in ["ArrowRight", "ArrowLeft"] * ((KEYS + WARM) // 2)][WARM:]
    times = sorted(t for t in times if t is not None)
    frames = drag(page, slider)
    server.end_sessions()
    return statistics.median(times), times[int(0.95 * (len(times) - 1))], len(times), frames, first


def main():
    from playwright.sync_api import sync_playwright

    rows = []
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        folder = Path(place)
        (folder / "notebooks").mkdir()
        server, browser = Server(folder, folder / "notebooks"), chromium(playwright, folder / "profile")
        try:
            for name, (state, goals) in NETS.items():
                page = browser.new_page()
                page.add_init_script(WATCH)
                rows.append((name, *measure(server, page, state), goals))
                page.close()
            version = browser.browser.version if browser.browser else "chromium"
        finally:
            browser.close()
            server.stop()
    print(f"{os.cpu_count()} CPUs, {platform.system()}, Python {platform.python_version()}, {version}\n")
    print("| net | key to pixels p50 | p95 | keys | frames in a 60-move drag | first picture |")
    print("|---|---|---|---|---|---|")
    for name, median, p95, keys, frames, first, goals in rows:
        most, least, longest = goals
        print(
            f"| {name} | {median:.1f} ms | {p95:.1f} ms (goal {most}) | {keys} | {frames} (goal {least}) "
            f"| {first:.2f} s (goal {longest}) |"
        )


if __name__ == "__main__":
    main()
