"""The command line: reproduce, train, eval, predict, export and others; `frepro --help` lists them."""

from .main import main

__all__ = ["main"]
