"""Composed pictures: the same everywhere, of known frequency, with nothing of training in what tests."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from frepro import paths
from frepro.data import compositions, locate
from frepro.data.compositions import CUES, SIZE, Cues, Textured, conflicts, grating
from frepro.data.loading import open_split


@pytest.mark.parametrize("frequency", [4, 7, 12])
@pytest.mark.parametrize(("direction", "bin"), [(0.0, (0, 1)), (0.5, (1, 0))])
def test_a_grating_lands_in_its_bin(frequency, direction, bin):
    wave = grating(SIZE, frequency, direction, phase=0.3)
    assert wave.mean() == pytest.approx(0, abs=1e-12)
    assert wave.var() == pytest.approx(1)
    spectrum = np.abs(np.fft.rfft2(wave)) ** 2
    assert np.unravel_index(spectrum.argmax(), spectrum.shape) == (frequency * bin[0], frequency * bin[1])


def test_a_picture_depends_on_split_and_index_alone():
    code = (
        "import numpy as np; from frepro.data.compositions import *; splits = Textured('train'), Cues('test');"
        "print([int(np.asarray(split[i][0]).astype(int).sum()) for split in splits for i in (40, 3)])"
    )
    there = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    here = [int(np.asarray(d[i][0]).astype(int).sum()) for d in (Textured("train"), Cues("test")) for i in (40, 3)]
    assert there.stdout.strip() == str(here)
    assert len(set(here)) == 4


@pytest.mark.parametrize(("split", "scans"), [("train", slice(0, 1297)), ("test", slice(1297, 1797))])
def test_targets_are_those_of_the_scans(split, scans):
    digits = load_digits().target[scans].tolist()
    textured, cues = Textured(split), Cues(split)
    assert textured.targets == digits * (len(textured) // len(digits))
    assert cues.targets == digits
    assert [textured[i][1] for i in (0, len(digits), len(textured) - 1)] == [digits[0], digits[0], digits[-1]]
    assert textured[0][0].size == cues[0][0].size == (SIZE, SIZE)


def test_no_scan_of_validation_is_in_what_is_trained_on_for_it():
    """The scans for fit and validation make up those for training, in other compositions than there."""
    train, fit, validation = (compositions._scans(part)[0] for part in ("train", "fit", "validation"))
    assert np.array_equal(np.concatenate([fit, validation]), train)
    source = locate("textured-validation")
    parts = [open_split(source, split) for split in ("train", "test")]
    assert [len(part) for part in parts] == [source.train, source.test]
    assert [part.part for part in parts] == ["fit", "validation"]
    assert not np.array_equal(np.asarray(parts[0][3][0]), np.asarray(Textured("train")[3][0]))


def test_the_same_scan_is_composed_anew_each_time():
    textured = Textured("train")
    first, second = (np.asarray(textured[i][0]) for i in (5, 5 + 1297))
    assert (first != second).mean() > 0.9


def test_no_place_is_in_training_and_test_photographs():
    for train, test, whole in zip(
        compositions._photographs("train"), compositions._photographs("test"), (640, 640), strict=True
    ):
        assert train.shape[1] + test.shape[1] == whole


def test_brightness_alone_does_not_tell_the_digit():
    """A digit is brighter than its background about as often as it is darker, and often by little."""
    differences = []
    for index in range(200):
        rng = np.random.default_rng((compositions.TEXTURED, 1, index))
        inside = compositions._shape(rng, "test", index) > 0.5
        picture = np.asarray(Textured("test")[index][0]) / 255
        differences.append(picture[inside].mean() - picture[~inside].mean())
    assert abs(np.mean(np.sign(differences))) < 0.2
    assert 0.1 < np.mean(np.abs(differences) < min(compositions.CONTRAST)) < 0.9


def test_cues_agree_in_training_and_never_in_a_conflict():
    cues = Cues("train")
    for index in range(20):
        picture, target = cues[index]
        assert _texture(np.asarray(picture) / 255) == target
    pictures, shapes, textures = conflicts(60)
    assert pictures.shape == (60, SIZE, SIZE)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert all(shape != texture for shape, texture in zip(shapes, textures, strict=True))
    assert shapes == load_digits().target[1297 : 1297 + 60].tolist()
    found = [_texture(picture) for picture in pictures]
    assert np.mean(np.array(found) == textures) > 0.9  # a thin stroke shows little of its wave
    assert len(set(textures)) == len(CUES)


def _texture(picture: np.ndarray) -> int:
    """The class whose wave a picture holds most of, at any phase."""
    strength = []
    for frequency, direction in CUES:
        parts = [(picture - picture.mean()) * grating(SIZE, frequency, direction, phase) for phase in (0, 0.25)]
        strength.append(sum(part.mean() ** 2 for part in parts))
    return int(np.argmax(strength))
