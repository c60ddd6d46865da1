"""Tables of findings: labels, units, order and decimals are those that the tasks declare."""

import pytest

from frepro import recipes, report
from frepro.experiment.findings import Finding
from frepro.recipes import Metric


@pytest.fixture
def rmse(monkeypatch) -> Metric:
    """A metric that a new task declares."""
    metric = Metric("rmse", "RMSE", "m", higher_is_better=False, decimals=3)
    monkeypatch.setitem(recipes.METRICS, metric.name, metric)
    return metric


def finding(metric: str, value: float, group: str = "Depth head", unit: str = "m") -> Finding:
    return Finding(group, "GFNet-Ti", "gfnet_ti", metric, unit, None, value, 0.0125, 2, "scenes")


def test_scores_of_a_new_task_are_shown_as_declared(rmse):
    view = report.dense_scores([finding("scenes_rmse", 0.12345)])
    assert ("RMSE (m)", "mean") in view.headings
    assert view.rows == [["GFNet-Ti", "Depth head", "0.123", "0.013", "2"]]
    view = report.scores([finding("scenes_rmse", 0.12345)], "scenes_rmse", "scenes test RMSE")
    assert view.headings[1] == ("scenes test RMSE (m)", "mean")
    assert view.rows == [["GFNet-Ti", "0.123", "0.013", "2"]]


def test_scores_are_in_the_order_of_their_declaration():
    found = [finding(f"scenes_{name}", 10.0, "Mask R-CNN", "%") for name in ("mask_ap", "box_ap75", "box_ap")]
    view = report.dense_scores(found)
    assert [upper for upper, lower in view.headings if lower == "mean"] == ["box AP (%)", "box AP75 (%)", "mask AP (%)"]
