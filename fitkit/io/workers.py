"""Jobs spread over the cores of one machine."""
from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

import cv2
import torch

from fitkit.errors import FitkitError

T = TypeVar("T")


def run_jobs(function: Callable[[Any], T], jobs: Sequence[Any], workers: int) -> Iterator[T]:
    """function(job) of all jobs, each as it is done; with one worker in this process and in order. Each further worker is a process with
    one thread; function and jobs must be picklable.

    Raises:
        FitkitError: a process ended by force.
    """
    if workers == 1 or len(jobs) < 2:
        yield from map(function, jobs)
        return
    # Workers start anew: with the fork of a process whose libraries run threads they could hang.
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=_settle)
    try:
        for future in as_completed([pool.submit(function, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise FitkitError("a worker process ended by force (out of memory?); use fewer --workers and go on with --resume") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _settle() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
