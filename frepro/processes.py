"""Processes that end with the one that started them, however it ends, and a SIGTERM that ends like Ctrl-C."""

import multiprocessing
import os
import signal
import threading
import time
from types import FrameType

INTERVAL = 0.5  # seconds between two looks at whether the parent is there


class Terminated(KeyboardInterrupt):
    """SIGTERM came; raised as Ctrl-C is, so that whatever tidies up then does so now."""


def terminate_as_interrupt() -> None:
    """Have SIGTERM raise ``Terminated`` in the main thread; a second one ends this process at once."""

    def raise_terminated(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    signal.signal(signal.SIGTERM, raise_terminated)


def status(stop: BaseException | None) -> int:
    """The exit status of a command that was stopped by this, as shells have it: 128 and the number of the signal."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def end_with(parent: int | None = None) -> None:
    """Let this process end, at once and whatever it is doing, when the process that had it started has ended.

    To be called first of all in each process that is started. It watches from a thread: what the system offers for this
    (PR_SET_PDEATHSIG) is of Linux alone, and acts on the end of the parent's *thread*.

    Args:
        parent: The process that started this one, by its number; none where multiprocessing's fork server came between.
    """

    def watch() -> None:
        if parent is None:
            multiprocessing.parent_process().join()
        else:
            while os.getppid() == parent:
                time.sleep(INTERVAL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_and_without_interrupt(parent: int | None = None) -> None:
    """As ``end_with``, and Ctrl-C, which a terminal sends to all processes, is for the parent to answer alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)


def end_children() -> None:
    """End the processes that multiprocessing and joblib have started from this one, which is about to end, and wait."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises where a process that loads data is killed
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:
        child.join()
