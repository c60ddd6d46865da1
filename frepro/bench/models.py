"""Whole models: inference, and the training step (forward, loss, backward)."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frepro import provenance
from frepro.analysis.memory import make
from frepro.analysis.timing import in_turn
from frepro.bench.beside import Beside
from frepro.bench.results import BESIDE, OURS, PEER, PEERS, REFERENCE, Key, Line, line
from frepro.bench.settings import Settings
from frepro.ops import backends

INFERENCE, TRAINING = "inference", "training step"
VARIANTS = {
    "cpu": ("float32",),
    "cuda": ("float32", "bfloat16", "bfloat16 compiled", "bfloat16 channels-last"),
}


def names(settings: Settings, beside: Beside) -> tuple[str, ...]:
    """Every model that is timed."""
    peers = (PEERS[name] for name in settings.ours if name in PEERS)
    return tuple(dict.fromkeys((*settings.ours, *peers, *settings.others, *beside.models)))


def measure(
    settings: Settings,
    device: torch.device,
    chosen: tuple[str, ...],
    beside: Beside,
    log: Callable[[str], None],
    variants: tuple[str, ...] | None = None,
) -> tuple[list[Line], dict[Key, list[float]]]:
    """Time the models chosen, each variant and each work in rounds of its own."""
    torch.manual_seed(0)
    size = settings.img_size
    networks: dict[tuple[str, str], nn.Module] = {}
    for name in chosen:
        if timm.is_model(name):
            side = OURS if name in provenance.own_models() else PEER
            networks[name, side] = make(name, size).to(device)
            if side == OURS:
                networks[name, REFERENCE] = networks[name, side]
        if name in beside.models:
            networks[name, BESIDE] = beside.models[name]().to(device)
    images = torch.randn(settings.batch_size, 3, size, size, device=device)
    labels = torch.randint(1000, (settings.batch_size,), device=device)
    shape = " × ".join(map(str, images.shape))

    lines, rounds = [], {}
    for variant in variants or VARIANTS[device.type]:
        layout = torch.channels_last if "channels-last" in variant else torch.contiguous_format
        x = images.contiguous(memory_format=layout)
        for work in (INFERENCE, TRAINING):
            sides = {}
            for (name, side), network in networks.items():
                network.train(work == TRAINING).to(memory_format=layout)
                if "compiled" in variant and (side == REFERENCE or name not in settings.compiled):
                    continue
                call = torch.compile(network) if "compiled" in variant else network
                key = Key("models", name, shape, variant, work, side)
                sides[key] = partial(_turn, call, x, labels, side == REFERENCE, "bfloat16" in variant)
            if not sides:
                continue
            log(f"models, {variant}, {work}: {len(sides)} sides")
            times, failures = in_turn(sides, settings.rounds, device)
            rounds |= times
            lines += [line(k, times.get(k), images=len(images), note=failures.get(k, "")) for k in sides]
            for network in networks.values():
                network.zero_grad(set_to_none=True)
    return lines, rounds


def _turn(network: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, is_reference: bool, is_half: bool) -> None:
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
