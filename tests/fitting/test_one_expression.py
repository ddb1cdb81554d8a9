"""Photos that show one expression are found to do so, and then share it."""

from dataclasses import replace

import pytest
import torch
from helpers import tiny_model, tiny_result, tiny_state

from fitkit.energies.objective import TermReport
from fitkit.fitting.one_expression import shows_one
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit_observed
from fitkit.fitting.stages import StageRunner
from fitkit.io.subject import Subject

VIEWS = 3
FOUND = "one expression for all photos"


def fitted(expression, *overrides, views=VIEWS, moments=None):
    """A fit of rendered photos whose expressions are `expression` [VIEWS, K]; of the first `views`."""
    model = tiny_model()
    state = tiny_state(model, VIEWS, 300).replace(expression=expression)
    spots = 0.3 + 0.5 * torch.rand(model.num_vertices, 3, generator=torch.Generator().manual_seed(0))
    truth = tiny_result(views=VIEWS, size=300, model=model, state=state, colors=spots)
    marks = replace(truth.landmarks, sigma=torch.full((VIEWS, 68), torch.nan)).select(range(views))
    photos = truth.subject.views[:views]
    if moments is not None:
        photos = tuple(v.replace(moment=m) for v, m in zip(photos, moments))
    subject = Subject("test", photos)
    result = fit_observed(subject, marks, model, load_recipe("multiview", overrides))
    return result, [message for s in result.report.stages for message in s.messages]


def expressions(same):
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


@pytest.mark.parametrize(
    ("overrides", "given"),
    [
        (["stages.flow.find_one_expression=no"], {}),
        ([], {"views": 2}),
        ([], {"moments": "abc"}),
        (["expression.shared=yes"], {}),
        (["stages.flow.free=[pose,expression]"], {}),
    ],
    ids=["not asked", "two photos", "moments are stated", "shared anyway", "identity held"],
)
def test_it_is_not_always_asked(overrides, given):
    result, messages = fitted(expressions(same=True), *overrides, **given)
    assert not any(m.startswith(FOUND) for m in messages)
    assert (result.state.expression.std(0).max() > 1e-4) == ("expression.shared=yes" not in overrides)


def test_the_report_is_of_the_shared_solution():
    recipe = ["stages.fine.min_views=9", "detail.enabled=no"]
    result, messages = fitted(expressions(same=True), *recipe)
    own, _ = fitted(expressions(same=True), *recipe, "stages.flow.find_one_expression=no")
    assert messages[-1].startswith(FOUND)
    costs = [r.report.stages[-1].terms["flow_corr"]["cost"] for r in (result, own)]
    assert costs[0] > costs[1] > 0


@pytest.mark.parametrize(
    ("landmarks", "matches", "one"),
    [(11.5, 780.0, True), (12.5, 700.0, False), (8.0, 790.0, False), (-5.0, -50.0, True)],
)
def test_what_the_evidence_may_lose(landmarks, matches, one):
    """Four photos: 3 x 4 in landmarks, 3 x 1.75 quarters of the cost of the matches, 600."""

    def terms(lmk, flow, prior):
        costs = {"lmk2d": lmk, "flow_corr": flow, "expression_prior": prior}
        return {name: TermReport(cost, 1, 0.0) for name, cost in costs.items()}

    own = terms(80.0, 600.0, 5.0)
    shared = terms(80.0 + landmarks, 600.0 + matches, 500.0)
    assert shows_one(own, shared, 4) == one


@pytest.mark.parametrize(
    ("given", "alike"), [({"views": 2}, [0, 0]), ({"views": 2, "moments": "ab"}, None), ({}, None)]
)
def test_two_photos_may_show_one_expression_for_all_that_is_known(given, alike, monkeypatch):
    made, context = [], StageRunner.context
    monkeypatch.setattr(StageRunner, "context", lambda self, at: made.append(context(self, at)) or made[-1])
    fitted(expressions(same=False), "detail.enabled=no", **given)
    found = [None if c.expression_alike is None else c.expression_alike.tolist() for c in made]
    assert len(found) > 2 and all(f == alike for f in found)


def test_landmarks_alone_do_not_tell():
    terms = {"lmk2d": TermReport(80.0, 1, 0.0), "flow_corr": TermReport(0.0, 0, 0.0)}
    assert not shows_one(terms, terms, 4)
