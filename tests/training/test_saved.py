"""A run describes itself: whoever opens it gets the same model, its classes and its preparation of images."""

import dataclasses
import json

import pytest
import timm
import torch
from safetensors import safe_open

import frepro
from frepro import recipes, tasks
from frepro.data import locate
from frepro.data.loading import TestBatches, loader
from frepro.errors import FreproError
from frepro.training import evaluate, loop, saved
from frepro.training.runs import Run
from tests.data.test_lists import make_classes
from tests.small import BACKBONE
from tests.training.test_loop import CPU

MODELS = {
    "spanet_small": BACKBONE,
    "vimf_tiny": {"depth": 1, "embed_dim": 32},
    "deit_tiny_patch16_224": {"depth": 1, "embed_dim": 48, "num_heads": 3},
}


def trained(folder, model: str = "spanet_small") -> Run:
    """A trained run on three classes of images."""
    source = locate(str(make_classes(folder / "pets")), split=0.3)
    recipe = recipes.adjusted(recipes.load("spanet", "finetune"), model, epochs=1, batch_size=4, img_size=64)
    run = Run(model, dataclasses.replace(recipe, model_args=MODELS[model]), "finetune", source, 0)
    loop.run(run, CPU)
    return run


@pytest.mark.parametrize("model", MODELS)
def test_timm_and_frepro_open_the_network_of_the_last_evaluation(model, tmp_path):
    run = trained(tmp_path, model)
    folder = run.measurement.folder
    found = frepro.load(folder)
    images = torch.randn(2, 3, 64, 64)
    expected = evaluate.network(run)(images)
    assert torch.equal(found(images), expected)
    assert torch.equal(frepro.load(run.measurement.key)(images), expected)
    assert torch.equal(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images), expected)
    # Scores of what was loaded, on images as its own configuration prepares them.
    task = tasks.of(run)
    test_set = task.samples("test")
    test_set.transform = saved.transform(found)
    accelerator = loop.make_accelerator("cpu", "no")
    test_loader = loader(test_set, TestBatches(len(test_set), 4, 0, 1), 0, False, task.collate)
    scores = loop.evaluate(task, found, test_loader, accelerator)
    assert scores == {name: run.measurement.record()["values"][name] for name in scores}
    assert found.pretrained_cfg["label_names"] == ["cat", "dog", "eel"]
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        said = file.metadata()
    assert list(said) == ["frepro"], "several entries are written in random order"
    said = json.loads(said["frepro"])
    assert said["key"] == run.measurement.key
    assert said["spec"]["model"] == model
    assert said["config"] == json.loads((folder / "config.json").read_text())


def test_predictions_have_the_names_of_the_classes(tmp_path, frepro_command):
    run = trained(tmp_path)
    files = saved.images_in([tmp_path / "pets" / "dog", tmp_path / "pets" / "cat" / "0.png"])
    assert [file.name for file in files] == ["0.png", "1.png", "2.png", "3.png", "4.png", "0.png"]
    model = frepro.load(run.measurement.folder)
    found = saved.predict(model, files, top=9, batch_size=4)
    assert all({name for name, _ in classes} == {"cat", "dog", "eel"} for classes in found)
    assert all(sum(value for _, value in classes) == pytest.approx(1, abs=1e-5) for classes in found)
    assert all(classes == sorted(classes, key=lambda each: -each[1]) for classes in found)
    key, folder = run.measurement.key, str(tmp_path / "pets" / "dog")
    answers = json.loads(frepro_command("predict", key, folder, "--json", "--top", "2").stdout)
    assert [[each["class"] for each in answer["classes"]] for answer in answers] == [
        [name for name, _ in classes[:2]] for classes in found[:5]
    ]
    for arguments, message in (
        ((key, str(tmp_path / "nowhere.png")), "no image at"),
        (("nothing", folder), "no run at nothing"),
        ((key, str(run.measurement.folder / "config.json")), "damaged image"),
    ):
        done = frepro_command("predict", *arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("kind", saved.FORMATS)
def test_what_is_exported_gives_the_same_logits(kind, tmp_path):
    for package in saved.FORMATS[kind][1]:
        pytest.importorskip(package)
    model = frepro.load(trained(tmp_path).measurement.folder)
    file = tmp_path / f"m.{saved.FORMATS[kind][0]}"
    assert saved.export(model, kind, file) < 1e-4
    images = torch.randn(5, 3, 64, 64)
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        answer = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    elif kind == "torchscript":
        answer = torch.jit.load(str(file))(images)
    else:
        answer = torch.export.load(file).module()(images)
    assert torch.allclose(answer, model(images), atol=1e-4)


def test_what_cannot_be_opened_or_exported_is_one_line(tmp_path, monkeypatch):
    run = trained(tmp_path)
    folder = run.measurement.folder
    model = frepro.load(folder)
    monkeypatch.setitem(saved.FORMATS, "onnx", ("onnx", ("no_such_package",)))
    with pytest.raises(FreproError, match="onnx needs no_such_package: pip install no_such_package"):
        saved.export(model, "onnx", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
    (folder / "config.json").write_text("{")
    with pytest.raises(FreproError, match=r"config\.json is damaged"):
        frepro.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FreproError, match=r"has no config\.json"):
        frepro.load(folder)
