"""Layer collapse: the boundary beside its closed form, a scan of all sizes, and the measured bands of lesson 03."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pai_lab as pai
from pai_lab.catalog import _REGISTRY
from pai_lab.collapse import critical_compression, maximal_compression


def chain(*sizes, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


def holds(model, criterion, kept, **settings):
    total = sum(w.numel() for w in pai.prunable(model).values())
    mask = pai.prune(model, criterion, 1 - kept / total, allow_empty=True, **settings)
    assert mask.kept == kept
    return not mask.collapsed()


BATCH = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


def test_maximal_compression_is_weights_per_layer():
    net = chain(6, 5, 4, 3)
    assert maximal_compression(net) == (30 + 20 + 12) / 3
    assert maximal_compression(net, exclude="4.weight") == (30 + 20) / 2
    shared = nn.Sequential(net[0], nn.ReLU(), nn.Linear(5, 5), nn.ReLU())
    shared.append(shared[2])
    assert maximal_compression(shared) == (30 + 25) / 2  # a weight that two layers share is one
    with pytest.raises(ValueError, match="no prunable weight"):
        maximal_compression(nn.Sequential(nn.ReLU()))


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(0, 999))
def test_one_global_ranking_empties_a_layer_at_the_rank_of_the_lowest_maximum(sizes, seed):
    """The layer whose best weight is worst goes first: as many weights must stay as score at least as high."""
    net = chain(*sizes)
    weights, rng = pai.prunable(net), np.random.default_rng(seed)
    ranks = np.split(rng.permutation(sum(w.numel() for w in weights.values())), np.cumsum([*_sizes(weights)])[:-1])
    scores = {
        n: torch.tensor(r, dtype=torch.float32).view(w.shape) for (n, w), r in zip(weights.items(), ranks, strict=True)
    }
    lowest = min(int(rank.max()) for rank in ranks)
    total = sum(_sizes(weights))
    found = critical_compression(net, lambda model, batch, mask: scores)
    assert found == total / (total - lowest) <= maximal_compression(net)


def _sizes(weights):
    return [w.numel() for w in weights.values()]


@pytest.mark.parametrize("criterion", ["magnitude", "snip", "random", "lamp"])
@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_one_round_is_exact(criterion, scope):
    net, total = chain(6, 20, 3, 3, seed=1), 120 + 60 + 9
    settings = {"batch": BATCH, "scope": scope, "seed": 3}
    kept = total / critical_compression(net, criterion, **settings)
    assert kept == pytest.approx(round(kept), abs=1e-9)
    kept = round(kept)
    assert holds(net, criterion, kept, **settings)
    assert kept == 3 or not holds(net, criterion, kept - 1, **settings)
    if scope == "global":  # one boundary only
        assert [holds(net, criterion, k, **settings) for k in range(1, total, 3)] == [
            k >= kept for k in range(1, total, 3)
        ]


def test_rounds_are_bisected_to_the_tolerance():
    net, total = chain(6, 30, 20, 3, seed=2), 180 + 600 + 60
    settings = {"batch": BATCH, "iterations": 3}
    exact = round(total / critical_compression(net, "synflow", tolerance=0, **settings))
    assert holds(net, "synflow", exact, **settings) and not holds(net, "synflow", exact - 1, **settings)
    for tolerance in (0.01, 0.3):
        found = round(total / critical_compression(net, "synflow", tolerance=tolerance, **settings))
        assert exact <= found <= exact * (1 + tolerance) + 1 and holds(net, "synflow", found, **settings)


def test_a_criterion_that_revives_is_judged_by_its_last_round(monkeypatch):
    """The first round puts one layer above the other, the second puts the best of both above the rest."""
    monkeypatch.setitem(_REGISTRY, "criterion", dict(_REGISTRY["criterion"]))
    places = torch.arange(16.0).view(4, 4)

    def criterion(model, batch, mask):
        above = 100 if mask.kept == 32 else 0
        return {"0.weight": places + above, "2.weight": places}

    found = {}
    for revives in (True, False):
        pai.criterion("test of revival", defaults={"revives": revives, "iterations": 2})(criterion)
        found[revives] = critical_compression(chain(4, 4, 4), criterion, tolerance=0)
    # 8 of 32 weights are 16 after the first round, all in the first layer; 9 are 17
    assert found == {True: 32 / 2, False: 32 / 9}


def test_ties_have_a_boundary_too():
    net, total = chain(6, 5, 4, 3), 62
    kept = round(total / critical_compression(net, lambda m, b, mask: {n: torch.zeros(()) for n in pai.prunable(m)}))
    assert holds(net, lambda m, b, mask: {n: torch.zeros(()) for n in pai.prunable(m)}, kept)


def test_layers_of_one_weight_cannot_be_compressed():
    assert critical_compression(chain(1, 1, 1), "magnitude") == maximal_compression(chain(1, 1, 1)) == 1


def test_excluded_layers_are_no_layers():
    net = chain(6, 20, 3, 3, seed=1)
    assert critical_compression(net, "lamp", exclude=["4.weight"]) == maximal_compression(net, ["4.weight"]) == 90


def test_the_model_stays_as_it_was():
    net = chain(6, 20, 3, 3)
    before, state = deepcopy(net.state_dict()), torch.get_rng_state()
    critical_compression(net, "snip", batch=lambda number: BATCH, iterations=2, mode="eval")
    assert torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    "settings, error, words",
    [
        ({"criterion": "snipp"}, ValueError, "Did you mean 'snip'"),
        ({"batch": None}, ValueError, "needs a batch"),
        ({"scope": "globl"}, ValueError, "Did you mean 'global'"),
        ({"tolerance": -1}, ValueError, "tolerance"),
        ({"tolerance": float("nan")}, ValueError, "tolerance"),
        ({"iterations": 0}, ValueError, "iterations"),
        ({"powr": 2}, TypeError, "powr"),
        ({"criterion": "filter_l1"}, ValueError, "units of structure 'filter'"),
        ({"structure": "filter"}, TypeError, "structure"),
        ({"floor": 1}, TypeError, "floor"),
    ],
)
def test_bad_settings(settings, error, words):
    with pytest.raises(error, match=words):
        critical_compression(chain(6, 5, 3), **({"criterion": "snip", "batch": BATCH} | settings))


# -- the net of lesson 03: bands, since other machines round otherwise -----------------------------
def test_who_collapses_where_on_digits():
    data = pai.load("digits")
    net, batch = pai.build("vgg6_bn", data, seed=0), data.score_batch(per_class=10, seed=0)
    assert maximal_compression(net) == 72_208 / 7
    found = {name: critical_compression(net, name, batch=batch) for name in ("magnitude", "snip", "lamp")}
    rounds = {n: critical_compression(net, "synflow", batch=batch, iterations=n, tolerance=0.1) for n in (1, 5, 100)}
    assert 5 < found["magnitude"] < 7 and 40 < found["snip"] < 250
    assert 6 < rounds[1] < 20 and 200 < rounds[5] < 2000
    assert rounds[100] == found["lamp"] == maximal_compression(net)
