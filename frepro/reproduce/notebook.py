"""A source notebook: its code, its parameters, and the experiment that it defines."""

import ast
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from frepro import papers
from frepro.errors import FreproError, one_line, unknown
from frepro.experiment import TASKS, Experiment
from frepro.experiment.trained_networks import Trained
from frepro.experiment.weights import find_weights
from frepro.reproduce.artefacts import Artefact, shown
from frepro.store import provenance

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
    "native_size": (int, type(None)),
    "output": (str, type(None)),
}


def fits(value: Any, default: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value may take the place of a parameter's default: of the kinds given, or of the default's own."""
    if isinstance(value, tuple):
        value = list(value)
    return type(value) in (kinds or (type(default), *((int,) if isinstance(default, float) else ())))
