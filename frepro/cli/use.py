"""`frepro predict` and `export`: use the trained classifier of a run."""

import csv
import json
import sys
from pathlib import Path

import click

from frepro import reproduce
from frepro.cli.options import cli
from frepro.errors import FreproError, printable


@cli.command("predict")
@click.argument("run")
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Number of classes for each image.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: file, rank, class, probability.")
def predict_command(run: str, images: tuple[Path, ...], top: int, as_json: bool, as_csv: bool) -> None:
    """Predict the classes of images.

    RUN is the folder or key of a trained classifier; IMAGES are files, or folders of images.
    """
    from frepro.training import saved

    if as_json and as_csv:
        raise FreproError("--json and --csv are different forms of output: give one of them")
    model = saved.load(run)
    files = saved.images_in(images)
    found = saved.predict(model, files, top)
    if as_json:
        answers = [
            {"file": str(file), "classes": [{"class": name, "probability": value} for name, value in classes]}
            for file, classes in zip(files, found, strict=True)
        ]
        click.echo(json.dumps(answers, indent=1))
    elif as_csv:
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(["file", "rank", "class", "probability"])
        for file, classes in zip(files, found, strict=True):
            table.writerows([file, rank, name, f"{value:.6f}"] for rank, (name, value) in enumerate(classes, 1))
    else:
        width = max(len(printable(file)) for file in files)
        for file, classes in zip(files, found, strict=True):
            said = "  ".join(f"{printable(name)} {100 * value:.1f} %" for name, value in classes)
            click.echo(f"{printable(file):{width}}  {said}")


@cli.command("export")
@click.argument("run")
@click.option("--onnx", "kind", flag_value="onnx", help="ONNX, checked with onnxruntime.")
@click.option("--torchscript", "kind", flag_value="torchscript", help="TorchScript, by tracing.")
@click.option("--pt2", "kind", flag_value="pt2", help="The archive of torch.export.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="File to write. Default: model.onnx, .pt or .pt2 in the run."
)
def export_command(run: str, kind: str | None, output: Path | None) -> None:
    """Export a classifier to another format.

    RUN is its folder or key. The file takes batches of any number of images of the size that the model was trained at,
    and is checked: its logits must be those of the model.
    """
    from frepro.training import saved

    if kind is None:
        raise FreproError("choose a format: --onnx, --torchscript or --pt2")
    file = output or saved.folder_of(run) / f"model.{saved.FORMATS[kind][0]}"
    difference = saved.export(saved.load(run), kind, file)
    click.echo(f"{kind}: the largest difference of logits is {difference:.1e} -> {reproduce.shown(file)}")
