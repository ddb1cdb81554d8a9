"""Error bars against brute force, Monte Carlo and what they must not depend on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_result, tiny_state

from fitkit.energies.base import Residuals
from fitkit.energies.flow_correspondence import FlowCorrespondence, FlowOptions, Matches
from fitkit.energies.kernels import Kernel
from fitkit.energies.landmarks import LandmarkReprojection
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.energies.priors import ExpressionPrior, FocalPrior, IdentityPrior, SizePrior
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit_observed
from fitkit.fitting.uncertainty import (
    ABSORBED,
    PATCHES,
    aligned_normal_rows,
    error_bars,
    identity_covariance,
    noise_variance,
    robust_scale,
    vertex_sigma,
)
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.normals import vertex_normals
from fitkit.models.calibration import Calibration, default_calibration
from fitkit.scene.layout import ParameterLayout
from fitkit.solvers.levenberg_marquardt import LMOptions, levenberg_marquardt

FREE = ("identity", "expression", "pose", "focal")
EXACT = Calibration(1.0, 0.0)


def problem(model, state, observations, sigma=1.0, shared_focal=False, extra=(), free=FREE):
    B = state.num_views
    groups = torch.zeros(B, dtype=torch.int64) if shared_focal else torch.arange(B)
    first = torch.ones(B, dtype=torch.bool)
    if shared_focal:
        first[1:] = False
    dtype = model.mean.dtype
    terms = [
        Term(LandmarkReprojection(model, torch.full((B, 68), sigma, dtype=dtype), "surface")),
        Term(IdentityPrior()),
        Term(ExpressionPrior(0.3, 0.3)),
        Term(FocalPrior(state.camera.focal.clone(), torch.full((B,), 0.1, dtype=dtype), first)),
        Term(SizePrior.of(model, 0.05)),
        *extra,
    ]
    return LeastSquaresProblem(
        Objective(terms).freeze(state, observations),
        observations,
        ParameterLayout.of(state, free, {"focal": groups}),
    )


def matches(model, state, pairs=((0, 1), (1, 0), (1, 2))):
    """A flow term with exact correspondences of the tiny person."""
    generator = torch.Generator().manual_seed(3)
    triangle = torch.randint(len(model.triangles), (len(pairs), 40), generator=generator)
    vertices = state.vertices(model)
    pixels = []
    for side in (0, 1):
        view = torch.tensor([p[side] for p in pairs])
        center = vertices[view[:, None, None], model.triangles[triangle]].mean(2)
        pixels.append(state.camera.select(view).project(state.pose.select(view).apply(center))[0])
    view_a, view_b = (torch.tensor([p[i] for p in pairs]) for i in (0, 1))
    one = torch.ones(triangle.shape, dtype=model.mean.dtype)
    found = Matches(view_a, view_b, *pixels, triangle, one, one > 0)
    return FlowCorrespondence(model, FlowOptions(hold=True), None, 0.5, None, found)


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64)


@pytest.mark.parametrize("shared_focal", [False, True])
@pytest.mark.parametrize("flow", [False, True])
def test_covariance_is_the_block_of_the_dense_inverse(model, shared_focal, flow):
    state = tiny_state(model, 3)
    extra = [Term(matches(model, state), 50.0, Kernel("gm", 3.0))] if flow else []
    p = problem(model, state, observe(model, state), shared_focal=shared_focal, extra=extra)
    got = identity_covariance(p, state, {})
    K = model.num_identity
    dense = p.linearize(state).dense()
    # A damping of 1e-9 of the diagonal.
    torch.testing.assert_close(got, torch.linalg.inv(dense)[:K, :K], rtol=1e-4, atol=1e-6)
    # with misstated noise: H^-1 (sum of c_k H_k) H^-1, all by brute force
    noise = {"lmk2d": 2.5, "flow_corr": 4.0}
    parts = sum(
        noise.get(t.energy.name, 1.0) * Objective([t]).linearize(state, p.observations, p.layout).dense()
        for t in p.objective.terms
    )
    wanted = (torch.linalg.inv(dense) @ parts @ torch.linalg.inv(dense))[:K, :K]
    torch.testing.assert_close(identity_covariance(p, state, noise), wanted, rtol=1e-4, atol=1e-6)


def test_many_views_by_conjugate_gradients(model, monkeypatch):
    state = tiny_state(model, 3)
    p = problem(model, state, observe(model, state), extra=[Term(matches(model, state), 50.0)])
    dense = identity_covariance(p, state, {"flow_corr": 2.0})
    from fitkit.solvers.arrow import ArrowSystem

    zeros = ArrowSystem.zeros

    def factored(*args, **kwargs):
        system = zeros(*args, **kwargs)
        system.dense_limit = 0
        return system

    monkeypatch.setattr(ArrowSystem, "zeros", staticmethod(factored))
    by_factors = identity_covariance(p, state, {"flow_corr": 2.0})
    # Iterations stop at 1e-3.
    torch.testing.assert_close(by_factors, dense, rtol=0, atol=2e-3 * float(dense.diagonal().max()))


@pytest.mark.slow
def test_sigma_agrees_with_refits_of_fresh_landmark_noise(model):
    """People drawn from the prior, landmarks with fresh noise: the error of the refit has the predicted
    size."""
    runs, sigma_px, B = 120, 1.5, 2
    generator = torch.Generator().manual_seed(0)
    base = tiny_state(model, B)
    errors, predicted = [], []
    for _ in range(runs):
        truth = base.replace(
            identity=torch.randn(1, model.num_identity, generator=generator, dtype=torch.float64),
            expression=0.3 * torch.randn(B, model.num_expression, generator=generator, dtype=torch.float64),
        )
        exact = observe(model, truth)
        points = exact.landmarks.points + sigma_px * torch.randn(
            B, 68, 2, generator=generator, dtype=torch.float64
        )
        observations = replace(exact, landmarks=replace(exact.landmarks, points=points))
        mean = truth.camera.focal * (0.1 * torch.randn(B, generator=generator, dtype=torch.float64)).exp()
        p = problem(model, truth, observations, sigma_px)
        # No size is drawn for the size prior.
        terms = [t for t in p.objective.terms if t.energy.name not in ("focal_prior", "size_prior")]
        terms.append(
            Term(
                FocalPrior(mean, torch.full((B,), 0.1, dtype=torch.float64), torch.ones(B, dtype=torch.bool))
            )
        )
        p = LeastSquaresProblem(Objective(terms), observations, p.layout)
        start = truth.replace(
            identity=torch.zeros_like(truth.identity), expression=torch.zeros_like(truth.expression)
        )
        solution = levenberg_marquardt(p, start, LMOptions(60, min_decrease=1e-9)).x
        covariance = identity_covariance(p, solution, {})
        errors.append((solution.identity - truth.identity)[0])
        predicted.append(covariance)
    errors, predicted = torch.stack(errors), torch.stack(predicted)
    ratio = (errors.square().mean(0) / predicted.diagonal(dim1=1, dim2=2).mean(0)).sqrt()
    assert (
        float((ratio - 1).abs().max()) < 4 / (2 * runs) ** 0.5
    )  # four standard errors of a standard deviation
    # along the normals, alignment included
    rows = aligned_normal_rows(model, truth.neutral(model)[0])[model.face]
    got = (errors @ rows.T).square().mean().sqrt()
    stated = torch.stack([((rows @ c) * rows).sum(1).mean() for c in predicted]).mean().sqrt()
    assert float(got / stated) == pytest.approx(1, abs=0.1)


def test_similarities_do_not_count(model):
    """Shapes that move the mesh as a whole are undone by the alignment; so their uncertainty is none of the
    surface's."""
    x = model.mean
    turn = torch.tensor([0.02, -0.01, 0.03], dtype=torch.float64)
    whole = torch.stack(
        [
            torch.ones_like(x) * torch.tensor([5.0, -3.0, 2.0], dtype=torch.float64),
            0.05 * x,
            torch.linalg.cross(turn.expand_as(x), x),
        ]
    )
    moved = replace(model, identity_basis=torch.cat([model.identity_basis, whole]))
    rows = aligned_normal_rows(moved, x)
    assert float(rows[:, -3:].abs().max()) < 1e-6
    sigma = vertex_sigma(model, x, torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(vertex_sigma(moved, x, torch.eye(11, dtype=torch.float64)), sigma)
    assert (
        float(
            vertex_sigma(moved, x, torch.eye(11, dtype=torch.float64) * torch.tensor([1.0] * 8 + [100.0] * 3))
            .sub(sigma)
            .abs()
            .max()
        )
        < 1e-5
    )


def test_surface_sigma_is_that_of_aligned_draws(model):
    """Draw coefficients, align each mesh by brute force, measure along the normals."""
    generator = torch.Generator().manual_seed(1)
    x, n = model.mean, vertex_normals(model.mean[None], model.triangles)[0]
    draws = 0.05 * torch.randn(400, 8, generator=generator, dtype=torch.float64)
    offset = torch.einsum("rk,kvc->rvc", draws, model.identity_basis)
    gauge = torch.cat(
        [
            n,
            torch.linalg.cross(x - x[model.face].mean(0), n),
            ((x - x[model.face].mean(0)) * n).sum(-1, keepdim=True),
        ],
        1,
    )
    along = (offset * n).sum(-1)
    weights = torch.linalg.lstsq(gauge[model.face], along[:, model.face].T, driver="gelsd").solution
    left = along - (gauge @ weights).T
    sigma = vertex_sigma(model, x, 0.05**2 * torch.eye(8, dtype=torch.float64))
    ratio = left.square().mean(0).sqrt() / sigma
    assert float(ratio[model.face].sub(1).abs().max()) < 4.5 / 800**0.5
    # a point-to-point alignment leaves at least as much along the normals, and on this face not much more
    moved = x + offset[:50]
    aligned = similarity_align(moved[:, model.face], x[model.face].expand(50, -1, -1)).apply(moved)
    other = ((aligned - x) * n).sum(-1)[:, model.face].square().mean().sqrt()
    mine = left[:50][:, model.face].square().mean().sqrt()
    assert float(mine) <= float(other) * 1.01


def test_more_views_mean_smaller_error_bars(model):
    medians = []
    for views in (1, 2, 3, 5):
        state = tiny_state(model, views)
        bars = error_bars(problem(model, state, observe(model, state)), state, model, EXACT)
        medians.append(float(bars.vertex_sigma[model.face].median()))
    assert medians == sorted(medians, reverse=True) and medians[-1] < 0.9 * medians[0]


def test_noise_inflation_and_floor(model):
    state = tiny_state(model, 3)
    clean = problem(model, state, observe(model, state), sigma=2.0)
    bars = error_bars(clean, state, model, EXACT)
    assert set(bars.noise.values()) == {1.0}  # perfect data do not make the stated noise smaller
    points = clean.observations.landmarks.points
    shaken = replace(
        clean.observations,
        landmarks=replace(
            clean.observations.landmarks,
            points=points
            + 6 * torch.randn(points.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        ),
    )
    noisy = error_bars(LeastSquaresProblem(clean.objective, shaken, clean.layout), state, model, EXACT)
    assert noisy.noise["lmk2d"] == pytest.approx((ABSORBED * 3) ** 2, rel=0.25)
    assert float((noisy.vertex_sigma / bars.vertex_sigma).min()) > 1
    wide = error_bars(clean, state, model, Calibration(2.0, 0.5))
    torch.testing.assert_close(wide.identity_covariance, 4 * bars.identity_covariance)
    torch.testing.assert_close(wide.vertex_sigma, (4 * bars.vertex_sigma**2 + 0.25).sqrt())


def test_calibration_is_that_of_the_model(model):
    state = tiny_state(model, 3)
    p = problem(model, state, observe(model, state))
    own = replace(model, calibration=Calibration(2.0, 0.5))
    assert error_bars(p, state, own).calibration == own.calibration
    assert error_bars(p, state, model).calibration == default_calibration()


def test_noise_of_pixel_like_terms(model):
    state = tiny_state(model, 3)
    term = Term(matches(model, state), 400.0)
    value = torch.randn(3, 500, 2, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(3, 500, dtype=torch.bool)
    got = noise_variance(term, Residuals(2 * value, valid))
    assert got == pytest.approx(4 * 400 / (3 * PATCHES), rel=0.1)
    assert noise_variance(replace(term, weight=50.0), Residuals(2 * value, valid)) == pytest.approx(
        4, rel=0.1
    )
    assert noise_variance(Term(IdentityPrior()), Residuals(5 * value, valid)) == 1


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_robust_scale(dimensions):
    generator = torch.Generator().manual_seed(0)
    value = 1.7 * torch.randn(4, 5000, dimensions, generator=generator)
    valid = torch.rand(4, 5000, generator=generator) < 0.9
    value[~valid] = torch.nan
    value[:, :500] = torch.where(valid[:, :500, None], 50.0, torch.nan)  # a tenth is wrong
    weight = torch.ones(4, 5000)
    weight[:, :500] = 0.01
    assert robust_scale(Residuals(value, valid, weight)) == pytest.approx(1.7, rel=0.03)
    assert 1.7 < robust_scale(Residuals(value, valid)) < 2.2
    assert robust_scale(Residuals(value, torch.zeros_like(valid))) == 1


def test_nothing_to_say_without_identity(model):
    state = tiny_state(model, 2)
    p = problem(model, state, observe(model, state), free=("pose",))
    assert error_bars(p, state, model) is None


@pytest.mark.slow
def test_fit_carries_error_bars():
    truth = tiny_result(views=3, size=200)
    marks = replace(truth.landmarks, sigma=torch.full((3, 68), torch.nan))
    result = fit_observed(truth.subject, marks, truth.model, load_recipe("multiview"))
    V, K = truth.model.num_vertices, truth.model.num_identity
    assert result.vertex_sigma.shape == (V,) and result.identity_covariance.shape == (K, K)
    assert bool((result.vertex_sigma >= result.metrics["error_bars"]["floor_mm"] - 1e-6).all())
    assert np.linalg.eigvalsh(result.identity_covariance.double().numpy()).min() > 0
    assert result.metrics["error_bars"]["face_median_mm"] == pytest.approx(
        float(result.vertex_sigma[truth.model.face].median())
    )
