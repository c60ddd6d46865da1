"""Complete models: inference, the training step (forward, loss, backward), and latency (inference of one image)."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frepro.analysis.memory import make
from frepro.analysis.timing import interleaved
from frepro.bench.beside import Beside
from frepro.bench.results import BESIDE, OURS, PEER, PEERS, REFERENCE, Key, Line, line
from frepro.bench.settings import Settings
from frepro.ops import backends
from frepro.store import provenance

INFERENCE, TRAINING, LATENCY = "inference", "training step", "latency"
# What is timed of each variant. On a CPU, training is not compiled, which would take longer than all other timings.
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {
        "float32": (INFERENCE, TRAINING, LATENCY),
        "float32 compiled": (INFERENCE,),
        "bfloat16": (INFERENCE, TRAINING),
    },
    "cuda": {
        "float32": (INFERENCE, TRAINING, LATENCY),
        **dict.fromkeys(("bfloat16", "bfloat16 compiled", "bfloat16 channels-last"), (INFERENCE, TRAINING)),
    },
}


def names(settings: Settings, beside: Beside) -> tuple[str, ...]:
    """Return the names of all models that are timed."""
    peers = (PEERS[name] for name in settings.ours if name in PEERS)
    return tuple(dict.fromkeys((*settings.ours, *peers, *settings.others, *beside.models)))


def variants(device: torch.device) -> tuple[str, ...]:
    """Return the variants that the device can run at speed: bfloat16 on a CPU takes instructions that multiply it."""
    has_bfloat16 = device.type != "cpu" or (
        torch.backends.cpu.get_cpu_capability() == "AVX512"  # unless torch is held to another instruction set
        and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    )
    return tuple(variant for variant in VARIANTS[device.type] if has_bfloat16 or "bfloat16" not in variant)


def _is_timed(settings: Settings, device: torch.device, name: str, side: str, variant: str) -> bool:
    """Whether a variant includes a side: few models, and no slow references, where it takes long."""
    is_cpu = device.type == "cpu"
    if variant == "float32" or not ("compiled" in variant or is_cpu):
        return True
    return name in settings.compiled and side != REFERENCE and not (is_cpu and side == BESIDE)


def networks(
    settings: Settings, device: torch.device, chosen: tuple[str, ...], beside: Beside
) -> dict[tuple[str, str], nn.Module]:
    """Return the chosen models by name and side: ours, timm's, third-party."""
    made: dict[tuple[str, str], nn.Module] = {}
    for name in chosen:
        if timm.is_model(name):
            side = OURS if name in provenance.own_models() else PEER
            made[name, side] = make(name, settings.img_size).to(device)
        if name in beside.models:
            made[name, BESIDE] = beside.models[name]().to(device)
    return made


def measure(
    settings: Settings,
    device: torch.device,
    chosen: tuple[str, ...],
    beside: Beside,
    log: Callable[[str], None],
) -> tuple[list[Line], dict[Key, list[float]]]:
    """Time the chosen models, each combination of variant and work in rounds of its own."""
    torch.manual_seed(0)
    size = settings.img_size
    sides: dict[tuple[str, str], nn.Module] = {}
    for (name, side), network in networks(settings, device, chosen, beside).items():
        sides[name, side] = network
        if side == OURS:
            sides[name, REFERENCE] = network
    images = torch.randn(settings.batch_size, 3, size, size, device=device)
    labels = torch.randint(1000, (settings.batch_size,), device=device)

    lines: list[Line] = []
    rounds: dict[Key, list[float]] = {}
    for variant in variants(device):
        layout = torch.channels_last if "channels-last" in variant else torch.contiguous_format
        for work in VARIANTS[device.type][variant]:
            x = images[: 1 if work == LATENCY else None].contiguous(memory_format=layout)
            shape = " × ".join(map(str, x.shape))
            calls = {}
            for (name, side), network in sides.items():
                network.train(work == TRAINING).to(memory_format=layout)
                if not _is_timed(settings, device, name, side, variant):
                    continue
                # A compiled module is a module, which the annotation of torch.compile does not say.
                call: Any = torch.compile(network) if "compiled" in variant else network
                key = Key("models", name, shape, variant, work, side)
                calls[key] = partial(_turn, call, x, labels, side == REFERENCE, "bfloat16" in variant)
            if not calls:
                continue
            log(f"models, {variant}, {work}: {len(calls)} sides")
            count = settings.training_rounds if work == TRAINING else settings.rounds
            times, failures = interleaved(calls, count, device)
            rounds |= times
            lines += [line(k, times.get(k), images=len(x), note=failures.get(k, "")) for k in calls]
            for network in sides.values():
                network.zero_grad(set_to_none=True)
    return lines, rounds


def _turn(network: nn.Module, x: Tensor, labels: Tensor, is_reference: bool, is_half: bool) -> None:
    is_training = network.training
    with (
        backends.forced("torch") if is_reference else nullcontext(),
        nullcontext() if is_training else torch.inference_mode(),
        torch.autocast(x.device.type, torch.bfloat16, enabled=is_half),
    ):
        if not is_training:
            network(x)
            return
        network.zero_grad(set_to_none=True)
        loss = F.cross_entropy(network(x), labels)
    with backends.forced("torch") if is_reference else nullcontext():
        loss.backward()
