"""Training runs on a Slurm cluster, through submitit: sent at once, requeued and taken up again, waited for.

    results/slurm/<job>_submission.sh    the script that Slurm was given
    results/slurm/<job>_<rank>_log.out   what one process of a run wrote, one attempt after the other
    results/runs/<key>/job.json          the job that a run was last sent as

Whether a run is done is for the store alone to say, and whether its job still lives for ``squeue``, which every cluster
has; ``sacct`` needs an accounting database.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frepro import paths
from frepro.errors import FreproError, one_line
from frepro.reproduce import shown
from frepro.store import records
from frepro.training import parallel
from frepro.training.parallel import Failure
from frepro.training.runs import Run

# States in which Slurm is through with a job; one that it has forgotten has ended too.
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}
FORGOTTEN = "ENDED"
POLLS = (1.0, 15.0)  # seconds between two questions to Slurm: at first, and at most
# sbatch settings that have an option of their own, or that requeueing and logs rest on.
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

# In logs: where an attempt begins, what torch puts before lines of a traceback; our own errors, and any.
ATTEMPT = " - Starting with JobEnvironment("
RANK = re.compile(r"^\[rank\d+\]: ", re.M)
OURS = re.compile(r"^frepro\.errors\.FreproError: ")
ANY = re.compile(r"^(?:[\w.]+(?:Error|Exception|Interrupt)\b|slurmstepd: error: )")


@dataclass(frozen=True)
class Cluster:
    """What each run is given on the cluster.

    Attributes:
        gpus: GPUs of a node, a process for each, as "8" or with their type as "a100:8"; "0" computes on CPUs.
        tasks: Processes on a node where there are no GPUs.
        minutes: Limit of time, after which a run is requeued and goes on.
        cpus: Cores of a process; none for the cluster's default.
        mem: Memory of a node, as Slurm writes it: "64G".
        at_once: Most runs that compute at the same time; none for as many as the cluster takes.
        requeues: Times that a run may use up its minutes and go on. Preemptions are not counted.
        settings: Any further settings of sbatch, by name.
        per_device: Most samples in a forward pass; none for as many as the effective batch asks for.
        workers: Processes that load data for each process that trains; none for a core each but one.
        fsdp: Leave each process a part of weights, gradients and optimizer state.
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
        if not re.fullmatch(r"([^:\s]+:)?\d+", self.gpus):
            raise FreproError(f"GPUs of a node are a number, or type and number as a100:8, not {self.gpus!r}")
        if self.on_gpus and self.tasks != 1:
            raise FreproError("with GPUs there is a process for each: leave --tasks out, or add --gpus 0")
        named = {name.lstrip("-").replace("-", "_"): value for name, value in self.settings.items()}
        if self.fsdp and self.processes == 1:
            raise FreproError("--fsdp shares weights between processes: ask for more --gpus or --nodes")
        for name in named:
            if name in OPTION_FOR:
                raise FreproError(f"--slurm {name}: use {OPTION_FOR[name]}")
            if name in FIXED:
                raise FreproError(f"--slurm {name}: requeueing and logs rest on it; leave it as it is")
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
        """Refuse before anything waits in a queue what the processes would, as a batch that they cannot share."""
        for run in runs:
            if self.fsdp and self.on_gpus and run.recipe.precision == "fp16":
                raise FreproError(f"{run.title}: --fsdp does not go with its precision fp16: leave it out")
            if run.recipe.batch_size % self.processes:
                raise FreproError(
                    f"{run.title}: a batch of {run.recipe.batch_size} cannot be shared by {self.processes} processes: "
                    "use a number of GPUs and nodes that divides it"
                )

    def execution(self, run: Run) -> dict[str, Any]:
        """How a run is carried out there, as arguments of ``loop.Execution``."""
        workers = self.workers
        if workers is None:  # as parallel.train has it
            workers = 0 if run.source.embedded else max(1, (self.cpus or 1) - 1)
        device = "cuda" if self.on_gpus else "cpu"
        return {"device": device, "per_device": self.per_device, "workers": workers, "fsdp": self.fsdp}

    def script(self, runs: int) -> str:
        """The sbatch script for so many runs, as submitit writes it."""
        executor = self._executor()
        if runs > 1:
            executor.parameters["map_count"] = runs
        return executor._make_submission_file_text(executor._submitit_command_str, "")

    def send(self, runs: Sequence[Run]) -> list["Sent"]:
        """Send runs to Slurm, several as one job array, and note in each one's folder its job.

        One array is one request to Slurm, one line in its queue and one id to cancel all; each of its runs is started,
        requeued and ends by itself.

        Raises:
            FreproError: submitit or Slurm is missing, or Slurm refused.
        """
        executor = self._executor()
        if shutil.which("sbatch") is None:
            raise FreproError("no sbatch here: run this where Slurm takes jobs (a login node), or look with --dry-run")
        import submitit

        with records.disk_errors(folder()):
            folder().mkdir(parents=True, exist_ok=True)
        tasks = [Task(dataclasses.replace(run), self.execution(run)) for run in runs]
        try:
            with _outside_jobs():
                jobs = executor.submit_array(tasks)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise FreproError(f"Slurm refused: {said(str(error))}") from error
        for run, job in zip(runs, jobs, strict=True):
            records.write_text(note(run), json.dumps({"job": job.job_id}) + "\n")
        return [Sent(run, job.job_id, "PENDING") for run, job in zip(runs, jobs, strict=True)]

    def _executor(self) -> Any:
        try:
            from submitit import SlurmExecutor
        except ImportError as error:
            raise FreproError("clusters need submitit: pip install -e '.[cluster]'") from error

        class Executor(SlurmExecutor):
            """One that writes its script also where there is no Slurm."""

            @classmethod
            def affinity(cls) -> int:
                return 2

        executor = Executor(folder(), max_num_timeout=self.requeues)
        setup = [
            f"export FREPRO_RESULTS={shlex.quote(str(paths.results()))}",
            f'export PYTHONPATH={shlex.quote(str(paths.ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        ]
        if self.cpus:  # which srun does not take from sbatch in all of Slurm's versions
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
            # One process that has failed would leave the others waiting for it until their time is up.
            srun_args=["--kill-on-bad-exit=1"],
            additional_parameters={"requeue": True, **self.settings},
            **{name: value for name, value in given.items() if value is not None},
        )
        return executor


@dataclass(frozen=True)
class Task:
    """What one process of a job does; submitit stores it as a pickle, and calls it in each process.

    Attributes:
        run: The training run.
        execution: Arguments of ``loop.Execution``.
    """

    run: Run
    execution: dict[str, Any]

    def __call__(self) -> None:
        import submitit

        # Slurm signals every process of a job. A forked one that loads data would requeue the job a second time.
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN))
        from frepro.training import loop

        if submitit.JobEnvironment().num_tasks > 1:
            import torch

            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
            if torch.cuda.device_count() == 1:  # Slurm shows each process its own GPU alone
                os.environ["LOCAL_RANK"] = "0"
        loop.run(self.run, loop.Execution(log=print, **self.execution))

    def checkpoint(self) -> Any:
        """Called by submitit on preemption and when time is up: the same again, which goes on from the run's state."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Sent:
    """A run with its job, and what Slurm says of that: a state, ``FORGOTTEN``, or nothing for a run never sent."""

    run: Run
    job: str = ""
    state: str = ""

    @property
    def is_live(self) -> bool:
        """Whether the job is queued or running."""
        return bool(self.state) and self.state not in {*ENDED, FORGOTTEN}

    def failure(self) -> Failure:
        """Why the job ended without a result: its last line of error, and where its log is."""
        line, log = last_error(self.job)
        where = f" (see {shown(log)})" if log else ""
        return Failure(f"job {self.job} {self._state}: {line}{where}")

    @property
    def _state(self) -> str:
        return self.state.lower().replace("_", " ")

    def summary_line(self) -> str:
        """What is to be done with it, in a line."""
        if self.is_live:
            return f"{self.run.title}: job {self.job} {self._state}"
        return f"{self.run.title}: to send" + (f" again, {self.failure().cause}" if self.job else "")


def named(sent: Sequence[Sent]) -> str:
    """Jobs in a few words: "job 12 (8 runs)"."""
    ids = list(dict.fromkeys(one.job.partition("_")[0] for one in sent))
    return f"job{'s' * (len(ids) > 1)} {', '.join(ids)} ({len(sent)} run{'s' * (len(sent) > 1)})"


def folder() -> Path:
    """Where scripts and logs are."""
    return paths.results() / "slurm"


def note(run: Run) -> Path:
    """The file that names the job of a run."""
    return run.measurement.folder / "job.json"


def survey(runs: Iterable[Run]) -> list[Sent]:
    """Each run with the job that it was last sent as, and how that is.

    Raises:
        FreproError: Slurm does not answer.
    """
    noted = [(run, _noted(run)) for run in runs]
    known = states(job["job"] for _, job in noted if job)
    return [Sent(run, job["job"], known[job["job"]]) if job else Sent(run) for run, job in noted]


def _noted(run: Run) -> dict[str, str] | None:
    try:
        return json.loads(note(run).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


@contextmanager
def _outside_jobs() -> Iterator[None]:
    """The environment without what Slurm tells a job, where this runs inside one; only its configuration is kept."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    from submitit.helpers import clean_env

    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():
        os.environ.update(kept)
        yield


def states(jobs: Iterable[str]) -> dict[str, str]:
    """Job -> its state, ``FORGOTTEN`` where Slurm no longer knows it.

    Raises:
        FreproError: Slurm does not answer.
    """
    array = {job: job.partition("_")[0] for job in jobs}
    if not array or shutil.which("squeue") is None:
        return dict.fromkeys(array, FORGOTTEN)
    ids = ",".join(sorted(set(array.values())))
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--jobs={ids}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise FreproError(f"Slurm does not answer: {said(done.stderr)}")
    known = dict(line.strip().split("|") for line in done.stdout.splitlines())
    # An array that was cancelled before any of it began is told as one job.
    return {job: known.get(job, known.get(array[job], FORGOTTEN)) for job in array}


def said(text: str) -> str:
    """What Slurm's commands say in their lines of error, in one."""
    found = re.findall(r"^\w+: (?:error: )?(.+)$", text, re.M)
    return "; ".join(dict.fromkeys(found)) or " ".join(text.split()) or "no message"


def last_error(job: str) -> tuple[str, Path | None]:
    """The last error of a job's last attempt in one line, and the log that it stands in.

    Of several processes that failed, the one that did so first: the others fail because it is gone.
    """
    logs = sorted(folder().glob(f"{job}_*_log.out"), key=lambda path: path.stat().st_mtime_ns)
    if not logs:
        return "it left no log", None
    texts = {log: log.read_text(errors="replace").rpartition(ATTEMPT)[2] for log in logs}
    lines = {log: RANK.sub("", text).strip().splitlines() for log, text in texts.items()}
    for pattern in (OURS, ANY):
        for log in logs:
            if errors := [line for line in lines[log] if pattern.match(line)]:
                return OURS.sub("", errors[-1]), log
    told = [line for line in lines[logs[-1]] if not line.startswith(("srun:", "submitit "))]
    return (told[-1] if told else "its log tells no error"), logs[-1]


def wait(waiting: Sequence[Sent], log: Callable[[str], None] = print) -> list[tuple[Run, Failure]]:
    """Wait until each of the runs is in the store or its job has ended without; returns those that failed.

    Args:
        log: Called with a line for each job that changes its state, and for each run that ends.
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
            known, is_answered = states(sent.job for sent in left.values()), True
        except FreproError as error:  # its controller may be starting anew
            if is_answered:
                log(f"{one_line(error)}; asking again")
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
