import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation

from fitkit.errors import DegenerateInputError
from fitkit.evaluate.facescape import (
    SIZE,
    align_lab,
    align_wild,
    colour_normal_angle,
    cylinder_map,
    cylinder_mesh,
    facescape_errors,
    through_lens,
    true_normal_angle,
    wild_frame,
)
from fitkit.geometry.rotation import rotation_between_axis_and

HEIGHTS = np.linspace(150, -150, SIZE)


def head(radius=80.0, subdivisions=4):
    ball = trimesh.creation.icosphere(subdivisions, radius)
    return np.array(ball.vertices), np.array(ball.faces)


def test_map_of_a_sphere():
    chart = cylinder_map(*head())
    inside = np.abs(HEIGHTS) < 70
    np.testing.assert_allclose(
        chart.radius[inside], np.sqrt(80**2 - HEIGHTS[inside] ** 2)[:, None].repeat(SIZE, 1), atol=0.2
    )  # facets
    assert not chart.hit[np.abs(HEIGHTS) > 80].any() and (chart.radius[:, 0] == chart.radius[:, -1]).all()


def test_map_equals_traced_rays():
    blob = trimesh.creation.icosphere(2, 60.0)
    blob.vertices *= [1, 1.3, 0.8]
    inner = trimesh.creation.icosphere(1, 20.0)
    inner.vertices += [30, 10, 40]  # pokes out of it: up to three hits on a ray
    both = trimesh.util.concatenate([blob, inner])
    both.vertices += [5, 10, 3]
    rows, columns = np.arange(3, SIZE, 17), np.arange(1, SIZE - 1, 13)
    angle = 2 * np.pi * np.tile(columns, len(rows)) / 255
    origins = np.stack(
        [np.zeros(len(angle)), HEIGHTS[np.repeat(rows, len(columns))], np.zeros(len(angle))], 1
    )
    place, ray, _ = both.ray.intersects_location(
        origins, np.stack([-np.sin(angle), 0 * angle, -np.cos(angle)], 1), multiple_hits=True
    )
    farthest = np.zeros(len(angle))
    np.maximum.at(farthest, ray, np.linalg.norm(place[:, [0, 2]], axis=1))
    chart = cylinder_map(both.vertices, both.faces)
    np.testing.assert_allclose(chart.radius[np.ix_(rows, columns)].ravel(), farthest, atol=1e-9)
    assert (farthest > 0).sum() > 100


def test_mesh_of_a_map_is_the_surface_again():
    vertices, triangles = cylinder_mesh(cylinder_map(*head()).radius)
    side = np.abs(vertices[:, 1]) < 70
    assert (
        np.abs(np.linalg.norm(vertices[side], axis=1) - 80).max() < 0.2 and len(triangles) > 50000
    )  # facets
    normals = trimesh.Trimesh(vertices, triangles, process=False).face_normals
    assert ((normals * vertices[triangles].mean(1)).sum(1) > 0).mean() > 0.99  # outwards


def test_jumps_stay_open():
    radius = np.full((SIZE, SIZE), 60.0)
    radius[:, 128:] = 80
    joined = np.where(radius == 80, 70, radius)
    assert len(cylinder_mesh(joined)[1]) == 2 * 255 * 255 and len(cylinder_mesh(radius)[1]) == 2 * 255 * 254


def test_known_normals():
    x, y, z = np.eye(3)[:, None]
    assert true_normal_angle(x, y) == pytest.approx(np.pi / 2)
    # (x + 1) / |x + 1| = (2, 1, 1) / sqrt 6, (1, 2, 1) / sqrt 6: their product is 5 / 6
    assert colour_normal_angle(x, y) == pytest.approx(np.arccos(5 / 6))
    # z and -z: (1, 1, 2) / sqrt 6 and (1, 1, 0) / sqrt 2
    assert colour_normal_angle(z, -z) == pytest.approx(np.arccos(2 / np.sqrt(12))) and true_normal_angle(
        z, -z
    ) == pytest.approx(np.pi)


def test_truth_against_itself():
    R, c = Rotation.from_euler("y", 30, degrees=True).as_matrix(), np.array([3.0, -2, 500])
    vertices, triangles = head(20)
    got = facescape_errors(vertices @ R.T + c, triangles, vertices @ R.T + c, triangles, R, c)
    assert got.cd < 1e-9 and got.mne_true < 1e-6 and got.mne_facescape < 1e-6 and got.cr == 1


def test_half_a_prediction_covers_half():
    vertices, triangles = head(30)
    front = triangles[vertices[triangles][..., 2].min(1) >= -1e-9]
    got = facescape_errors(vertices, triangles, vertices, front, np.eye(3), np.zeros(3))
    assert got.cr == pytest.approx(0.5, abs=0.03) and got.cd < 1e-9  # jagged edge
    swapped = facescape_errors(vertices, front, vertices, triangles, np.eye(3), np.zeros(3))
    assert swapped.cr == 1  # what the truth lacks is not asked for


def test_a_larger_cylinder_is_its_difference_away():
    upright = trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0])
    tube, wide = (
        trimesh.creation.cylinder(r, 40, sections=360).apply_transform(upright) for r in (70.0, 72.0)
    )
    got = facescape_errors(tube.vertices, tube.faces, wide.vertices, wide.faces, np.eye(3), np.zeros(3))
    assert got.cd == pytest.approx(2, abs=0.01) and got.mne_true < 1e-3  # the same directions


def test_lab_prediction_is_scaled_about_the_camera():
    vertices, triangles = head(80, 3)
    truth = vertices + [10, -5, 900]
    K = np.array([[1200.0, 0, 128], [0, 1200, 128], [0, 0, 1]])
    # Medians of the depth maps.
    np.testing.assert_allclose(align_lab(truth, triangles, 1.1 * truth, triangles, K), truth, rtol=2e-3)


def test_wild_prediction_is_shifted_in_depth():
    vertices, triangles = head(1.0, 3)
    truth = 0.5 * vertices + [0.1, 0, -2]
    gt, ours = align_wild(truth, triangles, truth + [0, 0, 0.3], triangles, 140.0)
    np.testing.assert_allclose(gt, 140 * truth)
    np.testing.assert_allclose(ours, gt, atol=1e-3)


def test_wild_frame_of_a_camera():
    # A square around the optical axis of a 201 px picture: focal 1000, 1 m away, so 1 mm is one px; the
    # picture reaches 100.5 px.
    points = np.array([[50.0, 50, 1000], [-50, 50, 1000], [50, -50, 1000], [-50, -50, 1000]])
    frame = wild_frame(points, 1.0, np.array([100.0, 100]), (201, 201))
    np.testing.assert_allclose(frame[:, :2], points[:, :2] * [1, -1] / 100.5)
    np.testing.assert_allclose(frame[:, 2], -2)
    shifted = wild_frame(points, 1.0, np.array([120.0, 90]), (201, 201))
    np.testing.assert_allclose(shifted[:, :2] - frame[:, :2], np.tile([20 / 100.5, 10 / 100.5], (4, 1)))


def test_refusals():
    vertices, triangles = head(1.0, 2)
    with pytest.raises(DegenerateInputError, match="cover no common pixel"):
        align_wild(0.2 * vertices + [-0.7, 0, -2], triangles, 0.2 * vertices + [0.7, 0, -2], triangles, 140.0)
    with pytest.raises(DegenerateInputError, match="no common cell"):
        facescape_errors(
            20 * vertices + [0, 100, 0],
            triangles,
            20 * vertices - [0, 100, 0],
            triangles,
            np.eye(3),
            np.zeros(3),
        )


def test_an_orthographic_view_through_the_true_lens():
    """A small far head looks the same through both cameras."""
    rng = np.random.default_rng(0)
    head = rng.normal(size=(300, 3)) * 5.0
    head -= head.mean(0)
    K = np.array([[900.0, 0, 131.0], [0, 900.0, 125.0], [0, 0, 1]])
    center = np.array([60.0, -30.0, 1500.0])
    aside = center / np.linalg.norm(center)
    seen = head + center
    pixels = seen[:, :2] / seen[:, 2:] * 900.0 + [130.5, 124.5]
    # The scaled-orthographic camera sees it along its axis: turned by the angle of the line of sight.
    turn = rotation_between_axis_and(torch.from_numpy(aside)[None])[0].numpy()
    scale, principal = 900.0 / 1500.0, np.array([100.0, 90.0])
    shift = (pixels.mean(0) - principal) / scale
    flat = head @ turn + np.append(shift, 1000.0)
    got = through_lens(flat, scale, principal, K)
    again = got[:, :2] / got[:, 2:] * 900.0 + [130.5, 124.5]
    assert np.abs(again - pixels).max() < 0.1 and np.abs(got - seen).max() < 1.0
