"""Markdown of the book from the templates in ``book_pages/templates``. Whatever a template prints is escaped.

Two filters keep what is printed from being escaped as text: ``markdown``, for what is Markdown or HTML on purpose, and
``code``, for names and commands in typewriter.
"""

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

# Characters that are markup wherever they stand, and those that are markup only there: an underscore at the edge of a
# word, the end of a link's text, an entity, and what begins a block at the start of a text.
_MARKUP = re.compile(r"[\\`*<|$]|(?<![^\W_])_|_(?![^\W_])|](?=[(\[{])|&(?=#?\w+;)|^[#>+~:=-]")
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")


def escape(value: Any) -> Markup:
    """Return a value as one line of text in which no character is markup; ``Markup`` stays as it is."""
    if isinstance(value, Markup):
        return value
    text = re.sub(r"\s+", " ", str(value))
    return Markup(_NUMBERED.sub(r"\1\\\2", _MARKUP.sub(r"\\\g<0>", text)))


def code(value: Any, in_table: bool = False) -> Markup:
    """Return a value as a code span, delimited by more backticks than follow each other in it.

    Args:
        in_table: Escape bars, which end a cell even within code.
    """
    text = " ".join(str(value).split())
    marks = "`" * (_longest_run(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markup(marks + space + (text.replace("|", r"\|") if in_table else text) + space + marks)


def fenced(value: str, language: str) -> Markup:
    """Return lines of text as a code block."""
    fence = "`" * max(3, _longest_run(value) + 1)
    return Markup(f"{fence}{language}\n{value}{fence}")


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


_TEMPLATES = Environment(
    loader=PackageLoader("frepro.book_pages"),
    autoescape=True,  # a macro gives Markup, which is not escaped again
    finalize=escape,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters.update(code=code, fenced=fenced, markdown=Markup)


def render(template: str, **values: Any) -> str:
    """Return the text of a template, "status" for ``templates/status.md``, with the values that it names."""
    return _TEMPLATES.get_template(f"{template}.md").render(values)
