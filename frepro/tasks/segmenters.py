"""Semantic FPN and UperNet on any backbone.

"Panoptic Feature Pyramid Networks", Kirillov et al., CVPR 2019, section 3.1; "Unified Perceptual Parsing for Scene
Understanding", Xiao et al., ECCV 2018, section 3.

Use::

    network = create("semantic_fpn", "dfformer_s18", num_classes=150, img_size=512)
    losses = network(images, labels)         # in training: a dictionary of losses, to be added up
    logits = inference(network.eval(), images)

Images are normalised, (B, 3, H, W); labels are (B, H, W), with 255 for pixels without a label.

Layout and settings follow the mmsegmentation configurations of DFFormer (Semantic FPN) and SPANetV2 (Semantic FPN,
UperNet). SPANet published none; by parameters and FLOPs, its table has the same Semantic FPN. The official code
synchronises batch norms between processes; here, the training loop does so (``convert_sync_batchnorm``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from frepro.errors import FreproError, unknown
from frepro.tasks.pyramid import SimpleFeaturePyramid, Stages, feature_pyramid

__all__ = ["Segmenter", "SemanticFPNHead", "UperNetHead", "create", "inference"]

IGNORED = 255  # the label of pixels that are not scored


def conv(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Sequential:
    """Return convolution, batch norm and ReLU: (B, in, H, W) to (B, out, H, W)."""
    return Conv2dNormActivation(in_channels, out_channels, kernel_size)


def classifier(channels: int, num_classes: int, *, dropout: float = 0.1, std: float = 0.01) -> nn.Sequential:
    """Return dropout of whole channels and a 1x1 convolution: (B, C, H, W) to (B, num_classes, H, W)."""
    last = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(last.weight, std=std)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Dropout2d(dropout), last)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize bilinearly, without aligned corners: (B, C, H, W) to ``(B, C, *size)``."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class SemanticFPNHead(nn.Module):
    """Resizes the maps of a pyramid to the size of the largest and adds them up (Kirillov et al., Figure 3).

    The map at stride 4 passes through one convolution, a smaller one through a convolution before each doubling. Maps
    (B, C, h, w) at strides 4, 8, 16, 32 become logits (B, num_classes, H / 4, W / 4). ``last`` holds arguments of
    ``classifier``.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = 128, **last: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(conv(in_channels, channels))])
        for doublings in (1, 2, 3):
            layers: list[nn.Module] = []
            for i in range(doublings):
                layers.append(conv(channels if i else in_channels, channels))
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.branches.append(nn.Sequential(*layers))
        self.classifier = classifier(channels, num_classes, **last)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        return self.classifier(sum(resize(branch(x), size) for branch, x in zip(self.branches, maps, strict=True)))


class UperNetHead(nn.Module):
    """Pyramid pooling of the last map, a feature pyramid, and one convolution over all of it (Xiao et al., Figure 4).

    Maps (B, C, h, w) with ``in_channels`` channels at strides 4, 8, 16, 32 become logits (B, num_classes, H / 4, W /
    4). In training, a batch needs at least two images, because batch norms see maps of one pixel. ``last`` holds
    arguments of ``classifier``.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int = 512, **last: float) -> None:
        super().__init__()
        *finer, top = in_channels
        self.poolings = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), conv(top, channels, 1)) for side in (1, 2, 3, 6)
        )
        self.bottleneck = conv(top + 4 * channels, channels)
        self.laterals = nn.ModuleList(conv(each, channels, 1) for each in finer)
        self.outputs = nn.ModuleList(conv(channels, channels) for _ in finer)
        self.fusion = conv(len(in_channels) * channels, channels)
        self.classifier = classifier(channels, num_classes, **last)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *finer, last = maps
        pooled = [resize(pooling(last), last.shape[2:]) for pooling in self.poolings]
        top = self.bottleneck(torch.cat([last, *pooled], dim=1))
        pyramid = [top]
        for lateral, output, x in reversed(list(zip(self.laterals, self.outputs, finer, strict=True))):
            top = lateral(x) + resize(top, x.shape[2:])
            pyramid.insert(0, output(top))
        size = pyramid[0].shape[2:]
        return self.classifier(self.fusion(torch.cat([resize(x, size) for x in pyramid], dim=1)))


class Segmenter(nn.Module):
    """A backbone with maps at strides 4, 8, 16, 32, a head on them, and, in training, an auxiliary head on one of them.

    In evaluation, images (B, 3, H, W) become logits (B, num_classes, H, W); in training, images and labels (B, H, W)
    become losses.

    Args:
        body: Returns the maps, the largest first.
        head: Computes logits from the maps.
        auxiliary: Computes logits from the map at stride 16; their loss has weight 0.4.
    """

    class_weights: Tensor | None

    def __init__(self, body: nn.Module, head: nn.Module, auxiliary: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.auxiliary = auxiliary
        self.register_buffer("class_weights", None, persistent=False)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        maps = list(self.body(images).values())
        logits = self.head(maps)
        if not self.training:
            return resize(logits.float(), images.shape[2:])
        assert labels is not None
        losses = {"loss_seg": cross_entropy(logits, labels, self.class_weights)}
        if self.auxiliary is not None:
            losses["loss_aux"] = 0.4 * cross_entropy(self.auxiliary(maps[2]), labels, self.class_weights)
        return losses


def cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Return the mean over all pixels, ignored ones counting as 0 (as in mmsegmentation).

    The shapes are (B, K, h, w) for logits and (B, H, W) for labels.
    """
    logits = resize(logits.float(), labels.shape[1:])
    loss = F.cross_entropy(logits, labels, class_weights, ignore_index=IGNORED, reduction="sum")
    return loss / labels.numel()


@torch.no_grad()
def inference(
    network: nn.Module,
    images: Tensor,
    *,
    window: int | None = None,
    stride: int | None = None,
    size: Sequence[int] | None = None,
) -> Tensor:
    """Return logits of whole images, or the mean of overlapping windows (SPANetV2's UperNet: 512 every 341 pixels).

    The last window of a row or column is moved back into the image.

    Args:
        network: A segmenter in evaluation mode, which maps images to logits of their size.
        images: (B, 3, H, W), normalised.
        window: Side of a window in pixels; ``None`` for whole images.
        stride: Distance of windows in pixels; ``None`` for two thirds of a window.
        size: Height and width to resize the logits to, such as the labels'; ``None`` for those of the images.

    Returns:
        ``(B, num_classes, *size)``.

    Raises:
        FreproError: The windows leave gaps.
    """
    if window is None:
        logits = network(images)
    else:
        stride = window * 2 // 3 if stride is None else stride
        if not 0 < stride <= window:
            raise FreproError(f"windows of {window} pixels every {stride} leave gaps: use a stride from 1 to {window}")
        total = count = 0
        for top in _starts(images.shape[2], window, stride):
            for left in _starts(images.shape[3], window, stride):
                rows, columns = slice(top, top + window), slice(left, left + window)
                part = network(images[:, :, rows, columns]).float()
                if isinstance(total, int):
                    total = part.new_zeros(*part.shape[:2], *images.shape[2:])
                    count = part.new_zeros(images.shape[2:])
                total[:, :, rows, columns] += part
                count[rows, columns] += 1
        logits = total / count
    return logits if size is None else resize(logits, size)


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Return the positions along one side at which windows begin."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def semantic_fpn(
    backbone: str, num_classes: int, channels: int, last: Mapping[str, float], /, **backbone_args: Any
) -> Segmenter:
    """Return Semantic FPN with a pyramid of ``channels`` channels, 256 in the paper, and a head of half as many."""
    body = feature_pyramid(backbone, 4, channels, **backbone_args)
    return Segmenter(body, SemanticFPNHead(channels, num_classes, channels // 2, **last))


def upernet(
    backbone: str, num_classes: int, channels: int, last: Mapping[str, float], /, **backbone_args: Any
) -> Segmenter:
    """Return UperNet with a head of ``channels`` channels, 512 in the paper, on the backbone's own maps.

    The auxiliary head has half as many channels. A plain backbone gets a simple pyramid, also of half as many.
    """
    stages = Stages(backbone, **backbone_args)
    body: nn.Module = stages
    in_channels = stages.channels
    if stages.plain:
        body, in_channels = SimpleFeaturePyramid(stages, 4, channels // 2), [channels // 2] * 4
    auxiliary = nn.Sequential(conv(in_channels[2], channels // 2), classifier(channels // 2, num_classes, **last))
    return Segmenter(body, UperNetHead(in_channels, num_classes, channels, **last), auxiliary)


SEGMENTERS = {"semantic_fpn": semantic_fpn, "upernet": upernet}
CHANNELS = {"semantic_fpn": 256, "upernet": 512}  # as published


def create(
    segmenter: str,
    backbone: str,
    num_classes: int = 150,
    *,
    pyramid: int | None = None,
    dropout: float = 0.1,
    std: float = 0.01,
    class_weights: Mapping[int, float] | None = None,
    **backbone_args: Any,
) -> Segmenter:
    """Return a segmenter with new weights.

    Args:
        segmenter: "semantic_fpn" or "upernet".
        backbone: Name of a timm model, four-stage or plain.
        num_classes: Number of classes; ADE20K has 150.
        pyramid: Even number of channels of Semantic FPN's pyramid, whose head has half as many, or of UperNet's head,
            whose auxiliary head has half as many; ``None`` for 256 and 512, as published.
        dropout: Dropout probability for the channels before the last convolution of a head.
        std: Standard deviation of that convolution's initial weights. The published value is small, which slows
            learning down if nothing is pre-trained.
        class_weights: Loss weight of the pixels of each class; 1 for classes that are missing.
        **backbone_args: Arguments of the backbone, such as ``drop_path_rate`` and ``pretrained``. DFFormer's filters
            are made for an ``img_size`` of 512 in its paper, SPANetV2's for 224.

    Raises:
        FreproError: There is no such segmenter or model.
    """
    if segmenter not in SEGMENTERS:
        raise unknown("segmenter", segmenter, SEGMENTERS)
    channels, last = pyramid or CHANNELS[segmenter], {"dropout": dropout, "std": std}
    network = SEGMENTERS[segmenter](backbone, num_classes, channels, last, **backbone_args)
    if class_weights:
        network.class_weights = torch.tensor([float(class_weights.get(label, 1)) for label in range(num_classes)])
    return network
