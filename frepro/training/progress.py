"""Progress of a long operation: one bar on a terminal, elsewhere a line for each completed item."""

import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from statistics import mean
from types import TracebackType

from tqdm import tqdm

# Only one process draws. tqdm's default lock for several processes leaks on Ctrl-C, and Python then prints a warning.
tqdm.set_lock(threading.RLock())

Thing = tuple[str, Hashable]  # kind ("run", "notebook", ...) and identifier within the kind


class Progress:
    """The items to be done, how long each took before, and an estimate of the time left.

    Args:
        expected: Seconds that each item took before; ``None`` where this is unknown.
        jobs: Number of items of each kind that run at a time; 1 for kinds that are missing.
        log: Called with a line for each completed item, if standard error is not a terminal.
    """

    def __init__(
        self, expected: Mapping[Thing, float | None], jobs: Mapping[str, int], log: Callable[[str], None]
    ) -> None:
        self.expected, self.jobs, self.log = dict(expected), jobs, log
        self.took: dict[Thing, float] = {}

    def __enter__(self) -> "Progress":
        self.bar = tqdm(
            total=len(self.expected),
            bar_format="{n_fmt}/{total_fmt} |{bar:30}| {elapsed}{postfix}",
            disable=not sys.stderr.isatty(),
        )
        self.bar.set_postfix_str(self.left())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.close()

    def done(self, thing: Thing, seconds: float, line: str) -> None:
        """Record that an item is done or has failed, as described by ``line``."""
        self.took[thing] = seconds
        left = self.left()
        self.bar.set_postfix_str(f"{left}; {line}" if left else line)
        self.bar.update()
        if self.bar.disable:
            self.log(f"[{len(self.took)}/{len(self.expected)}] {line}{f'; {left}' if left else ''}")

    def add(self, expected: Mapping[Thing, float | None]) -> None:
        """Add items to be done, with the seconds that each took before."""
        self.expected |= expected
        self.bar.total = len(self.expected)
        self.bar.refresh()

    def drop(self, *things: Thing) -> None:
        """Remove items that will not be done because something that they depend on has failed."""
        for thing in things:
            del self.expected[thing]
        self.bar.total = len(self.expected)
        self.bar.refresh()

    def left(self) -> str:
        """Return about how long the rest takes, in words; empty if there is no estimate."""
        rest = [thing for thing in self.expected if thing not in self.took]
        estimates = {kind: self._seconds(kind, rest) for kind in {kind for kind, _ in rest}}
        known = [seconds for seconds in estimates.values() if seconds is not None]
        if not known:
            return ""
        return f"{'about' if len(known) == len(estimates) else 'more than'} {minutes(sum(known))} left"

    def _seconds(self, kind: str, rest: list[Thing]) -> float | None:
        """Return the estimated seconds left for one kind; ``None`` if nothing is known.

        The estimate scales earlier durations by the current pace, and uses the mean for items without one.
        """
        done = {thing: seconds for thing, seconds in self.took.items() if thing[0] == kind}
        expected = {thing: seconds for thing, seconds in self.expected.items() if seconds}
        before = sum(expected[thing] for thing in done if thing in expected)
        pace = sum(seconds for thing, seconds in done.items() if thing in expected) / before if before else 1.0
        rest = [thing for thing in rest if thing[0] == kind]
        foreseen = {thing: pace * expected[thing] for thing in rest if thing in expected}
        if not done and not foreseen:
            return None
        typical = mean([*done.values(), *foreseen.values()])
        return sum(foreseen.get(thing, typical) for thing in rest) / self.jobs.get(kind, 1)


class Stopwatch:
    """Seconds since creation."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
