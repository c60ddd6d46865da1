"""Child processes that never outlive their parent, and a SIGTERM that is handled like Ctrl-C."""

import multiprocessing
import os
import signal
import threading
import time
from types import FrameType

INTERVAL = 0.5  # seconds between two checks that the parent is alive


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, in the same way as on Ctrl-C, so that the same clean-up runs."""


def terminate_as_interrupt() -> None:
    """Make SIGTERM raise ``Terminated`` in the main thread. A second SIGTERM ends this process at once."""

    def raise_terminated(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    signal.signal(signal.SIGTERM, raise_terminated)


def status(stop: BaseException | None) -> int:
    """Return the exit status of a command stopped by this exception: 128 plus the signal number, as in shells."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def end_with(parent: int | None = None) -> None:
    """End this process immediately when its parent process has ended.

    Call this first in each new process. A thread watches the parent: the alternative of the operating system
    (PR_SET_PDEATHSIG) exists only on Linux, and takes effect when the parent's *thread* ends.

    Args:
        parent: Process ID of the parent; ``None`` for a child of multiprocessing's fork server.
    """

    def watch() -> None:
        if parent is None:
            process = multiprocessing.parent_process()
            assert process is not None, "only children of multiprocessing may leave out the parent"
            process.join()
        else:
            while os.getppid() == parent:
                time.sleep(INTERVAL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_and_without_interrupt(parent: int | None = None) -> None:
    """Call ``end_with``, and ignore Ctrl-C: a terminal sends it to all processes, and only the parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)


def end_children() -> None:
    """Kill the child processes of multiprocessing and joblib before this process ends, and wait for them."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises when a data-loading process is killed
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:
        child.join()
