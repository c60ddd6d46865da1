"""Validation images alone, in each layout that they come in, are the same data set."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from frepro.data import locate
from frepro.data.check import check
from frepro.data.loading import open_split
from frepro.errors import FreproError
from frepro.experiment import Experiment
from tests.data import imagenets
from tests.data.imagenets import COUNT, LAYOUTS, WNIDS

VARIANT = [("GFFormer-S18", "gfformer_s18", {})]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("layouts")
    for name, write in LAYOUTS.items():
        write(root / name)
    return {name: root / name for name in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_listing_check_and_reader_agree(written, layout):
    source, usual = locate(str(written[layout])), locate(str(written["class folders"]))
    assert source.fingerprint == usual.fingerprint
    assert (source.train, source.test, source.classes) == (0, COUNT, len(WNIDS))
    found, expected = open_split(source, "test"), open_split(usual, "test")
    for index in range(COUNT):
        (image, target), (same, wanted) = found[index], expected[index]
        assert target == wanted
        assert image.tobytes() == same.tobytes()
    report = check(written[layout])
    assert not report.faults
    assert report.found[0].startswith(f"val/: {COUNT} images of {len(WNIDS)} classes")
    assert report.found[1] == "no train/: enough to evaluate, not to train"
    with pytest.raises(FreproError, match=r"test images alone.*add train/<class>/<image>"):
        open_split(source, "train")


@pytest.mark.parametrize("below", ["ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_a_folder_within_kaggles_download(written, below):
    root = written["Kaggle's download"]
    assert locate(str(root / below)).fingerprint == locate(str(root)).fingerprint


def test_flat_validation_next_to_class_folders_of_training(tmp_path):
    imagenets.kaggle(tmp_path)
    for number, name in enumerate(WNIDS):
        folder = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "train" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / f"{name}_1.JPEG", format="JPEG")
    source = locate(str(tmp_path))
    assert (source.train, source.test, source.classes) == (len(WNIDS), COUNT, len(WNIDS))
    assert open_split(source, "train")[3][1] == 3
    with pytest.raises(FreproError, match="no images"):  # test/ of the download has no labels
        shutil.rmtree(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val")
        locate(str(tmp_path))


def without_column(root: Path) -> None:
    (root / "LOC_val_solution.csv").write_text("image,label\na,b\n")


def without_meta(root: Path) -> None:
    (root / "LOC_val_solution.csv").unlink()
    imagenets.ground_truth(root)


def damaged_meta(root: Path) -> None:
    without_meta(root)
    (root / "meta.mat").write_bytes(b"MATLAB 5.0")


def too_few_classes(root: Path) -> None:
    without_meta(root)
    (root / "map_clsloc.txt").write_text("n01440764 1 a\n")


def no_numbers(root: Path) -> None:
    too_few_classes(root)
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("one\ntwo\n")


FAULTS = {
    r"next to val/": lambda root: (root / "LOC_val_solution.csv").unlink(),
    r"LOC_val_solution.csv is not a list of labels .*ImageId": without_column,
    r"is not a list of labels": lambda root: (root / "LOC_val_solution.csv").write_bytes(b"\xff\xfe\x00ImageId"),
    r"1 images that LOC_val_solution.csv does not name, such as other.png": lambda root: Image.new("L", (9, 9)).save(
        root / "val" / "other.png"
    ),
    r"put meta.mat of the development kit, or map_clsloc.txt, next to it": without_meta,
    r"meta.mat is not a list of labels": damaged_meta,
    r"ground_truth.txt is not a list of labels .*map_clsloc.txt has no class 2": too_few_classes,
    r"ground_truth.txt is not a list of labels .*invalid literal": no_numbers,
}


@pytest.mark.parametrize(("said", "spoil"), FAULTS.items(), ids=FAULTS)
def test_what_is_wrong_with_a_list_is_one_line(tmp_path, said, spoil):
    imagenets.archive_and_kaggle_list(tmp_path)
    spoil(tmp_path)
    with pytest.raises(FreproError, match=said) as error:
        locate(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_table_that_would_train_is_refused_before_anything_runs(written):
    with pytest.raises(FreproError, match="test images alone"):
        Experiment("dfformer", 4, VARIANT, data=str(written["class folders"]), profile="smoke")


def test_a_table_of_stored_weights_needs_no_training_images(written, tmp_path):
    (tmp_path / "gfformer_s18.pth").write_bytes(b"read later")
    given = {"data": str(written["Kaggle's download"]), "profile": "smoke", "checkpoints": str(tmp_path)}
    experiment = Experiment("dfformer", 4, VARIANT, **given)
    assert [each.model for each in experiment.evaluated] == ["gfformer_s18"]
