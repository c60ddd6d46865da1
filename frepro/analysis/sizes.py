"""Sizes of all registered models and drawings of their blocks: the files of ``results/models``.

Files::

    sizes.csv         parameters and multiply-accumulates of each model at 224 pixels
    vim_flops.csv     multiply-accumulates of Vision Mamba by several ways of counting
    <picture>.svg     see drawings
    provenance.json
"""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any

from frepro import paths
from frepro.store import provenance, records

IMG_SIZE = 224
VIM_FLOPS = ("vim_tiny", "vim_small", "vimf_tiny_h", "vimf_small_h")  # the models in the paper's Table 2


@dataclass(frozen=True)
class Size:
    """A model: blocks and channels of each stage, such as 3-3-9-3, and the counts of ``analysis.cost.count``."""

    model: str
    family: str
    blocks: str
    channels: str
    params: int
    macs: int
    spectral: int
    scan: int

    @property
    def all_macs(self) -> int:
        return self.macs + self.spectral + self.scan


@dataclass(frozen=True)
class VimFlops:
    """Multiply-accumulates of a model by one way of counting; see ``analysis.cost.vim_flops``."""

    model: str
    counting: str
    macs: int


def folder() -> Path:
    return paths.results() / "models"


def read() -> list[Size]:
    """Return the committed sizes."""
    return [Size(**_numbers(row)) for row in _rows(folder() / "sizes.csv")]


def read_vim_flops() -> list[VimFlops]:
    return [VimFlops(**_numbers(row)) for row in _rows(folder() / "vim_flops.csv")]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _numbers(row: dict[str, str]) -> dict[str, Any]:
    """Return the fields of a row; all but the texts are whole numbers."""
    texts = ("model", "family", "blocks", "channels", "counting")
    return {key: value if key in texts else int(value) for key, value in row.items()}


def size(model: str) -> Size:
    """Count the size of one model."""
    import timm
    import torch

    from frepro.analysis import cost, structure

    counted = cost.count(model, IMG_SIZE)
    with torch.device("meta"):
        network = timm.create_model(model)
    blocks = [name for name, module in network.named_modules() if structure.mixer(module) is not None]
    parents = [name.rpartition(".")[0] for name in blocks]  # one per stage
    features: Any = network.feature_info
    channels = dict.fromkeys(info["num_chs"] for info in features)
    return Size(
        model,
        provenance.own_models()[model].rpartition(".")[2],
        "-".join(str(parents.count(parent)) for parent in dict.fromkeys(parents)),
        "-".join(map(str, channels)),
        **{name: counted[name] for name in ("params", "macs", "spectral", "scan")},
    )


def write(draw: Callable[[Path], None], log: Callable[[str], None]) -> list[Size]:
    """Count every model, and replace ``results/models`` by the counts and the drawings.

    Args:
        draw: Writes the drawings to a folder.
    """
    from frepro.analysis import cost

    log(f"counting {len(provenance.own_models())} models")
    sizes = [size(model) for model in provenance.own_models()]
    vim = [
        VimFlops(model, counting, round(macs))
        for model in VIM_FLOPS
        for counting, macs in cost.vim_flops(model, IMG_SIZE).items()
    ]
    with records.atomic_replace(folder()) as fresh:
        (fresh / "sizes.csv").write_text(_csv(sizes), encoding="utf-8")
        (fresh / "vim_flops.csv").write_text(_csv(vim), encoding="utf-8")
        draw(fresh)
        record = json.dumps(provenance.record(), indent=1, ensure_ascii=False)
        (fresh / "provenance.json").write_text(f"{record}\n", encoding="utf-8")
    return sizes


def _csv(rows: list[Size] | list[VimFlops]) -> str:
    text = StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(rows[0])], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()
