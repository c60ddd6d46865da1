"""Recipes: profiles of one file; nothing misspelt passes."""

import pytest

from frepro import paths, recipes
from frepro.errors import FreproError


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize("profile", recipes.PROFILES)
def test_every_recipe_loads(name, profile):
    assert recipes.load(name, profile).batch_size > 0


def test_the_published_recipe_of_dfformer():
    recipe = recipes.load("dfformer", "paper")
    assert (recipe.batch_size, recipe.epochs, recipe.warmup_epochs, recipe.cooldown_epochs) == (1024, 300, 20, 10)
    assert (recipe.lr, recipe.weight_decay, recipe.drop_path, recipe.img_size) == (1e-3, 0.05, 0.2, 224)
    assert recipe.lr == recipe.batch_size / 512 * 5e-4  # the paper's rule


def test_profiles_differ_only_in_what_they_name():
    paper, demo = recipes.load("dfformer", "paper"), recipes.load("dfformer", "demo")
    assert demo.weight_decay == paper.weight_decay
    assert demo.img_size != paper.img_size


def test_a_misspelt_key_is_an_error(tmp_path):
    text = (paths.PACKAGE / "recipes" / "dfformer.yaml").read_text().replace("weight_decay:", "weight_deccay:")
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(FreproError, match=r"r\.yaml:\d+: unknown key 'weight_deccay': did you mean weight_decay"):
        recipes.read(tmp_path / "r.yaml", "demo")


def test_unknown_profile():
    with pytest.raises(FreproError, match="unknown profile 'dmeo': did you mean demo"):
        recipes.load("dfformer", "dmeo")
