"""The cache of compiled libraries: a folder private to the user, from which only checked files are loaded.

Loading a library runs its code with all of the user's rights. Therefore neither the folder nor a file in it may belong
to another user or be writable by others. A library is loaded only if its bytes have the SHA-256 stored next to it,
because a damaged one would crash the process. Processes that need the same library at the same time compile it once.
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

# Longer than a compiler takes. A process that has waited this long compiles the library itself, as it does on a file
# system without locks.
SECONDS_TO_WAIT = 600
PART = ".part"


class UntrustedError(OSError):
    """A folder or file that code must not be loaded from."""


def load(name: str, build: Callable[[Path], None], title: str) -> ctypes.CDLL:
    """Load the library of this name from the user's cache. Build it first if it is missing or damaged.

    Args:
        name: File name. It must differ whenever the result of ``build`` would differ.
        build: Writes the library to a path; raises OSError.
        title: What is built, for the message on standard error.

    Raises:
        UntrustedError: Another user owns the folder or the library, or can write there; the message names the remedy.
        OSError: The library cannot be built, stored or loaded.
    """
    if os.name != "posix":
        raise OSError("compiled kernels are for Linux and macOS")
    with _opened() as (folder, path, note):
        with contextlib.suppress(_DamagedError):
            return _loaded(folder, path, name)
        with _locked(path / f"{name}.lock"):
            with contextlib.suppress(_DamagedError):  # another process may have built it in the meantime
                return _loaded(folder, path, name)
            print(f"frepro: compiling {title}, once for this machine, into {path}{note}", file=sys.stderr, flush=True)
            for left in os.listdir(folder):
                if left.startswith(f"{name}.") and left.endswith(PART):  # left by a process that was killed
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
    """The library is missing, or its content is not what was written."""


@contextlib.contextmanager
def _opened() -> Iterator[tuple[int, Path, str]]:
    """Open the user's cache folder, and keep it open so that it cannot be replaced by another one.

    It is in the system's temporary folder if there can be no cache folder.

    Yields:
        The descriptor of the folder, its path, and a note on why the temporary folder is used (empty otherwise).
    """
    note = ""
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frepro"
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_folder(path)
    except UntrustedError:
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
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
    _require(path.lstat(), path)  # for a symbolic link, checks the link itself: its owner decides where it points
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _require(os.fstat(descriptor), path)
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != 0o700:
            os.fchmod(descriptor, 0o700)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path} is not writable")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require(status: os.stat_result, path: Path) -> None:
    """Raise UntrustedError unless the file or folder belongs to this user and nobody else can write to it."""
    if status.st_uid != os.geteuid():
        owner = f"user {status.st_uid}, not to user {os.geteuid()} who would run code from it"
        raise UntrustedError(f"{path} belongs to {owner}: remove it, or set XDG_CACHE_HOME to a folder of your own")
    if not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o022:
        raise UntrustedError(f"{path} is writable by other users, who could put code into it: remove it")


def _read(folder: int, path: Path, name: str) -> bytes:
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        _require(status, path / name)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedError(f"{path / name} is not a regular file: remove it")
        descriptor = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError as error:
        raise _DamagedError(str(error)) from error
    with open(descriptor, "rb") as file:
        _require(os.fstat(descriptor), path / name)
        return file.read()


def _loaded(folder: int, path: Path, name: str) -> ctypes.CDLL:
    content, written = _read(folder, path, name), _read(folder, path, f"{name}.sha256")
    if hashlib.sha256(content).hexdigest().encode() != written:
        raise _DamagedError("its SHA-256 does not match")
    if hasattr(os, "memfd_create"):
        # The system may forbid code in a file in memory; any other error recurs below, where it is reported.
        with contextlib.suppress(OSError):
            return _loaded_from_memory(name, content)
    try:
        return ctypes.CDLL(str(path / name))
    except OSError as error:  # for example, built on a machine with another C library
        raise _DamagedError(str(error)) from error


def _loaded_from_memory(name: str, content: bytes) -> ctypes.CDLL:
    """Load exactly the bytes that were checked, from a file in memory.

    A library that is mapped from the cache would crash the process if its file were truncated in place, or replaced by
    another machine that shares the home directory.
    """
    descriptor = os.memfd_create(name)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        # The descriptor stays open: if another library got the same name, the loader would take it for this one.
        return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
    except OSError:
        os.close(descriptor)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path, timeout=SECONDS_TO_WAIT, mode=0o600)
    with contextlib.suppress(OSError, NotImplementedError):  # the wait timed out, or the file system has no locks
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(folder: int, name: str, content: bytes) -> None:
    """Write a file atomically: it is complete or absent even if this process or the machine stops."""
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
