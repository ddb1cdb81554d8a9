"""Several fits side by side: what they ask a solver for at the same time is solved together.

A fit decides much about its own photos: where it begins, what its jaw points are, how noisy they are, which
stages it needs. All that stays as it is for one person. Only where Levenberg-Marquardt is called, a fit says
what it wants solved and waits; when all wait, the problems that are alike are solved side by side, which on a
CPU gives each the bits that it gets alone. The time of a fit with few photos goes into thousands of calls of
torch with little work in each, some of which so serve several people; flow and rendering of many photos take
the time they take.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fitkit.energies.join import JoinedProblems, alike
from fitkit.energies.objective import LeastSquaresProblem
from fitkit.errors import FitkitError
from fitkit.scene.state import SceneState
from fitkit.solvers.levenberg_marquardt import (
    LMOptions,
    SolverResult,
    levenberg_marquardt,
    levenberg_marquardt_side_by_side,
)

T = TypeVar("T")


class Clock:
    """Seconds of one fit: those that it waits for others do not count, of joint work it has its share."""

    def __init__(self) -> None:
        self.away = (0.0, 0.0)

    def wall(self) -> float:
        return time.perf_counter() - self.away[0]

    def cpu(self) -> float:
        return time.process_time() - self.away[1]


@dataclass(frozen=True)
class Request:
    """What a fit wants solved: a problem of one person, from x. order: of its stage; where fits are at
    different ones, those that are behind go first."""

    problem: LeastSquaresProblem
    x: SceneState
    options: LMOptions
    order: int
    clock: Clock


Steps = Generator[Request, SolverResult, T]


def alone(steps: Steps[T]) -> T:
    """What one fit comes to, by itself."""
    (result,) = together([steps])
    if isinstance(result, FitkitError):
        raise result
    return result


def together(fits: Sequence[Steps[T]]) -> list[T | FitkitError]:
    """What several fits come to, or the error that ended one."""
    results: dict[int, T | FitkitError] = {}
    waiting: dict[int, tuple[Request, float, float]] = {}

    def go_on(number: int, answer: SolverResult | None) -> None:
        try:
            request = next(fits[number]) if answer is None else fits[number].send(answer)
        except StopIteration as end:
            results[number] = end.value
        except FitkitError as error:
            results[number] = error
        else:
            waiting[number] = request, request.clock.wall(), request.clock.cpu()

    for number in range(len(fits)):
        go_on(number, None)
    while waiting:
        behind = min(request.order for request, _, _ in waiting.values())
        groups: dict[object, list[int]] = {}
        for number, (request, _, _) in waiting.items():
            if request.order == behind:
                key = request.options, alike(request.problem, request.x)
                groups.setdefault(key, []).append(number)
        for group in groups.values():
            asked = [waiting.pop(number) for number in group]
            wall, cpu = time.perf_counter(), time.process_time()
            answers = _solve([request for request, _, _ in asked])
            wall, cpu = (
                (now - then) / len(group)
                for now, then in ((time.perf_counter(), wall), (time.process_time(), cpu))
            )
            for number, (request, asked_wall, asked_cpu), answer in zip(group, asked, answers):
                clock = request.clock
                idle = clock.wall() - asked_wall - wall, clock.cpu() - asked_cpu - cpu
                clock.away = clock.away[0] + idle[0], clock.away[1] + idle[1]
                go_on(number, answer)
    return [results[number] for number in range(len(fits))]


def _solve(requests: Sequence[Request]) -> list[SolverResult]:
    """The solutions of requests that are alike."""
    first = requests[0]
    if len(requests) == 1:
        return [levenberg_marquardt(first.problem, first.x, first.options)]
    problems, xs = [r.problem for r in requests], [r.x for r in requests]
    return levenberg_marquardt_side_by_side(JoinedProblems(problems, xs), xs, first.options)
