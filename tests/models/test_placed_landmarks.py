from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from model_files_own import BLENDER, head

import fitkit
from fitkit.errors import InputError
from fitkit.io.mesh_files import read_mesh
from fitkit.models.formats import landmarks
from fitkit.models.formats.landmarks import (
    carry,
    find_face,
    in_frame,
    onto_mean,
    place_landmarks,
    register,
    with_all_landmarks,
)
from fitkit.models.formats.parts import faces_away, real

GENERIC = fitkit.load_model("generic")
SHARED = Path(__file__).resolve().parents[3] / "shared/data"
INNER_MM, JAW_MM = 3.0, 6.0  # what is hoped for of other people's meshes


def errors(marks, vertices, triangles, points):
    """Mean distances of inner points and jaw, in the unit of the vertices."""
    found = marks.points(real(vertices)[None], torch.from_numpy(np.ascontiguousarray(triangles)))[0]
    apart = np.linalg.norm(found.numpy() - points, axis=1)
    return float(np.nanmean(apart[17:])), float(np.nanmean(apart[:17]))


def test_points_of_a_head_in_other_axes_and_units():
    of = head()
    vertices = 0.1 * of.vertices @ BLENDER.T + [10, -20, 160]
    marks = place_landmarks(vertices, of.triangles[:, ::-1])
    inner, jaw = errors(
        marks, 10 * vertices, of.triangles[:, ::-1], 10 * (0.1 * of.points @ BLENDER.T + [10, -20, 160])
    )
    assert inner < 1.5 and jaw < 4.0  # a model that holds the head; noise of the detector is about 3


def test_a_face_is_found_with_its_frame():
    of = head()
    frame, points = find_face(0.001 * of.vertices, of.triangles)
    assert abs(float(frame.scale) / 1000 - 1) < 0.1
    np.testing.assert_allclose(frame.rotation[0].numpy(), np.eye(3), atol=0.15)
    seen = in_frame(frame, points)
    assert not faces_away(in_frame(frame, 0.001 * of.vertices), of.triangles, seen)
    assert faces_away(in_frame(frame, 0.001 * of.vertices), of.triangles[:, ::-1], seen)


def test_a_ball_has_no_face(monkeypatch):
    sides = list(landmarks._sides())
    assert len({s.tobytes() for s in sides}) == 24
    monkeypatch.setattr(landmarks, "_sides", lambda: sides[:2])  # all take half a minute
    ball = trimesh.creation.icosphere(subdivisions=3)
    with pytest.raises(InputError, match="mesh: no face seen, expected a head.*--landmarks FILE"):
        place_landmarks(np.asarray(ball.vertices), np.asarray(ball.faces))


def test_the_model_lies_on_the_surface():
    of = head(7)
    laid = register(GENERIC, of.vertices, of.triangles)
    skin = (GENERIC.skin | GENERIC.face).numpy()
    apart = np.linalg.norm(laid - of.vertices, axis=1)[skin]  # the same mesh: each vertex has its place
    assert apart.mean() < 2.0
    inner, jaw = errors(carry(GENERIC, laid, of.vertices, of.triangles), of.vertices, of.triangles, of.points)
    assert inner < 1.5 and jaw < 4.0


def test_points_that_are_missing_or_astray_place_nothing():
    of = head()
    points = of.points.copy()
    points[40] += 100  # seen through a gap
    points[:17] = np.nan
    frame, median = onto_mean(points)
    assert median < 5 and abs(float(frame.scale) - 1) < 0.1
    assert onto_mean(np.full((68, 3), np.nan))[1] == np.inf


def lacking(keep):
    """A head as a model that has only some of its points."""
    of = head(7)
    full = replace(GENERIC, mean=torch.from_numpy(of.vertices).float())
    present = torch.isin(torch.arange(68), torch.tensor(keep))
    triangle = torch.where(present, full.landmarks.triangle, -1)
    return full, replace(full, landmarks=replace(full.landmarks, triangle=triangle))


def test_missing_points_are_placed_by_the_others():
    keep = [8, 27, 30, 33, 36, 39, 42, 45, 48, 51, 54, 57]
    full, lacks = lacking(keep)
    model = with_all_landmarks(lacks)
    assert model.landmarks.missing == () and "Landmarks 0, 1, 2, 3," in model.notes
    found, true = (m.landmarks.points(m.mean[None], m.triangles)[0].double().numpy() for m in (model, full))
    away = np.linalg.norm(found - true, axis=1)
    assert away[keep].max() < 1e-3
    assert away[17:].mean() < 2.5 and away[:17].mean() < 5.0


def test_points_of_another_mesh_place_nothing():
    _, lacks = lacking(range(20, 68))
    rolled = replace(lacks.landmarks, triangle=lacks.landmarks.triangle.roll(9))
    with pytest.raises(
        InputError, match="model 'generic': its landmarks are .* mm from those of a mean face"
    ):
        with_all_landmarks(replace(lacks, landmarks=rolled))


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_points_of_a_scan():
    vertices, triangles = read_mesh(SHARED / "scan/ground_truth/jordan_a/mesh.ply")
    points = np.load(SHARED / "scan/ground_truth/jordan_a/landmarks3d.npy")
    inner, _ = errors(place_landmarks(vertices, triangles), vertices, triangles, points)
    assert inner < INNER_MM


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_points_of_another_model():
    from fitkit.models.formats.ict import import_ict

    ict = import_ict(SHARED / "ict/ict_facekit.npz")
    points = ict.landmarks.points(ict.mean[None], ict.triangles)[0].numpy()
    marks = place_landmarks(ict.mean.numpy(), ict.triangles.numpy())
    inner, jaw = errors(marks, ict.mean.numpy(), ict.triangles.numpy(), points)
    assert inner < INNER_MM and jaw < JAW_MM
