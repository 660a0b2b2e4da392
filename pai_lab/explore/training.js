// Two charts of accuracy: while a net trains, and over sparsity as the reader collects points.

function frame(g, box, view, title, sub, aside = 0) {
  const { em, c } = view;
  text(g, view, title, box.x, box.y + em, { weight: 600 });
  const after = g.measureText(title + "  ").width;
  if (sub) text(g, view, clip(g, view, sub, box.w - after, 0.95), box.x + after, box.y + em, { colour: c.soft, size: 0.95 });
  const plot = { x: box.x + 3.2 * em, y: box.y + 2 * em, w: box.w - 4.4 * em, h: box.h - 5 * em };
  plot.w -= aside;
  for (const a of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
    const y = plot.y + plot.h * (1 - a);
    line(g, plot.x, y, plot.x + plot.w, y, a ? c.off : c.line);
    text(g, view, `${100 * a}`, plot.x - 6, y, { align: "right", base: "middle", size: 0.85, colour: c.soft });
  }
  g.save(); g.translate(box.x + 0.9 * em, plot.y + plot.h / 2); g.rotate(-Math.PI / 2);
  text(g, view, "validation accuracy, %", 0, 0, { align: "center", size: 0.85, colour: c.soft });
  g.restore();
  plot.Y = (a) => plot.y + plot.h * (1 - a);
  return plot;
}
function level(g, view, plot, accuracy, words, below) {  // a line across, with its name on it
  if (accuracy === null || accuracy === undefined) return;
  const { c, em } = view, y = plot.Y(accuracy);
  line(g, plot.x, y, plot.x + plot.w, y, c.soft, 1.5, [6, 5]);
  text(g, view, words, plot.x + 0.4 * em, y + (below ? 0.25 : -0.25) * em, { size: 0.85, colour: c.soft, base: below ? "top" : "bottom" });
}
function under(g, view, plot, ticks, words) {
  const { c, em } = view, y = plot.y + plot.h;
  let free = Infinity;  // from the right, so that the last one stays where they would overlap
  for (const [at, label] of [...ticks].reverse()) {
    const x = plot.x + at * plot.w;
    line(g, x, y, x, y + 4, c.line);
    g.font = `400 ${0.85 * em}px ${view.font}`;
    const half = g.measureText(label).width / 2;
    if (x + half > free) continue;
    text(g, view, label, x, y + 6, { align: "center", base: "top", size: 0.85, colour: c.soft });
    free = x - half - 4;
  }
  text(g, view, words, plot.x + plot.w / 2, y + 1.7 * em, { align: "center", base: "top", size: 0.85, colour: c.soft });
}
function hint(g, view, plot, words) {
  const { em, c } = view, x = plot.x + plot.w / 2, y = plot.y + plot.h * 0.45;
  g.font = `400 ${em}px ${view.font}`;
  const w = g.measureText(words).width + 2 * em;
  g.fillStyle = c.ground; g.fillRect(x - w / 2, y - em, w, 2 * em);
  text(g, view, words, x, y, { align: "center", base: "middle", colour: c.soft });
}

PANELS.curve = (g, box, view) => {
  const t = view.training || {}, run = t.run, { em, c } = view;
  const plot = frame(g, box, view, "Training", run ? `${run.label}, ${percent(run.sparsity)} removed` : "");
  const epochs = run ? run.epochs : t.epochs || 30, X = (epoch) => plot.x + (plot.w * epoch) / epochs;
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((s) => epochs / s <= 6) || epochs;
  under(g, view, plot, Array.from({ length: Math.floor(epochs / step) + 1 }, (_, i) => [(i * step) / epochs, `${i * step}`]), "epoch");
  level(g, view, plot, t.chance, "chance", true);
  level(g, view, plot, t.dense, "dense");
  if (!run || !run.accuracy.length) {
    hint(g, view, plot, run ? "first epoch \u2026" : view.model.get("saved") ? "" : "Press Train: accuracy appears here, epoch by epoch.");
    return;
  }
  const colour = tone(view, run.colour);
  g.beginPath(); g.strokeStyle = colour; g.lineWidth = 3; g.lineJoin = "round";
  run.accuracy.forEach((a, i) => (i ? g.lineTo(X(i + 1), plot.Y(a)) : g.moveTo(X(1), plot.Y(a))));
  g.stroke();
  const last = run.accuracy.at(-1), n = run.accuracy.length, right = n > 0.75 * epochs;
  mark(g, view, run, X(n), plot.Y(last), 0.42 * em);
  text(g, view, `${(100 * last).toFixed(1)}\u202f%${run.stopped ? " (stopped)" : ""}`, X(n) + (right ? 0 : 0.8 * em), plot.Y(last) - 0.9 * em,
    { weight: 700, align: right ? "right" : "left", colour: c.ink });
};

PANELS.points = (g, box, view) => {
  const t = view.training || {}, points = t.points || [], { em, c, scene } = view, stops = scene.stops || [0, 1];
  const names = [...new Set(points.map((p) => p.label))];
  g.font = `600 ${0.95 * em}px ${view.font}`;  // room at the right for the names of the series
  const aside = names.length ? Math.min(0.4 * box.w, Math.max(...names.map((n) => g.measureText(n).width)) + 2.4 * em) : 0;
  const plot = frame(g, box, view, "Accuracy against sparsity", t.title, aside);
  const X = (s) => plot.x + plot.w * along(stops, s);
  under(g, view, plot, (scene.ticks || []).map((s) => [along(stops, s), `${Math.round(1e3 * s) / 10}`]), "removed, %");
  level(g, view, plot, t.chance, "chance", true);
  level(g, view, plot, t.dense, "dense");
  if (stops.length > 2) line(g, X(stops[view.stop]), plot.y, X(stops[view.stop]), plot.y + plot.h, c.accent, 1.5);
  if (!points.length) hint(g, view, plot, "Every finished training leaves a point.");

  const labels = [];
  for (const name of names) {
    const mine = points.filter((p) => p.label === name), look = mine[0], groups = new Map();
    for (const p of mine) groups.set(p.sparsity, [...(groups.get(p.sparsity) || []), p.val_accuracy]);
    const means = [...groups].sort((a, b) => a[0] - b[0]).map(([s, a]) => [s, a.reduce((x, y) => x + y) / a.length]);
    g.beginPath(); g.strokeStyle = tone(view, look.colour); g.lineWidth = 2; g.lineJoin = "round";
    means.forEach(([s, a], i) => (i ? g.lineTo(X(s), plot.Y(a)) : g.moveTo(X(s), plot.Y(a))));
    g.stroke();
    for (const p of mine) {
      mark(g, view, look, X(p.sparsity), plot.Y(p.val_accuracy), 0.42 * em);
      view.zones.push({
        x: X(p.sparsity) - 7, y: plot.Y(p.val_accuracy) - 7, w: 14, h: 14,
        tip: () => `${p.label}, ${percent(p.sparsity)} removed, seed ${p.seed}, ${p.epochs} epochs: ${(100 * p.val_accuracy).toFixed(1)}\u202f%`,
      });
    }
    const [s, a] = means.at(-1);
    labels.push({ name, look, x: X(s), y: plot.Y(a) });
  }
  const gap = 1.25 * em, right = plot.x + plot.w + 1.1 * em;
  labels.sort((a, b) => a.y - b.y).forEach((l, i) => { l.at = i ? Math.max(l.y, labels[i - 1].at + gap) : l.y; });
  for (let i = labels.length - 1, end = plot.y + plot.h; i >= 0; i--, end -= gap) labels[i].at = Math.min(labels[i].at, end);
  for (const { name, look, x, y, at } of labels) {
    line(g, x + 0.7 * em, y, right - 0.3 * em, at, c.line, 1, [2, 3]);
    mark(g, view, look, right + 0.2 * em, at, 0.34 * em);
    text(g, view, clip(g, view, name, aside - 2.3 * em), right + 0.9 * em, at, { size: 0.95, weight: 600, base: "middle", colour: tone(view, look.colour) });
  }
};
