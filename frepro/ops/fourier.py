"""Real Fourier transforms of maps, by FFTs or, in ONNX, by products of real matrices.

ONNX has no complex numbers, and its runtimes have no real transform back for sizes that are left open.
"""

import math

import torch
from torch import Tensor


def rfft2(x: Tensor, *, half: bool = True) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of the orthonormal transform over axes 1 and 2.

    Args:
        x: (B, H, W, ...), float32 or wider.
        half: Leave out the columns past W // 2, which mirror the others.

    Returns:
        (B, H, W // 2 + 1, ...) twice; (B, H, W, ...) twice without ``half``.
    """
    if not torch.onnx.is_in_onnx_export():
        transform = torch.fft.rfft2 if half else torch.fft.fft2
        spectrum = transform(x, dim=(1, 2), norm="ortho")
        return spectrum.real, spectrum.imag
    height, width = x.shape[1:3]
    cosine, sine = _waves(width, width // 2 + 1 if half else width, x)
    real, imag = torch.einsum("bhw...,wk->bhk...", x, cosine), torch.einsum("bhw...,wk->bhk...", x, -sine)
    cosine, sine = _waves(height, height, x)
    return _along_rows(real, imag, cosine, -sine)


def irfft2(real: Tensor, imag: Tensor, width: int) -> Tensor:
    """The map whose ``rfft2`` these are: (B, H, W // 2 + 1, ...) twice to (B, H, W, ...), W being ``width``."""
    if not torch.onnx.is_in_onnx_export():
        size = (real.shape[1], width)
        return torch.fft.irfft2(torch.complex(real, imag), s=size, dim=(1, 2), norm="ortho")
    real, imag = _along_rows(real, imag, *_waves(real.shape[1], real.shape[1], real))
    columns = torch.arange(width // 2 + 1, device=real.device)
    is_alone = (columns == 0) | (2 * columns == width)  # the other columns stand for their mirror images too
    cosine, sine = (torch.where(is_alone, wave, 2 * wave) for wave in _waves(width, width // 2 + 1, real))
    return torch.einsum("bhk...,wk->bhw...", real, cosine) - torch.einsum("bhk...,wk->bhw...", imag, sine)


def _waves(size: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of ``count`` frequencies, (size, count), orthonormal where count is size."""
    product = torch.arange(size, device=like.device)[:, None] * torch.arange(count, device=like.device)
    turn = torch.full((), size, device=like.device)  # ONNX has no remainder by a size that is left open
    angle = product.remainder(turn).to(like.dtype) * (2 * math.pi / size)
    return angle.cos() / size**0.5, angle.sin() / size**0.5


def _along_rows(real: Tensor, imag: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    """The product of (cosine + i sine) with the columns of a spectrum: (B, H, K, ...) twice to the same."""
    equation = "bhk...,hj->bjk..."
    new_real = torch.einsum(equation, real, cosine) - torch.einsum(equation, imag, sine)
    return new_real, torch.einsum(equation, imag, cosine) + torch.einsum(equation, real, sine)
