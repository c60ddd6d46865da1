"""Training recipes as data: one YAML file for each recipe, with three profiles.

``paper`` is the published recipe on the real data set. ``demo`` takes minutes on embedded data on any laptop. ``smoke``
takes seconds, and only shows that everything runs. ``demo`` and ``smoke`` list only the keys in which they differ from
``paper``.

The classifiers of a paper are trained with the recipe of the same name, as "spanet", and each of its detectors and
segmenters with a recipe of its own, as "spanet-mask_rcnn". The common parts of these are in ``detection.yaml`` and
``segmentation.yaml``: a recipe names one of them as its ``base`` and overrides individual keys.

``differs`` lists where the ``paper`` profile differs from the authors' configuration, with the reason for each.
``tests/data/official_recipes.yaml`` holds the configurations' values. One difference is common to all classifiers: the
authors' loops set the learning rate once per epoch, and here it follows the same curve by optimizer step.

The recipe class of a task, in a module of its own, also states what else frepro needs to know about the task without
importing torch: its metrics, data and networks. ``TASKS`` lists these classes.
"""

from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

from frepro.errors import unknown
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
    "Benchmark",
    "Change",
    "Classification",
    "Detection",
    "LayerDecay",
    "Metric",
    "Recipe",
    "Segmentation",
    "dense_recipes",
    "from_plain",
    "load",
    "names",
    "of_classifiers",
    "of_dataset",
    "of_family",
    "of_task",
    "read",
]

PROFILES = ("smoke", "demo", "paper")

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


def of_classifiers(paper: str, profile: str) -> Classification:
    """Return the recipe for the classifiers of a paper."""
    recipe = load(paper, profile)
    assert isinstance(recipe, Classification)
    return recipe


def read(path: Path, profile: str) -> Recipe:
    """Read a recipe from any file; use ``load`` for the recipes of the package."""
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    document = Document.read(path)
    profiles = _profiles(document)
    layers = []
    if "base" in profiles:
        base = profiles["base"][1]
        bases = [name for name in TASKS if (Path(__file__).parent / f"{name}.yaml").exists()]
        if base.scalar() not in bases:
            raise base.error(str(unknown("base", base.scalar(), bases)))
        layers.append(_profiles(Document.read(Path(__file__).parent / f"{base.scalar()}.yaml")))
    layers.append(profiles)
    for part in PROFILES:
        if not any(part in layer for layer in layers):
            raise document.error(f"profile {part!r} is missing")
    parts = dict.fromkeys(("paper", profile))
    merged = reduce(Document.overlaid, (layer[part][1] for part in parts for layer in layers if part in layer))
    keys = merged.items()
    return merged.bind(next((kind for kind in TASKS.values() if kind.network_key in keys), Classification))


def _profiles(document: Document) -> dict[str, tuple[Any, Document]]:
    """Return the profiles of a file, and its base and differences if it has them."""
    found = document.items()
    for key, (key_node, _) in found.items():
        if key not in (*PROFILES, "base", "differs"):
            raise document.error(str(unknown("profile", key, PROFILES)), key_node)
    return found


def from_plain(task: str, values: dict[str, Any]) -> Recipe:
    """Return a recipe from the JSON of its ``dataclasses.asdict``."""
    kind = of_task(task)
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if weights := plain.get("class_weights"):  # the keys of JSON objects are strings
        plain["class_weights"] = {int(label): weight for label, weight in weights.items()}
    parts = {"benchmark": Benchmark, "layer_decay": LayerDecay}
    return kind(**{**plain, **{name: part(**plain[name]) for name, part in parts.items() if plain.get(name)}})
