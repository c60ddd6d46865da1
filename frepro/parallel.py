"""Several training runs: side by side on the cores of a CPU, one after the other on a GPU."""

import sys
from collections.abc import Callable, Sequence

import torch
from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from frepro import provenance
from frepro.runs import Run
from frepro.train import Execution
from frepro.train import run as train_run


def train(
    runs: Sequence[Run],
    device: str,
    jobs: int,
    per_device: int | None,
    workers: int,
    log: Callable[[str], None],
) -> None:
    """Make the runs, ``jobs`` at a time, each with its share of the cores. What is done stays done if one fails.

    Args:
        log: Called with a line for each run that ends, where standard error is no terminal; on one, there is a bar.
    """
    jobs = min(jobs, len(runs))
    threads = max(1, provenance.machine()["cores"] // jobs)
    execution = Execution(device, per_device, workers)
    bar = tqdm(total=len(runs), desc="training runs", unit="run", disable=not sys.stderr.isatty())
    with parallel_config("loky" if jobs > 1 else "sequential", inner_max_num_threads=threads if jobs > 1 else None):
        done = Parallel(n_jobs=jobs, return_as="generator_unordered")(
            delayed(_train)(run, execution, threads) for run in runs
        )
        for finished, (title, top1, seconds) in enumerate(done, start=1):
            bar.update()
            if bar.disable:
                log(f"[{finished}/{len(runs)}] {title}: test top-1 {top1:.1f} % in {seconds:.0f} s")
    bar.close()


def _train(run: Run, execution: Execution, threads: int) -> tuple[str, float, float]:
    torch.set_num_threads(threads)
    record = train_run(run, execution)
    return run.title, record["values"]["top1"], record["seconds"]
