"""What goes wrong on the way of a user is one line that names cause and remedy, and nothing is lost by it."""

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from frepro import recipes, tasks
from frepro.data import locate
from frepro.data.coco_files import annotation_file
from frepro.data.export import export
from frepro.errors import FreproError, one_line
from frepro.training import loop, nonfinite
from frepro.training.runs import Run
from tests.conftest import ROOT
from tests.small import BACKBONE, whole
from tests.training.test_loop import CPU, finish, launch

pytest.importorskip("pycocotools")

TASKS = {"coco": "detection", "ade20k": "segmentation"}
NETWORKS = {"coco": "mask_rcnn", "ade20k": "semantic_fpn"}
IMAGES = {"coco": ("train2017", "val2017"), "ade20k": ("images/training", "images/validation")}
DETECTOR = ["--model", "spanet_small", "--recipe", "spanet-mask_rcnn", "--profile", "smoke", "--device", "cpu"]
SEGMENTER = ["--model", "dfformer_s18", "--recipe", "dfformer-semantic_fpn", "--profile", "smoke", "--device", "cpu"]
OPTIONS = {"coco": DETECTOR, "ade20k": SEGMENTER}
CLASSIFIER = ["--model", "dfformer_s18", "--profile", "smoke", "--device", "cpu"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for layout in TASKS:
        export(layout, folder / layout, (8, 4), 64)
    return folder


@pytest.fixture
def folders(exported, tmp_path):
    """Scenes in both layouts, to be damaged."""
    shutil.copytree(exported, tmp_path / "data")
    return tmp_path / "data"


def said(done: subprocess.CompletedProcess) -> str:
    """The one line that a command failed with, after those of its log."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("frepro: error: ")]
    assert errors == done.stderr.strip().splitlines()[-1:], done.stderr
    return errors[0].removeprefix("frepro: error: ")


def files(folder: Path, layout: str, split: int) -> list[Path]:
    return sorted((folder / layout / IMAGES[layout][split]).iterdir())


def other_categories(folder: Path) -> str:
    file = annotation_file(folder / "coco", "test")
    content = json.loads(file.read_text())
    content["categories"][3]["name"] = "three"
    file.write_text(json.dumps(content))
    return "coco: 10 training categories and 10 test categories, or different names: both splits must have the same"


def fewer_categories(folder: Path) -> str:
    file = annotation_file(folder / "coco", "test")
    content = json.loads(file.read_text())
    content["categories"] = content["categories"][:7]
    content["annotations"] = [each for each in content["annotations"] if each["category_id"] <= 7]
    file.write_text(json.dumps(content))
    return "10 training categories and 7 test categories"


def unknown_category(folder: Path) -> str:
    file = annotation_file(folder / "coco", "train")
    content = json.loads(file.read_text())
    content["annotations"][5]["category_id"] = 11
    file.write_text(json.dumps(content))
    return "category 11 is not one of the 10: run `frepro data check"


def empty_val(folder: Path) -> str:
    for file in files(folder, "coco", 1):
        file.unlink()
    return "val2017 holds no images that "


def empty_list(folder: Path) -> str:
    file = annotation_file(folder / "coco", "test")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"images": [], "annotations": []}))
    return "instances_val2017.json: splits without images: it lists none"


@pytest.mark.parametrize("damage", [other_categories, fewer_categories, unknown_category, empty_val, empty_list])
def test_coco_folders_that_do_not_fit(damage, folders, frepro_command):
    expected = damage(folders)
    assert expected in said(frepro_command("train", *DETECTOR, "--data", str(folders / "coco")))


def test_masks_and_areas_of_coco_that_are_none(folders, frepro_command):
    file = annotation_file(folders / "coco", "train")
    whole = json.loads(file.read_text())
    for change, expected in (
        ({"segmentation": [[3, 4]]}, "a polygon is not three or more pairs of numbers: [3, 4]"),
        ({"segmentation": [[1, 2, 9, 9]]}, "a polygon is not three or more pairs of numbers: [1, 2, 9, 9]"),
        ({"area": None}, "areas that are not numbers: annotation "),
    ):
        file.write_text(json.dumps(whole | {"annotations": [each | change for each in whole["annotations"]]}))
        assert expected in said(frepro_command("train", *DETECTOR, "--data", str(folders / "coco")))


def test_backbones_that_do_not_take_the_arguments(frepro_command):
    for recipe in ("spanet-mask_rcnn", "spanet-semantic_fpn"):
        line = said(frepro_command("train", "--model", "resnet18", "--recipe", recipe, "--profile", "smoke"))
        assert line.startswith(
            "the recipe makes models small by depths, dims, but resnet18 has no argument depths: use"
        )


def test_data_of_another_task(folders, tmp_path, frepro_command):
    export("imagenet", tmp_path / "digits", (40, 40))
    line = said(frepro_command("train", *DETECTOR, "--data", str(tmp_path / "digits")))
    assert "is not data for detection: use a folder in the layout of COCO 2017, or the embedded scenes" in line
    line = said(frepro_command("train", *SEGMENTER, "--data", str(folders / "coco")))
    assert "is not data for segmentation: use a folder in the layout of ADE20K, or the embedded scenes" in line
    for file in files(folders, "ade20k", 1):
        file.unlink()
    line = said(frepro_command("train", *SEGMENTER, "--data", str(folders / "ade20k")))
    assert "images/validation holds no images" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_a_label_out_of_range(workers, folders):
    for file in sorted((folders / "ade20k" / "annotations" / "training").iterdir())[2:]:
        Image.fromarray(np.full((64, 64), 12, np.uint8)).save(file)
    run = whole("semantic_fpn", source=locate(str(folders / "ade20k"), "segmentation"))
    with pytest.raises(FreproError) as error:
        loop.run(run, loop.Execution(device="cpu", workers=workers, damaged="skip"))
    assert "has label 12, but the highest is 11: replace the file" in one_line(error.value)


# Files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("layout", TASKS)
def test_damaged_images_stop_a_run_or_are_counted(layout, workers, folders):
    """One to train is cut short; one to test too, and another is gone. In training the next takes its place."""
    cut(files(folders, layout, 0)[5])
    gone, short = files(folders, layout, 1)[:2]
    cut(short)
    if layout == "coco":
        gone.unlink()  # it is listed still
    else:
        cut(folders / "ade20k" / "annotations" / "validation" / gone.name)
    run = whole(NETWORKS[layout], source=locate(str(folders / layout), TASKS[layout]))
    with pytest.raises(FreproError) as error:
        loop.run(run, loop.Execution(device="cpu", workers=workers))
    assert f"damaged image {files(folders, layout, 0)[5]}: " in one_line(error.value)
    assert "replace or remove the file" in one_line(error.value)

    record = loop.run(run, loop.Execution(device="cpu", workers=workers, damaged="skip"))
    assert record["values"]["damaged_images"] == 3
    names = set((run.measurement.folder / "damaged.txt").read_text().splitlines())
    assert {line.partition("\t")[0] for line in names} == {"train", "test"}
    # The others are evaluated, each once: as many, and with the scores, as without the two.
    task = tasks.of(run)
    samples = task.samples("test")
    samples.damaged = run.measurement.folder / "damaged.txt"
    whole_ones = [sample for i in range(4) if (sample := samples[0, i]) is not None]
    assert len(whole_ones) == 2
    network = task.network(0.0)
    network.load_state_dict(load_file(run.measurement.folder / "model.safetensors"))
    evaluator = task.evaluator()
    for image, target in whole_ones:
        evaluator.update([image], [target], task.predict(network.eval(), [image]))
    expected = evaluator.values(loop.make_accelerator("cpu", "no"))
    assert {name: record["values"][name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_damaged_images_in_two_processes_are_counted_once(folders):
    cut(files(folders, "coco", 0)[5])
    cut(files(folders, "coco", 1)[1])
    run = whole(source=locate(str(folders / "coco"), "detection"))
    finish(launch(2, loop.run, run, loop.Execution(device="cpu", damaged="skip")))
    assert run.measurement.record()["values"]["damaged_images"] == 2


def test_a_file_that_was_replaced_is_evaluated(folders):
    """The run was stopped, and its list of damaged images is there still."""
    run = whole(source=locate(str(folders / "coco"), "detection"))
    run.measurement.folder.mkdir(parents=True)
    (run.measurement.folder / "damaged.txt").write_text(f"test\t{files(folders, 'coco', 1)[0]}\n")
    assert loop.run(run, loop.Execution(device="cpu", damaged="skip"))["values"]["box_ap"] >= 0


@pytest.mark.parametrize("layout", TASKS)
@pytest.mark.parametrize("split", [0, 1])
def test_nothing_but_damaged_images(layout, split, folders):
    for file in files(folders, layout, split):
        cut(file)
    run = whole(NETWORKS[layout], source=locate(str(folders / layout), TASKS[layout]))
    expected = ("every train image is damaged", "no test image could be evaluated: all are damaged")[split]
    with pytest.raises(FreproError, match=expected):
        loop.run(run, loop.Execution(device="cpu", damaged="skip"))


def test_nothing_but_damaged_images_to_test_a_classifier(tmp_path):
    export("imagenet", tmp_path / "digits", (64, 40))
    for file in (tmp_path / "digits" / "val").rglob("*.png"):
        cut(file)
    recipe = dataclasses.replace(recipes.load("dfformer", "smoke"), samples=None)
    run = Run("dfformer_s18", recipe, "smoke", locate(str(tmp_path / "digits")), 0)
    with pytest.raises(FreproError, match="no test image could be evaluated: all are damaged"):
        loop.run(run, loop.Execution(device="cpu", damaged="skip"))


def test_a_damaged_image_stops_the_command(tmp_path, frepro_command):
    export("imagenet", tmp_path / "digits", (64, 40))
    for file in (tmp_path / "digits" / "train").rglob("*.png"):
        cut(file)
    command = ["train", *CLASSIFIER, "--data", str(tmp_path / "digits")]
    assert said(frepro_command(*command, "--workers", "1")).startswith("damaged image ")
    assert "every train image is damaged" in said(frepro_command(*command, "--damaged", "skip", "--workers", "1"))


def test_files_that_a_command_names(tmp_path, frepro_command):
    missing = said(frepro_command("train", *DETECTOR, "--backbone", str(tmp_path / "none.pth")))
    assert (
        missing == f"no weights at {tmp_path / 'none.pth'}: No such file or directory: give a .pth or .safetensors file"
    )
    folder = said(frepro_command("replay", str(tmp_path), "--device", "cpu"))
    assert folder.startswith(f"{tmp_path} holds no optimizer step to replay: ")
    checkpoint = said(frepro_command("eval", *DETECTOR, "--checkpoint", str(tmp_path / "none.safetensors")))
    assert checkpoint.startswith(f"no checkpoint at {tmp_path / 'none.safetensors'}")


@pytest.mark.parametrize("text", ["{}", '{"task": "detection"}', "[]", "nonsense"])
def test_a_folder_that_was_not_left_by_a_run(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    torch.save(([], []), tmp_path / "batch.pt")
    with pytest.raises(FreproError, match="holds no optimizer step to replay"):
        nonfinite.replay(tmp_path, partial(loop.make_accelerator, "cpu"))


def test_stored_weights_of_a_detector_are_scored(exported, tmp_path, frepro_command):
    """`frepro eval` prints the scores that the network has, with the boxes of objects that it was never taught."""
    source = locate(str(exported / "coco"), "detection")
    run = Run("spanet_small", recipes.load("spanet-mask_rcnn", "smoke"), "smoke", source, 0, BACKBONE)
    save_file(tasks.of(run).network(0.0).state_dict(), tmp_path / "m.safetensors")
    arguments = [word for name, value in BACKBONE.items() for word in ("-a", name, json.dumps(value))]
    done = frepro_command(
        "eval", *DETECTOR, *arguments, "--data", source.root, "--checkpoint", str(tmp_path / "m.safetensors")
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("spanet_small in mask_rcnn: box_ap 0.00 %, box_ap50 0.00 %")
    assert "mask_ap 0.00 %" in done.stdout
    assert done.stdout.endswith("on 4 images of coco\n")


# Disks


def mounted(folder: Path, options: str, script: str) -> subprocess.CompletedProcess:
    """A shell script with a small file system on a folder, in a mount namespace of its own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a process mount a file system of its own")
    folder.mkdir(exist_ok=True)
    whole_script = f"mount -t tmpfs -o {options} none {shlex.quote(str(folder))} && {script}"
    environment = {**os.environ, "FREPRO_RESULTS": str(folder)}
    command = ["unshare", "-rm", "sh", "-c", whole_script]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)


TRAIN = shlex.join([sys.executable, "-m", "frepro", "train", *CLASSIFIER, "--checkpoint-every", "1"])


def test_a_full_disk_costs_no_more_than_the_last_updates(tmp_path):
    """The first state fits and the third does not; with more space the run goes on from the second."""
    run = Run("dfformer_s18", recipes.load("dfformer", "smoke"), "smoke", locate(None), 0)
    network = tasks.of(run).network(0.0)
    state = 3 * sum(4 * parameter.numel() for parameter in network.parameters())  # with both averages of AdamW
    disk = tmp_path / "disk"
    list_all = f"find {disk} -name '*checkpoint-*' -printf '%f\\n' | sort"
    done = mounted(
        disk,
        f"size={int(2.6 * state) // 1024}k",
        f"{TRAIN}; echo status $?; {list_all}; mount -o remount,size=100m {disk}; {TRAIN}; echo status $?; {list_all}",
    )
    lines = done.stdout.splitlines()
    errors = [line for line in done.stderr.splitlines() if line.startswith("frepro: error")]
    assert lines[:3] == ["status 1", "checkpoint-00000001.safetensors", "checkpoint-00000002.safetensors"], done
    assert len(errors) == 1
    assert "the disk is full: free some space and run the same command again" in errors[0]
    assert "Traceback" not in done.stderr
    assert lines[3].startswith("reduced dfformer_s18, seed 0: test top-1 ")
    assert lines[-1] == "status 0"  # and no checkpoint is left
    assert f"{loop.run(run, CPU)['values']['top1']:.2f} %" in lines[3]  # as it would have been


def test_a_folder_of_results_that_cannot_be_written(tmp_path):
    done = mounted(tmp_path / "disk", "ro", TRAIN)
    line = said(done)
    assert line.startswith(f"cannot write {tmp_path / 'disk'}")
    assert "read-only file system: choose another folder (for results, FREPRO_RESULTS)" in line
