"""The folders that frepro reads and writes."""

import os
from pathlib import Path

from frepro.errors import FreproError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
NOTEBOOKS = ROOT / "notebooks"
BOOK = ROOT / "book"


def results() -> Path:
    """Return the folder of results: ``FREPRO_RESULTS``, or ``results/`` in the checkout or in the current folder."""
    if "FREPRO_RESULTS" in os.environ:
        return Path(os.environ["FREPRO_RESULTS"]).absolute()
    return (ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()) / "results"


def notebook(paper: str, artefact: str) -> Path:
    """Return the path of the notebook of an artefact such as ``table_4``, which need not exist."""
    if not NOTEBOOKS.is_dir():
        raise FreproError(f"{NOTEBOOKS} is missing: run this in a checkout of the repository")
    return NOTEBOOKS / paper / f"{artefact}.ipynb"
