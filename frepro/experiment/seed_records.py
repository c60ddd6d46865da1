"""Records of the seeds of a table in one small file, with which another machine can go on.

``seeds.jsonl`` next to a table of classifiers has a line for each run: its key, values and origin, and which test
images it got right. ``adopt`` puts those that are missing into the store, marked as adopted. They have no weights, so
whatever needs the network repeats the run.
"""

import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frepro import paths
from frepro.errors import FreproError
from frepro.store import provenance, records
from frepro.training.runs import CORRECT

if TYPE_CHECKING:
    from frepro.experiment import Experiment

NAME = "seeds.jsonl"
KEY = re.compile("[0-9a-f]{16}")


def to_lines(experiment: "Experiment") -> str:
    """Return a line of JSON for each trained run of a table; empty for detectors, segmenters and weights of files."""
    if experiment.networks:
        return ""
    lines = []
    for run in experiment.runs:
        if (record := run.measurement.record()) is None:
            continue
        line = {name: record[name] for name in ("kind", "key", "values", "seconds", "provenance")}
        line["code"] = provenance.sha256(records.canonical(record["code"]))
        if run.correct() is not None:
            packed = (run.measurement.folder / CORRECT).read_bytes()
            line[CORRECT] = base64.b64encode(packed).decode("ascii")
        lines.append(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")
    return "".join(lines)


def adopt(file: Path) -> int:
    """Put the runs of a file that are not in the store there, and return their number.

    Raises:
        FreproError: The file is damaged.
    """
    adopted = 0
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        line = _read(file, number, text)
        folder = paths.results() / "runs" / line["key"]
        if (folder / "record.json").exists():
            continue
        if packed := line.pop(CORRECT, None):
            with records.atomic_write(folder / CORRECT) as temporary:
                temporary.write_bytes(base64.b64decode(packed))
        records.write_text(folder / "record.json", json.dumps(line | {"adopted": True}, indent=1) + "\n")
        adopted += 1
    return adopted


def _read(file: Path, number: int, text: str) -> dict[str, Any]:
    kinds: dict[str, Any] = {
        **dict.fromkeys(("kind", "key", "code"), str),
        **dict.fromkeys(("values", "provenance"), dict),
        "seconds": (int, float),
    }
    try:
        line = json.loads(text)
        is_complete = isinstance(line, dict) and all(isinstance(line.get(name), kind) for name, kind in kinds.items())
        if not is_complete or not KEY.fullmatch(line["key"]) or line["kind"] != "train":
            raise ValueError("not the record of a run")
        base64.b64decode(line.get(CORRECT, ""), validate=True)
    except (ValueError, TypeError, RecursionError) as error:
        raise FreproError(f"{file}, line {number}: {error}: restore the file, or leave out --adopt") from error
    return line
