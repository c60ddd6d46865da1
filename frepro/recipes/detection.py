"""Recipes of detectors: boxes, classes and masks of objects."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from frepro.recipes.metrics import Metric
from frepro.recipes.recipe import PIXELS, Recipe, check


@dataclass(frozen=True, kw_only=True)
class Detection(Recipe):
    """How a detector is trained.

    Attributes:
        detector: A name of ``tasks.detectors.create``.
        min_size: Lengths in pixels to which the shorter side of an image is resized: a random one in training, the last
            one in evaluation.
        max_size: Maximum length of the longer side in pixels.
        crop: Whether an image is cropped before resizing with probability one half (``data.dense.Detection``).
        mirror: Whether an image is flipped horizontally with probability one half.
        detector_args: Other arguments of ``tasks.detectors.create``, which make it small for embedded data.
    """

    task = "detection"
    metrics = (
        Metric("box_ap", "box AP", "%", higher_is_better=True),
        Metric("box_ap50", "box AP50", "%", higher_is_better=True),
        Metric("box_ap75", "box AP75", "%", higher_is_better=True),
        Metric("box_aps", "box AP, small", "%", higher_is_better=True, in_tables=False),
        Metric("box_apm", "box AP, medium", "%", higher_is_better=True, in_tables=False),
        Metric("box_apl", "box AP, large", "%", higher_is_better=True, in_tables=False),
        Metric("mask_ap", "mask AP", "%", higher_is_better=True),
        Metric("mask_ap50", "mask AP50", "%", higher_is_better=True),
        Metric("mask_ap75", "mask AP75", "%", higher_is_better=True),
        Metric("mask_aps", "mask AP, small", "%", higher_is_better=True, in_tables=False),
        Metric("mask_apm", "mask AP, medium", "%", higher_is_better=True, in_tables=False),
        Metric("mask_apl", "mask AP, large", "%", higher_is_better=True, in_tables=False),
    )
    layout = "coco"
    embedded = ("scenes",)
    dataset = "COCO"
    networks: ClassVar[Mapping[str, str]] = {
        "retinanet": "RetinaNet",
        "mask_rcnn": "Mask R-CNN",
        "cascade_mask_rcnn": "Cascade Mask R-CNN",
    }
    network_key = "detector"

    detector: Literal["retinanet", "mask_rcnn", "cascade_mask_rcnn"]
    min_size: tuple[int, ...]
    max_size: int
    crop: bool = False
    mirror: bool = True
    detector_args: dict[str, Any] = field(default_factory=dict)

    @property
    def uses_masks(self) -> bool:
        """Whether the detector learns and predicts masks, besides boxes."""
        return self.detector != "retinanet"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, min_size=PIXELS, max_size=PIXELS)
        if not self.min_size:
            raise ValueError("min_size must have at least one length")
