"""`frepro train`, `eval`, `replay` and `convert`: single runs, and files of weights."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import click

from frepro import recipes, reproduce
from frepro.cli.options import (
    FilePath,
    cli,
    device_option,
    fsdp_option,
    training_options,
)
from frepro.data import Source, locate
from frepro.data.sources import EMBEDDED
from frepro.errors import FreproError
from frepro.experiment.checks import check_model, misfit
from frepro.store import provenance


@cli.command("train")
@training_options
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed.")
@click.option(
    "--init",
    help="Weights to start from, for fine-tuning: a file, the folder or key of a run, or authors for the published \
weights of the model. The last layer is new if the classes differ.",
)
@click.option(
    "--backbone",
    type=FilePath(),
    help="File of weights that initialize the backbone of a detector or segmenter.",
)
@click.option("--epochs", type=click.IntRange(1), help="Epochs, in place of the recipe's.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak learning rate, in place of the recipe's.")
@click.option("--batch-size", type=click.IntRange(1), help="Effective batch size, in place of the recipe's.")
@click.option(
    "--checkpoint-every",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Optimizer steps between two checkpoints within an epoch.",
)
@click.option(
    "--damaged",
    default="stop",
    show_default=True,
    help="What to do with a damaged image: stop, or skip (skipped images are counted).",
)
@click.option("--compile", is_flag=True, help="Compile the network (torch.compile).")
@fsdp_option
def train_command(
    model: str,
    recipe: str | None,
    profile: str | None,
    data: str | None,
    split: float | None,
    split_seed: int,
    seed: int,
    init: str | None,
    backbone: Path | None,
    epochs: int | None,
    lr: float | None,
    batch_size: int | None,
    img_size: int | None,
    args: tuple,
    **execution: Any,
) -> None:
    """Train one model and store the run. A stored run is not repeated.

    For several GPUs, run torchrun --nproc-per-node 8 -m frepro train ... The batch size of the recipe is the effective
    one: it is divided among the processes, and --per-device splits it further into gradient accumulation steps.
    """
    from frepro.training import loop
    from frepro.training.runs import Run, Start

    found, profile, source = resolve(model, recipe, profile, data, split, split_seed)
    found = recipes.adjusted(found, model, epochs=epochs, lr=lr, batch_size=batch_size, img_size=img_size)
    if backbone is not None and init is not None:
        raise FreproError("--backbone and --init both name weights to start from: give one of them")
    if backbone is not None and not found.network:
        raise FreproError(
            f"a classifier has no separate backbone, so {backbone} would not be used: give its weights as --init, or "
            "add the --recipe of a detector or segmenter"
        )
    start = None if backbone is None else Start.of(backbone)
    if init is not None:
        start = Start.named(init, model)
    job = Run(model, found, profile, source, seed, dict(args), start)
    log = lambda line: click.echo(line, err=True)  # noqa: E731
    if start is None and profile == "finetune" and job.measurement.record() is None:
        log(f"{model} starts from random weights: to fine-tune, add --init with weights, such as {model}.pth")
    record = loop.run(job, loop.Execution(log=log, **execution))
    if int(os.environ.get("RANK", "0")) == 0:
        values = record["values"]
        click.echo(
            f"{job.name}: {job.score_line(values)} on {values['test_images']} images of {job.source.name}, "
            f"effective batch {values['effective_batch']}, {values['epochs']} epochs in {record['seconds']:.0f} s"
        )
        click.echo(f"  {reproduce.shown(job.measurement.folder)}")


@cli.command("sweep")
@training_options
@click.option("--lr", "lrs", type=click.FloatRange(0, min_open=True), multiple=True, help="Peak learning rate.")
@click.option("--warmup", "warmups", type=click.IntRange(0), multiple=True, help="Epochs of warm-up.")
@click.option("--epochs", "lengths", type=click.IntRange(1), multiple=True, help="Epochs.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Number of seeds of each.")
@click.option("--jobs", type=click.IntRange(1), help="Runs in parallel. Default: one per core, or one on a GPU.")
def sweep_command(
    model: str,
    recipe: str | None,
    profile: str | None,
    data: str | None,
    split: float | None,
    split_seed: int,
    img_size: int | None,
    lrs: tuple[float, ...],
    warmups: tuple[int, ...],
    lengths: tuple[int, ...],
    seeds: int,
    jobs: int | None,
    device: str,
    per_device: int | None,
    workers: int | None,
    args: tuple,
) -> None:
    """Train a model in several ways and compare their scores.

    Options that can be repeated (--lr, --warmup, --epochs) are combined. Use validation images, such as --data
    textured-validation or idx-validation:/path, so that the test images stay unseen.
    """
    from frepro.experiment import sweep
    from frepro.experiment.runner import default_jobs
    from frepro.training.device import device_name

    found, profile, source = resolve(model, recipe, profile, data, split, split_seed)
    found = recipes.adjusted(found, model, img_size=img_size)
    runs = sweep.runs_of(model, dict(args), found, profile, source, lrs, warmups, lengths, range(seeds))
    name = recipe or recipes.of_family(provenance.own_models().get(model, "").rpartition(".")[2]) or model
    on = device_name(device)[0]
    file = sweep.sweep(runs, name, on, jobs or default_jobs(on, profile), per_device, workers, click.echo)
    click.echo(f"  {reproduce.shown(file)}")


@cli.command("eval")
@training_options
@click.option(
    "--checkpoint",
    type=FilePath(),
    required=True,
    help="The model.safetensors of a run, or an authors' checkpoint.",
)
def eval_command(
    model: str,
    recipe: str | None,
    profile: str | None,
    data: str | None,
    split: float | None,
    split_seed: int,
    img_size: int | None,
    checkpoint: Path,
    args: tuple,
    **execution: Any,
) -> None:
    """Evaluate stored weights on the test images, each counted once."""
    from frepro.training.evaluate import evaluate_checkpoint
    from frepro.training.loop import Execution
    from frepro.training.runs import Run

    found, profile, source = resolve(model, recipe, profile, data, split, split_seed)
    job = Run(model, recipes.adjusted(found, model, img_size=img_size), profile, source, 0, dict(args))
    values = evaluate_checkpoint(job, checkpoint, Execution(**execution))
    network = f"{model} in {job.recipe.network}" if job.recipe.network else model
    scores = [
        f"{metric.name} {metric.quantity(values[metric.name])}"
        for metric in job.recipe.metrics
        if metric.name in values
    ]
    click.echo(f"{network}: {', '.join(scores)} on {values['test_images']} images of {job.source.name}")


@cli.command("replay")
@click.argument("folder", type=FilePath())
@device_option
def replay_command(folder: Path, device: str) -> None:
    """Find where a non-finite loss began.

    Repeats the optimizer step whose loss was not finite, from the state in FOLDER, which the training run wrote and
    named in its error message. Reports the first module with a non-finite output.
    """
    from frepro.training.loop import make_accelerator
    from frepro.training.nonfinite import replay

    found = replay(folder, partial(make_accelerator, device))
    click.echo(f"{found['title']}, optimizer step {found['update']}: loss {found['loss']} then, {found['again']} now")
    click.echo(f"  largest input: {found['inputs']:.4g}")
    click.echo(f"  weights with non-finite values: {', '.join(found['weights'][:8]) or 'none'}")
    click.echo(f"  first module with a non-finite output: {found['module'] or 'none'}")


def resolve(
    model: str,
    recipe: str | None,
    profile: str | None,
    source: str | None,
    split: float | None = None,
    split_seed: int = 0,
) -> tuple[recipes.Recipe, str, Source]:
    """Return the recipe, profile and data of a run that the options select."""
    if recipe is None:
        module = provenance.own_models().get(model, "").rpartition(".")[2]
        recipe = recipes.of_family(module)
        if recipe is None:
            if not module:
                check_model(model)
            raise FreproError(f"{model} has no default recipe: add --recipe with one of {', '.join(recipes.names())}")
    if profile is None:
        profile = default_profile(recipe, source)
    if profile == "paper" and not source:
        raise FreproError("profile paper needs the real data set: add --data /path/to/it, or use profile demo")
    found = recipes.load(recipe, profile)
    check_model(model)
    if problem := misfit(found, model):
        raise FreproError(problem)
    return found, profile, locate(source, found.task, split, split_seed)


def default_profile(recipe: str, source: str | None) -> str:
    """Return the profile for a recipe and data: the model of full size for a classifier on the user's own images."""
    own = recipes.profiles(Path(recipe)) if recipes.is_file(recipe) else []
    if len(own) == 1:
        return own[0]
    is_classifier = recipes.load(recipe, own[0] if own else "paper").network is None
    return "finetune" if is_classifier and source and source not in EMBEDDED else "demo"


@cli.command("convert")
@click.argument("model")
@click.argument("checkpoint", type=FilePath())
@click.argument("output", type=FilePath())
@click.option("--ema", is_flag=True, help="Use the moving average of the weights.")
def convert_command(model: str, checkpoint: Path, output: Path, ema: bool) -> None:
    """Convert an authors' checkpoint to safetensors.

    Writes the weights of MODEL in CHECKPOINT to OUTPUT, a file for `frepro eval` and timm's checkpoint_path. Every
    tensor must match by name and shape. Pickles are read as data only; a file that would run code is rejected.
    """
    from safetensors.torch import save_file

    from frepro.models.official import load_official
    from frepro.store import records

    network = load_official(model, checkpoint, ema=ema)
    with records.atomic_write(output) as temporary:
        save_file(network.state_dict(), temporary)
    params = sum(parameter.numel() for parameter in network.parameters())
    click.echo(f"{model}: {params:,} parameters, {network.num_classes} classes -> {reproduce.shown(output)}")
