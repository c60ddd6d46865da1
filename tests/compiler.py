"""Tests of the CPU kernels run wherever there is a compiler: kernels that fail to compile there fail them."""

import os
import shutil

import pytest

COMPILERS = ("cc", "gcc", "clang")

needs_compiler = pytest.mark.skipif(
    not os.environ.get("CC") and not any(map(shutil.which, COMPILERS)), reason="no C compiler on this machine"
)
