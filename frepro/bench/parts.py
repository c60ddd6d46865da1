"""Time of a forward pass by part: matrix products, which give its lower bound, and everything else."""

import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from frepro.analysis.cost import matrix_products
from frepro.bench.beside import Beside
from frepro.bench.models import networks
from frepro.bench.results import ACTIVATIONS, BESIDE, CONVOLUTIONS, NORMS, PARTS, PRODUCTS, REST, Key, Line, line
from frepro.bench.settings import Settings
from frepro.models import layers


def part_of(module: nn.Module) -> str | None:
    """Return the part that a layer's time is counted in; ``None`` for containers and unlisted layers."""
    if isinstance(module, nn.Linear):
        return PRODUCTS
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return PRODUCTS if set(module.kernel_size) == {1} and module.groups == 1 else CONVOLUTIONS
    if any(isinstance(inner, nn.Linear | nn.Conv1d | nn.Conv2d) for inner in module.modules()):
        return None
    name = type(module).__name__
    if "Norm" in name:
        return NORMS
    return ACTIVATIONS if name in ("GELU", "ReLU", "SiLU", "Sigmoid", "StarReLU", "SquaredReLU") else None


def seconds(network: nn.Module, images: Tensor) -> dict[str, float]:
    """Return the seconds that a forward pass spends in each of ``PARTS`` on a CPU, which executes synchronously."""
    found, open_calls = dict.fromkeys(PARTS, 0.0), []

    def enter(module: nn.Module, inputs: Any) -> None:
        open_calls.append(time.perf_counter())

    def leave(part: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            started = open_calls.pop()
            if not open_calls:  # not inside a layer that is already timed
                found[part] += time.perf_counter() - started

        return hook

    def timed(operation: Callable[[nn.Module, Tensor, bool], Tensor]) -> Callable[[nn.Module, Tensor, bool], Tensor]:
        def call(module: nn.Module, x: Tensor, inplace: bool) -> Tensor:
            part = part_of(module)
            assert part is not None  # every layer that is called by an operation has a part
            enter(module, None)
            output = operation(module, x, inplace)
            leave(part)(module, None, output)
            return output

        return call

    # A hook on a layer that our models call by an operation would put the layer's own, slower call in its place.
    by_operation = set(layers.OPERATIONS) if type(network).__module__.startswith("frepro.") else set()
    head = set(network.get_submodule("head").modules()) if by_operation else set()
    handles = []
    for module in network.modules():
        if (part := part_of(module)) and (module in head or type(module) not in by_operation):
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave(part))]
    try:
        started = time.perf_counter()
        with patch.dict(layers.OPERATIONS, {kind: timed(each) for kind, each in layers.OPERATIONS.items()}):
            network(images)
        whole = time.perf_counter() - started
    finally:
        for handle in handles:
            handle.remove()
    found[REST] = whole - sum(found.values())
    return found


def measure(
    settings: Settings,
    device: torch.device,
    chosen: tuple[str, ...],
    beside: Beside,
    log: Callable[[str], None],
) -> tuple[list[Line], dict[Key, list[float]]]:
    """Time inference of the chosen models in interleaved rounds, every other round in reverse order.

    Returns nothing on a GPU, which executes layers asynchronously.
    """
    if device.type != "cpu":
        return [], {}
    torch.manual_seed(0)
    size = settings.img_size
    images = torch.randn(settings.batch_size, 3, size, size)
    shape = " × ".join(map(str, images.shape))
    sides = {each: network.eval() for each, network in networks(settings, device, chosen, beside).items()}
    log(f"parts: {len(sides)} sides")
    rounds: dict[Key, list[float]] = {}
    with torch.inference_mode():
        for each, network in list(sides.items()):
            try:
                network(images)
            except Exception as error:  # also reported with the models; the others continue
                log(f"parts: {' of '.join(each)} skipped, {type(error).__name__}: {error}")
                del sides[each]
        for number in range(settings.rounds):
            for name, side in reversed(sides) if number % 2 else list(sides):
                for part, value in seconds(sides[name, side], images).items():
                    rounds.setdefault(Key("parts", name, shape, "float32", part, side), []).append(value)
    flops = {
        (name, PRODUCTS, side): 2 * len(images) * matrix_products(name, size) for name, side in sides if side != BESIDE
    }
    lines = [
        line(key, times, images=len(images), flops=flops.get((key.name, key.work, key.side)))
        for key, times in rounds.items()
    ]
    return lines, rounds
