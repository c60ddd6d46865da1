"""The published tables (every row and column as printed) and figures of the papers, as data.

Each paper has one YAML file with published values only. Measured values are stored in ``results/``.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from frepro import recipes
from frepro.errors import FreproError, unknown
from frepro.store.yaml_schema import Document

Cell = str | int | float | None


@dataclass(frozen=True)
class Column:
    """A column as printed.

    Attributes:
        key: The quantity (params, flops, throughput, top1 ...). The corresponding measured value has the same key.
        name: The printed heading.
        unit: Unit of a number.
        decimals: Printed decimals of a number; ``None`` for text.
        under: Heading above this column and its neighbours, such as the detector above columns of AP.
    """

    key: str
    name: str
    unit: str = ""
    decimals: int | None = None
    under: str = ""


@dataclass(frozen=True)
class Row:
    """A row as printed, with one cell for each column; ``null`` for an empty cell.

    Attributes:
        model: The timm or frepro model of the row; ``None`` if neither has it. In a table of detectors or segmenters,
            this is the backbone.
        weights: Tag of timm's weights of the model that were trained on ImageNet-1K alone at the size of the row, as
            "fb_in1k"; ``None`` if timm has none, and for frepro's models (see ``frepro.models.published``).
        marks: "ours" for the paper's own models, "baseline" for the row that the others are compared with.
        note: A difference between paper and official code, or another remark on the row.
    """

    cells: list[Cell]
    model: str | None = None
    marks: list[Literal["ours", "baseline"]] = field(default_factory=list)
    note: str | None = None
    weights: str | None = field(default=None, compare=False)  # not a published value
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Claim:
    """A claim of a table: one of two models has a better value of a metric than the other.

    Attributes:
        better: Model of the row that has the better value according to the paper.
        worse: Model of the other row.
        text: The claim as a sentence.
        metric: The metric that is compared: a column of the table, or a name in ``recipes.METRICS``.
        group: Section of the two rows, in a table whose sections repeat models.
        margin: Rows that differ by less count as equivalent, in the unit of the metric; ``None`` for the margin of the
            table. It must be chosen before anything is measured.
        confounded: What else differs between the rows, in a few words, if the claim is about only a part of the models.
        other_table: Number of the table of the worse row, if it is another one of the paper.
    """

    better: str
    worse: str
    text: str
    metric: str = recipes.Classification.main_metric().name
    group: str | None = None
    margin: float | None = None
    confounded: str | None = None
    other_table: int | None = None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Table:
    """A table: its columns and rows as printed, and its claims.

    The column with key "label" names the rows, and the one with key "group" is the section of a row. Labels are unique
    within a section.

    Attributes:
        margin: Margin of equivalence, in points, of all claims about scores that have none of their own.
    """

    caption: str
    columns: list[Column]
    rows: list[Row]
    dataset: str | None = None
    notes: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    margin: float | None = None

    @property
    def task(self) -> type[recipes.Recipe]:
        """The recipe class of the task that the networks of the table are trained for."""
        return recipes.of_dataset(self.dataset)

    @property
    def is_of_backbones(self) -> bool:
        """Whether rows are detectors or segmenters, and ``model`` is only their backbone."""
        return bool(self.task.networks)

    def value(self, row: Row, key: str) -> Cell:
        return row.cells[[column.key for column in self.columns].index(key)]

    def number(self, row: Row, key: str) -> float | None:
        """Return the value of a row in a column of numbers; ``None`` for an empty cell."""
        value = self.value(row, key)
        assert not isinstance(value, str)  # ``read`` checks the cells
        return value

    def row(self, model: str, group: str | None = None) -> Row | None:
        """Return the first row of ``model``, or that in a section; ``None`` if there is none."""
        rows = [row for row in self.rows if row.model == model and group in (None, self.group(row))]
        return rows[0] if rows else None

    def group(self, row: Row) -> str:
        """Return the section of a row; empty in a table without sections."""
        return str(self.value(row, "group")) if self.column("group") else ""

    def column(self, key: str) -> Column | None:
        return next((column for column in self.columns if column.key == key), None)

    def margin_of(self, claim: Claim) -> float | None:
        """Return the margin of equivalence of a claim; ``None`` if neither the claim nor the table has one."""
        measured = self.column(claim.metric) or recipes.METRICS.get(claim.metric)
        is_score = measured is not None and measured.unit == "%"
        return self.margin if claim.margin is None and is_score else claim.margin


@dataclass(frozen=True)
class Figure:
    """A figure: its caption as printed, what it shows in frepro's words, and the models that it is about."""

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
    figures: dict[int, Figure] = field(default_factory=dict)

    def artefacts(self) -> Iterator[tuple[str, Table | Figure]]:
        """Yield ("table_1", table), ..., ("figure_1", figure), ... in order."""
        for number in sorted(self.tables):
            yield f"table_{number}", self.tables[number]
        for number in sorted(self.figures):
            yield f"figure_{number}", self.figures[number]


def title(item: Table | Figure) -> str:
    """Return the first sentence of a caption without its full stop."""
    return re.split(r"(?<!\bvs)\.\s+(?=[^a-z\d])", " ".join(item.caption.split()))[0].rstrip(".")


def names() -> list[str]:
    """Return the names of the papers."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


@lru_cache
def models() -> frozenset[str]:
    """Return the names of all models that rows of the papers' tables stand for."""
    tables = [table for name in names() for table in load(name).tables.values()]
    return frozenset(row.model for table in tables for row in table.rows if row.model)


@lru_cache
def weights() -> dict[str, str]:
    """Return model -> tag of timm's weights, for all models of timm in the papers' tables that have suitable ones."""
    tables = [table for name in names() for table in load(name).tables.values()]
    return {row.model: row.weights for table in tables for row in table.rows if row.model and row.weights}


@lru_cache
def load(name: str) -> Paper:
    """Return a paper by name.

    Raises:
        FreproError: The paper is unknown, or its file is invalid; the message has the file and line.
    """
    if name not in names():
        raise unknown("paper", name, names())
    return read(Path(__file__).parent / f"{name}.yaml")


def read(path: Path) -> Paper:
    """Read a paper from any file; use ``load`` for the papers of the package."""
    paper = Document.read(path).bind(Paper)
    for number, table in paper.tables.items():
        keys = [column.key for column in table.columns]
        for row in table.rows:
            _check(row, table, f"{path}:{row.line}: Table {number}")
        if wrong := check_margin(table.margin):
            raise FreproError(f"{path}: Table {number}: {wrong}")
        for claim in table.claims:
            if wrong := check_margin(claim.margin):
                raise FreproError(f"{path}:{claim.line}: Table {number}: {wrong}")
            if claim.metric not in {*keys, *recipes.METRICS}:
                raise FreproError(
                    f"{path}:{claim.line}: Table {number}: {unknown('metric', claim.metric, [*keys, *recipes.METRICS])}"
                )
            other = number if claim.other_table is None else claim.other_table
            if other not in paper.tables:
                raise FreproError(f"{path}:{claim.line}: Table {number}: {unknown('table', other, paper.tables)}")
            for model, of in ((claim.better, number), (claim.worse, other)):
                if paper.tables[of].row(model, claim.group) is None:
                    known = [row.model for row in paper.tables[of].rows if row.model]
                    raise FreproError(f"{path}:{claim.line}: Table {of}: {unknown('row of model', model, known)}")
            if paper.tables[other].column(claim.metric) is None and claim.other_table is not None:
                raise FreproError(f"{path}:{claim.line}: Table {other}: it has no column {claim.metric!r}")
        if doubled := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            raise FreproError(f"{path}: Table {number}: two columns have the key {doubled[0]!r}")
    return paper


def check_margin(margin: object) -> str:
    """Return what is wrong with a margin of equivalence; empty if it is a positive number or ``None``."""
    if margin is None or (isinstance(margin, int | float) and margin is not True and 0 < margin < math.inf):
        return ""
    return f"a margin must be a positive number, not {margin!r}"


def _check(row: Row, table: Table, where: str) -> None:
    if len(row.cells) != len(table.columns):
        raise FreproError(f"{where}: expected {len(table.columns)} cells, one for each column, found {len(row.cells)}")
    if row.weights and not row.model:
        raise FreproError(f"{where}: weights {row.weights!r} of a row without a model: add the model")
    for cell, column in zip(row.cells, table.columns, strict=True):
        if cell is None:
            continue
        is_number = isinstance(cell, int | float) and not isinstance(cell, bool)
        if is_number != (column.decimals is not None):
            expected = "text" if column.decimals is None else "a number"
            raise FreproError(f"{where}, column {column.key!r}: expected {expected}, found {cell!r}")
