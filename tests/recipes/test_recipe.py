"""What the recipe class of a task states about it."""

import importlib
from typing import get_args, get_type_hints

import pytest

from frepro import recipes
from frepro.data import locate
from frepro.errors import FreproError


@pytest.mark.parametrize("task", recipes.TASKS)
def test_what_a_task_states_exists(task):
    kind = recipes.TASKS[task]
    assert importlib.import_module(f"frepro.tasks.{task}").task.__name__
    assert [locate(name, task).name for name in kind.embedded] == [*kind.embedded]
    assert locate(None, task).name == kind.embedded[0]
    if kind.network_key:
        assert set(get_args(get_type_hints(kind)[kind.network_key])) == set(kind.networks)


@pytest.mark.parametrize("task", recipes.TASKS)
def test_a_data_set_has_one_task(task):
    dataset = recipes.TASKS[task].dataset
    assert recipes.of_dataset(dataset).task == task


def test_an_unknown_task_is_named():
    with pytest.raises(FreproError, match="unknown task 'detektion': did you mean detection"):
        locate(None, "detektion")
