"""The command line: reproduce, submit, train, eval, replay, convert, weights, data, sizes, bench, list, doctor."""

from .main import main

__all__ = ["main"]
