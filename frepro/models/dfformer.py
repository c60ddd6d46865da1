"""DFFormer, CDFFormer and GFFormer: MetaFormers that mix tokens by filters in the frequency domain.

"FFT-Based Dynamic Token Mixer for Vision", Tatsunami and Taki, AAAI 2024, https://arxiv.org/abs/2303.03932.
Official code: https://github.com/okojoalg/dfformer (read at 2b757c5, Apache-2.0). This file is an independent
implementation; tensor names are the official ones, so the authors' checkpoints load unchanged.

BibTeX::

    @inproceedings{tatsunami2024dfformer,
      title     = {{FFT}-Based Dynamic Token Mixer for Vision},
      author    = {Tatsunami, Yuki and Taki, Masato},
      booktitle = {AAAI},
      year      = {2024}
    }

Paper, official code, frepro:

- The filter is ceil(W / 2) wide in the paper and W // 2 + 1 in the code, which a real FFT needs; frepro follows the
  code.
- Eq. 4 numbers the coefficients (c - 1) N + i, the code n C' + c; frepro follows the code, which its checkpoints need.
- Eq. 6 has a norm inside the routing MLP; in the code, it is the block's norm, before the pooling. frepro follows the
  code.
- With other activations (Table 4), the routing MLP keeps StarReLU and the head its squared ReLU, as in the code.
- The official classifiers accept only 224 x 224. frepro's take any size: filters are resized at each forward pass by
  the rule of the official dense-prediction backbones (``ops.resize_filter``).
- The last row of Table 4 (ReLU and AFNO) has no official entry point: ``dfformer_s18_relu_afno`` combines those of ReLU
  and of AFNO.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models import register_model
from timm.models.metaformer import StarReLU
from torch import Tensor, nn

from frepro.models.backbone import create, default_cfg, published_cfgs
from frepro.models.layers import Mlp, call, is_private
from frepro.models.metaformer import MetaFormer, SepConv
from frepro.ops import dynamic_filter, global_filter, resize_filter
from frepro.ops.fourier import irfft2, rfft2
from frepro.ops.precision import float32_or_more, without_autocast

__all__ = ["AFNO2D", "DFFormer", "DynamicFilter", "GlobalFilter"]

REVISION = {"dfformer": 1}

for _operation in ("afno", "dynamic_filter", "global_filter", "resize_filter"):
    torch.fx.wrap(_operation)  # one node in graphs of torch.fx, which do not know the sizes it depends on


class DynamicFilter(nn.Module):
    """Filter whose spectrum is mixed for each image from a learned basis (eq. 3 to 6): (B, H, W, C) to (B, H, W, C).

    Args:
        dim: C.
        size: Height and width of the map for which the basis is created.
        act_layer: Activation of the expanded channels, called without arguments.
        num_filters: N, the size of the basis.
        routing_ratio: rho, the hidden width of the routing MLP relative to C.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int],
        act_layer: Callable = StarReLU,
        num_filters: int = 4,
        routing_ratio: float = 0.25,
        **dd: Any,
    ) -> None:
        super().__init__()
        hidden = 2 * dim
        self.num_filters = num_filters
        self.pwconv1 = nn.Linear(dim, hidden, bias=False, **dd)
        self.act1 = act_layer()
        self.reweight = Mlp(
            dim, int(routing_ratio * dim), num_filters * hidden, act_layer=partial(StarReLU, **dd), bias=False, **dd
        )
        self.complex_weights = nn.Parameter(0.02 * torch.randn(size[0], size[1] // 2 + 1, num_filters, 2, **dd))
        self.pwconv2 = nn.Linear(hidden, dim, bias=False, **dd)

    def set_size(self, size: tuple[int, int]) -> None:
        """Resize the filters permanently to another map size, (h, w)."""
        self.complex_weights = nn.Parameter(resize_filter(self.complex_weights.detach(), *size))

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(1, 2))  # (B, C)
        coefficients = self.reweight(pooled).unflatten(1, (self.num_filters, -1)).softmax(dim=1)  # (B, N, 2C)
        x = call(self.act1, call(self.pwconv1, x), made_by=self.pwconv1)
        basis = resize_filter(self.complex_weights, x.shape[1], x.shape[2])
        x = dynamic_filter(x, coefficients, basis, inplace=is_private(self.pwconv1, self.act1))
        return call(self.pwconv2, x)


class GlobalFilter(nn.Module):
    """GFFormer's mixer, one static filter per expanded channel (eq. 2): (B, H, W, C) to (B, H, W, C)."""

    def __init__(self, dim: int, *, size: tuple[int, int], act_layer: Callable = StarReLU, **dd: Any) -> None:
        super().__init__()
        hidden = 2 * dim
        self.pwconv1 = nn.Linear(dim, hidden, bias=False, **dd)
        self.act1 = act_layer()
        self.complex_weights = nn.Parameter(0.02 * torch.randn(size[0], size[1] // 2 + 1, hidden, 2, **dd))
        self.pwconv2 = nn.Linear(hidden, dim, bias=False, **dd)

    def set_size(self, size: tuple[int, int]) -> None:
        """Resize the filters permanently to another map size, (h, w)."""
        self.complex_weights = nn.Parameter(resize_filter(self.complex_weights.detach(), *size))

    def forward(self, x: Tensor) -> Tensor:
        x = call(self.act1, call(self.pwconv1, x), made_by=self.pwconv1)
        weight = resize_filter(self.complex_weights, x.shape[1], x.shape[2])
        return call(self.pwconv2, global_filter(x, weight, inplace=is_private(self.pwconv1, self.act1)))


def afno(x: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], threshold: float) -> Tensor:
    """``AFNO2D``'s MLP on the spectrum of a map: (B, H, W, C) to (B, H, W, C).

    Args:
        first, second: Weight, (2, blocks, in, out), and bias, (2, blocks, out), of a layer: real and imaginary part.
        threshold: That of the soft shrinkage.
    """
    with without_autocast(x):
        # (B, H, W // 2 + 1, blocks, block) each
        real, imag = (part.unflatten(3, first[1].shape[1:]) for part in rfft2(float32_or_more(x)))
        hidden = F.relu(_complex_linear(torch.cat([real, imag], dim=-1), *first))
        output = F.softshrink(_complex_linear(hidden, *second), threshold)
        real, imag = (part.flatten(3) for part in output.chunk(2, dim=-1))
        return irfft2(real, imag, x.shape[2]).to(x.dtype)


def _complex_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(..., blocks, 2 x in) to (..., blocks, 2 x out), real parts first; (a + ib)(c + id) as one real product."""
    real, imag = float32_or_more(weight)
    matrix = torch.cat([torch.cat([real, imag], dim=2), torch.cat([-imag, real], dim=2)], dim=1)
    return torch.einsum("...ki,kio->...ko", x, matrix) + float32_or_more(torch.cat([bias[0], bias[1]], dim=1))


class AFNO2D(nn.Module):
    """Adaptive Fourier neural operator (Guibas et al. 2022) in DFFormer's bottleneck (Table 4).

    (B, H, W, C) to (B, H, W, C). A two-layer MLP with complex weights, shared by all frequencies, acts on
    ``num_blocks`` blocks of channels. It has a ReLU on real and imaginary parts, and soft shrinkage of its output. The
    activated input is added to the result.

    Args:
        dim: C.
        size: Not used; all mixers of a MetaFormer take it.
        act_layer: Activation of the expanded channels, called without arguments.
        num_blocks: Number of blocks of channels.
        sparsity_threshold: Threshold of the soft shrinkage.

    Raises:
        ValueError: 2C is not divisible by ``num_blocks``.
    """

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int],
        act_layer: Callable = StarReLU,
        num_blocks: int = 8,
        sparsity_threshold: float = 0.01,
        **dd: Any,
    ) -> None:
        super().__init__()
        hidden = 2 * dim
        if hidden % num_blocks:
            raise ValueError(f"AFNO2D splits 2 x dim = {hidden} channels into {num_blocks} blocks of equal size")
        block = hidden // num_blocks
        self.sparsity_threshold = sparsity_threshold
        self.pwconv1 = nn.Linear(dim, hidden, bias=False, **dd)
        self.act1 = act_layer()
        # The first axis holds real and imaginary parts.
        self.w1 = nn.Parameter(0.02 * torch.randn(2, num_blocks, block, block, **dd))
        self.b1 = nn.Parameter(0.02 * torch.randn(2, num_blocks, block, **dd))
        self.w2 = nn.Parameter(0.02 * torch.randn(2, num_blocks, block, block, **dd))
        self.b2 = nn.Parameter(0.02 * torch.randn(2, num_blocks, block, **dd))
        self.pwconv2 = nn.Linear(hidden, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = call(self.act1, call(self.pwconv1, x), made_by=self.pwconv1)
        mixed = afno(x, (self.w1, self.b1), (self.w2, self.b2), self.sparsity_threshold)
        return call(self.pwconv2, x + mixed)


class DFFormer(MetaFormer):
    """MetaFormer with filters in the frequency domain as token mixers; sizes in Table 1 of the paper.

    Shapes are those of ``MetaFormer``.

    Args:
        mixers: Name of the token mixer in each stage: "dynamic", "global", "afno" or "conv".
        num_filters: N, the size of the dynamic filters' basis.
        routing_ratio: rho, the hidden width of their routing MLP relative to the channels.
        **kwargs: As in ``MetaFormer``.

    Raises:
        ValueError: A token mixer is unknown, or as in ``MetaFormer``.
    """

    hand_written_norms = ("downsample_layers.", "stages.")
    output_norm = staticmethod(partial(LayerNorm2d, eps=1e-6))
    drawings: ClassVar = {
        "dfformer_stages": ("cdfformer_s18", "", ("MetaFormerBlock", "Downsampling")),
        "dfformer_block": ("dfformer_s18", "stages.2.0", ("DynamicFilter",)),
        "dfformer_filter": ("dfformer_s18", "stages.2.0.token_mixer", ()),
    }

    def __init__(
        self,
        mixers: tuple[str, str, str, str] = ("dynamic",) * 4,
        num_filters: int = 4,
        routing_ratio: float = 0.25,
        **kwargs: Any,
    ) -> None:
        by_name: dict[str, Callable] = {
            "dynamic": partial(DynamicFilter, num_filters=num_filters, routing_ratio=routing_ratio),
            "global": GlobalFilter,
            "afno": AFNO2D,
            "conv": SepConv,
        }
        unknown = set(mixers) - set(by_name)
        if unknown:
            raise ValueError(f"unknown token mixer {', '.join(sorted(unknown))}: choose from {', '.join(by_name)}")
        super().__init__([by_name[name] for name in mixers], **kwargs)


_cfg = partial(
    default_cfg,
    pool_size=(7, 7),
    crop_pct=1.0,
    first_conv="downsample_layers.0.conv",
    classifier="head.fc2",
    license="apache-2.0",
    paper_ids="arXiv:2303.03932",
    paper_name="FFT-Based Dynamic Token Mixer for Vision",
    origin_url="https://github.com/okojoalg/dfformer",
)

SIZES = {
    "s18": {"depths": (3, 3, 9, 3), "dims": (64, 128, 320, 512)},
    "s36": {"depths": (3, 12, 18, 3), "dims": (64, 128, 320, 512)},
    "m36": {"depths": (3, 12, 18, 3), "dims": (96, 192, 384, 576)},
    "b36": {"depths": (3, 12, 18, 3), "dims": (128, 256, 512, 768)},
}
CONV_THEN_DYNAMIC = ("conv", "conv", "dynamic", "dynamic")

default_cfgs = published_cfgs(
    {
        name: _cfg()
        for name in (
            *(f"{family}_{size}" for family in ("dfformer", "cdfformer") for size in SIZES),
            "gfformer_s18",
            *(f"dfformer_s18_{variant}" for variant in ("k2", "d8", "gelu", "relu", "afno", "relu_afno")),
        )
    }
)


def _create_dfformer(
    variant: str, pretrained: bool, size: str, kwargs: dict[str, Any], **variant_args: Any
) -> DFFormer:
    return create(DFFormer, variant, pretrained, kwargs, **SIZES[size], **variant_args)


@register_model
def dfformer_s18(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    return _create_dfformer("dfformer_s18", pretrained, "s18", kwargs)


@register_model
def dfformer_s36(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    return _create_dfformer("dfformer_s36", pretrained, "s36", kwargs)


@register_model
def dfformer_m36(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    return _create_dfformer("dfformer_m36", pretrained, "m36", kwargs)


@register_model
def dfformer_b36(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    return _create_dfformer("dfformer_b36", pretrained, "b36", kwargs)


@register_model
def cdfformer_s18(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    return _create_dfformer("cdfformer_s18", pretrained, "s18", kwargs, mixers=CONV_THEN_DYNAMIC)


@register_model
def cdfformer_s36(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    return _create_dfformer("cdfformer_s36", pretrained, "s36", kwargs, mixers=CONV_THEN_DYNAMIC)


@register_model
def cdfformer_m36(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    return _create_dfformer("cdfformer_m36", pretrained, "m36", kwargs, mixers=CONV_THEN_DYNAMIC)


@register_model
def cdfformer_b36(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    return _create_dfformer("cdfformer_b36", pretrained, "b36", kwargs, mixers=CONV_THEN_DYNAMIC)


@register_model
def gfformer_s18(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    """GFFormer-S18, with static filters in all stages (Table 4)."""
    return _create_dfformer("gfformer_s18", pretrained, "s18", kwargs, mixers=("global",) * 4)


@register_model
def dfformer_s18_k2(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    """DFFormer-S18 with a basis of two filters, N = 2 (Table 4)."""
    return _create_dfformer("dfformer_s18_k2", pretrained, "s18", kwargs, num_filters=2)


@register_model
def dfformer_s18_d8(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    """DFFormer-S18 with a routing MLP of half the width, rho = 1/8 (Table 4)."""
    return _create_dfformer("dfformer_s18_d8", pretrained, "s18", kwargs, routing_ratio=0.125)


@register_model
def dfformer_s18_gelu(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    """DFFormer-S18 with GELU instead of StarReLU in mixers and MLPs (Table 4)."""
    return _create_dfformer("dfformer_s18_gelu", pretrained, "s18", kwargs, act_layer=nn.GELU)


@register_model
def dfformer_s18_relu(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    """DFFormer-S18 with ReLU instead of StarReLU in mixers and MLPs (Table 4)."""
    return _create_dfformer("dfformer_s18_relu", pretrained, "s18", kwargs, act_layer=nn.ReLU)


@register_model
def dfformer_s18_afno(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    """DFFormer-S18 with AFNO instead of dynamic filters (Table 4)."""
    return _create_dfformer("dfformer_s18_afno", pretrained, "s18", kwargs, mixers=("afno",) * 4)


@register_model
def dfformer_s18_relu_afno(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    """DFFormer-S18 with ReLU instead of StarReLU and AFNO instead of dynamic filters (Table 4, last row)."""
    return _create_dfformer(
        "dfformer_s18_relu_afno", pretrained, "s18", kwargs, mixers=("afno",) * 4, act_layer=nn.ReLU
    )
