import numpy as np
import pytest
import trimesh
from helpers import tiny_model
from scipy.spatial.transform import Rotation

from fitkit.errors import DegenerateInputError, InputError
from fitkit.evaluate.depth_range import ScaleShift, average, depth_range_errors, percentiles, scale_shift
from fitkit.evaluate.micc import micc_errors
from fitkit.evaluate.nme3d import nme3d_direct, nme3d_icp
from fitkit.evaluate.pixel_face import scan_errors
from fitkit.evaluate.regions import REGIONS, region_errors, region_labels
from fitkit.evaluate.scan_to_mesh import NOW_POINTS
from fitkit.evaluate.vertex_error import (
    Correspondence,
    corresponding_distances,
    read_correspondence,
    vertex_distances,
)

R = Rotation.from_euler("xyz", [20, -35, 10], degrees=True).as_matrix()
T = np.array([40.0, -90, 500])


def face(seed=0):
    model = tiny_model(seed)
    marks = model.landmarks.points(model.mean[None], model.triangles)[0].double().numpy()
    return model.mean.double().numpy(), model.triangles.numpy(), marks


def fine(vertices, triangles, times=2):
    for _ in range(times):
        vertices, triangles = trimesh.remesh.subdivide(vertices, triangles)
    return vertices, triangles


def test_copies_score_zero_after_a_similarity():
    vertices, triangles, marks = face()
    seven, moved = marks[list(NOW_POINTS)], 1.2 * vertices @ R.T + T
    points = 1.2 * marks @ R.T + T
    micc = micc_errors(vertices, triangles, seven, moved, triangles, points[list(NOW_POINTS)], points[30])
    assert max(
        micc.prediction_to_scan, micc.scan_to_prediction, micc.symmetric
    ) < 1e-6 and micc.scale == pytest.approx(1.2)
    scan = scan_errors(vertices, triangles, seven, moved, points[list(NOW_POINTS)])
    assert max(scan.s2m_mean, scan.s2m_rmse, scan.p2plane_rmse) < 1e-6
    assert max(region_errors(vertices, triangles, marks, moved, points).values()) < 1e-6
    assert vertex_distances(vertices, moved).max() < 1e-9
    rigid = vertex_distances(vertices, moved, with_scale=False)
    assert rigid.mean() == pytest.approx(0.2 * np.linalg.norm(vertices - vertices.mean(0), axis=1).mean())


def ball_points(radius):
    d = np.array(
        [
            [-0.5, 0.4, 0.7],
            [-0.2, 0.4, 0.8],
            [0.2, 0.4, 0.8],
            [0.5, 0.4, 0.7],
            [0, -0.1, 1],
            [-0.3, -0.4, 0.8],
            [0.3, -0.4, 0.8],
        ]
    )
    return radius * d / np.linalg.norm(d, axis=1, keepdims=True)


def test_spheres_one_millimetre_apart():
    small, large = trimesh.creation.icosphere(4, 80.0), trimesh.creation.icosphere(4, 81.0)
    args = (small.vertices, small.faces, ball_points(80), large.vertices)
    # The sphere of 300 mm holds all of both: part of a ball would come to lie off its centre, which takes
    # from the millimetre.
    rigid = micc_errors(
        *args, large.faces, ball_points(81), np.array([0, 0, 81.0]), with_scale=False, radius=300
    )
    assert rigid.symmetric == pytest.approx(1, abs=0.02) and rigid.scale == 1
    assert micc_errors(*args, large.faces, ball_points(81), np.array([0, 0, 81.0])).symmetric < 0.03
    errors = scan_errors(*args, ball_points(81), with_scale=False)
    assert 0 < errors.s2m_mean < errors.s2m_rmse < 1
    assert errors.s2m_rmse == pytest.approx(np.sqrt((errors.fit.distances**2).mean())) and len(
        errors.fit.distances
    ) == len(errors.crop)


def test_picked_points_are_only_the_start_of_micc():
    vertices, triangles = fine(*face()[:2])
    seven = face()[2][list(NOW_POINTS)]
    wrong = seven + np.random.default_rng(0).normal(size=(7, 3)) * 2 + [1, -2, 2]
    got = micc_errors(vertices, triangles, wrong, vertices, triangles, seven, face()[2][30])
    assert got.symmetric < 0.05 and got.scale == pytest.approx(1, abs=2e-3)  # mm: ICP takes the rest out


def test_direction_and_crop_matter():
    vertices, triangles, marks = face()
    seven = marks[list(NOW_POINTS)]
    scan = np.concatenate([vertices, vertices[:40] + [0, 0, 300]])  # hair far away from the nose
    far = micc_errors(
        vertices,
        triangles,
        seven,
        scan,
        np.concatenate([triangles, triangles[(triangles < 40).all(1)] + len(vertices)]),
        seven,
        marks[30],
    )
    assert far.symmetric < 1e-6 and (far.crop < len(vertices)).all()
    ball = trimesh.creation.icosphere(2, 12.0)  # an eye inside the head is asked for no partner on the scan
    more, eye = (
        np.concatenate([vertices, ball.vertices + [30, 0, 40]]),
        np.concatenate([triangles, ball.faces + len(vertices)]),
    )
    outer = np.arange(len(more)) < len(vertices)
    assert (
        micc_errors(more, eye, seven, vertices, triangles, seven, marks[30], outer).prediction_to_scan < 1e-6
    )
    assert micc_errors(more, eye, seven, vertices, triangles, seven, marks[30]).prediction_to_scan > 1
    with pytest.raises(DegenerateInputError, match="within 95 mm of the nose tip, got 0 predicted"):
        micc_errors(vertices, triangles, seven, vertices, triangles, seven, marks[30] + 1000)


def test_one_region_does_not_spoil_the_others():
    vertices, triangles = fine(*face()[:2])
    marks = face()[2]
    label = region_labels(vertices, marks)
    assert set(label) == set(range(len(REGIONS)))
    scan = vertices.copy()
    nose = label == list(REGIONS).index("nose")
    scan[nose, 2] += 1.5 * np.sin(scan[nose, 1])  # waves cannot be aligned away
    got = region_errors(vertices, triangles, marks, scan, marks)
    assert got["nose"] > 0.3 and max(got["mouth"], got["cheeks"]) < 0.02
    assert got["mean"] == pytest.approx(np.mean([got[k] for k in REGIONS]))


def test_region_errors_are_in_the_scans_millimetres():
    vertices, triangles = fine(*face()[:2])  # regions of a few points would leave the motion to chance
    marks = face()[2]
    noise = np.random.default_rng(0).normal(size=vertices.shape)
    one = region_errors(vertices, triangles, marks, vertices + noise, marks)
    ten = region_errors(0.1 * vertices, triangles, 0.1 * marks, vertices + noise, marks)
    assert ten["mean"] == pytest.approx(one["mean"], rel=0.03)  # where trimming stops differs


def test_dense_error_over_the_eye_distance():
    vertices, triangles, marks = face()
    eyes = float(np.linalg.norm(marks[36] - marks[45]))
    assert nme3d_direct(vertices, vertices + [0, 0, 70], eyes) < 1e-12  # depth has no origin
    assert nme3d_direct(vertices + [3.0, 4, 0], vertices, eyes) == pytest.approx(5 / eyes)
    moved = vertices + [1.0, -1.5, 2.0]
    assert nme3d_icp(vertices, triangles, moved, eyes) < 1e-5
    # Correspondences only: every point is as far from its partner as it was moved.
    assert nme3d_icp(vertices, triangles, moved, eyes, aligned=False) == pytest.approx(
        np.linalg.norm([1, -1.5, 2]) / eyes, rel=1e-3
    )


def test_scale_and_shift_are_found_without_a_rotation():
    points = np.random.default_rng(0).normal(size=(9, 3))
    found = scale_shift(points, 2.5 * points + [1.0, 2, 3])
    assert found.scale == pytest.approx(2.5) and np.allclose(found.shift, [1, 2, 3])
    np.testing.assert_allclose(found.apply(points), 2.5 * points + [1, 2, 3])
    both = average([ScaleShift(1.0, np.zeros(3)), ScaleShift(3.0, np.ones(3))])
    assert both.scale == 2 and np.allclose(both.shift, 0.5)
    with pytest.raises(DegenerateInputError, match="at least two distinct points"):
        scale_shift(np.zeros((3, 3)), points[:3])
    truth = 2.5 * points + [1.0, 2, 3]
    points[2], truth[5, 1] = np.nan, np.nan  # missing
    assert scale_shift(points, truth).scale == pytest.approx(2.5)
    with pytest.raises(DegenerateInputError, match="at least two distinct points, got 1"):
        scale_shift(points[1:3], truth[1:3])


def test_missing_points_do_not_count():
    vertices, triangles, marks = face()
    scan, truth, ours = 1.2 * vertices @ R.T + T, 1.2 * marks @ R.T + T, marks.copy()
    ours[[36, 50]], truth[[48, 20]] = np.nan, np.nan
    seven, true_seven = ours[list(NOW_POINTS)], truth[list(NOW_POINTS)]
    assert max(region_errors(vertices, triangles, ours, scan, truth).values()) < 1e-6
    micc = micc_errors(vertices, triangles, seven, scan, triangles, true_seven, truth[30])
    assert micc.symmetric < 1e-6 and micc.scale == pytest.approx(1.2)
    assert scan_errors(vertices, triangles, seven, scan, true_seven).s2m_mean < 1e-6
    label = region_labels(scan, truth * np.where(np.arange(68) < 48, 1, np.nan)[:, None])
    assert list(REGIONS).index("mouth") not in label
    few = np.where(np.arange(7)[:, None] < 2, seven, np.nan)
    with pytest.raises(DegenerateInputError, match="expected at least 3 pairs of points, got 1"):
        scan_errors(vertices, triangles, few, scan, true_seven)
    true_seven[4] = np.nan
    with pytest.raises(
        DegenerateInputError, match="face sphere of NoW: .* 36, 39, 42, 45, 33, but 33 is mis"
    ):
        scan_errors(vertices, triangles, seven, scan, true_seven)
    with pytest.raises(DegenerateInputError, match="expected at least 6 vertices of one in the scan, got 5"):
        region_errors(vertices, triangles, marks, marks[[36, 31, 50, 40, 28]], marks)


def test_depth_errors_in_per_cent_of_the_range():
    vertices, triangles, _ = face()
    points = fine(vertices, triangles)[0]
    # The motion that ICP finds is discarded: a shift of 2 mm along z stays a shift of 2 mm, 2 per cent of 100
    # mm.
    errors = depth_range_errors(points + [0, 0, 2.0], vertices, triangles, 100.0)
    assert (
        np.median(errors) == pytest.approx(2, abs=1e-3)
        and depth_range_errors(points, vertices, triangles, 100.0).max() < 1e-6
    )
    assert percentiles(np.arange(11.0)) == {
        "mean": 5,
        "std": pytest.approx(np.sqrt(10)),
        "median": 5,
        "p90": 9,
    }


def test_correspondence_between_topologies(tmp_path):
    vertices, triangles, _ = face()
    weight = np.random.default_rng(1).dirichlet([1, 1, 1], size=30)
    owner = np.arange(0, 300, 10)
    truth = np.zeros((50, 3))
    truth[10:40] = (weight[..., None] * vertices[triangles[owner]]).sum(1)
    np.savez(tmp_path / "table.npz", vertex=np.arange(10, 40), triangle=owner, barycentric=weight)
    table = read_correspondence(tmp_path / "table.npz")
    assert corresponding_distances(1.3 * vertices @ R.T + T, triangles, truth, table).max() < 1e-9
    table.check(len(triangles), 50, "table.npz")
    with pytest.raises(
        InputError, match="vertex: expected indices from 0 to 38; the table belongs to another mesh"
    ):
        table.check(len(triangles), 39, "table.npz")
    with pytest.raises(InputError, match="triangle: expected indices"):
        Correspondence(np.arange(3), np.array([0, -1, 2]), np.ones((3, 3))).check(5, 5, "x")


def test_tables_that_are_none(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="a.npz: cannot be read as a table of corresponding points"):
        read_correspondence(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", vertex=np.zeros(3), triangle=np.zeros(3, int), barycentric=np.zeros((3, 3)))
    with pytest.raises(InputError, match=r"expected integers vertex \[N\]"):
        read_correspondence(tmp_path / "b.npz")
