"""What a run is known by: revisions of behaviours, and probes that catch a change without one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from frepro import ops, paths
from frepro.data import compositions, locate
from frepro.errors import FreproError
from frepro.models import dfformer, gfnet
from frepro.recipes import load
from frepro.store import provenance, revisions
from frepro.tasks import classification
from frepro.training import loop
from frepro.training.runs import Run
from tests import probes, registry


@pytest.mark.parametrize("behaviour", sorted(probes.declared()))
def test_every_behaviour_computes_what_its_revision_did(behaviour):
    assert probes.complaint(behaviour) is None


def test_no_record_is_left_of_a_behaviour_that_is_gone():
    assert set(probes.recorded()) == set(probes.declared())


@pytest.mark.parametrize("model", registry.variants())
def test_every_family_declares_a_revision(model):
    """Without one, runs of its models would stay the same when the family computes something else."""
    module = provenance.own_models()[model]
    assert module in {of for of, _ in probes.declared().values()}
    assert set(revisions.declared([module])) <= set(revisions.of_model(model))


def test_a_family_is_probed_without_a_probe_of_its_own(monkeypatch):
    monkeypatch.delitem(probes.PROBES, "gfnet")
    values = probes.computed("gfnet")
    assert values == probes.computed("gfnet")
    monkeypatch.setattr(gfnet.GlobalFilter, "forward", scaled(gfnet.GlobalFilter.forward))
    assert values != probes.computed("gfnet")


def scaled(function, factor=1.01):
    return lambda *arguments, **named: factor * function(*arguments, **named)


@pytest.mark.parametrize(
    ("behaviour", "owner", "name", "change"),
    [
        ("pointwise operations", ops, "star_relu", scaled),
        ("dfformer", dfformer.DynamicFilter, "forward", scaled),
        ("classification", classification.Classification, "loss", scaled),
        (
            "composed pictures",
            compositions.Textured,
            "__getitem__",
            lambda get: lambda self, index: get(self, index + 1),
        ),
        ("training loop", loop, "make_schedule", lambda make: lambda optimizer, *rest: slower(make(optimizer, *rest))),
    ],
)
def test_a_change_without_a_revision_is_found(monkeypatch, behaviour, owner, name, change):
    """One of each kind: an operation, a model, a task, data, and the loop."""
    monkeypatch.setattr(owner, name, change(getattr(owner, name)))
    assert "computes something else now: raise its REVISION" in probes.complaint(behaviour)


def slower(schedule):
    """The schedule with 3 % less learning rate."""
    step_update = schedule.step_update

    def step(update: int) -> None:
        step_update(update)
        for group in schedule.optimizer.param_groups:
            group["lr"] *= 0.97

    schedule.step_update = step
    return schedule


def test_a_raised_revision_asks_for_new_values(monkeypatch):
    module, revision = probes.declared()["scenes"]
    monkeypatch.setattr(probes, "declared", lambda: {"scenes": (module, revision + 1)})
    assert "at revision 2, its recorded values are of 1" in probes.complaint("scenes")


@pytest.mark.parametrize(
    "environment", [{"FREPRO_BACKEND": "torch"}, {"FREPRO_MARCH": "x86-64-v3"}, {"FREPRO_MARCH": "x86-64"}], ids=str
)
def test_probes_hold_without_kernels_and_on_every_instruction_set(environment):
    """An instruction set that the processor lacks runs the plain forms, which is tested as well."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.probes"],
        cwd=paths.ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_a_model_has_the_revisions_of_what_it_is_made_of():
    found = revisions.of_model("dfformer_s18")
    assert {"dfformer", "metaformer", "spectral filters"} <= set(found)
    assert "selective scan" not in found  # though the package of operations imports it
    assert {"vim", "vimf", "selective scan"} <= set(revisions.of_model("vimf_tiny"))
    assert revisions.of_model("convnext_tiny") == {}


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the package, whose source is read in place of the real one's."""
    shutil.copytree(paths.PACKAGE, tmp_path / "frepro", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "frepro")
    provenance.own_models.cache_clear()
    yield tmp_path / "frepro"
    provenance.own_models.cache_clear()


def key(model: str = "dfformer_s18") -> str:
    provenance.own_models.cache_clear()
    return Run(model, load("dfformer", "smoke"), "smoke", locate(None), 0).measurement.key


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


ANOTHER = '''

@register_model
def dfformer_s18_mine(pretrained: bool = False, **kwargs: Any) -> DFFormer:
    """Mine."""
    return _create_dfformer("dfformer_s18_mine", pretrained, "s18", kwargs)
'''


def test_harmless_edits_change_no_key(package):
    before = key()
    path = package / "models" / "dfformer.py"
    path.write_text(path.read_text() + ANOTHER)
    assert key() == before
    assert "dfformer_s18_mine" in provenance.own_models()
    replace(package / "training" / "loop.py", "out of memory on", "no memory left on")
    assert key() == before
    # A file that has moved, and what imports it.
    (package / "ops" / "depthwise.py").rename(package / "ops" / "depthwise_convolution.py")
    replace(package / "ops" / "__init__.py", "from .depthwise import", "from .depthwise_convolution import")
    assert key() == before


def test_a_raised_revision_changes_the_keys_of_what_passes_through_it_alone(package):
    before = {model: key(model) for model in ("dfformer_s18", "vim_tiny", "convnext_tiny")}
    path = package / "ops" / "selective_scan.py"
    path.write_text(
        re.sub(r'REVISION = \{"selective scan": \d+\}', 'REVISION = {"selective scan": 7}', path.read_text())
    )
    changed = {model for model, old in before.items() if key(model) != old}
    assert changed == {"vim_tiny"}
    replace(package / "training" / "loop.py", 'REVISION = {"training loop": 1}', 'REVISION = {"training loop": 2}')
    assert {model for model, old in before.items() if key(model) != old} == set(before)


def test_a_revision_that_is_no_whole_number_is_named(package):
    replace(package / "training" / "loop.py", 'REVISION = {"training loop": 1}', 'REVISION = {"training loop": 1.5}')
    with pytest.raises(FreproError, match=r"loop\.py: a REVISION must be an integer"):
        key()


def test_values_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert probes.complaint("vim") is None
    finally:
        torch.set_num_threads(threads)
