"""Shape bias of predictors whose bias is known."""

import math
import random
import re

import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo

from frepro.analysis import bias
from frepro.errors import FreproError

NAMES = ["bear", "car", "clock", "knife"]
SHAPES = [shape for shape in NAMES for _ in NAMES]
TEXTURES = [texture for _ in NAMES for texture in NAMES]


def test_pure_deciders():
    assert bias.shape_bias(SHAPES, SHAPES, TEXTURES) == 1
    assert bias.shape_bias(TEXTURES, SHAPES, TEXTURES) == 0
    assert math.isnan(bias.shape_bias(["oven"] * 16, SHAPES, TEXTURES))


def test_agreeing_cues_and_third_categories_do_not_count():
    decisions = ["bear", "car", "oven", "clock", "bear"]
    shapes = ["bear", "bear", "bear", "clock", "bear"]
    textures = ["car", "car", "car", "clock", "knife"]
    assert bias.shape_bias(decisions, shapes, textures) == pytest.approx(2 / 3)
    shares = bias.cue_accuracy(decisions, shapes, textures)
    assert shares == pytest.approx({"shape": 0.5, "texture": 0.25, "neither": 0.25})


def test_a_coin_decides():
    rng = random.Random(0)
    shapes, textures = SHAPES * 200, TEXTURES * 200
    decisions = [shape if rng.random() < 0.7 else texture for shape, texture in zip(shapes, textures, strict=True)]
    assert bias.shape_bias(decisions, shapes, textures) == pytest.approx(0.7, abs=0.03)


def test_by_category():
    decisions = [s if s in ("bear", "car") else t for s, t in zip(SHAPES, TEXTURES, strict=True)]
    assert bias.shape_bias_by_category(decisions, SHAPES, TEXTURES) == {"bear": 1, "car": 1, "clock": 0, "knife": 0}


def test_file_names():
    assert bias.cues("cue-conflict/cat/cat7-elephant12.png") == ("cat", "elephant")
    with pytest.raises(ValueError, match="is not named"):
        bias.cues("n01440764_1.JPEG")


def test_categories_are_decided_by_their_mean_probability():
    """A large category is not preferred for its size: 0.3 against (0.4 + 0.1) / 2."""
    logits = torch.tensor([[0.3, 0.4, 0.1, 0.2]]).log()
    assert bias.decide(logits, {"one": [0], "two": [1, 2]}) == ["one"]
    assert bias.decide(logits, {"one": [3], "two": [1, 2]}) == ["two"]


def test_classes_of_imagenet_are_what_their_categories_say():
    classes = [index for indices in bias.IMAGENET_CATEGORIES.values() for index in indices]
    assert len(classes) == len(set(classes)) == 207
    assert list(bias.IMAGENET_CATEGORIES) == sorted(bias.IMAGENET_CATEGORIES)
    info = ImageNetInfo()
    synsets = {name: [info.index_to_label_name(i) for i in found] for name, found in bias.IMAGENET_CATEGORIES.items()}
    # WordNet numbers animals of a kind in one piece.
    assert all("n02085620" <= synset <= "n02113978" for synset in synsets["dog"])
    assert all("n01514668" <= synset <= "n02058221" for synset in synsets["bird"])
    also = {"airplane": "airliner", "bottle": "jug", "cat": "feline", "truck": "van"}
    for name in set(synsets) - {"dog", "bird"}:
        for index in bias.IMAGENET_CATEGORIES[name]:
            description = info.index_to_description(index, detailed=True)
            assert re.search(rf"({name}|{also.get(name, name)})s?\b", description), f"{name}: {description}"


def test_pictures_of_a_folder(tmp_path):
    for i, name in enumerate(("cat7-elephant1", "dog2-cat3")):
        (tmp_path / name.split("-")[0]).mkdir()
        Image.new("L", (40, 40), 100 * i).save(tmp_path / name.split("-")[0] / f"{name}.png")
    images, shapes, textures = bias.read_conflicts(tmp_path, size=20)
    assert (shapes, textures) == (["cat", "dog"], ["elephant", "cat"])
    assert images.shape == (2, 3, 20, 20)
    torch.testing.assert_close(images[:, 0, 3, 3], torch.tensor([0, 100 / 255]))
    with pytest.raises(FreproError, match="no cue-conflict images"):
        bias.read_conflicts(tmp_path / "nowhere")


def test_pictures_of_digits():
    images, shapes, textures = bias.digit_conflicts(30)
    assert images.shape == (30, 3, 64, 64)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert all(shape != texture for shape, texture in zip(shapes, textures, strict=True))
    assert {*shapes, *textures} <= set(bias.DIGIT_CATEGORIES)
    logits = 10 * torch.eye(10)[[2, 7]]
    assert bias.decide(logits, bias.DIGIT_CATEGORIES) == ["digit 2", "digit 7"]


def test_errors():
    with pytest.raises(FreproError, match="the categories need 915 classes, but the model has 10"):
        bias.decide(torch.zeros(1, 10))
    with pytest.raises(ValueError, match="no image"):
        bias.cue_accuracy(["bear"], ["bear"], ["bear"])
    with pytest.raises(ValueError, match="longer"):
        bias.shape_bias(["bear"], SHAPES, TEXTURES)


def test_bias_is_left_out_where_most_decisions_follow_no_cue():
    lost = [*SHAPES[:7], *["oven"] * 9]
    assert math.isnan(bias.shape_bias_if_meaningful(lost, SHAPES, TEXTURES))
    assert all(math.isnan(value) for value in bias.shape_bias_by_category(lost, SHAPES, TEXTURES).values())
    assert bias.shape_bias_if_meaningful(SHAPES, SHAPES, TEXTURES) == 1
