"""Verdicts on the papers' claims: the box at the top of a page, the page of all claims, and their totals."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from frepro import papers
from frepro.book_pages.markdown import render
from frepro.experiment import claims
from frepro.reproduce import Artefact, artefacts

NAME = "claims.csv"
# The order of the verdicts in totals.
VERDICTS = ("agrees", "disagrees", "equivalent", "undecided", "did not train", "not run")


@dataclass(frozen=True)
class Tested:
    """A claim of a table and its test.

    Attributes:
        profile: The profile that it was measured with.
    """

    artefact: Artefact
    profile: str
    outcome: claims.Outcome

    @property
    def paper(self) -> str:
        return papers.load(self.artefact.paper).name

    @property
    def page(self) -> str:
        """The page of its table, relative to that of all claims."""
        return f"{self.artefact.paper}/{self.artefact.name}.html"

    @property
    def badge(self) -> str:
        return badge(self.outcome.verdict)

    @property
    def evidence(self) -> str:
        """What the measured difference rests on; empty if it was not measured."""
        if self.outcome.measured is None:
            return ""
        if self.outcome.unit != claims.POINTS:
            return "full size"
        return "ImageNet" if self.profile == "paper" else "small scale"


def state(artefact: Artefact) -> str:
    """Return the most complete profile with a result: "paper", "demo", or empty."""
    return next((p for p in ("paper", "demo") if (artefact.folder(p) / "provenance.json").exists()), "")


def of(artefact: Artefact, profile: str) -> list[Tested]:
    """Return the claims of a table in their order; none for a figure, and for a table without claims or result."""
    file = artefact.folder(profile) / NAME
    if not profile or not file.exists():
        return []
    return [Tested(artefact, profile, outcome) for outcome in claims.from_csv(file.read_text(encoding="utf-8"))]


def every() -> list[Tested]:
    """Return the claims of all tables."""
    return [tested for artefact in artefacts() if artefact.is_built for tested in of(artefact, state(artefact))]


def main(found: Sequence[Tested]) -> Tested | None:
    """Return the claim that stands for a table: the first that was measured, else the first."""
    return next((each for each in found if each.outcome.measured is not None), found[0] if found else None)


def totals(found: Sequence[Tested]) -> list[tuple[str, int]]:
    """Return the verdicts that occur, each with the number of its claims."""
    counts = Counter(each.outcome.verdict for each in found)
    return [(verdict, counts[verdict]) for verdict in VERDICTS if counts[verdict]]


def badge(verdict: str) -> str:
    """Return a verdict as HTML."""
    return f'<span class="frepro-badge frepro-{verdict.replace(" ", "-")}">{verdict}</span>'


def write(folder: Path) -> None:
    """Write the page of all claims, their CSV file, and the totals that the front page includes."""
    found = every()
    badges = [(badge(verdict), count) for verdict, count in totals(found)]
    small = sum(each.evidence == "small scale" for each in found)
    (folder / "claims.md").write_text(render("claims", found=found, badges=badges, small=small), encoding="utf-8")
    (folder / "totals.md").write_text(render("totals", badges=badges, total=len(found)), encoding="utf-8")
    (folder / "all_claims.csv").write_text(to_csv(found), encoding="utf-8")


def to_csv(found: Sequence[Tested]) -> str:
    """Return tidy CSV: paper, table, profile and evidence of each claim, then the columns of the tables' files."""
    rows = csv.DictReader(io.StringIO(claims.to_csv([each.outcome for each in found])))
    text = io.StringIO()
    own = ("paper", "table", "profile", "evidence")
    writer = csv.DictWriter(text, [*own, *(rows.fieldnames or ())], lineterminator="\n")
    writer.writeheader()
    for each, row in zip(found, rows, strict=True):
        values = (each.artefact.paper, each.artefact.number, each.profile, each.evidence)
        writer.writerow(dict(zip(own, values, strict=True)) | row)
    return text.getvalue()
