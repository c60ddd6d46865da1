"""Operations at the sizes that models use, and the limits of the machine."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from frepro import ops
from frepro.analysis.timing import interleaved
from frepro.bench.beside import Beside
from frepro.bench.results import BESIDE, MACHINE, OURS, REFERENCE, Key, Line, line
from frepro.bench.settings import Settings
from frepro.errors import unknown
from frepro.ops import backends
from frepro.ops.cpu.spectral import filter_flops
from frepro.ops.scan_op import scan_flops

NAMES = (
    "copy",
    "matrix_product",
    "selective_scan",
    "causal_conv",
    "dynamic_filter",
    "global_filter",
    "pooled_linear",
    "star_relu",
    "gelu",
    "depthwise_conv",
    "linear",
)
FORWARD, BOTH = "forward", "forward and backward"
GELU_FLOPS = 6  # per element, with the error function counted as one
KERNEL = 7  # of a depthwise convolution, pixels per side
CUDA_SCANS = ("triton", "mamba_ssm")  # timed in addition to the default


@dataclass(frozen=True)
class Case:
    """An operation with its inputs.

    Attributes:
        inputs: Arguments of the call; those that require a gradient get one in a backward pass.
        flops: Operations on real numbers per call.
    """

    name: str
    size: str
    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    flops: int


def measure(
    settings: Settings, device: torch.device, names: tuple[str, ...], beside: Beside
) -> tuple[list[Line], dict[Key, list[float]]]:
    """Time the operations with these names, forward alone and with the backward pass."""
    for name in beside.operations:
        if name not in NAMES:
            raise unknown("operation of --beside", name, NAMES)
    torch.manual_seed(0)
    sides: dict[Key, Callable[[], object]] = {}
    facts: dict[Key, dict[str, int]] = {}
    for case in cases(settings, device):
        if case.name not in names:
            continue
        output = case.function(*case.inputs).detach()
        moved = sum(tensor.nbytes for tensor in (*case.inputs, output))
        for side, backend, call in _calls(case, device, beside):
            for work in (FORWARD, BOTH):
                if case.name == "copy" and work == BOTH:
                    continue
                key = Key("operations", case.name, case.size, "float32", work, side)
                sides[key] = partial(_turn, call, backend, work, case.inputs, torch.randn_like(output))
                facts[key] = {"flops": case.flops, "bytes": moved} if work == FORWARD else {}
    times, failures = interleaved(sides, settings.rounds, device, settings.least)
    return [line(key, times.get(key), note=failures.get(key, ""), **facts[key]) for key in sides], times


def _calls(case: Case, device: torch.device, beside: Beside) -> Iterator[tuple[str, str | None, Callable[[], Tensor]]]:
    """Yield each side, the backend that it is forced to use, and the call."""
    ours = partial(case.function, *case.inputs)
    if case.name == "copy":
        yield MACHINE, None, ours
        return
    yield REFERENCE, "torch", ours
    yield OURS, None, ours
    if case.name == "selective_scan" and device.type == "cuda":
        for backend in CUDA_SCANS:
            yield backend, None, partial(ours, backend=backend)
    if case.name in beside.operations:
        yield BESIDE, None, beside.operations[case.name](*case.inputs)


def _turn(
    call: Callable[[], Tensor], backend: str | None, work: str, inputs: tuple[Tensor, ...], gradient: Tensor
) -> None:
    with backends.forced(backend) if backend else nullcontext():
        if work == FORWARD:
            with torch.inference_mode():
                call()
            return
        call().backward(gradient)
    for tensor in inputs:
        tensor.grad = None


def cases(settings: Settings, device: torch.device) -> Iterator[Case]:
    """Yield all operations at the sizes of DFFormer-S18, SPANet-S and Vim-Ti."""

    def learnt(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, device=device).mul_(scale).requires_grad_()

    batch, side = settings.batch_size, settings.product
    source = torch.randn(settings.copied // 4, device=device)
    yield Case("copy", f"{settings.copied / 2**20:g} MiB", torch.empty_like(source).copy_, (source,), 0)
    x, weight = learnt(side, side), learnt(side, side)
    yield Case("matrix_product", f"{_shape(x)} × {side}", ops.linear, (x, weight), 2 * side**3)

    def sequence(channels: int) -> Tensor:
        """Return (batch, channels, length) as in Vim: channels-last in memory."""
        return torch.randn(batch, length, channels, device=device).transpose(1, 2).requires_grad_()

    channels, length, state = settings.scan
    u, delta, gate, B, C = map(sequence, (channels, channels, channels, state, state))
    A = torch.arange(1.0, state + 1, device=device).repeat(channels, 1).neg().requires_grad_()
    scanned = (u, delta, A, B, C, learnt(channels), gate, learnt(channels))
    yield Case("selective_scan", f"{_shape(u)}, state {state}", _scan, scanned, scan_flops(u, delta, A))
    width = 4
    convolved = (u, learnt(channels, width), learnt(channels))
    yield Case("causal_conv", f"{_shape(u)}, width {width}", ops.causal_conv, convolved, u.numel() * (2 * width + 4))

    for height, width, dim in settings.maps:  # filters have twice the channels of the stage
        x, basis = learnt(batch, height, width, 2 * dim), learnt(height, width // 2 + 1, 4, 2)
        mixture = torch.randn(batch, 4, 2 * dim, device=device).softmax(1).requires_grad_()
        flops = filter_flops(x, basis, mixture)
        yield Case("dynamic_filter", _shape(x), ops.dynamic_filter, (x, mixture, basis), flops)
    for height, width, dim in settings.maps:
        x, weight = learnt(batch, height, width, 2 * dim), learnt(height, width // 2 + 1, 2 * dim, 2)
        yield Case("global_filter", _shape(x), ops.global_filter, (x, weight), filter_flops(x, weight))
    for (height, width, dim), radius in zip(settings.maps, (2, 2, 1, 1), strict=False):
        yield _pooled_linear(learnt(batch, height, width, dim), radius, learnt)
    for height, width, dim in settings.maps:  # and MLPs four times as many
        x = learnt(batch, height, width, 4 * dim)
        yield Case("star_relu", _shape(x), ops.star_relu, (x, learnt(1), learnt(1)), 4 * x.numel())
        yield Case("gelu", _shape(x), ops.gelu, (x,), GELU_FLOPS * x.numel())
    for height, width, dim in settings.maps:  # as in separable convolutions, on twice the channels of the stage
        x = torch.randn(batch, height, width, 2 * dim, device=device).permute(0, 3, 1, 2).requires_grad_()
        flops = 2 * x.numel() * KERNEL**2
        weight = learnt(2 * dim, 1, KERNEL, KERNEL, scale=1 / KERNEL)
        yield Case("depthwise_conv", f"{_shape(x)}, {KERNEL} × {KERNEL}", ops.depthwise_conv, (x, weight), flops)
    for height, width, dim in settings.maps:
        x, weight = learnt(batch, height, width, dim), learnt(4 * dim, dim, scale=dim**-0.5)
        yield Case("linear", f"{_shape(x)} to {4 * dim}", ops.linear, (x, weight), 2 * x.numel() * 4 * dim)


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Call the scan as Vim does."""
    output = ops.selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True, backend=backend)
    assert isinstance(output, Tensor)  # the last state, which makes it a pair, is returned only on request
    return output


def _pooled_linear(x: Tensor, radius: float, learnt: Callable[..., Tensor]) -> Case:
    """Return the case as SPANet calls it, with three groups of channels."""
    height, width, dim = x.shape[1:]
    masks = [ops.spectral_pooling_mask(height, width, radius, balance, device=x.device) for balance in (0.7, 0.8, 0.9)]
    share = -(-dim // 3)
    weights = [learnt(dim, size, scale=dim**-0.5) for size in (share, share, dim - 2 * share)]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return ops.pooled_linear(x, masks, radius, parameters[:3], parameters[3])

    return Case("pooled_linear", _shape(x), function, (x, *weights, learnt(dim)), 2 * x.numel() * dim)


def _shape(x: Tensor) -> str:
    return " × ".join(map(str, x.shape))
