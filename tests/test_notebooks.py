"""Source notebooks: thin, with parameters that can be read, and the paper's rows in plain sight."""

import json

import pytest

from frepro import papers, paths
from frepro.reproduce import Notebook

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*/*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_notebook(path):
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    for cell in code:
        source = "".join(cell["source"])
        assert not any(line.lstrip().startswith(("def ", "class ")) for line in source.splitlines())
        assert cell["execution_count"] is None or "NBVAL_CHECK_OUTPUT" in source
        assert bool(cell["outputs"]) == source.startswith("# NBVAL_CHECK_OUTPUT")
    notebook = Notebook(path)
    assert notebook.parameters()["profile"] == "smoke"
    assert notebook.parameters()["output"] is None
    paper = papers.load(path.parent.name)
    kind, _, number = path.stem.partition("_")
    if kind == "figure":
        assert int(number) in paper.figures
        assert any(".write(output" in "".join(cell["source"]) for cell in code)
        assert any(
            name.startswith(("frepro.analysis.", "frepro.bench.", "frepro.figures.drawings"))
            for name in notebook.modules
        )
        trained = notebook.definition(notebook.parameters())
        assert trained is None or trained.runs
        return
    table = paper.tables[int(number)]
    of_backbones = {"trained", "checkpoints", "backbones", "sizes", "images", "native_size"}
    experiment = notebook.definition(notebook.parameters())
    starts = experiment.starts or {}
    own = of_backbones if table.is_of_backbones else {"trained", "checkpoints", "epochs"}
    if starts:
        own = own | {"backbones"}
    assert set(notebook.parameters()) - own == {"profile", "seeds", "models", "data", "device", "output"}
    if table.is_of_backbones:
        assert of_backbones - {"images"} <= set(notebook.parameters())
    rows = [(table.value(row, "label"), row.model) for row in table.rows if row.model]
    if rows:  # some tables of configurations name none; a backbone in several detectors is one variant
        shown = [(label, model) for label, model, _ in experiment.variants if label not in starts.values()]
        assert shown == list(dict.fromkeys(rows))
