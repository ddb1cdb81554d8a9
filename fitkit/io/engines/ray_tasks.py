"""Tasks of Ray, one for each job."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fitkit.errors import FitkitError, InputError
from fitkit.io.engines import EngineOptions, Work, need
from fitkit.io.workers import Loss, one_thread_each

T = TypeVar("T")
PARAMETERS = ("address", "memory", "num_cpus", "num_gpus", "resources")
LOOK = 0.5  # seconds between two looks at the clock


def check(parameters: dict[str, Any]) -> None:
    need("ray", "ray")
    for name in parameters:
        if name not in PARAMETERS:
            raise InputError(f"engine 'ray': unknown option '{name}'; known: {', '.join(PARAMETERS)}")


@dataclass(frozen=True)
class _Task:
    job: Any
    began: float
    limit: float | None


def run(work: Work[T], options: EngineOptions) -> Generator[T, None, None]:
    """Parameters: 'address' of a cluster ('auto': the one that runs here), default: Ray is started on this
    machine with as many CPUs as workers; of each task 'num_cpus', 'num_gpus', 'memory' (bytes), 'resources'.
    """
    ray = need("ray", "ray")
    parameters = dict(options.parameters)
    started = _connect(ray, parameters.pop("address", None), options)
    needs = {"num_cpus": 1, "num_gpus": 1 if options.gpu else 0} | parameters
    waiting, running = deque(work.jobs), {}
    try:
        # Ray's own tries would repeat what the batch counts.
        remote = ray.remote(max_retries=0, max_calls=0, **needs)(_one)
        function = ray.put(work.function)
        while waiting or running:
            # Not all at once: the clock of a task begins when it is submitted.
            while waiting and len(running) < options.workers:
                job = waiting.popleft()
                running[remote.remote(function, job)] = _Task(job, time.monotonic(), work.timeout(job))
            ready, _ = ray.wait(list(running), timeout=LOOK)
            for handle in ready:
                task = running.pop(handle)
                try:
                    answer = ray.get(handle)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, FitkitError) else error from error
                except ray.exceptions.RayError as error:
                    yield work.lost(task.job, _loss(ray, error))
                else:
                    yield answer
            for handle, task in list(running.items()):
                if task.limit is not None and time.monotonic() - task.began > task.limit:
                    del running[handle]
                    ray.cancel(handle, force=True)
                    yield work.lost(task.job, Loss("timeout", f"it took longer than {task.limit:g} seconds"))
    finally:
        for handle in running:
            ray.cancel(handle, force=True)
        if started:
            ray.shutdown()


def _connect(ray: Any, address: str | None, options: EngineOptions) -> bool:
    """Use the Ray that the caller has started, or start one -> whether it is ours to end."""
    if ray.is_initialized():
        return False
    # Tasks import fitkit from where it was imported here.
    root = str(Path(__file__).resolve().parents[3])
    paths = [root, *(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)]
    settings: dict[str, Any] = {
        "log_to_driver": False,
        "runtime_env": {
            "env_vars": {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "OMP_NUM_THREADS": "1"}
        },
    }
    if address is None:
        settings |= {"num_cpus": options.workers, "include_dashboard": False}
    try:
        ray.init(address=address, **settings)
    except Exception as error:  # whatever Ray says
        raise FitkitError(f"engine 'ray': cannot be started: {error}") from error
    return True


def _one(function: Callable[[Any], T], job: Any) -> T:
    one_thread_each()
    return function(job)


def _loss(ray: Any, error: Exception) -> Loss:
    memory = isinstance(error, ray.exceptions.OutOfMemoryError)
    text = str(error).strip().splitlines()
    first = text[0][:200] if text else type(error).__name__
    return Loss("memory" if memory else "killed", f"its process ended ({first})")
