"""Weights from a file or at random, and what is said of them."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from frepro.analysis import networks
from frepro.errors import FreproError

OURS = {"GFNet-Ti": "gfnet_ti"}


def test_random_weights_follow_the_seed():
    first, same, other = (networks.load(OURS, seed=seed)["GFNet-Ti"].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_weights_of_a_file_are_taken_for_ours_and_for_timms(tmp_path):
    models = {"ours": "gfnet_ti", "timm's": "vit_tiny_patch16_224"}
    files = {}
    for name in models.values():
        torch.manual_seed(5)
        files[name] = str(tmp_path / f"{name}.safetensors")
        save_file(timm.create_model(name).state_dict(), files[name])
    for label, model in networks.load(models, files).items():
        stored = networks.load({label: models[label]}, seed=5)[label].state_dict()
        assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())
        assert not model.training
    assert networks.illustration("dfformer", 1, models, files).stands_in == ""


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(FreproError, match="unknown model 'gfnet_it'"):
        networks.load({"x": "gfnet_it"})
    with pytest.raises(FreproError, match="unknown model with a checkpoint 'gfnet_xs'"):
        networks.load(OURS, {"gfnet_xs": "file"})
    with pytest.raises(FreproError, match=r"nosuch\.safetensors"):
        networks.load({"x": "vit_tiny_patch16_224"}, {"vit_tiny_patch16_224": str(tmp_path / "nosuch.safetensors")})


def test_what_is_not_the_papers_is_said():
    made = networks.illustration("dfformer", 1, OURS, seed=3, images="4 photographs")
    assert made.sources == [{"model": "gfnet_ti", "weights": "random initialisation", "seed": 3}]
    assert "Random weights stand in for trained ones of GFNet-Ti; 4 photographs stand in" in made.stands_in
    assert networks.NOT_SHOWN in made.stands_in
    trained = networks.illustration("dfformer", 1, OURS, {"gfnet_ti": "/somewhere/gfnet-ti.pth"})
    assert trained.sources == [{"model": "gfnet_ti", "weights": "gfnet-ti.pth"}]


def test_images_are_normalised_as_the_model_expects():
    model = networks.load({"x": "vit_tiny_patch16_224"})["x"]
    assert networks.prepared(model, torch.full((1, 3, 2, 2), 0.5)).abs().max() == 0  # mean and std 0.5


def test_images_are_resized_to_a_models_own_size():
    model = networks.load(OURS)["GFNet-Ti"]
    image = torch.rand(1, 3, 32, 32)
    assert networks.prepared(model, image).shape == (1, 3, 32, 32)
    assert networks.prepared(model, image, own_size=True).shape == (1, 3, 224, 224)
    whole = torch.rand(3, 3, 224, 224)
    torch.testing.assert_close(networks.prepared(model, whole, own_size=True), networks.prepared(model, whole))
    with torch.no_grad():
        expected = model(networks.prepared(model, whole))
    torch.testing.assert_close(networks.logits(model, whole, batch=2), expected, atol=1e-5, rtol=1e-4)
