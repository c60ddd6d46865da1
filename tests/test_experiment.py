"""Experiments: from variants to findings, tables and pictures, over real smoke runs."""

import csv
import io

import pytest

from frepro import experiment as module
from frepro import figures, papers, report
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
    textured = found["DFFormer-S18", "textured_top1"]
    scores = experiment.scores()["DFFormer-S18"]
    assert (textured.published, textured.n, textured.setting) == (None, 2, "textured")
    assert textured.measured == pytest.approx(sum(scores) / 2)

    view = report.published_beside_measured(experiment.findings, experiment.published)
    text = view.text()
    assert "not run" in text
    assert "DF → AFNO*  " in text
    assert "\n* The print counts 3.8 G" in text
    assert view.html().count("<tr>") == 2 + len(VARIANTS)
    assert len({len(row) for row in view.rows} | {len(view.headings)}) == 1

    figure = figures.comparison(experiment)
    experiment.write(str(tmp_path), comparison=figure)
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "findings.csv").read_text()
    assert module.from_csv(text) == list(experiment.findings)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert float(rows[0]["measured"]) == 30.324372  # raw, not rounded


def test_a_claim_is_tested_seed_by_seed(experiment):
    better, faster = experiment.outcomes()  # of the table's claims, those whose models are both here
    assert [o.claim.metric for o in (better, faster)] == ["top1", "throughput"]
    scores = experiment.scores()
    differences = [a - b for a, b in zip(scores["DFFormer-S18"], scores["DF → AFNO"], strict=True)]
    assert (better.measured, better.n) == (pytest.approx(sum(differences) / 2), 2)
    assert (better.published, better.setting, better.unit) == (pytest.approx(0.6), "textured", "points")
    # Of two pairs the interval reaches 12.706 times half their distance.
    assert better.high - better.measured == pytest.approx(12.7062 * abs(differences[0] - differences[1]) / 2)
    assert (faster.published, faster.n) == (535 - 389, 1)  # smoke times one round
    assert faster.verdict == "undecided"
    text = report.claims([better, faster], experiment.published).text()
    assert "DFFormer-S18 > DF → AFNO" in text
    assert f"{better.measured:+.2f} points" in text
    assert better.verdict in text


@pytest.mark.parametrize(
    ("better", "worse", "interval", "verdict"),
    [
        ([3.0, 4.0, 5.0], [1.0, 2.0, 3.0], (2, 2, 2), "holds"),  # a constant difference
        ([1.0, 2.0], [3.0, 4.0], (-2, -2, -2), "does not hold"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], (0, 0, 0), "undecided"),  # no difference
        ([5.0], [1.0], (4, None, None), "undecided"),  # one seed
        ([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5, (3, 1.036757, 4.963243), "holds"),  # t(0.975, 4) = 2.776445
        ([-1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5, (2.6, -0.258525, 5.458525), "undecided"),
    ],
)
def test_paired_statistic(better, worse, interval, verdict):
    found = module.paired(better, worse)
    assert found == pytest.approx(interval, abs=1e-3)
    claim = papers.load("dfformer").tables[4].claims[0]
    assert module.Outcome(claim, "points", None, *found, n=len(better), setting="digits").verdict == verdict


def test_pairs_of_different_length_are_refused():
    with pytest.raises(ValueError, match="zip"):
        module.paired([1.0, 2.0], [1.0])


def test_untrained_variants_are_counted(store):
    variants = [("DFFormer-S18", "dfformer_s18", {}), ("ConvNeXt-T", "convnext_tiny", {})]
    made = Experiment("dfformer", 2, variants, "smoke", device="cpu", trained=["dfformer_s18"])
    assert [run.model for run in made.runs] == ["dfformer_s18"]
    made.run(log=lambda line: None)
    found = {(f.label, f.metric): f for f in made.findings}
    assert found["DFFormer-S18", "throughput"].measured > 0
    assert found["ConvNeXt-T", "throughput"].measured is None
    assert found["ConvNeXt-T", "flops"].measured == pytest.approx(4.5, abs=0.05)
    assert ("ConvNeXt-T", "textured_top1") not in found
    whole = report.published_beside_measured(made.findings, made.published, ["type", "params", "top1"], whole=True)
    cells = {row[0]: row[1:] for row in whole.rows}
    assert list(cells)[:3] == ["ConvNeXt-T", "CSWin-T", "DiNAT-T"]  # in print order, with models nobody here has
    assert cells["CSWin-T"] == ["A", "23", "no model", "82.7", "no model"]
    assert cells["ConvNeXt-T"] == ["C", "29", "28.6", "82.1", "not run"]
    assert [row[0] for row in report.costs(made.findings).rows] == ["DFFormer-S18"]
    summary = report.summary(made.findings, made.published, made.own_metric, made.own_title)
    assert [row[-1] for row in summary.rows] == ["1", ""]


def test_an_experiment_that_trains_nothing(store):
    made = Experiment("spanet", 1, [("SPANet-S", "spanet_small", {})], "paper", trained=[])
    assert (made.runs, made.is_timed(), made.outcomes()) == ([], True, [])
    assert {f.metric: f.measured for f in made.findings}["params"] == pytest.approx(28.66, abs=0.01)
    assert made.provenance()["timing"] is None
    assert made.made_from  # the counted model's code
    assert list(store.glob("*")) == []


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
        ({"trained": ["dfformer_s18_k3"]}, "unknown model of this table"),
        ({"trained": "dfformer_s18"}, "trained are a list of names"),
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
