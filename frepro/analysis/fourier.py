"""Spectra of feature maps: which frequencies a model keeps and which it attenuates.

The quantity is that of Park and Kim, "How Do Vision Transformers Work?", ICLR 2022 (https://arxiv.org/abs/2202.06709),
which DFFormer (Figures 1 and 8), SPANet (Figures 1 and 2) and SPANetV2 (Figure 3) follow: the logarithm of the
amplitude of the 2D Fourier transform, averaged over images and channels. Plots show its diagonal, from zero frequency
to the highest, relative to zero frequency. Frequencies are in units of pi radians per sample of the map, so 1 is the
highest that a map of its size can represent.

This differs from the notebook released by SPANetV2's authors. The notebook leaves out the highest frequency of even
maps and then draws all curves from 0 to 1, including those of 7 x 7 maps, which end at 6/7. Here each value is drawn at
its own frequency.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frepro.analysis.features import Layer, batches, feature_maps
from frepro.ops.precision import float32_or_more

# Keeps the logarithm of an empty frequency finite; the released notebook adds the same to an unnormalised transform.
EPSILON = 1e-6

SMALLEST = 4  # samples per side of the smallest maps whose high frequencies are compared


@dataclass(frozen=True)
class Spectrum(Layer):
    """The mean spectrum of a layer's maps.

    Attributes:
        log_amplitude: (H, W), natural logarithm, zero frequency at (H // 2, W // 2).
    """

    log_amplitude: Tensor


def spectra(
    model: nn.Module, images: Tensor | Iterable, kinds: Iterable[str] = ("downsample", "block")
) -> list[Spectrum]:
    """Return the mean spectrum over all images for every requested layer.

    Args:
        images: Normalised images, (N, 3, H, W), or batches of them, such as ``images.split(32)`` or a loader.
        kinds: Kinds of layers (see ``features.Layer``).

    Returns:
        One spectrum per layer, in the order of the forward pass.
    """
    layers: list[Layer] = []
    sums: list[Tensor] = []
    count = 0
    for batch in batches(images):
        maps = feature_maps(model, batch, kinds)
        totals = [len(batch) * log_amplitude(found.value).double().cpu() for found in maps]
        layers = [found.layer for found in maps]
        sums = [a + b for a, b in zip(sums, totals, strict=True)] if sums else totals
        count += len(batch)
    return [
        Spectrum(layer.name, layer.kind, layer.stage, layer.depth, total / count)
        for layer, total in zip(layers, sums, strict=True)
    ]


def log_amplitude(maps: Tensor) -> Tensor:
    """Return the spectrum map: ``log |F(x)|``, averaged over images and channels (SPANet Figure 1).

    The transform is orthonormal, so white noise of unit variance has amplitudes around 1 at any size.

    Args:
        maps: (B, C, H, W).

    Returns:
        (H, W), natural logarithm, zero frequency at (H // 2, W // 2).
    """
    amplitude = torch.fft.fft2(float32_or_more(maps), norm="ortho").abs()
    return torch.fft.fftshift((amplitude + EPSILON).log().mean(dim=(0, 1)))


def relative_log_amplitude(log_amplitude: Tensor) -> tuple[Tensor, Tensor]:
    """Return log amplitude along the diagonal, relative to zero frequency (DFFormer Figure 1, SPANetV2 Figure 3).

    White noise is not at 0 but at log(2) / 2 = 0.35: a real map's coefficient at zero frequency is real, and the mean
    logarithm of a real Gaussian is lower by that amount than that of a complex one of the same variance. The same holds
    for the highest frequency of an even map, where the curve drops by that amount.

    Args:
        log_amplitude: Spectrum map of real maps, (H, H), zero frequency in the middle.

    Returns:
        Frequencies in units of pi, (H // 2 + 1,), and the differences of log amplitude at them. The last frequency is 1
        for even H and 1 - 1 / H for odd H.

    Raises:
        ValueError: The map is not square, so its diagonal passes between the frequencies.
    """
    height, width = log_amplitude.shape
    if height != width:
        raise ValueError(f"the diagonal needs a square spectrum, not {height} x {width}")
    # From the middle to the corner at index 0, which exists for any size; a real map's spectrum is symmetric.
    centre = height // 2
    values = log_amplitude.diagonal()[: centre + 1].flip(0)
    return torch.arange(centre + 1) * (2 / height), values - values[0]


def of_similar_size(models: Mapping[str, Sequence[Spectrum]]) -> dict[str, Spectrum]:
    """Return the spectrum of one layer of each model, such that their maps have the same size, or nearly so.

    The size is the largest that every model reaches: 14 x 14 at full size with a ViT among them. Of each model,
    this is the last layer whose size is nearest.
    """
    side = min(max(len(layer.log_amplitude) for layer in layers) for layers in models.values())
    return {
        label: min(reversed(layers), key=lambda layer: abs(len(layer.log_amplitude) - side))
        for label, layers in models.items()
    }


def high_frequencies(models: Mapping[str, Sequence[Sequence[Spectrum]]]) -> list[dict[str, Any]]:
    """Return how much high frequencies each layer's maps have, one row per layer of each network.

    "high" is the mean relative log amplitude (``relative_log_amplitude``) over the upper half of the frequencies, from
    pi / 2: the lower, the more they are attenuated. Layers whose maps have fewer than four samples per side have too
    few frequencies and are left out.

    Args:
        models: Label -> the spectra of each network, such as those of several seeds.
    """
    rows = []
    for label, networks in models.items():
        for number, layers in enumerate(networks):
            for layer in layers:
                if len(layer.log_amplitude) < SMALLEST:
                    continue
                frequency, values = relative_log_amplitude(layer.log_amplitude)
                high = float(values[frequency >= 0.5].mean())
                rows.append(
                    {"model": label, "network": number, "stage": layer.stage, "block": layer.depth, "high": high}
                )
    return rows


def frequencies(size: int) -> Tensor:
    """Return the frequencies of a centred spectrum's bins in units of pi, (size,), ascending.

    They start at -1 for even sizes and at -1 + 1 / size for odd ones.
    """
    return 2 * torch.fft.fftshift(torch.fft.fftfreq(size, dtype=torch.float64))
