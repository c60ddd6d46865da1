"""`frepro sizes`, `bench`, `list` and `doctor`: what there is, and what this machine can do."""

import os
import sys
from functools import partial
from pathlib import Path
from textwrap import shorten

import click

import frepro
from frepro import papers, paths, recipes, reproduce
from frepro.cli.options import (
    blank_as_none,
    cli,
)
from frepro.data import locate
from frepro.store import provenance


@cli.command("sizes")
def sizes_command() -> None:
    """Parameters and FLOPs of every model, and drawings of their blocks, into results/models. Half a minute."""
    from frepro import report
    from frepro.analysis import sizes
    from frepro.figures import drawings

    log = partial(click.echo, err=True)
    found = sizes.write(partial(drawings.save, log=log), log)
    click.echo(report.sizes(found).text())
    click.echo(f"  {reproduce.shown(sizes.folder())}")


@cli.command("bench")
@click.option("--only", callback=blank_as_none, help="Pattern of what to measure, as scan, models/ or resolution/c*.")
@click.option("--rounds", type=click.IntRange(1), help="Turns of each side. Default: 5.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--beside",
    type=click.Path(path_type=Path),
    help="A Python file that makes models or operations of others, to be timed in the same rounds \
(see frepro/bench/beside.py).",
)
@click.option("--smoke", is_flag=True, help="Everything tiny, to see that it runs.")
def bench_command(only: str | None, rounds: int | None, device: str, beside: Path | None, smoke: bool) -> None:
    """Speed and memory, measured side by side, in turn: ours, the plain reference, timm's models.

    Minutes on a CPU; keep the machine free meanwhile. The book's page on performance is made from the results.
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
        click.echo("no pictures: they need pip install -e '.[book]'", err=True)
    else:
        for name, picture in speed.pictures(found).items():
            picture.savefig(folder / f"{name}.png")
    for section in SECTIONS:
        for variant in dict.fromkeys(line.variant for line in found.section(section)):
            click.echo(f"\n{section}, {variant}, {found.provenance['device']['name']}")
            click.echo(
                (report.models(found, variant) if section == "models" else getattr(report, section)(found)).text()
            )
    click.echo("")
    for file in sorted(folder.iterdir()):
        click.echo(f"  {reproduce.shown(file)}")


@cli.command("list")
@click.argument("what", type=click.Choice(["all", "models", "papers", "recipes"]), default="all")
def list_command(what: str) -> None:
    """Models, papers with their tables and figures, and recipes."""
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
    """What this machine has, what loads, and why not what does not."""
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
        click.echo(f"backend {name}: {f'can be used{built}' if reason is None else f'not here, {reason}'}")
    folder = paths.results()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    state = "can be written" if os.access(existing, os.W_OK) and existing.is_dir() else "can NOT be written"
    click.echo(f"results in {folder}: {state}")
    click.echo(f"data: {locate(None)}")
