"""frepro: vision backbones that learn in the frequency domain, and the four papers' tables and figures measured anew.

``import frepro`` registers every model with timm, so that ``timm.create_model("dfformer_s18")`` finds it, and
``frepro.load_official("dfformer_s18", "dfformer_s18.pth")`` gives it the authors' weights.
"""

import sys
from pathlib import Path

__version__ = "0.1.0"


def _is_command_line() -> bool:
    """Whether this process is `frepro ...` or `python -m frepro ...` (named "-m" while Python looks for the module)."""
    program = Path(sys.argv[0] if sys.argv else "").name
    return program == "frepro" or (program == "-m" and sys.orig_argv[sys.orig_argv.index("-m") + 1] == "frepro")


# The command line imports the models when a command needs them: torch and timm take seconds to import, and `reproduce`
# with nothing to do answers at once.
if not _is_command_line():
    from frepro import models as models
    from frepro.models.official import load_official as load_official
