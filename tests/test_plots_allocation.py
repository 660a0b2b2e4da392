"""The table of budgets: every number is read back from the figure and compared with counts made by hand."""

import matplotlib as mpl
import pytest
import torch

import pai_lab as pai
from pai_lab import plots

TOTAL = {"a.weight": 4, "b.weight": 10, "c.weight": 100}
MACS = {"a.weight": 400, "b.weight": 100, "c.weight": 500}

OTHER = {"a.weight": torch.ones(2, 2, dtype=torch.bool)}


def masks(**kept):
    """Masks of one net from the kept weights of a, b and c."""
    return {
        label: pai.Mask(
            {name: (torch.arange(n) < k).view(2, -1) for (name, n), k in zip(TOTAL.items(), counts, strict=True)}
        )
        for label, counts in kept.items()
    }


def drawn(ax, gid):
    return [one for one in ax.texts if one.get_gid() == gid]


def test_every_cell_says_the_density_of_its_layer():
    ax = plots.budgets(masks(even=(2, 5, 50), ends=(4, 0, 53)))
    cells = {tuple(map(round, text.get_position())): text.get_text() for text in drawn(ax, "density")}
    assert cells == {
        (0, 0): "50.0%", (1, 0): "50.0%", (2, 0): "50.0%", (0, 1): "100.0%", (1, 1): "EMPTY", (2, 1): "53.0%",
    }  # fmt: skip
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["even", "ends"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a\n4", "b\n10", "c\n100"]
    [caption] = drawn(ax, "caption")
    assert "keeps 57 of 114 weights" in caption.get_text()
    assert not ax.child_axes


def test_an_empty_layer_is_an_alarm_and_a_dense_one_is_readable():
    ax = plots.budgets(masks(one=(4, 0, 1)))
    dense, empty, thin = drawn(ax, "density")
    assert empty.get_color() == plots.ALARM and empty.get_fontweight() == "bold"
    assert dense.get_color() == "white" and thin.get_color() == plots.INK
    [image] = ax.images
    assert image.get_array().mask.tolist() == [[False, True, False]]
    assert mpl.colors.to_rgb(ax.get_facecolor()) != (1, 1, 1)


def test_bars_show_the_share_of_multiply_adds():
    ax = plots.budgets(masks(even=(2, 5, 50), ends=(4, 0, 53)), MACS)
    [side] = ax.child_axes
    # half of all; 400 + 0 + 0.53 * 500 of 1,000
    assert [bar.get_width() for bar in side.patches] == pytest.approx([0.5, 0.665])
    assert [text.get_text() for text in side.texts] == ["50.0%", "66.5%"]
    assert side.get_ylim() == ax.get_ylim()


def test_rows_that_keep_different_numbers_are_told_apart():
    ax = plots.budgets(masks(one=(1, 1, 1), other=(4, 10, 100)))
    assert "keeps 3 to 114 of 114 weights" in drawn(ax, "caption")[0].get_text()


def test_a_net_with_nothing_left_is_drawn():
    ax = plots.budgets(masks(none=(0, 0, 0)), MACS)
    assert [text.get_text() for text in drawn(ax, "density")] == ["EMPTY"] * 3
    ax.get_figure().draw_without_rendering()


def test_it_draws_on_given_axes_and_leaves_the_settings_alone():
    figure = mpl.figure.Figure()
    before, ax = dict(mpl.rcParams), figure.subplots()
    assert plots.budgets(masks(one=(1, 2, 3)), MACS, ax=ax) is ax
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (({},), "no masks"),
        (({"one": pai.Mask(OTHER), **masks(two=(1, 1, 1))},), "'one' and 'two'"),
        ((masks(one=(1, 1, 1)), {"a.weight": 1, "c.weight": 1}), "macs lacks b.weight"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_an_error(given, message):
    with pytest.raises(ValueError, match=message):
        plots.budgets(*given)
