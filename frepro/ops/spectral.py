"""Filters in the frequency domain of a feature map.

All functions work on the half spectrum of a real map, un-shifted: row 0 and column 0 are the zero frequency, rows past
H / 2 are negative frequencies. DFFormer's filters take channels-last maps, (B, H, W, C), with a spectrum of
(B, H, W // 2 + 1, C); the SPANets' filters follow convolutions and take (B, C, H, W), with (B, C, H, W // 2 + 1).
Transforms are orthonormal (``norm="ortho"``), so that Parseval's theorem holds without a factor.

FFTs run in float32 or more whatever the surrounding precision: half-precision FFTs exist on CUDA alone, and there only
for sizes that are powers of two, which 56, 28, 14 and 7 are not. The result has the dtype of ``x``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from frepro.ops import backends, cpu
from frepro.ops.precision import float32_or_more, without_autocast


def global_filter(x: Tensor, weight: Tensor, *, backend: str | None = None) -> Tensor:
    """Static filter, one for each channel: F^-1(K . F(x)) (GFNet; DFFormer eq. 2).

    Args:
        x: Feature map, (B, H, W, C).
        weight: Real and imaginary part of K, (H, W // 2 + 1, C, 2).
        backend: "torch" or "cpu"; the fastest that can take the inputs unless given.

    Returns:
        (B, H, W, C), in the dtype of ``x``.
    """
    if backends.choose("global_filter", {"cpu": _cpu_obstacle(x, weight)}, backend) == "cpu":
        return _cpu_filter(x, weight)
    with without_autocast(x):
        kernel = torch.view_as_complex(float32_or_more(weight).contiguous())
        spectrum = torch.fft.rfft2(float32_or_more(x), dim=(1, 2), norm="ortho")
        return torch.fft.irfft2(spectrum * kernel, s=x.shape[1:3], dim=(1, 2), norm="ortho").to(x.dtype)


def dynamic_filter(x: Tensor, coefficients: Tensor, basis: Tensor, *, backend: str | None = None) -> Tensor:
    """Filter made for each sample and channel from a basis that all channels share (DFFormer eq. 3 and 4).

    y_c = F^-1((sum_n s_nc K_n) . F(x_c))

    Args:
        x: Feature map, (B, H, W, C).
        coefficients: Mixing weights s, (B, N, C); the softmax over N is the caller's.
        basis: Real and imaginary part of K_1..K_N, (H, W // 2 + 1, N, 2).
        backend: "torch" or "cpu"; the fastest that can take the inputs unless given.

    Returns:
        (B, H, W, C), in the dtype of ``x``.
    """
    if backends.choose("dynamic_filter", {"cpu": _cpu_obstacle(x, basis, coefficients)}, backend) == "cpu":
        return _cpu_filter(x, basis, coefficients)
    with without_autocast(x):
        basis = torch.view_as_complex(float32_or_more(basis).contiguous())
        kernel = torch.einsum("hwn,bnc->bhwc", basis, coefficients.to(basis.dtype))
        spectrum = torch.fft.rfft2(float32_or_more(x), dim=(1, 2), norm="ortho")
        return torch.fft.irfft2(spectrum * kernel, s=x.shape[1:3], dim=(1, 2), norm="ortho").to(x.dtype)


def _cpu_obstacle(x: Tensor, weight: Tensor, coefficients: Tensor | None = None) -> str | None:
    """Why the CPU kernel cannot take these inputs; none where it can."""
    from frepro.ops.cpu.spectral import MAX_FILTERS, factor

    if coefficients is not None and weight.shape[2] > MAX_FILTERS:
        return f"a basis holds at most {MAX_FILTERS} filters, not {weight.shape[2]}"
    for side in x.shape[1:3]:
        if factor(side) is None:
            return f"a side of {side} does not factor into two small numbers"
    return cpu.obstacle(x, weight, coefficients)


def _cpu_filter(x: Tensor, weight: Tensor, coefficients: Tensor | None = None) -> Tensor:
    from frepro.ops.cpu.spectral import spectral_filter

    coefficients = coefficients if coefficients is None else coefficients.float()
    return spectral_filter(x.float(), weight.float(), coefficients).to(x.dtype)


def spectral_rescale(x: Tensor, gain: Tensor) -> Tensor:
    """Real gain on each frequency, F^-1(g . F(x)): amplitudes change, phases do not (SPANetV2's re-scaling filter).

    Args:
        x: Feature map, (B, C, H, W).
        gain: g, (C, H, W // 2 + 1) or what broadcasts to it.

    Returns:
        (B, C, H, W), in the dtype of ``x``.
    """
    with without_autocast(x):
        spectrum = torch.fft.rfft2(float32_or_more(x), norm="ortho")
        return torch.fft.irfft2(spectrum * float32_or_more(gain), s=x.shape[-2:], norm="ortho").to(x.dtype)


def spectral_pool(x: Tensor, mask: Tensor) -> Tensor:
    """Weigh low against high frequencies by a centred mask: F^-1(G^-1(M . G(F(x)))), G the shift (SPANet eq. 17).

    The mask must weigh a frequency and its negative alike, as every disc around the zero frequency does. The result is
    then real by itself, and half the spectrum is enough.

    Args:
        x: Feature map, (B, C, H, W).
        mask: M, (H, W), zero frequency at (H // 2, W // 2); see ``spectral_pooling_mask``.

    Returns:
        (B, C, H, W), in the dtype of ``x``.
    """
    return spectral_rescale(x, torch.fft.ifftshift(mask)[:, : mask.shape[1] // 2 + 1])


def spectral_pooling_mask(
    height: int,
    width: int,
    radius: float,
    balance: float,
    ring: float | None = 1 / 3,
    device: torch.device | str | None = None,
) -> Tensor:
    """Mask of SPANet's spectral pooling filter (eq. 16 and 18): a disc around the zero frequency, at (H // 2, W // 2).

    M = lambda inside the radius, 1 - lambda outside, ``ring`` at the radius itself. With P and R the projections on the
    inside and on the ring, ``spectral_pool`` is then (1 - lambda) x + (2 lambda - 1) P x + (ring - 1 + lambda) R x.

    Args:
        radius: r, in frequency bins.
        balance: lambda, in [0, 1].
        ring: Weight at a distance of exactly r, 1/3 in the official code. The paper has no third value: None leaves the
            ring outside, by the strict inequality of eq. 18.

    Returns:
        (height, width), float32.
    """
    rows = torch.arange(height, device=device) - height // 2
    columns = torch.arange(width, device=device) - width // 2
    distance2 = rows[:, None] ** 2 + columns**2
    inside = torch.full((), balance, dtype=torch.float32, device=device)
    mask = torch.where(distance2 < radius**2, inside, 1 - inside)
    return mask if ring is None else mask.masked_fill(distance2 == radius**2, ring)


def amplitude_spectrum(x: Tensor) -> Tensor:
    """Modulus of the 2D transform over axes 1 and 2, |F(x)| (Vim-F eq. 7), the whole of it and un-shifted.

    A cyclic shift of ``x`` along these axes leaves it as it is.

    Args:
        x: Feature map, (B, H, W, C), or token sequence, (B, L, C), which is transformed over tokens and channels.

    Returns:
        The shape and dtype of ``x``.
    """
    with without_autocast(x):
        return torch.fft.fft2(float32_or_more(x), dim=(1, 2), norm="ortho").abs().to(x.dtype)


def resize_filter(weight: Tensor, height: int, width: int) -> Tensor:
    """Fit filters made for one map size to another, as the official DFFormer and SPANetV2 code does.

    Real and imaginary planes are interpolated (bicubic, corners aligned) over the un-shifted half spectrum. The rows
    hold the wrap-around from positive to negative frequencies, which this rule smooths over; it is kept because the
    published dense results rest on it.

    Args:
        weight: (H, W // 2 + 1, ...).
        height: Height of the new map.
        width: Width of the new map (not of its half spectrum).

    Returns:
        (height, width // 2 + 1, ...); ``weight`` itself where the size is already right.
    """
    size = (height, width // 2 + 1)
    if weight.shape[:2] == size:
        return weight
    planes = float32_or_more(weight).flatten(2).permute(2, 0, 1)[None]  # (1, N, H, W // 2 + 1)
    planes = F.interpolate(planes, size=size, mode="bicubic", align_corners=True)
    return planes[0].permute(1, 2, 0).reshape(*size, *weight.shape[2:]).to(weight.dtype)
