"""What shifting an image changes in the input of Vim-F's scan (Vim-F Figure 2).

The amplitude of a Fourier transform over height and width does not change when a map is shifted circularly: only the
phase encodes positions. Patches of 16 x 16 pixels without padding shift along only if the image shifts by whole
patches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from frepro.models.vimf import VimF, v1_spectrum
from frepro.ops import amplitude_spectrum


@dataclass(frozen=True)
class Translation:
    """An image, the same image shifted circularly, and the patches of both.

    Attributes:
        shift: Pixels down and to the right.
        images: (2, 3, H, W).
        patches: (2, h, w, D), before they are combined with the spectrum.
    """

    shift: tuple[int, int]
    images: Tensor
    patches: Tensor

    @property
    def spectra(self) -> Tensor:
        """``|F(X)|`` over height and width of the patch grid (eq. 7), (2, h, w, D)."""
        return amplitude_spectrum(self.patches)

    def changes(self) -> dict[str, float]:
        """Return the change ``|y' - y| / |y|`` that the shift causes in the patches and in two spectra.

        The spectra are those of the paper and of the released code.
        """
        return {
            "patches": relative_change(self.patches),
            "amplitude over height and width (eq. 7)": relative_change(self.spectra),
            "amplitude over tokens and channels (released code)": relative_change(
                v1_spectrum(self.patches, shift_batch=False)
            ),
        }


def move(model: VimF, image: Tensor, shift: tuple[int, int]) -> Translation:
    """Return the patches of an image and of its circularly shifted copy.

    Args:
        model: A model whose patches are a convolution, such as ``vimf_tiny``.
        image: (3, H, W), normalised.
        shift: Pixels down and to the right.
    """
    if model.patch_embed.stem != "patch":
        raise ValueError("a convolutional stem pads the image, so its patches do not shift circularly: use vimf_tiny")
    down, right = shift
    images = torch.stack([image, image.roll((down, right), dims=(1, 2))])
    with torch.no_grad():
        return Translation((down, right), images, model.patch_embed.proj(images).permute(0, 2, 3, 1))


def relative_change(pair: Tensor) -> float:
    """Return ``|second - first| / |first|`` of (2, ...), Euclidean."""
    first, second = pair.double()
    return float((second - first).norm() / first.norm())
