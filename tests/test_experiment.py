"""Experiments: from variants to findings, tables and pictures, over real smoke runs."""

import csv
import io

import pytest

from frepro import experiment as module
from frepro import figures, report
from frepro.errors import FreproError
from frepro.experiment import Experiment

VARIANTS = [
    ("DFFormer-S18", "dfformer_s18", {}),
    ("DF → AFNO", "dfformer_s18_afno", {}),
    ("N = 4 → 8", "dfformer_s18", {"num_filters": 8}),
]


@pytest.fixture
def experiment(store) -> Experiment:
    made = Experiment("dfformer", 4, VARIANTS, "smoke", seeds=[0, 1], device="cpu")
    made.run(log=lambda line: None)
    return made


def test_findings_tables_and_picture(experiment, tmp_path):
    assert experiment.to_train() == []
    found = {(f.label, f.metric): f for f in experiment.findings}
    afno = found["DF → AFNO", "flops"]
    assert (afno.published, round(afno.measured, 2), afno.group) == (3.8, 4.45, "Filter")
    own = found["N = 4 → 8", "params"]
    assert own.published is None  # a variant of the reader's own has nothing published
    assert own.measured > found["DFFormer-S18", "params"].measured
    top1 = found["DFFormer-S18", "top1"]
    assert (top1.published, top1.measured) == (83.2, None)  # a demo accuracy never stands for ImageNet
    digits = found["DFFormer-S18", "digits_top1"]
    scores = experiment.scores()["DFFormer-S18"]
    assert (digits.published, digits.n, digits.setting) == (None, 2, "digits")
    assert digits.measured == pytest.approx(sum(scores) / 2)

    view = report.published_beside_measured(experiment.findings, experiment.published)
    text = view.text()
    assert "not run" in text
    assert "4.45*" in text
    assert "* The print counts 3.8 G" in text
    assert view.html().count("<tr>") == 2 + len(VARIANTS)
    assert len({len(row) for row in view.rows} | {len(view.headings)}) == 1

    figure = figures.comparison(experiment)
    experiment.write(str(tmp_path), comparison=figure)
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "findings.csv").read_text()
    assert module.from_csv(text) == list(experiment.findings)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert float(rows[0]["measured"]) == 30.324372  # raw, not rounded


def test_a_single_run_has_no_spread():
    assert module.spread_of([3.0], max) == {"measured": 3.0, "spread": None, "n": 1}


def test_findings_before_the_runs_are_an_error():
    with pytest.raises(FreproError, match="call run"):
        _ = Experiment("dfformer", 4, VARIANTS, "smoke").findings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": 99}, "unknown table of dfformer 99"),
        ({"paper": "nosuch"}, "unknown paper 'nosuch'"),
        ({"profile": "dmeo"}, "did you mean demo"),
        ({"profile": "paper"}, "profile paper needs the real data set: add DATA="),
        ({"profile": "paper", "data": "digits"}, "profile paper needs the real data set"),
        ({"seeds": []}, "seeds are a list of different whole numbers"),
        ({"seeds": [1, 1]}, "seeds are a list of different whole numbers"),
        ({"seeds": [0, -1]}, "seeds are a list of different whole numbers"),
        ({"seeds": 3}, "seeds are a list of different whole numbers"),
        ({"models": "dfformer_s18"}, "models are a list of names"),
        ({"data": 5}, "data is the name of a folder"),
        ({"device": "gpuu"}, "unknown device 'gpuu'"),
        ({"variants": [*VARIANTS, ("DFFormer-S18", "dfformer_s36", {})]}, "two variants have the same label"),
        ({"variants": [*VARIANTS, ("again", "dfformer_s18", {})]}, "the same model with the same arguments"),
        ({"models": ["dfformer_s18_k3"]}, "unknown model of this table"),
        ({"variants": [("x", "dfformer_s81", {})]}, "did you mean dfformer_s18"),
        ({"data": "/nowhere"}, "no data at /nowhere"),
    ],
)
def test_bad_parameters(changes, message):
    settings = {"paper": "dfformer", "table": 4, "variants": VARIANTS, "profile": "smoke", **changes}
    with pytest.raises(FreproError, match=message):
        Experiment(**settings)


def test_models_narrow_the_variants():
    made = Experiment("dfformer", 4, VARIANTS, "smoke", models=["dfformer_s18_afno"])
    assert [label for label, *_ in made.variants] == ["DF → AFNO"]
