"""Sweeps: every combination is trained once, and a file tells what came of it."""

import csv
import json

import pytest

from frepro import recipes
from frepro.data import locate
from frepro.errors import FreproError
from frepro.experiment import sweep

COMMAND = ("sweep", "--model", "spanet_small", "--profile", "smoke", "--data", "textured-validation", "--jobs", "1")


def test_combinations_are_trained_once_and_kept(frepro_command, store):
    first = frepro_command(*COMMAND, "--lr", "0.001", "--lr", "0.002", "--epochs", "1", "--device", "cpu")
    assert first.returncode == 0, first.stderr
    again = frepro_command(*COMMAND, "--lr", "0.002", "--epochs", "1", "--epochs", "2", "--device", "cpu")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("test top-1") == 1  # the other run of the two was there
    file = store / "sweeps" / "spanet-smoke-textured-validation.csv"
    rows = list(csv.DictReader(file.open()))
    assert [(row["epochs"], row["lr"]) for row in rows] == [("1", "0.001"), ("1", "0.002"), ("2", "0.002")]
    assert json.loads(file.with_suffix(".json").read_text())["machine"]["cores"] > 0
    scores = {
        record["values"]["top1"]
        for record in map(json.loads, (f.read_text() for f in store.glob("runs/*/record.json")))
    }
    assert {float(row["score"]) for row in rows} == {round(score, 2) for score in scores}


def test_runs_differ_in_what_is_swept_alone():
    recipe = recipes.load("spanet", "demo")
    source = locate("textured-validation")
    runs = sweep.runs_of("spanet_small", {}, recipe, "demo", source, [1e-3, 2e-3], [1, 2], [4], range(2))
    assert len({run.measurement.key for run in runs}) == 8
    assert {run.recipe.epochs for run in runs} == {4}
    assert {(run.recipe.lr, run.recipe.warmup_epochs) for run in runs} == {(1e-3, 1), (2e-3, 1), (1e-3, 2), (2e-3, 2)}
    for run in runs:
        assert run.recipe.min_lr / run.recipe.lr == pytest.approx(recipe.min_lr / recipe.lr)


def test_a_recipe_in_steps_needs_epochs():
    with pytest.raises(FreproError, match="give --epochs"):
        sweep.runs_of(
            "spanet_small", {}, recipes.load("spanet", "demo"), "demo", locate(None), [1e-3], [], [], range(1)
        )
