"""How models are trained, as data: one YAML file a paper, with three profiles of how much of it.

``paper`` is the published recipe on the real data set; ``demo`` takes minutes on embedded data on any laptop; ``smoke``
takes seconds and only shows that everything runs. ``demo`` and ``smoke`` name only the keys in which they differ.
"""

from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from frepro.errors import unknown
from frepro.schema import Document

PROFILES = ("smoke", "demo", "paper")


@dataclass(frozen=True)
class Benchmark:
    """How throughput is measured: images of ``img_size`` pixels a side in batches, the median of ``rounds``."""

    batch_size: int
    img_size: int
    rounds: int


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


@dataclass(frozen=True)
class Recipe:
    """A training recipe. Rates are for one optimizer update of ``batch_size`` samples over all processes together.

    Attributes:
        batch_size: Effective batch: samples in an optimizer update, over all processes and accumulation steps.
        epochs: Passes over the training data on the cosine, warm-up included.
        cooldown_epochs: Further passes at ``min_lr``.
        lr: Peak learning rate; it starts at ``warmup_lr`` and ends at ``min_lr``.
        drop_path: Stochastic depth of the last block.
        reprob: Probability of random erasing, with random pixels.
        repeats: How often in a row an epoch shows an image, each time augmented anew (repeated augmentation); the epoch
            is as long, and shows so many fewer images.
        scale: Range of the area of random resized crops, relative to the image.
        crop_pct: Share of the resized image that the centre crop keeps in evaluation.
        ema_decay: Decay of the moving average of the weights; none without one.
        clip_grad: Largest norm of the gradient; none without clipping.
        optimizer: AdamW, or LAMB as timm has it.
        precision: Of forward and backward on a GPU; a CPU always computes in float32.
        by_model: Values of single models (see ``of``).
        samples: Use only so many training and test samples, spread evenly; none for all.
        model_args: Arguments of the model, to make it small for embedded data.
    """

    img_size: int
    batch_size: int
    epochs: int
    warmup_epochs: int
    cooldown_epochs: int
    lr: float
    warmup_lr: float
    min_lr: float
    weight_decay: float
    drop_path: float
    smoothing: float
    mixup: float
    cutmix: float
    auto_augment: str | None
    reprob: float
    hflip: float
    scale: tuple[float, float]
    interpolation: Literal["random", "bicubic", "bilinear"]
    crop_pct: float
    ema_decay: float | None
    clip_grad: float | None
    precision: Literal["no", "fp16", "bf16"]
    benchmark: Benchmark
    optimizer: Literal["adamw", "lamb"] = "adamw"
    repeats: int = 1
    by_model: dict[str, Change] = field(default_factory=dict)
    samples: tuple[int, int] | None = None
    model_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.batch_size, self.epochs, self.repeats) < 1:
            raise ValueError("batch_size, epochs and repeats are at least 1")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warm-up of {self.warmup_epochs} epochs leaves nothing of {self.epochs}")

    def of(self, model: str) -> "Recipe":
        """This recipe with the values of one model."""
        change = self.by_model.get(model, Change())
        own = {name: value for name, value in asdict(change).items() if value is not None}
        return replace(self, **own, by_model={})


def names() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def of_family(module: str) -> str | None:
    """The recipe that the models of a module in ``frepro.models`` were trained by, if there is one.

    Vim's is that of Vim-F, whose authors trained Vim anew beside their own models.
    """
    name = {"vim": "vim-f", "vimf": "vim-f"}.get(module, module)
    return name if name in names() else None


@lru_cache
def load(name: str, profile: str) -> Recipe:
    """A paper's recipe in a profile.

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
    profiles = document.items()
    for key, (key_node, _) in profiles.items():
        if key not in PROFILES:
            raise document.error(str(unknown("profile", key, PROFILES)), key_node)
    for key in PROFILES:
        if key not in profiles:
            raise document.error(f"profile {key!r} is missing")
    published = profiles["paper"][1]
    return (published if profile == "paper" else published.overlaid(profiles[profile][1])).bind(Recipe)
