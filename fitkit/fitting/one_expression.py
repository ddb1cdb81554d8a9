"""Whether all photos of a person show one expression, by what it costs the evidence to let them share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fitkit.energies.objective import LeastSquaresProblem, Objective, TermReport
from fitkit.energies.priors import ExpressionPrior
from fitkit.energies.registry import find
from fitkit.fitting.solution import Solution
from fitkit.scene.layout import ParameterLayout
from fitkit.scene.state import SceneState

ENOUGH = 3  # photos; two tell too little of depth to tell expressions from it
# What sharing may cost for each photo beyond the first: landmarks in nats, matches as a share of their cost
# for each photo. Found with 36 sets of rendered photos of one moment, all but one of which stay below (3.4
# and 1.55), and 20 of other moments: more than 7 and 0.5, or more than 5 and 5.
LANDMARKS, MATCHES = 4.0, 1.75


def shared_problem(
    at: Solution, objective: Objective, layout: ParameterLayout
) -> tuple[LeastSquaresProblem, SceneState]:
    """A problem that was just solved with one expression for all photos, their mean, and where to begin."""
    owner = torch.zeros_like(at.cameras.moments)
    terms = [
        replace(t, energy=replace(t.energy, owner=owner)) if isinstance(t.energy, ExpressionPrior) else t
        for t in objective.terms
    ]
    blocks = (replace(b, owner=owner) if b.name == "expression" else b for b in layout.blocks)
    shared = LeastSquaresProblem(Objective(terms), at.observations, replace(layout, blocks=tuple(blocks)))
    expression = at.state.expression.mean(0, keepdim=True).expand_as(at.state.expression)
    return shared, at.state.replace(expression=expression)


def shows_one(own: Mapping[str, TermReport], shared: Mapping[str, TermReport], views: int) -> bool:
    """Whether the evidence does not mind, from the terms of the solutions with own and shared expressions."""

    def cost(terms: Mapping[str, TermReport], role: str) -> float:
        return sum(t.value for name, t in terms.items() if find(name).role == role)

    landmarks, matches = (cost(shared, role) - cost(own, role) for role in ("landmark", "flow"))
    most = MATCHES * cost(own, "flow") / views
    return landmarks < LANDMARKS * (views - 1) and matches < most * (views - 1)
