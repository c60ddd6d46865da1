"""Data are found, counted and fingerprinted, and what is not as it should be is said in one line."""

import pytest
from PIL import Image

from frepro.data import locate
from frepro.errors import FreproError


def make_folder(root, splits=("train", "val"), classes=("cat", "dog"), images=3):
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                colour = (80 * i, 120 if name == "cat" else 20, 60)
                Image.new("RGB", (40, 30), colour).save(root / split / name / f"{i}.png")
    return root


def test_digits():
    digits = locate(None)
    assert digits == locate("digits") == locate("")
    assert (digits.train, digits.test, digits.classes, digits.embedded) == (1297, 500, 10, True)


def test_folder(tmp_path):
    source = locate(str(make_folder(tmp_path / "pets")))
    assert (source.name, source.train, source.test, source.classes) == ("pets", 6, 6, 2)
    moved = make_folder(tmp_path / "elsewhere" / "pets")
    assert locate(str(moved)).fingerprint == source.fingerprint
    Image.new("RGB", (41, 30)).save(moved / "train" / "cat" / "9.png")
    assert locate(str(moved)).fingerprint != source.fingerprint


def test_names_of_timm():
    source = locate("torch/cifar10:/data/cifar")
    assert (source.reader, source.root, source.name) == ("torch/cifar10", "/data/cifar", "cifar10")


def test_what_is_wrong_is_named(tmp_path):
    def message(path):
        with pytest.raises(FreproError) as error:
            locate(str(path))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no data at" in message(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no train/ and val/ folders" in message(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    assert "is a file" in message(tmp_path / "file")
    assert "holds no images" in message(make_folder(tmp_path / "bare", images=0))
    odd = make_folder(tmp_path / "odd")
    make_folder(odd, splits=("val",), classes=("bird",))
    assert "1 classes stand in one of train/ and val/ alone, as 'bird'" in message(odd)
