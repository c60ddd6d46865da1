"""The tables and figures of the papers, and which of them can be made."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from frepro import papers, paths
from frepro.errors import FreproError


@dataclass(frozen=True)
class Artefact:
    """A table or figure of a paper. ``kind`` is "table" or "figure"."""

    paper: str
    kind: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.number}"

    @property
    def title(self) -> str:
        return f"{self.kind.capitalize()} {self.number} of {self.paper}"

    @property
    def notebook(self) -> Path:
        return paths.notebook(self.paper, self.name)

    @property
    def is_built(self) -> bool:
        """Whether a notebook makes it."""
        return self.notebook.exists()

    def folder(self, profile: str) -> Path:
        return paths.results() / profile / self.paper / self.name


def artefacts(paper: str | None = None) -> Iterator[Artefact]:
    """Yield every table and figure of one paper, or of all papers."""
    for name in [paper] if paper else papers.names():
        for artefact, _ in papers.load(name).artefacts():
            kind, _, number = artefact.partition("_")
            yield Artefact(name, kind, int(number))


def find(
    paper: str | None = None, table: int | None = None, figure: int | None = None
) -> tuple[list[Artefact], list[Artefact]]:
    """Return the selected artefacts, of all papers unless one is named: those that can be made, and those not built
    yet.

    Raises:
        FreproError: There is no such table or figure, or no paper has a notebook for it yet.
    """
    wanted = {("table", table), ("figure", figure)} - {("table", None), ("figure", None)}
    every = list(artefacts(paper))
    chosen = [a for a in every if not wanted or (a.kind, a.number) in wanted]
    for kind, number in sorted(wanted):
        if not any((a.kind, a.number) == (kind, number) for a in every):
            known = listed(a for a in every if a.kind == kind)
            where = f"paper {paper!r}" if paper else "any paper"
            raise FreproError(f"no {kind} {number} in {where}: choose from {known}")
    ready, missing = [a for a in chosen if a.is_built], [a for a in chosen if not a.is_built]
    if not ready or {(a.kind, a.number) for a in ready} < wanted:
        can = listed(a for a in artefacts() if a.is_built) or "nothing yet"
        raise FreproError(f"not built yet: {listed(missing)}; available: {can}")
    return ready, missing


def listed(chosen: Iterable[Artefact]) -> str:
    """Return artefacts in one line, as "Table 4 of dfformer, Tables 1-3, 5 and Figure 2 of spanet"."""
    parts = []
    for paper, of_paper in groupby(chosen, key=lambda a: a.paper):
        kinds = []
        for kind, of_kind in groupby(of_paper, key=lambda a: a.kind):
            numbers = [a.number for a in of_kind]
            kinds.append(f"{kind.capitalize()}{'s' * (len(numbers) > 1)} {ranges(numbers)}")
        parts.append(f"{' and '.join(kinds)} of {paper}")
    return ", ".join(parts)


def ranges(numbers: Sequence[int]) -> str:
    """Format increasing integers with consecutive ones as a range: 1, 2, 3, 5 as "1-3, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def shown(path: Path) -> str:
    """Return a path for display: relative to the current folder if that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
