"""ADE20K's layout is read back as it was written: 0 is ignored, and classes count from 1 in the files."""

import numpy as np
import pytest
import torch
from PIL import Image

from frepro.data.ade20k import Ade20k
from frepro.data.export import export
from frepro.data.scenes import SEMANTIC_CLASSES, Scenes
from frepro.errors import FreproError

SIZE = 48


@pytest.fixture
def folder(tmp_path):
    export("ade20k", tmp_path / "ade", (12, 3), SIZE)
    return tmp_path / "ade"


@pytest.mark.parametrize(("split", "count"), [("train", 12), ("test", 3)])
def test_what_is_read_back_is_what_the_scenes_give(folder, split, count):
    dataset, scenes = Ade20k(folder, split), Scenes(split, SIZE)
    assert len(dataset) == count
    assert dataset.semantic_classes == SEMANTIC_CLASSES
    for index in range(count):
        read, scene = dataset[index], scenes[index]
        assert read.image.tobytes() == scene.image.tobytes()
        assert torch.equal(read.semantic, scene.semantic)
        assert read.semantic.dtype == torch.uint8
        assert read.masks.shape == (0, SIZE, SIZE)
        assert read.boxes.shape == (0, 4)
        assert read.image_id == index


def write(folder, raw, size=None, mode="L"):
    """A training split of one JPEG, as the real files are, with a map of the classes ``raw``."""
    for kind in ("images", "annotations"):
        (folder / kind / "training").mkdir(parents=True)
    annotation = Image.fromarray(np.array(raw, dtype=np.uint8))
    Image.new("RGB", size or annotation.size).save(folder / "images" / "training" / "ADE_train_00000001.jpg")
    annotation.convert(mode).save(folder / "annotations" / "training" / "ADE_train_00000001.png")
    return folder


def test_labels_of_the_files(tmp_path):
    dataset = Ade20k(write(tmp_path, [[0, 1, 150]]), "train")
    assert dataset[0].semantic.tolist() == [[255, 0, 149]]
    assert len(dataset.classes) == 150


def test_names_of_the_real_table(tmp_path):
    table = (
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\twall      \n2\t0.1072\t6046\t612\tbuilding, edifice\n"
    )
    write(tmp_path, [[1]])
    (tmp_path / "objectInfo150.txt").write_text(table)
    assert Ade20k(tmp_path, "train").classes == ["wall", "building, edifice"]


def test_a_split_without_any_label_is_refused(tmp_path):
    with pytest.raises(FreproError, match="has no label in any of its 1 maps"):
        Ade20k(write(tmp_path, [[0, 0]]), "train")


def test_what_is_wrong_is_named(tmp_path):
    def message(folder):
        with pytest.raises(FreproError) as error:
            Ade20k(folder, "train")[0]
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "has label 151, but the highest is 150" in message(write(tmp_path / "label", [[151, 1]]))
    assert "has 2 x 1 pixels, but its image has 3 x 1" in message(write(tmp_path / "size", [[1, 1]], size=(3, 1)))
    assert "is not an 8-bit greyscale image" in message(write(tmp_path / "mode", [[1, 1]], mode="RGB"))
    (write(tmp_path / "map", [[1]]) / "annotations" / "training" / "ADE_train_00000001.png").unlink()
    assert "it is missing" in message(tmp_path / "map")
    (write(tmp_path / "none", [[1]]) / "images" / "training" / "ADE_train_00000001.jpg").unlink()
    assert "holds no images" in message(tmp_path / "none")
    assert "is missing: give the folder ADEChallengeData2016 itself" in message(tmp_path / "nowhere")
