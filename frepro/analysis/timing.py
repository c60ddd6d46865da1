"""Interleaved timing: each round times every function once, so that a machine that slows down affects all alike."""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


def interleaved(
    sides: Mapping[Key, Callable[[], object]], rounds: int, device: torch.device, least: float = 0.0
) -> tuple[dict[Key, list[float]], dict[Key, str]]:
    """Time functions in interleaved rounds, every other round in reverse order, after a warm-up call of each.

    Args:
        sides: Functions to call, without arguments.
        device: The device that they use; it is synchronised before the clock is read.
        least: Minimum duration of a turn in seconds; shorter functions are called several times in each turn.

    Returns:
        Seconds per call in each round, in order of the rounds, and the cause for each function that failed. A function
        that failed is left out from then on, and the others continue.
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
        if seconds is not None and seconds < least:  # the first call is not representative
            seconds = turn(key, 1)
        calls[key] = max(1, math.ceil(least / seconds)) if seconds else 1
    for number in range(rounds):
        for key in reversed(calls) if number % 2 else list(calls):
            if key not in failures and (seconds := turn(key, calls[key])) is not None:
                times[key].append(seconds)
    return {key: values for key, values in times.items() if key not in failures}, failures


def _seconds(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Return the mean seconds per call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / calls
