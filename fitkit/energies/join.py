"""Least-squares problems of several people as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fitkit.energies.base import Joinable
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.observe.observations import Observations
from fitkit.scene.layout import ParameterLayout
from fitkit.scene.state import SceneState


def alike(problem: LeastSquaresProblem, x: SceneState) -> tuple:
    """Equal for problems that are worth joining: the same unknowns in the same places, terms, cameras, light.

    `join_problems` takes people with different numbers of photos too, but room for the most of them costs
    more than is saved: 12 people of one to four photos took 1.06 times the CPU time of one after the other,
    six of one photo 0.7 times.
    """
    terms = tuple((t.energy.name, t.energy.reduction, t.weight, t.kernel) for t in problem.objective.terms)
    layout = problem.layout
    places = layout.num_moments, *layout.shared_offsets.items(), *layout.own_offsets.items()
    return places, terms, x.camera.kind, x.illumination.shape[1:]


def join_problems(
    problems: Sequence[LeastSquaresProblem], xs: Sequence[SceneState]
) -> tuple[JoinedProblem, SceneState] | None:
    """The problem of all people, who have nothing in common, and where it begins.

    problems: `alike`, frozen, each of one person; xs: where each begins. One set of tensors for all
    people, instead of a loop over them, is what makes the inner loop of a solver cheap: the normal equations
    of a photo are small, and calling into torch takes as long as they do. What is found once per round
    (visibility, matches) stays with each problem. None where an energy is not `Joinable`.
    """
    views, terms = [x.num_views for x in xs], []
    for first, *others in zip(*(p.objective.terms for p in problems)):
        if not isinstance(first.energy, Joinable):
            return None
        energy = first.energy.join([first.energy, *(t.energy for t in others)], views)
        if energy is None:
            return None
        terms.append(Term(energy, first.weight, first.kernel))
    observations = Observations.join([_without_images(p.observations) for p in problems])
    layout = ParameterLayout.join([p.layout for p in problems])
    return JoinedProblem(Objective(terms), observations, layout, problems), JoinedProblem.join(xs)


class JoinedProblem(LeastSquaresProblem):
    """The problem of several people, see `join_problems`. parts: that of each."""

    def __init__(
        self,
        objective: Objective,
        observations: Observations,
        layout: ParameterLayout,
        parts: Sequence[LeastSquaresProblem],
    ):
        super().__init__(objective, observations, layout)
        self.parts = parts

    def select(self, x: SceneState, people: Sequence[int]) -> tuple[LeastSquaresProblem, SceneState]:
        """The problem and the solution of some people alone."""
        parts, xs = [self.parts[i] for i in people], [x.select_people([i]) for i in people]
        joined = None if len(people) == 1 else join_problems(parts, xs)
        return (parts[0], xs[0]) if joined is None else joined

    @staticmethod
    def join(xs: Sequence[SceneState]) -> SceneState:
        return SceneState.join(_with_offsets(xs))


def _without_images(observations: Observations) -> Observations:
    """Crops of any sizes, so that they can be joined."""
    images, mask = observations.images[..., :0, :0], observations.mask[..., :0, :0]
    return replace(observations, images=images, mask=mask, labels=None)


def _with_offsets(xs: Sequence[SceneState]) -> list[SceneState]:
    """Zero offsets of the landmarks where others have some: `SceneState.join` would drop them."""
    if all(x.landmark_offset is None for x in xs):
        return list(xs)
    zero = [x.identity.new_zeros(len(x.identity), 68, 3) for x in xs]
    offsets = [z if x.landmark_offset is None else x.landmark_offset for x, z in zip(xs, zero)]
    return [x.replace(landmark_offset=o) for x, o in zip(xs, offsets)]
