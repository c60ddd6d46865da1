"""The parameters that recipes of all tasks share, and what a recipe class states about its task."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self

from frepro.recipes.metrics import Metric

# Upper limits that only a typing error exceeds.
MOST, LONGEST = 10**9, 2**16  # counts; lengths in pixels

COUNT, COUNT_OR_ZERO, PIXELS = f"[1, {MOST}]", f"[0, {MOST}]", f"[1, {LONGEST}]"
RATE, PROBABILITY, SHARE = "[0, inf)", "[0, 1]", "(0, 1]"


def check(values: object, **ranges: str) -> None:
    """Check fields of a dataclass; ``None`` is always allowed, and of a tuple, each value is checked.

    Args:
        values: The dataclass.
        **ranges: Name -> range in interval notation: "[0, 1)" includes 0 and excludes 1.

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
    """Lower learning rates for the first layers of a backbone: a factor of ``rate ** (layers - layer group)``.

    Attributes:
        by: "layer": groups 0 to 6 are the stem, the stages and thirds of the third stage; "stage": group 0 is all
            downsampling layers, and groups 1 to 4 are the stages.
    """

    rate: float
    by: Literal["layer", "stage"]
    layers: int

    def __post_init__(self) -> None:
        check(self, rate=SHARE, layers=COUNT)


# Ranges of what a single model may change.
OF_MODEL = {"lr": "(0, inf)", "weight_decay": RATE, "drop_path": "[0, 1)", "crop_pct": SHARE, "clip_grad": "(0, inf)"}


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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The parameters that recipes of all tasks share.

    Learning rates are for one optimizer step on ``batch_size`` samples over all processes.

    Attributes:
        task: Name of the task, that of its module in ``frepro.tasks``; an attribute of the class, as are the next six.
        metrics: The scores of the task in the order of display, the main one first.
        layout: Layout of its data in folders: "imagenet", "coco" or "ade20k" (see ``frepro.data.sources``).
        embedded: Embedded data that suit it, the default first.
        dataset: The data set of its tables in the papers.
        networks: Detectors or segmenters by name, with their names in the tables of the papers; empty for classifiers.
        network_key: The parameter that names one of ``networks``; a recipe file with this key is for this task.
        img_size: Native image size of the model, in pixels per side.
        batch_size: Effective batch size: samples per optimizer step, over all processes and accumulation steps.
        epochs: Passes over the training data in the schedule, including warm-up.
        updates: Number of optimizer steps, instead of ``epochs``; the last epoch stops after them.
        lr: Peak learning rate.
        warmup_lr: Initial learning rate.
        warmup_epochs: Length of the warm-up in epochs.
        warmup_updates: Length of the warm-up in optimizer steps.
        schedule: Decay of the learning rate after warm-up: "cosine" to ``min_lr`` over the epochs, "step" by a factor
            of ten at each of the ``milestones`` (epochs), "poly" as ``(1 - update / updates) ** power`` to ``min_lr``.
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
    metrics: ClassVar[tuple[Metric, ...]]
    layout: ClassVar[str]
    embedded: ClassVar[tuple[str, ...]]
    dataset: ClassVar[str | None] = None
    networks: ClassVar[Mapping[str, str]] = {}
    network_key: ClassVar[str | None] = None

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

    @classmethod
    def main_metric(cls) -> Metric:
        """Return the score that stands for a run where only one is shown."""
        return cls.metrics[0]

    @property
    def network(self) -> str | None:
        """The detector or segmenter that has the model as its backbone; ``None`` for a classifier."""
        return None if self.network_key is None else getattr(self, self.network_key)

    def of(self, model: str) -> Self:
        """Return this recipe with the values of one model."""
        change = self.by_model.get(model, Change())
        own = {each.name: value for each in fields(Change) if (value := getattr(change, each.name)) is not None}
        return replace(self, **own, by_model={})
