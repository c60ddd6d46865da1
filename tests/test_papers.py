"""The published numbers: complete, of the right kind, and tied to models that exist and cost what was printed."""

import json
from functools import lru_cache
from pathlib import Path

import pytest
import timm
import torch

import frepro  # noqa: F401 - registers the models
from frepro import papers, recipes
from frepro.analysis import cost
from frepro.errors import FreproError
from frepro.store import provenance, revisions

TABLES = [(name, number) for name in papers.names() for number in papers.load(name).tables]
# Tables of classifiers at full size; in the others backbones are part of something larger.
COSTS = [
    (name, number)
    for name, number in TABLES
    if (table := papers.load(name).tables[number]).dataset == "ImageNet-1K" and table.column("params")
]


@pytest.mark.parametrize("name", papers.names())
def test_every_table_and_figure_is_there(name):
    """None is left out of the paper's numbering."""
    paper = papers.load(name)
    assert list(paper.tables) == list(range(1, len(paper.tables) + 1))
    assert list(paper.figures) == list(range(1, len(paper.figures) + 1))
    assert all(table.rows for table in paper.tables.values())


def test_as_many_rows_and_figures_as_were_counted_in_the_print():
    """``data/published_shapes.json``: the rows of each table, and the number of figures."""
    counted = json.loads((Path(__file__).parent / "data" / "published_shapes.json").read_text())
    for name, shape in counted.items():
        paper = papers.load(name)
        assert {"rows": [len(table.rows) for table in paper.tables.values()], "figures": len(paper.figures)} == shape


@pytest.mark.parametrize("name", papers.names())
def test_every_model_named_exists(name):
    paper = papers.load(name)
    named = [row.model for table in paper.tables.values() for row in table.rows if row.model]
    named += [model for figure in paper.figures.values() for model in figure.models]
    assert named
    assert [model for model in named if not timm.is_model(model)] == []


def test_every_model_of_ours_that_a_paper_prints_is_named():
    """A table that forgets a model of its own is found; sizes of the code alone and released forms are in none."""
    unprinted = {"spanet_mediumx", "spanet_basex", "vimf_small", "vimf_small_pe", "vim_small_nope"}
    unprinted |= {"vim_tiny_stride8", "vim_small_stride8", *timm.list_models("vimf_v*")}
    named = {row.model for name, number in TABLES for row in papers.load(name).tables[number].rows}
    families = {model: module.rpartition(".")[2] for model, module in provenance.own_models().items()}
    of_a_paper = {model for model, family in families.items() if recipes.of_family(family) in papers.names()}
    assert of_a_paper - named == unprinted


@pytest.mark.parametrize(("name", "number"), TABLES)
def test_rows_of_a_section_have_labels_and_models_of_their_own(name, number):
    table = papers.load(name).tables[number]
    if table.column("label") is None:
        return
    labels = [(table.group(row), table.value(row, "label")) for row in table.rows]
    models = [(table.group(row), row.model) for row in table.rows if row.model]
    assert len(set(labels)) == len(labels)
    assert len(set(models)) == len(models)
    for row in table.rows:
        if row.model:
            assert table.row(row.model, table.group(row)) is row


@pytest.mark.parametrize(("name", "number"), TABLES)
def test_numbers_are_as_exact_as_the_print_and_possible(name, number):
    table = papers.load(name).tables[number]
    for row in table.rows:
        for cell, column in zip(row.cells, table.columns, strict=True):
            if isinstance(cell, str) or cell is None:
                continue
            assert cell == round(cell, column.decimals)
            assert -1 < cell < 100 if column.unit == "%" else cell > 0, (row.cells, column.key)


@pytest.mark.parametrize(("name", "number"), [t for t in TABLES if papers.load(t[0]).tables[t[1]].claims])
def test_claims_are_what_the_table_prints(name, number):
    """Of two of its rows that have a model, in the direction of the printed numbers."""
    paper = papers.load(name)
    table = paper.tables[number]
    for claim in table.claims:
        rows = ((table, claim.better), (paper.tables[claim.other_table or number], claim.worse))
        better, worse = (each.value(each.row(model, claim.group), claim.metric) for each, model in rows)
        assert better > worse, claim
    assert len({(claim.better, claim.worse, claim.metric, claim.group) for claim in table.claims}) == len(table.claims)
    assert len({claim.text for claim in table.claims}) == len(table.claims)


@lru_cache
def counted(model: str) -> dict[str, float]:
    """Parameters (M) and, for models of ours whose trace is short (a scan's is not), multiply-accumulates (G)."""
    if model in provenance.own_models() and "selective scan" not in revisions.of_model(model):
        found = cost.count(model)
        return {"params": found["params"] / 1e6, "flops": found["macs"] / 1e9}
    with torch.device("meta"):
        network = timm.create_model(model)
    return {"params": sum(parameter.numel() for parameter in network.parameters()) / 1e6}


@pytest.mark.parametrize(("name", "number"), COSTS)
def test_models_cost_what_was_printed_or_a_note_says_why_not(name, number):
    """So that a row names the model that it means: parameters to the print, FLOPs within 5 %."""
    table = papers.load(name).tables[number]
    rows = [row for row in table.rows if row.model]
    assert rows
    for row in rows:
        found = counted(row.model)
        off = round(found["params"]) != table.value(row, "params")
        if "flops" in found and table.column("flops"):
            printed = table.value(row, "flops")
            off = off or abs(found["flops"] - printed) > 0.05 * printed
        assert not off or row.note, f"{row.cells}: {row.model} has {found}"


def test_rows_that_cost_what_was_printed_are_the_rule():
    """Notes do not hide a table of wrong models: few rows differ, and none by much."""
    rows = [
        (papers.load(name).tables[number], row)
        for name, number in COSTS
        for row in papers.load(name).tables[number].rows
    ]
    costs = [(counted(row.model)["params"], table.value(row, "params")) for table, row in rows if row.model]
    different = [(found, printed) for found, printed in costs if round(found) != printed]
    assert len(different) < len(costs) / 8
    assert all(found == pytest.approx(printed, rel=0.25) for found, printed in different)


def test_changes_of_the_ablation_are_differences_of_its_accuracies():
    table = papers.load("spanet").tables[5]
    baseline = table.value(table.row("spanet_small_k3"), "top1")
    for row in table.rows[1:]:
        assert table.value(row, "change") == pytest.approx(table.value(row, "top1") - baseline)


def test_cells_of_spanet_that_a_poor_copy_hides():
    """As the clean print has them, without a note that doubts a cell."""
    tables = papers.load("spanet").tables
    rows = {tables[3].value(row, "label"): row for row in tables[3].rows}
    assert tables[3].value(rows["LITv2-S"], "box_ap") == 44.7
    assert tables[3].value(rows["LITv2-S"], "mask_ap") == 40.7
    assert tables[3].value(rows["ResNet101"], "mask_ap75") == 38.8
    assert [tables[5].value(row, "change") for row in tables[5].rows] == [
        *(None, -0.6, -0.1, -0.1, -0.2, -0.1, 0.3, -0.1, -0.2)
    ]
    assert tables[5].value(tables[5].row("spanet_small_k3_noscale"), "change") == -0.1
    notes = [note for table in tables.values() for note in (*table.notes, *(row.note or "" for row in table.rows))]
    assert not any("doubt" in note or "copy at hand" in note for note in notes)


def test_numbers_that_the_text_of_a_paper_repeats():
    """Sums that the papers' prose makes of their tables, so that a slip of one digit shows."""

    def value(paper, number, model, key="top1", group=None):
        table = papers.load(paper).tables[number]
        return table.value(table.row(model, group), key)

    def gain(paper, number, ours, other, key="top1"):
        return round(value(paper, number, ours, key) - value(paper, number, other, key), 1)

    assert gain("vim-f", 2, "vimf_tiny_h", "vim_tiny") == 1.3  # section 5.1
    assert gain("vim-f", 2, "vimf_small_h", "vim_small") == 0.8
    assert round(value("vim-f", 3, "vimf_tiny_h_stride8") - value("vim-f", 2, "vimf_tiny_h"), 1) == 0.8
    assert gain("vim-f", 5, "vim_tiny", "vim_tiny_nope") == 1.7  # appendix
    assert gain("vim-f", 5, "vimf_tiny_pe", "vim_tiny") == 0.4
    assert gain("vim-f", 5, "vimf_tiny_h", "vimf_tiny_pe") == 0.9
    assert gain("spanet", 2, "spanet_small", "focalnet_tiny_lrf") == 0.8  # section 5.1
    assert gain("spanet", 2, "spanet_small", "convnext_tiny") == 1.0
    assert gain("spanet", 2, "spanet_medium", "convnext_small") == 0.4
    assert value("spanet", 3, "spanet_small", "retinanet_ap") == 43.3  # section 5.2
    assert value("spanet", 3, "resnet50", "retinanet_ap") == 36.3
    assert value("spanet", 3, "swin_tiny_patch4_window7_224", "retinanet_ap") == 41.5
    assert gain("spanet", 4, "spanet_small", "swin_tiny_patch4_window7_224", "miou") == 3.9  # section 5.3
    assert gain("dfformer", 3, "dfformer_s36", "poolformer_s36", "miou") == 5.5
    assert gain("dfformer", 4, "dfformer_s18", "gfformer_s18") == 0.3
    assert value("spanetv2", 4, "spanetv2_s36_hybrid", "miou", "UperNet") == 51.6
    assert value("spanetv2", 4, "spanetv2_s36_hybrid", "miou", "Semantic FPN") == 48.6


def test_the_same_model_has_the_same_numbers_in_both_tables_that_print_it():
    shared = papers.load("dfformer").tables
    for key in ("params", "flops", "throughput", "top1"):
        two, four = (shared[n].value(shared[n].row("dfformer_s18"), key) for n in (2, 4))
        assert two == four
    vimf = papers.load("vim-f").tables
    for model in ("vim_tiny", "vimf_tiny_h"):
        assert vimf[2].value(vimf[2].row(model), "top1") == vimf[5].value(vimf[5].row(model), "top1")
    spanet = papers.load("spanet").tables
    for key in ("params", "flops", "top1"):
        two, five = (spanet[n].value(spanet[n].row("spanet_small"), key) for n in (2, 5))
        assert two == five


@pytest.mark.parametrize(
    ("paper", "artefact", "title"),
    [
        ("dfformer", "figure_1", "Relative log amplitudes of Fourier transformed feature maps"),
        ("dfformer", "figure_5", "Throughput vs. resolution"),
        ("spanet", "figure_4", "Visualization of the context map"),
        ("vim-f", "table_2", "Comparison of different backbones on ImageNet-1K classification"),
    ],
)
def test_a_title_is_the_first_sentence_of_the_caption(paper, artefact, title):
    assert papers.title(dict(papers.load(paper).artefacts())[artefact]) == title


def test_vs_ends_no_sentence():
    assert papers.title(papers.load("spanet").figures[5]).endswith(
        "vs. FLOPs/Params for SPANets and other comparative models"
    )


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
        ("{cells: [B]}", "expected 2 cells, one for each column, found 1"),
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


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("{better: m, worse: n, text: t}", "unknown row of model 'n'"),
        (
            "{better: m, worse: m, text: t, metric: speed}",
            "unknown metric 'speed'",
        ),
        ("{better: m, wrose: m, text: t}", "unknown key 'wrose': did you mean worse?"),
        ("{better: m, worse: m}", "'text' is missing"),
        ("{better: m, worse: m, text: t, margin: 0}", "a margin must be a positive number, not 0.0"),
        ("{better: m, worse: m, text: t, margin: wide}", "expected a number, found 'wide'"),
        ("{better: m, worse: m, text: t, other_table: 9}", "unknown table 9"),
    ],
)
def test_a_bad_claim_is_named_by_line(tmp_path, claim, message):
    path = tmp_path / "p.yaml"
    path.write_text(TABLE.replace("ROW", "{model: m, cells: [B, 81.0]}") + f"    claims:\n      - {claim}\n")
    with pytest.raises(FreproError, match=r"p\.yaml:19: ") as error:
        papers.read(path)
    assert message in str(error.value)


def test_the_margin_of_a_table_holds_for_scores_without_one_of_their_own(tmp_path):
    path = tmp_path / "p.yaml"
    claims = ["", ", margin: 0.5", ", metric: throughput", ", metric: throughput, margin: 3"]
    lines = "".join(f"      - {{better: m, worse: m, text: t{more}}}\n" for more in claims)
    text = TABLE.replace("ROW", "{model: m, cells: [B, 81.0]}").replace("decimals: 1}", 'decimals: 1, unit: "%"}')
    path.write_text(f"{text}    margin: 1.0\n    claims:\n{lines}")
    table = papers.read(path).tables[1]
    assert [table.margin_of(claim) for claim in table.claims] == [1.0, 0.5, None, 3]
    path.write_text(f"{text}    margin: -1.0\n")
    with pytest.raises(FreproError, match=r"Table 1: a margin must be a positive number, not -1\.0"):
        papers.read(path)


@pytest.mark.parametrize(("name", "number"), [("dfformer", 4), ("spanet", 5), ("vim-f", 5), ("spanetv2", 2)])
def test_margins_of_the_ablations_are_at_most_a_point(name, number):
    table = papers.load(name).tables[number]
    margins = {table.margin_of(claim) for claim in table.claims if claim.metric == "top1"}
    assert all(0 < margin <= 1 for margin in margins)


def test_two_columns_of_one_key_are_refused(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(TABLE.replace("key: label", "key: top1").replace("- ROW\n", ""))
    with pytest.raises(FreproError, match=r"p\.yaml: Table 1: two columns have the key 'top1'"):
        papers.read(path)


def test_a_model_that_stands_in_two_sections(tmp_path):
    text = TABLE.replace("columns:\n", "columns:\n      - {key: group, name: Head}\n")
    text = text.replace("cells: [A, 80.0]", "model: m, cells: [X, A, 80.0]")
    path = tmp_path / "p.yaml"
    path.write_text(text.replace("ROW", "{model: m, cells: [Y, A, 81.0]}"))
    table = papers.read(path).tables[1]
    assert [table.row("m", group).cells[-1] for group in (None, "X", "Y")] == [80.0, 80.0, 81.0]
    assert table.row("m", "Z") is None


def test_an_empty_cell_is_allowed_where_it_is_written(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(TABLE.replace("ROW", "{cells: [B, null]}"))
    assert papers.read(path).tables[1].rows[1].cells == ["B", None]


def test_unknown_paper():
    with pytest.raises(FreproError, match="did you mean dfformer"):
        papers.load("dformer")
