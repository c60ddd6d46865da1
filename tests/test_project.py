"""The project's own files agree with each other."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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


def test_make_help_lists_every_target():
    text = subprocess.run([*MAKE, "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert sorted(line.split()[0] for line in text.splitlines()) == sorted(phony)
    assert all(len(line) < 120 for line in text.splitlines())


@pytest.fixture
def printing_python(tmp_path) -> dict[str, str]:
    """The environment with an active Python, under a path with a blank, that prints its arguments one per line."""
    folder = tmp_path / "my env's" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").write_text('#!/bin/sh\n[ "$1" = -I ] || printf "%s\\n" "$@"\n')
    (folder / "python").chmod(0o755)
    return {**os.environ, "VIRTUAL_ENV": str(folder.parent), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


VALUES = [
    "/data/O'Brien",
    "a$b",
    "$(shell touch MADE)",
    "$$HOME",
    "${MAKE}",
    "x'; touch MADE; '",
    'x"; touch MADE; "',
    "`touch MADE`",
    "$(touch MADE)",
    "a  b\\",
    "*",
    "é #x",
]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("target", "variable"), [("reproduce", "DATA"), ("reproduce", "PAPER"), ("bench", "ONLY")])
def test_make_passes_values_on_as_they_are(target, variable, value, tmp_path, printing_python):
    command = [*MAKE, "-f", str(ROOT / "Makefile"), target, f"{variable}={value}"]
    done = subprocess.run(command, cwd=tmp_path, env=printing_python, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-m", "frepro", target, f"--{variable.lower()}", value]
    assert not (tmp_path / "MADE").exists()


def requirements() -> dict[str, Requirement]:
    """Every declared dependency, those of the extras too, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = sum(project["optional-dependencies"].values(), project["dependencies"])
    return {found.name: found for found in map(Requirement, every)}


def test_what_frepro_imports_is_declared():
    imported = set()
    for path in (ROOT / "frepro").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    foreign = imported - sys.stdlib_module_names - {"frepro"}
    assert {"torch", "scipy", "sklearn"} <= foreign
    packages = packages_distributions()
    known = {name: packages.get(name, [name.replace("_", "-")]) for name in foreign}
    missing = {name for name, of in known.items() if not {each.lower() for each in of} & set(requirements())}
    assert missing <= {"triton"}  # torch brings it where it can be used, and its kernels are passed over elsewhere


def test_timm_is_as_new_as_the_models_need():
    """`timm.layers.get_device_dtype` came with 1.0.29."""
    assert not requirements()["timm"].specifier.contains("1.0.28")
    assert requirements()["timm"].specifier.contains("1.0.29")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """What an installation is made from, in a folder that is called frepro as a clone is."""
    folder = tmp_path_factory.mktemp("clones") / "frepro"
    shutil.copytree(ROOT / "frepro", folder / "frepro", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def pip(*arguments: object) -> None:
    """Pip with the build backend that is installed here, without a network."""
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_works_wherever_python_starts(checkout, tmp_path, monkeypatch):
    """From the folder that holds the clone, too: there the clone itself looks like a package without a file."""
    monkeypatch.delenv("PYTHONPATH")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    # Packages of this environment, but not what its own .pth files add: this checkout is one of those.
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    pip("--python", python, "install", "--editable", checkout)
    code = "import frepro, timm; timm.create_model('dfformer_s18'); print(frepro.__file__)"
    for folder in (checkout.parent, checkout, Path("/")):
        done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True)
        assert done.stdout == f"{checkout / 'frepro' / '__init__.py'}\n", done.stderr
        done = subprocess.run([python, "-m", "frepro", "list", "recipes"], cwd=folder, capture_output=True, text=True)
        assert done.stdout.startswith("recipes: "), done.stderr


def test_a_wheel_holds_all_of_the_package(checkout, tmp_path):
    """Kernels and YAML files too, and nothing beside it."""
    pip("wheel", checkout, "--wheel-dir", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {path.relative_to(checkout).as_posix() for path in (checkout / "frepro").rglob("*") if path.is_file()}
    assert {path for path in files if path.endswith((".c", ".yaml"))}
    assert found == {path for path in files if "__pycache__" not in path}
