"""Data are found, counted and fingerprinted, and what is not as it should be is said in one line."""

import pytest
from PIL import Image

from frepro.data import locate
from frepro.data.dense import open_annotated
from frepro.data.loading import open_split
from frepro.data.sources import EMBEDDED, absolute
from frepro.errors import FreproError


def make_folder(root, splits=("train", "val"), classes=("cat", "dog"), images=3):
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                colour = (80 * i, 120 if name == "cat" else 20, 60)
                Image.new("RGB", (40, 30), colour).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded(name):
    source = embedded(name)
    assert (source.name, source.classes, source.embedded) == (name, 10, True)
    opened = open_annotated if name == "scenes" else open_split
    assert [len(opened(source, split)) for split in ("train", "test")] == [source.train, source.test]


def embedded(name):
    return locate(name, "detection" if name == "scenes" else "classification")


def test_without_data_there_are_textured_pictures_or_scenes():
    assert locate(None) == locate("") == locate("textured")
    assert locate(None, "detection") == locate("scenes", "segmentation")
    assert len({embedded(name).fingerprint for name in EMBEDDED}) == len(EMBEDDED)


@pytest.mark.parametrize(
    ("data", "task", "fitting"),
    [("digits", "detection", "COCO 2017, or the embedded scenes"), ("scenes", "classification", "ImageNet, or the")],
)
def test_embedded_data_of_another_task_are_refused(data, task, fitting):
    with pytest.raises(FreproError, match=f"{data} is not data for {task}: use a folder in the layout of {fitting}"):
        locate(data, task)


def test_folder(tmp_path):
    source = locate(str(make_folder(tmp_path / "pets")))
    assert (source.name, source.train, source.test, source.classes) == ("pets", 6, 6, 2)
    moved = make_folder(tmp_path / "elsewhere" / "pets")
    assert locate(str(moved)).fingerprint == source.fingerprint
    Image.new("RGB", (41, 30)).save(moved / "train" / "cat" / "9.png")
    assert locate(str(moved)).fingerprint != source.fingerprint


def test_names_of_timm(tmp_path):
    source = locate("torch/cifar10:/data/cifar")
    assert (source.reader, source.root, source.name) == ("torch/cifar10", "/data/cifar", "cifar10")
    a, b = make_folder(tmp_path / "a"), make_folder(tmp_path / "b", images=4)
    assert locate(f"torch/image_folder:{a}").fingerprint != locate(f"torch/image_folder:{b}").fingerprint
    with pytest.raises(FreproError, match="can only be streamed"):
        locate("wds/imagenet:/data")


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_a_test_folder_of_any_usual_name_is_the_test_set(tmp_path, name):
    source = locate(str(make_folder(make_folder(tmp_path, splits=("train",)), splits=(name,), images=2)))
    assert (source.train, source.test) == (6, 4)
    assert [len(open_split(source, split)) for split in ("train", "test")] == [6, 4]


def test_a_folder_called_imagenet_is_not_taken_for_it(tmp_path):
    assert locate(str(make_folder(tmp_path / "ImageNet-1K"))).name != "ImageNet-1K"


def test_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute(None) is None
    assert [absolute(name) for name in EMBEDDED] == list(EMBEDDED)
    assert absolute("pets") == str(tmp_path / "pets")
    assert absolute("torch/cifar10:data") == f"torch/cifar10:{tmp_path / 'data'}"


def test_what_is_wrong_is_named(tmp_path):
    def message(path):
        with pytest.raises(FreproError) as error:
            locate(str(path))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no data at" in message(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no known layout" in message(tmp_path / "empty")
    assert "no train/ and val/ folders" in message(make_folder(tmp_path / "half", splits=("train",)))
    (tmp_path / "file").write_text("")
    assert "is a file" in message(tmp_path / "file")
    assert "has no images" in message(make_folder(tmp_path / "bare", images=0))
    odd = make_folder(tmp_path / "odd")
    make_folder(odd, splits=("val",), classes=("bird",))
    assert "1 classes are in only one of train/ and val/, such as 'bird'" in message(odd)


def test_a_reader_of_timms_needs_a_folder():
    with pytest.raises(FreproError, match="torch/cifar10 has no folder: give it as torch/"):
        locate("torch/cifar10")
