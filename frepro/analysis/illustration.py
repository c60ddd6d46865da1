"""An illustration: a figure, drawn or measured by its notebook, be it on networks that were trained for it or not.

The notebook makes one from what it measured, and writes it; ``frepro reproduce`` adds commit, machine and the
fingerprint of the code that the notebook uses. Making one imports no torch.
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
    """What stands behind one figure.

    Args:
        paper, figure: Which figure; ``papers.load(paper).figures[figure]``.
        values: The numbers that were measured for it, a mapping of the same columns for each line; none for a drawing.
        sources: What they were measured on, in words: for each model, data set or simulation its settings, as
            {"model": ..., "weights": ..., "seed": ...}.
        stands_in: What stands in for what the paper used, and what therefore is not shown; empty where nothing does.
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
            raise ValueError(f"every line of values has the same columns, {list(self.values[0])}")

    def frame(self) -> Any:
        """The values as a pandas DataFrame, unrounded."""
        import pandas as pd

        return pd.DataFrame(self.values)

    def write(self, output: str | None, **pictures: Any) -> None:
        """Write values.csv, origin.json and the pictures given as name=picture to a folder; with none, nothing."""
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
