"""The one training loop: masks held, seeds fixed, hooks where methods need them, resumable.

run = pai.train(model, data, mask=mask, epochs=30, seed=0); run.table(), run.metrics
"""

import math
import os
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from pai_lab import checkpoints
from pai_lab.catalog import nearest
from pai_lab.data import check_pair, is_pair
from pai_lab.functional import check_seed, fit, in_mode, seeded
from pai_lab.mask import Mask

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
SCHEDULES = {"cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2, "constant": lambda progress: 1.0}
ROW = "epoch step lr sparsity train_loss train_accuracy val_loss val_accuracy seconds".split()


class Callback:
    """Hooks of the training loop, each given the running `Training`; every one does nothing here.

    `dense_gradients = True` asks that gradients of removed weights reach `on_backward` (growth methods need them);
    otherwise they are 0 there.
    """

    dense_gradients = False

    def on_start(self, training):
        """Before the first step."""

    def on_backward(self, training):
        """Gradients are there, the step is not taken. Return False to skip this optimizer step."""

    def on_step(self, training):
        """After a step: removed weights are 0 again."""

    def on_epoch(self, training):
        """After an epoch's row was added to `training.history`."""

    def on_end(self, training):
        """After the last step, before the test set is read."""


@dataclass
class Run:
    """What a training left: `config` (every resolved setting), `history` (a row per epoch, see `table()`),
    `metrics` (val_accuracy, test_accuracy, test_loss in fractions; sparsity), `budget` (forward+backward passes of
    one sample: train, scoring, total), the `mask` in force at the end, the trained `model`, and whether the run was
    `interrupted` (then metrics hold no test figures)."""

    config: dict
    model: torch.nn.Module = field(repr=False)
    mask: Mask | None = None
    history: list = field(default_factory=list, repr=False)
    metrics: dict = field(default_factory=dict)
    budget: dict = field(default_factory=dict)
    interrupted: bool = False

    def table(self):
        """The history as a DataFrame: epoch, step, lr, sparsity, losses, accuracies (fractions), seconds."""
        import pandas as pd

        return pd.DataFrame(self.history, columns=ROW)


class Training:
    """One training while it runs; what callbacks see.

    `model optimizer handle data step epoch batch loss history generator`; set `stop = True` to end after this step.
    """

    def __init__(self, model, data, optimizer, handle, config, callbacks, seed):
        self.model, self.data, self.optimizer, self.handle = model, data, optimizer, handle
        self.config, self.callbacks = config, callbacks
        self.generator = torch.Generator().manual_seed(seed)
        self.history, self.step, self.epoch, self.samples, self.seconds = [], 0, 0, 0, 0.0
        self.batch = self.loss = None
        self.stop = False
        self.total_steps = config["epochs"] * steps_per_epoch(data.train, config["batch_size"])
        self._masks_gradients = handle and callbacks and not any(c.dense_gradients for c in callbacks)

    def notify(self, hook):
        """Call one hook of every callback, in order; the answers."""
        return [getattr(callback, hook)(self) for callback in self.callbacks]

    def run_epoch(self, bar):
        """One pass over the training set, then one row of history."""
        started, device = time.perf_counter(), next(self.model.parameters()).device
        loss_sum, correct, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
        self.model.train()
        for x, y in batches(self.data.train, self.config["batch_size"], self.generator):
            output = self.take_step(x.to(device), y.to(device))
            loss_sum += self.loss.detach() * len(y)
            correct += (output.detach().argmax(1) == self.batch[1]).sum()
            seen += len(y)
            bar.update()
            if self.stop:
                break
        self.epoch += 1
        if self.handle:
            self.handle.check()
        val = evaluate(self.model, self.data.val) if self.data.val is not None else {}
        self.seconds += time.perf_counter() - started
        mask = self.handle and self.handle.mask
        values = (
            self.epoch, self.step, self.optimizer.param_groups[0]["lr"], mask.sparsity if mask else 0.0,
            float(loss_sum) / seen, float(correct) / seen, val.get("loss", math.nan), val.get("accuracy", math.nan),
            self.seconds,
        )  # fmt: skip
        self.history.append(dict(zip(ROW, values, strict=True)))
        bar.set_postfix_str(f"validation accuracy {100 * self.history[-1]['val_accuracy']:.1f}%")
        self.notify("on_epoch")

    def take_step(self, x, y):
        """Forward, backward, hooks, optimizer step. Returns the output."""
        if self.data.augment is not None:
            x = self.data.augment(x, self.generator)
        self.batch = (x, y)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config["lr"] * self.schedule(self.step / self.total_steps)
        self.optimizer.zero_grad()
        output = self.model(x)
        self.loss = F.cross_entropy(output, y)
        self.loss.backward()
        if self._masks_gradients:
            self.handle.mask_gradients()
        if not any(answer is False for answer in self.notify("on_backward")):
            self.optimizer.step()
        self.step += 1
        self.samples += len(y)
        self.notify("on_step")
        return output

    @property
    def schedule(self):
        """Progress in [0, 1) -> factor of the learning rate."""
        chosen = self.config["schedule"]
        return chosen if callable(chosen) else SCHEDULES[chosen]


def train(
    model, data, *, mask=None, epochs, optimizer="adam", lr=2e-3, momentum=0, weight_decay=0, batch_size=64,
    schedule="cosine", callbacks=(), seed=0, device=None, progress=True, checkpoint=None,
):  # fmt: skip
    """Train `model` in place on data.train by cross-entropy and return a Run; test is read once, at the end.

    `mask` is held: removed weights are exactly 0 outside `optimizer.step()`. `optimizer` is `sgd` (with `momentum`),
    `adam`, `adamw`, or a function (parameters, lr) -> Optimizer. `schedule` is `cosine` (to 0 over all steps),
    `constant`, or a function progress -> factor. `seed` is the data order (and dropout's); the global RNG is
    untouched. Batches hold at most `batch_size` samples and differ by at most one. `device` moves model and data
    first; None stays where the model is. `checkpoint` is a file: written after each epoch, and resumed from, bit for
    bit, if it is there. An interrupt (Ctrl-C) keeps the history so far and a usable model: `run.interrupted`.

    ValueError or TypeError before anything is changed for settings out of range, unknown names, labels or shapes
    that do not fit (a loader's batches are not looked at), a mask of another model, or a checkpoint of other
    settings (the difference is shown).
    Cost: epochs x len(data.train) FB.
    """
    data = as_data(data)
    config = {
        "data": data.name, "split": getattr(data, "fingerprint", None), "model": type(model).__name__, "epochs": epochs,
        "optimizer": optimizer, "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
        "batch_size": batch_size, "schedule": schedule, "seed": seed,
    }  # fmt: skip
    _check_settings(config)
    _check_parts(model, data, mask, callbacks)
    config["mask"] = mask.fingerprint if mask is not None else None
    data = data.to(device or next(model.parameters()).device)
    saved = checkpoints.read(checkpoint, _named(config), model)
    model.to(device)
    if saved:
        mask = checkpoints.restore_model(saved, model) or mask
    chosen = make_optimizer(model, config)
    if saved:
        checkpoints.restore_optimizer(saved, chosen)
    handle = mask.hold(model, chosen) if mask is not None else None
    training = Training(model, data, chosen, handle, config, tuple(callbacks), seed)
    run = Run(_named(config), model, mask, training.history)
    try:
        _loop(training, run, saved, progress, checkpoint)
    finally:
        if handle:
            run.mask = handle.mask
            handle.remove()
    return run


def _loop(training, run, saved, progress, checkpoint):
    from tqdm.auto import tqdm

    config, silent = training.config, not progress or bool(os.environ.get("CI"))
    device = next(training.model.parameters()).device
    with seeded(training.config["seed"], device), tqdm(total=training.total_steps, disable=silent, leave=False) as bar:
        try:
            if saved:
                checkpoints.restore_progress(saved, training)
                bar.update(training.step)
            training.notify("on_start")
            while training.epoch < config["epochs"] and not training.stop:
                training.run_epoch(bar)
                if checkpoint is not None:
                    checkpoints.write(checkpoint, training, run.config)
            training.notify("on_end")
        except KeyboardInterrupt:
            run.interrupted = True
            if training.handle:  # the interrupt may have come between the step and the mask
                training.handle.mask.apply(training.model)
            print(f"training interrupted in epoch {training.epoch + 1} of {config['epochs']}; history so far is kept")
    training.model.zero_grad()
    _finish(training, run)


def _finish(training, run):
    mask = training.handle.mask if training.handle else None
    scoring = mask.budget if mask else 0
    run.budget = {"train": training.samples, "scoring": scoring, "total": training.samples + scoring}
    run.metrics["sparsity"] = mask.sparsity if mask else 0.0
    if training.history:
        run.metrics["val_accuracy"] = training.history[-1]["val_accuracy"]
    if not run.interrupted and training.data.test is not None:
        run.metrics |= {f"test_{k}": v for k, v in evaluate(training.model, training.data.test).items()}


@torch.no_grad()
def evaluate(model, xy):
    """Mean cross-entropy "loss" and "accuracy" (a fraction) on `xy`: a pair (x, y) or a DataLoader of pairs.
    Eval mode; every module's mode is put back. ValueError if there is no sample. Cost: one forward pass."""
    device = next(model.parameters()).device
    loss = correct = seen = 0
    with in_mode(model, False):
        for x, y in batches(xy, 1000):
            output, y = model(x.to(device)), y.to(device)
            loss += F.cross_entropy(output, y, reduction="sum")
            correct += (output.argmax(1) == y).sum()
            seen += len(y)
    if not seen:
        raise ValueError("there is no sample to evaluate on: the data is empty")
    return {"loss": float(loss) / seen, "accuracy": float(correct) / seen}


def batches(xy, batch_size, generator=None):
    """Batches of a pair (x, y) of at most `batch_size` samples, sizes equal within one (no lonely last sample that
    BatchNorm cannot use); shuffled if a generator is given. Anything else is iterated as it is (a DataLoader)."""
    if not is_pair(xy):
        yield from xy
        return
    x, y = xy
    if not len(x):
        return
    order = torch.arange(len(x)) if generator is None else torch.randperm(len(x), generator=generator)
    for index in order.to(x.device).tensor_split(steps_per_epoch(xy, batch_size)):
        yield x[index], y[index]


def steps_per_epoch(xy, batch_size):
    """Number of batches that `batches` makes."""
    return math.ceil(len(xy[0]) / batch_size) if is_pair(xy) else len(xy)


@dataclass
class Loaders:
    """A DataLoader, a list of batches or a pair (x, y) in the place of a Data; val and test may be None."""

    train: object
    val: object = None
    test: object = None
    augment: object = None
    name: str = "DataLoader"

    def to(self, device):
        return self  # each batch is moved when it is used


def make_optimizer(model, config):
    """The optimizer of the settings over all parameters, in torch's fused form where there is one."""
    parameters, lr = [p for p in model.parameters() if p.requires_grad], config["lr"]
    if callable(config["optimizer"]):
        own = config["optimizer"](parameters, lr)
        if not isinstance(own, torch.optim.Optimizer):
            raise TypeError(f"optimizer(parameters, lr) must return a torch Optimizer, got {type(own).__name__}")
        return own
    options = {"momentum": config["momentum"]} if config["optimizer"] == "sgd" else {}
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    kind = OPTIMIZERS[config["optimizer"]]
    return kind(parameters, lr=lr, weight_decay=config["weight_decay"], fused=fused, **options)


def as_data(data):
    """`data` if it has splits; a pair (x, y), a DataLoader or a list of batches as its training split alone.
    TypeError for anything else."""
    if hasattr(data, "train"):
        return data
    if isinstance(data, str) or not hasattr(data, "__len__") or not hasattr(data, "__iter__"):
        raise TypeError(f"data must be a Data (pai.load), a pair (x, y) or a DataLoader, got {data!r}")
    if not len(data):  # also a TypeError for a DataLoader without a length
        raise ValueError("data is empty: there is no batch to train on")
    return Loaders(data)


def _check_parts(model, data, mask, callbacks):
    """The mask and the callbacks are what they should be, and the model has a class for every label of `data`."""
    if mask is not None and not isinstance(mask, Mask):
        raise TypeError(f"mask must be a Mask (pai.prune, pai.Mask), got {type(mask).__name__}")
    if mask is not None:
        fit(mask, dict(model.named_parameters(remove_duplicate=False)), type(model).__name__)
    if not isinstance(callbacks, (tuple, list)) or not all(isinstance(c, Callback) for c in callbacks):
        raise TypeError(f"callbacks must be a list of Callback objects, got {callbacks!r}")
    shape = tuple(data.train[0].shape[1:]) if is_pair(data.train) else None
    for part in ("train", "val", "test"):
        pair = getattr(data, part)
        if isinstance(pair, (tuple, list)) and len(pair) == 2 and shape:
            check_pair(f"{part} of {data.name!r}", pair, shape)
            check_fit(model, pair, data.name)


def check_fit(model, xy, name="data"):
    """ValueError unless the model, run on two samples in eval mode, has a class for every label of `xy`."""
    x, y = xy
    with in_mode(model, False), torch.no_grad():
        try:
            output = model(x[:2].to(next(model.parameters()).device))
        except RuntimeError as error:
            shape = tuple(x.shape[1:])
            raise ValueError(f"{type(model).__name__} cannot run on {name} inputs {shape}: {error}") from error
    got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        raise ValueError(f"the model's output must be a tensor (samples, classes), got {got}")
    if (highest := int(y.max())) >= output.shape[1]:
        raise ValueError(f"label {highest} of {name} needs {highest + 1} classes; the model's output has {got[1]}")


def _check_settings(config):
    for name, least in (("epochs", 1), ("batch_size", 1)):
        value = config[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer from {least} on, got {value!r}")
    for name in ("lr", "momentum", "weight_decay"):
        if not (isinstance(config[name], (int, float)) and math.isfinite(config[name]) and config[name] >= 0):
            raise ValueError(f"{name} must be a finite number from 0 on, got {config[name]!r}")
    for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        if not callable(config[name]) and config[name] not in allowed:
            raise nearest(name, config[name], allowed)
    check_seed(config["seed"])
    if config["weight_decay"] and callable(config["optimizer"]):
        raise ValueError("weight_decay goes with a named optimizer; give it to your own where you make it")
    if config["momentum"] and config["optimizer"] != "sgd":
        raise ValueError(f"momentum={config['momentum']} goes with optimizer='sgd', not {config['optimizer']!r}")


def _named(config):
    return {k: getattr(v, "__name__", repr(v)) if callable(v) else v for k, v in config.items()}
