"""The selective scan of Mamba: a linear recurrence whose coefficients depend on the input.

"Mamba: Linear-Time Sequence Modeling with Selective State Spaces", Gu and Dao, https://arxiv.org/abs/2312.00752,
Algorithm 2. For each channel d of a sequence u, with a state h of N numbers, ::

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t          h_0 = 0
    y_t = C_t . h_t + D u_t                                 multiplied by silu(z_t) if a gate z is given

A is discretised by zero-order hold; B by delta_t B_t, its first-order approximation. (Vim-F's eq. 2 prints zero-order
hold for both; all published code does the above.)

The backend ``torch`` is the reference, plain PyTorch that is differentiable on every device; ``cpu`` is frepro's C
kernels and ``triton`` its CUDA kernels; ``mamba_ssm`` calls the CUDA kernels of the mamba-ssm package. See ``backends``
for how one is selected.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.scan import scan as scan_in_a_graph

from frepro.ops import backends, cpu, eager, triton
from frepro.ops.precision import without_autocast
from frepro.ops.scan_op import MAX_STATE, scan

REVISION = {"selective scan": 1}


@overload
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
    return_last_state: Literal[False] = False,
    *,
    reverse: bool = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
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
    *,
    return_last_state: Literal[True],
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


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
    reverse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the recurrence over the last axis. The state is float32 or wider, whatever the dtype of ``u``.

    Args:
        u: Input, (batch, channels, length).
        delta: Step sizes, (batch, channels, length).
        A: Real transition rates, (channels, N); negative for a state that decays.
        B: Input coefficients: (batch, N, length), or (batch, G, N, length) for G groups of channels of equal size, or
            (channels, N) for coefficients that do not depend on time.
        C: Output coefficients, in one of the shapes of ``B``.
        D: Skip coefficients, (channels,).
        z: Gate, (batch, channels, length).
        delta_bias: Added to ``delta``, (channels,).
        delta_softplus: Apply softplus to ``delta``, after adding the bias.
        return_last_state: Also return the state after the last step.
        reverse: Run from the last step to the first; the last state is then the one at the first step.
        backend: "torch", "cpu", "triton" or "mamba_ssm". ``None`` selects the fastest backend that supports the inputs.

    Returns:
        The result, (batch, channels, length), in the dtype of ``u``; with ``return_last_state``, a tuple of the result
        and the last state, (batch, channels, N).

    Raises:
        ValueError: ``backend`` is unknown or does not support the inputs.
    """
    arguments = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, reverse)
    # On CUDA, mamba-ssm is preferred if it is installed, until the Triton kernels have been compared with it on a GPU.
    kernel_obstacle = _kernel_obstacle(u, delta, A, B, C, D, z, delta_bias, return_last_state)
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    obstacles = {
        "mamba_ssm": _mamba_ssm_obstacle(u),
        "cpu": kernel_obstacle or cpu.obstacle(*tensors),
        "triton": kernel_obstacle or triton.obstacle(*tensors),
    }
    return BACKENDS[backends.choose("selective_scan", obstacles, backend)](*arguments)


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
    reverse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    if reverse:
        u, delta, B, C = (_flipped(x) for x in (u, delta, B, C))
        z = z if z is None else _flipped(z)
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

        # Channels are split into (groups, channels of a group); the state is (batch, groups, channels of a group, N).
        # Time comes first, so that a step reads contiguous memory and its gradient does not span the whole sequence.
        rates = A.unflatten(0, (groups, -1))
        sequences = (
            _time_first(delta.unflatten(1, (groups, -1)).unsqueeze(3)),
            _time_first((delta * u).unflatten(1, (groups, -1)).unsqueeze(3)),
            _time_first(B.unsqueeze(2)),
            _time_first(C.unsqueeze(3)),
        )

        def step(state: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            delta_t, input_t, B_t, C_t = inputs
            state = torch.addcmul(torch.exp(delta_t * rates) * state, input_t, B_t)
            return state, state @ C_t

        state = u.new_zeros(u.shape[0], *rates.shape)
        if eager.is_exporting():  # a loop, or the graph would hold each step and fit one length
            state, stacked = scan_in_a_graph(step, state, sequences)
            y = stacked.movedim(0, -1)
        else:
            outputs = []
            for inputs in zip(*(sequence.unbind(0) for sequence in sequences), strict=True):
                state, output = step(state, inputs)
                outputs.append(output)
            y = torch.stack(outputs, dim=-1)
        y = y.flatten(1, 3)

        if D is not None:
            y = y + D.to(dtype)[:, None] * u
        if z is not None:
            y = y * F.silu(z.to(dtype))
    y = (y.flip(2) if reverse else y).to(input_dtype)
    return (y, state.flatten(1, 2)) if return_last_state else y


def _flipped(x: Tensor) -> Tensor:
    """Return ``x`` with time reversed; unchanged if it does not depend on time."""
    return x if x.ndim == 2 else x.flip(-1)


def _with_groups(coefficients: Tensor, batch: int, length: int) -> Tensor:
    """Return B or C, in any of its accepted shapes, as (batch, groups, N, length)."""
    if coefficients.ndim == 2:
        return coefficients[None, :, :, None].expand(batch, -1, -1, length)
    return coefficients.unsqueeze(1) if coefficients.ndim == 3 else coefficients


def _time_first(x: Tensor) -> Tensor:
    """Move the last axis, time, to the front, with each step contiguous."""
    return x.movedim(-1, 0).contiguous()


def _kernel_obstacle(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    return_last_state: bool,
) -> str | None:
    """Return why frepro's kernels do not support such inputs on any device; ``None`` if they do."""
    if return_last_state:
        return "it does not return the last state"
    if B.ndim != 3 or C.ndim != 3:
        return "it needs B and C of shape (batch, N, length)"
    (batch, channels, length), state = u.shape, A.shape[1]
    if state > MAX_STATE:
        return f"its state holds at most {MAX_STATE} numbers, not {state}"
    sequences = ((delta, u.shape), (z, u.shape), *((x, (batch, state, length)) for x in (B, C)))
    return backends.misfit(*sequences, (A, (channels, state)), (D, (channels,)), (delta_bias, (channels,)))


def _kernel_scan(
    kernels: str,
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
    reverse: bool,
) -> Tensor:
    """Run frepro's kernels, with time before channels. C kernels take float32 only; Triton's convert sequences."""

    def sequence(x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        return x if kernels == "triton" else x.float()

    dtype = u.dtype
    u, delta, B, C = (sequence(x) for x in (u, delta, B, C))
    z = z if z is None else sequence(z)
    D, delta_bias = (x if x is None else x.float() for x in (D, delta_bias))
    return scan(u, delta, A.float(), B, C, D, z, delta_bias, delta_softplus, reverse, kernels).transpose(1, 2).to(dtype)


def _mamba_ssm_obstacle(u: Tensor) -> str | None:
    """Return why the mamba-ssm package does not support these inputs; ``None`` if it does."""
    if not u.is_cuda:
        return f"tensors are on {u.device}"
    return _unloadable_mamba_ssm()


@torch.compiler.assume_constant_result
@functools.cache  # a failing import is tried anew each time
def _unloadable_mamba_ssm() -> str | None:
    try:
        import mamba_ssm.ops.selective_scan_interface  # noqa: F401
    except ImportError as error:
        return f"mamba-ssm cannot be imported ({error}); pip install 'frepro[mamba]'"
    return None


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
    reverse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    if reverse:
        u, delta, B, C = (_flipped(x) for x in (u, delta, B, C))
        z = z if z is None else _flipped(z)
    # The kernels require inputs that depend on time in the dtype of u, and the others in float32.
    D, delta_bias = (x if x is None else x.float() for x in (D, delta_bias))
    B, C = (x.float() if x.ndim == 2 else x.to(u.dtype) for x in (B, C))
    delta, z = delta.to(u.dtype), z if z is None else z.to(u.dtype)
    result = selective_scan_fn(u, delta, A.float(), B, C, D, z, delta_bias, delta_softplus, return_last_state)
    if not reverse:
        return result
    return (result[0].flip(2), result[1]) if return_last_state else result.flip(2)


BACKENDS: dict[str, Callable[..., Tensor | tuple[Tensor, Tensor]]] = {
    "torch": _torch_scan,
    "cpu": partial(_kernel_scan, "cpu"),
    "triton": partial(_kernel_scan, "triton"),
    "mamba_ssm": _mamba_ssm_scan,
}
