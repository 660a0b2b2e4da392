"""Models: the counts that papers state, the shapes that fit, seeds and inits, and MACs counted by hand."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import pai_lab as pai
from pai_lab.models import MODELS, build, describe, macs


def blank(*shape, classes=10):
    """Data of this input shape, all zeros."""
    pair = torch.zeros(classes, *shape), torch.arange(classes)
    return pai.Data("blank", pair, pair, pair)


MNIST, CIFAR, DIGITS, SIGNALS = (1, 28, 28), (3, 32, 32), (1, 8, 8), (40,)


def total(model):
    return sum(weight.numel() for weight in pai.prunable(model).values())


# -- the numbers that are known --------------------------------------------------------------------------
def test_resnet20_is_the_one_of_the_papers():
    model = build("resnet20", blank(*CIFAR))
    assert total(model) == 270_896 and len(pai.prunable(model)) == 22
    assert sum(macs(model).values()) == 40_813_184
    assert (describe(model).depth, describe(model).widths) == (20, (16, 32, 64))


def stages(blocks):
    """Weights of a CIFAR ResNet, by hand: stem, stages of 3x3 convolutions, two 1x1 shortcuts, classifier."""
    stem, shortcuts, head = 3 * 16 * 9, 16 * 32 + 32 * 64, 64 * 10
    first = 2 * blocks * 16 * 16 * 9
    second = (16 * 32 + (2 * blocks - 1) * 32 * 32) * 9
    third = (32 * 64 + (2 * blocks - 1) * 64 * 64) * 9
    return stem + first + second + third + shortcuts + head


@pytest.mark.parametrize("name, blocks", [("resnet20", 3), ("resnet32", 5), ("resnet56", 9)])
def test_cifar_resnets_are_as_deep_and_wide_as_they_say(name, blocks):
    model = build(name, blank(*CIFAR))
    told = describe(model)
    assert total(model) == told.prunable == stages(blocks)
    assert told.depth == int(name[6:]) == 6 * blocks + 2 and told.widths == (16, 32, 64)


def test_resnet18_has_its_known_size():
    told = describe(build("resnet18", blank(*CIFAR)))
    assert (told.parameters, told.depth, told.macs) == (11_173_962, 18, 555_422_720)


def test_vgg6_on_digits():
    told = describe(build("vgg6_bn", blank(*DIGITS)))
    by_hand = 9 * (1 * 16 + 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 64 * 10
    assert told.prunable == by_hand == 72_208 and len(told.layers()) == 7 and told.widths == (16, 32, 64)
    places = 9 * (64 * (16 + 256) + 16 * (512 + 1024) + 4 * (2048 + 4096)) + 640
    assert told.macs == places
    assert total(build("vgg6", blank(*DIGITS))) == 72_208


def test_vgg_sizes():
    assert total(build("vgg16_bn", blank(*CIFAR, classes=100))) == 14_761_664
    assert len(pai.prunable(build("vgg16_bn", blank(*CIFAR)))) == 14
    told = describe(build("vgg16", blank(*CIFAR)))
    assert (told.prunable, told.macs, told.depth) == (14_715_584, 313_201_664, 14)
    assert [len(pai.prunable(build(name, blank(*CIFAR)))) for name in ("vgg11_bn", "vgg19_bn")] == [9, 17]


def test_lenets_by_hand():
    told = describe(build("lenet_300_100", blank(*MNIST)))
    assert told.prunable == told.macs == 784 * 300 + 300 * 100 + 100 * 10 == 266_200
    assert told.parameters == 266_610 and told.depth == 3
    told = describe(build("lenet5", blank(*MNIST)))
    assert told.parameters == 431_080 and told.prunable == 430_500
    rows = told.layers().macs.tolist()
    assert rows == [24 * 24 * 20 * 25, 8 * 8 * 50 * 20 * 25, 4 * 4 * 50 * 500, 500 * 10]


def test_mlp_takes_signals_and_images():
    assert [tuple(w.shape) for w in pai.prunable(build("mlp", blank(*SIGNALS))).values()] == [
        (128, 40), (128, 128), (128, 128), (128, 128), (10, 128),
    ]  # fmt: skip
    assert build("mlp", blank(*CIFAR))(torch.zeros(2, *CIFAR)).shape == (2, 10)
    assert total(build("lenet_300_100", blank(*DIGITS))) == 64 * 300 + 300 * 100 + 100 * 10


# -- fitting the data ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_its_data(name):
    for shape, classes in (((3, 16, 16), 7), ((1, 28, 20), 3)):
        model = build(name, blank(*shape, classes=classes))
        assert model(torch.zeros(2, *shape)).shape == (2, classes)
        assert model.input_shape == shape and model.training


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.least])
def test_the_smallest_image_fits_and_one_pixel_less_is_refused(name):
    side = MODELS[name].least
    model = build(name, blank(1, side, side + 3))
    assert model(torch.zeros(2, 1, side, side + 3)).shape == (2, 10)
    with pytest.raises(ValueError, match=f"{name} needs images .* {side}x{side}.*These fit: mlp"):
        build(name, blank(1, side + 3, side - 1))


def test_signals_do_not_fit_a_convolutional_net():
    with pytest.raises(ValueError, match=r"vgg16_bn .*'blank' is \(40,\). These fit: mlp, lenet_300_100$"):
        build("vgg16_bn", blank(*SIGNALS))


def test_convolutions_before_batchnorm_have_no_bias():
    for name in ("vgg6_bn", "vgg11_bn", "resnet20", "resnet18"):
        convs = [m for m in build(name, blank(*CIFAR)).modules() if isinstance(m, nn.Conv2d)]
        assert convs and all(conv.bias is None for conv in convs)
    assert build("vgg6", blank(*DIGITS)).conv1.bias is not None


def test_identity_shortcut_where_the_shape_stays():
    block = build("resnet20", blank(*CIFAR)).stage1[1].eval()
    with torch.no_grad():
        block.bn2.weight.zero_()
        block.bn2.bias.zero_()
    x = torch.rand(2, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x)


# -- seeds, inits, callables -----------------------------------------------------------------------------
def states():
    python, numpy = random.getstate(), np.random.get_state()
    return python, numpy[1].tobytes(), numpy[2], torch.get_rng_state().numpy().tobytes()


def same(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize("init", ["default", "kaiming_normal", "xavier_normal"])
def test_the_seed_alone_decides(init):
    data, before = blank(*DIGITS), states()
    model = build("vgg6_bn", data, seed=3, init=init)
    assert states() == before
    torch.rand(5)
    assert same(model, build("vgg6_bn", data, seed=3, init=init))
    assert not same(model, build("vgg6_bn", data, seed=4, init=init))


@pytest.mark.parametrize("init, variance", [("kaiming_normal", 2 / 9216), ("xavier_normal", 2 / 9344)])
def test_inits_have_their_variance(init, variance):
    model = build("mlp", blank(9216), init=init)
    assert model.fc1.weight.var().item() == pytest.approx(variance, rel=0.02)
    assert all(module.bias.abs().max() == 0 for module in model.modules() if isinstance(module, nn.Linear))
    conv = build("vgg6_bn", blank(*DIGITS), init="kaiming_normal")
    assert conv.conv6.weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.05)
    assert (conv.bn1.weight == 1).all()


def test_an_init_may_be_a_function():
    model = build("mlp", blank(4), init=lambda weight: weight.fill_(0.5))
    assert all((weight == 0.5).all() for weight in pai.prunable(model).values())


def test_a_callable_makes_a_model_of_its_own():
    data, seen = blank(*SIGNALS, classes=4), []

    def tiny(given):
        seen.append(given)
        return nn.Linear(given.input_shape[0], len(given.classes))

    before = states()
    first, second = build(tiny, data, seed=1), build(tiny, data, seed=1)
    assert states() == before and seen == [data, data] and same(first, second)
    assert first.input_shape == (40,) and describe(first).name == "Linear"


def test_models_are_built_on_the_cpu_whatever_the_default_device():
    data = blank(*SIGNALS)
    with torch.device("meta"):
        model = build("mlp", data)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_unknown_names_get_the_nearest():
    data = blank(*CIFAR)
    with pytest.raises(ValueError, match="'vgg16bn'.*Did you mean 'vgg16_bn'"):
        build("vgg16bn", data)
    with pytest.raises(ValueError, match="'kaiming'.*Allowed: 'default', 'kaiming_normal', 'xavier_normal'"):
        build("mlp", data, init="kaiming")
    with pytest.raises(ValueError, match="Allowed"):
        build(None, data)


def test_what_is_no_recipe_is_refused():
    with pytest.raises(TypeError, match="must return a torch.nn.Module, got int"):
        build(lambda data: 3, blank(4))
    with pytest.raises(TypeError, match="a new model"):
        build(nn.Linear(4, 2), blank(4))


# -- MACs, by hand ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "layer, shape, count",
    [
        (nn.Conv2d(2, 3, 3), (2, 6, 5), 4 * 3 * 3 * 18),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 6, 6), 36 * 8 * 9),  # depthwise
        (nn.Conv2d(4, 6, 1, groups=2), (4, 5, 5), 25 * 6 * 2),
        (nn.Conv2d(3, 4, 3, stride=2), (3, 9, 9), 16 * 4 * 27),
        (nn.Conv2d(1, 2, 5, padding=2), (1, 7, 7), 49 * 2 * 25),
        (nn.Conv2d(1, 2, 3, dilation=2), (1, 7, 7), 9 * 2 * 9),
        (nn.Conv1d(2, 3, 3), (2, 10), 8 * 3 * 6),
        (nn.Linear(4, 7), (4,), 28),
        (nn.Linear(4, 7), (5, 4), 5 * 28),
    ],
)
def test_macs_of_one_layer(layer, shape, count):
    assert macs(layer, shape) == {"weight": count}
    assert describe(layer, shape).depth == 1


class Odd(nn.Module):
    """A layer that runs twice, one that never runs, two that share a weight, and dropout that never rests."""

    def __init__(self):
        super().__init__()
        self.twice, self.never, self.bn = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x):
        self.runs += 1
        x = nn.functional.dropout(self.bn(self.twice(self.twice(x))), training=True)
        return self.one(x) + self.two(x)


def test_macs_of_layers_that_run_twice_never_or_share():
    model = Odd()
    assert macs(model, (6,)) == {"twice.weight": 72, "never.weight": 0, "one.weight": 72}
    assert list(macs(model, (6,))) == list(pai.prunable(model))
    assert describe(model, (6,)).depth == 3  # twice, twice, one of two side by side


def test_macs_leave_no_trace():
    model = Odd()
    model.bn.eval()  # a mixture of modes
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = states()
    macs(model, (6,))
    describe(model, (6,))
    with pytest.raises(ValueError, match=r"Odd cannot take an input of shape \(5,\)"):
        macs(model, (5,))
    assert states() == before
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
    assert [module.training for module in (model, model.twice, model.bn)] == [True, True, False]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert vars(model).keys() == vars(Odd()).keys()


def test_macs_of_a_double_precision_model_without_gradients():
    model = build("vgg6_bn", blank(*DIGITS)).double().requires_grad_(False)
    with torch.no_grad():
        assert sum(macs(model).values()) == 599_680 and describe(model).depth == 7


def test_the_input_shape_is_the_models_own_unless_given():
    model = build("vgg6_bn", blank(*DIGITS))
    assert sum(macs(model).values()) == 599_680
    assert macs(model, (1, 16, 16))["conv1.weight"] == 4 * macs(model)["conv1.weight"]
    with pytest.raises(ValueError, match="Linear has no input_shape"):
        macs(nn.Linear(3, 2))


# -- describe --------------------------------------------------------------------------------------------
def test_describe_tells_a_wide_net_from_a_narrow_one():
    from pai_lab.models import resnet

    data = blank(*CIFAR)
    narrow = describe(build("resnet32", data))
    wide = describe(build(lambda data: resnet(data, widths=(32, 64, 128), blocks=5), data))
    assert narrow.widths == (16, 32, 64) and wide.widths == (32, 64, 128) and narrow.depth == wide.depth == 32
    assert 3.5 < wide.prunable / narrow.prunable < 4


def test_describe_reads_well():
    told = describe(build("resnet20", blank(*CIFAR)))
    for words in ("resnet20", "272,474", "270,896", "40,813,184", "depth 20", "width 16 - 32 - 64"):
        assert words in repr(told)
    assert "270,896" in told._repr_html_() and "\n" not in repr(told)
    table = told.layers()
    assert list(table) == ["layer", "shape", "weights", "macs"]
    assert (table.weights.sum(), table.macs.sum()) == (told.prunable, told.macs)
