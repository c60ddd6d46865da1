"""Training runs and notebooks: several in parallel on the cores of a CPU, one after another on a GPU."""

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

from frepro import processes
from frepro.errors import FreproError, one_line
from frepro.store import provenance
from frepro.training.runs import Run

Item = TypeVar("Item")


@dataclass(frozen=True)
class Failure:
    """The outcome of an item that failed: the cause in one line, and the traceback if it is not the user's to fix."""

    cause: str
    details: str = ""

    def error(self) -> FreproError:
        """Return the error to raise where one failure ends everything."""
        error = FreproError(self.cause)
        if self.details:
            error.add_note(self.details)
        return error


def attempt(function: Callable[[Item], Any], item: Item) -> Any:
    """Return the result of the function, or a ``Failure`` if it raises."""
    try:
        return function(item)
    except Exception as error:
        return Failure(one_line(error), "" if isinstance(error, FreproError) else traceback.format_exc())


def each(function: Callable[[Item], Any], items: Sequence[Item], jobs: int) -> Iterator[tuple[Item, Any]]:
    """Yield every item with its result, or with a ``Failure``, in order of completion.

    Args:
        jobs: Number of items at a time, each in a process with its share of the cores; 1 uses this process alone.
    """
    if not items:
        return
    jobs = min(jobs, len(items))
    waiting = dict(enumerate(items))
    apart = {
        "inner_max_num_threads": share(jobs),
        "initializer": processes.end_with_and_without_interrupt,
        "initargs": (os.getpid(),),
    }
    with parallel_config("loky", **apart) if jobs > 1 else parallel_config("sequential"):
        results = Parallel(n_jobs=jobs, return_as="generator_unordered")(
            delayed(_numbered)(number, function, item) for number, item in enumerate(items)
        )
        try:
            for number, result in results:
                yield waiting.pop(number), result
        except TerminatedWorkerError:  # it ends the whole pool
            cause = "a process was killed, possibly because memory ran out: run it again with JOBS=1"
            for item in waiting.values():
                yield item, Failure(cause)


def _numbered(number: int, function: Callable[[Item], Any], item: Item) -> tuple[int, Any]:
    return number, attempt(function, item)


def share(jobs: int) -> int:
    """Return the number of cores for each of ``jobs`` processes."""
    return max(1, provenance.machine()["cores"] // jobs)


def loading_processes(is_embedded: bool, jobs: int) -> int:
    """Return how many data-loading processes help each of ``jobs`` runs.

    Embedded images are too small for the transfer between processes to pay off, so they are loaded in the run itself.
    """
    return 0 if is_embedded else max(1, share(jobs) - 1)


def train(
    runs: Sequence[Run], device: str, jobs: int, per_device: int | None, workers: int | None
) -> Iterator[tuple[Run, Any]]:
    """Execute training runs; yield each with its record, or with a ``Failure``, as it ends.

    Args:
        workers: Number of data-loading processes per run; ``None`` means as many as help.
    """
    if not runs:
        return
    jobs = min(jobs, len(runs))
    if workers is None:
        workers = loading_processes(all(run.source.embedded for run in runs), jobs)
    from frepro.training.loop import Execution

    execution = Execution(device, per_device, workers)
    yield from each(partial(_train, execution=execution, threads=share(jobs) if jobs > 1 else None), runs, jobs)


def _train(run: Run, execution: Any, threads: int | None) -> dict[str, Any]:
    import torch

    from frepro.training.loop import run as train_run

    if threads is not None:  # in a process of its own; otherwise torch chooses
        torch.set_num_threads(threads)
    return train_run(run, execution)


def summary_line(run: Run, found: Any) -> str:
    """Return a line about a run that has ended."""
    if isinstance(found, Failure):
        return f"{run.title} failed: {found.cause}"
    return f"{run.name}: {run.score_line(found['values'])} in {found['seconds']:.0f} s"
