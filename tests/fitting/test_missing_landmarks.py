"""Fits of a face model that lacks some of the 68 landmarks, as the Surrey model does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.energies.landmarks import EYE_PAIRS, LandmarkReprojection, eye_offsets
from fitkit.energies.landmarks3d import landmark_places, lmk3d_align, lmk_guided
from fitkit.energies.pair_masks import halving_points
from fitkit.energies.priors import SizePrior
from fitkit.errors import FitkitError, InputError
from fitkit.export import overlay
from fitkit.fitting.network_start import carry_identity
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit_observed
from fitkit.io.subject import Subject, View
from fitkit.synth.mitsuba import head_renderer
from fitkit.synth.recipe import load_synth_recipe

SIZE, VIEWS = 400, 3
# Points 1-8, 10-17, 61 and 65, counted from 1.
SURREY = (*range(8), *range(9, 17), 60, 64)
INSIDE = (*range(1, 8), *range(9, 16), 38, 60, 64)  # not at the edge of the box that a crop is cut around


def without(model, missing):
    marks = model.landmarks
    triangle = marks.triangle.clone()
    triangle[list(missing)] = -1
    return replace(model, landmarks=replace(marks, triangle=triangle))


@pytest.fixture(scope="module")
def model():
    return tiny_model(num_identity=4)


def photos_of(truth, model):
    marks = replace(observe(model, truth, SIZE).landmarks, sigma=torch.full((VIEWS, 68), torch.nan))
    noise = torch.randn(marks.points.shape, generator=torch.Generator().manual_seed(0))
    grey = np.full((SIZE, SIZE, 3), 128, np.uint8)
    photos = Subject("test", tuple(View(f"view{i}", grey) for i in range(VIEWS)))
    return photos, replace(marks, points=marks.points + noise)


def fitted(model, photos, marks):
    return fit_observed(photos, marks, model, load_recipe("landmarks"))


def test_points_that_are_missing_stand_in_the_middle(model):
    lacking = without(model, SURREY)
    present = lacking.landmarks.present
    assert (
        present.sum() == 50 and lacking.landmarks.missing == SURREY and "50 points" in repr(lacking.landmarks)
    )
    identity, expression = torch.randn(2, 4), torch.rand(2, 6)
    all_points, points = (m.landmark_points(identity, expression) for m in (model, lacking))
    assert torch.equal(points[:, present], all_points[:, present])
    torch.testing.assert_close(
        points[:, ~present], all_points[:, present].mean(1, keepdim=True).expand(-1, 18, -1)
    )
    torch.testing.assert_close(lacking.landmark_basis.points(identity, expression), points)
    # The size of a head is that of the points it has.
    few = model.landmark_basis.select(present)
    mean, rows = few.mean - few.mean.mean(0), (few.rows - few.rows.mean(0))[..., :4]
    torch.testing.assert_close(
        SizePrior.of(lacking, 0.01).slope, (mean[..., None] * rows).sum((0, 1)) / mean.square().sum()
    )


def test_energies_leave_them_out(model):
    lacking = without(model, (*SURREY, 38))
    state = tiny_state(model, VIEWS, SIZE)
    seen = observe(model, state, SIZE)
    present = lacking.landmarks.present.expand(VIEWS, -1)
    sigma = torch.ones(VIEWS, 68)
    for jaw in ("surface", "outline", "auto"):
        r = LandmarkReprojection(lacking, sigma, jaw).freeze(state, seen).residuals(state, seen)
        assert torch.equal(r.valid, present) and bool(torch.isfinite(r.value).all())
    lids = eye_offsets(lacking, sigma).residuals(state, seen).valid
    assert lids.tolist() == [[38 not in pair for pair in EYE_PAIRS]] * VIEWS
    labels = replace(seen, labels=None)
    head = model.landmark_points(state.identity.expand(VIEWS, -1), state.expression)
    for energy in (lmk3d_align(lacking), lmk_guided(lacking)):
        r = replace(energy, target=head + 5).residuals(state, labels)
        assert torch.equal(r.valid, present)
        assert float(r.value[present].abs().max()) < 1e-3
    places = landmark_places(lacking, (64, 64))
    assert torch.equal(torch.isfinite(places).all(-1), lacking.landmarks.present)


def test_halves_of_faces_need_all_points(model):
    state = tiny_state(model, VIEWS, SIZE)
    torch.testing.assert_close(halving_points(model, state), observe(model, state, SIZE).landmarks.points)
    with pytest.raises(
        InputError, match="expected a model with all 68 landmarks, but 'tiny' lacks 18 of them"
    ):
        halving_points(without(model, SURREY), state)


def test_a_fit_is_as_without_these_points_in_the_photos(model, monkeypatch):
    lacking, plain = without(model, INSIDE), SizePrior.of
    # What the size of a head is measured by, which no photo tells, are the points of the model.
    monkeypatch.setattr(SizePrior, "of", staticmethod(lambda _, sigma: plain(lacking, sigma)))
    photos, marks = photos_of(tiny_state(model, VIEWS, SIZE), model)
    valid = marks.valid.clone()
    valid[:, list(INSIDE)] = False
    own = fitted(lacking, photos, marks)
    unseen = fitted(model, photos, replace(marks, valid=valid))
    torch.testing.assert_close(own.neutral, unseen.neutral, atol=0.005, rtol=0)
    assert float((own.neutral - fitted(model, photos, marks).neutral).abs().max()) > 0.05  # they would count
    assert torch.equal(own.landmarks.valid, valid) and own.status == unseen.status
    assert own.metrics["reprojection_px"] == pytest.approx(unseen.metrics["reprojection_px"], abs=1e-3)
    assert any("'tiny' lacks 17 of the 68 landmarks" in note for note in own.notes)
    assert any("'tiny' has no calibration; its error bars and expected error" in note for note in own.notes)
    assert not any("lacks" in note for note in unseen.notes)
    assert torch.equal(own.landmarks3d.isnan().any(-1), ~lacking.landmarks.present)


def test_the_points_of_the_surrey_model_place_a_face(model):
    truth = tiny_state(model, VIEWS, SIZE)
    photos, marks = photos_of(truth, model)
    result = fitted(without(model, SURREY), photos, marks)
    assert result.status == "ok"
    turn = result.state.pose.rotation.mT @ truth.pose.rotation
    assert float(turn.diagonal(dim1=1, dim2=2).sum(1).min()) > 2.99  # at most 6 degrees


@pytest.mark.parametrize("seen", [3, 4])
def test_photos_that_show_too_few_of_its_points_are_refused(model, seen):
    lacking = without(model, range(17))
    photos, marks = photos_of(tiny_state(model, VIEWS, SIZE), model)
    valid = torch.zeros_like(marks.valid)
    valid[:, :17] = True
    valid[:, [36, 45, 33, 48][:seen]] = True
    few = replace(marks, valid=valid)
    if seen == 4:
        assert bool(torch.isfinite(fitted(lacking, photos, few).neutral).all())
        return
    with pytest.raises(FitkitError, match="pose: expected at least 4 landmarks per view, got 3"):
        fitted(lacking, photos, few)


def test_overlays_draw_no_missing_point(model, monkeypatch):
    photos, marks = photos_of(tiny_state(model, VIEWS, SIZE), model)
    drawn = []
    monkeypatch.setattr(overlay, "_dot", lambda panel, place, color, *_: drawn.append(color))
    monkeypatch.setattr(overlay, "_ring", lambda panel, place, color, *_: drawn.append(color))
    for missing in (SURREY, ()):
        drawn.clear()
        result = fitted(without(model, missing), photos, marks)
        result = replace(result, landmarks=marks)  # as read, with all points
        overlay.draw_overlay(result, 1)
        assert drawn.count(overlay.FITTED) == drawn.count(overlay.OBSERVED) == 68 - len(missing)


def test_a_network_of_another_model_starts_it(model):
    lacking, truth = without(model, SURREY), torch.tensor([[1.0, -0.8, 0.6, 0.5]])
    points = model.landmark_points(truth, torch.zeros(1, 6))
    all_points = carry_identity(points, model)
    wrong = points.clone()
    wrong[:, list(SURREY)] += 50
    found = carry_identity(wrong, lacking)
    torch.testing.assert_close(found, carry_identity(points, lacking))
    torch.testing.assert_close(found, all_points, atol=0.3, rtol=0)
    torch.testing.assert_close(carry_identity(wrong, model, lacking.landmarks.present), found)


def test_people_are_rendered_with_all_points_only(model):
    with pytest.raises(InputError, match="all 68 landmarks, but 'tiny' lacks 18 of them; take another one"):
        head_renderer(without(model, SURREY), load_synth_recipe())
