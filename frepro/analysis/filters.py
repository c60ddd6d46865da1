"""Amplitudes of filters that models have learned in the frequency domain, complete and centred for display.

Weights are half spectra, which suffice for real maps. Figures show all frequencies, with zero in the middle.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frepro.models import dfformer, gfnet, spanet, spanetv2
from frepro.ops.precision import float32_or_more

SMALLEST = 4  # frequencies per side of the smallest filters that are compared or classified
PASSES = ("low", "band", "high", "notch", "flat")
FLAT = 0.1  # least difference between the mean amplitudes of two bands, relative to the highest


def amplitudes(model: nn.Module) -> dict[str, Tensor]:
    """Return the amplitude of every filter of a model, by the name of its parameter, in the order of the blocks.

    GFNet and GFFormer: one static filter per channel (DFFormer Figure 2). DFFormer and CDFFormer: the N filters of the
    basis from which each image's filters are mixed (DFFormer Figure 9). SPANetV2: the gains in (0, 1) of each head's
    channels. SPANet: the fixed mask of each spectral pooling gate.

    Returns:
        Parameter name -> (K, H, W) with K filters and zero frequency at (H // 2, W // 2).

    Raises:
        ValueError: The model has no filter in the frequency domain.
    """
    found = {
        f"{name}.{parameter}": amplitude
        for name, module in model.named_modules()
        for parameter, amplitude in _amplitudes(module)
    }
    if not found:
        raise ValueError(f"{type(model).__name__} has no filter in the frequency domain")
    return found


def alikeness(amplitudes: Tensor) -> float:
    """Return the similarity of a layer's filters: the mean Pearson correlation of their amplitudes over all pairs.

    It is 1 if all are equal up to scale and offset, and near 0 for unrelated filters. (It is slightly higher at random
    initialisation, because columns that are their own mirror image are weaker in all filters.)

    Args:
        amplitudes: (K, H, W) of K filters, two or more, as returned by ``amplitudes``.
    """
    count = len(amplitudes)
    if count < 2 or amplitudes[0].numel() < 2:
        raise ValueError(f"{count} filters of {amplitudes[0].numel()} frequencies have no correlation")
    correlations = torch.corrcoef(amplitudes.flatten(1).double())
    return float((correlations.sum() - correlations.trace()) / (count * (count - 1)))


def alikeness_by_layer(networks: Mapping[str, Sequence[nn.Module]], smallest: int = SMALLEST) -> list[dict[str, Any]]:
    """Return the similarity of the filters in each layer of several networks, one row per layer.

    Args:
        networks: Label -> networks, such as those of several seeds.
        smallest: Leave out maps with a smaller side: on a handful of frequencies any two filters may look similar.
    """
    return [
        {"model": label, "network": number, "layer": layer, "side": item.shape[1], "alikeness": alikeness(item)}
        for label, found in networks.items()
        for number, network in enumerate(found)
        for layer, item in enumerate(amplitudes(network).values(), start=1)
        if min(item.shape[1:]) >= smallest
    ]


def kind(amplitude: Tensor) -> str:
    """Return "low", "high" or "band" for a filter: the band of frequencies with its highest mean amplitude.

    The radius of a frequency, relative to the highest along an axis (pi), is below 1/3 in the low band, above 2/3 in
    the high one, which includes the corners, and in between in the middle one. A filter is "flat" if its band means
    differ by less than a tenth of the highest, and "notch" if it passes low and high frequencies about equally, but
    less in between.

    Args:
        amplitude: (H, W), zero frequency at (H // 2, W // 2), at least ``SMALLEST`` per side.
    """
    y, x = (torch.fft.fftshift(torch.fft.fftfreq(size)) * 2 for size in amplitude.shape)
    radius = (y[:, None] ** 2 + x[None, :] ** 2).sqrt()
    amplitude = amplitude.detach().cpu().double()
    low, band, high = (
        float(amplitude[within].mean())
        for within in (radius < 1 / 3, (radius >= 1 / 3) & (radius <= 2 / 3), radius > 2 / 3)
    )
    most, least = max(low, band, high), min(low, band, high)
    if most - least < FLAT * most:
        return "flat"
    if least == band and abs(low - high) < FLAT * most:
        return "notch"
    return {low: "low", band: "band", high: "high"}[most]


def shares(networks: Mapping[str, Sequence[nn.Module]]) -> list[dict[str, Any]]:
    """Return the share of each kind of filter by size of the map, one row per network and size.

    The size stands for the stage. Maps smaller than ``SMALLEST`` have too few frequencies and are left out.

    Args:
        networks: Label -> networks, such as those of several seeds.
    """
    rows = []
    for label, found in networks.items():
        for number, network in enumerate(found):
            sides: dict[int, list[str]] = {}
            for item in amplitudes(network).values():
                if min(item.shape[1:]) >= SMALLEST:
                    sides.setdefault(item.shape[1], []).extend(kind(each) for each in item)
            rows += [
                {"model": label, "network": number, "side": side, "filters": len(of)}
                | {each: of.count(each) / len(of) for each in PASSES}
                for side, of in sides.items()
            ]
    return rows


def _amplitudes(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameter names and amplitudes, (K, H, W), of the filters that a module itself holds."""
    with torch.no_grad():
        if isinstance(module, gfnet.GlobalFilter):
            return [("complex_weight", _of_planes(module.complex_weight))]
        if isinstance(module, dfformer.GlobalFilter | dfformer.DynamicFilter):
            return [("complex_weights", _of_planes(module.complex_weights))]
        if isinstance(module, spanetv2.SpectralAdaptiveModulation):
            names = [f"filter_{head}" for head in range(1, module.num_heads + 1)]
            gains = [module.scale(getattr(module, name)).permute(1, 2, 0) for name in names]
            return [(name, centred_amplitude(gain)) for name, gain in zip(names, gains, strict=True)]
        if isinstance(module, spanet.SpectralPooling):
            return [("filter", module.filter.detach().clone())]
    return []


def _of_planes(weight: Tensor) -> Tensor:
    """Convert real and imaginary planes, (H, W // 2 + 1, K, 2), to amplitudes (K, H, W)."""
    return centred_amplitude(torch.view_as_complex(float32_or_more(weight).contiguous()))


def centred_amplitude(half: Tensor, width: int | None = None) -> Tensor:
    """Return the amplitude at all frequencies of filters that are given for half of them.

    This is the effective filter: it multiplies the spectrum of a real map, and the product is transformed back to a
    real map. In the columns that are their own mirror image (zero frequency, and W / 2 for even W), only the Hermitian
    part of the weights has an effect.

    Args:
        half: Complex weights, or real gains, (H, W // 2 + 1, K).
        width: W; not needed for a square filter.

    Returns:
        (K, H, W), zero frequency at (H // 2, W // 2).

    Raises:
        ValueError: The filter is not square and no width is given, or the width does not match.
    """
    height, columns = half.shape[:2]
    width = height if width is None else width
    if width // 2 + 1 != columns:
        raise ValueError(f"{columns} columns are not half the spectrum of a {height} x {width} map: give its width")
    mirrored_rows = -torch.arange(height) % height
    full = torch.empty(height, width, half.shape[2], dtype=half.dtype, device=half.device)
    full[:, :columns] = half
    full[:, columns:] = half[mirrored_rows][:, 1 : width - columns + 1].flip(1).conj()
    for column in (0, width // 2) if width % 2 == 0 else (0,):
        full[:, column] = (half[:, column] + half[mirrored_rows, column].conj()) / 2
    return torch.fft.fftshift(full.abs(), dim=(0, 1)).permute(2, 0, 1)
