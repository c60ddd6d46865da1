"""Two hundred folders, sound and damaged: what check calls sound is what can be read, and nothing crashes or hangs."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from tests.conftest import ROOT
from tests.data.hostile import LAYOUTS

FOLDERS = 200


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What happened with each folder, until the interpreter crashed."""
    pytest.importorskip("pycocotools")
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, "-m", "tests.data.hostile", str(folder), "0", str(FOLDERS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (len(found), done.returncode, done.stderr[-2000:])
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sound_is_readable_is_counted(outcomes, layout):
    mine = [each for each in outcomes if each["layout"] == layout]
    faults = [each for each in mine if "fault" in each]
    assert not faults, "\n".join(f"seed {each['seed']}, {each['damage']}: {each['fault']}" for each in faults)
    assert len(mine) in (FOLDERS // len(LAYOUTS), FOLDERS // len(LAYOUTS) + 1)
    # Most damage makes data unusable.
    assert Counter(each["is_sound"] for each in mine)[False] >= len(mine) // 3
