"""Training recipes as data: one YAML file for each recipe, with three profiles.

``paper`` is the published recipe on the real data set. ``demo`` takes minutes on embedded data on any laptop. ``smoke``
takes seconds, and only shows that everything runs. ``demo`` and ``smoke`` list only the keys in which they differ from
``paper``. Classifiers have a fourth profile, ``finetune``, for a model of full size on the user's own images; its
common part is in ``classification.yaml``. Tables and figures do not use it, so it is none of ``PROFILES``.

The classifiers of a paper are trained with the recipe of the same name, as "spanet", and each of its detectors and
segmenters with a recipe of its own, as "spanet-mask_rcnn". The common parts of these are in ``detection.yaml`` and
``segmentation.yaml``: a recipe names one of them as its ``base`` and overrides individual keys. A base may also be
another recipe of the package, for a recipe in a file of the user's own, too. Classifiers that a paper trains further
have the recipe of the paper's name and ``-fine_tuning``, as "vim-f-fine_tuning".

``differs`` lists where the ``paper`` profile differs from the authors' configuration, with the reason for each.
``tests/data/official_recipes.yaml`` holds the configurations' values. One difference is common to all classifiers: the
authors' loops set the learning rate once per epoch, and here it follows the same curve by optimizer step.

The recipe class of a task, in a module of its own, also states what else frepro needs to know about the task without
importing torch: its metrics, data and networks. ``TASKS`` lists these classes.
"""

from dataclasses import replace
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

from frepro.errors import FreproError, unknown
from frepro.recipes.classification import Classification
from frepro.recipes.detection import Detection
from frepro.recipes.metrics import BACKBONE_COSTS, COSTS, Metric
from frepro.recipes.recipe import Benchmark, Change, LayerDecay, Recipe
from frepro.recipes.segmentation import Segmentation
from frepro.store.yaml_schema import Document

__all__ = [
    "METRICS",
    "NETWORKS",
    "PROFILES",
    "TASKS",
    "TRAINING_PROFILES",
    "Benchmark",
    "Change",
    "Classification",
    "Detection",
    "LayerDecay",
    "Metric",
    "Recipe",
    "Segmentation",
    "adjusted",
    "dense_recipes",
    "from_plain",
    "is_file",
    "load",
    "names",
    "of_classifiers",
    "of_dataset",
    "of_family",
    "of_fine_tuning",
    "of_task",
    "profiles",
    "read",
]

# What tables and figures are made with, and what a single model can be trained with.
PROFILES = ("smoke", "demo", "paper")
TRAINING_PROFILES = (*PROFILES, "finetune")

# Name of each task -> its recipe class.
TASKS: dict[str, type[Recipe]] = {kind.task: kind for kind in (Classification, Detection, Segmentation)}

# Name of each measured quantity -> its label, unit and format: costs, then the scores of each task.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metrics in (COSTS, BACKBONE_COSTS, *(kind.metrics for kind in TASKS.values()))
    for metric in metrics
}

# Names of detectors and segmenters in the tables of the papers.
NETWORKS = {name: title for kind in TASKS.values() for name, title in kind.networks.items()}


def of_task(name: str) -> type[Recipe]:
    """Return the recipe class of a task.

    Raises:
        FreproError: There is no such task.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def of_dataset(dataset: str | None) -> type[Recipe]:
    """Return the recipe class of the task that a table on a data set is about: ``Classification`` for all others."""
    return next((kind for kind in TASKS.values() if dataset and kind.dataset == dataset), Classification)


def names() -> list[str]:
    """Return the names of the recipes."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml") if path.stem not in TASKS)


def differences(name: str) -> dict[str, str]:
    """Return parameter -> reason for the differences of a recipe from the authors' configuration."""
    document = _profiles(Document.read(Path(__file__).parent / f"{name}.yaml")).get("differs")
    return document[1].bind(dict[str, str]) if document else {}


def of_fine_tuning(paper: str, profile: str) -> Classification:
    """Return the recipe with which a paper trains classifiers further that its main recipe has trained.

    Raises:
        FreproError: The paper has no such recipe.
    """
    return of_classifiers(f"{paper}-fine_tuning", profile)


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
    """Return a profile of a recipe by name, or of a recipe in a file of the user's own by its path.

    Raises:
        FreproError: The recipe or profile is unknown, or the file has an unknown key or a wrong type; the message has
            the file and line.
    """
    if is_file(name):
        return read(Path(name), profile)
    if name not in names():
        raise unknown("recipe", name, names())
    return read(Path(__file__).parent / f"{name}.yaml", profile)


def of_classifiers(paper: str, profile: str) -> Classification:
    """Return the recipe for the classifiers of a paper."""
    recipe = load(paper, profile)
    assert isinstance(recipe, Classification)
    return recipe


def is_file(name: str) -> bool:
    """Return whether the name of a recipe is the path of a file of the user's own."""
    return name.endswith((".yaml", ".yml")) or "/" in name


def profiles(path: Path) -> list[str]:
    """Return the profiles that a recipe's file has itself, without those of its base."""
    return [name for name in TRAINING_PROFILES if name in _profiles(_document(path))]


def read(path: Path, profile: str) -> Recipe:
    """Read a recipe from any file; use ``load`` for the recipes of the package.

    Raises:
        FreproError: There is no such file or profile, or the file has an unknown key or a wrong type; the message has
            the file and line.
    """
    if profile not in TRAINING_PROFILES:
        raise unknown("profile", profile, TRAINING_PROFILES)
    document = _document(path)
    layers = _layers(path)
    is_packaged = path.parent == Path(__file__).parent
    for part in PROFILES:
        if not any(part in layer for layer in layers):
            raise document.error(f"profile {part!r} is missing")
    if not any(profile in layer for layer in layers):
        named = [name for name in TRAINING_PROFILES if any(name in layer for layer in layers)]
        raise FreproError(f"recipe {path.stem} has no profile {profile}: use --profile {' or '.join(named)}")
    if not is_packaged and profile not in layers[-1]:
        raise document.error(f"the file has no profile {profile!r}, so it would change nothing: add it, or use another")
    parts = dict.fromkeys(("paper", profile))
    merged = reduce(Document.overlaid, (layer[part][1] for part in parts for layer in layers if part in layer))
    keys = merged.items()
    return merged.bind(next((kind for kind in TASKS.values() if kind.network_key in keys), Classification))


def _document(path: Path) -> Document:
    try:
        return Document.read(path)
    except OSError as error:
        raise FreproError(f"no recipe at {path}: {error.strerror}: give a YAML file, or one of {names()}") from error


def _layers(path: Path) -> list[dict[str, tuple[Any, Document]]]:
    """Return the profiles of a recipe's base, of the base of that, and of the recipe itself, the latter last."""
    found = _profiles(_document(path))
    if "base" not in found:
        return [found]
    base, folder = found["base"][1], Path(__file__).parent
    bases = [name for name in TASKS if (folder / f"{name}.yaml").exists()]
    bases += [name for name in names() if path != folder / f"{name}.yaml"]
    if base.scalar() not in bases:
        raise base.error(str(unknown("base", base.scalar(), bases)))
    return [*_layers(folder / f"{base.scalar()}.yaml"), found]


def _profiles(document: Document) -> dict[str, tuple[Any, Document]]:
    """Return the profiles of a file, and its base and differences if it has them."""
    found = document.items()
    for key, (key_node, _) in found.items():
        if key not in (*TRAINING_PROFILES, "base", "differs"):
            raise document.error(str(unknown("profile", key, TRAINING_PROFILES)), key_node)
    return found


def of_length(recipe: Recipe, epochs: int) -> Recipe:
    """Return a recipe with another number of epochs.

    A warm-up that is too long for them is shortened. One in optimizer steps becomes the same share of the training.

    Raises:
        FreproError: The recipe changes its learning rate at given epochs.
    """
    if recipe.milestones:
        raise FreproError("this recipe lowers the rate at given epochs: change them in a recipe of your own instead")
    warmup = round(recipe.warmup_updates / recipe.updates * epochs) if recipe.updates else recipe.warmup_epochs
    return replace(recipe, epochs=epochs, updates=None, warmup_epochs=min(warmup, epochs - 1), warmup_updates=0)


def adjusted(
    recipe: Recipe,
    model: str,
    *,
    epochs: int | None = None,
    warmup_epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    img_size: int | None = None,
) -> Recipe:
    """Return a recipe for one model with other values; ``None`` keeps those of the recipe.

    For the number of epochs see ``of_length``. The initial and last learning rates keep their ratio to the peak rate.

    Raises:
        FreproError: The recipe cannot have such values.
    """
    recipe = recipe.of(model)
    if epochs is not None:
        recipe = of_length(recipe, epochs)
    changes: dict[str, Any] = {}
    if warmup_epochs is not None:
        changes |= {"warmup_epochs": warmup_epochs, "warmup_updates": 0}
    if lr is not None:
        ratio = lr / recipe.lr
        changes |= {"lr": lr, "warmup_lr": recipe.warmup_lr * ratio, "min_lr": recipe.min_lr * ratio}
    if batch_size is not None:
        changes["batch_size"] = batch_size
    if img_size is not None:
        if recipe.network:
            raise FreproError(
                f"{recipe.network} takes images of many sizes: change them in a recipe of your own instead"
            )
        changes["img_size"] = img_size
    try:
        return replace(recipe, **changes)
    except ValueError as error:
        raise FreproError(f"the recipe cannot be changed like that: {error}") from error


def from_plain(task: str, values: dict[str, Any]) -> Recipe:
    """Return a recipe from the JSON of its ``dataclasses.asdict``."""
    kind = of_task(task)
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if weights := plain.get("class_weights"):  # the keys of JSON objects are strings
        plain["class_weights"] = {int(label): weight for label, weight in weights.items()}
    parts = {"benchmark": Benchmark, "layer_decay": LayerDecay}
    return kind(**{**plain, **{name: part(**plain[name]) for name, part in parts.items() if plain.get(name)}})
