"""Third-party code, such as an official implementation, timed in the same rounds as ours.

It is kept outside the repository, in a Python file that defines ::

    SOURCE       what it is and where it comes from, for the record
    models()     name -> function without arguments that returns a module, called with images (B, 3, 224, 224)
    operations() name of an operation of ours -> function that takes the tensors of our operation, in the same order,
                 and returns a function without arguments: the call to be timed, which returns one tensor

At least one of the two functions is required. A model with the name of one of ours is compared with it.
"""

import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from frepro.errors import FreproError


@dataclass(frozen=True)
class Beside:
    """What such a file defines; empty if there is no file."""

    source: str = ""
    sha256: str = ""
    models: dict[str, Callable] = field(default_factory=dict)
    operations: dict[str, Callable] = field(default_factory=dict)


def load(path: Path | None) -> Beside:
    """Run the file, and return what it defines.

    Raises:
        FreproError: There is no such file, it fails to run, or it lacks a required definition.
    """
    if path is None:
        return Beside()
    if not os.path.isfile(path):
        raise FreproError(f"no file {path}: --beside takes a Python file that defines SOURCE and models()")
    spec = importlib.util.spec_from_file_location("frepro_beside", path)
    if spec is None or spec.loader is None:
        raise FreproError(f"{path} cannot be used by --beside: its name does not end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = {name: dict(getattr(module, name, dict)()) for name in ("models", "operations")}
    except Exception as error:
        raise FreproError(f"{path} cannot be used by --beside: {type(error).__name__}: {error}") from error
    source = getattr(module, "SOURCE", None)
    if not isinstance(source, str) or not any(found.values()):
        raise FreproError(f"{path} must define SOURCE, a string, and models() or operations()")
    return Beside(source, hashlib.sha256(path.read_bytes()).hexdigest(), **found)
