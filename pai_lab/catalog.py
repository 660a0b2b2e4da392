"""The map of the field: every criterion, structure, scope, schedule and method by name, with its facts.

pai.catalog("criterion")        # a table: when it works, what it needs, what it costs, who published it
"""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

KINDS = ("criterion", "structure", "scope", "schedule", "method")
COLUMNS = "name kind structure criterion method when track family paper year needs cost defaults".split()


@dataclass(frozen=True)
class Entry:
    """One named part of the house: the function, and the facts that `catalog()` shows.

    `facts` holds the columns of the catalogue (`family`, `paper`, `year`, `needs`, `cost`, ...); `defaults` what
    `prune` uses when nothing is said: `mode`, `iterations`, `schedule`, `revives`, `unit`, `reduce`; and `passes`, the
    most that each forward pass of a scorer costs with all that follows it, in forward+backward passes (1 if none).
    """

    kind: str
    name: str
    function: Callable
    facts: dict = field(default_factory=dict)
    defaults: dict = field(default_factory=dict)


_REGISTRY: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}


def register(kind, name=None, *, defaults=None, **facts):
    """Decorator that gives a function a name in the catalogue: the function's own, or `name`.

    Facts are columns of `catalog()`. Registering the same name again from the same module replaces it, so that a
    notebook cell can be run twice. ValueError if the name belongs to another module, or a fact is no column.
    """
    if callable(name):  # used bare: @pai.criterion
        return register(kind)(name)
    if wrong := [fact for fact in facts if fact not in COLUMNS]:
        raise nearest("fact", wrong[0], COLUMNS)

    def keep(function):
        entry = Entry(kind, name or function.__name__, function, facts, defaults or {})
        held = _REGISTRY[kind].get(entry.name)
        if held and held.function.__module__ != function.__module__:
            raise ValueError(
                f"the {kind} name {entry.name!r} belongs to {held.function.__module__}; choose another name"
            )
        _REGISTRY[kind][entry.name] = entry
        return function

    return keep


criterion = partial(register, "criterion")
method = partial(register, "method")


def names(kind):
    """The registered names of one kind, in order of registration."""
    if kind not in KINDS:
        raise nearest("kind", kind, KINDS)
    return list(_REGISTRY[kind])


def of_the_reader():
    """The entries that were registered outside the package, for a process that has not seen them."""
    entries = (entry for held in _REGISTRY.values() for entry in held.values())
    return [entry for entry in entries if not entry.function.__module__.startswith("pai_lab.")]


def adopt(entries):
    """Register entries of another process, as they are there."""
    for entry in entries:
        _REGISTRY[entry.kind][entry.name] = entry


def find(kind, what):
    """The Entry for a name; a callable that stands for a name gets an entry of its own, one that wraps a registered
    function (`functools.wraps`) its facts and defaults, too. ValueError if unknown."""
    if callable(what):
        inner = inspect.unwrap(what)
        entry = next((e for e in _REGISTRY[kind].values() if e.function is inner), None)
        if entry is None:
            return Entry(kind, getattr(what, "__name__", repr(what)), what)
        return entry if what is inner else replace(entry, name=what.__name__, function=what)
    if not isinstance(what, str) or what not in _REGISTRY[kind]:
        raise nearest(kind, what, names(kind))
    return _REGISTRY[kind][what]


def nearest(what, name, allowed):
    """The house's error for an unknown name: what was given, the nearest, and all that is allowed."""
    allowed = list(allowed)
    close = difflib.get_close_matches(str(name).lower(), allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ValueError(f"unknown {what} {name!r}.{hint} Allowed: {', '.join(map(repr, allowed))}")


def check_options(entry, options, given_by_caller):
    """TypeError that names the nearest option, before anything runs, if `entry.function` does not take one."""
    parameters = inspect.signature(entry.function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    allowed = [p.name for p in parameters if p.name not in given_by_caller]
    for option in options:
        if option not in allowed:
            close = difflib.get_close_matches(option, allowed, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            takes = ", ".join(allowed) or "no options"
            raise TypeError(f"{entry.kind} {entry.name!r} has no option {option!r}.{hint} It takes: {takes}")


def catalog(kind=None):
    """All that is registered, one row each, as a DataFrame; `kind` keeps one of criterion, structure, scope,
    schedule, method. "any" in a column means that this part combines with every choice there."""
    import pandas as pd

    if kind is not None and kind not in KINDS:
        raise nearest("kind", kind, KINDS)
    rows = [
        dict.fromkeys(COLUMNS, "")
        | {"structure": "any", "criterion": "any", "method": "any"}
        | entry.facts
        | {
            "name": entry.name,
            "kind": entry.kind,
            "defaults": ", ".join(f"{k}={v}" for k, v in entry.defaults.items()),
        }
        for one in KINDS
        for entry in _REGISTRY[one].values()
        if kind in (None, one)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)
