"""Sphinx extension of the book: an API reference page for each package, from the docstrings of its modules.

frepro's docstrings are plain text with Google sections, not reStructuredText: bars are moduli, asterisks are products,
a list follows its sentence without an empty line, and indented text and columns keep their layout. ``as_rest`` converts
them to reStructuredText.
"""

import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from frepro import paths
from frepro.store import provenance

# The command line and the pages of the book, which are not imported by users.
LEFT_OUT = ("frepro.__main__", "frepro.book_pages", "frepro.cli")
# Document what a module defines, whether or not it is in __all__, to which timm adds registered models.
OPTIONS = ("   :members:", "   :ignore-module-all:")


def setup(app: Any) -> dict[str, Any]:
    """Set up the extension for Sphinx. ``frepro.book_pages.pages`` writes these pages with all others."""
    app.connect("autodoc-process-docstring", _process, priority=600)  # after napoleon, which parses the sections
    app.connect("missing-reference", _type_variable)
    return {"version": provenance.version("frepro") or "", "parallel_read_safe": True}


def modules() -> list[str]:
    """Return all public modules. Packages of kernels inside a package are not public."""
    files = [path.relative_to(paths.ROOT) for path in paths.PACKAGE.rglob("*.py")]
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files if len(path.parts) < 4}
    return sorted(name for name in names - {"frepro"} if not name.startswith(LEFT_OUT))


def page_of(module: str) -> str:
    """Return the page of a module: that of its package, or "core" for a top-level module."""
    is_package = (paths.ROOT / Path(*module.split("."))).is_dir()
    parts = module.split(".")
    return parts[1] if is_package or len(parts) > 2 else "core"


def lay_out(folder: Path) -> None:
    """Write a page for each package with a section for each module, and a page for top-level modules."""
    folder.mkdir(parents=True, exist_ok=True)
    for page, names in groupby(sorted(modules(), key=lambda name: (page_of(name), name)), key=page_of):
        package = "frepro" if page == "core" else f"frepro.{page}"
        lines = [f"# {package}", ""]
        for name in names:
            heading = [] if name == package else [f"## {name}", ""]
            lines += [*heading, "```{eval-rst}", f".. automodule:: {name}", *OPTIONS, "```", ""]
        (folder / f"{page}.md").write_text("\n".join(lines), encoding="utf-8")


def _process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rest(lines)


def _type_variable(app: Any, env: Any, node: Any, text: Any) -> Any:
    """Return the text of a reference to a type variable, which has no entry; ``None`` for other references."""
    module, _, name = node.get("reftarget", "").rpartition(".")
    return text if isinstance(getattr(sys.modules.get(module), name, None), TypeVar) else None


def as_rest(lines: Sequence[str]) -> list[str]:
    """Convert the lines of a docstring to reStructuredText, and keep the fields that napoleon made of sections."""
    out: list[str] = []
    in_fields = False
    for is_blank, group in groupby(lines, key=lambda line: not line.strip()):
        paragraph = list(group)
        in_fields = in_fields or paragraph[0].startswith(":")
        if is_blank:
            out.append("")
        elif in_fields:
            out += map(_escaped, paragraph)
        elif _is_layout(paragraph):
            out += [".. code-block:: text", "", *(f"    {line}" for line in paragraph)]
        else:
            out += _with_lists(paragraph)
    return [*out, ""]


def _is_layout(paragraph: Sequence[str]) -> bool:
    """Return whether a paragraph is indented, such as formulas and BibTeX, or has columns."""
    is_indented = all(line.startswith("    ") for line in paragraph)
    return is_indented or any(re.search(r"\S {3,}\S", line) for line in paragraph)


def _with_lists(paragraph: Sequence[str]) -> list[str]:
    """Return text with empty lines around lists."""
    out: list[str] = []
    in_list = False
    for line in paragraph:
        is_item = line.lstrip().startswith("- ")
        if (is_item and out and not in_list) or (in_list and not is_item and not line.startswith("  ")):
            out.append("")
        in_list = is_item or (in_list and line.startswith("  "))
        out.append(_escaped(line))
    return out


def _escaped(line: str) -> str:
    """Escape characters with a meaning in reStructuredText, except in literals and *emphasis*."""
    field = re.match(r":[^:`]*:", line)  # ":param x:", as written by napoleon
    head = field[0] if field else ""
    parts = re.split(r"(``.+?``|(?<![\w*])\*\w[^*]*\w\*(?![\w*]))", line[len(head) :])
    return head + "".join(
        part if i % 2 else re.sub(r"(?<!\\)([*|`]|(?<=\w)_(?!\w))", r"\\\1", part) for i, part in enumerate(parts)
    )
