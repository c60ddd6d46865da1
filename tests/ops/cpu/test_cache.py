"""The cache of compiled code loads what it wrote, whole, and nothing that anybody else could have written."""

import ctypes
import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frepro.ops.cpu import cache
from tests.compiler import needs_compiler

pytestmark = needs_compiler
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
STRANGER = 4242


def compile_c(code: str, target: Path) -> None:
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(target)]
    subprocess.run(command, input=code, text=True, check=True)


class Library:
    """A library that gives 42, its place in a cache, and how often it was compiled."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "frepro"
        self.file = self.folder / "answer.so"
        self.hash = self.folder / f"{self.file.name}.sha256"
        self.builds = 0

    def build(self, target: Path) -> None:
        self.builds += 1
        compile_c("int answer(void) { return 42; }", target)

    def answer(self) -> int:
        return cache.load(self.file.name, self.build, "a test").answer()


@pytest.fixture
def library(tmp_path, monkeypatch) -> Library:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Library(tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_library_is_compiled_once_said_in_one_line_and_kept_for_its_user_alone(library, capfd):
    assert library.answer() == library.answer() == 42
    assert library.builds == 1
    assert capfd.readouterr().err.splitlines() == [
        f"frepro: compiling a test, once for this machine, into {library.folder}"
    ]
    assert mode(library.folder) == 0o700
    assert {mode(path) & 0o077 for path in library.folder.iterdir()} == {0}
    assert library.hash.read_text() == hashlib.sha256(library.file.read_bytes()).hexdigest()


DAMAGES = {
    **{
        f"cut to {share:.0%}": lambda data, share=share: data[: int(share * len(data))] for share in (0, 0.01, 0.5, 0.9)
    },
    "cut by a byte": lambda data: data[:-1],
    "longer by a byte": lambda data: data + b"\0",
    "only zeros": lambda data: bytes(len(data)),
    **{
        f"a bit flipped at {share:.0%}": lambda data, share=share: (
            data[: (i := int(share * (len(data) - 1)))] + bytes([data[i] ^ 1]) + data[i + 1 :]
        )
        for share in (0, 0.3, 0.7, 1)
    },
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_compiled_again(library, damage):
    """And does no harm to a process that has loaded it, as this one has."""
    library.answer()
    whole = library.file.read_bytes()
    library.file.write_bytes(DAMAGES[damage](whole))
    assert library.answer() == 42
    assert library.builds == 2
    assert library.answer() == 42
    assert library.builds == 2
    assert library.hash.read_text() == hashlib.sha256(library.file.read_bytes()).hexdigest()


@pytest.mark.parametrize("content", [None, b"", b"0" * 64, b"\xff"])
def test_a_library_without_its_hash_is_compiled_again(library, content):
    library.answer()
    library.hash.unlink() if content is None else library.hash.write_bytes(content)
    assert library.answer() == 42
    assert library.builds == 2


def test_kernels_that_were_cut_off_kill_no_process(tmp_path):
    """The real ones: loaded unchecked, half of them end a process by a signal."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    code = "from frepro.ops import cpu; print(cpu.reason())"
    command = [sys.executable, "-c", code]
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "None\n"
        assert "compiling the CPU kernels with" in done.stderr
        (kernels,) = (tmp_path / "frepro").glob("*.so")
        os.truncate(kernels, kernels.stat().st_size // 2)


def plant(library: Library, marker: Path) -> None:
    """A library of somebody else's, that leaves a file where it is loaded, and its true hash."""
    library.folder.mkdir(mode=0o700)
    code = f'#include <stdio.h>\n__attribute__((constructor)) void f(void) {{ fclose(fopen("{marker}", "w")); }}'
    compile_c(code, library.file)
    library.hash.write_text(hashlib.sha256(library.file.read_bytes()).hexdigest())
    library.file.chmod(0o600)
    library.hash.chmod(0o600)


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


OPEN_DOORS = {
    "folder written by its group": lambda library: library.folder.chmod(0o770),
    "folder written by all": lambda library: library.folder.chmod(0o1777),
    "library written by its group": lambda library: library.file.chmod(0o660),
    "library written by others": lambda library: library.file.chmod(0o602),
    "hash written by others": lambda library: library.hash.chmod(0o666),
    "library behind a link": lambda library: linked(library.file),
    "hash behind a link": lambda library: linked(library.hash),
}
OTHERS = {
    "folder of another": lambda library: os.chown(library.folder, STRANGER, -1),
    "library of another": lambda library: os.chown(library.file, STRANGER, -1),
    "hash of another": lambda library: os.chown(library.hash, STRANGER, -1),
    "folder behind another's link": lambda library: (
        linked(library.folder),
        os.lchown(library.folder, STRANGER, -1),
    ),
    "link to another's folder": lambda library: (
        os.chown(library.folder, STRANGER, -1),
        linked(library.folder),
    ),
}


@pytest.mark.parametrize("door", [*OPEN_DOORS, *(pytest.param(name, marks=needs_root) for name in OTHERS)])
def test_what_somebody_else_could_have_written_is_refused(library, tmp_path, door):
    marker = tmp_path / "marker"
    plant(library, marker)
    (OPEN_DOORS | OTHERS)[door](library)
    with pytest.raises(OSError, match=r"remove it") as refused:
        library.answer()
    assert len(str(refused.value).splitlines()) == 1
    assert str(library.folder) in str(refused.value)
    assert not marker.exists()
    assert library.builds == 0


def test_the_planted_library_would_leave_its_mark(library, tmp_path):
    plant(library, tmp_path / "marker")
    ctypes.CDLL(str(library.file))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused(library, make):
    library.folder.mkdir()
    make(library.file)
    with pytest.raises(OSError, match="not a regular file"):
        library.answer()


def test_a_folder_behind_a_link_of_ones_own_will_do(library, tmp_path):
    (tmp_path / "scratch").mkdir()
    library.folder.symlink_to(tmp_path / "scratch")
    assert library.answer() == 42
    assert mode(tmp_path / "scratch") == 0o700


def test_kernels_of_others_are_not_used_and_the_reason_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "frepro").mkdir()
    (tmp_path / "frepro").chmod(0o777)
    code = "import torch; from frepro.ops import cpu, gelu; print(cpu.reason()); print(gelu(torch.ones(1)).item() > 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    reason, works = done.stdout.splitlines()
    assert "is writable by other users" in reason
    assert works == "True"
    assert list((tmp_path / "frepro").iterdir()) == []


# Many processes

PROCESS = """
import sys, time
from pathlib import Path
from frepro.ops.cpu import cache
from tests.ops.cpu.test_cache import compile_c

def build(target):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    time.sleep(float(sys.argv[2]))
    compile_c("int answer(void) { return 42; }", target)

print(cache.load("answer.so", build, "a test").answer())
"""


def start(log: Path, seconds: float = 0, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-c", PROCESS, str(log), str(seconds)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | environment, **pipes)


def test_many_processes_compile_once(tmp_path):
    running = [start(tmp_path / "log", 1, XDG_CACHE_HOME=str(tmp_path)) for _ in range(4)]
    said = [process.communicate(timeout=300) for process in running]
    assert [out for out, _ in said] == ["42\n"] * 4
    assert (tmp_path / "log").read_text() == "built\n"
    assert "".join(err for _, err in said).count("compiling a test") == 1


def test_a_process_killed_while_it_compiles_is_in_nobodys_way(tmp_path):
    first = start(tmp_path / "log", 60, XDG_CACHE_HOME=str(tmp_path))
    while not (tmp_path / "log").exists():
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (tmp_path / "frepro" / "answer.so.1.part").write_bytes(b"half")  # as if it had been killed while it wrote
    out, err = start(tmp_path / "log", XDG_CACHE_HOME=str(tmp_path)).communicate(timeout=300)
    assert out == "42\n", err
    assert {path.name for path in (tmp_path / "frepro").iterdir()} <= {
        "answer.so",
        "answer.so.sha256",
        "answer.so.lock",
    }


def test_without_a_cache_all_processes_of_a_user_share_one_folder_and_it_is_said_once(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path / "temporary")}
    said = [start(tmp_path / "log", **environment).communicate(timeout=300) for _ in range(2)]
    assert [out for out, _ in said] == ["42\n"] * 2
    folder = tmp_path / "temporary" / f"frepro-{os.geteuid()}"
    assert list((tmp_path / "temporary").iterdir()) == [folder]
    assert mode(folder) == 0o700
    (line,) = said[0][1].splitlines()
    assert f"into {folder}, as there is no cache folder" in line
    assert said[1][1] == ""
    assert (tmp_path / "log").read_text() == "built\n"


@needs_root
def test_a_temporary_folder_that_another_user_has_laid_out_is_refused(library, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    laid = tmp_path / f"frepro-{os.geteuid()}"
    laid.mkdir(mode=0o700)
    os.chown(laid, STRANGER, -1)
    with pytest.raises(OSError, match=f"belongs to user {STRANGER}"):
        library.answer()


def test_a_compiler_that_fails_leaves_nothing(library):
    def build(target: Path) -> None:
        raise OSError("cc failed: no such header")

    with pytest.raises(OSError, match="no such header"):
        cache.load(library.file.name, build, "a test")
    assert not library.file.exists()
    assert library.answer() == 42
