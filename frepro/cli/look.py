"""`frepro sizes`, `bench`, `list` and `doctor`: inspect the models, papers and recipes, and this machine."""

import os
import sys
from functools import partial
from pathlib import Path
from textwrap import shorten

import click

import frepro
from frepro import papers, paths, recipes, reproduce
from frepro.cli.options import (
    FilePath,
    blank_as_none,
    cli,
    device_option,
)
from frepro.data import locate
from frepro.store import provenance


@cli.command("sizes")
def sizes_command() -> None:
    """Count parameters and FLOPs, and draw the models' blocks.

    Writes a table of all models and the drawings of each family to results/models. Takes about half a minute.
    """
    from frepro import report
    from frepro.analysis import sizes
    from frepro.figures import drawings

    log = partial(click.echo, err=True)
    found = sizes.write(partial(drawings.save, log=log), log)
    click.echo(report.sizes(found).text())
    click.echo(f"  {reproduce.shown(sizes.folder())}")


@cli.command("bench")
@click.option(
    "--only",
    callback=blank_as_none,
    help="Measure only what matches this pattern, for example scan, models/ or resolution/c*.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="Number of measurements of each implementation. Default: 5, and 3 of training steps.",
)
@device_option
@click.option(
    "--beside",
    type=FilePath(),
    help="Python file that defines other models or operations to time in the same rounds \
(see frepro/bench/beside.py).",
)
@click.option("--smoke", is_flag=True, help="Use tiny sizes, only to check that the benchmark runs.")
def bench_command(only: str | None, rounds: int | None, device: str, beside: Path | None, smoke: bool) -> None:
    """Measure speed and memory against PyTorch and timm.

    Times frepro's operations against their plain PyTorch reference, and its models against timm's. The measurements
    are interleaved, so that all of them see the same state of the machine. Takes minutes on a CPU; run nothing else
    meanwhile. The performance page of the book shows the results.
    """
    from frepro.bench.results import SECTIONS
    from frepro.bench.run import run
    from frepro.report import benchmark as report
    from frepro.training.device import device_name

    kind = device_name(device)[0]
    found, folder = run(kind, rounds, only, beside, smoke, partial(click.echo, err=True))
    try:
        from frepro.figures import speed
    except ImportError:
        click.echo("no figures: to draw them, run pip install -e '.[book]'", err=True)
    else:
        for name, picture in speed.pictures(found).items():
            picture.savefig(folder / f"{name}.png")
    for section in SECTIONS:
        for variant in dict.fromkeys(line.variant for line in found.section(section)):
            click.echo(f"\n{section}, {variant}, {found.machine}")
            click.echo(
                (report.models(found, variant) if section == "models" else getattr(report, section)(found)).text()
            )
    click.echo("")
    for file in sorted(folder.iterdir()):
        click.echo(f"  {reproduce.shown(file)}")


@cli.command("list")
@click.argument("what", type=click.Choice(["all", "models", "papers", "recipes"]), default="all")
def list_command(what: str) -> None:
    """List models, papers with their tables and figures, and recipes."""
    if what in ("all", "models"):
        click.echo("models (timm.create_model after `import frepro`)")
        for module in sorted(set(provenance.own_models().values())):
            names = [name for name, of in provenance.own_models().items() if of == module]
            click.echo(f"  {module.rpartition('.')[2]}: {', '.join(names)}")
    if what in ("all", "papers"):
        click.echo("papers (frepro reproduce --paper ... --table ... or --figure ...)")
        for name in papers.names():
            paper = papers.load(name)
            click.echo(f"  {name}: {paper.title}, {paper.venue} {paper.year}")
            for artefact in reproduce.artefacts(name):
                caption = shorten(papers.title(dict(paper.artefacts())[artefact.name]), 80, placeholder=" ...")
                state = "" if artefact.is_built else " [not built yet]"
                click.echo(f"    {artefact.name.replace('_', ' ')}{state}: {caption}")
    if what in ("all", "recipes"):
        click.echo(f"recipes: {', '.join(recipes.names())}, each with profiles {', '.join(recipes.PROFILES)}")


@cli.command("doctor")
def doctor_command() -> None:
    """Show hardware, packages and backends of this machine.

    Gives the reason for each backend that is unavailable.
    """
    record = provenance.record()
    machine = record["machine"]
    click.echo(f"frepro {frepro.__version__}, commit {record['commit']}{' with changes' if record['dirty'] else ''}")
    click.echo(f"python {record['python']} at {sys.prefix}")
    click.echo(f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}")
    for name in (
        "torch",
        "torchvision",
        "timm",
        "accelerate",
        "scikit-learn",
        "papermill",
        "jupyter-book",
        "mamba-ssm",
    ):
        optional = " (optional)" if name in ("papermill", "jupyter-book", "mamba-ssm") else ""
        click.echo(f"  {name}{optional}: {provenance.version(name) or 'not installed'}")
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            click.echo(f"CUDA device {index}: {torch.cuda.get_device_name(index)}")
    else:
        click.echo("no CUDA device: training and timing run on the CPU")
    from frepro.ops import backends, cpu

    for name, reason in backends.reasons().items():
        built = f", kernels for {cpu.instruction_set()}" if name == "cpu" else ""
        click.echo(f"backend {name}: {f'available{built}' if reason is None else f'unavailable, {reason}'}")
    folder = paths.results()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    state = "writable" if os.access(existing, os.W_OK) and existing.is_dir() else "NOT writable"
    click.echo(f"results in {folder}: {state}")
    click.echo(f"data: {locate(None)}")
