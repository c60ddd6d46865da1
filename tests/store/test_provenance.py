"""Fingerprints of code: they follow imports, and notice what computes but not what explains."""

import pytest

from frepro import paths
from frepro.store import provenance


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "frepro"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "a.py").write_text("from frepro import b\n\ndef f(x):\n    return b.g(x)\n")
    (folder / "b.py").write_text("def g(x):\n    return x + 1\n")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return folder


def change(path, text):
    path.write_text(text)
    provenance._parsed.cache_clear()
    return provenance.code_fingerprint("frepro.a")


def test_code_fingerprint(package):
    before = provenance.code_fingerprint("frepro.a")
    assert (
        change(package / "b.py", 'def g(x):\n    """Adds one."""\n    # and that is all\n    return (x + 1)\n')
        == before
    )
    assert change(package / "b.py", "def g(x):\n    return x + 2\n") != before
    assert change(package / "b.py", "def g(x):\n    return x + 1\n") == before
    assert change(package / "c.py", "print('nobody imports me')\n") == before
    assert list(provenance.code("frepro.a")) == ["frepro.a", "frepro.b"]


def test_what_is_imported_for_annotations_alone_does_not_count(package):
    guarded = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from frepro import b\n"
    (package / "a.py").write_text(guarded)
    assert list(provenance.code("frepro.a")) == ["frepro.a"]


def test_own_models_are_those_that_timm_knows():
    import timm

    import frepro  # noqa: F401

    own = provenance.own_models()
    assert {"dfformer_s18", "spanet_small", "vimf_tiny", "gfnet_ti"} <= set(own)
    for module in {of.rpartition(".")[2] for of in own.values()}:
        assert {n for n, of in own.items() if of.endswith(f".{module}")} == set(timm.list_models(module=module))


def test_record_names_commit_and_machine():
    record = provenance.record()
    assert record["versions"]["torch"]
    assert record["machine"]["cores"] >= 1
