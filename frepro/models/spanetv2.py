"""SPANetV2: a MetaFormer that mixes tokens by convolutions of four sizes, rescaled in the frequency domain.

"Spectral-Adaptive Modulation Networks for Visual Perception", Yun et al., TPAMI 2026, https://arxiv.org/abs/2503.23947.
Official code: https://github.com/DoranLyong/SPANetV2-official (read at 8a490a6; it states no licence). This file is an
independent implementation; tensor names are the official ones, so the authors' checkpoints load unchanged.

BibTeX::

    @article{yun2026spectral,
      title   = {Spectral-Adaptive Modulation Networks for Visual Perception},
      author  = {Yun, Guhnoo and Yoo, Juhan and Kim, Kijung and Lee, Jeongho and Seo, Paul Hongsuck and Kim, Dong Hwan},
      journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
      year    = {2026}
    }

"pure" models have the SPAM mixer in all stages. "hybrid" models have it in the first two stages, attention with a
parallel convolution in the third, and attention in the fourth.

Paper, official code, frepro:

- The official repository has several versions of the mixer with incompatible weights. frepro follows
  ``image_classification/models/spanetv2.py``, whose tensor names the public checkpoints have: one filter per head, and
  heads interleaved channel by channel, so each group of the projection takes all four kernel sizes. In the version
  behind the latency figures, heads are concatenated.
- The README gives two accuracies "with the scaled sigmoid" (83.5 for S18-pure, 84.9 for S36-hybrid) that no released
  code produces. The only trace is a line that is commented out, in a version with concatenated heads: the gain is
  sigmoid(alpha * filter) with one learnable alpha per mixer, initially 1. ``scaled_sigmoid=True`` implements it under
  the same name (``scale.alpha``). Whether those runs had interleaved heads is unknown; their weights are unpublished.
- At other image sizes, filters are resized before the sigmoid at each forward pass, as in the official code
  (``ops.resize_filter``); ``set_input_size`` resizes them permanently.
- The README gives 61 M parameters for M36-pure and 100 M for both B36 models; the official code and frepro have 62.93,
  109.56 and 101.80 M.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import GroupNorm1, LayerNorm2d
from timm.models import register_model
from torch import Tensor, nn
from torch.autograd import forward_ad

from frepro.models.backbone import create, default_cfg, published_cfgs
from frepro.models.layers import Sequential, call, conv1x1, depthwise
from frepro.models.metaformer import MetaFormer, SepConv
from frepro.ops import eager, resize_filter, spectral_rescale

__all__ = ["Attention", "SPANetV2", "SpectralAdaptiveModulation"]

REVISION = {"spanetv2": 1}

for _operation in ("attention", "resize_filter", "spectral_rescale"):
    torch.fx.wrap(_operation)  # one node in graphs of torch.fx, which do not know the sizes it depends on


class ScaledSigmoid(nn.Module):
    """sigmoid(alpha x) with one learnable alpha, for x of any shape."""

    def __init__(self, **dd: Any) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, **dd))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.alpha * x)


class SpectralAdaptiveModulation(nn.Module):
    """SPAM mixer (Figure 2 of the paper): (B, H, W, C) to (B, H, W, C).

    Each of four heads of C / 4 channels has a depthwise convolution, with kernel sizes 3, 5, 7 and 9. The spectrum of
    each channel is rescaled by a learned gain in (0, 1). A projection to 2C channels and back computes the context that
    modulates the query: proj_out(query * context).

    Args:
        dim: C.
        size: Height and width of the map for which the filters are created.
        act_layer: Not used (query and projection have GELU); all mixers of a MetaFormer take it.
        scaled_sigmoid: Use the gain sigmoid(alpha * filter) with a learnable alpha instead of sigmoid(filter).

    Raises:
        ValueError: C is not divisible by four.
    """

    num_heads = 4

    def __init__(
        self, dim: int, *, size: tuple[int, int], act_layer: Any = None, scaled_sigmoid: bool = False, **dd: Any
    ) -> None:
        super().__init__()
        if dim % self.num_heads:
            raise ValueError(f"SPAM splits dim = {dim} channels into {self.num_heads} heads of equal size")
        groups = self.head_width = dim // self.num_heads
        self.query = Sequential(nn.Linear(dim, dim, bias=False, **dd), nn.GELU())
        self.ctx = nn.Linear(dim, dim, bias=False, **dd)
        for i in range(1, self.num_heads + 1):
            conv = depthwise(groups, 2 * i + 1, **dd)
            self.register_module(f"local_conv_{i}", conv)
            spectrum = nn.Parameter(0.02 * torch.randn(groups, size[0], size[1] // 2 + 1, **dd))
            self.register_parameter(f"filter_{i}", spectrum)
        self.scale = ScaledSigmoid(**dd) if scaled_sigmoid else nn.Sigmoid()
        self.proj = Sequential(
            nn.Conv2d(dim, 2 * dim, 1, groups=groups, bias=False, **dd),
            GroupNorm1(2 * dim, **dd),
            nn.GELU(),
            conv1x1(2 * dim, dim, bias=False, **dd),
        )
        self.proj_out = nn.Linear(dim, dim, bias=False, **dd)

    def _heads(self, name: str) -> list[Any]:
        return [getattr(self, f"{name}_{i}") for i in range(1, self.num_heads + 1)]

    def set_size(self, size: tuple[int, int]) -> None:
        """Resize the filters permanently to another map size, (h, w)."""
        for i, spectrum in enumerate(self._heads("filter"), start=1):
            resized = resize_filter(spectrum.detach().permute(1, 2, 0), *size).permute(2, 0, 1)
            setattr(self, f"filter_{i}", nn.Parameter(resized.contiguous()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x)
        maps, width = call(self.ctx, x).permute(0, 3, 1, 2), self.head_width
        heads = [call(conv, maps.narrow(1, i * width, width)) for i, conv in enumerate(self._heads("local_conv"))]
        # Channel g * 4 + h holds channel g of head h.
        context = torch.stack([head.permute(0, 2, 3, 1) for head in heads], dim=4).flatten(3)  # (B, H, W, C)
        spectrum = torch.stack(self._heads("filter"), dim=1).flatten(0, 1).permute(1, 2, 0)  # (H, W // 2 + 1, C)
        gain = self.scale(resize_filter(spectrum, x.shape[1], x.shape[2]))
        context = self.proj(spectral_rescale(context, gain, inplace=True).permute(0, 3, 1, 2))
        return call(self.proj_out, query * context.permute(0, 2, 3, 1))


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V, each (B, heads, L, d), by torch's fused kernel.

    The kernel has no forward-mode and no second derivative; where these are wanted, the plain form gives them.
    """
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return _plain_attention(query, key, value)
    y = F.scaled_dot_product_attention(query, key, value)
    if y.requires_grad and torch.is_grad_enabled() and eager.obstacle(query, key, value) is None:
        return _TwiceDifferentiable.apply(query, key, value, y)
    return y


def _plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = query @ key.mT / query.shape[3] ** 0.5
    return scores.softmax(dim=3) @ value


class _TwiceDifferentiable(torch.autograd.Function):
    """Pass on the kernel's result. Its gradient is the kernel's, or that of the plain form if it is recorded."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return None, None, None, dy
        gradients = eager.plain_gradients(_plain_attention, tensors, dy)
        assert gradients is not None  # a gradient that is recorded is never the kernel's
        return *gradients, None


class Attention(nn.Module):
    """Multi-head self-attention over all positions, with heads of 32 channels: (B, H, W, C) to (B, H, W, C).

    Args:
        dim: C.
        size, act_layer: Not used; all mixers of a MetaFormer take them.
        local_conv: Add a depthwise 7x7 convolution of the values to the attention's output.

    Raises:
        ValueError: C is not divisible by 32.
    """

    head_dim = 32

    def __init__(
        self, dim: int, *, size: tuple[int, int], act_layer: Any = None, local_conv: bool = False, **dd: Any
    ) -> None:
        super().__init__()
        if dim % self.head_dim:
            raise ValueError(f"attention splits dim = {dim} channels into heads of {self.head_dim}")
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, **dd)
        self.local_conv = depthwise(dim, 7, bias=False, **dd) if local_conv else None
        self.proj = nn.Linear(dim, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = call(self.qkv, x).chunk(3, dim=-1)  # (B, H, W, C) each
        heads = (part.flatten(1, 2).unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in (query, key, value))
        mixed = attention(*heads)  # (B, heads, H * W, head_dim)
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        if self.local_conv is not None:
            mixed = mixed + call(self.local_conv, value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return call(self.proj, mixed)


class SPANetV2(MetaFormer):
    """MetaFormer with spectral-adaptive modulation as token mixer in all stages, or with attention in the last two.

    Shapes are those of ``MetaFormer``.

    Args:
        mixers: Name of the token mixer in each stage: "spam", "mix_attention" (with a convolution), "attention" or
            "conv". With only the last two, this is ConvFormer or CAFormer (Yu et al. 2022).
        scaled_sigmoid: Use gains with a learnable slope in the SPAM mixers (see the top of this file).
        **kwargs: As in ``MetaFormer``.

    Raises:
        ValueError: A token mixer is unknown, a stage's channels cannot be split into heads, or as in ``MetaFormer``.
    """

    hand_written_norms = ("downsample_layers.",)
    output_norm = staticmethod(partial(LayerNorm2d, eps=1e-6, bias=False))
    drawings: ClassVar = {
        "spanetv2_stages": ("spanetv2_s18_hybrid", "", ("MetaFormerBlock", "Downsampling")),
        "spanetv2_spam": ("spanetv2_s18_pure", "stages.2.0.token_mixer", ()),
        "spanetv2_attention": ("spanetv2_s18_hybrid", "stages.2.0.token_mixer", ()),
    }

    def __init__(
        self,
        mixers: tuple[str, str, str, str] = ("spam",) * 4,
        scaled_sigmoid: bool = False,
        **kwargs: Any,
    ) -> None:
        by_name: dict[str, Callable] = {
            "spam": partial(SpectralAdaptiveModulation, scaled_sigmoid=scaled_sigmoid),
            "mix_attention": partial(Attention, local_conv=True),
            "attention": Attention,
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
    paper_ids="arXiv:2503.23947",
    paper_name="Spectral-Adaptive Modulation Networks for Visual Perception",
    origin_url="https://github.com/DoranLyong/SPANetV2-official",
)

SIZES = {
    "s18": {"depths": (3, 3, 9, 3), "dims": (64, 128, 320, 512)},
    "s36": {"depths": (3, 12, 18, 3), "dims": (64, 128, 320, 512)},
    "m36": {"depths": (3, 12, 18, 3), "dims": (96, 192, 384, 576)},
    "b36": {"depths": (3, 12, 18, 3), "dims": (128, 256, 512, 768)},
}
MIXERS = {"pure": ("spam",) * 4, "hybrid": ("spam", "spam", "mix_attention", "attention")}

default_cfgs = published_cfgs({f"spanetv2_{size}_{kind}": _cfg() for size in SIZES for kind in MIXERS})


def _create_spanetv2(variant: str, pretrained: bool, size: str, kind: str, kwargs: dict[str, Any]) -> SPANetV2:
    return create(SPANetV2, variant, pretrained, kwargs, **SIZES[size], mixers=MIXERS[kind])


@register_model
def spanetv2_s18_pure(pretrained: bool = False, **kwargs: Any) -> SPANetV2:
    return _create_spanetv2("spanetv2_s18_pure", pretrained, "s18", "pure", kwargs)


@register_model
def spanetv2_s18_hybrid(pretrained: bool = False, **kwargs: Any) -> SPANetV2:
    return _create_spanetv2("spanetv2_s18_hybrid", pretrained, "s18", "hybrid", kwargs)


@register_model
def spanetv2_s36_pure(pretrained: bool = False, **kwargs: Any) -> SPANetV2:
    return _create_spanetv2("spanetv2_s36_pure", pretrained, "s36", "pure", kwargs)


@register_model
def spanetv2_s36_hybrid(pretrained: bool = False, **kwargs: Any) -> SPANetV2:
    return _create_spanetv2("spanetv2_s36_hybrid", pretrained, "s36", "hybrid", kwargs)


@register_model
def spanetv2_m36_pure(pretrained: bool = False, **kwargs: Any) -> SPANetV2:
    return _create_spanetv2("spanetv2_m36_pure", pretrained, "m36", "pure", kwargs)


@register_model
def spanetv2_m36_hybrid(pretrained: bool = False, **kwargs: Any) -> SPANetV2:
    return _create_spanetv2("spanetv2_m36_hybrid", pretrained, "m36", "hybrid", kwargs)


@register_model
def spanetv2_b36_pure(pretrained: bool = False, **kwargs: Any) -> SPANetV2:
    return _create_spanetv2("spanetv2_b36_pure", pretrained, "b36", "pure", kwargs)


@register_model
def spanetv2_b36_hybrid(pretrained: bool = False, **kwargs: Any) -> SPANetV2:
    return _create_spanetv2("spanetv2_b36_hybrid", pretrained, "b36", "hybrid", kwargs)
