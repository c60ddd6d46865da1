"""How networks are trained, as data: one YAML file for each, with three profiles of how much of it.

``paper`` is the published recipe on the real data set; ``demo`` takes minutes on embedded data on any laptop; ``smoke``
takes seconds and only shows that everything runs. ``demo`` and ``smoke`` name only the keys in which they differ.

A paper's classifiers are trained by the recipe of its name, as "spanet"; its detectors and segmenters by one of their
own, as "spanet-mask_rcnn". What those have in common stands in ``detection.yaml`` and ``segmentation.yaml``, which they
name as their ``base`` and overlay key by key.
"""

from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from frepro.errors import FreproError, unknown
from frepro.store.yaml_schema import Document

PROFILES = ("smoke", "demo", "paper")
BASES = ("detection", "segmentation")

# Detectors and segmenters as the papers' tables call them.
NETWORKS = {
    "retinanet": "RetinaNet",
    "mask_rcnn": "Mask R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
    "semantic_fpn": "Semantic FPN",
    "upernet": "UperNet",
}


@dataclass(frozen=True)
class Benchmark:
    """How throughput is measured: images of ``img_size`` pixels a side in batches, the median of ``rounds``."""

    batch_size: int
    img_size: int
    rounds: int


@dataclass(frozen=True)
class LayerDecay:
    """Lower rates for a backbone's first layers: ``rate`` ** (``layers`` - number of the layer's group).

    Attributes:
        by: "layer": groups 0 to 6, of the stem, the stages and thirds of the third stage; "stage": 0 for all that makes
            maps smaller, 1 to 4 for the stages.
    """

    rate: float
    by: Literal["layer", "stage"]
    layers: int


@dataclass(frozen=True)
class Change:
    """What a single model has in place of the recipe's values; none of what it shares with the others."""

    optimizer: Literal["adamw", "lamb"] | None = None
    lr: float | None = None
    weight_decay: float | None = None
    drop_path: float | None = None
    crop_pct: float | None = None
    clip_grad: float | None = None
    precision: Literal["no", "fp16", "bf16"] | None = None
    layer_decay: LayerDecay | None = None
    model_args: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the recipes of all tasks have. Rates are for one optimizer update of ``batch_size`` samples over all
    processes together.

    Attributes:
        img_size: Pixels a side of the images that the model is made for.
        batch_size: Effective batch: samples in an optimizer update, over all processes and accumulation steps.
        epochs: Passes over the training data on the schedule, warm-up included.
        updates: Optimizer updates in place of ``epochs``; the last pass ends with them.
        lr: Peak learning rate.
        warmup_lr: Where it starts.
        warmup_epochs, warmup_updates: How long it rises, in one of the two.
        schedule: How it falls after that: "cosine" to ``min_lr`` over the epochs, "step" to a tenth at each of the
            ``milestones`` (epochs), "poly" as (1 - update / updates) ** ``power`` to ``min_lr``.
        cooldown_epochs: Further passes at ``min_lr``.
        layer_decay: None for one rate for all layers.
        decay_all: Weight decay also of norms and biases, as toolboxes have it unless told otherwise.
        drop_path: Stochastic depth of the last block.
        ema_decay: Decay of the moving average of the weights; none without one.
        clip_grad: Largest norm of the gradient; none without clipping.
        optimizer: AdamW, or LAMB as timm has it.
        betas: How far it averages the gradient and its square.
        precision: Of forward and backward on a GPU; a CPU always computes in float32.
        score_every: Epochs between two evaluations; the last one is always evaluated.
        by_model: Values of single models (see ``of``).
        samples: Use only so many training and test samples, spread evenly; none for all.
        model_args: Arguments of the model, to make it small for embedded data.
    """

    task: ClassVar[str]
    metric: ClassVar[str]  # key of the score that the task is about,
    metric_name: ClassVar[str]  # and what people call it

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
        if self.batch_size < 1 or self.score_every < 1:
            raise ValueError("batch_size and score_every are at least 1")
        if (self.epochs < 1) is (self.updates is None):
            raise ValueError("a recipe lasts either so many epochs or so many updates")
        if self.updates is None and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warm-up of {self.warmup_epochs} epochs leaves nothing of {self.epochs}")
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("milestones are for the schedule step, which needs some")

    @property
    def network(self) -> str | None:
        """What a model is the backbone of; none for a classifier, which is all of it."""
        return None

    def of(self, model: str) -> "Recipe":
        """This recipe with the values of one model."""
        change = self.by_model.get(model, Change())
        own = {each.name: value for each in fields(Change) if (value := getattr(change, each.name)) is not None}
        return replace(self, **own, by_model={})


@dataclass(frozen=True, kw_only=True)
class Classification(Recipe):
    """How a classifier is trained.

    Attributes:
        smoothing: Of labels.
        reprob: Probability of random erasing, with random pixels.
        repeats: How often in a row an epoch shows an image, each time augmented anew (repeated augmentation); the epoch
            is as long, and shows so many fewer images.
        scale: Range of the area of random resized crops, relative to the image.
        crop_pct: Share of the resized image that the centre crop keeps in evaluation.
        benchmark: How throughput is measured; no part of the training.
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
        if self.repeats < 1:
            raise ValueError("repeats are at least 1")


@dataclass(frozen=True, kw_only=True)
class Detection(Recipe):
    """How a detector is trained.

    Attributes:
        detector: A name of ``tasks.detectors.create``.
        min_size: Lengths that an image's shorter side is resized to; one of them at random in training, the last else.
        max_size: Most of the longer side.
        crop: Whether every second image is cut before it is resized (``data.dense.Detection``).
        mirror: Whether every second image is mirrored.
        detector_args: Further arguments of ``tasks.detectors.create``, to make it small for embedded data.
    """

    task, metric, metric_name = "detection", "box_ap", "box AP"

    detector: Literal["retinanet", "mask_rcnn", "cascade_mask_rcnn"]
    min_size: tuple[int, ...]
    max_size: int
    crop: bool = False
    mirror: bool = True
    detector_args: dict[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> str:
        return self.detector


@dataclass(frozen=True, kw_only=True)
class Segmentation(Recipe):
    """How a segmenter is trained.

    Attributes:
        segmenter: A name of ``tasks.segmenters.create``.
        crop_size: Short side that images are resized to and, in training, side of the square that is cut out.
        ratios: Range of the random factor of the size before that cut.
        mirror: Whether every second image is mirrored.
        distort: Whether colours are changed at random.
        multiple: Sides of test images are rounded up to multiples of so many pixels.
        window, stride: Of sliding inference, in pixels; none for whole images.
        class_weights: Of pixels of a class in the loss; 1 for those that it does not name.
        segmenter_args: Further arguments of ``tasks.segmenters.create``, to make it small for embedded data.
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

    @property
    def network(self) -> str:
        return self.segmenter


def names() -> list[str]:
    """The recipes there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml") if path.stem not in BASES)


def dense_recipes(paper: str, task: str, profile: str) -> dict[str, Recipe]:
    """The networks of a task that a paper trains -> recipe."""
    wholes = [name for name in names() if name.startswith(f"{paper}-")]
    found = {name.removeprefix(f"{paper}-"): load(name, profile) for name in wholes}
    return {network: recipe for network, recipe in found.items() if recipe.task == task}


def of_family(module: str) -> str | None:
    """The recipe that the models of a module in ``frepro.models`` were trained by, if there is one.

    Vim's is that of Vim-F, whose authors trained Vim anew beside their own models.
    """
    name = {"vim": "vim-f", "vimf": "vim-f"}.get(module, module)
    return name if name in names() else None


@lru_cache
def load(name: str, profile: str) -> Recipe:
    """The recipe of that name in a profile.

    Raises:
        FreproError: No such recipe or profile, or the file holds an unknown key or a wrong type, with file and line.
    """
    if name not in names():
        raise unknown("recipe", name, names())
    return read(Path(__file__).parent / f"{name}.yaml", profile)


def read(path: Path, profile: str) -> Recipe:
    """The recipe in a file of any name; ``load`` for those of the package."""
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
    merged = None
    for part in ("paper", profile)[: 1 if profile == "paper" else 2]:
        for layer in layers:
            if part in layer:
                merged = layer[part][1] if merged is None else merged.overlaid(layer[part][1])
    for part in PROFILES:
        if not any(part in layer for layer in layers):
            raise document.error(f"profile {part!r} is missing")
    keys = merged.items()
    kinds = {"detector": Detection, "segmenter": Segmentation}
    return merged.bind(next((kind for key, kind in kinds.items() if key in keys), Classification))


def _profiles(document: Document) -> dict[str, tuple[Any, Document]]:
    """The profiles of a file, and its base where it has one."""
    found = document.items()
    for key, (key_node, _) in found.items():
        if key not in (*PROFILES, "base"):
            raise document.error(str(unknown("profile", key, PROFILES)), key_node)
    return found


def from_plain(task: str, values: dict[str, Any]) -> Recipe:
    """The recipe of a task out of what ``dataclasses.asdict`` made of it, and JSON of that."""
    kind = next((kind for kind in (Classification, Detection, Segmentation) if kind.task == task), None)
    if kind is None:
        raise FreproError(f"there is no task {task!r}")
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if weights := plain.get("class_weights"):  # JSON has text for keys
        plain["class_weights"] = {int(label): weight for label, weight in weights.items()}
    parts = {"benchmark": Benchmark, "layer_decay": LayerDecay}
    return kind(**{**plain, **{name: part(**plain[name]) for name, part in parts.items() if plain.get(name)}})
