"""Execute the notebook of a plan, and replace the old result with the new one."""

import html
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from frepro import paths
from frepro.data.sources import locate
from frepro.errors import FreproError
from frepro.reproduce.artefacts import shown
from frepro.reproduce.notebook import Notebook
from frepro.reproduce.plans import WEIGHTS, FigurePlan, Plan, check_named
from frepro.reproduce.staleness import read_json
from frepro.store import provenance, records
from frepro.training.progress import Stopwatch


def make(
    job: Plan | FigurePlan, jobs: int | None, per_device: int | None, workers: int | None, log: Callable[[str], None]
) -> None:
    """Run what is missing, then execute the notebook and replace the old result."""
    job.run(jobs, per_device, workers, log)
    log(f"running {shown(job.notebook.path)}")
    render(job)


def render(job: Plan | FigurePlan) -> float:
    """Execute the notebook of a plan whose runs are all stored, and replace the old result.

    Returns:
        The elapsed seconds.
    """
    watch = Stopwatch()
    with records.atomic_replace(job.folder) as fresh:
        executed = fresh / job.notebook.path.name
        execute(job.notebook, {**job.parameters, "output": "."}, executed, kept=job.folder)
        if named := read_json(fresh / "origin.json"):
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
        records.write_text(fresh / "provenance.json", json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    for kind in ("ipynb", "txt"):  # of an earlier attempt
        job.folder.with_name(f"{job.folder.name}.failed.{kind}").unlink(missing_ok=True)
    return watch.seconds


def without_paths(job: Plan | FigurePlan) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the parameters of a plan without paths of this machine, and a mapping from each path to its replacement.

    A data path is replaced by the name of the data set, any other path by the name of the file or folder.
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
    """Execute a notebook with papermill, in the folder of ``output``, and write it to ``output``.

    Raises:
        FreproError: A parameter is unknown, Jupyter is not installed, or a cell failed. After a failed cell, the
            partly executed notebook is stored next to ``kept``.
    """
    notebook.check(parameters)
    try:
        import papermill
        from papermill.exceptions import PapermillException
    except ImportError as error:
        raise FreproError("notebooks need Jupyter and papermill: run pip install -e '.[book]'") from error
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
                kernel_name="python3",  # the current environment, whatever kernel the notebook names
                progress_bar=False,
                cwd=str(output.parent),
                request_save_on_cell_execute=False,
                start_timeout=600,  # seconds: the kernel imports torch before it responds
                shutdown_kernel="immediate",  # a kernel asked to stop within a cell would print a traceback
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
    """Remove paths, times and warnings of this machine from an executed notebook. Provenance is stored separately.

    Args:
        parameters: Parameters to show in the cell of injected parameters.
        names: Path -> its replacement.
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
    records.write_text(path, json.dumps(executed, indent=1, ensure_ascii=False) + "\n")


def _replaced(value: Any, names: dict[str, str]) -> Any:
    """Return JSON data in which each path is replaced by its name, anywhere in a text and in any spelling."""
    spelled = {form: name for path, name in names.items() for form in _spellings(path)}
    # A short path such as /data is replaced only if it is not part of a longer path.
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
            case dict():  # images are base64, which may contain a short path by chance
                return {key: each if key in PICTURES else of(each) for key, each in item.items()}
        return item

    return of(value)


PICTURES = ("image/png", "image/jpeg", "application/pdf")


def _spellings(path: str) -> set[str]:
    """Return the spellings of a path: as given, with links resolved, and as in Python, JSON, HTML, URLs and a shell."""
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
    """A context manager that replaces the environment variables temporarily."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values

    def __enter__(self) -> None:
        self.before = dict(os.environ)
        os.environ.update(self.values)

    def __exit__(self, *_: object) -> None:
        os.environ.clear()
        os.environ.update(self.before)
