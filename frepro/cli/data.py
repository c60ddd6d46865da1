"""`frepro data`: what a data set holds, and embedded data as files."""

from pathlib import Path

import click

from frepro import reproduce
from frepro.cli.options import cli
from frepro.errors import FreproError


@cli.group("data")
def data_group() -> None:
    """Check a data set's folder, or write the embedded data as one."""


@data_group.command("check")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--headers", is_flag=True, help="Read only the headers of images: quicker, and finds no damage inside.")
def data_check_command(folder: Path, headers: bool) -> None:
    """What FOLDER holds, in the layout of ImageNet, COCO 2017 or ADE20K: counts, and what is missing or damaged.

    Ends with status 1 where anything is.
    """
    from frepro.data.check import check

    report = check(folder, decode=not headers)
    click.echo(report.text())
    if report.faults:
        raise FreproError(f"{folder} is not sound: mend or fetch again what is named above")


@data_group.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", "layout", required=True, help="imagenet (digits), coco or ade20k (scenes).")
@click.option("--count", type=int, nargs=2, help="Training and test images, as: --count 64 16. Default: all.")
@click.option("--size", type=click.IntRange(32), default=128, show_default=True, help="Pixels of a scene's side.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the scenes.")
def data_export_command(folder: Path, layout: str, count: tuple[int, int] | None, size: int, seed: int) -> None:
    """Write the embedded data to FOLDER as the files of a real data set."""
    from frepro.data.export import export

    written = export(layout, folder, count, size, seed)
    click.echo(f"{written['train']:,} training and {written['test']:,} test images -> {reproduce.shown(folder)}")
