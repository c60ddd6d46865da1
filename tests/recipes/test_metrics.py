"""The table of metrics: each task declares its own, and every label and format is read from it."""

import pytest

from frepro import papers, recipes
from frepro.recipes.metrics import THROUGHPUT


@pytest.mark.parametrize("task", recipes.TASKS)
def test_the_table_has_the_metrics_of_every_task(task):
    kind = recipes.TASKS[task]
    assert all(recipes.METRICS[metric.name] == metric for metric in kind.metrics)
    assert kind.main_metric().in_tables


def test_a_value_is_shown_with_label_unit_and_decimals_of_its_metric():
    miou, loss = recipes.METRICS["miou"], recipes.METRICS["test_loss"]
    assert (miou.heading, miou.number(45.304)) == ("mIoU (%)", "45.30")
    assert (loss.heading, loss.number(2.30259)) == ("test loss", "2.3026")
    assert (miou.quantity(45.304), loss.quantity(2.30259)) == ("45.30 %", "2.3026")
    assert THROUGHPUT.heading == "throughput (img/s)"


@pytest.mark.parametrize("paper", papers.names())
def test_claims_are_about_columns_of_their_table_or_known_metrics(paper):
    for table in papers.load(paper).tables.values():
        assert all(table.column(claim.metric) or claim.metric in recipes.METRICS for claim in table.claims)
