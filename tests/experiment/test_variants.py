"""Variants that start from the weights that another variant trains with the same seed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from frepro import tasks
from frepro.errors import FreproError
from frepro.experiment import Experiment
from frepro.training import loop
from frepro.training.runs import WEIGHTS, Run, Start, with_starts

BASE, FINE = ("before", "vimf_tiny_h", {}), ("after", "vimf_tiny_h_stride8", {})
MODELS = [BASE[1], FINE[1]]


def experiment(**given) -> Experiment:
    given = {"variants": [BASE, FINE], "starts": {"after": "before"}, "trained": MODELS, "device": "cpu", **given}
    return Experiment("vim-f", 3, given.pop("variants"), "smoke", given.pop("seeds", [0, 1]), **given)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREPRO_RESULTS", str(folder))
        loop.run(experiment(seeds=[0]).runs[-1], loop.Execution("cpu"))
    return folder


@pytest.fixture
def runs(trained, store, monkeypatch) -> list[Run]:
    """The two runs of seed 0, in a copy of a store with both."""
    shutil.copytree(trained / "runs", store / "copy" / "runs")
    monkeypatch.setenv("FREPRO_RESULTS", str(store / "copy"))
    return experiment(seeds=[0]).runs


def test_keys_are_known_before_anything_is_trained(store):
    before, again, after, also = experiment().to_train()
    assert [before.model, again.model, after.model, also.model] == [BASE[1], BASE[1], FINE[1], FINE[1]]
    assert [run.seed for run in (before, again, after, also)] == [0, 1, 0, 1]
    assert after.measurement.spec["start"] == {"run": before.measurement.key}
    assert after.recipe != before.recipe
    assert not (store / "runs").exists()


def test_other_starting_weights_are_another_run(store):
    before, after = experiment(seeds=[0]).runs
    longer = replace(before, recipe=replace(before.recipe, epochs=before.recipe.epochs + 1))
    keys = {replace(after, start=start).measurement.key for start in (before, longer, None)}
    assert len(keys) == 3
    assert with_starts([after, before, after]) == [before, after]


def test_the_run_that_it_starts_from_is_trained_first(runs):
    """By the run itself, so that it does not matter in which process or job it runs."""
    before, after = runs
    assert experiment(seeds=[0]).to_train() == []
    first = load_file(before.measurement.folder / WEIGHTS)
    start = tasks.of(after).network(0.0).state_dict()
    assert first.keys() == start.keys()
    assert all(first[name].equal(tensor) for name, tensor in start.items())
    last = load_file(after.measurement.folder / WEIGHTS)
    assert not all(last[name].equal(tensor) for name, tensor in start.items())
    claim = experiment(seeds=[0]).outcomes()[0]  # one row is in Table 3, the other in Table 2
    assert (claim.rows, claim.n) == (("after", "before"), 1)
    assert claim.published == pytest.approx(76.8 - 76.0)
    made = experiment(seeds=[0]).provenance()
    assert [run.get("start") for run in made["runs"]] == [None, before.measurement.key]


def test_weights_that_are_gone_or_damaged_are_one_line(runs):
    before, after = runs
    after.measurement.set_aside()
    file = before.measurement.folder / WEIGHTS
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(FreproError, match="is damaged"):
        loop.run(after, loop.Execution("cpu"))
    file.unlink()
    with pytest.raises(FreproError, match=f"starts from {before.title}, but .* has no {WEIGHTS}: delete that folder"):
        loop.run(after, loop.Execution("cpu"))
    shutil.rmtree(before.measurement.folder)
    loop.run(after, loop.Execution("cpu"))
    assert file.read_bytes() == content


def test_weights_can_be_given(runs, tmp_path):
    file = tmp_path / f"{BASE[1]}.safetensors"
    shutil.copy(runs[0].measurement.folder / WEIGHTS, file)
    given = experiment(backbones=str(tmp_path))
    assert [(run.model, run.start) for run in given.runs] == [(FINE[1], Start.of(file))] * 2
    file.rename(tmp_path / "spanet_small.safetensors")
    with pytest.raises(FreproError, match=f"no weights of {BASE[1]} in {tmp_path}: add {BASE[1]}.pth"):
        experiment(backbones=str(tmp_path))


def test_weights_of_the_variant_itself_need_no_start(runs, tmp_path):
    shutil.copy(runs[1].measurement.folder / WEIGHTS, tmp_path / f"{FINE[1]}.safetensors")
    given = experiment(checkpoints=str(tmp_path))
    assert given.runs == []
    assert [each.runs[0].start for each in given.trained_variants if each.checkpoint] == [None]


def test_a_narrowed_experiment_keeps_what_its_variants_start_from(store):
    given = experiment(models=[FINE[1]], trained=[FINE[1]])
    assert [label for label, *_ in given.variants] == ["before", "after"]
    assert [run.model for run in given.to_train()] == [BASE[1], BASE[1], FINE[1], FINE[1]]
    control = experiment().with_variant("control", BASE[1], starts_from="before", stride=8)
    assert control.trained_variants[-1].runs[1].start == control.trained_variants[0].runs[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"starts": {"after": "befor"}}, "unknown variant in starts 'befor': did you mean before"),
        ({"starts": {"after": "after"}}, "after starts from another variant itself"),
        ({"starts": "before"}, "starts must map labels of variants to labels"),
    ],
)
def test_a_wrong_start_is_one_line(store, given, message):
    with pytest.raises(FreproError, match=message):
        experiment(**given)


def test_a_paper_without_a_recipe_of_fine_tuning_has_no_such_variants(store):
    with pytest.raises(FreproError, match="unknown recipe 'dfformer-fine_tuning'"):
        variants = [("a", "dfformer_s18", {}), ("b", "gfformer_s18", {})]
        Experiment("dfformer", 4, variants, "smoke", starts={"b": "a"}, device="cpu")
