"""The pages that are made from results."""

import csv
import html
import json
import re
import shutil
from collections import Counter

import pytest
from markdown_it import MarkdownIt

from frepro import papers, paths, report, reproduce
from frepro.analysis import sizes
from frepro.book_pages import pages, verdicts
from frepro.store import provenance


def test_status_has_every_artefact(store):
    text = pages.status()
    built = [artefact.is_built for artefact in reproduce.artefacts()]
    assert text.count("| not run |") == sum(built)
    assert text.count("| not built |") == len(built) - sum(built)
    assert all(papers.load(name).title in text for name in papers.names())
    assert "[Table 4](dfformer/table_4)" in text
    assert "| Throughput vs. resolution |" in text


@pytest.mark.parametrize(
    ("code", "since"), [("frepro.errors", "the same"), ("frepro.gone", "changed"), ("", "changed")]
)
def test_status_tells_what_a_result_was_made_with(store, code, since):
    artefact = reproduce.Artefact("spanet", "figure", 5)
    folder = artefact.folder("demo")
    shutil.copytree(paths.ROOT / "results" / "demo" / "spanet" / "figure_5", folder)
    made, _ = pages.read(folder)
    fingerprint = provenance.code("frepro.errors")["frepro.errors"]
    made["made_from"] = {code: fingerprint, "notebook": "of any text"} if code else {}
    (folder / "provenance.json").write_text(json.dumps(made))
    (line,) = [line for line in pages.status().splitlines() if line.startswith("| [Figure 5](spanet/")]
    assert line.endswith(f"| {made['time'][:10]} | `{made['commit'][:10]}` | {since} |")


def test_pages_from_committed_results(monkeypatch, tmp_path):
    monkeypatch.delenv("FREPRO_RESULTS")
    pages.lay_out(tmp_path / "pages")
    page = json.loads((tmp_path / "pages" / "dfformer" / "table_4.ipynb").read_text())
    origin = page["cells"][-1]["source"]
    assert "{dropdown}" in origin
    assert origin.count("| `dfformer_s18` |") >= 3  # each seed of the baseline
    assert "| demo |" in (tmp_path / "pages" / "status.md").read_text()


def test_a_page_begins_with_its_answer(monkeypatch, tmp_path):
    monkeypatch.delenv("FREPRO_RESULTS")
    pages.lay_out(tmp_path / "pages")
    for artefact in reproduce.artefacts():
        if not artefact.is_built or not (profile := pages.state(artefact)):
            continue
        folder = tmp_path / "pages" / artefact.paper
        first = json.loads((folder / f"{artefact.name}.ipynb").read_text())["cells"][0]["source"]
        title, box = first.split("\n", 1)
        assert title.startswith("# ")
        assert box.lstrip().startswith("::::{container} frepro-answer")
        box = box.partition("\n::::\n")[0]
        assert f"make reproduce PAPER={artefact.paper} {artefact.kind.upper()}={artefact.number}" in box
        linked = re.findall(r"</results/([^>]+)>", box)
        assert all((tmp_path / "pages" / name).exists() for name in linked)
        assert {name.rpartition(".")[2] for name in linked} >= {"ipynb", "json"}
        if found := [each.outcome.verdict for each in verdicts.of(artefact, profile)]:
            assert any(verdicts.badge(verdict) in box for verdict in found)
            if len(found) > 1:
                assert all(f"{found.count(verdict)} {verdict}" in box for verdict in found)


def test_the_page_of_claims_and_its_totals_are_those_of_the_tables(monkeypatch, tmp_path):
    monkeypatch.delenv("FREPRO_RESULTS")
    pages.lay_out(tmp_path / "pages")
    stored = [
        row
        for file in (paths.ROOT / "results" / "demo").glob("*/table_*/claims.csv")
        for row in csv.DictReader(file.open(encoding="utf-8"))
    ]
    rows = list(csv.DictReader((tmp_path / "pages" / "all_claims.csv").open(encoding="utf-8")))
    assert Counter(row["verdict"] for row in rows) == Counter(row["verdict"] for row in stored)
    page = (tmp_path / "pages" / "claims.md").read_text()
    strip = (tmp_path / "pages" / "totals.md").read_text()
    assert f"Of the {len(stored)} claims" in strip
    for verdict, count in Counter(row["verdict"] for row in stored).items():
        assert f"{count} {verdicts.badge(verdict)}" in page
        assert f"{count} {verdicts.badge(verdict)}" in strip
    assert all(row["claim"] in html.unescape(page) for row in stored)
    assert {row["evidence"] for row in rows if not row["measured"]} == {""}


def test_code_is_folded_without_markers():
    code = {"cell_type": "code", "metadata": {}, "source": ["# NBVAL_CHECK_OUTPUT\n", "x = 1\n", "x"]}
    removed = {"cell_type": "code", "metadata": {"tags": ["remove-input"]}, "source": "y"}
    pages.fold_code({"cells": [code, removed, {"cell_type": "markdown", "metadata": {}, "source": "# NBVAL_X"}]})
    assert (code["source"], code["metadata"]["tags"]) == ("x = 1\nx", ["hide-input"])
    assert removed["metadata"]["tags"] == ["remove-input"]


def test_every_committed_figure_is_current_and_says_what_stands_in(monkeypatch, tmp_path):
    monkeypatch.delenv("FREPRO_RESULTS")
    pages.lay_out(tmp_path / "pages")
    figures = [a for a in reproduce.artefacts() if a.kind == "figure" and a.is_built]
    assert figures
    status = (tmp_path / "pages" / "status.md").read_text()
    for artefact in figures:
        page = json.loads((tmp_path / "pages" / artefact.paper / f"{artefact.name}.ipynb").read_text())
        said = " ".join(page["cells"][-1]["source"].split())
        assert "changed since: `frepro." in said
        found = json.loads((artefact.folder("demo") / "origin.json").read_text())
        assert found["stands_in"] in said
        assert f"results/{artefact.paper}/{artefact.name}\n" in (paths.BOOK / "_toc.yml").read_text()
        title = papers.title(papers.load(artefact.paper).figures[artefact.number])
        assert f"| {title} | {'demo' if found['stands_in'] else 'complete'} |" in status


def test_sizes_and_drawings_of_every_family(monkeypatch, tmp_path):
    monkeypatch.delenv("FREPRO_RESULTS")
    pages.lay_out(tmp_path / "pages")
    folder = tmp_path / "pages" / "models"
    families = {module.rpartition(".")[2] for module in provenance.own_models().values()}
    for model, module in provenance.own_models().items():
        assert f'<th scope="row">{model}</th>' in (folder / f"{module.rpartition('.')[2]}.md").read_text()
    included, shown = set(), set()
    for page in paths.BOOK.glob("*/index.md"):
        text = page.read_text()
        included |= set(re.findall(r"```{include} \.\./results/models/(\w+)\.md", text))
        shown |= set(re.findall(r"```{figure} \.\./results/models/(\w+)\.svg\n:figclass: drawing\n:alt: \w", text))
    assert included == families | {"vim_flops"}
    assert shown == {path.stem for path in folder.glob("*.svg")}


def test_a_published_value_stands_beside_ours(monkeypatch, tmp_path):
    monkeypatch.delenv("FREPRO_RESULTS")
    view = report.sizes([size for size in sizes.read() if size.model == "dfformer_b36"])
    printed = papers.load("dfformer").tables[2]
    row = printed.row("dfformer_b36")
    assert view.rows[0][3:7:2] == [f"{printed.value(row, 'params'):.0f}", f"{printed.value(row, 'flops'):.1f}"]
    assert [round(float(value)) for value in view.rows[0][4:8:2]] == [115, 22]


def test_without_sizes_the_pages_say_how_to_count(store, tmp_path):
    pages.lay_out(tmp_path / "pages")
    assert "frepro sizes" in (tmp_path / "pages" / "models" / "spanet.md").read_text()


def test_the_committed_demo_learns():
    found = json.loads((paths.ROOT / "results" / "demo" / "dfformer" / "table_4" / "origin.json").read_text())
    scores = {}
    for run in found["runs"]:
        scores.setdefault(run["model"], []).append(run["values"]["top1"])
    assert scores.keys() == {row.model for row in papers.load("dfformer").tables[4].rows}
    assert all(len(values) >= 3 for values in scores.values())
    assert all(30 < value <= 100 for values in scores.values() for value in values)  # one in ten is chance


def test_a_result_that_is_missing_says_how_to_make_it(store, tmp_path):
    pages.lay_out(tmp_path / "pages")
    text = (tmp_path / "pages" / "dfformer" / "table_4.md").read_text()
    assert "make reproduce PAPER=dfformer TABLE=4" in text
    assert text.startswith("# DFFormer, Table 4: ablation of DFFormer-S18\n")
    assert " ".join(papers.load("dfformer").tables[4].caption.split()) in text


def test_every_table_of_numbers_can_be_downloaded(monkeypatch, tmp_path):
    monkeypatch.delenv("FREPRO_RESULTS")
    pages.lay_out(tmp_path / "pages")
    for artefact in reproduce.artefacts():
        for file in artefact.folder("demo").glob("*.csv"):
            name = f"{artefact.paper}_{artefact.name}_{file.name}"
            assert (tmp_path / "pages" / artefact.paper / name).read_bytes() == file.read_bytes()
            page = json.loads((tmp_path / "pages" / artefact.paper / f"{artefact.name}.ipynb").read_text())
            assert f"</results/{artefact.paper}/{name}>" in page["cells"][-1]["source"]
    assert "</results/models/sizes.csv>" in (tmp_path / "pages" / "models" / "spanet.md").read_text()
    assert "</results/models/vim_flops.csv>" in (tmp_path / "pages" / "models" / "vim_flops.md").read_text()


def test_every_picture_of_a_notebook_is_described(monkeypatch, tmp_path):
    monkeypatch.delenv("FREPRO_RESULTS")
    pages.lay_out(tmp_path / "pages")
    page = json.loads((tmp_path / "pages" / "dfformer" / "figure_8.ipynb").read_text())
    (cell,) = [c for c in page["cells"] if any("image/png" in o.get("data", ()) for o in c.get("outputs", ()))]
    said = cell["metadata"]["mystnb"]["image"]["alt"]
    assert said.startswith("DFFormer, Figure 8: relative log amplitudes in stage 3")
    assert papers.load("dfformer").figures[8].shows in said


def test_names_from_data_stay_in_their_cell(store, tmp_path):
    """Whatever a user's file of weights or folder is called, the table keeps its columns and shows the name."""
    name = "a|b`c$d$<i>.pth"
    shutil.copytree(paths.ROOT / "results" / "demo" / "dfformer" / "table_4", tmp_path / "table_4")
    _, found = pages.read(tmp_path / "table_4")
    found["runs"][0]["weights"] = found["data"]["name"] = name
    (tmp_path / "table_4" / "origin.json").write_text(json.dumps(found))
    text = pages.origin(tmp_path / "table_4").replace("````{dropdown}", "").replace("````", "")
    page = MarkdownIt("commonmark").enable("table").render(text)
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    assert {len(re.findall("<t[hd]", row)) for row in rows} == {5}
    assert len(rows) == 1 + len(found["runs"])
    assert f"<td><code>{html.escape(name)}</code></td>" in rows[1]
    assert f"data: {html.escape(name)}," in page


def test_a_table_of_detection_says_what_was_trained(store):
    """Made by the front door in smoke, its page laid out as if it were the demo."""
    artefact = reproduce.Artefact("spanetv2", "table", 3)
    assert pages.progress(artefact) == "not run"
    chosen = {"models": ["spanetv2_s18_pure"], "trained": {"mask_rcnn": ["spanetv2_s18_pure"]}}
    job = reproduce.plan(artefact, {"profile": "smoke", "device": "cpu", **chosen})
    folder = artefact.folder("demo")
    folder.mkdir(parents=True)
    job.run(1, None, None, lambda line: None)
    job.experiment.write(str(folder))
    (folder / "provenance.json").write_text(json.dumps(provenance.record()))
    assert pages.progress(artefact) == "demo"
    assert "| demo |" in pages.status()
    said = pages.origin(folder)
    assert "batches of 1 at 224 pixels" in said
    assert "- data: scenes" in said
    assert "| model | network | seed | test box AP (%) | seconds | run |" in said
    assert "| `spanetv2_s18_pure` | Mask R-CNN | 0 | " in said
    _, found = pages.read(folder)
    found["runs"][0]["weights"] = "mask_rcnn-spanetv2_s18_pure.pth"
    (folder / "origin.json").write_text(json.dumps(found))
    assert "| `spanetv2_s18_pure` | Mask R-CNN | `mask_rcnn-spanetv2_s18_pure.pth` | " in pages.origin(folder)
