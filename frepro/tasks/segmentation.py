"""Semantic segmentation: one class per pixel, mean intersection over union."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from frepro.data.dense import Segmentation as Transform
from frepro.data.dense import collate, dense_samples
from frepro.errors import FreproError
from frepro.models.create import normalisation
from frepro.recipes import Segmentation as Recipe
from frepro.tasks import Evaluator, Task, segmenters
from frepro.tasks.metrics import confusion_matrix, segmentation_scores
from frepro.tasks.pretrained import make_network
from frepro.tasks.segmenters import inference, resize

if TYPE_CHECKING:
    from frepro.training.runs import Run

__all__ = ["MeanIoU", "Segmentation", "task"]

REVISION = {"segmentation": 1}


class Segmentation(Task):
    """A segmenter on lists of images (3, H, W) and of class maps (H, W); in training they all have the same size."""

    recipe: Recipe
    collate = staticmethod(collate)
    create = staticmethod(segmenters.create)

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        self.num_classes = len(self.samples("train").images.semantic_classes)

    def samples(self, split: str) -> Any:
        recipe = self.recipe
        transform = Transform(
            split == "train",
            recipe.crop_size,
            *normalisation(self.run.model),
            ratios=recipe.ratios,
            mirror=recipe.mirror,
            distort=recipe.distort,
            multiple=recipe.multiple,
        )
        return dense_samples(self.run.source, split, recipe, transform, self.run.seed)

    def network(self, drop_path: float) -> nn.Module:
        recipe = self.recipe
        return make_network(
            self,
            self.num_classes,
            class_weights=recipe.class_weights,
            **recipe.segmenter_args,
            drop_path_rate=drop_path,
        )

    def loss(self, network: nn.Module, inputs: list[Tensor], targets: list[Tensor]) -> Tensor:
        return sum(network(torch.stack(inputs), torch.stack(targets)).values())

    def predict(self, network: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        """Return logits (1, K, H, W) for each image."""
        logits = partial(inference, network, window=self.recipe.window, stride=self.recipe.stride)
        if len({image.shape for image in inputs}) == 1:
            return list(logits(torch.stack(inputs)).split(1))
        return [logits(image[None]) for image in inputs]

    def evaluator(self) -> "MeanIoU":
        return MeanIoU(self.num_classes)

    @staticmethod
    def counted_backbone(model: str) -> str:
        """Return a ResNet with a stem of three convolutions, as in mmsegmentation; any other model unchanged."""
        return f"{model}c" if model.startswith("resnet") else model

    def check_micro_batch(self, size: int) -> None:
        if self.recipe.segmenter == "upernet" and size == 1:
            raise FreproError("UperNet's batch norms need at least two images in a forward pass: allow more per device")


class MeanIoU(Evaluator):
    """Mean IoU and pixel accuracy, from one confusion matrix of the whole data set.

    Raises:
        FreproError: No pixel has a label.
    """

    def __init__(self, num_classes: int) -> None:
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, inputs: list[Tensor], targets: list[Tensor], answers: list[Tensor]) -> None:
        for labels, logits in zip(targets, answers, strict=True):
            predicted = resize(logits.float(), labels.shape).argmax(dim=1)[0]
            self.matrix += confusion_matrix(predicted, labels, len(self.matrix)).cpu()

    def values(self, accelerator: Accelerator) -> dict[str, float]:
        matrix = accelerator.reduce(self.matrix.to(accelerator.device), "sum")
        if not matrix.any():
            raise FreproError("no pixel of the test images has a label: mIoU needs labelled pixels")
        return segmentation_scores(matrix)


task = Segmentation
