"""Problems of several people as one."""

from dataclasses import replace

import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.energies.flow_correspondence import FlowCorrespondence, FlowOptions, Matches
from fitkit.energies.join import alike, join_problems
from fitkit.energies.kernels import Kernel
from fitkit.energies.landmarks import LandmarkReprojection, eye_offsets, lip_offsets
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.energies.priors import (
    ExpressionPrior,
    FocalPrior,
    IdentityPrior,
    LandmarkOffsetPrior,
    LightPrior,
    SizePrior,
)
from fitkit.scene.layout import BLOCKS, ParameterLayout
from fitkit.scene.state import SceneState
from fitkit.solvers.levenberg_marquardt import LMOptions, levenberg_marquardt

MODEL = tiny_model(dtype=torch.float64)
FREE = tuple(name for name in BLOCKS if name != "illumination")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flow(state, sigma):
    """Matches between the first two views, 0.3 px off at the truth: the solution is determined."""
    triangle = torch.randint(len(MODEL.triangles), (2, 20), generator=torch.Generator().manual_seed(1))
    view_a, view_b = torch.tensor([0, 1]), torch.tensor([1, 0])
    center = state.vertices(MODEL)[view_a[:, None, None], MODEL.triangles[triangle]].mean(2)
    pixel_a, pixel_b = (
        state.camera.select(v).project(state.pose.select(v).apply(center))[0] for v in (view_a, view_b)
    )
    one = torch.ones(triangle.shape, dtype=torch.float64)
    found = Matches(view_a, view_b, pixel_a, pixel_b + 0.3, triangle, one, one > 0)
    return FlowCorrespondence(MODEL, FlowOptions(hold=True), None, sigma, None, found)


def person(seed, views, matches=False, size=160):
    """A frozen problem and its start; one focal length for all views of those who have three."""
    truth = tiny_state(MODEL, views, size, seed)
    seen = observe(MODEL, truth)
    seen = replace(seen, images=torch.zeros(views, 3, size, size))
    start = truth.replace(identity=torch.zeros_like(truth.identity), expression=0.5 * truth.expression)
    camera = torch.zeros(views) if views == 3 else torch.arange(views)
    sigma = 1.5 + seed + 0.1 * normal(views, 68, seed=seed).clamp(-3, 3)
    owner = torch.zeros(views, dtype=torch.int64) if seed == 1 else None
    focal = truth.camera.focal * 1.1
    each = torch.full((views,), 0.1 * (1 + seed), dtype=torch.float64)
    terms = [
        Term(LandmarkReprojection(MODEL, sigma, "outline"), 1.0, Kernel("huber", 3.0)),
        Term(eye_offsets(MODEL, sigma), 0.5),
        Term(lip_offsets(MODEL, sigma), 0.5),
        Term(LandmarkOffsetPrior(torch.full((68,), 1.0 + seed, dtype=torch.float64))),
        Term(IdentityPrior()),
        Term(SizePrior.of(MODEL, 0.01)),
        Term(ExpressionPrior(0.2, 0.07, owner, 0.3, shared_weight=1.0), 10.0),
        Term(FocalPrior(focal, each, torch.arange(views) == 0 if views == 3 else each > 0)),
    ]
    terms += [Term(flow(truth, 0.5 + seed), 50.0, Kernel("gm", 4.0))] if matches else []
    owners = {"focal": camera} if owner is None else {"focal": camera, "expression": owner}
    layout = ParameterLayout.of(start, FREE, owners)
    return LeastSquaresProblem(Objective(terms).freeze(start, seen), seen, layout), start


PEOPLE = {
    "one to three photos": [person(0, 3), person(1, 2, size=128), person(2, 1)],
    "flow": [person(0, 3, True), person(1, 2, True)],
}


@pytest.mark.parametrize("name", PEOPLE)
def test_cost_and_normal_equations_are_those_of_each_person(name):
    problems, xs = zip(*PEOPLE[name])
    joined, x = join_problems(problems, xs)
    expected = torch.cat([p.cost(x) for p, x in zip(problems, xs)])
    torch.testing.assert_close(joined.cost(x), expected)
    torch.testing.assert_close(joined.objective.cost(x, joined.observations)[0], expected)
    system, first = joined.linearize(x), 0
    H, gradient = system.dense(), system.gradient
    for problem, start in zip(problems, xs):
        alone = problem.linearize(start)
        rows = joined.layout.columns(joined.layout.order)[first : first + start.num_views]
        mine = problem.layout.columns(joined.layout.order)
        first += start.num_views
        torch.testing.assert_close(gradient[rows], alone.gradient[mine])
        torch.testing.assert_close(
            H[rows[:, :, None, None], rows], alone.dense()[mine[:, :, None, None], mine]
        )
    assert float(H.square().sum()) == pytest.approx(
        sum(float(p.linearize(x).dense().square().sum()) for p, x in zip(problems, xs))
    )


@pytest.mark.parametrize("name", PEOPLE)
def test_the_solutions_are_those_of_each_person(name):
    problems, xs = zip(*PEOPLE[name])
    options = LMOptions(40, min_decrease=1e-7)
    found = levenberg_marquardt(*join_problems(problems, xs), options)
    for i, (problem, x) in enumerate(zip(problems, xs)):
        alone = levenberg_marquardt(problem, x, options)
        assert found.people[i].message == alone.message
        mine = found.x.select_people([i])
        torch.testing.assert_close(mine.neutral(MODEL), alone.x.neutral(MODEL), rtol=0, atol=1e-6)
        torch.testing.assert_close(mine.landmark_offset, alone.x.landmark_offset, rtol=0, atol=1e-6)


class Differentiated:
    """An energy without the derivatives that it has by hand."""

    def __init__(self, energy):
        self.energy, self.name, self.reduction = energy, energy.name, energy.reduction

    def residuals(self, state, observations):
        return self.energy.residuals(state, observations)


@pytest.mark.parametrize("name", PEOPLE)
def test_automatic_derivatives_are_of_each_person_too(name):
    joined, x = join_problems(*zip(*PEOPLE[name]))
    terms = [replace(t, energy=Differentiated(t.energy)) for t in joined.objective.terms]
    automatic = LeastSquaresProblem(Objective(terms), joined.observations, joined.layout).linearize(x)
    system = joined.linearize(x)
    torch.testing.assert_close(automatic.gradient, system.gradient)
    torch.testing.assert_close(automatic.dense(), system.dense())


def test_a_camera_inside_the_head_is_of_one_person():
    problems, xs = zip(*PEOPLE["flow"])
    near = xs[1].pose.translation.clone()
    near[1, 2] = 50
    inside = xs[1].replace(pose=replace(xs[1].pose, translation=near))
    joined, x = join_problems(problems, (xs[0], inside))
    cost = joined.cost(x)
    assert bool(torch.isinf(cost[1])) and float(cost[0]) == pytest.approx(float(problems[0].cost(xs[0])))


def test_offsets_of_the_landmarks_are_kept_beside_people_without():
    problems, xs = zip(*PEOPLE["flow"])
    known = xs[1].replace(landmark_offset=normal(1, 68, 3))
    _, x = join_problems(problems, (xs[0], known))
    assert torch.equal(x.landmark_offset, torch.cat([torch.zeros(1, 68, 3), known.landmark_offset]))


def test_what_is_not_alike_is_told_apart():
    (problem, x), (other, y) = person(0, 2), person(1, 2)
    # The second person has one expression, the first one for each photo.
    assert alike(problem, x) != alike(other, y)
    other, y = person(2, 2)
    assert alike(problem, x) == alike(other, y) != alike(*person(2, 1))
    terms = problem.objective.terms
    heavier = Objective([replace(terms[0], weight=2.0), *terms[1:]])
    fewer = ParameterLayout.of(x, ("identity", "pose"))
    assert alike(LeastSquaresProblem(heavier, None, other.layout), y) != alike(problem, x)
    assert alike(LeastSquaresProblem(other.objective, None, fewer), y) != alike(problem, x)
    lit = y.replace(illumination=y.illumination.expand(-1, -1, 3))
    assert alike(other, lit) != alike(problem, x)


@pytest.mark.parametrize(
    "change", [{"sigma": 0.9}, {"points": "mfnet"}, {"sigma_negative": 0.9}], ids=lambda c: next(iter(c))
)
def test_energies_of_other_options_are_not_joined(change):
    def changed(energy):
        there = {name: value for name, value in change.items() if hasattr(energy, name)}
        return replace(energy, **there) if there else energy

    (problem, x), (other, y) = person(0, 2), person(1, 2)
    terms = [
        replace(t, energy=t.energy if t.energy.name == "identity_prior" else changed(t.energy))
        for t in other.objective.terms
    ]
    other = LeastSquaresProblem(Objective(terms), other.observations, other.layout)
    assert join_problems([problem, other], [x, y]) is None


def test_an_energy_that_cannot_be_of_several_people():
    (problem, x), (other, y) = person(0, 2), person(1, 2)
    both = []
    for p, state in ((problem, x), (other, y)):
        terms = [*p.objective.terms, Term(LightPrior(state.illumination))]
        both.append(LeastSquaresProblem(Objective(terms), p.observations, p.layout))
    assert join_problems(both, [x, y]) is None


def test_some_people_alone():
    problems, xs = zip(*PEOPLE["one to three photos"])
    joined, x = join_problems(problems, xs)
    some, at = joined.select(x, [2, 0])
    torch.testing.assert_close(some.cost(at), torch.cat([problems[2].cost(xs[2]), problems[0].cost(xs[0])]))
    one, at = joined.select(x, [1])
    assert one is problems[1] and torch.equal(at.expression, xs[1].expression)
    back = joined.join([x.select_people([i]) for i in range(3)])
    assert isinstance(back, SceneState) and torch.equal(back.expression, x.expression)
