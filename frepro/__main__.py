"""Run the command line with ``python -m frepro``; this also works in a checkout that is not installed."""

from frepro.cli import main

main()
