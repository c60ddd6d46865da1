"""The product of a spectrum with its filters on CUDA, between the two transforms of a spectral filter.

    Y_c(p) = K_c(p) X_c(p),    static: K_c given;    dynamic: K_c = sum_n s_nc K_n, which is never written to memory

Spectra are channels-first here, (B, C, P, 2), for the P frequencies of a half spectrum and their real and imaginary
parts, as cuFFT returns them. Filters are (C, P, 2), or a basis (N, P, 2) with coefficients (B, N, C). All float32.

Let G be the gradient of Y and M = conj(X) G. The gradient of X is conj(K) G; that of a static K is sum_b M_b; that of
a dynamic K_n is sum_bc s_nc M_bc; that of s_nc is the sum over p of the scalar product of K_n and M_c. Sums across
programs use partial sums instead of atomics, so results are deterministic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

# The tile of a program; not yet timed on a GPU.
CHANNELS = 32
FREQUENCIES = 32
SAMPLES = 16  # samples that a program processes one after another if filters are static
OPTIONS = {"CHANNELS": CHANNELS, "FREQUENCIES": FREQUENCIES, "num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def _load(x, at, here):
    """Load real and imaginary parts; zero outside the mask."""
    parts = 2 * tl.expand_dims(at, -1) + tl.arange(0, 2)
    return tl.split(tl.load(x + parts, mask=tl.expand_dims(here, -1), other=0.0))


@triton.jit
def _store(x, at, here, re, im):
    parts = 2 * tl.expand_dims(at, -1) + tl.arange(0, 2)
    tl.store(x + parts, tl.join(re, im), mask=tl.expand_dims(here, -1))


@triton.jit
def _times_conjugate(a_re, a_im, b_re, b_im):
    """Return a conj(b)."""
    return a_re * b_re + a_im * b_im, a_im * b_re - a_re * b_im


@triton.jit
def _tile(channels, frequencies, CHANNELS: tl.constexpr, FREQUENCIES: tl.constexpr):
    """Return the channels and the frequencies of a program, and a mask of the valid ones for each."""
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.program_id(2) * FREQUENCIES + tl.arange(0, FREQUENCIES)
    return c, p, c < channels, p < frequencies


@triton.jit
def _mix(basis, coefficients, c, p, in_c, in_p, channels, frequencies, N: tl.constexpr):
    """Return a tile of the filters sum_n s_nc K_n."""
    re = tl.zeros([c.shape[0], p.shape[0]], tl.float32)
    im = re
    for n in tl.static_range(N):
        s = tl.load(coefficients + n * channels + c, mask=in_c, other=0.0)[:, None]
        n_re, n_im = _load(basis, n * frequencies + p, in_p)
        re += s * n_re[None, :]
        im += s * n_im[None, :]
    return re, im


@triton.jit
def _forward(
    x,
    weight,
    coefficients,
    y,
    channels,
    frequencies,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,
    FREQUENCIES: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    c, p, in_c, in_p = _tile(channels, frequencies, CHANNELS, FREQUENCIES)
    tile, here = c[:, None] * frequencies + p[None, :], in_c[:, None] & in_p[None, :]
    if coefficients is None:
        k_re, k_im = _load(weight, tile, here)
    else:
        k_re, k_im = _mix(weight, coefficients + sample * N * channels, c, p, in_c, in_p, channels, frequencies, N)
    at = sample * channels * frequencies + tile
    x_re, x_im = _load(x, at, here)
    _store(y, at, here, x_re * k_re - x_im * k_im, x_re * k_im + x_im * k_re)


@triton.jit
def _backward_static(
    dy,
    x,
    weight,
    dx,
    dweight,
    batch,
    channels,
    frequencies,
    SAMPLES: tl.constexpr,
    CHANNELS: tl.constexpr,
    FREQUENCIES: tl.constexpr,
):
    """dweight: (groups of samples, C, P, 2)."""
    group = tl.program_id(0).to(tl.int64)
    c, p, in_c, in_p = _tile(channels, frequencies, CHANNELS, FREQUENCIES)
    tile, here = c[:, None] * frequencies + p[None, :], in_c[:, None] & in_p[None, :]
    k_re, k_im = _load(weight, tile, here)
    sum_re = tl.zeros([CHANNELS, FREQUENCIES], tl.float32)
    sum_im = sum_re
    for sample in range(group * SAMPLES, tl.minimum(group * SAMPLES + SAMPLES, batch)):
        at = sample * channels * frequencies + tile
        g_re, g_im = _load(dy, at, here)
        x_re, x_im = _load(x, at, here)
        m_re, m_im = _times_conjugate(g_re, g_im, x_re, x_im)
        sum_re += m_re
        sum_im += m_im
        dx_re, dx_im = _times_conjugate(g_re, g_im, k_re, k_im)
        _store(dx, at, here, dx_re, dx_im)
    _store(dweight, group * channels * frequencies + tile, here, sum_re, sum_im)


@triton.jit
def _backward_dynamic(
    dy,
    x,
    basis,
    coefficients,
    dx,
    dbasis,
    dcoefficients,
    channels,
    frequencies,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,
    FREQUENCIES: tl.constexpr,
):
    """dbasis: (B, blocks of channels, N, P, 2). dcoefficients: (B, blocks of frequencies, N, C)."""
    sample = tl.program_id(0).to(tl.int64)
    c, p, in_c, in_p = _tile(channels, frequencies, CHANNELS, FREQUENCIES)
    at, here = (sample * channels + c[:, None]) * frequencies + p[None, :], in_c[:, None] & in_p[None, :]
    coefficients += sample * N * channels
    k_re, k_im = _mix(basis, coefficients, c, p, in_c, in_p, channels, frequencies, N)
    g_re, g_im = _load(dy, at, here)
    x_re, x_im = _load(x, at, here)
    m_re, m_im = _times_conjugate(g_re, g_im, x_re, x_im)
    dx_re, dx_im = _times_conjugate(g_re, g_im, k_re, k_im)
    _store(dx, at, here, dx_re, dx_im)
    of_basis = (sample * tl.num_programs(1) + tl.program_id(1)) * N
    of_coefficients = (sample * tl.num_programs(2) + tl.program_id(2)) * N
    for n in tl.static_range(N):
        s = tl.load(coefficients + n * channels + c, mask=in_c, other=0.0)[:, None]
        _store(dbasis, (of_basis + n) * frequencies + p, in_p, tl.sum(s * m_re, axis=0), tl.sum(s * m_im, axis=0))
        n_re, n_im = _load(basis, n * frequencies + p, in_p)
        ds = tl.sum(n_re[None, :] * m_re + n_im[None, :] * m_im, axis=1)
        tl.store(dcoefficients + (of_coefficients + n) * channels + c, ds, mask=in_c)


@torch.library.custom_op("frepro::spectral_product", mutates_args=())
def spectral_product(x: Tensor, weight: Tensor, coefficients: Tensor | None) -> Tensor:
    """Return the product. x, result: (B, C, P, 2). weight: (N or C, P, 2). coefficients: (B, N, C) or ``None``.

    All float32.
    """
    x, weight = x.contiguous(), weight.contiguous()
    coefficients = coefficients if coefficients is None else coefficients.contiguous()
    (batch, channels, frequencies, _), y = x.shape, x.new_empty(x.shape)
    with torch.cuda.device_of(x):
        _forward[(batch, *_blocks(channels, frequencies))](
            *(x, weight, coefficients, y, channels, frequencies), N=len(weight), **OPTIONS
        )
    return y


@spectral_product.register_fake
def _(x, weight, coefficients):
    return x.new_empty(x.shape)


@torch.library.custom_op("frepro::spectral_product_backward", mutates_args=())
def spectral_product_backward(
    dy: Tensor, x: Tensor, weight: Tensor, coefficients: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and coefficients (ignore the last if coefficients is ``None``)."""
    dy, x, weight = dy.contiguous(), x.contiguous(), weight.contiguous()
    coefficients = coefficients if coefficients is None else coefficients.contiguous()
    (batch, channels, frequencies, _), dx = x.shape, x.new_empty(x.shape)
    sizes, blocks = (channels, frequencies), _blocks(channels, frequencies)
    with torch.cuda.device_of(x):
        if coefficients is None:
            groups = triton.cdiv(batch, SAMPLES)
            dweight = x.new_empty(groups, *weight.shape)
            _backward_static[(groups, *blocks)](
                *(dy, x, weight, dx, dweight, batch, *sizes), SAMPLES=SAMPLES, **OPTIONS
            )
            return dx, dweight.sum(0), x.new_empty(0)
        dbasis = x.new_empty(batch, blocks[0], *weight.shape)
        dcoefficients = x.new_empty(batch, blocks[1], *coefficients.shape[1:])
        _backward_dynamic[(batch, *blocks)](
            *(dy, x, weight, coefficients, dx, dbasis, dcoefficients, *sizes), N=len(weight), **OPTIONS
        )
    return dx, dbasis.sum((0, 1)), dcoefficients.sum(1)


@spectral_product_backward.register_fake
def _(dy, x, weight, coefficients):
    dcoefficients = x.new_empty(0 if coefficients is None else coefficients.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dcoefficients


def _blocks(channels: int, frequencies: int) -> tuple[int, int]:
    return triton.cdiv(channels, CHANNELS), triton.cdiv(frequencies, FREQUENCIES)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy):
    tensors = ctx.saved_tensors  # activation checkpointing allows this to be read only once
    dx, dweight, dcoefficients = torch.ops.frepro.spectral_product_backward(dy, *tensors)
    return dx, dweight, None if tensors[2] is None else dcoefficients


spectral_product.register_autograd(_backward, setup_context=_setup)


@register_flop_formula([torch.ops.frepro.spectral_product])
def product_flops(x_shape, weight_shape, coefficients_shape=None, *args, out_shape=None, **kwargs) -> int:
    """Return six operations for each complex product, plus four for each filter that is mixed."""
    batch, channels, frequencies, _ = x_shape
    return (6 if coefficients_shape is None else 6 + 4 * weight_shape[0]) * batch * channels * frequencies
