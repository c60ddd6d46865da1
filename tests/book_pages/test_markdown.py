"""What templates print is escaped: Markdown as the book reads it gives the text back."""

import html
import re

import pytest
from jinja2 import UndefinedError
from markdown_it import MarkdownIt
from markupsafe import Markup
from mdit_py_plugins.dollarmath import dollarmath_plugin

from frepro.book_pages import markdown

HOSTILE = [
    "a|b`c`$d$<i>e</i>.pth",
    "$x$ and $y$",
    "<script>alert(1)</script>",
    "![image](x.png) and [link](y) and [1, 2]",
    "*bold* _emphasis_ __strong__ dfformer_s18 W_ _x",
    r"C:\weights\*.pth \| \$",
    "&lt; &#60; a & b",
    "``two`` `one",
    "`",
    "# heading",
    "- item",
    "+ item",
    "> quotation",
    "1. first",
    "2) second",
    "4 photographs at 1.5",
    "::: note",
    "~~~",
    "===",
    "{download}`x </etc/passwd>`",
    "<https://example.org>",
    "line one\nline two | three",
    "a\n\n# b",
    "[x](javascript:y)",
    "\\",
]


def shown(text: str) -> tuple[set[str], str]:
    """Return the tags and the text that Markdown is shown as, with the extensions of the book."""
    page = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin).render(text)
    return set(re.findall(r"<(\w+)", page)), " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.mark.parametrize("value", HOSTILE)
def test_text_stays_text(value):
    text = " ".join(value.split())
    assert shown(f"{markdown.escape(value)}") == ({"p"}, text)
    assert shown(f"- {markdown.escape(value)}") == ({"ul", "li"}, text)
    tags, cells = shown(f"| a | b |\n| --- | --- |\n| {markdown.escape(value)} | last |\n")
    assert cells == f"a b {text} last"
    assert not tags & {"em", "strong", "code", "a", "img", "script", "i"}


@pytest.mark.parametrize("value", HOSTILE)
def test_code_stays_code(value):
    text = " ".join(value.split())
    assert shown(f"{markdown.code(value)}") == ({"p", "code"}, text)
    _, cells = shown(f"| a | b |\n| --- | --- |\n| {markdown.code(value, in_table=True)} | last |\n")
    assert cells == f"a b {text} last"


def test_a_block_of_code_holds_fences():
    text = "```text\n| a\n```\n"
    assert shown(markdown.fenced(text, "python")) == ({"pre", "code"}, "```text | a ```")


def test_plain_text_is_not_changed():
    for text in (
        "Intel(R) Xeon(R) Processor, 2 cores",
        "dims [24, 48], test top-1 (%): 45.0",
        "torch 2.11.0+cpu & b",
    ):
        assert markdown.escape(text) == text
    assert markdown.escape(Markup("*kept*")) == "*kept*"


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError):
        markdown.render("not_run", title="Table 1")
