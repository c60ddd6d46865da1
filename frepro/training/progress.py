"""How far something long has come: one bar on a terminal, elsewhere a line for each thing that is done."""

import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from statistics import mean
from types import TracebackType

from tqdm import tqdm

# One process draws. The lock that tqdm would make for several is left behind by Ctrl-C, which Python then warns of.
tqdm.set_lock(threading.RLock())

Thing = tuple[str, Hashable]  # its kind ("run", "notebook" ...) and what names it among its kind


class Progress:
    """What is to be done, how long each took before, and from that how long the rest will take.

    Args:
        expected: Seconds that each thing took before; none where nobody knows.
        jobs: How many things of a kind are done at a time; one where it names none.
        log: Called with a line for each thing that is done, where standard error is no terminal.
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
        """One thing is done, or has failed; ``line`` says so."""
        self.took[thing] = seconds
        left = self.left()
        self.bar.set_postfix_str(f"{left}; {line}" if left else line)
        self.bar.update()
        if self.bar.disable:
            self.log(f"[{len(self.took)}/{len(self.expected)}] {line}{f'; {left}' if left else ''}")

    def drop(self, *things: Thing) -> None:
        """Things that will not be done, as what they rest on has failed."""
        for thing in things:
            del self.expected[thing]
        self.bar.total = len(self.expected)
        self.bar.refresh()

    def left(self) -> str:
        """About how long the rest takes, in words; empty where nothing tells."""
        rest = [thing for thing in self.expected if thing not in self.took]
        estimates = {kind: self._seconds(kind, rest) for kind in {kind for kind, _ in rest}}
        known = [seconds for seconds in estimates.values() if seconds is not None]
        if not known:
            return ""
        return f"{'about' if len(known) == len(estimates) else 'more than'} {minutes(sum(known))} left"

    def _seconds(self, kind: str, rest: list[Thing]) -> float | None:
        """Of the rest of one kind: what each took before, at the pace of today; for the others the mean of those."""
        done = {thing: seconds for thing, seconds in self.took.items() if thing[0] == kind}
        before = sum(self.expected[thing] for thing in done if self.expected[thing])
        pace = sum(seconds for thing, seconds in done.items() if self.expected[thing]) / before if before else 1.0
        rest = [thing for thing in rest if thing[0] == kind]
        foreseen = {thing: pace * self.expected[thing] for thing in rest if self.expected[thing]}
        if not done and not foreseen:
            return None
        typical = mean([*done.values(), *foreseen.values()])
        return sum(foreseen.get(thing, typical) for thing in rest) / self.jobs.get(kind, 1)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
