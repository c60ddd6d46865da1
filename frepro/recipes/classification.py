"""Recipes of classifiers: one class per image."""

import re
from dataclasses import dataclass
from typing import Literal

from frepro.recipes.metrics import Metric
from frepro.recipes.recipe import COUNT, PROBABILITY, RATE, SHARE, Benchmark, Recipe, check


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
    embedded = ("textured", "digits", "cues", "textured-validation")

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
        check(
            self,
            smoothing="[0, 1)",
            mixup=RATE,
            cutmix=RATE,
            reprob=PROBABILITY,
            hflip=PROBABILITY,
            scale=SHARE,
            repeats=COUNT,
        )
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must increase, not {list(self.scale)}")
        if self.auto_augment is not None and not AUGMENTATION.fullmatch(self.auto_augment):
            raise ValueError(
                f"unknown auto_augment {self.auto_augment!r}: use a name of timm's, such as rand-m9-mstd0.5-inc1, "
                "augmix-m5-w4-d2 or original-mstd0.5, or null"
            )


# The names that timm's ``create_transform`` understands: a policy and its settings.
AUGMENTATION = re.compile(
    r"rand(-(m|n|mmax)\d+|-(p|mstd)\d+(\.\d+)?|-inc[01]|-t(weights|3aw?))*"
    r"|augmix(-[mw][1-9]\d*|-d\d+|-b[01]|-(a|mstd)\d+(\.\d+)?)*"
    r"|(original|originalr|v0|v0r|3a)(-mstd\d+(\.\d+)?)?"
)
