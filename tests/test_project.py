"""The project's own files agree with each other."""

import re
import subprocess
import tomllib

import frepro
from tests.conftest import MAKE, ROOT


def test_one_version_of_ruff_and_of_frepro():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pin,) = [r for r in project["optional-dependencies"]["test"] if r.startswith("ruff")]
    version = pin.removeprefix("ruff==")
    assert f"rev: v{version} " in (ROOT / ".pre-commit-config.yaml").read_text()
    assert f"\nruff=={version}\n" in (ROOT / "requirements.lock").read_text()
    assert project["version"] == frepro.__version__
    assert f"version: {frepro.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_lock_is_exact_and_has_no_addresses():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 100
    assert all(re.match(r"[a-z0-9._-]+(\[[a-z]+\])?==\S+", line) for line in lines)
    assert "://" not in "".join(lines)
    environment = (ROOT / "environment.yml").read_text()
    assert "-r requirements.lock" in environment
    assert "-e ." in environment


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_make_help_lists_every_target():
    text = subprocess.run([*MAKE, "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert sorted(line.split()[0] for line in text.splitlines()) == sorted(phony)
    assert all(len(line) < 120 for line in text.splitlines())
