"""Every folder that frepro reads or writes, named once."""

import os
from pathlib import Path

from frepro.errors import FreproError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
NOTEBOOKS = ROOT / "notebooks"
BOOK = ROOT / "book"


def results() -> Path:
    """Where results are written: ``FREPRO_RESULTS``, else ``results/`` in the checkout, else in the current folder."""
    if "FREPRO_RESULTS" in os.environ:
        return Path(os.environ["FREPRO_RESULTS"]).absolute()
    return (ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()) / "results"


def notebook(paper: str, artefact: str) -> Path:
    """The notebook of an artefact such as ``table_4``; it need not exist."""
    if not NOTEBOOKS.is_dir():
        raise FreproError(f"{NOTEBOOKS} is missing: tables are reproduced from a checkout of the repository")
    return NOTEBOOKS / paper / f"{artefact}.ipynb"
