"""The playground: pick a method, move the sparsity, see the mask and the layers at once, train what is left.

playground = pai.explore.playground(method="synflow", sparsity=0.95); playground
"""

from dataclasses import dataclass, field

from pai_lab.allocation import check_sparsity
from pai_lab.catalog import find, nearest
from pai_lab.explore.base import Canvas, Explorable
from pai_lab.explore.ranking import detail, looks_same, rank, scene, settle, short
from pai_lab.explore.settings import Settings
from pai_lab.explore.trainer import POINT, Trainer, dense, label
from pai_lab.mask import prunable

PANELS = [
    ["mask", 0, 0, 0.53, 392], ["layers", 0.54, 0, 0.46, 392],
    ["curve", 0, 402, 0.44, 244], ["points", 0.46, 402, 0.54, 244],
]  # fmt: skip


@dataclass
class Source:
    """What a state is drawn from: the ranking, the net's weights, the trainings so far, the accuracy of guessing."""

    ranking: object
    weights: dict = field(repr=False)
    points: list = field(default_factory=list)
    chance: float | None = None


def playground(
    *, data="mnist1d", model="mlp", method="magnitude", scope="global", structure="weight", seed=0, sparsity=0.9,
    layer=None,
):  # fmt: skip
    """A Playground that starts in the given state: names from the catalogue, a seed, a sparsity in [0, 1], the name
    of a layer's weight (None: the largest layer). `method` and `model` may be functions. What is not possible is
    said in the explorable, and the usual value is shown instead."""
    return Playground(dict(locals()))


def figure(state, source):
    """The static twin: mask of `state["layer"]`, density of all layers, and accuracies if there are points.
    A matplotlib Figure, outside pyplot. ValueError if the layer is unknown."""
    from matplotlib.figure import Figure

    from pai_lab import plots

    mask, layer = source.ranking.mask(state["sparsity"]), _layer(state, source)
    with plots.style():
        picture = Figure(figsize=(14, 11.5 if source.points else 5.8), layout="constrained")
        picture.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
        upper, *lower = picture.subfigures(2, 1) if source.points else [picture]
        left, right = upper.subplots(1, 2, width_ratios=(1.15, 1))
        plots.mask(mask, layer, ax=left)
        left.set_title(f"{short(layer)}: {percent(state['sparsity'])} removed by {state['method']}")
        plots.density(mask, ax=right)
        right.set_title("Kept in each layer")
        if source.points:
            ax = lower[0].subplots()
            rows = {(label(r), r["sparsity"], r["seed"]): r | {"method": label(r)} for r in source.points}
            plots.accuracy(
                list(rows.values()), y="val_accuracy", chance=source.chance, dense=dense(source.points), ax=ax
            )
            ax.set_title("Accuracy against sparsity")
    return picture


def summary(state, source):
    """The exact numbers of a state in two sentences."""
    mask, layer, ranking = source.ranking.mask(state["sparsity"]), _layer(state, source), source.ranking
    here, units = mask[layer], ""
    inside, empty = int(here.count_nonzero()), ", ".join(map(short, mask.collapsed()))
    if state["structure"] != "weight":
        units = f"{ranking.kept(state['sparsity']):,} of {ranking.total:,} {state['structure']}s, "
    return (
        f"{state['method']} at {percent(state['sparsity'])} sparsity ({state['scope']} scope, {state['data']}, "
        f"{state['model']}, seed {state['seed']}) keeps {units}{mask.kept:,} of {mask.total:,} weights. "
        f"{short(layer)} keeps {inside:,} of {here.numel():,}; "
        + (f"layer collapse: {empty} empty." if empty else "no layer is empty.")
    )


def percent(fraction):
    """0.975 -> "97.5 %"."""
    return f"{round(100 * fraction, 2):g} %"


def _layer(state, source):
    if state["layer"] not in source.ranking.shapes:
        raise nearest("layer", state["layer"], source.ranking.shapes)
    return state["layer"]


class Playground(Explorable):
    """See `playground`. `points` is a table of the finished trainings."""

    draw, tell = staticmethod(figure), staticmethod(summary)

    def __init__(self, wanted):
        usual, self._source = playground.__kwdefaults__, None
        self.settings = Settings(wanted, usual, self.refresh)
        self.trainer = Trainer(self, self._job)
        wrong, sparsity = list(self.settings.wrong), wanted["sparsity"]
        try:
            check_sparsity(sparsity)
        except (TypeError, ValueError) as error:
            sparsity = usual["sparsity"]
            wrong.append(f"{error}. Shown instead: {sparsity!r}.")
        canvas = Canvas(panels=PANELS, sparsity=float(sparsity))
        super().__init__([self.settings, self.trainer], canvas)
        self.refresh(wanted["layer"], wrong)
        canvas.observe(self._on_rest, "sparsity")
        canvas.observe(self._on_layer, "layer")

    # -- the state and what is drawn from it ---------------------------------------------------------------------
    @property
    def state(self):
        """{data, model, method, scope, structure, seed, sparsity, layer}, as JSON can hold it."""
        return self.settings.values | {"sparsity": self.canvas.sparsity, "layer": self.canvas.layer}

    @property
    def source(self):
        """What `figure` and `summary` draw from. ValueError if the present settings gave an error."""
        if self._source is None:
            raise ValueError("these settings gave no picture: change them first")
        self._source.points = self.shown(self.trainer.rows)
        return self._source

    @property
    def points(self):
        """The finished trainings: data model method scope structure sparsity seed epochs val_accuracy (fractions)."""
        import pandas as pd

        return pd.DataFrame(self.trainer.rows, columns=POINT)

    def shown(self, rows):
        """The rows of this data set and model: other accuracies do not compare."""
        now = self.settings.values
        return [row for row in rows if all(row[key] == now[key] for key in ("data", "model"))]

    @property
    def comparable(self):
        """What the points on the chart have in common."""
        return "{data}, {model}".format(**self.settings.values)

    @property
    def chance(self):
        """The accuracy of guessing."""
        return 1 / len(self.settings.outline().classes)

    # -- what happens --------------------------------------------------------------------------------------------
    def refresh(self, layer=None, wrong=()):
        """Score the net with the present settings and show it; after an error there is no picture."""
        self._source = None
        with self.working():
            self.settings.offer_methods()
            sparsity = self.canvas.sparsity
            ranking = settle(self._rank(sparsity or 0.9), sparsity)
            weights = {name: weight.detach() for name, weight in prunable(self.settings.net()).items()}
            self._source = Source(ranking, weights, chance=self.chance)
            self._show(layer, list(wrong))
        if self._source is None:
            self.canvas.scene, self.canvas.detail = {}, {}

    def _rank(self, sparsity):
        settings = self.settings
        return rank(settings.net(), settings.criterion, sparsity, batch=settings.batch(), **settings.allocation)

    def _on_rest(self, change):
        """The slider rests: the picture becomes the mask that `pai.prune` returns here, to the last weight."""
        if self._source is None:
            return
        with self.working():
            before = self.source.ranking
            ranking = settle(before, change.new)
            if ranking.scores is None and change.new not in (0, ranking.settled):
                ranking = self._rank(change.new)
            self.source.ranking = ranking
            if ranking is before or looks_same(before, ranking):
                self.say(self._words())
            else:
                self._show()

    def _on_layer(self, change):
        if self._source is None or self.canvas.detail.get("layer") == change.new:
            return
        with self.working():
            self.canvas.detail = self.detail(change.new)
            self.say(self._words())

    def _job(self):
        """What Train trains: a new net of the same seed under the mask that is shown."""
        data, facts = self.settings.data(), self.state
        return self.settings.build(data), data, self.source.ranking.mask(facts["sparsity"]), facts

    # -- to the browser ------------------------------------------------------------------------------------------
    def _show(self, layer=None, wrong=()):
        """Send the ranking; the layer is the wanted one, or else the same as before, or else the largest."""
        source, canvas, wrong = self.source, self.canvas, list(wrong)
        shapes = source.ranking.shapes
        largest = max(shapes, key=lambda name: source.weights[name].numel())
        chosen = next(name for name in (layer, canvas.layer, largest) if name in shapes)
        if layer is not None and chosen != layer:
            wrong.append(f"{nearest('layer', layer, shapes)}. Shown instead: {chosen!r}.")
        title = ", ".join(str(value) for value in self.settings.values.values())
        with canvas.hold_sync():
            canvas.scene = scene(source.ranking, canvas.sparsity, title)
            canvas.detail = self.detail(chosen)
            canvas.layer = chosen
            self.trainer.show()
        self.say(" ".join(wrong) or self._words(), error=bool(wrong))

    def _words(self):
        """The summary, and where the score comes from."""
        facts = find("criterion", self.settings.criterion).facts
        origin = [facts.get("criterion") and f"Score: {facts['criterion']}", facts.get("paper"), facts.get("year")]
        return f"{self.summary()}\n{', '.join(str(part) for part in origin if part)}"

    def detail(self, name):
        """One layer's arrays for the canvas."""
        return detail(self.source.ranking, self.source.weights[name], name)

    def details(self):
        return {name: self.detail(name) for name in self.source.ranking.shapes}
