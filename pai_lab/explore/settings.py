"""The settings row of an explorable: data set, model, method, scope, structure, seed; checked, and what they mean.

settings = Settings(wanted, usual, changed)      # wanted, usual: name -> value; changed() is called on a change
"""

import os
from functools import lru_cache
from types import SimpleNamespace

import ipywidgets as widgets
import torch

from pai_lab.catalog import find, names, nearest
from pai_lab.data import DATASETS, load
from pai_lab.models import MODELS, build
from pai_lab.structures import spanning

# Input shape and number of classes, so that the first picture need not wait for the data (seconds for mnist1d).
OUTLINES = {
    "digits": ((1, 8, 8), 10), "mnist1d": ((40,), 10), "mnist": ((1, 28, 28), 10),
    "fashion_mnist": ((1, 28, 28), 10), "cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100),
}  # fmt: skip
CHOICES = ("data", "model", "method", "scope", "structure")
MOST = 2**31 - 1  # of a seed
load_once = lru_cache(maxsize=2)(load)


class Settings(widgets.HBox):
    """Labelled controls, one for each of data, model, method, scope, structure, seed. A `method` or `model` may be a
    function. `wrong` has a sentence for each wanted value that is not possible; the usual one stands there then."""

    def __init__(self, wanted, usual, changed):
        self._own, self._net, self._changed = {}, None, changed
        chosen, self.wrong = self._checked(wanted, usual)
        options = self._options(chosen["data"])
        self.controls = {
            name: widgets.Dropdown(options=list(dict.fromkeys([*options[name], chosen[name]])), value=chosen[name])
            for name in CHOICES
        }
        self.controls["seed"] = widgets.BoundedIntText(chosen["seed"], min=0, max=MOST)
        for name, control in self.controls.items():
            control.description, control.layout.width, control.style.description_width = name, "auto", "initial"
            control.observe(self._on_change, "value")
        super().__init__(list(self.controls.values()))
        self.add_class("pai-row")

    @property
    def values(self):
        """name -> value, as JSON can hold it."""
        return {name: control.value for name, control in self.controls.items()}

    def offer_methods(self):
        """Put criteria that were registered meanwhile into the list."""
        self._offer("method", list(dict.fromkeys([*names("criterion"), *self.controls["method"].options])))

    # -- what the values mean ------------------------------------------------------------------------------------
    @property
    def criterion(self):
        """The name of the criterion, or the reader's own function."""
        return self._own.get(self.controls["method"].value, self.controls["method"].value)

    @property
    def allocation(self):
        """scope, structure and seed, as `pai.prune` takes them."""
        return {name: self.controls[name].value for name in ("scope", "structure", "seed")}

    def data(self):
        """The data set, loaded once."""
        return load_once(self.controls["data"].value)

    def outline(self):
        """Enough of the data set to build a model: the facts for a known name, else the data."""
        name = self.controls["data"].value
        if name not in OUTLINES:
            return self.data()
        shape, classes = OUTLINES[name]
        return SimpleNamespace(name=name, input_shape=shape, classes=range(classes))

    def build(self, data):
        """A new net of the chosen model and seed for `data` (or an outline of it)."""
        name = self.controls["model"].value
        return build(self._own.get(name, name), data, seed=self.controls["seed"].value)

    def net(self):
        """The net at initialization; built once, and never to be changed."""
        key = [self.controls[name].value for name in ("data", "model", "seed")]
        if self._net is None or self._net[0] != key:
            self._net = key, self.build(self.outline())
        return self._net[1]

    def batch(self):
        """What the criterion asks for: a blank input will do, or a balanced batch of the training set."""
        needs = find("criterion", self.criterion).facts.get("needs", "")
        if needs in ("nothing", "input shape"):
            return torch.zeros(1, *self.outline().input_shape), torch.zeros(1, dtype=torch.int64)
        return self.data().score_batch(per_class=10, seed=self.controls["seed"].value)

    # -- checks and lists ----------------------------------------------------------------------------------------
    def _checked(self, wanted, usual):
        chosen, wrong = {name: wanted[name] for name in (*CHOICES, "seed")}, []
        for name in ("method", "model"):
            if callable(chosen[name]):
                self._own[chosen[name].__name__] = chosen[name]
                chosen[name] = chosen[name].__name__
        for name, value in chosen.items():
            try:
                self._check(name, value)
            except ValueError as error:
                wrong.append(f"{error}. Shown instead: {usual[name]!r}.")
                chosen[name] = usual[name]
        return chosen, wrong

    def _check(self, name, value):
        if name == "seed":
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
                raise ValueError(f"seed must be an integer from 0 to {MOST}, got {value!r}")
        elif not (value in self._own or name == "data" and os.path.isdir(str(value))):
            allowed = {
                "data": list(DATASETS),
                "model": list(MODELS),
                "method": names("criterion"),
                "structure": spanning(),
            }
            allowed = allowed[name] if name in allowed else names(name)
            if value not in allowed:
                raise nearest(name, value, allowed)

    def _options(self, data):
        return {
            "data": data_sets(), "model": fitting(data), "method": names("criterion"), "scope": names("scope"),
            "structure": spanning(),
        }  # fmt: skip

    def _on_change(self, change):
        if change.owner is self.controls["data"] and self.controls["model"].value not in self._own:
            self._offer("model", fitting(change.new))
        self._changed()

    def _offer(self, name, options):
        """Other options for a control; its value stays if it can."""
        control = self.controls[name]
        if list(control.options) == options:
            return
        held = control.value
        control.unobserve(self._on_change, "value")  # the options pass through the first one on their way
        control.options = options
        control.value = held if held in options else options[0]
        control.observe(self._on_change, "value")


def data_sets():
    """The data sets to offer: those that need no download, and all if PAI_LAB_DATA names a folder."""
    return list(DATASETS) if os.path.isdir(os.environ.get("PAI_LAB_DATA", "")) else ["mnist1d", "digits"]


def fitting(data):
    """The models that can take a data set; for a folder of images those that take 32 x 32 pixels."""
    shape = OUTLINES.get(data, ((3, 32, 32), 0))[0]
    return [name for name, made in MODELS.items() if not made.least or len(shape) == 3 and shape[-1] >= made.least]
