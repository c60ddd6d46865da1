"""Notebooks under nbval measure into a folder of their own: they neither use nor leave runs of yours."""

import os
import tempfile

_folder = tempfile.TemporaryDirectory(prefix="frepro-notebooks-")  # gone when the tests end
os.environ["FREPRO_RESULTS"] = _folder.name
