"""The four-stage MetaFormer architecture that DFFormer, CDFFormer, GFFormer and SPANetV2 share.

``Pyramid`` is the part common to all four-stage backbones whose mixers depend on the map size. SPANet uses only that
part, because its blocks are older and channels-first. ``MetaFormer`` is the complete architecture.

"MetaFormer Baselines for Vision", Yu et al., https://arxiv.org/abs/2210.13452. A block is ::

    x = res_scale1(x) + drop_path(token_mixer(norm1(x)))
    x = res_scale2(x) + drop_path(mlp(norm2(x)))

Families differ only in their token mixers. Maps between modules are channels-last, (B, H, W, C); only convolutions use
(B, C, H, W). Module names are those of the official DFFormer and SPANetV2 code, so their checkpoints load unchanged.
Scale, MlpHead and DropPath are timm's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from timm.layers import DropPath, to_2tuple
from timm.models.metaformer import MlpHead, Scale, StarReLU
from torch import Tensor, nn

from frepro.models.backbone import Backbone, init_weights, stage_drop_path_rates
from frepro.models.by_name import activation, norm
from frepro.models.layers import Mlp, call, depthwise

__all__ = ["MetaFormer", "Pyramid", "SepConv"]

REVISION = {"metaformer": 1}

# Layer norm over channels with a weight but no bias, used in blocks and around downsampling convolutions.
LayerNormNoBias = partial(nn.LayerNorm, eps=1e-6, bias=False)


class Downsampling(nn.Module):
    """Strided convolution between stages: (B, H, W, C) to (B, H', W', C').

    The norm follows the convolution in the stem and precedes it elsewhere.
    """

    def __init__(self, in_chans: int, out_chans: int, *, stem: bool, **dd: Any) -> None:
        super().__init__()
        kernel_size, stride, padding = (7, 4, 2) if stem else (3, 2, 1)
        self.pre_norm = nn.Identity() if stem else LayerNormNoBias(in_chans, **dd)
        self.conv = nn.Conv2d(in_chans, out_chans, kernel_size, stride, padding, **dd)
        self.post_norm = LayerNormNoBias(out_chans, **dd) if stem else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pre_norm(x).permute(0, 3, 1, 2))
        return self.post_norm(x.permute(0, 2, 3, 1))


class SepConv(nn.Module):
    """Inverted separable 7x7 convolution, the ConvFormer mixer: (B, H, W, C) to (B, H, W, C)."""

    def __init__(self, dim: int, *, size: tuple[int, int], act_layer: Callable = StarReLU, **dd: Any) -> None:
        super().__init__()
        hidden = 2 * dim
        self.pwconv1 = nn.Linear(dim, hidden, bias=False, **dd)
        self.act1 = act_layer()
        self.dwconv = depthwise(hidden, 7, bias=False, **dd)
        self.pwconv2 = nn.Linear(hidden, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = call(self.act1, call(self.pwconv1, x), made_by=self.pwconv1)
        x = call(self.dwconv, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return call(self.pwconv2, x)


class MetaFormerBlock(nn.Module):
    """Token mixer, then channel MLP, each with a norm before it, added to the (scaled) residual stream.

    (B, H, W, C) to (B, H, W, C).
    """

    def __init__(
        self,
        dim: int,
        *,
        size: tuple[int, int],
        token_mixer: Callable,
        act_layer: Callable,
        norm_layer: Callable,
        drop_path: float,
        res_scale: bool,
        **dd: Any,
    ) -> None:
        super().__init__()
        scale = partial(Scale, dim, init_value=1.0, use_nchw=False, **dd) if res_scale else nn.Identity
        self.norm1 = norm_layer(dim, **dd)
        self.token_mixer = token_mixer(dim, size=size, act_layer=act_layer, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.res_scale1 = scale()
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = Mlp(dim, 4 * dim, act_layer=act_layer, bias=False, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.res_scale2 = scale()

    def forward(self, x: Tensor) -> Tensor:
        x = self.res_scale1(x) + self.drop_path1(self.token_mixer(self.norm1(x)))
        return self.res_scale2(x) + self.drop_path2(self.mlp(self.norm2(x)))


class Pyramid(Backbone):
    """A backbone of four stages (strides 4, 8, 16, 32) whose mixers may depend on the map size.

    Each section of a subclass ends in a stage, a sequence of blocks that have a ``token_mixer``. A mixer whose
    parameters depend on the map size has a method ``set_size((h, w))``. Arguments: see ``MetaFormer``.
    """

    def __init__(
        self,
        dims: Sequence[int],
        img_size: int | tuple[int, int],
        num_classes: int,
        global_pool: str,
        drop_rate: float,
    ) -> None:
        super().__init__(dims[-1], img_size, num_classes, global_pool, drop_rate)
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]

    def _map_sizes(self, img_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the map size (h, w) of each stage: (s - 3) // 4 + 1 after the stem, then halved, rounding up."""
        sizes = []
        height, width = ((side - 3) // 4 + 1 for side in img_size)
        for _ in self.feature_info:
            if min(height, width) < 1:
                raise ValueError(f"img_size {img_size} is too small: the stem needs at least 3 pixels per side")
            sizes.append((height, width))
            height, width = (height + 1) // 2, (width + 1) // 2
        return sizes

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize size-dependent filters permanently to another image size (each mixer's ``set_size``).

        Args:
            img_size: (H, W) or one number, in pixels.

        Raises:
            ValueError: The size is too small for the stem.
        """
        self.img_size = to_2tuple(img_size)
        for section, size in zip(self._sections(), self._map_sizes(self.img_size), strict=False):  # may be pruned
            for block in section[-1].children():
                set_size = getattr(block.token_mixer, "set_size", None)
                if set_size is not None:
                    set_size(size)

    def no_weight_decay(self) -> set[str]:
        """Return an empty set: the official runs decay filters, and timm exempts vectors and biases by default."""
        return set()


class MetaFormer(Pyramid):
    """Four stages of MetaFormer blocks, global average pooling, norm and MLP head.

    Input (B, in_chans, H, W); features (B, C, H / 32, W / 32); logits (B, num_classes).

    Args:
        token_mixers: One mixer per stage, called as ``mixer(dim, size=(h, w), act_layer=..., device=, dtype=)``.
        depths: Number of blocks of each stage.
        dims: Channels of each stage.
        img_size: Image size for which size-dependent mixers are created, (H, W) or one number, in pixels.
        in_chans: Channels of the images.
        num_classes: Number of classes; 0 for no head.
        global_pool: "avg", or "" for no pooling.
        act_layer: Activation of mixers and MLPs, a class or a name for ``by_name.activation``. The head keeps its
            squared ReLU (DFFormer, Table 4).
        norm_layer: Norm before mixers and MLPs, on maps (B, H, W, C), a class or a name for ``by_name.norm``.
        drop_rate: Dropout before the last linear layer of the head.
        drop_path_rate: Stochastic-depth rate of the last block; it grows linearly from 0 over the blocks.

    Raises:
        ValueError: ``img_size`` is too small, or ``global_pool`` is unknown.
        FreproError: There is no activation or norm of that name.
    """

    output_fmt = "NHWC"

    def __init__(
        self,
        token_mixers: Sequence[Callable],
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (64, 128, 320, 512),
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: Callable | str = StarReLU,
        norm_layer: Callable | str = LayerNormNoBias,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(dims, img_size, num_classes, global_pool, drop_rate)
        dd = {"device": device, "dtype": dtype}
        act_layer, norm_layer = activation(act_layer), norm(norm_layer)
        if act_layer is StarReLU:  # the only activation with parameters
            act_layer = partial(StarReLU, **dd)

        self.downsample_layers = nn.ModuleList(
            Downsampling(previous, dim, stem=i == 0, **dd)
            for i, (previous, dim) in enumerate(zip((in_chans, *dims), dims, strict=False))
        )
        drop_path_rates = stage_drop_path_rates(drop_path_rate, depths)
        self.stages = nn.ModuleList()
        for i, (mixer, size) in enumerate(zip(token_mixers, self._map_sizes(self.img_size), strict=True)):
            blocks = [
                MetaFormerBlock(
                    dims[i],
                    size=size,
                    token_mixer=mixer,
                    act_layer=act_layer,
                    norm_layer=norm_layer,
                    drop_path=rate,
                    res_scale=i >= 2,
                    **dd,
                )
                for rate in drop_path_rates[i]
            ]
            self.stages.append(nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6, **dd)
        self.head = self._make_head(**dd)
        self.apply(init_weights)

    def _make_head(self, **dd: Any) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        return MlpHead(self.num_features, self.num_classes, drop_rate=self.drop_rate, norm_layer=nn.LayerNorm, **dd)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        if coarse:
            return {"stem": r"^downsample_layers\.0", "blocks": r"^(?:downsample_layers|stages)\.(\d+)"}
        return {
            "stem": r"^downsample_layers\.0",
            "blocks": [
                (r"^downsample_layers\.(\d+)", (-1,)),
                (r"^stages\.(\d+)\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }

    def _stem(self, x: Tensor) -> Tensor:
        """Return images, (B, in_chans, H, W), as (B, H, W, in_chans); the first section has the stem's convolution."""
        return x.permute(0, 2, 3, 1)

    def _sections(self) -> list[list[nn.Module]]:
        return [[embed, stage] for embed, stage in zip(self.downsample_layers, self.stages, strict=True)]

    def _keep_sections(self, count: int) -> None:
        self.downsample_layers = self.downsample_layers[:count]
        self.stages = self.stages[:count]

    def _feature(self, x: Tensor, norm: bool) -> Tensor:
        """Return a map, (B, H, W, C), as (B, C, H, W); the only norm after the stages belongs to the head."""
        return x.permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, (B, num_classes), or with ``pre_logits`` (B, C), for a map, (B, C, h, w).

        Without pooling, return a map of logits or channels, (B, num_classes or C, h, w).
        """
        x = x.mean(dim=(2, 3)) if self.global_pool else x.permute(0, 2, 3, 1)
        x = self.norm(x)
        x = x if pre_logits else self.head(x)
        return x if self.global_pool else x.permute(0, 3, 1, 2)
