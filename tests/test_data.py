"""Data: fixed splits, honest normalisation, balanced batches, any folder of images, and errors that help."""

import gzip
import hashlib
import os
import pickle
import random
import tarfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import pai_lab as pai
from pai_lab import data as room
from pai_lab import image_folder
from pai_lab.data import Data, flip_and_crop, load, stratified

PARTS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty data folder of its own for each test."""
    folder = tmp_path / "root"
    monkeypatch.setenv("PAI_LAB_DATA", str(folder))
    return folder


def random_states():
    python, numpy = random.getstate(), np.random.get_state()
    return python, (numpy[0], numpy[1].tobytes(), *numpy[2:]), torch.get_rng_state().numpy().tobytes()


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def signals(tmp_path_factory):
    """mnist1d, generated afresh; what its package made; the global generators' states before and after."""
    import mnist1d.data as package

    made, make = [], package.make_dataset
    room._mnist1d_signals.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAI_LAB_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setattr(package, "make_dataset", lambda: made.append(make()) or made[0])
        before = random_states()
        data = load("mnist1d")
        return data, made[0], before, random_states()


def raw(data, part):
    """x as it was before normalisation."""
    shape = [1, -1] + [1] * (len(data.input_shape) - 1)
    return getattr(data, part)[0] * torch.tensor(data.std).view(shape) + torch.tensor(data.mean).view(shape)


def sha(*tensors):
    return hashlib.sha256(b"".join(t.numpy().astype("<i8").tobytes() for t in tensors)).hexdigest()[:16]


# -- the embedded sets -----------------------------------------------------------------------------------
def test_digits_has_the_promised_shapes(digits):
    assert [len(getattr(digits, part)[1]) for part in PARTS] == [897, 300, 600]
    assert digits.input_shape == (1, 8, 8) and digits.classes == list("0123456789") and digits.augment is None
    assert all(getattr(digits, part)[0].dtype == torch.float32 for part in PARTS)
    assert all(getattr(digits, part)[1].dtype == torch.int64 for part in PARTS)


def test_digits_is_each_image_of_sklearn_once(digits):
    from sklearn.datasets import load_digits

    original = load_digits()
    images = torch.cat([raw(digits, part) for part in PARTS]).mul(16).round().to(torch.uint8).numpy()
    labels = torch.cat([getattr(digits, part)[1] for part in PARTS]).tolist()
    ours = sorted((x.tobytes(), y) for x, y in zip(images, labels, strict=True))
    pairs = zip(original.images.astype(np.uint8), original.target.tolist(), strict=True)
    assert ours == sorted((x.tobytes(), y) for x, y in pairs)


def test_digits_is_stratified(digits):
    whole = torch.cat([getattr(digits, part)[1] for part in PARTS]).bincount()
    for part in PARTS:
        y = getattr(digits, part)[1]
        assert (y.bincount() - whole * len(y) / 1797).abs().max() < 2


def test_the_splits_never_move(digits, signals):
    from sklearn.datasets import load_digits

    y = load_digits().target
    rest, test = stratified(y, 600)
    train, val = stratified(y[rest], 300)
    assert sha(rest[train], rest[val], test) == "acd5642107b39f48"
    assert torch.equal(digits.train[1], torch.tensor(y[rest][train]))
    assert torch.equal(digits.test[1], torch.tensor(y[test]))
    assert sha(*(getattr(signals[0], part)[1] for part in PARTS)) == "4d0544a345ae502c"
    assert sha(*stratified(np.arange(50_000) % 10, 5_000)) == "5ccc473f11218101"
    assert (digits.fingerprint, signals[0].fingerprint) == ("0888ec49", "3f10dcac")


def test_another_seed_moves_validation_but_never_test(digits):
    other = load("digits", seed=1)
    assert torch.equal(other.test[1], digits.test[1])
    assert torch.allclose(raw(other, "test"), raw(digits, "test"), atol=1e-5)
    assert not torch.equal(other.val[1], digits.val[1])
    assert other.fingerprint != digits.fingerprint
    assert load("digits", seed=1).fingerprint == other.fingerprint


def test_mnist1d_is_what_its_package_generates(signals):
    data, original, before, after = signals
    assert before == after
    assert [len(getattr(data, part)[1]) for part in PARTS] == [3600, 400, 1000]
    assert data.input_shape == (40,) and data.augment is None and len(data.mean) == 1
    assert torch.equal(data.test[1], torch.tensor(original["y_test"]))
    assert torch.allclose(raw(data, "test"), torch.tensor(original["x_test"]).float(), atol=1e-5)
    rest, picked = stratified(original["y"], 400)
    assert torch.equal(data.val[1], torch.tensor(original["y"])[picked])
    assert torch.allclose(raw(data, "train"), torch.tensor(original["x"]).float()[rest], atol=1e-5)


def test_mnist1d_is_generated_once_and_then_read_from_disk(root, monkeypatch, signals):
    tensors = room._mnist1d_signals()
    monkeypatch.setattr(room, "_generate_mnist1d", lambda: tensors)
    room._mnist1d_signals.cache_clear()
    load("mnist1d")
    assert [file.name for file in root.rglob("*.safetensors")] == ["mnist1d.safetensors"]
    room._mnist1d_signals.cache_clear()
    monkeypatch.setattr(room, "_generate_mnist1d", None)  # now only the file can answer
    assert torch.equal(load("mnist1d").train[0], signals[0].train[0])


def test_each_load_is_a_copy_of_its_own(signals):
    first = load("mnist1d")
    for part in PARTS:
        getattr(first, part)[0].zero_()
        getattr(first, part)[1].zero_()
    assert load("mnist1d").fingerprint == signals[0].fingerprint
    assert torch.equal(load("mnist1d").test[0], signals[0].test[0])


@pytest.mark.parametrize("name", ["digits", "mnist1d"])
def test_normalised_by_train_alone(name, digits, signals):
    data = {"digits": digits, "mnist1d": signals[0]}[name]
    x = data.train[0].double()
    assert abs(x.mean()) < 1e-6 and abs(x.std(correction=0) - 1) < 1e-5
    whole = torch.cat([getattr(data, part)[0] for part in PARTS]).double()
    assert abs(whole.mean()) > 1e-5  # the statistics of everything would have given 0


def test_data_is_on_the_cpu_whatever_the_default_device(digits):
    with torch.device("meta"):
        data = load("digits")
        batch, _ = data.score_batch(2)
    assert torch.equal(data.train[0], digits.train[0]) and torch.equal(batch, digits.score_batch(2)[0])


def test_loading_leaves_the_global_generators_alone(digits):
    before = random_states()
    load("digits", seed=3)
    digits.score_batch(5, seed=1)
    assert random_states() == before


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data())
def test_stratified_is_a_proportional_partition(labels, draw):
    size = draw.draw(st.integers(1, len(labels) - 1))
    rest, picked = stratified(labels, size, seed=draw.draw(st.integers(0, 3)))
    assert sorted([*rest.tolist(), *picked.tolist()]) == list(range(len(labels))) and len(picked) == size
    y = np.array(labels)
    for label in set(labels):
        assert abs((y[picked] == label).sum() - (y == label).sum() * size / len(y)) < 1


# -- score_batch -----------------------------------------------------------------------------------------
def numbered(n=60, **more):
    """A set of three classes whose x tells which training example it is."""
    pair = torch.arange(n, dtype=torch.float32)[:, None], torch.arange(n) % 3
    return Data("numbered", pair, pair, pair, **more)


def test_score_batch_is_balanced_and_from_train(digits):
    x, y = digits.score_batch(per_class=7)
    assert y.bincount().tolist() == [7] * 10 and x.shape == (70, 1, 8, 8)
    x, y = numbered().score_batch(per_class=20)  # all of train, each once
    assert sorted(x.flatten().tolist()) == list(range(60)) and torch.equal(x.flatten().long() % 3, y)


def test_score_batch_mixes_the_classes(digits):
    _, y = digits.score_batch(per_class=10)
    changes = (y[1:] != y[:-1]).sum()
    assert changes > 70  # a batch sorted by class changes 9 times, a mixed one about 90 times
    assert all(len(set(quarter.tolist())) >= 5 for quarter in y.split(25))


def test_score_batch_depends_on_its_seed_alone(digits):
    torch.manual_seed(1)
    x, y = digits.score_batch(seed=4)
    torch.manual_seed(2)
    again, labels = digits.score_batch(seed=4)
    assert torch.equal(x, again) and torch.equal(y, labels)
    assert not torch.equal(digits.score_batch(seed=5)[0], x)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "10"])
def test_score_batch_wants_a_positive_integer(wrong):
    with pytest.raises(ValueError, match="per_class"):
        numbered().score_batch(per_class=wrong)


def test_score_batch_says_which_class_is_too_small():
    with pytest.raises(ValueError, match="'c' of 'numbered' has 20 training examples: per_class=21"):
        numbered(62, classes=["a", "b", "c"]).score_batch(per_class=21)


# -- Data by hand ----------------------------------------------------------------------------------------
GOOD = torch.zeros(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


def test_data_by_hand():
    data = pai.Data(name="mine", train=GOOD, val=GOOD, test=GOOD)
    assert data.classes == ["0", "1", "2"] and data.input_shape == (4,) and data.augment is None
    moved = data.to("cpu")
    assert isinstance(moved, Data) and moved.classes == data.classes and moved.fingerprint == data.fingerprint
    with pytest.raises(AttributeError):
        data.name = "frozen"


X, Y = GOOD
BAD = {
    "not a pair": (X, TypeError, "pair of tensors"),
    "three": ((X, Y, Y), TypeError, "pair of tensors"),
    "arrays": ((X.numpy(), Y.numpy()), TypeError, "as_tensor"),
    "bytes": ((X.to(torch.uint8), Y), TypeError, r"x\.float\(\)"),
    "int32 labels": ((X, Y.int()), TypeError, r"y\.long\(\)"),
    "float labels": ((X, Y.float()), TypeError, "int64"),
    "one-hot labels": ((X, torch.eye(6).long()), ValueError, r"\(n, \.\.\.\) and \(n,\)"),
    "flat x": ((X[:, 0], Y), ValueError, r"\(n, \.\.\.\) and \(n,\)"),
    "lengths": ((X[:5], Y), ValueError, "5 examples but 6 labels"),
    "empty": ((X[:0], Y[:0]), ValueError, "empty"),
    "no features": ((X[:, :0], Y), ValueError, "empty"),
    "nan": ((X.clone().index_fill_(0, torch.tensor([2]), float("nan")), Y), ValueError, "NaN or inf"),
    "inf": ((X.clone().index_fill_(0, torch.tensor([2]), float("-inf")), Y), ValueError, "NaN or inf"),
    "negative label": ((X, Y - 1), ValueError, "-1 in .* out of range"),
    "large label": ((X, Y + 1), ValueError, "label 3 .* 3 classes"),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_named(case, part):
    pair, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        Data("mine", **({p: GOOD for p in PARTS} | {part: pair}), classes=["a", "b", "c"])
    assert "mine" in str(caught.value)
    assert part in str(caught.value) or case in ("large label", "no features")


def test_splits_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"val of 'mine' has examples of shape \(3,\); train has \(4,\)"):
        Data("mine", GOOD, (GOOD[0][:, :3], GOOD[1]), GOOD)


def test_repr_is_one_line_and_html_is_escaped(digits):
    assert repr(digits) == "Data('digits', 1x8x8, 897 train / 300 val / 600 test, 10 classes, split 0888ec49)"
    html = numbered(classes=["<script>", "b", "c"])._repr_html_()
    assert "&lt;script&gt;" in html and "<script>" not in html and "60 train" in html


# -- augmentation ----------------------------------------------------------------------------------------
def test_flip_and_crop_gives_a_moved_perhaps_mirrored_image():
    x = torch.arange(1, 1 + 40 * 3 * 6 * 5, dtype=torch.float32).view(40, 3, 6, 5)
    before = random_states()
    out = flip_and_crop(x, torch.Generator().manual_seed(0))
    assert random_states() == before and out.shape == x.shape
    moves = []
    for image, result in zip(x, out, strict=True):
        wide = torch.zeros(3, 14, 13)
        wide[:, 4:10, 4:9] = image
        crops = {(i, j): wide[:, i : i + 6, j : j + 5] for i in range(9) for j in range(9)}
        straight = [place for place, crop in crops.items() if torch.equal(crop, result)]
        mirrored = [place for place, crop in crops.items() if torch.equal(crop.flip(2), result)]
        assert straight or mirrored
        moves.append((not straight, *(straight or mirrored)[0]))
    assert len(set(moves)) > 30 and 10 < sum(mirrored for mirrored, _, _ in moves) < 30


def test_flip_and_crop_follows_its_generator():
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    first = flip_and_crop(x, torch.Generator().manual_seed(2))
    torch.rand(1)
    assert torch.equal(first, flip_and_crop(x, torch.Generator().manual_seed(2)))
    assert not torch.equal(first, flip_and_crop(x, torch.Generator().manual_seed(3)))


# -- names -----------------------------------------------------------------------------------------------
def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="'mnits'.*Did you mean 'mnist'.*'digits', 'mnist1d'"):
        load("mnits")
    with pytest.raises(ValueError, match="Allowed"):
        load(7)


def test_a_missing_folder_is_not_taken_for_a_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no folder at .*nowhere"):
        load(str(tmp_path / "nowhere"))


# -- image folders ---------------------------------------------------------------------------------------
def paint(folder, count, shade=0, size=(6, 5), mode="L", ending="png"):
    """`count` images of one shade each: shade, shade + 1, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        colour = shade + i if mode == "L" else (shade + i, 0, 255 - shade - i)
        Image.new(mode, size, colour).save(folder / f"{i:03}.{ending}")


@pytest.fixture
def pets(tmp_path):
    """train/: 20 cats (0..19), 20 dogs (100..119); test/: 3 cats (30..32), 3 dogs (130..132)."""
    folder = tmp_path / "pets"
    for part, count, first in (("train", 20, 0), ("test", 3, 30)):
        paint(folder / part / "cat", count, first)
        paint(folder / part / "dog", count, 100 + first)
    return folder


def shades(data, part):
    return sorted(raw(data, part)[:, 0, 0, 0].mul(255).round().int().tolist())


def test_an_image_folder_with_train_and_test(pets):
    data = load(pets)
    assert data.name == "pets" and data.classes == ["cat", "dog"] and data.input_shape == (1, 5, 6)
    assert data.augment is None
    assert shades(data, "test") == [30, 31, 32, 130, 131, 132]
    assert sorted(shades(data, "train") + shades(data, "val")) == [*range(20), *range(100, 120)]
    assert data.val[1].bincount().tolist() == [2, 2]
    for part in PARTS:
        x, y = getattr(data, part)
        assert torch.equal((raw(data, part)[:, 0, 0, 0] * 255 > 90).long(), y)
    assert load(str(pets) + "/").fingerprint == data.fingerprint


def test_statistics_come_from_train_alone(pets):
    first = load(pets)
    kept = raw(first, "train").double()
    assert np.allclose([kept.mean(), kept.std(correction=0)], [first.mean[0], first.std[0]], atol=1e-6)
    paint(pets / "test" / "cat", 3, 250)
    second = load(pets)
    assert torch.equal(first.train[0], second.train[0]) and shades(second, "test")[-1] == 252


def test_a_folder_of_classes_alone_is_split(tmp_path):
    for i, name in enumerate("abc"):
        paint(tmp_path / "set" / name, 10, 10 * i)
    data, other = load(tmp_path / "set"), load(tmp_path / "set", seed=1)
    assert [len(getattr(data, part)[1]) for part in PARTS] == [22, 2, 6]
    assert data.test[1].bincount().tolist() == [2, 2, 2]
    assert sorted(s for part in PARTS for s in shades(data, part)) == list(range(30))
    assert shades(data, "test") == shades(other, "test") and shades(data, "val") != shades(other, "val")


def test_a_val_folder_is_the_validation_split(pets):
    paint(pets / "val" / "cat", 1, 60)
    paint(pets / "val" / "dog", 1, 160)
    data = load(pets, seed=5)
    assert shades(data, "val") == [60, 160] and len(data.train[1]) == 40


def test_colour_images_get_three_channels_and_augmentation(pets):
    paint(pets / "train" / "cat", 1, 7, mode="RGB")
    data = load(pets)
    assert data.input_shape == (3, 5, 6) and data.augment is flip_and_crop and len(data.mean) == 3
    pixels = torch.cat([raw(data, "train"), raw(data, "val")])[:, :, 0, 0].mul(255).round().int().tolist()
    assert [7, 0, 248] in pixels and [119, 119, 119] in pixels


def test_other_sizes_are_resized_to_the_most_common(pets):
    paint(pets / "train" / "dog", 5, 100, size=(12, 12), ending="jpg")
    data = load(pets)
    assert data.input_shape == (1, 5, 6) and len(data.train[1]) + len(data.val[1]) == 45


def test_hidden_and_other_files_are_passed_over(pets):
    (pets / "train" / ".ipynb_checkpoints").mkdir()
    (pets / "train" / "notes.txt").write_text("no image")
    (pets / "train" / "cat" / "Thumbs.db").write_text("no image")
    (pets / "train" / "cat" / "._000.png").write_text("no image")
    assert load(pets).classes == ["cat", "dog"]


def refused(folder, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_wrong_folders_say_what_is_wrong(pets, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has 0 class folders.*train/<class>/<image>")
    refused(tmp_path, "no images in .*empty")
    refused(pets / "train" / "cat", "has 0 class folders")
    (pets / "test" / "fox").mkdir()
    refused(pets, "no images in .*fox.*png")
    paint(pets / "test" / "fox", 1)
    refused(pets, r"same classes.*\['fox'\]")
    (pets / "test").rename(tmp_path / "gone")
    refused(pets, "has train/ only")


def test_one_class_is_no_data_set(tmp_path):
    paint(tmp_path / "set" / "only", 3)
    refused(tmp_path / "set", "has 1 class folders, at least 2")


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_broken_image_is_named(pets, ending):
    paint(pets / "train" / "cat", 20, size=(64, 64), ending=ending)
    broken = pets / "train" / "cat" / f"004.{ending}"
    broken.write_bytes(broken.read_bytes()[:-40] if ending == "png" else broken.read_bytes()[:300])
    refused(pets, f"004.{ending} is no readable image")
    broken.write_text("not an image at all")
    refused(pets, f"004.{ending} is no readable image")


def test_sixteen_bit_images_are_refused_instead_of_clipped(pets):
    Image.fromarray(np.full((5, 6), 40_000, np.uint16)).save(pets / "train" / "cat" / "003.png")
    refused(pets, "003.png.*more than 8 bits")


def test_a_constant_channel_becomes_zero(tmp_path):
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (4, 4), (10 * i, 77, 0)).save(tmp_path / "set" / name / f"{i}.png")
    data = load(tmp_path / "set")
    assert data.std[1:] == (1, 1) and data.train[0][:, 1:].abs().max() < 1e-6


# -- the cache of decoded images -------------------------------------------------------------------------
@pytest.fixture
def decoded(monkeypatch):
    """Counts how often images are decoded."""
    calls, decode = [], image_folder._decode
    monkeypatch.setattr(image_folder, "_decode", lambda paths: calls.append(len(paths)) or decode(paths))
    return calls


def test_the_second_load_decodes_nothing(pets, root, decoded):
    first, second = load(pets), load(pets)
    assert decoded == [46]
    for part in PARTS:
        assert all(map(torch.equal, getattr(first, part), getattr(second, part)))
    assert [file.suffix for file in (root / "pai_lab").iterdir()] == [".safetensors"]  # and no half file


@pytest.mark.parametrize("change", ["new", "gone", "size", "time", "name"])
def test_a_changed_folder_is_decoded_again(pets, decoded, change):
    load(pets)
    image = pets / "train" / "cat" / "000.png"
    if change == "new":
        paint(pets / "train" / "cat", 21)
    elif change == "gone":
        image.unlink()
    elif change == "size":
        stat = image.stat()
        Image.effect_noise((6, 5), 50).save(image)
        os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "time":
        os.utime(image, ns=(0, 0))
    else:
        image.rename(image.with_name("renamed.png"))
    load(pets)
    assert len(decoded) == 2


@pytest.mark.parametrize("harm", ["half", "empty", "garbage", "other"])
def test_a_damaged_cache_is_made_anew(pets, root, decoded, harm):
    first = load(pets)
    (file,) = (root / "pai_lab").iterdir()
    whole = file.read_bytes()
    if harm == "other":
        room.storage.write(file, {"a": torch.zeros(1)}, {"kind": "something else"})
    else:
        file.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "garbage": b"x" * 500}[harm])
    second = load(pets)
    assert len(decoded) == 2 and torch.equal(first.train[0], second.train[0])
    load(pets)
    assert len(decoded) == 2 and file.stat().st_size == len(whole)


def test_a_root_that_cannot_be_written_only_costs_time(pets, root, decoded):
    root.write_text("a file where a folder should be")
    assert load(pets).fingerprint == load(pets).fingerprint
    assert len(decoded) == 2 and root.is_file()


def test_two_folders_of_one_name_have_two_caches(pets, tmp_path, root):
    paint(tmp_path / "b" / "pets" / "cat", 5)
    paint(tmp_path / "b" / "pets" / "dog", 5)
    assert load(pets).fingerprint != load(tmp_path / "b" / "pets").fingerprint
    assert len(list((root / "pai_lab").iterdir())) == 2


# -- torchvision's sets ----------------------------------------------------------------------------------
def idx(array):
    array = np.asarray(array, dtype=np.uint8)
    dims = b"".join(int(side).to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + dims + array.tobytes()


def write_mnist(folder, train=240, test=20):
    """MNIST's four files, every image in the shade of its label times 20."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, n in (("train", train), ("t10k", test)):
        y = np.arange(n) % 10
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(y))
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(np.tile(y[:, None, None] * 20, (1, 28, 28))))


@pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_is_read_from_its_files(root, name, folder):
    write_mnist(root / folder / "raw")
    data = load(name)
    assert data.name == name and data.input_shape == (1, 28, 28) and data.augment is None
    assert [len(getattr(data, part)[1]) for part in PARTS] == [220, 20, 20]
    assert data.classes[1] == {"mnist": "1", "fashion_mnist": "Trouser"}[name]
    for part in PARTS:
        assert torch.equal(raw(data, part)[:, 0, 3, 3].mul(255 / 20).round().long(), getattr(data, part)[1])
    assert not (root / "pai_lab").exists()  # nothing to decode, nothing to keep


@pytest.mark.parametrize("length", [0, 3, 10, 16, 5000, -1])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_cut_idx_file_is_named(root, file, length):
    write_mnist(root / "MNIST" / "raw")
    path = root / "MNIST" / "raw" / file
    path.write_bytes(path.read_bytes()[:length] if length < path.stat().st_size else path.read_bytes() + b"0")
    with pytest.raises(ValueError, match=f"{file} is cut short"):
        load("mnist")


def offline(self):
    raise URLError("no route to host")


@pytest.mark.parametrize("name, where", [("mnist", "MNIST/raw"), ("cifar10", "cifar-10-batches-py")])
def test_no_data_and_no_network_says_where_and_how(root, monkeypatch, name, where):
    from torchvision import datasets

    monkeypatch.setattr(getattr(datasets, name.upper()), "download", offline)
    with pytest.raises(FileNotFoundError, match="PAI_LAB_DATA") as caught:
        load(name)
    for words in (name, str(root / where), "no route to host", "digits and mnist1d need no download"):
        assert words in str(caught.value)
    assert list(root.iterdir()) == []


def test_a_cut_download_leaves_nothing(root, monkeypatch):
    from pathlib import Path

    from torchvision import datasets

    def cut(self):
        Path(self.raw_folder).mkdir(parents=True)
        (Path(self.raw_folder) / "train-images-idx3-ubyte").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.MNIST, "download", cut)
    with pytest.raises(KeyboardInterrupt):
        load("mnist")
    assert list(root.iterdir()) == []


def test_a_download_arrives_whole(root, monkeypatch):
    from pathlib import Path

    from torchvision import datasets

    def arrive(self):
        write_mnist(Path(self.raw_folder))
        (Path(self.raw_folder) / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"packed"))

    (root / "MNIST" / "raw").mkdir(parents=True)  # an earlier try left some of it
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(idx([1, 2]))
    monkeypatch.setattr(datasets.MNIST, "download", arrive)
    assert len(load("mnist").test[1]) == 20
    assert len([file for file in root.rglob("*") if file.is_file()]) == 4
    monkeypatch.setattr(datasets.MNIST, "download", offline)
    assert len(load("mnist").test[1]) == 20


def old_pickle(thing):
    """As the CIFAR files were pickled: numpy's bool arguments as integers, which the new numpy frowns at."""
    data = pickle.dumps(thing, protocol=2)
    assert b"\x89\x88\x87" in data
    return data.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")


def test_cifar_is_read_from_its_files(root, monkeypatch):
    from torchvision import datasets

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i, (file, _) in enumerate(datasets.CIFAR10.train_list + datasets.CIFAR10.test_list):
        pixels = np.zeros((20, 3, 32, 32), np.uint8)
        pixels[:, 0] = np.arange(20)[:, None, None]  # red tells the image,
        pixels[:, 1, :, 0] = 100 + i  # green at the left edge the file
        batch = {"data": pixels.reshape(20, 3072), "labels": [j % 10 for j in range(20)]}
        (folder / file).write_bytes(old_pickle(batch))
    names = datasets.CIFAR10.meta | {"md5": None}
    (folder / names["filename"]).write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    monkeypatch.setattr(datasets.CIFAR10, "meta", names)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    data = load("cifar10")
    assert data.input_shape == (3, 32, 32) and data.classes[9] == "class 9" and data.augment is flip_and_crop
    assert [len(getattr(data, part)[1]) for part in PARTS] == [90, 10, 20]
    pixels = raw(data, "test").mul(255).round()
    assert torch.equal(pixels[:, 0, 5, 7], torch.arange(20.0)) and (pixels[:, 1, :, 0] == 105).all()
    assert (pixels[:, 1, :, 1:] == 0).all()


# -- real data, where there is some ----------------------------------------------------------------------
def test_real_mnist(real_data, root):
    if not (real_data / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip("PAI_LAB_DATA holds no MNIST")
    root.mkdir()
    (root / "MNIST").symlink_to(real_data / "MNIST")
    data = load("mnist")
    assert [len(getattr(data, part)[1]) for part in PARTS] == [55_000, 5_000, 10_000]
    assert data.mean[0] == pytest.approx(0.1307, abs=5e-4) and data.std[0] == pytest.approx(0.3081, abs=5e-4)
    assert data.test[1][:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert data.fingerprint == "8c5b2f1e"


@pytest.mark.parametrize("classes, folder", [(10, "cifar-10-batches-py"), (100, "cifar-100-python")])
def test_real_cifar(real_data, root, classes, folder):
    if not (real_data / folder).exists():
        pytest.skip(f"PAI_LAB_DATA holds no {folder}")
    root.mkdir()
    (root / folder).symlink_to(real_data / folder)
    data = load(f"cifar{classes}")
    assert [len(getattr(data, part)[1]) for part in PARTS] == [45_000, 5_000, 10_000]
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.03) and len(data.classes) == classes


@pytest.mark.long
def test_real_cifar_jpegs_as_a_folder(real_data, tmp_path, decoded):
    if not (real_data / "cifar10-jpeg.tar.xz").exists():
        pytest.skip("PAI_LAB_DATA holds no cifar10-jpeg.tar.xz")
    with tarfile.open(real_data / "cifar10-jpeg.tar.xz") as packed:
        packed.extractall(tmp_path / "jpegs", filter="data")
    data = load(tmp_path / "jpegs")
    assert [len(getattr(data, part)[1]) for part in PARTS] == [45_000, 5_000, 10_000]
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=2e-3)
    assert data.val[1].bincount().tolist() == [500] * 10
    assert torch.equal(load(tmp_path / "jpegs").test[0], data.test[0]) and decoded == [60_000]
