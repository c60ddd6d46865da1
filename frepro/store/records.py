"""The store of results. Each measurement has a folder named by a hash of its specification, and is written atomically.

Files::

    results/runs/<key>/record.json         the result; it exists only when the run is done
    results/runs/<key>/metrics.jsonl       the course of training, one line per epoch
    results/runs/<key>/checkpoint.safetensors
    results/runs/<key>/correct.npy         which test images a classifier got right, as packed bits
    results/<profile>/<paper>/<artefact>/  executed notebook, tidy CSV, figure, provenance.json

Numbers are stored unrounded. The report rounds them and adds units.
"""

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from frepro import paths
from frepro.errors import FreproError, printable
from frepro.store import provenance
from frepro.store.revisions import raised


def canonical(value: Any) -> str:
    """Return canonical JSON: sorted keys, no spaces, and dataclasses as mappings of their compared fields."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_compared)


def _compared(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value) if field.compare}


@dataclass(frozen=True)
class Measurement:
    """A measurement: its kind, and everything that determines the result.

    Attributes:
        spec: The specification.
        revisions: Behaviour -> revision of everything that the measurement uses (see ``revisions``).
        modules: The modules that it uses. The hash of their code is recorded and shown, but is not part of the key.
    """

    kind: str
    spec: dict[str, Any]
    revisions: dict[str, int] = field(default_factory=dict)
    modules: tuple[str, ...] = ()

    @property
    def asked(self) -> dict[str, Any]:
        """The specification with all revisions except first ones. The key is the hash of this and of the kind."""
        found = raised(self.revisions)
        return {**self.spec, "revisions": found} if found else self.spec

    @property
    def key(self) -> str:
        return provenance.sha256(self.kind, canonical(self.asked))

    @property
    def folder(self) -> Path:
        return paths.results() / "runs" / self.key

    @property
    def file(self) -> Path:
        return self.folder / "record.json"

    def record(self) -> dict[str, Any] | None:
        """Return the stored record; ``None`` if there is none, or if it is damaged: the run is then repeated."""
        try:
            record = read_record(self.file)
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            return None
        return record if record["key"] == self.key else None

    def changed_since(self, record: dict[str, Any]) -> list[str]:
        """Return what has changed since a record was made: modules of frepro, and versions of libraries."""
        stored = record["code"]
        now = provenance.code(*self.modules)
        is_by_module = isinstance(stored, dict)  # records of earlier versions have a single hash of all code
        changed = [name for name in {**stored, **now} if stored.get(name) != now.get(name)] if is_by_module else []
        versions = record["provenance"]["versions"]
        for name in ("torch", "timm"):
            if (found := provenance.version(name)) != versions.get(name):
                changed.append(f"{name} {versions.get(name)}, here {found}")
        return changed

    def earlier(self) -> Iterator[tuple[str, "Measurement"]]:
        """Yield the same measurement at each lower revision of one behaviour, with that behaviour and revision."""
        for name, number in raised(self.revisions).items():
            for lower in range(number - 1, 0, -1):
                yield f"{name} {lower}", replace(self, revisions={**self.revisions, name: lower})

    def set_aside(self) -> Path | None:
        """Rename the folder of a measurement to repeat it, and return the new path; ``None`` without a folder."""
        if not self.folder.exists():
            return None
        with self.lock(), disk_errors(self.folder):
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
            kept = self.folder.with_name(f"{self.key}.before-{stamp}")
            self.folder.rename(kept)
        return kept

    def write(
        self, values: dict[str, Any], seconds: float, device: str, files: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Store the result with its provenance atomically, and return the record.

        Args:
            files: Name -> SHA-256 of the files of weights that belong to the result.
        """
        record = {
            "kind": self.kind,
            "key": self.key,
            "spec": json.loads(canonical(self.asked)),
            "revisions": dict(sorted(self.revisions.items())),
            "code": provenance.code(*self.modules),
            "values": values,
            "seconds": round(seconds, 3),
            **({"files": files} if files else {}),
            "provenance": {**provenance.record(), "device": provenance.device_record(device)},
        }
        write_text(self.file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return record

    def tidy(self) -> None:
        """Remove what a killed process has left in the folder: temporary files, and checkpoints of a finished run."""
        sweep(self.folder)
        if self.record() is not None:
            for path in self.folder.glob("checkpoint-*.safetensors"):
                path.unlink(missing_ok=True)

    @contextmanager
    def lock(
        self, log: Callable[[str], None] | None = None, waiting: Callable[[], object] = lambda: None
    ) -> Iterator[None]:
        """Prevent other processes from making the same measurement.

        Args:
            log: Wait for a process that is making it, and call this with a line that names the process. ``None`` does
                not wait.
            waiting: Called every second while waiting.

        Raises:
            FreproError: Another process is making it, and ``log`` is ``None``; or the file system has no locks.
        """
        holder = self.folder / ".lock.json"  # FileLock may truncate its own file
        with disk_errors(self.folder):
            make_folder(self.folder)
            lock = FileLock(self.folder / ".lock", timeout=0, mode=0o666 & ~_umask())
            has_said = False
            while True:
                try:
                    lock.acquire()
                    break
                except Timeout:
                    who, is_own = _holder(holder)
                    if log is None or is_own:
                        raise FreproError(
                            f"another process is working on run {self.key} ({who}): wait for it, or stop it"
                        ) from None
                    if not has_said:
                        log(f"waiting for another process that is working on run {self.key} ({who})")
                        has_said = True
                except NotImplementedError as error:  # by some versions of filelock, instead of ENOSYS
                    raise OSError(errno.ENOSYS, str(error)) from error
                waiting()
                time.sleep(INTERVAL)
        try:
            sweep(self.folder, MINUTE)  # only the holder of the lock writes here, and `frepro submit` a small file
            now = datetime.now(UTC).isoformat(timespec="seconds")
            write_text(holder, json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": now}) + "\n")
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


INTERVAL = 1.0  # seconds between two attempts to get a lock


def _holder(path: Path) -> tuple[str, bool]:
    """Return who holds a lock, in words, and whether it is this process itself."""
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        is_own = (who["process"], who["host"]) == (os.getpid(), socket.gethostname())
        return printable(f"process {who['process']} on {who['host']} since {who['since']}"), is_own
    except (OSError, ValueError, KeyError, TypeError):  # the other process has not written it yet
        return "a process that has just started", False


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a record.

    Raises:
        ValueError: The file is damaged: it is not JSON, or lacks an entry.
    """
    if (
        os.path.lexists(path) and not path.is_file()
    ):  # also a link to nowhere, and a FIFO, which would wait for a writer
        raise ValueError("not a regular file")
    record = json.loads(path.read_text(encoding="utf-8"))
    kinds: dict[str, Any] = {
        **dict.fromkeys(("kind", "key"), str),
        **dict.fromkeys(("values", "provenance"), dict),
        "seconds": (int, float),
        "code": (dict, str),
    }
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in kinds.items()):
        raise ValueError("not a complete record")
    if not isinstance(record["provenance"].get("versions"), dict):
        raise ValueError("not a complete record")
    return record


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_weights(path: Path) -> None:
    """Raise ``FreproError`` for weights of a run that differ from those that the run stored.

    Any other file passes: only a record next to the file tells what is to be in it.
    """
    try:
        stored = read_record(path.with_name("record.json")).get("files", {}).get(path.name)
        is_damaged = stored is not None and sha256_of_file(path) != stored
    except (OSError, ValueError, RecursionError, AttributeError):
        return
    if is_damaged:
        raise FreproError(
            f"{path} is damaged: its SHA-256 is not the one in the record of its run: delete {path.parent} and train "
            "the run again"
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Convert disk errors to a ``FreproError`` that names the path."""
    another = "choose another folder (for results, FREPRO_RESULTS)"
    full = "free some space and run the same command again"
    reasons = {
        errno.ENOSPC: f"the disk is full: {full}",
        errno.EDQUOT: f"the disk quota is exceeded: {full}",
        errno.EROFS: f"it is on a read-only file system: {another}",
        errno.EACCES: "permission denied: choose a writable folder (for results, FREPRO_RESULTS)",
        errno.EPERM: "permission denied: choose a writable folder (for results, FREPRO_RESULTS)",
        errno.ENOTDIR: "a part of this path is a file, not a folder: choose another (for results, FREPRO_RESULTS)",
        errno.EEXIST: "a part of this path is a file, not a folder: choose another (for results, FREPRO_RESULTS)",
        errno.EISDIR: "it is a folder, not a file: choose another name",
        errno.ENAMETOOLONG: "the path is too long: choose a shorter one",
        errno.ELOOP: f"its symbolic links form a loop: {another}",
        errno.EFBIG: f"the file is larger than the system allows: {another}",
        errno.EIO: f"the disk reports an error: check it, or {another}",
        errno.ESTALE: f"the network file system has lost the folder: mount it again, or {another}",
        errno.ETIMEDOUT: f"the network file system does not respond: try again later, or {another}",
        errno.EMFILE: "too many open files: raise the limit (ulimit -n), or use fewer --jobs or --workers",
        errno.ENFILE: "too many open files: close other programs, or use fewer --jobs or --workers",
        **dict.fromkeys(
            (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP),
            f"the file system does not support locks: {another}",
        ),
    }
    try:
        yield
    except (OSError, SafetensorError) as error:
        said = re.search(r"os error (\d+)", str(error))  # safetensors gives the number only in its message
        number = int(said[1]) if said else getattr(error, "errno", None)
        reason = None if number is None else reasons.get(number)
        if reason is None:
            raise
        raise FreproError(f"cannot write {path}: {reason}") from error


# Temporary folders are next to what they replace, and their names end in host, process and a random part, so that what
# a killed process has left can be told from what another one is writing: ".record.json.node1-4711-5f3a0c.part"
PART = ".part"
OLD = ".old"
PATTERN = re.compile(rf"\.(.+)\.([^.]*)-(\d+)-[0-9a-f]+(?:{PART}|{OLD})")
DAY, MINUTE = 24 * 60 * 60, 60  # in seconds


def temporary_name(path: Path, suffix: str = PART) -> Path:
    """Return a new path next to ``path``; its length does not depend on that of ``path``, which may be the maximum."""
    name = path.name if len(os.fsencode(path.name)) <= 60 else provenance.sha256(os.fsencode(path.name))
    return path.with_name(f".{name}.{_host()}-{os.getpid()}-{secrets.token_hex(6)}{suffix}")


def _host() -> str:
    return re.sub(r"[^\w-]", "_", socket.gethostname())[:64]


def sweep(folder: Path, patience: float = DAY) -> None:
    """Remove the temporary folders in a folder whose writers have ended.

    Args:
        patience: Age in seconds at which a temporary folder of another machine counts as left behind.
    """
    try:
        found = [(path, match) for path in folder.iterdir() if (match := PATTERN.fullmatch(path.name))]
    except OSError:
        return
    for path, match in found:
        with suppress(OSError):  # of another user, or already gone
            if not _is_writing(path, match[2], int(match[3]), patience):
                target = path.with_name(match[1])
                if path.name.endswith(OLD) and not target.exists():  # killed between the two renames of _put_in_place
                    path.rename(target)
                else:
                    shutil.rmtree(path, ignore_errors=True)


def _is_writing(path: Path, host: str, process: int, patience: float) -> bool:
    if host != _host():
        return time.time() - path.lstat().st_mtime < patience
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OverflowError:  # the name only looks like one of ours
        return True
    except OSError:  # a process of another user
        return True
    return True


def _umask() -> int:
    """Return the umask. It can only be read by setting it, except on Linux."""
    with suppress(OSError):
        if found := re.search(r"^Umask:\s*(\d+)", Path("/proc/self/status").read_text(), re.M):
            return int(found[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, and store them on disk."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync(each.parent)


def sync(path: Path) -> None:
    """Wait until a file or the entries of a folder are on disk; some file systems cannot do this for folders."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, not yet created, that replaces ``path`` on success.

    The file is in a temporary folder of its own, because safetensors writes to another temporary file next to it.
    """
    with disk_errors(path):
        make_folder(path.parent)
        sweep(path.parent)
        folder = temporary_name(path)
        temporary = folder / path.name
        folder.mkdir()
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())  # safetensors creates private files
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_replace(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``folder`` on success, and is deleted on an error.

    If several processes replace a folder at once, the last one wins. A reader always finds a complete folder.
    """
    with disk_errors(folder):
        make_folder(folder.parent)
        sweep(folder.parent)
        fresh = temporary_name(folder)
        fresh.mkdir()
    try:
        with disk_errors(folder):
            yield fresh
            for each in (*fresh.rglob("*"), fresh):
                if each.is_file() or each.is_dir():
                    sync(each)
            _put_in_place(fresh, folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # what it contains now is the old result, if there was one


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Give a folder the name of another one, whose content it gets instead if that exists."""
    while True:
        try:
            fresh.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            if not _exchange(fresh, folder):
                old = temporary_name(folder, OLD)
                folder.rename(old)
                try:
                    fresh.rename(folder)
                except OSError:
                    shutil.rmtree(old, ignore_errors=True)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            return
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST) or not fresh.exists():
                raise  # otherwise, another process has renamed the folder in the meantime


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths in one step; return whether this system and file system can do that."""
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        result = libc.renamex_np(os.fsencode(a), os.fsencode(b), 2)  # RENAME_SWAP
    elif hasattr(libc, "renameat2"):
        at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        result = libc.renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange)
    else:
        return False
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(b))
