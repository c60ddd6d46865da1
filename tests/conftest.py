"""Every test writes into a folder of its own and reaches no network but the loopback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.offline import sitecustomize  # noqa: F401 - forbids the network to this process

ROOT = Path(__file__).parent.parent
# Make as a user starts it, also where make started the tests.
MAKE = ["env", "-u", "MAKEFLAGS", "-u", "MAKELEVEL", "-u", "MFLAGS", "make"]
OFFLINE = Path(__file__).parent / "offline"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Path:
    """The folder that results go to."""
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "results"))
    # Processes that a test starts find frepro in the checkout, and no network.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(OFFLINE), str(ROOT)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "results"


@pytest.fixture
def frepro_command():
    """Runs the command line in a process of its own."""

    def run(*arguments: str, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "frepro", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, **options)

    return run


@pytest.fixture(scope="session")
def built_book(tmp_path_factory) -> Path:
    """The whole book as HTML, from the committed results, built as `make book` builds it but in a folder of its own."""
    folder = tmp_path_factory.mktemp("book")
    shutil.copy(ROOT / "_config.yml", folder)
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("results", "_build"))
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "-W", "-n", "--keep-going", "book"]
    environment = {name: value for name, value in os.environ.items() if name != "FREPRO_RESULTS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(OFFLINE), str(ROOT)])
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "_build" / "html"
