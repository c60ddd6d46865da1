"""Executing the notebook of a plan, and putting its result in place of the old one."""

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
    records.write_text(path, json.dumps(executed, indent=1, ensure_ascii=False) + "\n")


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
