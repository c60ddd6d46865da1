"""Who takes a turn when, and what becomes of those that fail."""

import torch

from frepro.analysis.timing import interleaved

CPU = torch.device("cpu")


def test_every_round_has_all_sides_every_other_one_backwards():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "abc"}
    times, failures = interleaved(sides, 3, CPU)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"  # the first to warm up
    assert list(times) == ["a", "b", "c"]
    assert all(len(values) == 3 and min(values) > 0 for values in times.values())
    assert failures == {}


def test_what_is_short_is_called_more_often():
    calls = []
    interleaved({"short": lambda: calls.append(1)}, 1, CPU, least=0.01)
    assert len(calls) > 3


def test_a_side_that_fails_is_left_out_with_the_reason_and_the_rest_goes_on():
    calls = []

    def fail_late():
        calls.append("late")
        if len(calls) > 2:
            raise RuntimeError("out of memory\nand more")

    def fail():
        raise ValueError("no such thing")

    times, failures = interleaved({"bad": fail, "late": fail_late, "good": lambda: None}, 5, CPU)
    assert list(times) == ["good"]
    assert len(times["good"]) == 5
    assert failures == {"bad": "ValueError: no such thing", "late": "RuntimeError: out of memory"}
    assert len(calls) == 3  # not called again
