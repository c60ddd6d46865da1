"""The command group, and what its commands share: parameter types, options and exit statuses."""

import errno
import json
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

import frepro
from frepro.errors import FreproError
from frepro.experiment.checks import AUTO, MOST_SEEDS, check_seeds
from frepro.training.runs import MOST_PROCESSES

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


DATA_HELP = (
    "Folder in ImageNet layout (train/ and val/ with a folder for each class), idx:/path for MNIST's idx files, \
or a timm dataset name and its root, for example torch/cifar10:/path. Detectors need a folder in COCO layout, \
segmenters one in ADE20K layout. Embedded data: textured (default), digits or cues for classifiers; scenes for \
detectors and segmenters."
)


class Seeds(click.ParamType):
    """A number of seeds (3 means 0, 1 and 2), a list of them (0,7,11), or "auto"."""

    name = "N, LIST or auto"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> list[int] | str:
        if isinstance(value, list) or value == AUTO:
            return value
        try:
            numbers = [int(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(
                f"{value!r} is neither a number of seeds, nor a list of them like 0,1,2, nor auto", parameter, context
            )
        if "," not in str(value):
            if not 1 <= numbers[0] <= MOST_SEEDS:
                self.fail(
                    f"{numbers[0]} is not a valid number of seeds: use a number from 1 to {MOST_SEEDS}",
                    parameter,
                    context,
                )
            return list(range(numbers[0]))
        try:
            check_seeds(numbers)
        except FreproError as error:
            self.fail(str(error), parameter, context)
        return numbers


class Duration(click.ParamType):
    """A duration such as 90s, 30m or 2h, converted to seconds."""

    name = "TIME"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smh])", str(value), re.ASCII)
        if not match:
            self.fail(f"{value!r} is not a duration: use for example 90s, 30m or 2h", parameter, context)
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


class FilePath(click.Path):
    """A path that the system can look up, whether or not it exists."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        check_path(value, partial(self.fail, param=parameter, ctx=context))
        return super().convert(value, parameter, context)


def check_path(value: str | os.PathLike[str], fail: Callable[[str], Any]) -> None:
    """Call ``fail`` with a message for a path that no file can have."""
    try:
        os.stat(value)
    except ValueError:
        fail("a path cannot have a null byte")
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            fail(f"{os.fspath(value)[:60]}...: {error.strerror}")


class Value(click.ParamType):
    """A number, a JSON list, or text."""

    name = "VALUE"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            return json.loads(value)
        except (TypeError, ValueError):
            return value
        except RecursionError:
            self.fail(f"{value[:20]}... is nested too deeply", parameter, context)


def blank_as_none(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Return ``None`` for an empty value: the Makefile passes options on even when their variable is empty."""
    return None if value == "" else value


def file_or_blank(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Return ``None`` for an empty value, and check that any other one can be a path."""
    if value:
        check_path(value, partial(_bad, context, parameter))
    return blank_as_none(context, parameter, value)


def _bad(context: click.Context, parameter: click.Parameter, message: str) -> None:
    raise click.BadParameter(message, context, parameter)


@click.group(context_settings=HELP)
@click.version_option(frepro.__version__)
def cli() -> None:
    """Frequency-domain vision backbones, and their papers' tables and figures, reproduced.

    \b
    frepro reproduce                       every table and figure, on embedded data
    frepro reproduce --table 4             Table 4 of every paper that has one
    frepro reproduce --paper dfformer      everything of one paper
    frepro submit --paper dfformer         send its training runs to a Slurm cluster
    frepro train --model dfformer_s18      train one model
    frepro eval --model dfformer_s18 ...   evaluate stored weights on test images
    frepro predict RUN my_images           predict classes with the classifier of a run
    """


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return one decorator that adds several options, in this order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
fsdp_option = click.option(
    "--fsdp",
    is_flag=True,
    help="Shard weights, gradients and optimizer state across processes (FSDP), for networks too large for one GPU.",
)

# What reproduce and submit share: which artefacts to make, and how to run them.
choice_options = together(
    click.option("--table", type=int, help="Make only the tables of this number."),
    click.option("--figure", type=int, help="Make only the figures of this number."),
    click.option("--paper", callback=blank_as_none, help="Make only the artefacts of this paper. Default: all."),
    click.option(
        "--profile",
        help="smoke (everything in minutes), demo (an hour or more) or paper (weeks on a GPU). Default: demo; with \
--checkpoint authors, paper.",
    ),
    click.option(
        "--data",
        callback=blank_as_none,
        help=f"{DATA_HELP} Separate several data sets with commas; each artefact uses the first that suits it.",
    ),
    click.option(
        "--seeds",
        type=Seeds(),
        help="Number of seeds, a list such as 0,7,11, or auto: add one to a table until all its claims are decided. \
Default: 3 in profile demo, else 1.",
    ),
    click.option(
        "-p",
        "--parameter",
        "extra",
        nargs=2,
        type=(str, Value()),
        multiple=True,
        help="Another parameter of the notebook, for example -p models '[\"dfformer_s18\"]'.",
    ),
    click.option(
        "--checkpoint",
        callback=file_or_blank,
        help="Authors' weights to evaluate instead of training: a file such as dfformer_s18.pth, a folder, or the word \
authors, which downloads what was published for each row.",
    ),
    click.option(
        "--backbones",
        callback=file_or_blank,
        help="Folder of backbone weights (dfformer_s18.pth, ...) that detectors and segmenters start from, or none \
for random weights.",
    ),
    device_option,
    click.option(
        "--per-device",
        type=click.IntRange(1),
        help="Maximum samples in a forward pass; gradients are accumulated up to the recipe's batch size.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(0, MOST_PROCESSES),
        help="Data-loading processes of a run. Default: chosen for this machine.",
    ),
    click.option("--dry-run", is_flag=True, help="Print the plan and exit."),
)

# What train and eval share.
training_options = together(
    click.option(
        "--model", required=True, help="Name of a frepro or timm model; `frepro list models` lists those of frepro."
    ),
    click.option(
        "--recipe",
        help="A recipe from `frepro list recipes`; one such as spanet-mask_rcnn makes the model the backbone of a \
detector or segmenter. Or a recipe of your own, as path/to/my.yaml. Default: the classification recipe of the model's \
family.",
    ),
    click.option(
        "--profile",
        help="smoke or demo (a small version of the model), finetune (the model of full size on your images) or paper. \
Default: demo on embedded data and for detectors and segmenters, else finetune.",
    ),
    click.option("--img-size", type=click.IntRange(1), help="Image size of a classifier, in pixels per side."),
    click.option(
        "--data",
        callback=blank_as_none,
        help=f"{DATA_HELP} Or a CSV with the columns file and label, or a folder with one folder per class, \
with --split.",
    ),
    click.option(
        "--split", type=float, help="Share of the images of each class that are test images, for example 0.2."
    ),
    click.option(
        "--split-seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Seed of their choice; runs with different --seed have the same test images.",
    ),
    device_option,
    click.option("--per-device", type=click.IntRange(1), help="Maximum samples in a forward pass on one device."),
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
        help="Model argument, for example -a num_filters 2.",
    ),
)


def end(failures: list[str]) -> None:
    """Print each failure and exit with status 1 if there are any."""
    for line in failures:
        click.echo(f"frepro: error: {line}", err=True)
    if failures:
        sys.exit(1)


def fail(message: str, status: int = 1) -> None:
    click.echo(f"frepro: error: {message}", err=True)
    sys.exit(status)
