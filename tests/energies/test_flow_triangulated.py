from dataclasses import replace

import pytest
import torch
from derivatives import check_everything
from helpers import observe
from test_flow_correspondence import MODEL, energy_with, moved, perfect_matches, truth

from fitkit.energies.flow_correspondence import FlowImages, FlowOptions
from fitkit.energies.flow_triangulated import TriangulatedFlow, TriangulationOptions
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.errors import InputError
from fitkit.scene.camera import KINDS
from fitkit.scene.layout import ParameterLayout
from fitkit.scene.projection import pixel_rays, project_head_points, project_points
from fitkit.solvers.levenberg_marquardt import LMOptions, levenberg_marquardt


def triangulated(state, at, options=TriangulationOptions(), matches=None, sigma=1.3):
    """The energy with matches of the model's own points seen by `state`, triangulated at the state `at`."""
    energy = TriangulatedFlow(energy_with(matches or perfect_matches(state), sigma), options)
    return replace(energy, points=energy._triangulate(energy.matcher, at))


@pytest.mark.parametrize("kind", KINDS)
def test_rays_pass_through_their_points(kind):
    state = truth(kind)
    basis = MODEL.at_vertices(torch.arange(0, MODEL.num_vertices, 7))
    seen = project_points(basis, state)
    origin, direction = pixel_rays(seen.pixels, state, torch.arange(3))
    gap = torch.linalg.cross(seen.head - origin, direction).norm(dim=-1) / direction.norm(dim=-1)
    assert float(gap.max()) < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_the_points_lie_on_the_rays_of_both_pixels_whatever_the_shape(kind):
    state = truth(kind)
    state = state.replace(expression=state.expression[:1].expand(3, -1))
    energy = triangulated(
        state, state.replace(identity=state.identity * 0.3), TriangulationOptions(max_gap=1e-3)
    )
    m, target = energy.matcher.matches, energy.points.target
    assert bool(energy.points.valid.all())
    for view, pixel in ((m.view_a, m.pixel_a), (m.view_b, m.pixel_b)):
        torch.testing.assert_close(project_head_points(target, state, view).pixels, pixel, rtol=0, atol=1e-6)


def test_the_truth_has_no_residual_under_changing_expressions():
    state = truth()
    assert float((state.expression[0] - state.expression[1]).abs().max()) > 0.1
    assert float(triangulated(state, state).residuals(state, None).value.abs().max()) < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives(kind):
    state = truth(kind)
    at = moved(state)
    energy = triangulated(state, at, TriangulationOptions(max_gap=1e9))
    valid = energy.points.valid.clone()
    valid[1, 4] = valid[3, :3] = False
    check_everything(replace(energy, points=replace(energy.points, valid=valid)), at, observe(MODEL, state))


def test_value_is_the_distance_along_the_normal_over_its_sigma():
    state = truth()
    at = moved(state)
    energy = triangulated(state, at, TriangulationOptions(max_gap=1e9))
    p = energy.points
    surface = (
        p.weights[..., None] * at.vertices(MODEL)[energy.matcher.matches.view_a[:, None, None], p.corner]
    ).sum(2)
    expected = ((surface - p.target) * p.normal).sum(-1) / p.sigma
    torch.testing.assert_close(energy.residuals(at, None).value[..., 0], expected)
    # Twice the noise of a pixel is twice the noise of a point.
    torch.testing.assert_close(
        triangulated(state, at, TriangulationOptions(max_gap=1e9), sigma=2.6).points.sigma, 2 * p.sigma
    )


def test_sigma_is_that_of_noisy_matches():
    """Matches whose end in view b is off by sigma px each way: nowhere does the true shape miss by more than
    it states, and by not much less, since it counts the pixel of view a as well."""
    state = truth()
    m, generator, draws = perfect_matches(state), torch.Generator().manual_seed(3), []
    for _ in range(60):
        noise = 0.5 * torch.randn(m.pixel_b.shape, generator=generator, dtype=torch.float64)
        energy = triangulated(
            state, state, TriangulationOptions(max_gap=1e9), replace(m, pixel_b=m.pixel_b + noise), sigma=0.5
        )
        draws.append(energy.residuals(state, None).value[..., 0])
    spread = torch.stack(draws).square().mean(0).sqrt()
    assert 0.5 < float(spread.median()) and float(spread.max()) < 1.2  # 60 draws tell a spread to 10 %


def test_little_parallax_and_rays_that_miss_each_other_are_refused():
    state = truth()
    assert bool(triangulated(state, state).points.valid.all())
    assert not bool(triangulated(state, state, TriangulationOptions(min_parallax_deg=80)).points.valid.any())
    m = perfect_matches(state)
    # Across the epipolar lines of a head that turns to the side.
    astray = replace(m, pixel_b=m.pixel_b + torch.tensor([0.0, 30.0]))
    assert float(triangulated(state, state, matches=astray).points.valid.float().mean()) < 0.2


def test_shape_is_found_again_at_known_poses():
    state = truth()
    same = state.replace(expression=torch.zeros_like(state.expression))
    x, layout = same.replace(identity=same.identity * 0), ParameterLayout.of(same, ("identity",))
    matches = perfect_matches(same)
    for _ in range(6):
        problem = LeastSquaresProblem(
            Objective([Term(triangulated(same, x, TriangulationOptions(max_gap=1e9), matches), 1000.0)]),
            None,
            layout,
        )
        x = levenberg_marquardt(problem, x, LMOptions(10)).x
    assert float((x.vertices(MODEL) - same.vertices(MODEL)).norm(dim=-1).mean()) < 0.05 * float(
        (same.replace(identity=same.identity * 0).vertices(MODEL) - same.vertices(MODEL)).norm(dim=-1).mean()
    )


def test_hold_keeps_the_first_points():
    state = truth()
    energy = triangulated(state, state, TriangulationOptions(hold=True))
    assert energy.freeze(moved(state), None) is energy


def test_one_view_has_no_matches():
    state = truth()
    one = state.replace(
        subject=state.subject[:1],
        expression=state.expression[:1],
        pose=state.pose.select([0]),
        camera=state.camera.select([0]),
    )
    obs = observe(MODEL, state)
    matcher = replace(energy_with(None), photos=FlowImages.of(obs, FlowOptions()))
    with pytest.raises(
        InputError,
        match=r"energy 'flow_triangulated' compares views: expected at least 2 .*, got 1 view\(s\)",
    ):
        TriangulatedFlow(matcher, TriangulationOptions()).freeze(one, obs)
