"""Where papers, official code and frepro differ, and for each difference a command that shows what is said of frepro.

The differences are data, ``book/audit.yaml``. ``python -m frepro.book_pages.audit`` runs their commands, in half a
minute, and stores what they print in ``results/audit``. The book shows both; a test runs all of it again and compares.
"""

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from frepro import paths
from frepro.store import provenance, records
from frepro.store.yaml_schema import Document


@dataclass(frozen=True)
class Difference:
    """A point on which a paper, the official code or frepro do not agree.

    Attributes:
        title: What it is about.
        paper, code: What the paper says and what the official code does.
        frepro: What frepro does, by which model, argument or value of a recipe.
        shows: Python that shows it, by what it prints.
    """

    title: str
    paper: str
    code: str
    frepro: str
    shows: str
    line: int = 0


def load() -> dict[str, list[Difference]]:
    """The differences of each family of models.

    Raises:
        FreproError: The file holds an unknown key or a wrong type, with file and line.
    """
    return Document.read(paths.BOOK / "audit.yaml").bind(dict[str, list[Difference]])


def run(command: str) -> str:
    """What a command prints, run in this process in a namespace of its own."""
    text = io.StringIO()
    with redirect_stdout(text):
        exec(compile(command, "book/audit.yaml", "exec"), {"__name__": "__main__"})
    return text.getvalue()


def folder() -> Path:
    return paths.results() / "audit"


def stored() -> dict[str, str]:
    """Command -> what it printed when it was last run."""
    path = folder() / "prints.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write() -> Path:
    """Run every command and put what they print in place of ``results/audit``."""
    prints = {each.shows: run(each.shows) for family in load().values() for each in family}
    with records.atomic_replace(folder()) as fresh:
        for name, content in (("prints", prints), ("provenance", provenance.record())):
            records.write_text(fresh / f"{name}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return folder()


def page() -> str:
    """All differences as Markdown, each with its command and what that printed."""
    prints = stored()
    parts = []
    for family, differences in load().items():
        parts.append(f"## {family}\n\n")
        for each in differences:
            printed = prints.get(each.shows)
            shown = (
                "*not run* yet: `python -m frepro.book_pages.audit`\n"
                if printed is None
                else f"```text\n{printed}```\n"
            )
            parts.append(
                f"### {each.title}\n\n"
                f"Paper\n: {each.paper}\n\nOfficial code\n: {each.code}\n\nfrepro\n: {each.frepro}\n\n"
                f"```python\n{each.shows}```\n\n{shown}\n"
            )
    return "".join(parts)


if __name__ == "__main__":
    print(write())
