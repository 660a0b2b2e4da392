"""Any folder of images, one subfolder per class, as tensors: what is there, and how it is decoded.

tensors = decoded({"train": listing("photos/train"), "test": listing("photos/test")})
"""

import hashlib
import os
from collections import Counter

import numpy as np
import torch

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


def listing(folder):
    """class name -> its image files, both sorted."""
    folders = (entry.name for entry in os.scandir(folder) if entry.is_dir())
    classes = sorted(name for name in folders if not name.startswith((".", "__")))
    if len(classes) < 2:
        raise ValueError(
            f"{folder} is no image folder: it has {len(classes)} class folders, at least 2 are needed. "
            "Expected <class>/<image> in it, or train/<class>/<image> and test/<class>/<image>"
        )
    files = {name: sorted(e.path for e in os.scandir(folder / name) if _is_image(e)) for name in classes}
    if empty := [name for name, found in files.items() if not found]:
        raise ValueError(f"no images in {folder / empty[0]}: known endings are {', '.join(ENDINGS)}")
    return files


def _is_image(entry):
    return entry.is_file() and entry.name.lower().endswith(ENDINGS) and not entry.name.startswith(".")


def digest(parts):
    """Changes when the name, size or time of any file does."""
    paths = (path for classes in parts.values() for files in classes.values() for path in files)
    stats = ((path, os.stat(path)) for path in paths)
    lines = (f"{path}|{stat.st_size}|{stat.st_mtime_ns}" for path, stat in stats)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def decoded(parts):
    """ "<part>.x", "<part>.y" -> all parts as uint8 images of one size, and their labels."""
    counts = {part: [len(files) for files in classes.values()] for part, classes in parts.items()}
    images = _decode([file for classes in parts.values() for files in classes.values() for file in files])
    images = images.split([sum(count) for count in counts.values()])
    tensors = {f"{part}.x": x for part, x in zip(counts, images, strict=True)}
    for part, count in counts.items():
        tensors[f"{part}.y"] = torch.arange(len(count)).repeat_interleave(torch.tensor(count))
    return tensors


def _decode(paths):
    """uint8 (n, channels, h, w): all resized to the most common size; in colour if any image is."""
    from tqdm.auto import tqdm

    sizes, modes = zip(*(_look(path, lambda image: (image.size, image.mode)) for path in paths), strict=True)
    (width, height), _ = Counter(sizes).most_common(1)[0]
    mode = "L" if set(modes) <= {"1", "L", "LA"} else "RGB"
    out = np.empty((len(paths), height, width, 3)[: 3 + (mode == "RGB")], dtype=np.uint8)
    quiet = None if len(paths) > 2000 else True  # None: a bar on a terminal or in a notebook only
    for i, path in enumerate(tqdm(paths, desc="decoding images", disable=quiet)):
        out[i] = _look(path, lambda image: _pixels(image.convert(mode), (width, height)))
    return channels_first(out)


def _pixels(image, size):
    return np.asarray(image if image.size == size else image.resize(size))


def _look(path, at):
    """`at(image)` for the image file at `path`; ValueError that names the file if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels have more than 8 bits ({image.mode}); convert it")
            return at(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is no readable image: {error}. Repair or remove it") from None


def channels_first(array):
    """uint8 (n, h, w) or (n, h, w, c) -> a tensor (n, c, h, w)."""
    images = torch.as_tensor(array)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
