"""No measured number is typed by hand, neither into prose nor into a table.

Prose, every page of the book and the text of every notebook, holds no number with a unit of measurement unless
a paper prints it or ``ALLOWED`` says where it is from. In the tables of executed notebooks each number in a column of
ours stands in the files of the result, up to rounding, and each in a column of the paper is printed there.
"""

import json
import re
from functools import cache
from html import unescape
from itertools import chain
from pathlib import Path

import pytest

from frepro import papers, paths

# Numbers with a unit that no run here measured; why not.
ALLOWED = {
    "95 %": "the level of every interval, experiment.CONFIDENCE",
    "10 %": "the margin for runs that did not train, experiment.claims.PLATEAU",
    "1.3 points": "between two printed accuracies: Vim-F's Table 2",
    "0.8 points": "between two printed accuracies: Vim-F's Tables 2 and 3",
    "6 GB": "what the environment needs on a disk; no result",
}
UNIT = (
    r"(?:%|points?|img/s|images (?:a|per) second|GB/s|[kMG]i?B|[MG](?:FLOPs|MACs)?|ms|seconds?|minutes?|hours?|times)"
)
MEASUREMENT = re.compile(rf"(?<![\w.,/^+−-])[+−-]?\d[\d,.]*\s?(?:{UNIT}(?!\w)|[×x](?!\w|\s\d))")
IN_HEADING = re.compile(rf"\({UNIT}\)")
NO_PROSE = re.compile(r"^(```|~~~).*?^\1|\$\$.*?\$\$|`[^`\n]*`|\$[^$\n]*\$|\]\([^)]*\)", re.S | re.M)
NUMBER = re.compile(r"[+−-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


def prose() -> list[tuple[str, str]]:
    """Where it stands, and text, of every page and every cell of Markdown."""
    pages = [path for path in paths.BOOK.rglob("*.md") if path.relative_to(paths.BOOK).parts[0] != "results"]
    found = [(str(path.relative_to(paths.ROOT)), path.read_text(encoding="utf-8")) for path in sorted(pages)]
    for path in sorted(paths.NOTEBOOKS.glob("*/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        found.append((str(path.relative_to(paths.ROOT)), "\n\n".join(texts)))
    return found


@cache
def published() -> tuple[str, frozenset[str]]:
    """What the papers' files say in words, and every printed number with its unit."""
    texts, cells = [], set()
    for name in papers.names():
        texts.append(Path(papers.__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8"))
        for table in papers.load(name).tables.values():
            for row in table.rows:
                for value, column in zip(row.cells, table.columns, strict=True):
                    if value is not None and column.decimals is not None:
                        cells.add(f"{value:.{column.decimals}f} {column.unit}")
    return " ".join(" ".join(texts).split()), frozenset(cells)


def measurements(text: str) -> list[str]:
    """Numbers with a unit in Markdown, and those in columns of a table whose heading has one; "98.2 %"."""
    text = NO_PROSE.sub(" ", text)
    found = [" ".join(match[0].split()) for match in MEASUREMENT.finditer(text)]
    headings: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.lstrip().startswith("|") else []
        if cells and headings:
            with_unit = [(cell, IN_HEADING.search(heading)) for cell, heading in zip(cells, headings, strict=False)]
            found += [f"{cell} {unit[0][1:-1]}" for cell, unit in with_unit if unit and NUMBER.fullmatch(cell)]
        headings = (headings or cells) if cells else []
    return found


def is_known(measurement: str) -> bool:
    words, cells = published()
    spelling = re.escape(measurement).replace(r"\ ", r"\s?")  # also 16GB for 16 GB
    is_in_words = re.search(rf"(?<![\d.]){spelling}(?!\w)", words)
    return measurement in ALLOWED or measurement in cells or bool(is_in_words)


@pytest.mark.parametrize(
    ("where", "text"), prose(), ids=lambda value: value if value.endswith((".md", "ipynb")) else ""
)
def test_prose_holds_no_measurement(where, text):
    typed = [measurement for measurement in measurements(text) if not is_known(measurement)]
    assert not typed, f"{where}: {typed}: show it from a result, or say in ALLOWED why it is none"
    assert "<table" not in text, f"{where}: tables are Markdown or made from results"


def test_nothing_is_allowed_that_is_not_there():
    found = {measurement for _, text in prose() for measurement in measurements(text)}
    assert not ALLOWED.keys() - found


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("It reaches 81.23 % there,", ["81.23 %"]),
        ("and is 1.83× as fast, or 1.83 times; 12.5 images a second,", ["1.83×", "1.83 times", "12.5 images a second"]),
        ("with 30.32M parameters, 4.45 GFLOPs and 512 MiB.", ["30.32M", "4.45 GFLOPs", "512 MiB"]),
        ("| model | params (M) |\n| --- | --- |\n| `vim_tiny` | 7.15 |", ["7.15 M"]),
        ("An image of 224 × 224 pixels, digits of 8 x 8, seed 3, λ = 0.7, Table 4, Python 3.11", []),
        ("`--limit 5 %` and\n```\n12 ms\n```\nand $5 \\times 3 G$ in [RegNetY](http://example.org/4G)", []),
        ("RegNetY-1.6G has | a bar", []),
        ("| size | depth |\n| --- | --- |\n| S | 12 |", []),
    ],
)
def test_a_typed_number_is_seen(text, typed):
    assert measurements(text) == typed
    assert not any(is_known(measurement) for measurement in typed)


# Findings have the units of their columns; other files are raw, shown in thousands, millions or percent.
SCALES = (1, 1e-3, 1e-6, 1e-9, 100)


def tables(notebook: Path) -> list[str]:
    """HTML of the tables that an executed notebook shows."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = chain.from_iterable(cell.get("outputs", ()) for cell in cells)
    texts = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    return [text for text in texts if 'class="frepro"' in text]


def without_source(html: str, measured: list[float], printed: list[float]) -> list[str]:
    """Numbers of a table in a column of ours, or of the paper's, that are not among those given, rounded."""
    upper, lower, *rows = [
        re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)
    ]
    over = [text for attributes, text in upper for _ in range(int(re.search(r'colspan="(\d+)"', attributes)[1]))]
    found = []
    for row in rows:
        if len(row) != len(lower):  # a section's heading
            continue
        for above, (_, below), (_, cell) in zip(over, lower, row, strict=True):
            if above == "difference":  # of a claim: made from two numbers
                continue
            if below == "paper":
                found += [number for number in NUMBER.findall(unescape(cell)) if not rounds_to(number, printed, (1,))]
            elif above == "ours, here" or below in ("ours", "ours, here", "mean", "std"):
                found += [
                    number for number in NUMBER.findall(unescape(cell)) if not rounds_to(number, measured, SCALES)
                ]
    return found


def rounds_to(number: str, values: list[float], scales: tuple[float, ...]) -> bool:
    """Whether one of the values, times one of the scales, is this number at its decimals."""
    reach = 0.5000001 * 10 ** -len(number.partition(".")[2])
    return any(abs(value * scale - float(number.replace("−", "-"))) <= reach for value in values for scale in scales)


def sources(folder: Path) -> tuple[list[float], list[float]]:
    """The numbers in the CSV files of a result, and those that its paper prints."""
    paper = Path(papers.__file__).with_name(f"{folder.parent.name}.yaml")
    texts = ["\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.csv"))), paper.read_text()]
    measured, printed = ([float(number.replace("−", "-")) for number in NUMBER.findall(text)] for text in texts)
    return measured, printed


EXECUTED = sorted((paths.ROOT / "results").glob("demo/*/*/*.ipynb"))


@pytest.mark.parametrize("notebook", EXECUTED, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_tables_hold_what_was_measured_and_printed(notebook):
    for html in tables(notebook):
        assert without_source(html, *sources(notebook.parent)) == []


def test_a_number_that_nothing_measured_is_seen():
    notebook = paths.ROOT / "results" / "demo" / "dfformer" / "table_4" / "table_4.ipynb"
    html = next(text for text in tables(notebook) if "textured test top-1" in text)
    assert without_source(html, *sources(notebook.parent)) == []
    mean = re.search(r"<td>(\d+\.\d+)</td>", html)[1]
    assert without_source(html.replace(mean, "98.76", 1), *sources(notebook.parent)) == ["98.76"]
    html = next(text for text in tables(notebook) if "Parameters" in text)
    printed = re.search(r"<td>(\d+)</td>", html)[1]
    assert without_source(html.replace(f"<td>{printed}</td>", "<td>33.3</td>", 1), *sources(notebook.parent)) == [
        "33.3"
    ]
