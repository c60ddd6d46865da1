"""The entry point of the command line."""

import os
import sys
import warnings

import click

from frepro import processes
from frepro.cli import data, look, reproduce, train, use, weights  # noqa: F401 - importing them registers their commands
from frepro.cli.options import cli, fail
from frepro.errors import FreproError, one_line, printable


def main() -> None:
    """Run the command line.

    A ``FreproError`` is printed as one line and exits with status 1, Ctrl-C exits with 130, and SIGTERM with 143.
    """
    # After Ctrl-C, Python's resource tracker processes would warn about the resources that they clean up.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    warnings.filterwarnings(
        "ignore", message=".*tasks which were still being processed"
    )  # joblib's warning after Ctrl-C
    processes.terminate_as_interrupt()
    try:
        cli(standalone_mode=False)
    except FreproError as error:
        fail(one_line(error))
    except click.Abort as abort:
        processes.end_children()
        click.echo("\nstopped; finished work is kept, and the same command resumes from there", err=True)
        os._exit(processes.status(abort.__cause__))
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, MemoryError) as error:  # the machine's, not a bug: full, unplugged, too small
        fail(one_line(error))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        fail(printable(error.format_message()), error.exit_code)
