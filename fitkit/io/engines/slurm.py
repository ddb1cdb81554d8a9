"""Jobs of Slurm, through submitit: each does a share of the work, one after the other, in a process of its
own that may be killed."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from fitkit.errors import FitkitError, InputError
from fitkit.io.engines import EngineOptions, Work, need
from fitkit.io.workers import Loss, run_jobs

T = TypeVar("T")
log = logging.getLogger("fitkit")
LOOK = {"slurm": 5.0, "local": 0.2}  # seconds between two looks at what is done
CHANCES = 2  # how often a share may end with the same first job open before that job is given up
HOUR = 60  # minutes


def check(parameters: dict[str, Any]) -> None:
    need("submitit", "slurm")
    cluster = parameters.get("cluster", "slurm")
    if cluster not in LOOK:
        raise InputError(f"engine 'slurm': cluster: expected slurm or local, got {cluster!r}")
    for name, value in parameters.items():
        if not isinstance(value, (str, int, float, bool, dict, list)):
            raise InputError(f"engine 'slurm': {name}: expected a text or a number, got {value!r}")


@dataclass
class _Share:
    """jobs: numbers of those that it does, in order; handle: of submitit."""

    jobs: list[int]
    handle: Any


def run(work: Work[T], options: EngineOptions) -> Generator[T, None, None]:
    """Parameters: those of submitit ('timeout_min', 'slurm_partition', 'slurm_array_parallelism', ...), with
    or without 'slurm_' before them, and 'cluster': 'slurm', or 'local' for processes of this machine.

    A share that ends with jobs open, because its machine failed or its time was over, is submitted again
    with them.
    """
    parameters = dict(options.parameters)
    cluster = parameters.pop("cluster", "slurm")
    executor = _executor(cluster, parameters, options)
    open_jobs = set(range(len(work.jobs)))
    count = min(options.workers, len(work.jobs))
    ended_at_first: dict[int, int] = {}
    shares: list[_Share] = []

    def submit(lists: Sequence[list[int]]) -> None:
        # An array: one request to the scheduler for all of them.
        try:
            with executor.batch():
                handles = [
                    executor.submit(
                        do_share, work.function, [work.jobs[i] for i in share], work.lost, work.timeout
                    )
                    for share in lists
                ]
        except Exception as error:  # whatever the scheduler says
            raise FitkitError(f"engine 'slurm': nothing could be submitted: {error}") from error
        shares.extend(_Share(share, handle) for share, handle in zip(lists, handles))

    def collect(numbers: Sequence[int]) -> Generator[T, None, None]:
        # They are done in order: to look at thousands of files again and again would be a burden.
        for number in [n for n in numbers if n in open_jobs]:
            answer = work.found(work.jobs[number])
            if answer is None:
                return
            open_jobs.discard(number)
            yield answer

    try:
        if count:
            submit([list(range(k, len(work.jobs), count)) for k in range(count)])
        while open_jobs:
            time.sleep(LOOK[cluster])
            for share in list(shares):
                ended = share.handle.done(cluster == "local")
                yield from collect(share.jobs)
                left = [i for i in share.jobs if i in open_jobs]
                if not ended:
                    share.jobs = left
                    continue
                shares.remove(share)
                if not left:
                    continue
                reason = _reason(share.handle)
                log.warning("a job of %s ended with %d of its subjects open: %s", cluster, len(left), reason)
                ended_at_first[left[0]] = ended_at_first.get(left[0], 0) + 1
                if ended_at_first[left[0]] >= CHANCES:
                    open_jobs.discard(left[0])
                    yield work.lost(work.jobs[left[0]], Loss("killed", f"its job ended ({reason})"))
                    left = left[1:]
                if left:
                    submit([left])
    finally:
        for share in shares:
            with suppress(Exception):
                if open_jobs.intersection(share.jobs):  # otherwise it ends by itself
                    share.handle.cancel(check=False)


def do_share(function: Any, jobs: Sequence[Any], lost: Any, timeout: Any) -> None:
    """What one job of Slurm does; the answers lie on the disk."""
    for _ in run_jobs(function, jobs, 1, lost, timeout, apart=True):
        pass


def _executor(cluster: str, parameters: dict[str, Any], options: EngineOptions) -> Any:
    submitit = need("submitit", "slurm")
    known = {"timeout_min": 24 * HOUR, "cpus_per_task": 1, "name": "fitkit"}
    if options.gpu:
        known["gpus_per_node"] = 1
    shared = {"timeout_min", "cpus_per_task", "name", "gpus_per_node", "mem_gb", "nodes", "tasks_per_node"}
    for name, value in parameters.items():
        known[name if name in shared or name.startswith("slurm_") else f"slurm_{name}"] = value
    try:
        executor = submitit.AutoExecutor(folder=options.folder, cluster=cluster)
        executor.update_parameters(**known)
    except Exception as error:
        raise InputError(f"engine 'slurm': {error}") from error
    return executor


def _reason(handle: Any) -> str:
    problem = None
    with suppress(Exception):  # submitit itself may not know
        problem = handle.exception()
    last = str(problem or handle.state).strip().splitlines()
    return last[-1][:200] if last else "no reason given"
