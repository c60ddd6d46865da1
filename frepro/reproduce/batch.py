"""Make several tables and figures: first their training runs, each only once, then timings, then notebooks.

A failure affects only the artefacts that depend on it. All others are finished, and failures are reported at the end.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from frepro import reproduce
from frepro.errors import FreproError
from frepro.report import View
from frepro.reproduce import Artefact, FigurePlan, Plan, downloads, shown
from frepro.store import provenance, records
from frepro.training import parallel
from frepro.training.device import device_name
from frepro.training.parallel import Failure
from frepro.training.progress import Progress, Stopwatch, Thing, minutes
from frepro.training.runs import Run

# Up to this many artefacts are described in full, more as an overview. Four papers share a table number.
FEW = 4

# Notebooks that measure time or memory use one of these modules. They run alone: a notebook that runs at the same time
# would distort the measurement.
MEASURING = ("frepro.analysis.cost", "frepro.analysis.memory", "frepro.analysis.timing", "frepro.bench")


@dataclass
class Made:
    """The outcome of making one artefact.

    Attributes:
        seconds: Seconds that its runs, timing and notebook took in this call.
        failure: The first failure; ``None`` means success.
    """

    plan: Plan | FigurePlan
    was_current: bool
    seconds: float = 0.0
    failure: Failure | None = None

    @property
    def state(self) -> str:
        if self.failure:
            return "failed"
        return "up to date" if self.was_current else "made"

    @property
    def log(self) -> Path:
        """The file for the traceback of a failure that the user cannot fix."""
        return self.plan.folder.with_name(f"{self.plan.folder.name}.failed.txt")

    def fail(self, failure: Failure) -> None:
        """Record a failure, unless there is one already."""
        if self.failure is None:
            self.failure = failure
            if failure.details:
                with suppress(FreproError):  # the disk may be what failed
                    records.write_text(self.log, failure.details)

    @property
    def left_out(self) -> list[str]:
        """One line for each variant that could not be built, or whose published weights could not be evaluated."""
        if not isinstance(self.plan, Plan):
            return []
        title, experiment = self.plan.artefact.title, self.plan.experiment
        lines = [f"{title}: {label} is left out: {problem}" for label, problem in experiment.broken.items()]
        return lines + [f"{title}: {label} is not run: {problem}" for label, problem in experiment.failed.items()]

    def cause(self) -> str:
        """Return the failure in one line: the artefact, the cause, and the file with the traceback."""
        assert self.failure is not None
        where = f" (see {shown(self.log)})" if self.failure.details and self.log.exists() else ""
        return f"{self.plan.artefact.title}: {self.failure.cause}{where}"


class Batch:
    """A set of artefacts to make.

    Args:
        plans: The plan of each artefact.
        device: Device to compute on: "auto", "cpu" or "cuda".
        jobs: Runs and notebooks in parallel; ``None`` for a default that suits the machine.
        budget: Seconds after which no more seeds are added to tables whose number of seeds is chosen by results;
            ``None`` for no limit.
    """

    def __init__(
        self,
        plans: Sequence[Plan | FigurePlan],
        device: str = "auto",
        jobs: int | None = None,
        budget: float | None = None,
    ) -> None:
        self.plans, self.device, self.budget = list(plans), device, budget
        self.stale = [plan for plan in plans if not plan.is_current]
        self.runs: dict[str, Run] = {run.measurement.key: run for plan in self.stale for run in plan.missing}
        self.jobs = jobs or self._default_jobs()

    def _default_jobs(self) -> int:
        """Return one job per CPU core, or one on a GPU; for a single table, the default of its experiment."""
        if len(self.stale) == 1 and isinstance(self.stale[0], Plan):
            return self.stale[0].experiment.default_jobs()
        return provenance.machine()["cores"] if device_name(self.device)[0] == "cpu" else 1

    @property
    def untimed(self) -> list[Plan]:
        return [plan for plan in self.stale if isinstance(plan, Plan) and not plan.is_timed]

    def progress(self, log: Callable[[str], None]) -> Progress:
        """Return the progress display of everything to do, with the seconds that each part took before."""
        paces = {run.measurement.key: plan.pace for plan in self.stale for run in plan.missing}
        expected: dict[Thing, float | None] = {
            ("run", key): run.seconds or (pace[0] if (pace := paces[key]) else None) for key, run in self.runs.items()
        }
        expected |= {("timing", plan.artefact): plan.timing_seconds for plan in self.untimed}
        expected |= {("notebook", plan.artefact): reproduce.rendered_in(plan.folder) for plan in self.stale}
        return Progress(expected, {"run": self.jobs, "notebook": self.jobs}, log)

    def describe(self) -> str:
        """Describe the plan: each artefact in a few lines; if there are many, in one line each, with a total."""
        if len(self.plans) <= FEW:
            return "\n".join(plan.describe(self.jobs) for plan in self.plans)
        width = max(len(plan.artefact.title) for plan in self.plans)
        lines = [f"{plan.artefact.title:{width}}  {reproduce.because(plan.reasons)}" for plan in self.plans]
        lines += downloads.lines(dict.fromkeys(each for plan in self.stale for each in plan.downloads))
        if self.stale:
            left = self.progress(print).left() or "time unknown"
            lines.append(
                f"To do: {len(self.runs)} training runs, {len(self.untimed)} timings and {len(self.stale)} notebooks, "
                f"{self.jobs} in parallel; {left.removesuffix(' left')}"
            )
        return "\n".join(lines)

    def make(
        self, per_device: int | None = None, workers: int | None = None, log: Callable[[str], None] = print
    ) -> list[Made]:
        """Run what is missing, then the notebooks.

        Args:
            per_device: Maximum samples in a forward pass; ``None`` for the full batch of the recipe.
            workers: Data-loading processes of each run; ``None`` for a default that suits the machine.
            log: Called with a line for each finished part when there is no terminal.
        """
        for plan in self.plans:
            records.sweep(plan.folder.parent)
            for run in plan.runs:
                run.measurement.tidy()
        watch = Stopwatch()
        made = {plan.artefact: Made(plan, plan.is_current) for plan in self.plans}
        for plan in self.stale:
            if isinstance(plan, Plan) and (plan.missing or not plan.is_timed):
                found = parallel.attempt(Batch._check, plan)
                self._note(made[plan.artefact], found, 0.0)
                for label, problem in plan.experiment.broken.items():
                    log(f"{plan.artefact.title}: {label} is left out: {problem}")
        self.runs = {run.measurement.key: run for plan in self.stale for run in plan.missing}
        with self.progress(log) as progress:
            self._train(made, progress, per_device, workers)
            self._evaluate(made, per_device, workers, log)
            self._fetch(made)
            self._time(made, progress, log)
            self._add_seeds(made, progress, watch, per_device, workers, log)
            progress.drop(*(("notebook", plan.artefact) for plan in self.stale if made[plan.artefact].failure))
            for is_alone, jobs in ((False, self.jobs), (True, 1)):
                plans = [
                    plan for plan in self.stale if not made[plan.artefact].failure and is_measuring(plan) == is_alone
                ]
                for plan, found in parallel.each(reproduce.render, plans, jobs):
                    seconds = 0.0 if isinstance(found, Failure) else found
                    self._note(made[plan.artefact], found, seconds)
                    progress.done(("notebook", plan.artefact), seconds, summary_line(made[plan.artefact]))
        return list(made.values())

    def _train(
        self, made: dict[Artefact, Made], progress: Progress, per_device: int | None, workers: int | None
    ) -> None:
        for run, found in parallel.train(list(self.runs.values()), self.device, self.jobs, per_device, workers):
            key = run.measurement.key
            seconds = 0.0 if isinstance(found, Failure) else found["seconds"]
            for plan in self.stale:
                if any(missing.measurement.key == key for missing in plan.missing):
                    self._note(made[plan.artefact], found, seconds)
            progress.done(("run", key), seconds, parallel.summary_line(run, found))

    def _evaluate(
        self, made: dict[Artefact, Made], per_device: int | None, workers: int | None, log: Callable[[str], None]
    ) -> None:
        """Evaluate the weights of files, which replace training."""
        for plan in self.stale:
            if isinstance(plan, Plan):
                watch = Stopwatch()
                found = parallel.attempt(lambda plan: plan.experiment.evaluate(per_device, workers, log), plan)
                self._note(made[plan.artefact], found, watch.seconds)

    def _fetch(self, made: dict[Artefact, Made]) -> None:
        """Download the published weights that figures are about."""
        for plan in self.stale:
            if isinstance(plan, FigurePlan):
                watch = Stopwatch()
                self._note(made[plan.artefact], parallel.attempt(FigurePlan.fetch, plan), watch.seconds)

    def _time(self, made: dict[Artefact, Made], progress: Progress, log: Callable[[str], None]) -> None:
        """Time one table after the other in this process: other work at the same time would distort the timing."""
        for plan in self.untimed:
            watch, one = Stopwatch(), made[plan.artefact]
            if one.failure:
                progress.drop(("timing", plan.artefact))
                continue
            found = (
                None if plan.is_timed else parallel.attempt(lambda plan: plan.time(log), plan)
            )  # an earlier table may have timed the same models
            self._note(one, found, watch.seconds)
            what = f"models of {plan.artefact.title}"
            line = f"{what} not timed: {found.cause}" if isinstance(found, Failure) else f"{what} timed"
            progress.done(("timing", plan.artefact), watch.seconds, line)

    def _add_seeds(
        self,
        made: dict[Artefact, Made],
        progress: Progress,
        watch: Stopwatch,
        per_device: int | None,
        workers: int | None,
        log: Callable[[str], None],
    ) -> None:
        """Add one seed after the other to tables with open claims, until the next would not be done in the budget."""
        took = 0.0  # seconds of the last round
        while still_open := [
            plan for plan in self.plans if isinstance(plan, Plan) and not made[plan.artefact].failure and plan.is_open
        ]:
            if self.budget is not None and watch.seconds + took > self.budget:
                log(f"No more seeds, since the budget of {minutes(self.budget)} is used up")
                return
            before = watch.seconds
            self.runs = {}
            for plan in still_open:
                grown = plan.with_another_seed()
                self._note(made[plan.artefact], parallel.attempt(Batch._check, grown), 0.0)
                self._replace(plan, grown, made, progress)
                self.runs |= {run.measurement.key: run for run in grown.missing}
            progress.add({("run", key): run.seconds for key, run in self.runs.items()})
            self._train(made, progress, per_device, workers)
            took = watch.seconds - before

    def _replace(self, plan: Plan, grown: Plan, made: dict[Artefact, Made], progress: Progress) -> None:
        """Make another plan for an artefact, whose result is then out of date."""
        self.plans[self.plans.index(plan)] = grown
        if plan in self.stale:
            self.stale[self.stale.index(plan)] = grown
        else:
            self.stale.append(grown)
            progress.add({("notebook", grown.artefact): reproduce.rendered_in(grown.folder)})
        made[plan.artefact].plan, made[plan.artefact].was_current = grown, False

    @staticmethod
    def _check(plan: Plan) -> None:
        """Exclude variants that cannot be built from a plan before anything is trained."""
        if plan.experiment.check_variants():
            plan.__dict__.pop("missing", None)

    @staticmethod
    def _note(made: Made, found: object, seconds: float) -> None:
        made.seconds += seconds
        if isinstance(found, Failure):
            made.fail(found)


def is_measuring(plan: Plan | FigurePlan) -> bool:
    """Return whether the notebook of a plan must run alone on the machine."""
    return any(name.startswith(MEASURING) for name in plan.notebook.modules)


def summary_line(made: Made) -> str:
    """Return a line about a finished artefact."""
    if made.failure:
        return f"failed: {made.cause()}"
    return f"{made.plan.artefact.title} made in {minutes(made.seconds)}"


def summary(made: Sequence[Made]) -> View:
    """Return a table of the artefacts with their states, seconds and folders."""
    rows = [
        [
            one.plan.artefact.title,
            one.state,
            "" if one.was_current else f"{one.seconds:.0f}",
            shown(one.plan.folder) if one.plan.folder.exists() else "",
        ]
        for one in made
    ]
    note = "Of its runs, timing and notebook in this call; a run that several artefacts share counts for each of them."
    return View([("", "Artefact"), ("", "state"), ("", "seconds*"), ("", "folder")], rows, [note])
