// The front end that all explorables share: one canvas, its slider and layer list, themes, hover and click zones.
// A panel file adds PANELS.name = draw(g, box, view); the trait `panels` says which ones are drawn, and where.
// Python puts the panel files behind this one, so that the whole is a single module without imports.

const PANELS = {};
const FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";
const COLOURS = ["ink", "soft", "line", "ground", "plus", "minus", "off", "alarm", "all", "accent"];
const ALARM = "\u26a0";

// -- numbers as words ------------------------------------------------------------------------------------------
const count = (n) => n.toLocaleString("en-US");
const percent = (x) => `${Math.round(x * 1e4) / 100}\u202f%`;
function share(x) {  // a density in percent, three digits at most
  const p = 100 * x;
  return `${p === 0 || p >= 99.95 ? Math.round(p) : p >= 10 ? p.toFixed(1) : p >= 0.1 ? p.toFixed(2) : p.toPrecision(1)}\u202f%`;
}
const root = (x) => Math.sqrt(Math.max(0, Math.min(1, x)));

// -- binary parts ----------------------------------------------------------------------------------------------
function typed(view, Kind) {  // a DataView from the kernel may lie at an odd address: then copy
  if (!view || view instanceof Kind) return view;
  const size = Kind.BYTES_PER_ELEMENT, length = view.byteLength / size;
  if (view.byteOffset % size === 0) return new Kind(view.buffer, view.byteOffset, length);
  return new Kind(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

// -- drawing ---------------------------------------------------------------------------------------------------
function text(g, view, words, x, y, o = {}) {
  g.font = `${o.weight || 400} ${(o.size || 1) * view.em}px ${view.font}`;
  g.textAlign = o.align || "left";
  g.textBaseline = o.base || "alphabetic";
  g.fillStyle = o.colour || view.c.ink;
  g.fillText(words, x, y);
  return g.measureText(words).width;
}
function line(g, x1, y1, x2, y2, colour, width = 1, dash = []) {
  g.beginPath(); g.setLineDash(dash); g.strokeStyle = colour; g.lineWidth = width;
  g.moveTo(x1, y1); g.lineTo(x2, y2); g.stroke(); g.setLineDash([]);
}
function clip(g, view, words, width, size = 1) {  // shortened with an ellipsis in the middle to fit
  g.font = `400 ${size * view.em}px ${view.font}`;
  if (g.measureText(words).width <= width) return words;
  let keep = words.length - 1;
  while (keep > 2 && g.measureText(words.slice(0, keep >> 1) + "\u2026" + words.slice(-(keep >> 1))).width > width) keep--;
  return words.slice(0, keep >> 1) + "\u2026" + words.slice(-(keep >> 1));
}
const CORNERS = {  // matplotlib's marker letters: a method looks the same here and in every figure
  s: [4, 45], D: [4, 0], d: [4, 0], "^": [3, -90], v: [3, 90], "<": [3, 180], ">": [3, 0], p: [5, -90], h: [6, -90],
  H: [6, 0], 8: [8, 22.5],
};
function outline(g, marker, r) {
  if (marker === "*") return star(g, 1.4 * r);
  if (marker === "P" || marker === "X") {
    if (marker === "X") g.rotate(Math.PI / 4);
    g.rect(-r * 1.2, -r * 0.42, r * 2.4, r * 0.84); g.rect(-r * 0.42, -r * 1.2, r * 0.84, r * 2.4);
    return;
  }
  const [corners, turn] = CORNERS[marker] || [0, 0];
  if (!corners) return g.arc(0, 0, r, 0, 7);
  polygon(g, corners, (i) => [1.2 * r, turn + (360 * i) / corners]);
}
const star = (g, r) => polygon(g, 10, (i) => [i % 2 ? 0.45 * r : r, 36 * i - 90]);
function polygon(g, corners, at) {
  for (let i = 0; i < corners; i++) {
    const [r, turn] = at(i), a = (turn * Math.PI) / 180;
    i ? g.lineTo(r * Math.cos(a), r * Math.sin(a)) : g.moveTo(r * Math.cos(a), r * Math.sin(a));
  }
  g.closePath();
}
function mark(g, view, look, x, y, r) {
  g.save(); g.translate(x, y); g.beginPath(); outline(g, look.marker, r);
  g.strokeStyle = view.c.ground; g.lineWidth = 2; g.stroke();
  g.fillStyle = tone(view, look.colour); g.fill(); g.restore();
}
function channels(css) {  // [r, g, b] of any CSS colour
  const probe = (channels.g ||= document.createElement("canvas").getContext("2d", { willReadFrequently: true }));
  probe.fillStyle = css; probe.fillRect(0, 0, 1, 1);
  return probe.getImageData(0, 0, 1, 1).data.slice(0, 3);
}
function tone(view, css) {  // a figure's colour, lighter on a dark ground
  const known = (view.c.tones ||= {});
  if (known[css]) return known[css];
  const dark = channels(view.c.ground).reduce((sum, v) => sum + v) < 384;
  return (known[css] = dark ? `rgb(${[...channels(css)].map((v) => Math.round(v + 0.45 * (255 - v)))})` : css);
}

// -- the threshold: which stop, how many stay, where the cut lies ----------------------------------------------
function nearestStop(stops, sparsity) {
  let low = 0, high = stops.length - 1;
  while (low < high) { const mid = (low + high) >> 1; stops[mid] < sparsity ? (low = mid + 1) : (high = mid); }
  return low && sparsity - stops[low - 1] < stops[low] - sparsity ? low - 1 : low;
}
function along(stops, sparsity) {  // place on the slider's scale, 0 to 1
  const i = Math.min(Math.max(nearestStop(stops, sparsity), 0), stops.length - 1);
  const j = sparsity > stops[i] ? Math.min(i + 1, stops.length - 1) : Math.max(i - 1, 0);
  const part = i === j ? 0 : (sparsity - stops[i]) / (stops[j] - stops[i]);
  return (i + part * (j - i)) / (stops.length - 1);
}
const keptIn = (view, layer, stop = view.stop) => view.kept[stop * view.scene.layers.length + layer];
const cutOf = (view, layer, stop = view.stop) => {
  const total = view.scene.layers[layer].total;
  return Math.floor(((total - keptIn(view, layer, stop)) * Math.min(total, 65535)) / total);
};

// -- the widget ------------------------------------------------------------------------------------------------
function palette(element) {
  const style = getComputedStyle(element), read = (name) => style.getPropertyValue(`--pai-${name}`).trim();
  return Object.fromEntries(COLOURS.map((name) => [name, read(name)]));
}
function make(parent, tag, className, words = "") {
  const element = document.createElement(tag);
  element.className = className; element.textContent = words;
  return parent.appendChild(element);
}
function widget({ model, el }) {
  const id = `pai-${Math.random().toString(36).slice(2, 9)}`;
  const frame = make(el, "div", "pai"), view = { model, hover: null, zones: [], stop: 0 };
  const head = make(frame, "div", "pai-head"), body = make(frame, "div", "pai-body");
  const canvas = make(body, "canvas", "pai-canvas"), tip = make(body, "div", "pai-tip"), g = canvas.getContext("2d");
  make(body, "div", "pai-chip", "computing \u2026");
  canvas.setAttribute("role", "img");
  let wanted = 0, resting = 0;

  // the sparsity slider and the layer list: native inputs, so that a saved page needs nothing else
  const layerBox = make(head, "div", "pai-layer"), layerLabel = make(layerBox, "label", "", "layer");
  const select = make(layerBox, "select", "pai-select");
  const slideBox = make(head, "div", "pai-slide"), slideLabel = make(slideBox, "label", "", "sparsity");
  const rail = make(slideBox, "div", "pai-rail"), slider = make(rail, "input", "pai-range");
  const ticks = make(rail, "div", "pai-ticks"), value = make(head, "output", "pai-value");
  const readout = make(frame, "div", "pai-readout");
  frame.insertBefore(readout, body);
  slider.type = "range"; slider.min = 0; slider.step = 1;
  select.id = `${id}-layer`; layerLabel.htmlFor = select.id;
  slider.id = `${id}-sparsity`; slideLabel.htmlFor = slider.id; value.setAttribute("for", slider.id);
  readout.setAttribute("role", "status");
  for (const input of [select, slider]) input.dataset.lmSuppressShortcuts = "true";  // JupyterLab eats the arrow keys

  const rest = () => { clearTimeout(resting); if (resting) model.save_changes(); resting = 0; };
  function moveTo(stop) {
    stop = Math.max(0, Math.min(view.scene.stops.length - 1, stop));
    if (stop === view.stop) return;
    view.stop = stop;
    model.set("sparsity", view.scene.stops[stop]);
    clearTimeout(resting);
    resting = setTimeout(rest, 140);  // the kernel hears of it when the slider rests
    show();
  }
  view.choose = (name) => {
    if (name === model.get("layer")) return;
    model.set("layer", name); model.save_changes();
    show();
  };
  slider.addEventListener("blur", rest); slider.addEventListener("pointerup", rest);
  slider.addEventListener("input", () => moveTo(Number(slider.value)));
  slider.addEventListener("keydown", (event) => {
    const step = { PageUp: 1, PageDown: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const marks = view.scene.ticks.map((s) => nearestStop(view.scene.stops, s));
    const next = step > 0 ? marks.find((i) => i > view.stop) : marks.findLast((i) => i < view.stop);
    if (next !== undefined) moveTo(next);
  });
  select.addEventListener("change", () => view.choose(select.value));

  function build() {  // a new scene: its layers, stops and ticks
    view.scene = model.get("scene");
    view.kept = typed(view.scene.kept, Uint32Array);
    view.unitsKept = view.scene.unit && typed(view.scene.unit.kept, Uint32Array);
    const { stops = [], layers = [] } = view.scene;
    head.hidden = readout.hidden = !model.get("panels").some(([name]) => name === "mask");
    head.style.visibility = readout.style.visibility = layers.length ? "" : "hidden";  // its room stays
    const names = layers.map((layer) => layer.name).join();
    if (names !== select.dataset.names) select.replaceChildren(...layers.map(({ name, label }) => new Option(label, name)));
    select.dataset.names = names;
    slider.max = stops.length - 1;
    view.stop = nearestStop(stops, model.get("sparsity"));
    ticks.replaceChildren(...(view.scene.ticks || []).map((s) => {
      const tick = document.createElement("span"), at = along(stops, s);
      tick.textContent = Math.round(s * 1e3) / 10;
      tick.style.left = `calc(${at} * (100% - 22px) + 11px)`;
      tick.addEventListener("click", () => { moveTo(nearestStop(stops, s)); slider.focus(); });
      return tick;
    }));
    take();
  }
  function take() {  // the chosen layer's ranks and weights
    const detail = model.get("detail") || {};
    view.detail = detail.layer && {
      ...detail, ranks: typed(detail.ranks, Uint16Array), bins: typed(detail.bins, Uint8Array),
    };
    view.histogram = null;
    show();
  }
  function show() { if (!wanted) wanted = requestAnimationFrame(draw); }

  function measure() {
    const ratio = window.devicePixelRatio || 1, width = Math.max(320, view.space);
    const height = Math.max(...model.get("panels").map(([, , y, , h]) => y + h));
    const w = Math.round(width * ratio), h = Math.round(height * ratio);
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    Object.assign(view, { width, height, ratio, em: Math.max(13, Math.min(17, width / 72)) });
    view.font = getComputedStyle(frame).fontFamily || FONT;
  }
  function draw() {
    wanted = 0;
    if (!view.space) return;  // not laid out yet, or hidden
    if (!view.c) view.c = palette(frame);
    if (!view.width) measure();
    view.layer = (view.scene.layers || []).findIndex((l) => l.name === model.get("layer"));
    view.training = model.get("training");
    view.zones = [];
    g.setTransform(view.ratio, 0, 0, view.ratio, 0, 0);
    g.fillStyle = view.c.ground; g.fillRect(0, 0, view.width, view.height);
    for (const [name, x, y, w, h] of model.get("panels"))
      PANELS[name](g, { x: x * view.width, y, w: w * view.width, h }, view);
    if (view.scene.layers?.length) say();
    point();
  }
  function say() {  // what the picture shows, in numbers and for a screen reader
    const { scene, stop } = view, sparsity = scene.stops[stop];
    if (document.activeElement !== slider || Number(slider.value) !== stop) slider.value = stop;
    slider.style.setProperty("--pai-at", stop / (scene.stops.length - 1));
    slider.setAttribute("aria-valuetext", `${percent(sparsity)} removed`);
    select.value = model.get("layer");
    value.textContent = percent(sparsity);
    let kept = 0, total = 0;
    scene.layers.forEach((layer, i) => { kept += keptIn(view, i); total += layer.total; });
    const empty = scene.layers.filter((_, i) => keptIn(view, i) === 0).map((l) => l.label);
    const units = view.unitsKept
      ? `${count(view.unitsKept[stop])} of ${count(scene.unit.total)} ${scene.unit.name}, ` : "";
    const parts = [["b", `${units}${count(kept)} of ${count(total)} weights kept`]];
    if (kept) parts.push(["span", `${count(Number((total / kept).toPrecision(3)))}\u00d7 compression`]);
    const which = empty.length > 4 ? `${empty.length} of ${scene.layers.length} layers` : empty.join(", ");
    if (empty.length) parts.push(["em", `${ALARM} layer collapse: ${which} empty`]);
    else if (scene.note) parts.push(["span", scene.note]);
    const words = parts.map(([, w]) => w).join(" \u00b7 "), run = view.training?.run, n = run?.accuracy.length;
    const trained = n ? ` Training, epoch ${n} of ${run.epochs}: validation accuracy ${percent(run.accuracy[n - 1])}.` : "";
    canvas.setAttribute("aria-label", `${scene.title}: ${percent(sparsity)} removed. ${words}.${trained}`);
    if (readout.dataset.words === words) return;
    readout.dataset.words = words;
    readout.replaceChildren(...parts.map(([tag, w]) => Object.assign(document.createElement(tag), { textContent: w })));
  }

  function zoneAt({ x, y }) {
    return view.zones.find((z) => x >= z.x && x < z.x + z.w && y >= z.y && y < z.y + z.h);
  }
  function point() {
    const zone = view.hover && zoneAt(view.hover), words = zone && zone.tip && zone.tip(view.hover.x, view.hover.y);
    canvas.style.cursor = zone && zone.click ? "pointer" : "default";
    tip.style.display = words ? "block" : "none";
    if (!words) return;
    tip.textContent = words;
    tip.style.left = `${Math.max(0, Math.min(view.hover.x + 14, view.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(0, view.hover.y - tip.offsetHeight - 10)}px`;
  }
  canvas.addEventListener("pointermove", (e) => { view.hover = { x: e.offsetX, y: e.offsetY }; point(); });
  canvas.addEventListener("pointerleave", () => { view.hover = null; point(); });
  canvas.addEventListener("click", (e) => zoneAt({ x: e.offsetX, y: e.offsetY })?.click?.());

  const onSparsity = () => {  // from the kernel, a jslink, or another view of this widget
    if (resting) return model.set("sparsity", view.scene.stops[view.stop]);  // the reader's hand is newer than an echo
    const stop = nearestStop(view.scene.stops || [], model.get("sparsity"));
    if (stop !== view.stop) { view.stop = stop; show(); }
  };
  const onBusy = () => frame.classList.toggle("pai-busy", Boolean(model.get("busy")));
  const heard = { scene: build, detail: take, sparsity: onSparsity, layer: show, training: show, busy: onBusy };
  for (const [name, listener] of Object.entries(heard)) model.on(`change:${name}`, listener);
  const restyle = () => { view.c = view.width = null; show(); };
  const sizes = new ResizeObserver(([entry]) => { view.space = entry.contentRect.width; restyle(); });
  body.style.height = `${Math.max(...model.get("panels").map(([, , y, , h]) => y + h))}px`;
  const themes = new MutationObserver(restyle);
  sizes.observe(body);
  themes.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light"] });
  const night = window.matchMedia("(prefers-color-scheme: dark)");
  night.addEventListener("change", restyle);
  build(); onBusy();
  return () => {
    for (const [name, listener] of Object.entries(heard)) model.off(`change:${name}`, listener);
    sizes.disconnect(); themes.disconnect(); night.removeEventListener("change", restyle);
    cancelAnimationFrame(wanted); rest();
  };
}
