"""Amplitudes of filters that models have learnt in the frequency domain, whole and centred, as pictures show them.

Weights are half spectra: real maps need no more. Pictures show all frequencies, zero in the middle.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frepro.models import dfformer, gfnet, spanet, spanetv2
from frepro.ops.precision import float32_or_more


def amplitudes(model: nn.Module) -> dict[str, Tensor]:
    """The amplitude of every filter of a model, by the name of its parameter, in the order of the blocks.

    GFNet and GFFormer: one static filter for each channel (DFFormer Figure 2). DFFormer and CDFFormer: the N filters of
    the basis that each image's filters are mixed from (DFFormer Figure 9). SPANetV2: the gains in (0, 1) of each head's
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
    """How alike the filters of a layer are: the mean correlation (Pearson's) of their amplitudes over all pairs.

    1 where all are the same but for scale and offset, near 0 for filters that have nothing in common. (It is a little
    more at random initialisation: columns that are their own mirror are weaker in all filters.)

    Args:
        amplitudes: (K, H, W) of K filters, two or more, as ``amplitudes`` gives them.
    """
    count = len(amplitudes)
    if count < 2 or amplitudes[0].numel() < 2:
        raise ValueError(f"{count} filters of {amplitudes[0].numel()} frequencies have no correlation")
    correlations = torch.corrcoef(amplitudes.flatten(1).double())
    return float((correlations.sum() - correlations.trace()) / (count * (count - 1)))


def alikeness_by_layer(networks: Mapping[str, Sequence[nn.Module]], smallest: int = 4) -> list[dict[str, Any]]:
    """The alikeness of the filters in each layer of several networks, a line each.

    Args:
        networks: Label -> networks, such as those of several seeds.
        smallest: Leave out maps of a smaller side: on a handful of frequencies any two filters may seem alike.
    """
    return [
        {"model": label, "network": number, "layer": layer, "side": item.shape[1], "alikeness": alikeness(item)}
        for label, found in networks.items()
        for number, network in enumerate(found)
        for layer, item in enumerate(amplitudes(network).values(), start=1)
        if min(item.shape[1:]) >= smallest
    ]


def _amplitudes(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameter names and amplitudes, (K, H, W), of the filters that a module itself holds."""
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
    """Real and imaginary planes, (H, W // 2 + 1, K, 2), to (K, H, W)."""
    return centred_amplitude(torch.view_as_complex(float32_or_more(weight).contiguous()))


def centred_amplitude(half: Tensor, width: int | None = None) -> Tensor:
    """Amplitude over all frequencies of filters that are given on half of them.

    It is the filter that acts: what multiplies the spectrum of a real map and is transformed back to a real map. In the
    columns that are their own mirror (zero frequency, and W / 2 for even W) such a filter acts with the Hermitian part
    of its weights alone.

    Args:
        half: Complex weights, or real gains, (H, W // 2 + 1, K).
        width: W; a square filter needs none.

    Returns:
        (K, H, W), zero frequency at (H // 2, W // 2).

    Raises:
        ValueError: The filter is not square and no width given, or the width does not fit.
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
