"""Side by side: what fails is handed over with its cause, and takes nothing along."""

import os
import signal

import pytest

from frepro.errors import FreproError
from frepro.training import parallel
from frepro.training.parallel import Failure


def half(number: int) -> int:
    if number == 3:
        raise FreproError("three is odd: give an even number")
    if number == 5:
        raise ValueError("five\nis odd")
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number // 2


@pytest.mark.parametrize("jobs", [1, 2])
def test_failures_come_beside_results(jobs):
    found = dict(parallel.each(half, [2, 3, 4, 5], jobs))
    assert (found[2], found[4]) == (1, 2)
    assert found[3] == Failure("three is odd: give an even number")
    assert found[5].cause == "ValueError: five"
    assert "in half" in found[5].details
    error = found[5].error()
    assert isinstance(error, FreproError)
    assert "in half" in error.__notes__[0]


def test_a_killed_process_is_told_of():
    found = dict(parallel.each(half, [7, 2], 2))
    assert "JOBS=1" in found[7].cause


def test_nothing_to_do():
    assert list(parallel.each(half, [], 2)) == []
    assert list(parallel.train([], "cpu", 2, None, None)) == []
