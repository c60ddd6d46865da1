"""The provenance of a number: commit, versions, machine, and the code that a run uses.

Nothing here imports torch, so that a plan is made quickly. ``device_record`` adds what only torch knows.
"""

import ast
import hashlib
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from frepro import paths

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "scikit-learn")


def record() -> dict[str, Any]:
    """Return the current time, commit, versions and machine."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **_commit(),
        "python": platform.python_version(),
        "versions": {name: found for name in ("frepro", *PACKAGES) if (found := version(name))},
        "machine": machine(),
    }


def device_record(device: str) -> dict[str, Any]:
    """Return the device that torch computes on, and the number of CPU threads."""
    import torch

    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        name, extra = properties.name, {"memory_gib": round(properties.total_memory / 2**30, 1)}
    else:
        name, extra = machine()["cpu"], {}
    return {"device": device, "name": name, "threads": torch.get_num_threads(), **extra}


@lru_cache
def machine() -> dict[str, Any]:
    """Return the processor, the cores available to this process, the memory (GiB) and the operating system."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        cpu = found[1].strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {"cpu": cpu, "cores": cores, "memory_gib": round(memory / 2**30, 1), "system": platform.system()}


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> dict[str, Any]:
    """Return the commit of the checkout, and whether the code differs from it. Changes of results do not count."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(paths.ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != paths.ROOT:
            raise FileNotFoundError("the package is not in a checkout of its own")
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--", ".", ":!results", ":!book/results")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def sha256(*parts: bytes | str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))  # so that ("ab", "c") and ("a", "bc") differ
        digest.update(data)
    return digest.hexdigest()[:16]


def code(*modules: str) -> dict[str, str]:
    """Return name -> hash of the given frepro modules and of all frepro modules that they import.

    The hash is that of the syntax tree without docstrings, so that comments, docstrings and formatting do not count.
    """
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or (path := module_path(name)) is None:
            continue
        modified = path.stat().st_mtime_ns
        found[name] = _parsed(path, modified)[0]
        waiting += _imported_modules(path, modified)
    return dict(sorted(found.items()))


def code_fingerprint(*modules: str) -> str:
    """Return a single hash of everything that ``code`` returns."""
    return sha256(*(part for item in code(*modules).items() for part in item))


def imports_of(path: Path) -> tuple[str, ...]:
    """Return what a file of the package imports from frepro (see ``imports``)."""
    return _parsed(path, path.stat().st_mtime_ns)[1]


# These modules, and what they import, do not become part of a run's code: they register models, read the recipe (which
# is part of the key), store records and states, stop a run with a non-finite loss, or show progress. (Tests compare a
# resumed run, and one split into parts, with an uninterrupted one.) The code that trains and evaluates is in the
# records of the runs, which a result refers to.
_KEEPING = ("checkpoint", "evaluate", "fsdp", "loop", "nonfinite", "parallel", "progress")
NOT_FOLLOWED = {
    *("frepro", "frepro.errors", "frepro.models", "frepro.papers", "frepro.paths", "frepro.processes"),
    *("frepro.recipes", *(f"frepro.store.{name}" for name in ("provenance", "records", "revisions", "yaml_schema"))),
    *(f"frepro.training.{name}" for name in _KEEPING),
}


@lru_cache
def _parsed(path: Path, modified: int) -> tuple[str, tuple[str, ...]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ".".join(path.relative_to(paths.ROOT).parent.parts)
    imported = imports(tree, package)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                del body[0]  # the docstring
    return sha256(ast.dump(tree)), imported


@lru_cache
def _imported_modules(path: Path, modified: int) -> tuple[str, ...]:
    """Return the modules among what a file imports; most imported names are of functions and classes."""
    return tuple(name for name in _parsed(path, modified)[1] if name not in NOT_FOLLOWED and module_path(name))


def imports(tree: ast.AST, package: str = "") -> tuple[str, ...]:
    """Return the names of modules and other objects that code imports from frepro.

    Imports under ``if TYPE_CHECKING`` do not count, since they do not run.

    Args:
        package: The package that relative imports refer to.
    """
    nodes = list(ast.walk(tree))
    guards = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {node for guard in guards for node in guard.body}
    imported = set()
    for node in nodes:
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = f"{package}.{module}" if module else package
            imported |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return tuple(sorted(name for name in imported if name.split(".")[0] == "frepro"))


def module_path(name: str) -> Path | None:
    """Return the file of a frepro module; ``None`` if there is no such module."""
    base = os.path.join(paths.ROOT, *name.split("."))  # a plan asks thousands of times, and pathlib is slower
    found = (path for path in (f"{base}.py", os.path.join(base, "__init__.py")) if os.path.exists(path))
    return next(map(Path, found), None)


@lru_cache
def own_models() -> dict[str, str]:
    """Return the name of every model that frepro registers -> its module, read from the source without importing it."""
    models = {}
    for path in sorted((paths.PACKAGE / "models").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(decorator, ast.Name) and decorator.id == "register_model"
                for decorator in node.decorator_list
            ):
                models[node.name] = f"frepro.models.{path.stem}"
    return models
