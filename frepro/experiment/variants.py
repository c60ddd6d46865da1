"""Variants of a table as they are trained with several seeds, or evaluated with the weights of a file."""

from dataclasses import dataclass
from typing import Any

from frepro.experiment.claims import did_train
from frepro.store.records import Measurement
from frepro.training.runs import Run, Start

Variant = tuple[str, str, dict[str, Any]]

# timm builds these models only at full size. The small ones use frepro's MetaFormer, which has the same architecture,
# with their token mixers.
IN_OUR_FRAME = {
    "convformer_s18": ("spanetv2_s18_pure", {"mixers": ("conv",) * 4}),
    "caformer_s18": ("spanetv2_s18_pure", {"mixers": ("conv", "conv", "attention", "attention")}),
}


@dataclass(frozen=True)
class TrainedVariant:
    """A variant that is trained with several seeds, or evaluated with the weights of a file.

    Attributes:
        network: The detector or segmenter that has the model as its backbone; ``None`` for a classifier.
        runs: A training run for each seed. With a checkpoint, only the first is used, to evaluate the file.
        checkpoint: The file of weights; ``None`` for a trained variant.
    """

    label: str
    model: str
    args: dict[str, Any]
    network: str | None
    runs: list[Run]
    checkpoint: Start | None = None

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all seeds; empty if one is missing."""
        found = [measurement.record() for measurement in self.measurements()]
        return found if all(found) else []

    def measurements(self) -> list[Measurement]:
        if self.checkpoint is None:
            return [run.measurement for run in self.runs]
        return [self.runs[0].evaluation(self.checkpoint)]

    def trained(self) -> list[bool]:
        """Return for each of ``records`` whether that run learned anything (see ``claims.did_train``)."""
        return [
            did_train(record["values"], run.source.classes)
            for run, record in zip(self.runs, self.records(), strict=False)
        ]

    def untrained(self) -> tuple[str, ...]:
        """Return the runs that did not train, as "SPANet-S, seed 0"."""
        runs = zip(self.runs, self.trained(), strict=False)  # with a checkpoint, there is only one record
        return tuple(f"{self.label}, seed {run.seed}" for run, is_trained in runs if not is_trained)


def built_as(model: str, profile: str) -> tuple[str, dict[str, Any]]:
    """Return the model that is built for a variant, and its arguments (see ``IN_OUR_FRAME``)."""
    return (model, {}) if profile == "paper" else IN_OUR_FRAME.get(model, (model, {}))
