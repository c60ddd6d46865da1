"""Plans of tables and figures: parameters, runs, and whether the result is up to date."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frepro import papers, paths, recipes, report
from frepro.data.sources import absolute, is_there, locate
from frepro.errors import FreproError, one_line, unknown
from frepro.experiment import Experiment, seed_records
from frepro.experiment.checks import AUTO, FIRST_SEEDS, LAST_SEEDS
from frepro.experiment.findings import from_csv
from frepro.experiment.trained_networks import Trained
from frepro.reproduce import downloads
from frepro.reproduce.artefacts import Artefact, shown
from frepro.reproduce.notebook import Notebook
from frepro.reproduce.staleness import (
    NOT_MADE,
    because,
    made_with_other_code,
    notebook_dependencies,
    pace,
    read_json,
    reasons_for,
)
from frepro.store import provenance, records
from frepro.training.progress import minutes
from frepro.training.runs import AUTHORS, Run, authors_weights, published_for

if TYPE_CHECKING:
    from frepro.models.published import Published

# Default seeds of a profile. A result with fewer seeds gets a folder of its own.
SEEDS = {"demo": [0, 1, 2]}


GENERAL = ("profile", "seeds", "models", "data", "device")


# Parameters that ``narrowed`` ignores: results that differ in them already have different folders, or are the same.
PLACES = ("profile", "data", "device", "output")


WEIGHTS = ("checkpoints", "backbones")


@dataclass(frozen=True)
class Plan:
    """The plan of a table.

    Attributes:
        parameters: Parameters that the notebook is executed with.
    """

    artefact: Artefact
    notebook: Notebook
    experiment: Experiment
    parameters: dict[str, Any]

    @property
    def profile(self) -> str:
        return self.experiment.profile

    @property
    def folder(self) -> Path:
        """The folder of the result: that of the profile, or a separate one for your own data or a narrowed run."""
        experiment, source = self.experiment, self.experiment.source
        name = experiment.profile
        if not (source.embedded or experiment.is_published_setting):
            name += f"-{source.name}-{source.fingerprint[:8]}"
        return self.artefact.folder(name + narrowed(self.notebook, self.parameters))

    @property
    def made_from(self) -> dict[str, str]:
        """Everything that the result is made from by name, each with a fingerprint."""
        own = notebook_dependencies(self.notebook, self.parameters, self.experiment.published, "frepro.report")
        return own | self.experiment.made_from

    @property
    def runs(self) -> list[Run]:
        """The training runs that the table depends on."""
        return self.experiment.runs

    @cached_property
    def missing(self) -> list[Run]:
        """The training runs that are not in the store."""
        return self.experiment.to_train()

    @cached_property
    def reasons(self) -> list[str]:
        """Why the table must be made again; empty if it is up to date."""
        reasons = reasons_for(self.made_from, self.folder, self.missing, not self.is_timed)
        if self.experiment.to_evaluate() and reasons != [NOT_MADE]:
            return ["weights have not been evaluated", *reasons]
        return reasons

    @property
    def is_current(self) -> bool:
        return not self.reasons

    @property
    def is_timed(self) -> bool:
        return self.experiment.is_timed()

    @property
    def is_open(self) -> bool:
        """Whether another seed could decide one of its claims, for a number of seeds that is chosen by results."""
        experiment = self.experiment
        if not experiment.is_sequential or len(experiment.seeds) >= LAST_SEEDS or experiment.to_train():
            return False
        return any(outcome.is_open for outcome in experiment.outcomes())

    def adopt(self) -> int:
        """Put the runs that are stored with the result into the store, and return how many were not there."""
        file = self.folder / seed_records.NAME
        return seed_records.adopt(file) if file.exists() else 0

    def with_another_seed(self) -> "Plan":
        """Return the plan with one more seed."""
        parameters = {**self.parameters, "seeds": f"{AUTO}:{len(self.experiment.seeds) + 1}"}
        return Plan(self.artefact, self.notebook, experiment_of(self.artefact, self.notebook, parameters), parameters)

    @property
    def downloads(self) -> "list[Published]":
        """The published weights that must still be downloaded."""
        return downloads.of(self.experiment)

    def time(self, log: Callable[[str], None] = print) -> None:
        """Time the models of the table, with the argument of ``Experiment.time``."""
        self.experiment.time(log)

    @cached_property
    def _origin(self) -> dict[str, Any]:
        """Runs and timings as stored with the last result; empty if there is none."""
        return read_json(self.folder / "origin.json")

    @cached_property
    def pace(self) -> tuple[float, str] | None:
        """Mean seconds of a training run, and on which processor (see ``staleness.pace``)."""
        return pace(self.experiment.runs, self._origin.get("runs", []))

    @property
    def timing_seconds(self) -> float | None:
        """Seconds that the timing took the last time; ``None`` if unknown."""
        seconds = {timing["key"]: timing["seconds"] for timing in self._origin.get("timings", [])}
        found = [seconds.get(timing.measurement.key) for timing in self.experiment.to_time()]
        known = [value for value in found if value is not None]
        return sum(known) if found and len(known) == len(found) else None

    @property
    def record(self) -> dict[str, Any]:
        return {}

    def run(self, *how: Any) -> None:
        """Train and time what is missing, with the arguments of ``Experiment.run``."""
        self.experiment.run(*how)

    def text(self) -> str:
        """Return the result as a table for a terminal."""
        findings = from_csv((self.folder / "findings.csv").read_text(encoding="utf-8"))
        experiment = self.experiment
        return report.summary(findings, experiment.published, experiment.own_metric, experiment.own_title).text()

    def describe(self, jobs: int | None) -> str:
        """Describe the plan in a few lines; ``jobs`` runs train in parallel, ``None`` for a default."""
        experiment = self.experiment
        jobs = jobs or experiment.default_jobs()
        lines = [
            f"{self.artefact.title}: profile {experiment.profile}, data {experiment.source}, "
            f"{len(experiment.seeds)} seed{'s' * (len(experiment.seeds) > 1)}"
            + (", more until all claims are decided" if experiment.is_sequential else "")
        ]
        lines.append(f"  {because(self.reasons)}")
        if self.is_current:
            return "\n".join(lines)
        done = len(experiment.runs) - len(self.missing)
        if experiment.is_of_authors:
            lines += downloads.describe(experiment)
        else:
            lines.append(f"  training runs: {done} cached, {len(self.missing)} to do, {jobs} in parallel")
        lines += made_with_other_code(experiment.runs)
        timed, to_time = len(experiment.measured), len(experiment.to_time())
        lines.append(f"  throughput of models at full size: {timed - to_time} cached, {to_time} to do")
        if self.missing:
            about = "unknown"
            if self.pace:
                seconds, cpu = self.pace
                about = f"about {minutes(seconds * len(self.missing) / jobs)} (estimated from runs on {cpu})"
            lines.append(f"  training time: {about}")
        lines.append(f"  result: {shown(self.folder)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class FigurePlan:
    """The plan of a figure: its notebook is executed again if anything that the notebook uses has changed.

    Attributes:
        parameters: Parameters that the notebook is executed with.
        trained: The trained networks that it analyses; ``None`` for a notebook without training runs.
        is_of_authors: Whether its checkpoints are published weights, which are downloaded.
    """

    artefact: Artefact
    notebook: Notebook
    parameters: dict[str, Any]
    trained: Trained | None = None
    is_of_authors: bool = False

    @property
    def profile(self) -> str:
        return self.parameters["profile"]

    @property
    def folder(self) -> Path:
        return self.artefact.folder(self.profile + narrowed(self.notebook, self.parameters))

    @property
    def code(self) -> str:
        return provenance.code_fingerprint("frepro.analysis.illustration", *self.notebook.modules)

    @property
    def made_from(self) -> dict[str, str]:
        """Everything that the result is made from by name, each with a fingerprint."""
        published = papers.load(self.artefact.paper).figures[self.artefact.number]
        own = notebook_dependencies(self.notebook, self.parameters, published, "frepro.analysis.illustration")
        states = {model: self._state(file) for model, file in self.checkpoints.items()}
        return (
            own
            | {f"checkpoint of {model}": provenance.sha256(records.canonical(state)) for model, state in states.items()}
            | self._benchmarks()
            | (self.trained.made_from if self.trained else {})
        )

    def _benchmarks(self) -> dict[str, str]:
        """Return a fingerprint of each stored benchmark by name; empty for a notebook that does not draw them."""
        if not any(name.startswith("frepro.bench") for name in self.notebook.modules):
            return {}
        files = sorted(paths.results().glob("bench/*/resolution.csv"))
        return {f"benchmark on {path.parent.name}": provenance.sha256(path.read_bytes()) for path in files}

    @property
    def checkpoints(self) -> dict[str, str]:
        """Model -> file of its weights; empty for a notebook that takes no such files."""
        return self.parameters.get("checkpoints") or {}

    @property
    def downloads(self) -> "list[Published]":
        """The published weights that must still be downloaded."""
        lacking = [model for model, file in self.checkpoints.items() if self.is_of_authors and not Path(file).exists()]
        return [published_for(model) for model in lacking]

    def fetch(self) -> None:
        """Download published weights; those that are there already are compared with their checksums."""
        if self.is_of_authors:
            for model in self.checkpoints:
                authors_weights(model)

    def _state(self, file: str) -> tuple[int, int]:
        """Return size and modification time of a file, to detect other weights under the same name."""
        if self.is_of_authors and not Path(file).exists():
            return 0, 0
        try:
            found = Path(file).stat()
        except OSError as error:
            raise FreproError(f"no checkpoint at {file}: give a .pth or .safetensors file") from error
        return found.st_size, found.st_mtime_ns

    @property
    def runs(self) -> list[Run]:
        """The training runs that the figure depends on."""
        return self.trained.runs if self.trained else []

    @cached_property
    def missing(self) -> list[Run]:
        """The training runs that are not in the store."""
        return self.trained.to_train() if self.trained else []

    @property
    def record(self) -> dict[str, Any]:
        runs = [{"run": run.title, "key": run.measurement.key} for run in self.runs]
        return {"code": self.code, "modules": self.notebook.modules, "runs": runs}

    @property
    def pace(self) -> tuple[float, str] | None:
        """Mean seconds of a training run, and on which processor (see ``staleness.pace``)."""
        return pace(self.runs, [])

    @cached_property
    def reasons(self) -> list[str]:
        """Why the figure must be made again; empty if it is up to date."""
        return reasons_for(self.made_from, self.folder, self.missing)

    @property
    def is_current(self) -> bool:
        return not self.reasons

    def describe(self, jobs: int | None) -> str:
        title = f"{self.artefact.title}: profile {self.profile}"
        if self.trained and self.runs:
            title += f", data {self.trained.source}"
        title += f"\n  {because(self.reasons)}"
        if self.is_current:
            return title
        runs = "no training runs"
        if self.trained and self.runs:
            jobs = jobs or self.trained.default_jobs()
            runs = f"{len(self.missing)} of {len(self.runs)} training runs, {jobs} in parallel"
            runs = "\n".join([runs, *made_with_other_code(self.runs)])
        fetched = "".join(f"\n{line}" for line in downloads.lines(self.downloads))
        return f"{title}{fetched}\n  to do: one notebook, {runs}\n  result: {shown(self.folder)}"

    def run(self, *how: Any) -> None:
        """Train what is missing, with the arguments of ``Trained.run``."""
        if self.trained:
            self.trained.run(*how)

    def text(self) -> str:
        """Return the numbers behind the figure for a terminal; for a drawing, its title in the paper."""
        path = self.folder / "values.csv"
        if not path.exists():
            return papers.title(papers.load(self.artefact.paper).figures[self.artefact.number])
        import pandas as pd

        return pd.read_csv(path).to_string(index=False, float_format="%.4g")


def narrowed(notebook: Notebook, parameters: dict[str, Any]) -> str:
    """Return the suffix of a profile's folder for a narrowed run; empty for a complete one.

    A run is narrowed if it has fewer seeds than the profile, or if a parameter that only this notebook has differs from
    its default. The suffix keeps a narrowed run from replacing a complete result.
    """
    defaults = notebook.parameters()
    given = {name: value for name, value in parameters.items() if name not in (*PLACES, *WEIGHTS, "seeds")}
    changed = {name: value for name, value in given.items() if value != defaults.get(name)}
    seeds = parameters.get("seeds") or ()
    is_fewer = not isinstance(seeds, str) and len(seeds) < len(SEEDS.get(parameters["profile"], ()))
    if is_fewer and "seeds" in defaults:
        changed["seeds"] = seeds
    parts = [f"{name}={value}" for name, value in changed.items()]
    text = re.sub(r"\W+", "-", "-".join(parts)).strip("-")
    return "" if not text else f"-{text}" if len(text) <= 60 else f"-{text[:40]}-{provenance.sha256(*parts)[:8]}"


def plan(artefact: Artefact, parameters: dict[str, Any]) -> Plan | FigurePlan:
    """Return the plan of an artefact with these parameters instead of the defaults of its notebook.

    Weights that the notebook does not have as parameters are ignored, and so are general parameters for a figure.
    ``data`` may name several data sets separated by commas; the artefact uses the first that its task can be trained
    on.
    """
    notebook = Notebook(artefact.notebook)
    known = notebook.parameters()
    optional = (*GENERAL, *WEIGHTS) if artefact.kind == "figure" else WEIGHTS
    parameters = {name: value for name, value in parameters.items() if name in known or name not in optional}
    notebook.check(parameters)
    merged = {**known, **parameters}
    # The notebook runs in another folder, so relative paths would not resolve.
    if isinstance(merged.get("data"), str):
        merged["data"] = absolute(fitting(merged["data"], notebook.task(artefact)))
    is_of_authors = merged.get("checkpoints") == AUTHORS
    for name in WEIGHTS:
        if merged.get(name) and merged[name] != "none":
            merged[name] = notebook.weights(merged[name], is_by_model=artefact.kind == "figure")
    if artefact.kind == "figure":
        if merged.get("seeds") == AUTO:  # a figure has no claims
            merged["seeds"] = SEEDS.get(merged["profile"], [0])
        if merged["profile"] not in recipes.PROFILES:
            raise unknown("profile", merged["profile"], recipes.PROFILES)
        return FigurePlan(artefact, notebook, merged, notebook.definition(merged), is_of_authors)
    is_grown = merged.get("seeds") == AUTO
    if is_grown:
        merged["seeds"] = f"{AUTO}:{FIRST_SEEDS}"
    found = Plan(artefact, notebook, experiment_of(artefact, notebook, merged), merged)
    # As many seeds as are stored and were needed, so that a finished table is found to be up to date.
    while is_grown and found.is_open and not (more := found.with_another_seed()).missing:
        found = more
    return found


def experiment_of(artefact: Artefact, notebook: Notebook, parameters: dict[str, Any]) -> Experiment:
    """Return the experiment that the notebook of a table defines with these parameters."""
    experiment = notebook.definition(parameters)
    if not isinstance(experiment, Experiment):
        raise FreproError(f"{shown(notebook.path)} defines no experiment: set one in a cell tagged 'experiment'")
    check_named(notebook, artefact, experiment.paper, "table", experiment.table)
    return experiment


def check_named(notebook: Notebook, artefact: Artefact, paper: str, kind: str, number: int) -> None:
    """Raise an error if a notebook makes another artefact than its path says."""
    if (paper, kind, number) != (artefact.paper, artefact.kind, artefact.number):
        raise FreproError(
            f"{shown(notebook.path)} makes {kind.capitalize()} {number} of {paper}, but its path is that of "
            f"{artefact.title}: correct the paper and number in the notebook"
        )


def fitting(data: str, task: str) -> str:
    """Return the first of several data sets, separated by commas, that a task can be trained on; a single one as it is.

    Raises:
        FreproError: One of several is empty, or none of them suits the task; the message has the reason for each.
    """
    named = parts(data)
    if len(named) == 1:
        return named[0]
    found = []
    for each in named:
        try:
            locate(each, task)
        except FreproError as error:
            found.append(one_line(error))
        else:
            return each
    raise FreproError(f"none of the {len(named)} data sets in DATA can be used for {task}: {'; '.join(found)}")


def parts(data: str) -> list[str]:
    """Split data sets at commas; an existing path that contains commas stays in one part.

    Raises:
        FreproError: A part before, between or after commas is empty.
    """
    words, named = data.split(","), []
    while words:
        joined = ((end, ",".join(words[:end])) for end in range(len(words), 0, -1))
        candidates = ((end, path) for end, text in joined for path in (text, text.strip()))
        end, path = next((found for found in candidates if is_there(found[1])), (1, words[0].strip()))
        if not path:
            raise FreproError(f"DATA {data!r} has an empty part: give one data set, or several separated by commas")
        named.append(path)
        words = words[end:]
    return named
