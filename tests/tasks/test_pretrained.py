"""Networks start from the weights of a file, refitted to the size and the classes that they are made for."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from frepro import recipes, tasks
from frepro.data import Source, locate
from frepro.data.compositions import Textured
from frepro.errors import FreproError
from frepro.experiment.statistics import paired
from frepro.models.create import create_model
from frepro.tasks.pyramid import Stages
from frepro.training import evaluate, loop
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


def fine_tuned(model: str, start: Start, source=None, **changes) -> Run:
    """A run of a classifier that starts from weights, small enough for a test."""
    recipe = recipes.adjusted(recipes.load("spanet", "finetune"), model, epochs=1, batch_size=16, img_size=64)
    recipe = dataclasses.replace(recipe, **{"model_args": BACKBONE, "samples": (32, 16), **changes})
    return Run(model, recipe, "finetune", source or locate("digits"), 0, start=start)


@pytest.mark.parametrize("model", ["spanet_small", "dfformer_s18", "vimf_tiny"])
@pytest.mark.parametrize("size", [64, 96, 224])
def test_a_classifier_starts_from_weights_with_a_new_head_where_classes_differ(model, size, tmp_path):
    args = {"depth": 1, "embed_dim": 32} if model == "vimf_tiny" else BACKBONE
    torch.manual_seed(1)
    given = create_model(model, size, args, num_classes=1000)
    save_file(given.state_dict(), tmp_path / "c.safetensors")
    run = fine_tuned(model, Start.of(tmp_path / "c.safetensors"), model_args=args)
    task = tasks.of(run)
    found = task.network(0.0).state_dict()
    given.set_input_size(64)
    expected = given.state_dict()
    differing = {name for name in found if not torch.equal(found[name], expected[name])}
    assert differing == {f"{given.pretrained_cfg['classifier']}.{kind}" for kind in ("weight", "bias")}
    (note,) = task.notes
    assert "the number of classes differs, so" in note
    # With as many classes, the head is taken too.
    torch.manual_seed(2)
    same = create_model(model, 64, args, num_classes=10)
    save_file(same.state_dict(), tmp_path / "s.safetensors")
    task = tasks.of(dataclasses.replace(run, start=Start.of(tmp_path / "s.safetensors")))
    found = task.network(0.0).state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in same.state_dict().items())
    assert "differs" not in task.notes[0]


def test_a_classifier_of_timm_starts_from_weights_of_another_size(tmp_path):
    torch.manual_seed(1)
    args = {"depth": 1, "embed_dim": 48, "num_heads": 3}
    given = timm.create_model("deit_tiny_patch16_224", num_classes=7, **args)
    torch.save({"model": {f"module.{name}": tensor for name, tensor in given.state_dict().items()}}, tmp_path / "d.pth")
    run = fine_tuned("deit_tiny_patch16_224", Start.of(tmp_path / "d.pth"), model_args=args)
    found, stored = tasks.of(run).network(0.0).state_dict(), given.state_dict()
    refitted = {name for name in found if found[name].shape != stored[name].shape}
    assert refitted == {"pos_embed", "head.weight", "head.bias"}
    assert all(torch.equal(found[name], stored[name]) for name in found.keys() - refitted)


@pytest.mark.parametrize("network", ["mask_rcnn", "upernet"])
def test_a_network_starts_from_one_of_its_kind(network, tmp_path):
    first = whole(network, seed=1)
    trained = tasks.of(first).network(0.0).state_dict()
    save_file(trained, tmp_path / "w.safetensors")
    start = Start.of(tmp_path / "w.safetensors")
    task = tasks.of(whole(network, start=start))
    found = task.network(0.0).state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in found.items())
    assert "the network starts from" in task.notes[0]
    # At another size, filters are resized and everything else is the same.
    larger = tasks.of(whole(network, start=start, img_size=96)).network(0.0).state_dict()
    changed = {name for name, tensor in larger.items() if tensor.shape != trained[name].shape}
    assert changed
    assert all(".body." in name for name in changed)
    other = "upernet" if network == "mask_rcnn" else "semantic_fpn"
    with pytest.raises(FreproError, match="does not fit"):
        tasks.of(whole(other, start=start)).network(0.0)


def test_weights_for_another_number_of_classes_leave_the_last_layers_new(tmp_path):
    run = whole("semantic_fpn")
    task = tasks.of(run)
    more = tasks.of(run)
    more.num_classes = task.num_classes + 3
    trained = more.network(0.0).state_dict()
    save_file(trained, tmp_path / "w.safetensors")
    task = tasks.of(whole("semantic_fpn", start=Start.of(tmp_path / "w.safetensors")))
    found = task.network(0.0).state_dict()
    new = {name for name in found if found[name].shape != trained[name].shape}
    assert new
    assert all(torch.equal(found[name], trained[name]) for name in found.keys() - new)
    assert "has new, random weights" in task.notes[0]


def test_a_classifier_that_weights_do_not_fit_is_one_line(tmp_path):
    def said(run: Run) -> str:
        with pytest.raises(FreproError) as error:
            loop.run(run, CPU)
        assert "\n" not in str(error.value)
        assert not (run.measurement.folder / "record.json").exists()
        return str(error.value)

    (tmp_path / "text.pth").write_text("no weights")
    assert "text.pth is damaged or not a checkpoint" in said(
        fine_tuned("spanet_small", Start.of(tmp_path / "text.pth"))
    )
    wide = classifier(tmp_path / "wide.safetensors", "spanet_small", 64, dims=[16, 16, 32, 48])
    line = said(fine_tuned("spanet_small", wide))
    assert "wide.safetensors does not fit" in line
    assert "profile finetune makes the model small" in line
    other = classifier(tmp_path / "other.safetensors", "spanetv2_s18_pure", 64)
    assert "does not fit" in said(fine_tuned("spanet_small", other))
    assert "does not fit" in said(fine_tuned("resnet18", other, model_args={}))


def test_fine_tuning_is_another_run_and_its_network_needs_no_file(tmp_path):
    start = classifier(tmp_path / "c.safetensors", "spanet_small", 64)
    run = fine_tuned("spanet_small", start)
    lines: list[str] = []
    loop.run(run, dataclasses.replace(CPU, log=lines.append))
    assert run.measurement.key != dataclasses.replace(run, start=None).measurement.key
    assert run.measurement.record()["spec"]["start"] == start.fingerprint
    assert any("the number of classes differs, so head has new, random weights" in line for line in lines)
    assert any("is a reduced model here" in line for line in lines)
    assert all(line.startswith("reduced spanet_small, seed 0: epoch") for line in lines if "epoch" in line)
    start.file.unlink()
    assert evaluate.network(run).num_classes == 10


def textured_folder(folder: Path, classes: range, train: int, val: int) -> Source:
    """A folder with some images of each of some classes of the textured ones."""
    for part, split, count in (("train", "train", train), ("test", "val", val)):
        images, found, index = Textured(part), Counter(), 0
        while sum(found.values()) < count * len(classes):
            image, label = images[index]
            index += 1
            if label in classes and found[label] < count:
                found[label] += 1
                file = folder / split / str(label) / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image.save(file)
    return locate(str(folder))


def test_fine_tuning_shows(store, tmp_path):
    """A network trained on half of the classes, then on few images of the others, beats one trained on these alone."""
    first = textured_folder(tmp_path / "first", range(5), 160, 10)
    second = textured_folder(tmp_path / "second", range(5, 10), 20, 100)
    before = dataclasses.replace(
        recipes.load("dfformer", "smoke"),
        **{"img_size": 64, "lr": 3e-3, "epochs": 6, "samples": None, "crop_pct": 1.0, "score_every": 100},
        **{"mixup": 0.0, "cutmix": 0.0, "auto_augment": None, "reprob": 0.0, "drop_path": 0.0},
    )
    after = dataclasses.replace(before, batch_size=20)
    fine, scratch = [], []
    for seed in range(5):
        trained = Run("dfformer_s18", before, "smoke", first, seed)
        for scores, start in ((fine, trained), (scratch, None)):
            run = Run("dfformer_s18", after, "smoke", second, seed, start=start)
            scores.append(loop.run(run, CPU)["values"]["top1"])
    _, low, _ = paired(fine, scratch)
    assert low is not None
    assert low > 0, (fine, scratch)
    # As many classes as before, but others: the head starts anew.
    task = tasks.of(dataclasses.replace(run, start=trained))
    network = task.network(0.0)
    assert "; the classes differ, so head" in task.notes[0]
    stored = load_file(trained.measurement.folder / "model.safetensors")
    differing = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, stored[name])}
    assert differing == {f"{network.pretrained_cfg['classifier']}.{kind}" for kind in ("weight", "bias")}
