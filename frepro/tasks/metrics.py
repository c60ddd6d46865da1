"""Average precision of detections as defined by COCO, and intersection over union of segmentations, in percent."""

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frepro.data.annotated import IGNORED
from frepro.errors import FreproError

__all__ = ["CocoMetrics", "confusion_matrix", "segmentation_scores"]


class CocoMetrics:
    """AP over the images of a data set, computed by COCO's own code (pycocotools).

    ``images`` maps image ids to the true and the detected objects in plain Python, so that processes can exchange them;
    an image that is seen twice counts once.

    Args:
        masks: Score masks in addition to boxes.

    Raises:
        FreproError: pycocotools is not installed.
    """

    def __init__(self, masks: bool = False) -> None:
        try:
            import pycocotools  # noqa: F401
        except ImportError as error:
            raise FreproError("AP needs pycocotools: pip install -e '.[dense]'") from error
        self.kinds = {"box": "bbox", "mask": "segm"} if masks else {"box": "bbox"}
        self.images: dict[int, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}

    def update(
        self, image_ids: Sequence[int], targets: Sequence[dict[str, Tensor]], detections: Sequence[dict[str, Tensor]]
    ) -> None:
        """Add images.

        Args:
            image_ids: An id for each image, unique in the data set.
            targets: boxes (N, 4), labels (N,) and, if masks are scored, masks (N, H, W). The optional ``area`` (N,)
                tells small objects from large ones; it defaults to the area of the mask, or else of the box. Objects
                marked by the optional ``iscrowd`` (N,) need not be found, and detections on them do not count as
                errors.
            detections: boxes, labels, scores and masks as returned by torchvision's detectors.
        """
        for image_id, target, detection in zip(image_ids, targets, detections, strict=True):
            self.images[int(image_id)] = (self._plain(target), self._plain(detection))

    def _plain(self, objects: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Return the objects of one image in the format of COCO's files."""
        from pycocotools import mask as coco_mask

        boxes = objects["boxes"].detach().to("cpu", torch.float64)
        columns = {
            "bbox": torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist(),
            "category_id": objects["labels"].tolist(),
        }
        for key, name in {"scores": "score", "area": "area", "iscrowd": "iscrowd"}.items():
            if key in objects:
                columns[name] = objects[key].tolist()
        if "mask" in self.kinds:
            masks = objects["masks"].detach().flatten(0, -3) >= 0.5
            columns["segmentation"] = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks.byte().cpu().numpy()]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def scores(self) -> dict[str, float]:
        """Return AP over IoU 0.5 to 0.95, at 0.5 and at 0.75, and for small, medium and large objects; NaN without any.

        The keys are box_ap, box_ap50, box_ap75, box_aps, box_apm, box_apl, and the same with mask.

        Raises:
            FreproError: No image was added.
        """
        from pycocotools.cocoeval import COCOeval

        if not self.images:
            raise FreproError("no image was evaluated: AP needs at least one")
        values = {}
        for kind, coco_kind in self.kinds.items():
            truth = [
                {"image_id": i, "area": _area(each, list(self.kinds)[-1]), "iscrowd": 0, **each}
                for i, (targets, _) in self.images.items()
                for each in targets
            ]
            found = [
                {"image_id": i, "area": _area(each, kind), **each}
                for i, (_, detections) in self.images.items()
                for each in detections
            ]
            with contextlib.redirect_stdout(io.StringIO()):
                evaluation = COCOeval(self._coco(truth), self._coco(found), coco_kind)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            for suffix, value in zip(("", "50", "75", "s", "m", "l"), evaluation.stats[:6], strict=True):
                values[f"{kind}_ap{suffix}"] = 100 * float(value) if value >= 0 else math.nan
        return values

    def _coco(self, objects: list[dict[str, Any]]) -> Any:
        from pycocotools.coco import COCO

        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "height": 0, "width": 0} for i in self.images],  # sizes are read, but not used
            "categories": [{"id": label} for label in sorted({each["category_id"] for each in objects})],
            "annotations": [{"id": i, **each} for i, each in enumerate(objects, start=1)],
        }
        coco.createIndex()
        return coco


def _area(each: dict[str, Any], kind: str) -> float:
    from pycocotools import mask as coco_mask

    return float(coco_mask.area(each["segmentation"])) if kind == "mask" else each["bbox"][2] * each["bbox"][3]


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each class (row) that were predicted as each class (column); label 255 is ignored.

    The matrices of several batches can be added up.

    Args:
        predicted: Classes, of any shape, 0 to ``num_classes - 1``.
        labels: True classes, of the same shape.

    Returns:
        (num_classes, num_classes), int64.

    Raises:
        FreproError: A label or a prediction is out of range.
    """
    counted = labels != IGNORED
    labels, predicted = labels[counted].long(), predicted[counted].long()
    for name, classes in {"label": labels, "prediction": predicted}.items():
        if len(classes) and not 0 <= classes.min() <= classes.max() < num_classes:
            wrong = classes[(classes < 0) | (classes >= num_classes)][0]
            raise FreproError(f"{name} {wrong} is not one of {num_classes} classes: they are 0 to {num_classes - 1}")
    return torch.bincount(num_classes * labels + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def segmentation_scores(matrix: Tensor) -> dict[str, float]:
    """Return mean IoU over classes (miou) and pixel accuracy (aacc), from the confusion matrix of a whole data set.

    As in mmsegmentation, a class that is neither labelled nor predicted anywhere is left out of the mean. Both values
    are NaN if no pixel is labelled.
    """
    matrix = matrix.double()
    hits = matrix.diag()
    union = matrix.sum(dim=0) + matrix.sum(dim=1) - hits
    return {
        "miou": 100 * float((hits / union)[union > 0].mean()),
        "aacc": 100 * float(hits.sum() / matrix.sum()),
    }
