"""The store: equal questions have one key, and a file is there whole or not at all."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from frepro import papers
from frepro.errors import FreproError
from frepro.store import records
from frepro.store.records import Measurement


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
    (measurement.folder / "record.json").write_text("{half")
    with pytest.raises(FreproError, match="damaged"):
        measurement.record()


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
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.read_text() == "old"


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
    with pytest.raises(FreproError, match="another process is working on run"), measurement.lock():
        pass
    process.kill()
    process.wait()
    started = time.perf_counter()
    with measurement.lock():  # the lock of a dead process is free
        assert time.perf_counter() - started < 5


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
