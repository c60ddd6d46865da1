"""Revisions of behaviours. They are part of the key of a run, instead of the code that the run uses.

A module that affects measured numbers declares its behaviour and a revision, an integer::

    REVISION = {"dfformer": 1}

Increase the revision when you change what the module computes; earlier runs then no longer have the same key. Moving or
renaming the module, rewording a message, making it faster or adding a model does not change the revision.
``tests/store/test_revisions.py`` computes small probes of every behaviour, and fails if one changes without a new
revision.

Declarations are read from the source, so that a plan imports neither torch nor the module.
"""

import ast
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from frepro.errors import FreproError
from frepro.store import provenance

# The packages with the modules that make up a model.
PARTS = ("frepro.models", "frepro.ops")
FIRST = 1


def declared(modules: Iterable[str]) -> dict[str, int]:
    """Return behaviour -> revision for all declarations in modules."""
    found: dict[str, int] = {}
    for module in modules:
        path = provenance.module_path(module)
        if path is not None:
            found |= _declared(path, path.stat().st_mtime_ns)
    return found


def of_model(model: str) -> dict[str, int]:
    """Return behaviour -> revision of a model's family and of all layers and operations that it uses.

    Empty for a model of timm: the record of a run states the version of timm.
    """
    family = provenance.own_models().get(model)
    return declared(_closure(family)) if family else {}


def raised(revisions: dict[str, int]) -> dict[str, int]:
    """Return the revisions other than the first. Keys contain only these, so a new behaviour changes no key."""
    return {name: number for name, number in sorted(revisions.items()) if number != FIRST}


def _closure(module: str) -> list[str]:
    """Return a module and all modules in ``PARTS`` that it imports directly or indirectly."""
    found: dict[str, None] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name in PARTS or not name.startswith(PARTS):
            continue
        path = provenance.module_path(name)
        if path is None:
            continue
        found[name] = None
        for imported in provenance.imports_of(path):
            package, _, attribute = imported.rpartition(".")
            waiting.append(_reexported(package).get(attribute, imported) if package in PARTS else imported)
    return list(found)


def _reexported(package: str) -> dict[str, str]:
    """Return name -> defining module for the names that the ``__init__`` of a package imports from its modules.

    ``from frepro.ops import gelu`` uses only ``frepro.ops.pointwise``, although the package imports all operations.
    """
    path = provenance.module_path(package)
    assert path is not None, package
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
            raise FreproError(f"{path}: a REVISION must be an integer of {FIRST} or more, as {{'dfformer': 1}}")
    return {}
