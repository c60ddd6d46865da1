"""The errors that users are meant to read, and helpers that format them."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class FreproError(Exception):
    """An error that the user can fix. The message is one line that names the cause and the remedy."""


class DamagedImageError(FreproError):
    """An unusable image file. ``path`` is lost when the error leaves a data-loading process."""

    path: object = None


def damaged(path: object, reason: object) -> DamagedImageError:
    """Return an error for an image file that is missing or cannot be decoded."""
    error = DamagedImageError(printable(f"damaged image {path}: {reason}: replace or remove the file"))
    error.path = path
    return error


def printable(text: object) -> str:
    """Return text as one line that UTF-8 can encode.

    Line breaks, and bytes of file names in another encoding, are escaped.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(text)
    )


def unknown(kind: str, name: object, known: Iterable[object]) -> FreproError:
    """Return an error for an unknown name that suggests close matches, or lists all names if there are few."""
    names = sorted(str(item) for item in known)
    near = get_close_matches(str(name), names, n=5, cutoff=0.5)
    if near:
        hint = f"did you mean {', '.join(near)}?"
    elif 0 < len(names) <= 20:
        hint = f"choose from {', '.join(names)}"
    else:
        hint = "see `frepro list`"
    return FreproError(f"unknown {kind} {name!r}: {hint}")


def one_line(error: BaseException) -> str:
    """Return an error message as one line, with the type of the error unless it is a ``FreproError``."""
    lines = str(error).strip().splitlines() or ["no message"]
    if isinstance(error, FreproError):
        # An error from a data-loading process arrives as text with a traceback. Its last line is the message.
        return printable(re.sub(r"^frepro\.errors\.\w+: ", "", lines[-1]))
    return printable(f"{type(error).__name__}: {lines[0]}")
