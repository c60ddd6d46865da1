"""Which tables and figures there are, which of them are stale, and how they are made anew.

An artefact is up to date when every run that it rests on is in the store, and its result was made from the same
notebook, parameters, published numbers, recipe, data and code; each of these is kept by name beside the result, so that
the plan can say why a result is stale. It tells all of that before anything runs, without importing torch; what it
costs to run is taken from how long the same runs took before. A table rests on an ``Experiment``; a
figure on what its notebook draws or measures itself, and so on the code that this notebook uses, and on the networks
that are ``Trained`` for it.
"""

import ast
import html
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.parse import quote

from frepro import papers, paths, provenance, recipes, report, results
from frepro.data.sources import absolute, is_there, locate
from frepro.errors import FreproError, one_line, unknown
from frepro.experiment import TASKS, Experiment, find_weights, from_csv
from frepro.progress import Stopwatch, minutes
from frepro.runs import RUNS, Run
from frepro.trained import Trained


@dataclass(frozen=True)
class Artefact:
    """A table or figure of a paper: ``kind`` is "table" or "figure"."""

    paper: str
    kind: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.number}"

    @property
    def title(self) -> str:
        return f"{self.kind.capitalize()} {self.number} of {self.paper}"

    @property
    def notebook(self) -> Path:
        return paths.notebook(self.paper, self.name)

    @property
    def is_built(self) -> bool:
        """Whether there is a notebook that makes it."""
        return self.notebook.exists()

    def folder(self, profile: str) -> Path:
        return paths.results() / profile / self.paper / self.name


def artefacts(paper: str | None = None) -> Iterator[Artefact]:
    """Every table and figure of one paper, or of all."""
    for name in [paper] if paper else papers.names():
        for artefact, _ in papers.load(name).artefacts():
            kind, _, number = artefact.partition("_")
            yield Artefact(name, kind, int(number))


def find(
    paper: str | None = None, table: int | None = None, figure: int | None = None
) -> tuple[list[Artefact], list[Artefact]]:
    """The artefacts asked for, of all papers unless one is named: those that can be made, and those not built yet.

    Raises:
        FreproError: There is no such table or figure, or no notebook makes it in any of the papers yet.
    """
    wanted = {("table", table), ("figure", figure)} - {("table", None), ("figure", None)}
    every = list(artefacts(paper))
    chosen = [a for a in every if not wanted or (a.kind, a.number) in wanted]
    for kind, number in sorted(wanted):
        if not any((a.kind, a.number) == (kind, number) for a in every):
            known = listed(a for a in every if a.kind == kind)
            where = f"paper {paper!r}" if paper else "any paper"
            raise FreproError(f"no {kind} {number} in {where}: there are {known}")
    ready, missing = [a for a in chosen if a.is_built], [a for a in chosen if not a.is_built]
    if not ready or {(a.kind, a.number) for a in ready} < wanted:
        can = listed(a for a in artefacts() if a.is_built) or "nothing yet"
        raise FreproError(f"not built yet: {listed(missing)}; what can be made: {can}")
    return ready, missing


def listed(chosen: Iterable[Artefact]) -> str:
    """Artefacts in one line: "Table 4 of dfformer, Tables 1-3, 5 and Figure 2 of spanet"."""
    parts = []
    for paper, of_paper in groupby(chosen, key=lambda a: a.paper):
        kinds = []
        for kind, of_kind in groupby(of_paper, key=lambda a: a.kind):
            numbers = [a.number for a in of_kind]
            kinds.append(f"{kind.capitalize()}{'s' * (len(numbers) > 1)} {ranges(numbers)}")
        parts.append(f"{' and '.join(kinds)} of {paper}")
    return ", ".join(parts)


def ranges(numbers: Sequence[int]) -> str:
    """Rising whole numbers, neighbours drawn together: 1, 2, 3, 5 as "1-3, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


# The tag of cells that invite the reader to change something: papermill leaves them out, and the tests run them.
SKIPPED = "skip-execution"


def _tags(cell: dict[str, Any]) -> Sequence[str]:
    return cell["metadata"].get("tags", ())


class Notebook:
    """A source notebook: its code, the defaults of its parameters, and the experiment that it defines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError, KeyError) as error:
            raise FreproError(f"{path} is not a notebook that can be read: {error}") from error

    @cached_property
    def fingerprint(self) -> str:
        return provenance.sha256(*("".join(cell["source"]) for cell in self.cells))

    @property
    def title(self) -> str:
        """Its first line, as "SPANet, Table 5: ablation of SPANet-S"."""
        return "".join(self.cells[0]["source"]).splitlines()[0].removeprefix("# ")

    def parameters(self) -> dict[str, Any]:
        """Name -> default of everything that the cell tagged ``parameters`` sets: plain values, as papermill needs."""
        values = {}
        try:
            for node in ast.parse("".join(self._tagged("parameters"))).body:
                if isinstance(node, ast.Assign):
                    values[node.targets[0].id] = ast.literal_eval(node.value)
        except (SyntaxError, ValueError, AttributeError) as error:
            raise FreproError(
                f"{shown(self.path)}: the cell tagged 'parameters' may only assign plain values (text, numbers, "
                f"lists): {error}"
            ) from error
        return values

    def definition(self, parameters: dict[str, Any]) -> Any:
        """Return the ``Experiment`` or ``Trained`` that the notebook defines with these parameters.

        It is what the notebook itself works with: its cells tagged ``parameters``, ``variants`` and ``experiment`` are
        run as they stand, with the parameters set in between. ``None`` for a notebook without such a cell.
        """
        if not any("experiment" in _tags(cell) for cell in self.cells):
            return None
        names: dict[str, Any] = {}
        for tag in ("parameters", "variants", "experiment"):
            code = "".join(self._tagged(tag))
            try:
                exec(compile(code, f"{shown(self.path)}, cell tagged {tag}", "exec"), names)
            except FreproError:
                raise
            except Exception as error:
                raise FreproError(f"{shown(self.path)}: the cell tagged {tag!r} failed: {one_line(error)}") from error
            if tag == "parameters":
                names |= parameters
        found = [names[name] for name in ("experiment", "trained") if isinstance(names.get(name), Experiment | Trained)]
        if not found:
            raise FreproError(f"{shown(self.path)}: the cell tagged 'experiment' sets no experiment and no trained")
        return found[0]

    def _tagged(self, tag: str) -> list[str]:
        """Return the lines of the cell with a tag."""
        cell = next((cell for cell in self.cells if tag in _tags(cell)), None)
        if cell is None:
            raise FreproError(f"{shown(self.path)} has no cell tagged {tag!r}")
        return cell["source"]

    @cached_property
    def code(self) -> ast.Module:
        cells = [cell for cell in self.cells if cell["cell_type"] == "code" and SKIPPED not in _tags(cell)]
        return ast.parse("\n".join("".join(cell["source"]) for cell in cells))

    @cached_property
    def modules(self) -> list[str]:
        """The frepro modules that its code imports, and those of the models that it names."""
        models = provenance.own_models()
        named = [node.value for node in ast.walk(self.code) if isinstance(node, ast.Constant)]
        named += [row.model for table in self.tables.values() for row in table.rows]
        used = {*provenance.imports(self.code), *(models[name] for name in named if name in models)}
        return sorted(used - provenance.NOT_FOLLOWED)

    @cached_property
    def tables(self) -> dict[str, papers.Table]:
        """The published tables that its code reads, by names as "Table 2 of spanet": those that it names as
        ``papers.load("spanet").tables[2]``; all of its paper where it reads them in another way."""
        if "frepro.papers" not in provenance.imports(self.code):
            return {}
        found = {}
        for node in ast.walk(self.code):
            match node:
                case ast.Subscript(
                    value=ast.Attribute(value=ast.Call(args=[ast.Constant(value=paper)]), attr="tables"),
                    slice=ast.Constant(value=number),
                ):
                    found[f"Table {number} of {paper}"] = papers.load(paper).tables[number]
        paper = self.path.parent.name
        return found or {f"Table {number} of {paper}": table for number, table in papers.load(paper).tables.items()}

    def task(self, artefact: Artefact) -> str:
        """What the models of an artefact are trained for."""
        item = dict(papers.load(artefact.paper).artefacts())[artefact.name]
        return TASKS.get(item.dataset, "classification")

    def weights(self, given: dict[str, str] | str, is_by_model: bool) -> dict[str, str] | str:
        """Weights with whole paths: as they were given, or those of a folder that its code names, by model."""
        if isinstance(given, dict):
            return {name: str(Path(file).absolute()) for name, file in given.items()}
        if not is_by_model:
            return str(Path(given).absolute())
        named = {node.value for node in ast.walk(self.code) if isinstance(node, ast.Constant)}
        tables = [table for paper in papers.names() for table in papers.load(paper).tables.values()]
        published = {row.model for table in tables for row in table.rows if row.model}
        models = sorted(named & {*provenance.own_models(), *published})
        found = {model: find_weights(given, model) for model in models}
        return {model: str(start.file) for model, start in found.items() if start}

    def check(self, parameters: dict[str, Any]) -> None:
        """Refuse parameters that the notebook does not have, of which papermill would only warn, or of another kind."""
        known = self.parameters()
        for name, value in parameters.items():
            if name not in known:
                raise unknown(f"parameter of {self.path.name}", name, known)
            if not fits(value, known[name], KINDS.get(name, ())):
                like = f"is given as {known[name]!r}" if known[name] is not None else "is left out"
                raise FreproError(f"{name} cannot be {value!r}: in {self.path.name} it {like}")


# Parameters whose default does not tell all that they can be.
KINDS = {
    "data": (str, type(None)),
    "models": (list, type(None)),
    "trained": (list, dict, type(None)),
    "checkpoints": (str, dict, type(None)),
    "backbones": (str, dict, type(None)),
    "photographs": (str, type(None)),
    "images": (dict, type(None)),
    "made_for": (int, type(None)),
    "output": (str, type(None)),
}


def fits(value: Any, default: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value may take the place of a parameter's default: of the kinds given, or of the default's own."""
    if isinstance(value, tuple):
        value = list(value)
    return type(value) in (kinds or (type(default), *((int,) if isinstance(default, float) else ())))


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
        own = notebook_ingredients(self.notebook, self.parameters, self.experiment.published, "frepro.report")
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
        return _read(self.folder / "origin.json")

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
        return provenance.code_fingerprint("frepro.illustration", *self.notebook.modules)

    @property
    def made_from(self) -> dict[str, str]:
        """Everything that the result is made from by name, each with a fingerprint."""
        published = papers.load(self.artefact.paper).figures[self.artefact.number]
        own = notebook_ingredients(self.notebook, self.parameters, published, "frepro.illustration")
        states = {model: self._state(file) for model, file in self.checkpoints.items()}
        return (
            own
            | {f"checkpoint of {model}": provenance.sha256(results.canonical(state)) for model, state in states.items()}
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


def notebook_ingredients(
    notebook: Notebook, parameters: dict[str, Any], published: papers.Table | papers.Figure, *modules: str
) -> dict[str, str]:
    """What the result of a notebook is made from, whatever it does, by name, each with a fingerprint.

    Args:
        published: What the paper prints of the artefact.
        modules: Code beside that which the notebook uses itself.
    """
    printed = [results.canonical(item) for item in (published, notebook.tables)]
    return {
        "notebook": notebook.fingerprint,
        "parameters": provenance.sha256(results.canonical(parameters)),
        "published values": provenance.sha256(*printed),
        **provenance.code(*modules, *notebook.modules),
    }


NOT_MADE = "not made yet"


def reasons_for(made_from: dict[str, str], folder: Path, missing: Sequence[Run], is_untimed: bool = False) -> list[str]:
    """Return why a result has to be made, of what is missing first; empty where it is up to date."""
    changed = changes(made_from, folder)
    if changed == [NOT_MADE]:
        return changed
    reasons = []
    if missing:
        reasons.append("training runs that it rests on are not in the store")
        changed = [reason for reason in changed if reason != f"{RUNS} changed"]
    if is_untimed:
        reasons.append("its models have not been timed on this device")
        changed = [reason for reason in changed if reason != "timings changed"]
    return [*reasons, *changed]


# What a profile takes where nothing is said; fewer seeds narrow a result.
SEEDS = {"demo": [0, 1, 2]}


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


def changes(made_from: dict[str, str], folder: Path) -> list[str]:
    """Why the result in a folder is not what would be made from these parts; empty where it is whole and is."""
    made = _read(folder / "provenance.json")
    if not made:
        return [NOT_MADE]
    if gone := [name for name in made.get("files", []) if not (folder / name).exists()]:
        return [f"{name} is missing" for name in gone]
    before = made.get("made_from")
    if before is None:
        return ["made by an earlier frepro, which did not note from what"]
    changed = [name for name in {**made_from, **before} if made_from.get(name) != before.get(name)]
    return [f"{'code of ' if name.startswith('frepro.') else ''}{name} changed" for name in changed]


def because(reasons: Sequence[str]) -> str:
    """The reasons in one line; of many the first."""
    if not reasons:
        return "up to date: nothing has changed since it was made"
    if list(reasons) == [NOT_MADE]:
        return NOT_MADE
    more = f" and {len(reasons) - 4} more" if len(reasons) > 5 else ""
    return f"stale: {', '.join(reasons[:4] if more else reasons)}{more}"


def made_with_other_code(runs: Sequence[Run]) -> list[str]:
    """Return a line on what has changed since stored runs were made; they are used as they are."""
    records = [(run, record) for run in runs if (record := run.measurement.record())]
    changed = [found for run, record in records if (found := run.measurement.changed_since(record))]
    if not changed:
        return []
    names = dict.fromkeys(name for found in changed for name in found)
    more = f" and {len(names) - 4} more" if len(names) > 5 else ""
    shown_names = ", ".join([*names][: 4 if more else None])
    return [f"    {len(changed)} of them made with other code: {shown_names}{more} (RETRAIN=1 makes them again)"]


def pace(runs: Sequence[Run], before: Sequence[dict[str, Any]]) -> tuple[float, str] | None:
    """Mean seconds of training runs when they were last made, and on what machine; none where nothing tells.

    Args:
        before: The runs of the last result, for where the store has none.
    """
    stored = [found for run in runs if (found := run.measurement.record())]
    known = [(found["seconds"], found["provenance"]["machine"]["cpu"]) for found in stored]
    known = known or [(run["seconds"], run["origin"]["machine"]["cpu"]) for run in before]
    return (mean(seconds for seconds, _ in known), known[0][1]) if known else None


def rendered_in(folder: Path) -> float | None:
    """Seconds that the notebook of a result took; none where there is none, or an earlier frepro made it."""
    return _read(folder / "provenance.json").get("seconds")


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def shown(path: Path) -> str:
    """A path as people like to read it: relative to the current folder where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


GENERAL = ("profile", "seeds", "models", "data", "device")
# General parameters that another folder, or nothing, tells apart.
PLACES = ("profile", "data", "device", "output")
WEIGHTS = ("checkpoints", "backbones")


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


def make(
    job: Plan | FigurePlan, jobs: int | None, per_device: int | None, workers: int | None, log: Callable[[str], None]
) -> None:
    """Run what is missing, then the notebook, and put its result in place of the old one."""
    job.run(jobs, per_device, workers, log)
    log(f"running {shown(job.notebook.path)}")
    render(job)


def render(job: Plan | FigurePlan) -> float:
    """Execute the notebook of a plan of which nothing is missing, and put its result in place of the old one.

    Returns:
        The seconds that it took.
    """
    watch = Stopwatch()
    with results.replaced(job.folder) as fresh:
        executed = fresh / job.notebook.path.name
        execute(job.notebook, {**job.parameters, "output": "."}, executed, kept=job.folder)
        if named := _read(fresh / "origin.json"):
            kind = "table" if "table" in named else "figure"
            check_named(job.notebook, job.artefact, named["paper"], kind, named[kind])
        shown_parameters, names = without_paths(job)
        _forget_paths(executed, {**shown_parameters, "output": "."}, names)
        made = {
            "made_from": job.made_from,
            "parameters": shown_parameters,
            "files": sorted(path.name for path in fresh.iterdir()),
            "seconds": round(watch.seconds, 1),
            **job.record,
            **provenance.record(),
        }
        results.write_text(fresh / "provenance.json", json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    for kind in ("ipynb", "txt"):  # of an earlier try
        job.folder.with_name(f"{job.folder.name}.failed.{kind}").unlink(missing_ok=True)
    return watch.seconds


def without_paths(job: Plan | FigurePlan) -> tuple[dict[str, Any], dict[str, str]]:
    """The parameters of a plan without a path of this machine, and each path with the name that stands in its place:
    of data the data set's, of others the file's or folder's.
    """
    names = {str(paths.results()): "results", str(paths.ROOT): "frepro"}

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: of(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [of(each) for each in value]
        if isinstance(value, str) and os.path.isabs(value):
            names[value] = Path(value).name
            return names[value]
        return value

    shown_parameters = of(job.parameters)
    for given in (job.parameters.get(name) for name in WEIGHTS):
        if isinstance(given, dict):
            names |= {str(folder): folder.name for folder in {Path(file).parent for file in given.values()}}
    if "data" in job.parameters and (isinstance(job, Plan) or job.parameters["data"]):
        source = locate(job.parameters["data"], job.notebook.task(job.artefact))
        shown_parameters["data"] = source.name
        if source.root:
            names[source.root] = source.name
    return shown_parameters, names


def execute(notebook: Notebook, parameters: dict[str, Any], output: Path, kept: Path) -> None:
    """Execute a notebook into ``output`` by papermill, in the folder of ``output``.

    Raises:
        FreproError: A parameter is unknown, Jupyter is not installed, or a cell failed; the notebook as far as it came
            is then beside ``kept``.
    """
    notebook.check(parameters)
    try:
        import papermill
        from papermill.exceptions import PapermillException
    except ImportError as error:
        raise FreproError("notebooks need Jupyter and papermill: pip install -e '.[book]'") from error
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")])),
        "FREPRO_RESULTS": str(paths.results()),
    }
    try:
        with _environment(environment):
            papermill.execute_notebook(
                str(notebook.path),
                str(output),
                parameters,
                kernel_name="python3",  # of the running environment, whatever the notebook's author had
                progress_bar=False,
                cwd=str(output.parent),
                request_save_on_cell_execute=False,
                start_timeout=600,  # seconds: the kernel imports torch before it answers
                shutdown_kernel="immediate",  # asked to stop amid a cell it would print what broke
                extra_arguments=[
                    "--IPKernelApp.log_level=ERROR",
                    f"--IPKernelApp.exec_lines=__import__('frepro.processes').processes.end_with({os.getpid()})",
                ],
            )
    except PapermillException as error:
        failed = kept.with_name(f"{kept.name}.failed.ipynb")
        if output.exists():
            shutil.copy(output, failed)
        cause = getattr(error, "evalue", None) or str(error)
        raise FreproError(f"{shown(notebook.path)} failed: {cause.splitlines()[0]} (see {shown(failed)})") from error


def _forget_paths(path: Path, parameters: dict[str, Any], names: dict[str, str]) -> None:
    """Take paths, clock times and warnings of this machine out of an executed notebook; its provenance stands apart.

    Args:
        parameters: What the cell of injected parameters is to show.
        names: What is to stand in place of each path.
    """
    from papermill.translators import PythonTranslator

    executed = json.loads(path.read_text(encoding="utf-8"))
    executed["metadata"].pop("papermill", None)
    for cell in executed["cells"]:
        cell["metadata"].pop("papermill", None)
        cell["metadata"].pop("execution", None)
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
        if "injected-parameters" in cell["metadata"].get("tags", ()):
            cell["source"] = PythonTranslator.codify(parameters).splitlines(keepends=True)
    executed["cells"] = _replaced(executed["cells"], names)
    results.write_text(path, json.dumps(executed, indent=1, ensure_ascii=False) + "\n")


def _replaced(value: Any, names: dict[str, str]) -> Any:
    """Some JSON with the name of each path in its place, wherever in a text it stands and however it is spelled."""
    spelled = {form: name for path, name in names.items() for form in _spellings(path)}
    # A path as short as /data is one only where nothing around makes it part of another.
    forms = [
        re.escape(form) if form.count("/") > 1 else rf"(?<![\w.~/-]){re.escape(form)}(?![\w.-])"
        for form in sorted(spelled, key=len, reverse=True)
    ]
    pattern = re.compile("|".join(forms))

    def of(item: Any) -> Any:
        match item:
            case str():
                return pattern.sub(lambda found: spelled[found[0]], item)
            case list():
                return [of(each) for each in item]
            case dict():  # pictures are base64, in which a short path may stand by chance
                return {key: each if key in PICTURES else of(each) for key, each in item.items()}
        return item

    return of(value)


PICTURES = ("image/png", "image/jpeg", "application/pdf")


def _spellings(path: str) -> set[str]:
    """A path as it is, without symbolic links, and as Python, JSON, HTML, a URL and a shell write it."""
    found = set()
    for each in {path, os.path.realpath(path)} - {os.sep}:
        found |= {
            each,
            repr(each)[1:-1],
            json.dumps(each)[1:-1],
            json.dumps(each, ensure_ascii=False)[1:-1],
            html.escape(each),
            html.escape(each, quote=False),
            quote(each),
            shlex.quote(each),
        }
    return found


class _environment:  # noqa: N801 - used like a function
    """os.environ for a while."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values

    def __enter__(self) -> None:
        self.before = dict(os.environ)
        os.environ.update(self.values)

    def __exit__(self, *_: object) -> None:
        os.environ.clear()
        os.environ.update(self.before)
