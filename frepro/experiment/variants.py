"""A variant of a table as it is trained: with several seeds, or evaluated with the weights of a file."""

from dataclasses import dataclass
from typing import Any

from frepro.experiment.claims import did_train
from frepro.store.records import Measurement
from frepro.training.runs import Run, Start

Variant = tuple[str, str, dict[str, Any]]

# timm builds these at their full sizes alone. A small one is our frame, which is the same, with their token mixers.
IN_OUR_FRAME = {
    "convformer_s18": ("spanetv2_s18_pure", {"mixers": ("conv",) * 4}),
    "caformer_s18": ("spanetv2_s18_pure", {"mixers": ("conv", "conv", "attention", "attention")}),
}


@dataclass(frozen=True)
class TrainedVariant:
    """What is trained of a variant, with several seeds, or evaluated with the weights of a file.

    Attributes:
        network: The detector or segmenter that the model is the backbone of; none for a classifier.
        runs: A training run for each seed; of a file the one that it stands for.
        checkpoint: The file.
    """

    label: str
    model: str
    args: dict[str, Any]
    network: str | None
    runs: list[Run]
    checkpoint: Start | None = None

    def records(self) -> list[dict[str, Any]]:
        """What was found, seed by seed; empty where it is still to be found."""
        found = [measurement.record() for measurement in self.measurements()]
        return found if all(found) else []

    def measurements(self) -> list[Measurement]:
        if self.checkpoint is None:
            return [run.measurement for run in self.runs]
        return [self.runs[0].evaluation(self.checkpoint)]

    def trained(self) -> list[bool]:
        """Return for each of ``records`` whether that run learnt anything."""
        return [
            did_train(record["values"], run.source.classes)
            for run, record in zip(self.runs, self.records(), strict=False)
        ]

    def untrained(self) -> tuple[str, ...]:
        """Return the runs that did not train, as "SPANet-S, seed 0"."""
        runs = zip(self.runs, self.trained(), strict=False)  # a file of weights stands for one run
        return tuple(f"{self.label}, seed {run.seed}" for run, is_trained in runs if not is_trained)


def built_as(model: str, profile: str) -> tuple[str, dict[str, Any]]:
    """Return the model that is built for a variant, and arguments of it: timm's MetaFormers are small in our frame."""
    return (model, {}) if profile == "paper" else IN_OUR_FRAME.get(model, (model, {}))
