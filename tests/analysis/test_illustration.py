"""What stands behind a figure, and when its result is out of date."""

import csv
import json

import pytest
from matplotlib.figure import Figure

from frepro import papers, reproduce
from frepro.analysis.illustration import Illustration
from frepro.book_pages import pages
from frepro.errors import FreproError
from frepro.reproduce import Artefact, Notebook
from frepro.store import provenance, records

GRAPH = Artefact("spanetv2", "figure", 1)


def test_it_writes_numbers_origin_and_pictures(tmp_path):
    values = [{"layer": "a", "gain": 0.1 + 0.2}, {"layer": "b", "gain": 1}]
    Illustration("dfformer", 1, values, [{"model": "gfnet_ti", "seed": 3}], "random weights").write(
        str(tmp_path), curves=Figure()
    )
    assert (tmp_path / "curves.png").stat().st_size > 0
    with (tmp_path / "values.csv").open(newline="") as file:
        assert [float(row["gain"]) for row in csv.DictReader(file)] == [0.1 + 0.2, 1]
    origin = json.loads((tmp_path / "origin.json").read_text())
    assert origin["sources"] == [{"model": "gfnet_ti", "seed": 3}]
    assert origin["stands_in"] == "random weights"


def test_what_cannot_be_is_refused():
    with pytest.raises(FreproError, match=r"unknown figure of spanet.* '?99"):
        Illustration("spanet", 99)
    with pytest.raises(ValueError, match="same columns"):
        Illustration("spanet", 1, [{"a": 1}, {"b": 2}])


def test_a_figure_rests_on_the_modules_of_its_notebook_alone():
    modules = set(Notebook(GRAPH.notebook).modules)
    assert {"frepro.analysis.graph", "frepro.figures.responses", "frepro.analysis.illustration"} <= modules
    assert not any(name.startswith("frepro.models") for name in modules)
    drawing = Notebook(Artefact("vim-f", "figure", 3).notebook)
    assert "frepro.models.vimf" in drawing.modules  # named as a model, not imported


def test_a_figure_is_made_then_current_then_stale(monkeypatch, store):
    plan = reproduce.plan(GRAPH, {"profile": "smoke", "seeds": [0], "draws": 2, "kernel_sizes": [3], "size": 6})
    assert "to do: one notebook" in plan.describe(None)
    failed = plan.folder.with_name("figure_1.failed.ipynb")
    records.write_text(failed, "of an earlier try")
    said = []
    reproduce.make(plan, None, None, None, said.append)
    assert not failed.exists()
    assert "self-attention" in plan.text()
    again = reproduce.plan(GRAPH, plan.parameters)
    assert again.is_current
    assert "up to date" in again.describe(None)
    assert not reproduce.plan(GRAPH, {**plan.parameters, "seed": 1}).is_current
    page = pages.origin(plan.folder)
    assert "`frepro.analysis.graph`" in page
    assert "draws of each mixer: 2" in page
    assert "has not changed since" in " ".join(page.split())
    code = provenance.code
    changed = {"frepro.analysis.graph": "another"}
    monkeypatch.setattr(provenance, "code", lambda *modules: {**code(*modules), **changed})
    assert reproduce.plan(GRAPH, plan.parameters).reasons == ["code of frepro.analysis.graph changed"]
    assert "has changed since" in " ".join(pages.origin(plan.folder).split())


def test_a_figure_rests_on_its_caption(monkeypatch):
    before = reproduce.plan(GRAPH, {"profile": "smoke"}).made_from
    paper = papers.load("spanetv2")
    changed = {**paper.figures, 1: papers.Figure("another caption", "the same")}
    monkeypatch.setattr(papers, "load", lambda name: papers.Paper(**{**vars(paper), "figures": changed}))
    after = reproduce.plan(GRAPH, {"profile": "smoke"}).made_from
    assert [name for name in before if after[name] != before[name]] == ["published values"]


def test_a_wrong_parameter_is_named():
    with pytest.raises(FreproError, match=r"unknown parameter of figure_1.ipynb 'drwas': did you mean draws"):
        reproduce.plan(GRAPH, {"profile": "demo", "drwas": 3})
    with pytest.raises(FreproError, match="unknown profile 'dmeo': did you mean demo"):
        reproduce.plan(GRAPH, {"profile": "dmeo"})
