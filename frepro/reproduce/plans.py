"""What making a table or figure takes: its parameters, its runs, and whether its result is up to date."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from frepro import papers, paths, recipes, report
from frepro.data.sources import absolute, is_there, locate
from frepro.errors import FreproError, one_line, unknown
from frepro.experiment import Experiment
from frepro.experiment.findings import from_csv
from frepro.experiment.trained_networks import Trained
from frepro.reproduce.artefacts import Artefact, shown
from frepro.reproduce.notebook import Notebook
from frepro.reproduce.staleness import (
    because,
    made_with_other_code,
    notebook_dependencies,
    pace,
    read_json,
    reasons_for,
)
from frepro.store import provenance, records
from frepro.training.progress import minutes
from frepro.training.runs import Run

# What a profile takes where nothing is said; fewer seeds narrow a result.
SEEDS = {"demo": [0, 1, 2]}


GENERAL = ("profile", "seeds", "models", "data", "device")


# General parameters that another folder, or nothing, tells apart.
PLACES = ("profile", "data", "device", "output")


WEIGHTS = ("checkpoints", "backbones")


@dataclass(frozen=True)
class Plan:
    """What making a table takes.

    Attributes:
        parameters: What the notebook is run with.
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
        """Where the result goes: the profile's folder; one of its own for a user's data, and for a narrowed run."""
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
        """The training runs that it rests on."""
        return self.experiment.runs

    @cached_property
    def missing(self) -> list[Run]:
        """Those that are not in the store."""
        return self.experiment.to_train()

    @cached_property
    def reasons(self) -> list[str]:
        """Why it has to be made anew; none where it is up to date."""
        return reasons_for(self.made_from, self.folder, self.missing, not self.is_timed)

    @property
    def is_current(self) -> bool:
        return not self.reasons

    @property
    def is_timed(self) -> bool:
        return self.experiment.is_timed()

    def time(self) -> None:
        """Time its models."""
        self.experiment.time()

    @cached_property
    def _origin(self) -> dict[str, Any]:
        """What its last result says of the runs and the timing; empty where there is none."""
        return read_json(self.folder / "origin.json")

    @cached_property
    def pace(self) -> tuple[float, str] | None:
        """As ``pace`` has it of its training runs."""
        return pace(self.experiment.runs, self._origin.get("runs", []))

    @property
    def timing_seconds(self) -> float | None:
        """How long its timing took when it was last made."""
        seconds = {timing["key"]: timing["seconds"] for timing in self._origin.get("timings", [])}
        found = [seconds.get(timing.measurement.key) for timing in self.experiment.to_time()]
        return sum(found) if found and None not in found else None

    @property
    def record(self) -> dict[str, Any]:
        return {}

    def run(self, *how: Any) -> None:
        """Train and time what is missing; ``how`` is that of ``Experiment.run``."""
        self.experiment.run(*how)

    def text(self) -> str:
        """The result as a table for a terminal."""
        findings = from_csv((self.folder / "findings.csv").read_text(encoding="utf-8"))
        experiment = self.experiment
        return report.summary(findings, experiment.published, experiment.own_metric, experiment.own_title).text()

    def describe(self, jobs: int | None) -> str:
        """The plan in a few lines; ``jobs`` training runs at a time, none for as many as suit the machine."""
        experiment = self.experiment
        jobs = jobs or experiment.default_jobs()
        lines = [
            f"{self.artefact.title}: profile {experiment.profile}, data {experiment.source}, "
            f"{len(experiment.seeds)} seed{'s' * (len(experiment.seeds) > 1)}"
        ]
        lines.append(f"  {because(self.reasons)}")
        if self.is_current:
            return "\n".join(lines)
        done = len(experiment.runs) - len(self.missing)
        lines.append(f"  training runs: {done} cached, {len(self.missing)} to do, {jobs} at a time")
        lines += made_with_other_code(experiment.runs)
        timed, to_time = len(experiment.measured), len(experiment.to_time())
        lines.append(f"  throughput of models at full size: {timed - to_time} cached, {to_time} to do")
        if self.missing:
            about = "not known yet"
            if self.pace:
                seconds, cpu = self.pace
                about = f"about {minutes(seconds * len(self.missing) / jobs)} (as on {cpu})"
            lines.append(f"  training time: {about}")
        lines.append(f"  result: {shown(self.folder)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class FigurePlan:
    """What making a figure takes: its notebook run anew, if anything that the notebook uses has changed.

    Attributes:
        parameters: What the notebook is run with.
        trained: The networks that it looks at; none for a notebook that rests on no training runs.
    """

    artefact: Artefact
    notebook: Notebook
    parameters: dict[str, Any]
    trained: Trained | None = None

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
        """The stored results of the benchmark by name, of a notebook that draws them."""
        if not any(name.startswith("frepro.bench") for name in self.notebook.modules):
            return {}
        files = sorted(paths.results().glob("bench/*/resolution.csv"))
        return {f"benchmark on {path.parent.name}": provenance.sha256(path.read_bytes()) for path in files}

    @property
    def checkpoints(self) -> dict[str, str]:
        """Model -> file with its weights, of a notebook that takes such files."""
        return self.parameters.get("checkpoints") or {}

    @staticmethod
    def _state(file: str) -> tuple[int, int]:
        """Size and time of change of a file, so that other weights under the same name are seen."""
        try:
            found = Path(file).stat()
        except OSError as error:
            raise FreproError(f"no checkpoint at {file}: give a .pth or .safetensors file") from error
        return found.st_size, found.st_mtime_ns

    @property
    def runs(self) -> list[Run]:
        """The training runs that it rests on."""
        return self.trained.runs if self.trained else []

    @cached_property
    def missing(self) -> list[Run]:
        """Those that are not in the store."""
        return self.trained.to_train() if self.trained else []

    @property
    def record(self) -> dict[str, Any]:
        runs = [{"run": run.title, "key": run.measurement.key} for run in self.runs]
        return {"code": self.code, "modules": self.notebook.modules, "runs": runs}

    @property
    def pace(self) -> tuple[float, str] | None:
        """As ``pace`` has it of its training runs."""
        return pace(self.runs, [])

    is_timed = True

    @cached_property
    def reasons(self) -> list[str]:
        """Why it has to be made anew; none where it is up to date."""
        return reasons_for(self.made_from, self.folder, self.missing)

    @property
    def is_current(self) -> bool:
        return not self.reasons

    def describe(self, jobs: int | None) -> str:
        title = f"{self.artefact.title}: profile {self.profile}"
        if self.runs:
            title += f", data {self.trained.source}"
        title += f"\n  {because(self.reasons)}"
        if self.is_current:
            return title
        runs = "no training runs"
        if self.runs:
            jobs = jobs or self.trained.default_jobs()
            runs = f"{len(self.missing)} of {len(self.runs)} training runs, {jobs} at a time"
            runs = "\n".join([runs, *made_with_other_code(self.runs)])
        return f"{title}\n  to do: one notebook, {runs}\n  result: {shown(self.folder)}"

    def run(self, *how: Any) -> None:
        """Train what is missing; ``how`` is that of ``Trained.run``."""
        if self.trained:
            self.trained.run(*how)

    def text(self) -> str:
        """The numbers behind the figure for a terminal; of a drawing, its title in the paper."""
        path = self.folder / "values.csv"
        if not path.exists():
            return papers.title(papers.load(self.artefact.paper).figures[self.artefact.number])
        import pandas as pd

        return pd.read_csv(path).to_string(index=False, float_format="%.4g")


def narrowed(notebook: Notebook, parameters: dict[str, Any]) -> str:
    """Return what is added to the name of a profile's folder for a run that shows less, or other, than the notebook.

    That is one of fewer seeds than the profile has, or with a parameter of the notebook's own that is not its default.
    So no such run replaces a whole result.
    """
    defaults = notebook.parameters()
    given = {name: value for name, value in parameters.items() if name not in (*PLACES, *WEIGHTS, "seeds")}
    changed = {name: value for name, value in given.items() if value != defaults.get(name)}
    if len(parameters.get("seeds") or ()) < len(SEEDS.get(parameters["profile"], ())) and "seeds" in defaults:
        changed["seeds"] = parameters["seeds"]
    parts = [f"{name}={value}" for name, value in changed.items()]
    text = re.sub(r"\W+", "-", "-".join(parts)).strip("-")
    return "" if not text else f"-{text}" if len(text) <= 60 else f"-{text[:40]}-{provenance.sha256(*parts)[:8]}"


def plan(artefact: Artefact, parameters: dict[str, Any]) -> Plan | FigurePlan:
    """The plan for an artefact with these parameters in place of the notebook's defaults.

    Of the general parameters a figure takes those that its notebook has, of weights every artefact does. ``data`` may
    name several data sets, with commas between them; an artefact takes the first that its task can learn from.
    """
    notebook = Notebook(artefact.notebook)
    known = notebook.parameters()
    optional = (*GENERAL, *WEIGHTS) if artefact.kind == "figure" else WEIGHTS
    parameters = {name: value for name, value in parameters.items() if name in known or name not in optional}
    notebook.check(parameters)
    merged = {**known, **parameters}
    # The notebook runs in another folder.
    if isinstance(merged.get("data"), str):
        merged["data"] = absolute(fitting(merged["data"], notebook.task(artefact)))
    for name in WEIGHTS:
        if merged.get(name) and merged[name] != "none":
            merged[name] = notebook.weights(merged[name], is_by_model=artefact.kind == "figure")
    if artefact.kind == "figure":
        if merged["profile"] not in recipes.PROFILES:
            raise unknown("profile", merged["profile"], recipes.PROFILES)
        return FigurePlan(artefact, notebook, merged, notebook.definition(merged))
    experiment = notebook.definition(merged)
    if not isinstance(experiment, Experiment):
        raise FreproError(f"{shown(notebook.path)} defines no experiment in a cell tagged 'experiment'")
    check_named(notebook, artefact, experiment.paper, "table", experiment.table)
    return Plan(artefact, notebook, experiment, merged)


def check_named(notebook: Notebook, artefact: Artefact, paper: str, kind: str, number: int) -> None:
    """Raise where a notebook makes another artefact than the one that its place stands for."""
    if (paper, kind, number) != (artefact.paper, artefact.kind, artefact.number):
        raise FreproError(
            f"{shown(notebook.path)} makes {kind.capitalize()} {number} of {paper}, and its place is that of "
            f"{artefact.title}: change the paper and the number in it"
        )


def fitting(data: str, task: str) -> str:
    """Of several data sets, with commas between them, the first that a task can learn from; of one, that.

    Raises:
        FreproError: One of several has no name, or a task can learn from none of them; it names each.
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
    raise FreproError(f"none of the {len(named)} data sets of DATA is there for {task}: {'; '.join(found)}")


def parts(data: str) -> list[str]:
    """The data sets that a text names with commas between them; where a path that is there has commas, it is one.

    Raises:
        FreproError: There is nothing before, between or after commas.
    """
    words, named = data.split(","), []
    while words:
        joined = ((end, ",".join(words[:end])) for end in range(len(words), 0, -1))
        candidates = ((end, path) for end, text in joined for path in (text, text.strip()))
        end, path = next((found for found in candidates if is_there(found[1])), (1, words[0].strip()))
        if not path:
            raise FreproError(f"DATA {data!r} has an empty part: name a data set, or several with a comma between two")
        named.append(path)
        words = words[end:]
    return named
