"""Where a number comes from: commit, versions, machine, and the code that a run passes through.

Nothing here imports torch, so that a plan can be made at once; what only torch knows is added by ``device_record``.
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
    """Commit, versions and machine, as of now."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **_commit(),
        "python": platform.python_version(),
        "versions": {name: found for name in ("frepro", *PACKAGES) if (found := version(name))},
        "machine": machine(),
    }


def device_record(device: str) -> dict[str, Any]:
    """The device that torch computes on, and the number of CPU threads."""
    import torch

    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        name, extra = properties.name, {"memory_gib": round(properties.total_memory / 2**30, 1)}
    else:
        name, extra = machine()["cpu"], {}
    return {"device": device, "name": name, "threads": torch.get_num_threads(), **extra}


@lru_cache
def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory and operating system."""
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
    """Commit of the checkout, and whether the code differed from it; results do not count as a difference."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(paths.ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != paths.ROOT:
            raise FileNotFoundError("the package does not stand in a checkout of its own")
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
    """Name -> hash of each of the frepro modules named and of all frepro modules that they import.

    It is taken over the syntax trees without docstrings, so that comments, docstrings and formatting do not count.
    """
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = module_path(name)
        if name in found or path is None:
            continue
        found[name], imported = _parsed(path, path.stat().st_mtime_ns)
        waiting += [module for module in imported if module not in NOT_FOLLOWED]
    return dict(sorted(found.items()))


def code_fingerprint(*modules: str) -> str:
    """One hash of all that ``code`` finds."""
    return sha256(*(part for item in code(*modules).items() for part in item))


def imports_of(path: Path) -> tuple[str, ...]:
    """Return what a file of the package imports from frepro, as ``imports`` has it."""
    return _parsed(path, path.stat().st_mtime_ns)[1]


# Importing these makes no code part of a run: they register models, read the recipe (which is part of a run's key),
# keep records and states, stop a run that broke, or show how far things have come. (Tests compare a run that was
# resumed, or computed in parts, with one that was not.) What trains and evaluates is part of the runs, which a result
# names by their records.
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
                del body[0]  # a docstring
    return sha256(ast.dump(tree)), imported


def imports(tree: ast.AST, package: str = "") -> tuple[str, ...]:
    """Names that code imports from frepro, modules and others; ``package`` is that of relative imports.

    What is imported for annotations alone, below ``if TYPE_CHECKING``, runs nothing and does not count.
    """
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {node for guard in guards for node in guard.body}
    imported = set()
    for node in ast.walk(tree):
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
    """Return the file of a module of frepro; ``None`` where there is no such module."""
    base = paths.ROOT.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


@lru_cache
def own_models() -> dict[str, str]:
    """Name of every model that frepro registers -> its module, read from the source so that nothing is imported."""
    models = {}
    for path in sorted((paths.PACKAGE / "models").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(decorator, ast.Name) and decorator.id == "register_model"
                for decorator in node.decorator_list
            ):
                models[node.name] = f"frepro.models.{path.stem}"
    return models
