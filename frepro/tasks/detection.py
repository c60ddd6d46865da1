"""Detection and instance segmentation: boxes, classes and masks of objects, average precision as defined by COCO."""

import math
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from frepro.data.dense import Detection as Transform
from frepro.data.dense import collate, dense_samples
from frepro.errors import FreproError
from frepro.recipes import Detection as Recipe
from frepro.tasks import Evaluator, Task, detectors
from frepro.tasks.metrics import CocoMetrics
from frepro.tasks.pretrained import make_network

if TYPE_CHECKING:
    from frepro.training.runs import Run

__all__ = ["AveragePrecision", "Detection", "task"]

REVISION = {"detection": 1}


class Detection(Task):
    """A detector on lists of images (3, H, W) and of their targets, in the format of torchvision's detectors."""

    recipe: Recipe
    collate = staticmethod(collate)
    create = staticmethod(detectors.create)
    counted_forward = staticmethod(detectors.counted_forward)

    def __init__(self, run: "Run") -> None:
        super().__init__(run)
        classes = {split: self.samples(split).images.classes for split in ("train", "test")}
        if classes["train"] != classes["test"]:
            raise FreproError(
                f"{run.source.name}: {len(classes['train'])} training categories and {len(classes['test'])} test "
                "categories, or different names: both splits must have the same categories"
            )
        self.num_classes = len(classes["train"])

    def samples(self, split: str) -> Any:
        recipe, train = self.recipe, split == "train"
        transform = Transform(train, crop=recipe.crop, mirror=recipe.mirror)
        return dense_samples(self.run.source, split, recipe, transform, self.run.seed, self.recipe.uses_masks)

    def network(self, drop_path: float) -> nn.Module:
        recipe = self.recipe
        return make_network(
            self,
            self.num_classes,
            min_size=recipe.min_size,
            max_size=recipe.max_size,
            **recipe.detector_args,
            drop_path_rate=drop_path,
        )

    def loss(self, network: nn.Module, inputs: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        return sum(network(inputs, targets).values())

    def predict(self, network: nn.Module, inputs: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return the detections of each image. Images of different sizes pass separately, so that none is padded."""
        answers: dict[int, dict[str, Tensor]] = {}
        for size in dict.fromkeys(image.shape for image in inputs):
            same = [i for i, image in enumerate(inputs) if image.shape == size]
            answers |= zip(same, network([inputs[i] for i in same]), strict=True)
        return [answers[i] for i in range(len(inputs))]

    def evaluator(self) -> "AveragePrecision":
        return AveragePrecision(masks=self.recipe.uses_masks)


class AveragePrecision(Evaluator):
    """AP of boxes, and of masks if there are any; ``tasks.metrics.CocoMetrics`` lists the keys.

    The AP of an object size that does not occur is left out.

    Raises:
        FreproError: No image has an object.
    """

    def __init__(self, masks: bool) -> None:
        self.metrics = CocoMetrics(masks)

    def update(self, inputs: list[Tensor], targets: list[dict[str, Tensor]], answers: list[dict[str, Tensor]]) -> None:
        self.metrics.update([int(target["image_id"]) for target in targets], targets, answers)

    def values(self, accelerator: Accelerator) -> dict[str, float]:
        images: dict[int, Any] = {}
        for part in gather_object([self.metrics.images]):
            images |= part
        self.metrics.images = dict(sorted(images.items()))  # a fixed order breaks ties between equal scores
        if images and not any(targets for targets, _ in images.values()):
            raise FreproError("no test image contains an object: AP needs at least one")
        return {name: value for name, value in self.metrics.scores().items() if not math.isnan(value)}


task = Detection
