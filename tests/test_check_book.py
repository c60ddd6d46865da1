"""What CI looks for in the built book: it is in the book of today, and its absence is seen."""

import importlib.util

import pytest

from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("check_book", ROOT / ".ci" / "check_book.py")
check_book = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_book)

GOOD = """<link rel="stylesheet" href="style.css"><a href="https://example.org">elsewhere</a>
<img src="map.svg" alt="A map"><table><tbody><tr><th>Vim-Ti</th><td><p>76.1</p></td></tr></tbody></table>"""


def test_the_book_of_today(built_book):
    assert check_book.faults(built_book) == []


def test_a_page_without_what_it_must_hold(built_book, monkeypatch):
    monkeypatch.setattr(check_book, "HOLDS", {"index.html": ["a text that is nowhere"], "no.html": [""]})
    assert check_book.faults(built_book) == ["index.html does not hold 'a text that is nowhere'", "no.html is missing"]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("", "", None),
        ("map.svg", "lost.svg", "picture lost.svg is missing"),
        ('alt="A map"', 'alt=""', "picture map.svg has no alternative text"),
        ("76.1", "", "an empty table"),
        ("<tr><th>Vim-Ti</th><td><p>76.1</p></td></tr>", "", "an empty table"),
        ("style.css", "https://example.org/style.css", "loads https://example.org/style.css"),
        ("map.svg", "//example.org/map.svg", "loads //example.org/map.svg"),
        ("<a ", '<script src="https://example.org/a.js"></script><a ', "loads https://example.org/a.js"),
        ("<a ", '<div class="output stderr">a warning</div><a ', "an element of class stderr"),
        ("<a ", '<div class="output traceback">an error</div><a ', "an element of class traceback"),
        ("<a ", '<p class="system-message">an error</p><a ', "an element of class system-message"),
    ],
)
def test_a_fault_is_seen(tmp_path, old, new, fault):
    (tmp_path / "map.svg").write_text("<svg/>")
    path = tmp_path / "page.html"
    path.write_text(GOOD.replace(old, new, 1) if old else GOOD)
    assert check_book.Page(path).faults == ([fault] if fault else [])
