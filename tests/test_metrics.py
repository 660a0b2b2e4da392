"""The report: counted by hand on a small net."""

import pytest
import torch
from torch import nn

import pai_lab as pai
from pai_lab import Mask


def net():
    """8x8 input: conv (2 filters of 1x3x3 on 6x6 places), linear 72 -> 5."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5))


def half_conv():
    """4 of 18 weights of the convolution kept, all 360 of the linear layer."""
    return Mask({"0.weight": torch.arange(18).view(2, 1, 3, 3) < 4, "4.weight": torch.ones(5, 72).bool()})


def test_counted_by_hand():
    report = pai.report(net(), half_conv(), input_shape=(1, 8, 8))
    assert (report.weights, report.kept, report.collapsed) == (378, 364, [])
    assert (report.macs, report.sparse_macs) == (18 * 36 + 360, 4 * 36 + 360)
    rows = report.layers.set_index("layer")
    assert rows.total.to_dict() == {"0.weight": 18, "4.weight": 360} and rows.kept.to_dict() == {
        "0.weight": 4,
        "4.weight": 360,
    }
    assert rows.macs.to_dict() == {"0.weight": 648, "4.weight": 360} and rows.sparse_macs.to_dict() == {
        "0.weight": 144,
        "4.weight": 360,
    }
    assert rows.density.tolist() == [4 / 18, 1]
    # float32: weights 378, biases 7, gamma and beta 4, running mean and variance 4; one int64 counter
    assert report.dense_bytes == 4 * (378 + 7 + 4 + 4) + 8
    assert report.bitmap_bytes == report.dense_bytes - 4 * 14 + 48  # 378 bits need 48 bytes


@pytest.mark.parametrize("kept", [0, 1, 9, 10])
def test_a_bit_for_every_weight_needs_whole_bytes(kept):
    model = nn.Linear(5, 2, bias=False)
    mask = Mask({"weight": (torch.arange(10) < kept).view(2, 5)})
    assert pai.report(model, mask, input_shape=(5,)).bitmap_bytes == 4 * kept + 2


def test_the_dense_bytes_are_those_of_a_file(tmp_path):
    from safetensors.torch import save_file

    model = half_conv().apply(net())
    tensors = {n: t.contiguous() for n, t in model.state_dict().items()}
    save_file(tensors, tmp_path / "model")
    header = int.from_bytes((tmp_path / "model").read_bytes()[:8], "little") + 8
    assert pai.report(model, half_conv(), (1, 8, 8)).dense_bytes == (tmp_path / "model").stat().st_size - header


def test_collapse_and_looks():
    model = net()
    model.input_shape = (1, 8, 8)
    report = pai.report(model, Mask({"0.weight": torch.zeros(2, 1, 3, 3).bool(), "4.weight": torch.ones(5, 72).bool()}))
    assert report.collapsed == ["0.weight"] and report.sparse_macs == 360
    for shown in (str(report), repr(report), report._repr_html_()):
        assert all(
            word in shown
            for word in ("378", "360", "1,008", "4.76%", f"{report.dense_bytes:,}", "0.weight", "collapse")
        )
    assert "<table" in report._repr_html_() and "100.00%" in report._repr_html_()


def test_layers_that_the_mask_leaves_out_are_dense():
    report = pai.report(net(), Mask({"0.weight": torch.zeros(2, 1, 3, 3).bool()}), (1, 8, 8))
    assert (report.weights, report.kept) == (378, 360)


def test_an_empty_mask_divides_by_nothing():
    model = nn.Linear(4, 2)
    report = pai.report(model, ~Mask.dense(model), input_shape=(4,))
    assert (report.kept, report.sparse_macs) == (0, 0) and "100.00%" in str(report) and report._repr_html_()


def test_the_report_leaves_no_trace():
    model = net().train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    random = torch.get_rng_state()
    pai.report(model, half_conv(), (1, 8, 8))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()) and all(
        m.training for m in model.modules()
    )
    assert torch.equal(torch.get_rng_state(), random) and not any(m._forward_hooks for m in model.modules())


def test_unfit_masks():
    for tensors in ({"foo.weight": (2, 2)}, {"0.weight": (2, 1, 3, 2)}):
        with pytest.raises(ValueError, match="another model"):
            pai.report(net(), Mask({n: torch.ones(s).bool() for n, s in tensors.items()}), (1, 8, 8))
    with pytest.raises(TypeError, match="Mask"):
        pai.report(net(), dict(half_conv()), (1, 8, 8))
    with pytest.raises(ValueError, match="input_shape"):
        pai.report(net(), half_conv())
