"""An experiment: the variants of a published table, to be trained with several seeds, timed and counted.

A notebook makes one from its parameters and its list of variants, and shows what it found; ``frepro reproduce`` makes
the same one to tell what is still to do. Making one imports no torch.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from frepro import papers, provenance, recipes, results
from frepro.data import Source, locate
from frepro.errors import FreproError, unknown
from frepro.runs import Run, Throughput, model_code

Variant = tuple[str, str, dict[str, Any]]

# Columns whose values are measured; a published column of another kind stays as it is printed.
MEASURED = ("params", "flops", "throughput", "top1")
UNITS = {"params": "M", "flops": "G", "throughput": "img/s", "top1": "%"}
DEVICES = ("auto", "cpu", "cuda")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Finding:
    """One published value and what was measured for it, in the unit of its column; none where there is no such value.

    Attributes:
        setting: Where the measured value comes from: a data set, or a device.
        spread: Standard deviation over seeds, or of the rounds of a timing.
        n: Seeds, or rounds.
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


@dataclass(frozen=True)
class Outcome:
    """A claim of a table, tested on what was measured here.

    Attributes:
        published: Difference of the two printed values; none where one is not printed.
        measured: Mean over the pairs of (better - worse), a pair being runs of one seed or timings of
            one round.
        low, high: Student's t interval of the mean; none for a single pair.
        n: Pairs.
        setting: As in ``Finding``.
    """

    claim: papers.Claim
    unit: str
    published: float | None
    measured: float
    low: float | None
    high: float | None
    n: int
    setting: str

    @property
    def verdict(self) -> str:
        return verdict(self.low, self.high)


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
        trained: Train and time only the variants of these models, and count the others; none for all.
    """

    paper: str
    table: int
    variants: Sequence[Variant]
    profile: str = "smoke"
    seeds: Sequence[int] = (0,)
    models: Sequence[str] | None = None
    data: str | None = None
    device: str = "auto"
    trained: Sequence[str] | None = None
    recipe: recipes.Recipe = field(init=False)
    source: Source = field(init=False)

    def __post_init__(self) -> None:
        if self.table not in papers.load(self.paper).tables:
            raise unknown(f"table of {self.paper}", self.table, papers.load(self.paper).tables)
        source = locate(self.data) if isinstance(self.data, str | None) else None
        if source is None:
            raise FreproError(f"data is the name of a folder or nothing, not {self.data!r}")
        if self.profile == "paper" and source.embedded and self.trained != []:
            raise FreproError(
                "profile paper needs the real data set: add DATA=/path/to/imagenet (a folder with train/ and val/), "
                "or use profile demo, which trains on embedded data"
            )
        check_seeds(self.seeds)
        for name in ("models", "trained"):
            if not isinstance(getattr(self, name), list | tuple | None):
                raise FreproError(f"{name} are a list of names, or nothing for all, not {getattr(self, name)!r}")
        if self.device not in DEVICES:
            raise unknown("device", self.device, DEVICES)
        for kind, keys in (
            ("label", [label for label, *_ in self.variants]),
            ("model with the same arguments", [f"{model} {args}" for _, model, args in self.variants]),
        ):
            if doubled := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
                raise FreproError(f"two variants have the same {kind}: {doubled[0]}")
        known = [model for _, model, _ in self.variants]
        for model in [*(self.models or ()), *(self.trained or ())]:
            if model not in known:
                raise unknown("model of this table", model, known)
        kept = tuple(variant for variant in self.variants if not self.models or variant[1] in self.models)
        object.__setattr__(self, "variants", kept)
        for _, model, _ in self.variants:
            check_model(model)
        object.__setattr__(self, "recipe", recipes.load(self.paper, self.profile))
        object.__setattr__(self, "source", source)

    @property
    def published(self) -> papers.Table:
        return papers.load(self.paper).tables[self.table]

    @cached_property
    def measured(self) -> tuple[Variant, ...]:
        """The variants that are trained and timed."""
        return tuple(variant for variant in self.variants if self.trained is None or variant[1] in self.trained)

    @cached_property
    def runs(self) -> list[Run]:
        """Every training run, one seed of all variants after the other, so that early results compare all variants."""
        return [
            Run(model, self.recipe, self.profile, self.source, seed, args)
            for seed in self.seeds
            for _, model, args in self.measured
        ]

    def to_train(self) -> list[Run]:
        return [run for run in self.runs if run.measurement.record() is None]

    @cached_property
    def timing(self) -> Throughput:
        """Throughput of the variants at full size on this device."""
        models = tuple((model, tuple(sorted(args.items()))) for _, model, args in self.measured)
        device, name = self._device
        return Throughput(models, self.recipe.benchmark, device, name)

    @cached_property
    def _device(self) -> tuple[str, str]:
        return device_name(self.device)

    def is_timed(self) -> bool:
        return not self.measured or self.timing.measurement.record() is not None

    @property
    def rates(self) -> dict[str, list[float]]:
        """Label of each variant that is timed -> its images per second, round by round."""
        if not self.measured:
            return {}
        rates = self.timing.measurement.record()["values"]["images_per_second"]
        return {label: rate for (label, *_), rate in zip(self.measured, rates, strict=True)}

    @property
    def made_from(self) -> list[str]:
        """Fingerprints of all that the findings rest on: runs, timing, and the models that are only counted."""
        measurements = [run.measurement for run in self.runs]
        measurements += [self.timing.measurement] if self.measured else []
        parts = [part for measurement in measurements for part in (measurement.key, measurement.code)]
        return parts + [model_code("frepro.analysis.cost", model) for _, model, _ in self.variants]

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
        train_missing(self.to_train(), self.device, jobs or self.default_jobs(), per_device, workers, log)
        if not self.is_timed():
            from frepro.analysis import cost

            cost.throughput(self.timing)
            log(f"timed {len(self.measured)} models on {self.timing.name}")

    def default_jobs(self) -> int:
        return default_jobs(self._device[0], self.profile)

    @cached_property
    def findings(self) -> list[Finding]:
        """All there is to tell, in order of the variants; what was not measured is left empty.

        Raises:
            FreproError: Something is still to be run.
        """
        if self.to_train() or not self.is_timed():
            raise FreproError("not everything has been measured: call run() first")
        from frepro.analysis import cost

        rates, scores = self.rates, self.scores()
        found = []
        for label, model, args in self.variants:
            counted = cost.count(model, **args)
            values: dict[str, dict[str, Any]] = {
                "params": {"measured": counted["params"] / 1e6},
                "flops": {"measured": counted["macs"] / 1e9},
            }
            if label in scores:
                values["throughput"] = {**spread_of(rates[label], median), "setting": self.timing.name}
                values[self.own_metric] = {**spread_of(scores[label], mean), "setting": self.source.name}
            metrics = dict.fromkeys([*MEASURED, *values])
            found += [self._finding(label, model, args, key, values.get(key, {})) for key in metrics]
        return found

    @property
    def own_metric(self) -> str:
        """Metric of the accuracy on the data at hand: the table's own if they are its data set, else one apart."""
        return "top1" if self.is_published_setting else f"{self.source.name}_top1"

    @property
    def is_published_setting(self) -> bool:
        """Whether the published recipe runs on the published data set, so that accuracies may stand side by side."""
        return self.profile == "paper" and self.source.name == self.published.dataset

    @property
    def own_title(self) -> str:
        return f"{self.source.name} test top-1"

    def scores(self) -> dict[str, list[float]]:
        """Label of each variant that is trained -> its test top-1 in percent, seed by seed."""
        return {
            label: [
                run.measurement.record()["values"]["top1"]
                for run in self.runs
                if (run.model, run.model_args) == (model, args)
            ]
            for label, model, args in self.measured
        }

    def outcomes(self) -> list[Outcome]:
        """The claims of the table whose two models are both measured here, each tested by itself."""
        labels = {model: label for label, model, args in self.measured if not args}
        values = {"top1": self.scores(), "throughput": self.rates}
        settings = {"top1": self.source.name, "throughput": self.timing.name}
        found = []
        for claim in self.published.claims:
            if claim.better not in labels or claim.worse not in labels:
                continue
            pair = [values[claim.metric][labels[model]] for model in (claim.better, claim.worse)]
            found.append(
                Outcome(
                    claim,
                    "points" if claim.metric == "top1" else UNITS[claim.metric],
                    self._published_difference(claim),
                    *paired(*pair),
                    n=len(pair[0]),
                    setting=settings[claim.metric],
                )
            )
        return found

    def _published_difference(self, claim: papers.Claim) -> float | None:
        if self.published.column(claim.metric) is None:
            return None
        rows = [self.published.row(model) for model in (claim.better, claim.worse)]
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
        records = [(run, run.measurement.record()) for run in self.runs]
        timing = self.timing.measurement.record() if self.measured else None
        return {
            "paper": self.paper,
            "table": self.table,
            "profile": self.profile,
            "data": asdict(self.source) | {"root": None, "folders": {}},
            "recipe": asdict(self.recipe),
            "runs": [
                {
                    "key": record["key"],
                    "model": run.model,
                    "model_args": run.all_model_args,
                    "seed": run.seed,
                    "values": record["values"],
                    "seconds": record["seconds"],
                    "origin": _origin(record),
                }
                for run, record in records
            ],
            "timing": timing
            and {
                "key": timing["key"],
                "benchmark": asdict(self.timing.benchmark),
                "images_per_second": self.rates,
                "seconds": timing["seconds"],
                "origin": _origin(timing),
            },
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


def train_missing(
    runs: Sequence[Run],
    device: str,
    jobs: int,
    per_device: int | None,
    workers: int | None,
    log: Callable[[str], None],
) -> None:
    """Train runs that are not in the store, as ``Experiment.run`` says."""
    if not runs:
        return
    from frepro import parallel

    if workers is None:  # embedded images are too small for the way between processes to pay
        embedded = all(run.source.embedded for run in runs)
        workers = 0 if embedded else max(1, provenance.machine()["cores"] // jobs - 1)
    parallel.train(runs, device, jobs, per_device, workers, log)


def default_jobs(device: str, profile: str) -> int:
    """One run a core on a CPU; one at a time on a GPU, and in smoke, whose runs end before a process is up."""
    return provenance.machine()["cores"] if device == "cpu" and profile != "smoke" else 1


def check_seeds(seeds: Any) -> None:
    found = seeds if isinstance(seeds, list | tuple) else []
    if not found or len(set(found)) != len(found) or not all(type(s) is int and s >= 0 for s in found):
        raise FreproError(f"seeds are a list of different whole numbers, 0 or more, not {seeds!r}")


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


def paired(better: Sequence[float], worse: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean of the paired differences (better - worse), and Student's t interval of it at 95 %.

    A single pair has no interval. Differences that are all the same have one of no width.
    """
    differences = [b - w for b, w in zip(better, worse, strict=True)]
    centre = mean(differences)
    if len(differences) == 1:
        return centre, None, None
    from scipy import stats

    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)
    reach = float(quantile) * stdev(differences) / len(differences) ** 0.5
    return centre, centre - reach, centre + reach


def verdict(low: float | None, high: float | None) -> str:
    """ "holds" or "does not hold" where the whole interval is on one side of zero, else "undecided"."""
    if low is not None and low > 0:
        return "holds"
    if high is not None and high < 0:
        return "does not hold"
    return "undecided"


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
            }
        )
        for row in csv.DictReader(io.StringIO(text))
    ]


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
