"""The selective scan as a torch operator: its shapes, gradient and FLOPs, independent of the kernels that run it.

Sequences are (batch, time, channels) here, with any strides; gradients are contiguous. The kernels of a backend are a
module with the functions ``scan_forward`` and ``scan_backward``, which is imported at first use.
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from frepro.ops import eager

MAX_STATE = 64


@torch.library.custom_op("frepro::selective_scan", mutates_args=())
def scan(
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
    kernels: str = "cpu",
) -> Tensor:
    """Run the scan. u, delta, z, result: (batch, time, D). A: (D, N). B, C: (batch, time, N). D, delta_bias: (D).

    All are float32, except that Triton's kernels take sequences in half precision and convert them themselves.
    ``kernels``: "cpu" or "triton".
    """
    return _kernels(kernels).scan_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)


@scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, kernels="cpu"):
    return u.new_empty(u.shape)


@torch.library.custom_op("frepro::selective_scan_backward", mutates_args=())
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
    kernels: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B, C, D, z and delta_bias; ignore those of inputs that are ``None``."""
    return _kernels(kernels).scan_backward(dy, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)


@scan_backward.register_fake
def _(dy, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, kernels):
    dz = u.new_empty(0) if z is None else z.new_empty(z.shape)
    of_D = A.new_empty(len(A))
    return (*(x.new_empty(x.shape) for x in (u, delta, A, B, C)), of_D, dz, of_D.clone())


def _kernels(name: str) -> ModuleType:
    return importlib.import_module(f"frepro.ops.{name}.scan")


def _setup(ctx, inputs, output):
    *tensors, ctx.delta_softplus, ctx.reverse, ctx.kernels = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy):
    from frepro.ops.selective_scan import selective_scan

    def plain(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *optional: Tensor | None) -> Tensor:
        u, delta, B, C = (x.transpose(1, 2) for x in (u, delta, B, C))
        D, z, delta_bias = optional
        z = z if z is None else z.transpose(1, 2)
        y = selective_scan(
            u, delta, A, B, C, D, z, delta_bias, ctx.delta_softplus, reverse=ctx.reverse, backend="torch"
        )
        return y.transpose(1, 2)

    tensors = ctx.saved_tensors  # activation checkpointing allows this to be read only once
    if (found := eager.plain_gradients(plain, tensors, dy)) is not None:
        return *found, None, None, None
    gradients = torch.ops.frepro.selective_scan_backward(dy, *tensors, ctx.delta_softplus, ctx.reverse, ctx.kernels)
    du, ddelta, dA, dB, dC, dD, dz, dbias = gradients
    D, z, delta_bias = tensors[5:]
    optional = (g if x is not None else None for x, g in ((D, dD), (z, dz), (delta_bias, dbias)))
    return du, ddelta, dA, dB, dC, *optional, None, None, None


scan.register_autograd(_backward, setup_context=_setup)


@register_flop_formula([torch.ops.frepro.selective_scan])
def scan_flops(u_shape, delta_shape, A_shape, *args, out_shape=None, **kwargs) -> int:
    """Return nine operations for each channel, step and state, the usual count for a selective scan."""
    batch, length, dim = u_shape
    return 9 * batch * length * dim * A_shape[1]
