"""Stored weights are evaluated on test images alone."""

import pytest
import timm
import torch

from frepro import recipes
from frepro.data import locate
from frepro.training.evaluate import evaluate_checkpoint
from frepro.training.loop import Execution
from frepro.training.runs import Run
from tests.data.imagenets import COUNT, LAYOUTS, WNIDS, class_folders

TINY = {"depths": [1, 1, 1, 1], "dims": [16, 16, 16, 16]}


@pytest.fixture
def score(tmp_path):
    """Function from data to the score of one file of weights."""
    recipe = recipes.load("dfformer", "smoke")
    torch.manual_seed(0)
    model = timm.create_model("dfformer_s18", img_size=recipe.img_size, num_classes=len(WNIDS), **TINY)
    model.head.fc2.weight.data.normal_()
    torch.save(model.state_dict(), tmp_path / "weights.pth")

    def evaluate(data: str) -> dict[str, float]:
        run = Run("dfformer_s18", recipe, "smoke", locate(data), 0, TINY)
        return evaluate_checkpoint(run, tmp_path / "weights.pth", Execution(device="cpu"))

    return evaluate


def test_each_layout_of_imagenet_gives_the_same_score(tmp_path, score):
    scores = []
    for number, write in enumerate(LAYOUTS.values()):
        write(tmp_path / str(number))
        scores.append(score(str(tmp_path / str(number))))
    assert scores == [scores[0]] * len(LAYOUTS)
    assert scores[0]["test_images"] == COUNT
    assert 0 < scores[0]["top1"] < 100


def test_hugging_face_s_copy_gives_the_same_score(tmp_path, score, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    class_folders(tmp_path / "copy")
    (tmp_path / "copy" / "val").rename(tmp_path / "copy" / "validation")  # the name of the split in imagenet-1k
    (tmp_path / "cache").mkdir()
    assert score(f"hfds/{tmp_path / 'copy'}:{tmp_path / 'cache'}") == score(str(tmp_path / "copy"))
