"""A source notebook: its code, its parameters, and the experiment that it defines."""

import ast
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from frepro import papers, recipes
from frepro.errors import FreproError, one_line, unknown
from frepro.experiment import Experiment
from frepro.experiment.trained_networks import Trained
from frepro.experiment.weights import find_weights
from frepro.reproduce.artefacts import Artefact, shown
from frepro.store import provenance
from frepro.training.runs import AUTHORS, published_for

# The tag of cells that the reader may change: papermill skips them, and the tests run them.
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
            raise FreproError(f"{path} is not a readable notebook: {error}") from error

    @cached_property
    def fingerprint(self) -> str:
        return provenance.sha256(*("".join(cell["source"]) for cell in self.cells))

    @property
    def title(self) -> str:
        """The first line of the notebook, as "SPANet, Table 5: ablation of SPANet-S"."""
        return "".join(self.cells[0]["source"]).splitlines()[0].removeprefix("# ")

    def parameters(self) -> dict[str, Any]:
        """Return name -> default of all parameters, which the cell tagged ``parameters`` sets to plain values."""
        values = {}
        try:
            for node in ast.parse("".join(self._tagged("parameters"))).body:
                if isinstance(node, ast.Assign):
                    target = node.targets[0]
                    if not isinstance(target, ast.Name):
                        raise ValueError(f"{ast.unparse(target)} is not a plain name")
                    values[target.id] = ast.literal_eval(node.value)
        except (SyntaxError, ValueError) as error:
            raise FreproError(
                f"{shown(self.path)}: the cell tagged 'parameters' may only assign plain values (text, numbers, "
                f"lists): {error}"
            ) from error
        return values

    def definition(self, parameters: dict[str, Any]) -> Any:
        """Return the ``Experiment`` or ``Trained`` that the notebook defines with these parameters.

        This runs the unchanged cells tagged ``parameters``, ``variants`` and ``experiment``, and sets the parameters
        after the first of them, as papermill does. ``None`` for a notebook without such a cell.
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
            raise FreproError(f"{shown(self.path)}: the cell tagged 'experiment' sets neither experiment nor trained")
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
        """The frepro modules that the notebook imports, and those of the models that it names."""
        models = provenance.own_models()
        named = [node.value for node in ast.walk(self.code) if isinstance(node, ast.Constant)]
        named += [row.model for table in self.tables.values() for row in table.rows]
        used = {*provenance.imports(self.code), *(models[name] for name in named if name in models)}
        return sorted(used - provenance.NOT_FOLLOWED)

    @cached_property
    def tables(self) -> dict[str, papers.Table]:
        """The published tables that the notebook reads, by name, as "Table 2 of spanet".

        These are the tables that it accesses as ``papers.load("spanet").tables[2]``. If it reads tables in another
        way, these are all tables of its paper.
        """
        if "frepro.papers" not in provenance.imports(self.code):
            return {}
        found = {}
        for node in ast.walk(self.code):
            match node:
                case ast.Subscript(
                    value=ast.Attribute(value=ast.Call(args=[ast.Constant(value=str(paper))]), attr="tables"),
                    slice=ast.Constant(value=int(number)),
                ):
                    found[f"Table {number} of {paper}"] = papers.load(paper).tables[number]
        paper = self.path.parent.name
        return found or {f"Table {number} of {paper}": table for number, table in papers.load(paper).tables.items()}

    def task(self, artefact: Artefact) -> str:
        """Return the name of the task of an artefact's models, a name in ``recipes.TASKS``."""
        item = dict(papers.load(artefact.paper).artefacts())[artefact.name]
        return recipes.of_dataset(item.dataset).task

    def weights(self, given: dict[str, str] | str, is_by_model: bool) -> dict[str, str] | str:
        """Return weights with absolute paths: those given or, by model, the files in a folder for the named models.

        "authors" stands for the published weights; by model, these are files that may have to be downloaded.
        """
        if isinstance(given, dict):
            return {name: str(Path(file).absolute()) for name, file in given.items()}
        if not is_by_model:
            return given if given == AUTHORS else str(Path(given).absolute())
        constants = [node.value for node in ast.walk(self.code) if isinstance(node, ast.Constant)]
        named = {value for value in constants if isinstance(value, str)}
        tables = [table for paper in papers.names() for table in papers.load(paper).tables.values()]
        published = {row.model for table in tables for row in table.rows if row.model}
        models = sorted(named & {*provenance.own_models(), *published})
        if given == AUTHORS:
            from frepro.models.published import cached  # imports torch, which takes seconds

            weights = {model: published_for(model) for model in models}
            return {model: str(cached(each.url)) for model, each in weights.items() if each.url}
        found = {model: find_weights(given, model) for model in models}
        return {model: str(start.file) for model, start in found.items() if start}

    def check(self, parameters: dict[str, Any]) -> None:
        """Raise an error for unknown parameters, for which papermill only warns, or for values of another type."""
        known = self.parameters()
        for name, value in parameters.items():
            if name not in known:
                raise unknown(f"parameter of {self.path.name}", name, known)
            if not fits(value, known[name], KINDS.get(name, ())):
                kinds = " or ".join(kind.__name__ for kind in KINDS.get(name, (type(known[name]),)))
                raise FreproError(
                    f"{name} cannot be {value!r}: use a value of type {kinds.replace('NoneType', 'None')}, "
                    f"as in {self.path.name}"
                )
        for name in ("checkpoints", "backbones"):
            given = parameters.get(name)
            if isinstance(given, dict) and not all(isinstance(file, str) for file in given.values()):
                raise FreproError(f"{name} must map names to files, not {given!r}")


# Types of parameters that may have another type than their default.
KINDS: dict[str, tuple[type, ...]] = {
    "data": (str, type(None)),
    "seeds": (list, str),
    "models": (list, type(None)),
    "trained": (list, dict, type(None)),
    "checkpoints": (str, dict, type(None)),
    "backbones": (str, dict, type(None)),
    "photographs": (str, type(None)),
    "images": (dict, type(None)),
    "epochs": (int, type(None)),
    "native_size": (int, type(None)),
    "output": (str, type(None)),
}


def fits(value: Any, default: Any, kinds: tuple[type, ...]) -> bool:
    """Return whether a value has one of the given types, or else the type of the parameter's default."""
    if isinstance(value, tuple):
        value = list(value)
    return type(value) in (kinds or (type(default), *((int,) if isinstance(default, float) else ())))
