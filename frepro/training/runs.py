"""Specifications of what is measured: training runs and throughput. Plain descriptions; nothing here imports torch."""

import errno
import stat
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frepro import papers, paths
from frepro.data.sources import IDX, Source
from frepro.errors import FreproError
from frepro.recipes import Benchmark, Recipe
from frepro.store import provenance, records, revisions
from frepro.store.records import Measurement, canonical

if TYPE_CHECKING:
    from frepro.models.published import Published

# The modules that create or read data, by the source's reader; ``data.loading`` handles all others.
READERS = {
    "folder": "frepro.data.listing",
    "list": "frepro.data.lists",
    **dict.fromkeys(IDX, "frepro.data.idx"),
    "textured": "frepro.data.compositions",
    "textured-validation": "frepro.data.compositions",
    "cues": "frepro.data.compositions",
    "scenes": "frepro.data.scenes",
    "coco": "frepro.data.coco",
    "ade20k": "frepro.data.ade20k",
}
# The maximum of one kind on one machine. A larger number is a typing error and would only exhaust the machine.
MOST_PROCESSES = 1024
# The file of a run's trained weights, and the name that stands for a model's published weights.
WEIGHTS, AUTHORS = "model.safetensors", "authors"
# The file that tells which test images a classifier got right: an array of bits, packed by ``numpy.packbits``.
CORRECT = "correct.npy"


@dataclass(frozen=True)
class Start:
    """Weights that a network or its backbone starts from; the location of the file does not matter."""

    file: Path = field(compare=False)
    fingerprint: str

    @classmethod
    def of(cls, file: Path) -> "Start":
        """Return the weights in a file.

        Raises:
            FreproError: There is no such file, or a run has stored it and it has changed since.
        """
        try:
            if not stat.S_ISREG(file.stat().st_mode):  # opening a FIFO would wait for a writer
                raise OSError(errno.EINVAL, "not a file")
            records.check_weights(file)
            return cls(file.absolute(), records.sha256_of_file(file)[:16])
        except (OSError, ValueError) as error:  # ValueError: a null byte
            reason = getattr(error, "strerror", None) or error
            raise FreproError(f"no weights at {file}: {reason}: give a .pth or .safetensors file") from error

    @classmethod
    def named(cls, given: str, model: str) -> "Start":
        """Return the weights that a user names: a file, a run's folder or key, or "authors" for those of a model.

        Raises:
            FreproError: There are no such weights.
        """
        if given == AUTHORS:
            return cls.of(authors_weights(model))
        path = Path(given)
        if not path.exists() and path.name == given:  # no path, so perhaps the key of a run
            path = paths.results() / "runs" / given
            if not path.is_dir():
                raise FreproError(
                    f"no weights at {given}: give a .pth or .safetensors file, the folder or key of a run, or {AUTHORS}"
                )
        if not path.is_dir():
            return cls.of(path)
        if not (path / WEIGHTS).exists():
            raise FreproError(f"{path} has no {WEIGHTS}: give the folder of a run that is done, or a file of weights")
        return cls.of(path / WEIGHTS)


def authors_weights(model: str) -> Path:
    """Return the file of the weights that a model's authors published, which is downloaded unless it is there already.

    Raises:
        FreproError: None are published for this very model, or they cannot be fetched.
    """
    from frepro.models import published  # imports torch

    found = published_for(model)
    if found.url is None:
        raise published.unavailable(model)
    return published.fetch(found.model, found.url)


def published_for(model: str) -> "Published":
    """Return the weights that fit a model exactly; without address if there are none.

    For a model of timm, with or without a tag, these are by default the weights that the papers' tables name.
    """
    from frepro.models import published

    name, _, tag = model.partition(".")
    if name in provenance.own_models():
        found = published.of_model(name)[0]
        return found if found.model == name else published.Published(name, None, "only for the released code")
    tag = tag or papers.weights().get(name, "")
    return published.of_timm(name, tag) if tag else published.of_model(name)[0]


@dataclass(frozen=True)
class Run:
    """One training run: a model, a recipe in a profile, data and a seed. Equal runs are executed once.

    ``recipe`` is resolved for the model, and also determines the task. For a detector or segmenter, ``model`` is the
    backbone. ``model_args`` are those of the variant; the recipe's (which make models small for embedded data) are
    added.

    Attributes:
        start: Weights that the network starts from: those of a file, or those that another run trains. ``None`` for
            random weights.
    """

    model: str
    recipe: Recipe
    profile: str
    source: Source
    seed: int
    model_args: dict[str, Any] = field(default_factory=dict)
    start: "Start | Run | None" = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipe", self.recipe.of(self.model))

    @property
    def all_model_args(self) -> dict[str, Any]:
        return {**self.recipe.model_args, **self.model_args}

    @property
    def title(self) -> str:
        arguments = "".join(f", {key}={value}" for key, value in self.model_args.items())
        whole = f" in {self.recipe.network}" if self.recipe.network else ""
        return f"{self.model}{whole}{arguments}, seed {self.seed}"

    @property
    def reduced(self) -> str:
        """How the recipe makes the model small, as "depths=[1, 1, 2, 1]"; empty for a model of full size."""
        return ", ".join(f"{key}={value}" for key, value in self.recipe.model_args.items())

    @property
    def name(self) -> str:
        """The title, which also says whether the model is a reduced one."""
        return f"reduced {self.title}" if self.reduced else self.title

    def initial_weights(self) -> Start | None:
        """Return the file of weights that the network starts from; ``None`` for random weights.

        Raises:
            FreproError: They are those of another run, which has not stored them, or whose file has changed.
        """
        if not isinstance(self.start, Run):
            return self.start
        folder = self.start.measurement.folder
        if self.start.own_record() is None or not (folder / WEIGHTS).exists():
            raise FreproError(
                f"{self.title} starts from {self.start.title}, but {folder} has no {WEIGHTS}: delete that folder and "
                "run the same command again, which trains it"
            )
        return Start.of(folder / WEIGHTS)

    def score_line(self, values: dict[str, Any]) -> str:
        """Return the run's main metric in words, from the values of its record."""
        metric = self.recipe.main_metric()
        return f"test {metric.label} {metric.quantity(values[metric.name])}"

    @property
    def seconds(self) -> float | None:
        """Duration of the stored run; ``None`` if there is none."""
        record = self.measurement.record()
        return None if record is None else record["seconds"]

    def own_record(self) -> dict[str, Any] | None:
        """Return the record if the run was made in this store, with its weights; an adopted one has none."""
        record = self.measurement.record()
        return None if record is None or record.get("adopted") else record

    def correct(self) -> Any:
        """Return which test images the trained classifier got right, as booleans (test images,) in their order.

        ``None`` if there is no file that fits the record: for runs of earlier versions of frepro, other tasks, and
        evaluations that left out damaged images.
        """
        import numpy as np

        record = self.measurement.record()
        try:
            packed = np.load(self.measurement.folder / CORRECT)
        except (OSError, ValueError, EOFError):
            return None
        if record is None or packed.dtype != np.uint8:
            return None
        images, score = (record["values"].get(name) for name in ("test_images", self.recipe.main_metric().name))
        if images is None or score is None or packed.shape != (-(-images // 8),):
            return None
        found = np.unpackbits(packed, count=images).astype(bool)
        return found if found.sum() == round(score / 100 * images) else None

    @cached_property
    def measurement(self) -> Measurement:
        recipe = asdict(self.recipe)
        for key in ("benchmark", "by_model", "model_args"):  # not part of training, or already resolved
            recipe.pop(key, None)
        spec = {
            "model": self.model,
            "model_args": self.all_model_args,
            "recipe": recipe,
            "profile": self.profile,
            "data": self.source.spec(),
            "seed": self.seed,
        }
        if isinstance(self.start, Run):  # what it is asked to train, since its weights may not exist yet
            spec["start"] = {"run": self.start.measurement.key}
        elif self.start is not None:
            spec["start"] = self.start.fingerprint
        return Measurement("train", spec, self.revisions, self.modules)

    @property
    def revisions(self) -> dict[str, int]:
        """Behaviour -> revision, for everything that affects the run: loop, task, data and model."""
        reader = READERS.get(self.source.reader, "frepro.data.loading")
        return {
            **revisions.declared(
                ["frepro.training.loop", f"frepro.tasks.{self.recipe.task}", "frepro.data.loading", reader]
            ),
            **revisions.of_model(self.model),
        }

    def evaluation(self, checkpoint: Start) -> Measurement:
        """Return the measurement of a file's weights in place of those that the run would train."""
        spec = {**self.measurement.spec, "weights": checkpoint.fingerprint, "name": checkpoint.file.name}
        del spec["seed"]
        return Measurement("evaluate", spec, self.revisions, (*self.modules, "frepro.training.evaluate"))

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules whose code the run executes."""
        return ("frepro.training.loop", f"frepro.tasks.{self.recipe.task}", *model_modules(self.model))


def with_starts(runs: Iterable[Run]) -> list[Run]:
    """Return runs and the runs that they start from, each once, and each after the one that it starts from."""
    runs = list(runs)
    starts = [run.start for run in runs if isinstance(run.start, Run)]
    if not starts:
        return runs
    return list({run.measurement.key: run for run in [*with_starts(starts), *runs]}.values())


@dataclass(frozen=True)
class Throughput:
    """Throughput of one model, in images per second.

    Attributes:
        group: The table whose models are timed in interleaved rounds, such as "dfformer/table_4"; rounds of different
            tables are not paired.
        device: "cpu" or "cuda".
        name: The device's name; a timing is valid for one machine only.
    """

    group: str
    model: str
    model_args: dict[str, Any]
    benchmark: Benchmark
    device: str
    name: str

    @property
    def measurement(self) -> Measurement:
        # Faster code does not make an earlier timing wrong: code is recorded, but no revision requires new timings.
        return Measurement("throughput", asdict(self), modules=("frepro.analysis.cost", *model_modules(self.model)))


def model_modules(model: str) -> tuple[str, ...]:
    """Return the module of one of our models; nothing for one of timm's."""
    own = provenance.own_models().get(model)
    return (own,) if own else ()


def code_of(modules: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """Return module -> fingerprint for the code of modules and models; timm's models are covered by timm's version."""
    own = provenance.own_models()
    code = provenance.code(*modules, *(own[model] for model in models if model in own))
    if all(model in own for model in models):
        return code
    return {**code, "timm": str(provenance.version("timm"))}


RUNS = "training runs"


def dependencies(runs: Sequence[Run], paper: str) -> dict[str, str]:
    """Return what a result takes from training runs, name -> fingerprint: recipe, data, records, and the models' code.

    The code of the models is included because a result may look at trained networks.
    """
    recipes = {canonical([run.model, run.all_model_args, run.measurement.spec["recipe"]]) for run in runs}
    records = [record for run in runs if (record := run.measurement.record())]
    return {
        **code_of([], [run.model for run in runs]),
        f"recipe {paper}": provenance.sha256(*sorted(recipes)),
        "data": provenance.sha256(*sorted({canonical(run.source.spec()) for run in runs})),
        RUNS: provenance.sha256(*sorted(canonical([record["key"], record["values"]]) for record in records)),
    }
