"""The report counted by hand on a small net; latency measured with a clock that the models themselves move."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pai_lab as pai
from pai_lab import Mask
from pai_lab.metrics import latency


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


def test_paths_by_hand():
    """Filter 1 has no weight left, so the 36 columns that read it are on no path: 5 x 36 of them, all kept."""
    report = pai.report(net(), half_conv(), (1, 8, 8))
    assert report.effective == 4 + 5 * 36 and report.effective_sparsity == 1 - 184 / 378
    rows = report.layers.set_index("layer")
    assert rows.effective.to_dict() == {"0.weight": 4, "4.weight": 180}
    assert rows.dead_units.to_dict() == {"0.weight": 1, "4.weight": 0}
    assert report.sparsity == 1 - 364 / 378 and report.compression == 378 / 364
    assert report.speedup == 1008 / 504
    assert "184 of them on a path from input to output: effective sparsity 51.32%" in str(report)


def test_every_net_gets_a_report():
    """Also one whose paths are not defined: all else still holds."""

    class Gated(nn.Linear):
        def forward(self, x):
            return x * super().forward(x).sigmoid()

    model = Gated(3, 3)
    report = pai.report(model, Mask.dense(model), (3,))
    assert report.effective is None and math.isnan(report.effective_sparsity) and report.kept == report.macs == 9
    assert "not counted, no paths are defined through torch.Tensor.mul" in str(report)
    assert "effective" not in report.layers and report._repr_html_()


def test_bias_entries_are_not_weights():
    mask = Mask(dict(half_conv()) | {"0.bias": torch.tensor([True, False])})
    report = pai.report(net(), mask, (1, 8, 8))
    assert (report.kept, report.effective, len(report.layers)) == (364, 184, 2)
    assert report.bitmap_bytes == pai.report(net(), half_conv(), (1, 8, 8)).bitmap_bytes


def test_weights_that_are_not_prunable_have_no_row():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 1, 3))
    mask = Mask({"0.weight": torch.ones(2, 1, 3, 3).bool(), "1.weight": torch.zeros(2, 1, 3, 3).bool()})
    assert pai.report(model, mask, (1, 4, 4)).layers.layer.tolist() == ["0.weight"]


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
    assert (report.effective, report.effective_sparsity) == (0, 1)
    assert report.compression == report.speedup == math.inf


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


# -- latency -----------------------------------------------------------------------------------------------------------
class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self, monkeypatch):
        self.now, self.order = 100.0, []
        monkeypatch.setattr(
            sys.modules["pai_lab.metrics.latency"], "time", SimpleNamespace(perf_counter=lambda: self.now)
        )

    def model(self, name, milliseconds):
        """A module whose passes take the given times; the last one from then on."""
        times = list(milliseconds)

        class Timed(nn.Module):
            def forward(module, x):
                assert not module.training and torch.is_inference_mode_enabled()
                self.now += (times.pop(0) if len(times) > 1 else times[0]) / 1000
                self.order.append(name)
                return x

        return Timed()


def test_latency_is_median_and_quartiles_without_the_warm_up(monkeypatch):
    clock = Clock(monkeypatch)
    model = clock.model("a", [1000, 1000, 1000, 5, 1, 4, 2, 3])
    row = latency(model, torch.zeros(1, 2), repeats=5).iloc[0]
    assert row.model == "Timed" and row.ratio == 1
    assert (row["median"], row.q1, row.q3) == pytest.approx((3, 2, 4))


def test_models_take_turns_and_the_ratio_is_taken_round_by_round(monkeypatch):
    """The machine becomes 10 times slower after the first counted round, and misses once: 1/4 stays 1/4."""
    clock = Clock(monkeypatch)
    times = {"dense": [8, 8, 8, 8, 80, 80], "removed": [2, 2, 2, 2, 20, 4]}
    models = {name: clock.model(name, milliseconds) for name, milliseconds in times.items()}
    table = latency(models, (4, 3), repeats=3).set_index("model")
    assert list(table.index) == ["dense", "removed"] and list(table) == ["median", "q1", "q3", "ratio"]
    assert table.ratio.to_dict() == pytest.approx({"dense": 1, "removed": 0.25})
    assert table["median"].to_dict() == pytest.approx({"dense": 80, "removed": 4})
    assert clock.order == ["dense", "removed", "removed", "dense"] * 3


def test_latency_measures_real_models_and_leaves_no_trace():
    model = net().train()
    model[1].eval()
    before, modes = {n: t.clone() for n, t in model.state_dict().items()}, [m.training for m in model.modules()]
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    table = latency({"one": model, "again": model}, torch.zeros(2, 1, 8, 8), repeats=3, threads=2)
    assert (table.q1 <= table["median"]).all() and (table["median"] <= table.q3).all() and (table.q1 > 0).all()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert modes == [m.training for m in model.modules()] and torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random) and not torch.is_inference_mode_enabled()
    with pytest.raises(RuntimeError):
        latency(model, torch.zeros(2, 1, 9, 9), threads=2)
    assert modes == [m.training for m in model.modules()] and torch.get_num_threads() == threads


def test_latency_refuses():
    for wrong in ({"repeats": 0}, {"repeats": 2.5}, {"threads": 0}, {"threads": True}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be an integer from 1 on"):
            latency(net(), torch.zeros(1, 1, 8, 8), **wrong)
    with pytest.raises(ValueError, match="at least one model"):
        latency({}, torch.zeros(1))
    with pytest.raises(TypeError, match="'a'.*Mask"):
        latency({"a": half_conv()}, torch.zeros(1))
