"""The guides of the book: their code and data are accepted as they stand."""

import re
import subprocess
import sys

import pytest

from frepro import papers, paths


def blocks(page: str, language: str) -> list[str]:
    text = (paths.BOOK / "howto" / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def test_the_model_of_the_guide_is_registered_and_its_test_passes(tmp_path):
    """In a copy of the package's folder of models, which extends the real one."""
    model, test = blocks("add_a_model", "python")
    (tmp_path / "boxformer.py").write_text(model, encoding="utf-8")
    (tmp_path / "test_boxformer.py").write_text(test, encoding="utf-8")
    code = f"""
import frepro.models, pytest, sys, timm, torch
frepro.models.__path__.append({str(tmp_path)!r})
import frepro.models.boxformer
model = timm.create_model("boxformer_s18", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), img_size=64, num_classes=3)
assert model(torch.randn(2, 3, 64, 96)).shape == (2, 3)
assert frepro.models.boxformer.BoxFormer.drawings["boxformer_block"][0] == "boxformer_s18"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--noconftest", "--rootdir=.", "test_boxformer.py"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_paper_of_the_guide_is_read(tmp_path):
    text, _ = blocks("add_a_paper", "yaml")
    for name, content in (("boxes", text), ("no_figures", text.partition("\nfigures:")[0] + "\n")):
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
        paper = papers.read(tmp_path / f"{name}.yaml")
        assert [row.model for row in paper.tables[1].rows] == ["gfformer_s18", "dfformer_s18", None]
        assert bool(paper.figures) == (name == "boxes")


@pytest.mark.parametrize("page", ["add_a_model", "add_a_paper"])
def test_files_that_a_guide_names_exist(page):
    """But for those that it adds."""
    text = (paths.BOOK / "howto" / f"{page}.md").read_text(encoding="utf-8")
    named = re.findall(r"[`\s]((?:frepro|tests|book|notebooks|results)/[\w./-]*\w)", text)
    missing = {name for name in named if not (paths.ROOT / name).exists()}
    assert named
    assert {name for name in missing if "box" not in name} == set()
