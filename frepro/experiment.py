"""An experiment: the variants of a published table, to be trained with several seeds, timed and counted.

A notebook's cells define one, once: ``frepro reproduce`` runs the same cells to tell what is still to do. Making one
imports no torch.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from frepro import papers, provenance, recipes, results
from frepro.claims import Outcome, did_train, paired
from frepro.data import Source, locate
from frepro.errors import FreproError, unknown
from frepro.progress import Progress
from frepro.runs import Run, Start, Throughput, code_of, ingredients

Variant = tuple[str, str, dict[str, Any]]

# Columns whose values are measured; a published column of another kind stays as it is printed.
MEASURED = ("params", "flops", "throughput", "top1")
UNITS = {"params": "M", "flops": "G", "throughput": "img/s", "top1": "%"}
# The task of a table by its data set, and the scores of each task that are shown on other data than that.
TASKS = {"COCO": "detection", "ADE20K": "segmentation"}
SHOWN = {
    "classification": ("top1",),
    "detection": ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"),
    "segmentation": ("miou", "aacc"),
}
DEVICES = ("auto", "cpu", "cuda")
# Said of a model that was timed after the others of its table, and not in turn with them.
LATER = ", in another session"
# timm builds these at their full sizes alone. A small one is our frame, which is the same, with their token mixers.
IN_OUR_FRAME = {
    "convformer_s18": ("spanetv2_s18_pure", {"mixers": ("conv",) * 4}),
    "caformer_s18": ("spanetv2_s18_pure", {"mixers": ("conv", "conv", "attention", "attention")}),
}
MOST_SEEDS = 1000  # more are a slip of the keyboard: each is a training run of every variant


@dataclass(frozen=True)
class Finding:
    """One published value and what was measured for it, in the unit of its column; none where there is no such value.

    Attributes:
        setting: Where the measured value comes from: a data set, or a device.
        spread: Standard deviation over seeds, or of the rounds of a timing.
        n: Seeds, or rounds.
        weights: File whose weights were evaluated, where nothing was trained here.
        untrained: How many of the seeds did not train, as ``claims.did_train`` has it; their scores are in the mean.
        problem: Why the variant cannot be built, where nothing of it could be measured.
    """

    group: str
    label: str
    model: str
    metric: str
    unit: str
    published: float | None
    measured: float | None = None
    spread: float | None = None
    n: int | None = None
    setting: str = ""
    weights: str = ""
    untrained: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Learner:
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

    def measurements(self) -> list[results.Measurement]:
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


@dataclass(frozen=True)
class Experiment:
    """The variants of one table.

    Args:
        paper, table: Which table; ``papers.load(paper).tables[table]``.
        variants: (label, model, model_args) in the order in which they are to stand. A variant whose model is a row of
            the table has that row's published values beside it; others stand for themselves.
        profile: "smoke", "demo" or "paper".
        seeds: One training run of each variant for each of them.
        models: Keep only the variants of these models; none for all.
        data: What to train on, as ``data.locate`` takes it; none for the embedded data.
        device: "auto", "cpu" or "cuda".
        trained: Train and time only the variants of these models, and count the others; none for all. Of a table of
            detectors or segmenters a mapping: network -> the models that are trained as its backbones, and none for
            nothing; all of its variants are counted, with and without the network, and timed as classifiers.
        sizes: Height and width of the images that such backbones are counted at; the networks at the first of them.
        images: Network -> another height and width that it is counted at.
        made_for: Pixels a side that filters, masks and position embeddings of ours are made for; none for ``sizes``.
        checkpoints: Weights by model as ``find_weights`` takes them: these are evaluated, and nothing is trained. Of a
            table of detectors or segmenters they are of whole networks, as our runs leave them, and go by
            <network>_<model>.
        backbones: The same for the weights that detectors and segmenters start from; "none" for random ones.
        claims: Claims beside the table's, of variants: ``better`` and ``worse`` are labels, and ``group`` is a network.
    """

    paper: str
    table: int
    variants: Sequence[Variant]
    profile: str = "smoke"
    seeds: Sequence[int] = (0,)
    models: Sequence[str] | None = None
    data: str | None = None
    device: str = "auto"
    trained: Sequence[str] | Mapping[str, Sequence[str]] | None = None
    sizes: Sequence[Sequence[int]] = ()
    images: Mapping[str, Sequence[int]] | None = None
    made_for: int | None = None
    checkpoints: Mapping[str, str] | str | None = None
    backbones: Mapping[str, str] | str | None = None
    claims: Sequence[papers.Claim] = ()
    recipe: recipes.Recipe = field(init=False)
    source: Source = field(init=False)

    def __post_init__(self) -> None:
        if self.table not in papers.load(self.paper).tables:
            raise unknown(f"table of {self.paper}", self.table, papers.load(self.paper).tables)
        source = locate(self.data, self.task) if isinstance(self.data, str | None) else None
        if source is None:
            raise FreproError(f"data is the name of a folder or nothing, not {self.data!r}")
        if self.published.is_of_backbones:
            self._check_networks()
        trains = self.trained != [] and not (self.published.is_of_backbones and not self.trained)
        if self.profile == "paper" and trains:
            self._check_paper(source)
        check_seeds(self.seeds)
        for name in ("models", "trained"):
            given = getattr(self, name)
            if name == "trained" and self.networks:
                continue
            if not isinstance(given, list | tuple | None) or not all(isinstance(each, str) for each in given or ()):
                raise FreproError(f"{name} are a list of names, or nothing for all, not {given!r}")
        check_sizes(self.sizes, self.made_for)
        check_images(self.images, self.networks)
        if self.device not in DEVICES:
            raise unknown("device", self.device, DEVICES)
        for kind, keys in (
            ("label", [label for label, *_ in self.variants]),
            ("model with the same arguments", [f"{model} {args}" for _, model, args in self.variants]),
        ):
            if doubled := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
                raise FreproError(f"two variants have the same {kind}: {doubled[0]}")
        known = [model for _, model, _ in self.variants]
        named = chain(*self.trained.values()) if isinstance(self.trained, Mapping) else self.trained or ()
        for model in [*(self.models or ()), *named]:
            if model not in known:
                raise unknown("model of this table", model, known)
        kept = tuple(variant for variant in self.variants if not self.models or variant[1] in self.models)
        object.__setattr__(self, "variants", kept)
        for _, model, _ in self.variants:
            check_model(model)
        object.__setattr__(self, "recipe", recipes.load(self.paper, self.profile))
        object.__setattr__(self, "source", source)
        if trains:
            self._check_weights()
        labels = [label for label, *_ in self.variants]
        for claim in self.claims:
            for label in (claim.better, claim.worse):
                if label not in labels:
                    raise unknown("variant in a claim", label, labels)

    def with_variant(
        self, label: str, model: str, claim: str | None = None, over: str | None = None, **model_args: Any
    ) -> "Experiment":
        """Return this experiment with one more variant, which is trained, timed and counted as the others are.

        Args:
            claim: What the variant is there to show, as a sentence: that it has a higher score than ``over``.
            over: Label of the variant that it is compared with; ``None`` for the first.
            **model_args: Arguments of the model. Activations and norms are given by name, as ``act_layer="tanh"``.

        Raises:
            FreproError: There is no such model or no such label, or a variant of these is there already.
        """
        trained = self.trained
        if isinstance(trained, Mapping):
            trained = {network: [*dict.fromkeys([*models, model])] for network, models in trained.items()}
        elif trained:  # an experiment that trains nothing counts the new variant, too, and no more
            trained = [*dict.fromkeys([*trained, model])]
        claims = [*self.claims]
        if claim is not None:
            metric, network = SHOWN[self.task][0], next(iter(self.trained or ()), None) if self.networks else None
            claims.append(papers.Claim(label, over or self.variants[0][0], claim, metric, network))
        return replace(
            self,
            variants=[*self.variants, (label, model, model_args)],
            models=[*self.models, model] if self.models else self.models,
            trained=trained,
            claims=claims,
        )

    @property
    def published(self) -> papers.Table:
        return papers.load(self.paper).tables[self.table]

    def _check_networks(self) -> None:
        given = {} if self.trained is None else self.trained
        if not isinstance(given, Mapping):
            raise FreproError(
                f"Table {self.table} of {self.paper} is about {self.published.dataset}: trained names models for each "
                f"of {', '.join(self.networks)}, as {{{next(iter(self.networks))!r}: ['spanet_small']}}"
            )
        for network in given:
            if network not in self.networks:
                raise unknown("network of this table", network, self.networks)

    def _check_paper(self, source: Source) -> None:
        if source.embedded:
            raise FreproError(
                "profile paper needs the real data set: add DATA=/path/to/it, for ImageNet a folder with train/ and "
                "val/, or use profile demo, which trains on embedded data"
            )
        if self.networks and self.backbones is None and self.checkpoints is None:
            raise FreproError(
                "profile paper trains from backbones that were trained on ImageNet: add BACKBONES=/folder with files "
                "like spanet_small.pth, or BACKBONES=none for random weights"
            )

    def _check_weights(self) -> None:
        if self.checkpoints is not None:
            if not self.evaluated:
                names = [f"{each.network}_{each.model}" if each.network else each.model for each in self.learners]
                given = self.checkpoints if isinstance(self.checkpoints, str) else ", ".join(self.checkpoints)
                raise FreproError(f"no weights of this table at {given}: it takes files like {names[0]}.pth")
        elif self.networks and self.backbones not in (None, "none"):
            for learner in self.learners:
                if learner.runs[0].start is None:
                    given = self.backbones if isinstance(self.backbones, str) else "what is given"
                    model = learner.model
                    raise FreproError(f"no weights of {model} in {given}: add {model}.pth, or leave the model out")

    @property
    def task(self) -> str:
        return TASKS.get(self.published.dataset, "classification")

    @cached_property
    def networks(self) -> dict[str, recipes.Recipe]:
        """The detectors or segmenters that the table is about -> recipe; empty for a table of classifiers."""
        if not self.published.is_of_backbones:
            return {}
        return recipes.of_wholes(self.paper, self.task, self.profile)

    @cached_property
    def measured(self) -> tuple[Variant, ...]:
        """The variants that are timed."""
        found = [variant for variant in self.variants if variant[0] not in self.broken]
        if self.networks or self.trained is None:
            return tuple(found)
        return tuple(variant for variant in found if variant[1] in self.trained)

    @cached_property
    def learners(self) -> list[Learner]:
        """What is trained, the variants that are timed, or the networks on those that are named; of given weights
        whatever has a file.
        """
        networks = dict.fromkeys([*(self.trained or ()), *self.networks]) if self.networks else [None]
        variants = [variant for variant in self.variants if variant[0] not in self.broken]
        every = [self._learner(variant, network) for network in networks for variant in variants]
        return [each for each in every if each.checkpoint or self._is_trained(each.model, each.network)]

    @cached_property
    def broken(self) -> dict[str, str]:
        """Label -> reason of the variants that cannot be built, as far as ``check_variants`` has found out."""
        return {}

    def check_variants(self) -> dict[str, str]:
        """Build on the meta device, before anything is trained, what is trained or has arguments of its own.

        A variant that cannot be built is left out from here on; the others are made. Nothing is allocated or computed.

        Returns:
            Label of each variant that cannot be built -> why.
        """
        from frepro.analysis import cost

        trained = {learner.label: learner.runs[0] for learner in self.learners}
        found = {}
        for label, model, args in self.variants:
            if args or label in trained:
                run = trained.get(label)
                small = (run.model, run.recipe.img_size, run.all_model_args) if run and not run.recipe.network else None
                if problem := cost.obstacle(model, args, small):
                    found[label] = problem
        if found:
            for name in ("measured", "learners", "runs", "evaluated", "timings", "timing_settings", "findings"):
                self.__dict__.pop(name, None)  # were worked out with these variants in
            self.__dict__["broken"] = found
        return found

    def _is_trained(self, model: str, network: str | None) -> bool:
        if network is None:
            return self.trained is None or model in self.trained
        return model in (self.trained or {}).get(network, ())

    def _learner(self, variant: Variant, network: str | None) -> Learner:
        label, model, args = variant
        recipe = self.networks[network] if network else self.recipe
        start = find_weights(self.backbones, model) if network and self.backbones != "none" else None
        built, mixers = built_as(model, self.profile)
        runs = [Run(built, recipe, self.profile, self.source, seed, {**mixers, **args}, start) for seed in self.seeds]
        checkpoint = find_weights(self.checkpoints, f"{network}_{model}" if network else model)
        return Learner(label, model, args, network, runs, checkpoint)

    @cached_property
    def runs(self) -> list[Run]:
        """Every training run, one seed of all variants after the other, so that early results compare all variants."""
        if self.checkpoints is not None:
            return []
        return [run for of_seed in zip(*(learner.runs for learner in self.learners), strict=True) for run in of_seed]

    def to_train(self) -> list[Run]:
        return [run for run in self.runs if run.measurement.record() is None]

    @cached_property
    def evaluated(self) -> list[Learner]:
        """The learners whose weights come from files."""
        return [learner for learner in self.learners if learner.checkpoint]

    @cached_property
    def timings(self) -> dict[str, Throughput]:
        """Label of each variant that is timed -> its throughput at full size on this device."""
        if not self.measured:
            return {}
        device, name = self._device
        group, benchmark = f"{self.paper}/table_{self.table}", self.recipe.benchmark
        return {label: Throughput(group, model, args, benchmark, device, name) for label, model, args in self.measured}

    @cached_property
    def _device(self) -> tuple[str, str]:
        return device_name(self.device)

    def to_time(self) -> list[Throughput]:
        """Return what is still to be timed: variants without a record, and pairs that a claim compares and that did
        not take turns in one session, without which their difference would be that of two states of the machine.
        """
        records = {label: timing.measurement.record() for label, timing in self.timings.items()}
        missing = {label for label, record in records.items() if record is None}
        for claim, rows in self._claims():
            if claim.metric == "throughput" and set(rows) <= set(records):
                sessions = {record and record["values"]["session"] for record in map(records.get, rows)}
                missing |= set(rows) if len(sessions) > 1 else set()
        return [timing for label, timing in self.timings.items() if label in missing]

    def is_timed(self) -> bool:
        return not self.to_time()

    @property
    def rates(self) -> dict[str, list[float]]:
        """Label of each variant that is timed -> its images per second, round by round."""
        records = {label: timing.measurement.record() for label, timing in self.timings.items()}
        return {label: record["values"]["images_per_second"] for label, record in records.items() if record}

    @cached_property
    def timing_settings(self) -> dict[str, str]:
        """Label of each variant that is timed -> on what; it says which did not take turns with most of the others."""
        records = {label: timing.measurement.record() for label, timing in self.timings.items()}
        sessions = [record["values"]["session"] for record in records.values() if record]
        main = max(sessions, key=sessions.count, default=None)
        return {
            label: self._device[1] + ("" if record["values"]["session"] == main else LATER)
            for label, record in records.items()
            if record
        }

    @property
    def made_from(self) -> dict[str, str]:
        """All that the findings rest on, by name, each with a fingerprint."""
        models = [model for _, model, _ in self.variants]
        parts = code_of(["frepro.experiment", "frepro.analysis.cost"], models)
        if self.runs:
            parts |= ingredients(self.runs, self.paper)
        for learner in self.evaluated:
            parts |= ingredients(learner.runs, self.paper)
            parts[f"checkpoint of {learner.label}"] = learner.checkpoint.fingerprint
        if self.measured:
            parts[f"benchmark of recipe {self.paper}"] = provenance.sha256(results.canonical(self.recipe.benchmark))
            parts["device"] = provenance.sha256(self._device[1])
            parts["timings"] = provenance.sha256(results.canonical(self.rates))
        return parts

    def run(
        self,
        jobs: int | None = None,
        per_device: int | None = None,
        workers: int | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        """Train and time what has not been yet.

        Args:
            jobs: Training runs at a time; none for one a core on a CPU (small models gain nothing from more threads),
                one on a GPU.
            per_device: Most samples in a forward pass; none for the recipe's whole batch.
            workers: Processes that load data for each run; none for as many as help.
            log: Called with a line for each run that ends.
        """
        if self.to_train() or self.to_time():
            for label, problem in self.check_variants().items():
                log(f"{label} is left out: {problem}")
        train_missing(self.to_train(), self.device, jobs or self.default_jobs(), per_device, workers, log)
        self.evaluate(per_device, workers, log)
        if to_time := self.to_time():
            self.time()
            log(f"timed {len(to_time)} models on {self._device[1]}")

    def evaluate(self, per_device: int | None, workers: int | None, log: Callable[[str], None]) -> None:
        """Evaluate the weights of files that have not been yet; arguments as for ``run``."""
        for learner in self.evaluated:
            if not learner.records():
                from frepro import evaluate, parallel
                from frepro.train import Execution

                if workers is None:
                    workers = parallel.loading_processes(self.source.embedded, jobs=1)
                execution = Execution(self._device[0], per_device, workers)
                evaluate.reevaluate(learner.runs[0], learner.checkpoint, execution)
                log(f"evaluated {learner.checkpoint.file}")

    def time(self) -> None:
        """Time in turn what has not been timed, and store what comes of it."""
        from frepro.analysis import cost

        cost.throughput(self.to_time())

    def default_jobs(self) -> int:
        return default_jobs(self._device[0], self.profile)

    @cached_property
    def findings(self) -> list[Finding]:
        """All there is to tell, in order of the variants; what was not measured is left empty.

        Raises:
            FreproError: Something is still to be run.
        """
        if self.to_train() or not self.is_timed() or not all(learner.records() for learner in self.evaluated):
            raise FreproError("not everything has been measured: call run() first")
        rates = self.rates
        found = []
        for variant in self.variants:
            if variant[0] in self.broken:
                problem = {"problem": self.broken[variant[0]]}
                found += [self._finding(*variant, metric, problem) for metric in MEASURED]
            elif self.networks:
                found += self._of_backbone(*variant, rates.get(variant[0]))
            else:
                found += self._of_classifier(*variant, rates.get(variant[0]))
        return found

    def _of_classifier(self, label: str, model: str, args: dict[str, Any], rates: list[float] | None) -> list[Finding]:
        from frepro.analysis import cost

        counted = cost.count(model, **args)
        values: dict[str, dict[str, Any]] = {
            "params": {"measured": counted["params"] / 1e6},
            "flops": {"measured": counted["macs"] / 1e9},
        }
        if rates:
            values["throughput"] = {**spread_of(rates, median), "setting": self.timing_settings[label]}
        for learner in self.learners:
            if learner.label == label and (scored := self._scored(learner, "top1")):
                values[self.own_metric] = scored
        metrics = dict.fromkeys([*MEASURED, *values])
        return [self._finding(label, model, args, key, values.get(key, {})) for key in metrics]

    def _scored(self, learner: Learner, metric: str) -> dict[str, Any]:
        """A score of a learner as a finding has it; empty where there is none."""
        values = [record["values"][metric] for record in learner.records() if metric in record["values"]]
        if not values or (self.checkpoints is not None and learner.checkpoint is None):
            return {}
        weights = learner.checkpoint.file.name if learner.checkpoint else ""
        untrained = len(learner.untrained())
        return {**spread_of(values, mean), "setting": self.source.name, "weights": weights, "untrained": untrained}

    def _of_backbone(self, label: str, model: str, args: dict[str, Any], rates: list[float] | None) -> list[Finding]:
        """The whole networks as printed, counted and scored; the backbone alone; and scores on data at hand."""
        from frepro.analysis import cost

        table, found = self.published, []
        counted_at = self.networks if self.sizes else ()
        images = {network: tuple((self.images or {}).get(network, self.sizes[0])) for network in counted_at}
        wholes = {
            network: cost.count_whole(network, model, size, self.made_for, **args) for network, size in images.items()
        }
        learners = {learner.network: learner for learner in self.learners if learner.label == label}
        for row in table.rows:
            if row.model != model or args:
                continue
            for column in table.columns:
                if column.decimals is None:
                    continue
                network, metric = self._meant(row, column)
                measured = {}
                if metric in ("params", "flops") and network in wholes:
                    scale = {"params": 1e6, "flops": 1e9}[metric]
                    counted = wholes[network]["macs" if metric == "flops" else "params"]
                    measured = {"measured": counted / scale, "setting": pixels(images[network])}
                elif self.is_published_setting and network in learners:
                    measured = self._scored(learners[network], metric)
                printed = table.value(row, column.key)
                found.append(Finding(table.group(row), label, model, column.key, column.unit, printed, **measured))
        for size in self.sizes:
            counted = cost.count_backbone(model, tuple(size), self.made_for, **args)
            for metric, unit, value in (
                ("backbone_params", "M", counted["params"] / 1e6),
                ("backbone_flops", "G", counted["macs"] / 1e9),
            ):
                found.append(Finding("", label, model, metric, unit, None, value, setting=pixels(size)))
        if rates:
            spread = {**spread_of(rates, median), "setting": self.timing_settings[label]}
            found.append(Finding("", label, model, "throughput", UNITS["throughput"], None, **spread))
        if not self.is_published_setting:
            for network, learner in learners.items():
                for metric in SHOWN[self.task]:
                    if scored := self._scored(learner, metric):
                        key = f"{self.source.name}_{metric}"
                        found.append(Finding(recipes.NETWORKS[network], label, model, key, "%", None, **scored))
        return found

    def printed(self, network: str, metric: str) -> dict[str, float]:
        """Label of each variant -> what is printed of it in a detector or segmenter, by metrics of a run's record."""
        table = self.published
        return {
            label: table.value(row, column.key)
            for label, model, args in self.variants
            for row in table.rows
            for column in table.columns
            if row.model == model and not args and column.decimals is not None
            if self._meant(row, column) == (network, metric) and table.value(row, column.key) is not None
        }

    def _meant(self, row: papers.Row, column: papers.Column) -> tuple[str, str]:
        """The network that a printed value is of, and its metric as a run's record has it.

        In a table without sections a network's columns begin with its name, and "retinanet_ap" is a box AP.
        """
        if group := self.published.group(row):
            return next(name for name in self.networks if recipes.NETWORKS[name] == group), column.key
        for network in self.networks:
            if column.key.startswith(f"{network}_"):
                metric = column.key.removeprefix(f"{network}_")
                return network, f"box_{metric}" if metric.startswith("ap") else metric
        named = {name for name in self.networks for each in self.published.columns if each.key.startswith(f"{name}_")}
        return next(name for name in self.networks if name not in named), column.key

    @property
    def own_metric(self) -> str:
        """Metric of the score on the data at hand: the table's own if they are its data set, else one apart."""
        metric = SHOWN[self.task][0]
        return metric if self.is_published_setting else f"{self.source.name}_{metric}"

    @property
    def is_published_setting(self) -> bool:
        """Whether the published recipe runs on the published data set, so that accuracies may stand side by side."""
        return self.profile == "paper" and self.source.name == self.published.dataset

    @property
    def own_title(self) -> str:
        names = {"classification": "top-1", "detection": "box AP", "segmentation": "mIoU"}
        return f"{self.source.name} test {names[self.task]}"

    def scores(self, metric: str | None = None, network: str | None = None) -> dict[str, list[float]]:
        """Label of each variant that is trained -> a score of it in percent, seed by seed.

        Args:
            metric: As a run's record has it; none for the task's own.
            network: Of which detector or segmenter; none for classifiers.
        """
        metric = metric or SHOWN[self.task][0]
        return {
            learner.label: [record["values"][metric] for record in learner.records()]
            for learner in self.learners
            if learner.network == network and all(metric in record["values"] for record in learner.records())
        }

    def trained_seeds(self) -> dict[str, list[bool]]:
        """Return for each variant of a classifier that is trained whether its runs learnt anything, seed by seed."""
        return {learner.label: learner.trained() for learner in self.learners if learner.network is None}

    def _claims(self) -> list[tuple[papers.Claim, tuple[str, str]]]:
        """Return the claims of the table, then those of variants, each with the labels of its two rows.

        Of the table's, those are left out that are about a model which ``models`` leaves out.
        """
        labels = {model: label for label, model, args in self.variants if not args}
        published = []
        for claim in self.published.claims:
            pair = (claim.better, claim.worse)
            if not self.models or set(pair) <= set(self.models):
                better, worse = (labels.get(model) or self._printed_label(model, claim.group) for model in pair)
                published.append((claim, (better, worse)))
        return [*published, *((claim, (claim.better, claim.worse)) for claim in self.claims)]

    def outcomes(self) -> list[Outcome]:
        """Return every claim about the table's variants, each tested by itself on what was measured here."""
        found = []
        for claim, rows in self._claims():
            is_speed = claim.metric == "throughput"
            unit = UNITS["throughput"] if is_speed else "points"
            published = self._published_difference(claim)
            values = self.rates if is_speed else self._claimed(claim)
            if not all(values.get(label) for label in rows):
                found.append(Outcome(claim, rows, unit, published))
                continue
            better, worse = (values[label] for label in rows)
            setting = self._device[1] if is_speed else self.source.name
            untrained = () if is_speed else self._untrained(claim, rows)
            found.append(Outcome(claim, rows, unit, published, *paired(better, worse), len(better), setting, untrained))
        return found

    def _printed_label(self, model: str, group: str | None) -> str:
        return str(self.published.value(self.published.row(model, group), "label"))

    def _untrained(self, claim: papers.Claim, rows: Sequence[str]) -> tuple[str, ...]:
        """Return the runs behind a claim that did not train."""
        network = self._claimed_network(claim)[0]
        learners = [each for each in self.learners if each.label in rows and each.network == network]
        return tuple(run for learner in learners for run in learner.untrained())

    def _claimed_network(self, claim: papers.Claim) -> tuple[str | None, str]:
        """Return the network and the metric of a run's record that a claim is about."""
        if not self.networks or claim in self.claims:
            return claim.group, claim.metric
        return self._meant(self.published.row(claim.better, claim.group), self.published.column(claim.metric))

    def _claimed(self, claim: papers.Claim) -> dict[str, list[float]]:
        """Return the scores that a claim is about."""
        network, metric = self._claimed_network(claim)
        return self.scores(metric, network)

    def _published_difference(self, claim: papers.Claim) -> float | None:
        if claim in self.claims or self.published.column(claim.metric) is None:
            return None
        rows = [self.published.row(model, claim.group) for model in (claim.better, claim.worse)]
        better, worse = (self.published.value(row, claim.metric) for row in rows)
        return None if better is None or worse is None else better - worse

    def _group(self, model: str) -> str:
        row = self.published.row(model)
        return self.published.group(row) if row else ""

    def _finding(self, label: str, model: str, args: dict[str, Any], key: str, measured: dict[str, Any]) -> Finding:
        row, column = self.published.row(model), self.published.column("top1" if key == self.own_metric else key)
        published = self.published.value(row, key) if row and self.published.column(key) and not args else None
        unit = column.unit if column else UNITS.get(key, UNITS["top1"])
        return Finding(self._group(model), label, model, key, unit, published, **measured)

    def provenance(self) -> dict[str, Any]:
        """Every run with its seed, score and origin; the timing with all its rounds, if anything was timed."""
        records = [(run, run.measurement.record(), None) for run in self.runs]
        records += [(each.runs[0], each.records()[0], each.checkpoint.file.name) for each in self.evaluated]
        return {
            "paper": self.paper,
            "table": self.table,
            "profile": self.profile,
            "data": asdict(self.source) | {"root": None, "folders": {}},
            "recipe": {name: asdict(recipe) for name, recipe in self.networks.items()} or asdict(self.recipe),
            "runs": [
                {
                    "key": record["key"],
                    "model": run.model,
                    "model_args": run.all_model_args,
                    "network": run.recipe.network,
                    "seed": run.seed,
                    "weights": weights,
                    "values": record["values"],
                    "seconds": record["seconds"],
                    "origin": _origin(record),
                }
                for run, record, weights in records
            ],
            "timings": [
                {
                    "key": record["key"],
                    "label": label,
                    "model": timing.model,
                    "model_args": timing.model_args,
                    "benchmark": asdict(timing.benchmark),
                    "values": record["values"],
                    "seconds": record["seconds"],
                    "origin": _origin(record),
                }
                for label, timing in self.timings.items()
                if (record := timing.measurement.record())
            ],
        }

    def frame(self) -> Any:
        """The findings as a pandas DataFrame, a line for each value of each variant."""
        import pandas as pd

        return pd.DataFrame([asdict(finding) for finding in self.findings])

    def write(self, output: str | None, **figures: Any) -> None:
        """Write findings.csv, origin.json and the figures given as name=figure into a folder; with none, nothing."""
        if output is None:
            return
        folder = Path(output)
        results.write_text(folder / "findings.csv", to_csv(self.findings))
        results.write_text(
            folder / "origin.json", json.dumps(self.provenance(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        )
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png")


def built_as(model: str, profile: str) -> tuple[str, dict[str, Any]]:
    """Return the model that is built for a variant, and arguments of it: timm's MetaFormers are small in our frame."""
    return (model, {}) if profile == "paper" else IN_OUR_FRAME.get(model, (model, {}))


def train_missing(
    runs: Sequence[Run],
    device: str,
    jobs: int,
    per_device: int | None,
    workers: int | None,
    log: Callable[[str], None],
) -> None:
    """Train runs that are not in the store, as ``Experiment.run`` says; the first that fails ends it."""
    if not runs:
        return
    from frepro import parallel

    with Progress({("run", run.measurement.key): run.seconds for run in runs}, {"run": jobs}, log) as progress:
        for run, found in parallel.train(runs, device, jobs, per_device, workers):
            if isinstance(found, parallel.Failure):
                raise found.error()
            progress.done(("run", run.measurement.key), found["seconds"], parallel.told(run, found))


def default_jobs(device: str, profile: str) -> int:
    """One run a core on a CPU; one at a time on a GPU, and in smoke, whose runs end before a process is up."""
    return provenance.machine()["cores"] if device == "cpu" and profile != "smoke" else 1


def find_weights(given: Mapping[str, str] | str | None, name: str) -> Start | None:
    """The weights of that name; none where there are none.

    Args:
        given: Files by name; or one file, or a folder of files, that have the name's, as spanet_small.safetensors or
            SPANet-small.pth.

    Raises:
        FreproError: There is no such file or folder.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        return Start.of(Path(given[name])) if name in given else None
    path = Path(given)
    if not path.exists():
        raise FreproError(f"no weights at {path}: give a file or folder of files like {name}.safetensors or {name}.pth")
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return next((Start.of(file) for file in files if named(file) == name), None)


def named(file: Path) -> str:
    """The name that a file of weights goes by; empty for another kind of file."""
    return file.stem.lower().replace("-", "_") if file.suffix in (".safetensors", ".pth", ".pt") else ""


def check_seeds(seeds: Any) -> None:
    found = seeds if isinstance(seeds, list | tuple) else []
    if not found or not all(type(s) is int and s >= 0 for s in found) or len(set(found)) != len(found):
        raise FreproError(f"seeds are a list of different whole numbers, 0 or more, not {seeds!r}")
    if len(found) > MOST_SEEDS:
        raise FreproError(
            f"{len(found):,} seeds are too many, each a training run of every variant: use {MOST_SEEDS:,} or fewer"
        )


def device_name(asked: str) -> tuple[str, str]:
    """The device to compute on, "cpu" or "cuda", and its name, for one of ``DEVICES``."""
    if asked not in DEVICES:
        raise unknown("device", asked, DEVICES)
    # A machine without a driver (NVIDIA's, WSL's, AMD's) needs no torch to know that it has no GPU.
    if asked != "cpu" and any(Path(f"/dev/{name}").exists() for name in ("nvidiactl", "dxg", "kfd")):
        import torch

        if torch.cuda.is_available():
            return "cuda", torch.cuda.get_device_name()
    if asked == "cuda":
        raise FreproError("no CUDA device here: use device cpu, or install a driver that torch can use")
    machine = provenance.machine()
    return "cpu", f"{machine['cpu']}, {machine['cores']} cores"


def spread_of(values: Sequence[float], centre: Callable[[Sequence[float]], float]) -> dict[str, Any]:
    """The centre of some values, their standard deviation (none for a single one) and their number."""
    return {"measured": centre(values), "spread": stdev(values) if len(values) > 1 else None, "n": len(values)}


def to_csv(findings: Sequence[Finding]) -> str:
    """Tidy CSV: a line for each value of each variant, unrounded; empty where nothing was published or measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.name for column in fields(Finding))
    writer.writerows(astuple(finding) for finding in findings)
    return text.getvalue()


def from_csv(text: str) -> list[Finding]:
    """The findings that ``to_csv`` wrote."""

    def number(cell: str) -> float | None:
        return float(cell) if cell else None

    return [
        Finding(
            **{
                **row,
                **{name: number(row[name]) for name in ("published", "measured", "spread")},
                "n": int(row["n"]) if row["n"] else None,
                "untrained": int(row["untrained"]),
            }
        )
        for row in csv.DictReader(io.StringIO(text))
    ]


def pixels(size: Sequence[int]) -> str:
    """Height and width of images, as a setting that something was counted in."""
    height, width = size
    return f"{height} × {width} pixels"


def check_sizes(sizes: Any, made_for: Any) -> None:
    """Raise for what is no list of heights and widths, or no number of pixels."""

    def is_length(value: Any) -> bool:
        return type(value) is int and value > 0

    pairs = sizes if isinstance(sizes, list | tuple) else [()]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 and all(map(is_length, pair)) for pair in pairs):
        raise FreproError(f"sizes are a list of heights and widths in pixels, as [[512, 512]], not {sizes!r}")
    if made_for is not None and not is_length(made_for):
        raise FreproError(f"made_for is a number of pixels, or nothing for those of the images, not {made_for!r}")


def check_images(images: Any, networks: Sequence[str]) -> None:
    """Raise for what is no mapping of some networks to a height and width each."""
    if not isinstance(images, Mapping | None):
        raise FreproError(
            f"images name a height and width for a network, as {{'upernet': [512, 2048]}}, not {images!r}"
        )
    for network, size in (images or {}).items():
        if network not in networks:
            raise unknown("network of this table", network, networks)
        check_sizes([size], None)


def check_model(name: str) -> None:
    """Raise for a name that neither frepro nor timm knows; timm is imported only for names that are not ours."""
    own = provenance.own_models()
    if name in own:
        return
    import timm

    if not timm.is_model(name):
        raise unknown("model", name, [*own, *timm.list_models()])


def _origin(record: dict[str, Any]) -> dict[str, Any]:
    return {"code": record["code"], **record["provenance"]}
