"""What Slurm and its logs tell about jobs.

``squeue`` tells whether a job is still queued or running: every cluster has it, whereas ``sacct`` needs an accounting
database.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from frepro import paths
from frepro.errors import FreproError

# States of a job that has ended. A job that Slurm no longer knows has ended too.
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}
FORGOTTEN = "ENDED"

# Patterns in logs: the start of an attempt, torch's prefix of traceback lines, frepro's errors, and any error.
ATTEMPT = " - Starting with JobEnvironment("
RANK = re.compile(r"^\[rank\d+\]: ", re.M)
OURS = re.compile(r"^frepro\.errors\.FreproError: ")
ANY = re.compile(r"^(?:[\w.]+(?:Error|Exception|Interrupt)\b|slurmstepd: error: )")


def folder() -> Path:
    """Return the folder of batch scripts and logs."""
    return paths.results() / "slurm"


@contextmanager
def outside_jobs() -> Iterator[None]:
    """Remove Slurm's variables from the environment while inside a job, except for the path of its configuration."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    from submitit.helpers import clean_env

    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():
        os.environ.update(kept)
        yield


def states(jobs: Iterable[str]) -> dict[str, str]:
    """Return job -> state, ``FORGOTTEN`` for a job that Slurm no longer knows.

    Raises:
        FreproError: Slurm does not respond.
    """
    array = {job: job.partition("_")[0] for job in jobs}
    if not array or shutil.which("squeue") is None:
        return dict.fromkeys(array, FORGOTTEN)
    ids = ",".join(sorted(set(array.values())))
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--jobs={ids}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise FreproError(f"Slurm does not respond: {said(done.stderr)}")
    known = dict(line.strip().split("|") for line in done.stdout.splitlines())
    # squeue lists an array that was cancelled before any of its jobs started as a single job.
    return {job: known.get(job, known.get(array[job], FORGOTTEN)) for job in array}


def said(text: str) -> str:
    """Return the error lines of a Slurm command as one line."""
    found = re.findall(r"^\w+: (?:error: )?(.+)$", text, re.M)
    return "; ".join(dict.fromkeys(found)) or " ".join(text.split()) or "no message"


def last_error(job: str) -> tuple[str, Path | None]:
    """Return the last error of a job's last attempt in one line, and the log that contains it.

    If several processes failed, this is the error of the first one: the others fail because it is gone.
    """
    logs = sorted(folder().glob(f"{job}_*_log.out"), key=lambda path: path.stat().st_mtime_ns)
    if not logs:
        return "it wrote no log", None
    texts = {log: log.read_text(errors="replace").rpartition(ATTEMPT)[2] for log in logs}
    lines = {log: RANK.sub("", text).strip().splitlines() for log, text in texts.items()}
    for pattern in (OURS, ANY):
        for log in logs:
            if errors := [line for line in lines[log] if pattern.match(line)]:
                return OURS.sub("", errors[-1]), log
    output = [line for line in lines[logs[-1]] if not line.startswith(("srun:", "submitit "))]
    return (output[-1] if output else "its log has no error"), logs[-1]
