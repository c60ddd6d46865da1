"""A run on files, through the readers of the real data sets, is the run on the embedded data that they were made of."""

import dataclasses

import pytest
import torch

from frepro import recipes, tasks
from frepro.data import locate, scenes
from frepro.data.export import export
from frepro.training import loop
from frepro.training.evaluate import evaluate_checkpoint
from frepro.training.runs import Run
from tests.small import WHOLES, whole
from tests.training.test_loop import CPU, PLAIN, history, same_but_for_time, weights

LAYOUTS = {"detection": "coco", "segmentation": "ade20k"}


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """All of the embedded scenes as files, of which there are fewer here."""
    monkeypatch.setitem(scenes.SCENES, "train", 19)
    monkeypatch.setitem(scenes.SCENES, "test", 7)
    for layout in LAYOUTS.values():
        pytest.importorskip("pycocotools")
        export(layout, tmp_path / layout, size=64)
    return tmp_path


def test_detectors_and_segmenters_become_the_same(folders):
    """Bit for bit, weights and scores; of 19 and 7 scenes, 8 and 4 are taken, spread evenly."""
    for network in WHOLES:
        embedded = whole(network, ema_decay=0.9, lr=1e-3)
        layout = LAYOUTS[embedded.recipe.task]
        read = dataclasses.replace(embedded, source=locate(str(folders / layout), embedded.recipe.task))
        assert read.measurement.key != embedded.measurement.key
        expected, found = (loop.run(each, CPU)["values"] for each in (embedded, read))
        assert found == expected
        for part in ("model", "ema"):
            a, b = weights(embedded, part), weights(read, part)
            assert a.keys() == b.keys()
            assert all(torch.equal(tensor, b[name]) for name, tensor in a.items()), network
        assert same_but_for_time(history(read), history(embedded))


def digits(source: str, **changes) -> Run:
    """Of a classifier that sees whole images, so that nothing depends on their order but that."""
    still = {"scale": (1.0, 1.0), "interpolation": "bicubic", "hflip": 0.0}
    recipe = dataclasses.replace(recipes.load("dfformer", "smoke"), **PLAIN | still | changes)
    return Run("dfformer_s18", recipe, "smoke", locate(source), 0)


def test_classifiers_see_the_same_images_in_the_order_of_their_classes(tmp_path):
    """Folders have an order of their own; an update on all images has the same loss in each."""
    export("imagenet", tmp_path / "digits")
    changes = {"samples": None, "batch_size": 1297, "epochs": 2, "score_every": 2, "warmup_epochs": 0}
    runs = [digits(source, **changes) for source in ("digits", str(tmp_path / "digits"))]
    for split in ("train", "test"):
        a, b = (tasks.of(run).samples(split) for run in runs)
        assert len(a) == len(b)
        order = sorted(range(len(a)), key=lambda i: a.images.targets[i])  # as the files are named: class, then number
        for i in (*range(0, len(a), 37), len(a) - 1):
            (image, label), (other, named) = a[0, order[i]], b[0, i]
            assert named == label
            assert torch.equal(other, image)
    values = [loop.run(run, CPU)["values"] for run in runs]
    assert (values[0]["train_images"], values[0]["test_images"]) == (1297, 500)
    assert values[1]["train_loss"] == pytest.approx(values[0]["train_loss"], rel=1e-5)
    file = runs[0].measurement.folder / "model.safetensors"
    scores = [evaluate_checkpoint(run, file, loop.Execution(device="cpu", per_device=250)) for run in runs]
    assert scores[1] == pytest.approx(scores[0], rel=1e-6)
