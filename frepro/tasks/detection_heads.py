"""Anchors and heads of detectors: torchvision's components with the conventions of mmdetection.

``frepro.tasks.detectors`` assembles networks from them, and lists how they differ from mmdetection.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, _box_loss
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from frepro.errors import FreproError

__all__ = ["P6P7", "Anchors", "CascadeRoIHeads", "DetectionHead", "ProposalHead", "Targets", "Transform"]

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

    stages: Any  # a ModuleList, whose elements are typed as modules without attributes

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
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detections(features, proposals, image_shapes), {}

    def _losses(self, features: Any, proposals: list[Tensor], image_shapes: Any, targets: Targets) -> dict[str, Tensor]:
        losses: dict[str, Any] = dict.fromkeys(("loss_classifier", "loss_box_reg", "loss_mask"), 0.0)
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
