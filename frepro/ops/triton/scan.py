"""The selective scan on CUDA.

A program runs a block of channels of one sample through all steps, with their states in registers. Steps are processed
in chunks: a chunk's inputs are loaded at once. The backward pass stores only the state at the start of each chunk and
recomputes the states within a chunk.

Past the end of a sequence, steps of size zero leave the state unchanged. Sums over channels (for B and C) use one
partial sum for each block of channels instead of atomics, so results are deterministic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Channels of a program and steps of a chunk, as many as fit in registers. The backward pass holds all states of a chunk
# and has two threads per channel. Chosen by the compiler's register spills (almost none at N = 16); not yet timed on a
# GPU.
FORTH = {"CHANNELS": 32, "CHUNK": 8}
BACK = {"CHANNELS": 16, "CHUNK": 4}
STATES = 16  # states of a channel in one warp; larger states use more warps

_LOG2_E = tl.constexpr(1.44269504088896341)


@triton.jit
def _softplus(x):
    """Return log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x|, with log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3.

    The series for artanh keeps the relative accuracy of small results, which the device's logarithm does not.
    """
    e = tl.exp(-tl.abs(x))
    s = e / (e + 2.0)
    q = s * s
    p = q * (2.0 / 15) + 2.0 / 13
    p = p * q + 2.0 / 11
    p = p * q + 2.0 / 9
    p = p * q + 2.0 / 7
    p = p * q + 2.0 / 5
    p = p * q + 2.0 / 3
    p = p * q + 2.0
    return tl.maximum(x, 0.0) + p * s


@triton.jit
def _place(step, length, REVERSE: tl.constexpr):
    """Return the position of a step in memory."""
    return length - 1 - step if REVERSE else step


@triton.jit
def _within(index, size, step, length):
    """Return which indices are valid at a step; past the end of the sequence, no index is."""
    return index < tl.where(step < length, size, 0)


@triton.jit
def _load_chunk(x, stride, c, dim, begin, length, REVERSE: tl.constexpr, CHUNK: tl.constexpr):
    """Load a sequence at the steps of a chunk, in float32; zero past the end."""
    values: tl.tuple = ()
    for i in tl.static_range(CHUNK):
        at = x + _place(begin + i, length, REVERSE) * stride
        values += (tl.load(at, mask=_within(c, dim, begin + i, length), other=0.0).to(tl.float32),)
    return values


@triton.jit
def _step_sizes(raw, shift, begin, length, SOFTPLUS: tl.constexpr, CHUNK: tl.constexpr):
    """Return the step sizes of a chunk; zero past the end."""
    sizes: tl.tuple = ()
    for i in tl.static_range(CHUNK):
        size = _softplus(raw[i] + shift) if SOFTPLUS else raw[i] + shift
        sizes += (tl.where(begin + i < length, size, 0.0),)
    return sizes


@triton.jit
def _load_states(x, stride, n, state, step, length, REVERSE: tl.constexpr):
    """Load B or C at a step, (N, 1); zero past the end."""
    at = x + _place(step, length, REVERSE) * stride
    return tl.load(at, mask=_within(n, state, step, length), other=0.0).to(tl.float32)[:, None]


@triton.jit
def _load_channels(x, c, in_dim, CHANNELS: tl.constexpr):
    """Load D or the bias of the step sizes, (channels,); zeros if there is none."""
    return tl.zeros([CHANNELS], tl.float32) if x is None else tl.load(x + c, mask=in_dim, other=0.0)


@triton.jit
def _forward(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    y,
    starts,
    su,
    sdelta,
    sz,
    sB,
    sC,
    length,
    dim,
    state,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write y, (batch, time, dim), or, if y is None, the state at the start of each chunk, (batch, chunks, N, dim).

    su, sdelta, sz, sB, sC: strides (batch, time, channel). A, (state, dim), D and bias are contiguous.
    """
    sample = tl.program_id(0).to(tl.int64)
    n, c = tl.arange(0, N), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    in_state, in_dim = n < state, c < dim
    u += sample * su[0] + c * su[2]
    delta += sample * sdelta[0] + c * sdelta[2]
    B += sample * sB[0] + n * sB[2]
    C += sample * sC[0] + n * sC[2]
    rates = tl.load(A + n[:, None] * dim + c[None, :], mask=in_state[:, None] & in_dim[None, :], other=0.0) * _LOG2_E
    skip, shift = _load_channels(D, c, in_dim, CHANNELS), _load_channels(bias, c, in_dim, CHANNELS)
    h = tl.zeros([N, CHANNELS], tl.float32)
    for begin in range(0, length, CHUNK):
        raw = _load_chunk(delta, sdelta[1], c, dim, begin, length, REVERSE, CHUNK)
        steps = _step_sizes(raw, shift, begin, length, SOFTPLUS, CHUNK)
        inputs = _load_chunk(u, su[1], c, dim, begin, length, REVERSE, CHUNK)
        if y is None:
            chunk = sample * tl.cdiv(length, CHUNK) + begin // CHUNK
            tl.store(starts + (chunk * N + n[:, None]) * dim + c[None, :], h, mask=in_dim[None, :])
        outputs: tl.tuple = ()
        for i in tl.static_range(CHUNK):
            B_t = _load_states(B, sB[1], n, state, begin + i, length, REVERSE)
            h = tl.exp2(steps[i][None, :] * rates) * h + (steps[i] * inputs[i])[None, :] * B_t
            if y is not None:
                C_t = _load_states(C, sC[1], n, state, begin + i, length, REVERSE)
                outputs += (tl.sum(h * C_t, axis=0) + skip * inputs[i],)
        if y is not None:
            if z is not None:
                gates = _load_chunk(z + sample * sz[0] + c * sz[2], sz[1], c, dim, begin, length, REVERSE, CHUNK)
            for i in tl.static_range(CHUNK):
                output = outputs[i]
                if z is not None:
                    output *= gates[i] * tl.sigmoid(gates[i])
                row = sample * length + _place(begin + i, length, REVERSE)
                tl.store(y + row * dim + c, output, mask=_within(c, dim, begin + i, length))


@triton.jit
def _backward(
    dy,
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    starts,
    du,
    ddelta,
    dA,
    dB,
    dC,
    dD,
    dz,
    dbias,
    sdy,
    su,
    sdelta,
    sz,
    sB,
    sC,
    length,
    dim,
    state,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write du, ddelta, dz: (batch, time, dim); dA: (batch, state, dim); dD, dbias: (batch, dim); dB and dC.

    dB, dC: (batch, blocks, time, state), partial sums over the program's channels.
    """
    sample = tl.program_id(0).to(tl.int64)
    n, c = tl.arange(0, N), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    in_state, in_dim = n < state, c < dim
    dy += sample * sdy[0] + c * sdy[2]
    u += sample * su[0] + c * su[2]
    delta += sample * sdelta[0] + c * sdelta[2]
    B += sample * sB[0] + n * sB[2]
    C += sample * sC[0] + n * sC[2]
    of_A, in_A = n[:, None] * dim + c[None, :], in_state[:, None] & in_dim[None, :]
    rates = tl.load(A + of_A, mask=in_A, other=0.0) * _LOG2_E
    skip, shift = _load_channels(D, c, in_dim, CHANNELS), _load_channels(bias, c, in_dim, CHANNELS)
    part = sample * tl.num_programs(1) + tl.program_id(1)

    gh, gA = tl.zeros([N, CHANNELS], tl.float32), tl.zeros([N, CHANNELS], tl.float32)
    gskip, gshift = tl.zeros([CHANNELS], tl.float32), tl.zeros([CHANNELS], tl.float32)
    chunks = tl.cdiv(length, CHUNK)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        begin = chunk * CHUNK
        raw = _load_chunk(delta, sdelta[1], c, dim, begin, length, REVERSE, CHUNK)
        steps = _step_sizes(raw, shift, begin, length, SOFTPLUS, CHUNK)
        inputs = _load_chunk(u, su[1], c, dim, begin, length, REVERSE, CHUNK)
        doutputs = _load_chunk(dy, sdy[1], c, dim, begin, length, REVERSE, CHUNK)
        if z is not None:
            gates = _load_chunk(z + sample * sz[0] + c * sz[2], sz[1], c, dim, begin, length, REVERSE, CHUNK)

        at = starts + ((sample * chunks + chunk) * N + n[:, None]) * dim + c[None, :]
        h = tl.load(at, mask=in_dim[None, :], other=0.0)
        states: tl.tuple = ()  # before each step
        outputs: tl.tuple = ()
        for i in tl.static_range(CHUNK):
            states += (h,)
            B_t = _load_states(B, sB[1], n, state, begin + i, length, REVERSE)
            h = tl.exp2(steps[i][None, :] * rates) * h + (steps[i] * inputs[i])[None, :] * B_t
            if z is not None:
                C_t = _load_states(C, sC[1], n, state, begin + i, length, REVERSE)
                outputs += (tl.sum(h * C_t, axis=0) + skip * inputs[i],)

        for i in tl.static_range(CHUNK - 1, -1, -1):
            here, states_here = _within(c, dim, begin + i, length), _within(n, state, begin + i, length)
            time = _place(begin + i, length, REVERSE)
            row = (sample * length + time) * dim + c
            B_t = _load_states(B, sB[1], n, state, begin + i, length, REVERSE)
            C_t = _load_states(C, sC[1], n, state, begin + i, length, REVERSE)
            gy = doutputs[i]
            if z is not None:
                gate = tl.sigmoid(gates[i])
                gz = gy * outputs[i] * gate * (1 + gates[i] * (1 - gate))
                tl.store(dz + row, gz, mask=here)
                gy *= gates[i] * gate
            gskip += gy * inputs[i]

            input = steps[i] * inputs[i]
            decay = tl.exp2(steps[i][None, :] * rates)
            faded = decay * states[i]
            g = gh + gy[None, :] * C_t
            gC = tl.sum(gy[None, :] * (faded + input[None, :] * B_t), axis=1)
            gB = tl.sum(g * input[None, :], axis=1)
            of_state = (part * length + time) * state + n
            tl.store(dC + of_state, gC, mask=states_here)
            tl.store(dB + of_state, gB, mask=states_here)
            ginput = tl.sum(g * B_t, axis=0)
            gh = g * decay
            g *= faded
            gA += g * steps[i][None, :]
            gsize = tl.sum(g * rates, axis=0) / _LOG2_E + ginput * inputs[i]
            if SOFTPLUS:
                gsize *= tl.sigmoid(raw[i] + shift)
            gsize = tl.where(here, gsize, 0.0)
            gshift += gsize
            tl.store(ddelta + row, gsize, mask=here)
            tl.store(du + row, ginput * steps[i] + gy * skip, mask=here)

    tl.store(dA + sample * dim * state + of_A, gA, mask=in_A)
    tl.store(dD + sample * dim + c, gskip, mask=in_dim)
    tl.store(dbias + sample * dim + c, gshift, mask=in_dim)


def _options(delta_softplus: bool, reverse: bool, state: int) -> dict:
    """Return the launch options that all kernels share."""
    padded = triton.next_power_of_2(state)
    return {
        "SOFTPLUS": delta_softplus,
        "REVERSE": reverse,
        "N": padded,
        "num_warps": max(1, padded // STATES),
        "enable_fp_fusion": True,
    }


def _strides(*tensors: Tensor | None) -> list[tuple[int, ...]]:
    return [(0, 0, 0) if x is None else x.stride() for x in tensors]


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
    """Run the scan; see ``frepro.ops.scan_op``. Sequences may be half precision; the result has the dtype of ``u``."""
    (batch, length, dim), state = u.shape, A.shape[1]
    A = A.t().contiguous()
    D, delta_bias = (x if x is None else x.contiguous() for x in (D, delta_bias))
    y = u.new_empty(u.shape)
    with torch.cuda.device_of(u):
        _forward[(batch, triton.cdiv(dim, FORTH["CHANNELS"]))](
            *(u, delta, A, B, C, D, z, delta_bias, y, None),
            *_strides(u, delta, z, B, C),
            *(length, dim, state),
            **_options(delta_softplus, reverse, state),
            **FORTH,
        )
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
    (batch, length, dim), state = u.shape, A.shape[1]
    blocks, chunks = triton.cdiv(dim, BACK["CHANNELS"]), triton.cdiv(length, BACK["CHUNK"])
    A = A.t().contiguous()
    D, delta_bias = (x if x is None else x.contiguous() for x in (D, delta_bias))
    options, sizes = _options(delta_softplus, reverse, state), (length, dim, state)
    starts = A.new_empty(batch, chunks, options["N"], dim)
    du, ddelta = u.new_empty(u.shape), delta.new_empty(u.shape)
    dz = u.new_empty(0) if z is None else z.new_empty(u.shape)
    dA, dD, dbias = A.new_empty(batch, state, dim), A.new_empty(batch, dim), A.new_empty(batch, dim)
    dB, dC = (A.new_empty(batch, blocks, length, state) for _ in range(2))
    with torch.cuda.device_of(u):
        _forward[(batch, blocks)](
            *(u, delta, A, B, C, D, None, delta_bias, None, starts),
            *_strides(u, delta, None, B, C),
            *sizes,
            **options,
            **BACK,
        )
        _backward[(batch, blocks)](
            *(dy, u, delta, A, B, C, D, z, delta_bias, starts),
            *(du, ddelta, dA, dB, dC, dD, dz, dbias),
            *_strides(dy, u, delta, z, B, C),
            *sizes,
            **options,
            **BACK,
        )
    return (
        du,
        ddelta,
        dA.sum(0).t().contiguous(),
        dB.sum(1).to(B.dtype),
        dC.sum(1).to(C.dtype),
        dD.sum(0),
        dz,
        dbias.sum(0),
    )
