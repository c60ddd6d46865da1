"""MNIST's idx files: plan, check and reader see the same data, and every bad file is one plain line."""

import gzip
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from frepro import recipes
from frepro.cli.options import cli
from frepro.data import idx, locate
from frepro.data.check import check
from frepro.data.loading import count_classes, open_split, samples
from frepro.data.sources import absolute, is_there
from frepro.errors import FreproError
from frepro.reproduce.plans import fitting, parts
from tests.idx_files import NAMES, encoded, write

LABELS = {"train": [label % 10 for label in range(130)], "test": [label % 10 for label in range(7, 30)]}
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES.values()


def opened(root: Path, split: str = "train", reader: str = "idx"):
    return open_split(locate(f"{reader}:{root}"), split)


@pytest.fixture
def digits(tmp_path):
    write(tmp_path / "digits", LABELS)
    return tmp_path / "digits"


@pytest.mark.parametrize("form", [{}, {"packed": True}, {"dotted": True}, {"dotted": True, "packed": True}], ids=str)
def test_plan_check_and_reader_see_the_same(tmp_path, form):
    images = write(tmp_path / "Digits", LABELS, size=(7, 5), **form)
    source = locate(f"idx:{tmp_path / 'Digits'}")
    assert (source.name, source.train, source.test, source.classes) == ("digits", 130, 23, 10)
    report = check(f"idx:{tmp_path / 'Digits'}")
    assert report.found[:2] == [
        f"{TRAIN_IMAGES}: 130 images of 5 x 7 pixels",
        f"{TEST_IMAGES}: 23 images of 5 x 7 pixels",
    ]
    assert report.found[2] == "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert report.text().endswith("nothing is missing or damaged")
    for split, own in LABELS.items():
        read = open_split(source, split)
        assert [target for _, target in read] == own
        for (image, _), expected in zip(read, images[split], strict=True):
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), np.repeat(expected[..., None], 3, axis=2))
    assert count_classes(samples(source, "train", recipes.load("dfformer", "smoke"), (0.5,) * 3, (0.5,) * 3, 0)) == 10


def test_samples_have_the_size_of_the_recipe(digits):
    recipe = recipes.load("dfformer", "smoke")
    for split in ("train", "test"):
        found = samples(locate(f"idx:{digits}"), split, recipe, (0.5,) * 3, (0.5,) * 3, seed=0)
        assert found[0, 0][0].shape == (3, recipe.img_size, recipe.img_size)


def test_a_folder_of_idx_files_needs_no_prefix(digits):
    assert locate(str(digits)) == locate(f"idx:{digits}")
    assert check(digits).layout == "idx"


def test_fingerprints_are_of_contents(tmp_path, digits):
    """Files of the same size may hold other images; compression, place and time do not matter."""
    before = locate(f"idx:{digits}").fingerprint
    write(tmp_path / "packed", LABELS, packed=True)
    assert locate(f"idx:{tmp_path / 'packed'}").fingerprint == before
    for name in NAMES.values():
        other = shutil.copytree(digits, tmp_path / f"other-{name}")
        content = bytearray((other / name).read_bytes())
        content[-1] ^= 1
        (other / name).write_bytes(content)
        assert locate(f"idx:{other}").fingerprint != before


def test_a_changed_file_is_noticed_by_a_process_that_has_read_it(digits):
    source = locate(f"idx:{digits}")
    write(digits, LABELS | {"test": [0, 1, 2]})
    assert locate(f"idx:{digits}").test == 3
    with pytest.raises(FreproError, match="have just changed: stop whatever writes to them"):
        open_split(source, "test")


def test_the_uncompressed_file_has_precedence(digits):
    (digits / f"{TRAIN_LABELS}.gz").write_bytes(b"not read")
    assert locate(f"idx:{digits}").train == 130


def test_a_file_is_what_it_contains_not_what_its_suffix_says(digits):
    """Browsers uncompress downloads, and keep the name."""
    (digits / TRAIN_IMAGES).rename(digits / f"{TRAIN_IMAGES}.gz")
    labels = digits / TEST_LABELS
    labels.write_bytes(gzip.compress(labels.read_bytes()))
    assert (locate(f"idx:{digits}").train, check(f"idx:{digits}").faults) == (130, {})


def test_classes_are_numbered_in_the_order_of_their_labels(tmp_path):
    """EMNIST's letters count from 1; a label may be absent from the test images."""
    write(tmp_path / "letters", {"train": [26, 1, 5, 1, 26, 5], "test": [5, 26]})
    source = locate(f"idx:{tmp_path / 'letters'}")
    assert source.classes == 3
    assert opened(tmp_path / "letters").targets == [2, 0, 1, 0, 2, 1]
    assert opened(tmp_path / "letters", "test").targets == [1, 2]
    assert check(f"idx:{tmp_path / 'letters'}").found[2] == "3 classes: 1, 5, 26"


def test_known_data_have_the_names_of_their_classes(digits, monkeypatch):
    fingerprint = idx.listing(digits).fingerprint
    names = tuple("abcdefghij")
    monkeypatch.setitem(idx.KNOWN, fingerprint, ("Letters", names))
    idx._listing.cache_clear()
    assert locate(f"idx:{digits}").name == "Letters"
    assert check(f"idx:{digits}").found[2] == "10 classes: a, b, c, d, e, f, g, h, i, j"
    idx._listing.cache_clear()
    assert all(len(names) == 10 for _, names in idx.KNOWN.values())


@pytest.mark.parametrize(
    "labels", [LABELS["train"], sorted(LABELS["train"]), [0] * 60 + [1] * 7 + [2] * 2 + [3]], ids=len
)
def test_validation_takes_images_of_every_class_from_the_training_images_alone(tmp_path, labels):
    write(tmp_path / "d", {"train": labels, "test": [0, 1, 1]}, size=(4, 4))
    whole, held = locate(f"idx:{tmp_path / 'd'}"), locate(f"idx-validation:{tmp_path / 'd'}")
    assert held.name == "d-validation"
    assert held.fingerprint != whole.fingerprint
    assert held.classes == whole.classes
    fit, validation = (open_split(held, split) for split in ("train", "test"))
    assert (held.train, held.test) == (len(fit), len(validation))
    together = sorted((target, image.tobytes()) for part in (fit, validation) for image, target in part)
    assert together == sorted((target, image.tobytes()) for image, target in open_split(whole, "train"))
    for label in set(labels):
        count, taken = labels.count(label), validation.targets.count(label)
        assert taken == (max(1, count // 6) if count > 1 else 0)
        assert fit.targets.count(label) >= 1


def test_no_validation_without_a_second_image_of_a_class(tmp_path):
    write(tmp_path / "d", {"train": [0, 1], "test": [0, 1]})
    assert locate(f"idx:{tmp_path / 'd'}").train == 2
    with pytest.raises(FreproError, match="so none for validation: use data with more"):
        locate(f"idx-validation:{tmp_path / 'd'}")


# Bad files ------------------------------------------------------------------------------------------------------------


def replaced(name, change):
    def spoil(root):
        (root / name).write_bytes(change((root / name).read_bytes()))

    return spoil


def packed(name, change):
    def spoil(root):
        content = change(gzip.compress((root / name).read_bytes()))
        (root / name).unlink()
        (root / f"{name}.gz").write_bytes(content)

    return spoil


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


def as_pipe(root):
    (root / TRAIN_IMAGES).unlink()
    os.mkfifo(root / TRAIN_IMAGES)


def as_folder(root):
    (root / TRAIN_IMAGES).unlink()
    (root / TRAIN_IMAGES).mkdir()


HUGE = bytes((0, 0, 8, 3)) + b"\xff" * 12

BAD = {
    "images for labels": (replaced(TRAIN_LABELS, lambda _: encoded(np.zeros((130, 7, 5)))), "begins with 00000803"),
    "labels for images": (replaced(TEST_IMAGES, lambda _: encoded(np.zeros(23))), "begins with 00000801, not 00000803"),
    "floats": (replaced(TRAIN_IMAGES, lambda c: c[:2] + b"\x0d" + c[3:]), "begins with 00000d03, not 00000803"),
    "web page": (replaced(TRAIN_IMAGES, lambda _: b"<html>404</html>"), "begins with 3c68746d"),
    "empty": (replaced(TRAIN_IMAGES, lambda _: b""), "begins with nothing"),
    "cut header": (replaced(TRAIN_IMAGES, lambda c: c[:9]), "ends within its header"),
    "truncated": (
        replaced(TRAIN_IMAGES, lambda c: c[:-1]),
        "should have 4,550 bytes after its header, but has only 4,549",
    ),
    "too long": (replaced(TEST_LABELS, lambda c: c + b"\0"), "should have 23 bytes after its header, but has more"),
    "huge header": (replaced(TRAIN_IMAGES, lambda _: HUGE), "bytes after its header, but has only 0"),
    "huge packed header": (packed(TRAIN_IMAGES, lambda _: gzip.compress(HUGE)), "header, but has only 0"),
    "truncated gzip": (packed(TRAIN_IMAGES, lambda c: c[:-20]), "ended before the end-of-stream marker"),
    "cut gzip header": (packed(TRAIN_IMAGES, lambda c: c[:4]), "ended before the end-of-stream marker"),
    "damaged gzip": (packed(TRAIN_IMAGES, flipped), "copy or download the file again"),
    "wrong checksum": (packed(TRAIN_IMAGES, lambda c: c[:-8] + bytes(4) + c[-4:]), "CRC check failed"),
    "fewer labels": (replaced(TRAIN_LABELS, lambda _: encoded(np.arange(129) % 10)), "130 images, but"),
    "no images": (
        lambda root: write(root, LABELS | {"train": []}),
        "has 0 images of 7 x 5 pixels: use another file",
    ),
    "images of no pixels": (lambda root: write(root, LABELS, size=(0, 5)), "images of 0 x 5 pixels"),
    "one class": (
        lambda root: write(root, {"train": [3, 3], "test": [3]}),
        "only one class, 3, but a classifier needs",
    ),
    "unknown test label": (
        lambda root: write(root, {"train": [0, 1], "test": [1, 7]}),
        "no training image has the test label 7",
    ),
    "pipe": (as_pipe, "is not a regular file"),
    "folder": (as_folder, "is not a regular file"),
    "unreadable": (lambda root: (root / TRAIN_IMAGES).chmod(0), "Permission denied"),
    **{
        f"no {name}": ((lambda root, name=name: (root / name).unlink()), f"has no {name}: add the missing files")
        for name in NAMES.values()
    },
    "no test files": (
        lambda root: [(root / name).unlink() for name in (TEST_IMAGES, TEST_LABELS)],
        f"has no {TEST_IMAGES}, {TEST_LABELS}: add the missing files",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_plain_line(digits, kind):
    spoil, said = BAD[kind]
    if kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root may read every file")
    spoil(digits)
    with pytest.raises(FreproError, match=re.escape(said)) as error:
        locate(f"idx:{digits}")
    assert "\n" not in str(error.value)
    assert ": " in str(error.value)
    report = check(f"idx:{digits}")
    assert len(report.faults) == 1
    result = CliRunner().invoke(cli, ["data", "check", f"idx:{digits}"])
    assert result.exit_code != 0
    assert "  wrong: " in result.output
    assert isinstance(result.exception, FreproError)


def test_check_lists_every_bad_file(digits):
    (digits / TRAIN_IMAGES).write_bytes(b"?")
    (digits / TEST_IMAGES).write_bytes(b"?")
    (digits / TEST_LABELS).unlink()
    assert check(f"idx:{digits}").faults == {
        "missing files": (1, TEST_LABELS),
        "damaged files": (2, f"{TRAIN_IMAGES}: it begins with 3f, not 00000803 as idx files of images do"),
    }


def test_what_is_not_there_is_said(tmp_path, digits):
    for reader in ("idx", "idx-validation"):
        with pytest.raises(FreproError, match=f"{reader} has no folder: give it as {reader}:/path"):
            locate(f"{reader}:")
        with pytest.raises(FreproError, match=r"no data at .*nowhere"):
            locate(f"{reader}:{tmp_path / 'nowhere'}")
        with pytest.raises(FreproError, match="is a file: give the folder"):
            locate(f"{reader}:{digits / TRAIN_IMAGES}")
        with pytest.raises(FreproError, match="is not data for detection"):
            locate(f"{reader}:{digits}", "detection")


def test_names_of_data(digits, monkeypatch):
    monkeypatch.chdir(digits.parent)
    assert absolute("idx:digits") == f"idx:{digits}"
    assert (is_there("idx:digits"), is_there("idx:nowhere")) == (True, False)
    assert not is_there("idx:textured")  # the embedded data of that name are no folder
    write(digits.parent / "a, b", LABELS)
    assert parts("/nowhere,idx:a, b,textured") == ["/nowhere", "idx:a, b", "textured"]
    assert fitting("/nowhere,idx:digits", "classification") == "idx:digits"


def test_a_run_trains_and_scores(tmp_path, monkeypatch, digits):
    """Through the command line, with loading processes; the validation part is another run than the test part."""
    monkeypatch.setenv("FREPRO_RESULTS", str(tmp_path / "results"))
    for data, count in ((f"idx:{digits}", 23), (f"idx-validation:{digits}", 20)):
        command = ["train", "--model", "dfformer_s18", "--profile", "smoke", "--device", "cpu", "--workers", "1"]
        result = CliRunner().invoke(cli, [*command, "--data", data], catch_exceptions=False)
        assert f"on {count} images of digits" in result.output
    assert len(list((tmp_path / "results" / "runs").iterdir())) == 2
