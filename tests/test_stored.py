"""Bytes on disk: counted by hand, built by scipy, written to a file, packed by zlib."""

import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from torch import nn

import pai_lab as pai
from pai_lab import Mask
from pai_lab.metrics import break_even, stored_bytes
from pai_lab.metrics.stored import csr


def net():
    """Weights 18 and 360, bias 2 and 5, BatchNorm 2 + 2 + 2 + 2 and one int64 counter."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5))


def mask():
    """4 of 18 and 100 of 360 weights kept."""
    return Mask({"0.weight": torch.arange(18).view(2, 1, 3, 3) < 4, "4.weight": torch.arange(360).view(5, 72) < 100})


def sizes(*args, **options):
    return stored_bytes(*args, **options).set_index("format").bytes.to_dict()


REST = 2 + 5 + 8  # numbers that are not prunable


def test_by_hand():
    found = sizes(net(), mask())
    assert found["dense"] == 4 * (378 + REST) + 8
    assert found["bitmap"] == 3 + 45 + 4 * (104 + REST) + 8  # 18 and 360 bits in whole bytes
    indices, pointers = 2 * 104, 2 * 3 + 2 * 6  # 9 and 72 columns; 2 and 5 rows
    assert found["csr"] == indices + pointers + 4 * (104 + REST) + 8
    assert list(found) == ["dense", "bitmap", "csr", "gzip", "safetensors"]
    table = stored_bytes(net(), mask())
    assert (table.ratio * table.bytes).round().tolist() == [found["dense"]] * 5


def test_the_report_says_the_same():
    report, found = pai.report(net(), mask(), (1, 8, 8)), sizes(net(), mask())
    assert (report.dense_bytes, report.bitmap_bytes) == (found["dense"], found["bitmap"])


def test_layers_that_the_mask_leaves_out_are_kept():
    part = Mask({"0.weight": mask()["0.weight"]})
    assert sizes(net(), part) == sizes(net(), Mask(dict(Mask.dense(net())) | dict(part)))


def test_the_width_of_the_values():
    half = sizes(net().to(torch.bfloat16), mask())
    assert half["dense"] == 2 * (378 + REST) + 8 and half["bitmap"] == 48 + 2 * (104 + REST) + 8
    assert sizes(net(), mask(), dtype=torch.float16)["dense"] == half["dense"]
    assert sizes(net().double(), mask())["csr"] == 2 * 104 + 18 + 8 * (104 + REST) + 8
    with pytest.raises(ValueError, match="torch.float16"):
        stored_bytes(net(), mask(), dtype=torch.int8)


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.integers(0, 2**32))
def test_csr_is_what_scipy_holds(rows, columns, density, seed):
    keep = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    built = csr_matrix(keep.numpy().astype("float32"))
    parts = built.data.nbytes, built.indices.astype("int16").nbytes, built.indptr.astype("int16").nbytes
    assert csr(keep.shape, int(keep.sum())) == sum(parts)


def test_csr_takes_wider_indices_where_it_must():
    assert csr((1, 2**15), 5) == 5 * (4 + 2) + 2 * 2  # the last column is 32767
    assert csr((1, 2**15 + 1), 5) == 5 * (4 + 4) + 2 * 2
    assert csr((2**15, 2), 2**15 - 1) == (2**15 - 1) * 6 + 2 * (2**15 + 1)
    assert csr((2**15, 2), 2**15) == 2**15 * 6 + 4 * (2**15 + 1)  # the last pointer is 32768
    assert csr((3,), 2) == 2 * 6 + 4 * 2


def raw(model, mask):
    model = mask.apply(model)
    return b"".join(t.numpy().tobytes() for t in model.state_dict().values())


def test_gzip_is_a_header_and_what_zlib_packs():
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(raw(net(), mask())) + packer.flush()
    assert sizes(net(), mask())["gzip"] == len(packed) + 18  # RFC 1952: 10 bytes before, 8 behind
    assert sizes(net(), mask()) == sizes(net(), mask())


def test_gzip_finds_zeros_but_no_order_in_random_numbers():
    model = nn.Linear(300, 300, bias=False)
    everything = Mask.dense(model)
    masks = everything, pai.prune(model, "random", 0.9), ~everything
    gained = [stored_bytes(model, one).set_index("format").ratio.gzip for one in masks]
    assert 1 < gained[0] < 1.2 and 5 < gained[1] < 10 and gained[2] > 500


def test_safetensors_is_the_size_of_its_file(tmp_path):
    from safetensors.torch import save_file

    save_file(mask().apply(net()).state_dict(), tmp_path / "model")
    assert sizes(net(), mask())["safetensors"] == (tmp_path / "model").stat().st_size


def test_shared_and_temporary_tensors():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    model.register_buffer("scratch", torch.zeros(100), persistent=False)  # no file holds it
    keep = Mask({"0.weight": torch.eye(4).bool()})
    found = sizes(model, keep)
    assert (found["dense"], found["bitmap"], found["csr"]) == (64, 2 + 16, 4 * 6 + 5 * 2)
    assert pai.report(model, keep, (4,)).dense_bytes == 64


def test_layouts_and_no_trace():
    model = net().to(memory_format=torch.channels_last)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    assert sizes(model, mask()) == sizes(net(), mask())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with pytest.raises(ValueError, match="another model"):
        stored_bytes(model, Mask({"0.weight": torch.ones(2, 2).bool()}))


@pytest.mark.parametrize("shape", [(64, 64, 3, 3), (10, 512), (3, 7), (2, 40_000)])
@pytest.mark.parametrize("width", [2, 4, 8])
def test_break_even_is_the_last_density_that_pays(shape, width):
    total, found = torch.Size(shape).numel(), break_even(shape, width)
    kept = round(found["csr"] * total)
    assert csr(shape, kept, width) <= total * width < csr(shape, kept + 1, width)
    if total % 8 == 0:
        assert found["bitmap"] == int((1 - 1 / (8 * width)) * total) / total


def test_break_even_by_hand():
    # 4 d N + N/8 = 4 N for the bitmap; 6 d N + 4 * 65 = 4 N for csr, its pointers 32 bits from 32,768 on
    found = break_even((64, 64, 3, 3))
    assert found["bitmap"] == 1 - 1 / 32 and found["csr"] == int((4 * 36864 - 2 * 65) / 6) / 36864
    assert break_even((1000, 1), width=2) == {"bitmap": 1 - 1 / 16 - 1 / 2000, "csr": 0}  # pointers alone cost more
