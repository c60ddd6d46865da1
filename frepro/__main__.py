"""``python -m frepro``: the command line, also from a checkout that is not installed."""

from frepro.cli import main

main()
