"""The registry: names, the nearest one in an error, facts, options."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pai_lab as pai
from pai_lab.catalog import _REGISTRY, KINDS, check_options, find, nearest

FIRST = {
    "criterion": {"random", "magnitude", "snip", "synflow"},
    "scope": {"global", "layer"},
    "structure": {"weight", "filter"},
    "schedule": {"linear", "exponential"},
}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers is gone afterwards."""
    for kind, held in list(_REGISTRY.items()):
        monkeypatch.setitem(_REGISTRY, kind, dict(held))


@pytest.mark.parametrize("kind", FIRST)
def test_the_first_names_are_there(kind):
    assert FIRST[kind] <= set(pai.names(kind))
    assert set(pai.catalog(kind).name) == set(pai.names(kind))
    assert set(pai.catalog(kind).kind) == {kind}


def test_the_table_has_every_column_and_every_entry():
    table = pai.catalog()
    columns = "name kind structure criterion method when track family paper year needs cost defaults"
    assert list(table.columns) == columns.split()
    assert len(table) == sum(len(pai.names(kind)) for kind in KINDS)
    row = table.set_index("name").loc["synflow"]
    assert "iterations=100" in row.defaults and "mode=eval" in row.defaults and "exponential" in row.defaults
    assert row.year == 2020 and row.when == "before"


@pytest.mark.parametrize("ask", [pai.catalog, pai.names])
def test_an_unknown_kind_names_the_nearest(ask):
    with pytest.raises(ValueError, match="'criterion'"):
        ask("criterions")


@pytest.mark.parametrize("given_name, meant", [("snipp", "snip"), ("SynFlow", "synflow"), ("magnitud", "magnitude")])
def test_an_unknown_name_names_the_nearest_and_all(given_name, meant):
    with pytest.raises(ValueError) as error:
        find("criterion", given_name)
    assert f"Did you mean {meant!r}?" in str(error.value) and repr(given_name) in str(error.value)
    assert all(repr(name) in str(error.value) for name in pai.names("criterion"))


@pytest.mark.parametrize("what", [None, 3, ["snip"], {"snip": 1}, ""])
def test_what_is_no_name_is_a_value_error(what):
    with pytest.raises(ValueError, match="Allowed"):
        find("criterion", what)


@settings(max_examples=30)
@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True))
def test_the_message_holds_what_was_given_and_what_is_allowed(name, allowed):
    error = nearest("thing", name, allowed)
    assert isinstance(error, ValueError) and repr(name) in str(error)
    assert all(repr(choice) in str(error) for choice in allowed)


def test_a_function_stands_for_its_name():
    entry = find("criterion", "snip")
    assert find("criterion", entry.function) is entry
    stranger = find("criterion", lambda model, batch, mask: {})
    assert stranger.defaults == {} and stranger.name not in pai.names("criterion")


def test_registering_bare_with_brackets_and_by_name():
    @pai.criterion
    def bare(model, batch, mask):
        return {}

    @pai.criterion()
    def brackets(model, batch, mask):
        return {}

    @pai.criterion("other name", family="mine", defaults={"iterations": 7})
    def own(model, batch, mask):
        return {}

    assert {"bare", "brackets", "other name"} <= set(pai.names("criterion"))
    assert find("criterion", "bare").function is bare
    row = pai.catalog("criterion").set_index("name").loc["other name"]
    assert row.family == "mine" and row.defaults == "iterations=7"


def test_the_same_cell_can_run_twice_but_a_foreign_name_is_taken():
    for _ in range(2):

        @pai.method("again")
        def again(model, data, sparsity, seed, epochs, **options):
            return None

    assert pai.names("method").count("again") == 1 and find("method", "again").function is again
    before = find("criterion", "snip")
    with pytest.raises(ValueError, match="snip"):
        pai.criterion("snip")(lambda model, batch, mask: {})
    assert find("criterion", "snip") is before


def test_a_fact_that_is_no_column_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'paper'"):
        pai.criterion("mine", papr="?")


def test_an_unknown_option_names_the_nearest():
    def scored(model, batch, mask, temperature=1.0):
        return {}

    entry = find("criterion", scored)
    check_options(entry, {"temperature": 2}, ("model", "batch", "mask"))
    with pytest.raises(TypeError, match="Did you mean 'temperature'"):
        check_options(entry, {"temperatur": 2}, ("model", "batch", "mask"))
    with pytest.raises(TypeError, match="no options"):
        check_options(find("criterion", "snip"), {"alpha": 2}, ("model", "batch", "mask"))
    check_options(find("criterion", lambda model, **rest: {}), {"anything": 1}, ("model",))
