"""Backbones start from a classifier's weights, refitted to the size that the detector or segmenter is made for."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from frepro import tasks
from frepro.errors import FreproError
from frepro.models.create import create_model
from frepro.tasks.pyramid import Stages
from frepro.training import loop
from frepro.training.runs import Run, Start
from tests.small import BACKBONE, whole
from tests.training.test_loop import CPU


def classifier(path, model: str, size: int, **arguments) -> Start:
    """Weights of a classifier of a thousand classes, as training leaves them."""
    torch.manual_seed(1)
    save_file(create_model(model, size, BACKBONE | arguments, num_classes=1000).state_dict(), path)
    return Start.of(path)


def body(run: Run) -> torch.nn.Module:
    network = tasks.of(run).network(0.0)
    return next(module for module in network.modules() if isinstance(module, Stages)).body


@pytest.mark.parametrize(("network", "model"), [("mask_rcnn", "spanet_small"), ("semantic_fpn", "dfformer_s18")])
@pytest.mark.parametrize("size", [224, 96])
def test_a_backbone_has_the_weights_of_the_file(network, model, size, tmp_path):
    start = classifier(tmp_path / "c.safetensors", model, size)
    given = body(whole(network, start=start)).state_dict()
    # The same classifier, refitted as a whole.
    expected = create_model(model, size, BACKBONE, num_classes=1000)
    expected.load_state_dict(load_file(start.file))
    stored = expected.state_dict()
    refitted = {name for name in given if given[name].shape != stored[name].shape}
    expected.set_input_size(64)
    assert refitted
    assert all(("filter" if model == "spanet_small" else "complex_weights") in name for name in refitted)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in given.items())
    # Without the file it would have others.
    new = body(whole(network)).state_dict()
    assert not any(torch.equal(new[name], given[name]) for name in given if given[name].ndim == 4)


def test_a_model_of_timm_has_them_too(tmp_path):
    torch.manual_seed(1)
    whole_model = timm.create_model("resnet18")
    save_file(whole_model.state_dict(), tmp_path / "r.safetensors")
    start = Start.of(tmp_path / "r.safetensors")
    run = Run("resnet18", whole(model_args={}).recipe, "smoke", whole().source, 0, start=start)
    given = body(run).state_dict()
    assert given
    assert all(torch.equal(tensor, whole_model.state_dict()[name]) for name, tensor in given.items())


def test_a_run_from_weights_is_another_run(tmp_path):
    start = classifier(tmp_path / "c.safetensors", "spanet_small", 224)
    run = whole(start=start)
    assert run.measurement.key != whole().measurement.key
    (tmp_path / "moved").mkdir()
    moved = Start.of(start.file.rename(tmp_path / "moved" / "d.safetensors"))
    assert whole(start=moved).measurement.key == run.measurement.key
    values = loop.run(whole(start=moved), CPU)["values"]
    assert values["box_ap"] >= 0


@pytest.mark.parametrize("network", ["mask_rcnn", "semantic_fpn"])
def test_a_file_that_does_not_fit_is_one_line(network, tmp_path):
    def said(start: Start) -> str:
        with pytest.raises(FreproError) as error:
            tasks.of(whole(network, start=start)).network(0.0)
        assert "\n" not in str(error.value)
        return str(error.value)

    model = whole(network).model
    wide = classifier(tmp_path / "wide.safetensors", model, 224, dims=[16, 16, 32, 48])
    assert "wide.safetensors does not fit" in said(wide)
    assert "of another shape" in said(wide)
    deep = classifier(tmp_path / "deep.safetensors", model, 224, depths=[1, 1, 2, 1])
    assert "left over" in said(deep)
    other = classifier(tmp_path / "other.safetensors", "spanetv2_s18_pure", 224)
    assert "does not fit" in said(other)
    (tmp_path / "text.safetensors").write_text("no weights")
    assert "is not a readable safetensors file" in said(Start.of(tmp_path / "text.safetensors"))
    (tmp_path / "text.pth").write_text("no weights")
    assert "is damaged or not a checkpoint" in said(Start.of(tmp_path / "text.pth"))
