"""Whether all photos of a person show one expression, by what it costs the evidence to let them share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fitkit.energies.objective import LeastSquaresProblem, Objective, TermReport
from fitkit.energies.priors import ExpressionPrior
from fitkit.energies.registry import find
from fitkit.fitting.solution import Solution
from fitkit.scene.state import SceneState

ENOUGH = 3  # photos; two tell too little of depth to tell expressions from it
# What sharing costs for each photo beyond the first: landmarks in nats, matches as a share of their cost for
# each photo. Rendered photos of one moment: below 1.7 and 1; of other moments: more than 7 and 0.9, or than 1
# and 3.
LANDMARKS, MATCHES = 2.5, 1.0


def may_share(at: Solution) -> bool:
    """Whether a stage's solution is worth the question: enough photos, none of a moment that is known."""
    alone = len(at.cameras.moments.unique()) == at.observations.num_views
    return at.last is not None and alone and at.observations.num_views >= ENOUGH


def shared_problem(at: Solution) -> tuple[LeastSquaresProblem, SceneState]:
    """The problem that was solved last with one expression for all photos, their mean, and its start."""
    assert at.last is not None
    problem, _ = at.last
    owner = torch.zeros_like(at.cameras.moments)
    terms = [
        replace(t, energy=replace(t.energy, owner=owner)) if isinstance(t.energy, ExpressionPrior) else t
        for t in problem.objective.terms
    ]
    blocks = (replace(b, owner=owner) if b.name == "expression" else b for b in problem.layout.blocks)
    layout = replace(problem.layout, blocks=tuple(blocks))
    expression = at.state.expression.mean(0, keepdim=True).expand_as(at.state.expression)
    shared = LeastSquaresProblem(Objective(terms), problem.observations, layout, problem.first_order)
    return shared, at.state.replace(expression=expression)


def shows_one(own: Mapping[str, TermReport], shared: Mapping[str, TermReport], views: int) -> bool:
    """Whether the evidence does not mind, from the terms of the solutions with own and shared expressions."""

    def cost(terms: Mapping[str, TermReport], role: str) -> float:
        return sum(t.value for name, t in terms.items() if find(name).role == role)

    landmarks, matches = (cost(shared, role) - cost(own, role) for role in ("landmark", "flow"))
    most = MATCHES * cost(own, "flow") / views
    return landmarks < LANDMARKS * (views - 1) and matches < most * (views - 1)
