"""What the papers published, as data: their tables (every row and column as printed) and their figures.

One YAML file a paper. Nothing measured is in it, and nothing here computes: measured values live in ``results/``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from frepro.errors import FreproError, unknown
from frepro.store.yaml_schema import Document

Cell = str | int | float | None

# Data sets of detection and of segmentation, where a model is the backbone of something larger.
DENSE = ("COCO", "ADE20K")


@dataclass(frozen=True)
class Column:
    """A column as printed.

    Attributes:
        key: What it holds; the same key names the measured value beside it (params, flops, throughput, top1 ...).
        name: The printed heading.
        unit: Unit of a number.
        decimals: Printed decimals of a number; none for text.
        under: Heading over this column and its neighbours, as the detector of a column of AP.
    """

    key: str
    name: str
    unit: str = ""
    decimals: int | None = None
    under: str = ""


@dataclass(frozen=True)
class Row:
    """A row as printed, one cell for each column; ``null`` where the paper prints nothing.

    Attributes:
        model: The timm or frepro model that the row means; none where neither has one. Where the table is of a detector
            or a segmentation head, the backbone.
        marks: "ours" for the paper's own models, "baseline" for the row that others are compared with.
        note: Where print and code disagree, or what a reader has to know of the row.
    """

    cells: list[Cell]
    model: str | None = None
    marks: list[Literal["ours", "baseline"]] = field(default_factory=list)
    note: str | None = None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Claim:
    """What a table is there to show, of two of its rows: one model has more of something than another.

    Attributes:
        better, worse: The models of the two rows.
        text: The claim as a sentence.
        metric: Of what there is more.
        group: Section of the two rows, of a table whose sections repeat models.
    """

    better: str
    worse: str
    text: str
    metric: Literal["top1", "throughput", "retinanet_ap", "box_ap", "mask_ap", "miou"] = "top1"
    group: str | None = None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Table:
    """A table: its columns and rows as printed, and what they are there to show.

    A column of key "label" names the rows; one of key "group" is the section that a row stands in. Labels are unique in
    their section.
    """

    caption: str
    columns: list[Column]
    rows: list[Row]
    dataset: str | None = None
    notes: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    @property
    def is_of_backbones(self) -> bool:
        """Whether rows are whole detectors or segmentation models, of which the model named is the backbone alone."""
        return self.dataset in DENSE

    def value(self, row: Row, key: str) -> Cell:
        return row.cells[[column.key for column in self.columns].index(key)]

    def row(self, model: str, group: str | None = None) -> Row | None:
        """The row that means ``model``, if the table has one; the first, or the one in a section."""
        rows = [row for row in self.rows if row.model == model and group in (None, self.group(row))]
        return rows[0] if rows else None

    def group(self, row: Row) -> str:
        """The section that a row stands in; empty in a table without sections."""
        return str(self.value(row, "group")) if self.column("group") else ""

    def column(self, key: str) -> Column | None:
        return next((column for column in self.columns if column.key == key), None)


@dataclass(frozen=True)
class Figure:
    """A figure: its caption as printed and, in our words, what it shows; ``models`` are those it is about."""

    caption: str
    shows: str
    models: list[str] = field(default_factory=list)
    dataset: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Paper:
    name: str
    title: str
    authors: list[str]
    venue: str
    year: int
    url: str
    code: str
    tables: dict[int, Table]
    figures: dict[int, Figure]

    def artefacts(self) -> Iterator[tuple[str, Table | Figure]]:
        """("table_1", ...), ..., ("figure_1", ...), ... in order."""
        for number in sorted(self.tables):
            yield f"table_{number}", self.tables[number]
        for number in sorted(self.figures):
            yield f"figure_{number}", self.figures[number]


def title(item: Table | Figure) -> str:
    """The first sentence of a caption, without its full stop."""
    return re.split(r"(?<!\bvs)\.\s+(?=[^a-z\d])", " ".join(item.caption.split()))[0].rstrip(".")


def names() -> list[str]:
    """The papers there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


@lru_cache
def load(name: str) -> Paper:
    """The paper of that name.

    Raises:
        FreproError: No such paper, or its file does not hold what a paper must, with file and line.
    """
    if name not in names():
        raise unknown("paper", name, names())
    return read(Path(__file__).parent / f"{name}.yaml")


def read(path: Path) -> Paper:
    """The paper in a file of any name; ``load`` for those of the package."""
    paper = Document.read(path).bind(Paper)
    for number, table in paper.tables.items():
        keys = [column.key for column in table.columns]
        for row in table.rows:
            _check(row, table, f"{path}:{row.line}: Table {number}")
        for claim in table.claims:
            for model in (claim.better, claim.worse):
                if table.row(model, claim.group) is None:
                    known = [row.model for row in table.rows if row.model]
                    raise FreproError(f"{path}:{claim.line}: Table {number}: {unknown('row of model', model, known)}")
        if doubled := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            raise FreproError(f"{path}: Table {number}: two columns have the key {doubled[0]!r}")
    return paper


def _check(row: Row, table: Table, where: str) -> None:
    if len(row.cells) != len(table.columns):
        raise FreproError(f"{where}: {len(table.columns)} columns, but {len(row.cells)} cells in this row")
    for cell, column in zip(row.cells, table.columns, strict=True):
        if cell is None:
            continue
        is_number = isinstance(cell, int | float) and not isinstance(cell, bool)
        if is_number != (column.decimals is not None):
            expected = "text" if column.decimals is None else "a number"
            raise FreproError(f"{where}, column {column.key!r}: expected {expected}, found {cell!r}")
