"""AP and mIoU on cases that can be worked out by hand."""

import math

import pytest
import torch

from frepro.errors import FreproError
from frepro.tasks.metrics import CocoMetrics, confusion_matrix, segmentation_scores

pytest.importorskip("pycocotools")


def objects(boxes, labels, scores=None, size=120, **more):
    """Objects whose masks fill their boxes."""
    masks = torch.zeros(len(boxes), size, size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    found = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
        **more,
    }
    if scores is not None:
        found |= {"scores": torch.tensor(scores), "masks": masks[:, None].float()}
    return found


def score(*pairs, masks=True):
    metrics = CocoMetrics(masks)
    for i, (target, detection) in enumerate(pairs):
        metrics.update([i], [target], [detection])
    return metrics.scores()


SMALL, MEDIUM, LARGE = (2, 2, 22, 22), (10, 10, 60, 60), (5, 5, 115, 115)


def test_what_is_found_exactly_scores_100():
    truth = objects([SMALL, MEDIUM, LARGE], [1, 2, 3])
    found = objects([SMALL, MEDIUM, LARGE], [1, 2, 3], [0.9, 0.8, 0.7])
    scores = score((truth, found))
    assert scores == {
        f"{kind}_ap{which}": pytest.approx(100) for kind in ("box", "mask") for which in ("", "50", "75", "s", "m", "l")
    }


def test_what_is_missed_or_misnamed_scores_nothing():
    truth = objects([MEDIUM], [1])
    assert score((truth, objects([], [], [])))["box_ap"] == 0
    assert score((truth, objects([MEDIUM], [2], [0.9])))["mask_ap"] == 0


def test_one_of_two_found_has_precision_1_up_to_half_the_recall():
    truth = objects([SMALL, MEDIUM], [1, 1])
    found = objects([SMALL], [1], [0.9])
    # COCO takes precision at 101 recalls, 0 to 1; 51 of them are at most 0.5.
    assert score((truth, found))["box_ap"] == pytest.approx(100 * 51 / 101)


def test_a_false_alarm_above_the_true_one_halves_the_precision():
    truth = objects([MEDIUM], [1])
    found = objects([(70, 70, 110, 110), MEDIUM], [1, 1], [0.9, 0.8])
    assert score((truth, found))["box_ap"] == pytest.approx(50)
    below = objects([(70, 70, 110, 110), MEDIUM], [1, 1], [0.7, 0.8])
    assert score((truth, below))["box_ap"] == pytest.approx(100)


def test_an_overlap_counts_up_to_its_iou():
    """40 x 50 of 50 x 50 pixels: IoU 0.8, which is enough at 0.5, 0.55, ... 0.75, 0.8: seven of ten thresholds."""
    scores = score((objects([(10, 10, 60, 60)], [1]), objects([(10, 10, 50, 60)], [1], [0.9])))
    for kind in ("box", "mask"):
        assert scores[f"{kind}_ap"] == pytest.approx(70)
        assert scores[f"{kind}_ap50"] == scores[f"{kind}_ap75"] == pytest.approx(100)


def test_boxes_and_masks_are_scored_apart():
    truth = objects([(10, 10, 60, 60)], [1])
    found = objects([(10, 10, 60, 60)], [1], [0.9])
    found["masks"][:, :, 35:] = 0.49  # half of the object
    scores = score((truth, found))
    assert scores["box_ap"] == pytest.approx(100)
    assert scores["mask_ap"] == pytest.approx(10)  # at 0.5 alone
    assert set(score((truth, found), masks=False)) == {f"box_ap{which}" for which in ("", "50", "75", "s", "m", "l")}


def test_sizes_without_objects_have_no_score():
    scores = score((objects([MEDIUM], [1]), objects([MEDIUM], [1], [0.9])))
    assert scores["box_apm"] == pytest.approx(100)
    assert math.isnan(scores["box_aps"])
    assert math.isnan(scores["box_apl"])


def test_the_area_that_is_given_tells_small_from_large():
    scores = score((objects([MEDIUM], [1], area=torch.tensor([100.0])), objects([MEDIUM], [1], [0.9])))
    assert scores["box_aps"] == pytest.approx(100)
    assert math.isnan(scores["box_apm"])


def test_a_crowd_is_neither_missed_nor_found():
    crowd = objects([MEDIUM, (70, 70, 110, 110)], [1, 1], iscrowd=torch.tensor([0, 1]))
    found = objects([MEDIUM, (75, 75, 90, 90), (80, 80, 100, 100)], [1, 1, 1], [0.5, 0.9, 0.8])
    assert score((crowd, found))["box_ap"] == pytest.approx(100)


def test_precision_is_over_all_images_and_a_mean_over_classes():
    empty = objects([], [])
    pairs = [
        (objects([MEDIUM], [1]), objects([MEDIUM], [1], [0.6])),
        (empty, objects([MEDIUM], [1], [0.9])),  # a false alarm in an image without objects
        (objects([LARGE], [2]), objects([LARGE], [2], [0.1])),
    ]
    assert score(*pairs)["box_ap"] == pytest.approx((50 + 100) / 2)


def test_an_image_that_is_seen_twice_counts_once():
    metrics = CocoMetrics()
    truth, found = objects([SMALL, MEDIUM], [1, 1]), objects([SMALL], [1], [0.9])
    for _ in range(2):
        metrics.update([7], [truth], [found])
    assert metrics.scores()["box_ap"] == pytest.approx(100 * 51 / 101)


def test_ap_of_nothing_is_refused():
    with pytest.raises(FreproError, match="no image was evaluated"):
        CocoMetrics().scores()


def test_miou_by_hand():
    labels = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 255]])
    predicted = torch.tensor([[0, 1, 1, 1], [2, 0, 3, 0]])
    matrix = confusion_matrix(predicted, labels, 5)
    assert matrix.tolist() == [[1, 1, 0, 0, 0], [0, 2, 0, 0, 0], [1, 0, 1, 0, 0], [0] * 5, [0] * 5]
    scores = segmentation_scores(matrix)
    # IoU 1 of 3, 2 of 3 and 1 of 2; classes 3 and 4 are nowhere, but under an ignored pixel.
    assert scores["miou"] == pytest.approx(100 * (1 / 3 + 2 / 3 + 1 / 2) / 3)
    assert scores["aacc"] == pytest.approx(100 * 4 / 6)


def test_a_class_that_is_only_predicted_counts_as_0():
    labels, predicted = torch.tensor([0, 0]), torch.tensor([0, 1])
    assert segmentation_scores(confusion_matrix(predicted, labels, 3))["miou"] == pytest.approx(100 * (1 / 2 + 0) / 2)


def test_matrices_of_batches_add_up_where_means_of_images_do_not():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (3, 8, 8), generator=generator)
    predicted = torch.randint(4, (3, 8, 8), generator=generator)
    whole = confusion_matrix(predicted, labels, 4)
    assert torch.equal(whole, sum(confusion_matrix(p, label, 4) for p, label in zip(predicted, labels, strict=True)))
    assert whole.sum() == labels.numel()


def test_labels_as_bytes():
    labels = torch.tensor([0, 149, 255], dtype=torch.uint8)
    assert confusion_matrix(torch.tensor([0, 149, 3]), labels, 150).trace() == 2


def test_no_labels_no_scores():
    scores = segmentation_scores(confusion_matrix(torch.zeros(4), torch.full((4,), 255), 3))
    assert all(math.isnan(value) for value in scores.values())


@pytest.mark.parametrize(
    ("label", "prediction", "said"), [(3, 0, "label 3"), (-1, 0, "label -1"), (0, 5, "prediction 5")]
)
def test_classes_out_of_range_are_named(label, prediction, said):
    with pytest.raises(FreproError, match=f"{said} is not one of 3 classes: they are 0 to 2"):
        confusion_matrix(torch.tensor([1, prediction]), torch.tensor([0, label]), 3)
