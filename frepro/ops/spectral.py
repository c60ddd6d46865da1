"""Filters in the frequency domain of a feature map.

Filters take channels-last maps ``x`` of shape (B, H, W, C) and work on the half spectrum of a real map,
(B, H, W // 2 + 1, C), un-shifted: row 0 and column 0 are the zero frequency, rows past H / 2 are negative frequencies.
Transforms are orthonormal (``norm="ortho"``), so that Parseval's theorem holds without a factor.

FFTs run in float32 whatever the surrounding precision: half-precision FFTs exist on CUDA alone, and there only for
sizes that are powers of two, which 56, 28, 14 and 7 are not. The result has the dtype of ``x``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def global_filter(x: Tensor, weight: Tensor) -> Tensor:
    """Static filter, one for each channel: F^-1(K . F(x)) (GFNet; DFFormer eq. 2).

    Args:
        x: Feature map, (B, H, W, C).
        weight: Real and imaginary part of K, (H, W // 2 + 1, C, 2).

    Returns:
        (B, H, W, C), in the dtype of ``x``.
    """
    with torch.autocast(x.device.type, enabled=False):
        kernel = torch.view_as_complex(weight.float().contiguous())
        spectrum = torch.fft.rfft2(x.float(), dim=(1, 2), norm="ortho")
        return torch.fft.irfft2(spectrum * kernel, s=x.shape[1:3], dim=(1, 2), norm="ortho").to(x.dtype)


def dynamic_filter(x: Tensor, coefficients: Tensor, basis: Tensor) -> Tensor:
    """Filter made for each sample and channel from a basis that all channels share (DFFormer eq. 3 and 4).

    y_c = F^-1((sum_n s_nc K_n) . F(x_c))

    Args:
        x: Feature map, (B, H, W, C).
        coefficients: Mixing weights s, (B, N, C); the softmax over N is the caller's.
        basis: Real and imaginary part of K_1..K_N, (H, W // 2 + 1, N, 2).

    Returns:
        (B, H, W, C), in the dtype of ``x``.
    """
    with torch.autocast(x.device.type, enabled=False):
        basis = torch.view_as_complex(basis.float().contiguous())
        kernel = torch.einsum("hwn,bnc->bhwc", basis, coefficients.to(basis.dtype))
        spectrum = torch.fft.rfft2(x.float(), dim=(1, 2), norm="ortho")
        return torch.fft.irfft2(spectrum * kernel, s=x.shape[1:3], dim=(1, 2), norm="ortho").to(x.dtype)


def amplitude_spectrum(x: Tensor) -> Tensor:
    """Modulus of the 2D transform over axes 1 and 2, |F(x)| (Vim-F eq. 7), the whole of it and un-shifted.

    A cyclic shift of ``x`` along these axes leaves it as it is.

    Args:
        x: Feature map, (B, H, W, C), or token sequence, (B, L, C), which is transformed over tokens and channels.

    Returns:
        The shape and dtype of ``x``.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return torch.fft.fft2(wide, dim=(1, 2), norm="ortho").abs().to(x.dtype)


def resize_filter(weight: Tensor, height: int, width: int) -> Tensor:
    """Fit filters made for one map size to another, as the official DFFormer code does for dense prediction.

    Real and imaginary planes are interpolated (bicubic, corners aligned) over the un-shifted half spectrum. The rows
    hold the wrap-around from positive to negative frequencies, which this rule smooths over; it is kept because the
    published dense results rest on it.

    Args:
        weight: (H, W // 2 + 1, N, 2).
        height: Height of the new map.
        width: Width of the new map (not of its half spectrum).

    Returns:
        (height, width // 2 + 1, N, 2); ``weight`` itself where the size is already right.
    """
    size = (height, width // 2 + 1)
    if weight.shape[:2] == size:
        return weight
    planes = weight.flatten(2).permute(2, 0, 1)[None].float()  # (1, 2N, H, W // 2 + 1)
    planes = F.interpolate(planes, size=size, mode="bicubic", align_corners=True)
    return planes[0].permute(1, 2, 0).reshape(*size, *weight.shape[2:]).to(weight.dtype)
