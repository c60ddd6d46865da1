"""Revisions of behaviours: part of what a run is known by, in place of the code that it passes through.

A module that decides about a measured number declares the behaviour that it is and its revision, a whole number:

    REVISION = {"dfformer": 1}

Whoever changes what it computes raises the number, and runs made before are no longer taken for the same. Moving or
renaming the module, rewording a message, making it faster or adding a model changes no number.
``tests/store/test_revisions.py`` computes small probes of every behaviour and fails where one changed without it.

Declarations are read from the source, so that a plan needs neither torch nor the module itself.
"""

import ast
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from frepro.errors import FreproError
from frepro.store import provenance

# Packages whose modules a model is made of.
PARTS = ("frepro.models", "frepro.ops")
FIRST = 1


def declared(modules: Iterable[str]) -> dict[str, int]:
    """Return behaviour -> revision of everything that modules declare."""
    found: dict[str, int] = {}
    for module in modules:
        path = provenance.module_path(module)
        if path is not None:
            found |= _declared(path, path.stat().st_mtime_ns)
    return found


def of_model(model: str) -> dict[str, int]:
    """Return behaviour -> revision of a model's family and of all layers and operations that it uses.

    Empty for a model of timm, whose version the record of a run states.
    """
    family = provenance.own_models().get(model)
    return declared(_closure(family)) if family else {}


def raised(revisions: dict[str, int]) -> dict[str, int]:
    """Return the revisions that are not the first: a run's key holds no others, so a new behaviour changes none."""
    return {name: number for name, number in sorted(revisions.items()) if number != FIRST}


def _closure(module: str) -> list[str]:
    """Return a module and everything below ``PARTS`` that it imports, directly or not."""
    found: dict[str, None] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = provenance.module_path(name)
        if name in found or name in PARTS or path is None or not name.startswith(PARTS):
            continue
        found[name] = None
        for imported in provenance.imports_of(path):
            package, _, attribute = imported.rpartition(".")
            waiting.append(_reexported(package).get(attribute, imported) if package in PARTS else imported)
    return list(found)


def _reexported(package: str) -> dict[str, str]:
    """Return name -> module that defines it, of what a package's ``__init__`` imports from its modules.

    ``from frepro.ops import gelu`` uses ``frepro.ops.pointwise`` alone, though the package imports all operations.
    """
    path = provenance.module_path(package)
    return _from_imports(path, package, path.stat().st_mtime_ns)


@lru_cache
def _from_imports(path: Path, package: str, modified: int) -> dict[str, str]:
    return {
        alias.name: f"{package}.{node.module}"
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        for alias in node.names
    }


@lru_cache
def _declared(path: Path, modified: int) -> dict[str, int]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["REVISION"]:
            revision = ast.literal_eval(node.value)
            if all(type(number) is int and number >= FIRST for number in revision.values()):
                return revision
            raise FreproError(f"{path}: a REVISION is a whole number from {FIRST} on, as {{'dfformer': 1}}")
    return {}
