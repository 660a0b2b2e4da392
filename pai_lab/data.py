"""Data sets as tensors in memory, with fixed splits: train to learn, validation to choose, test to read once.

data = pai.load("digits"); x, y = data.train; data.score_batch(per_class=10)
"""

import hashlib
import os
import random
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from html import escape
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from pai_lab import image_folder, storage
from pai_lab.catalog import nearest
from pai_lab.image_folder import channels_first

PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set: three splits (x, y), x of shape (n, *input_shape) floating, y of shape (n,) int64.

    `classes` names the labels 0, 1, ... (default: "0", "1", ... up to the largest label). `mean` and `std`,
    one per channel, are what `load` normalised x with. `augment(x, generator) -> x` varies a training batch,
    or is None. TypeError or ValueError, naming the split, if a tensor has the wrong type, shape or range.
    """

    name: str
    train: tuple
    val: tuple
    test: tuple
    classes: list | None = None
    mean: tuple | None = None
    std: tuple | None = None
    augment: Callable | None = None

    def __post_init__(self):
        for part in PARTS:
            check_pair(f"{part} of {self.name!r}", getattr(self, part), self.input_shape)
        top = max(int(getattr(self, part)[1].max()) for part in PARTS)
        classes = [str(name) for name in (range(top + 1) if self.classes is None else self.classes)]
        if top >= len(classes):
            raise ValueError(f"label {top} of {self.name!r} is out of range for {len(classes)} classes")
        object.__setattr__(self, "classes", classes)

    @property
    def input_shape(self):
        """Shape of one example: (channels, height, width), or (length,)."""
        return tuple(self.train[0].shape[1:]) if is_pair(self.train) else ()

    @property
    def fingerprint(self):
        """Eight hex digits that change when a label, or its place in the three splits, changes."""
        labels = [getattr(self, part)[1].cpu().numpy().astype("<i8").tobytes() for part in PARTS]
        return hashlib.sha256(b"|".join(labels)).hexdigest()[:8]

    def score_batch(self, per_class=10, seed=0):
        """A batch (x, y) from train with `per_class` examples of each class, the classes shuffled.
        ValueError if a class has fewer. The seed fixes it; no global random state is read or changed."""
        if isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1:
            raise ValueError(f"per_class must be an integer from 1 on, got {per_class!r}")
        (x, y), generator = self.train, torch.Generator().manual_seed(seed)
        order = torch.randperm(len(y), generator=generator, device="cpu")
        labels = y.cpu()[order]
        picked = [order[labels == label][:per_class] for label in range(len(self.classes))]
        for name, found in zip(self.classes, picked, strict=True):
            if len(found) < per_class:
                have = f"class {name!r} of {self.name!r} has {len(found)} training examples"
                raise ValueError(f"{have}: per_class={per_class} is too many")
        picked = torch.cat(picked)
        picked = picked[torch.randperm(len(picked), generator=generator, device="cpu")].to(y.device)
        return x[picked], y[picked]

    def to(self, device):
        """The same data with all tensors on `device`."""
        return replace(self, **{part: tuple(t.to(device) for t in getattr(self, part)) for part in PARTS})

    def __repr__(self):
        return f"Data({self.name!r}, {_sizes(self)}, {len(self.classes)} classes, split {self.fingerprint})"

    def _repr_html_(self):
        classes = ", ".join(self.classes[:10]) + ", ..." * (len(self.classes) > 10)
        rows = {"data": self.name, "examples": _sizes(self), f"{len(self.classes)} classes": classes}
        rows["split"] = self.fingerprint
        cells = (f"<tr><th>{key}</th><td>{escape(value)}</td></tr>" for key, value in rows.items())
        return f"<table>{''.join(cells)}</table>"


def _sizes(data):
    sizes = " / ".join(f"{len(getattr(data, part)[1]):,} {part}" for part in PARTS)
    return f"{'x'.join(map(str, data.input_shape))}, {sizes}"


def is_pair(pair):
    """Whether this is (x, y), two tensors."""
    return isinstance(pair, (tuple, list)) and [isinstance(t, torch.Tensor) for t in pair] == [True, True]


def check_pair(where, pair, shape):
    """TypeError or ValueError that says what is wrong unless `pair` is (x, y) with examples of `shape`."""
    if not is_pair(pair):
        raise TypeError(f"{where} must be a pair of tensors (x, y); use torch.as_tensor for arrays and lists")
    x, y = pair
    if not x.is_floating_point():
        raise TypeError(f"x in {where} must be floating, got {x.dtype}; use x.float(), bytes / 255")
    if y.dtype != torch.int64:
        raise TypeError(f"labels in {where} must be int64, got {y.dtype}; use y.long()")
    if y.ndim != 1 or x.ndim < 2:
        raise ValueError(f"{where} needs shapes (n, ...) and (n,), got {tuple(x.shape)} and {tuple(y.shape)}")
    if len(x) != len(y):
        raise ValueError(f"{where} has {len(x)} examples but {len(y)} labels")
    if x.numel() == 0:
        raise ValueError(f"{where} is empty: x has shape {tuple(x.shape)}")
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"{where} has examples of shape {tuple(x.shape[1:])}; train has {shape}")
    if not torch.stack(x.detach().aminmax()).isfinite().all():
        raise ValueError(f"x in {where} holds NaN or inf; repair or drop these examples")
    if y.min() < 0:
        raise ValueError(f"label {int(y.min())} in {where} is out of range: labels start at 0")


# -- loading ---------------------------------------------------------------------------------------------
def load(name_or_folder, seed=0):
    """A data set by name (`DATASETS`), or any folder of images, as `Data`; x normalised by the train split.

    `digits` and `mnist1d` need no download. The others are read from, or downloaded to, the folder that the
    environment variable PAI_LAB_DATA names (default ~/.cache/pai_lab). An image folder holds train/ and test/
    (and val/) with one subfolder per class, or the class folders alone: then a fifth is the test split.
    Without val/, `seed` draws the validation split from train, each class in proportion; test never changes.

    ValueError for an unknown name or a damaged file or folder; FileNotFoundError if data is missing.
    """
    name, read, share = _source(name_or_folder)
    with torch.device("cpu"):  # whatever the default device is; Data.to moves
        return _finish(name, *read(), share, seed)


def _source(what):
    """Name, how to read it, share of train that becomes validation."""
    if isinstance(what, str) and what in DATASETS:
        read, share = DATASETS[what]
        return what, partial(read, what), share
    if isinstance(what, (str, Path)):
        folder = Path(os.path.abspath(Path(what).expanduser()))
        if folder.is_dir():
            return folder.name, partial(_folder, folder), 0.1
        if str(what) != folder.name:  # a path, not a misspelt name
            raise FileNotFoundError(f"no folder at {folder}; give a folder of images or one of {[*DATASETS]}")
    raise nearest("data set or folder", what, DATASETS)


def stratified(y, size, seed=0):
    """Two sorted index tensors (rest, picked): `size` of the labels y, each class in proportion (largest
    remainder), by numpy's frozen RandomState: the same everywhere. ValueError unless 0 < size < len(y)."""
    y, draw = np.asarray(y), np.random.RandomState(seed)
    if not 0 < size < len(y):
        raise ValueError(f"cannot split {size} off {len(y)} examples: more examples are needed")
    take, remainder = np.divmod(np.bincount(y) * size, len(y))
    take[np.argsort(-remainder, kind="stable")[: size - take.sum()]] += 1
    picked = [draw.permutation(np.flatnonzero(y == label))[:k] for label, k in enumerate(take)]
    picked = np.sort(np.concatenate(picked))
    return torch.as_tensor(np.setdiff1d(np.arange(len(y)), picked)), torch.as_tensor(picked)


def _split(parts, whole, names, share, seed):
    """`parts` with the part `whole` divided in two, called `names`; the second gets `share` of it."""
    x, y = parts[whole]
    halves = stratified(y, max(1, round(len(y) * share)), seed)
    return parts | {name: (x[index], y[index]) for name, index in zip(names, halves, strict=True)}


def _finish(name, parts, classes, share, seed):
    """Raw `parts` (name -> (x, y)) as Data: validation split off, x normalised by the train split."""
    if "val" not in parts:
        parts = _split(parts, "train", ("train", "val"), share, seed)
    scale = 255 if parts["train"][0].dtype == torch.uint8 else 1
    ready = {p: (parts[p][0].to(torch.float32, copy=True).div_(scale), parts[p][1].clone()) for p in PARTS}
    learn = ready["train"][0]
    inside = (2, 3) if learn.ndim == 4 else (1,)  # one number per channel; one for all of a signal
    mean = learn.mean(inside, keepdim=True).mean(0, keepdim=True)
    for x, _ in ready.values():
        x.sub_(mean)
    power = torch.linalg.vector_norm(learn, dim=inside, keepdim=True).square().mean(0, keepdim=True)
    std = (power * mean.numel() / learn[0].numel()).sqrt()  # in a tenth of torch.std's time
    std[std < 1e-6] = 1  # a constant channel becomes 0, not NaN
    for x, _ in ready.values():
        x.div_(std)
    facts = {"mean": tuple(mean.flatten().tolist()), "std": tuple(std.flatten().tolist())}
    colour = x.ndim == 4 and x.shape[1] == 3
    return Data(name, **ready, classes=classes, **facts, augment=flip_and_crop if colour else None)


def flip_and_crop(x, generator, pad=4):
    """Images (n, c, h, w), each flipped left-right with chance 1/2 and moved by up to `pad` pixels either way
    (what moves in is 0, the mean colour). `generator` is the only source of randomness."""
    n, channels, height, width = x.shape

    def draw(high):
        return torch.randint(high, (n, 1), generator=generator, device=generator.device).to(x.device)

    def count(end):
        return torch.arange(end, device=x.device)

    rows, columns = draw(2 * pad + 1) + count(height), draw(2 * pad + 1) + count(width)
    columns = torch.where(draw(2) == 1, columns.flip(1), columns)
    image, channel = count(n)[:, None, None, None], count(channels)[:, None, None]
    return F.pad(x, [pad] * 4)[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _root():
    return Path(os.environ.get("PAI_LAB_DATA") or "~/.cache/pai_lab").expanduser()


def _cached(stem, key, make):
    """The tensors that `make()` returns, kept in `pai_lab/` of the data folder until `key` changes. A file that is
    cut short, or a folder that cannot be written, costs the time to make them again and nothing else."""
    from safetensors import SafetensorError

    path = _root() / "pai_lab" / f"{stem}.safetensors"
    with suppress(OSError, ValueError):
        tensors, facts = storage.read(path, "data set")
        if facts["key"] == key:
            return tensors
    tensors = make()
    with suppress(OSError, SafetensorError):
        storage.write(path, tensors, {"kind": "data set", "key": key})
    return tensors


# -- sets that need no download --------------------------------------------------------------------------
def _digits(_):
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16
    parts = {"all": (x, torch.tensor(raw.target, dtype=torch.int64))}
    return _split(parts, "all", ("train", "test"), 600 / 1797, seed=0), range(10)


def _mnist1d(_):
    raw = _mnist1d_signals()
    return {part: (raw[f"{part}.x"], raw[f"{part}.y"]) for part in ("train", "test")}, range(10)


@lru_cache(maxsize=1)
def _mnist1d_signals():
    """Generated once (seconds), then kept on disk."""
    return _cached("mnist1d", f"mnist1d {version('mnist1d')}", _generate_mnist1d)


def _generate_mnist1d():
    with _global_randomness_kept():
        from mnist1d.data import make_dataset

        raw = {name: torch.tensor(raw) for name, raw in make_dataset().items() if name[0] in "xy"}
    floats = {"train.x": raw["x"].float(), "test.x": raw["x_test"].float()}
    return floats | {"train.y": raw["y"].long(), "test.y": raw["y_test"].long()}


@contextmanager
def _global_randomness_kept():
    """The package mnist1d seeds the global generators; put them back."""
    kept = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])


# -- sets that torchvision knows -------------------------------------------------------------------------
def _torchvision(name):
    from torchvision import datasets

    kind = getattr(datasets, {"fashion_mnist": "FashionMNIST"}.get(name, name.upper()))
    where = _root() / (getattr(kind, "base_folder", None) or f"{kind.__name__}/raw")
    for file in where.glob("*-ubyte"):
        _check_idx(file)
    try:
        train, test = _train_and_test(kind)
    except RuntimeError:  # torchvision's word for missing or damaged
        _download(kind, name, where)
        train, test = _train_and_test(kind)
    parts = {"train": train, "test": test}
    parts = {part: (channels_first(s.data), torch.as_tensor(s.targets)) for part, s in parts.items()}
    return parts, [label.split(" - ")[0] for label in train.classes]


def _train_and_test(kind):
    with warnings.catch_warnings():  # CIFAR's files were pickled by an old numpy; the new one frowns at them
        warnings.filterwarnings("ignore", message=r"dtype\(\): align")
        return kind(_root(), train=True), kind(_root(), train=False)


def _download(kind, name, where):
    """Download to a folder of its own, then move whole files in place: a cut download leaves nothing."""
    try:
        _root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=_root()) as part:
            kind(part, download=True)
            for file in (f for f in Path(part).rglob("*") if f.is_file() and f.suffix != ".gz"):
                target = _root() / file.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
    except (OSError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{name} is missing or damaged: looked in {where}, and the download failed ({why}). Put "
            "torchvision's files there, or set the environment variable PAI_LAB_DATA to a folder that has "
            "them. The data sets digits and mnist1d need no download"
        ) from error


def _check_idx(file):
    """ValueError if an IDX file is shorter or longer than its own header says."""
    with file.open("rb") as opened:
        head, size = opened.read(16), file.stat().st_size
    end = 4 + 4 * head[3] if len(head) >= 4 else 16
    if end > len(head) or end + np.prod(np.frombuffer(head[4:end], ">u4"), dtype=np.int64) != size:
        raise ValueError(f"{file} is cut short or no IDX file: {size} bytes. Delete it and load again")


# -- any folder of images --------------------------------------------------------------------------------
def _folder(folder):
    """Raw parts and class names; the decoded images are cached until the listing changes."""
    listing = {part: image_folder.listing(folder / part) for part in PARTS if (folder / part).is_dir()}
    if listing and not {"train", "test"} <= set(listing):
        raise ValueError(f"{folder} has {' and '.join(listing)}/ only: train/ and test/ belong together")
    listing = listing or {"all": image_folder.listing(folder)}
    classes, *others = (set(found) for found in listing.values())
    if odd := sorted({name for other in others for name in other ^ classes}):
        raise ValueError(f"{folder}: {', '.join(listing)} need the same classes; not in all are {odd}")
    place = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    raw = _cached(f"{folder.name}-{place}", image_folder.digest(listing), lambda: image_folder.decoded(listing))
    parts = {part: (raw[f"{part}.x"], raw[f"{part}.y"]) for part in listing}
    if "all" in parts:
        parts = _split(parts, "all", ("train", "test"), 0.2, seed=0)
    return parts, sorted(classes)


DATASETS = {  # name -> how to read it, and the share of train that becomes validation
    "digits": (_digits, 300 / 1197),
    "mnist1d": (_mnist1d, 0.1),
    "mnist": (_torchvision, 1 / 12),
    "fashion_mnist": (_torchvision, 1 / 12),
    "cifar10": (_torchvision, 0.1),
    "cifar100": (_torchvision, 0.1),
}
