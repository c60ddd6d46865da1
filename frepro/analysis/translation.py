"""What moving an image changes in what Vim-F scans (Vim-F Figure 2).

The amplitude of a Fourier transform over height and width stays as it is when a map is moved in a circle: only the
phase tells where things are. Patches of 16 x 16 pixels without padding move along when the image moves by whole
patches, and then only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from frepro.models.vimf import VimF, v1_spectrum
from frepro.ops import amplitude_spectrum


@dataclass(frozen=True)
class Translation:
    """An image, the same moved in a circle, and the patches of both.

    Attributes:
        shift: Pixels down and to the right.
        images: (2, 3, H, W).
        patches: (2, h, w, D), before the spectrum joins.
    """

    shift: tuple[int, int]
    images: Tensor
    patches: Tensor

    @property
    def spectra(self) -> Tensor:
        """|F(X)| over height and width of the patch grid (eq. 7), (2, h, w, D)."""
        return amplitude_spectrum(self.patches)

    def changes(self) -> dict[str, float]:
        """What the move changes, |y' - y| / |y|, in the patches, the paper's spectrum and the released code's."""
        return {
            "patches": relative_change(self.patches),
            "amplitude over height and width (eq. 7)": relative_change(self.spectra),
            "amplitude over tokens and channels (released code)": relative_change(
                v1_spectrum(self.patches, shift_batch=False)
            ),
        }


def move(model: VimF, image: Tensor, shift: tuple[int, int]) -> Translation:
    """Patches of an image and of the same moved in a circle.

    Args:
        model: One whose patches are a convolution, such as ``vimf_tiny``.
        image: (3, H, W), normalised.
        shift: Pixels down and to the right.
    """
    if model.patch_embed.stem != "patch":
        raise ValueError("a convolutional stem pads the image, so that nothing moves in a circle: use vimf_tiny")
    images = torch.stack([image, image.roll(tuple(shift), dims=(1, 2))])
    with torch.no_grad():
        return Translation(tuple(shift), images, model.patch_embed.proj(images).permute(0, 2, 3, 1))


def relative_change(pair: Tensor) -> float:
    """|second - first| / |first| of (2, ...), Euclidean."""
    first, second = pair.double()
    return float((second - first).norm() / first.norm())
