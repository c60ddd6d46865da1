"""Stored weights are evaluated on test images alone."""

import timm
import torch

from frepro import recipes
from frepro.data import locate
from frepro.training.evaluate import evaluate_checkpoint
from frepro.training.loop import Execution
from frepro.training.runs import Run
from tests.data.imagenets import COUNT, LAYOUTS, WNIDS

TINY = {"depths": [1, 1, 1, 1], "dims": [16, 16, 16, 16]}


def test_each_layout_of_imagenet_gives_the_same_score(tmp_path):
    recipe = recipes.load("dfformer", "smoke")
    torch.manual_seed(0)
    model = timm.create_model("dfformer_s18", img_size=recipe.img_size, num_classes=len(WNIDS), **TINY)
    model.head.fc2.weight.data.normal_()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    scores = []
    for number, write in enumerate(LAYOUTS.values()):
        write(tmp_path / str(number))
        run = Run("dfformer_s18", recipe, "smoke", locate(str(tmp_path / str(number))), 0, TINY)
        scores.append(evaluate_checkpoint(run, tmp_path / "weights.pth", Execution(device="cpu")))
    assert scores == [scores[0]] * len(LAYOUTS)
    assert scores[0]["test_images"] > 0
    assert 0 < scores[0]["top1"] < 100
    assert scores[0]["test_images"] <= COUNT
