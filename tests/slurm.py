"""A Slurm of one node, on this machine, by the user who runs the tests: Debian's slurm-wlm and munge."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Daemons are beside the path of users.
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])
CORES = 8  # that it believes to have, so that every test's processes are started at once

# A requeued job waits as long as a credential lives, of which five seconds is the least.
CONF = """
ClusterName=frepro
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=2
SchedulerParameters=sched_interval=2
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """What of Slurm and munge is not installed."""
    commands = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
    return [name for name in commands if shutil.which(name, path=PATH) is None]


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """Slurm, with all its files in ``folder``, whose path is short enough for a socket; ``SLURM_CONF`` names it."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    conf = folder / "slurm.conf"
    controller, node = free_ports()
    conf.write_text(CONF.format(folder=folder, user=getpass.getuser(), controller=controller, node=node, cores=CORES))
    munge = [f"--{name}-file={folder / f'munge.{name}'}" for name in ("key", "pid", "log", "seed")]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder / 'munge.socket'}", *munge],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-N", "localhost", "-f", str(conf)],
    ]
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(conf)
    started = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("w") as out:
                # A session of its own: Ctrl-C in a terminal is for the tests, which then end the daemons in order.
                started.append(
                    subprocess.Popen(
                        command, stdout=out, stderr=out, env={**os.environ, "PATH": PATH}, start_new_session=True
                    )
                )
            if command[0] == "munged":
                until(lambda: munge_is_up(folder), 30, f"munged did not start, see {folder}")
        until(node_is_idle, 60, f"Slurm did not start, see {folder}")
        yield
    finally:
        subprocess.run(["scancel", "--user", getpass.getuser()], capture_output=True)
        wait_until_empty()
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def munge_is_up(folder: Path) -> bool:
    command = ["munge", "--no-input", f"--socket={folder / 'munge.socket'}"]
    return subprocess.run(command, capture_output=True).returncode == 0


def node_is_idle() -> bool:
    return said("sinfo", "--noheader", "--format=%T") == "idle"


def wait_until_empty() -> None:
    """No process of a job is left behind."""
    deadline = time.monotonic() + 20
    while said("squeue", "--noheader") and time.monotonic() < deadline:
        time.sleep(0.2)


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def until(is_so, seconds: float, otherwise: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)
