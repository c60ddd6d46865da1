"""Throughput and peak memory of inference against resolution (DFFormer's Figures 5 and 6)."""

from collections.abc import Callable
from functools import partial

import torch

from frepro.analysis.memory import forward_memory, make
from frepro.analysis.timing import interleaved
from frepro.bench.models import INFERENCE
from frepro.bench.results import OURS, PEER, Key, Line, line
from frepro.bench.settings import Settings
from frepro.errors import FreproError
from frepro.store import provenance


def measure(
    settings: Settings, device: torch.device, names: tuple[str, ...], log: Callable[[str], None]
) -> tuple[list[Line], dict[Key, list[float]]]:
    """Measure the memory of each model at each size, then the throughput of those that fit, in interleaved rounds."""
    batch = settings.resolution_batch
    facts: dict[Key, dict[str, float | str]] = {}
    log(f"resolution: memory of {len(names)} models at {', '.join(map(str, settings.resolutions))} pixels")
    for size in settings.resolutions:
        for name in names:
            side = OURS if name in provenance.own_models() else PEER
            key = Key("resolution", name, str(size), "float32", INFERENCE, side)
            try:
                memory = forward_memory(name, size, batch, device.type)
                facts[key] = {"weights_mib": memory["weights"], "forward_mib": memory["forward"]}
            except FreproError as error:
                facts[key] = {"note": str(error)}
                log(f"resolution: {error}")

    torch.manual_seed(0)
    networks = {name: make(name, settings.resolutions[0]).to(device).eval() for name in names}
    lines: list[Line] = []
    rounds: dict[Key, list[float]] = {}
    with torch.inference_mode():
        for size in settings.resolutions:
            log(f"resolution: throughput at {size} pixels")
            images = torch.randn(batch, 3, size, size, device=device)
            keys = [key for key in facts if key.size == str(size)]
            for key in keys:
                if (resize := getattr(networks[key.name], "set_input_size", None)) is not None:
                    resize(size)
            sides = {key: partial(networks[key.name], images) for key in keys if "note" not in facts[key]}
            times, failures = interleaved(sides, settings.rounds, device)
            rounds |= times
            lines += [line(k, times.get(k), images=batch, **{"note": failures.get(k, ""), **facts[k]}) for k in keys]
    return lines, rounds
