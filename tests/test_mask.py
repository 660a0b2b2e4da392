"""The mask: algebra, files, torch's own pruning as a reference, and weights held at exactly 0."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn.utils import prune as torch_prune

import pai_lab as pai
from pai_lab import Mask


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def random_mask(model, density=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Mask({n: torch.rand(w.shape, generator=generator) < density for n, w in pai.prunable(model).items()})


@st.composite
def triples(draw):
    """Three masks of the same layers."""
    shapes = draw(st.lists(hnp.array_shapes(min_dims=2, max_dims=4, max_side=4), min_size=1, max_size=3))
    return [
        Mask({f"{i}.weight": torch.from_numpy(draw(hnp.arrays(bool, s))) for i, s in enumerate(shapes)})
        for _ in range(3)
    ]


# -- algebra ---------------------------------------------------------------------------------------
@given(triples())
def test_the_laws_of_sets(masks):
    a, b, c = masks
    full, none = a | ~a, a & ~a
    assert a & b == b & a and a | b == b | a
    assert a & (b & c) == (a & b) & c and a | (b | c) == (a | b) | c
    assert a & (b | c) == (a & b) | (a & c) and a | (b & c) == (a | b) & (a | c)
    assert ~(a & b) == ~a | ~b and ~~a == a and a & a == a == a | a
    assert a & full == a == a | none and full.kept == a.total and none.kept == 0
    assert (a | b).kept + (a & b).kept == a.kept + b.kept


@given(triples())
def test_counts_are_numpys(masks):
    a, b, _ = masks
    flat, other = (np.concatenate([t.numpy().ravel() for t in m.values()]) for m in (a, b))
    assert (a.total, a.kept) == (flat.size, flat.sum())
    assert a.density == flat.mean() and a.sparsity == pytest.approx(1 - flat.mean(), abs=1e-15)
    assert a.compression == (flat.size / flat.sum() if flat.any() else float("inf"))
    assert a.collapsed() == [n for n, t in a.items() if not t.numpy().any()]
    assert a.overlap(b) == b.overlap(a) == ((flat & other).sum() / (flat | other).sum() if (flat | other).any() else 1)
    table = a.layers()
    assert list(table.columns) == ["layer", "shape", "total", "kept", "density"] and list(table.layer) == list(a)
    assert table.kept.tolist() == [int(t.sum()) for t in a.values()] and table.total.sum() == a.total
    assert table.density.tolist() == [t.numpy().mean() for t in a.values()]


@given(triples())
def test_equality_and_fingerprint_tell_every_bit(masks):
    a, b, _ = masks
    assert (a == b) == all(np.array_equal(a[n], b[n]) for n in a) == (a.fingerprint == b.fingerprint)
    assert a == Mask(dict(a)) and a != dict(a)
    name = next(iter(a))
    one_off = a[name].clone()
    one_off.view(-1)[-1] ^= True
    assert a != Mask({**a, name: one_off}) and a.fingerprint != Mask({**a, name: one_off}).fingerprint


def test_one_dimensional_entries_travel_but_do_not_count():
    mask = Mask({"w": torch.tensor([[True, False]]), "w.bias": torch.tensor([False])})
    assert (mask.total, mask.kept, mask.collapsed(), len(mask.layers())) == (2, 1, [], 1)


def test_masks_of_other_layers_do_not_combine():
    small, large = Mask({"a": torch.ones(2, 2).bool()}), Mask({n: torch.ones(2, 2).bool() for n in "ab"})
    other = Mask({"a": torch.ones(2, 3).bool()})
    for one, two in [(small, large), (large, small), (small, other)]:
        for combine in (lambda x, y: x & y, lambda x, y: x | y, lambda x, y: x.overlap(y)):
            with pytest.raises(ValueError, match="mask"):
                combine(one, two)
    with pytest.raises(TypeError, match="mask"):
        small & {"a": torch.ones(2, 2).bool()}


def test_random_masks_overlap_as_theory_says():
    shapes = {"a": torch.zeros(1000, 200)}
    a, b = (
        pai.allocate(
            {n: torch.rand(s.shape, generator=torch.Generator().manual_seed(i)) for n, s in shapes.items()},
            0.9,
        )
        for i in (0, 1)
    )
    assert a.overlap(b) == pytest.approx(0.1 / 1.9, abs=0.003)  # d / (2 - d)
    assert a.overlap(a) == 1 and a.overlap(~a) == 0


def test_shuffled_keeps_the_counts_and_changes_the_places():
    model = nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 50))
    mask = pai.prune(model, "magnitude", 0.9)
    mixed = mask.shuffled(seed=3)
    assert mixed.layers().kept.tolist() == mask.layers().kept.tolist()
    assert mixed == mask.shuffled(seed=3) and mixed != mask.shuffled(seed=4)
    densities = mask.layers().density
    both = (densities**2 * mask.layers().total).sum() / (densities * mask.layers().total).sum()  # kept again by chance
    assert (mixed & mask).kept / mask.kept == pytest.approx(both, abs=0.03)


# -- immutable, copyable, and its looks ------------------------------------------------------------
def test_the_mask_owns_its_tensors():
    source = torch.ones(3, 3).bool()
    mask = Mask({"a": source})
    source[0] = False
    expanded = Mask({"a": torch.ones(3, 1).bool().expand(3, 4)})
    assert mask.kept == 9 and expanded["a"].is_contiguous()
    with pytest.raises(TypeError):
        mask["a"] = source
    with pytest.raises(TypeError):
        del mask["a"]
    with pytest.raises(AttributeError):
        mask.sparsity = 0.5
    with pytest.raises(TypeError):
        hash(mask)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_equal(copied):
    mask = Mask(random_mask(net()), budget=7)
    twin = copied(mask)
    assert twin == mask and twin.budget == 7 and twin.fingerprint == mask.fingerprint


@pytest.mark.parametrize(
    "bad", [{"a": torch.ones(2, 2)}, {"a": [[True]]}, {"a": torch.ones(2, 2).to(torch.uint8)}, {"a": None}]
)
def test_only_bool_tensors(bad):
    with pytest.raises(TypeError, match="'a'.*bool"):
        Mask(bad)


def test_a_mask_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Mask({})


def test_looks():
    mask = Mask({"first": torch.arange(1200).view(30, 40) < 300, "dead": torch.zeros(20, 40).bool()})
    page, text = mask._repr_html_(), repr(mask)
    for shown in ("2,000", "300", "85.00%", "6.67x", "first", "30 x 40", "1,200", "25.00%", "dead"):
        assert shown in page
    assert "collapse" in page and "dead" in text and "300 of 2,000" in text and "0.8500" in text


# -- on a model ------------------------------------------------------------------------------------
def test_prunable_is_conv_and_linear_weights_in_order():
    model = nn.Sequential(
        nn.Conv1d(2, 2, 1),
        nn.Conv3d(1, 1, 1),
        nn.ConvTranspose2d(1, 1, 1),
        nn.Embedding(2, 2),
        nn.BatchNorm2d(2),
        net(),
    )
    assert list(pai.prunable(model)) == ["0.weight", "1.weight", "5.0.weight", "5.4.weight"]
    assert pai.prunable(model)["5.4.weight"] is model[5][4].weight
    assert list(pai.prunable(nn.Linear(2, 2))) == ["weight"]
    assert list(pai.prunable(net(), exclude="0.weight")) == ["4.weight"]
    assert list(Mask.dense(net(), exclude=["4.weight"])) == ["0.weight"] and Mask.dense(net()).sparsity == 0


def test_a_shared_weight_is_one():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    assert list(pai.prunable(model)) == ["0.weight", "2.weight"]
    twice = nn.Sequential(model[0], nn.ReLU(), model[0])
    assert list(pai.prunable(twice)) == ["0.weight"]


def test_a_model_without_prunable_weights():
    for model in (nn.Sequential(nn.ReLU()), nn.BatchNorm1d(3), nn.Embedding(3, 3)):
        with pytest.raises(ValueError, match="no prunable"):
            pai.prunable(model)
    with pytest.raises(ValueError, match="Did you mean '4.weight'"):
        pai.prunable(net(), exclude=["4.weights"])
    with pytest.raises(ValueError, match="no prunable"):
        pai.prunable(net(), exclude=["0.weight", "4.weight"])


@pytest.mark.parametrize("dirt", [float("nan"), float("inf"), -0.0, -3.0])
def test_apply_makes_exact_zeros(dirt):
    model = net()
    mask = random_mask(model)
    kept = {n: w.detach().clone() for n, w in pai.prunable(model).items()}
    with torch.no_grad():
        for n, w in pai.prunable(model).items():
            w[~mask[n]] = dirt
    assert mask.apply(model) is model
    for n, w in pai.prunable(model).items():
        gone = w.detach()[~mask[n]]
        assert (gone == 0).all() and not gone.signbit().any()
        assert torch.equal(w.detach()[mask[n]], kept[n][mask[n]])


@pytest.mark.parametrize("use", ["apply", "hold", "to_torch"])
@pytest.mark.parametrize(
    "other", [{"x.weight": (4, 4)}, {"0.weight": (4, 2, 3, 4)}, {"4.weight": (3, 16), "9.weight": (1, 1)}]
)
def test_a_mask_of_another_model_changes_nothing(use, other):
    model = net()
    before, optimizer = copy.deepcopy(model.state_dict()), torch.optim.SGD(model.parameters(), lr=1)
    mask = Mask({n: torch.zeros(s).bool() for n, s in other.items()})
    with pytest.raises(ValueError, match="another model"):
        mask.hold(model, optimizer) if use == "hold" else getattr(mask, use)(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not torch_prune.is_pruned(model) and not optimizer._optimizer_step_post_hooks


def test_masked_is_a_detached_pruned_twin():
    model = net()
    mask, x = random_mask(model), torch.randn(5, 2, 4, 4)
    weights = pai.masked(model, mask)
    assert {n for n, t in weights.items() if t.requires_grad} == {n for n, _ in model.named_parameters()}
    before = copy.deepcopy(model.state_dict())
    got = pai.forward(model, weights, x)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())  # BatchNorm's buffers too
    assert torch.equal(got, mask.apply(copy.deepcopy(model))(x))
    assert all(
        t.dtype == torch.float64 for n, t in pai.masked(model, dtype=torch.float64).items() if "tracked" not in n
    )
    with pytest.raises(ValueError, match="another model"):
        pai.masked(model, Mask({"foo.weight": torch.ones(2, 2).bool()}))
    with pytest.raises(ValueError, match="another model"):
        pai.masked(model, Mask({"4.weight": torch.ones(1, 16).bool()}))


def test_masked_reaches_a_weight_tied_to_an_embedding():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    weights = pai.masked(model, Mask({"1.weight": torch.zeros(6, 4).bool()}))
    assert weights["0.weight"] is weights["1.weight"] and not weights["1.weight"].any()


def test_torch_agrees_there_and_back():
    model, twin = net(), net()
    mask, x = random_mask(model), torch.randn(3, 2, 4, 4)
    assert mask.to_torch(model) is model and torch_prune.is_pruned(model)
    assert torch.equal(model.eval()(x), mask.apply(twin).eval()(x))
    assert Mask.from_torch(model) == mask
    with pytest.raises(ValueError, match="from_torch"):
        pai.prunable(model)
    one = net()
    torch_prune.l1_unstructured(one[4], "weight", amount=0.5)
    found = Mask.from_torch(one)
    assert found["0.weight"].all() and torch.equal(found["4.weight"], one[4].weight_mask.bool())


def test_torch_gets_a_shared_weight_masked_at_every_place():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    mask, x = random_mask(model), torch.randn(3, 4)
    expected = mask.apply(copy.deepcopy(model))(x)
    assert torch.equal(mask.to_torch(model)(x), expected)
    assert Mask.from_torch(model) == mask


# -- files -----------------------------------------------------------------------------------------
def test_save_and_load(tmp_path):
    mask = Mask({"z": torch.rand(3, 4) < 0.5, "a": torch.rand(2, 1, 2, 2) < 0.5}, budget=12)
    mask.save(tmp_path / "new" / "m.safetensors")
    back = Mask.load(str(tmp_path / "new" / "m.safetensors"))
    assert back == mask and list(back) == ["z", "a"] and back.budget == 12
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["m.safetensors"]


def test_files_that_are_no_mask(tmp_path):
    from safetensors.torch import save_file

    whole, path = tmp_path / "whole", tmp_path / "bad"
    random_mask(net()).save(whole)
    with pytest.raises(FileNotFoundError, match="no pai_lab mask"):
        Mask.load(tmp_path / "none")
    for length in (0, 5, 100, whole.stat().st_size - 1):
        path.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(ValueError, match="half-written"):
            Mask.load(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="no pai_lab mask"):
        Mask.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    old, path = random_mask(net()), tmp_path / "m"
    old.save(path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        old.shuffled().save(path)
    assert Mask.load(path) == old and [f.name for f in tmp_path.iterdir()] == ["m"]


# -- held through an optimizer's steps -------------------------------------------------------------
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "fused adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


def step(model, optimizer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    x, y = torch.randn(8, 2, 4, 4, generator=generator), torch.arange(8) % 3
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_removed_weights_are_zero_after_every_step(name):
    model = net()
    optimizer, mask = OPTIMIZERS[name](model.parameters()), random_mask(model)
    step(model, optimizer)  # momentum from the dense net
    handle = mask.hold(model, optimizer)
    start = {n: w.detach().clone() for n, w in pai.prunable(model).items()}
    for i in range(20):
        assert all((w[~mask[n]] == 0).all() for n, w in pai.prunable(model).items())
        step(model, optimizer, i)
        handle.check()
    assert all(w.grad[~mask[n]].abs().sum() > 0 for n, w in pai.prunable(model).items())  # dense gradients stay
    assert all((w[mask[n]] != start[n][mask[n]]).all() for n, w in pai.prunable(model).items())
    copied = copy.deepcopy(model)
    assert list(copied.state_dict()) == list(net().state_dict())
    handle.remove()
    step(model, optimizer)
    assert any((w[~mask[n]] != 0).any() for n, w in pai.prunable(model).items())
    with pytest.raises(RuntimeError, match="hold"):
        handle.check()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update_forgets_the_momentum_of_what_changed_and_of_nothing_else(name):
    model = net().eval()
    optimizer = OPTIMIZERS[name](model.parameters())
    old, new = random_mask(model, 0.5, seed=1), random_mask(model, 0.5, seed=2)
    handle = old.hold(model, optimizer)
    for i in range(3):
        step(model, optimizer, i)
    x = torch.randn(4, 2, 4, 4)
    grown = old | new
    before, state = model(x), copy.deepcopy(optimizer.state)
    handle.update(grown)
    assert handle.mask == grown and torch.equal(model(x), before)  # growing at 0 leaves the output as it was
    handle.update(new)
    for n, w in pai.prunable(model).items():
        survivors = old[n] & new[n]
        assert (w[~new[n]] == 0).all() and (w[new[n] & ~old[n]] == 0).all()
        kept = [v for k, v in zip(state, state.values(), strict=True) if k.shape == w.shape][0]
        for key, value in optimizer.state[w].items():
            if torch.is_tensor(value) and value.shape == w.shape:
                assert not value[~survivors].any() and torch.equal(value[survivors], kept[key][survivors])
            else:
                assert value == kept[key]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0
    optimizer.step()
    assert all((w[new[n] & ~old[n]] == 0).all() for n, w in pai.prunable(model).items())  # no gradient, no move


def test_a_lost_hook_is_noticed():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = random_mask(model)
    mask.hold(model, optimizer)
    twin, lost = copy.deepcopy((model, optimizer))
    handle = mask.hold(model, optimizer)
    handle.remove()
    step(twin, lost)
    assert any((w[~mask[n]] != 0).any() for n, w in pai.prunable(twin).items())  # the trap itself
    step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match="'0.weight'"):
        handle.check()


def test_update_refuses_another_mask_and_changes_nothing():
    model = net()
    optimizer, mask = torch.optim.SGD(model.parameters(), lr=0.1), random_mask(net())
    handle = mask.hold(model, optimizer)
    before = copy.deepcopy(model.state_dict())
    for bad in (Mask({"0.weight": mask["0.weight"]}), Mask({**mask, "4.weight": torch.zeros(3, 2).bool()})):
        with pytest.raises(ValueError, match="mask"):
            handle.update(bad)
    assert handle.mask == mask and all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_gradients_are_masked_on_demand_also_where_there_are_none():
    model = net()
    mask = random_mask(model)
    handle = mask.hold(model, torch.optim.SGD(model.parameters(), lr=0.1))
    handle.mask_gradients()  # no gradient yet
    model(torch.randn(4, 2, 4, 4)).sum().backward()
    kept = model[4].weight.grad.clone()
    handle.mask_gradients()
    assert torch.equal(model[4].weight.grad, kept * mask["4.weight"])
