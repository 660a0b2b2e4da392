"""The pipeline: no trace on the model, exact masks over rounds, whole filters, errors that change nothing."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pai_lab as pai
from pai_lab.catalog import Entry, find
from pai_lab.pruning import output_layers


def mlp():
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


class SharedNorm(nn.Module):
    """One BatchNorm and one hidden layer under two names, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.bn, self.middle = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.bn2, self.again, self.last = self.bn, self.middle, nn.Linear(6, 3)

    def forward(self, x):
        x = self.bn2(self.middle(self.bn(self.first(x)).relu())).relu()
        return self.last(F.dropout(self.again(x), 0.3, self.training))


class SharedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3, padding=1)
        self.body, self.last = nn.Sequential(self.conv, nn.ReLU(), self.conv), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.conv(self.body(torch.stack([x, -x], 1))).sum(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
        self.down.weight = self.up.weight

    def forward(self, x):
        return self.down(nn.functional.pad(self.up(x).relu(), (0, 1)))


MODELS = [mlp, SharedNorm, SharedConv, Tied]


def made(make, seed=0):
    torch.manual_seed(seed)
    return make()


def a_batch(n=12, width=4):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, width, generator=generator), torch.arange(n) % 3


def trace(model):
    """All that scoring might leave behind."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        "bytes": {n: t.detach().numpy().tobytes() for n, t in model.state_dict().items()},
        "objects": [(n, id(t), t._version, t.requires_grad, id(t.grad), t.grad is None) for n, t in tensors],
        "gradients": [t.grad.numpy().tobytes() for _, t in tensors if t.grad is not None],
        "flags": [module.training for module in model.modules()],
        "hooks": [len(held) for m in model.modules() for name, held in vars(m).items() if name.endswith("_hooks")],
        "modules": [id(module) for module in model.modules()],
        "random": torch.get_rng_state().numpy().tobytes(),
        "enabled": torch.is_grad_enabled(),
    }


def mixed_and_used(model):
    """A model in the middle of its life: mixed train/eval flags, some gradients, moved BatchNorm buffers."""
    model(a_batch()[0]).sum().backward()
    for number, module in enumerate(model.modules()):
        module.training = number % 2 == 0
    for parameter in list(model.parameters())[::2]:
        parameter.grad = None
    return model


CRITERIA = ["random", "magnitude", "snip", "synflow"]


# -- no trace --------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scoring_and_pruning_leave_no_trace(make, criterion):
    model = mixed_and_used(made(make))
    before = trace(model)
    for options in ({}, {"mode": "eval"}, {"structure": "filter"}):
        try:
            pai.prune(model, criterion, 0.5, batch=[a_batch(), a_batch(5)], iterations=2, **options)
        except ValueError as error:  # a net whose layers all reach the output has no filter to give
            assert "output is all that is left" in str(error) and make is Tied
        assert trace(model) == before, options
    with torch.no_grad():
        pai.score(model, criterion, a_batch())
    assert trace(model) == before


@pytest.mark.parametrize("make", MODELS)
def test_shared_parts_have_the_gradients_of_a_plain_copy(make):
    model = made(make)
    twin = copy.deepcopy(model).eval()
    F.cross_entropy(twin(a_batch()[0]), a_batch()[1]).backward()
    scores = pai.score(model, "snip", a_batch(), mode="eval")
    for name, weight in pai.prunable(twin).items():
        assert torch.allclose(scores[name], (weight * weight.grad).detach().abs(), rtol=1e-5, atol=1e-8)


class Broken(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.first, self.bn, self.drop, self.error = (
            nn.Linear(4, 3),
            nn.BatchNorm1d(3),
            nn.Dropout(0.5),
            error,
        )

    def forward(self, x):
        self.drop(self.bn(self.first(x)))
        raise self.error


@pytest.mark.parametrize(
    "error, kind",
    [
        (RuntimeError("too wide"), ValueError),
        (KeyError("k"), KeyError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_no_trace_when_the_forward_raises(error, kind):
    model = Broken(error)
    model.bn.eval()
    before = trace(model)
    for criterion in ("snip", "synflow"):
        with pytest.raises(kind):
            pai.prune(model, criterion, 0.5, batch=a_batch())
        with pytest.raises(kind):
            pai.prune(model, criterion, 0.5, batch=a_batch(), structure="filter")
        assert trace(model) == before


def test_scores_are_of_the_seed_alone():
    model, batch = made(mlp), a_batch()
    torch.manual_seed(1)
    one = pai.score(model, "snip", batch, seed=5)  # dropout is random in train mode
    torch.manual_seed(2)
    two, three = pai.score(model, "snip", batch, seed=5), pai.score(model, "snip", batch, seed=6)
    assert all(torch.equal(one[n], two[n]) for n in one) and any(not torch.equal(one[n], three[n]) for n in one)
    for criterion in CRITERIA:
        assert pai.prune(model, criterion, 0.6, batch=batch) == pai.prune(model, criterion, 0.6, batch=batch)


# -- masks -----------------------------------------------------------------------------------------
@given(
    st.sampled_from(CRITERIA),
    st.floats(0, 1),
    st.sampled_from(["global", "layer"]),
    st.sampled_from(["weight", "filter"]),
    st.integers(1, 5),
    st.sampled_from(["linear", "exponential"]),
)
def test_the_count_is_exact(criterion, sparsity, scope, structure, iterations, schedule):
    model = made(mlp)
    *_, (_, mask) = pai.rounds(
        model,
        criterion,
        sparsity,
        batch=a_batch(),
        scope=scope,
        structure=structure,
        iterations=iterations,
        schedule=schedule,
        allow_empty=True,
    )
    units = [mask[n] for n in ("0.weight", "4.weight", "6.weight")]
    if structure == "filter":
        assert mask["6.weight"].all()  # the outputs stay
        units = [m.any(1) for m in units[:2]]
    total = sum(u.numel() for u in units)
    assert sum(int(u.sum()) for u in units) == round((1 - sparsity) * total)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("structure", ["weight", "filter"])
def test_rounds_are_nested_exact_and_end_in_prunes_mask(criterion, structure):
    model = made(lambda: nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3)))
    common = {"batch": a_batch(30, 20), "iterations": 6, "structure": structure, "schedule": "exponential"}
    pairs = list(pai.rounds(model, criterion, 0.9, **common))
    masks = [mask for _, mask in pairs]
    assert len(masks) == 6 and masks[-1] == pai.prune(model, criterion, 0.9, **common)
    names = ["0.weight", "2.weight"] + ["4.weight"] * (structure == "weight")
    total = sum(m[0].numel() if structure == "weight" else len(m[0]) for m in ([masks[0][n]] for n in names))
    for number, mask in enumerate(masks, 1):
        kept = sum(int((mask[n] if structure == "weight" else mask[n].any(1)).sum()) for n in names)
        assert kept == round(0.1 ** (number / 6) * total)
    assert all(b & a == b for a, b in zip(masks, masks[1:], strict=False))  # nothing comes back
    if criterion in ("snip", "synflow"):  # what is scored is the pruned net
        assert all((s[n][~m[n]] == 0).all() for (s, _), (_, m) in zip(pairs[1:], pairs, strict=False) for n in names)


def test_defaults_and_budget():
    model, (x, y) = made(mlp), a_batch()
    assert len(list(pai.rounds(model, "synflow", 0.5, batch=(x, y)))) == 100
    assert pai.prune(model, "synflow", 0.5, batch=(x, y)).budget == 100
    assert len(list(pai.rounds(model, "snip", 0.5, batch=(x, y)))) == 1
    assert pai.prune(model, "snip", 0.5, batch=[(x, y), (x[:5], y[:5])]).budget == 17
    assert pai.prune(model, "snip", 0.5, batch=(x, y), iterations=3).budget == 36
    assert pai.prune(model, "magnitude", 0.5).budget == pai.prune(model, "random", 0.5).budget == 0
    assert pai.prune(model, "snip", 0.5, batch=(x, y), structure="filter").budget == 12


def test_a_fresh_batch_each_round():
    asked = []

    def fresh(number):
        asked.append(number)
        return a_batch(6 + number)

    mask = pai.prune(made(mlp), "snip", 0.5, batch=fresh, iterations=3)
    assert asked == [0, 1, 2] and mask.budget == 6 + 7 + 8


def test_a_criterion_that_revives(monkeypatch):
    values = iter([[1.0, 2, 3, 4], [4.0, 3, 2, 1]])

    def turning(model, batch, mask):
        return {"weight": torch.tensor([next(values)])}

    model = nn.Linear(4, 1)
    entry = Entry("criterion", "turning", turning, defaults={"revives": True})
    monkeypatch.setattr("pai_lab.pruning.find", lambda kind, what: entry if what is turning else find(kind, what))
    masks = [m["weight"].tolist() for _, m in pai.rounds(model, turning, 0.5, iterations=2, schedule="linear")]
    assert masks == [[[False, True, True, True]], [[True, True, False, False]]]


def test_excluded_layers_are_not_in_the_mask():
    mask = pai.prune(made(mlp), "magnitude", 0.5, exclude=["6.weight"])
    assert list(mask) == ["0.weight", "4.weight"] and mask.kept == round(0.5 * 54)
    assert list(pai.score(made(mlp), "snip", a_batch(), exclude="0.weight")) == ["4.weight", "6.weight"]


def test_a_floor_spares_every_layer():
    model = made(mlp)
    with torch.no_grad():
        model[4].weight.mul_(1e-6)
    assert pai.prune(model, "magnitude", 0.8).collapsed() == ["4.weight"]
    mask = pai.prune(model, "magnitude", 0.8, floor=2, iterations=4)
    assert mask.layers().kept.min() == 2 and mask.kept == round((1 - 0.8) * 69)


def test_sparsity_zero_scores_nothing_and_one_needs_leave():
    def never(model, batch, mask):
        raise AssertionError("scored")

    model = made(mlp)
    assert pai.prune(model, never, 0) == pai.prune(model, never, 0.0, structure="filter") == pai.Mask.dense(model)
    assert pai.prune(model, "snip", 0).budget == 0  # not even a batch is needed
    for criterion in CRITERIA:
        with pytest.raises(ValueError, match="allow_empty"):
            pai.prune(model, criterion, 1, batch=a_batch())
        assert pai.prune(model, criterion, 1, batch=a_batch(), allow_empty=True).kept == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"structure": "filtre"},
        {"scope": "globel"},
        {"schedule": "linaer"},
        {"temperature": 1},
        {"mode": "Train"},
    ],
)
@pytest.mark.parametrize("sparsity", [0, 0.5])
def test_a_typing_error_is_told_before_anything_is_scored(wrong, sparsity):
    calls = []

    def counting(model, batch, mask):
        calls.append(1)
        return {n: w.detach().abs() for n, w in pai.prunable(model).items()}

    with pytest.raises((ValueError, TypeError)):
        pai.prune(made(mlp), counting, sparsity, **wrong)
    assert not calls


def test_too_sparse_is_told_before_anything_is_scored():
    calls = []

    def counting(model, batch, mask):
        calls.append(1)
        return {n: w.detach().abs() for n, w in pai.prunable(model).items()}

    with pytest.raises(ValueError, match="allow_empty"):
        pai.prune(made(mlp), counting, 0.999, iterations=20)
    assert not calls


# -- whole filters, and the outputs that stay ------------------------------------------------------
class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.one, self.two = nn.Linear(5, 3), nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.two(self.one(x).relu()).relu())


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.body, self.right = nn.Linear(6, 2), nn.Linear(4, 6), nn.Linear(6, 1, bias=False)

    def forward(self, x):
        h = self.body(x).relu()
        return torch.cat([self.left(h), self.right(h)], 1)


class Residual(nn.Module):
    """The sum of a branch and a shortcut is the output: both are outputs."""

    def __init__(self):
        super().__init__()
        self.shortcut, self.inner, self.outer = nn.Linear(4, 3, bias=False), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.outer(self.inner(x).relu()) + self.shortcut(x)


class Tokens(nn.Module):
    """Linear layers on (n, tokens, features)."""

    def __init__(self, bias):
        super().__init__()
        self.one, self.head = nn.Linear(1, 6, bias=bias), nn.Linear(6, 3, bias=bias)

    def forward(self, x):
        return self.head(self.one(x[..., None]).relu()).mean(1)


class ConvHead(nn.Module):
    """A fully convolutional net: the last convolution makes the classes."""

    def __init__(self):
        super().__init__()
        self.last, self.first, self.bn = nn.Conv1d(6, 3, 1), nn.Conv1d(1, 6, 3, bias=False), nn.BatchNorm1d(6)

    def forward(self, x):
        return F.log_softmax(self.last(self.bn(self.first(x[:, None])).relu()).mean(2), 1)


class HeadTwice(nn.Module):
    """The last layer is also used inside."""

    def __init__(self):
        super().__init__()
        self.square, self.first = nn.Linear(3, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.square(self.square(self.first(x)).relu())


class Scaled(nn.Module):
    """A head whose weight is rescaled on the way."""

    def __init__(self):
        super().__init__()
        self.head, self.one = nn.Linear(6, 3), nn.Linear(4, 6)

    def forward(self, x):
        return F.linear(self.one(x).relu(), F.normalize(self.head.weight))


class Prototypes(nn.Module):
    """Two terms of one output, the second made of parameters alone."""

    def __init__(self):
        super().__init__()
        self.query, self.fixed, self.one, self.head = (
            nn.Parameter(torch.ones(1, 2)),
            *map(nn.Linear, (2, 4, 6), (3, 6, 3)),
        )

    def forward(self, x):
        return self.head(self.one(x).relu()) + self.fixed(self.query)


def inplace():
    """The first layer overwrites its input."""
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))


OUTPUTS = [
    (mlp, ["6.weight"]),
    (HeadFirst, ["head.weight"]),
    (TwoHeads, ["left.weight", "right.weight"]),
    (Residual, ["shortcut.weight", "outer.weight"]),
    (lambda: Tokens(True), ["head.weight"]),
    (lambda: Tokens(False), ["head.weight"]),
    (ConvHead, ["last.weight"]),
    (HeadTwice, ["square.weight"]),
    (Scaled, ["head.weight"]),
    (Prototypes, ["fixed.weight", "head.weight"]),
    (inplace, ["3.weight"]),
]


@pytest.mark.parametrize("make, expected", OUTPUTS)
def test_filters_of_the_outputs_stay(make, expected):
    model = made(make)
    before = trace(model)
    assert output_layers(model, a_batch()[0]) == expected
    mask = pai.prune(model, "snip", 0.5, batch=a_batch(), structure="filter", mode="eval")
    others = [n for n in mask if n not in expected]
    assert all(mask[n].all() for n in expected)
    rows = [mask[n].flatten(1) for n in others]
    assert all(torch.equal(r.any(1), r.all(1)) for r in rows)
    total = sum(len(r) for r in rows)
    assert sum(int(r.any(1).sum()) for r in rows) == round(0.5 * total)
    assert trace(model) == before


@pytest.mark.parametrize("how", ["list", "function", "shape"])
def test_the_output_is_found_whatever_the_batch_is(how):
    model = made(HeadFirst)
    if how == "shape":
        model.input_shape = (4,)
        mask = pai.prune(model, "magnitude", 0.5, structure="filter")
    else:
        batch = [a_batch(), a_batch()] if how == "list" else lambda number: a_batch()
        mask = pai.prune(model, "snip", 0.5, batch=batch, structure="filter")
    assert mask["head.weight"].all()


def test_the_output_of_a_float64_model_is_found():
    model = made(HeadFirst).double()
    model.input_shape = (4,)
    assert pai.prune(model, "magnitude", 0.5, structure="filter")["head.weight"].all()


@pytest.mark.parametrize("exclude", [["0.weight"], []])
def test_only_the_output_left(exclude):
    model = nn.Sequential(nn.Linear(4, 3), *([nn.Linear(3, 3)] if exclude else []))
    with pytest.raises(ValueError, match="output is all that is left"):
        pai.prune(model, "magnitude", 0.5, batch=a_batch(), structure="filter", exclude=exclude)


def test_an_output_that_cannot_be_traced_is_told_not_pruned():
    class Label(HeadFirst):
        def forward(self, x):
            return super().forward(x).argmax(1)

    with pytest.raises((ValueError, TypeError), match="output"):
        pai.prune(made(Label), "magnitude", 0.5, batch=a_batch(), structure="filter")
    with torch.inference_mode():
        try:
            mask = pai.prune(made(HeadFirst), "magnitude", 0.5, batch=a_batch(), structure="filter")
        except (ValueError, RuntimeError):
            return
    assert mask["head.weight"].all()


def test_a_residual_net_of_the_package():
    model = pai.build("resnet20", pai.Data("toy", *[(torch.randn(4, 1, 8, 8), torch.arange(4))] * 3))
    assert output_layers(model) == ["fc.weight"]
    mask = pai.prune(model, "magnitude", 0.5, structure="filter")
    assert (
        mask["fc.weight"].all()
        and sum(int(m.flatten(1).any(1).sum()) for n, m in mask.items() if n != "fc.weight") == 392
    )


# -- bad input: told, and nothing changed ----------------------------------------------------------
def good():
    return {n: w.detach().abs() for n, w in pai.prunable(made(mlp)).items()}


X, Y = a_batch()
BATCHES = {
    "none": None,
    "empty": (X[:0], Y[:0]),
    "lengths": (X, Y[:5]),
    "shape": (X[:, :3], Y),
    "no pair": X,
    "triple": (X, Y, Y),
    "no tensors": (X.numpy(), Y.numpy()),
    "label too high": (X, Y + 1),
    "negative": (X, Y - 1),
    "float labels": (X, Y.float()),
    "int32": (X, Y.int()),
    "one-hot": (X, F.one_hot(Y)),
    "column": (X, Y[:, None]),
    "double": (X.double(), Y),
    "nan": (X * float("nan"), Y),
    "integers": (X.long(), Y),
    "empty list": [],
    "list of empty": [(X, Y), (X[:0], Y[:0])],
    "list of x": [X, Y, Y],
    "text": "xy",
    "dict": {"x": X, "y": Y},
    "function of nothing": lambda number: None,
}


@pytest.mark.parametrize("structure", ["weight", "filter"])
@pytest.mark.parametrize("which", BATCHES)
def test_unfit_batches(which, structure):
    model = made(mlp)
    before = trace(model)
    with pytest.raises((ValueError, TypeError)) as error:
        pai.prune(model, "snip", 0.5, batch=BATCHES[which], structure=structure)
    assert trace(model) == before
    words = "batch label shape scores input".split()  # the error speaks of the batch, not of the package's inside
    assert any(word in str(error.value) for word in words), str(error.value)
    if which != "function of nothing":
        with pytest.raises((ValueError, TypeError)):
            pai.score(model, "snip", BATCHES[which])


def test_a_wrong_shape_shows_both_shapes():
    model = made(mlp)
    model.input_shape = (4,)
    with pytest.raises(ValueError, match=r"\(4,\).*\(9,\)"):
        pai.score(model, "synflow", (torch.zeros(2, 9), torch.zeros(2, dtype=torch.int64)))


CUSTOM = {
    "missing": lambda s: {n: t for n, t in s.items() if n != "4.weight"},
    "renamed": lambda s: {n + "s": t for n, t in s.items()},
    "shape": lambda s: s | {"4.weight": torch.ones(5, 7)},
    "extra dimension": lambda s: s | {"4.weight": torch.ones(1, 5, 6)},
    "one row": lambda s: s | {"4.weight": torch.ones(5)},
    "nan": lambda s: s | {"4.weight": s["4.weight"] * float("nan")},
    "inf": lambda s: s | {"4.weight": s["4.weight"] / 0},
    "a list": lambda s: s | {"4.weight": [[1.0] * 6] * 5},
    "nothing": lambda s: s | {"4.weight": None},
}


@pytest.mark.parametrize("which", CUSTOM)
def test_a_criterion_with_unfit_scores_names_the_layer(which):
    model = made(mlp)
    before = trace(model)
    name = "0.weight" if which == "renamed" else "4.weight"
    for use in (lambda f: pai.score(model, f), lambda f: pai.prune(model, f, 0.5)):
        with pytest.raises(ValueError, match=name):
            use(lambda model, batch, mask: CUSTOM[which](good()))
    assert trace(model) == before


@pytest.mark.parametrize("returned", [None, torch.ones(3), [1, 2], 3])
def test_a_criterion_must_return_a_mapping(returned):
    with pytest.raises((ValueError, TypeError), match="mapping|returned"):
        pai.score(made(mlp), lambda model, batch, mask: returned)


def test_a_criterion_of_ones_own():
    model = made(mlp)

    def largest(model, batch, mask, power=1):
        assert model.training is False  # eval unless it says otherwise
        return {n: w.abs() ** power for n, w in pai.prunable(model).items()}  # with a gradient: no matter

    assert pai.prune(model, largest, 0.7, power=3) == pai.prune(model, "magnitude", 0.7)
    rows = pai.prune(
        model,
        lambda model, batch, mask: {n: w.abs().sum(1, keepdim=True) for n, w in pai.prunable(model).items()},
        0.5,
    )
    assert rows.kept == round(0.5 * 69)


def test_a_mask_of_another_model():
    model = made(mlp)
    for tensors in (
        {"foo.weight": (2, 2)},
        {"4.weight": (6, 5)},
        {"4.weight": (1, 6)},
        {"4.weight": (5, 6), "foo.weight": (1, 1)},
    ):
        mask = pai.Mask({n: torch.ones(s).bool() for n, s in tensors.items()})
        for criterion in ("snip", "synflow", "magnitude"):
            with pytest.raises(ValueError, match="another model"):
                pai.score(model, criterion, a_batch(), mask=mask)


BAD = [
    ({"sparsity": 90}, "0.9"),
    ({"sparsity": -0.1}, r"\[0, 1\]"),
    ({"sparsity": 1.2}, r"\[0, 1\]"),
    ({"sparsity": float("nan")}, "nan"),
    ({"sparsity": "0.9"}, "'0.9'"),
    ({"sparsity": True}, "True"),
    ({"criterion": "snipp"}, "'snip'"),
    ({"criterion": 7}, "Allowed"),
    ({"structure": "filters"}, "'filter'"),
    ({"scope": "globl"}, "'global'"),
    ({"schedule": "cosine"}, "'exponential'"),
    ({"iterations": 0}, "iterations"),
    ({"iterations": 1.5}, "iterations"),
    ({"exclude": ["4.weigth"]}, "'4.weight'"),
    ({"seed": -1}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"floor": 24}, "floor"),
    ({"mode": "test"}, "'train'"),
    ({"temprature": 3}, "temprature"),
    ({"model": nn.Sequential(nn.ReLU())}, "no prunable"),
]


@pytest.mark.parametrize("change, words", BAD)
def test_bad_arguments(change, words):
    arguments = {"model": made(mlp), "criterion": "snip", "sparsity": 0.5, "batch": a_batch()} | change
    before = trace(arguments["model"])
    with pytest.raises((ValueError, TypeError), match=words):
        pai.prune(**arguments)
    assert trace(arguments["model"]) == before


# -- chance ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["vgg6_bn", "resnet20", "mlp"])
def test_random_scores_know_nothing_of_weights_that_the_same_seed_drew(name):
    model = pai.build(name, pai.load("digits"), seed=3)
    scores, mask = pai.score(model, "random", seed=3), pai.Mask.dense(model)
    half = {n: torch.arange(t.numel()).view(t.shape) < t.numel() // 2 for n, t in mask.items()}
    shuffled = pai.Mask(half).shuffled(seed=3)
    for layer, w in pai.prunable(model).items():
        spread = 5 / w.numel() ** 0.5
        for drawn in (scores[layer], shuffled[layer].float()):
            found = torch.corrcoef(torch.stack([w.detach().flatten(), drawn.flatten()]))[0, 1]
            assert abs(found) < spread, layer
