"""SPANetV2: a MetaFormer that mixes tokens by convolutions of four sizes, re-scaled in the frequency domain.

"Spectral-Adaptive Modulation Networks for Visual Perception", Yun et al., TPAMI 2026, https://arxiv.org/abs/2503.23947.
Official code: https://github.com/DoranLyong/SPANetV2-official (read at 8a490a6; it states no licence). This file was
written anew; tensor names are the official ones, so the authors' checkpoints load as they are.

    @article{yun2026spectral,
      title   = {Spectral-Adaptive Modulation Networks for Visual Perception},
      author  = {Yun, Guhnoo and Yoo, Juhan and Kim, Kijung and Lee, Jeongho and Seo, Paul Hongsuck and Kim, Dong Hwan},
      journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence},
      year    = {2026}
    }

"pure" models have the SPAM mixer in all stages, "hybrid" ones in the first two, then attention beside a convolution,
then attention.

Paper, official code, frepro:
- The official repository holds several versions of the mixer that do not fit each other's weights. We follow
  ``image_classification/models/spanetv2.py``, whose names the public checkpoints have: a filter for each head, and
  heads interleaved channel by channel, so that each group of the projection meets all four kernel sizes. In the version
  behind the latency figures heads lie one after another.
- The README gives two accuracies "with the scaled sigmoid" (83.5 for S18-pure, 84.9 for S36-hybrid) that no released
  line produces. All that is known is a line that is switched off, in a version with heads one after another: the gain
  is sigmoid(alpha * filter) with one learnable alpha for each mixer, beginning at 1. ``scaled_sigmoid=True`` is that,
  under the same name (``scale.alpha``). Whether those runs had interleaved heads is not known; weights are not out.
- At other input sizes filters are refitted before the sigmoid at each forward pass, as in the official code
  (``ops.resize_filter``); ``set_input_size`` does it once and for good.
- The README prints 61 M parameters for M36-pure and 100 M for both B36; the official code has 62.93, 109.56 and
  101.80 M, and so have we.
"""

from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import GroupNorm1, LayerNorm2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.autograd import forward_ad

from frepro.models.backbone import create, default_cfg
from frepro.models.layers import Sequential, call, conv1x1, depthwise
from frepro.models.metaformer import MetaFormer, SepConv
from frepro.ops import eager, resize_filter, spectral_rescale

__all__ = ["Attention", "SPANetV2", "SpectralAdaptiveModulation"]

REVISION = {"spanetv2": 1}

for _operation in ("attention", "resize_filter", "spectral_rescale"):
    torch.fx.wrap(_operation)  # a node of torch.fx's graphs: what it does depends on sizes, which they lack


class ScaledSigmoid(nn.Module):
    """sigmoid(alpha x) with one learnable alpha."""

    def __init__(self, **dd: Any) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, **dd))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.alpha * x)


class SpectralAdaptiveModulation(nn.Module):
    """SPAM mixer (Figure 2 of the paper): (B, H, W, C) to (B, H, W, C).

    Four heads of C / 4 channels pass depthwise convolutions of 3, 5, 7 and 9, each channel's spectrum is re-scaled by a
    learnt gain in (0, 1), and a projection that widens to 2C and back makes of them the context that modulates the
    query: proj_out(query * context).

    Args:
        size: Height and width of the map that the filters are made for.
        act_layer: Taken as every mixer of the frame must, and not used: query and projection have GELU.
        scaled_sigmoid: Gain sigmoid(alpha * filter) with a learnable alpha, for sigmoid(filter).
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
    """The kernel's result as it is; its gradient goes by the kernel, or by the plain form where it is recorded."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return None, None, None, dy
        return *eager.plain_gradients(_plain_attention, tensors, dy), None


class Attention(nn.Module):
    """Multi-head self-attention over all positions, heads of 32 channels: (B, H, W, C) to (B, H, W, C).

    Args:
        size, act_layer: Taken as every mixer of the frame must, and not used.
        local_conv: Add a depthwise 7x7 convolution of the values to the attention's output.
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
    """MetaFormer with spectral-adaptive modulation as token mixer, alone or before attention.

    Args:
        mixers: Name of the token mixer in each stage: "spam", "mix_attention" (with a convolution), "attention" or
            "conv". With the latter two it is ConvFormer or CAFormer (Yu et al. 2022), which have the same frame.
        scaled_sigmoid: Gains of the SPAM mixers with a learnable slope (see the top of the file).
        **kwargs: As in ``MetaFormer``.
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
        by_name = {
            "spam": partial(SpectralAdaptiveModulation, scaled_sigmoid=scaled_sigmoid),
            "mix_attention": partial(Attention, local_conv=True),
            "attention": Attention,
            "conv": SepConv,
        }
        unknown = set(mixers) - set(by_name)
        if unknown:
            raise ValueError(f"unknown token mixer {sorted(unknown)}; there are {sorted(by_name)}")
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

default_cfgs = generate_default_cfgs({f"spanetv2_{size}_{kind}.untrained": _cfg() for size in SIZES for kind in MIXERS})


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
