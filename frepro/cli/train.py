"""`frepro train`, `eval`, `replay` and `convert`: single runs and weights."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import click

from frepro import recipes, reproduce
from frepro.cli.options import (
    cli,
    fsdp_option,
    training_options,
)
from frepro.data import Source, locate
from frepro.errors import FreproError
from frepro.experiment.checks import check_model
from frepro.store import provenance


@cli.command("train")
@training_options
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--backbone",
    type=click.Path(path_type=Path),
    help="File with the weights that the backbone of a detector or segmenter starts from.",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Optimizer updates between two checkpoints within an epoch.",
)
@click.option("--damaged", default="stop", show_default=True, help="A damaged image: stop, or skip (and count it).")
@click.option("--compile", is_flag=True, help="Compile the network (torch.compile).")
@fsdp_option
def train_command(
    model: str,
    recipe: str | None,
    profile: str,
    data: str | None,
    seed: int,
    backbone: Path | None,
    args: tuple,
    **execution: Any,
) -> None:
    """Train one model and store the run; a run that is there is not made again.

    On several GPUs: torchrun --nproc-per-node 8 -m frepro train ... The recipe's batch is the effective one: it is
    shared by the processes, and cut by --per-device into accumulation steps.
    """
    from frepro.training import loop
    from frepro.training.runs import Run, Start

    start = None if backbone is None else Start.of(backbone)
    job = Run(model, *resolve(model, recipe, profile, data), seed, dict(args), start)
    log = lambda line: click.echo(line, err=True)  # noqa: E731
    record = loop.run(job, loop.Execution(log=log, **execution))
    if int(os.environ.get("RANK", "0")) == 0:
        values = record["values"]
        click.echo(
            f"{job.title}: {job.score_line(values, 2)} on {values['test_images']} images of {job.source.name}, "
            f"effective batch {values['effective_batch']}, {values['epochs']} epochs in {record['seconds']:.0f} s"
        )
        click.echo(f"  {reproduce.shown(job.measurement.folder)}")


@cli.command("eval")
@training_options
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    required=True,
    help="A model.safetensors of a run, or an authors' checkpoint.",
)
def eval_command(
    model: str, recipe: str | None, profile: str, data: str | None, checkpoint: Path, args: tuple, **execution: Any
) -> None:
    """Scores of stored weights on test images, each counted once."""
    from frepro.training.evaluate import evaluate_checkpoint
    from frepro.training.loop import Execution
    from frepro.training.runs import Run

    job = Run(model, *resolve(model, recipe, profile, data), 0, dict(args))
    values = evaluate_checkpoint(job, checkpoint, Execution(**execution))
    whole = f"{model} in {job.recipe.network}" if job.recipe.network else model
    said = [
        f"{name} {value:.4f}" if name == "test_loss" else f"{name} {value:.2f} %"
        for name, value in values.items()
        if name != "test_images"
    ]
    click.echo(f"{whole}: {', '.join(said)} on {values['test_images']} images of {job.source.name}")


@cli.command("replay")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
def replay_command(folder: Path, device: str) -> None:
    """Go again through an update whose loss was not finite, as a run left it in FOLDER, and name where it began."""
    from frepro.training.loop import make_accelerator
    from frepro.training.nonfinite import replay

    found = replay(folder, partial(make_accelerator, device))
    click.echo(f"{found['title']}, update {found['update']}: loss {found['loss']} then, {found['again']} now")
    click.echo(f"  largest input: {found['inputs']:.4g}")
    click.echo(f"  weights that are not finite: {', '.join(found['weights'][:8]) or 'none'}")
    click.echo(f"  first module whose answer is not finite: {found['module'] or 'none'}")


def resolve(model: str, recipe: str | None, profile: str, source: str | None) -> tuple[recipes.Recipe, str, Source]:
    """Recipe, profile and data of a run, as the options name them."""
    if recipe is None:
        module = provenance.own_models().get(model, "").rpartition(".")[2]
        recipe = recipes.of_family(module)
        if recipe is None:
            if not module:
                check_model(model)
            raise FreproError(f"{model} has no recipe of its own: add --recipe, one of {', '.join(recipes.names())}")
    if profile == "paper" and not source:
        raise FreproError("profile paper needs the real data set: add --data /path/to/it, or use profile demo")
    found = recipes.load(recipe, profile)
    return found, profile, locate(source, found.task)


@cli.command("convert")
@click.argument("model")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--ema", is_flag=True, help="Take the moving average of the weights.")
def convert_command(model: str, checkpoint: Path, output: Path, ema: bool) -> None:
    """Authors' CHECKPOINT of MODEL to OUTPUT, a safetensors file for `frepro eval` and timm's checkpoint_path.

    Every tensor must fit by name and shape. Pickles are read as data; one that would run code is refused.
    """
    from safetensors.torch import save_file

    from frepro.models.official import load_official
    from frepro.store import records

    network = load_official(model, checkpoint, ema=ema)
    with records.atomic_write(output) as temporary:
        save_file(network.state_dict(), temporary)
    params = sum(parameter.numel() for parameter in network.parameters())
    click.echo(f"{model}: {params:,} parameters, {network.num_classes} classes -> {reproduce.shown(output)}")
