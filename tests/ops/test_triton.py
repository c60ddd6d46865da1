"""The Triton kernels equal the plain forms: results and gradients in float32 against float64.

Without a GPU they run in Triton's interpreter, in one process that has TRITON_INTERPRET set before Triton is imported:
this file as a script. What the interpreter does not see, that the compiler takes the kernels, is tested beside it.
"""

import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from frepro.ops import backends, dynamic_filter, global_filter, selective_scan, triton

ROOT = Path(__file__).parents[2]
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


# Comparisons, on whatever device -------------------------------------------------------------------------------------


def errors(op: Callable, inputs: dict[str, Tensor], device: str) -> dict[str, float]:
    """Of the result and of each input's gradient: the largest error as a part of the largest number."""
    exact = {name: x.double().requires_grad_() for name, x in inputs.items()}
    fast = {name: x.to(device).requires_grad_() for name, x in inputs.items()}  # keeps its strides
    expected, result = op(**exact, backend="torch"), op(**fast, backend="triton")
    assert result.dtype == torch.float32
    gradient = torch.randn(expected.shape)
    expected.backward(gradient.double())
    result.backward(gradient.to(device))
    pairs = {name: (fast[name].grad, exact[name].grad) for name in inputs} | {"result": (result, expected)}
    return {name: error(*pair) for name, pair in pairs.items()}


def error(x: Tensor, expected: Tensor) -> float:
    assert x.shape == expected.shape
    expected = expected.detach()
    return ((x.detach().cpu().double() - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def scan_inputs(batch: int, dim: int, length: int, state: int, options: str = "D z delta_bias") -> dict[str, Tensor]:
    torch.manual_seed(length)
    u, delta, z = (torch.randn(batch, dim, length) for _ in range(3))
    B, C = (torch.randn(batch, state, length) for _ in range(2))
    inputs = {"u": u, "delta": delta, "A": -4 * torch.rand(dim, state), "B": B, "C": C}
    optional = {"D": torch.randn(dim), "z": z, "delta_bias": torch.randn(dim)}
    return inputs | {name: optional[name] for name in options.split()}


def filter_inputs(batch: int, height: int, width: int, channels: int, filters: int) -> dict[str, Tensor]:
    """Of a static filter where there are none to mix."""
    torch.manual_seed(height)
    x, half = torch.randn(batch, height, width, channels), width // 2 + 1
    if not filters:
        return {"x": x, "weight": torch.randn(height, half, channels, 2)}
    coefficients = torch.randn(batch, filters, channels)
    return {"x": x, "coefficients": coefficients, "basis": torch.randn(height, half, filters, 2)}


def time_first(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same sequences with their channels contiguous, as the models have them, and as halves of wider ones."""

    def laid(x: Tensor) -> Tensor:
        wide = torch.cat([x, x], dim=1).transpose(1, 2).contiguous().transpose(1, 2)
        return wide[:, x.shape[1] :]

    return {name: laid(x) if x.ndim == 3 else x for name, x in inputs.items()}


def steps(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Step sizes that are positive without a softplus."""
    return inputs | {name: inputs[name].abs() for name in ("delta", "delta_bias") if name in inputs}


def uneven() -> dict[str, Tensor]:
    """Steps from 1e-6 to 50 and rates from 1e-4 to 1e3: states that fade at once, or hardly in the whole sequence."""
    inputs = scan_inputs(1, 3, 60, 16, "")
    delta = torch.logspace(-14, 4, 60, base=torch.e).log().expand(1, 3, 60)
    return inputs | {"delta": delta.contiguous(), "A": -torch.logspace(-4, 3, 16).repeat(3, 1)}


scan = functools.partial(selective_scan, delta_softplus=True)
reverse_scan = functools.partial(scan, reverse=True)
plain_scan = selective_scan  # no softplus
plain_reverse_scan = functools.partial(selective_scan, reverse=True)
CASES = {
    "197 steps": lambda: (scan, scan_inputs(1, 5, 197, 16)),
    "197 steps, reverse": lambda: (reverse_scan, scan_inputs(1, 3, 197, 4)),
    "1 step": lambda: (scan, scan_inputs(2, 37, 1, 16)),
    "1 step, reverse": lambda: (reverse_scan, scan_inputs(1, 5, 1, 4)),
    "2 steps": lambda: (scan, scan_inputs(1, 7, 2, 4)),
    "2 steps, reverse": lambda: (reverse_scan, scan_inputs(2, 33, 2, 16)),
    "a chunk": lambda: (scan, scan_inputs(1, 32, 8, 4)),
    "channels contiguous": lambda: (reverse_scan, time_first(scan_inputs(2, 35, 11, 5))),
    "no options": lambda: (scan, scan_inputs(1, 5, 9, 4, "")),
    "no softplus": lambda: (plain_scan, steps(scan_inputs(1, 5, 9, 4, "z delta_bias"))),
    "no options, no softplus, reverse": lambda: (plain_reverse_scan, steps(scan_inputs(1, 5, 9, 4, ""))),
    "D alone": lambda: (scan, scan_inputs(1, 5, 9, 4, "D")),
    "z alone": lambda: (reverse_scan, scan_inputs(1, 5, 9, 16, "z")),
    "a bias alone": lambda: (scan, scan_inputs(1, 5, 9, 4, "delta_bias")),
    "a state of 1": lambda: (scan, scan_inputs(1, 5, 9, 1)),
    "a state of 64": lambda: (scan, scan_inputs(1, 3, 9, 64)),
    "steps and rates of any size": lambda: (scan, uneven()),
    "dynamic filter, 7 x 6": lambda: (dynamic_filter, filter_inputs(2, 7, 6, 33, 4)),
    "dynamic filter, 9 x 9": lambda: (dynamic_filter, filter_inputs(2, 9, 9, 40, 9)),
    "dynamic filter, 1 x 1": lambda: (dynamic_filter, filter_inputs(1, 1, 1, 1, 1)),
    "static filter, 7 x 6": lambda: (global_filter, filter_inputs(2, 7, 6, 33, 0)),
    "static filter, many samples": lambda: (global_filter, filter_inputs(37, 2, 3, 5, 0)),
}
HALF_CASES = {
    "scan": lambda: (reverse_scan, time_first(scan_inputs(1, 5, 20, 16))),
    "dynamic filter": lambda: (dynamic_filter, filter_inputs(2, 4, 6, 5, 3)),
    "static filter": lambda: (global_filter, filter_inputs(2, 4, 6, 5, 0)),
}


def rounding_errors(case: str, dtype: torch.dtype, device: str) -> dict[str, float]:
    """Result and gradients of samples in half precision, against those of the same numbers in float32, rounded."""
    op, inputs = HALF_CASES[case]()
    inputs = {name: x.to(dtype) if x.ndim == 3 or name == "x" else x for name, x in inputs.items()}
    narrow = {name: x.to(device).detach().requires_grad_() for name, x in inputs.items()}
    wide = {name: x.to(device).float().detach().requires_grad_() for name, x in inputs.items()}
    results = [op(**some, backend="triton") for some in (narrow, wide)]
    for result in results:
        result.sum().backward()  # a gradient whose strides are zero
    assert results[0].dtype == dtype
    assert all(x.grad.dtype == x.dtype for x in narrow.values())
    gradients = {name: (narrow[name].grad, wide[name].grad.to(x.dtype)) for name, x in narrow.items()}
    pairs = gradients | {"result": (results[0], results[1].to(dtype))}
    return {name: error(x, expected.cpu().double()) for name, (x, expected) in pairs.items()}


def check_operators() -> None:
    """Schema, fake kernel, autograd registration and tracing, by torch's own check of custom operators."""
    import frepro.ops.triton.spectral  # noqa: F401

    u, delta, A, B, C, D, z, bias = scan_inputs(1, 5, 3, 4).values()
    sequences = (x.to(torch.float16).transpose(1, 2).requires_grad_() for x in (u, delta, B, C, z))
    u, delta, B, C, z = sequences
    samples = [
        (torch.ops.frepro.selective_scan, (u, delta, A, B, C, D, z, bias, True, True, "triton")),
        (torch.ops.frepro.selective_scan, (u, delta, A, B, C, None, None, None, False, False, "triton")),
        (torch.ops.frepro.spectral_product, (torch.randn(2, 5, 6, 2), torch.randn(3, 6, 2), torch.rand(2, 3, 5))),
        (torch.ops.frepro.spectral_product, (torch.randn(2, 5, 6, 2), torch.randn(5, 6, 2), None)),
    ]
    for operator, arguments in samples:
        leaves = (x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in arguments)
        torch.library.opcheck(operator.default, tuple(leaves))


def compare(device: str) -> dict[str, dict[str, float]]:
    found = {case: errors(*make(), device) for case, make in CASES.items()}
    for case, (name, dtype) in itertools.product(HALF_CASES, HALF.items()):
        found[f"{case}, {name}"] = rounding_errors(case, dtype, device)
    return found


def assert_small(found: dict[str, float]) -> None:
    assert found["result"] <= 1e-5
    assert all(value <= 1e-4 for value in found.values()), found  # not a number is not small


def assert_rounded(found: dict[str, float], dtype: torch.dtype) -> None:
    """Sums in half precision would lose more."""
    assert all(value <= torch.finfo(dtype).eps for value in found.values()), found


# Interpreted on the CPU ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.ops.test_triton"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_form(interpreted, case):
    assert set(interpreted[case]) == {*CASES[case]()[1], "result"}
    assert_small(interpreted[case])


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("case", HALF_CASES)
def test_half_precisions_are_computed_in_float32(interpreted, case, name):
    assert_rounded(interpreted[f"{case}, {name}"], HALF[name])


def test_on_the_cpu_it_is_refused_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        ValueError, match="backend 'triton' cannot run selective_scan: tensors are on cpu, where it run"
    ):
        scan(**scan_inputs(1, 5, 3, 4), backend="triton")
    with pytest.raises(
        ValueError, match="backend 'triton' cannot run dynamic_filter: tensors are on cpu, where it run"
    ):
        dynamic_filter(**filter_inputs(1, 2, 3, 5, 3), backend="triton")


@pytest.fixture
def _fresh_reason():
    triton.reason.cache_clear()
    yield
    triton.reason.cache_clear()


@pytest.mark.usefixtures("_fresh_reason")
def test_the_reason_is_told_where_triton_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert backends.reasons()["triton"] == "triton is not installed"


@pytest.mark.usefixtures("_fresh_reason")
def test_the_reason_is_told_where_kernels_do_not_compile(monkeypatch):
    """As on a machine with a GPU and no compiler for Triton's launcher."""
    pytest.importorskip("triton")
    from frepro.ops.triton import probe

    def fails(self, grid):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(type(probe.nothing), "__getitem__", fails)
    assert backends.reasons()["triton"] == (
        "even an empty kernel fails (Failed to find C compiler. Please specify via CC environment variable.)"
    )


# Compiled ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def launches(monkeypatch, tmp_path) -> list[tuple]:
    """What kernels are launched with; they do not run."""
    pytest.importorskip("triton")
    if triton.is_interpreted():
        pytest.skip("Triton interprets its kernels here")
    from triton.runtime.jit import JITFunction

    launched = []
    monkeypatch.setattr(
        JITFunction, "run", lambda self, *args, grid, warmup, **rest: launched.append((self, args, rest))
    )
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    return launched


def compiled(kernel, arguments: tuple, options: dict, capability: int) -> dict:
    """The stages of the compiler, down to machine code, which takes no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    names = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}

    def kind(x):
        if isinstance(x, tuple):
            return tuple(kind(part) for part in x)
        return names[x.dtype] if isinstance(x, Tensor) else "i32" if isinstance(x, int) and x != 1 else "constexpr"

    def constants(x, *place):
        if isinstance(x, tuple):
            return {key: value for i, part in enumerate(x) for key, value in constants(part, *place, i).items()}
        return {place: x} if kind(x) == "constexpr" else {}

    named = {name: options[name] for name in kernel.arg_names[len(arguments) :]}
    signature = dict(zip(kernel.arg_names, map(kind, arguments), strict=False)) | dict.fromkeys(named, "constexpr")
    fixed = constants(arguments) | {(kernel.arg_names.index(name),): value for name, value in named.items()}
    others = {name: value for name, value in options.items() if name not in named}
    return compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", capability, 32), options=others).asm


@pytest.mark.parametrize(
    ("capability", "dtype", "state", "options"), [(80, torch.float32, 16, True), (90, torch.bfloat16, 5, False)]
)
def test_the_compiler_takes_the_scan(launches, capability, dtype, state, options):
    from frepro.ops.triton.scan import scan_backward, scan_forward

    u, delta, A, B, C, D, z, bias = scan_inputs(1, 40, 9, state).values()
    u, delta, B, C, z = (x.to(dtype).transpose(1, 2).contiguous() for x in (u, delta, B, C, z))
    optional = (D, z, bias) if options else (None, None, None)
    scan_forward(u, delta, A, B, C, *optional, options, not options)
    scan_backward(u, u, delta, A, B, C, *optional, options, not options)
    assert [kernel.__name__ for kernel, *_ in launches] == ["_forward", "_forward", "_backward"]
    for launch in launches:
        assert compiled(*launch, capability)["cubin"]


@pytest.mark.parametrize("capability", [80, 90])
def test_the_compiler_takes_the_filters(launches, capability):
    from frepro.ops.triton.spectral import spectral_product, spectral_product_backward

    x = torch.randn(2, 40, 28, 2)
    for weight, coefficients in ((torch.randn(3, 28, 2), torch.randn(2, 3, 40)), (torch.randn(40, 28, 2), None)):
        spectral_product(x, weight, coefficients)
        spectral_product_backward(x, x, weight, coefficients)
    names = [kernel.__name__ for kernel, *_ in launches]
    assert names == ["_forward", "_backward_dynamic", "_forward", "_backward_static"]
    for launch in launches:
        assert compiled(*launch, capability)["cubin"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda():
    """All that is interpreted elsewhere, compiled and run."""
    assert triton.reason() is None
    found = compare("cuda")
    for case in CASES:
        assert_small(found[case])
    for case, (name, dtype) in itertools.product(HALF_CASES, HALF.items()):
        assert_rounded(found[f"{case}, {name}"], dtype)


if __name__ == "__main__":
    check_operators()
    print(json.dumps(compare("cpu")))
