"""The playground in a real browser: keys move pixels, the picture is the mask, training shows, a saved page lives."""

import re
from pathlib import Path

import pytest
import torch

import pai_lab as pai

pytestmark = pytest.mark.browser
LESSON = Path(__file__).parents[2] / "notebooks" / "00_start_here.ipynb"

# The kept cells of the picture: for the middle of each cell, whether its colour is nearer to "kept" than to "removed".
CELLS = """() => {
  const canvas = document.querySelector(".pai-canvas"), g = canvas.getContext("2d"), k = window.devicePixelRatio;
  const [x, y, w, h, nx, ny] = canvas.dataset.mask.split(",").map(Number);
  const style = getComputedStyle(document.querySelector(".pai"));
  const probe = document.createElement("canvas").getContext("2d");
  const colour = (name) => {
    probe.fillStyle = style.getPropertyValue("--pai-" + name); probe.fillRect(0, 0, 1, 1);
    return probe.getImageData(0, 0, 1, 1).data;
  };
  const inks = ["off", "plus", "minus"].map(colour), cells = [];
  for (let row = 0; row < ny; row++) for (let column = 0; column < nx; column++) {
    const at = [x + ((column + 0.5) * w) / nx, y + ((row + 0.5) * h) / ny].map((v) => Math.floor(v * k));
    const p = g.getImageData(...at, 1, 1).data;
    const far = inks.map((q) => Math.hypot(p[0] - q[0], p[1] - q[1], p[2] - q[2]));
    cells.push(far[0] <= Math.min(far[1], far[2]) ? 0 : far[1] < far[2] ? 1 : -1);
  }
  return cells;
}"""
PIXELS = "() => document.querySelector('.pai-canvas').toDataURL()"


def readout(page):
    return page.locator(".pai-readout").inner_text()


def press(page, *keys):
    """Press keys on the slider; returns when readout and pixels have both changed."""
    before = {"words": readout(page), "pixels": page.evaluate(PIXELS)}
    page.locator(".pai-range").focus()
    for key in keys:
        page.keyboard.press(key)
    page.wait_for_function(
        """(was) => document.querySelector(".pai-readout").innerText !== was.words
            && document.querySelector(".pai-canvas").toDataURL() !== was.pixels""",
        arg=before,
    )


def choose(notebook, label, value):
    """Another value of a setting; returns when the kernel has answered."""
    page = notebook.page
    was = page.locator(".pai-message").inner_text()
    page.locator(".widget-dropdown", has_text=label).locator("select").select_option(value)
    page.wait_for_function("(was) => document.querySelector('.pai-message').innerText !== was", arg=was)
    notebook.idle()


def settled(notebook):
    """Wait until the slider's rest has reached the kernel and come back."""
    sparsity = notebook.page.locator(".pai-value").inner_text()
    shown = sparsity.replace("\u202f", " ")
    notebook.page.wait_for_function(
        "(shown) => document.querySelector('.pai-message').innerText.includes(`at ${shown} sparsity`)", arg=shown
    )
    notebook.idle()
    notebook.page.wait_for_timeout(100)  # one frame to draw what came


def expected(method, sparsity, scope="global"):
    """The mask that `pai.prune` returns for the same settings, and the net."""
    data = pai.load("digits")
    net = pai.build("mlp", data, seed=0)
    return pai.prune(net, method, sparsity, batch=data.score_batch(per_class=10, seed=0), scope=scope), net


def check_picture(page, mask, net, layer="fc2.weight"):
    """Every cell of the picture has the colour of this mask and of the sign of the weight; readout as counted."""
    weights = dict(net.named_parameters())[layer]
    signs = torch.where(mask[layer], torch.where(weights >= 0, 1, -1), 0)
    assert torch.equal(torch.tensor(page.evaluate(CELLS)).view_as(signs), signs)
    kept, total = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", readout(page))[:2])
    assert (kept, total) == (mask.kept, mask.total)


def trained(page, seconds=120):
    """Press Train; wait for the end; the accuracy that the canvas tells, as a fraction."""
    page.get_by_role("button", name="Train").first.click()
    spoken = r"epoch \d+ of \d+: validation accuracy"
    page.wait_for_function(
        f"() => /{spoken}/.test(document.querySelector('.pai-canvas').getAttribute('aria-label'))",
        timeout=1000 * seconds,
    )
    page.wait_for_function(
        "() => document.querySelector('.pai-message').innerText.startsWith('Trained')", timeout=1000 * seconds
    )
    words = page.locator(".pai-canvas").first.get_attribute("aria-label")
    return float(re.search(r"validation accuracy ([\d.]+)", words)[1]) / 100


def test_live_in_jupyterlab(opened):
    notebook = opened(
        [
            "import pai_lab as pai",
            "playground = pai.explore.playground(data='digits', sparsity=0.9)\nplayground",
            "playground.state['sparsity'], len(playground.points)",
        ]
    )
    page = notebook.page
    notebook.run_all()
    page.wait_for_selector(".pai-canvas[data-mask]")
    assert notebook.errors() == []
    check_picture(page, *expected("magnitude", 0.9))

    press(page, "ArrowRight", "ArrowRight")
    check_picture(page, *expected("magnitude", 0.902))
    press(page, "PageUp")
    check_picture(page, *expected("magnitude", 0.95))
    press(page, "Home")
    check_picture(page, *expected("magnitude", 0.0))
    press(page, "PageUp", "PageUp")
    settled(notebook)

    choose(notebook, "method", "synflow")
    assert "order of removal towards 80 %" in readout(page)
    check_picture(page, *expected("synflow", 0.8))
    press(page, "PageUp", "PageUp")
    settled(notebook)
    assert "order of removal towards 95 %" in readout(page)
    check_picture(page, *expected("synflow", 0.95))

    choose(notebook, "scope", "layer")
    choose(notebook, "method", "snip")
    mask, net = expected("snip", 0.95, "layer")
    check_picture(page, mask, net)
    page.locator(".pai-select").select_option("fc5.weight")
    page.wait_for_function("() => document.querySelector('.pai-canvas').dataset.mask.endsWith('128,10')")
    check_picture(page, mask, net, "fc5.weight")

    page.get_by_label("epochs").fill("3")
    page.get_by_label("epochs").press("Tab")
    assert 0.1 <= trained(page) <= 1
    page.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 2")
    page.evaluate("jupyterapp.commands.execute('notebook:run-cell')")
    assert notebook.outputs()[2] == "(0.95, 1)"


def test_lesson_00(opened):
    notebook = opened(LESSON)
    page = notebook.page
    notebook.run_all()
    assert notebook.errors() == []
    slider = page.locator(".pai-range").first
    slider.scroll_into_view_if_needed()
    slider.click()
    press(page, "ArrowRight")
    press(page, "ArrowLeft", "ArrowLeft")
    assert 0.05 <= trained(page) <= 1
    assert notebook.errors() == []


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "page.html"
    pai.explore.playground(data="digits", sparsity=0.9).save(path)
    return path


def test_saved_page_without_network(saved, context, page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    context.set_offline(True)
    try:
        page.goto(saved.as_uri())
        page.wait_for_selector(".pai-canvas[data-mask]")
        check_picture(page, *expected("magnitude", 0.9))
        press(page, "PageUp")
        check_picture(page, *expected("magnitude", 0.95))
        page.locator(".pai-select").select_option("fc5.weight")
        page.wait_for_function("() => document.querySelector('.pai-canvas').dataset.mask.endsWith('128,10')")
        check_picture(page, *expected("magnitude", 0.95), "fc5.weight")
        ground = "() => getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(ground)
        page.emulate_media(color_scheme="dark")
        page.wait_for_function("(light) => getComputedStyle(document.body).backgroundColor !== light", arg=light)
        page.wait_for_timeout(100)
        check_picture(page, *expected("magnitude", 0.95), "fc5.weight")
    finally:
        context.set_offline(False)
    assert asked == [saved.as_uri()]
    assert wrong == []
