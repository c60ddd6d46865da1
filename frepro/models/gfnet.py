"""GFNet: token mixing by one learned filter per channel in the frequency domain.

"Global Filter Networks for Image Classification", Rao et al., NeurIPS 2021, https://arxiv.org/abs/2107.00645.
Official code: https://github.com/raoyongming/GFNet (read at 2de48b6, MIT). This file is an independent implementation;
tensor names are the official ones, so the authors' checkpoints load unchanged.

BibTeX::

    @inproceedings{rao2021gfnet,
      title     = {Global Filter Networks for Image Classification},
      author    = {Rao, Yongming and Zhao, Wenliang and Zhu, Zheng and Lu, Jiwen and Zhou, Jie},
      booktitle = {NeurIPS},
      year      = {2021}
    }

Paper, official code, frepro:

- A block has one residual connection around filter and MLP together, x + drop_path(mlp(norm2(filter(norm1(x))))), as in
  the code.
- The code fixes the stochastic-depth rate of each size: S 0.15, B 0.25, H-Ti 0.1, H-S 0.2, H-B 0.4, 0 for others. Here,
  as in timm, ``drop_path_rate`` is 0 by default.
- The code's pyramid takes only colour images; frepro's takes ``in_chans``.
- Official models take one image size; frepro's take any. Position embeddings and filters are resized at each forward
  pass by the rule of the official fine-tuning at 384 pixels: bicubic, with aligned corners for filters
  (``ops.resize_filter``) and without for position embeddings.
- ``drop_rate`` is a dropout before the classifier, as in timm (``dropcls`` in the code).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from timm.layers import DropPath, resample_abs_pos_embed, to_2tuple, trunc_normal_
from timm.models import register_model
from torch import Tensor, nn

from frepro.models.backbone import Backbone, create, default_cfg, init_weights, published_cfgs, stage_drop_path_rates
from frepro.models.layers import Mlp
from frepro.ops import global_filter, resize_filter

__all__ = ["GFNet", "GlobalFilter"]

REVISION = {"gfnet": 1}

for _operation in ("global_filter", "resample_abs_pos_embed", "resize_filter"):
    torch.fx.wrap(_operation)  # one node in graphs of torch.fx, which do not know the sizes it depends on

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class GlobalFilter(nn.Module):
    """One static filter per channel (eq. 5): (B, H, W, C) to (B, H, W, C)."""

    def __init__(self, dim: int, *, size: tuple[int, int], **dd: Any) -> None:
        super().__init__()
        self.complex_weight = nn.Parameter(0.02 * torch.randn(size[0], size[1] // 2 + 1, dim, 2, **dd))

    def set_size(self, size: tuple[int, int]) -> None:
        """Resize the filters permanently to another map size, (h, w)."""
        self.complex_weight = nn.Parameter(resize_filter(self.complex_weight.detach(), *size))

    def forward(self, x: Tensor) -> Tensor:
        return global_filter(x, resize_filter(self.complex_weight, x.shape[1], x.shape[2]))


class GFNetBlock(nn.Module):
    """Filter and MLP, each after a norm, in one residual branch: (B, H, W, C) to (B, H, W, C)."""

    def __init__(
        self, dim: int, *, size: tuple[int, int], drop_path: float, layer_scale: float | None, **dd: Any
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, **dd)
        self.filter = GlobalFilter(dim, size=size, **dd)
        self.norm2 = LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, 4 * dim, **dd)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale, **dd))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.mlp(self.norm2(self.filter(self.norm1(x))))
        if self.gamma is not None:
            branch = self.gamma * branch
        return x + self.drop_path(branch)


class PatchEmbed(nn.Module):
    """Convolution over non-overlapping patches: (B, H, W, C) to (B, H / patch, W / patch, D)."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, **dd: Any) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class GFNet(Backbone):
    """Stages of global-filter blocks, norm, average pooling and a linear classifier; sizes in Tables 1 and 2.

    With one stage, this is the plain model of the paper, whose feature maps are those of its blocks. With several
    stages, it is the pyramid, whose feature maps are those of its stages, each half as large as the one before.

    Input (B, in_chans, H, W); maps (B, C, H / p, W / p) with p = patch_size, then 2p, 4p ...; logits (B, num_classes).

    Args:
        img_size: Image size for which filters and position embeddings are created, (H, W) or one number, in pixels.
        patch_size: Patch size of the first stage, in pixels per side.
        in_chans: Channels of the images.
        num_classes: Number of classes; 0 for no classifier.
        depths: Number of blocks of each stage.
        dims: Channels of each stage.
        layer_scale: Initial value of a trainable scale of each block's branch; ``None`` for no scale.
        global_pool: "avg", or "" for no pooling.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic-depth rate of the last block; it grows linearly from 0 over the blocks.

    Raises:
        ValueError: ``img_size`` is too small, or ``global_pool`` is unknown.
    """

    mixer_name = "filter"
    output_fmt = "NHWC"
    drawings: ClassVar = {"gfnet_block": ("gfnet_ti", "blocks.0", ())}

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (12,),
        dims: Sequence[int] = (384,),
        layer_scale: float | None = None,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(dims[-1], img_size, num_classes, global_pool, drop_rate)
        dd = {"device": device, "dtype": dtype}
        self.patch_size = patch_size
        self.pyramid = len(dims) > 1

        sizes = self._map_sizes(self.img_size, len(dims))
        embeds = [
            PatchEmbed(before, dim, 2 if i else patch_size, **dd)
            for i, (before, dim) in enumerate(zip((in_chans, *dims), dims, strict=False))
        ]
        stages = [
            nn.Sequential(
                *(GFNetBlock(dim, size=size, drop_path=rate, layer_scale=layer_scale, **dd) for rate in stage_rates)
            )
            for dim, size, stage_rates in zip(dims, sizes, stage_drop_path_rates(drop_path_rate, depths), strict=True)
        ]
        # The plain model has no list around its only stage, because the official tensor names have none.
        self.patch_embed = nn.ModuleList(embeds) if self.pyramid else embeds[0]
        self.blocks = nn.ModuleList(stages) if self.pyramid else stages[0]
        self.feature_info = [
            {"num_chs": dims[stage], "reduction": patch_size * 2**stage, "module": f"blocks.{i}"}
            for i, stage in enumerate(range(len(dims)) if self.pyramid else [0] * depths[0])
        ]
        self.grid_size = sizes[0]
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes[0][0] * sizes[0][1], dims[0], **dd))
        self.norm = LayerNorm(dims[-1], **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._make_head(**dd)
        trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):  # convolutions keep torch's initialization, as in the official code
                init_weights(module)

    def _map_sizes(self, img_size: tuple[int, int], stages: int) -> list[tuple[int, int]]:
        """Return the map size (h, w) of each stage: the number of complete patches, then halved, rounding down."""
        sides = [self.patch_size * 2**stage for stage in range(stages)]
        if min(img_size) < sides[-1]:
            raise ValueError(f"img_size {img_size} is too small: it needs at least {sides[-1]} pixels per side")
        return [(img_size[0] // side, img_size[1] // side) for side in sides]

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize filters and position embeddings permanently to another image size.

        Args:
            img_size: (H, W) or one number, in pixels.

        Raises:
            ValueError: The size is too small for the last stage.
        """
        self.img_size = to_2tuple(img_size)
        stages = list(self.blocks) if self.pyramid else [self.blocks]
        sizes = self._map_sizes(self.img_size, len(stages))
        self.pos_embed = nn.Parameter(self._pos_embed(sizes[0]).detach())
        self.grid_size = sizes[0]
        for stage, size in zip(stages, sizes, strict=True):
            for block in stage.children():
                assert isinstance(block, GFNetBlock)
                block.filter.set_size(size)

    def _pos_embed(self, size: tuple[int, int]) -> Tensor:
        """Return position embeddings for a map of any size, (1, h * w, C)."""
        return resample_abs_pos_embed(
            self.pos_embed, list(size), list(self.grid_size), num_prefix_tokens=0, antialias=False
        )

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        if not self.pyramid:
            return {"stem": r"^pos_embed|patch_embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}
        if coarse:
            return {"stem": r"^pos_embed|patch_embed\.0", "blocks": r"^(?:patch_embed|blocks)\.(\d+)"}
        return {
            "stem": r"^pos_embed|patch_embed\.0",
            "blocks": [
                (r"^patch_embed\.(\d+)", (-1,)),
                (r"^blocks\.(\d+)\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}

    def _stem(self, x: Tensor) -> Tensor:
        """Return the embedded patches, (B, h, w, C), of images, (B, in_chans, H, W)."""
        embed = self.patch_embed[0] if isinstance(self.patch_embed, nn.ModuleList) else self.patch_embed
        x = embed(x.permute(0, 2, 3, 1))
        size = (x.shape[1], x.shape[2])
        return x + self._pos_embed(size).unflatten(1, size)

    def _sections(self) -> list[list[nn.Module]]:
        """Return the modules of each section: one block in the plain model, one stage in the pyramid."""
        if not isinstance(self.patch_embed, nn.ModuleList):
            return [[block] for block in self.blocks]
        first, *rest = self.blocks
        return [[first], *([embed, stage] for embed, stage in zip(self.patch_embed[1:], rest, strict=True))]

    def _keep_sections(self, count: int) -> None:
        self.blocks = self.blocks[:count]
        if isinstance(self.patch_embed, nn.ModuleList):
            self.patch_embed = self.patch_embed[:count]

    def _feature(self, x: Tensor, norm: bool) -> Tensor:
        """Return a map, (B, H, W, C), as (B, C, H, W); with ``norm``, after the last norm."""
        return (self.norm(x) if norm else x).permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, (B, num_classes), or with ``pre_logits`` (B, C), for a map, (B, C, h, w).

        Without pooling, return a map of logits or channels, (B, num_classes or C, h, w).
        """
        x = x.mean(dim=(2, 3)) if self.global_pool else x.permute(0, 2, 3, 1)
        x = self.head_drop(x)
        x = x if pre_logits else self.head(x)
        return x if self.global_pool else x.permute(0, 3, 1, 2)


_cfg = partial(
    default_cfg,
    pool_size=(14, 14),
    crop_pct=0.875,
    first_conv="patch_embed.proj",
    license="mit",
    paper_ids="arXiv:2107.00645",
    paper_name="Global Filter Networks for Image Classification",
    origin_url="https://github.com/raoyongming/GFNet",
)

SIZES: dict[str, dict[str, Any]] = {
    "gfnet_ti": {"depths": (12,), "dims": (256,)},
    "gfnet_xs": {"depths": (12,), "dims": (384,)},
    "gfnet_s": {"depths": (19,), "dims": (384,)},
    "gfnet_b": {"depths": (19,), "dims": (512,)},
    "gfnet_h_ti": {"depths": (3, 3, 10, 3), "dims": (64, 128, 256, 512), "patch_size": 4, "layer_scale": 1e-3},
    "gfnet_h_s": {"depths": (3, 3, 10, 3), "dims": (96, 192, 384, 768), "patch_size": 4, "layer_scale": 1e-5},
    "gfnet_h_b": {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768), "patch_size": 4, "layer_scale": 1e-6},
}

default_cfgs = published_cfgs(
    {name: _cfg(first_conv="patch_embed.0.proj", pool_size=(7, 7)) if "_h_" in name else _cfg() for name in SIZES}
)


def _create_gfnet(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> GFNet:
    return create(GFNet, variant, pretrained, kwargs, **SIZES[variant])


@register_model
def gfnet_ti(pretrained: bool = False, **kwargs: Any) -> GFNet:
    return _create_gfnet("gfnet_ti", pretrained, kwargs)


@register_model
def gfnet_xs(pretrained: bool = False, **kwargs: Any) -> GFNet:
    return _create_gfnet("gfnet_xs", pretrained, kwargs)


@register_model
def gfnet_s(pretrained: bool = False, **kwargs: Any) -> GFNet:
    return _create_gfnet("gfnet_s", pretrained, kwargs)


@register_model
def gfnet_b(pretrained: bool = False, **kwargs: Any) -> GFNet:
    return _create_gfnet("gfnet_b", pretrained, kwargs)


@register_model
def gfnet_h_ti(pretrained: bool = False, **kwargs: Any) -> GFNet:
    return _create_gfnet("gfnet_h_ti", pretrained, kwargs)


@register_model
def gfnet_h_s(pretrained: bool = False, **kwargs: Any) -> GFNet:
    return _create_gfnet("gfnet_h_s", pretrained, kwargs)


@register_model
def gfnet_h_b(pretrained: bool = False, **kwargs: Any) -> GFNet:
    return _create_gfnet("gfnet_h_b", pretrained, kwargs)
