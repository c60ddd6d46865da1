"""Find files of weights by the name of their model."""

import os
from collections.abc import Mapping
from pathlib import Path

from frepro.errors import FreproError
from frepro.store import provenance
from frepro.training.runs import Start


def find_weights(given: Mapping[str, str] | str | None, name: str) -> Start | None:
    """Return the weights of a name; ``None`` if there are none.

    Args:
        given: Name -> file; or one file or a folder of files named after the model, as spanet_small.safetensors or
            SPANet-small.pth.
        name: Name of a model, or <network>_<model>.

    Raises:
        FreproError: There is no such file or folder.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        return Start.of(Path(given[name])) if name in given else None
    path = Path(given)
    if not os.path.exists(path):
        raise FreproError(
            f"no weights at {path}: give a file, or a folder of files, such as {name}.safetensors or {name}.pth"
        )
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return next((Start.of(file) for file in files if named(file) == name), None)


def named(file: Path) -> str:
    """Return the model name of a file of weights; empty for another kind of file.

    Files that ``frepro weights fetch`` wrote may have other names, as Vim-F's Ti_pre_checkpoint.pth.
    """
    if file.suffix not in (".safetensors", ".pth", ".pt"):
        return ""
    name = file.stem.lower().replace("-", "_")
    if name in provenance.own_models():
        return name
    from frepro.models import published  # imports torch, which takes seconds

    return published.model_of(file.name) or name
