"""Figures against the data they show: artists are read back and compared with counts made here by hand."""

import itertools
import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pai_lab import plots
from pai_lab.mask import Mask
from pai_lab.training import Run

SHAPES = {"first.weight": (6, 10), "conv.weight": (4, 3, 3, 3), "last.weight": (2, 5)}


def masks(density=0.3, empty=()):
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.rand(shape, generator=generator) < density for name, shape in SHAPES.items()}
    return {name: t & (name not in empty) for name, t in tensors.items()}


def by_gid(ax, gid):
    return [artist for artist in ax.findobj(lambda a: a.get_gid() == gid)]


def one(ax, gid):
    [artist] = by_gid(ax, gid)
    return artist


def words(ax):
    return "\n".join(artist.get_text() for artist in ax.findobj(mpl.text.Text))


def caption(ax):
    return one(ax, "caption").get_text().replace("\n", " ")


def results(methods=("snip", "random"), sparsities=(0.5, 0.9, 0.98), seeds=5, spread=0.05):
    rng = np.random.default_rng(0)
    return [
        {"method": m, "sparsity": s, "seed": seed, "test_accuracy": 0.4 + spread * rng.standard_normal()}
        for m in methods
        for s in sparsities
        for seed in range(seeds)
    ]


def costly(methods=("snip", "random", "synflow"), sparsities=(0.5, 0.9, 0.98), seeds=3, seed=0):
    """Runs with sizes: 10,000 weights; what is left differs a little between seeds, as with filters."""
    rng, table = np.random.default_rng(seed), []
    for method, asked, k in itertools.product(methods, sparsities, range(seeds)):
        kept = round((1 - asked) * 10_000) + int(rng.integers(0, 9))
        sizes = {"weights": 10_000, "kept": kept, "macs": 70_000, "sparse_macs": kept * int(rng.integers(3, 7))}
        sizes |= {"dense_bytes": 40_100, "bitmap_bytes": 100 + 4 * kept + 1250}
        row = {"data": "mnist1d", "method": method, "asked_sparsity": asked, "sparsity": 1 - kept / 10_000, "seed": k}
        table.append(row | sizes | {"test_accuracy": float(0.2 + 0.6 * rng.random() * (1 - asked) ** 0.3)})
    return table


def on_two_sets(**how):
    return costly(**how) + [row | {"data": "digits"} for row in costly(seed=1, seeds=2, **how)]


def rows(seed, epochs=4):
    rng = np.random.default_rng(seed)
    columns = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    return [{"epoch": e} | dict(zip(columns, rng.random(4), strict=True)) for e in range(1, epochs + 1)]


FIGURES = {
    "mask": lambda **k: plots.mask(masks(), "first.weight", **k),
    "all masks": lambda **k: plots.mask(masks(), **k),
    "density": lambda **k: plots.density(masks(), **k),
    "scores": lambda **k: plots.scores({"a": torch.arange(1.0, 9)}, 0.5, **k),
    "history": lambda **k: plots.history(rows(0), **k),
    "accuracy": lambda **k: plots.accuracy(results(), chance=0.1, dense=0.6, **k),
    "compression": lambda **k: plots.accuracy(costly(), x="compression", chance=0.1, dense=0.6, **k),
    "pareto": lambda **k: plots.pareto(costly(), chance=0.1, dense=0.6, **k),
    "multiples": lambda **k: plots.multiples(on_two_sets(), chance=0.1, dense={"mnist1d": 0.6}, **k),
    "prediction": lambda **k: plots.prediction(0.4, [0.3, 0.5], "%", **k),
}
every_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)


# Every figure


@every_figure
def test_settings_are_as_before(draw):
    before = dict(mpl.rcParams)
    draw()
    assert dict(mpl.rcParams) == before


@every_figure
def test_figures_do_not_leak(draw):
    before = plt.get_fignums()
    draw()
    assert plt.get_fignums() == before


def test_figures_are_shown_where_somebody_looks(monkeypatch):
    monkeypatch.setattr(plt, "get_backend", lambda: "inline")
    before = plt.get_fignums()
    ax = plots.prediction(1, 2)
    try:
        assert [n for n in plt.get_fignums() if n not in before] == [ax.figure.number]
    finally:
        plt.close(ax.figure)


def test_a_refused_call_leaves_no_empty_figure(monkeypatch):
    monkeypatch.setattr(plt, "get_backend", lambda: "inline")
    before = plt.get_fignums()
    for wrong in (
        lambda: plots.mask(masks(), "nowhere"),
        lambda: plots.scores({"a": torch.ones(3)}, 90),
        lambda: plots.history(rows(0), "los"),
        lambda: plots.accuracy([]),
        lambda: plots.accuracy(results(), dense=60.5),
        lambda: plots.pareto(costly(), "mac"),
        lambda: plots.pareto([row | {"sparse_macs": 0} for row in costly()]),
        lambda: plots.multiples(costly(), "dat"),
        lambda: plots.multiples(costly(), dense={"mnist": 0.6}),
    ):
        with pytest.raises(ValueError):
            wrong()
    assert plt.get_fignums() == before


@every_figure
def test_draws_on_the_axes_it_is_given_and_nowhere_else(draw):
    figure, (left, right) = plt.subplots(1, 2, layout="constrained", figsize=(16, 5))
    try:
        assert draw(ax=left) is left
        assert left.has_data() or left.child_axes
        assert not right.has_data()
        assert figure.axes == [left, right]
    finally:
        plt.close(figure)


@every_figure
def test_style_is_the_houses_and_all_text_lies_inside_the_picture(draw):
    figure = draw().figure
    assert figure.get_facecolor() == (1, 1, 1, 1)
    figure.draw_without_rendering()
    for text in figure.findobj(mpl.text.Text):
        if text.get_visible() and text.get_text() and text.axes and text.axes.axison:
            box = text.get_window_extent()
            if text in [*text.axes.get_xticklabels(), *text.axes.get_yticklabels()]:
                continue  # a tick outside the limits is not drawn
            assert box.x0 >= -1 and box.x1 <= figure.bbox.width + 1, text.get_text()
            assert box.y0 >= -1 and box.y1 <= figure.bbox.height + 1, text.get_text()
            assert text.get_fontsize() >= plots.SMALL


@every_figure
def test_the_title_is_left_to_the_reader(draw):
    assert draw().get_title(loc="left") == ""


def test_style_is_a_context():
    before = mpl.rcParams["font.size"]
    with plots.style():
        assert mpl.rcParams["font.size"] == plots.TEXT != before
    assert mpl.rcParams["font.size"] == before


# One look per method


def test_known_methods_look_different_and_always_the_same():
    assert len(set(plots.LOOKS.values())) == len(plots.LOOKS)
    for name, look in plots.LOOKS.items():
        assert plots.looks([name, "mine"])[name] == look
        assert plots.looks(["mine", *plots.LOOKS])[name] == look


@given(st.lists(st.text(min_size=1, max_size=3), max_size=20))
def test_unknown_methods_take_free_looks_whatever_their_order(names):
    known = ["snip", "synflow", "random"]
    looks = plots.looks([*known, *names])
    assert len(set(looks.values())) == len(set([*known, *names]))
    assert looks == plots.looks([*reversed(names), *known])


def test_an_unknown_method_gets_a_colour_that_nobody_has():
    looks = plots.looks(["snip", "synflow", "mine", "yours"])
    assert len({colour for colour, _ in looks.values()}) == 4
    reserved = {marker for _, marker in plots.LOOKS.values()}
    assert looks["mine"][1] not in reserved


def contrast(colour):
    """With white, as the accessibility guidelines define it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mpl.colors.to_rgb(colour)]
    return 1.05 / (np.dot([0.2126, 0.7152, 0.0722], linear) + 0.05)


def test_text_is_dark_and_no_line_is_pale():
    assert min(contrast(c) for c in (plots.INK, plots.QUIET, plots.KEPT, plots.ALARM)) > 4.5
    assert min(contrast(colour) for colour in plots.COLOURS) > 2


# Masks


def image(ax):
    [picture] = ax.get_images()
    return np.asarray(picture.get_array())


@pytest.mark.parametrize("layer", SHAPES)
def test_a_small_mask_is_drawn_weight_by_weight(layer):
    given = masks()
    shown = image(plots.mask(given, layer))
    assert (shown == given[layer].reshape(SHAPES[layer][0], -1).numpy()).all()


def test_black_is_kept_and_white_is_removed():
    ax = plots.mask({"w": torch.eye(3, dtype=torch.bool)})
    [picture] = ax.get_images()
    assert picture.cmap(picture.norm(1.0))[:3] == pytest.approx((0, 0, 0), abs=1e-6)
    assert picture.cmap(picture.norm(0.0))[:3] == pytest.approx((1, 1, 1), abs=1e-6)
    left, right, bottom, top = picture.get_extent()
    assert (right - left, bottom - top) == (3, 3) and (left, top) == (-0.5, -0.5)  # first row on top


def test_blocks_of_a_large_mask_hold_their_true_density():
    keep = torch.rand(1030, 700, generator=torch.Generator().manual_seed(1)) < 0.1
    shown = image(plots.mask({"w": keep}))
    assert shown.shape == (344, 350) and max(shown.shape) <= 512
    for i, j in [
        (0, 0),
        (100, 349),
        (343, 7),
    ]:  # the last row of blocks is one weight high: 1030 = 343 * 3 + 1
        block = keep[3 * i : 3 * i + 3, 2 * j : 2 * j + 2]
        assert shown[i, j] == pytest.approx(block.float().mean().item())
    weights = np.outer([3] * 343 + [1], [2] * 350)
    assert (shown * weights).sum() == pytest.approx(keep.sum().item())
    assert "one pixel = mean of 3 × 2 weights" in caption(plots.mask({"w": keep}))


def test_stripes_finer_than_a_pixel_become_grey_not_stripes():
    keep = torch.zeros(512, 2048, dtype=torch.bool)
    keep[:, ::2] = True
    assert (image(plots.mask({"w": keep})) == 0.5).all()


def test_all_layers_are_drawn_each_with_its_density():
    given = masks(empty=["last.weight"])
    ax = plots.mask(given)
    assert len(ax.child_axes) == 3
    for small, (name, keep) in zip(ax.child_axes, given.items(), strict=True):
        assert image(small).mean() == pytest.approx(keep.float().mean().item())
        assert small.get_title(loc="left").startswith(name.removesuffix(".weight"))
    alarm = ax.child_axes[2]
    assert "EMPTY" in alarm.get_title(loc="left")
    assert mpl.colors.same_color(alarm.spines["top"].get_edgecolor(), plots.ALARM)
    assert f"{Mask(given).kept} of {Mask(given).total} weights kept" in words(ax)


def test_titles_of_many_layers_do_not_overlap():
    ax = plots.mask({f"layer{i}.1.conv2.weight": torch.rand(8, 8) < 0.5 for i in range(20)})
    ax.figure.draw_without_rendering()
    boxes = [small._left_title.get_window_extent() for small in ax.child_axes]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_entries_that_are_no_weights_are_left_out():
    channel = {"conv.weight": torch.ones(4, 3, 3, 3).bool(), "conv.bias": torch.ones(4).bool()}
    assert image(plots.mask(channel)).shape == (4, 27)
    assert len(plots.density(channel).patches) == 1


def test_a_layer_may_be_named_as_figures_show_it():
    assert (image(plots.mask(masks(), "first")) == image(plots.mask(masks(), "first.weight"))).all()


def test_an_unknown_layer_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="'firt.weight'.*Did you mean 'first.weight'"):
        plots.mask(masks(), "firt.weight")
    with pytest.raises(ValueError, match="'frst.weight'.*Did you mean 'first.weight'"):
        plots.scores({"first.weight": torch.ones(3)}, layer="frst.weight")


# Density


def test_bars_equal_densities_and_labels_count_the_kept():
    given = masks(empty=["conv.weight"])
    ax = plots.density(given)
    expected = [keep.float().mean().item() for keep in given.values()]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(expected)
    assert all(bar.get_x() == 0 for bar in ax.patches)
    labels = [label.get_text().split() for label in by_gid(ax, "label")]
    for label, keep, density in zip(labels, given.values(), expected, strict=True):
        kept, slash, total = label[1:]
        assert (int(kept), slash, int(total)) == (int(keep.sum()), "/", keep.numel())
        assert label[0] == (f"{100 * density:.1f}%" if kept != "0" else "EMPTY")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["first", "conv", "last"]
    total = sum(int(keep.sum()) for keep in given.values()) / sum(keep.numel() for keep in given.values())
    assert one(ax, "whole").get_xdata()[0] == pytest.approx(total)


def test_only_an_emptied_layer_raises_the_alarm():
    assert "EMPTY" not in words(plots.density(masks()))
    assert words(plots.density(masks(empty=["last.weight"]))).count("EMPTY") == 1


@pytest.mark.parametrize(("density", "end"), [(0.9, 1), (0.21, 1), (0.2, 0.2), (0.004, 0.005), (0.0, 0.001)])
def test_the_axis_starts_at_0_ends_above_every_bar_and_says_where(density, end):
    keep = torch.zeros(100, 10, dtype=torch.bool)
    keep.view(-1)[: round(density * 1000)] = True
    ax = plots.density({"w": keep})
    assert ax.get_xlim() == (0, end)
    assert (f"axis ends at {100 * end:g}%" in ax.get_xlabel()) == (end < 1)
    ax.figure.draw_without_rendering()
    ticks = [float(tick.get_text()) for tick in ax.get_xticklabels()]
    assert ticks == pytest.approx([100 * place for place in ax.get_xticks()])


# Scores


def drawn(ax, gid):
    """Counts and edges of one part of the histogram."""
    values, edges, baseline = one(ax, gid).get_data()
    return np.asarray(values) - (0 if baseline is None else np.asarray(baseline)), np.asarray(edges)


def kept_count(n, sparsity):
    return round((1 - sparsity) * n)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.998, 1.0])
@pytest.mark.parametrize("sign", [1, -1], ids=["log", "linear"])
def test_the_cut_splits_exactly_the_houses_count(sparsity, sign):
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(20, 25, generator=generator).exp() ** 3
    values[::2] *= sign
    ax = plots.scores({"a": values[:7], "b": values[7:]}, sparsity)
    want = kept_count(500, sparsity)
    kept, _ = drawn(ax, "kept")
    gone, edges = drawn(ax, "removed")
    assert (kept.sum(), gone.sum()) == (want, 500 - want)
    assert (ax.get_xscale() == "log") == (sign == 1) == ("logarithmic" in ax.get_xlabel())
    if 0 < want < 500:
        cut = one(ax, "cut").get_xdata()[0]
        assert (values.double() > cut).sum() == want
        assert cut in edges
        assert not kept[edges[1:] <= cut].any() and not gone[edges[:-1] >= cut].any()
    else:
        assert not by_gid(ax, "cut")
    assert f"removed {500 - want}\n{plots.percent(1 - want / 500)}" in words(ax)
    assert f"kept {want}\n{plots.percent(want / 500)}" in words(ax)


def test_every_score_is_in_the_histogram_at_its_place():
    values = torch.tensor([1.0, 2.0, 2.0, 4.0, 64.0, 5000.0])
    kept, edges = drawn(plots.scores({"a": values}), "kept")
    expected = [sum(low <= v < high for v in values.tolist()) for low, high in itertools.pairwise(edges)]
    assert kept.tolist() == expected and kept.sum() == 6


def test_zeros_are_counted_and_get_a_bar_left_of_all_others():
    values = torch.tensor([0.0] * 7 + [1e-4, 1e-2, 1.0, 3.0])
    ax = plots.scores({"a": values}, 0.8)
    gone, edges = drawn(ax, "removed")
    assert gone[0] == 7 and edges[1] < 1e-4
    assert "7 exact zeros" in ax.get_xlabel()


def test_a_span_of_less_than_two_decades_stays_linear():
    assert plots.scores({"a": torch.linspace(1, 99, 50)}).get_xscale() == "linear"


def test_equal_scores_at_the_cut_are_split_and_named():
    ax = plots.scores({"a": torch.ones(4, 5)}, 0.7)
    assert (drawn(ax, "kept")[0].sum(), drawn(ax, "removed")[0].sum()) == (6, 14)
    assert "14 of 20 equal scores at the cut go" in caption(ax)
    assert one(ax, "cut").get_xdata()[0] == 1
    assert "equal" not in caption(plots.scores({"a": torch.arange(20.0)}, 0.7))


def test_one_layer_is_shown_under_the_cut_of_all():
    scores = {"low": torch.arange(1.0, 11), "high": torch.arange(8.5, 18.5)}
    ax = plots.scores(scores, 0.5, layer="low")  # 10 of all 20 stay: 9, 10 of `low`, and 8 of `high`
    assert (drawn(ax, "kept")[0].sum(), drawn(ax, "removed")[0].sum()) == (1, 9)
    assert "of all 20 scores" in caption(ax) and "10 scores" in caption(ax)


@pytest.mark.parametrize("layer", ["zeros", "negative", "far below", "far above"])
def test_a_layer_far_from_the_cut_is_drawn_without_a_warning(layer):
    scores = {
        "zeros": torch.zeros(5),
        "far below": torch.tensor([1e-9, 1e-8]),
        "far above": torch.tensor([1e8, 1e9]),
    }
    scores["negative"] = -torch.arange(1.0, 5) if layer == "negative" else torch.ones(4)
    ax = plots.scores(scores, 0.6, layer=layer)
    assert drawn(ax, "kept")[0].sum() + drawn(ax, "removed")[0].sum() == scores[layer].numel()
    ax.figure.draw_without_rendering()


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="'b'.*NaN"):
        plots.scores({"a": torch.ones(3), "b": torch.tensor([1.0, math.nan])})
    with pytest.raises(ValueError, match=r"Did you mean 0\.9"):
        plots.scores({"a": torch.ones(3)}, 90)
    with pytest.raises(ValueError, match="no scores"):
        plots.scores({})


# Training curves


def test_a_single_run_shows_its_rows():
    history = rows(0)
    ax = plots.history(history, "loss")
    for name in ("train", "val"):
        line = one(ax, name)
        assert line.get_xdata().tolist() == [1, 2, 3, 4]
        assert line.get_ydata().tolist() == [row[f"{name}_loss"] for row in history]
    assert one(ax, "train").get_linestyle() == "--" and one(ax, "val").get_linestyle() == "-"
    assert {label.get_text() for label in by_gid(ax, "label")} == {"training", "validation"}
    assert "n = 1 run" in caption(ax) and "deviation" not in caption(ax)


def test_seeds_become_a_mean_and_a_band_of_one_standard_deviation():
    seeds = [rows(seed) for seed in range(5)]
    ax = plots.history({"snip": [Run({}, torch.nn.Identity(), history=h) for h in seeds], "mine": rows(9)})
    for name in ("train", "val"):
        values = np.array([[row[f"{name}_accuracy"] for row in run] for run in seeds])
        line, spread = one(ax, f"snip {name}"), values.std(0, ddof=1)
        assert line.get_ydata() == pytest.approx(values.mean(0))
        assert line.get_color() == plots.LOOKS["snip"][0]
        band = limits(one(ax, f"snip {name} band"))
        assert band == pytest.approx(np.array([values.mean(0) - spread, values.mean(0) + spread]))
    assert "n = 1 to 5 runs" in caption(ax)
    assert {label.get_text() for label in by_gid(ax, "label")} == {"snip", "mine"}


def test_bad_histories_are_refused():
    with pytest.raises(ValueError, match="val_accuracy.*it has: epoch, train_accuracy"):
        plots.history([{"epoch": 1, "train_accuracy": 0.5}])
    with pytest.raises(ValueError, match="Did you mean 'loss'"):
        plots.history(rows(0), "los")
    with pytest.raises(ValueError, match="no runs"):
        plots.history({})


def test_a_run_without_validation_set_still_shows_training():
    history = [row | {"val_accuracy": math.nan} for row in rows(0)]
    assert [label.get_text() for label in by_gid(plots.history(history), "label")] == ["training"]


# Accuracy against sparsity


def limits(band):
    """Lower and upper edge of a filled band, at the sorted places on the x-axis."""
    points = band.get_paths()[0].vertices
    places = sorted(set(points[:, 0]))
    return np.array([[edge(points[points[:, 0] == x, 1]) for x in places] for edge in (np.min, np.max)])


@pytest.mark.parametrize("band", ["std", "minmax"])
def test_line_band_and_points_come_from_the_rows(band):
    table = results()
    ax = plots.accuracy(pd.DataFrame(table).sample(frac=1, random_state=0), band=band)
    for method in ("snip", "random"):
        values = np.array([r["test_accuracy"] for r in table if r["method"] == method]).reshape(3, 5)
        line = one(ax, method)
        assert line.get_xdata() == pytest.approx([0.5, 0.9, 0.98])
        assert line.get_ydata() == pytest.approx(values.mean(1))
        assert (line.get_color(), line.get_marker()) == plots.LOOKS[method]
        spread = values.std(1, ddof=1)
        expected = {
            "std": [values.mean(1) - spread, values.mean(1) + spread],
            "minmax": [values.min(1), values.max(1)],
        }[band]
        assert limits(one(ax, f"{method} band")) == pytest.approx(np.array(expected))
        dots = one(ax, f"{method} seeds")
        assert sorted(dots.get_ydata()) == pytest.approx(sorted(values.ravel()))
    assert {"std": "± 1 standard deviation", "minmax": "lowest to highest"}[band] in caption(ax)
    assert "n = 5 seeds" in caption(ax)


def test_a_single_seed_is_called_one():
    assert "n = 1 seed: a single run per point" in caption(plots.accuracy(results(seeds=1)))
    mixed = results(["snip"], seeds=3) + results(["random"], seeds=5)
    assert "n = 3 to 5 seeds" in caption(plots.accuracy(mixed))


def test_the_sparsity_axis_is_logarithmic_in_what_is_left():
    wanted = [0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995]
    ax = plots.accuracy(results(sparsities=wanted))
    ax.figure.draw_without_rendering()
    assert ax.get_xticks() == pytest.approx(wanted)
    assert [t.get_text() for t in ax.get_xticklabels()] == "0 50 80 90 95 98 99 99.5".split()
    pixels = ax.transData.transform([(s, 0) for s in wanted])[:, 0]
    scale = (pixels[-1] - pixels[0]) / math.log10(1 / 0.005)
    assert pixels - pixels[0] == pytest.approx([scale * math.log10(1 / (1 - s)) for s in wanted], abs=0.01)
    boxes = [tick.get_window_extent() for tick in ax.get_xticklabels()]
    assert all(right.x0 - left.x1 > 5 for left, right in itertools.pairwise(boxes))
    assert "log" in ax.get_xlabel()


def test_a_sparsity_that_was_measured_keeps_its_round_tick():
    for achieved in (0.900004, 0.89998):  # 5555 and 5556 of 55552 weights kept
        ax = plots.accuracy(results(sparsities=(achieved, 0.98)))
        assert ax.get_xticks() == pytest.approx([0.9, 0.95, 0.98])
        ax.figure.draw_without_rendering()
        assert [t.get_text() for t in ax.get_xticklabels()] == ["90", "95", "98"]


@pytest.mark.parametrize("x", ["sparsity", "compression"])
@pytest.mark.parametrize("width", [7, 9, 16])
@pytest.mark.parametrize("densest", [0.5, 1e-2, 1e-5])
def test_labels_of_ticks_never_touch_and_whole_decades_stay(x, width, densest):
    figure = mpl.figure.Figure(figsize=(width, 5), layout="constrained")
    ax = plots.accuracy(results(["iterative_snip"], [0, 0.37, 1 - densest]), x=x, ax=figure.subplots())
    figure.draw_without_rendering()
    boxes = [tick.get_window_extent() for tick in ax.get_xticklabels()]
    assert all(left.x1 + 3 < right.x0 for left, right in itertools.pairwise(boxes))
    factors = 1 / (1 - ax.get_xticks()) if x == "sparsity" else ax.get_xticks()
    expected = {10**d for d in range(0, math.floor(-math.log10(densest)) + 1, 2 if densest == 1e-5 else 1)}
    assert expected <= {round(factor, 3) for factor in factors}


@pytest.mark.parametrize("sparsities", [(0.5,), (0.99,), (0.2, 0.36), (0, 0.9, 0.999999)])
def test_every_sparsity_lies_inside_the_axes(sparsities):
    ax = plots.accuracy(results(sparsities=sparsities))
    low, high = ax.get_xlim()
    assert low < min(sparsities) and max(sparsities) < high <= 1
    assert len(ax.get_xticks()) >= 1


def test_the_accuracy_axis_is_not_clipped_and_shows_percent():
    ax = plots.accuracy([r | {"test_accuracy": 0.97} for r in results()])
    low, high = ax.get_ylim()
    assert low <= 0 and high >= 1
    ax.figure.draw_without_rendering()
    assert [t.get_text() for t in ax.get_yticklabels()] == "0 20 40 60 80 100".split()
    assert ax.get_ylabel() == "test accuracy (%)"


def test_chance_and_dense_are_labelled_lines():
    ax = plots.accuracy(results(), chance=0.1, dense=0.605)
    for name, value in (("chance", 0.1), ("dense", 0.605)):
        assert set(one(ax, f"{name} line").get_ydata()) == {value}
    labels = {label.get_text() for label in by_gid(ax, "label")}
    assert labels == {"snip", "random", "chance 10.0%", "dense 60.5%"}


@pytest.mark.parametrize("count", [2, 5, 10, 14])
def test_labels_do_not_overlap_stay_in_order_and_near_their_line(count):
    names = list(plots.LOOKS)[:count]
    ax = plots.accuracy(results(names, spread=0.001), chance=0.1, dense=0.4)
    ax.figure.draw_without_rendering()
    boxes = {label.get_text(): label.get_window_extent() for label in by_gid(ax, "label")}
    assert len(boxes) == count + 2
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes.values(), 2))
    ends = {name: one(ax, name).get_ydata()[-1] for name in names}
    by_height = sorted(names, key=lambda name: (boxes[name].y0 + boxes[name].y1) / 2)
    assert by_height == sorted(names, key=ends.get)
    frame = ax.get_window_extent()
    assert all(frame.x1 < box.x0 and box.y0 > -1 for box in boxes.values())


def test_seeds_that_asked_for_the_same_are_one_point_where_they_meet_on_average():
    table = pd.DataFrame(costly())
    assert table.sparsity.nunique() > 10
    ax = plots.accuracy(table)
    for method in ("snip", "random", "synflow"):
        runs = table[table.method == method]
        expected = [runs[runs.asked_sparsity == asked] for asked in (0.5, 0.9, 0.98)]
        assert one(ax, method).get_xdata() == pytest.approx([np.mean(group.sparsity) for group in expected])
        assert one(ax, method).get_ydata() == pytest.approx([np.mean(group.test_accuracy) for group in expected])
        assert sorted(one(ax, f"{method} seeds").get_xdata()) == pytest.approx(sorted(runs.sparsity))
    assert "n = 3 seeds" in caption(ax)


# Accuracy against compression


@pytest.mark.parametrize("sizes", [True, False], ids=["weights and kept", "sparsity alone"])
def test_compression_is_weights_over_weights_kept(sizes):
    table = [r | {"weights": 10_000, "kept": round((1 - r["sparsity"]) * 10_000)} for r in results()]
    shown = pd.DataFrame(table if sizes else results())
    ax, other = plots.accuracy(shown, x="compression"), plots.accuracy(shown)
    for method in ("snip", "random"):
        assert one(ax, method).get_xdata() == pytest.approx([2, 10, 50])
        assert list(one(ax, method).get_ydata()) == list(one(other, method).get_ydata())
        assert limits(one(ax, f"{method} band")) == pytest.approx(limits(one(other, f"{method} band")))
        assert sorted(set(one(ax, f"{method} seeds").get_xdata().round(9))) == [2, 10, 50]
    assert caption(ax) == caption(other)


def test_the_compression_axis_reads_1_2_5_10_and_is_logarithmic():
    ax = plots.accuracy(results(sparsities=(0, 0.5, 0.9, 0.99)), x="compression")
    ax.figure.draw_without_rendering()
    assert [t.get_text() for t in ax.get_xticklabels()] == "1× 2× 5× 10× 20× 50× 100×".split()
    pixels = ax.transData.transform([(factor, 0) for factor in (1, 10, 100)])[:, 0]
    assert pixels[1] - pixels[0] == pytest.approx(pixels[2] - pixels[1])
    assert ax.get_xlim()[0] < 1 and ax.get_xlim()[1] > 100


def test_a_compression_that_is_none_is_refused():
    with pytest.raises(ValueError, match="finite and at least 1"):
        plots.accuracy([row | {"kept": 0} for row in costly()], x="compression")
    with pytest.raises(ValueError, match="finite and at least 1"):
        plots.accuracy([row | {"sparsity": 1.0} for row in results()], x="compression")
    with pytest.raises(ValueError, match="no column 'sparsity'; it has: method, seed"):
        plots.accuracy(pd.DataFrame(results()).drop(columns="sparsity"), x="compression")
    with pytest.raises(ValueError, match="NaN"):
        plots.accuracy([row | {"kept": math.nan} for row in costly()], x="compression")


# Accuracy against cost

COST_COLUMNS = {"macs": ("sparse_macs", 70_000), "bytes": ("bitmap_bytes", 40_100), "weights": ("kept", 10_000)}


def averages(table, cost):
    """(method, asked sparsity, cost, accuracy) of every point, by hand."""
    groups = {}
    for row in table:
        groups.setdefault((row["method"], row["asked_sparsity"]), []).append(row)
    mean = lambda rows, key: sum(row[key] for row in rows) / len(rows)  # noqa: E731
    return [(*key, mean(rows, COST_COLUMNS[cost][0]), mean(rows, "test_accuracy")) for key, rows in groups.items()]


def unbeaten(points):
    """Brute force: every point against every other."""
    beats = lambda a, b: a[2] <= b[2] and a[3] >= b[3] and a[2:] != b[2:]  # noqa: E731
    return {point for point in points if not any(beats(other, point) for other in points)}


@pytest.mark.parametrize("cost", COST_COLUMNS)
@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_no_other_point_beats(cost, seed):
    table = costly(list(plots.LOOKS), seed=seed)
    found = plots.front(pd.DataFrame(table).sample(frac=1, random_state=seed), cost)
    column = COST_COLUMNS[cost][0]
    assert list(found) == ["method", "asked_sparsity", column, "test_accuracy", "n"]
    expected = sorted(unbeaten(averages(table, cost)), key=lambda point: point[2])
    assert [*zip(found.method, found.asked_sparsity, strict=True)] == [point[:2] for point in expected]
    assert found[column].tolist() == pytest.approx([point[2] for point in expected])
    assert found.test_accuracy.tolist() == pytest.approx([point[3] for point in expected])
    assert set(found.n) == {3}


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_ties_are_kept_or_beaten_as_the_definition_says(spots):
    table = [
        {"method": str(i), "sparsity": 0.5, "seed": 0, "kept": cost, "weights": 9, "val_accuracy": height / 4}
        for i, (cost, height) in enumerate(spots)
    ]
    points = [(r["method"], 0.5, r["kept"], r["val_accuracy"]) for r in table]
    assert set(plots.front(table, "weights").method) == {point[0] for point in unbeaten(points)}


@pytest.mark.parametrize("cost", COST_COLUMNS)
def test_the_step_shows_the_best_accuracy_that_a_budget_buys(cost):
    table = costly()
    column, whole = COST_COLUMNS[cost]
    ax, points = plots.pareto(table, cost), averages(table, cost)
    step = one(ax, "front")
    assert step.get_drawstyle() == "steps-post"
    x, y = step.get_xdata(), step.get_ydata()
    for budget in np.geomspace(min(point[2] for point in points) * 1.001, whole, 50):
        best = max(point[3] for point in points if point[2] <= budget)
        assert y[np.searchsorted(x, budget, side="right") - 1] == pytest.approx(best)
    assert x[-1] == whole
    for method in ("snip", "random", "synflow"):
        drawn = sorted(zip(one(ax, method).get_xdata(), one(ax, method).get_ydata(), strict=True))
        assert np.array(drawn) == pytest.approx(np.array(sorted(p[2:] for p in points if p[0] == method)))
        assert (one(ax, method).get_color(), one(ax, method).get_marker()) == plots.LOOKS[method]
        dots = one(ax, f"{method} seeds")
        seeds = sorted((row[column], row["test_accuracy"]) for row in table if row["method"] == method)
        assert sorted(zip(dots.get_xdata(), dots.get_ydata(), strict=True)) == seeds


def test_cheaper_is_to_the_right_and_dense_is_marked():
    ax = plots.pareto(costly(), dense=0.6, chance=0.1)
    left, right = ax.get_xlim()
    assert ax.get_xscale() == "log" and left > 70_000 and right < min(row["sparse_macs"] for row in costly())
    assert set(one(ax, "dense cost").get_xdata()) == {70_000}
    assert one(ax, "dense cost label").get_text() == "dense 70k"
    assert set(one(ax, "dense line").get_ydata()) == {0.6}
    labels = {label.get_text() for label in by_gid(ax, "label")}
    assert labels == {"snip", "random", "synflow", "Pareto front", "dense 60.0%", "chance 10.0%"}
    ax.figure.draw_without_rendering()
    ticks = {t.get_text(): place for t, place in zip(ax.get_xticklabels(), ax.get_xticks(), strict=True)}
    assert {"1k": 1000, "10k": 10_000}.items() <= ticks.items()
    assert "fewer to the right" in ax.get_xlabel() and "n = 3 seeds" in caption(ax) and "skipped" in caption(ax)


def test_small_and_large_networks_meet_on_one_front():
    table = [r | {"model": "small"} for r in costly(["snip"])]
    table += [r | {"model": "large", "kept": 3 * r["kept"], "weights": 30_000} for r in costly(["snip"], seed=1)]
    ax = plots.pareto(table, "weights", by="model")
    assert {line.get_xdata()[0] for line in by_gid(ax, "dense cost")} == {10_000, 30_000}
    ax.figure.draw_without_rendering()
    low, high = sorted((label.get_window_extent() for label in by_gid(ax, "dense cost label")), key=lambda b: b.y0)
    assert low.y1 <= high.y0 + 1


@pytest.mark.parametrize("count", [2, 5, 10, 14])
def test_labels_of_a_front_do_not_overlap(count):
    ax = plots.pareto(costly(list(plots.LOOKS)[:count]), dense=0.4)
    ax.figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in by_gid(ax, "label")]
    assert len(boxes) == count + 2
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("draw", [plots.pareto, plots.front])
def test_tables_without_costs_are_refused(draw):
    good = costly()
    with pytest.raises(ValueError, match="empty"):
        draw([])
    with pytest.raises(ValueError, match="no column 'sparse_macs'; it has: method, sparsity"):
        draw(results())
    with pytest.raises(ValueError, match="Did you mean 'macs'"):
        draw(good, "mac")
    with pytest.raises(ValueError, match="sparse_macs must be above 0"):
        draw([good[0] | {"sparse_macs": 0}, *good[1:]])
    with pytest.raises(ValueError, match="no .*sparse_macs.*NaN"):
        draw([good[0] | {"sparse_macs": math.nan}, *good[1:]])
    with pytest.raises(ValueError, match="1 of 27 rows have no test_accuracy"):
        draw([good[0] | {"test_accuracy": math.nan}, *good[1:]])
    with pytest.raises(ValueError, match="seed 0 occurs 2 times.*differ in data"):
        draw(on_two_sets())


# Small multiples


def test_each_panel_is_the_figure_of_its_rows():
    table = pd.DataFrame(on_two_sets())
    ax = plots.multiples(table.sample(frac=1, random_state=0), chance=0.1)
    assert [panel.get_title(loc="left") for panel in ax.child_axes] == ["digits", "mnist1d"]
    for panel, name in zip(ax.child_axes, ("digits", "mnist1d"), strict=True):
        alone = plots.accuracy(table[table.data == name], chance=0.1)
        for gid in ("snip", "random", "synflow"):
            for part in (gid, f"{gid} seeds", "chance line"):
                mine, other = one(panel, part), one(alone, part)
                assert sorted(mine.get_ydata()) == pytest.approx(sorted(other.get_ydata()))
                assert (mine.get_color(), mine.get_marker()) == (other.get_color(), other.get_marker())
            assert limits(one(panel, f"{gid} band")) == pytest.approx(limits(one(alone, f"{gid} band")))
    assert "one panel per data" in caption(ax) and "n = 2 to 3 seeds" in caption(ax)


def test_panels_have_common_axes_and_one_set_of_labels():
    table = [r for r in on_two_sets() if r["data"] == "digits" or r["asked_sparsity"] > 0.5]
    ax = plots.multiples(table, x="compression", dense={"digits": 0.9, "mnist1d": 0.6})
    left, right = ax.child_axes
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()
    assert list(left.get_xticks()) == list(right.get_xticks())
    assert (ax.get_xlabel()[:11], ax.get_ylabel()) == ("compression", "test accuracy (%)")
    assert not any(panel.get_xlabel() or panel.get_ylabel() for panel in ax.child_axes)
    assert sorted(label.get_text() for label in by_gid(ax, "label")) == ["dense", "random", "snip", "synflow"]
    assert [set(one(panel, "dense line").get_ydata()) for panel in ax.child_axes] == [{0.9}, {0.6}]
    ax.figure.draw_without_rendering()
    shown = [[t.get_text() for t in panel.get_yticklabels() if t.get_visible()] for panel in ax.child_axes]
    assert shown == ["0 20 40 60 80 100".split(), []]


def test_panels_in_lines_and_grids_do_not_overlap():
    table = [r | {"data": f"set {i}", "epochs": e} for i in range(5) for e in (1, 9) for r in costly(seeds=1)]
    short = [r for r in table if r["epochs"] == 1]
    lines, grid = plots.multiples(short), plots.multiples(table, rows="data", columns="epochs")
    for ax, across in ((lines, 3), (grid, 2)):
        ax.figure.draw_without_rendering()
        boxes = [panel.get_tightbbox() for panel in ax.child_axes if not by_gid(panel, "label")]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        frames = [panel.get_window_extent() for panel in ax.child_axes]
        assert len({round(frame.x0) for frame in frames}) == across
        assert all(a.x1 <= b.x0 or a.y0 >= b.y1 for a, b in itertools.pairwise(frames))
    assert [panel.get_title(loc="left") for panel in grid.child_axes][:3] == [
        "epochs 1, set 0", "epochs 9, set 0", "epochs 1, set 1"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="30 panels.*24"):
        plots.multiples([r | {"data": str(i)} for i in range(30) for r in results()])


def test_a_method_that_some_panels_lack_is_labelled_once():
    table = [r for r in on_two_sets() if (r["data"], r["method"]) != ("mnist1d", "snip")]
    ax = plots.multiples(table)
    assert sorted(label.get_text() for label in by_gid(ax, "label")) == ["random", "snip", "synflow"]
    assert not by_gid(ax.child_axes[1], "snip") and by_gid(ax.child_axes[0], "snip")
    gap = [r | {"epochs": 1 if r["data"] == "digits" else 9} for r in on_two_sets()]
    assert words(plots.multiples(gap, rows="epochs")).count("no runs") == 2


@pytest.mark.parametrize("count", [5, 10, 14])
def test_labels_of_panels_do_not_overlap(count):
    ax = plots.multiples(on_two_sets(methods=list(plots.LOOKS)[:count]), dense=0.4, chance=0.1)
    ax.figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in by_gid(ax, "label")]
    assert len(boxes) == count + 2
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_bad_tables_of_panels_are_refused():
    good = on_two_sets()
    with pytest.raises(ValueError, match="empty"):
        plots.multiples([])
    with pytest.raises(ValueError, match="no column 'dta'; it has: data, method"):
        plots.multiples(good, "dta")
    with pytest.raises(ValueError, match="no data.*NaN"):
        plots.multiples([good[0] | {"data": None}, *good[1:]])
    with pytest.raises(ValueError, match="occurs 2 times.*differ in data"):
        plots.multiples(good, "method", by="asked_sparsity")
    with pytest.raises(ValueError, match="Did you mean 'mnist1d'"):
        plots.multiples(good, dense={"mnist1": 0.6})
    with pytest.raises(ValueError, match="dense.*60.5"):
        plots.multiples(good, dense={"mnist1d": 60.5})
    with pytest.raises(ValueError, match="Did you mean 'std'"):
        plots.multiples(good, band="st")


def test_other_columns_can_be_chosen():
    table = [
        {"scope": scope, "asked_sparsity": 0.9, "epochs": e, "seed": 0, "val_accuracy": e / 10}
        for scope in ("global", "layer")
        for e in (1, 2)
    ]
    ax = plots.accuracy(table, x="epochs", by="scope")
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale()) == ("epochs", "val accuracy (%)", "linear")
    assert one(ax, "global").get_ydata().tolist() == [0.1, 0.2]
    chosen = plots.accuracy([r for r in table if r["epochs"] == 1], x="asked_sparsity", by="scope")
    assert "sparsity" in chosen.get_xlabel() and chosen.get_xscale() == "function"


def test_bad_tables_are_refused():
    good = results()
    with pytest.raises(ValueError, match="empty"):
        plots.accuracy([])
    with pytest.raises(ValueError, match="no column 'seed'; it has: method, sparsity, test_accuracy"):
        plots.accuracy(pd.DataFrame(good).drop(columns="seed"))
    with pytest.raises(ValueError, match="1 of 30 rows.*nan.*snip.*0.5.*seed 0"):
        plots.accuracy([good[0] | {"test_accuracy": math.nan}, *good[1:]])
    with pytest.raises(ValueError, match="60.5.*fractions"):
        plots.accuracy([good[0] | {"test_accuracy": 60.5}, *good[1:]])
    with pytest.raises(ValueError, match=r"sparsity.*\[0, 1\)"):
        plots.accuracy([good[0] | {"sparsity": 1.0}, *good[1:]])
    with pytest.raises(ValueError, match="NaN"):
        plots.accuracy([good[0] | {"method": None}, *good[1:]])
    with pytest.raises(ValueError, match="dense.*60.5"):
        plots.accuracy(good, dense=60.5)
    with pytest.raises(ValueError, match="Did you mean 'std'"):
        plots.accuracy(good, band="st")


def test_a_seed_that_counts_twice_is_refused_with_the_reason():
    two_settings = [r | {"epochs": e, "seconds": e / 7} for e in (10, 20) for r in results()]
    with pytest.raises(ValueError, match="snip.*seed 0 occurs 2 times.*differ in epochs. Select"):
        plots.accuracy(two_settings)


# The small parts


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0, "0.0%"), (1, "100.0%"), (0.5, "50.0%"), (0.0003, "0.03%"), (0.9999, "99.99%"), (0.123, "12.3%")],
)
def test_percent_never_rounds_to_all_or_nothing(fraction, text):
    assert plots.percent(fraction) == text


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.1))
def test_spread_is_the_least_squares_solution(wanted, gap):
    from scipy.optimize import isotonic_regression

    order, steps = np.argsort(wanted, kind="stable"), gap * np.arange(len(wanted))
    best = isotonic_regression(np.array(wanted)[order] - steps).x
    places = np.array(plots.spread(wanted, gap, -10, 10))
    assert places[order] - steps == pytest.approx(best)
    inside = np.array(plots.spread(wanted, gap, 0, 1))[order]
    assert (np.diff(inside) >= gap - 1e-12).all() and inside[0] >= 0 and inside[-1] <= 1 + 1e-9


def test_prediction_and_measurement_share_one_scale():
    ax = plots.prediction(0.4, [0.30, 0.36], "%")
    assert one(ax, "predicted").get_xdata()[0] == 0.4
    assert list(one(ax, "measured").get_xdata()) == [0.30, 0.36]
    assert "predicted 40.0%" in words(ax) and "measured 33.0%" in words(ax)
    assert not by_gid(plots.prediction(None, 3.0, "ms"), "predicted")
