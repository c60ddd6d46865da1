"""Submit training runs to a Slurm cluster with submitit, requeue and resume them, and wait for them.

Files::

    results/slurm/<job>_submission.sh    the submitted batch script
    results/slurm/<job>_<rank>_log.out   output of one process of a run, attempt after attempt
    results/runs/<key>/job.json          the latest job of a run

Only the store decides whether a run is done; ``reproduce.slurm`` tells whether its job is still queued or running.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frepro import paths
from frepro.errors import FreproError, one_line
from frepro.reproduce import shown, slurm
from frepro.store import records
from frepro.training import parallel
from frepro.training.parallel import Failure
from frepro.training.runs import Run

POLLS = (1.0, 15.0)  # seconds between two queries to Slurm: initial and maximum
# sbatch settings that have their own option here. Below, those that requeueing and logs depend on.
OPTION_FOR = {
    "account": "--account",
    "cpus_per_task": "--cpus",
    "gpus_per_node": "--gpus",
    "mem": "--mem",
    "nodes": "--nodes",
    "ntasks_per_node": "--gpus or --tasks",
    "partition": "--partition",
    "time": "--time",
}
FIXED = {"array", "error", "open_mode", "output", "requeue"}


@dataclass(frozen=True)
class Cluster:
    """The resources of each run on the cluster.

    Attributes:
        gpus: GPUs per node, with one process each: a number ("8"), or type and number ("a100:8"); "0" uses CPUs.
        nodes: Nodes per run.
        tasks: Processes per node without GPUs.
        minutes: Time limit, after which a run is requeued and resumes.
        partition: Slurm partition; ``None`` for the cluster's default.
        account: Account to charge; ``None`` for the cluster's default.
        cpus: CPU cores per process; ``None`` for the cluster's default.
        mem: Memory per node in Slurm's notation ("64G"); ``None`` for the cluster's default.
        at_once: Maximum number of runs at a time; ``None`` for no limit.
        requeues: How often a run may reach its time limit and resume. Preemptions are not counted.
        settings: Other sbatch options by name.
        per_device: Maximum samples in a forward pass; ``None`` for a process's full share of the effective batch.
        workers: Data-loading processes of each training process; ``None`` for all its cores except one.
        fsdp: Shard weights, gradients and optimizer state across processes.
    """

    gpus: str = "1"
    nodes: int = 1
    tasks: int = 1
    minutes: int = 24 * 60
    partition: str | None = None
    account: str | None = None
    cpus: int | None = None
    mem: str | None = None
    at_once: int | None = None
    requeues: int = 30
    settings: dict[str, str | bool] = dataclasses.field(default_factory=dict)
    per_device: int | None = None
    workers: int | None = None
    fsdp: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"([^:\s]+:)?\d{1,6}", self.gpus):
            raise FreproError(f"--gpus {self.gpus!r} is invalid: give a number, or type and number such as a100:8")
        if self.on_gpus and self.tasks != 1:
            raise FreproError("--tasks is for CPUs, since each GPU has one process: omit --tasks, or add --gpus 0")
        named = {name.lstrip("-").replace("-", "_"): value for name, value in self.settings.items()}
        if self.fsdp and self.processes == 1:
            raise FreproError("--fsdp shards weights across processes: request more --gpus or --nodes")
        texts: dict[str, object] = {
            "--partition": self.partition,
            "--account": self.account,
            "--mem": self.mem,
            "--gpus": self.gpus,
        }
        texts |= {"the path of results": str(paths.results()), "the path of frepro": str(paths.ROOT)}
        texts |= {f"--slurm {name}": value for name, value in self.settings.items()}
        for name, text in texts.items():
            if isinstance(text, str) and not text.isprintable():
                raise FreproError(f"{name} has a line break or another control character ({text!r}): remove it")
        for name in named:
            if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
                raise FreproError(
                    f"--slurm {name!r} is no option of sbatch: give a name, as in --slurm constraint h100"
                )
            if name in OPTION_FOR:
                raise FreproError(f"--slurm {name}: use {OPTION_FOR[name]}")
            if name in FIXED:
                raise FreproError(f"--slurm {name} cannot be changed, since requeueing and logs depend on it: omit it")
        object.__setattr__(self, "settings", named)

    @property
    def on_gpus(self) -> bool:
        return int(self.gpus.rpartition(":")[2]) > 0

    @property
    def processes_of_node(self) -> int:
        return int(self.gpus.rpartition(":")[2]) or self.tasks

    @property
    def processes(self) -> int:
        return self.nodes * self.processes_of_node

    def check(self, runs: Iterable[Run]) -> None:
        """Raise before submission the errors that a job would raise, such as an indivisible batch."""
        for run in runs:
            if self.fsdp and self.on_gpus and run.recipe.precision == "fp16":
                raise FreproError(f"{run.title}: --fsdp does not support precision fp16: omit --fsdp")
            if run.recipe.batch_size % self.processes:
                raise FreproError(
                    f"{run.title}: a batch of {run.recipe.batch_size} cannot be divided among {self.processes} "
                    "processes: use a number of GPUs and nodes that divides it"
                )

    def execution(self, run: Run) -> dict[str, Any]:
        """Return the arguments of ``loop.Execution`` for a run on the cluster."""
        workers = self.workers
        if workers is None:  # the same default as in parallel.train
            workers = 0 if run.source.embedded else max(1, (self.cpus or 1) - 1)
        device = "cuda" if self.on_gpus else "cpu"
        return {"device": device, "per_device": self.per_device, "workers": workers, "fsdp": self.fsdp}

    def script(self, runs: int) -> str:
        """Return the sbatch script for a number of runs, as submitit writes it."""
        executor = self._executor()
        if runs > 1:
            executor.parameters["map_count"] = runs
        return executor._make_submission_file_text(executor._submitit_command_str, "")

    def send(self, runs: Sequence[Run]) -> list["Sent"]:
        """Submit runs to Slurm, several as one job array, and record the job in the folder of each run.

        An array is one request to Slurm, one line in its queue, and one id to cancel all jobs. Each of its runs starts,
        is requeued and ends on its own.

        Raises:
            FreproError: submitit or Slurm is missing, or Slurm rejected the jobs.
        """
        executor = self._executor()
        if shutil.which("sbatch") is None:
            raise FreproError("sbatch is not available: run this on a login node of the cluster, or use --dry-run")
        import submitit

        with records.disk_errors(slurm.folder()):
            records.make_folder(slurm.folder())
            # A job runs the code in its pickle there: nobody else may put another one in its place.
            slurm.folder().chmod(0o700)
        tasks = [ArrayTask(dataclasses.replace(run), self.execution(run)) for run in runs]
        try:
            with slurm.outside_jobs():
                jobs = executor.submit_array(tasks)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise FreproError(f"Slurm rejected the jobs: {slurm.said(str(error))}") from error
        for run, job in zip(runs, jobs, strict=True):
            records.write_text(note(run), json.dumps({"job": job.job_id}) + "\n")
        return [Sent(run, job.job_id, "PENDING") for run, job in zip(runs, jobs, strict=True)]

    def _executor(self) -> Any:
        try:
            from submitit import SlurmExecutor
        except ImportError as error:
            raise FreproError("clusters need submitit: run pip install -e '.[cluster]'") from error

        class Executor(SlurmExecutor):
            """An executor that can write its script on a machine without Slurm."""

            @classmethod
            def affinity(cls) -> int:
                return 2

        executor = Executor(slurm.folder(), max_num_timeout=self.requeues)
        setup = [
            f"export FREPRO_RESULTS={shlex.quote(str(paths.results()))}",
            f'export PYTHONPATH={shlex.quote(str(paths.ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        ]
        if self.cpus:  # srun does not inherit this from sbatch in all versions of Slurm
            setup += [
                f"export SRUN_CPUS_PER_TASK={self.cpus}",
                f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{self.cpus}}}"',
            ]
        given = {
            "partition": self.partition,
            "account": self.account,
            "cpus_per_task": self.cpus,
            "mem": self.mem,
            "gpus_per_node": self.gpus if self.on_gpus else None,
            "array_parallelism": self.at_once,
        }
        executor.update_parameters(
            job_name="frepro",
            time=self.minutes,
            nodes=self.nodes,
            ntasks_per_node=self.processes_of_node,
            stderr_to_stdout=True,
            wckey=None,
            setup=setup,
            # Otherwise, the other processes would wait for a failed one until their time limit.
            srun_args=["--kill-on-bad-exit=1"],
            additional_parameters={"requeue": True, **self.settings},
            **{name: value for name, value in given.items() if value is not None},
        )
        return executor


@dataclass(frozen=True)
class ArrayTask:
    """The work of one process of a job. submitit stores it as a pickle and calls it in each process.

    Attributes:
        run: The training run.
        execution: Arguments of ``loop.Execution``.
    """

    run: Run
    execution: dict[str, Any]

    def __call__(self) -> None:
        import submitit

        # Slurm signals every process of a job. A forked data-loading process would requeue the job a second time.
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN))
        from frepro.training import loop

        if submitit.JobEnvironment().num_tasks > 1:
            import torch

            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
            if torch.cuda.device_count() == 1:  # Slurm shows each process only its own GPU
                os.environ["LOCAL_RANK"] = "0"
        loop.run(self.run, loop.Execution(log=print, **self.execution))

    def checkpoint(self) -> Any:
        """Return this task again: submitit calls this on preemption and timeout, and the run resumes from its state."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Sent:
    """A run, its job, and the state of the job: Slurm's, ``slurm.FORGOTTEN``, or empty for a run never submitted."""

    run: Run
    job: str = ""
    state: str = ""

    @property
    def is_live(self) -> bool:
        """Whether the job is queued or running."""
        return bool(self.state) and self.state not in {*slurm.ENDED, slurm.FORGOTTEN}

    def failure(self) -> Failure:
        """Return why the job ended without a result: its last error line, and the path of its log."""
        line, log = slurm.last_error(self.job)
        where = f" (see {shown(log)})" if log else ""
        return Failure(f"job {self.job} {self._state}: {line}{where}")

    @property
    def _state(self) -> str:
        return self.state.lower().replace("_", " ")

    def summary_line(self) -> str:
        """Return the state of the run in one line."""
        if self.is_live:
            return f"{self.run.title}: job {self.job} {self._state}"
        return f"{self.run.title}: to submit" + (f" again, {self.failure().cause}" if self.job else "")


def named(sent: Sequence[Sent]) -> str:
    """Return jobs in a few words, as "job 12 (8 runs)"."""
    ids = list(dict.fromkeys(one.job.partition("_")[0] for one in sent))
    return f"job{'s' * (len(ids) > 1)} {', '.join(ids)} ({len(sent)} run{'s' * (len(sent) > 1)})"


def note(run: Run) -> Path:
    """Return the file that records the job of a run."""
    return run.measurement.folder / "job.json"


def survey(runs: Iterable[Run]) -> list[Sent]:
    """Return each run with its latest job and the state of that job.

    Raises:
        FreproError: Slurm does not respond.
    """
    noted = [(run, _noted(run)) for run in runs]
    known = slurm.states(job["job"] for _, job in noted if job)
    return [Sent(run, job["job"], known[job["job"]]) if job else Sent(run) for run, job in noted]


def _noted(run: Run) -> dict[str, str] | None:
    try:
        return json.loads(note(run).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def wait(waiting: Sequence[Sent], log: Callable[[str], None] = print) -> list[tuple[Run, Failure]]:
    """Wait until each run is stored or its job has ended without a result, and return the failed runs.

    Args:
        log: Called with a line for each change of a job's state, and for each run that ends.
    """
    left = {sent.run.measurement.key: sent for sent in waiting}
    failed: list[tuple[Run, Failure]] = []
    ended: set[str] = set()
    is_answered, interval = True, POLLS[0]

    def end(key: str, found: Any) -> None:
        run = left.pop(key).run
        log(f"[{len(waiting) - len(left)}/{len(waiting)}] {parallel.summary_line(run, found)}")

    while True:
        before = dict(left)
        for key, sent in before.items():
            if record := sent.run.measurement.record():
                end(key, record)
        try:
            known, is_answered = slurm.states(sent.job for sent in left.values()), True
        except FreproError as error:  # its controller may be restarting
            if is_answered:
                log(f"{one_line(error)}; retrying")
            is_answered = False
        for key, sent in list(left.items()) if is_answered else ():
            now = left[key] = dataclasses.replace(sent, state=known[sent.job])
            if now.is_live:
                ended.discard(key)
                if now.state != sent.state:
                    log(now.summary_line())
            elif key not in ended:  # a shared file system may show the record a little later
                ended.add(key)
            else:
                failed.append((now.run, now.failure()))
                end(key, failed[-1][1])
        if not left:
            return failed
        interval = POLLS[0] if left != before else min(1.5 * interval, POLLS[1])
        time.sleep(interval)
