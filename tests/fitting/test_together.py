"""Several people fitted side by side."""

import shutil
import time

import pytest
import torch
from helpers import rendered_subject

import fitkit
from fitkit.energies.join import JoinedProblems
from fitkit.errors import FitError, FitkitError, InputError
from fitkit.fitting import together as side_by_side
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit, fit_many
from fitkit.fitting.together import Clock, Request, alone, together
from fitkit.solvers.levenberg_marquardt import LMOptions, SolverResult


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Three people with one to three photos."""
    folder, views = tmp_path_factory.mktemp("people"), (1, 2, 3)
    return [rendered_subject(folder / f"person{i}", n, 128, seed=i + 1) for i, n in enumerate(views)]


def assert_the_same(results, alone):
    """The same bits: a fit goes elsewhere when a last decimal is another one."""
    for result, one in zip(results, alone):
        for name in ("neutral", "vertices", "identity_covariance", "displacement"):
            values = getattr(result, name), getattr(one, name)
            assert values == (None, None) or torch.equal(*values), name
        states = result.state, one.state
        for name in ("identity", "expression", "landmark_offset"):
            assert torch.equal(*(getattr(state, name) for state in states)), name
        assert torch.equal(*(state.pose.rotation for state in states))
        assert torch.equal(*(state.camera.focal for state in states))
        assert result.status == one.status
        told = [[(s.name, s.status, s.messages, s.terms) for s in r.report.stages] for r in (result, one)]
        assert told[0] == told[1]


def test_many_people_are_fitted_as_each_alone(people, monkeypatch):
    groups = []

    class Joined(JoinedProblems):
        def __init__(self, problems, xs):
            groups.append(len(problems))
            super().__init__(problems, xs)

    monkeypatch.setattr(side_by_side, "JoinedProblems", Joined)
    recipe = load_recipe("landmarks")
    many = fitkit.fit_many(people, recipe=recipe)
    assert max(groups) == len(people)
    assert_the_same(many, [fit(person, recipe=recipe) for person in people])


def test_people_on_another_device_have_one_face_model(people, monkeypatch):
    """What is on 'cpu:0' is a copy of what is on 'cpu', as on a GPU."""
    groups = []
    monkeypatch.setattr(side_by_side, "JoinedProblems", lambda p, x: groups.append(p) or JoinedProblems(p, x))
    short = ["stages=[{name: pose, free: [pose], energies: {lmk2d: {}}, solver: {max_iterations: 1}}]"]
    results = fit_many(people[:2], recipe="landmarks", overrides=short, device="cpu:0")
    models = {id(p.objective.terms[0].energy.model) for problems in groups for p in problems}
    assert len(models) == 1 and id(results[0].model) not in models


@pytest.mark.slow
def test_photos_are_matched_as_for_each_alone(people):
    few = [f"stages.{stage}.solver.max_iterations=3" for stage in ("shape", "landmarks", "flow", "fine")]
    options = [*few, "stages.fine.solver.refresh=1", "detail.enabled=false"]
    many = fit_many(people[1:], overrides=options)
    assert_the_same(many, [fit(person, overrides=options) for person in people[1:]])


def test_a_person_with_bad_input_fails_alone(people, tmp_path):
    shutil.copytree(people[0], tmp_path / "broken")
    (tmp_path / "broken" / "view0.png").write_bytes(b"no picture")
    seen = []
    given = [tmp_path / "broken", people[0], tmp_path / "nobody"]
    recipe = load_recipe("landmarks")
    broken, good, nobody = fit_many(
        given, recipe=recipe, batch_size=2, progress=lambda text, share: seen.append(round(share, 3))
    )
    assert isinstance(broken, FitkitError) and "view0.png" in str(broken)
    assert isinstance(nobody, FitkitError) and "nobody" in str(nobody)
    assert good.status == fit(people[0], recipe=recipe).status
    assert seen == [0.0, 0.667, 1.0]


def test_refusals(people):
    with pytest.raises(InputError, match="batch_size: expected at least 1, got 0"):
        fit_many(people, batch_size=0)
    with pytest.raises(InputError, match="device 'nowhere': cannot be used here"):
        fit_many(people, device="nowhere")
    assert fit_many([]) == []


# ---- what waits for what ----


def asking(name, orders, told, error=None):
    """A fit that asks for a solution at each of `orders`."""
    for order in orders:
        answer = yield Request(name, None, LMOptions(), order, Clock())
        told.append((name, order, answer.x))
    if error:
        raise error
    return name


@pytest.fixture
def solved(monkeypatch):
    """What is solved at once, in turn; nothing is solved."""
    calls = []

    def solve(requests):
        calls.append([r.problem for r in requests])
        return [SolverResult(f"of {r.problem}", "converged", (1.0,), "", 1) for r in requests]

    monkeypatch.setattr(side_by_side, "_solve", solve)
    monkeypatch.setattr(side_by_side, "alike", lambda problem, x: len(problem))
    return calls


def test_who_is_behind_goes_first_and_all_meet_again(solved):
    told = []
    fits = [asking("a", [0, 1, 2, 3], told), asking("b", [1, 2, 3], told), asking("cc", [0, 3], told)]
    assert together(fits) == ["a", "b", "cc"]
    assert solved == [["a"], ["cc"], ["b", "a"], ["b", "a"], ["cc"], ["b", "a"]]
    assert all(answer == f"of {name}" for name, _, answer in told)


def test_an_error_ends_one_fit(solved):
    error = FitError("no face")
    assert together([asking("a", [0], [], error), asking("b", [0, 1], [])]) == [error, "b"]
    with pytest.raises(FitError, match="no face"):
        alone(asking("a", [0], [], error))
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is none of the input
        together([asking("a", [0], [], ZeroDivisionError())])


def test_time_that_others_take_does_not_count(monkeypatch):
    def slow(requests):
        time.sleep(0.2)
        return [SolverResult(None, "converged", (1.0,), "", 1)] * len(requests)

    def fit_of(rest):
        clock = Clock()
        began = clock.wall()
        yield Request("a", None, LMOptions(), 0, clock)
        time.sleep(rest)
        return clock.wall() - began

    monkeypatch.setattr(side_by_side, "_solve", slow)
    monkeypatch.setattr(side_by_side, "alike", lambda problem, x: 0)
    first, second = together([fit_of(0.3), fit_of(0.0)])
    # Half of what was solved together, and their own time.
    assert 0.38 < first < 0.49 and 0.08 < second < 0.19
