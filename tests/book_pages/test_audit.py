"""What the book says of paper, official code and frepro: every command still prints what is stored and shown."""

import re

import pytest
import timm

import frepro
from frepro.book_pages import audit

DIFFERENCES = [(family, each) for family, differences in audit.load().items() for each in differences]


@pytest.fixture
def committed(monkeypatch):
    monkeypatch.delenv("FREPRO_RESULTS", raising=False)


@pytest.mark.parametrize("difference", [each for _, each in DIFFERENCES], ids=lambda each: each.title)
def test_the_command_prints_what_the_book_shows(committed, difference):
    assert audit.run(difference.shows) == audit.stored()[difference.shows]


def test_nothing_is_stored_that_no_command_prints(committed):
    assert list(audit.stored()) == [each.shows for _, each in DIFFERENCES]


def test_every_model_that_is_named_exists():
    families = {name.partition("_")[0] for name in frepro.list_models()}
    named = {
        name
        for _, each in DIFFERENCES
        for name in re.findall(r"`(\w+)`", each.frepro)
        if name.startswith(tuple(f"{family}_" for family in families))
    }
    assert named
    assert [name for name in named if not timm.is_model(name)] == []


def test_the_page_shows_each_command_with_what_it_printed(committed):
    page = audit.page()
    for family, each in DIFFERENCES:
        assert f"## {family}\n" in page
        assert f"### {each.title}\n" in page
        assert f"```python\n{each.shows}```\n\n```text\n{audit.stored()[each.shows]}```\n" in page


def test_what_was_not_run_says_so(store):
    page = audit.page()
    assert page.count("*not run*") == len(DIFFERENCES)
    assert "```text" not in page


def test_a_command_runs_by_itself():
    assert audit.run("x = 2\nprint(x, __name__)") == "2 __main__\n"
    with pytest.raises(NameError):
        audit.run("print(x)")
