"""From findings to what people read: tables as text and HTML, and pictures. All rounding and all units are here."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from textwrap import fill

from frepro import papers
from frepro.experiment import Finding
from frepro.sizes import Size, VimFlops

NOT_RUN = "not run"


@dataclass(frozen=True)
class View:
    """A table ready to be read: headings of two levels, cells as text, and the notes beneath."""

    headings: list[tuple[str, str]]
    rows: list[list[str]]
    notes: list[str]

    def text(self) -> str:
        """For a terminal: columns aligned, the upper headings over the columns that they span."""
        widths = [
            max(len(cell) for cell in (lower, *(row[i] for row in self.rows)))
            for i, (_, lower) in enumerate(self.headings)
        ]
        spans: list[tuple[str, list[int]]] = [
            (upper, [i for i, _ in group])
            for upper, group in groupby(enumerate(self.headings), key=lambda item: item[1][0])
        ]
        for upper, columns in spans:  # an upper heading that is wider than its columns widens the last of them
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
        """For a page; the class lets the book style it."""
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
        return (
            f'<table class="frepro"><thead><tr>{head}</tr><tr>{lower}</tr></thead><tbody>{body}</tbody></table>'
            f'<div class="frepro-notes">{notes}</div>'
        )

    def _marked_notes(self) -> list[tuple[str, str]]:
        return [("*" * (i + 1), note) for i, note in enumerate(self.notes)]

    def _repr_html_(self) -> str:
        return self.html()

    def __repr__(self) -> str:
        return self.text()


def published_beside_measured(
    findings: Sequence[Finding], table: papers.Table, metrics: Sequence[str] = ("params", "flops", "throughput", "top1")
) -> View:
    """The columns of a table, each with the printed value and ours; an empty one of ours reads "not run".

    A measured number has one decimal more than the print, so that one sees how well it agrees.
    """
    columns = [column for column in table.columns if column.key in metrics]
    headings = [("", "Variant")]
    for column in columns:
        settings = {f.setting for f in findings if f.metric == column.key and f.setting}
        unit = f" ({column.unit})" if column.unit else ""
        headings += [(f"{column.name}{unit}", "paper"), (f"{column.name}{unit}", "ours")]
        if column.key == "throughput" and settings:
            headings[-1] = (headings[-1][0], "ours, here")
    rows, notes = [], []
    for label, group in groupby(findings, key=lambda finding: finding.label):
        by_metric = {finding.metric: finding for finding in group}
        row = table.row(next(iter(by_metric.values())).model)
        cells = [label]
        for column in columns:
            finding = by_metric[column.key]
            printed = "" if finding.published is None else f"{finding.published:.{column.decimals}f}"
            ours = NOT_RUN if finding.measured is None else number(finding, column.decimals + 1)
            if column.key == "flops" and finding.published is not None and row.note is not None:
                if row.note not in notes:
                    notes.append(row.note)
                ours += "*" * (notes.index(row.note) + 1)
            cells += [printed, ours]
        rows.append(cells)
    return View(headings, rows, notes)


def scores(findings: Sequence[Finding], metric: str, name: str, unit: str = "%") -> View:
    """One measured quantity of each variant with its spread and number, in a table of its own."""
    chosen = [finding for finding in findings if finding.metric == metric]
    rows = [[f.label, f"{f.measured:.2f}", "" if f.spread is None else f"{f.spread:.2f}", str(f.n)] for f in chosen]
    heading = f"{name} ({unit})"
    return View([("", "Variant"), (heading, "mean"), (heading, "std"), (heading, "n seeds")], rows, [])


def summary(findings: Sequence[Finding], table: papers.Table, metric: str, name: str) -> View:
    """Both of the above side by side, for a terminal."""
    left, right = published_beside_measured(findings, table), scores(findings, metric, name)
    rows = [a + b[1:] for a, b in zip(left.rows, right.rows, strict=True)]
    return View(left.headings + right.headings[1:], rows, left.notes)


COUNTED = (
    "Multiply-accumulates at 224 pixels, which the papers call FLOPs: of convolutions, linear maps and attention, and "
    "5 for each element of a norm that the official code calls as one, as fvcore counts them."
)
WITH_SPECTRA = (
    "With FFTs and scans, which no counter sees, two operations on real numbers taken as one multiply-accumulate: "
    "5 n log2(n) for an FFT of n complex points and half of it for real ones; 6 for a product of complex numbers, 2 "
    "for one with a real number, 4 for a modulus; 9 L D N + 2 L D for a scan of L steps, D channels and N numbers of "
    "state for each."
)


def sizes(models: Sequence[Size]) -> View:
    """Parameters and multiply-accumulates of models, with what the papers print where one prints them."""
    printed = {size.model: _printed(size.model) for size in models}
    is_printed = any(printed.values())
    headings = [("", "Model"), ("", "blocks"), ("", "channels")]
    for name in ("Parameters (M)", "FLOPs (G)*"):
        headings += [(name, "paper"), (name, "ours")] if is_printed else [(name, "ours")]
    headings.append(("FLOPs (G)*", "in all**"))
    rows, notes = [], [COUNTED, WITH_SPECTRA]  # for the marks in the headings
    for size in models:
        params, flops, note = printed[size.model] or ("", "", None)
        ours = [f"{size.params / 1e6:.2f}", f"{size.macs / 1e9:.2f}"]
        if note:
            if note not in notes:
                notes.append(note)
            ours[1] += "*" * (notes.index(note) + 1)
        cells = [params, ours[0], flops, ours[1]] if is_printed else ours
        rows.append([size.model, size.blocks, size.channels, *cells, f"{size.all_macs / 1e9:.2f}"])
    return View(headings, rows, notes)


def _printed(model: str) -> tuple[str, str, str | None] | None:
    """Parameters and FLOPs as printed by the paper whose own model it is, else by the first that has it, and a note."""
    found = []
    for paper in map(papers.load, papers.names()):
        for table in paper.tables.values():
            row, columns = table.row(model), [table.column(key) for key in ("params", "flops")]
            if row is not None and all(columns):
                cells = [(table.value(row, column.key), column.decimals) for column in columns]
                texts = ["" if value is None else f"{value:.{decimals}f}" for value, decimals in cells]
                found.append((("ours" not in row.marks, not all(texts)), (*texts, row.note)))
    return min(found, key=lambda item: item[0])[1] if found else None


def vim_flops(counts: Sequence[VimFlops]) -> View:
    """Vision Mamba's multiply-accumulates by several ways of counting, with what is printed."""
    models = list(dict.fromkeys(count.model for count in counts))
    by_way = {(count.model, count.counting): count.macs for count in counts}
    rows = [
        [way, *(f"{by_way[model, way] / 1e9:.2f}" for model in models)]
        for way in dict.fromkeys(count.counting for count in counts)
    ]
    printed = [_printed(model) for model in models]
    if any(printed):
        rows.append(["printed", *(found[1] if found else "" for found in printed)])
    return View([("", "FLOPs (G)"), *(("", model) for model in models)], rows, [])


def number(finding: Finding, decimals: int) -> str:
    """The measured value, with its spread where it has one."""
    text = f"{finding.measured:.{decimals}f}"
    return text if finding.spread is None else f"{text} ± {finding.spread:.{decimals}f}"
