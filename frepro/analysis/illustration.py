"""A figure that its notebook draws or measures, on networks trained for it or not.

The notebook creates an illustration from its measurements and writes it; ``frepro reproduce`` adds commit, machine and
the fingerprint of the code that the notebook uses. Creating one does not import torch.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frepro import papers
from frepro.errors import unknown
from frepro.store import records


@dataclass(frozen=True)
class Illustration:
    """The data behind one figure.

    Args:
        paper, figure: The figure ``papers.load(paper).figures[figure]``.
        values: The measured numbers, one mapping per row, all with the same columns; empty for a drawing.
        sources: What was measured, in words: the settings of each model, data set or simulation, such as
            {"model": ..., "weights": ..., "seed": ...}.
        stands_in: What replaces something that the paper used, and is therefore not shown; empty if nothing does.
    """

    paper: str
    figure: int
    values: Sequence[Mapping[str, Any]] = ()
    sources: Sequence[Mapping[str, Any]] = ()
    stands_in: str = ""

    def __post_init__(self) -> None:
        figures = papers.load(self.paper).figures
        if self.figure not in figures:
            raise unknown(f"figure of {self.paper}", self.figure, figures)
        if any(row.keys() != self.values[0].keys() for row in self.values):
            raise ValueError(f"every row of values must have the same columns, {list(self.values[0])}")

    def frame(self) -> Any:
        """Return the values as a pandas DataFrame, unrounded."""
        import pandas as pd

        return pd.DataFrame(self.values)

    def write(self, output: str | None, **pictures: Any) -> None:
        """Write values.csv, origin.json and the figures passed as name=figure to a folder; do nothing for ``None``."""
        if output is None:
            return
        folder = Path(output)
        if self.values:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(self.values[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.values)
            records.write_text(folder / "values.csv", text.getvalue())
        origin = {
            "paper": self.paper,
            "figure": self.figure,
            "sources": list(self.sources),
            "stands_in": self.stands_in,
        }
        records.write_text(folder / "origin.json", json.dumps(origin, indent=1, ensure_ascii=False) + "\n")
        for name, picture in pictures.items():
            picture.savefig(folder / f"{name}.png", dpi=150)
