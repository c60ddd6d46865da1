"""The published numbers: complete, of the right kind, and tied to models that exist."""

import pytest
import timm

import frepro  # noqa: F401 - registers the models
from frepro import papers
from frepro.errors import FreproError


@pytest.mark.parametrize("name", papers.names())
def test_every_model_named_exists(name):
    paper = papers.load(name)
    named = [row.model for table in paper.tables.values() for row in table.rows if row.model]
    named += [model for figure in paper.figures.values() for model in figure.models]
    assert named
    assert [model for model in named if not timm.is_model(model)] == []


def test_dfformer_is_whole():
    paper = papers.load("dfformer")
    assert [len(paper.tables[n].rows) for n in (1, 2, 3, 4)] == [7, 49, 15, 8]
    assert sorted(paper.figures) == list(range(1, 10))
    table = paper.tables[4]
    assert table.value(table.row("dfformer_s18_relu_afno"), "top1") == 82.0
    assert [a for a, _ in paper.artefacts()][:5] == ["table_1", "table_2", "table_3", "table_4", "figure_1"]


TABLE = """\
name: p
title: t
authors: [a]
venue: v
year: 2024
url: u
code: c
figures: {}
tables:
  1:
    caption: c
    columns:
      - {key: label, name: Model}
      - {key: top1, name: Top-1, decimals: 1}
    rows:
      - {cells: [A, 80.0]}
      - ROW
"""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{cells: [B]}", "2 columns, but 1 cells"),
        ("{cells: [B, high]}", "column 'top1': expected a number, found 'high'"),
        ("{cells: [1, 80.0]}", "column 'label': expected text, found 1"),
        ("{cells: [B, 80.0], modl: x}", "unknown key 'modl': did you mean model?"),
        ("{model: x}", "'cells' is missing"),
    ],
)
def test_a_bad_row_is_named_by_line(tmp_path, row, message):
    path = tmp_path / "p.yaml"
    path.write_text(TABLE.replace("ROW", row))
    with pytest.raises(FreproError, match=r"p\.yaml:17: ") as error:
        papers.read(path)
    assert message in str(error.value)


def test_an_empty_cell_is_allowed_where_it_is_written(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(TABLE.replace("ROW", "{cells: [B, null]}"))
    assert papers.read(path).tables[1].rows[1].cells == ["B", None]


def test_unknown_paper():
    with pytest.raises(FreproError, match="did you mean dfformer"):
        papers.load("dformer")
