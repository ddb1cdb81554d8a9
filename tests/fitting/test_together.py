"""Several people fitted side by side."""

import shutil
import time

import pytest
import torch
from helpers import rendered_subject

import fitkit
from fitkit.errors import FitError, FitkitError, InputError
from fitkit.fitting import together as side_by_side
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit, fit_many
from fitkit.fitting.together import Clock, Request, alone, together
from fitkit.solvers.levenberg_marquardt import LMOptions, SolverEnd, SolverResult

# Solved to the end, so that single precision does not decide where a solver stops.
SOLVED = [
    f"stages.{stage}.solver.{option}"
    for stage in ("pose", "shape", "landmarks")
    for option in ("min_decrease=1e-7", "max_iterations=60")
]


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Five people, two with one photo each and others with two to four."""
    folder, views = tmp_path_factory.mktemp("people"), (1, 2, 3, 4, 1)
    return [rendered_subject(folder / f"person{i}", n, 128, seed=i + 1) for i, n in enumerate(views)]


def test_many_people_are_fitted_as_each_alone(people, monkeypatch):
    joined, join = [], side_by_side.join_problems
    monkeypatch.setattr(side_by_side, "join_problems", lambda p, x: joined.append(len(p)) or join(p, x))
    recipe = load_recipe("landmarks", SOLVED)
    many = fitkit.fit_many(people, recipe=recipe)
    assert max(joined) == 2
    for place, result in zip(people, many):
        one = fit(place, recipe=recipe)
        assert result.status == one.status and result.report.num_views == one.report.num_views
        assert float((result.neutral - one.neutral).norm(dim=-1).max()) < 0.01
        assert float((result.vertices - one.vertices).norm(dim=-1).max()) < 0.01
        assert [s.name for s in result.report.stages] == [s.name for s in one.report.stages]
        bars = [r.report.error_bars.face_median_mm for r in (result, one)]
        assert bars[0] == pytest.approx(bars[1], rel=0.05)  # nearly singular, in single precision


@pytest.mark.slow
def test_photos_are_matched_person_by_person(people):
    two = [people[2], people[2]]
    many = fit_many(two, overrides=["detail.enabled=false", *SOLVED])
    for place, result in zip(two, many):
        one = fit(place, overrides=["detail.enabled=false", *SOLVED])
        # Tests decide which matches count; where one is at its limit, rounding tips it.
        assert float((result.neutral - one.neutral).norm(dim=-1).max()) < 0.5
        assert result.status == one.status
        assert [s.name for s in result.report.stages] == [s.name for s in one.report.stages]


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
        return [SolverResult(f"of {r.problem}", (SolverEnd("converged", (1.0,), "", 1),)) for r in requests]

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
        return [SolverResult(None, ())] * len(requests)

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


def test_a_person_who_took_no_step_keeps_what_was_not_known(monkeypatch):
    ends = (SolverEnd("converged", (1.0,), "", 1), SolverEnd("converged", (1.0, 0.5), "", 2))

    class Found:
        def select_people(self, people):
            return f"moved {people}"

    monkeypatch.setattr(side_by_side, "join_problems", lambda problems, xs: (None, None))
    monkeypatch.setattr(side_by_side, "levenberg_marquardt", lambda *args: SolverResult(Found(), ends))
    requests = [Request(None, f"start {i}", LMOptions(), 0, Clock()) for i in (0, 1)]
    assert [r.x for r in side_by_side._solve(requests)] == ["start 0", "moved [1]"]


def test_what_cannot_be_joined_is_solved_one_by_one(monkeypatch):
    monkeypatch.setattr(side_by_side, "join_problems", lambda problems, xs: None)
    monkeypatch.setattr(side_by_side, "levenberg_marquardt", lambda problem, x, options: (problem, x))
    requests = [Request(f"problem {i}", torch.tensor(i), LMOptions(), 0, Clock()) for i in (0, 1)]
    assert side_by_side._solve(requests) == [("problem 0", 0), ("problem 1", 1)]
