"""The duel of two scorers: groups, ranks and words are read back from the figure and counted here by hand."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pai_lab import plots

A = {"x": torch.tensor([[1.0, 5.0], [3.0, 2.0]]), "y": torch.tensor([[4.0, 6.0]])}
B = {
    "x": torch.tensor([[10.0, 60.0], [40.0, 30.0]]),
    "y": torch.tensor([[20.0, 50.0]]),
}


def points(ax, gid):
    [line] = [one for one in ax.lines if one.get_gid() == gid]
    return sorted(zip(*map(np.round, line.get_data(), (6, 6)), strict=True))


def texts(ax, gid):
    return [text.get_text().replace("\n", " ") for text in ax.texts if text.get_gid() == gid]


def noise(n, seed):
    return {"w": torch.rand(n, 10, generator=torch.Generator().manual_seed(seed))}


def test_every_weight_stands_at_its_two_ranks_in_its_group():
    ax = plots.duel(A, B, 0.5, names=("this", "that"))
    # kept by A: 5, 4, 6; by B: 60, 40, 50
    assert points(ax, "both") == [(0.8, 1.0), (1.0, 0.8)]
    assert points(ax, "first") == [(0.6, 0.2)]
    assert points(ax, "second") == [(0.4, 0.6)]
    assert points(ax, "neither") == [(0.0, 0.0), (0.2, 0.4)]
    assert texts(ax, "count") == ["kept by both 2", "only this 1", "only that 1", "by neither 2"]
    assert "by this" in ax.get_xlabel() and "by that" in ax.get_ylabel()


def test_the_caption_has_correlation_overlap_and_chance():
    [caption] = texts(plots.duel(A, B, 0.5), "caption")
    # ranks differ by 0 1 1 1 2 1 (squares sum to 8): 1 - 6 * 8 / (6 * 35); 2 of 4; random halves: 1.5 of 4.5
    assert "6 weights" in caption and "rank correlation 0.77" in caption
    assert "overlap of the kept 50.0% (Jaccard), by chance 33.3%" in caption
    assert "sparsity 50.0%" in caption and "drawn" not in caption


def test_only_the_order_of_scores_counts():
    a, b = noise(30, 0), noise(30, 1)
    same = plots.duel({"w": a["w"].exp()}, {"w": b["w"].pow(9)}, 0.8)
    for gid in ("both", "first", "second", "neither"):
        assert points(same, gid) == points(plots.duel(a, b, 0.8), gid)


def test_the_cuts_part_the_groups():
    ax = plots.duel(noise(30, 0), noise(30, 1), 0.9)
    across, along = (line for line in ax.lines if line.get_gid() == "cut")
    x, y = across.get_xdata()[0], along.get_ydata()[0]
    assert all(px > x and py > y for px, py in points(ax, "both"))
    assert all(px > x and py < y for px, py in points(ax, "first"))
    assert all(px < x and py > y for px, py in points(ax, "second"))
    assert all(px < x and py < y for px, py in points(ax, "neither"))


def test_equal_scores_share_a_rank_and_have_no_correlation():
    ax = plots.duel({"x": torch.ones(2, 2)}, {"x": torch.arange(4.0).view(2, 2)}, 0.5)
    assert {x for gid in ("both", "first", "second", "neither") for x, _ in points(ax, gid)} == {0.5}
    assert "not defined" in texts(ax, "caption")[0]


def test_of_many_weights_some_are_drawn_and_all_are_counted():
    ax = plots.duel(noise(1200, 0), noise(1200, 1), 0.5)
    drawn = sum(len(points(ax, gid)) for gid in ("both", "first", "second", "neither"))
    assert drawn == 4000 and "12,000 weights, 4,000 drawn" in texts(ax, "caption")[0]
    counts = [int(text.split()[-1].replace(",", "")) for text in texts(ax, "count")]
    assert sum(counts) == 12_000 and counts[0] + counts[1] == counts[0] + counts[2] == 6_000


@pytest.mark.parametrize(
    ("b", "sparsity", "message"),
    [
        ({"x": A["x"]}, 0.5, "same layers"),
        (A | {"y": torch.ones(1, 3)}, 0.5, "shapes"),
        (A | {"y": torch.tensor([[1.0, torch.nan]])}, 0.5, "'y'"),
        (B, 50, "sparsity"),
    ],
)
def test_what_cannot_be_compared_is_an_error_and_leaves_no_figure(b, sparsity, message, monkeypatch):
    monkeypatch.setattr(plt, "get_backend", lambda: "inline")
    before = plt.get_fignums()
    with pytest.raises(ValueError, match=message):
        plots.duel(A, b, sparsity)
    assert plt.get_fignums() == before


def test_it_draws_on_given_axes_in_the_houses_style_with_all_text_inside():
    before = dict(mpl.rcParams)
    ax = plots.duel(noise(30, 0), noise(30, 1), 0.9, names=("magnitude", "second order"))
    assert dict(mpl.rcParams) == before and ax.get_title(loc="left") == ""
    figure = ax.figure
    figure.draw_without_rendering()
    for text in figure.findobj(mpl.text.Text):
        if text.get_visible() and text.get_text():
            box = text.get_window_extent()
            assert -1 <= box.x0 and box.x1 <= figure.bbox.width + 1 and -1 <= box.y0, text.get_text()
            assert text.get_fontsize() >= plots.SMALL
    figure = mpl.figure.Figure()
    ax = figure.subplots()
    assert plots.duel(A, B, 0.5, ax=ax) is ax
