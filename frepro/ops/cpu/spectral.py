"""Bindings of the CPU kernels for spectral filters, StarReLU and GELU."""

import ctypes
import functools
import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from frepro.ops import eager
from frepro.ops.cpu import call, pointer

MAX_RADIX = 32
MAX_FILTERS = 8


class _LengthPlan(ctypes.Structure):
    _fields_ = [
        ("n", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("cosine", ctypes.c_void_p),
        ("sine", ctypes.c_void_p),
    ]


class _Filter(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "basis", "coefficients")),
        *((name, _LengthPlan) for name in ("rows", "columns")),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "filters")),
        ("is_real", ctypes.c_int32),
    ]


@functools.cache
def factor(n: int) -> int | None:
    """Return the smaller of the two most similar factors of ``n``; ``None`` if the larger exceeds ``MAX_RADIX``."""
    if n == 0:
        return None
    first = next(k for k in range(math.isqrt(n), 0, -1) if n % k == 0)
    return first if n // first <= MAX_RADIX else None


@functools.cache
def _table(n: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
    return angle.cos().float(), angle.sin().float()


def _plan(n: int, table: tuple[Tensor, Tensor]) -> _LengthPlan:
    return _LengthPlan(n, factor(n), *map(pointer, table))


def _described(x: Tensor, weight: Tensor, coefficients: Tensor | None) -> tuple[_Filter, list[Tensor | None]]:
    """Return the arguments in the kernel's layout, and the tensors that must outlive the call."""
    batch, height, width, channels = x.shape
    along_rows, along_columns = _table(width), _table(height)
    kept = [x.contiguous(), weight.contiguous(), None if coefficients is None else coefficients.contiguous()]
    plans = _plan(width, along_rows), _plan(height, along_columns)
    described = _Filter(*map(pointer, kept), *plans, batch, channels, weight.shape[2], weight.ndim == 3)
    return described, [*kept, *along_rows, *along_columns]


def _filter(x: Tensor, weight: Tensor, coefficients: Tensor | None, y: Tensor) -> None:
    arguments, _kept = _described(x, weight, coefficients)
    call("filter_forward", ctypes.byref(arguments), pointer(y), ctypes.c_int32(False))


@torch.library.custom_op("frepro::spectral_filter", mutates_args=(), device_types="cpu")
def spectral_filter(x: Tensor, weight: Tensor, coefficients: Tensor | None) -> Tensor:
    """Filter x, (B, H, W, C), in the frequency domain; the result has its shape. All float32.

    Static filter: weight (H, W // 2 + 1, C, 2), or (H, W // 2 + 1, C) if it is real, and coefficients ``None``.
    Dynamic filter: weight (H, W // 2 + 1, N, 2), coefficients (B, N, C).
    """
    y = x.new_empty(x.shape)
    _filter(x, weight, coefficients, y)
    return y


@spectral_filter.register_fake
def _(x, weight, coefficients):
    return x.new_empty(x.shape)


@torch.library.custom_op("frepro::spectral_filter_", mutates_args=("x",), device_types="cpu")
def spectral_filter_(x: Tensor, weight: Tensor, coefficients: Tensor | None) -> None:
    """Overwrite a contiguous ``x`` with its ``spectral_filter``; no gradient."""
    _filter(x, weight, coefficients, x)


@spectral_filter_.register_fake
def _(x, weight, coefficients):
    pass


@torch.library.custom_op("frepro::spectral_filter_backward", mutates_args=(), device_types="cpu")
def spectral_filter_backward(
    dy: Tensor, x: Tensor, weight: Tensor, coefficients: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and coefficients (ignore the last if coefficients is ``None``)."""
    arguments, _kept = _described(x, weight, coefficients)
    dy, dx = dy.contiguous(), x.new_empty(x.shape)
    if coefficients is None:
        dweight, dcoefficients = x.new_zeros(*weight.shape[3:], *weight.shape[:3]), x.new_empty(0)
    else:
        dweight = x.new_zeros(torch.get_num_threads(), *weight.shape)
        dcoefficients = x.new_empty(coefficients.shape)
    call("filter_backward", ctypes.byref(arguments), *map(pointer, (dy, dx, dweight, dcoefficients)))
    points = x.shape[1] * x.shape[2]
    if coefficients is not None:
        return dx, dweight.sum(0) / points, dcoefficients / points
    dweight = dweight.movedim(0, 3) if weight.ndim == 4 else dweight
    return dx, (dweight / points).contiguous(), dcoefficients


@spectral_filter_backward.register_fake
def _(dy, x, weight, coefficients):
    dcoefficients = x.new_empty(0 if coefficients is None else coefficients.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dcoefficients


def _setup_filter(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward_filter(ctx, dy):
    tensors = ctx.saved_tensors  # activation checkpointing allows this to be read only once
    if (plain := eager.plain_gradients(_plain_filter, tensors, dy)) is not None:
        return plain
    dx, dweight, dcoefficients = torch.ops.frepro.spectral_filter_backward(dy, *tensors)
    return dx, dweight, None if tensors[2] is None else dcoefficients


def _plain_filter(x: Tensor, weight: Tensor, coefficients: Tensor | None) -> Tensor:
    from frepro.ops.spectral import dynamic_filter, global_filter

    if coefficients is None:
        return global_filter(x, weight, backend="torch")
    return dynamic_filter(x, coefficients, weight, backend="torch")


spectral_filter.register_autograd(_backward_filter, setup_context=_setup_filter)


@torch.library.custom_op("frepro::star_relu", mutates_args=(), device_types="cpu")
def star_relu(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return scale relu(x)^2 + bias for x of any shape; scale and bias have one element. All float32."""
    x, y = x.contiguous(), x.new_empty(x.shape)
    s, b = ctypes.c_float(scale.item()), ctypes.c_float(bias.item())
    call("star_relu_forward", pointer(x), s, b, ctypes.c_int64(x.numel()), pointer(y))
    return y


@star_relu.register_fake
def _(x, scale, bias):
    return x.new_empty(x.shape)


@torch.library.custom_op("frepro::star_relu_", mutates_args=("x",), device_types="cpu")
def star_relu_(x: Tensor, scale: Tensor, bias: Tensor) -> None:
    """Overwrite a contiguous ``x`` with its ``star_relu``; no gradient."""
    s, b = ctypes.c_float(scale.item()), ctypes.c_float(bias.item())
    call("star_relu_forward", pointer(x), s, b, ctypes.c_int64(x.numel()), pointer(x))


@star_relu_.register_fake
def _(x, scale, bias):
    pass


@torch.library.custom_op("frepro::star_relu_backward", mutates_args=(), device_types="cpu")
def star_relu_backward(dy: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, scale and bias."""
    dy, x, dx = dy.contiguous(), x.contiguous(), x.new_empty(x.shape)
    sums = torch.empty(2, dtype=torch.float64)
    s = ctypes.c_float(scale.item())
    call("star_relu_backward", pointer(x), pointer(dy), s, ctypes.c_int64(x.numel()), pointer(dx), pointer(sums))
    return dx, sums[:1].float(), sums[1:].float()


@star_relu_backward.register_fake
def _(dy, x, scale):
    return x.new_empty(x.shape), scale.new_empty(scale.shape), scale.new_empty(scale.shape)


def _setup_star(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward_star(ctx, dy):
    tensors = ctx.saved_tensors
    plain = eager.plain_gradients(lambda x, scale, bias: scale * x.relu().square() + bias, tensors, dy)
    return torch.ops.frepro.star_relu_backward(dy, *tensors[:2]) if plain is None else plain


star_relu.register_autograd(_backward_star, setup_context=_setup_star)


@torch.library.custom_op("frepro::gelu", mutates_args=(), device_types="cpu")
def gelu(x: Tensor) -> Tensor:
    """Return torch's GELU of x, of any shape, float32; the kernel computes the gradient only."""
    return torch.nn.functional.gelu(x)


@gelu.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("frepro::gelu_backward", mutates_args=(), device_types="cpu")
def gelu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of x."""
    dx = torch.empty_like(x)  # has the strides of x if x is dense
    x, dy = (t if t.stride() == dx.stride() else torch.empty_like(dx).copy_(t) for t in (x, dy))
    call("gelu_backward", *map(pointer, (x, dy)), ctypes.c_int64(x.numel()), pointer(dx))
    return dx


@gelu_backward.register_fake
def _(dy, x):
    return torch.empty_like(x)


def _setup_gelu(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward_gelu(ctx, dy):
    tensors = ctx.saved_tensors
    plain = eager.plain_gradients(torch.nn.functional.gelu, tensors, dy)
    return torch.ops.frepro.gelu_backward(dy, *tensors) if plain is None else plain[0]


gelu.register_autograd(_backward_gelu, setup_context=_setup_gelu)


@register_flop_formula([torch.ops.frepro.spectral_filter])
def filter_flops(x_shape, weight_shape, coefficients_shape=None, *args, out_shape=None, **kwargs) -> int:
    """Return the operations of two real transforms, 2.5 n log2 n for each map of n = H W numbers, and of the products.

    There are B C maps.
    """
    batch, height, width, channels = x_shape
    n = height * width
    product = 2 if len(weight_shape) == 3 else 6
    mixing = 0 if coefficients_shape is None else 4 * weight_shape[2]
    products = (product + mixing) * height * (width // 2 + 1)
    return int(batch * channels * (2 * 2.5 * n * math.log2(n) + products)) if n > 1 else batch * channels * products
