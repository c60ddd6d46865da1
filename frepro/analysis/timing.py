"""Timing side by side: in each round every side takes its turn, so that a machine that slows down slows all alike."""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


def interleaved(
    sides: Mapping[Key, Callable[[], object]], rounds: int, device: torch.device, least: float = 0.0
) -> tuple[dict[Key, list[float]], dict[Key, str]]:
    """Time functions in turn, round after round, every other round backwards, after a call of each to warm up.

    Args:
        sides: What to call, without arguments.
        device: Where they compute; it is waited for before the clock is read.
        least: Seconds that a turn lasts at least: what is shorter is called several times in it.

    Returns:
        Seconds of one call in each round, in order of the rounds; and for each side that failed, why. A side that
        failed is left out from there on, and the others go on.
    """
    calls: dict[Key, int] = {}
    failures: dict[Key, str] = {}
    times: dict[Key, list[float]] = {key: [] for key in sides}

    def turn(key: Key, count: int) -> float | None:
        try:
            return _seconds(sides[key], count, device)
        except Exception as error:
            failures[key] = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
            return None

    for key in sides:
        seconds = turn(key, 1)
        if seconds is not None and seconds < least:  # once more: the first call is no measure of the others
            seconds = turn(key, 1)
        calls[key] = max(1, math.ceil(least / seconds)) if seconds else 1
    for number in range(rounds):
        for key in reversed(calls) if number % 2 else list(calls):
            if key not in failures and (seconds := turn(key, calls[key])) is not None:
                times[key].append(seconds)
    return {key: values for key, values in times.items() if key not in failures}, failures


def _seconds(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Mean seconds of a call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / calls
