"""Filters in the frequency domain of a feature map.

Maps are channels-last, (B, H, W, C). Their half spectrum is (B, H, W // 2 + 1, C), un-shifted: row 0 and column 0 hold
the zero frequency, and rows past H / 2 hold negative frequencies. Transforms are orthonormal (``norm="ortho"``), so
Parseval's theorem holds without a factor.

FFTs run in float32 or wider, whatever the surrounding precision: half-precision FFTs exist only on CUDA, and there only
for sizes that are powers of two, which 56, 28, 14 and 7 are not. The result has the dtype of ``x``.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from frepro.ops import backends, cpu, eager, triton
from frepro.ops.fourier import irfft2, rfft2
from frepro.ops.pointwise import linear
from frepro.ops.precision import float32_or_more, without_autocast

REVISION = {"spectral filters": 1}


def global_filter(x: Tensor, weight: Tensor, *, inplace: bool = False, backend: str | None = None) -> Tensor:
    """Apply a static filter to each channel: F^-1(K . F(x)) (GFNet; DFFormer eq. 2).

    Args:
        x: Feature map, (B, H, W, C).
        weight: Real and imaginary parts of K, (H, W // 2 + 1, C, 2); or (H, W // 2 + 1, C) for a real K.
        inplace: Allow a backend to overwrite ``x`` if no gradient is recorded.
        backend: "torch", "cpu" or "triton". ``None`` selects the fastest backend that supports the inputs.

    Returns:
        (B, H, W, C), in the dtype of ``x``.

    Raises:
        ValueError: ``backend`` is unknown or does not support the inputs.
    """
    chosen = backends.choose("global_filter", _obstacles(x, weight), backend)
    if chosen != "torch":
        return FILTERS[chosen](x, weight, None, inplace)
    with without_autocast(x):
        weight = float32_or_more(weight)
        if torch.onnx.is_in_onnx_export():
            return _filter_parts(x, *((weight, None) if weight.ndim == 3 else weight.unbind(3)))
        kernel = weight if weight.ndim == 3 else torch.view_as_complex(weight.contiguous())
        spectrum = torch.fft.rfft2(float32_or_more(x), dim=(1, 2), norm="ortho")
        return torch.fft.irfft2(spectrum * kernel, s=x.shape[1:3], dim=(1, 2), norm="ortho").to(x.dtype)


def dynamic_filter(
    x: Tensor, coefficients: Tensor, basis: Tensor, *, inplace: bool = False, backend: str | None = None
) -> Tensor:
    """Apply a filter that is mixed for each sample and channel from a shared basis (DFFormer eq. 3 and 4).

    y_c = F^-1((sum_n s_nc K_n) . F(x_c))

    Args:
        x: Feature map, (B, H, W, C).
        coefficients: Mixing weights s, (B, N, C). The caller applies the softmax over N.
        basis: Real and imaginary parts of K_1..K_N, (H, W // 2 + 1, N, 2).
        inplace: As in ``global_filter``.
        backend: "torch", "cpu" or "triton". ``None`` selects the fastest backend that supports the inputs.

    Returns:
        (B, H, W, C), in the dtype of ``x``.

    Raises:
        ValueError: ``backend`` is unknown or does not support the inputs.
    """
    chosen = backends.choose("dynamic_filter", _obstacles(x, basis, coefficients), backend)
    if chosen != "torch":
        return FILTERS[chosen](x, basis, coefficients, inplace)
    with without_autocast(x):
        basis = float32_or_more(basis).contiguous()
        if torch.compiler.is_compiling():  # compilers, and ONNX, know sums of products of real numbers alone
            parts = torch.einsum("hwnp,bnc->bhwcp", basis, coefficients.to(basis.dtype))
            if torch.onnx.is_in_onnx_export():
                return _filter_parts(x, *parts.unbind(4))
            kernel = torch.view_as_complex(parts.contiguous())
        else:
            basis = torch.view_as_complex(basis)
            kernel = torch.einsum("hwn,bnc->bhwc", basis, coefficients.to(basis.dtype))
        spectrum = torch.fft.rfft2(float32_or_more(x), dim=(1, 2), norm="ortho")
        return torch.fft.irfft2(spectrum * kernel, s=x.shape[1:3], dim=(1, 2), norm="ortho").to(x.dtype)


def _filter_parts(x: Tensor, real: Tensor, imag: Tensor | None) -> Tensor:
    """F^-1((real + i imag) F(x)) without complex numbers, in the dtype of ``x``."""
    a, b = rfft2(float32_or_more(x))
    a, b = (a * real, b * real) if imag is None else (a * real - b * imag, a * imag + b * real)
    return irfft2(a, b, x.shape[2]).to(x.dtype)


def _obstacles(x: Tensor, weight: Tensor, coefficients: Tensor | None = None) -> dict[str, str | None]:
    """Return, for each fast backend, why it does not support these inputs; ``None`` if it does."""
    batch, height, width, channels = x.shape
    filters = channels if coefficients is None else weight.shape[2]
    parts = () if coefficients is None and weight.ndim == 3 else (2,)
    misfit = backends.misfit(
        (weight, (height, width // 2 + 1, filters, *parts)), (coefficients, (batch, filters, channels))
    )
    return {
        "cpu": misfit or _cpu_obstacle(x, weight, coefficients),
        "triton": misfit or triton.obstacle(x, weight, coefficients),
    }


def _cpu_obstacle(x: Tensor, weight: Tensor, coefficients: Tensor | None = None) -> str | None:
    """Return why the CPU kernel does not support these inputs; ``None`` if it does."""
    from frepro.ops.cpu.spectral import MAX_FILTERS, factor

    if unusual := cpu.obstacle(x, weight, coefficients):
        return unusual
    if coefficients is not None and weight.shape[2] > MAX_FILTERS:
        return f"a basis holds at most {MAX_FILTERS} filters, not {weight.shape[2]}"
    if eager.are_open(x.shape[1], x.shape[2]):
        return "a side that is left open may not factor"
    for side in x.shape[1:3]:
        if factor(side) is None:
            return f"a map side of {side} does not factor into two small numbers"
    return None


def _cpu_filter(x: Tensor, weight: Tensor, coefficients: Tensor | None, inplace: bool) -> Tensor:
    from frepro.ops.cpu import spectral

    coefficients = coefficients if coefficients is None else coefficients.float()
    if inplace and eager.may_overwrite(x) and x.dtype == torch.float32 and x.is_contiguous():
        spectral.spectral_filter_(x, weight.float(), coefficients)
        return x
    return spectral.spectral_filter(x.float(), weight.float(), coefficients).to(x.dtype)


def _triton_filter(x: Tensor, weight: Tensor, coefficients: Tensor | None, inplace: bool) -> Tensor:
    from frepro.ops.triton.spectral import spectral_product

    coefficients = coefficients if coefficients is None else coefficients.float()
    weight = torch.stack([weight, torch.zeros_like(weight)], dim=3) if weight.ndim == 3 else weight
    with without_autocast(x):
        # cuFFT transforms the last axes; for other axes torch copies the map before and after.
        spectrum = torch.fft.rfft2(x.float().permute(0, 3, 1, 2), norm="ortho")
        planes = torch.view_as_real(spectrum).flatten(2, 3)  # (B, C, H (W // 2 + 1), 2)
        product = spectral_product(planes, weight.float().permute(2, 0, 1, 3).flatten(1, 2), coefficients)
        product = torch.view_as_complex(product.unflatten(2, spectrum.shape[2:]))
        return torch.fft.irfft2(product, s=x.shape[1:3], norm="ortho").permute(0, 2, 3, 1).to(x.dtype)


FILTERS = {"cpu": _cpu_filter, "triton": _triton_filter}


def spectral_rescale(x: Tensor, gain: Tensor, *, inplace: bool = False, backend: str | None = None) -> Tensor:
    """Scale each frequency by a real gain, F^-1(g . F(x)): amplitudes change, phases do not (SPANetV2's re-scaling).

    Args:
        x: Feature map, (B, H, W, C).
        gain: g, (H, W // 2 + 1, C).
        inplace, backend: As in ``global_filter``, of which this is a special case.

    Returns:
        (B, H, W, C), in the dtype of ``x``.

    Raises:
        ValueError: ``backend`` is unknown or does not support the inputs.
    """
    return global_filter(x, gain, inplace=inplace, backend=backend)


def spectral_pool(x: Tensor, mask: Tensor) -> Tensor:
    """Weight low against high frequencies by a centred mask: F^-1(G^-1(M . G(F(x)))), G the shift (SPANet eq. 17).

    The mask must give a frequency and its negative the same weight, as every disc around the zero frequency does. The
    result is then real, and half of the spectrum is enough. ``pooled_linear`` computes the same without a transform.

    Args:
        x: Feature map, (B, H, W, C).
        mask: M, (H, W), with the zero frequency at (H // 2, W // 2); see ``spectral_pooling_mask``.

    Returns:
        (B, H, W, C), in the dtype of ``x``.
    """
    gain = mask.index_select(0, _places(mask, 0, mask.shape[0])).index_select(
        1, _places(mask, 1, mask.shape[1] // 2 + 1)
    )
    return spectral_rescale(x, gain[..., None].expand(*gain.shape, x.shape[3]), backend="torch")


def _places(mask: Tensor, axis: int, count: int) -> Tensor:
    """Where the first ``count`` frequencies of an axis are in a centred mask.

    By ``torch.fft.ifftshift`` and a slice, a graph that leaves sizes open could not be exported to ONNX.
    """
    size = mask.shape[axis]
    places = torch.arange(count, device=mask.device) + size // 2
    return torch.where(places < size, places, places - size)


def pooled_linear(
    x: Tensor,
    masks: Sequence[Tensor],
    radius: float,
    weights: Sequence[Tensor],
    bias: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Apply spectral pooling to each group of channels, then one linear layer: sum_i W_i SPF_i(x_i) + b.

    A mask has one constant value m_far except at the few frequencies within its radius. Pooling is therefore a multiple
    of the map plus a low-rank product, and both commute with the linear layer. With U the real basis functions of those
    frequencies and m_near the mask's values there, ::

        sum_i W_i SPF_i(x_i) = x (W m_far)^T + U ((m_near - m_far) . U^T x) W^T

    This needs no transform, and one matrix product serves all groups.

    Args:
        x: Feature map, (B, H, W, C).
        masks: M_i, (H, W), one for each group, as returned by ``spectral_pooling_mask``.
        radius: Radius of all masks, in frequency bins.
        weights: W_i, (out, C_i), one for each group; the C_i add up to C.
        bias: b, (out,).
        backend: "torch" (by transforms) or "matmul". ``None`` selects the fastest backend that supports the inputs.

    Returns:
        (B, H, W, out).

    Raises:
        ValueError: ``backend`` is unknown or does not support the inputs.
    """
    sizes = [weight.shape[1] for weight in weights]
    weight = torch.cat(list(weights), dim=1)
    # The basis functions are selected in Python from the map's size, so a traced graph would be tied to one size.
    obstacle = eager.obstacle(x, *masks, *weights, bias, registered=True)
    if eager.are_open(x.shape[1], x.shape[2]):
        obstacle = "the waves of a size that is left open are unknown"
    if backends.choose("pooled_linear", {"matmul": obstacle}, backend) == "torch":
        pooled = [spectral_pool(part, mask) for part, mask in zip(x.split(sizes, dim=3), masks, strict=True)]
        return linear(torch.cat(pooled, dim=3), weight, bias)

    far = torch.cat([mask[0, 0].expand(size) for mask, size in zip(masks, sizes, strict=True)]).to(weight.dtype)
    y = linear(x, weight * far, bias)
    # Kept from call to call, but not tensors that mean nothing outside this call.
    low_frequencies = _low_frequencies if eager.obstacle(x) else _kept_low_frequencies
    with without_autocast(x):
        waves, rows, columns = low_frequencies(x.shape[1], x.shape[2], radius, x.device)
        near = [mask[rows, columns, None].expand(-1, size) for mask, size in zip(masks, sizes, strict=True)]
        tokens, weight = float32_or_more(x).flatten(1, 2), float32_or_more(weight)
        waves = waves.to(tokens.dtype)
        low = (waves @ tokens) * (torch.cat(near, dim=1) - far) @ weight.t()  # (B, waves, out)
        y_far = float32_or_more(y).flatten(1, 2)
        return torch.baddbmm(y_far, waves.t().expand(x.shape[0], -1, -1), low).view(y.shape).to(y.dtype)


def _low_frequencies(height: int, width: int, radius: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return an orthonormal real basis of the frequencies at most ``radius`` bins from zero: (waves, H * W).

    The other two hold, for each wave, the row and the column of its frequency in a centred mask.
    """
    reach = math.floor(radius)
    disc: list[tuple[int, int]] = []  # one frequency of each pair k, -k
    for row in range(max(-reach, -(height // 2)), min(reach, (height - 1) // 2) + 1):
        for column in range(max(-reach, -(width // 2)), min(reach, (width - 1) // 2) + 1):
            is_negative = ((-row) % height, (-column) % width) in {(r % height, c % width) for r, c in disc}
            if row**2 + column**2 <= radius**2 and not is_negative:
                disc.append((row, column))
    paired = [k for k in disc if (2 * k[0]) % height or (2 * k[1]) % width]  # frequencies with k != -k
    own = [k for k in disc if k not in paired]
    rows, columns = zip(*own, *paired, *paired, strict=True)
    angle = torch.tensor(rows, device=device)[:, None, None] * torch.arange(height, device=device)[:, None] / height
    angle = angle + torch.tensor(columns, device=device)[:, None, None] * torch.arange(width, device=device) / width
    quarter = torch.tensor([0.0] * len(disc) + [0.25] * len(paired), device=device)  # turns a cosine into a sine
    size = torch.tensor([1.0] * len(own) + [2.0] * 2 * len(paired), device=device).div(height * width).sqrt()
    waves = size[:, None] * torch.cos(2 * math.pi * (angle - quarter[:, None, None])).flatten(1)
    places = torch.tensor([rows, columns], device=device) + torch.tensor([[height // 2], [width // 2]], device=device)
    return waves, places[0], places[1]


@functools.lru_cache(maxsize=32)
def _kept_low_frequencies(
    height: int, width: int, radius: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode(False):  # or no gradient could be taken with them later
        return _low_frequencies(height, width, radius, device)


def spectral_pooling_mask(
    height: int,
    width: int,
    radius: float,
    balance: float,
    ring: float | None = 1 / 3,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the mask of SPANet's spectral pooling filter: a disc around the zero frequency at (H // 2, W // 2).

    Equations 16 and 18: M is lambda inside the radius and 1 - lambda outside; it is ``ring`` at the radius itself. With
    P and R the projections on the inside and on the ring, ``spectral_pool`` is then
    (1 - lambda) x + (2 lambda - 1) P x + (ring - 1 + lambda) R x.

    Args:
        height: Height of the map.
        width: Width of the map.
        radius: r, in frequency bins.
        balance: lambda, in [0, 1].
        ring: Weight at a distance of exactly r, 1/3 in the official code. The paper has no third value: ``None`` counts
            the ring as outside, by the strict inequality of eq. 18.
        device: Device of the mask. ``None`` means torch's default device.

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
    """Return the modulus of the 2D transform over axes 1 and 2, ``|F(x)|`` (Vim-F eq. 7).

    The spectrum is complete (not a half spectrum) and un-shifted. A cyclic shift of ``x`` along these axes does not
    change it.

    Args:
        x: Feature map, (B, H, W, C), or token sequence, (B, L, C), which is transformed over tokens and channels.

    Returns:
        The shape and dtype of ``x``.
    """
    with without_autocast(x):
        if torch.onnx.is_in_onnx_export():
            real, imag = rfft2(float32_or_more(x), half=False)
            return (real.square() + imag.square()).sqrt().to(x.dtype)
        return torch.fft.fft2(float32_or_more(x), dim=(1, 2), norm="ortho").abs().to(x.dtype)


def resize_filter(weight: Tensor, height: int, width: int) -> Tensor:
    """Resize filters from one map size to another, as the official DFFormer and SPANetV2 code does.

    Real and imaginary planes are interpolated (bicubic, corners aligned) over the un-shifted half spectrum. Along the
    rows, this also interpolates between the highest positive and negative frequencies, where the filter wraps around.
    The rule is kept because the published dense results use it.

    Args:
        weight: (H, W // 2 + 1, ...).
        height: Height of the new map.
        width: Width of the new map (not of its half spectrum).

    Returns:
        (height, width // 2 + 1, ...); ``weight`` itself if it has that size already.
    """
    size = (height, width // 2 + 1)
    if eager.is_same_size(weight.shape[:2], size):
        return weight
    planes = float32_or_more(weight).flatten(2).permute(2, 0, 1)[None]  # (1, N, H, W // 2 + 1)
    planes = F.interpolate(planes, size=size, mode="bicubic", align_corners=True)
    return planes[0].permute(1, 2, 0).reshape(*size, *weight.shape[2:]).to(weight.dtype)
