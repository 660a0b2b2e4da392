"""Pictures of structures: every drawn pixel is compared with a mask or a coupling written by hand."""

import numpy as np
import pytest
import torch
from torch import nn

import pai_lab as pai
from pai_lab import plots
from pai_lab.coupled import channels

FLAGS = torch.zeros(2, 3, 2, 2, dtype=torch.bool)
FLAGS[0, 2] = True  # one whole kernel
FLAGS[1, 0, 1, 0] = True  # and one weight


def test_kernels_lie_as_filters_by_inputs():
    ax = plots.kernels({"both": pai.Mask({"conv.weight": FLAGS})}, "conv")
    [panel] = ax.child_axes
    by_hand = [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert panel.images[0].get_array().astype(int).tolist() == by_hand
    assert panel.get_title() == "both: 20.8%"  # 5 of 24
    [words] = [text.get_text() for text in ax.texts]
    assert words == "conv, 2 filters (rows) of 3 kernels 2x2; black = kept"


def test_kernels_draw_a_part_of_a_large_layer_and_say_so():
    masks = {name: {"w": torch.rand(12, 9, 3, 3) > 0.5} for name in "abcde"}
    ax = plots.kernels(masks, "w")
    assert [panel.images[0].get_array().shape for panel in ax.child_axes] == [(24, 24)] * 5
    assert "the first 8 x 8 kernels" in ax.texts[0].get_text()


@pytest.mark.parametrize(
    ("masks", "layer", "words"),
    [
        ({}, "w", "no masks"),
        ({"a": {"w": FLAGS}}, "v", "layer"),
        ({"a": {"w": FLAGS[:, :, 0, 0]}}, "w", r"shape \(2, 3\)"),
    ],
)
def test_kernels_refuse_what_they_cannot_draw(masks, layer, words):
    with pytest.raises(ValueError, match=words):
        plots.kernels(masks, layer)


@pytest.fixture
def chain():
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
    net.input_shape = (1, 4, 4)
    return net


def red(panel):
    """The entries of a panel that are drawn in the alarm's colour."""
    return (np.asarray(panel.images[0].get_array()) == (0xC1, 0x12, 0x1F)).all(-1).astype(int).tolist()


def test_a_channel_lights_its_row_its_norm_and_its_column(chain):
    ax = plots.coupling(channels(chain), "0.weight", 1)
    conv, norm, reader = ax.child_axes
    assert red(conv) == [[0, 0], [1, 1], [0, 0]]  # weight and bias
    assert red(norm) == [[0, 0], [1, 1], [0, 0]]  # scale and shift
    assert red(reader) == [[0, 1, 0], [0, 1, 0]]
    assert [panel.get_title() for panel in ax.child_axes] == ["0\n1 row", "1\n1 row", "2\n1 column"]
    assert "14 parameters in 3 layers" in ax.texts[0].get_text()  # 9 + 1, 1 + 1, 2


def test_coupling_refuses_what_is_not_there(chain):
    found = channels(chain)
    with pytest.raises(ValueError, match="0.weight"):
        plots.coupling(found, "5.weight", 0)
    with pytest.raises(ValueError, match="the channels 0 to 2, got 3"):
        plots.coupling(found, "0.weight", 3)
