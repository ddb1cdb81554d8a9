"""Jobs spread over the cores of one machine."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from fitkit.errors import FitkitError
from fitkit.io.termination import Terminated, end_with_parent, sigterm_raises

T = TypeVar("T")
log = logging.getLogger("fitkit")
STARTS = 4  # how often in a row a process may end before it has loaded
PATIENCE = 3.0  # seconds that a process may clean up in before it is ended by force


@dataclass(frozen=True)
class Loss:
    """Why a job gave nothing. kind: 'killed', its process ended by force; 'timeout', it took too long; text:
    what ended it, as the beginning of a sentence."""

    kind: str
    text: str


def run_jobs(
    function: Callable[[Any], T],
    jobs: Sequence[Any],
    workers: int,
    lost: Callable[[Any, Loss], T] | None = None,
    timeout: Callable[[Any], float | None] = lambda job: None,
    apart: bool = False,
) -> Generator[T, None, None]:
    """function(job) of all jobs, each as it is done; with one worker in this process and in order, unless
    `apart`. Otherwise each worker is a process with one thread, which ends with this one; function and jobs
    must be picklable.

    After Ctrl-C no job is begun and those under way are still finished and given, then comes the
    KeyboardInterrupt; a second Ctrl-C, or SIGTERM, ends them.

    Args:
        lost: (job, what ended it) -> what is given for a job whose process ended by force or took too long.
        timeout: job -> seconds after which its process is ended by force, None = never; not in this process.
    Raises:
        FitkitError: a process ended by force and there is no `lost`, or processes cannot be started. And what
            `function` raises.
    """
    if workers == 1 and not apart:
        yield from map(function, jobs)
        return
    team: list[_Worker] = []
    waiting, failed, interrupted = deque(jobs), 0, None
    try:
        while waiting or any(w.busy for w in team):
            while len(team) < workers and len(team) - sum(w.busy for w in team) < len(waiting):
                team.append(_Worker(function))
            try:
                ready = wait([w.pipe for w in team], _patience(team))
            except KeyboardInterrupt as error:
                if interrupted is not None or isinstance(error, Terminated):
                    raise
                interrupted = error
                waiting.clear()
                if busy := sum(w.busy for w in team):
                    log.warning(
                        "interrupted; waiting for the %d under way, Ctrl-C again ends %s",
                        busy,
                        "it" if busy == 1 else "them",
                    )
                continue
            for worker in [w for w in team if w.late and w.pipe not in ready]:
                team.remove(worker)
                worker.kill()
                yield _give_up(worker, Loss("timeout", f"it took longer than {worker.limit:g} seconds"), lost)
            for worker in [w for w in team if w.pipe in ready]:
                try:
                    answer = worker.pipe.recv()
                except (EOFError, OSError):
                    team.remove(worker)
                    reason = worker.end()
                    if not worker.busy:  # nothing is lost with it
                        failed += 1
                        if failed == STARTS:
                            raise FitkitError(
                                f"worker processes cannot be started: {reason}; use --workers 1"
                            ) from None
                    else:
                        yield _give_up(worker, Loss("killed", reason), lost)
                    continue
                failed = 0
                if worker.busy:
                    worker.job, worker.end_at = (), None
                    result, error = answer
                    if error is not None:
                        raise error
                    yield result
                if waiting:
                    worker.give(job := waiting.popleft(), timeout(job))
                else:
                    team.remove(worker)
                    worker.end()
        if interrupted is not None:
            raise interrupted
    finally:
        for worker in team:
            worker.stop()
        for worker in team:
            worker.end()


def _give_up(worker: _Worker, loss: Loss, lost: Callable[[Any, Loss], T] | None) -> T:
    if lost is None:
        raise FitkitError(
            "a worker process ended by force (out of memory?); use fewer --workers and go on with --resume"
        )
    return lost(worker.job[0], loss)


def _patience(team: Sequence[_Worker]) -> float | None:
    """Seconds until the next of them is late; None: none will be."""
    ends = [w.end_at for w in team if w.end_at is not None]
    return max(0.0, min(ends) - time.monotonic()) if ends else None


class _Worker:
    """A process that does one job after the other. job: (the job,) while it is busy, else (); limit: seconds
    that it may take; end_at: the moment when they are over."""

    def __init__(self, function: Callable[[Any], Any]):
        context = get_context("spawn")  # with the fork of a process whose libraries run threads it could hang
        self.job: tuple = ()
        self.limit: float | None = None
        self.end_at: float | None = None
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(pickle.dumps(function), other), daemon=True)
        with _interrupts_ignored():  # what it inherits: the first process ends the others
            self.process.start()
        other.close()

    @property
    def busy(self) -> bool:
        return bool(self.job)

    @property
    def late(self) -> bool:
        return self.busy and self.end_at is not None and time.monotonic() >= self.end_at

    def give(self, job: Any, limit: float | None) -> None:
        self.job, self.limit = (job,), limit
        self.end_at = None if limit is None else time.monotonic() + limit
        with suppress(OSError):  # it has ended: the next look at the pipe tells
            self.pipe.send(job)

    def stop(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        """End it at once: what takes too long may hang where no signal is heard."""
        self.process.kill()
        self.end()

    def end(self) -> str:
        """Wait for its end, by force if need be -> what ended it."""
        self.pipe.close()
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = next((s.name for s in signal.Signals if s == -code), f"signal {-code}")
        return f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(function: bytes, pipe: Connection) -> None:
    """function: pickled, so that what it needs is loaded here, which takes seconds, with the parent already
    watched."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    one_thread_each()
    function = pickle.loads(function)
    with suppress(Terminated, EOFError, OSError), sigterm_raises():  # no pipe: there is nothing left to do
        pipe.send(None)
        while True:
            job = pipe.recv()
            try:
                answer = function(job), None
            except Exception as error:  # noqa: BLE001 - the first process raises it
                answer = None, _portable(error)
            pipe.send(answer)


def one_thread_each() -> None:
    """torch and OpenCV use one thread in this process: those that are loaded, and those that load later."""
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - exceptions with arguments of their own
        return FitkitError(f"{type(error).__name__}: {error}")
    return error
