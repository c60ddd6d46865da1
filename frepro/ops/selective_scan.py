"""The selective scan of Mamba: a linear recurrence whose coefficients depend on the input.

"Mamba: Linear-Time Sequence Modeling with Selective State Spaces", Gu and Dao, https://arxiv.org/abs/2312.00752,
Algorithm 2. For each channel d of a sequence u, with a state h of N numbers,

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t          h_0 = 0
    y_t = C_t . h_t + D u_t                                 and y_t silu(z_t) where a gate z is given

A is discretised by zero-order hold, B by delta_t B_t, its first order (Vim-F's eq. 2 prints zero-order hold for both;
all published code does this).

``torch`` is the reference, plain and differentiable on every device. ``mamba_ssm`` calls the CUDA kernels of the
mamba-ssm package. The backend is the argument ``backend``, else the environment variable ``FREPRO_SCAN_BACKEND``, else
``torch``.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from frepro.ops.precision import without_autocast


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the recurrence over the last axis. The state is kept in float32 at least, whatever the dtype of ``u``.

    Args:
        u: Input, (batch, channels, length).
        delta: Step sizes, (batch, channels, length).
        A: Real transition rates, (channels, N); negative for a state that fades.
        B: Input coefficients: (batch, N, length), or (batch, G, N, length) for G equal groups of channels, or
            (channels, N) for fixed ones.
        C: Output coefficients, in one of the shapes of ``B``.
        D: Skip coefficients, (channels,).
        z: Gate, (batch, channels, length).
        delta_bias: Added to ``delta``, (channels,).
        delta_softplus: Pass ``delta``, bias included, through a softplus.
        return_last_state: Return the state after the last step too.
        backend: "torch" or "mamba_ssm".

    Returns:
        (batch, channels, length), in the dtype of ``u``; and (batch, channels, N) with ``return_last_state``.
    """
    backend = backend or os.environ.get("FREPRO_SCAN_BACKEND") or "torch"
    if backend not in BACKENDS:
        raise ValueError(f"unknown scan backend {backend!r}; there are {sorted(BACKENDS)}")
    return BACKENDS[backend](u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def _torch_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    input_dtype, length = u.dtype, u.shape[2]
    dtype = torch.promote_types(input_dtype, torch.float32)
    with without_autocast(u):
        u, delta, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
        if delta_bias is not None:
            delta = delta + delta_bias.to(dtype)[:, None]
        if delta_softplus:
            delta = F.softplus(delta)

        B, C = (_with_groups(x, u.shape[0], length) for x in (B, C))
        groups = max(B.shape[1], C.shape[1])
        B, C = (x.repeat_interleave(groups // x.shape[1], dim=1) for x in (B, C))

        # Channels as (groups, channels of a group); the state is (batch, groups, channels of a group, N). Time comes
        # first, so that a step reads contiguous memory and its gradient does not span the whole sequence.
        rates = A.unflatten(0, (groups, -1))
        steps = zip(
            _time_first(delta.unflatten(1, (groups, -1)).unsqueeze(3)),
            _time_first((delta * u).unflatten(1, (groups, -1)).unsqueeze(3)),
            _time_first(B.unsqueeze(2)),
            _time_first(C.unsqueeze(3)),
            strict=True,
        )
        state = u.new_zeros(u.shape[0], *rates.shape)
        outputs = []
        for delta_t, input_t, B_t, C_t in steps:
            state = torch.addcmul(torch.exp(delta_t * rates) * state, input_t, B_t)
            outputs.append(state @ C_t)
        y = torch.stack(outputs, dim=-1).flatten(1, 3)

        if D is not None:
            y = y + D.to(dtype)[:, None] * u
        if z is not None:
            y = y * F.silu(z.to(dtype))
    y = y.to(input_dtype)
    return (y, state.flatten(1, 2)) if return_last_state else y


def _with_groups(coefficients: Tensor, batch: int, length: int) -> Tensor:
    """Any accepted shape of B or C to (batch, groups, N, length)."""
    if coefficients.ndim == 2:
        return coefficients[None, :, :, None].expand(batch, -1, -1, length)
    return coefficients.unsqueeze(1) if coefficients.ndim == 3 else coefficients


def _time_first(x: Tensor) -> tuple[Tensor, ...]:
    """Cut the last axis, time, into one contiguous tensor for each step."""
    return x.movedim(-1, 0).contiguous().unbind(0)


def _mamba_ssm_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError as error:
        raise ImportError(f"scan backend 'mamba_ssm' cannot load ({error}); pip install 'frepro[mamba]'") from error
    if not u.is_cuda:
        raise ValueError(f"scan backend 'mamba_ssm' needs CUDA tensors; these are on {u.device}")
    # The kernels want all that depends on time in the dtype of u, and all that does not in float32.
    A, D, delta_bias = (x if x is None else x.float() for x in (A, D, delta_bias))
    B, C = (x.float() if x.ndim == 2 else x.to(u.dtype) for x in (B, C))
    delta, z = (x if x is None else x.to(u.dtype) for x in (delta, z))
    return selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


BACKENDS = {"torch": _torch_scan, "mamba_ssm": _mamba_ssm_scan}
