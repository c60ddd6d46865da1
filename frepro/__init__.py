"""Vision backbones that learn in the frequency domain.

Importing frepro registers its models with timm::

    import frepro, timm

    frepro.list_models("dfformer_*")                                  # names of models
    timm.create_model("dfformer_s18", num_classes=10)                 # a classifier
    timm.create_model("dfformer_s18", features_only=True)             # a backbone: four feature maps
    frepro.load("results/runs/<key>")                                 # the trained classifier of a run
    frepro.load_official("dfformer_s18", "dfformer_s18.pth")          # a model with the authors' weights

The command ``frepro`` trains and evaluates models, and reproduces the tables and figures of the four papers that the
models come from. ``frepro --help`` lists its commands.
"""

import sys
from fnmatch import filter as _filter
from pathlib import Path

from frepro.store.provenance import own_models as _own_models

__all__ = ["list_models", "load", "load_official"]
__version__ = "0.1.0"


def list_models(pattern: str = "*") -> list[str]:
    """Return the sorted names of frepro's models that match a pattern.

    Args:
        pattern: A pattern in which ``*`` matches any text, as ``"dfformer_*"`` or ``"*_s18*"``.
    """
    return sorted(_filter(_own_models(), pattern))


def __dir__() -> list[str]:
    """Return what a user may use, without what this file itself imports."""
    return sorted([*__all__, "models", *(name for name in globals() if name.startswith("__"))])


def _is_command_line() -> bool:
    """Return whether this process runs `frepro ...` or `python -m frepro ...`.

    While Python looks for the module, the program of the latter is named "-m".
    """
    program = Path(sys.argv[0] if sys.argv else "").name
    return program == "frepro" or (program == "-m" and sys.orig_argv[sys.orig_argv.index("-m") + 1] == "frepro")


# The command line imports the models only when a command needs them. Importing torch and timm takes seconds, and
# `reproduce` with nothing to do should return at once.
if not _is_command_line():
    from frepro import models as models
    from frepro.models.official import load_official as load_official
    from frepro.training.saved import load as load
