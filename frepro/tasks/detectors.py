"""RetinaNet, Mask R-CNN and Cascade Mask R-CNN on any backbone, built from torchvision's components.

"Focal Loss for Dense Object Detection", Lin et al., ICCV 2017; "Mask R-CNN", He et al., ICCV 2017; "Cascade R-CNN:
High Quality Object Detection and Instance Segmentation", Cai and Vasconcelos, TPAMI 2019.

Use::

    network = create("mask_rcnn", "dfformer_s18", num_classes=80)
    losses = network(images, targets)        # in training: a dictionary of losses, to be added up
    detections = network.eval()(images)      # in evaluation: boxes, labels, scores and masks of each image

Images, targets and detections are in torchvision's format: images (3, H, W) with values in [0, 1], boxes (N, 4) as x1,
y1, x2, y2 in pixels, labels from 1 to ``num_classes`` (in RetinaNet too), masks (N, H, W), and detected masks
(N, 1, H, W) with values in [0, 1]. The network normalises, resizes and pads the images.

Layout and settings follow the mmdetection configurations of SPANet (RetinaNet, Mask R-CNN) and SPANetV2 (Mask R-CNN,
Cascade Mask R-CNN). Vim-F's paper uses Mask R-CNN "consistent with Swin", which is the same.

Differences from mmdetection:

- RetinaNet's losses are averaged over the positive anchors of each image and then over images; mmdetection averages
  over the positive anchors of a batch. The loss of a batch is therefore the mean of the losses of its halves.
- The box loss of the region proposals is torchvision's smooth L1 with beta 1/9; mmdetection uses L1.
- RoI align takes 2 x 2 samples per bin, without a shift of half a pixel; mmdetection takes as many samples as the bin
  has pixels, with that shift.
- The predictors of the R-CNNs also have outputs for boxes and masks of the background (4 of 324 and 1 of 81 outputs),
  which are not used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from frepro.errors import unknown
from frepro.tasks.detection_heads import P6P7, Anchors, CascadeRoIHeads, DetectionHead, ProposalHead, Targets, Transform
from frepro.tasks.pyramid import feature_pyramid

__all__ = ["RetinaNet", "counted_forward", "create"]


class RetinaNet(detection.RetinaNet):
    """torchvision's RetinaNet with labels from 1, as in the R-CNNs; it has no background class."""

    def forward(self, images: list[Tensor], targets: Targets | None = None) -> dict[str, Tensor] | Targets:
        if targets is not None:
            targets = [{"boxes": target["boxes"], "labels": target["labels"] - 1} for target in targets]
        output = super().forward(images, targets)
        if not self.training:
            for each in output:
                each["labels"] = each["labels"] + 1
        return output


@dataclass(frozen=True)
class Sizes:
    """Settings that make a detector large or small; ``create`` explains each."""

    pyramid: int
    norms: bool
    width: int
    convs: int
    smallest_anchor: float
    anchors: int
    proposals: int
    rois: int
    samples: int
    detections: int


def _stage(num_classes: int, sizes: Sizes, box_head: nn.Module, iou: float = 0.5, precision: float = 10) -> RoIHeads:
    """Return heads for boxes that overlap an object by ``iou``; ``precision`` is 1 / standard deviation of centres."""
    levels = ["0", "1", "2", "3"]
    channels = sizes.pyramid
    return RoIHeads(
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=sizes.samples),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(sizes.width, 1 + num_classes),
        fg_iou_thresh=iou,
        bg_iou_thresh=iou,
        batch_size_per_image=sizes.rois,
        positive_fraction=0.25,
        bbox_reg_weights=(precision, precision, precision / 2, precision / 2),
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=sizes.detections,
        mask_roi_pool=MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=sizes.samples),
        mask_head=MaskRCNNHeads(channels, (channels,) * sizes.convs, 1, nn.BatchNorm2d if sizes.norms else None),
        mask_predictor=MaskRCNNPredictor(channels, channels, 1 + num_classes),
    )


def _rcnn(
    backbone: str, roi_heads: nn.Module, transform: nn.Module, sizes: Sizes, **backbone_args: Any
) -> GeneralizedRCNN:
    pyramid = feature_pyramid(
        backbone, 4, sizes.pyramid, lambda *_: LastLevelMaxPool(), norms=sizes.norms, **backbone_args
    )
    anchors = Anchors(strides=(4, 8, 16, 32, 64), scales=(sizes.smallest_anchor / 4,))
    proposals = RegionProposalNetwork(
        anchors,
        ProposalHead(sizes.pyramid, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=sizes.anchors,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2 * sizes.proposals, "testing": sizes.proposals},
        post_nms_top_n={"training": sizes.proposals, "testing": sizes.proposals},
        nms_thresh=0.7,
    )
    return GeneralizedRCNN(pyramid, proposals, roi_heads, transform)


def retinanet(backbone: str, num_classes: int, transform: nn.Module, sizes: Sizes, **backbone_args: Any) -> RetinaNet:
    """Return RetinaNet: strides 8 to 128, nine anchors per location, and heads without norms, shared by all maps.

    A head has four 3x3 convolutions as published.
    """
    scales = [sizes.smallest_anchor / 8 * 2 ** (i / 3) for i in range(3)]
    anchors = Anchors(strides=(8, 16, 32, 64, 128), scales=scales)
    head = DetectionHead(sizes.pyramid, anchors.num_anchors_per_location()[0], num_classes)
    for each in (head.classification_head, head.regression_head):
        each.conv = each.conv[: sizes.convs]  # torchvision always makes four
    network = RetinaNet(
        feature_pyramid(backbone, 3, sizes.pyramid, P6P7, norms=sizes.norms, **backbone_args),
        num_classes,
        anchor_generator=anchors,
        head=head,
        topk_candidates=sizes.proposals,
        detections_per_img=sizes.detections,
    )
    network.transform = transform
    return network


def mask_rcnn(
    backbone: str, num_classes: int, transform: nn.Module, sizes: Sizes, **backbone_args: Any
) -> GeneralizedRCNN:
    """Return Mask R-CNN: strides 4 to 64, and three anchors per location.

    As published, a box head has two linear layers and a mask head four convolutions.
    """
    stage = _stage(num_classes, sizes, TwoMLPHead(sizes.pyramid * 7 * 7, sizes.width))
    return _rcnn(backbone, CascadeRoIHeads([stage], [1.0], box_loss="l1"), transform, sizes, **backbone_args)


def cascade_mask_rcnn(
    backbone: str, num_classes: int, transform: nn.Module, sizes: Sizes, **backbone_args: Any
) -> GeneralizedRCNN:
    """Return Mask R-CNN with three stages of heads.

    As published, a box head has four convolutions with batch norm and a linear layer. Box regression is class-specific,
    as in the configurations of Swin, ConvNeXt and SPANetV2; in the paper it is class-agnostic.
    """
    channels = sizes.pyramid
    stages = [
        _stage(
            num_classes,
            sizes,
            FastRCNNConvFCHead((channels, 7, 7), [channels] * sizes.convs, [sizes.width], norm_layer=nn.BatchNorm2d),
            iou,
            precision,
        )
        for iou, precision in ((0.5, 10), (0.6, 20), (0.7, 30))
    ]
    heads = CascadeRoIHeads(stages, [1.0, 0.5, 0.25], box_loss="giou", box_loss_weight=10.0)
    return _rcnn(backbone, heads, transform, sizes, **backbone_args)


DETECTORS = {"retinanet": retinanet, "mask_rcnn": mask_rcnn, "cascade_mask_rcnn": cascade_mask_rcnn}


def counted_forward(network: Any, image: Tensor) -> None:
    """Compute what does not depend on the content of an image (1, 3, H, W), on its device, so that it can be counted.

    For an R-CNN, these are backbone, pyramid, region proposals, and the heads on 1000 boxes, 100 of which have masks.
    """
    maps = list(network.backbone(image).values())
    if isinstance(network, RetinaNet):
        network.head(maps)
        return
    network.rpn.head(maps)
    channels = maps[0].shape[1]
    for stage in network.roi_heads.stages:
        stage.box_predictor(stage.box_head(torch.empty(1000, channels, 7, 7, device=image.device)))
        stage.mask_predictor(stage.mask_head(torch.empty(100, channels, 14, 14, device=image.device)))


def create(
    detector: str,
    backbone: str,
    num_classes: int = 80,
    *,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    pyramid: int = 256,
    norms: bool = False,
    width: int = 1024,
    convs: int = 4,
    smallest_anchor: float = 32,
    anchors: int = 256,
    proposals: int = 1000,
    rois: int = 512,
    samples: int = 2,
    detections: int = 100,
    **backbone_args: Any,
) -> nn.Module:
    """Return a detector with new weights. The defaults are the published settings, for images of 800 pixels.

    Args:
        detector: "retinanet", "mask_rcnn" or "cascade_mask_rcnn".
        backbone: Name of a timm model, four-stage or plain.
        num_classes: Number of classes without the background; COCO has 80.
        min_size: Length that an image's shorter side is resized to. From several, training draws one at random, and
            evaluation uses the last.
        max_size: Maximum length of the longer side.
        pyramid: Channels of the pyramid and of the heads' convolutions.
        norms: Use batch norms in the pyramid of an R-CNN and in its mask heads, as training from random weights needs.
        width: Outputs of each linear layer of a box head.
        convs: 3x3 convolutions in each of RetinaNet's heads (1 to 4), in a mask head and in a cascade's box head.
        smallest_anchor: Side of the smallest square anchors in pixels; it doubles with each coarser map.
        anchors: Number of anchors per image that the loss of the region proposals samples.
        proposals: Number of boxes per image that the region proposals pass on. Before suppression, they keep this
            number per map, and twice as many in training. For RetinaNet, the number of candidates per map.
        rois: Number of boxes per image that a stage of heads samples in training, at most a quarter of them on objects.
        samples: Samples of RoI align along each side of a bin; their gradient dominates the cost of a small network's
            training step.
        detections: Maximum number of detections per image.
        **backbone_args: Arguments of the backbone, such as ``drop_path_rate`` and ``pretrained``.

    Raises:
        FreproError: There is no such detector or model.
    """
    if detector not in DETECTORS:
        raise unknown("detector", detector, DETECTORS)
    transform = Transform(min_size, max_size, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    sizes = Sizes(pyramid, norms, width, convs, smallest_anchor, anchors, proposals, rois, samples, detections)
    return DETECTORS[detector](backbone, num_classes, transform, sizes, **backbone_args)
