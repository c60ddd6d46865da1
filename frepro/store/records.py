"""The store of results. Each measurement has a folder named by a hash of its specification, and is written atomically.

Files::

    results/runs/<key>/record.json         the result; it exists only when the run is done
    results/runs/<key>/metrics.jsonl       the course of training, one line per epoch
    results/runs/<key>/checkpoint.safetensors
    results/<profile>/<paper>/<artefact>/  executed notebook, tidy CSV, figure, provenance.json

Numbers are stored unrounded. The report rounds them and adds units.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from frepro import paths
from frepro.errors import FreproError
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

    def record(self) -> dict[str, Any] | None:
        """Return the stored record; ``None`` if there is none."""
        path = self.folder / "record.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise FreproError(f"{path} is damaged ({error}): delete it to repeat the run") from error

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

    def write(self, values: dict[str, Any], seconds: float, device: str) -> dict[str, Any]:
        """Store the result with its provenance atomically, and return the record."""
        record = {
            "kind": self.kind,
            "key": self.key,
            "spec": json.loads(canonical(self.asked)),
            "revisions": dict(sorted(self.revisions.items())),
            "code": provenance.code(*self.modules),
            "values": values,
            "seconds": round(seconds, 3),
            "provenance": {**provenance.record(), "device": provenance.device_record(device)},
        }
        write_text(self.folder / "record.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return record

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Prevent other processes from making the same measurement.

        Raises:
            FreproError: Another process is making it.
        """
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise FreproError(f"another process is working on run {self.key}: wait for it, or stop it") from None
        try:
            yield
        finally:
            lock.release()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Convert disk errors to a ``FreproError`` that names the path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reasons = {
            errno.ENOSPC: "the disk is full: free some space and run the same command again",
            errno.EDQUOT: "the disk quota is exceeded: free some space and run the same command again",
            errno.EROFS: "it is on a read-only file system: choose another folder (for results, FREPRO_RESULTS)",
            errno.EACCES: "permission denied: choose a writable folder (for results, FREPRO_RESULTS)",
            errno.EPERM: "permission denied: choose a writable folder (for results, FREPRO_RESULTS)",
            errno.ENOTDIR: "a part of this path is a file, not a folder: choose another (for results, FREPRO_RESULTS)",
            errno.EEXIST: "a part of this path is a file, not a folder: choose another (for results, FREPRO_RESULTS)",
        }
        said = re.search(r"os error (\d+)", str(error))  # safetensors gives the number only in its message
        reason = reasons.get(int(said[1]) if said else getattr(error, "errno", None) or 0)
        if reason is None:
            raise
        raise FreproError(f"cannot write {path}: {reason}") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces ``path`` on success, and is deleted on an error."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            yield Path(name)
            with open(name, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp creates private files
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_replace(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``folder`` on success, and is deleted on an error."""
    old = folder.with_name(f".{folder.name}.old")
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not folder.exists():  # a process was killed between the two renames below
            old.rename(folder)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        fresh.chmod(0o755)
    try:
        with disk_errors(folder):
            yield fresh
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            fresh.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
