"""The detail layer: a known bump beyond the face model is found, and nothing is made up where nothing is
seen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from helpers import observe, tiny_model, tiny_result, tiny_state
from scipy import sparse

from fitkit.energies.displacement import DisplacementPrior
from fitkit.errors import InputError
from fitkit.export.preview import Sides, draw_detail
from fitkit.fitting.detail import DetailOptions, most_evident, personal_model, solve_detail
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit_observed
from fitkit.geometry.normals import vertex_normals
from fitkit.io.subject import Subject, View
from fitkit.models.io import load_model_file
from fitkit.observe.flow import make_flow_estimator
from fitkit.scene.parameters import load_parameters
from fitkit.synth.studio import photograph, studio

SIZE = 288
OPTIONS = DetailOptions(enabled=True)


@pytest.fixture(scope="module")
def generic():
    return load_model_file(Path(__file__).parents[2] / "assets" / "generic.npz")


def photos(model, state):
    """Lit pictures with painted skin, [B, 3, SIZE, SIZE]."""
    pictures = photograph(model, state, (SIZE, SIZE), studio(), supersample=2)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def bumped(generic):
    """A person with a bump of 2 mm on one cheek and a dent of 1.5 mm on the forehead, seen from 3 sides, and
    what is found."""
    state = tiny_state(generic, 3, SIZE, seed=3, expression=0.1)
    neutral = state.neutral(generic)[0]
    marks = generic.landmarks.points(neutral[None], generic.triangles)[0]
    places = (0.5 * marks[[14, 35]].sum(0), marks[27] + torch.tensor([0.0, 35.0, 0.0]))
    front = neutral[:, 2] > marks[36, 2] - 20
    bump, dent = (torch.exp(-(((neutral - p)[:, :2].norm(dim=-1) / 16) ** 2)) * front for p in places)
    truth = 2 * bump - 1.5 * dent
    observations = observe(generic, state, SIZE, photos(personal_model(generic, state, truth), state))
    return (
        state,
        observations,
        truth,
        solve_detail(generic, state, observations, make_flow_estimator("dis:fine"), OPTIONS),
    )


@pytest.mark.slow
def test_a_bump_outside_the_model_is_found(generic, bumped):
    state, _, truth, detail = bumped
    d, face = detail.displacement, generic.face
    assert float(d[truth > 1.5].mean()) > 1.0 and float(d[truth < -1.1].mean()) < -0.7
    before = truth[face].square().mean().sqrt()
    after = (d - truth)[face].square().mean().sqrt()
    assert float(after) < 0.6 * float(before)
    flat = face & (truth.abs() < 0.01)
    assert float(d[flat].abs().mean()) < 0.1  # mm; nothing is made up elsewhere
    truly = state.neutral(personal_model(generic, state, truth))[0]
    found = state.neutral(personal_model(generic, state, d))[0]
    plain = state.neutral(generic)[0]
    there = face & (truth.abs() > 0.5)
    assert float((found - truly)[there].norm(dim=-1).mean()) < 0.5 * float(
        (plain - truly)[there].norm(dim=-1).mean()
    )


def test_numbers_of_the_report(generic, bumped):
    _, _, _, detail = bumped
    m, d = detail.report, detail.displacement[generic.face].abs()
    assert m.mean_mm == pytest.approx(float(d.mean())) and m.percentile_95_mm == pytest.approx(
        float(d.quantile(0.95)), rel=1e-4
    )
    assert m.median_mm == pytest.approx(float(d.median()), rel=1e-2)
    assert m.pairs == 2 and 1000 < m.matches <= 2 * OPTIONS.flow.points
    assert m.sigma_mm in (0.125, 0.25, 0.5, 1.0) and m.log_evidence > 0
    assert m.residual_after_px < 0.7 * m.residual_before_px


def test_a_perfect_model_stays_nearly_as_it_is(generic, bumped):
    state = bumped[0]
    observations = observe(generic, state, SIZE, photos(generic, state))
    detail = solve_detail(generic, state, observations, make_flow_estimator("dis:fine"), OPTIONS)
    assert float(detail.displacement[generic.face].abs().mean()) < 0.1  # mm


def test_no_evidence_is_exactly_zero(generic, bumped):
    state, observations, _, _ = bumped
    blind = replace(observations, mask=torch.zeros_like(observations.mask))
    detail = solve_detail(generic, state, blind, make_flow_estimator("dis:fine"), OPTIONS)
    assert torch.equal(detail.displacement, torch.zeros(generic.num_vertices)) and detail.report.matches == 0
    assert not detail.known.any() and detail.report.residual_before_px is None and detail.report.sigma_mm == 0


def test_matches_beside_the_face_do_not_count(generic, bumped):
    state, observations, _, _ = bumped
    back = replace(generic, face=generic.mean[:, 2] < generic.mean[:, 2].quantile(0.02))  # seen in no photo
    detail = solve_detail(back, state, observations, make_flow_estimator("dis:fine"), OPTIONS)
    assert detail.report.matches == 0 and not detail.displacement.any()


def test_the_displacement_moves_with_the_expression(generic, bumped):
    state, _, truth, _ = bumped
    normal = vertex_normals(state.neutral(generic), generic.triangles)[0]
    offset = state.vertices(personal_model(generic, state, truth)) - state.vertices(generic)
    # float32, mm.
    torch.testing.assert_close(offset, (truth[:, None] * normal).expand_as(offset), atol=1e-4, rtol=0)


# ---- as part of a fit ----


@pytest.fixture(scope="module")
def fits(generic, bumped):
    """The person with a bump, fitted without and with detail."""
    state, observations, truth, _ = bumped
    pictures = (observations.images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    subject = Subject("bumped", tuple(View(f"view{i}", image) for i, image in enumerate(pictures)))
    marks = observe(personal_model(generic, state, truth), state, SIZE).landmarks
    marks = replace(marks, sigma=torch.full((3, 68), torch.nan))
    return [
        fit_observed(subject, marks, generic, load_recipe("multiview", [f"detail.enabled={on}"]))
        for on in ("false", "true")
    ]


@pytest.mark.slow
def test_a_fit_with_detail(fits):
    plain, detailed = fits
    assert (
        plain.displacement is None and "detail" not in plain.metrics and plain.personal_model is plain.model
    )
    assert (
        detailed.displacement.shape == (detailed.model.num_vertices,)
        and float(detailed.displacement.abs().max()) > 0.1
    )
    expected = detailed.state.neutral(personal_model(detailed.model, detailed.state, detailed.displacement))[
        0
    ]
    assert torch.equal(detailed.neutral, expected) and not torch.equal(
        expected, detailed.state.neutral(detailed.model)[0]
    )
    torch.testing.assert_close(
        detailed.vertices.mean(0) - detailed.state.vertices(detailed.model).mean(0),
        detailed.neutral - detailed.state.neutral(detailed.model)[0],
        atol=1e-3,
        rtol=0,
    )
    assert detailed.metrics["detail"]["residual_after_px"] < detailed.metrics["detail"]["residual_before_px"]
    assert [s["name"] for s in detailed.metrics["stages"]][-1] == "fine"
    assert detailed.recipe["detail"]["enabled"] and detailed.vertex_sigma is not None


@pytest.mark.slow
def test_folder_round_trip(fits, tmp_path):
    plain, detailed = fits
    out = detailed.save(tmp_path / "detailed")
    read = load_parameters(out / "parameters.npz")
    read.check_model(detailed.model)
    assert torch.equal(read.displacement, detailed.displacement)
    again = read.state.neutral(personal_model(detailed.model, read.state, read.displacement))[0]
    assert torch.equal(again, detailed.neutral)
    mesh = trimesh.load(out / "subject.ply", process=False)
    np.testing.assert_allclose(mesh.vertices, detailed.neutral, atol=1e-3)
    np.testing.assert_allclose(
        np.ravel(mesh.metadata["_ply_raw"]["vertex"]["data"]["detail_mm"]), detailed.displacement, atol=1e-6
    )
    np.testing.assert_allclose(
        trimesh.load(out / "views" / "view1.ply", process=False).vertices, detailed.vertices[1], atol=1e-3
    )
    assert (out / "detail.png").is_file() and (out / "subject.obj").is_file()
    without = plain.save(tmp_path / "plain")
    assert (
        not (without / "detail.png").exists()
        and load_parameters(without / "parameters.npz").displacement is None
    )
    with pytest.raises(
        InputError,
        match=f"expected face model 'generic' with {len(detailed.model.mean)} vertices, as many as the "
        "displacement has, got 314",
    ):
        read.check_model(replace(detailed.model, mean=detailed.model.mean[:314]))


def test_picture():
    result = tiny_result()
    # The subject's left stands at the right side of a frontal picture.
    outwards = torch.where(result.neutral[:, 0] > 0, 2.0, -2.0)
    sides = Sides.of_head(result.neutral, result.model)
    row = draw_detail(sides, outwards)[192, 2 * 320 : 3 * 320].astype(int)
    assert row[190, 0] - row[190, 2] > 40 and row[130, 2] - row[130, 0] > 40


def test_one_photo_has_no_evidence():
    truth = tiny_result(views=1, size=200)
    marks = replace(truth.landmarks, sigma=torch.full((1, 68), torch.nan))
    result = fit_observed(truth.subject, marks, truth.model, load_recipe("multiview"))
    assert result.displacement is None and result.status == "ok" and result.metrics["detail"]["pairs"] == 0
    assert torch.equal(result.neutral, result.state.neutral(result.model)[0])


def test_known_is_what_the_matches_see(generic, bumped):
    """The middle of the face, which all three photos see, and not the back of the head."""
    known = bumped[3].known
    nose = generic.landmarks.triangle[30]
    assert (
        float(known[generic.triangles[nose]].mean()) > 0.7
        and float(known.min()) >= 0
        and float(known.max()) <= 1
    )
    assert float(known[generic.mean[:, 2] < generic.mean[:, 2].quantile(0.05)].max()) < 0.05


def test_evidence_is_the_marginal_likelihood():
    """Against the density of the measurements themselves, y ~ N(0, J C J' s^2 + I), by numpy; without a
    signal the answer is 0."""
    model, rng = tiny_model(dtype=torch.float64), np.random.default_rng(3)
    prior = DisplacementPrior.of(model.mean.numpy(), model.triangles.numpy(), model.skin.numpy(), 1.0, 40.0)
    V, sigmas = model.num_vertices, (0.1, 0.3, 1.0)
    J = rng.normal(size=(60, V)) * (rng.random((60, V)) < 0.05)
    covariance = np.linalg.inv(prior.precision.toarray())

    def log_density(y, s):
        C = s**2 * J @ covariance @ J.T + np.eye(len(y))
        return -0.5 * (y @ np.linalg.solve(C, y) + np.linalg.slogdet(C)[1])

    signal = J @ np.linalg.cholesky(covariance) @ rng.normal(size=V)
    for y in (signal + rng.normal(size=60), 0.3 * rng.normal(size=60)):
        sigma, gain, _ = most_evident(sparse.csr_matrix(J.T @ J), -J.T @ y, prior, sigmas)
        gains = [log_density(y, s) - log_density(y, 0) for s in (0, *sigmas)]
        assert sigma == (0, *sigmas)[int(np.argmax(gains))] and gain == pytest.approx(max(gains), abs=1e-6)
    assert sigma == 0


@pytest.mark.parametrize(
    "option, message",
    [
        ("sigma_mm=0", "multiview.yaml: detail.sigma_mm: expected a number from 1e-09 to .*, got 0.0"),
        ("length_mm=-3", "detail.length_mm: expected a number from .*, got -3.0"),
        ("refresh=0", "detail.refresh: expected a whole number from 1 to 1000, got 0"),
        ("iterations=0", "detail.iterations: expected a whole number from 1"),
        ("flow.patches=0", "detail.flow.patches: expected a number from .*, got 0.0"),
        ("refits=1", "detail: unknown .*refits"),
        ("sigma=1", "detail: unknown .*sigma.*sigma_mm"),
    ],
)
def test_options_are_checked(option, message):
    with pytest.raises(InputError, match=message):
        load_recipe("multiview", [f"detail.{option}"])
