"""The one error that a user is meant to read."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class FreproError(Exception):
    """Something that the user can mend. The message is one line that names the cause and the remedy."""


class DamagedImageError(FreproError):
    """An image file that cannot be used; ``path`` is lost on the way out of a process that loads data."""

    path: object = None


def damaged(path: object, reason: object) -> DamagedImageError:
    """An error for an image file that is missing or cannot be decoded."""
    error = DamagedImageError(printable(f"damaged image {path}: {reason}: replace or remove the file"))
    error.path = path
    return error


def printable(text: object) -> str:
    """Text in one line that UTF-8 can encode: line ends, and bytes of names in another encoding, are escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(text)
    )


def unknown(kind: str, name: object, known: Iterable[object]) -> FreproError:
    """An error for a name that does not exist, with its near matches, or all there are when they are few."""
    names = sorted(str(item) for item in known)
    near = get_close_matches(str(name), names, n=5, cutoff=0.5)
    if near:
        hint = f"did you mean {', '.join(near)}?"
    elif 0 < len(names) <= 20:
        hint = f"there is {', '.join(names)}"
    else:
        hint = "`frepro list` shows what there is"
    return FreproError(f"unknown {kind} {name!r}: {hint}")


def one_line(error: BaseException) -> str:
    """What went wrong, in one line; of an error that a user cannot mend, with its type."""
    lines = str(error).strip().splitlines() or ["no message"]
    if isinstance(error, FreproError):
        # A data-loading process wraps the error of its own in a traceback; the last line is the error.
        return printable(re.sub(r"^frepro\.errors\.\w+: ", "", lines[-1]))
    return printable(f"{type(error).__name__}: {lines[0]}")
