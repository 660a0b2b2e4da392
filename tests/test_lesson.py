"""Lesson helpers: one wrong reader's function per property, kept predictions, a real kernel for the looks."""

import ast
import inspect
import random
import re

import matplotlib as mpl
import numpy as np
import pytest
import torch

from pai_lab import allocation, lesson, plots
from pai_lab.checks import watch


@pytest.fixture(autouse=True)
def new_session(monkeypatch):
    monkeypatch.setattr(lesson, "_kept", {})


# Set-up, sentences


def test_begin_says_what_runs_and_seeds_all_generators(capsys):
    with mpl.rc_context(), torch.random.fork_rng():
        lesson.begin(3, seed=7)
        drawn = random.random(), np.random.rand(), torch.rand(1).item()
        first = capsys.readouterr().out
        lesson.begin(3, seed=7)
        assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())
        assert first == capsys.readouterr().out
        assert mpl.rcParams["font.size"] == plots.TEXT
    lines = first.splitlines()
    assert len(lines) == 2 and lines[0].startswith("lesson 03: python 3.")
    assert torch.__version__ in lines[0] and "pai_lab" in lines[0]
    assert lines[1].startswith("device cpu") and lines[1].endswith(", seed 7")


def test_say_takes_every_number_from_code(capsys):
    lesson.say("**SNIP** reaches {acc:.1%} with {best[lr]:g}.", acc=0.2634, best={"lr": 0.002})
    assert capsys.readouterr().out == "SNIP reaches 26.3% with 0.002.\n"


@pytest.mark.parametrize("numbers", [{}, {"acc": 1, "rest": 2}, {"ac": 1}])
def test_say_refuses_numbers_that_do_not_fit(numbers):
    with pytest.raises(ValueError, match="only in one of them"):
        lesson.say("{acc}", **numbers)


# Recall


def test_recall_hides_the_answer_in_a_fold_and_tells_it_in_plain_text(monkeypatch, capsys):
    lesson.recall("What does **SynFlow** read?", "no data", "it is data-free", options=["one batch", "no data"])
    plain = capsys.readouterr().out
    assert plain.index("1. one batch") < plain.index("2. no data") < plain.index("Answer: 2. no data")
    assert "it is data-free" in plain and "**" not in plain
    shown = []
    monkeypatch.setattr(lesson, "_show", lambda markdown, plain: shown.append(markdown))
    lesson.recall("How many?", 3)
    question, fold = shown[0].split("<details>")
    assert "How many?" in question and "3" not in question
    assert fold.endswith("</details>") and "\n\n3\n\n" in fold and "<summary>Answer</summary>" in fold


def test_recall_wants_an_answer_that_is_an_option():
    with pytest.raises(ValueError, match="none of the options: 'a', 'b'"):
        lesson.recall("?", "c", options=["a", "b"])


# Predictions


def test_a_number_is_kept_and_shown_beside_the_measurement(capsys):
    lesson.predict("snip", "SNIP's accuracy at 98%?", 0.4, unit="%")
    assert "Your answer: 40.0%" in capsys.readouterr().out
    assert lesson.predictions() == {"snip": 0.4}
    lesson.reveal("snip", [0.20, 0.28, 0.30])
    out = capsys.readouterr().out
    assert "Predicted: 40.0%." in out
    assert "Measured: 26.0% (mean of n = 3, from 20.0% to 30.0%)." in out
    assert "lies 14.0 percentage points above the measurement." in out


@pytest.mark.parametrize(
    ("answer", "truth", "distance"),
    [
        (12, 30.0, "18 ms below the measurement."),
        (30, 30.0, "They are equal."),
        (31, torch.tensor([30.0, 34.0]), "1 ms below the measurement, within the range of the runs."),
    ],
)
def test_the_distance_is_told_without_a_grade(capsys, answer, truth, distance):
    lesson.predict("time", "How long?", answer, unit="ms")
    lesson.reveal("time", truth)
    out = capsys.readouterr().out
    assert distance in out
    assert not re.search("right|wrong|correct|well done|too", out, re.IGNORECASE)


def test_the_answer_stays_when_the_cell_runs_again_without_one():
    lesson.predict("n", "How many?", 3)
    lesson.predict("n", "How many, now?")
    assert lesson.predictions() == {"n": 3}
    lesson.predict("n", "How many?", unit="ms")  # another question: the number means something else
    assert lesson.predictions() == {"n": None}


def test_skipping_is_allowed(capsys):
    lesson.predict("n", "How many?")
    lesson.reveal("n", 5)
    out = capsys.readouterr().out
    assert "You skipped this one." in out and "Measured: 5." in out and "lies" not in out
    lesson.predict("c", "Which?", choices=["a", "b"])
    lesson.reveal("c", "b")
    lesson.predict("o", "Order?", order=["a", "b"])
    lesson.reveal("o", ["b", "a"])
    out = capsys.readouterr().out
    assert "Measured: b." in out and "Measured: 1. b, 2. a." in out


@pytest.mark.parametrize(
    ("truth", "text"),
    [(5, "5"), ("b", "b"), (["b", "a"], "1. b, 2. a"), ({"a": 1, "b": 2}, "1. b (2), 2. a (1)")],
)
def test_reveal_works_when_the_question_was_never_asked(capsys, truth, text):
    lesson.predict("other", "?")
    lesson.reveal("lost", truth)
    out = capsys.readouterr().out
    assert "No prediction is kept under 'lost'" in out and "'other'" in out and f"Measured: {text}." in out


def test_a_choice(capsys):
    lesson.predict("which", "Which wins?", "snip", choices=["snip", "synflow"])
    lesson.reveal("which", "synflow")
    lesson.reveal("which", "snip")
    out = capsys.readouterr().out
    assert "Choose one: snip, synflow." in out
    assert out.index("They differ.") < out.index("They agree.")


def test_an_order_counts_the_pairs_that_stand_as_measured(capsys):
    lesson.predict("order", "Best first?", ["snip", "random", "synflow"], order=["random", "snip", "synflow"], unit="%")
    lesson.reveal("order", {"random": 0.13, "snip": 0.26, "synflow": 0.4})
    out = capsys.readouterr().out
    assert "Predicted: 1. snip, 2. random, 3. synflow." in out
    assert "Measured: 1. synflow (40.0%), 2. snip (26.0%), 3. random (13.0%)." in out
    assert "1 of 3 pairs stand in the measured order." in out
    lesson.reveal("order", {"random": 0.2, "snip": 0.2, "synflow": 0.1})  # equal values have no order
    assert "2 of 2 pairs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "settings", "message"),
    [
        ("snp", {"choices": ["snip", "random"]}, "Did you mean 'snip'"),
        (["a", "a"], {"order": ["a", "b"]}, "each of a, b once"),
        ("ab", {"order": ["a", "b"]}, "each of a, b once"),
        ("much", {}, "a finite number"),
        (float("nan"), {}, "a finite number"),
        (40, {"unit": "%"}, r"did you mean 0\.4"),
        (1, {"choices": [1], "order": [1]}, "not both"),
    ],
)
def test_an_impossible_answer_is_refused_and_nothing_is_kept(answer, settings, message):
    with pytest.raises(ValueError, match=message):
        lesson.predict("key", "?", answer, **settings)
    assert lesson.predictions() == {}


def test_an_impossible_truth_is_refused():
    lesson.predict("which", "?", choices=["snip", "random"])
    lesson.predict("share", "?", unit="%")
    with pytest.raises(ValueError, match="Did you mean 'snip'"):
        lesson.reveal("which", "snp")
    with pytest.raises(ValueError, match=r"did you mean 0\.26"):
        lesson.reveal("share", 26)
    with pytest.raises(ValueError, match="draws numbers"):
        lesson.reveal("which", "snip", figure=True)


def test_a_figure_beside_the_text():
    lesson.predict("share", "?", 0.4, unit="%")
    ax = lesson.reveal("share", [0.3, 0.5], figure=True)
    [predicted] = ax.findobj(lambda artist: artist.get_gid() == "predicted")
    assert list(predicted.get_xdata()) == [0.4]


# The form


def form(**settings):
    """The form's entries, a function that presses a button, and its status line."""
    import ipywidgets

    lesson.predict("key", "?", **settings)
    found, todo = [], [lesson._form(lesson._kept["key"])]
    while todo:
        widget = todo.pop(0)
        found.append(widget)
        todo += getattr(widget, "children", ())
    buttons = {w.description: w for w in found if isinstance(w, ipywidgets.Button)}
    [status] = [w for w in found if type(w) is ipywidgets.HTML]
    kinds = (ipywidgets.Text, ipywidgets.RadioButtons, ipywidgets.Dropdown)
    return [w for w in found if isinstance(w, kinds)], lambda word: buttons[word].click(), status


@pytest.mark.parametrize(
    ("unit", "typed", "kept"),
    [("%", "40", 0.4), ("%", " 40,5 % ", 0.405), ("ms", "12 ms", 12.0), ("", "-3e2", -300.0)],
)
def test_a_number_typed_into_the_form_is_kept(unit, typed, kept):
    [entry], press, status = form(unit=unit)
    entry.value = typed  # as Enter does
    assert lesson.predictions()["key"] == pytest.approx(kept)
    press("Skip")
    assert lesson.predictions() == {"key": None} and status.value == "Skipped."
    press("Commit")
    assert lesson.predictions()["key"] == pytest.approx(kept)
    assert status.value.startswith("Kept:")


@pytest.mark.parametrize("typed", ["", "many", "400", "inf"])
def test_what_is_no_answer_is_said_in_the_form_and_not_kept(typed):
    [entry], press, status = form(unit="%")
    entry.value = typed
    press("Commit")
    assert lesson.predictions() == {"key": None}
    assert status.value and "Kept" not in status.value


def test_the_forms_of_a_choice_and_of_an_order():
    [entry], press, status = form(choices=["a", "b"])
    press("Commit")
    assert lesson.predictions() == {"key": None} and status.value
    entry.value = "b"
    press("Commit")
    assert lesson.predictions() == {"key": "b"}
    first, second = (entries := form(order=["a", "b"]))[0]
    press = entries[1]
    assert "choose" in [label for label, _ in first.options] and first.index == 0
    press("Commit")
    first.value = second.value = "a"
    press("Commit")
    assert lesson.predictions() == {"key": None}
    first.value, second.value = "b", "a"
    press("Commit")
    assert lesson.predictions() == {"key": ["b", "a"]}
    press("Skip")
    assert lesson.predictions() == {"key": None}


# Checks: right functions


def magnitude_mask(weight, sparsity):
    keep = torch.zeros(weight.numel(), dtype=torch.bool)
    keep[weight.abs().flatten().argsort(descending=True)[: round((1 - sparsity) * weight.numel())]] = True
    return keep.view_as(weight)


def global_masks(scores, sparsity):
    flat = torch.cat([s.flatten() for s in scores.values()])
    keep = torch.zeros(len(flat), dtype=torch.bool)
    keep[flat.argsort(descending=True)[: round((1 - sparsity) * len(flat))]] = True
    parts = keep.split([s.numel() for s in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}


def snip_score(weight, gradient):
    return (weight * gradient).abs()


RIGHT = {function.__name__: function for function in (magnitude_mask, global_masks, snip_score)}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_function_passes_and_the_properties_are_told_once(name, capsys):
    assert lesson.check(name, RIGHT[name]) is True
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"ok: {name}: ") and line.count("leaves its input untouched") == 1


def test_the_package_itself_passes():
    def package(scores, sparsity):
        return allocation.allocate(scores, sparsity, allow_empty=True)

    assert lesson.check("global_masks", package)
    assert lesson.check("magnitude_mask", lambda w, s: package({"w": w.abs()}, s)["w"])


# Checks: one wrong function for each property


def threshold(weight, sparsity):
    """Textbook code: everything above the k-th value; equal weights fall together."""
    removed = weight.numel() - round((1 - sparsity) * weight.numel())
    if removed == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    return weight.abs() > weight.abs().flatten().kthvalue(removed).values


def in_place(weight, sparsity):
    keep = magnitude_mask(weight, sparsity)
    weight.mul_(keep)
    return keep


def with_count(count):
    def mask(weight, sparsity):
        n = weight.numel()
        return magnitude_mask(weight, 1 - count(sparsity, n) / n)

    return mask


WRONG_MASKS = {
    "returns a bool tensor": lambda w, s: magnitude_mask(w, s).float(),
    "returns a bool tensor (": lambda w, s: None,
    "keeps the weight's shape": lambda w, s: magnitude_mask(w, s).flatten(),
    "sparsity 0 keeps everything": lambda w, s: magnitude_mask(w, max(s, 0.25)),
    "sparsity 1 removes everything": lambda w, s: magnitude_mask(w, min(s, 0.75)),
    "keeps exactly round": with_count(lambda s, n: max(round((1 - s) * n) - (0 < s < 1), 0)),
    "keeps the largest |w|": lambda w, s: magnitude_mask(w - w.min(), s),  # forgot abs
    "also among equal weights": threshold,
    "rounds the number": with_count(lambda s, n: n - round(s * n)),
    "leaves its input untouched": in_place,
    "runs without an error": lambda w, s: magnitude_mask(w, s)[5],
}


def smallest(scores, sparsity):
    return global_masks({name: -s for name, s in scores.items()}, sparsity)


def in_each_layer(scores, sparsity):
    return {name: global_masks({name: s}, sparsity)[name] for name, s in scores.items()}


def of_sizes(scores, sparsity):
    return global_masks({name: s.abs() for name, s in scores.items()}, sparsity)


def above_the_threshold(scores, sparsity):
    flat = torch.cat([s.flatten() for s in scores.values()])
    removed = len(flat) - round((1 - sparsity) * len(flat))
    edge = flat.sort().values[removed - 1] if removed else -torch.inf
    return {name: s > edge for name, s in scores.items()}


def overwriting(scores, sparsity):
    masks = global_masks(scores, sparsity)
    scores.update(masks)
    return masks


WRONG_GLOBAL = {
    "returns a dict with the same layers": lambda s, p: list(global_masks(s, p).values()),
    "returns a dict with the same": lambda s, p: dict(reversed(global_masks(s, p).items())),
    "every mask is a bool tensor": lambda s, p: {n: m.int() for n, m in global_masks(s, p).items()},
    "the shape of its scores": lambda s, p: {n: m.flatten() for n, m in global_masks(s, p).items()},
    "sparsity 0 keeps everything": lambda s, p: global_masks(s, max(p, 0.25)),
    "sparsity 1 removes everything": lambda s, p: global_masks(s, min(p, 0.75)),
    "in total": lambda s, p: global_masks(s, p if p in (0, 1) else p / 2),
    "also among equal scores": above_the_threshold,
    "one threshold for all layers": in_each_layer,
    "one threshold": smallest,
    "signs included": of_sizes,
    "leaves its input untouched": overwriting,
    "runs without an error": lambda s, p: s["c"],
}
WRONG_SNIP = {
    "returns a float tensor": lambda w, g: (w * g).tolist(),
    "keeps the weight's shape": lambda w, g: (w * g).abs().flatten(),
    "a weight of 0 scores 0": lambda w, g: g.abs(),
    "a gradient of 0 scores 0": lambda w, g: w.abs(),
    "no score is negative": lambda w, g: w * g,
    "twice the weight gives twice the score": lambda w, g: (w * g) ** 2,
    "twice the gradient gives twice the score": lambda w, g: w.abs() * (g != 0),
    "twice the weight": lambda w, g: (w * g).abs() / (w * g).abs().sum().clamp(min=1),  # normalised
    "equals |weight * gradient|": lambda w, g: 3 * (w * g).abs(),
    "leaves its input untouched": lambda w, g: w.mul_(g).abs(),
}
WRONG = [
    pytest.param(name, word, function, id=f"{name}: {word}")
    for name, wrong in (
        ("magnitude_mask", WRONG_MASKS),
        ("global_masks", WRONG_GLOBAL),
        ("snip_score", WRONG_SNIP),
    )
    for word, function in wrong.items()
]


@pytest.mark.parametrize(("name", "word", "function"), WRONG)
def test_a_wrong_function_is_caught_and_its_property_named(name, word, function):
    with pytest.raises(AssertionError) as caught:
        lesson.check(name, function)
    headline, example, *instead = str(caught.value).splitlines()
    assert headline.startswith(f"{name}: broken: ") and word in headline
    assert example.startswith(f"Smallest counterexample: {name}(") and instead


@pytest.mark.parametrize("name", RIGHT)
def test_every_property_has_a_function_that_breaks_it(name, capsys):
    """No property is listed that no wrong function above could break."""
    lesson.check(name, RIGHT[name])
    told = capsys.readouterr().out
    words = [word for param in WRONG for word in [param.values[1]] if param.values[0] == name]
    tree = ast.parse(inspect.getsource(watch._CHECKS[name]))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    properties = [text for text in texts if len(text) > 12 and text in told and text[0] != " "]  # no ends of f-strings
    assert properties
    for one in properties:
        assert any(word in one for word in words), one


def test_a_function_that_spoils_its_input_spoils_no_later_check():
    with pytest.raises(AssertionError):
        lesson.check("magnitude_mask", in_place)
    assert lesson.check("magnitude_mask", magnitude_mask)


def test_the_counterexample_shows_the_numbers():
    with pytest.raises(AssertionError) as caught:
        lesson.check("magnitude_mask", WRONG_MASKS["keeps the largest |w|"])
    assert "magnitude_mask([[1.0, -4.0], [3.0, -2.0]], 0.5)" in str(caught.value)
    assert "[[True, False], [True, False]]" in str(caught.value)


def test_the_readers_own_error_is_told_and_kept_as_the_cause():
    with pytest.raises(AssertionError, match="raised ZeroDivisionError") as caught:
        lesson.check("snip_score", lambda w, g: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_stub_is_not_done_yet(capsys):
    def stub(weight, sparsity):
        raise NotImplementedError("sort the sizes first")

    assert lesson.check("magnitude_mask", stub) is False
    assert capsys.readouterr().out == "not done yet: magnitude_mask (sort the sizes first)\n"


def test_check_refuses_an_unknown_name_and_what_is_no_function():
    with pytest.raises(ValueError, match="Did you mean 'snip_score'"):
        lesson.check("snip_scores", snip_score)
    with pytest.raises(TypeError, match="your function itself"):
        lesson.check("snip_score", snip_score(torch.ones(1), torch.ones(1)))


def test_a_new_check_is_one_small_function(monkeypatch, capsys):
    monkeypatch.setattr(watch, "_CHECKS", {})

    @lesson.checks
    def double(function):
        for x in (1, 2):
            got = function(x)
            yield "doubles", got == 2 * x, f"returned {got}"

    assert lesson.check("double", lambda x: 2 * x)
    with pytest.raises(AssertionError, match=r"double: broken: doubles.\nSmallest counterexample: double\(2\)"):
        lesson.check("double", lambda x: x + 1)


# In a real kernel: nobody there (as in CI), then a front end that takes input


CELLS = [
    "from pai_lab import lesson; lesson.predict('a', 'How *much*?', unit='%')",
    "lesson.reveal('a', 0.25)",
    "lesson.recall('Which?', 'this', options=['this', 'that'])",
    "lesson.say('**{x:.0%}**', x=0.5)",
    "ax = lesson.plots.prediction(1, 2)",
]


@pytest.fixture(scope="module")
def kernel():
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def outputs(client, code, somebody):
    """The display data of one cell, as a front end that allows input (or not) receives them."""
    client.allow_stdin, found = somebody, []

    def keep(message):
        assert message["header"]["msg_type"] != "error", message["content"]
        if message["header"]["msg_type"] == "display_data":
            found.append(message["content"]["data"])

    client.execute_interactive(code, allow_stdin=somebody, timeout=60, output_hook=keep)
    return found


def test_in_a_notebook_that_nobody_sees_there_is_text_and_no_form(kernel):
    ask, show, recall, say, figure = (outputs(kernel, cell, False) for cell in CELLS)
    assert [list(data) for data in (*ask, *show, *recall, *say)] == [["text/markdown", "text/plain"]] * 4
    assert "How *much*?" in ask[0]["text/markdown"] and "**Predict.**" in ask[0]["text/markdown"]
    assert "skipped" in show[0]["text/plain"] and "25.0%" in show[0]["text/plain"]
    assert "<details>" in recall[0]["text/markdown"] and "<" not in recall[0]["text/plain"]
    assert (say[0]["text/markdown"], say[0]["text/plain"]) == ("**50%**", "50%")
    assert len(figure) == 1 and "image/png" in figure[0]


def test_figures_go_on_to_be_shown_after_the_first(kernel):
    for _ in range(2):
        [figure] = outputs(kernel, "ax = lesson.plots.prediction(1, 2)", False)
        assert "image/png" in figure


def test_where_somebody_sees_it_there_is_a_form(kernel):
    text, shown = outputs(kernel, CELLS[0], True)
    assert "text/markdown" in text
    assert "application/vnd.jupyter.widget-view+json" in shown


def test_the_fold_works_in_an_exported_page():
    import nbformat
    from nbconvert import HTMLExporter

    data = {"text/markdown": "**Recall.** Q\n\n<details><summary>Answer</summary>\n\n*this*\n\n</details>"}
    cell = nbformat.v4.new_code_cell("recall()", outputs=[nbformat.v4.new_output("display_data", data)])
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert re.search(r"<details>\s*<summary>Answer</summary>.*<em>this</em>.*</details>", page, re.DOTALL)
