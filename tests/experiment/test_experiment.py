"""Experiments: from variants to findings, tables and pictures, over real smoke runs."""

import csv
import dataclasses
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from frepro import figures, papers, recipes, report
from frepro.analysis import cost
from frepro.errors import FreproError
from frepro.experiment import Experiment, Outcome, claims, findings
from frepro.experiment.statistics import crossed_error
from frepro.experiment.timings import LATER

VARIANTS = [
    ("DFFormer-S18", "dfformer_s18", {}),
    ("DF → AFNO", "dfformer_s18_afno", {}),
    ("N = 4 → 8", "dfformer_s18", {"num_filters": 8}),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A store with the runs of ``experiment``, made once for all tests that only read them."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREPRO_RESULTS", str(folder))
        Experiment("dfformer", 4, VARIANTS, "smoke", seeds=[0, 1], device="cpu").run(log=lambda line: None)
    return folder


@pytest.fixture
def experiment(runs, store, monkeypatch) -> Experiment:
    monkeypatch.setenv("FREPRO_RESULTS", str(runs))
    return Experiment("dfformer", 4, VARIANTS, "smoke", seeds=[0, 1], device="cpu")


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
    assert "\n* The paper counts 3.8 G" in text
    assert view.html().count("<tr>") == 2 + len(VARIANTS)
    assert len({len(row) for row in view.rows} | {len(view.headings)}) == 1

    figure = figures.comparison(experiment)
    experiment.write(str(tmp_path), comparison=figure)
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "findings.csv").read_text()
    assert findings.from_csv(text) == list(experiment.findings)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert float(rows[0]["measured"]) == 30.324372  # raw, not rounded


def test_a_claim_is_tested_seed_by_seed(experiment):
    outcomes = experiment.outcomes()
    assert [outcome.claim for outcome in outcomes] == experiment.published.claims  # all, measured here or not
    better, faster = (o for o in outcomes if o.rows == ("DFFormer-S18", "DF → AFNO"))
    assert [o.claim.metric for o in (better, faster)] == ["top1", "throughput"]
    assert {o.verdict for o in outcomes if o not in (better, faster)} == {"not run"}
    scores = experiment.scores()
    differences = [a - b for a, b in zip(scores["DFFormer-S18"], scores["DF → AFNO"], strict=True)]
    assert (better.measured, better.n) == (pytest.approx(sum(differences) / 2), 2)
    assert (better.published, better.setting, better.unit) == (pytest.approx(0.6), "textured", "points")
    # Of two pairs the interval reaches 12.706 times half their distance.
    assert better.high - better.measured == pytest.approx(12.7062 * abs(differences[0] - differences[1]) / 2)
    assert (faster.published, faster.n) == (535 - 389, 1)  # smoke times one round
    assert faster.verdict == "undecided"
    assert (better.margin, faster.margin) == (1.0, None)
    assert dataclasses.replace(better, untrained=()).p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    text = report.claims([better, faster]).text()
    assert "DFFormer-S18 > DF → AFNO" in text
    assert f"{better.measured:+.2f} points" in text
    assert better.verdict in text


def test_the_error_of_the_test_set_is_in_where_it_is_known(experiment, runs, store, monkeypatch):
    def claim() -> Outcome:
        return next(o for o in experiment.outcomes() if o.rows == ("DFFormer-S18", "DF → AFNO") and o.unit == "points")

    both = claim()
    right = {each.label: np.array(each.correct(), dtype=float) for each in experiment.trained_variants}
    differences = 100 * (right["DFFormer-S18"] - right["DF → AFNO"])
    assert both.measured == pytest.approx(differences.mean())
    assert both.error == pytest.approx(crossed_error(differences))
    low, high = dataclasses.replace(both, untrained=()).over_both.interval()  # smoke runs learn nothing
    assert low < both.low < both.high < high
    # Runs of earlier versions do not say which images they got right.
    copy = store / "copy"
    shutil.copytree(runs, copy)
    monkeypatch.setenv("FREPRO_RESULTS", str(copy))
    (experiment.runs[0].measurement.folder / "correct.npy").unlink()
    assert claim() == dataclasses.replace(both, error=None)


def test_all_claims_are_listed_also_those_about_models_that_are_left_out(experiment):
    narrow = dataclasses.replace(experiment, models=["dfformer_s18"])
    outcomes = narrow.outcomes()
    assert [outcome.claim for outcome in outcomes] == experiment.published.claims
    assert {(o.verdict, o.reason) for o in outcomes} == {("not run", "not among the models of this run")}
    assert {o.rows[1] for o in outcomes} >= {"DF → AFNO", "GFFormer-S18"}  # as printed
    view = report.claims(outcomes)
    assert {row[1] for row in view.rows} == {"not run*"}
    assert view.notes == ["not among the models of this run"]


def test_claims_are_stored_and_read(experiment, tmp_path):
    experiment.write(str(tmp_path))
    stored = claims.from_csv((tmp_path / "claims.csv").read_text())
    assert stored == experiment.outcomes()
    assert [o.verdict for o in stored] == [o.verdict for o in experiment.outcomes()]


def test_a_claim_of_ones_own_has_its_margin(experiment):
    own = papers.Claim("N = 4 → 8", "DFFormer-S18", "Eight filters outperform four.", margin=0.3)
    for claim, margin in ((own, 0.3), (dataclasses.replace(own, margin=None), 1.0)):
        *_, last = dataclasses.replace(experiment, claims=[claim]).outcomes()
        assert (last.claim, last.margin, last.n) == (claim, margin, 2)
    with pytest.raises(FreproError, match=r"claim 'Eight.*': a margin must be a positive number, not -1"):
        dataclasses.replace(experiment, claims=[dataclasses.replace(own, margin=-1)])


def test_a_lower_value_supports_a_claim_about_a_metric_that_is_better_if_lower(experiment, monkeypatch):
    higher = next(o for o in experiment.outcomes() if o.measured is not None)
    metric = dataclasses.replace(recipes.METRICS["top1"], higher_is_better=False)
    monkeypatch.setitem(recipes.METRICS, "top1", metric)
    lower = next(o for o in experiment.outcomes() if o.claim == higher.claim)
    assert lower.claim.metric == "top1"
    assert (lower.measured, lower.published) == (-higher.measured, -higher.published)


def test_runs_that_did_not_train_are_marked_and_void_the_claim(experiment, runs, store, monkeypatch):
    """A stored record with the loss of a guess, in a copy of the store."""
    copy = store / "copy"
    shutil.copytree(runs, copy)
    monkeypatch.setenv("FREPRO_RESULTS", str(copy))
    learner = next(each for each in experiment.trained_variants if each.label == "DF → AFNO")
    for run in experiment.runs:
        path = run.measurement.folder / "record.json"
        record = json.loads(path.read_text())
        is_guess = run == learner.runs[1]
        record["values"] |= {"train_loss": math.log(10) * (0.95 if is_guess else 0.5), "top1": 60.0}
        path.write_text(json.dumps(record))
    claim = next(o for o in experiment.outcomes() if o.rows == ("DFFormer-S18", "DF → AFNO") and o.unit == "points")
    assert (claim.verdict, claim.untrained) == ("did not train", ("DF → AFNO, seed 1",))
    view = report.claims([claim])
    assert view.rows[0][1] == "did not train*"
    assert claim.adjusted_p is None
    assert "DF → AFNO, seed 1" in view.text()
    scores = report.scores(experiment.findings, experiment.own_metric, experiment.own_title)
    assert {row[0]: row[1] for row in scores.rows} == {
        "DFFormer-S18": "60.00",
        "DF → AFNO": "60.00*",
        "N = 4 → 8": "60.00",
    }
    assert "1 of 2 seeds did not train" in scores.notes[0]
    assert findings.from_csv(findings.to_csv(experiment.findings)) == list(experiment.findings)
    legend = figures.comparison(experiment).legends[0]
    assert any("did not train" in text.get_text() for text in legend.get_texts())
    for run in experiment.runs:
        path = run.measurement.folder / "record.json"
        record = json.loads(path.read_text())
        record["values"] |= {"train_loss": 1.0, "top1": 60.0 + 10 * (run.model == "dfformer_s18") + run.seed}
        path.write_text(json.dumps(record))
    claim = next(o for o in experiment.outcomes() if o.rows == claim.rows and o.unit == "points")
    assert (claim.verdict, claim.adjusted_p) == ("agrees", claim.p)  # of the table's claims, only this one was tested


def test_a_variant_of_ones_own_brings_its_claim_and_only_it_is_new(experiment, runs, store, monkeypatch):
    copy = store / "copy"
    shutil.copytree(runs, copy)
    monkeypatch.setenv("FREPRO_RESULTS", str(copy))
    wider = experiment.with_variant("tanh", "dfformer_s18", "Tanh outperforms StarReLU.", act_layer="tanh")
    assert wider.variants[:-1] == experiment.variants
    assert [run.model_args for run in wider.to_train()] == [{"act_layer": "tanh"}] * 2
    assert [timing.model_args for timing in wider.to_time()] == [{"act_layer": "tanh"}]
    wider.run(log=lambda line: None)
    assert wider.outcomes()[:-1] == experiment.outcomes()
    own = wider.outcomes()[-1]
    assert (own.claim.text, own.rows) == ("Tanh outperforms StarReLU.", ("tanh", "DFFormer-S18"))
    assert (own.published, own.n) == (None, 2)
    assert own.verdict != "not run"
    found = {(f.label, f.metric): f for f in wider.findings}
    assert found["tanh", "throughput"].setting.endswith(LATER)  # not in turn with the others
    assert not found["DFFormer-S18", "throughput"].setting.endswith(LATER)
    ticks = [text.get_text() for text in figures.comparison(wider).axes[0].get_yticklabels()]
    assert "tanh" in ticks
    with pytest.raises(FreproError, match="unknown variant in a claim 'DFFormer-S81': did you mean DFFormer-S18"):
        experiment.with_variant("x", "dfformer_s18", "It is better.", "DFFormer-S81", num_filters=2)


def test_models_that_a_claim_of_speed_compares_are_timed_in_turn(experiment, runs, store, monkeypatch):
    copy = store / "copy"
    shutil.copytree(runs, copy)
    monkeypatch.setenv("FREPRO_RESULTS", str(copy))
    assert experiment.to_time() == []
    timing = experiment.timings["DF → AFNO"]  # the paper has it slower than DFFormer-S18
    path = timing.measurement.folder / "record.json"
    record = json.loads(path.read_text())
    record["values"]["session"] = "another"
    path.write_text(json.dumps(record))
    assert [each.model for each in experiment.to_time()] == ["dfformer_s18", "dfformer_s18_afno"]
    experiment.run(log=lambda line: None)
    assert experiment.to_time() == []


def test_a_bad_argument_is_told_before_anything_trains_and_takes_its_row_alone(store):
    variants = [
        VARIANTS[0],
        ("wider", "dfformer_s18", {"num_filterz": 8}),
        ("odd", "dfformer_s18", {"act_layer": "tahn"}),
    ]
    made = Experiment("dfformer", 4, variants, "smoke", device="cpu")
    lines = []
    made.run(log=lines.append)
    first, second, third, *_ = lines
    assert first.startswith(
        "wider is left out: unknown argument of dfformer_s18 'num_filterz': did you mean num_filters"
    )
    assert second.startswith("odd is left out: unknown activation 'tahn': did you mean tanh")
    assert "dfformer_s18, seed 0: test top-1" in third
    assert [run.model_args for run in made.runs] == [{}]
    view = report.published_beside_measured(made.findings, made.published)
    assert [row[0] for row in view.rows] == ["DFFormer-S18", "wider*", "odd**"]
    assert "cannot be built: unknown argument" in view.notes[0]
    assert findings.from_csv(findings.to_csv(made.findings)) == list(made.findings)


def test_a_model_that_the_recipe_cannot_make_small_is_left_out(store):
    made = Experiment("dfformer", 4, [VARIANTS[0], ("Vim-Ti", "vim_tiny", {})], "smoke", device="cpu")
    lines = []
    made.run(log=lines.append)
    assert lines[0].startswith("Vim-Ti is left out: the recipe makes models small by depths, dims, but vim_tiny has no")
    assert [run.model for run in made.runs] == ["dfformer_s18"]


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("dfformer_s18", {"norm_layer": "lyernorm"}, "unknown norm 'lyernorm': did you mean layernorm"),
        ("dfformer_s18", {"norm_layer": "batchnorm2d"}, "cannot be created with"),  # a norm for another layout
        ("spanet_small", {"radii": [1, 1]}, "cannot be created with"),
        ("dfformer_s18", {"num_filters": -1}, "cannot be created with"),
        ("convnext_tiny", {"depthz": 1}, "unknown argument of convnext_tiny 'depthz': did you mean depths"),
        ("dfformer_s18", {"act_layer": "tanh"}, None),
        ("spanet_small", {"act_layer": "relu", "norm_layer": "batchnorm2d"}, None),
        ("spanetv2_s18_pure", {"norm_layer": "rmsnorm"}, None),
    ],
)
def test_what_is_in_the_way_of_a_variant(model, arguments, message):
    found = cost.obstacle(model, arguments)
    assert found is None if message is None else message in found
    assert found is None or len(found.splitlines()) == 1


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
    assert made.provenance()["timings"] == []
    assert "frepro.models.spanet" in made.made_from  # the counted model's code
    assert not {"recipe spanet", "data", "device"} & set(made.made_from)
    assert list(store.glob("*")) == []


BACKBONES = [("SPANetV2-S18-pure", "spanetv2_s18_pure", {}), ("SPANetV2-S18-hybrid", "spanetv2_s18_hybrid", {})]
PAIR = ["spanetv2_s18_pure", "spanetv2_s18_hybrid"]


@pytest.fixture(scope="module")
def segmenters(tmp_path_factory) -> Path:
    """A store with the runs of ``segmentation``."""
    folder = tmp_path_factory.mktemp("segmenters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREPRO_RESULTS", str(folder))
        table_of_segmentation().run(log=lambda line: None)
    return folder


def table_of_segmentation(**more) -> Experiment:
    settings = {"seeds": [0, 1], "device": "cpu", "sizes": [[512, 512], [64, 128]], "native_size": 224, **more}
    settings = {"trained": {"semantic_fpn": PAIR}, **settings}
    return Experiment("spanetv2", 4, BACKBONES, "smoke", **settings)


@pytest.fixture
def segmentation(segmenters, monkeypatch, store) -> Experiment:
    monkeypatch.setenv("FREPRO_RESULTS", str(segmenters))
    return table_of_segmentation()


def test_a_table_of_segmentation(segmentation, tmp_path):
    """Wholes as printed and as counted, backbones alone and as classifiers in time, scores apart from ADE20K's."""
    assert [(run.model, run.recipe.network, run.seed) for run in segmentation.runs] == [
        (model, "semantic_fpn", seed) for seed in (0, 1) for model in PAIR
    ]
    found = {(f.group, f.label, f.metric, f.setting): f for f in segmentation.findings}
    size = "512 × 512 pixels"
    for group, params, ours in (("Semantic FPN", 33, 29.93), ("UperNet", 60, 57.0)):
        whole = found[group, "SPANetV2-S18-pure", "params", size]  # the same backbone stands in both
        assert (whole.published, whole.measured) == (params, pytest.approx(ours, abs=0.6))
    assert found["Semantic FPN", "SPANetV2-S18-pure", "flops", size].measured == pytest.approx(43, abs=1)
    assert found["Semantic FPN", "SPANetV2-S18-pure", "miou", ""].measured is None  # scenes never stand for ADE20K
    alone = found["", "SPANetV2-S18-pure", "backbone_params", size]
    assert (alone.published, alone.measured) == (None, pytest.approx(29.16 - 3.10, abs=0.05))  # without its classifier
    small = found["", "SPANetV2-S18-pure", "backbone_flops", "64 × 128 pixels"]
    assert small.measured == pytest.approx(4.19 * 64 * 128 / 224**2, rel=0.01)
    scored = found["Semantic FPN", "SPANetV2-S18-pure", "scenes_miou", "scenes"]
    scores = segmentation.scores("miou", "semantic_fpn")["SPANetV2-S18-pure"]
    assert (scored.measured, scored.n) == (pytest.approx(sum(scores) / 2), 2)
    assert findings.from_csv(findings.to_csv(segmentation.findings)) == list(segmentation.findings)
    origin = segmentation.provenance()
    assert [run["network"] for run in origin["runs"]] == ["semantic_fpn"] * 4
    assert set(origin["recipe"]) == {"semantic_fpn", "upernet"}

    table = segmentation.published
    whole = report.published_beside_measured(
        segmentation.findings, table, ["group", "params", "flops", "miou"], whole=True
    )
    assert [row[:2] for row in whole.rows] == [
        ["SPANetV2-S18-pure", "Semantic FPN"],
        ["SPANetV2-S18-hybrid", "Semantic FPN"],
        ["SPANetV2-S18-pure", "UperNet"],
        ["SPANetV2-S18-hybrid", "UperNet"],
    ]
    assert whole.rows[0][2:] == ["33", whole.rows[0][3], "43", whole.rows[0][5], "46.7", "not run"]
    backbones = report.backbones(segmentation.findings)
    assert [upper for upper, _ in backbones.headings] == ["", *[size] * 2, *["64 × 128 pixels"] * 2, "classifier, here"]
    assert all(all(row) for row in backbones.rows)
    learnt = report.dense_scores(segmentation.findings)
    assert [row[:2] for row in learnt.rows] == [[label, "Semantic FPN"] for label, *_ in BACKBONES]
    assert learnt.rows[0][-1] == "2"
    pictures = figures.predictions(segmentation, "semantic_fpn", count=2)
    segmentation.write(str(tmp_path), predictions=pictures)
    assert (tmp_path / "predictions.png").read_bytes().startswith(b"\x89PNG")


def test_a_network_is_counted_at_a_size_of_its_own(segmentation):
    made = table_of_segmentation(images={"upernet": [512, 2048]})
    found = {(f.group, f.setting): f for f in made.findings if (f.label, f.metric) == (BACKBONES[0][0], "flops")}
    whole = found["UperNet", "512 × 2048 pixels"]
    assert (whole.published, whole.measured) == (930, pytest.approx(930, abs=1))
    assert found["Semantic FPN", "512 × 512 pixels"].published == 43


def test_scores_of_detectors_and_what_a_file_gave():
    """Networks without masks have empty cells for them, and a mark tells where nothing was trained."""
    scores = [("RetinaNet", ("box_ap", "box_ap50"), ""), ("Mask R-CNN", ("box_ap", "mask_ap"), "mask_rcnn-x.pth")]
    found = [
        findings.Finding(network, "X", "x", f"scenes_{metric}", "%", None, 12.345, None, 1, "scenes", weights)
        for network, metrics, weights in scores
        for metric in metrics
    ]
    view = report.dense_scores(found)
    names = [upper for upper, lower in view.headings if lower == "mean"]
    assert names == ["box AP (%)", "box AP50 (%)", "mask AP (%)"]
    assert [row[2::2] for row in view.rows] == [["12.35", "12.35", "", "1"], ["12.35", "", "12.35", "1*"]]
    assert view.notes == ["weights of mask_rcnn-x.pth, evaluated here; nothing was trained"]
    assert report.summary(found, papers.load("spanet").tables[3], "", "").rows == view.rows
    table = papers.load("spanetv2").tables[3]
    found = findings.Finding(
        "Mask R-CNN", "S18-pure", "spanetv2_s18_pure", "box_ap", "%", 48.0, 47.987, None, 1, "COCO", "mask_rcnn-x.pth"
    )
    beside = report.published_beside_measured([found], table, ["box_ap"])
    assert beside.rows == [["S18-pure", "48.0", "47.99*"]]
    assert "mask_rcnn-x.pth, evaluated here" in beside.notes[0]


def test_claims_of_segmenters_are_tested_where_they_were_trained(segmentation):
    trained, absent, untrained, _ = segmentation.outcomes()
    assert [round(o.published, 1) for o in (trained, untrained)] == [1.1, 0.4]
    assert absent.rows == ("SPANetV2-S36-hybrid", "SPANetV2-S36-pure")  # no variants here
    assert absent.verdict == "not run"
    better, worse = (segmentation.scores("miou", "semantic_fpn")[label] for label, *_ in reversed(BACKBONES))
    assert trained.measured == pytest.approx(sum(better) / 2 - sum(worse) / 2)
    assert (trained.n, trained.setting) == (2, "scenes")
    assert (untrained.claim.group, untrained.measured, untrained.verdict) == ("UperNet", None, "not run")
    assert report.claims([untrained]).rows[0][1:] == [
        *("not run", "SPANetV2-S18-hybrid > SPANetV2-S18-pure", "+0.4 points"),
        *("", "", "", "0", "", "", ""),
    ]


def test_weights_of_files_are_evaluated_and_nothing_is_trained(segmentation, tmp_path):
    """Those that a run has left, under the name that they go by: the same score again, and it says whose it is."""
    weights = segmentation.runs[0].measurement.folder / "model.safetensors"
    (tmp_path / "semantic_fpn-spanetv2_s18_pure.safetensors").write_bytes(weights.read_bytes())
    made = table_of_segmentation(checkpoints=str(tmp_path))
    assert made.runs == made.to_train() == []
    assert [learner.label for learner in made.evaluated] == ["SPANetV2-S18-pure"]
    made.run(log=lambda line: None)
    (scored,) = [f for f in made.findings if f.metric == "scenes_miou"]
    assert scored.measured == segmentation.scores("miou", "semantic_fpn")["SPANetV2-S18-pure"][0]
    assert (scored.n, scored.spread, scored.weights) == (1, None, "semantic_fpn-spanetv2_s18_pure.safetensors")
    assert "semantic_fpn-spanetv2_s18_pure.safetensors" in report.dense_scores(made.findings).notes[0]
    assert made.provenance()["runs"][0]["values"]["miou"] == scored.measured
    with pytest.raises(FreproError, match="no weights at /nowhere: give a file, or a folder of files, such as"):
        table_of_segmentation(checkpoints="/nowhere").run()
    (tmp_path / "other").mkdir()
    with pytest.raises(FreproError, match=r"no weights of this table at .*other: add files such as sem"):
        table_of_segmentation(checkpoints=str(tmp_path / "other"))


def test_weights_of_a_model_that_is_not_trained_are_evaluated_too(tmp_path):
    file = tmp_path / "GFNet-Ti.safetensors"
    kept = [("DFFormer-S18", "dfformer_s18", {}), ("GFNet-Ti", "gfnet_ti", {})]
    settings = {"trained": ["dfformer_s18"], "device": "cpu", "checkpoints": {"gfnet_ti": str(file)}}
    file.write_bytes(b"")
    made = Experiment("dfformer", 2, kept, "smoke", **settings)
    assert [learner.model for learner in made.evaluated] == ["gfnet_ti"]
    assert [model for _, model, _ in made.measured] == ["dfformer_s18"]


def test_no_backbone_is_random_unasked(tmp_path):
    file = tmp_path / "spanetv2_s18_pure.safetensors"
    file.write_bytes(b"")
    for backbones in ({"spanetv2_s18_pure": str(file)}, str(tmp_path)):
        with pytest.raises(FreproError, match=r"no weights of spanetv2_s18_hybrid in .*: add spanetv2_s18_hybrid.pth"):
            table_of_segmentation(backbones=backbones)


def test_models_that_nobody_has_stand_in_a_table_of_detection(store):
    made = Experiment("spanet", 3, [("SPANet-S", "spanet_small", {})], "paper", trained=None, sizes=[[800, 1280]])
    made.run(log=lambda line: None)  # profile paper needs no data where nothing is trained
    view = report.published_beside_measured(made.findings, made.published, ["retinanet_params", "box_ap"], whole=True)
    cells = {label.rstrip("*"): row for label, *row in view.rows}
    assert cells["SPANet-S"] == ["38", cells["SPANet-S"][1], "44.7", "not run"]
    assert round(float(cells["SPANet-S"][1])) == 38
    assert cells["PVT-Small"] == ["34", "no model", "40.4", "no model"]
    assert cells["LITv2-S"] == ["38", "no model", "44.7", "no model"]
    assert "empty in print" in view.notes[0]


def test_a_single_run_has_no_spread():
    assert findings.spread_of([3.0], max) == {"measured": 3.0, "spread": None, "n": 1}


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
        ({"seeds": []}, "seeds must be a list of distinct integers"),
        ({"seeds": [1, 1]}, "seeds must be a list of distinct integers"),
        ({"seeds": [0, -1]}, "seeds must be a list of distinct integers"),
        ({"seeds": 3}, "seeds must be a list of distinct integers"),
        ({"models": "dfformer_s18"}, "models must be a list of names"),
        ({"data": 5}, "data must be the name of a data set"),
        ({"device": "gpuu"}, "unknown device 'gpuu'"),
        ({"variants": [*VARIANTS, ("DFFormer-S18", "dfformer_s36", {})]}, "two variants have the same label"),
        ({"variants": [*VARIANTS, ("again", "dfformer_s18", {})]}, "the same model with the same arguments"),
        ({"models": ["dfformer_s18_k3"]}, "unknown model of this table"),
        ({"trained": ["dfformer_s18_k3"]}, "unknown model of this table"),
        ({"trained": "dfformer_s18"}, "trained must be a list of names"),
        ({"variants": [("x", "dfformer_s81", {})]}, "did you mean dfformer_s18"),
        ({"data": "/nowhere"}, "no data at /nowhere"),
        (
            {"paper": "spanetv2", "table": 4, "variants": BACKBONES, "trained": ["spanetv2_s18_pure"]},
            "is on ADE20K: trained must map networks",
        ),
        ({"paper": "spanetv2", "table": 4, "variants": BACKBONES, "trained": {"fpn": []}}, "unknown network of this"),
        ({"paper": "spanetv2", "table": 4, "variants": BACKBONES, "data": "digits"}, "digits is not data for segment"),
        ({"data": "scenes"}, "scenes is not data for classification"),
        ({"sizes": [512, 512]}, r"sizes must be a list of \[height, width\] in pixels, such as \[\[512, 512\]\]"),
        ({"sizes": [[512, 0]]}, r"sizes must be a list of \[height, width\]"),
        ({"seeds": "auto"}, "list of integers, or text like 'auto:12'"),
        ({"seeds": "auto:2"}, "are 3 to 50, not 2"),
        ({"seeds": "auto:-3"}, "list of integers, or text like"),
        ({"epochs": 0}, "epochs must be a positive integer"),
        ({"epochs": True}, "epochs must be a positive integer"),
        ({"native_size": "224"}, "native_size must be a number of pixels"),
        ({"images": {"upernet": [512, 512]}}, "unknown network of this table 'upernet'"),
        ({"images": [512, 512]}, "images must map networks to"),
    ],
)
def test_bad_parameters(changes, message):
    settings = {"paper": "dfformer", "table": 4, "variants": VARIANTS, "profile": "smoke", **changes}
    with pytest.raises(FreproError, match=message):
        Experiment(**settings)


def test_models_narrow_the_variants():
    made = Experiment("dfformer", 4, VARIANTS, "smoke", models=["dfformer_s18_afno"])
    assert [label for label, *_ in made.variants] == ["DF → AFNO"]


def test_the_length_of_the_training_is_a_parameter():
    made = Experiment("dfformer", 4, VARIANTS, "demo", epochs=20)
    assert {run.recipe.epochs for each in made.trained_variants for run in each.runs} == {20}
    usual = Experiment("dfformer", 4, VARIANTS, "demo")
    assert made.recipe.warmup_epochs / 20 == usual.recipe.warmup_updates / usual.recipe.updates
