"""How processes end: SIGTERM as an exception, so that everything is cleaned up, and children that end with
their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

AGAIN = 2.0  # seconds in which further SIGTERMs are one with the first: process groups get several


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Handled as Ctrl-C, but nothing is waited for."""


@contextmanager
def sigterm_raises() -> Iterator[Callable[[], bool]]:
    """In the block, SIGTERM raises Terminated in the main thread; yields whether it came. Other threads, and
    programs that have a handler of their own for it, are left alone."""
    came = 0.0
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield lambda: False
        return

    def end(number, frame):
        nonlocal came
        now, before = time.monotonic(), came
        came = now
        if not before or now - before > AGAIN:
            raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end_with_parent() -> None:
    """Called in a process of `multiprocessing`: it ends at once when its parent has ended, in whatever
    way."""

    def follow():
        parent = multiprocessing.parent_process()
        assert parent is not None, "called in the first process"
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True, name="end-with-parent").start()
