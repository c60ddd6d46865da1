"""Recipes of segmenters: one class per pixel."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from frepro.recipes.metrics import Metric
from frepro.recipes.recipe import PIXELS, Recipe, check


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

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, crop_size=PIXELS, ratios="(0, inf)", multiple=PIXELS, window=PIXELS, stride=PIXELS)
        if self.ratios[0] > self.ratios[1]:
            raise ValueError(f"ratios must increase, not {list(self.ratios)}")
        if (self.window is None) != (self.stride is None) or (self.stride or 0) > (self.window or 0):
            raise ValueError("give window and stride together, and a stride up to the window")
        for label, weight in self.class_weights.items():
            if not (label >= 0 and 0 <= weight < float("inf")):
                raise ValueError(f"class_weights must be non-negative, not {weight} for class {label}")
