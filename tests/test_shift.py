"""The shift layer: equal to the masked convolution, and to shifts and 1x1 convolutions written out."""

import copy
import pickle

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import nn

import pai_lab as pai
from pai_lab.shift import Shifted, shifted


def one_each(conv, seed=0):
    """A mask with one place in each kernel, drawn at random."""
    flat = torch.zeros_like(conv.weight.detach().flatten(2), dtype=torch.bool)
    place = torch.randint(flat.shape[2], flat.shape[:2], generator=torch.Generator().manual_seed(seed))
    return flat.scatter(2, place[..., None], True).view(conv.weight.shape)


def close(output, expected):
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_by_hand():
    """One kernel looks one place to the right, one to the left; zeros come in at the borders."""
    conv = nn.Conv2d(1, 2, 3, padding=1)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1, 2], conv.weight[1, 0, 1, 0] = 2.0, 10.0
        conv.bias[:] = torch.tensor([0.5, 0.0])
    layer = shifted(conv)
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    assert layer(x[None, None])[0, 0].tolist() == [[4.5, 6.5, 0.5], [10.5, 12.5, 0.5], [16.5, 18.5, 0.5]]
    assert layer(x[None, None])[0, 1].tolist() == [[0, 10, 20], [0, 40, 50], [0, 70, 80]]
    assert layer.weight.tolist() == [[2.0], [10.0]] and layer.position.tolist() == [[5], [3]]


def test_rolls_and_1x1_convolutions():
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=False).double()
    keep, x = one_each(conv), torch.randn(2, 3, 6, 5, dtype=torch.float64)
    expected = torch.zeros(2, 4, 6, 5, dtype=torch.float64)
    for out, into, row, column in keep.nonzero().tolist():
        around = nn.functional.pad(x[:, into], (1, 1, 1, 1)).roll((1 - row, 1 - column), (1, 2))[:, 1:-1, 1:-1]
        expected[:, out] += conv.weight[out, into, row, column] * around
    close(shifted(conv, keep)(x), expected)


@st.composite
def convolutions(draw):
    dims, groups = draw(st.sampled_from([1, 2, 2, 3])), draw(st.sampled_from([1, 1, 2, 4]))
    number = st.integers(1, 3)
    sizes = {key: tuple(draw(number) for _ in range(dims)) for key in ("kernel_size", "stride", "dilation")}
    padding = tuple(draw(st.integers(0, 2)) for _ in range(dims))
    if draw(st.booleans()):
        padding = draw(st.sampled_from(["same", "valid"]))
        sizes["stride"] = (1,) * dims
    mode = draw(st.sampled_from(["zeros", "zeros", "circular", "replicate"]))
    kind, into, out = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1], groups * draw(number), groups * draw(number)
    bias = draw(st.booleans())
    return kind(into, out, padding=padding, padding_mode=mode, groups=groups, bias=bias, **sizes).double()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own convolution
@hypothesis.given(convolutions(), st.integers(0, 9))
@hypothesis.settings(max_examples=60)
def test_equal_to_the_masked_convolution(conv, seed):
    keep = one_each(conv, seed)
    layer, dense = shifted(conv, keep), copy.deepcopy(conv)
    pai.Mask({"weight": keep}).apply(dense)
    x = torch.randn(2, conv.in_channels, *[9] * (conv.weight.ndim - 2), dtype=torch.float64)
    close(layer(x), dense(x))
    if conv.padding_mode == "zeros":
        close(layer(x[0]), dense(x[0]))  # one sample without a batch
    close(shifted(dense)(x), dense(x))  # places read off the weights


def test_gradients_are_those_of_the_kept_weights():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2).double()
    keep = one_each(conv)
    layer, dense = shifted(conv, keep), pai.Mask({"weight": keep}).apply(copy.deepcopy(conv))
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    (layer(x) ** 3).sum().backward()
    (dense(y) ** 3).sum().backward()
    close(layer.weight.grad.flatten(), dense.weight.grad[keep])  # both in the order of kernels
    close(layer.bias.grad, dense.bias.grad)
    close(x.grad, y.grad)


def test_the_structure_shift_makes_such_masks():
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 5, padding=2)).double()
    mask = pai.Mask({n: one_each(layer) for n, layer in (("0.weight", net[0]), ("2.weight", net[2]))})
    small = nn.Sequential(shifted(net[0], mask["0.weight"]), nn.ReLU(), shifted(net[2], mask["2.weight"]))
    x = torch.randn(2, 2, 7, 7, dtype=torch.float64)
    close(small(x), mask.apply(copy.deepcopy(net))(x))
    assert sum(p.numel() for p in small.parameters()) == 2 * 3 + 3 + 3 * 2 + 2
    again = pickle.loads(pickle.dumps(copy.deepcopy(small)))
    assert torch.equal(again(x), small(x))
    other = nn.Sequential(shifted(net[0], one_each(net[0], 7)), nn.ReLU(), shifted(net[2], one_each(net[2], 7)))
    other.load_state_dict(small.state_dict())  # positions travel with the weights
    assert torch.equal(other(x), small(x))


@pytest.mark.parametrize(
    ("kernel", "dtype", "bits"),
    [(3, torch.float32, 32 + 4), (5, torch.float32, 32 + 5), (1, torch.float32, 32), (2, torch.float16, 16 + 2)],
)
def test_stored_bits(kernel, dtype, bits):
    conv = nn.Conv2d(4, 6, kernel, groups=2, bias=False).to(dtype)
    assert shifted(conv, one_each(conv)).bits == 6 * 2 * bits
    conv = nn.Conv2d(4, 6, kernel, groups=2).to(dtype)
    assert shifted(conv, one_each(conv)).bits == 6 * 2 * bits + 6 * (16 if dtype == torch.float16 else 32)


def test_one_shift_per_input_channel_costs_one_1x1_convolution(monkeypatch):
    conv = nn.Conv2d(9, 4, 3, padding=1)
    keep = torch.eye(9, dtype=torch.bool).view(1, 9, 3, 3).expand(4, 9, 3, 3)  # input channel i is shifted by place i
    layer, read = shifted(conv, keep), []
    convolve = torch.nn.functional.conv2d
    watch = {2: lambda x, w, **options: (read.append(w.numel() * x[0, 0].numel()), convolve(x, w, **options))[1]}
    monkeypatch.setattr("pai_lab.shift.CONVOLVE", watch)
    layer(torch.randn(1, 9, 5, 5))
    assert sum(read) == 9 * 4 * 5 * 5


def test_the_convolution_is_untouched():
    conv = nn.Conv2d(2, 3, 3)
    before = conv.weight.detach().clone()
    layer = shifted(conv, one_each(conv))
    with torch.no_grad():
        layer.weight.zero_(), layer.bias.zero_()
    assert torch.equal(conv.weight, before) and conv.bias.any() and isinstance(layer, Shifted)


def test_kernels_of_zeros():
    conv = nn.Conv2d(2, 3, 3)
    with torch.no_grad():
        conv.weight.zero_()
    layer, x = shifted(conv), torch.randn(1, 2, 5, 5)
    assert torch.equal(layer(x), conv(x)) and not layer.position.any()


def test_errors():
    conv = nn.Conv2d(2, 3, 3)
    with pytest.raises(ValueError, match=r"6 of 6 kernels keep another number \(up to 9\)"):
        shifted(conv)
    two = one_each(conv)
    two[0, 0] = ~two[0, 0]
    with pytest.raises(ValueError, match="1 of 6 kernels"):
        shifted(conv, two)
    with pytest.raises(ValueError, match="6 of 6 kernels"):
        shifted(conv, torch.zeros(3, 2, 3, 3, dtype=torch.bool))
    for wrong in (torch.ones(3, 2, 3, 3), torch.ones(3, 2, 1, 1, dtype=torch.bool)):
        with pytest.raises(ValueError, match="keep must be a bool tensor of shape"):
            shifted(conv, wrong)
    for layer in (nn.Linear(2, 2), nn.ConvTranspose2d(2, 2, 3)):
        with pytest.raises(TypeError, match="takes a Conv1d, Conv2d or Conv3d"):
            shifted(layer)
