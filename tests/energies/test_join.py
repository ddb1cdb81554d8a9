"""Problems of several people side by side: each gets the same bits as alone."""

from dataclasses import replace

import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.energies.flow_correspondence import FlowCorrespondence, FlowOptions, Matches
from fitkit.energies.join import JoinedProblems, alike
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
from fitkit.solvers.levenberg_marquardt import (
    LMOptions,
    levenberg_marquardt,
    levenberg_marquardt_side_by_side,
)
from fitkit.tensors import move

# As many shapes as a real model has: rounding depends on the sizes of matrices.
MODEL = tiny_model(num_identity=90, dtype=torch.float64)
SINGLE = MODEL.to(dtype=torch.float32)
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
    start = truth.replace(identity=0.3 * truth.identity, expression=0.5 * truth.expression)
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


def in_single(problem, x):
    """A person's problem in single precision, as fits are."""
    terms = [
        replace(t, energy=move(replace_model(t.energy), dtype=torch.float32)) for t in problem.objective.terms
    ]
    seen = move(problem.observations, dtype=torch.float32)
    return LeastSquaresProblem(Objective(terms), seen, problem.layout), x.to(dtype=torch.float32)


def replace_model(energy):
    return replace(energy, model=SINGLE) if hasattr(energy, "model") else energy


PEOPLE = {
    "one to four photos": [person(0, 3), person(1, 2, size=128), person(2, 1), person(3, 4)],
    "flow": [person(0, 3, True), person(1, 2, True)],
    "one photo": [person(seed, 1) for seed in (2, 3, 4)],
}
PEOPLE |= {f"{name}, single precision": [in_single(*p) for p in people] for name, people in PEOPLE.items()}


@pytest.fixture(params=PEOPLE)
def people(request):
    problems, xs = zip(*PEOPLE[request.param])
    return problems, xs, JoinedProblems(problems, xs)


def assert_same_system(system, alone):
    for name in ("shared", "cross", "own", "gradient", "coupling"):
        values = getattr(system, name), getattr(alone, name)
        assert values == (None, None) or torch.equal(*values), name


def test_costs_and_normal_equations_have_the_bits_of_each_person_alone(people):
    problems, xs, joined = people
    everyone = range(len(xs))
    assert joined.costs(everyone, xs) == [float(p.cost(x)) for p, x in zip(problems, xs)]
    for system, problem, x in zip(joined.systems(everyone, xs), problems, xs):
        assert_same_system(system, problem.linearize(x))


def test_some_people_have_the_same_bits_too(people):
    problems, xs, joined = people
    last = len(xs) - 1
    moved = [x.replace(identity=x.identity + 0.1) for x in xs]
    joined.costs(range(len(xs)), moved)
    for some in ([0, last], [last], list(range(len(xs) - 1))):
        at = [xs[i] for i in some]
        assert joined.costs(some, at) == [float(problems[i].cost(xs[i])) for i in some]
        for i, system in zip(some, joined.systems(some, at)):
            assert_same_system(system, problems[i].linearize(xs[i]))


def test_the_solutions_have_the_bits_of_each_person_alone(people):
    problems, xs, joined = people
    options = LMOptions(8)
    for result, problem, x in zip(levenberg_marquardt_side_by_side(joined, xs, options), problems, xs):
        alone = levenberg_marquardt(problem, x, options)
        assert result.message == alone.message and result.cost_history == alone.cost_history
        for name in ("identity", "expression", "landmark_offset"):
            assert torch.equal(getattr(result.x, name), getattr(alone.x, name))
        assert torch.equal(result.x.pose.translation, alone.x.pose.translation)


def test_points_and_motion_do_not_depend_on_who_else_is_there():
    problems, xs = zip(*PEOPLE["one to four photos, single precision"])
    each = [p.objective.terms[0].energy for p in problems]
    # One of them by the model's own jaw points, which other products compute.
    each[1] = replace(each[1], jaw_vertices=torch.full_like(each[1].jaw_vertices, -1))
    joined = each[0].join(each, [x.num_views for x in xs])
    together = [torch.cat(parts) for parts in zip(*(x.coefficients()[:2] for x in xs))]
    points, motion = joined._points((*together, None)), joined._motion((*together, None))
    by_head = normal(len(points), 68, 2, 3).float()
    columns, first = motion.columns(by_head), 0
    for energy, x in zip(each, xs):
        own = slice(first, first + x.num_views)
        assert torch.equal(points[own], energy._points(x.coefficients()))
        alone = energy._motion(x.coefficients()).columns(by_head[own].clone())
        for name in ("identity", "expression"):
            assert torch.equal(columns[name][own], alone[name])
        first += x.num_views


def test_a_pose_does_not_depend_on_who_else_is_there():
    poses = [x.pose for _, x in PEOPLE["one to four photos, single precision"]]
    points = [60 * normal(len(pose.rotation), 68, 3, seed=i).float() for i, pose in enumerate(poses)]
    together = type(poses[0]).join(poses).apply(torch.cat(points))
    assert torch.equal(together, torch.cat([pose.apply(own) for pose, own in zip(poses, points)]))


@pytest.mark.parametrize("name", ["cauchy", "charb", "ddf"])
def test_kernels_with_logarithms_and_powers_are_for_each_person(name):
    """Their last bit may depend on how many numbers a function is given."""
    people = []
    for problem, x in PEOPLE["one to four photos, single precision"]:
        terms = [replace(t, kernel=Kernel(name, 2.0)) for t in problem.objective.terms]
        people.append((LeastSquaresProblem(Objective(terms), problem.observations, problem.layout), x))
    problems, xs = zip(*people)
    joined = JoinedProblems(problems, xs)
    assert joined.costs(range(4), xs) == [float(p.cost(x)) for p, x in zip(problems, xs)]
    (group,) = joined._groups
    assert group.energies == [None] * len(group.terms)


def test_a_camera_inside_the_head_is_of_one_person():
    problems, xs = zip(*PEOPLE["flow"])
    near = xs[1].pose.translation.clone()
    near[1, 2] = 50
    inside = xs[1].replace(pose=replace(xs[1].pose, translation=near))
    first, second = JoinedProblems(problems, xs).costs([0, 1], (xs[0], inside))
    assert second == torch.inf and first == float(problems[0].cost(xs[0]))


def test_offsets_of_the_landmarks_are_kept_beside_people_without():
    problems, xs = zip(*PEOPLE["flow"])
    known = xs[1].replace(landmark_offset=normal(1, 68, 3))
    costs = JoinedProblems(problems, xs).costs([0, 1], (xs[0], known))
    assert costs == [float(problems[0].cost(xs[0])), float(problems[1].cost(known))]
    assert costs[1] > float(problems[1].cost(xs[1]))


def test_what_is_not_alike_is_told_apart():
    (problem, x), (other, y) = person(0, 2), person(1, 2)
    # Who shares an expression, and how many photos there are, makes no difference.
    assert alike(problem, x) == alike(other, y) == alike(*person(2, 1))
    terms = problem.objective.terms
    heavier = Objective([replace(terms[0], weight=2.0), *terms[1:]])
    assert alike(LeastSquaresProblem(heavier, None, other.layout), y) != alike(problem, x)
    fewer = Objective(terms[1:])
    assert alike(LeastSquaresProblem(fewer, None, other.layout), y) != alike(problem, x)
    lit = y.replace(illumination=y.illumination.expand(-1, -1, 3))
    assert alike(other, lit) != alike(problem, x)


@pytest.mark.parametrize("change", [{"points": "mfnet"}, {"sigma_negative": 0.9}], ids=["points", "sigma"])
def test_energies_of_other_options_are_not_joined(change):
    def changed(energy):
        there = {name: value for name, value in change.items() if hasattr(energy, name)}
        return replace(energy, **there) if there else energy

    (problem, x), (other, y) = person(0, 2), person(1, 2)
    terms = [
        t if t.energy.name == "identity_prior" else replace(t, energy=changed(t.energy))
        for t in other.objective.terms
    ]
    other = LeastSquaresProblem(Objective(terms), other.observations, other.layout)
    joined = JoinedProblems([problem, other], [x, y])
    assert joined.costs([0, 1], [x, y]) == [float(problem.cost(x)), float(other.cost(y))]
    names = {"points": ["lmk2d", "lmk2d_eye", "lmk2d_lip"], "sigma_negative": ["expression_prior"]}
    for terms, energy in zip(joined._groups[0].terms, joined._groups[0].energies):
        if terms[0].energy.name in names[next(iter(change))]:
            assert energy is None


def test_an_energy_that_cannot_be_of_several_people():
    (problem, x), (other, y) = person(0, 2), person(1, 2)
    both = []
    for p, state in ((problem, x), (other, y)):
        terms = [*p.objective.terms, Term(LightPrior(state.illumination + 0.1))]
        both.append(LeastSquaresProblem(Objective(terms), p.observations, p.layout))
    joined = JoinedProblems(both, [x, y])
    assert joined.costs([0, 1], [x, y]) == [float(p.cost(state)) for p, state in zip(both, (x, y))]
    joint = [energy is not None for energy in joined._groups[0].energies]
    assert joint[-1] is False and joint[:5] == [True] * 5
