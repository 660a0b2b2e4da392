"""Train from inside an explorable: a row of controls, a thread, a live curve, and a point per finished training.

trainer = Trainer(explorable, job)      # job() -> (net, data, mask, facts of the point)
"""

import ipywidgets as widgets
import torch

from pai_lab.training import Callback, train

POINT = "data model method scope structure sparsity seed epochs val_accuracy".split()


class Trainer(widgets.HBox):
    """Train, epochs, progress, Stop, Clear points. `rows`: the finished trainings, a dict each (see `POINT`).

    `job()` is called on the kernel's own thread when Train is pressed: what is shown then is what is trained.
    `explorable` lends its thread, its canvas (trait `training`) and its error box.
    """

    def __init__(self, explorable, job):
        self.explorable, self.job, self.rows, self.run = explorable, job, [], None
        narrow = widgets.Layout(width="8.5em")
        self.start = widgets.Button(
            description="Train", button_style="primary", icon="play", tooltip="Train what is kept", layout=narrow
        )
        self.epochs = widgets.BoundedIntText(30, min=1, max=1000, description="epochs", layout=narrow)
        self.epochs.style.description_width = "initial"
        self.progress = widgets.IntProgress(0, 0, 30, layout=widgets.Layout(width="13em"))
        self.halt = widgets.Button(
            description="Stop", icon="stop", disabled=True, tooltip="End the training", layout=narrow
        )
        self.clear = widgets.Button(description="Clear points", icon="eraser", tooltip="Empty the chart")
        self.start.on_click(lambda _: self.press())
        self.halt.on_click(lambda _: explorable.stop())
        self.clear.on_click(lambda _: self.forget())
        super().__init__([self.start, self.epochs, self.progress, self.halt, self.clear])
        self.add_class("pai-row")

    def press(self):
        """Start a training, unless one runs."""
        if self.start.disabled:
            return
        with self.explorable.working():
            job, epochs = self.job(), self.epochs.value
            self._running(True)
            self.explorable.aside(lambda: self._train(*job, epochs))

    def forget(self):
        """Remove all points."""
        self.rows.clear()
        self.run = None if not self.start.disabled else self.run
        self.show()

    def _running(self, running):
        self.start.disabled, self.halt.disabled = running, not running

    def _train(self, net, data, mask, facts, epochs):
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)  # small nets are faster so, and the kernel stays free
            self.progress.value, self.progress.max = 0, epochs
            self.run = {"facts": facts, "epochs": epochs, "accuracy": [], "stopped": False}
            self.show()
            run = train(net, data, mask=mask, epochs=epochs, seed=facts["seed"], callbacks=[Live(self)], progress=False)
            if self.explorable.halted:
                self.run = self.run | {"stopped": True}
            else:
                row = facts | {"epochs": epochs, "val_accuracy": run.metrics["val_accuracy"]}
                self.rows.append({key: row[key] for key in POINT})
                self.explorable.say(
                    f"Trained {label(facts)} at {100 * facts['sparsity']:.4g} % sparsity for {epochs} epochs: "
                    f"validation accuracy {100 * row['val_accuracy']:.1f} %."
                )
        finally:
            torch.set_num_threads(threads)
            self._running(False)
            self.show()

    def show(self):
        """Send the curve and the points to the canvas: those that compare with what is set there now."""
        shown = self.explorable.shown(self.rows)
        run = self.run if self.run and (self.start.disabled or self.explorable.shown([self.run["facts"]])) else None
        looks = _looks([*shown, run["facts"]] if run else shown)
        self.explorable.canvas.training = {
            "run": run and {key: run[key] for key in ("epochs", "accuracy", "stopped")} | looks(run["facts"]),
            "points": [row | looks(row) for row in shown], "epochs": self.epochs.value, "dense": dense(shown),
            "chance": self.explorable.chance, "title": self.explorable.comparable,
        }  # fmt: skip


class Live(Callback):
    """Tells the trainer of each epoch, and the training of the Stop button."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step(self, training):
        training.stop = self.trainer.explorable.halted

    def on_epoch(self, training):
        trainer = self.trainer
        trainer.progress.value = training.epoch
        trainer.run = trainer.run | {"accuracy": [row["val_accuracy"] for row in training.history]}
        trainer.show()


def label(row):
    """The name of a point's series: the method, and scope and structure where they are not the usual ones."""
    extra = [row[key] for key, usual in (("scope", "global"), ("structure", "weight")) if row[key] != usual]
    return ", ".join([row["method"], *extra])


def _looks(rows):
    """A function row -> label, colour, marker, those of every figure of the house; all series of `rows` differ."""
    if not rows:
        return None
    from pai_lab import plots  # not before the first training: matplotlib is slow to load

    looks = plots.looks([label(row) for row in rows])

    def look(row):
        colour, marker = looks[label(row)]
        return {"label": label(row), "colour": colour, "marker": marker, "sparsity": row["sparsity"]}

    return look


def dense(rows):
    """Mean accuracy of the trainings at sparsity 0; None if there is none."""
    found = [row["val_accuracy"] for row in rows if row["sparsity"] == 0]
    return sum(found) / len(found) if found else None
