// The mask of one layer, the density of all, and the weights that stay.

const HALF = 32;  // the bins of the weights: 64, the upper half is positive

const packed = (css) => {  // a CSS colour as one little-endian RGBA number
  const [r, g, b] = channels(css);
  return (r | (g << 8) | (b << 16) | 0xff000000) >>> 0;
};
const mix = (a, b, t) => {
  let out = 0;
  for (const s of [0, 8, 16]) out |= Math.round(((a >>> s) & 255) * (1 - t) + ((b >>> s) & 255) * t) << s;
  return (out | 0xff000000) >>> 0;
};
function inks(view) {  // the colours of the mask as numbers, made once per theme
  if (view.c.inks) return view.c.inks;
  const [off, plus, minus] = [view.c.off, view.c.plus, view.c.minus].map(packed);
  const ramp = (hue) => new Uint32Array(256).map((_, i) => mix(off, hue, i / 255));
  const hues = Array.from({ length: 17 }, (_, i) => ramp(mix(minus, plus, i / 16)));  // from all w < 0 to all w > 0
  return (view.c.inks = { off, plus, minus, ramp: hues[16], hues });
}

// The layer is never scanned while the slider moves: its weights are put in their order of removal once (a counting
// sort of the ranks), and a move touches only those between the old cut and the new one. Each weight belongs to a
// pixel of the picture; where the mask is larger than the canvas a pixel is the mean of a block, never a sample.
function sorted(ranks) {
  const from = new Uint32Array(65537), order = new Uint32Array(ranks.length);
  for (let i = 0; i < ranks.length; i++) from[ranks[i] + 1]++;
  for (let r = 0; r < 65536; r++) from[r + 1] += from[r];
  const next = from.slice();
  for (let i = 0; i < ranks.length; i++) order[next[ranks[i]]++] = i;
  return { from, order };  // from[r]: how many weights have a smaller rank
}
const edges = (length, n) => Int32Array.from({ length: n + 1 }, (_, i) => Math.floor((i * length) / n));
function places(length, n) {  // which pixel a row or column falls into
  const end = edges(length, n), place = new Int32Array(length);
  for (let i = 0; i < n; i++) place.fill(i, end[i], end[i + 1]);
  return place;
}
function prepare(view, rows, cols, nx, ny) {
  const { ranks } = view.detail, off = document.createElement("canvas");
  Object.assign(off, { width: nx, height: ny });
  const context = off.getContext("2d"), pixels = context.createImageData(nx, ny);
  const widths = edges(cols, nx), heights = edges(rows, ny);
  return (view.picture = {
    detail: view.detail, nx, ny, ...(view.detail.sorted ||= sorted(ranks)), at: ranks.length, off, context, pixels,
    words: new Uint32Array(pixels.data.buffer), column: places(cols, nx), row: places(rows, ny), cols,
    sums: new Uint32Array(nx * ny), above: new Uint32Array(nx * ny), stays: new Uint32Array(2 * HALF),
    width: Float32Array.from({ length: nx }, (_, i) => widths[i + 1] - widths[i]),
    height: Float32Array.from({ length: ny }, (_, i) => heights[i + 1] - heights[i]), signed: rows * cols <= 4 * nx * ny,
  });
}
function paint(view, rows, cols, nx, ny, cut) {
  let p = view.picture;
  if (!p || p.detail !== view.detail || p.nx !== nx || p.ny !== ny) p = prepare(view, rows, cols, nx, ny);
  const { sums, above, stays, column, row, order, words, width, height } = p, { bins } = view.detail, ink = inks(view);
  const colour = (block, x, y) => {
    const sum = sums[block], ramp = p.signed && sum ? ink.hues[Math.round((16 * above[block]) / sum)] : ink.ramp;
    words[block] = ramp[Math.round(255 * Math.sqrt(sum / (width[x] * height[y])))];
  };
  const to = p.from[cut], step = to < p.at ? 1 : -1;  // weights from `at` on are in the picture: let more in, or out
  const few = p.ink === ink && Math.abs(to - p.at) < sums.length / 2;
  for (let k = Math.min(to, p.at), last = Math.max(to, p.at); k < last; k++) {
    const i = order[k], r = (i / cols) | 0, x = column[i - r * cols], y = row[r], block = y * nx + x, b = bins[i];
    sums[block] += step; above[block] += step * (b >> 5); stays[b] += step;
    if (few) colour(block, x, y);
  }
  if (!few) for (let y = 0, block = 0; y < ny; y++) for (let x = 0; x < nx; x++, block++) colour(block, x, y);
  Object.assign(p, { at: to, ink });
  p.context.putImageData(p.pixels, 0, 0);
  return p;
}

PANELS.mask = (g, box, view) => {
  const { scene, detail, em, ratio, c } = view, layer = scene.layers?.[view.layer];
  if (!layer) return;
  const pad = { left: 3.4 * em, top: 1.9 * em, right: 1.2 * em, bottom: 4.4 * em };
  text(g, view, `Mask of ${layer.label}`, box.x, box.y + em, { weight: 600 });
  const wide = g.measureText(`Mask of ${layer.label}  `).width;
  text(g, view, layer.shape.join(" \u00d7 "), box.x + wide, box.y + em, { colour: c.soft });
  if (!detail || detail.layer !== layer.name) return;  // its ranks are on their way

  const { rows, cols } = layer;
  const W = Math.floor((box.w - pad.left - pad.right) * ratio), H = Math.floor((box.h - pad.top - pad.bottom) * ratio);
  const nx = Math.min(cols, W), ny = Math.min(rows, H);
  let sx = Math.floor(W / nx), sy = Math.floor(H / ny);
  if (nx === cols && ny === rows) { sx = Math.min(sx, 4 * sy, 28 * ratio); sy = Math.min(sy, 4 * sx, 28 * ratio); }
  const cut = cutOf(view, view.layer);
  const picture = paint(view, rows, cols, nx, ny, cut);
  const X = Math.round((box.x + pad.left) * ratio), Y = Math.round((box.y + pad.top) * ratio);
  g.save();
  g.setTransform(1, 0, 0, 1, 0, 0);
  g.imageSmoothingEnabled = false;
  g.drawImage(picture.off, X, Y, nx * sx, ny * sy);
  g.fillStyle = c.ground;
  if (Math.min(sx, sy) >= 5 * ratio) {  // large cells get a grid
    for (let i = 1; i < nx; i++) g.fillRect(X + i * sx, Y, 1, ny * sy);
    for (let i = 1; i < ny; i++) g.fillRect(X, Y + i * sy, nx * sx, 1);
  }
  g.restore();

  const plot = { x: X / ratio, y: Y / ratio, w: (nx * sx) / ratio, h: (ny * sy) / ratio }, below = plot.y + plot.h;
  g.canvas.dataset.mask = [plot.x, plot.y, plot.w, plot.h, nx, ny];  // where it lies, for the tests
  g.strokeStyle = c.line; g.lineWidth = 1; g.setLineDash([]);
  g.strokeRect(plot.x - 0.5, plot.y - 0.5, plot.w + 1, plot.h + 1);
  const tick = { colour: c.soft, size: 0.9 };
  text(g, view, "1", plot.x - 6, plot.y, { ...tick, align: "right", base: "top" });
  if (plot.h > 2.2 * em) text(g, view, count(rows), plot.x - 6, below, { ...tick, align: "right", base: "bottom" });
  text(g, view, "1", plot.x, below + 0.3 * em, { ...tick, base: "top" });
  text(g, view, count(cols), plot.x + plot.w, below + 0.3 * em, { ...tick, align: "right", base: "top" });
  text(g, view, layer.axes[1] + " \u2192", plot.x + plot.w / 2, below + 0.3 * em, { ...tick, align: "center", base: "top" });
  g.save(); g.translate(plot.x - 1.1 * em, plot.y + plot.h / 2); g.rotate(-Math.PI / 2);
  text(g, view, plot.h > 5 * em ? "\u2190 " + layer.axes[0] : "", 0, 0, { ...tick, align: "center", base: "bottom" });
  g.restore();

  legend(g, view, plot.x, below + 2.15 * em, box, picture.signed, [rows / ny, cols / nx]);
  view.zones.push({ ...plot, tip: (x, y) => tell(view, plot, x, y, rows, cols, nx, ny) });
};

function legend(g, view, x, y, box, each, block) {
  const { c, em } = view, size = 0.85 * em;
  const chip = (colour, words) => {
    g.fillStyle = colour; g.fillRect(x, y, size, size);
    g.strokeStyle = c.line; g.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
    x += size + 0.4 * em;
    x += text(g, view, words, x, y + size / 2, { base: "middle", size: 0.92 }) + 1.3 * em;
  };
  if (each) {
    chip(c.plus, "kept, w > 0"); chip(c.minus, "kept, w < 0"); chip(c.off, "removed");
    return;
  }
  const ramp = inks(view).ramp, w = 7 * em;
  x += text(g, view, "0\u202f%", x, y + size / 2, { base: "middle", size: 0.92 }) + 0.4 * em;
  for (let i = 0; i < w; i++) {
    const v = ramp[Math.round(255 * Math.sqrt(i / w))];
    g.fillStyle = `rgb(${v & 255},${(v >> 8) & 255},${(v >> 16) & 255})`; g.fillRect(x + i, y, 1.5, size);
  }
  x += w + 0.4 * em;
  const words = `100\u202f% kept (a pixel: ${block.map((b) => Math.round(b * 10) / 10).join(" \u00d7 ")} weights)`;
  text(g, view, clip(g, view, words, box.x + box.w - x, 0.92), x, y + size / 2, { base: "middle", size: 0.92 });
}

function tell(view, plot, x, y, rows, cols, nx, ny) {  // what lies under the pointer
  const { ranks, bins, limit } = view.detail, cut = cutOf(view, view.layer);
  const bx = Math.floor(((x - plot.x) / plot.w) * nx), by = Math.floor(((y - plot.y) / plot.h) * ny);
  if (nx < cols || ny < rows) {
    const [r0, r1] = [by, by + 1].map((b) => Math.floor((b * rows) / ny));
    const [c0, c1] = [bx, bx + 1].map((b) => Math.floor((b * cols) / nx));
    let kept = 0;
    for (let r = r0; r < r1; r++) for (let k = c0; k < c1; k++) kept += ranks[r * cols + k] >= cut;
    return `rows ${r0 + 1}\u2013${r1}, columns ${c0 + 1}\u2013${c1}: ${kept} of ${(r1 - r0) * (c1 - c0)} kept`;
  }
  const i = by * cols + bx, stops = view.scene.stops;
  let low = 0, high = stops.length;
  while (low < high) { const m = (low + high) >> 1; ranks[i] >= cutOf(view, view.layer, m) ? (low = m + 1) : (high = m); }
  const w = (((bins[i] + 0.5) / HALF - 1) * limit).toPrecision(2).replace("-", "\u2212");
  const until = low < stops.length ? `goes at ${percent(stops[low])}` : `stays beyond ${percent(stops.at(-1))}`;
  return `row ${by + 1}, column ${bx + 1}: w \u2248 ${w}, ${ranks[i] >= cut ? "kept" : "removed"} (${until})`;
}

// Density per layer, on a square-root scale: zero is zero, and one percent is still to be seen.
PANELS.layers = (g, box, view) => {
  const { scene, em, c } = view, layers = scene.layers || [];
  if (!layers.length) return;
  const spare = (box.h - 12.5 * em) / layers.length > 1.4 * em ? 12.5 * em : 3.6 * em;  // is there room for the histogram?
  const pitch = Math.max(0.92 * em, Math.min(2.1 * em, (box.h - spare) / layers.length)), size = Math.min(1, pitch / em / 1.15);
  const room = Math.floor((box.h - 3.6 * em) / pitch), shown = Math.min(layers.length, room);
  const first = Math.max(0, Math.min(view.layer - (shown >> 1), layers.length - shown));
  const used = shown * pitch + 3.6 * em;
  text(g, view, "Kept in each layer", box.x, box.y + em, { weight: 600 });
  if (shown < layers.length)
    text(g, view, `layers ${first + 1}\u2013${first + shown} of ${layers.length}`, box.x + box.w, box.y + em, { align: "right", colour: c.soft, size: 0.9 });

  g.font = `400 ${size * em}px ${view.font}`;
  const name = Math.min(0.3 * box.w, Math.max(...layers.map((l) => g.measureText(l.label).width)) + 4);
  g.font = `700 ${size * em}px ${view.font}`;
  const numbers = Math.max(...layers.map((l) => g.measureText(`${count(l.total)} / ${count(l.total)}`).width));
  const x0 = box.x + name + 0.7 * em, w = Math.max(40, box.w - name - numbers - 1.6 * em), top = box.y + 1.7 * em;
  for (let i = first; i < first + shown; i++) {
    const layer = layers[i], kept = keptIn(view, i), y = top + (i - first) * pitch, h = pitch * 0.62, mid = y + pitch / 2;
    const chosen = i === view.layer, weight = chosen ? 700 : 400;
    if (chosen) { g.fillStyle = c.off; g.fillRect(box.x - 4, y, box.w + 4, pitch); }
    text(g, view, clip(g, view, layer.label, name, size), x0 - 0.7 * em, mid, { size, align: "right", base: "middle", weight });
    g.fillStyle = chosen ? c.ground : c.off; g.fillRect(x0, mid - h / 2, w, h);
    g.fillStyle = chosen ? c.plus : c.accent; g.fillRect(x0, mid - h / 2, w * root(kept / layer.total), h);
    if (kept) text(g, view, `${count(kept)} / ${count(layer.total)}`, x0 + w + 0.6 * em, mid, { size, base: "middle", weight });
    else {
      g.strokeStyle = c.alarm; g.lineWidth = 2; g.strokeRect(x0, mid - h / 2, w, h);
      text(g, view, `${ALARM} empty`, x0 + w + 0.6 * em, mid, { size, base: "middle", weight: 700, colour: c.alarm });
    }
    view.zones.push({
      x: box.x, y, w: box.w, h: pitch, click: () => view.choose(layer.name),
      tip: () => `${layer.label}: ${share(kept / layer.total)} kept${layer.fixed ? " (the output layer stays whole)" : ""}`,
    });
  }
  const bottom = top + shown * pitch;
  for (const d of [0, 0.01, 0.1, 0.25, 0.5, 1]) {
    const x = x0 + w * root(d);
    line(g, x, bottom, x, bottom + 4, c.line);
    text(g, view, `${100 * d}`, x, bottom + 6, { align: "center", base: "top", size: 0.85, colour: c.soft });
  }
  text(g, view, "% kept", x0 + w + 1.5 * em, bottom + 6, { base: "top", size: 0.85, colour: c.soft });
  if (box.h - used > 8 * em) weights(g, { x: box.x, y: box.y + used + 0.4 * em, w: box.w, h: box.h - used - 0.4 * em }, view);
};

// The chosen layer's weights as a histogram: all of them behind, those that stay in front. Counts on a root scale.
function weights(g, box, view) {
  const { detail, em, c } = view, layer = view.scene.layers[view.layer];
  text(g, view, "Which initial weights w stay?", box.x, box.y + em, { weight: 600 });
  if (!detail || detail.layer !== layer?.name || view.picture?.detail !== detail) return;
  if (!view.histogram) {
    view.histogram = new Uint32Array(2 * HALF);
    for (const b of detail.bins) view.histogram[b]++;
  }
  const top = Math.max(...view.histogram), y0 = box.y + box.h - 2.3 * em, h = y0 - box.y - 1.7 * em;
  const x0 = box.x + 4.1 * em, w = box.w - 4.1 * em, step = w / (2 * HALF);
  for (let i = 0; i < 2 * HALF; i++) {
    const x = x0 + i * step;
    g.fillStyle = c.all; const a = h * root(view.histogram[i] / top); g.fillRect(x, y0 - a, step - 0.5, a);
    g.fillStyle = i < HALF ? c.minus : c.plus;
    const b = h * root(view.picture.stays[i] / top); g.fillRect(x, y0 - b, step - 0.5, b);
  }
  line(g, x0, y0 + 0.5, x0 + w, y0 + 0.5, c.line);
  const tick = { colour: c.soft, size: 0.85 };
  const lim = Number(detail.limit.toPrecision(2));
  for (const [at, words, align] of [[0, `\u2212${lim}`, "left"], [0.5, "0", "center"], [1, `${lim}`, "right"]])
    text(g, view, words, x0 + at * w, y0 + 0.35 * em, { ...tick, align, base: "top" });
  text(g, view, "w \u2192", x0 + 0.75 * w, y0 + 0.35 * em, { ...tick, align: "center", base: "top" });
  for (const n of new Set([top, Math.round(top / 4)])) {
    const y = y0 - h * root(n / top);
    line(g, x0 - 4, y, x0, y, c.line);
    text(g, view, count(n), x0 - 6, y, { ...tick, align: "right", base: "middle" });
  }
  let x = box.x + box.w;
  for (const [words, ...colours] of [["kept", c.minus, c.plus], ["all", c.all]]) {
    x -= text(g, view, words, x, box.y + em, { ...tick, size: 0.92, align: "right" }) + 0.35 * em;
    for (const colour of colours) { g.fillStyle = colour; g.fillRect((x -= 0.8 * em), box.y + 0.25 * em, 0.8 * em, 0.8 * em); }
    x -= 0.9 * em;
  }
  g.save(); g.translate(box.x + 0.8 * em, y0 - h / 2); g.rotate(-Math.PI / 2);
  text(g, view, "how many", 0, 0, { ...tick, align: "center" });
  g.restore();
}
