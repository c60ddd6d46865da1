"""The selective scan as one operator of torch: its shapes, its derivative and its cost, whatever kernels run it.

Sequences are (batch, time, channels) here, with any strides; gradients come out contiguous. Kernels are a module with
the functions ``scan_forward`` and ``scan_backward``, loaded when they are first asked for.
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
    """u, delta, z, result: (batch, time, D). A: (D, N). B, C: (batch, time, N). D, delta_bias: (D).

    All are float32 but where the kernels widen sequences themselves. ``kernels``: "cpu" or "triton".
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
    """Gradients of u, delta, A, B, C, D, z and delta_bias; of those that are none, something to be thrown away."""
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

    def plain(*tensors: Tensor | None) -> Tensor:
        turned = (x if x is None else x.transpose(1, 2) if x.ndim == 3 else x for x in tensors)
        options = {"delta_softplus": ctx.delta_softplus, "reverse": ctx.reverse, "backend": "torch"}
        return selective_scan(*turned, **options).transpose(1, 2)

    tensors = ctx.saved_tensors  # to be read once, says checkpointing
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
    """Nine operations for each channel, step and state, the count that the field uses for a selective scan."""
    batch, length, dim = u_shape
    return 9 * batch * length * dim * A_shape[1]
