"""The store: equal questions have one key, and a file is there whole or not at all."""

import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from frepro import papers
from frepro.errors import FreproError
from frepro.store import records
from frepro.store.records import Measurement
from frepro.training.checkpoint import save


def test_key_depends_on_content_alone():
    a = Measurement("train", {"model": "m", "seed": 0, "recipe": {"lr": 0.1, "epochs": 3}})
    b = Measurement("train", {"recipe": {"epochs": 3, "lr": 0.1}, "seed": 0, "model": "m"}, modules=("frepro.errors",))
    assert a.key == b.key
    assert a.key != Measurement("train", {**a.spec, "seed": 1}).key
    assert a.key != Measurement("eval", a.spec).key


def test_what_does_not_compare_is_no_part_of_the_canonical_form():
    row = papers.Row([1, "a"], line=3)
    assert records.canonical(row) == records.canonical(papers.Row([1, "a"], line=4))
    assert records.canonical(row) != records.canonical(papers.Row([2, "a"], line=3))


def test_a_revision_is_part_of_the_key_once_it_is_not_the_first():
    a = Measurement("train", {"seed": 0})
    assert Measurement("train", {"seed": 0}, {"loop": 1, "dfformer": 1}).key == a.key
    raised = Measurement("train", {"seed": 0}, {"loop": 1, "dfformer": 3})
    assert raised.key != a.key
    assert {name: each.key for name, each in raised.earlier()} == {
        "dfformer 2": Measurement("train", {"seed": 0}, {"dfformer": 2}).key,
        "dfformer 1": a.key,
    }


def test_record_round_trip_and_what_changed_since(store, monkeypatch):
    measurement = Measurement("train", {"seed": 0}, modules=("frepro.errors",))
    assert measurement.record() is None
    measurement.write({"top1": 97.0}, 1.5, "cpu")
    assert measurement.record()["values"] == {"top1": 97.0}
    record = measurement.record()
    assert list(record["code"]) == ["frepro.errors"]
    assert measurement.changed_since(record) == []
    with monkeypatch.context() as patch:  # other code, and another torch: told, and the record stands
        patch.setattr("frepro.store.provenance.code", lambda *modules: {"frepro.errors": "other"})
        patch.setattr(
            "frepro.store.provenance.version", {"torch": "9.0", "timm": record["provenance"]["versions"]["timm"]}.get
        )
        assert measurement.record() == record
        changed = measurement.changed_since(record)
    assert changed == ["frepro.errors", f"torch {record['provenance']['versions']['torch']}, here 9.0"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "null",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"values"', '"valves"'),
        lambda text: text.replace('"values": {', '"values": [{').replace('"seconds"', '"x": 1}], "seconds"'),
        lambda text: text.replace('"key": "', '"key": "0'),
        lambda text: text.replace('"versions"', '"verses"'),
        lambda text: "\0" * len(text),
        lambda text: text.replace("97.0", "97.0\udcff"),
    ],
)
def test_a_damaged_record_counts_as_missing(store, damage):
    measurement = Measurement("train", {"seed": 0}, modules=("frepro.errors",))
    measurement.write({"top1": 97.0}, 1.5, "cpu")
    text = damage(measurement.file.read_text())
    measurement.file.write_bytes(text.encode(errors="surrogateescape"))
    assert measurement.record() is None
    measurement.write({"top1": 97.0}, 1.5, "cpu")
    assert measurement.record()["values"] == {"top1": 97.0}


@pytest.mark.parametrize("kind", ["fifo", "loop", "nowhere"])
def test_what_is_no_file_is_no_record_and_is_replaced(store, kind):
    measurement = Measurement("train", {"seed": 0})
    measurement.folder.mkdir(parents=True)
    make = {
        "fifo": os.mkfifo,
        "loop": lambda file: file.symlink_to(file.name),
        "nowhere": lambda file: file.symlink_to("nowhere"),
    }
    make[kind](measurement.file)
    assert measurement.record() is None
    record = measurement.write({"top1": 97.0}, 1.5, "cpu")
    assert measurement.record() == record


def test_weights_that_differ_from_those_of_the_run_are_refused(store):
    measurement = Measurement("train", {"seed": 0})
    path = measurement.folder / "model.safetensors"
    records.write_text(path, "weights")
    records.check_weights(path)  # nothing tells what it should contain
    measurement.write({}, 1.0, "cpu", {path.name: records.sha256_of_file(path)})
    records.check_weights(path)
    records.check_weights(path.with_name("other.safetensors"))
    path.write_text("weighty")
    with pytest.raises(FreproError, match=r"model\.safetensors is damaged: its SHA-256 is not the one in the record"):
        records.check_weights(path)


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    records.write_text(path, "old")
    code = (
        "import sys, time\nsys.argv[0] = 'frepro'\nfrom pathlib import Path\nfrom frepro.store import records\n"
        "with records.atomic_write(Path(sys.argv[1])) as part:\n"
        "    part.write_text('new')\n    print('writing', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    assert len(os.listdir(tmp_path)) == 2
    records.sweep(tmp_path)  # what is being written stays
    assert len(os.listdir(tmp_path)) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.read_text() == "old"
    records.write_text(tmp_path / "y.txt", "another")
    assert sorted(os.listdir(tmp_path)) == ["x.txt", "y.txt"]


def test_only_temporary_folders_of_killed_writers_are_swept(tmp_path, monkeypatch):
    own = records.temporary_name(tmp_path / "x.txt")
    own.mkdir()
    monkeypatch.setattr(records, "_host", lambda: "elsewhere")
    other, old = records.temporary_name(tmp_path / "x.txt"), records.temporary_name(tmp_path / "y.txt")
    monkeypatch.undo()
    other.mkdir()
    old.mkdir()
    os.utime(old, (0, 0))
    kept = [".x.txt.part", ".hidden", "x.part", ".x.node-1-zz.part"]
    for name in kept:
        (tmp_path / name).touch()
    records.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([own.name, other.name, *kept])
    records.sweep(tmp_path / "missing")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002, 0o077])
def test_files_and_folders_have_the_mode_that_the_user_wants(tmp_path, mask):
    before = os.umask(mask)
    try:
        records.write_text(tmp_path / "a" / "b" / "x.txt", "")
        with records.atomic_replace(tmp_path / "c") as fresh:
            records.write_text(fresh / "x.txt", "")
        save(tmp_path / "a" / "w.safetensors", {})
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    records.write_text(tmp_path / ("ä" * 127), "text")
    assert os.listdir(tmp_path) == ["ä" * 127]
    with pytest.raises(FreproError, match="the path is too long"):
        records.write_text(tmp_path / ("x" * 256), "text")


REPLACE = """
import sys
from pathlib import Path
from frepro.store import records
if sys.argv[2] == "renames":
    records._exchange = lambda a, b: False
for number in range(10):
    with records.atomic_replace(Path(sys.argv[1])) as fresh:
        (fresh / "a").write_text(str(number))
        (fresh / "b").write_text(str(number))
"""


@pytest.mark.parametrize("how", ["exchange", "renames"])
def test_a_folder_that_many_replace_at_once_is_always_there(tmp_path, how):
    folder = tmp_path / "result"
    with records.atomic_replace(folder) as fresh:
        (fresh / "a").write_text("first")
    command = [sys.executable, "-c", REPLACE, str(folder), how]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    while any(writer.poll() is None for writer in writers):
        if how == "exchange":  # two renames, where the system has no better way, leave a gap
            (folder / "a").read_text()
            time.sleep(0.001)
    assert [writer.communicate()[1] for writer in writers] == [""] * 3
    assert (folder / "a").read_text() == (folder / "b").read_text() == "9"
    assert os.listdir(tmp_path) == ["result"]


def test_a_folder_between_two_renames_comes_back(tmp_path):
    """As a killed process leaves it where the system cannot exchange two folders."""
    process = subprocess.Popen(["true"])
    process.wait()
    old = tmp_path / f".result.{records._host()}-{process.pid}-0a{records.OLD}"
    old.mkdir()
    (old / "a").write_text("1")
    records.sweep(tmp_path)
    assert (tmp_path / "result" / "a").read_text() == "1"


def test_a_folder_is_replaced_at_once_or_not(tmp_path):
    folder = tmp_path / "result"
    with records.atomic_replace(folder) as fresh:
        (fresh / "a").write_text("1")
    with pytest.raises(RuntimeError), records.atomic_replace(folder) as fresh:
        (fresh / "a").write_text("2")
        raise RuntimeError("stopped in the middle")
    assert (folder / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["result"]


def test_one_process_at_a_time(store):
    measurement = Measurement("train", {"seed": 0})
    code = (
        "import sys, time\nsys.argv[0] = 'frepro'\nfrom frepro.store.records import Measurement\n"
        "with Measurement('train', {'seed': 0}).lock():\n    print('locked', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    who = rf"process {process.pid} on {re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\dT"
    with pytest.raises(FreproError, match=f"another process is working on run .*{who}"), measurement.lock():
        pass
    process.kill()
    process.wait()
    started = time.perf_counter()
    with measurement.lock():  # the lock of a dead process is free
        assert time.perf_counter() - started < 5
        # Nobody else will give this one back.
        with pytest.raises(FreproError, match=f"process {os.getpid()} on "), measurement.lock(print):
            pass
    assert [path.name for path in measurement.folder.iterdir()] == [".lock"]


def test_a_process_that_waits_says_for_whom_and_takes_over(store):
    measurement, said = Measurement("train", {"seed": 0}), []
    code = (
        "import sys\nsys.argv[0] = 'frepro'\nfrom frepro.store.records import Measurement\n"
        "measurement = Measurement('train', {'seed': 0})\n"
        "with measurement.lock():\n    print('locked', flush=True)\n    input()\n"
        "    measurement.write({}, 1.0, 'cpu')\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)
    assert process.stdout.readline() == "locked\n"

    def go_on() -> None:
        if process.stdin.closed:
            return
        process.stdin.write("\n")
        process.stdin.close()

    with measurement.lock(said.append, go_on):
        assert measurement.record() is not None
    process.wait()
    (line,) = said
    assert line.startswith(
        f"waiting for another process that is working on run {measurement.key} (process {process.pid}"
    )


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ESTALE, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_one_line_or_a_lock_that_works(store, monkeypatch, number):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    measurement = Measurement("train", {"seed": 0})
    expected = pytest.raises(FreproError, match=r"^(another process is working|cannot write .*: .*)")
    with expected as error, measurement.lock(), measurement.lock():  # the first may work, but then the second must not
        pass
    assert "\n" not in str(error.value)


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FreproError, match="a part of this path is a file, not a folder"):
        records.write_text(tmp_path / "file" / "x", "text")


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [("size=64k", 200_000, "the disk is full"), ("ro", 10, "read-only file system")],
)
def test_full_disk_and_read_only_disk(tmp_path, options, size, message):
    """On a small file system of its own, in a mount namespace."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a process mount a file system of its own")
    code = (
        "import sys\nsys.argv[0] = 'frepro'\nfrom pathlib import Path\nfrom frepro.store import records\n"
        f"folder = Path({str(tmp_path)!r}) / 'x'\n"
        f"try: records.write_text(folder / 'y.txt', 'a' * {size})\n"
        "except records.FreproError as error: print(error)\n"
        "import numpy as np\nfrom safetensors.numpy import save_file\n"
        "try:\n"
        "    with records.atomic_write(folder / 'w.safetensors') as part:\n"
        f"        save_file({{'w': np.zeros({size}, np.uint8)}}, part)\n"
        "except records.FreproError as error: print(error)\n"
        f"print(sorted(p.name for p in Path({str(tmp_path)!r}).glob('x/*')))\n"
    )
    script = f'mount -t tmpfs -o {options} none {tmp_path} && exec {sys.executable} -c "$CODE"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], env={**os.environ, "CODE": code}, capture_output=True, text=True
    )
    assert done.stdout.count(message) == 2, done.stdout + done.stderr  # text and weights
    assert done.stdout.endswith("[]\n")
