"""What a benchmark reads as truth, and from which points of it the distances are measured."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_model, tiny_result
from scipy.spatial.transform import Rotation

from fitkit.errors import InputError
from fitkit.evaluate.bench.scores import score_neutral, score_photos
from fitkit.evaluate.bench.truth import (
    POINTS,
    TRUTH_FILES,
    Truth,
    even_points,
    load_photo_truths,
    load_truth,
    seen_from_outside,
    subject_names,
)
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.scan_to_mesh import now_crop, scan_to_mesh
from fitkit.io.mesh_files import write_ply


def ball(radius: float, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and outward triangles of a sphere by latitude and longitude, dense at the poles."""
    lat, lon = np.meshgrid(
        np.linspace(-np.pi / 2, np.pi / 2, rows), np.linspace(0, 2 * np.pi, 2 * rows), indexing="ij"
    )
    vertices = radius * np.stack(
        [np.cos(lat) * np.sin(lon), np.sin(lat), np.cos(lat) * np.cos(lon)], -1
    ).reshape(-1, 3)
    cell = (np.arange(rows - 1)[:, None] * 2 * rows + np.arange(2 * rows - 1)).reshape(-1)
    return vertices, np.concatenate(
        [
            np.stack([cell, cell + 1, cell + 2 * rows + 1], 1),
            np.stack([cell, cell + 2 * rows + 1, cell + 2 * rows], 1),
        ]
    )


def front(vertices: np.ndarray) -> np.ndarray:
    """NOW_POINTS [7, 3] for a head that looks along +z, y up."""
    eyes = [[-45, 30, 80], [-17, 30, 85], [17, 30, 85], [45, 30, 80]]
    return (
        np.array([*eyes, [0, -15, 105], [-25, -40, 85], [25, -40, 85]], float) * np.abs(vertices).max() / 100
    )


@pytest.fixture(scope="module")
def person():
    return tiny_result(seed=1, views=3, model=tiny_model())


@pytest.fixture
def folder(person, tmp_path):
    """ground_truth/SUBJECT of a tiny person with another expression in each photo."""
    model = person.model
    write_ply(tmp_path / "neutral.ply", person.neutral, model.triangles)
    np.save(tmp_path / "landmarks3d_neutral.npy", person.landmarks3d.numpy())
    np.save(tmp_path / "face_region.npy", model.face.nonzero()[:, 0].numpy().astype(np.int32))
    for b, vertices in enumerate(person.vertices):
        write_ply(tmp_path / f"view{b}.ply", vertices, model.triangles)
        np.save(
            tmp_path / f"landmarks3d_view{b}.npy",
            model.landmarks.points(vertices[None], model.triangles)[0].numpy(),
        )
    return tmp_path


def predicted(person, vertices=None) -> PredictedFace:
    model, posed = person.model, person.vertices
    return PredictedFace(
        "anna",
        person.neutral.double().numpy() if vertices is None else vertices,
        model.triangles.numpy(),
        landmarks=person.landmarks3d.double().numpy(),
        posed=posed.double().numpy(),
        posed_landmarks=model.landmarks.points(posed, model.triangles).double().numpy(),
        views=np.array([v.name for v in person.subject.views]),
    )


def score(prediction: PredictedFace, truth: Truth) -> dict[str, float | None]:
    return score_neutral(prediction, truth).values


# ---- points ----


def test_points_lie_evenly_however_dense_the_mesh_is():
    # A square of 10 x 10: the left half in 20000 triangles, the right one in 2.
    x, y = np.meshgrid(np.linspace(0, 5, 101), np.linspace(0, 10, 101))
    cell = (np.arange(100)[:, None] * 101 + np.arange(100)).reshape(-1)
    dense = np.concatenate(
        [np.stack([cell, cell + 1, cell + 102], 1), np.stack([cell, cell + 102, cell + 101], 1)]
    )
    vertices = np.concatenate([np.stack([x, y], -1).reshape(-1, 2), [[5, 0], [10, 0], [10, 10], [5, 10]]])
    vertices = np.concatenate([vertices, np.full((len(vertices), 1), 3.0)], 1)
    triangles = np.concatenate([dense, len(x.ravel()) + np.array([[0, 1, 2], [0, 2, 3]])])
    points = even_points(vertices, triangles, 10000)
    assert (
        points.shape == (10000, 3)
        and np.abs(points[:, 2] - 3).max() < 1e-12
        and points.min() >= 0
        and points.max() <= 10
    )
    quarters = np.histogram2d(points[:, 0], points[:, 1], bins=2, range=[[0, 10], [0, 10]])[0]
    assert (
        abs(quarters[0].sum() - 5000) <= 1 and np.abs(quarters[0] - 2500).max() < 25
    )  # in parts of equal area up to those that are cut
    assert (
        np.abs(quarters[1] - 2500).max() < 4 * 35
    )  # drawn within two triangles: 35 is one standard deviation
    assert np.array_equal(points, even_points(vertices, triangles, 10000))
    assert even_points(vertices, triangles[:0], 10).shape == (0, 3)


@pytest.mark.parametrize("turn", [(0, 0, 0), (20, 140, -30)])
def test_a_point_of_a_ball_is_seen_where_its_normal_says(turn):
    outer, triangles = ball(100.0)
    inner, _ = ball(60.0)
    rotation = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    landmarks, both = front(outer) @ rotation.T, np.concatenate([outer, inner]) @ rotation.T
    mesh = np.concatenate([triangles, len(outer) + triangles])
    points = even_points(both, mesh, 4000)
    seen = seen_from_outside(points, both, mesh, landmarks)
    local = points @ rotation
    on_outer = np.linalg.norm(local, axis=1) > 80
    towards = np.array([[np.sin(a), 0, np.cos(a)] for a in np.radians([-45, 0, 45])])
    most = (local / np.linalg.norm(local, axis=1)[:, None] @ towards.T).max(1)
    assert not seen[~on_outer].any()
    # Half a pixel's diagonal, 0.28 mm, of a surface with a cosine of 0.27 is 1 mm deep; behind the limb, 1 mm
    # is a cosine of -0.14.
    assert seen[on_outer & (most > 0.3)].all() and not seen[on_outer & (most < -0.16)].any()


def test_score_depends_on_the_surface_not_on_its_mesh(folder, person):
    """A scan that is twice as dense on one side and has a second surface inside gives the same error, where
    its vertices do not."""
    truth = load_truth(folder)
    bumps = 1.5 * np.sin(truth.vertices[:, :1] / 15 + np.array([0.0, 1.0, 2.0])) * (truth.vertices[:, :1] > 0)
    prediction = predicted(person, truth.vertices + bumps)
    a, b, c = truth.triangles.T
    right = (truth.vertices[truth.triangles][..., 0] > 0).all(1)
    middle = len(truth.vertices) + np.arange(right.sum())
    split = np.concatenate([np.stack([p[right], q[right], middle], 1) for p, q in ((a, b), (b, c), (c, a))])
    vertices = np.concatenate([truth.vertices, truth.vertices[truth.triangles[right]].mean(1)])
    inside = np.concatenate([vertices, vertices - [0, 0, 15.0]])
    triangles = np.concatenate([truth.triangles[~right], split])
    face = np.concatenate([truth.face, middle])
    other = Truth(
        inside,
        np.concatenate([triangles, triangles + len(vertices)]),
        truth.landmarks,
        np.concatenate([face, face + len(vertices)]),
    )
    want, got = score(prediction, truth), score(prediction, other)
    for key in ("now_mean", "now_median", "points_mean"):
        assert got[key] == pytest.approx(want[key], abs=0.01), key  # two samples of some thousand points
    crop = other.vertices[now_crop(other.vertices, other.landmarks[POINTS])]
    naive = scan_to_mesh(
        prediction.vertices, prediction.triangles, prediction.landmarks[POINTS], crop, other.landmarks[POINTS]
    )
    assert naive.mean > want["now_mean"] + 1


# ---- files ----


def as_scan(folder):
    """Rename the neutral mesh and what belongs to it as in a folder of a scan."""
    for old, new in zip(*TRUTH_FILES):
        (folder / old).rename(folder / new)


def test_a_scan_is_read_like_a_neutral_mesh(folder):
    want = load_truth(folder)
    as_scan(folder)
    got = load_truth(folder)
    for key in ("vertices", "triangles", "landmarks", "face"):
        assert np.array_equal(getattr(got, key), getattr(want, key)), key
    shutil.move(folder, folder.with_name("data") / "ground_truth" / "anna")
    (folder.with_name("data") / "anna").mkdir()
    assert subject_names(folder.with_name("data")) == ["anna"]


def test_truth_that_cannot_be_used_is_refused(folder):
    points = np.load(folder / "landmarks3d_neutral.npy")
    np.save(folder / "landmarks3d_neutral.npy", points + [0, 0, 1000])
    with pytest.raises(
        InputError,
        match="no skin of face_region.npy can be seen around the landmarks; expected neutral.ply, .* in "
        "one frame",
    ):
        load_truth(folder)
    np.save(folder / "landmarks3d_neutral.npy", points)
    np.save(folder / "face_region.npy", np.array([7, 200]))  # corners of no triangle
    with pytest.raises(InputError, match="no skin of face_region.npy"):
        load_truth(folder)
    as_scan(folder)
    np.save(folder / "face_region_front.npy", np.array([0, 100000]))
    with pytest.raises(
        InputError, match="face_region_front.npy: expected indices of the 315 vertices of mesh.ply"
    ):
        load_truth(folder)
    (folder / "face_region_front.npy").unlink()
    with pytest.raises(InputError, match="face_region_front.npy: cannot be read"):
        load_truth(folder)
    (folder / "mesh.ply").unlink()
    with pytest.raises(InputError, match="neutral.ply: no such mesh file"):
        load_truth(folder)


@pytest.mark.slow
def test_faces_in_the_photos(folder, person):
    truth, prediction = load_truth(folder), predicted(person)
    truths = load_photo_truths(folder, truth, prediction.views)
    assert list(truths) == ["view0", "view1", "view2"]
    assert all(v < 1e-4 for v in score_photos(prediction, truths).values())  # landmarks are stored as float32
    neutral = replace(
        prediction,
        posed=np.stack([prediction.vertices] * 3),
        posed_landmarks=np.stack([prediction.landmarks] * 3),
    )
    # The neutral face against that of each photo.
    each = [score(prediction, t)["now_mean"] for t in truths.values()]
    assert score_photos(neutral, truths)["photos_mean"] == pytest.approx(np.mean(each)) and min(each) > 0.1
    for file in ("view1.ply", "landmarks3d_view2.npy"):
        (folder / file).unlink()
    assert list(load_photo_truths(folder, truth, prediction.views)) == ["view0"]
    (folder / "view0.ply").rename(folder / "mesh.ply")
    (folder / "landmarks3d_view0.npy").rename(folder / "landmarks3d.npy")
    shared = load_photo_truths(folder, truth, prediction.views)
    assert list(shared) == list(prediction.views) and len({id(t) for t in shared.values()}) == 1
    assert set(score_photos(prediction, {}).values()) == {None}
    bare = replace(prediction, posed=None, posed_landmarks=None)  # as the mean face
    assert score_photos(bare, truths) == score_photos(neutral, truths)


def test_faces_in_the_photos_that_cannot_be_used_are_refused(folder, person):
    truth = load_truth(folder)
    np.save(folder / "landmarks3d_view1.npy", np.zeros((51, 3)))
    with pytest.raises(InputError, match=r"landmarks3d_view1.npy: expected \[68, 3\], got \[51, 3\]"):
        load_photo_truths(folder, truth, ["view0", "view1"])
    write_ply(folder / "view1.ply", person.neutral[:-1], torch.tensor([[0, 1, 2]]))
    with pytest.raises(InputError, match="view1.ply: expected the 315 vertices of the neutral mesh, got 314"):
        load_photo_truths(folder, truth, ["view1"])
