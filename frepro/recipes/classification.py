"""Recipes of classifiers: one class per image."""

from dataclasses import dataclass
from typing import Literal

from frepro.recipes.metrics import Metric
from frepro.recipes.recipe import Benchmark, Recipe


@dataclass(frozen=True, kw_only=True)
class Classification(Recipe):
    """How a classifier is trained.

    Attributes:
        smoothing: Label smoothing.
        reprob: Probability of random erasing, with random pixels.
        repeats: Consecutive repeats of an image in an epoch, each with a different augmentation (repeated
            augmentation). The length of an epoch stays the same, so it has fewer distinct images.
        scale: Range of the area of random resized crops, relative to the image.
        crop_pct: Fraction of the resized image that the centre crop keeps in evaluation.
        benchmark: How throughput is measured; not part of training.
    """

    task = "classification"
    metrics = (
        Metric("top1", "top-1", "%", higher_is_better=True),
        Metric("top5", "top-5", "%", higher_is_better=True, in_tables=False),
        Metric("test_loss", "test loss", "", higher_is_better=False, decimals=4, in_tables=False),
    )
    layout = "imagenet"
    embedded = ("textured", "digits", "cues")

    smoothing: float
    mixup: float
    cutmix: float
    auto_augment: str | None
    reprob: float
    hflip: float
    scale: tuple[float, float]
    interpolation: Literal["random", "bicubic", "bilinear"]
    crop_pct: float
    benchmark: Benchmark
    repeats: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repeats < 1:
            raise ValueError("repeats must be at least 1")
