"""An experiment: train the variants of a published table with several seeds, time them, and count their cost.

The cells of a notebook define the experiment, and nothing else does: ``frepro reproduce`` runs the same cells to find
out what is still to do. Creating an experiment does not import torch.

Modules::

    spec.py         the specification, checked      runner.py    training, evaluating, timing
    variants.py     a variant as it is trained      findings.py  published and measured values
    weights.py      files of weights by name        claims.py    tests of the paper's claims
    checks.py       checks of the arguments         timings.py   what is timed, and in which session
    trained_networks.py   networks that a figure analyses        origin.py    what is stored of an experiment
    statistics.py   tests, equivalence, power, bootstrap
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from frepro import papers
from frepro.experiment import claims, findings, origin, runner, variants, weights
from frepro.experiment.checks import check_weights
from frepro.experiment.claims import Outcome
from frepro.experiment.findings import Finding
from frepro.experiment.spec import Spec
from frepro.experiment.timings import Timings
from frepro.experiment.variants import TrainedVariant, Variant
from frepro.recipes.metrics import THROUGHPUT
from frepro.training.device import device_name
from frepro.training.runs import Run, Throughput, with_starts

if TYPE_CHECKING:
    from frepro.models.published import Published

__all__ = ["Experiment", "Finding", "Outcome", "Spec", "TrainedVariant", "Variant"]


@dataclass(frozen=True)
class Experiment(Spec):
    """A specification with its training runs, timings and findings. The arguments are those of ``Spec``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trains:
            check_weights(self)

    def with_variant(
        self,
        label: str,
        model: str,
        claim: str | None = None,
        over: str | None = None,
        starts_from: str | None = None,
        **model_args: Any,
    ) -> "Experiment":
        """Return this experiment with one more variant, which is trained, timed and counted like the others.

        Args:
            claim: A sentence that states what the variant shows. It is tested as: its score is better than that of
                ``over``.
            over: Label of the variant to compare it with; ``None`` for the first.
            starts_from: Label of the variant whose trained weights it starts from; ``None`` for random weights.
            **model_args: Arguments of the model. Give activations and norms by name, as ``act_layer="tanh"``.

        Raises:
            FreproError: The model or the label ``over`` is unknown, or the experiment already has this variant.
        """
        trained = self.trained
        if isinstance(trained, Mapping):
            trained = {network: [*dict.fromkeys([*models, model])] for network, models in trained.items()}
        elif trained:  # an experiment that trains nothing only counts the new variant, too
            trained = [*dict.fromkeys([*trained, model])]
        claims = [*self.claims]
        if claim is not None:
            metric, network = self.main_metric.name, next(iter(self.trained or ()), None) if self.networks else None
            claims.append(papers.Claim(label, over or self.variants[0][0], claim, metric, network))
        return replace(
            self,
            variants=[*self.variants, (label, model, model_args)],
            models=[*self.models, model] if self.models else self.models,
            trained=trained,
            claims=claims,
            starts={**(self.starts or {}), label: starts_from} if starts_from else self.starts,
        )

    @cached_property
    def measured(self) -> tuple[Variant, ...]:
        """The variants that are timed."""
        found = [variant for variant in self.variants if variant[0] not in self.broken]
        if self.networks or self.trained is None:
            return tuple(found)
        return tuple(variant for variant in found if variant[1] in self.trained)

    @cached_property
    def trained_variants(self) -> list[TrainedVariant]:
        """What is trained: the variants that are timed, or the detectors and segmenters on the models in ``trained``.

        A variant with a file of weights is included too; it is evaluated instead of trained.
        """
        if self.is_of_authors:
            return variants.of_authors(self, self.variants, self.published_weights)
        return variants.trained(self, [each for each in self.variants if each[0] not in self.broken])

    @cached_property
    def broken(self) -> dict[str, str]:
        """Label -> reason of each variant that cannot be built; empty until ``check_variants`` has run."""
        return {}

    @cached_property
    def _of_authors(self) -> "tuple[dict[str, Published], dict[str, str]]":
        return weights.of_authors(self)

    @property
    def published_weights(self) -> "dict[str, Published]":
        """Label of each variant whose authors' weights are evaluated -> what they published."""
        return self._of_authors[0] if self.is_of_authors else {}

    @property
    def unpublished(self) -> dict[str, str]:
        """Label -> reason of each variant without published weights, if those are evaluated."""
        return self._of_authors[1] if self.is_of_authors else {}

    @cached_property
    def failed(self) -> dict[str, str]:
        """Label -> reason of each variant whose published weights could not be fetched or evaluated in this process."""
        return {}

    @cached_property
    def runs(self) -> list[Run]:
        """Every training run, ordered by seed, so that early results compare all variants.

        Runs that others start from come first.
        """
        if self.checkpoints is not None:
            return []
        by_seed = zip(*(learner.runs for learner in self.trained_variants), strict=True)
        return with_starts(run for of_seed in by_seed for run in of_seed)

    def to_train(self) -> list[Run]:
        return [run for run in self.runs if run.measurement.record() is None]

    @property
    def evaluated(self) -> list[TrainedVariant]:
        """The variants whose weights come from files that are there."""
        return [each for each in self.trained_variants if each.checkpoint and each.label not in self.failed]

    def to_evaluate(self) -> list[TrainedVariant]:
        """Return the variants whose weights have not been evaluated, among them those still to be downloaded."""
        return [each for each in self.trained_variants if (each.checkpoint or each.published) and not each.records()]

    @cached_property
    def timings(self) -> dict[str, Throughput]:
        """Label of each timed variant -> its throughput at full size on this device."""
        if not self.measured:
            return {}
        device, name = self.device_name
        group, benchmark = f"{self.paper}/table_{self.table}", self.recipe.benchmark
        return {label: Throughput(group, model, args, benchmark, device, name) for label, model, args in self.measured}

    @cached_property
    def device_name(self) -> tuple[str, str]:
        return device_name(self.device)

    @property
    def _timed(self) -> Timings:
        return Timings(self.timings, self.device_name[1] if self.timings else "")

    def to_time(self) -> list[Throughput]:
        """Return what must still be timed, including again for a claim (see ``Timings.missing``)."""
        return self._timed.missing(rows for claim, rows in claims.compared(self) if claim.metric == THROUGHPUT.name)

    def is_timed(self) -> bool:
        return not self.to_time()

    @property
    def rates(self) -> dict[str, list[float]]:
        """Label of each timed variant -> its images per second, round by round."""
        return self._timed.rates()

    @cached_property
    def timing_settings(self) -> dict[str, str]:
        """Label of each timed variant -> the device (see ``Timings.settings``)."""
        return self._timed.settings()

    @property
    def made_from(self) -> dict[str, str]:
        """Everything that the findings depend on, as name -> fingerprint."""
        return origin.dependencies(self)

    def scores(self, metric: str | None = None, network: str | None = None) -> dict[str, list[float]]:
        """Return the label of each trained variant -> its score in the metric's unit, seed by seed.

        Args:
            metric: Key in the record of a run; ``None`` for the main metric of the task.
            network: The detector or segmenter; ``None`` for classifiers.
        """
        metric = metric or self.main_metric.name
        return {
            learner.label: [record["values"][metric] for record in learner.records()]
            for learner in self.trained_variants
            if learner.network == network and all(metric in record["values"] for record in learner.records())
        }

    def trained_seeds(self) -> dict[str, list[bool]]:
        """Return for each trained classifier whether its runs learned anything (``claims.did_train``), seed by seed."""
        return {learner.label: learner.trained() for learner in self.trained_variants if learner.network is None}

    def default_jobs(self) -> int:
        return runner.default_jobs(self.device_name[0], self.profile)

    # Each of the following delegates to a module of its own.

    def check_variants(self) -> dict[str, str]:
        """Exclude variants that cannot be built before anything is trained (see ``runner.check_variants``)."""
        return runner.check_variants(self)

    def run(
        self,
        jobs: int | None = None,
        per_device: int | None = None,
        workers: int | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        """Train and time what is missing, with the arguments of ``runner.run``."""
        runner.run(self, jobs, per_device, workers, log)

    def evaluate(self, per_device: int | None, workers: int | None, log: Callable[[str], None]) -> None:
        """Evaluate the weights of files that have not been evaluated yet, with the arguments of ``run``."""
        runner.evaluate(self, per_device, workers, log)

    def time(self, log: Callable[[str], None] = print) -> None:
        """Time what is missing, with interleaved measurements, and store the results.

        Args:
            log: Called with a line when this waits for another process that is timing the same models.
        """
        from frepro.analysis import cost

        with ExitStack() as held:
            # In one order, so that no two processes wait for each other.
            for timing in sorted(self.to_time(), key=lambda timing: timing.measurement.key):
                held.enter_context(timing.measurement.lock(log))
            if to_time := self.to_time():  # another process may have timed them in the meantime
                cost.throughput(to_time)

    @cached_property
    def findings(self) -> list[Finding]:
        """Published and measured values (see ``findings.compute``)."""
        return findings.compute(self)

    def outcomes(self) -> list[Outcome]:
        """Return the outcome of each claim about the variants (see ``claims.outcomes``)."""
        return claims.outcomes(self)

    def provenance(self) -> dict[str, Any]:
        """Return every run and timing with its seed, values and origin (see ``origin.origin``)."""
        return origin.origin(self)

    def frame(self) -> Any:
        """Return the findings as a pandas DataFrame, with a row for each value of each variant."""
        import pandas as pd

        return pd.DataFrame([asdict(finding) for finding in self.findings])

    def write(self, output: str | None, **figures: Any) -> None:
        """Write findings, origin and the figures, given as name=figure, to a folder; ``None`` writes nothing."""
        origin.write(self, output, **figures)
