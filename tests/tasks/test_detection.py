"""Detectors as runs: what they leave, the same bits again, scores that no batch and no process changes, odd images."""

import json
import time
from functools import partial

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from frepro import tasks
from frepro.data import locate
from frepro.data.coco_files import annotation_file
from frepro.data.export import export
from frepro.data.loading import TestBatches, loader
from frepro.errors import FreproError
from frepro.training import loop, nonfinite
from frepro.training.evaluate import evaluate_checkpoint
from frepro.training.runs import Run
from tests.small import WHOLES, whole
from tests.training.test_loop import CPU, checkpoints, finish, history, launch, same_but_for_time, start, weights

pytest.importorskip("pycocotools")

DETECTORS = ["retinanet", "mask_rcnn", "cascade_mask_rcnn"]
BOXES = {"box_ap", "box_ap50", "box_ap75"}
MASKS = {"mask_ap", "mask_ap50", "mask_ap75"}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("network", WHOLES)
def test_a_run_leaves_its_scores_and_the_same_bits_again(network, monkeypatch, tmp_path):
    run = whole(network, ema_decay=0.9)
    values = loop.run(run, CPU)["values"]
    scores = {"miou", "aacc"} if run.recipe.task == "segmentation" else BOXES
    scores |= MASKS if "mask_rcnn" in network else set()
    assert scores | {f"ema_{name}" for name in scores} <= values.keys()
    assert MASKS & values.keys() == (MASKS if "mask_rcnn" in network else set())
    assert (values["test_images"], values["train_images"], values["effective_batch"]) == (4, 8, 4)
    left = {path.name for path in run.measurement.folder.iterdir() if path.name[0] != "."}
    assert left == {"ema.safetensors", "metrics.jsonl", "model.safetensors", "record.json"}
    a, average, log = weights(run), weights(run, "ema"), history(run)
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "again"))
    torch.rand(3)
    loop.run(run, CPU)
    assert same(weights(run), a)
    assert same(weights(run, "ema"), average)
    assert same_but_for_time(history(run), log)


@pytest.mark.parametrize("network", ["retinanet", "mask_rcnn", "semantic_fpn", "upernet"])
def test_accumulation_holds_the_batch(network, monkeypatch, tmp_path):
    """The same updates and rates; losses alone differ, as boxes are sampled and batch norms see half as many images."""
    logs = []
    for per_device, steps in ((4, 1), (2, 2)):
        monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / str(per_device)))
        run = whole(network)
        values = loop.run(run, loop.Execution(device="cpu", per_device=per_device))["values"]
        assert (values["effective_batch"], values["accumulate"]) == (4, steps)
        logs.append(history(run))
    for entry, other in zip(*logs, strict=True):
        assert (entry["updates"], entry["lr"]) == (other["updates"], other["lr"])
        # RetinaNet samples nothing, and its loss is a mean over images.
        tolerance = 1e-4 if network == "retinanet" else 0.3
        assert entry["train_loss"] == pytest.approx(other["train_loss"], rel=tolerance)


class Known(nn.Module):
    """Answers the objects, or the map, of the scenes that it knows, a little off: a network that can do its task."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        task = tasks.of(run)
        self.masks, self.classes = run.recipe.network != "retinanet", task.num_classes
        samples = task.samples("test")
        self.known = {samples[0, i][0].numpy().tobytes(): (i, samples[0, i][1]) for i in range(len(samples))}

    def forward(self, images: list[Tensor] | Tensor) -> list[dict[str, Tensor]] | Tensor:
        answers = [self.answer(*self.known[image.numpy().tobytes()]) for image in images]
        return answers if isinstance(images, list) else torch.stack(answers)

    def answer(self, i: int, target: dict[str, Tensor] | Tensor) -> dict[str, Tensor] | Tensor:
        if isinstance(target, Tensor):
            classes = (target.roll(i, dims=0) % self.classes).clamp(max=self.classes - 1 - i % 2)
            return nn.functional.one_hot(classes, self.classes).permute(2, 0, 1).float()
        count = len(target["labels"])
        answer = {
            "boxes": target["boxes"] + i,
            "labels": (target["labels"] + (torch.arange(count) % 4 == 3)).clamp(max=self.classes),
            "scores": torch.full((count,), 0.5),  # ties, which fall by the order of the images
        }
        return answer | ({"masks": target["masks"][:, None].roll(i, dims=3).float()} if self.masks else {})


def score(run: Run, batch: int, known: bool = True, file=None) -> tuple[dict[str, float], list]:
    """Metrics of the test images and all answers, in this process of however many."""
    accelerator = loop.make_accelerator("cpu", "no")
    task = tasks.of(run)
    network = Known(run) if known else task.network(0.0)
    samples = task.samples("test")
    batches = TestBatches(len(samples), batch, accelerator.process_index, accelerator.num_processes)
    predict, answered = task.predict, []
    task.predict = lambda *given: answered.extend(found := predict(*given)) or found
    values = loop.evaluate(task, network, loader(samples, batches, 0, False, task.collate), accelerator)
    if file is not None:
        (file / f"{len(samples)}-{run.recipe.network}-{accelerator.process_index}.json").write_text(json.dumps(values))
    return values, answered


@pytest.mark.parametrize("network", ["retinanet", "mask_rcnn", "semantic_fpn"])
def test_scores_do_not_depend_on_the_batch(network):
    run = whole(network)
    (expected, _), *others = (score(run, batch) for batch in (1, 3, 4))
    assert 5 < expected[run.recipe.main_metric().name] < 95
    assert all(values == expected for values, _ in others)


@pytest.mark.parametrize("network", WHOLES)
def test_answers_do_not_depend_on_the_batch(network):
    torch.manual_seed(0)
    run = whole(network)
    loop.run(run, CPU)
    file = run.measurement.folder / "model.safetensors"
    results = [evaluate_checkpoint(run, file, loop.Execution(device="cpu", per_device=each)) for each in (1, 3, 4)]
    for values in results[1:]:
        assert values == pytest.approx(results[0], abs=1e-3)
    main = run.recipe.main_metric().name
    assert results[0][main] == pytest.approx(run.measurement.record()["values"][main])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A COCO folder whose images are 64, 48 and 96 pixels wide in turn."""
    folder = tmp_path_factory.mktemp("mixed") / "coco"
    export("coco", folder, (8, 4), 64)
    for split in ("train", "test"):
        change(folder, split, widths=(64, 48, 96))
    return folder


def change(folder, split: str, widths=(), annotate=lambda items: items) -> None:
    """Cut or fill the images of a split to widths in turn, and change its annotations."""
    file = annotation_file(folder, split)
    content = json.loads(file.read_text())
    for i, image in enumerate(content["images"] if widths else []):
        path = folder / ("train2017" if split == "train" else "val2017") / image["file_name"]
        image["width"] = widths[i % len(widths)]
        Image.open(path).crop((0, 0, image["width"], image["height"])).save(path)
        for item in content["annotations"]:
            if item["image_id"] == image["id"]:
                x, y, w, h = item["bbox"]
                item["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    content["annotations"] = annotate(content["annotations"])
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("network", ["retinanet", "mask_rcnn"])
def test_images_of_many_sizes_are_not_filled_up_to_one_in_tests(network, mixed):
    """A filter over the whole map would see the filling."""
    torch.manual_seed(0)
    task = tasks.of(whole(network, source=locate(str(mixed), "detection")))
    model = task.network(0.0).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_logits.bias", "cls_score.bias")):
            nn.init.zeros_(parameter)  # so that there are detections
    samples = task.samples("test")
    images = [samples[0, i][0] for i in range(4)]
    assert len({image.shape for image in images}) == 3
    with torch.no_grad():
        together, alone = task.predict(model, images), [model([image])[0] for image in images]
    assert sum(len(each["scores"]) for each in alone) > 8
    for a, b in zip(together, alone, strict=True):
        for name in b:
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-4)


def _scores(runs: list[Run], file) -> None:
    for run in runs:
        score(run, 2, file=file)


def test_two_processes_score_as_one(tmp_path):
    """Five images in two processes, and one, of which the second process has none."""
    runs = [whole(name, samples=(8, count)) for name in ("mask_rcnn", "semantic_fpn") for count in (5, 1)]
    finish(launch(2, _scores, runs, tmp_path))
    for run in runs:
        expected, _ = score(run, 3)
        for rank in range(2):
            file = tmp_path / f"{run.recipe.samples[1]}-{run.recipe.network}-{rank}.json"
            assert json.loads(file.read_text()) == expected


def test_killed_and_taken_up_equals_straight(monkeypatch, tmp_path):
    straight = whole(ema_decay=0.9, epochs=3)
    finish(start(straight, 1))
    expected, average, log = weights(straight), weights(straight, "ema"), history(straight)
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "killed"))
    (process,) = start(straight, 1, checkpoint_every=1)
    while not checkpoints(straight) and process.is_alive():
        time.sleep(0.002)
    process.kill()
    process.join()
    assert checkpoints(straight)
    assert straight.measurement.record() is None
    finish(start(straight, 1, checkpoint_every=1))
    assert same(weights(straight), expected)
    assert same(weights(straight, "ema"), average)
    assert same_but_for_time(history(straight), log)


def nothing_in(items: list[dict]) -> list[dict]:
    return []


def without_area(items: list[dict]) -> list[dict]:
    """Every second box without width or height, or hardly any; the first image has no other."""
    sizes = [(0, 9), (9, 0), (1e-5, 9), (9, 1e-3)]
    for i, item in enumerate(items):
        if i % 2 or item["image_id"] == items[0]["image_id"]:
            item["bbox"][2:] = sizes[i % 4]
    return items


def crowds(items: list[dict]) -> list[dict]:
    return [{**item, "iscrowd": 1} for item in items]


def train_all(runs: list[Run]) -> None:
    for run in runs:
        loop.run(run, CPU)


@pytest.mark.parametrize(("annotate", "processes"), [(without_area, 1), (crowds, 2)])
def test_training_images_without_an_object_to_learn_from(annotate, processes, tmp_path):
    """In two processes, which wait for a gradient of every parameter, be it zero."""
    export("coco", tmp_path / "coco", (8, 4), 64)
    change(tmp_path / "coco", "train", annotate=annotate)
    runs = [whole(name, source=locate(str(tmp_path / "coco"), "detection")) for name in DETECTORS]
    finish(launch(processes, train_all, runs)) if processes > 1 else train_all(runs)
    for run in runs:
        values = run.measurement.record()["values"]
        assert 0 <= values["box_ap"] <= 100
        assert 0 < values["train_loss"] < 20


def test_a_split_without_any_object_is_refused(tmp_path):
    export("coco", tmp_path / "coco", (8, 4), 64)
    change(tmp_path / "coco", "test", annotate=nothing_in)
    with pytest.raises(FreproError, match="splits without objects: no object in any of its 4 images"):
        locate(str(tmp_path / "coco"), "detection")


@pytest.mark.parametrize(("width", "height"), [(90, 1), (1, 1)])
def test_thin_images(width, height, tmp_path):
    export("coco", tmp_path / "coco", (8, 4), 64)
    for split, folder in (("train", "train2017"), ("test", "val2017")):
        file = annotation_file(tmp_path / "coco", split)
        content = json.loads(file.read_text())
        content["images"][0] |= {"width": width, "height": height}
        Image.new("RGB", (width, height)).save(tmp_path / "coco" / folder / content["images"][0]["file_name"])
        box = {"bbox": [0, 0, width, 1], "area": width, "segmentation": [[0, 0, width, 0, width, 1, 0, 1]]}
        content["annotations"] = [each | (box if each["image_id"] == 0 else {}) for each in content["annotations"]]
        file.write_text(json.dumps(content))
    for name in DETECTORS:
        run = whole(name, source=locate(str(tmp_path / "coco"), "detection"), crop=name == "mask_rcnn")
        assert loop.run(run, CPU)["values"]["test_images"] == 4


def test_a_loss_is_gone_through_again_to_the_bit(monkeypatch):
    """Lists of images and mappings of targets, too, are kept as the network saw them."""
    run = whole()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "isfinite", lambda loss, finite=torch.isfinite: finite(loss) & (loss.ndim > 0))
        with pytest.raises(FreproError, match="at optimizer step 1") as error:
            loop.run(run, CPU)
    folder = run.measurement.folder / "nonfinite"
    found = nonfinite.replay(folder, partial(loop.make_accelerator, "cpu"))
    assert found["again"] == found["loss"]
    assert found["loss"] in str(error.value)
    assert (found["weights"], found["module"]) == ([], None)
    assert 0 < found["inputs"] <= 1
    assert load_file(folder / "weights.safetensors").keys() == tasks.of(run).network(0.0).state_dict().keys()


def test_a_loss_that_is_not_finite_is_traced_to_a_module():
    run = whole(lr=1e30, warmup_lr=1e30)
    with pytest.raises(FreproError, match=r"the loss is nan at optimizer step \d.*`frepro replay"):
        loop.run(run, CPU)
    found = nonfinite.replay(run.measurement.folder / "nonfinite", partial(loop.make_accelerator, "cpu"))
    assert found["again"] == "nan"
    assert found["module"] is not None
