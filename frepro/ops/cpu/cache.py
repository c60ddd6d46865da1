"""Where compiled code is kept: a folder that is the user's alone, from which only what was checked is loaded.

Loading a library runs it, with all that the user may do. So neither the folder nor a file in it may belong to anybody
else or be writable for others, and a library is loaded only if its bytes have the SHA-256 written down beside it: a
damaged one would kill the process. Processes that want the same library at the same time compile it once.
"""

import contextlib
import ctypes
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

# Longer than a compiler takes: a process that waits so long compiles by itself, as where locks do not work.
SECONDS_TO_WAIT = 600
PART = ".part"


class UntrustedError(OSError):
    """A folder or file from which no code may be loaded."""


def load(name: str, build: Callable[[Path], None], title: str) -> ctypes.CDLL:
    """The library of that name in the user's cache, built if it is not there or damaged.

    Args:
        name: File name, different for all that differs in what ``build`` makes.
        build: Writes the library to a path; raises OSError.
        title: What is built, for the line on standard error that says so.

    Raises:
        UntrustedError: Somebody else owns the folder or the library, or can write there; the message says what to do.
        OSError: The library cannot be built, kept or loaded.
    """
    if os.name != "posix":
        raise OSError("compiled kernels are for Linux and macOS")
    with _opened() as (folder, path, note):
        with contextlib.suppress(_DamagedError):
            return _loaded(folder, path, name)
        with _locked(path / f"{name}.lock"):
            with contextlib.suppress(_DamagedError):  # made by another process meanwhile
                return _loaded(folder, path, name)
            print(f"frepro: compiling {title}, once for this machine, into {path}{note}", file=sys.stderr, flush=True)
            for left in os.listdir(folder):
                if left.startswith(f"{name}.") and left.endswith(PART):  # by a process that was killed
                    os.unlink(left, dir_fd=folder)
            with tempfile.TemporaryDirectory(prefix="frepro-") as workshop:
                build(Path(workshop) / name)
                content = (Path(workshop) / name).read_bytes()
            _write(folder, name, content)
            _write(folder, f"{name}.sha256", hashlib.sha256(content).hexdigest().encode())
            try:
                return _loaded(folder, path, name)
            except _DamagedError as error:
                raise OSError(f"the compiled library {path / name} cannot be loaded: {error}") from error


class _DamagedError(Exception):
    """There is no such library, or it is not what was written."""


@contextlib.contextmanager
def _opened() -> Iterator[tuple[int, Path, str]]:
    """A folder of the user's own, held open so that no other can take its place: descriptor, path, and why it is used.

    That is the cache, or where there can be none, one in the system's temporary folder.
    """
    note = ""
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frepro"
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_folder(path)
    except UntrustedError:
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        note = f", as there is no cache folder ({error})"
        path = Path(tempfile.gettempdir()) / f"frepro-{os.geteuid()}"
        descriptor = _open_folder(path)
    try:
        yield descriptor, path, note
    finally:
        os.close(descriptor)


def _open_folder(path: Path) -> int:
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    _require(path.lstat(), path)  # of a symbolic link, the link: who owns it says where it leads
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _require(os.fstat(descriptor), path)
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != 0o700:
            os.fchmod(descriptor, 0o700)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path} cannot be written")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require(status: os.stat_result, path: Path) -> None:
    """Raise an error unless the file or folder belongs to this user and nobody else can write it."""
    if status.st_uid != os.geteuid():
        owner = f"user {status.st_uid}, not to user {os.geteuid()} who would run code from it"
        raise UntrustedError(f"{path} belongs to {owner}: remove it, or set XDG_CACHE_HOME to a folder of your own")
    if not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o022:
        raise UntrustedError(f"{path} can be written by others, who could put code into it: remove it")


def _read(folder: int, path: Path, name: str) -> bytes:
    # A FIFO would wait for somebody to write.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        _require(status, path / name)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedError(f"{path / name} is no ordinary file: remove it")
        descriptor = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError as error:
        raise _DamagedError(str(error)) from error
    with open(descriptor, "rb") as file:
        _require(os.fstat(descriptor), path / name)
        return file.read()


def _loaded(folder: int, path: Path, name: str) -> ctypes.CDLL:
    content, written = _read(folder, path, name), _read(folder, path, f"{name}.sha256")
    if hashlib.sha256(content).hexdigest().encode() != written:
        raise _DamagedError("its SHA-256 is another")
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # no file in memory may be run, or what ``path`` will say
            return _loaded_from_memory(name, content)
    try:
        return ctypes.CDLL(str(path / name))
    except OSError as error:  # made on a machine with another C library
        raise _DamagedError(str(error)) from error


def _loaded_from_memory(name: str, content: bytes) -> ctypes.CDLL:
    """The very bytes that were checked: whatever becomes of the file, it cannot kill a process that maps it.

    (As a file does that is cut off in place, or replaced by another machine that shares the home directory.)
    """
    descriptor = os.memfd_create(name)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        # It stays open, or another library could get its name, by which the loader takes it for this one.
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except OSError:
        os.close(descriptor)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path, timeout=SECONDS_TO_WAIT, mode=0o600)
    with contextlib.suppress(OSError, NotImplementedError):  # too long, or a file system without locks
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(folder: int, name: str, content: bytes) -> None:
    """A file whole or not at all, whatever stops this process or the machine."""
    part = f"{name}.{os.getpid()}{PART}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(part, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=folder)
        raise
