"""Recipes of segmenters: one class per pixel."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from frepro.recipes.metrics import Metric
from frepro.recipes.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Segmentation(Recipe):
    """How a segmenter is trained.

    Attributes:
        segmenter: A name of ``tasks.segmenters.create``.
        crop_size: Length in pixels to which the shorter side of an image is resized; in training, also the side of the
            square crop.
        ratios: Range of the random scale factor before cropping.
        mirror: Whether an image is flipped horizontally with probability one half.
        distort: Whether colours are distorted randomly.
        multiple: Height and width of test images are rounded up to multiples of this many pixels.
        window, stride: Window and stride of sliding inference in pixels; ``None`` for whole images.
        class_weights: Class -> weight of its pixels in the loss; 1 for other classes.
        segmenter_args: Other arguments of ``tasks.segmenters.create``, which make it small for embedded data.
    """

    task = "segmentation"
    metrics = (
        Metric("miou", "mIoU", "%", higher_is_better=True),
        Metric("aacc", "pixel accuracy", "%", higher_is_better=True),
    )
    layout = "ade20k"
    embedded = ("scenes",)
    dataset = "ADE20K"
    networks: ClassVar[Mapping[str, str]] = {"semantic_fpn": "Semantic FPN", "upernet": "UperNet"}
    network_key = "segmenter"

    segmenter: Literal["semantic_fpn", "upernet"]
    crop_size: int
    ratios: tuple[float, float] = (0.5, 2.0)
    mirror: bool = True
    distort: bool = True
    multiple: int = 1
    window: int | None = None
    stride: int | None = None
    class_weights: dict[int, float] = field(default_factory=dict)
    segmenter_args: dict[str, Any] = field(default_factory=dict)
