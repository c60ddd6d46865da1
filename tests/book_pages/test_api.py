"""The Python reference: every package that users import is in its list, which Sphinx makes the pages from."""

import re

from frepro import paths

# The command line and the pages of the book are not imported by users.
LEFT_OUT = {"__init__", "__main__", "book_pages", "cli"}


def test_every_package_and_module_is_listed():
    names = {path.stem for path in paths.PACKAGE.glob("*.py")} | {
        path.parent.name for path in paths.PACKAGE.glob("*/__init__.py")
    }
    text = (paths.BOOK / "api.md").read_text()
    listed = re.findall(r"^   frepro\.(\w+)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(names - LEFT_OUT)
