"""What is to be measured: a training run, or throughput. Plain descriptions; nothing here imports torch."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from frepro.data.sources import Source
from frepro.errors import FreproError
from frepro.recipes import Benchmark, Recipe
from frepro.store import provenance, revisions
from frepro.store.records import Measurement, canonical

# The modules that make or read data, by the source's reader; all others are read by ``data.loading``.
READERS = {
    "folder": "frepro.data.listing",
    "textured": "frepro.data.compositions",
    "cues": "frepro.data.compositions",
    "scenes": "frepro.data.scenes",
    "coco": "frepro.data.coco",
    "ade20k": "frepro.data.ade20k",
}
# Of one kind on one machine. More are a slip of the keyboard, and would only exhaust it.
MOST_PROCESSES = 1024


@dataclass(frozen=True)
class Start:
    """Weights that the backbone of a detector or segmenter starts from; where the file lies does not matter."""

    file: Path = field(compare=False)
    fingerprint: str

    @classmethod
    def of(cls, file: Path) -> "Start":
        """Those in a file.

        Raises:
            FreproError: There is no such file.
        """
        try:
            with file.open("rb") as content:
                return cls(file.absolute(), hashlib.file_digest(content, "sha256").hexdigest()[:16])
        except OSError as error:
            raise FreproError(f"no weights at {file}: {error.strerror}: give a .pth or .safetensors file") from error


@dataclass(frozen=True)
class Run:
    """One training run: a model, a recipe in a profile, data and a seed. Equal runs are made once.

    ``recipe`` becomes the model's own; it also tells the task. Of a detector or segmenter, ``model`` is the backbone.
    ``model_args`` are the variant's; the recipe's (which make models small for embedded data) are added to them.
    """

    model: str
    recipe: Recipe
    profile: str
    source: Source
    seed: int
    model_args: dict[str, Any] = field(default_factory=dict)
    start: Start | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipe", self.recipe.of(self.model))
        if self.start is not None and not self.recipe.network:
            raise FreproError(
                f"a classifier starts from random weights, and {self.start.file} would not be used: leave --backbone "
                "out, or add the --recipe of a detector or segmenter"
            )

    @property
    def all_model_args(self) -> dict[str, Any]:
        return {**self.recipe.model_args, **self.model_args}

    @property
    def title(self) -> str:
        arguments = "".join(f", {key}={value}" for key, value in self.model_args.items())
        whole = f" in {self.recipe.network}" if self.recipe.network else ""
        return f"{self.model}{whole}{arguments}, seed {self.seed}"

    def score_line(self, values: dict[str, Any], decimals: int = 1) -> str:
        """The score that the run is about, in words, out of the values of its record."""
        return f"test {self.recipe.metric_name} {values[self.recipe.metric]:.{decimals}f} %"

    @property
    def seconds(self) -> float | None:
        """How long it took when it was last made; none if it was not."""
        record = self.measurement.record()
        return record and record["seconds"]

    @cached_property
    def measurement(self) -> Measurement:
        recipe = asdict(self.recipe)
        for key in ("benchmark", "by_model", "model_args"):  # not of the training, or resolved already
            recipe.pop(key, None)
        spec = {
            "model": self.model,
            "model_args": self.all_model_args,
            "recipe": recipe,
            "profile": self.profile,
            "data": self.source.spec(),
            "seed": self.seed,
        }
        if self.start is not None:
            spec["start"] = self.start.fingerprint
        return Measurement("train", spec, self.revisions, self.modules)

    @property
    def revisions(self) -> dict[str, int]:
        """Behaviour -> revision of all that decides about the run: loop, task, data and model."""
        reader = READERS.get(self.source.reader, "frepro.data.loading")
        return {
            **revisions.declared(
                ["frepro.training.loop", f"frepro.tasks.{self.recipe.task}", "frepro.data.loading", reader]
            ),
            **revisions.of_model(self.model),
        }

    def evaluation(self, checkpoint: Start) -> Measurement:
        """The scores of a file's weights in place of those that the run would train."""
        spec = {**self.measurement.spec, "weights": checkpoint.fingerprint, "name": checkpoint.file.name}
        del spec["seed"]
        return Measurement("evaluate", spec, self.revisions, (*self.modules, "frepro.training.evaluate"))

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that it passes through."""
        return ("frepro.training.loop", f"frepro.tasks.{self.recipe.task}", *model_modules(self.model))


@dataclass(frozen=True)
class Throughput:
    """Images per second of one model.

    Attributes:
        group: The table whose models take turns, as "dfformer/table_4": rounds of another table are no pairs of these.
        device: "cpu" or "cuda".
        name: The device's name; a number of one machine is not another's.
    """

    group: str
    model: str
    model_args: dict[str, Any]
    benchmark: Benchmark
    device: str
    name: str

    @property
    def measurement(self) -> Measurement:
        # Faster code gives another number, and no wrong one: it is recorded, and no revision asks for new timings.
        return Measurement("throughput", asdict(self), modules=("frepro.analysis.cost", *model_modules(self.model)))


def model_modules(model: str) -> tuple[str, ...]:
    """Return the module of a model of ours; none for a model of timm."""
    own = provenance.own_models().get(model)
    return (own,) if own else ()


def code_of(modules: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """The code of modules and of models by module, each with its fingerprint; for models of timm its version."""
    own = provenance.own_models()
    code = provenance.code(*modules, *(own[model] for model in models if model in own))
    if all(model in own for model in models):
        return code
    return {**code, "timm": str(provenance.version("timm"))}


RUNS = "training runs"


def dependencies(runs: Sequence[Run], paper: str) -> dict[str, str]:
    """What a result takes from training runs, by name, each with a fingerprint: recipe, data, records, and the code of
    the models, whose trained networks it may look at."""
    recipes = {canonical([run.model, run.all_model_args, run.measurement.spec["recipe"]]) for run in runs}
    records = [record for run in runs if (record := run.measurement.record())]
    return {
        **code_of([], [run.model for run in runs]),
        f"recipe {paper}": provenance.sha256(*sorted(recipes)),
        "data": provenance.sha256(*sorted({canonical(run.source.spec()) for run in runs})),
        RUNS: provenance.sha256(*sorted(canonical([record["key"], record["values"]]) for record in records)),
    }
