"""Training recipes as data: one YAML file for each recipe, with three profiles.

``paper`` is the published recipe on the real data set. ``demo`` takes minutes on embedded data on any laptop. ``smoke``
takes seconds, and only shows that everything runs. ``demo`` and ``smoke`` list only the keys in which they differ from
``paper``.

The classifiers of a paper are trained with the recipe of the same name, as "spanet", and each of its detectors and
segmenters with a recipe of its own, as "spanet-mask_rcnn". The common parts of these are in ``detection.yaml`` and
``segmentation.yaml``: a recipe names one of them as its ``base`` and overrides individual keys.
"""

import re
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any, ClassVar, Literal

from frepro.errors import FreproError, unknown
from frepro.store.yaml_schema import Document

PROFILES = ("smoke", "demo", "paper")
BASES = ("detection", "segmentation")

# Names of detectors and segmenters in the tables of the papers.
NETWORKS = {
    "retinanet": "RetinaNet",
    "mask_rcnn": "Mask R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
    "semantic_fpn": "Semantic FPN",
    "upernet": "UperNet",
}


# Upper limits that only a typing error exceeds.
MOST, LONGEST = 10**9, 2**16  # counts; lengths in pixels


def check(values: object, **ranges: str) -> None:
    """Check fields of a dataclass; ``None`` is always allowed, and of a tuple, each value is checked.

    Args:
        ranges: Name -> range in interval notation: "[0, 1)" includes 0 and excludes 1.

    Raises:
        ValueError: A value is outside of its range, or not a number (NaN).
    """
    for name, range_ in ranges.items():
        given = getattr(values, name)
        low, high = (float(part) for part in range_[1:-1].split(","))
        for value in given if isinstance(given, tuple) else (given,):
            if value is None:
                continue
            is_inside = low <= value if range_[0] == "[" else low < value
            is_inside &= value <= high if range_[-1] == "]" else value < high
            if not is_inside:
                raise ValueError(f"{name} must be in {range_.replace('inf', '∞')}, not {value}")


COUNT, COUNT_OR_ZERO, PIXELS = f"[1, {MOST}]", f"[0, {MOST}]", f"[1, {LONGEST}]"
RATE, PROBABILITY, SHARE = "[0, inf)", "[0, 1]", "(0, 1]"


@dataclass(frozen=True)
class Benchmark:
    """Measurement of throughput: batches of images of ``img_size`` pixels per side, median over ``rounds``."""

    batch_size: int
    img_size: int
    rounds: int

    def __post_init__(self) -> None:
        check(self, batch_size=COUNT, img_size=PIXELS, rounds=COUNT)


@dataclass(frozen=True)
class LayerDecay:
    """Lower learning rates for the first layers of a backbone: a factor of ``rate`` ** (``layers`` - layer group).

    Attributes:
        by: "layer": groups 0 to 6 are the stem, the stages and thirds of the third stage; "stage": group 0 is all
            downsampling layers, and groups 1 to 4 are the stages.
    """

    rate: float
    by: Literal["layer", "stage"]
    layers: int

    def __post_init__(self) -> None:
        check(self, rate=SHARE, layers=COUNT)


@dataclass(frozen=True)
class Change:
    """Values of a single model that replace those of the recipe; ``None`` keeps the value of the recipe."""

    optimizer: Literal["adamw", "lamb"] | None = None
    lr: float | None = None
    weight_decay: float | None = None
    drop_path: float | None = None
    crop_pct: float | None = None
    clip_grad: float | None = None
    precision: Literal["no", "fp16", "bf16"] | None = None
    layer_decay: LayerDecay | None = None
    model_args: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check(self, **OF_MODEL)


# Ranges of what a single model may change.
OF_MODEL = {"lr": "(0, inf)", "weight_decay": RATE, "drop_path": "[0, 1)", "crop_pct": SHARE, "clip_grad": "(0, inf)"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The parameters that recipes of all tasks share.

    Learning rates are for one optimizer step on ``batch_size`` samples over all processes.

    Attributes:
        img_size: Native image size of the model, in pixels per side.
        batch_size: Effective batch size: samples per optimizer step, over all processes and accumulation steps.
        epochs: Passes over the training data in the schedule, including warm-up.
        updates: Number of optimizer steps, instead of ``epochs``; the last epoch stops after them.
        lr: Peak learning rate.
        warmup_lr: Initial learning rate.
        warmup_epochs, warmup_updates: Length of the warm-up, in epochs or optimizer steps.
        schedule: Decay of the learning rate after warm-up: "cosine" to ``min_lr`` over the epochs, "step" by a factor
            of ten at each of the ``milestones`` (epochs), "poly" as (1 - update / updates) ** ``power`` to ``min_lr``.
        cooldown_epochs: Additional epochs at ``min_lr``.
        layer_decay: Layer-wise decay of the learning rate; ``None`` for the same rate in all layers.
        decay_all: Apply weight decay to norms and biases, too, as detection and segmentation toolboxes do by default.
        drop_path: Stochastic depth rate of the last block.
        ema_decay: Decay of the moving average of the weights; ``None`` for no average.
        clip_grad: Maximum norm of the gradient; ``None`` for no clipping.
        optimizer: AdamW, or timm's LAMB.
        betas: Decay rates of the moving averages of the gradient and its square.
        precision: Precision of forward and backward on a GPU. A CPU always computes in float32.
        score_every: Epochs between evaluations; the last epoch is always evaluated.
        by_model: Values of individual models (see ``of``).
        samples: Use only this many training and test samples, evenly spaced; ``None`` for all.
        model_args: Arguments of the model that make it small for embedded data.
    """

    task: ClassVar[str]
    metric: ClassVar[str]  # key of the main metric of the task
    metric_name: ClassVar[str]  # display name of the metric

    img_size: int
    batch_size: int
    epochs: int = 0
    updates: int | None = None
    lr: float
    warmup_lr: float
    warmup_epochs: int = 0
    warmup_updates: int = 0
    schedule: Literal["cosine", "step", "poly"] = "cosine"
    milestones: tuple[int, ...] = ()
    power: float = 1.0
    min_lr: float = 0.0
    cooldown_epochs: int = 0
    weight_decay: float
    layer_decay: LayerDecay | None = None
    decay_all: bool = False
    drop_path: float
    ema_decay: float | None
    clip_grad: float | None
    optimizer: Literal["adamw", "lamb"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    precision: Literal["no", "fp16", "bf16"]
    score_every: int = 1
    by_model: dict[str, Change] = field(default_factory=dict)
    samples: tuple[int, int] | None = None
    model_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(
            self,
            **{name: range_ for name, range_ in OF_MODEL.items() if hasattr(self, name)},
            img_size=PIXELS,
            batch_size=COUNT,
            score_every=COUNT,
            samples=COUNT,
            updates=COUNT,
            epochs=COUNT_OR_ZERO,
            cooldown_epochs=COUNT_OR_ZERO,
            warmup_epochs=COUNT_OR_ZERO,
            warmup_updates=COUNT_OR_ZERO,
            warmup_lr=RATE,
            min_lr=RATE,
            milestones=COUNT,
            power="(0, inf)",
            ema_decay="[0, 1)",
            betas="[0, 1)",
        )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones must increase")
        if (self.epochs < 1) is (self.updates is None):
            raise ValueError("give either epochs or updates")
        if self.updates is None and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be less than epochs ({self.epochs})")
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("give milestones for schedule step, and for no other")

    @property
    def network(self) -> str | None:
        """The detector or segmenter that has the model as its backbone; ``None`` for a classifier."""
        return None

    def of(self, model: str) -> "Recipe":
        """Return this recipe with the values of one model."""
        change = self.by_model.get(model, Change())
        own = {each.name: value for each in fields(Change) if (value := getattr(change, each.name)) is not None}
        return replace(self, **own, by_model={})


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

    task, metric, metric_name = "classification", "top1", "top-1"

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

    task, metric, metric_name = "detection", "box_ap", "box AP"

    detector: Literal["retinanet", "mask_rcnn", "cascade_mask_rcnn"]
    min_size: tuple[int, ...]
    max_size: int
    crop: bool = False
    mirror: bool = True
    detector_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, min_size=PIXELS, max_size=PIXELS)
        if not self.min_size:
            raise ValueError("min_size must have at least one length")

    @property
    def network(self) -> str:
        return self.detector


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

    task, metric, metric_name = "segmentation", "miou", "mIoU"

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

    @property
    def network(self) -> str:
        return self.segmenter


def names() -> list[str]:
    """Return the names of the recipes."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml") if path.stem not in BASES)


def dense_recipes(paper: str, task: str, profile: str) -> dict[str, Recipe]:
    """Return network -> recipe for the detectors or segmenters that a paper trains."""
    own = [name for name in names() if name.startswith(f"{paper}-")]
    found = {name.removeprefix(f"{paper}-"): load(name, profile) for name in own}
    return {network: recipe for network, recipe in found.items() if recipe.task == task}


def of_family(module: str) -> str | None:
    """Return the recipe for the models of a module in ``frepro.models``; ``None`` if there is none.

    The recipe of Vim is that of Vim-F, whose authors retrained Vim along with their own models.
    """
    name = {"vim": "vim-f", "vimf": "vim-f"}.get(module, module)
    return name if name in names() else None


@lru_cache
def load(name: str, profile: str) -> Recipe:
    """Return a profile of a recipe by name.

    Raises:
        FreproError: The recipe or profile is unknown, or the file has an unknown key or a wrong type; the message has
            the file and line.
    """
    if name not in names():
        raise unknown("recipe", name, names())
    return read(Path(__file__).parent / f"{name}.yaml", profile)


def read(path: Path, profile: str) -> Recipe:
    """Read a recipe from any file; use ``load`` for the recipes of the package."""
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    document = Document.read(path)
    profiles = _profiles(document)
    layers = []
    if "base" in profiles:
        base = profiles["base"][1]
        if base.scalar() not in BASES:
            raise base.error(str(unknown("base", base.scalar(), BASES)))
        layers.append(_profiles(Document.read(Path(__file__).parent / f"{base.scalar()}.yaml")))
    layers.append(profiles)
    for part in PROFILES:
        if not any(part in layer for layer in layers):
            raise document.error(f"profile {part!r} is missing")
    parts = dict.fromkeys(("paper", profile))
    merged = reduce(Document.overlaid, (layer[part][1] for part in parts for layer in layers if part in layer))
    keys = merged.items()
    kinds = {"detector": Detection, "segmenter": Segmentation}
    return merged.bind(next((kind for key, kind in kinds.items() if key in keys), Classification))


def _profiles(document: Document) -> dict[str, tuple[Any, Document]]:
    """Return the profiles of a file, and its base if it has one."""
    found = document.items()
    for key, (key_node, _) in found.items():
        if key not in (*PROFILES, "base"):
            raise document.error(str(unknown("profile", key, PROFILES)), key_node)
    return found


def from_plain(task: str, values: dict[str, Any]) -> Recipe:
    """Return a recipe from the JSON of its ``dataclasses.asdict``."""
    kind = next((kind for kind in (Classification, Detection, Segmentation) if kind.task == task), None)
    if kind is None:
        raise FreproError(f"unknown task {task!r}")
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if weights := plain.get("class_weights"):  # the keys of JSON objects are strings
        plain["class_weights"] = {int(label): weight for label, weight in weights.items()}
    parts = {"benchmark": Benchmark, "layer_decay": LayerDecay}
    return kind(**{**plain, **{name: part(**plain[name]) for name, part in parts.items() if plain.get(name)}})
