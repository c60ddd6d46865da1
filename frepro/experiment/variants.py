"""Variants of a table as they are trained with several seeds, or evaluated with the weights of a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from frepro.experiment.claims import did_train
from frepro.experiment.weights import Variant, evaluated_as, find_weights
from frepro.store.records import Measurement
from frepro.training.runs import Run, Start

if TYPE_CHECKING:
    from frepro.experiment.spec import Spec
    from frepro.models.published import Published

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
        checkpoint: The file of weights; ``None`` for a trained variant, and for published weights until they are
            downloaded.
        published: The weights that the model's authors published, if these are evaluated.
    """

    label: str
    model: str
    args: dict[str, Any]
    network: str | None
    runs: list[Run]
    checkpoint: Start | None = None
    published: "Published | None" = None

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all seeds; empty if one is missing."""
        if self.published is not None and self.checkpoint is None:
            return []
        measurements = self.measurements()
        found = [record for measurement in measurements if (record := measurement.record())]
        return found if len(found) == len(measurements) else []

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

    def correct(self) -> list[Any]:
        """Return for each seed which test images the classifier got right (``Run.correct``).

        Empty if this is unknown for one of them, and for the weights of a file.
        """
        found = [] if self.checkpoint else [run.correct() for run in self.runs]
        return [] if any(each is None for each in found) else found

    def untrained(self) -> tuple[str, ...]:
        """Return the runs that did not train, as "SPANet-S, seed 0"."""
        runs = zip(self.runs, self.trained(), strict=False)  # with a checkpoint, there is only one record
        return tuple(f"{self.label}, seed {run.seed}" for run, is_trained in runs if not is_trained)


def of_authors(spec: "Spec", variants: Sequence[Variant], weights: "Mapping[str, Published]") -> list[TrainedVariant]:
    """Return the variants whose published weights are evaluated, each with its own image size and crop."""
    from frepro.models.published import cached  # imports torch, which takes seconds

    found = []
    for label, model, args in variants:
        if (given := weights.get(label)) is not None:
            assert given.url is not None  # ``weights.of_authors`` leaves out what has no address
            run = Run(given.model, evaluated_as(spec.recipe, given), spec.profile, spec.source, spec.seeds[0])
            file = cached(given.url)
            start = Start.of(file) if file.exists() else None
            found.append(TrainedVariant(label, model, args, None, [run], start, given))
    return found


def trained(spec: "Spec", variants: Sequence[Variant]) -> list[TrainedVariant]:
    """Return what is trained: the variants themselves, or the networks of ``spec.trained`` with them as backbones.

    A variant with a file of weights is included too, but not one that others start from if its weights are given.
    """
    networks = dict.fromkeys([*(spec.trained or ()), *spec.networks]) if spec.networks else [None]
    given = [label for label, model, _ in variants if label in (spec.starts or {}).values() and _weights(spec, model)]
    every = [_trained(spec, each, network) for network in networks for each in variants if each[0] not in given]
    return [each for each in every if each.checkpoint or _is_trained(spec, each.model, each.network)]


def _is_trained(spec: "Spec", model: str, network: str | None) -> bool:
    if isinstance(spec.trained, Mapping):
        return model in spec.trained.get(network or "", ())
    return network is None and (spec.trained is None or model in spec.trained)


def _trained(spec: "Spec", variant: Variant, network: str | None) -> TrainedVariant:
    label, model, args = variant
    checkpoint = find_weights(spec.checkpoints, f"{network}_{model}" if network else model)
    starts: Sequence[Start | Run | None] = [None] * len(spec.seeds)
    if network:
        recipe, starts = spec.networks[network], [_weights(spec, model)] * len(spec.seeds)
    elif label not in (spec.starts or {}):
        recipe = spec.recipe
    else:
        recipe = spec.fine_tuning
        if checkpoint is None:
            starts = _bases(spec, label)
    built, mixers = built_as(model, spec.profile)
    runs = [
        Run(built, recipe, spec.profile, spec.source, seed, {**mixers, **args}, start)
        for seed, start in zip(spec.seeds, starts, strict=True)
    ]
    return TrainedVariant(label, model, args, network, runs, checkpoint)


def _bases(spec: "Spec", label: str) -> Sequence[Start | Run]:
    """Return for each seed what a variant in ``spec.starts`` starts from: a file of weights if given, else a run."""
    assert spec.starts is not None
    base = next(variant for variant in spec.variants if variant[0] == spec.starts[label])
    weights = _weights(spec, base[1])
    return _trained(spec, base, None).runs if weights is None else [weights] * len(spec.seeds)


def _weights(spec: "Spec", model: str) -> Start | None:
    return None if spec.backbones == "none" else find_weights(spec.backbones, model)


def built_as(model: str, profile: str) -> tuple[str, dict[str, Any]]:
    """Return the model that is built for a variant, and its arguments (see ``IN_OUR_FRAME``)."""
    return (model, {}) if profile == "paper" else IN_OUR_FRAME.get(model, (model, {}))
