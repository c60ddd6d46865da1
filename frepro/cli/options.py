"""The group of commands, and what several of them take: kinds of values, choices, and how they end."""

import json
import sys
from typing import Any

import click

import frepro
from frepro.errors import FreproError
from frepro.experiment.checks import MOST_SEEDS, check_seeds
from frepro.training.runs import MOST_PROCESSES

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


DATA_HELP = "ImageNet-style folder (train/ and val/ with a folder for each class), or a name that timm reads with its \
root, as torch/cifar10:/path; of detectors a folder like COCO's, of segmenters like ADE20K's. Embedded: \
textured (default), digits, cues; scenes for detectors and segmenters."


class Seeds(click.ParamType):
    """A number of seeds (3 means 0, 1 and 2) or a list of them (0,7,11)."""

    name = "N or LIST"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            numbers = [int(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is neither a number of seeds nor a list of them like 0,1,2", parameter, context)
        if "," not in str(value):
            if not 1 <= numbers[0] <= MOST_SEEDS:
                self.fail(f"{numbers[0]} is no number of seeds: give one from 1 to {MOST_SEEDS}", parameter, context)
            return list(range(numbers[0]))
        try:
            check_seeds(numbers)
        except FreproError as error:
            self.fail(str(error), parameter, context)
        return numbers


class Value(click.ParamType):
    """A number, a JSON list, or text."""

    name = "VALUE"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            return json.loads(value)
        except (TypeError, ValueError):
            return value


def blank_as_none(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """The Makefile passes options on even when their variable is empty."""
    return None if value == "" else value


@click.group(context_settings=HELP)
@click.version_option(frepro.__version__)
def cli() -> None:
    """Frequency-domain vision backbones, and the tables and figures of their papers measured anew.

    \b
    frepro reproduce                       every table and figure, on embedded data
    frepro reproduce --table 4             Table 4 of every paper that has one
    frepro reproduce --paper dfformer      everything of one paper
    frepro submit --paper dfformer         its training runs to a Slurm cluster
    frepro train --model dfformer_s18      one training run
    frepro replay FOLDER                   what led to a loss that is not finite
    frepro data check PATH                 what a data set holds, and what is missing or damaged
    frepro sizes                           parameters and FLOPs of every model, and drawings of their blocks
    frepro bench                           speed and memory, beside the plain reference and timm's models
    frepro list                            what there is
    frepro doctor                          what this machine can do
    """


def choice_options(command: Any) -> Any:
    """The options that reproduce and submit share: which artefacts, and how their runs are carried out."""
    options = [
        click.option("--table", type=int, help="Number of a table."),
        click.option("--figure", type=int, help="Number of a figure."),
        click.option("--paper", callback=blank_as_none, help="One paper. Default: all."),
        click.option(
            "--profile",
            default="demo",
            show_default=True,
            help="smoke (all in minutes), demo (in an hour and more) or paper (weeks).",
        ),
        click.option("--data", callback=blank_as_none, help=DATA_HELP),
        click.option(
            "--seeds", type=Seeds(), help="How many, or which, as 0,7,11. Default: 3 with profile demo, else 1."
        ),
        click.option(
            "-p",
            "--parameter",
            "extra",
            nargs=2,
            type=(str, Value()),
            multiple=True,
            help="Any other parameter of the notebook, as: -p models '[\"dfformer_s18\"]'.",
        ),
        click.option(
            "--checkpoint",
            callback=blank_as_none,
            help="Authors' weights, to be evaluated in place of training: a file like dfformer_s18.pth, or a folder.",
        ),
        click.option(
            "--backbones",
            callback=blank_as_none,
            help="Folder with weights that detectors and segmenters start from, files as above; none for random ones.",
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
        click.option(
            "--per-device",
            type=click.IntRange(1),
            help="Most samples in a forward pass; the rest is accumulated.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(0, MOST_PROCESSES),
            help="Data-loading processes of a run. Default: as many as help.",
        ),
        click.option("--dry-run", is_flag=True, help="Print the plan and stop."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


fsdp_option = click.option(
    "--fsdp",
    is_flag=True,
    help="Leave each of several processes a part of weights, gradients and optimizer state, for networks too large "
    "for one GPU.",
)


def training_options(command: Any) -> Any:
    """The options that train and eval share."""
    options = [
        click.option("--model", required=True, help="A name of frepro or timm; `frepro list models` shows ours."),
        click.option(
            "--recipe",
            help="As `frepro list recipes` has them; one like spanet-mask_rcnn makes the model the backbone of a \
detector or segmenter. Default: the classifier's of the model's family.",
        ),
        click.option("--profile", default="demo", show_default=True, help="smoke, demo or paper."),
        click.option("--data", callback=blank_as_none, help=DATA_HELP),
        click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
        click.option("--per-device", type=click.IntRange(1), help="Most samples in a forward pass on one device."),
        click.option(
            "--workers",
            type=click.IntRange(0, MOST_PROCESSES),
            default=0,
            show_default=True,
            help="Data-loading processes.",
        ),
        click.option(
            "-a",
            "--arg",
            "args",
            nargs=2,
            type=(str, Value()),
            multiple=True,
            help="An argument of the \
model, as: -a num_filters 2.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def end(failures: list[str]) -> None:
    """Name what failed, if anything did, and end with status 1."""
    for line in failures:
        click.echo(f"frepro: error: {line}", err=True)
    if failures:
        sys.exit(1)


def fail(message: str, status: int = 1) -> None:
    click.echo(f"frepro: error: {message}", err=True)
    sys.exit(status)
