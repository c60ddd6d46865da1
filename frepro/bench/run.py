"""The whole benchmark in one process."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from frepro import provenance, results
from frepro.bench import beside as besides
from frepro.bench import models, operations, parts, resolution
from frepro.bench.results import PEERS, SECTIONS, Found, folder, write
from frepro.bench.settings import SMOKE, Settings, full
from frepro.errors import FreproError
from frepro.ops import backends


def run(
    device: str,
    rounds: int | None = None,
    only: str | None = None,
    beside: Path | None = None,
    smoke: bool = False,
    log: Callable[[str], None] = print,
) -> tuple[Found, Path]:
    """Measure, write the results with their pictures, and say where.

    Args:
        device: "cpu" or "cuda".
        rounds: In place of the settings' own.
        only: Pattern of what to measure (``*`` stands for anything); of a model of ours, its peer too. The result then
            stands apart from that of a whole benchmark, which holds all.
        beside: A Python file of others' code to be timed in the same rounds (``bench.beside``).
        smoke: Everything tiny: shows that it runs, and measures nothing of interest.
    """
    if os.environ.get("FREPRO_BACKEND"):
        raise FreproError("FREPRO_BACKEND is set: unset it, since the benchmark compares backends")
    settings = SMOKE if smoke else full(device)
    settings = replace(settings, rounds=rounds or settings.rounds)
    other = besides.load(beside)
    chosen = _chosen(settings, other, only)
    on, started, load = torch.device(device), time.perf_counter(), _load()
    made = {**provenance.record(), "device": provenance.device_record(device)}  # of the code that is loaded now
    lines, times = [], {}
    for section, names in chosen.items():
        if not names:
            continue
        begun = time.perf_counter()
        if section == "operations":
            log(f"operations: {', '.join(names)}")
            found = operations.measure(settings, on, names, other)
        elif section == "models":
            found = models.measure(settings, on, names, other, log)
        elif section == "parts":
            found = parts.measure(settings, on, names, other, log)
        else:
            found = resolution.measure(settings, on, names, log)
        lines += found[0]
        times |= found[1]
        log(f"{section}: {time.perf_counter() - begun:.0f} s")
    record = {
        **made,
        "settings": asdict(settings),
        "only": only,
        "beside": {"source": other.source, "sha256": other.sha256} if beside else None,
        "backends": {name: reason or "available" for name, reason in backends.reasons().items()},
        "load_before": load,
        "seconds": round(time.perf_counter() - started, 1),
    }
    found = Found(lines, times, record)
    target = folder("cpu" if device == "cpu" else "gpu", "smoke" if smoke else "only" if only else "")
    with results.replaced(target) as fresh:
        write(found, fresh)
    _draw(found, target, log)
    return found, target


def _chosen(settings: Settings, other: besides.Beside, only: str | None) -> dict[str, tuple[str, ...]]:
    """Names to measure in each section."""
    every = {
        "operations": operations.NAMES,
        "models": models.names(settings, other),
        "parts": models.names(settings, other),
        "resolution": settings.by_resolution,
    }
    if only is None:
        return every
    kept = {
        section: [name for name in every[section] if fnmatchcase(f"{section}/{name}", f"*{only}*")]
        for section in SECTIONS
    }
    if not any(kept.values()):
        raise FreproError(
            f"no benchmark matches {only!r}: there is " + "; ".join(f"{s}/ {', '.join(every[s])}" for s in SECTIONS)
        )
    for section in ("models", "parts"):
        kept[section] += [PEERS[name] for name in kept[section] if name in PEERS]
    if kept["operations"]:
        kept["operations"] += ["copy", "matrix_product"]  # what the others are measured by
    return {section: tuple(name for name in every[section] if name in kept[section]) for section in SECTIONS}


def _load() -> float | None:
    """Processes that wanted to run in the last minute, on the whole machine."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _draw(found: Found, target: Path, log: Callable[[str], None]) -> None:
    try:
        from frepro.figures import speed
    except ImportError:
        log("no pictures: they need pip install -e '.[book]'")
        return
    for name, figure in speed.pictures(found).items():
        figure.savefig(target / f"{name}.png")
