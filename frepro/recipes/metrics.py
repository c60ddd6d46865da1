"""What is measured of a network: key in records and tables, label, unit and format of each quantity.

The costs of a network are here. Each task declares its scores in its recipe class (``Recipe.metrics``), and
``frepro.recipes.METRICS`` is the table of all.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A measured quantity.

    Attributes:
        name: Key in the record of a run, in ``findings.csv`` and in the columns of the papers' tables.
        label: Name in tables and figures.
        unit: "%" for a score from 0 to 100; empty for a number without a unit.
        higher_is_better: Direction of an improvement.
        decimals: Decimals of a measured value.
        in_tables: Whether tables of measured scores show it; others are in the record of a run only.
    """

    name: str
    label: str
    unit: str
    higher_is_better: bool
    decimals: int = 2
    in_tables: bool = True

    @property
    def heading(self) -> str:
        """Label with the unit, as "mIoU (%)"."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def number(self, value: float) -> str:
        """Return a value as "45.30"."""
        return f"{value:.{self.decimals}f}"

    def quantity(self, value: float) -> str:
        """Return a value with its unit, as "45.30 %"."""
        return f"{self.number(value)} {self.unit}".rstrip()


PARAMS = Metric("params", "parameters", "M", higher_is_better=False)
FLOPS = Metric("flops", "FLOPs", "G", higher_is_better=False)
THROUGHPUT = Metric("throughput", "throughput", "img/s", higher_is_better=True, decimals=1)
# Counted without the head of a classifier and without the rest of a detector or segmenter.
BACKBONE_PARAMS = Metric("backbone_params", "parameters", "M", higher_is_better=False)
BACKBONE_FLOPS = Metric("backbone_flops", "FLOPs", "G", higher_is_better=False, decimals=1)

COSTS = (PARAMS, FLOPS, THROUGHPUT)
BACKBONE_COSTS = (BACKBONE_PARAMS, BACKBONE_FLOPS)
