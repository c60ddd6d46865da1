"""What frepro starts ends with it, whatever ends it: real processes, signals of the system, nothing left behind."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.data.test_sources import make_folder

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")

TABLE_4 = ("reproduce", "--paper", "dfformer", "--table", "4", "--profile", "smoke", "--device", "cpu", "--jobs", "2")
STOPPED = "stopped; finished work is kept, and the same command resumes from there"
GRACE = 10  # seconds, of a machine that is busy with other tests


def alive(store: Path) -> dict[int, str]:
    """The processes that write to this store, whoever their parent is now, with their command lines."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and f"FREPRO_RESULTS={store}".encode() in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # gone meanwhile
            continue
    return found


@pytest.fixture(autouse=True)
def swept(store):
    """What a failed test would leave behind."""
    yield
    for process in alive(store):
        os.kill(process, signal.SIGKILL)


def is_drawing(process: int) -> bool:
    """Whether it has come to import matplotlib, as the first cell of a notebook does."""
    try:
        return "ft2font" in Path(f"/proc/{process}/maps").read_text()
    except OSError:
        return False


def wait_for(condition: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (found := bool(condition())) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def start(*arguments: str) -> subprocess.Popen:
    """The command line in a session of its own, with the signals of a terminal."""
    command = [sys.executable, "-m", "frepro", *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )


def check_end(process: subprocess.Popen, number: signal.Signals, store: Path) -> None:
    """Send a signal to the one process alone; all others end with it, and what it says is one line."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    expected = {
        signal.SIGTERM: (143, [STOPPED]),
        signal.SIGINT: (130, [STOPPED]),
        signal.SIGKILL: (-signal.SIGKILL, []),
    }
    # What `bench` and `train` log before.
    logged = re.compile("operations: |dfformer_s18 starts from random weights")
    lines = [line for line in errors.splitlines() if line and not logged.match(line)]
    assert (process.returncode, lines) == expected[number]
    assert wait_for(lambda: not alive(store), GRACE), alive(store)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_runs_side_by_side_end_with_their_parent(number, store, frepro_command):
    process = start(*TABLE_4, "--seeds", "3")
    for line in process.stdout:
        if line.startswith("[2/"):
            break
    assert sum("popen_loky" in command for command in alive(store).values()) == 2
    check_end(process, number, store)
    # Nothing holds the lock of a run: the command goes on.
    models = ("-p", "models", '["dfformer_s18"]')
    done = frepro_command(*TABLE_4, "--seeds", "1", *models)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_kernel_of_a_notebook_ends_with_its_parent(number, store):
    process = start(*TABLE_4, "--seeds", "1", "-p", "models", '["dfformer_s18"]')
    assert wait_for(lambda: any(is_drawing(each) for each, name in alive(store).items() if "ipykernel" in name), 120)
    check_end(process, number, store)
    assert not [path for path in store.rglob(".table_4.*") if number != signal.SIGKILL]


def kill(process: subprocess.Popen, kind: int, rng: random.Random, store: Path) -> None:
    """Kill a command alone, its whole group, or one of the processes that it has started and then the command."""
    if kind == 0:
        process.kill()
    elif kind == 1:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        if others := sorted(alive(store).keys() - {process.pid}):
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(others), signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, 3))
        process.kill()


def test_reproduce_killed_at_random_moments_ends_as_if_it_had_not_been(store, frepro_command, tmp_path, monkeypatch):
    """At the start, in training, timing or the notebook. FREPRO_KILLS is the number of kills; a release takes 100."""
    arguments = (*TABLE_4, "--seeds", "2", "-p", "models", '["dfformer_s18"]')
    rng = random.Random(0)
    for number in range(int(os.environ.get("FREPRO_KILLS", "6"))):
        process = start(*arguments)
        if number % 4:  # others are killed at the start
            wait_for(lambda: store.exists() or process.poll() is not None, 60)  # noqa: B023
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, 8))
        if process.poll() is None:
            kill(process, number % 3, rng, store)
        _, errors = process.communicate()
        assert "Traceback" not in errors, errors
        assert wait_for(lambda: not alive(store), GRACE), alive(store)
        if number % 10 == 9:  # begin with nothing again, so that kills do not all come after the work is done
            shutil.rmtree(store, ignore_errors=True)
    assert frepro_command(*arguments).returncode == 0
    files = {str(path.relative_to(store)): path for path in store.rglob("*") if path.is_file()}
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "straight"))
    assert frepro_command(*arguments).returncode == 0
    expected = {str(path.relative_to(tmp_path / "straight")): path for path in (tmp_path / "straight").rglob("*")}
    assert files.keys() == {name for name, path in expected.items() if path.is_file()}
    for name, path in files.items():
        if path.suffix == ".safetensors":
            assert path.read_bytes() == expected[name].read_bytes()
        if path.suffix == ".jsonl":
            assert path.read_text().count("\n") == expected[name].read_text().count("\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_that_load_data_end_with_training(number, store, tmp_path):
    data = make_folder(tmp_path / "pets", images=200)
    process = start("train", "--model", "dfformer_s18", "--device", "cpu", "--data", str(data), "--workers", "2")
    assert wait_for(lambda: sum("frepro train" in command for command in alive(store).values()) == 3, 120)
    check_end(process, number, store)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_section_of_the_benchmark_ends_with_it(number, store):
    process = start("bench", "--smoke", "--device", "cpu", "--only", "operations")
    # Its fork server, and what that has forked.
    assert wait_for(lambda: sum("forkserver" in command for command in alive(store).values()) == 2, 120)
    check_end(process, number, store)


def test_six_at_once_make_each_run_once(store):
    """The same table three times, and one with another run besides three times."""
    one, two = '["dfformer_s18"]', '["dfformer_s18", "gfformer_s18"]'
    commands = [(*TABLE_4, "--seeds", "1", "-p", "models", models) for models in (one, two) * 3]
    processes = [start(*arguments) for arguments in commands]
    written: dict[str, set[int]] = {}  # the files of each record that were seen: a run that is made again has two
    while any(process.poll() is None for process in processes):
        for record in store.glob("runs/*/record.json"):
            with contextlib.suppress(FileNotFoundError):
                written.setdefault(record.parent.name, set()).add(record.stat().st_ino)
        time.sleep(0.02)
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert all(line.startswith("waiting for another process") for line in errors.splitlines()), errors
    assert [len(files) for files in written.values()] == [1] * 4  # two runs, and two timings
    assert len(list(store.glob("smoke-*/dfformer/table_4/provenance.json"))) == 2
    assert not list(store.rglob("*.part"))
