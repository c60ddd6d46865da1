"""What makes no sense is refused in one line, before anything runs."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from frepro import reproduce
from frepro.errors import FreproError
from frepro.experiment.checks import check_seeds
from frepro.reproduce import Artefact, Notebook, parts
from frepro.reproduce.notebook import KINDS
from frepro.reproduce.plans import fitting
from frepro.training import loop
from tests.data.test_sources import make_folder

TRAIN = ("train", "--model", "dfformer_s18", "--profile", "smoke", "--device", "cpu", "--data", "digits")
PLAN = ("reproduce", "--paper", "dfformer", "--table", "4", "--profile", "smoke", "--dry-run")

REFUSED = [
    (*TRAIN, "--workers", "100000"),
    (*TRAIN, "--per-device", "0"),
    (*TRAIN, "--backbone", "README.md"),
    (*TRAIN, "--init", "README.md"),
    (*TRAIN, "--init", "nowhere.pth"),
    (*TRAIN, "--init", "frepro"),
    (*TRAIN, "--init", "README.md", "--backbone", "README.md"),
    (*TRAIN, "--epochs", "0"),
    (*TRAIN, "--lr", "0"),
    (*TRAIN, "--batch-size", "100000"),
    (*TRAIN, "--recipe", "nowhere/my.yaml"),
    (*TRAIN, "--recipe", "README.md/my.yaml"),
    (*TRAIN, "--profile", "finetun"),
    ("train", "--model", "spanet_small", "--recipe", "spanet-mask_rcnn", "--profile", "finetune"),
    ("train", "--model", "spanet_small", "--recipe", "spanet-mask_rcnn", "--profile", "smoke", "--img-size", "64"),
    (*TRAIN, "-a", "num_filters", "-1"),
    (*TRAIN, "-a", "dims", "[0,0,0,0]"),
    (*TRAIN, "-a", "pretrained", "true"),
    (*TRAIN, "-a", "in_chans", "4"),
    (*TRAIN[:-1], "digits,"),
    (*TRAIN[:-1], "x" * 5000),
    (*PLAN, "--seeds", "0"),
    (*PLAN, "--seeds", "-3"),
    (*PLAN, "--seeds", "1000000000"),
    (*PLAN, "--seeds", "1,1"),
    (*PLAN, "--data", "/data/imagenett,"),
    (*PLAN, "--data", ",,,"),
    (*PLAN, "-p", "profile", "[]"),
    (*PLAN, "-p", "checkpoints", "3"),
    (*PLAN, "-p", "seeds", "0"),
    (*PLAN, "-p", "models", "[[]]"),
    (*PLAN, "--no-such-option"),
]


@pytest.mark.parametrize("command", REFUSED, ids=lambda command: " ".join(command[-2:])[:40])
def test_nonsense_is_refused_in_one_line(frepro_command, command, store):
    done = frepro_command(*command)
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("frepro: error: ")
    assert not done.stdout
    assert not list(store.glob("runs/*/model.safetensors"))


def test_weights_that_are_not_finite_have_no_score(frepro_command, store, tmp_path):
    assert frepro_command(*TRAIN).returncode == 0
    (file,) = store.glob("runs/*/model.safetensors")
    weights = load_file(file)
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    save_file({**weights, name: torch.full_like(weights[name], float("nan"))}, tmp_path / "bad.safetensors")
    done = frepro_command("eval", *TRAIN[1:], "--checkpoint", str(tmp_path / "bad.safetensors"))
    assert done.returncode == 1
    assert f"has weights that are not finite, 1 in all, first {name}" in done.stderr
    assert not done.stdout


def test_parts_of_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    comma, plain = make_folder(tmp_path / "my data, v1"), make_folder(tmp_path / "plain")
    assert parts(str(comma)) == [str(comma)]
    assert parts(f"{comma},{plain}") == [str(comma), str(plain)]
    assert parts(f"{plain}, {comma},textured") == [str(plain), str(comma), "textured"]
    assert parts("/nowhere/a, b") == ["/nowhere/a", "b"]
    assert parts(f"torch/image_folder:{comma},{plain}") == [f"torch/image_folder:{comma}", str(plain)]
    for data in (",", ",,,", f"{plain},", f",{plain}", f"{plain},,{comma}", " ", f"{plain}, "):
        with pytest.raises(FreproError, match="has an empty part: give one data set, or several"):
            parts(data)


def test_what_was_tried_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FreproError) as error:
        fitting(f"{tmp_path}/nowhere,{tmp_path}/empty", "classification")
    assert str(error.value).startswith("none of the 2 data sets in DATA can be used for classification: no data at ")
    assert f"{tmp_path}/nowhere: give" in str(error.value)
    assert f"; {tmp_path}/empty has no known layout" in str(error.value)


@pytest.mark.parametrize("seeds", [[], 0, "0", [0, 0], [-1], [1.5], [True], [[]], list(range(1001))])
def test_seeds_that_are_none(seeds):
    with pytest.raises(FreproError, match="seeds"):
        check_seeds(seeds)


@pytest.mark.parametrize("how", [{"per_device": 0}, {"workers": -1}, {"workers": 10**6}, {"checkpoint_every": 0}])
def test_executions_that_cannot_be(how):
    with pytest.raises(FreproError, match=next(iter(how))):
        loop.Execution(**how)


def test_parameters_of_another_kind():
    notebook = Notebook(Artefact("spanet", "table", 3).notebook)
    notebook.check({"data": None, "models": ["spanet_small"], "sizes": [[64, 64]], "trained": None})
    for name, value in (("profile", None), ("device", 3), ("sizes", "a"), ("backbones", []), ("seeds", {"a": 1})):
        with pytest.raises(FreproError, match=f"{name} cannot be"):
            notebook.check({name: value})
    assert KINDS.keys() <= {
        name for each in reproduce.artefacts() if each.is_built for name in Notebook(each.notebook).parameters()
    }


SMALL = ("--img-size", "32", "--batch-size", "4", "--epochs", "1", "--device", "cpu")


def test_on_my_own_images_the_model_asked_for_is_trained_and_fine_tuned(frepro_command, store, tmp_path):
    pets = str(make_folder(tmp_path / "pets"))
    first = frepro_command("train", "--model", "spanet_small", "--data", pets, *SMALL)
    assert first.returncode == 0, first.stderr
    assert "spanet_small starts from random weights" in first.stderr
    assert "reduced" not in first.stderr + first.stdout
    (record,) = store.glob("runs/*/record.json")
    found = json.loads(record.read_text())
    assert (found["spec"]["profile"], found["spec"]["model_args"]) == ("finetune", {})
    full = timm.create_model("spanet_small", num_classes=2, img_size=32)
    assert found["values"]["params"] == sum(parameter.numel() for parameter in full.parameters())
    # A run is also a start, by its key, its folder or its file.
    plants = str(make_folder(tmp_path / "plants", classes=("fern", "moss", "reed")))
    for given in (record.parent.name, str(record.parent), str(record.with_name("model.safetensors"))):
        again = frepro_command("train", "--model", "spanet_small", "--data", plants, *SMALL, "--init", given)
        assert again.returncode == 0, again.stderr
    assert len(list(store.glob("runs/*/record.json"))) == 2
    small = frepro_command("train", "--model", "spanet_small", "--data", pets, "--profile", "smoke", *SMALL)
    assert "spanet_small is a reduced model here: profile smoke makes it small (depths=" in small.stderr
    assert small.stdout.startswith("reduced spanet_small, seed 0: ")


def test_too_few_images_name_the_remedy(frepro_command, tmp_path):
    pets = str(make_folder(tmp_path / "pets"))
    done = frepro_command("train", "--model", "spanet_small", "--data", pets, "--img-size", "32", "--device", "cpu")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("or a smaller batch (--batch-size 4)")


def test_a_recipe_of_my_own(frepro_command, store, tmp_path):
    pets, mine = str(make_folder(tmp_path / "pets")), tmp_path / "my.yaml"
    mine.write_text("base: spanet\nfinetune: {lr: 3.0e-4, img_size: 32, batch_size: 4, epochs: 1, warmup_epochs: 0}\n")
    command = ("train", "--model", "spanet_small", "--data", pets, "--device", "cpu", "--recipe", str(mine))
    assert frepro_command(*command).returncode == 0
    (record,) = store.glob("runs/*/record.json")
    assert json.loads(record.read_text())["spec"]["recipe"]["lr"] == 3e-4
    mine.write_text("base: spanet\nfinetune: {lr: 3.0e-4, leraning_rate: 1.0}\n")
    done = frepro_command(*command)
    assert done.returncode == 1
    assert "my.yaml:2: unknown key 'leraning_rate'" in done.stderr
    assert "has no profile 'demo'" in frepro_command(*command, "--profile", "demo").stderr
