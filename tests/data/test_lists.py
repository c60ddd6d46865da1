"""Images without a split, and lists of images: what is drawn is fixed, and what is wrong is one line."""

from collections import Counter

import pytest
from PIL import Image

from frepro.data import locate
from frepro.data.loading import open_split
from frepro.errors import FreproError

COUNTS = {"cat": 10, "dog": 5, "eel": 2}


def make_classes(root, counts=COUNTS):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8 + i, 8), (20 * i, 0, 0)).save(root / name / f"{i}.png")
    return root


def names(source, split):
    return [image.path for image in open_split(source, split).reader.images]


def test_each_class_is_split_by_its_share_and_by_the_seed(tmp_path):
    root = make_classes(tmp_path / "pets")
    source = locate(str(root), split=0.2)
    assert (source.name, source.train, source.test, source.classes) == ("pets", 13, 4, 3)
    assert Counter(name.split("/")[0] for name in names(source, "test")) == {"cat": 2, "dog": 1, "eel": 1}
    assert not set(names(source, "train")) & set(names(source, "test"))
    again = locate(str(make_classes(tmp_path / "copy" / "pets")), split=0.2)
    assert again.fingerprint == source.fingerprint
    assert names(again, "test") == names(source, "test")
    others = [locate(str(root), split=0.2, split_seed=seed) for seed in range(1, 5)]
    assert len({source.fingerprint, *(each.fingerprint for each in others)}) > 1
    assert [label for _, label in (open_split(source, "test")[i] for i in range(4))] == [0, 0, 1, 2]


def test_a_csv_is_split_or_says_itself(tmp_path):
    make_classes(tmp_path / "images")
    lines = [
        f"images/{name}/{i}.png,{name},{'test' if i == 0 else 'train'}" for name, n in COUNTS.items() for i in range(n)
    ]
    (tmp_path / "pets.csv").write_text("\n".join(["File,Label,Split", *lines]) + "\n")
    source = locate(str(tmp_path / "pets.csv"))
    assert (source.name, source.train, source.test, source.classes) == ("pets", 14, 3, 3)
    assert all(name.endswith("/0.png") for name in names(source, "test"))
    assert locate(str(tmp_path / "pets.csv"), split=0.2).test == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns none: its first line must name file and label"),
        ("file,label\n", "lists no images"),
        ("name,kind\na.png,cat\n", "has the columns name, kind"),
        ("file,label\ngone.png,cat\ncat/0.png,cat\n", "names 1 files that do not exist, such as gone.png"),
        ("file,label\ncat/0.png,\n", ":2: the file or its label is missing"),
        ("file,label\ncat/0.png,cat\ncat/0.png,dog\n", "lists cat/0.png 2 times"),
        ("file,label\ncat/0.png,cat\ncat/1.png,cat\n", "images of 1 class"),
        ("file,label\ncat/0.png,cat\ndog/0.png,dog\n", "has one image, but a split needs two"),
        ("file,label,split\ncat/0.png,cat,tset\n", "split must be train or test, not 'tset'"),
    ],
)
def test_a_csv_that_cannot_be_used_is_one_line(tmp_path, text, message):
    make_classes(tmp_path)
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(FreproError) as error:
        locate(str(tmp_path / "l.csv"), split=None if "split" in text else 0.5)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_splits_that_cannot_be(tmp_path):
    root = make_classes(tmp_path / "pets")
    (tmp_path / "done" / "train").mkdir(parents=True)
    for data, split, message in (
        (root, 0.0, "between 0 and 1"),
        (root, 1.5, "between 0 and 1"),
        (tmp_path / "nowhere", 0.2, "no folder or CSV"),
        (tmp_path / "nowhere.csv", 0.2, "no CSV at"),
        (tmp_path / "done", 0.2, "is split already"),
        ("digits", 0.2, "has test images already"),
    ):
        with pytest.raises(FreproError) as error:
            locate(str(data), split=split)
        assert message in str(error.value)
    (tmp_path / "l.csv").write_text("file,label\npets/cat/0.png,cat\n")
    with pytest.raises(FreproError, match="does not say which images are for testing"):
        locate(str(tmp_path / "l.csv"))
