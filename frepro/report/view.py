"""A formatted table, as text for a terminal or as HTML for a page."""

from dataclasses import dataclass
from html import escape
from itertools import groupby
from textwrap import fill

from frepro import papers
from frepro.experiment.findings import Finding

NOT_RUN = "not run"


NO_MODEL = "no model"


@dataclass(frozen=True)
class View:
    """A formatted table: headings of two levels, cells as text, and notes below the table.

    Attributes:
        headings: (upper, lower) heading of each column. Equal upper headings of adjacent columns are merged.
        wraps: Whether text in cells is wrapped to fit the page.
    """

    headings: list[tuple[str, str]]
    rows: list[list[str]]
    notes: list[str]
    wraps: bool = False

    def text(self) -> str:
        """Return the table for a terminal, with aligned columns and upper headings that span their columns."""
        widths = [
            max(len(cell) for cell in (lower, *(row[i] for row in self.rows)))
            for i, (_, lower) in enumerate(self.headings)
        ]
        spans: list[tuple[str, list[int]]] = [
            (upper, [i for i, _ in group])
            for upper, group in groupby(enumerate(self.headings), key=lambda item: item[1][0])
        ]
        for upper, columns in spans:  # an upper heading wider than its columns widens the last one
            width = sum(widths[i] for i in columns) + 2 * (len(columns) - 1)
            widths[columns[-1]] += max(0, len(upper) - width)
        upper_line = "  ".join(
            upper.ljust(sum(widths[i] for i in columns) + 2 * (len(columns) - 1)) for upper, columns in spans
        )
        lines = [upper_line, self._line([lower for _, lower in self.headings], widths)]
        lines.append("-" * max(len(line) for line in lines))
        lines += [self._line(row, widths) for row in self.rows]
        for mark, note in self._marked_notes():
            lines += fill(f"{mark} {note}", max(len(lines[0]), 80), subsequent_indent="  ").splitlines()
        return "\n".join(line.rstrip() for line in lines)

    def _line(self, cells: list[str], widths: list[int]) -> str:
        return "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )

    def html(self) -> str:
        """Return the table as HTML, with a class for the styles of the book."""
        head = "".join(
            f'<th colspan="{len(list(group))}" scope="colgroup">{escape(upper)}</th>'
            for upper, group in groupby(self.headings, key=lambda heading: heading[0])
        )
        lower = "".join(f'<th scope="col">{escape(name)}</th>' for _, name in self.headings)
        body = "".join(
            f'<tr><th scope="row">{escape(label)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
            for label, *cells in self.rows
        )
        notes = "".join(f"<p>{mark} {escape(note)}</p>" for mark, note in self._marked_notes())
        name = "frepro wraps" if self.wraps else "frepro"
        return (
            f'<table class="{name}"><thead><tr>{head}</tr><tr>{lower}</tr></thead><tbody>{body}</tbody></table>'
            f'<div class="frepro-notes">{notes}</div>'
        )

    def _marked_notes(self) -> list[tuple[str, str]]:
        return [("*" * (i + 1), note) for i, note in enumerate(self.notes)]

    def _repr_html_(self) -> str:
        return self.html()

    def __repr__(self) -> str:
        return self.text()


def mark(note: str, notes: list[str]) -> str:
    """Return the mark of a note, which is added to the notes if it is new."""
    if note not in notes:
        notes.append(note)
    return "*" * (notes.index(note) + 1)


def cell(value: papers.Cell, decimals: int | None) -> str:
    if value is None:
        return ""
    return str(value) if decimals is None else f"{value:.{decimals}f}"


def number(finding: Finding, decimals: int) -> str:
    """Format a measured value, with its standard deviation if there is one."""
    text = f"{finding.measured:.{decimals}f}"
    return text if finding.spread is None else f"{text} ± {finding.spread:.{decimals}f}"
