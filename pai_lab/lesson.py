"""What a lesson needs: predictions that come back at the reveal, checks that name the broken property.

    lesson.begin(4); lesson.predict("snip", "SNIP's accuracy at 98%?", unit="%"); lesson.reveal("snip", 0.26)

Nothing here waits for input: a lesson also runs from top to bottom with nobody there, in plain text.
"""

import math
import platform
import random
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from numbers import Real
from string import Formatter

import matplotlib.pyplot as plt
import numpy as np
import torch

from pai_lab import plots
from pai_lab.catalog import nearest
from pai_lab.checks import check, checks

__all__ = ["begin", "check", "checks", "predict", "predictions", "recall", "reveal", "say"]


def begin(number, seed=0):
    """Start lesson `number`: seed Python, NumPy and torch, set the figures' style, print what runs here."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    plt.rcParams.update(plots.STYLE)
    # without the place in the code: in a notebook a file of this one machine
    warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {message}\n"
    house, threads = sys.modules[__package__].__version__, torch.get_num_threads()
    print(f"lesson {number:02d}: python {platform.python_version()}, torch {torch.__version__}, pai_lab {house}")
    also = torch.accelerator.current_accelerator(check_available=True)
    also = f" ({also} is there: train(..., device='{also}'))" if also else ""
    print(f"device cpu{also}, {threads} thread{'s' * (threads != 1)}, seed {seed}")


def say(template, **numbers):
    """Show a sentence of Markdown whose numbers come from code: `say("SNIP: {acc:.1%}", acc=0.263)`.

    ValueError if the template names a number that is not given, or a given one is not in it."""
    named = {f.split(".")[0].split("[")[0] for _, f, _, _ in Formatter().parse(template) if f is not None}
    if wrong := named ^ set(numbers):
        raise ValueError(
            f"the template names {', '.join(sorted(named)) or 'nothing'} and the numbers given are "
            f"{', '.join(sorted(numbers)) or 'none'}; only in one of them: {', '.join(sorted(wrong))}"
        )
    _show(template.format(**numbers))


def recall(question, answer, why="", *, options=()):
    """Ask about an earlier lesson; the answer (one of `options` if there are any) and `why` are under a fold.

    The fold opens with a click or Enter, also in an exported page without a kernel; in plain text the answer
    stands below the question. ValueError if the answer is none of the options."""
    if options and answer not in options:
        raise ValueError(f"the answer {answer!r} is none of the options: {', '.join(map(repr, options))}")
    listed = "".join(f"\n{i}. {option}" for i, option in enumerate(options, 1))
    asked = f"**Recall.** {question}" + f"\n{listed}" * bool(options)
    told = f"{f'{options.index(answer) + 1}. ' if options else ''}{answer}"
    told = f"{told}\n\n{why}" if why else told
    fold = f"<details><summary>Answer</summary>\n\n{told}\n\n</details>"
    _show(f"{asked}\n\n{fold}", f"{asked}\n\nAnswer: {told}")


# -- predictions -------------------------------------------------------------------------------------------
@dataclass
class Prediction:
    """What was asked, and the answer: a number, one of `choices`, `order` put in order, or None (skipped)."""

    question: str = ""
    choices: list | None = None
    order: list | None = None
    unit: str = ""
    answer: object = None

    def accept(self, answer):
        """The answer in its kept form; ValueError, which says what is allowed, if it is none."""
        if self.choices and answer not in self.choices:
            raise nearest("choice", answer, self.choices)
        if self.order:
            if isinstance(answer, str) or sorted(answer, key=str) != sorted(self.order, key=str):
                raise ValueError(f"an order names each of {', '.join(map(str, self.order))} once; got {answer!r}")
            return list(answer)
        return answer if self.choices else self.number(answer)

    def number(self, value):
        """A finite number; with the unit "%" a fraction."""
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"a finite number is needed here, got {value!r}")
        if self.unit == "%" and abs(value) > 1:
            raise ValueError(f"with the unit % numbers are fractions; got {value}, did you mean {value / 100:g}?")
        return float(value)

    def text(self, value):
        """The value as the reader sees it: percent, a number with its unit, or names in order."""
        if self.order:
            return ", ".join(f"{place}. {name}" for place, name in enumerate(value, 1))
        return str(value) if self.choices else self.numeral(value)

    def numeral(self, value):
        """A number with its unit; a fraction as percent."""
        return plots.percent(value) if self.unit == "%" else f"{value:.4g} {self.unit}".strip()


_kept: dict[str, Prediction] = {}


def predictions():
    """The answers of this session: key -> answer, None where the reader skipped."""
    return {key: one.answer for key, one in _kept.items()}


def predict(key, question, answer=None, *, choices=None, order=None, unit=""):
    """Ask the reader to commit before seeing: to a number, to one of `choices`, or to `order` put in order.

    The answer comes from a small form in a live notebook, or from `answer`; it is kept under `key` until
    the kernel ends, also when the cell runs again. No answer is fine. With the unit "%" the form takes
    percent and `answer` is a fraction, as all data are. ValueError for an answer that is none of the
    possible ones.
    """
    if choices and order:
        raise ValueError("a question has choices (pick one) or an order (sort them), not both")
    one = Prediction(question, list(choices or []) or None, list(order or []) or None, unit)
    before = _kept.get(key)
    if answer is not None:
        one.answer = one.accept(answer)
    elif before and (before.choices, before.order, before.unit) == (one.choices, one.order, one.unit):
        one.answer = before.answer
    _kept[key] = one
    names = f" Choose one: {', '.join(map(str, one.choices))}." if choices else ""
    names = f" Put in order: {', '.join(map(str, one.order))}." if order else names
    kept = "none yet; you may skip" if one.answer is None else f"**{one.text(one.answer)}**"
    _show(f"**Predict.** {question}{names} Your answer: {kept}.")
    if _someone_is_there():
        from IPython.display import display

        display(_form(one))


def reveal(key, truth, *, figure=False):
    """Show what was predicted under `key` beside what was measured, and how far apart they are.

    `truth` is a number or the numbers of several seeds; a choice; or an order: a list, or a dict name ->
    value, which is sorted, highest first. With `figure` also a small figure, for numbers only; its Axes are
    returned.
    """
    one = _kept.get(key) or _guess_kind(truth)
    if figure and (one.order or one.choices):
        raise ValueError("figure=True draws numbers; this prediction is a choice or an order")
    compare = _compare_orders if one.order else _compare_choices if one.choices else _compare_numbers
    measured, distance = compare(one, truth)
    predicted = "You skipped this one." if one.answer is None else f"**Predicted:** {one.text(one.answer)}."
    if key not in _kept:
        there = ", ".join(map(repr, _kept)) or "none"
        predicted = f"No prediction is kept under {key!r} in this session; there is: {there}."
    _show("\n\n".join(filter(None, [predicted, f"**Measured:** {measured}.", distance])))
    return plots.prediction(one.answer, truth, one.unit) if figure else None


def _guess_kind(truth):
    if isinstance(truth, str):
        return Prediction(choices=[truth])
    names = isinstance(truth, Mapping) or (isinstance(truth, (list, tuple)) and isinstance(truth[0], str))
    return Prediction(order=list(truth)) if names else Prediction()


def _compare_numbers(one, truth):
    seen = [one.number(float(value)) for value in np.atleast_1d(np.asarray(truth, dtype=float))]
    mean = sum(seen) / len(seen)
    measured = one.text(mean)
    if len(seen) > 1:
        measured += f" (mean of n = {len(seen)}, from {one.text(min(seen))} to {one.text(max(seen))})"
    if one.answer is None:
        return measured, ""
    gap = abs(one.answer - mean)
    far = f"{100 * gap:.1f} percentage points" if one.unit == "%" else f"{gap:.4g} {one.unit}".strip()
    side = "above" if one.answer > mean else "below"
    inside = len(seen) > 1 and min(seen) <= one.answer <= max(seen)
    within = ", within the range of the runs" if inside else ""
    return (
        measured,
        f"The prediction lies {far} {side} the measurement{within}." if gap else "They are equal.",
    )


def _compare_choices(one, truth):
    if truth not in one.choices:
        raise nearest("choice", truth, one.choices)
    same = "" if one.answer is None else "They agree." if one.answer == truth else "They differ."
    return str(truth), same


def _compare_orders(one, truth):
    values = truth if isinstance(truth, Mapping) else {}
    names = one.accept(sorted(values, key=values.get, reverse=True) if values else truth)
    measured = one.text([f"{name} ({one.numeral(values[name])})" if values else name for name in names])
    if one.answer is None:
        return measured, ""
    pairs = [(a, b) for a, b in combinations(names, 2) if not values or values[a] != values[b]]
    agree = sum(one.answer.index(a) < one.answer.index(b) for a, b in pairs)
    return measured, f"{agree} of {len(pairs)} pairs stand in the measured order."


def _form(one):
    """The form of a prediction: an entry, Commit and Skip; every part is reached by Tab."""
    import ipywidgets

    status = ipywidgets.HTML()
    if one.choices:
        entries = [ipywidgets.RadioButtons(options=one.choices, value=None)]
    elif one.order:
        options = [("choose", ""), *((str(name), name) for name in one.order)]
        entries = [ipywidgets.Dropdown(options=options, description=f"{i + 1}.") for i in range(len(one.order))]
    else:
        # Sent on Enter or on leaving the field: letter by letter, Commit can overtake the last ones.
        entries = [ipywidgets.Text(placeholder="a number", description="Answer", continuous_update=False)]

    def commit(_):
        try:
            one.answer = one.accept(_read(one, [entry.value for entry in entries]))
            status.value = f"Kept: <b>{one.text(one.answer)}</b>. It comes back at the reveal."
        except ValueError as error:
            status.value = str(error)

    if not (one.choices or one.order):
        entries[0].observe(commit, "value")

    def skip(_):
        one.answer = None
        status.value = "Skipped."

    buttons = []
    for word, action in (("Commit", commit), ("Skip", skip)):
        buttons.append(ipywidgets.Button(description=word))
        buttons[-1].on_click(action)
    unit = [ipywidgets.Label(one.unit)] if one.unit and not one.order else []
    row = ipywidgets.HBox([*buttons, status])
    return ipywidgets.VBox([*entries, row] if one.order else [ipywidgets.HBox([*entries, *unit]), row])


def _read(one, values):
    """What was entered: percent become fractions, a decimal comma and the unit itself are understood."""
    if one.order:
        return values
    if one.choices:
        return values[0]
    text = values[0].strip().removesuffix(one.unit).strip().replace(",", ".")
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{values[0]!r} is not a number") from None
    return number / 100 if one.unit == "%" else number


# -- where it is shown -------------------------------------------------------------------------------------
def _kernel():
    """The notebook kernel that runs this, or None."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None)


def _someone_is_there():
    """Whether a person sees the cell run: only then does a front end allow the kernel to ask for input."""
    return bool(getattr(_kernel(), "_allow_stdin", False))


def _show(markdown, plain=None):
    """Markdown in a notebook, with plain text beside it for readers that know none; elsewhere plain text."""
    plain = (plain or markdown).replace("**", "")
    if _kernel() is None:
        print(plain)
        return
    from IPython.display import publish_display_data

    publish_display_data({"text/markdown": markdown, "text/plain": plain})
