"""The complete benchmark: its sections one after another, each in its own process with interleaved timing.

Earlier work in a process affects its speed; separate processes make each section's results independent of the others.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from frepro import processes
from frepro.bench import beside as besides
from frepro.bench import models, operations, parts, resolution
from frepro.bench.results import PEERS, SECTIONS, Found, Key, Line, folder, write
from frepro.bench.settings import SMOKE, Settings, full
from frepro.errors import FreproError
from frepro.ops import backends, cpu
from frepro.store import provenance, records
from frepro.training.parallel import Failure, attempt

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

Measured = tuple[list[Line], dict[Key, list[float]]]  # rows, and the seconds of the rounds


def run(
    device: str,
    rounds: int | None = None,
    only: str | None = None,
    beside: Path | None = None,
    smoke: bool = False,
    log: Callable[[str], None] = print,
) -> tuple[Found, Path]:
    """Measure, write the results, and return them with their folder.

    Args:
        device: "cpu" or "cuda".
        rounds: Number of rounds, overriding the settings.
        only: Pattern of what to measure (``*`` matches anything); a model of ours includes its peer. The result is
            stored separately from that of a complete benchmark.
        beside: A Python file with third-party code to time in the same rounds (``bench.beside``).
        smoke: Use tiny sizes: this shows that everything runs, and gives no meaningful numbers.
    """
    if os.environ.get("FREPRO_BACKEND"):
        raise FreproError("FREPRO_BACKEND is set: unset it, since the benchmark compares backends")
    if (march := os.environ.get("FREPRO_MARCH")) and (reason := cpu.reason()):
        raise FreproError(f"no CPU kernels for FREPRO_MARCH={march}, so unset it or take another: {reason}")
    settings = SMOKE if smoke else full(device)
    if rounds:
        settings = replace(settings, rounds=rounds, training_rounds=rounds)
    other = besides.load(beside)
    chosen = _chosen(settings, other, only)
    libraries = held()
    started, load = time.perf_counter(), _load()
    made = {**provenance.record(), "device": provenance.device_record(device)}  # describes the code that is loaded now
    lines: list[Line] = []
    times: dict[Key, list[float]] = {}
    for section, names in chosen.items():
        if names:
            begun = time.perf_counter()
            measured = _apart(
                Section(section, settings, device, names, beside, torch.get_num_threads()), libraries, log
            )
            lines += measured[0]
            times |= measured[1]
            log(f"{section}: {time.perf_counter() - begun:.0f} s")
    record = {
        **made,
        "settings": asdict(settings),
        "only": only,
        "beside": {"source": other.source, "sha256": other.sha256} if beside else None,
        "kernels": _kernels(libraries) if device == "cpu" else None,
        "backends": {name: reason or "available" for name, reason in backends.reasons().items()},
        "load_before": load,
        "seconds": round(time.perf_counter() - started, 1),
    }
    found = Found(lines, times, record)
    kind = "smoke" if smoke else "only" if only else ""
    target = folder("cpu" if device == "cpu" else "gpu", cpu.instruction_set(), kind)
    with records.atomic_replace(target) as fresh:
        write(found, fresh)
    return found, target


# Environment variables that hold torch, oneDNN, MKL and the compiled code of torch.compile to the instruction set that
# FREPRO_MARCH names for our kernels; each library reads its own when it is loaded or first used.
HELD = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "AVX": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX", "MKL_ENABLE_INSTRUCTIONS": "AVX"},
    "SSE2": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}


def held() -> dict[str, str]:
    """Return the environment in which all libraries use the instruction set of FREPRO_MARCH.

    It is empty if the processor has no more than this: then they need not be held to it.
    """
    march, instruction_set = os.environ.get("FREPRO_MARCH"), cpu.instruction_set()
    if not march or instruction_set not in HELD or instruction_set == processor_set():
        return {}
    return {**HELD[instruction_set], "TORCHINDUCTOR_CPP_MARCH": march}


def processor_set() -> str:
    """Return the widest instruction set that torch uses on this processor."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": "AVX-512", "DEFAULT": "SSE2"}.get(capability, capability)


def _kernels(libraries: Mapping[str, str]) -> dict[str, Any]:
    """Return which instruction set was measured, and on a processor with which, for the record."""
    return {
        "instruction_set": cpu.instruction_set(),
        "march": os.environ.get("FREPRO_MARCH") or "native",
        "processor": processor_set(),
        "held": dict(libraries),
    }


def _chosen(settings: Settings, other: besides.Beside, only: str | None) -> dict[str, tuple[str, ...]]:
    """Return the names to measure in each section."""
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
            f"no benchmark matches {only!r}: choose from " + "; ".join(f"{s}/ {', '.join(every[s])}" for s in SECTIONS)
        )
    for section in ("models", "parts"):
        kept[section] += [PEERS[name] for name in kept[section] if name in PEERS]
    if kept["operations"]:
        kept["operations"] += ["copy", "matrix_product"]  # the baseline for the others
    return {section: tuple(name for name in every[section] if name in kept[section]) for section in SECTIONS}


@dataclass(frozen=True)
class Section:
    """What one process of the benchmark measures."""

    name: str
    settings: Settings
    device: str
    chosen: tuple[str, ...]
    beside: Path | None
    threads: int

    def measure(self, log: Callable[[str], None]) -> Measured:
        torch.set_num_threads(self.threads)
        what, other = (self.settings, torch.device(self.device), self.chosen), besides.load(self.beside)
        match self.name:
            case "operations":
                log(f"operations: {', '.join(self.chosen)}")
                return operations.measure(*what, other)
            case "models":
                return models.measure(*what, other, log)
            case "parts":
                return parts.measure(*what, other, log)
            case _:
                return resolution.measure(*what, log)


def _apart(section: Section, environment: Mapping[str, str], log: Callable[[str], None]) -> Measured:
    """Run a section in a process of its own, forward its log lines, and return its result.

    Args:
        environment: Environment variables that its libraries find when they are loaded.
    """
    # A fork server imports everything once, but may have loaded the libraries before.
    context: SpawnContext | ForkServerContext
    context = multiprocessing.get_context("spawn") if environment else multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["frepro.models"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(section, sender))
    with patch.dict(os.environ, environment):
        process.start()
    sender.close()
    try:
        while isinstance(message := receiver.recv(), str):
            log(message)
    except EOFError:
        cause = "its process was killed, possibly because memory ran out"
        raise FreproError(f"{section.name}: {cause}") from None
    finally:
        process.terminate()
        process.join()
    if isinstance(message, Failure):
        raise message.error()
    return message


def _send(section: Section, sender: Connection) -> None:
    processes.end_with_and_without_interrupt()
    with contextlib.suppress(BrokenPipeError):  # the parent was killed
        sender.send(attempt(section.measure, sender.send))


def _load() -> float | None:
    """Return the load average of the machine over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
