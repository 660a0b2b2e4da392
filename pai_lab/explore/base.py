"""What all explorables share: the canvas widget, state, errors in the page, a busy state, a thread, a saved page.

An explorable is one small file: controls, two pure functions `figure(state, source)` and `summary(state, source)`,
and a subclass of `Explorable` that puts them together; see `playground.py`.
"""

import base64
import html
import json
import threading
import zlib
from contextlib import contextmanager
from pathlib import Path

import anywidget
import ipywidgets as widgets
import traitlets

HERE = Path(__file__).parent
EXPORT = "\nexport default { render: widget };\n"


def read(*names):
    """The text of files that lie beside this one, joined."""
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)


class Canvas(anywidget.AnyWidget):
    """The browser's side: slider, layer list and panels on one canvas.

    `panels`: [name, x, y, width, height] each; x and width in shares of the canvas, y and height in pixels.
    `scene`: everything that belongs to one ranking; `detail`: the chosen layer's arrays; `training`: curve and
    points. Binary parts are bytes inside these mappings. `sparsity` comes back when the slider rests. For panels of
    its own an explorable subclasses: `front = Canvas.front + read("ruler.js")` and `_esm = front + EXPORT`.
    """

    front = read("canvas.js", "mask.js", "training.js")
    _esm = front + EXPORT
    _css = read("canvas.css")
    panels = traitlets.List().tag(sync=True)
    scene = traitlets.Dict().tag(sync=True)
    detail = traitlets.Dict().tag(sync=True)
    training = traitlets.Dict().tag(sync=True)
    sparsity = traitlets.Float(0.0).tag(sync=True)
    layer = traitlets.Unicode("").tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)


class Explorable(widgets.VBox):
    """A widget with a `.state`, a static twin `.figure()`, a sentence `.summary()`, and `.save(path)`.

    A subclass sets `draw` and `tell`, its two pure functions (state, source), and gives `state`, `source` and
    `details()`, the arrays of every layer for the saved page.
    """

    draw = tell = None

    def __init__(self, controls, canvas):
        self.canvas, self.message = canvas, widgets.HTML()
        self.message.add_class("pai-message")
        self._thread, self._halt, self._depth = None, threading.Event(), 0
        super().__init__([*controls, self.message, canvas])
        self.add_class("pai-explorable")

    # -- what a test, an export and a reader who cannot see the canvas use ---------------------------------------
    @property
    def state(self):
        """The settings that make this picture, a flat dict that JSON can hold."""
        raise NotImplementedError

    def figure(self):
        """The static twin: a matplotlib Figure of the present state."""
        return type(self).draw(self.state, self.source)

    def summary(self):
        """One or two plain sentences with the exact numbers of the present state."""
        return type(self).tell(self.state, self.source)

    def __repr__(self):
        try:
            return f"{type(self).__name__}: {self.summary()}"
        except Exception:  # a repr must not fail; the error stands in the explorable itself
            return f"{type(self).__name__}({self.state})"

    # -- errors and the busy state -------------------------------------------------------------------------------
    def say(self, words, error=False):
        """Put words (a line each, cut off where the page ends), or an error in a red box, under the controls."""
        kind, role = ("pai-error", "alert") if error else ("pai-words", "status")
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in words.splitlines())
        self.message.value = f"<div class='{kind}' role='{role}'>{lines}</div>"

    @contextmanager
    def working(self):
        """Inside, the canvas shows that it works (after 100 ms); an error ends as a readable box, not a traceback."""
        self._depth += 1
        self.canvas.busy = True
        try:
            yield
        except Exception as error:
            self.say(f"{type(error).__name__}: {error}", error=True)
        finally:
            self._depth -= 1
            self.canvas.busy = self._depth > 0

    # -- work beside the kernel ----------------------------------------------------------------------------------
    def aside(self, work):
        """Run `work()` on a thread; errors go to the box. `stop()` asks it to end (`work` looks at `self.halted`)."""

        def guarded():
            try:
                work()
            except Exception as error:
                self.say(f"{type(error).__name__}: {error}", error=True)

        self._halt.clear()
        self._thread = threading.Thread(target=guarded, daemon=True)
        self._thread.start()

    @property
    def halted(self):
        """True once `stop` was called."""
        return self._halt.is_set()

    def stop(self):
        """Ask the thread to end soon."""
        self._halt.set()

    def wait(self, seconds=60):
        """Wait for the thread. TimeoutError if it takes longer."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                raise TimeoutError(f"still at work after {seconds} s")

    def close(self):
        """Stop the thread and let the widgets go."""
        self.stop()
        super().close()

    # -- the saved page ------------------------------------------------------------------------------------------
    def details(self):
        """{layer: detail} of every layer."""
        return {self.canvas.layer: self.canvas.detail}

    def save(self, path):
        """Write one HTML page that works without a kernel or a network: slider, layers and charts are live there,
        what needs the kernel is not in it."""
        own = set(self.canvas.traits(sync=True)) - set(anywidget.AnyWidget.class_traits(sync=True))
        values = {name: getattr(self.canvas, name) for name in own if not name.startswith("_")}
        values |= {"saved": True, "busy": False, "detail": None}  # `details` has it
        page = PAGE.format(
            title=html.escape(type(self).__name__), words=html.escape(self.summary()), style=self.canvas._css,
            front=self.canvas.front, state=_packed(values), details=_packed(self.details()),
        )  # fmt: skip
        Path(path).write_text(page, encoding="utf-8")


PLANES = {"ranks": 2, "kept": 4}  # bytes per number: written plane by plane they deflate better


def _packed(value):
    """JSON for inside a script tag; bytes become {"deflated": base 85 of zlib, "planes": bytes per number}."""

    def encode(value, name=""):
        if isinstance(value, dict):
            return {key: encode(part, key) for key, part in value.items()}
        if not isinstance(value, bytes):
            return value
        planes = PLANES.get(name, 1)
        squeezed = zlib.compress(b"".join(value[i::planes] for i in range(planes)), 9)
        return {"deflated": base64.b85encode(squeezed).decode(), "planes": planes}

    return json.dumps(encode(value)).replace("</", "<\\/")


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body class="pai-page">
<main>
<h1>{title}</h1>
<p>As saved: {words}</p>
<div id="here"></div>
<p class="pai-note">A saved page: sparsity and layer are live here. Other settings and training need the notebook.</p>
</main>
<script>
(async () => {{
const night = window.matchMedia("(prefers-color-scheme: dark)");
const dress = () => document.body.classList.toggle("pai-dark", night.matches);
night.addEventListener("change", dress); dress();
{front}
const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{{|}}~";
async function unpack(part) {{  // bytes back from base 85, deflate and planes, anywhere inside
  if (part === null || typeof part !== "object") return part;
  if (part.deflated !== undefined) {{
    const raw = new DataView(new ArrayBuffer(Math.ceil(part.deflated.length / 5) * 4));
    for (let i = 0, at = 0; i < part.deflated.length; i += 5, at += 4) {{
      let n = 0;
      for (let j = i; j < i + 5; j++) n = 85 * n + (j < part.deflated.length ? DIGITS.indexOf(part.deflated[j]) : 84);
      raw.setUint32(at, n);
    }}
    const whole = new Uint8Array(raw.buffer, 0, Math.floor((part.deflated.length * 4) / 5));
    const stream = new Blob([whole]).stream().pipeThrough(new DecompressionStream("deflate"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer()), bytes = new Uint8Array(planes.length);
    const count = planes.length / part.planes;
    for (let i = 0; i < planes.length; i++) bytes[(i % count) * part.planes + Math.floor(i / count)] = planes[i];
    return new DataView(bytes.buffer);
  }}
  for (const key of Object.keys(part)) part[key] = await unpack(part[key]);
  return part;
}}
const values = await unpack({state}), details = await unpack({details}), listeners = {{}};
const model = {{  // as much of a widget model as the canvas asks for
  get: (name) => values[name],
  set(name, value) {{
    if (values[name] === value) return;
    values[name] = value;
    if (name === "layer") this.set("detail", details[value]);
    for (const f of listeners["change:" + name] || []) f();
  }},
  on: (name, f) => (listeners[name] ||= []).push(f),
  off: (name, f) => (listeners[name] = (listeners[name] || []).filter((g) => g !== f)),
  save_changes() {{}},
}};
values.detail = details[values.layer];
widget({{ model, el: document.getElementById("here") }});
}})();
</script>
</body>
</html>
"""
