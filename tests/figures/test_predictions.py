"""A figure of predictions shows what is true and what the networks answered, image by image."""

import importlib

import numpy as np
import pytest
import torch

from frepro import figures, report, tasks
from frepro.data.scenes import CLASSES
from frepro.errors import FreproError
from frepro.experiment import Experiment
from frepro.training import evaluate

PURE = [("SPANetV2-S18-pure", "spanetv2_s18_pure", {})]


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    """A table of detection and one of segmentation with one trained network each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREPRO_RESULTS", str(tmp_path_factory.mktemp("runs")))
        trained = {3: {"mask_rcnn": ["spanetv2_s18_pure"]}, 4: {"semantic_fpn": ["spanetv2_s18_pure"]}}
        made = {n: Experiment("spanetv2", n, PURE, device="cpu", trained=names) for n, names in trained.items()}
        for each in made.values():
            each.run(log=lambda line: None)
        yield made


@pytest.fixture
def store():
    """The runs stay where the module has them."""


def answers(experiment: Experiment, count: int) -> tuple[list, list]:
    """The first test images, none of which is empty, and what the network answers to them."""
    run = experiment.runs[0]
    task, network = tasks.of(run), evaluate.network(run)
    samples = task.samples("test")
    with torch.no_grad():
        found = [task.predict(network, [samples[0, i][0]])[0] for i in range(count)]
    return [samples.images[samples.chosen[i]] for i in range(count)], found


@pytest.mark.parametrize("quantile", [0.0, 0.5, 1.0])
def test_detections_above_the_score_are_drawn_and_as_many_as_objects(experiments, quantile):
    images, found = answers(experiments[3], 2)
    least = float(torch.cat([each["scores"] for each in found]).quantile(quantile))  # hardly trained: all are low
    grid = np.array(figures.predictions(experiments[3], "mask_rcnn", 2, least).axes).reshape(2, 2)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["true", "SPANetV2-S18-pure"]
    for (true, learnt), image, objects in zip(grid.T, images, found, strict=True):
        assert [text.get_text() for text in true.texts] == [CLASSES[label] for label in image.labels]
        # The detector gives them by falling score.
        kept = slice(max(len(image.labels), int((objects["scores"] >= least).sum())))
        named = zip(objects["labels"][kept], objects["scores"][kept], strict=True)
        assert [text.get_text() for text in learnt.texts] == [
            f"{CLASSES[label - 1]} {score:.2f}" for label, score in named
        ]
        corners = [[*patch.get_xy(), patch.get_width(), patch.get_height()] for patch in learnt.patches]
        boxes = objects["boxes"][kept].numpy()
        expected = np.c_[boxes[:, :2] - 0.5, boxes[:, 2:] - boxes[:, :2]]
        assert np.allclose(np.array(corners).reshape(-1, 4), expected)
        overlays = [overlay.get_array()[..., 3] > 0 for overlay in learnt.images[1:]]
        assert np.array_equal(overlays, (objects["masks"][kept][:, 0] >= 0.5).numpy())


def test_where_nothing_is_found_it_says_so(experiments, monkeypatch):
    module = importlib.import_module("frepro.figures.predictions")  # a function there has its name
    found = module._answers
    monkeypatch.setattr(
        module,
        "_answers",
        lambda *given: [{name: tensor[:0] for name, tensor in each.items()} for each in found(*given)],
    )
    *_, last = figures.predictions(experiments[3], "mask_rcnn", 1, 1.1).axes
    assert [text.get_text() for text in last.texts] == ["nothing"]


def test_maps_are_those_of_the_network(experiments):
    images, found = answers(experiments[4], 2)
    grid = np.array(figures.predictions(experiments[4], "semantic_fpn", count=2).axes).reshape(3, 2)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["image", "true", "SPANetV2-S18-pure"]
    for (picture, true, learnt), image, logits in zip(grid.T, images, found, strict=True):
        assert np.array_equal(picture.images[0].get_array(), np.asarray(image.image))
        known = np.ma.masked_equal(image.semantic.numpy(), 255)
        assert np.ma.allequal(true.images[0].get_array(), known)
        assert {text.get_text() for text in true.texts} <= {CLASSES[label] for label in image.labels}
        assert np.array_equal(learnt.images[0].get_array(), logits[0].argmax(dim=0).numpy())


def test_published_and_measured_scores_stand_side_by_side(experiments):
    made = experiments[4]
    left, right = figures.dense_comparison(made).axes
    assert left.lines[0].get_xdata().tolist() == [46.7]
    (scores,) = made.scores("miou", "semantic_fpn").values()
    assert right.lines[-1].get_xdata().tolist() == scores
    assert "Semantic FPN" in right.get_xlabel()
    assert report.dense_scores(made.findings).rows[0][2] == f"{scores[0]:.2f}"


def test_what_was_not_trained_is_said(experiments):
    (axes,) = figures.predictions(experiments[4], "upernet").axes
    assert [text.get_text() for text in axes.texts] == ["No UperNet was trained."]
    (axes,) = figures.dense_comparison(Experiment("spanetv2", 4, PURE, device="cpu")).axes
    assert [text.get_text() for text in axes.texts] == ["Nothing was trained."]
    with pytest.raises(FreproError, match="unknown network of this table 'mask_rcnn'"):
        figures.predictions(experiments[4], "mask_rcnn")
