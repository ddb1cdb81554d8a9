"""Photos that show one expression are found to do so, and then share it."""

from dataclasses import replace

import pytest
import torch
from helpers import tiny_model, tiny_result, tiny_state

from fitkit.energies.objective import TermReport
from fitkit.fitting.one_expression import shows_one
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit_observed

VIEWS = 3
FOUND = "one expression for all photos"


def fitted(expression, *overrides):
    """A fit of rendered photos whose expressions are `expression` [VIEWS, K]."""
    model = tiny_model()
    state = tiny_state(model, VIEWS, 300).replace(expression=expression)
    spots = 0.3 + 0.5 * torch.rand(model.num_vertices, 3, generator=torch.Generator().manual_seed(0))
    truth = tiny_result(views=VIEWS, size=300, model=model, state=state, colors=spots)
    marks = replace(truth.landmarks, sigma=torch.full((VIEWS, 68), torch.nan))
    result = fit_observed(truth.subject, marks, model, load_recipe("multiview", overrides))
    return result, [message for s in result.report.stages for message in s.messages]


def expressions(same, size=6):
    first = torch.tensor([[0.5, 0.0, 0.4, 0.0, 0.0, 0.0]])
    other = torch.tensor([[0.0, 0.6, 0.0, 0.0, 0.5, 0.0]])
    return torch.cat([first, first if same else other, first])


def test_photos_of_one_moment_share_their_expression():
    result, messages = fitted(expressions(same=True))
    assert any(m.startswith(FOUND) for m in messages)
    found = result.state.expression
    assert (found - found[:1]).abs().max() == 0
    assert (found[0] - expressions(same=True)[0]).abs().max() < 0.15


def test_photos_of_other_moments_keep_their_own():
    result, messages = fitted(expressions(same=False))
    assert not any(m.startswith(FOUND) for m in messages)
    found = result.state.expression
    assert found[0, 0] > 0.3 > 0.2 > found[1, 0] and found[1, 1] > 0.3 > 0.2 > found[0, 1]


def test_a_recipe_need_not_ask():
    result, messages = fitted(expressions(same=True), "stages.flow.find_one_expression=no")
    assert not any(m.startswith(FOUND) for m in messages)
    assert result.state.expression.std(0).max() > 1e-4


@pytest.mark.parametrize(
    ("landmarks", "matches", "one"),
    [(10.0, 400.0, True), (20.0, 400.0, False), (10.0, 500.0, False), (-5.0, -50.0, True)],
)
def test_what_the_evidence_may_lose(landmarks, matches, one):
    """Four photos: 3 x 2.5 in landmarks, 3 quarters of the cost of the matches."""

    def terms(lmk, flow, prior):
        costs = {"lmk2d": lmk, "flow_corr": flow, "expression_prior": prior}
        return {name: TermReport(cost, 1, 0.0) for name, cost in costs.items()}

    own = terms(80.0, 600.0, 5.0)
    shared = terms(80.0 + 0.5 * landmarks, 600.0 + matches, 500.0)
    assert shows_one(own, shared, 4) == one
    assert not shows_one(terms(80.0, 0.0, 5.0), terms(80.0, 0.0, 5.0), 4)  # landmarks alone do not tell
