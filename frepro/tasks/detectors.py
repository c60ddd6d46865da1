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
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection._utils import BoxCoder, _box_loss
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from frepro.errors import FreproError, unknown
from frepro.tasks.pyramid import feature_pyramid

__all__ = ["Anchors", "CascadeRoIHeads", "RetinaNet", "create"]

Targets = list[dict[str, Tensor]]


class Anchors(AnchorGenerator):
    """Anchors placed as in mmdetection: at the true strides of the maps, and not rounded to pixels.

    torchvision computes a stride as the image size divided by the map size: 61 instead of 64 for 800 pixels.

    Args:
        strides: Strides of the pyramid's maps, in pixels.
        scales: Side lengths of the square anchors at each location, in strides.
    """

    def __init__(self, strides: Sequence[int], scales: Sequence[float]) -> None:
        sizes = tuple(tuple(stride * scale for scale in scales) for stride in strides)
        super().__init__(sizes, ((0.5, 1.0, 2.0),) * len(strides))
        self.strides = strides

    def generate_anchors(
        self, scales: Any, aspect_ratios: Any, dtype: Any = torch.float32, device: Any = "cpu"
    ) -> Tensor:
        scales = torch.as_tensor(scales, dtype=dtype, device=device)
        height_ratios = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        widths, heights = (scales / height_ratios).flatten(), (scales * height_ratios).flatten()
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        super().set_cell_anchors(torch.float32, device)  # even if autocast makes the maps half precision

    def grid_anchors(self, grid_sizes: Any, strides: Any) -> list[Tensor]:
        return super().grid_anchors(grid_sizes, [(stride, stride) for stride in self.strides])


class Transform(GeneralizedRCNNTransform):
    """torchvision's resizing and normalisation, with a clear error for images that would shrink to nothing.

    Raises:
        FreproError: An image is so narrow that its short side would be scaled to zero pixels.
    """

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        short, long = sorted(image.shape[-2:])
        if short * self.max_size < long:
            raise FreproError(
                f"an image of {image.shape[-1]} x {image.shape[-2]} pixels is too narrow: its short side would have no "
                f"pixel when its long side has {self.max_size}: remove it from the data"
            )
        return super().resize(image, target)


class ProposalHead(RPNHead):
    """torchvision's region proposal head; it returns float32, which boxes need, under autocast too."""

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(maps)
        return [each.float() for each in logits], [each.float() for each in deltas]


class DetectionHead(RetinaNetHead):
    """torchvision's RetinaNet head; it returns float32, which boxes need, under autocast too."""

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        return {name: each.float() for name, each in super().forward(maps).items()}


class P6P7(LastLevelP6P7):
    """Two more maps by 3x3 convolutions on the backbone's last map, without a ReLU between them, as in mmdetection.

    torchvision applies the ReLU, and starts from the pyramid's last map if the widths are equal.
    """

    def forward(
        self, maps: list[Tensor], backbone_maps: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(backbone_maps[-1])
        return [*maps, p6, self.p7(p6)], [*names, "p6", "p7"]


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


class CascadeRoIHeads(nn.Module):
    """Stages of box and mask heads, each on the boxes refined by the previous one; a single stage gives Mask R-CNN.

    In training, each stage matches the boxes it is given by its own IoU threshold and samples among them. Detections
    have the boxes of the last stage, the softmax of the stages' mean logits, and the mean of the stages' masks.

    Args:
        stages: torchvision's heads with the matcher and the box coder of each stage.
        loss_weights: Loss weight of each stage.
        box_loss: "l1" or "smooth_l1" on the encoded boxes, or "giou" on the boxes themselves.
        box_loss_weight: Weight of all box losses.
    """

    def __init__(
        self, stages: Sequence[RoIHeads], loss_weights: Sequence[float], box_loss: str, box_loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.loss_weights = loss_weights
        self.box_loss = box_loss
        self.box_loss_weight = box_loss_weight

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[Targets, dict[str, Tensor]]:
        """Return detections and losses, given maps, boxes (N, 4) per image, and the heights and widths of images."""
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detections(features, proposals, image_shapes), {}

    def _losses(self, features: Any, proposals: list[Tensor], image_shapes: Any, targets: Targets) -> dict[str, Tensor]:
        losses = dict.fromkeys(("loss_classifier", "loss_box_reg", "loss_mask"), 0.0)
        gt_boxes, gt_labels, gt_masks = ([target[key] for target in targets] for key in ("boxes", "labels", "masks"))
        for stage, weight in zip(self.stages, self.loss_weights, strict=True):
            boxes, matched, labels, _ = stage.select_training_samples(proposals, targets)
            positive = [each > 0 for each in labels]
            matched = [index[kept] for index, kept in zip(matched, positive, strict=True)]
            positive_boxes = [each[kept] for each, kept in zip(boxes, positive, strict=True)]

            logits, deltas = _classify(stage, features, boxes, image_shapes)
            box_loss = _box_loss(
                self.box_loss,
                stage.box_coder,
                torch.cat(positive_boxes),
                torch.cat([each[index] for each, index in zip(gt_boxes, matched, strict=True)]),
                _of_class(deltas, torch.cat(labels))[torch.cat(positive)],
                {"beta": 1 / 9},  # for "smooth_l1"
            )
            masks = _segment(stage, features, positive_boxes, image_shapes)
            losses["loss_classifier"] += weight * F.cross_entropy(logits, torch.cat(labels))
            losses["loss_box_reg"] += weight * self.box_loss_weight * box_loss / len(logits)
            losses["loss_mask"] += weight * maskrcnn_loss(masks, positive_boxes, gt_masks, gt_labels, matched)

            refined = _refine(stage.box_coder, logits, deltas, boxes, image_shapes, torch.cat(labels))
            # Sampling adds the true boxes to the proposals. They are not results of this stage, so drop them.
            own = [(old[:, None] != true).any(dim=2).all(dim=1) for old, true in zip(boxes, gt_boxes, strict=True)]
            proposals = [each[kept] for each, kept in zip(refined, own, strict=True)]
        return losses

    def _detections(self, features: Any, proposals: list[Tensor], image_shapes: Any) -> Targets:
        all_logits = []
        for i, stage in enumerate(self.stages, start=1):
            logits, deltas = _classify(stage, features, proposals, image_shapes)
            all_logits.append(logits)
            if i < len(self.stages):
                proposals = _refine(stage.box_coder, logits, deltas, proposals, image_shapes)
        mean = torch.stack(all_logits).mean(dim=0)
        boxes, scores, labels = stage.postprocess_detections(mean, deltas, proposals, image_shapes)
        masks = [
            maskrcnn_inference(_segment(stage, features, boxes, image_shapes), labels) for stage in self.stages
        ]  # by stage, then by image
        return [
            {"boxes": boxes[i], "labels": labels[i], "scores": scores[i], "masks": torch.stack(by_stage).mean(dim=0)}
            for i, by_stage in enumerate(zip(*masks, strict=True))
        ]


def _classify(stage: RoIHeads, features: Any, boxes: list[Tensor], image_shapes: Any) -> tuple[Tensor, Tensor]:
    """Return class logits (N, 1 + classes) and box deltas (N, 4 * (1 + classes)) for all images' boxes, in float32."""
    logits, deltas = stage.box_predictor(stage.box_head(stage.box_roi_pool(features, boxes, image_shapes)))
    return logits.float(), deltas.float()


def _segment(stage: RoIHeads, features: Any, boxes: list[Tensor], image_shapes: Any) -> Tensor:
    """Return mask logits (N, 1 + classes, 28, 28) for the boxes of all images, in float32."""
    return stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(features, boxes, image_shapes))).float()


def _of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """Return the deltas of each box's class: (N, 4 * (1 + classes)) to (N, 4)."""
    return deltas.unflatten(1, (-1, 4))[torch.arange(len(labels), device=labels.device), labels]


@torch.no_grad()
def _refine(
    coder: BoxCoder,
    logits: Tensor,
    deltas: Tensor,
    boxes: list[Tensor],
    image_shapes: list[tuple[int, int]],
    labels: Tensor | None = None,
) -> list[Tensor]:
    """Return the boxes, (N, 4) per image, moved by the deltas of their true class, or of the likeliest if unknown."""
    classes = logits[:, 1:].argmax(dim=1) + 1
    if labels is not None:
        classes = torch.where(labels > 0, labels, classes)
    moved = coder.decode_single(_of_class(deltas, classes), torch.cat(boxes)).split([len(each) for each in boxes])
    return [clip_boxes_to_image(each, shape) for each, shape in zip(moved, image_shapes, strict=True)]


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
