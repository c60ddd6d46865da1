"""Vim-F: Vision Mamba that scans the amplitude spectrum of its patches together with the patches.

"Vim-F: Visual State Space Model Benefiting from Learning in the Frequency Domain", Zhang et al., 2024,
https://arxiv.org/abs/2405.18679v1. Official code: https://github.com/yws-wxs/Vim-F (read at dc1080f, "V1", and 4440225,
"V2"; no licence given). This file is an independent implementation; tensor names are the official ones, so the authors'
checkpoints load unchanged.

BibTeX::

    @article{zhang2024vimf,
      title   = {{Vim-F}: Visual State Space Model Benefiting from Learning in the Frequency Domain},
      author  = {Zhang, Juntao and Bian, Kun and Cheng, Peng and An, Wenbo and Liu, Jianning and Zhou, Jun},
      journal = {arXiv:2405.18679},
      year    = {2024}
    }

Before the class token is inserted and the first block runs, the patch grid X becomes ``a X + b |F(X)|`` with two
trainable numbers a, b (section 4.1). Vim-F(H) has a convolutional stem (Table 1) and no position embedding.

Row and model::

    Table 5 row                              model
    Vim-Ti (without Position Embedding)      vim_tiny_nope
    Vim-Ti (base)                            vim_tiny
    Vim-Ti-F                                 vimf_tiny
    Vim-Ti-F + Position Embedding            vimf_tiny_pe
    Vim-Ti-F(H)                              vimf_tiny_h

Paper, official code, frepro:

- The paper's transform is over height and width of the patch grid (eq. 7), un-shifted (introduction), and invariant to
  translation. No released code computes it. ``vimf_{tiny,small}`` and their ``_pe``, ``_h`` and ``_h_stride8`` do.
- V1 transforms over tokens and channels, and shifts the zero frequency to the middle of all axes, including the batch:
  image i gets the spectrum of image i - B // 2 (mod B), so its logits depend on the batch. The published accuracies
  were measured that way. ``vimf_v1_*`` do the same; with ``shift_batch=False``, each image keeps its own spectrum.
- V2, not in the paper, adds the un-shifted spectrum over tokens (including the class token) and channels within each of
  the first eight blocks, followed by a linear layer; its patch embedding adds none. ``vimf_v2_*`` do the same.
- Eq. 7 has no factor before the sum; both versions of the code have the orthonormal one, 1 / sqrt(H W) here. frepro
  follows the code: the trainable coefficients can absorb the factor, and with it the spectrum starts as large as the
  map.
- The paper does not give the initial coefficients; both versions of the code have 1, and so does frepro.
- Table 1 names neither norms nor activations of the stem; frepro follows the code.
- For the long sequence of Table 3, the stem's first stride is 2 instead of 4; all weights fit unchanged.
- Both versions of the code run at any image size, but V1 and V2 then transform a different number of tokens.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from timm.layers import LayerNorm2d
from timm.models import register_model
from torch import Tensor, nn

from frepro.models.backbone import create, published_cfgs
from frepro.models.layers import call
from frepro.models.vim import SIZES, VimBlock, VisionMamba, vim_cfg
from frepro.ops import amplitude_spectrum

__all__ = ["SpectralVimBlock", "VimF"]

torch.fx.wrap("amplitude_spectrum")  # one node in graphs of torch.fx, which do not know the sizes it depends on

REVISION = {"vimf": 1}


def conv_stem(in_chans: int, dim: int, *, stride: int, **dd: Any) -> nn.Sequential:
    """Build the convolutional stem: an overlapping convolution, then two that halve the map (Table 1).

    (B, C, H, W) to (B, D, h, w). The widths are 48, 96, 192 for Ti and 48, 192, 384 for S.
    """
    widths = (48, dim // 2, dim)
    norm: Callable[[int], nn.Module] = partial(LayerNorm2d, eps=1e-6, **dd)
    first = nn.Sequential(nn.Conv2d(in_chans, widths[0], 7, stride // 4, padding=3, **dd), norm(widths[0]))
    halvings = [
        nn.Sequential(nn.Conv2d(before, after, 2, 2, **dd), norm(after), nn.Conv2d(after, after, 1, **dd), nn.GELU())
        for before, after in pairwise(widths)
    ]
    return nn.Sequential(first, *halvings)


def grid_spectrum(x: Tensor) -> Tensor:
    """The spectrum of the paper, over height and width of the grid: (B, h, w, C) to (B, h, w, C)."""
    return amplitude_spectrum(x)


def v1_spectrum(x: Tensor, *, shift_batch: bool = True) -> Tensor:
    """Return V1's spectrum, over tokens and channels, zero frequency in the middle: (B, h, w, C) to (B, h, w, C).

    With ``shift_batch``, as in the released code, the batch is also rolled by half its length.
    """
    spectrum = amplitude_spectrum(x.flatten(1, 2))
    for axis in (0, 1, 2) if shift_batch else (1, 2):  # as fftshift, for which ONNX needs to know the sizes
        size = spectrum.shape[axis]
        places, half = torch.arange(size, device=x.device), size // 2
        spectrum = spectrum.index_select(axis, torch.where(places < half, places + (size - half), places - half))
    return spectrum.view_as(x)


class SpectralPatchEmbed(nn.Module):
    """Patches plus their amplitude spectrum, ``a X + b |F(X)|``: (B, C, H, W) to (B, h, w, D).

    Args:
        in_chans: C.
        dim: D.
        stride: Distance between patches in pixels.
        stem: "patch" (one convolution over patches of 16 x 16 pixels) or "conv" (the convolutional stem).
        spectrum: ``|F|``, from (B, h, w, D) to the same shape; ``None`` for patches without spectrum.
    """

    def __init__(
        self, in_chans: int, dim: int, *, stride: int, stem: str, spectrum: Callable | None, **dd: Any
    ) -> None:
        super().__init__()
        self.stem = stem
        self.spectrum = spectrum
        self.sup_c = None if spectrum is None else nn.Parameter(torch.ones(2, **dd))
        if stem == "conv":
            self.cnn_downsample_layers = conv_stem(in_chans, dim, stride=stride, **dd)
        else:
            self.proj = nn.Conv2d(in_chans, dim, 16, stride, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cnn_downsample_layers(x) if self.stem == "conv" else self.proj(x)
        x = x.permute(0, 2, 3, 1)
        if self.spectrum is None or self.sup_c is None:
            return x
        return self.sup_c[0] * x + self.sup_c[1] * self.spectrum(x)


class SpectralVimBlock(VimBlock):
    """V2's block, whose Mamba takes a linear map of ``a X + b |F(X)|``, F over tokens and channels.

    (B, L, C) to (B, L, C).
    """

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(dim, **kwargs)
        dd: dict[str, Any] = {name: kwargs.get(name) for name in ("device", "dtype")}
        self.stack = nn.Parameter(torch.ones(2, **dd))
        self.mlp = nn.Linear(dim, dim, **dd)
        nn.init.zeros_(self.mlp.bias)

    def mix(self, x: Tensor) -> Tensor:
        return self.mixer(call(self.mlp, self.stack[0] * x + self.stack[1] * amplitude_spectrum(x)))


class VimF(VisionMamba):
    """Vision Mamba on patches and their spectrum. Shapes are those of ``VisionMamba``.

    Args:
        spectrum: Spectrum that is added to the patches: "grid" (the paper), "v1" (the first release) or ``None``.
        shift_batch: With "v1", use for each image the spectrum of another image of the batch, as in the released code.
        spectral_blocks: Number of blocks, from the first, that are V2's.
        stem: "patch" (16 x 16 pixels) or "conv" (Table 1).
        pos_embed: Add learned position embeddings; the paper's models have none by default.
        depth: Number of blocks.
        **kwargs: As in ``VisionMamba``.

    Raises:
        ValueError: ``spectrum`` or ``stem`` is unknown, or as in ``VisionMamba``.
    """

    hand_written_norms = ("patch_embed.",)
    drawings: ClassVar = {"vimf_patches": ("vimf_tiny_h", "patch_embed", ())}

    def __init__(
        self,
        spectrum: str | None = "grid",
        shift_batch: bool = True,
        spectral_blocks: int = 0,
        stem: str = "patch",
        pos_embed: bool = False,
        depth: int = 24,
        **kwargs: Any,
    ) -> None:
        by_name = {"grid": grid_spectrum, "v1": partial(v1_spectrum, shift_batch=shift_batch), None: None}
        if spectrum not in by_name:
            raise ValueError(f"spectrum must be 'grid', 'v1' or None, not {spectrum!r}")
        if stem not in ("patch", "conv"):
            raise ValueError(f"stem must be 'patch' or 'conv', not {stem!r}")
        super().__init__(
            pos_embed=pos_embed,
            depth=depth,
            embed_layer=partial(SpectralPatchEmbed, stem=stem, spectrum=by_name[spectrum]),
            block_layers=[SpectralVimBlock if i < spectral_blocks else VimBlock for i in range(depth)],
            **kwargs,
        )


def _cfg(stem: str) -> dict[str, Any]:
    return vim_cfg(
        first_conv="patch_embed.proj" if stem == "patch" else "patch_embed.cnn_downsample_layers.0.0",
        license=None,
        paper_ids="arXiv:2405.18679",
        paper_name="Vim-F: Visual State Space Model Benefiting from Learning in the Frequency Domain",
        origin_url="https://github.com/yws-wxs/Vim-F",
    )


# The arguments of ``VimF`` that make each variant.
VARIANTS: dict[str, dict[str, Any]] = {
    "vimf_{}": {},
    "vimf_{}_pe": {"pos_embed": True},
    "vimf_{}_h": {"stem": "conv"},
    "vimf_{}_h_stride8": {"stem": "conv", "stride": 8},
    "vimf_v1_{}": {"stem": "conv", "spectrum": "v1"},
    "vimf_v1_{}_stride8": {"stem": "conv", "spectrum": "v1", "stride": 8},
    "vimf_v2_{}": {"stem": "conv", "spectrum": None, "spectral_blocks": 8},
    "vimf_v2_{}_stride8": {"stem": "conv", "spectrum": None, "spectral_blocks": 8, "stride": 8},
}

default_cfgs = published_cfgs(
    {name.format(size): _cfg(args.get("stem", "patch")) for name, args in VARIANTS.items() for size in SIZES}
)


def _create_vimf(name: str, size: str, pretrained: bool, kwargs: dict[str, Any]) -> VimF:
    return create(VimF, name.format(size), pretrained, kwargs, **VARIANTS[name], **SIZES[size])


@register_model
def vimf_tiny(pretrained: bool = False, **kwargs: Any) -> VimF:
    """Vim-Ti-F: patches and their spectrum, no position embedding (Table 5)."""
    return _create_vimf("vimf_{}", "tiny", pretrained, kwargs)


@register_model
def vimf_small(pretrained: bool = False, **kwargs: Any) -> VimF:
    """Vim-S-F: patches and their spectrum, no position embedding."""
    return _create_vimf("vimf_{}", "small", pretrained, kwargs)


@register_model
def vimf_tiny_pe(pretrained: bool = False, **kwargs: Any) -> VimF:
    """Vim-Ti-F with position embedding (Table 5)."""
    return _create_vimf("vimf_{}_pe", "tiny", pretrained, kwargs)


@register_model
def vimf_small_pe(pretrained: bool = False, **kwargs: Any) -> VimF:
    """Vim-S-F with position embedding."""
    return _create_vimf("vimf_{}_pe", "small", pretrained, kwargs)


@register_model
def vimf_tiny_h(pretrained: bool = False, **kwargs: Any) -> VimF:
    """Vim-Ti-F(H): convolutional stem, no position embedding (Table 2)."""
    return _create_vimf("vimf_{}_h", "tiny", pretrained, kwargs)


@register_model
def vimf_small_h(pretrained: bool = False, **kwargs: Any) -> VimF:
    """Vim-S-F(H): convolutional stem, no position embedding (Table 2)."""
    return _create_vimf("vimf_{}_h", "small", pretrained, kwargs)


@register_model
def vimf_tiny_h_stride8(pretrained: bool = False, **kwargs: Any) -> VimF:
    """Vim-Ti-F(H) with patches 8 pixels apart, 784 patches at 224 pixels (Table 3)."""
    return _create_vimf("vimf_{}_h_stride8", "tiny", pretrained, kwargs)


@register_model
def vimf_small_h_stride8(pretrained: bool = False, **kwargs: Any) -> VimF:
    """Vim-S-F(H) with patches 8 pixels apart, 784 patches at 224 pixels (Table 3)."""
    return _create_vimf("vimf_{}_h_stride8", "small", pretrained, kwargs)


@register_model
def vimf_v1_tiny(pretrained: bool = False, **kwargs: Any) -> VimF:
    """V1 of the released code. Its output for an image depends on the batch; see the top of this file."""
    return _create_vimf("vimf_v1_{}", "tiny", pretrained, kwargs)


@register_model
def vimf_v1_small(pretrained: bool = False, **kwargs: Any) -> VimF:
    """V1 of the released code. Its output for an image depends on the batch; see the top of this file."""
    return _create_vimf("vimf_v1_{}", "small", pretrained, kwargs)


@register_model
def vimf_v1_tiny_stride8(pretrained: bool = False, **kwargs: Any) -> VimF:
    """V1 of the released code with patches 8 pixels apart."""
    return _create_vimf("vimf_v1_{}_stride8", "tiny", pretrained, kwargs)


@register_model
def vimf_v1_small_stride8(pretrained: bool = False, **kwargs: Any) -> VimF:
    """V1 of the released code with patches 8 pixels apart."""
    return _create_vimf("vimf_v1_{}_stride8", "small", pretrained, kwargs)


@register_model
def vimf_v2_tiny(pretrained: bool = False, **kwargs: Any) -> VimF:
    """V2 of the released code."""
    return _create_vimf("vimf_v2_{}", "tiny", pretrained, kwargs)


@register_model
def vimf_v2_small(pretrained: bool = False, **kwargs: Any) -> VimF:
    """V2 of the released code."""
    return _create_vimf("vimf_v2_{}", "small", pretrained, kwargs)


@register_model
def vimf_v2_tiny_stride8(pretrained: bool = False, **kwargs: Any) -> VimF:
    """V2 of the released code with patches 8 pixels apart."""
    return _create_vimf("vimf_v2_{}_stride8", "tiny", pretrained, kwargs)


@register_model
def vimf_v2_small_stride8(pretrained: bool = False, **kwargs: Any) -> VimF:
    """V2 of the released code with patches 8 pixels apart."""
    return _create_vimf("vimf_v2_{}_stride8", "small", pretrained, kwargs)
