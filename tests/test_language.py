"""The project's text is plain English: no word of the private dialect that CONTRIBUTING lists.

Documentation and the text of notebooks are checked for every word of ``DIALECT``. Docstrings and other strings of the
package, and its YAML files, are checked for the phrases of ``IN_THE_PACKAGE``.
"""

import ast
import json
import re
from collections.abc import Iterator

import pytest

from frepro import paths

DIALECT = (
    "anew",
    "was not to be had",
    "thousand millions",
    "serves better",
    "passed over",
    "stands twice",
    "fault of frepro",
)
IN_THE_PACKAGE = ("was not to be had", "thousand millions", "stands twice", "fault of frepro", "serves better")
WORD_LIST = re.compile(r"^## Words$.*?(?=^## )", re.S | re.M)  # the section of CONTRIBUTING that names the words


def dialect(text: str, phrases: tuple[str, ...] = DIALECT) -> list[str]:
    """Return the phrases that occur in a text as whole words, in any case and across line breaks."""
    text = " ".join(text.split()).lower()
    return [phrase for phrase in phrases if re.search(rf"\b{phrase}\b", text)]


def documentation() -> Iterator[tuple[str, str]]:
    """Yield the path and text of the documents, the book's pages and its audit."""
    pages = [path for path in paths.BOOK.rglob("*") if path.suffix in (".md", ".yaml")]
    pages = [path for path in pages if path.relative_to(paths.BOOK).parts[0] != "results"]
    for path in (paths.ROOT / "README.md", paths.ROOT / "CONTRIBUTING.md", *sorted(pages)):
        text = path.read_text(encoding="utf-8")
        yield str(path.relative_to(paths.ROOT)), WORD_LIST.sub("", text) if path.name == "CONTRIBUTING.md" else text


def notebooks() -> Iterator[tuple[str, str]]:
    """Yield the path and the Markdown of each notebook."""
    for path in sorted(paths.NOTEBOOKS.glob("*/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        yield str(path.relative_to(paths.ROOT)), text


def package() -> Iterator[tuple[str, str]]:
    """Yield the path and the docstrings and other strings of each module, and the text of each YAML file."""
    for path in sorted((paths.ROOT / "frepro").rglob("*")):
        if path.suffix == ".py":
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            text = "\n".join(n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))
        elif path.suffix == ".yaml":
            text = path.read_text(encoding="utf-8")
        else:
            continue
        yield str(path.relative_to(paths.ROOT)), text


@pytest.mark.parametrize(("where", "text"), [*documentation(), *notebooks()])
def test_documentation_is_in_plain_english(where, text):
    assert dialect(text) == [], where


def test_messages_and_docstrings_are_in_plain_english():
    found = {where: words for where, text in package() if (words := dialect(text, IN_THE_PACKAGE))}
    assert not found


def test_contributing_lists_every_word():
    (words,) = WORD_LIST.findall((paths.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert dialect(words) == list(DIALECT)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The table is made anew.", ["anew"]),
        ("A damaged file is passed\n  over; in thousand millions", ["thousand millions", "passed over"]),
        ("Renewed, Anew and renewable", ["anew"]),
        ("a new model passed over_all", []),
    ],
)
def test_a_word_of_the_dialect_is_found(text, found):
    assert dialect(text) == found
