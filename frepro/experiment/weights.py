"""Files of weights by the name of the model that they are for."""

from collections.abc import Mapping
from pathlib import Path

from frepro.errors import FreproError
from frepro.training.runs import Start


def find_weights(given: Mapping[str, str] | str | None, name: str) -> Start | None:
    """The weights of that name; none where there are none.

    Args:
        given: Files by name; or one file, or a folder of files, that have the name's, as spanet_small.safetensors or
            SPANet-small.pth.

    Raises:
        FreproError: There is no such file or folder.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        return Start.of(Path(given[name])) if name in given else None
    path = Path(given)
    if not path.exists():
        raise FreproError(f"no weights at {path}: give a file or folder of files like {name}.safetensors or {name}.pth")
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return next((Start.of(file) for file in files if named(file) == name), None)


def named(file: Path) -> str:
    """The name that a file of weights goes by; empty for another kind of file."""
    return file.stem.lower().replace("-", "_") if file.suffix in (".safetensors", ".pth", ".pt") else ""
