"""Forbids the network to a Python process; python imports a module of this name at start when it is on the path."""

import sys


def _forbid(event: str, arguments: tuple) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
        if not host.startswith(("127.", "::1", "localhost", "0.0.0.0")):
            raise ConnectionError(f"a test reached for the network: {host}")


sys.addaudithook(_forbid)
