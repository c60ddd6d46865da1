"""Accuracy against cost, as published, with our counts of the cost (SPANet Figure 5)."""

from dataclasses import dataclass

from frepro import papers
from frepro.analysis import cost


@dataclass(frozen=True)
class Point:
    """A model in a table.

    Attributes:
        family: Its name without the size.
        top1: Accuracy as printed, in %.
        params: Parameters as printed, in millions.
        flops: FLOPs as printed, in billions.
        our_params, our_flops: As counted here, in the same units; ``None`` for a model that neither timm nor frepro
            has.
    """

    family: str
    label: str
    model: str | None
    top1: float
    params: float
    flops: float
    our_params: float | None = None
    our_flops: float | None = None


def points(table: papers.Table) -> list[Point]:
    """Return the rows of a table with columns label, params, flops and top1, with counted costs if there is a model."""
    found = []
    for row in table.rows:
        label = str(table.value(row, "label"))
        top1, params, flops = (_number(table.value(row, key)) for key in ("top1", "params", "flops"))
        counted = {}
        if row.model is not None:
            ours = cost.count(row.model)
            counted = {"our_params": ours["params"] / 1e6, "our_flops": ours["macs"] / 1e9}
        found.append(Point(label.rpartition("-")[0], label, row.model, top1, params, flops, **counted))
    return found


def _number(cell: papers.Cell) -> float:
    assert isinstance(cell, int | float)  # in a table of accuracy against cost, no cell is empty
    return cell
