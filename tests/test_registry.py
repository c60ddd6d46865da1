"""What tests build of the registered models: all that differs in more than size, at a size for tests."""

import pytest

from tests.registry import NAMES, create, description, family, kinds, variants


def test_every_model_is_a_variant_or_equals_one_but_for_its_size():
    known = {description(model) for model in variants().values()}
    assert len(known) == len(variants()) < len(NAMES)
    assert {description(create(name, device="meta")) for name in NAMES} == known


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dfformer_s18", {"act_layer": "gelu"}),
        ("dfformer_s18", {"num_filters": 2}),
        ("spanet_small", {"balances": (0.6, 0.8, 0.9)}),
        ("vim_tiny", {"average_directions": False}),
        ("vimf_v1_tiny", {"shift_batch": False}),
    ],
)
def test_a_setting_makes_another_variant(name, change):
    """Also one that changes no class and no tensor."""
    assert description(create(name, device="meta", **change)) != description(create(name, device="meta"))


def test_kinds_have_every_class_of_module():
    found = {type(module) for name in kinds() for module in variants()[name].modules()}
    assert found == {type(module) for model in variants().values() for module in model.modules()}
    assert {family(name) for name in kinds()} == {family(name) for name in NAMES}
