"""The entry point."""

import os
import sys
import warnings

import click

from frepro import processes
from frepro.cli import data, look, reproduce, train  # noqa: F401 - they add their commands
from frepro.cli.options import cli, fail
from frepro.errors import FreproError, one_line, printable


def main() -> None:
    """Run the command line; what a user can mend ends in one line and status 1, Ctrl-C in 130, SIGTERM in 143."""
    # After Ctrl-C the processes that tidy up behind Python's own would warn of what they found to do.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    warnings.filterwarnings("ignore", message=".*tasks which were still being processed")  # by joblib, of the same
    processes.terminate_as_interrupt()
    try:
        cli(standalone_mode=False)
    except FreproError as error:
        fail(one_line(error))
    except click.Abort as abort:
        processes.end_children()
        click.echo("\nstopped; what was done is kept, and the same command goes on from there", err=True)
        os._exit(processes.status(abort.__cause__))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        fail(printable(error.format_message()), error.exit_code)
