"""`frepro data`: check a data set, or export embedded data as files."""

from pathlib import Path

import click

from frepro import reproduce
from frepro.cli.options import FilePath, cli
from frepro.errors import FreproError


@cli.group("data")
def data_group() -> None:
    """Check a data set, or export the embedded data as one."""


@data_group.command("check")
@click.argument("folder", type=FilePath())
@click.option("--split", type=float, help="Share of test images, for images without separate test images.")
@click.option("--headers", is_flag=True, help="Read only image headers: faster, but misses damaged pixel data.")
def data_check_command(folder: Path, split: float | None, headers: bool) -> None:
    """Check a data set for missing or damaged files.

    FOLDER has the layout of ImageNet, COCO 2017 or ADE20K, or MNIST's idx files (idx:/path); it may also be a CSV.
    Prints the number of images and annotations, and lists what is missing, damaged or unusual. Exits with status 1 if
    anything is missing or damaged.
    """
    from frepro.data.check import check

    report = check(folder, decode=not headers, split=split)
    click.echo(report.text())
    if report.faults:
        raise FreproError(f"{folder} has missing or damaged files: repair or download again those listed above")


@data_group.command("export")
@click.argument("folder", type=FilePath())
@click.option("--format", "layout", required=True, help="imagenet (exports digits), coco or ade20k (export scenes).")
@click.option(
    "--count",
    type=click.IntRange(max=10**6),
    nargs=2,
    help="Number of training and test images, for example --count 64 16. Default: all.",
)
@click.option(
    "--size",
    type=click.IntRange(32, 4096),
    default=128,
    show_default=True,
    help="Height and width of a scene in pixels.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed of the scenes.")
def data_export_command(folder: Path, layout: str, count: tuple[int, int] | None, size: int, seed: int) -> None:
    """Export embedded data in the layout of a real data set."""
    from frepro.data.export import export

    written = export(layout, folder, count, size, seed)
    click.echo(f"{written['train']:,} training and {written['test']:,} test images -> {reproduce.shown(folder)}")
