"""Bindings of the CPU kernels for the selective scan and the convolution before it.

Sequences are (batch, time, channels) here, with any strides; gradients are contiguous.
"""

import ctypes

import torch
from torch import Tensor

from frepro.ops import eager
from frepro.ops.cpu import call, pointer


class _Strides(ctypes.Structure):
    _fields_ = [(axis, ctypes.c_int64) for axis in ("batch", "time", "channel")]

    @classmethod
    def of(cls, tensor: Tensor | None) -> "_Strides":
        return cls() if tensor is None else cls(*tensor.stride())


class _Scan(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("u", "delta", "z", "A", "B", "C", "D", "bias")),
        *((name, _Strides) for name in ("su", "sdelta", "sz", "sB", "sC")),
        *((name, ctypes.c_int64) for name in ("batch", "length", "dim", "state")),
        *((name, ctypes.c_int32) for name in ("is_softplus", "is_reverse")),
    ]


class _Gradients(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("u", "delta", "z", "A", "B", "C", "D", "bias")]


class _Convolution(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias")),
        ("sx", _Strides),
        *((name, ctypes.c_int64) for name in ("batch", "length", "dim", "width")),
        ("is_reverse", ctypes.c_int32),
    ]


def _described(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[_Scan, list[Tensor | None]]:
    """Return the arguments in the kernel's layout, and the tensors that must outlive the call."""
    batch, length, dim = u.shape
    B, C = (x if x.stride(2) == 1 else x.contiguous() for x in (B, C))
    kept = [u, delta, z, A.t().contiguous(), B, C, *(x if x is None else x.contiguous() for x in (D, delta_bias))]
    strides = (_Strides.of(x) for x in (u, delta, z, B, C))
    sizes = (batch, length, dim, A.shape[1])
    return _Scan(*map(pointer, kept), *strides, *sizes, delta_softplus, reverse), kept


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> Tensor:
    """Run the scan; see ``frepro.ops.scan_op``. All float32."""
    arguments, _kept = _described(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    y = u.new_empty(u.shape)
    call("scan_forward", ctypes.byref(arguments), pointer(y), ctypes.byref(_Strides.of(y)))
    return y


def scan_backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """Return the gradients of u, delta, A, B, C, D, z and delta_bias; ignore those of inputs that are ``None``."""
    arguments, _kept = _described(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    (batch, length, dim), state = u.shape, A.shape[1]
    parts = max(1, torch.get_num_threads() // max(1, batch))
    du, ddelta = u.new_empty(u.shape), u.new_empty(u.shape)
    dz = u.new_empty(u.shape if z is not None else 0)
    dA, dB, dC = u.new_empty(batch, state, dim), *(u.new_empty(batch, parts, length, state) for _ in range(2))
    dD, dbias = u.new_empty(batch, dim), u.new_empty(batch, dim)
    out = _Gradients(*map(pointer, (du, ddelta, dz, dA, dB, dC, dD, dbias)))
    call(
        "scan_backward",
        ctypes.byref(arguments),
        pointer(dy),
        ctypes.byref(_Strides.of(dy)),
        ctypes.byref(out),
        ctypes.c_int64(parts),
    )
    return du, ddelta, dA.sum(0).t().contiguous(), dB.sum(1), dC.sum(1), dD.sum(0), dz, dbias.sum(0)


@torch.library.custom_op("frepro::causal_conv", mutates_args=(), device_types="cpu")
def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """Convolve, then apply SiLU. x, result: (batch, time, D). weight: (D, width). bias: (D,). All float32."""
    arguments, _kept = _described_conv(x, weight, bias, reverse)
    y = x.new_empty(x.shape)
    call("convolution_forward", ctypes.byref(arguments), pointer(y))
    return y


@causal_conv.register_fake
def _(x, weight, bias, reverse):
    return x.new_empty(x.shape)


def _described_conv(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> tuple[_Convolution, list[Tensor]]:
    kept = [x, weight.t().contiguous(), bias.contiguous()]
    return _Convolution(*map(pointer, kept), _Strides.of(x), *x.shape, weight.shape[1], reverse), kept


@torch.library.custom_op("frepro::causal_conv_backward", mutates_args=(), device_types="cpu")
def causal_conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias."""
    arguments, _kept = _described_conv(x, weight, bias, reverse)
    dx = x.new_zeros(x.shape)
    dweight, dbias = x.new_empty(len(x), *weight.t().shape), x.new_empty(len(x), len(bias))
    call(
        "convolution_backward",
        ctypes.byref(arguments),
        pointer(dy),
        ctypes.byref(_Strides.of(dy)),
        *map(pointer, (dx, dweight, dbias)),
    )
    return dx, dweight.sum(0).t().contiguous(), dbias.sum(0)


@causal_conv_backward.register_fake
def _(dy, x, weight, bias, reverse):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _setup_conv(ctx, inputs, output):
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _backward_conv(ctx, dy):
    from frepro.ops.causal_conv import causal_conv

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return causal_conv(x.transpose(1, 2), weight, bias, reverse=ctx.reverse, backend="torch").transpose(1, 2)

    tensors = ctx.saved_tensors
    if (found := eager.plain_gradients(plain, tensors, dy)) is not None:
        return *found, None
    return *torch.ops.frepro.causal_conv_backward(dy, *tensors, ctx.reverse), None


causal_conv.register_autograd(_backward_conv, setup_context=_setup_conv)
