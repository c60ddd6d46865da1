"""Several tables and figures in one go: first their training runs, each made once, then timings, then notebooks.

What fails takes along only the artefacts that rest on it; all others are finished, and the failures told at the end.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from frepro import reproduce
from frepro.errors import FreproError
from frepro.report import View
from frepro.reproduce import Artefact, FigurePlan, Plan, shown
from frepro.store import provenance, records
from frepro.training import parallel
from frepro.training.device import device_name
from frepro.training.parallel import Failure
from frepro.training.progress import Progress, Stopwatch, Thing, minutes
from frepro.training.runs import Run

FEW = 4  # as many papers as share a table's number: so many artefacts are told in full, of more an overview

# What measures seconds or memory in its own notebook; beside another notebook it would measure that one too.
MEASURING = ("frepro.analysis.cost", "frepro.analysis.memory", "frepro.analysis.timing", "frepro.bench")


@dataclass
class Made:
    """How it went with one artefact.

    Attributes:
        seconds: Of the runs, the timing and the notebook that were made for it now.
        failure: The first thing that failed, if anything did.
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
        """Where the traceback of a failure is kept that is not the user's to mend."""
        return self.plan.folder.with_name(f"{self.plan.folder.name}.failed.txt")

    def fail(self, failure: Failure) -> None:
        """Note what failed; only the first counts."""
        if self.failure is None:
            self.failure = failure
            if failure.details:
                with suppress(FreproError):  # the disk may be what failed
                    records.write_text(self.log, failure.details)

    @property
    def left_out(self) -> list[str]:
        """A line for each variant that could not be built."""
        broken = self.plan.experiment.broken if isinstance(self.plan, Plan) else {}
        return [f"{self.plan.artefact.title}: {label} is left out: {problem}" for label, problem in broken.items()]

    def cause(self) -> str:
        """The failure in one line: what, why, and where to look."""
        where = f" (see {shown(self.log)})" if self.failure.details and self.log.exists() else ""
        return f"{self.plan.artefact.title}: {self.failure.cause}{where}"


class Batch:
    """The artefacts to be made.

    Args:
        plans: What each takes.
        device: What they compute on: "auto", "cpu" or "cuda".
        jobs: Runs and notebooks at a time; none for as many as suit the machine.
    """

    def __init__(self, plans: Sequence[Plan | FigurePlan], device: str = "auto", jobs: int | None = None) -> None:
        self.plans, self.device = plans, device
        self.stale = [plan for plan in plans if not plan.is_current]
        self.runs: dict[str, Run] = {run.measurement.key: run for plan in self.stale for run in plan.missing}
        self.jobs = jobs or self._default_jobs()

    def _default_jobs(self) -> int:
        """One a core on a CPU, and one at a time on a GPU; for a single artefact as its experiment has it."""
        if len(self.stale) == 1 and isinstance(self.stale[0], Plan):
            return self.stale[0].experiment.default_jobs()
        return provenance.machine()["cores"] if device_name(self.device)[0] == "cpu" else 1

    @property
    def untimed(self) -> list[Plan | FigurePlan]:
        return [plan for plan in self.stale if not plan.is_timed]

    def progress(self, log: Callable[[str], None]) -> Progress:
        """All that is to be done, with the seconds that it took before."""
        paces = {run.measurement.key: plan.pace for plan in self.stale for run in plan.missing}
        expected: dict[Thing, float | None] = {
            ("run", key): run.seconds or (paces[key][0] if paces[key] else None) for key, run in self.runs.items()
        }
        expected |= {("timing", plan.artefact): plan.timing_seconds for plan in self.untimed}
        expected |= {("notebook", plan.artefact): reproduce.rendered_in(plan.folder) for plan in self.stale}
        return Progress(expected, {"run": self.jobs, "notebook": self.jobs}, log)

    def describe(self) -> str:
        """The plan: each artefact in a few lines, or of many each in one, and what all of them take together."""
        if len(self.plans) <= FEW:
            return "\n".join(plan.describe(self.jobs) for plan in self.plans)
        width = max(len(plan.artefact.title) for plan in self.plans)
        lines = [f"{plan.artefact.title:{width}}  {reproduce.because(plan.reasons)}" for plan in self.plans]
        if self.stale:
            left = self.progress(print).left() or "time not known yet"
            lines.append(
                f"To do: {len(self.runs)} training runs, {len(self.untimed)} timings and {len(self.stale)} notebooks, "
                f"{self.jobs} at a time; {left.removesuffix(' left')}"
            )
        return "\n".join(lines)

    def make(
        self, per_device: int | None = None, workers: int | None = None, log: Callable[[str], None] = print
    ) -> list[Made]:
        """Run all that is missing, then the notebooks.

        Args:
            per_device: Most samples in a forward pass; none for the recipe's whole batch.
            workers: Processes that load data for each run; none for as many as help.
            log: Called with a line for each thing that is done, where there is no terminal.
        """
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
            self._time(made, progress)
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
        """Weights of files, in place of training."""
        for plan in self.stale:
            if isinstance(plan, Plan):
                watch = Stopwatch()
                found = parallel.attempt(lambda plan: plan.experiment.evaluate(per_device, workers, log), plan)
                self._note(made[plan.artefact], found, watch.seconds)

    def _time(self, made: dict[Artefact, Made], progress: Progress) -> None:
        """In turn, in this process alone: what is timed beside something else is timed wrongly."""
        for plan in self.untimed:
            watch, one = Stopwatch(), made[plan.artefact]
            if one.failure:
                progress.drop(("timing", plan.artefact))
                continue
            found = None if plan.is_timed else parallel.attempt(Plan.time, plan)  # a table before may have had the same
            self._note(one, found, watch.seconds)
            what = f"models of {plan.artefact.title}"
            line = f"{what} not timed: {found.cause}" if isinstance(found, Failure) else f"{what} timed"
            progress.done(("timing", plan.artefact), watch.seconds, line)

    @staticmethod
    def _check(plan: Plan) -> None:
        """Leave out of a plan what cannot be built, before anything is trained."""
        if plan.experiment.check_variants():
            plan.__dict__.pop("missing", None)

    @staticmethod
    def _note(made: Made, found: object, seconds: float) -> None:
        made.seconds += seconds
        if isinstance(found, Failure):
            made.fail(found)


def is_measuring(plan: Plan | FigurePlan) -> bool:
    """Whether its notebook has to be alone on the machine."""
    return any(name.startswith(MEASURING) for name in plan.notebook.modules)


def summary_line(made: Made) -> str:
    """A line about an artefact that is finished."""
    if made.failure:
        return f"failed: {made.cause()}"
    return f"{made.plan.artefact.title} made in {minutes(made.seconds)}"


def summary(made: Sequence[Made]) -> View:
    """Each artefact with its state, the seconds that it took and its folder."""
    rows = [
        [
            one.plan.artefact.title,
            one.state,
            "" if one.was_current else f"{one.seconds:.0f}",
            shown(one.plan.folder) if one.plan.folder.exists() else "",
        ]
        for one in made
    ]
    note = "Of the runs, the timing and the notebook that were made for it; a run that several share counts for each."
    return View([("", "Artefact"), ("", "state"), ("", "seconds*"), ("", "folder")], rows, [note])
