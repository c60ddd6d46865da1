"""`frepro weights`: the weights that authors published, and their download."""

from pathlib import Path

import click

from frepro import papers
from frepro.cli.options import cli, end
from frepro.errors import FreproError, unknown
from frepro.store import provenance
from frepro.training.runs import published_for


@cli.group("weights", invoke_without_command=True)
@click.pass_context
def weights_group(context: click.Context) -> None:
    """List the weights that authors published, or download them.

    The list has the rows of the papers' tables of classifiers. `timm.create_model(NAME, pretrained=True)` with a name
    from its column "Weights" downloads them at first use. FREPRO_WEIGHTS_URL redirects downloads to a mirror: a
    folder on the web (https://...) or on disk with files of the same names.
    """
    if context.invoked_subcommand is None:
        from frepro import report

        click.echo(report.weights(provenance.own_models()).text())


@weights_group.command("fetch")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder that the files go to. Default: timm's folder of weights, where pretrained=True finds them.",
)
def weights_fetch_command(models: tuple[str, ...], folder: Path | None) -> None:
    """Download published weights, for example on a login node.

    MODEL is the name of a model, with or without tag; a model of timm must be a row of the papers' tables. Default: all
    that the papers' authors published. A file that is there already
    is compared with its recorded checksum. To use the files elsewhere, set FREPRO_WEIGHTS_URL=/path/to/folder.
    """
    from frepro.models import published

    chosen: dict[str, str] = {}
    for model in models:
        name = model.partition(".")[0]
        if name not in provenance.own_models() and name not in papers.weights():
            raise unknown("model", model, [*provenance.own_models(), *papers.weights()])
        for found in published.of_model(name) if name in provenance.own_models() else [published_for(model)]:
            if found.url is None:
                raise published.unavailable(name)
            chosen[found.model] = found.url
    failures = []
    for model, url in (chosen or published.URLS).items():
        try:
            file = published.fetch(model, url, folder)
        except FreproError as error:
            failures.append(str(error))
        else:
            click.echo(f"{model}: {file} ({file.stat().st_size / 1e6:,.1f} MB)")
    end(failures)
