"""Networks trained for a figure: the plan knows them, they are made once, and they are what the figure looks at."""

import dataclasses
import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from frepro import recipes, reproduce
from frepro.analysis import networks
from frepro.errors import FreproError
from frepro.experiment import Experiment
from frepro.experiment.trained_networks import Trained
from frepro.experiment.variants import IN_OUR_FRAME
from frepro.reproduce import Artefact
from frepro.training import evaluate

DFFORMER = ("DFFormer-S18", "dfformer_s18", {})
TINY = ("GFNet-Ti", "gfnet_ti", {"patch_size": 4, "depths": [2], "dims": [16]})
FILTERS = Artefact("dfformer", "figure", 2)


def silent(line):
    pass


def changed_recipe(monkeypatch):
    """The recipe with another learning rate."""
    load = recipes.load
    monkeypatch.setattr(recipes, "load", lambda *of: dataclasses.replace(load(*of), lr=1e-3))


def test_the_plan_names_the_runs_that_a_figure_needs():
    plan = reproduce.plan(FILTERS, {"profile": "smoke", "seeds": [0, 1]})
    assert [run.title.split(",")[0] for run in plan.runs] == ["gfnet_ti", "gfnet_ti"]
    assert "one notebook, 2 of 2 training runs, 3 in parallel" in plan.describe(3)
    untrained = reproduce.plan(Artefact("dfformer", "figure", 8), {"profile": "paper"})
    assert "one notebook, no training runs" in untrained.describe(3)
    bias = reproduce.plan(Artefact("spanetv2", "figure", 4), {"profile": "demo", "seeds": [3]})
    assert {run.source.name for run in bias.runs} == {"cues"}
    assert {run.seed for run in bias.runs} == {3}
    assert {run.profile for run in bias.runs} == {"demo"}


def test_a_figure_trains_what_is_missing_and_is_stale_when_a_run_changes(monkeypatch):
    plan = reproduce.plan(FILTERS, {"profile": "smoke"})
    reproduce.make(plan, None, None, None, silent)
    assert [*(plan.folder / "values.csv").read_text().splitlines()[0].split(",")] == [
        "model",
        "network",
        "layer",
        "side",
        "alikeness",
    ]
    (run,) = plan.runs
    made = json.loads((plan.folder / "provenance.json").read_text())
    assert made["runs"] == [{"run": run.title, "key": run.measurement.key}]
    (source,) = json.loads((plan.folder / "origin.json").read_text())["sources"]
    assert source["weights"] == f"trained on {run.source.name} by the recipe of dfformer, profile smoke"
    assert source["run"] == run.measurement.key
    assert source["test top-1 (%)"] == pytest.approx(run.measurement.record()["values"]["top1"], abs=0.01)
    again = reproduce.plan(FILTERS, {"profile": "smoke"})
    assert again.is_current

    with monkeypatch.context() as patch:
        changed_recipe(patch)
        stale = reproduce.plan(FILTERS, {"profile": "smoke"})
        assert len(stale.missing) == 1
        assert not stale.is_current
        assert stale.made_from != again.made_from
    with monkeypatch.context() as patch:  # other code of the model: looked at again, and not trained
        patch.setattr("frepro.training.runs.code_of", lambda *of: {"frepro.models.gfnet": "another"})
        stale = reproduce.plan(FILTERS, {"profile": "smoke"})
        assert stale.missing == []
        assert not stale.is_current


def test_runs_are_shared_with_a_table_and_made_once():
    trained = Trained("dfformer", [DFFORMER], seeds=[0])
    table = Experiment("dfformer", 4, [DFFORMER], seeds=[0, 1], device="cpu")
    assert [run.measurement.key for run in trained.runs] == [table.runs[0].measurement.key]
    trained.run(log=silent)
    assert trained.to_train() == []
    assert [run.seed for run in table.to_train()] == [1]
    record = trained.runs[0].measurement.folder / "record.json"
    written = record.stat().st_mtime_ns
    Trained("dfformer", [DFFORMER], seeds=[0]).run(log=silent)
    assert record.stat().st_mtime_ns == written


def test_networks_have_the_weights_of_their_runs():
    trained = Trained("dfformer", [TINY], seeds=[0, 1])
    with pytest.raises(FreproError, match="call run"):
        trained.networks()
    trained.run(log=silent)
    found = trained.networks()["GFNet-Ti"]
    for network, run in zip(found, trained.runs, strict=True):
        stored = load_file(run.measurement.folder / "model.safetensors")
        assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())
        assert not network.training
        # They are shown what they were tested on, and answer as well as their record says.
        images, words = trained.test_images(1000)
        assert words == f"50 test images of the data set {run.source.name}"  # smoke has no more
        assert images.shape == (50, 3, 32, 32)
        assert 0 <= images.min() < images.max() <= 1
        targets = torch.tensor([trained_target(run, index) for index in range(50)])
        hits = networks.logits(network, images).argmax(1) == targets
        assert 100 * hits.double().mean() == pytest.approx(run.measurement.record()["values"]["top1"])
    assert not torch.equal(*(network.head.weight for network in found))
    (trained.runs[0].measurement.folder / "model.safetensors").unlink()
    with pytest.raises(FreproError, match="are missing: delete its folder"):
        evaluate.network(trained.runs[0])


def trained_target(run, index):
    from frepro.data.loading import samples

    return samples(run.source, "test", run.recipe, (0,) * 3, (1,) * 3, seed=0)[0, index][1]


def test_a_checkpoint_takes_the_place_of_the_runs_of_its_model(tmp_path):
    file = tmp_path / "gfnet-ti.safetensors"
    weights = timm.create_model("gfnet_ti").state_dict()
    save_file(weights, file)
    trained = Trained("dfformer", [TINY, DFFORMER], seeds=[0, 1], checkpoints={"gfnet_ti": str(file)})
    assert [run.model for run in trained.runs] == ["dfformer_s18", "dfformer_s18"]
    alone = Trained("dfformer", [TINY], seeds=[0, 1], checkpoints={"gfnet_ti": str(file)})
    (network,) = alone.networks()["GFNet-Ti"]
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    made = alone.illustration(2)
    assert made.sources == [{"model": "gfnet_ti", "weights": "gfnet-ti.safetensors"}]
    assert made.stands_in == ""
    images, words = alone.test_images(2)
    assert images.shape == (2, 3, 224, 224)
    assert words == "2 crops of two photographs"
    with pytest.raises(FreproError, match="unknown model with a checkpoint 'gfnet_xs'"):
        Trained("dfformer", [TINY], checkpoints={"gfnet_xs": str(file)})


def test_no_figure_starts_weeks_of_training():
    trained = Trained("dfformer", [TINY], "paper", seeds=[2])
    assert trained.runs == []
    assert trained.networks()["GFNet-Ti"][0].num_features == 256
    made = trained.illustration(2)
    assert made.sources == [{"model": "gfnet_ti", "weights": "random initialisation", "seed": 2}]
    assert made.stands_in == f"Random weights stand in for trained ones of GFNet-Ti; {networks.NOT_SHOWN}"


def test_what_stands_in_is_said():
    trained = Trained("dfformer", [TINY])
    trained.run(log=silent)
    said = trained.illustration(2, images="4 pictures", in_place_of="photographs").stands_in
    assert f"Small networks trained on the data set {trained.source.name} stand in for GFNet-Ti trained" in said
    assert "4 pictures stand in for photographs" in said
    assert networks.NOT_SHOWN in said


@pytest.mark.parametrize("name", IN_OUR_FRAME)
def test_models_in_our_frame_are_timms(name):
    """Every tensor of timm's model has one of ours: the same number of the same shapes."""
    model, args = IN_OUR_FRAME[name]
    ours, timms = (timm.create_model(model, **args), timm.create_model(name))
    shapes = [sorted([n for n in p.shape if n > 1] for p in m.parameters()) for m in (ours, timms)]
    assert shapes[0] == shapes[1]


def test_bad_input_is_named():
    with pytest.raises(FreproError, match="unknown model 'gfnet_it'"):
        Trained("dfformer", [("x", "gfnet_it", {})])
    with pytest.raises(FreproError, match="seeds must be a list"):
        Trained("dfformer", [TINY], seeds=[0, 0])
    with pytest.raises(FreproError, match="unknown profile"):
        Trained("dfformer", [TINY], "dmeo")


@pytest.mark.parametrize(
    ("paper", "figure", "other"),
    [
        ("dfformer", 1, ("dfformer", "figure", 2)),
        ("dfformer", 8, ("dfformer", "figure", 7)),
        ("spanet", 1, ("spanet", "table", 2)),
        ("spanet", 2, ("spanet", "figure", 1)),
        ("spanet", 4, ("spanet", "table", 5)),
        ("spanetv2", 3, ("spanetv2", "table", 2)),
    ],
)
def test_figures_share_runs_with_other_pages(paper, figure, other):
    """Whatever both train is the same run; the seeds and the profile alone do not make another one."""
    here, there = (
        {run.measurement.key for run in reproduce.plan(each, {"profile": "demo", "seeds": [0]}).runs}
        for each in (Artefact(paper, "figure", figure), Artefact(*other))
    )
    assert here & there
    if (paper, figure) not in {("dfformer", 1), ("spanet", 1)}:  # these also have networks of timm
        assert here <= there


def test_the_note_of_a_picture_says_what_weights_it_shows(tmp_path):
    assert Trained("dfformer", [TINY], "paper").note == "random weights: GFNet-Ti"
    file = tmp_path / "gfnet-ti.safetensors"
    save_file(timm.create_model("gfnet_ti").state_dict(), file)
    trained = Trained("dfformer", [TINY, DFFORMER], checkpoints={"gfnet_ti": str(file)})
    trained.run(log=silent)
    score = trained.runs[0].measurement.record()["values"]["top1"]
    note = trained.note
    assert note.startswith(
        f"small networks trained on textured, top-1 (%): DFFormer-S18 {score:.2f}; weights of files: G"
    )
    assert ("did not train: DFFormer-S18, seed 0" in note) == bool(trained.untrained())
