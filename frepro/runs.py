"""What is to be measured: a training run, or throughput. Plain descriptions; nothing here imports torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from frepro import provenance
from frepro.data.sources import Source
from frepro.recipes import Benchmark, Recipe
from frepro.results import Measurement, canonical


@dataclass(frozen=True)
class Run:
    """One training run: a model, a recipe in a profile, data and a seed. Equal runs are made once.

    ``recipe`` becomes the model's own. ``model_args`` are the variant's; the recipe's (which make models small for
    embedded data) are added to them.
    """

    model: str
    recipe: Recipe
    profile: str
    source: Source
    seed: int
    model_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipe", self.recipe.of(self.model))

    @property
    def all_model_args(self) -> dict[str, Any]:
        return {**self.recipe.model_args, **self.model_args}

    @property
    def title(self) -> str:
        arguments = "".join(f", {key}={value}" for key, value in self.model_args.items())
        return f"{self.model}{arguments}, seed {self.seed}"

    @property
    def seconds(self) -> float | None:
        """How long it took when it was last made; none if it was not."""
        stored = self.measurement.stored()
        return stored and stored["seconds"]

    @cached_property
    def measurement(self) -> Measurement:
        recipe = asdict(self.recipe)
        for key in ("benchmark", "by_model", "model_args"):  # not of the training, or resolved already
            del recipe[key]
        spec = {
            "model": self.model,
            "model_args": self.all_model_args,
            "recipe": recipe,
            "profile": self.profile,
            "data": self.source.spec(),
            "seed": self.seed,
        }
        return Measurement("train", spec, model_code("frepro.train", self.model))


@dataclass(frozen=True)
class Throughput:
    """Images per second of several models, timed in turn in one process.

    Attributes:
        models: (model, model_args) of each.
        device: "cpu" or "cuda".
        name: The device's name; a number of one machine is not another's.
    """

    models: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]
    benchmark: Benchmark
    device: str
    name: str

    @property
    def measurement(self) -> Measurement:
        code = [model_code("frepro.analysis.cost", model) for model, _ in self.models]
        return Measurement("throughput", asdict(self), provenance.sha256(*code))


@lru_cache
def model_code(module: str, model: str) -> str:
    """Fingerprint of a module and of the model's own, or timm's version for a model of timm's."""
    own = provenance.own_models().get(model)
    if own is None:
        return provenance.sha256(provenance.code_fingerprint(module), f"timm {provenance.version('timm')}")
    return provenance.code_fingerprint(module, own)


def code_of(modules: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """The code of modules and of models by module, each with its fingerprint; for models of timm's its version."""
    own = provenance.own_models()
    code = provenance.code(*modules, *(own[model] for model in models if model in own))
    if all(model in own for model in models):
        return code
    return {**code, "timm": str(provenance.version("timm"))}


def ingredients(runs: Sequence[Run], paper: str) -> dict[str, str]:
    """What training runs rest on, by name, each with a fingerprint: code, a paper's recipe and data."""
    recipes = {canonical([run.model, run.all_model_args, run.measurement.spec["recipe"]]) for run in runs}
    return {
        **code_of(["frepro.train"], [run.model for run in runs]),
        f"recipe {paper}": provenance.sha256(*sorted(recipes)),
        "data": provenance.sha256(*sorted({canonical(run.source.spec()) for run in runs})),
    }
