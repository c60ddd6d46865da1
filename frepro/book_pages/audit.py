"""Differences between papers, official code and frepro. A command for each of them shows what frepro does.

The differences are data in ``book/audit.yaml``. ``python -m frepro.book_pages.audit`` runs their commands, which takes
half a minute, and stores their output in ``results/audit``. The book shows both, and a test repeats and compares them.
"""

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from frepro import paths
from frepro.book_pages.markdown import render
from frepro.store import provenance, records
from frepro.store.yaml_schema import Document


@dataclass(frozen=True)
class Difference:
    """A difference between a paper, the official code and frepro.

    Attributes:
        title: Subject of the difference.
        paper: What the paper states.
        code: What the official code does.
        frepro: What frepro does, and the model, argument or recipe value for it.
        shows: Python code that prints it.
    """

    title: str
    paper: str
    code: str
    frepro: str
    shows: str
    line: int = 0


def load() -> dict[str, list[Difference]]:
    """Return the differences of each model family.

    Raises:
        FreproError: The file has an unknown key or a wrong type; the message has the file and line.
    """
    return Document.read(paths.BOOK / "audit.yaml").bind(dict[str, list[Difference]])


def run(command: str) -> str:
    """Run a command in this process, in a namespace of its own, and return its output."""
    text = io.StringIO()
    with redirect_stdout(text):
        exec(compile(command, "book/audit.yaml", "exec"), {"__name__": "__main__"})
    return text.getvalue()


def folder() -> Path:
    return paths.results() / "audit"


def stored() -> dict[str, str]:
    """Return command -> its output in the last run."""
    path = folder() / "prints.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write() -> Path:
    """Run every command and replace ``results/audit`` with their output."""
    prints = {each.shows: run(each.shows) for family in load().values() for each in family}
    with records.atomic_replace(folder()) as fresh:
        for name, content in (("prints", prints), ("provenance", provenance.record())):
            records.write_text(fresh / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return folder()


def page() -> str:
    """Return all differences as Markdown, each with its command and output."""
    return render("audit", families=load(), prints=stored())


if __name__ == "__main__":
    print(write())
