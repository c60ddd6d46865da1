"""The interface of tasks."""

import dataclasses

import pytest
import torch

from frepro import recipes, tasks
from frepro.data import locate
from frepro.training import loop
from frepro.training.runs import Run
from tests.small import BACKBONE, whole


def classifier() -> Run:
    recipe = dataclasses.replace(
        recipes.load("spanet", "smoke"), img_size=32, samples=(4, 4), model_args=BACKBONE, by_model={}
    )
    return Run("spanet_small", recipe, "smoke", locate(None), 0)


@pytest.mark.parametrize("make", [classifier, whole, lambda: whole("semantic_fpn")], ids=[*recipes.TASKS])
@torch.no_grad()
def test_an_evaluator_returns_metrics_that_its_task_declares(make):
    run = make()
    task = tasks.of(run)
    samples, evaluator = task.samples("test"), task.evaluator()
    inputs, targets = (task.collate or torch.utils.data.default_collate)([samples[0, index] for index in range(4)])
    evaluator.update(inputs, targets, task.predict(task.network(0.0).eval(), inputs))
    found = evaluator.values(loop.make_accelerator("cpu", "no"))
    assert recipes.TASKS[run.recipe.task].main_metric().name in found
    assert set(found) <= {metric.name for metric in run.recipe.metrics}
