"""Backbones as feature pyramids: maps of equal width at strides 4, 8, 16, 32, as detectors and segmenters need them.

A four-stage backbone has maps at these strides, and a feature pyramid network ("Feature Pyramid Networks for Object
Detection", Lin et al., CVPR 2017, section 3) combines them. A plain backbone has maps at one stride. A simple feature
pyramid ("Exploring Plain Vision Transformer Backbones for Object Detection", Li et al., ECCV 2022, section 3) derives
the others from its last map, as in Vim-F (section 5.2) and in the detection code of Vim.

Differences from the official code:

- The dense-prediction backbones of DFFormer, SPANet and SPANetV2 apply a norm to each map that they return (no paper
  says so), and so does ``Stages``. Those of Vim and of the models from timm have none.
- Vim's detection code drops the class token; ours stays among the patches, where it was in pre-training.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

import frepro.models  # noqa: F401 - registers them with timm
from frepro.errors import unknown

__all__ = ["FeaturePyramid", "SimpleFeaturePyramid", "Stages", "feature_pyramid"]

# Derives coarser maps from a pyramid; called with the channels of the backbone's last map and those of the pyramid.
Extra = Callable[[int, int], ExtraFPNBlock]


class Stages(nn.Module):
    """The last maps of a timm model: (B, 3, H, W) to a dictionary of (B, C, h, w).

    The maps are named "0", "1", ... as torchvision's detectors require, the largest first. A plain backbone, whose maps
    all have the same stride, returns its last map alone.

    Args:
        backbone: Name of the model.
        count: Number of maps that a four-stage backbone returns.
        **backbone_args: Arguments of the model.

    Attributes:
        plain: Whether the backbone is plain.
        channels: Channels of each map.
        strides: Stride of each map, in pixels.

    Raises:
        FreproError: There is no such model.
    """

    body: Any  # a timm model, whose interface has no type

    def __init__(self, backbone: str, count: int = 4, **backbone_args: Any) -> None:
        super().__init__()
        if not timm.is_model(backbone):
            raise unknown("model", backbone, timm.list_models())
        self.body = timm.create_model(backbone, **backbone_args)
        maps = self.body.feature_info
        self.plain = len({each["reduction"] for each in maps}) == 1
        maps = maps[-1:] if self.plain else maps[-count:]
        self.channels: list[int] = [each["num_chs"] for each in maps]
        self.strides: list[int] = [each["reduction"] for each in maps]
        self.indices = self.body.prune_intermediate_layers(list(range(-len(maps), 0)), prune_norm=True)
        norm = getattr(self.body, "output_norm", None) or nn.Identity
        self.norms = nn.ModuleList(norm(channels) for channels in self.channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body.forward_intermediates(x, indices=self.indices, intermediates_only=True)
        return {str(i): norm(each) for i, (norm, each) in enumerate(zip(self.norms, maps, strict=True))}


class FeaturePyramid(nn.Module):
    """Feature pyramid network on a four-stage backbone: (B, 3, H, W) to a dictionary of (B, out_channels, h, w).

    Its 1x1 and 3x3 convolutions have biases and no norms, as in mmdetection and mmsegmentation, unless ``norms``
    requests batch norms.
    """

    def __init__(self, stages: Stages, out_channels: int, extra: Extra | None = None, norms: bool = False) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stages = stages
        more = extra(stages.channels[-1], out_channels) if extra else None
        norm = nn.BatchNorm2d if norms else None
        self.network = FeaturePyramidNetwork(stages.channels, out_channels, more, norm)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.network(self.stages(x))


class SimpleFeaturePyramid(nn.Module):
    """Pyramid on the last map of a plain backbone: (B, 3, H, W) to a dictionary of (B, out_channels, h, w).

    Each of the ``count`` maps, the coarsest at stride 32, is computed by deconvolutions or max pooling, followed by a
    1x1 and a 3x3 convolution, each with a norm.
    """

    def __init__(self, stages: Stages, count: int, out_channels: int, extra: Extra | None = None) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stages = stages
        conv = partial(Conv2dNormActivation, norm_layer=LayerNorm2d, activation_layer=None)
        self.branches = nn.ModuleList()
        for i in reversed(range(count)):
            resize, channels = _resize(stages.channels[-1], doublings=i - round(math.log2(32 / stages.strides[-1])))
            self.branches.append(
                nn.Sequential(resize, conv(channels, out_channels, 1), conv(out_channels, out_channels, 3))
            )
        self.extra = extra(out_channels, out_channels) if extra else None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        (last,) = self.stages(x).values()
        maps = [branch(last) for branch in self.branches]
        names = [str(i) for i in range(len(maps))]
        if self.extra is not None:
            maps, names = self.extra(maps, maps, names)
        return dict(zip(names, maps, strict=True))


def _resize(channels: int, doublings: int) -> tuple[nn.Module, int]:
    """Return a module that doubles a map's sides ``doublings`` times, and the number of channels it returns.

    Each doubling halves the channels. A negative number means max pooling, which keeps the channels.
    """
    if doublings < 0:
        return nn.MaxPool2d(2**-doublings), channels
    layers: list[nn.Module] = []
    for i in range(doublings):
        if i > 0:
            layers += [LayerNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
        channels //= 2
    return nn.Sequential(*layers), channels


def feature_pyramid(
    backbone: str,
    count: int = 4,
    out_channels: int = 256,
    extra: Extra | None = None,
    norms: bool = False,
    **backbone_args: Any,
) -> FeaturePyramid | SimpleFeaturePyramid:
    """Return the pyramid that suits a backbone: ``count`` maps, the coarsest at stride 32, and those of ``extra``.

    ``norms`` applies to the pyramid of a four-stage backbone; a simple pyramid always has norms.
    """
    stages = Stages(backbone, count, **backbone_args)
    if stages.plain:
        return SimpleFeaturePyramid(stages, count, out_channels, extra)
    return FeaturePyramid(stages, out_channels, extra, norms)
