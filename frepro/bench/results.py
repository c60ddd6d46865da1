"""Results of the benchmark: rows of tidy CSV, every round, and the ratios between rows that belong together.

Files::

    operations.csv, models.csv, parts.csv, resolution.csv   one row per timed item
    rounds.csv        seconds of each row in each round
    ratios.csv        one row against another, from the rounds that include both
    provenance.json   machine, versions, commit, settings

All values are in seconds, bytes and MiB, unrounded.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from frepro import paths
from frepro.store import records

SECTIONS = ("operations", "models", "parts", "resolution")

# The sides that are timed: plain torch, ours (the fastest backend that can run), a peer from timm, third-party code, or
# the machine itself. Other backends of an operation go by their names.
REFERENCE, OURS, PEER, BESIDE, MACHINE = "reference", "frepro", "timm", "beside", "machine"

# The parts into which the time of a forward pass is divided.
PRODUCTS, CONVOLUTIONS, NORMS, ACTIVATIONS, REST = PARTS = (
    "matrix products",
    "convolutions",
    "norms",
    "activations",
    "the rest",
)

# An operation of ours counts as slower than its reference if the median of its speed-ups is below this.
LEAST_SPEEDUP = 0.97

# The timm model that each of ours is compared with: of similar size, with attention.
PEERS = {
    **dict.fromkeys(("dfformer_s18", "cdfformer_s18", "gfformer_s18"), "caformer_s18"),
    **dict.fromkeys(("spanet_small", "spanetv2_s18_pure", "spanetv2_s18_hybrid"), "caformer_s18"),
    **dict.fromkeys(("vim_tiny", "vimf_tiny_h"), "deit_tiny_patch16_224"),
}


@dataclass(frozen=True, order=True)
class Key:
    """What a row is about.

    Attributes:
        section: One of ``SECTIONS``.
        name: The operation or model.
        size: Size of the input in readable form, as batch × ....
        variant: Precision and execution.
        work: "forward", "forward and backward", "inference", "training step" (forward, loss, backward) or "latency"
            (inference of one image); in section "parts", a part of inference.
        side: The side (see ``REFERENCE`` and the following constants).
    """

    section: str
    name: str
    size: str
    variant: str
    work: str
    side: str


@dataclass(frozen=True)
class Line:
    """The measurements of a key.

    Attributes:
        seconds: Median over the rounds, per call; ``None`` if it could not be timed.
        low: Minimum over the rounds.
        high: Maximum over the rounds.
        rounds: Number of rounds.
        images: Images per call.
        flops: Operations on real numbers of a forward call, by formula; in section "parts", of its products alone.
        bytes: Minimum memory traffic, reading and writing every input and output once.
        weights_mib: Memory of the weights.
        forward_mib: Peak that a forward pass adds.
        note: Why something is missing.
    """

    section: str
    name: str
    size: str
    variant: str
    work: str
    side: str
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int | None = None
    images: int | None = None
    flops: int | None = None
    bytes: int | None = None
    weights_mib: float | None = None
    forward_mib: float | None = None
    note: str = ""

    @property
    def key(self) -> Key:
        return Key(self.section, self.name, self.size, self.variant, self.work, self.side)

    @property
    def images_per_second(self) -> float | None:
        return _rate(self.images, self.seconds)

    @property
    def least_images_per_second(self) -> float | None:
        """Images per second in the slowest round."""
        return _rate(self.images, self.high)

    @property
    def greatest_images_per_second(self) -> float | None:
        """Images per second in the fastest round."""
        return _rate(self.images, self.low)

    @property
    def flops_per_second(self) -> float | None:
        return _rate(self.flops, self.seconds)

    @property
    def bytes_per_second(self) -> float | None:
        return _rate(self.bytes, self.seconds)

    @property
    def peak_mib(self) -> float | None:
        """Memory of the weights and of a forward pass together."""
        return None if self.weights_mib is None or self.forward_mib is None else self.weights_mib + self.forward_mib


def _rate(amount: int | None, seconds: float | None) -> float | None:
    """Return an amount per second; ``None`` if one of the two is not known, or nothing took time."""
    return None if amount is None or not seconds else amount / seconds


@dataclass(frozen=True)
class Ratio:
    """Speed of a side relative to another: median, minimum and maximum over the rounds.

    Attributes:
        against: The other side, or the peer's name.
    """

    section: str
    name: str
    size: str
    variant: str
    work: str
    side: str
    against: str
    ratio: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Found:
    """All results of a benchmark."""

    lines: Sequence[Line]
    rounds: Mapping[Key, Sequence[float]]
    provenance: Mapping[str, Any]

    @property
    def machine(self) -> str:
        """The name of the machine; for a CPU, with the instruction set that was measured."""
        kernels = self.provenance.get("kernels") or {}  # results of before it was recorded have none
        return ", ".join(filter(None, (self.provenance["device"]["name"], kernels.get("instruction_set"))))

    @cached_property
    def ratios(self) -> list[Ratio]:
        return [
            ratio for key in self.rounds for other, name in _others(key) if (ratio := self._ratio(key, other, name))
        ]

    def _ratio(self, key: Key, other: Key, name: str) -> Ratio | None:
        if other not in self.rounds:
            return None
        values = [b / a for a, b in zip(self.rounds[key], self.rounds[other], strict=True)]
        names = (key.section, key.name, key.size, key.variant, key.work, key.side, name)
        return Ratio(*names, median(values), min(values), max(values), len(values))

    def section(self, section: str, /, **where: str) -> list[Line]:
        """Return the rows of a section whose fields match the given values."""
        return [
            line
            for line in self.lines
            if line.section == section and all(getattr(line, field) == value for field, value in where.items())
        ]


def _others(key: Key) -> list[tuple[Key, str]]:
    """Return the keys that a key is compared with, and their names in the ratios."""

    def by(side: str, name: str = key.name) -> Key:
        return Key(key.section, name, key.size, key.variant, key.work, side)

    if key.section == "operations" and key.side not in (REFERENCE, MACHINE):
        others = [(by(REFERENCE), REFERENCE)]
        return others + [(by(side), side) for side in ("mamba_ssm", BESIDE) if key.side == OURS]
    if key.side != OURS or key.section == "parts":
        return []
    others = [(by(REFERENCE), REFERENCE), (by(BESIDE), BESIDE)]
    return [*others, (by(PEER, PEERS[key.name]), PEERS[key.name])] if key.name in PEERS else others


def line(key: Key, times: Sequence[float] | None, **more: Any) -> Line:
    """Return the row of a key, given the seconds of its rounds; without any, a row without times."""
    spread = (median(times), min(times), max(times), len(times)) if times else (None,) * 4
    return Line(*(getattr(key, field.name) for field in fields(Key)), *spread, **more)


def folder(device: str, instruction_set: str | None = None, kind: str = "") -> Path:
    """Return the folder of results, one for each instruction set: ``bench/cpu-avx2``, ``bench/gpu``.

    Args:
        device: "cpu" or "gpu".
        instruction_set: That of the CPU kernels; ``None`` if they could not be used.
        kind: "smoke" or "only" for runs whose results are kept apart, in ``bench-<kind>``.
    """
    name = f"cpu-{(instruction_set or 'no-kernels').lower()}" if device == "cpu" else device
    return paths.results() / "-".join(filter(None, ("bench", kind))) / name


def folders() -> list[Path]:
    """Return the folders that hold the results of complete benchmarks: those of CPUs, then that of a GPU."""
    return sorted(path.parent for path in paths.results().glob("bench/*/provenance.json"))


def write(found: Found, target: Path) -> None:
    """Write all files to an existing folder."""
    for section in SECTIONS:
        lines = found.section(section)
        if lines:
            records.write_text(target / f"{section}.csv", _to_csv(lines))
    raw = [
        {**{f.name: getattr(key, f.name) for f in fields(Key)}, "round": number, "seconds": seconds}
        for key, times in found.rounds.items()
        for number, seconds in enumerate(times)
    ]
    records.write_text(target / "rounds.csv", _csv(list(raw[0]) if raw else [], raw))
    records.write_text(target / "ratios.csv", _to_csv(found.ratios))
    text = json.dumps(found.provenance, indent=1, ensure_ascii=False)
    records.write_text(target / "provenance.json", text + "\n")


def read(source: Path) -> Found:
    """Read the files that ``write`` has written."""
    lines: list[Line] = []
    rounds: dict[Key, list[float]] = {}
    for section in SECTIONS:
        path = source / f"{section}.csv"
        if path.exists():
            lines += [_line(row) for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))]
    for row in csv.DictReader(io.StringIO((source / "rounds.csv").read_text(encoding="utf-8"))):
        rounds.setdefault(Key(*(row[field.name] for field in fields(Key))), []).append(float(row["seconds"]))
    return Found(lines, rounds, json.loads((source / "provenance.json").read_text(encoding="utf-8")))


WHOLE = ("rounds", "images", "flops", "bytes")
TEXT = (*(field.name for field in fields(Key)), "note")


def _line(row: Mapping[str, str]) -> Line:
    def value(name: str, cell: str) -> Any:
        return cell if name in TEXT else int(cell) if name in WHOLE else float(cell)

    return Line(**{name: value(name, cell) for name, cell in row.items() if cell})


def _to_csv(rows: Sequence[Line] | Sequence[Ratio]) -> str:
    """Return CSV with the identifying columns and every other column that has a value in any row."""
    if not rows:
        return ""
    keys = {field.name for field in fields(Key)}
    names = [
        field.name
        for field in fields(rows[0])
        if field.name in keys or any(getattr(row, field.name) not in (None, "") for row in rows)
    ]
    return _csv(names, ({name: getattr(row, name) for name in names} for row in rows))


def _csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
