"""The explorables without a browser: pictures and sentences against masks, ranks against `prune`, pages, threads."""

import base64
import json
import re
import subprocess
import sys
import time
import zlib

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import pai_lab as pai
from pai_lab.catalog import _REGISTRY
from pai_lab.explore.playground import figure, summary
from pai_lab.explore.ranking import rank, settle, stops
from pai_lab.explore.settings import OUTLINES
from pai_lab.structures import spanning


def small(data):
    """A conv net of 1,912 weights, 46 filters of which can go, that scores in no time."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 24),
        nn.ReLU(), nn.Linear(24, 10),
    )  # fmt: skip


def playground(**state):
    return pai.explore.playground(**{"data": "digits", "model": small} | state)


def pruned(state):
    """`pai.prune` in the words of a state."""
    data = pai.load("digits")
    net = pai.build(small, data, seed=state["seed"])
    batch = data.score_batch(per_class=10, seed=state["seed"])
    return pai.prune(
        net, state["method"], state["sparsity"], batch=batch, structure=state["structure"], scope=state["scope"],
        seed=state["seed"], allow_empty=True,
    )  # fmt: skip


def shown(play):
    """The mask that the browser draws, decoded from what was sent as canvas.js does it: {layer: bool array}."""
    scene, sparsity = play.canvas.scene, play.canvas.sparsity
    names = [layer["name"] for layer in scene["layers"]]
    table = np.frombuffer(scene["kept"], np.uint32).reshape(-1, len(names))
    kept = dict(zip(names, table[scene["stops"].index(sparsity)].tolist(), strict=True))
    found = {}
    for name, detail in play.details().items():
        ranks = np.frombuffer(detail["ranks"], np.uint16)
        found[name] = ranks >= (ranks.size - kept[name]) * min(ranks.size, 65535) // ranks.size
        assert found[name].sum() == kept[name]
    return found


def same(found, mask):
    return list(found) == list(mask) and all(np.array_equal(found[n], mask[n].numpy().ravel()) for n in mask)


def message(play):
    return re.sub("<[^>]+>", " ", play.message.value)


@pytest.fixture
def many_ties():
    """A registered criterion with three values: nearly all scores are equal to others."""

    @pai.criterion
    def three_values(model, batch, mask):
        return {name: (w.detach() * 20).round().clamp(-1, 1) for name, w in pai.prunable(model).items()}

    yield "three_values"
    del _REGISTRY["criterion"]["three_values"]


# -- what is shown is what is pruned

METHODS = ["random", "magnitude", "snip", "grasp", "synflow", "force"]
COMBINATIONS = [
    *((scope, "weight") for scope in pai.names("scope")),
    *(("global", structure) for structure in spanning()[1:]),
    ("erk", "filter"),
    ("layer", "kernel"),
]


@pytest.mark.parametrize("scope, structure", COMBINATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_the_picture_is_the_mask_of_prune(method, scope, structure):
    play = playground(method=method, scope=scope, structure=structure, sparsity=0.8, seed=3)
    for sparsity in (0.8, 0.973, 0.0, 0.999):
        play.canvas.sparsity = sparsity
        mask = pruned(play.state)
        assert same(shown(play), mask), message(play)
        assert play.source.ranking.mask(sparsity) == mask


def test_ties_are_settled_as_prune_does(many_ties):
    play = playground(method=many_ties, sparsity=0.4)
    for sparsity in (0.4, 0.9, 0.65, 0.9):
        play.canvas.sparsity = sparsity
        assert same(shown(play), pruned(play.state))


@pytest.mark.parametrize("scope, structure", COMBINATIONS)
def test_counts_are_exact_at_every_stop(scope, structure, many_ties):
    for method in ("magnitude", many_ties):
        ranking = playground(method=method, scope=scope, structure=structure, sparsity=0.77).source.ranking
        counts = np.stack(list(ranking.layer_counts(stops()).values()), 1)
        assert counts.sum(1).tolist() == [round((1 - s) * ranking.total) for s in stops()]
        assert (np.diff(counts.sum(1)) <= 0).all() and counts.min() >= 0


def test_between_rests_a_one_shot_picture_is_exact_too():
    net = pai.build(small, pai.load("digits"))
    ranking = rank(net, "magnitude", 0.9)
    for sparsity in (0.3, 0.95, 0.99):
        assert (
            ranking.mask(sparsity) == pai.prune(net, "magnitude", sparsity) == settle(ranking, sparsity).mask(sparsity)
        )


def test_synflow_on_the_way_is_nested_and_ordered_by_rounds():
    batch = pai.load("digits").score_batch()
    net = pai.build(small, pai.load("digits"))
    ranking = rank(net, "synflow", 0.95, batch=batch)
    masks = [mask for _, mask in pai.rounds(net, "synflow", 0.95, batch=batch)]
    for mask in masks[9::15]:  # the order of removal passes through the mask of every round
        assert ranking.mask(mask.sparsity) == mask
    for less, more in zip(stops(), stops()[1:], strict=False):
        assert (ranking.mask(more) & ~ranking.mask(less)).kept == 0


def test_large_layers_are_right_to_one_part_in_65535():
    net = nn.Sequential(nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))
    ranking = rank(net, "magnitude", 0.9)
    ranks, cut = ranking.ranks("0.weight"), (160_000 - int(ranking.mask(0.9)["0.weight"].sum())) * 65535 // 160_000
    wrong = (ranks >= cut) != ranking.mask(0.9)["0.weight"].numpy().ravel()
    assert wrong.sum() <= 160_000 / 65535


def test_stops_are_exact_decimals_up_to_999():
    grid = stops()
    assert grid[0] == 0 and grid[-1] == 0.999 and {0.5, 0.9, 0.95, 0.98, 0.99, 0.995} <= set(grid)
    assert grid == sorted(set(grid)) == [round(s, 4) for s in grid]
    assert 0.97123 in stops(0.97123)


def test_the_weights_go_over_with_their_sign():
    play = playground()
    for name, weight in play.source.weights.items():
        detail = play.details()[name]
        bins = np.frombuffer(detail["bins"], np.uint8)
        assert ((bins >= 32) == (weight.numpy().ravel() >= 0)).all()
        middle = ((bins + 0.5) / 32 - 1) * detail["limit"]
        assert np.abs(middle - weight.numpy().ravel()).max() <= detail["limit"] / 64 + 1e-7


# -- the two pure functions


@pytest.mark.parametrize("structure", ["weight", "kernel", "filter"])
@pytest.mark.parametrize("method", METHODS)
def test_figure_and_summary_at_the_corners(method, structure):
    play = playground(method=method, structure=structure)
    for sparsity in (0, 0.5, 0.999):
        play.canvas.sparsity = sparsity
        state, mask = play.state, pruned(play.state)
        picture = figure(state, play.source)
        words = " ".join(text.get_text() for text in picture.findobj(lambda artist: hasattr(artist, "get_text")))
        here = int(mask[state["layer"]].sum())
        assert isinstance(picture, Figure) and f"{here:,} of {mask[state['layer']].numel():,}" in words
        found = [int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d(?= of)", summary(state, play.source))]
        units = [round((1 - sparsity) * play.source.ranking.total)] * (structure != "weight")
        assert found == [*units, mask.kept, here]
        empty = re.search(r"layer collapse: (.*) empty", summary(state, play.source))
        assert (empty[1].split(", ") if empty else []) == [n.removesuffix(".weight") for n in mask.collapsed()]
    assert plt.get_fignums() == []


def test_state_is_flat_and_json():
    state = playground(method="snip", scope="layer", structure="filter", seed=5, sparsity=0.97, layer="2.weight").state
    assert json.loads(json.dumps(state)) == {
        "data": "digits", "model": "small", "method": "snip", "scope": "layer", "structure": "filter", "seed": 5,
        "sparsity": 0.97, "layer": "2.weight",
    }  # fmt: skip


def test_figure_of_an_unknown_layer():
    play = playground()
    with pytest.raises(ValueError, match="2.weight"):
        figure(play.state | {"layer": "2.wight"}, play.source)


def test_outline_builds_the_same_net_as_the_data():
    data = pai.load("digits")
    assert OUTLINES["digits"] == (data.input_shape, len(data.classes))
    play = pai.explore.playground(data="digits")
    theirs, ours = play.settings.net().state_dict(), pai.build("mlp", data, seed=0).state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_the_first_picture_needs_neither_data_nor_matplotlib():
    code = (
        "import sys, pai_lab as pai; pai.explore.playground(method='synflow'); "
        "print(*{'matplotlib', 'pandas', 'sklearn', 'mnist1d', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


# -- errors


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"method": "synflo"}, "synflow"),
        ({"data": "digit"}, "digits"),
        ({"model": "mpl"}, "mlp"),
        ({"scope": "globl"}, "global"),
        ({"structure": "filters"}, "filter"),
        ({"seed": -1}, "from 0"),
        ({"sparsity": 90}, "0.9"),
        ({"layer": "fc9.weight"}, "Shown instead"),
    ],
)
def test_what_is_unknown_is_said_and_the_usual_is_shown(wanted, words):
    play = pai.explore.playground(**{"data": "digits"} | wanted)
    assert "pai-error" in play.message.value and words in message(play)
    [(name, _)] = wanted.items()
    usual = {"data": "mnist1d", "model": "mlp", "method": "magnitude", "scope": "global", "structure": "weight"}
    assert play.state[name] == (usual | {"seed": 0, "sparsity": 0.9, "layer": play.canvas.layer})[name]


def test_an_error_in_a_criterion_is_a_box_and_goes_away():
    def broken(model, batch, mask):
        raise ZeroDivisionError("no <b>luck</b>")

    play = playground(method=broken)
    assert "pai-error" in play.message.value and "ZeroDivisionError: no &lt;b&gt;luck" in play.message.value
    assert "Traceback" not in play.message.value and play.canvas.busy is False
    play.trainer.start.click()
    assert "change them first" in message(play) and not play.trainer.start.disabled and play.canvas.scene == {}
    play.settings.controls["method"].value = "magnitude"
    assert "pai-error" not in play.message.value
    assert same(shown(play), pruned(play.state))


def test_a_model_that_does_not_fit_the_data_gives_way():
    play = pai.explore.playground(data="digits", model="vgg6_bn", method="random")
    play.settings.controls["data"].value = "mnist1d"
    assert play.state["model"] == "mlp" and "pai-error" not in play.message.value


def test_a_readers_criterion_is_in_the_list(many_ties):
    assert many_ties in playground().settings.controls["method"].options


def test_one_that_is_registered_later_comes_into_the_list(request):
    play = playground()
    name = request.getfixturevalue("many_ties")
    play.settings.controls["scope"].value = "layer"
    assert name in play.settings.controls["method"].options and play.state["method"] == "magnitude"


# -- training


def press(play, epochs=2):
    play.trainer.epochs.value = epochs
    play.trainer.start.click()


def test_training_leaves_a_point_that_train_gives_too():
    play = playground(method="snip", sparsity=0.7, seed=1)
    press(play)
    play.wait()
    [point] = play.points.to_dict("records")
    data = pai.load("digits")
    run = pai.train(pai.build(small, data, seed=1), data, mask=pruned(play.state), epochs=2, seed=1, progress=False)
    assert point["val_accuracy"] == run.metrics["val_accuracy"]
    assert {key: value for key, value in point.items() if key in play.state} | {
        "layer": play.canvas.layer
    } == play.state
    assert f"{100 * point['val_accuracy']:.1f} %" in message(play)
    sent = play.canvas.training
    assert sent["run"]["accuracy"] == [row["val_accuracy"] for row in run.history]
    assert [p["val_accuracy"] for p in sent["points"]] == [point["val_accuracy"]] and sent["chance"] == 0.1
    assert figure(play.state, play.source) is not None


def test_points_stay_compare_and_go():
    play = playground(sparsity=0.0)
    for sparsity, method in ((0.0, "magnitude"), (0.5, "random")):
        play.canvas.sparsity, play.settings.controls["method"].value = sparsity, method
        press(play, 1)
        play.wait()
    assert list(play.points.method) == ["magnitude", "random"]
    assert play.canvas.training["dense"] == play.points.val_accuracy[0]
    looks = [(p["colour"], p["marker"]) for p in play.canvas.training["points"]]
    assert len(set(looks)) == 2
    play.settings.controls["model"].value = "mlp"  # not comparable: kept, not shown
    assert play.canvas.training["points"] == [] and len(play.points) == 2
    play.trainer.clear.click()
    assert len(play.points) == 0


def test_stop_ends_the_training_without_a_point():
    play = playground()
    press(play, 1000)
    assert play.trainer.start.disabled and not play.trainer.halt.disabled
    end = time.monotonic() + 30
    while not (play.canvas.training["run"] or {}).get("accuracy") and time.monotonic() < end:
        time.sleep(0.01)
    play.trainer.halt.click()
    play.wait()
    assert play.canvas.training["run"]["stopped"] and len(play.points) == 0
    assert 1 <= len(play.canvas.training["run"]["accuracy"]) < 1000
    assert not play.trainer.start.disabled and play.trainer.halt.disabled


def test_an_error_in_the_training_is_a_box(monkeypatch):
    def broken(*args, **options):
        raise FloatingPointError("the loss is NaN")

    monkeypatch.setattr("pai_lab.explore.trainer.train", broken)
    play = playground()
    press(play)
    play.wait()
    assert "FloatingPointError: the loss is NaN" in message(play) and not play.trainer.start.disabled


def test_threads_and_figures_are_left_as_they_were():
    before = torch.get_num_threads()
    play = playground()
    press(play, 1)
    play.wait()
    assert torch.get_num_threads() == before and plt.get_fignums() == []


# -- the saved page


def test_saved_page_holds_the_layers_and_asks_for_nothing(tmp_path):
    play = playground(method="snip", sparsity=0.9)
    play.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|\bsrc=|@import|\bimport\s*\(|fetch\(|<link", page)
    assert summary(play.state, play.source) in page
    details = json.loads(re.search(r"details = await unpack\((.*)\), listeners", page)[1].replace("<\\/", "</"))
    for name, detail in play.details().items():
        planes = zlib.decompress(base64.b85decode(details[name]["ranks"]["deflated"]))
        assert np.frombuffer(planes, np.uint8).reshape(2, -1).T.tobytes() == detail["ranks"]


def test_saved_page_of_a_270_thousand_weight_net_is_small(tmp_path):
    play = pai.explore.playground(data="digits", model="resnet20", method="random")
    assert play.source.ranking.total > 265_000
    play.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 1_000_000
