from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from fitkit.errors import InputError
from fitkit.models.registry import load_model
from fitkit.scene.pose import yaw_pitch_roll
from fitkit.synth.random_faces import FaceVariation, face_contour, face_state, outline_points, random_face
from fitkit.synth.shards import read_shard, render_faces, shard_paths
from fitkit.synth.studio import head_shot_state

SIZE = 96
BARE = FaceVariation(bald=1.0, hat=0.0, glasses=0.0, dark_glasses=0.0, occluded=0.0, cut=0.0)


@pytest.fixture(scope="module")
def model():
    return load_model("generic")


def test_landmarks_are_the_models_points_seen_by_the_camera(model):
    """An independent projection in float64 from the parts of the state."""
    for seed in range(4):
        state = face_state(model, seed, SIZE)
        head = (
            model.mean.double().numpy()
            + np.tensordot(state.identity[0].double().numpy(), model.identity_basis.double().numpy(), 1)
            + np.tensordot(state.expression[0].double().numpy(), model.expression_basis.double().numpy(), 1)
        )
        corners = head[model.triangles[model.landmarks.triangle].numpy()]
        points = (model.landmarks.barycentric.double().numpy()[..., None] * corners).sum(1)
        placed = (
            points @ state.pose.rotation[0].double().numpy().T + state.pose.translation[0].double().numpy()
        )
        pixels = (
            placed[:, :2] / placed[:, 2:] * float(state.camera.focal)
            + state.camera.principal[0].double().numpy()
        )
        face = random_face(model, seed, SIZE)
        assert face.landmarks.dtype == np.float32 and face.landmarks.shape == (68, 2)
        np.testing.assert_allclose(face.landmarks, pixels, atol=2e-3)  # float32 geometry
        np.testing.assert_allclose(
            face.yaw_pitch_roll, yaw_pitch_roll(state.pose.rotation)[0].numpy(), atol=1e-4
        )


def test_face_fills_the_picture_as_asked_and_coefficients_stay_in_range(model):
    variation = replace(BARE, fill=(1.4, 1.5), shift=0.02)
    for seed in range(20):
        state = face_state(model, seed, SIZE, variation)
        points = state.camera.project(
            state.pose.apply(model.landmark_points(state.identity, state.expression))
        )[0][0].numpy()
        extent = np.ptp(points, axis=0).max()
        assert SIZE / 1.5 - 0.1 < extent < SIZE / 1.4 + 0.1
        assert np.abs((points.min(0) + points.max(0)) / 2 - (SIZE - 1) / 2).max() <= 0.02 * SIZE + 0.1
        assert 0 <= float(state.expression.min()) and float(state.expression.max()) <= 1
        assert float(state.identity.abs().max()) <= 2.7 + 1e-5


def test_gaussian_expressions_spread_as_the_model_says(model):
    sigma = torch.linspace(0.5, 2, model.num_expression)
    signed = replace(model, expression_kind="gaussian", expression_sigma=sigma)
    faces = [
        face_state(signed, seed, SIZE, replace(BARE, expression=(0.8, 0.8), neutral=0.2)).expression[0]
        for seed in range(60)
    ]
    neutral = [bool((e == 0).all()) for e in faces]
    assert 3 < sum(neutral) < 24
    drawn = torch.stack([e for e, flat in zip(faces, neutral) if not flat]) / sigma
    assert float(drawn.std()) == pytest.approx(0.8, rel=0.05) and abs(float(drawn.mean())) < 0.05
    assert float(drawn.abs().max()) <= 2.7 + 1e-5


def _nearest_hits(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Depth of the first triangle [F, 3, 3] on the ray from the origin to each point [N, 3], by Moeller and
    Trumbore, 1997."""
    out = np.empty(len(points))
    a, ab, ac = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    for i, ray in enumerate(points):
        h = np.cross(ray, ac)
        det = (ab * h).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            u = -(a * h).sum(1) / det
            q = np.cross(-a, ab)
            v = (q @ ray) / det
            t = (ac * q).sum(1) / det
            hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
        out[i] = (t[hit].min() if hit.any() else np.inf) * ray[2]
    return out


def test_visibility_is_that_of_rays_through_the_triangles(model):
    wrong = total = 0
    for seed in range(6):
        state = face_state(model, seed, SIZE, BARE)
        face = random_face(model, seed, SIZE, BARE)
        vertices = state.pose.apply(model.vertices(state.identity, state.expression))
        points = model.landmarks.points(vertices, model.triangles)[0].double().numpy()
        behind = points[:, 2] - _nearest_hits(points, vertices[0].double().numpy()[model.triangles.numpy()])
        inside = ((face.landmarks >= -0.5) & (face.landmarks <= SIZE - 0.5)).all(1)
        assert not face.visible[~inside].any()
        # Between them the tolerance for slanted surfaces decides.
        clear = inside & ((behind < 1) | (behind > 10))
        wrong += int((face.visible[clear] != (behind[clear] < 1)).sum())
        total += int(clear.sum())
    assert total > 300 and wrong <= 0.02 * total  # a z-buffer sees the edges of what hides only to a sample


def test_hidden_by_something_in_front(model):
    """What is drawn in front hides landmarks and never shows more of them."""
    covered = replace(BARE, occluded=1.0)
    pairs = [
        (random_face(model, seed, SIZE, BARE).visible, random_face(model, seed, SIZE, covered).visible)
        for seed in range(8)
    ]
    assert all((with_it <= without).all() for without, with_it in pairs) and any(
        (with_it < without).any() for without, with_it in pairs
    )


def test_same_seed_same_face(model):
    first, again, other = (random_face(model, seed, SIZE) for seed in (3, 3, 4))
    assert first.image.shape == (SIZE, SIZE, 3) and first.image.dtype == np.uint8
    for name in ("image", "landmarks", "visible", "outline", "yaw_pitch_roll"):
        assert (getattr(first, name) == getattr(again, name)).all()
    assert (first.image != other.image).any() and (first.landmarks != other.landmarks).any()


def test_lips_are_redder_than_the_chin(model):
    """Landmarks of lips lie on painted lips: colour is the only thing that tells them from the skin."""
    variation = replace(
        BARE,
        yaw=5.0,
        pitch=5.0,
        roll=3.0,
        neutral=1.0,
        lamp_share=0.0,
        color_cast=0.0,
        stubble=0.0,
        beard=0.0,
        make_up=0.0,
        noise=(0.0, 0.0),
        blur=(0.0, 0.0),
        motion=(0.0, 2.0),
        jpeg_share=0.0,
        reduce_share=0.0,
        monochrome=0.0,
    )
    for seed in range(3):
        face = random_face(model, seed, 160, variation)
        places = (face.landmarks[57] + face.landmarks[[66, 8]]) / 2
        lip, chin = (
            face.image[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(0) for x, y in places.astype(int)
        )
        assert lip[0] / lip[1] > 1.05 * chin[0] / chin[1]


def _view(model, yaw: float, size: int = 160):
    """The mean face, turned; the middle third of the picture."""
    return head_shot_state(
        model,
        torch.zeros(model.num_identity),
        torch.zeros(1, model.num_expression),
        torch.tensor([[yaw, 0.0, 0.0]]),
        (size, size),
    )


def _surface(model, state) -> np.ndarray:
    return state.camera.project(state.pose.apply(model.landmark_points(state.identity, state.expression)))[0][
        0, :17
    ].numpy()


@pytest.mark.parametrize("yaw", [0.0, 8.0, -9.5])
def test_outline_is_the_jaw_in_frontal_views(model, yaw):
    state = _view(model, yaw)
    np.testing.assert_allclose(outline_points(model, state, 160), _surface(model, state), atol=1e-3)


@pytest.mark.parametrize("yaw", [35.0, 55.0, 75.0, -35.0, -55.0, -90.0])
def test_outline_lies_on_the_silhouette_of_the_side_turned_away(model, yaw):
    size = 160
    state = _view(model, yaw)
    outline, surface = outline_points(model, state, size), _surface(model, state)
    near, far = (slice(0, 9), slice(9, 17)) if yaw > 0 else (slice(8, 17), slice(0, 8))
    np.testing.assert_allclose(outline[near], surface[near], atol=1e-3)
    moved = np.linalg.norm(outline - surface, axis=1) > 0.01
    assert moved[far].sum() >= 4
    # The silhouette drawn by OpenCV: all triangles of the face, filled one by one.
    points = state.camera.project(state.pose.apply(model.vertices(state.identity, state.expression)))[0][
        0
    ].numpy()
    mask = np.zeros((4 * size, 4 * size), np.uint8)
    for triangle in points[model.triangles[model.face[model.triangles].all(1)].numpy()]:
        cv2.fillConvexPoly(
            mask, np.round(((triangle + 0.5) * 4 - 0.5) * 16).astype(np.int32), 1, cv2.LINE_8, 4
        )
    # The nose may stand beyond the line of the cheek: heights at which it does are left out.
    marks = model.landmarks.points(model.mean[None], model.triangles)[0]
    beside = (marks[:17, 1] > float(marks[33, 1]) - 5).numpy() & (abs(yaw) > 50)
    distance = (
        np.maximum(
            cv2.distanceTransform(mask, cv2.DIST_L2, 5), cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
        )
        / 4
    )
    at = np.round((outline[moved & ~beside] + 0.5) * 4 - 0.5).astype(int)
    assert len(at) >= 2 and distance[at[:, 1], at[:, 0]].max() <= 1.5
    # All of them lie on the contour of the face without nose, in order from the chin upwards.
    contour = face_contour(model, state, size)
    assert np.linalg.norm(contour[None] - outline[moved][:, None], axis=-1).min(1).max() < 0.01
    heights = outline[8:17, 1] if yaw > 0 else outline[8::-1, 1]
    assert (np.diff(heights) < 1.0).all()


def test_outline_of_the_mirrored_view_is_mirrored(model):
    left, right = (outline_points(model, _view(model, yaw), 160) for yaw in (-50.0, 50.0))
    # Contours are found to half a pixel.
    np.testing.assert_allclose(left[::-1] * [-1, 1] + [159, 0], right, atol=1.0)


def test_shards_resume_and_hold_the_faces(model, tmp_path):
    done = []
    paths = render_faces(
        ["generic"],
        5,
        tmp_path,
        seed=7,
        size=64,
        shard_size=2,
        progress=lambda n, total: done.append((n, total)),
    )
    assert [p.name for p in paths] == ["shard_00000.npz", "shard_00001.npz", "shard_00002.npz"] and done == [
        (2, 5),
        (4, 5),
        (5, 5),
    ]
    assert (
        shard_paths(tmp_path) == paths and len(list(tmp_path.iterdir())) == 3
    )  # nothing half written is left
    shard, face = read_shard(paths[1]), random_face(model, 9, 64)
    assert (
        shard.images.shape == (2, 64, 64, 3)
        and shard.model == ("generic", "generic")
        and list(shard.seed) == [9, 10]
    )
    for name in ("landmarks", "visible", "outline", "yaw_pitch_roll"):
        np.testing.assert_array_equal(getattr(shard, name)[0], getattr(face, name))
    assert np.abs(shard.images[0].astype(int) - face.image).mean() < 4  # JPEG
    kept, before = paths[0].stat().st_mtime_ns, paths[1].read_bytes()
    paths[1].unlink()
    render_faces(["generic"], 5, tmp_path, seed=7, size=64, shard_size=2, progress=lambda n, total: None)
    assert paths[0].stat().st_mtime_ns == kept
    assert (read_shard(paths[1]).images == shard.images).all() and len(before) == len(paths[1].read_bytes())


def test_refusals(model, tmp_path):
    (path,) = render_faces(["generic"], 1, tmp_path, size=64, progress=lambda n, total: None)
    with pytest.raises(InputError, match="holds other faces than asked for"):
        render_faces(["generic"], 1, tmp_path, seed=5, size=64, progress=lambda n, total: None)
    path.write_bytes(path.read_bytes()[:2000])
    for damaged in (
        lambda: read_shard(path),
        lambda: render_faces(["generic"], 1, tmp_path, size=64, progress=lambda n, total: None),
    ):
        with pytest.raises(
            InputError,
            match=r"shard_00000.npz: not a readable shard of rendered faces .*; delete it and render it "
            r"again",
        ):
            damaged()
    with pytest.raises(InputError, match="no shards of rendered faces here"):
        shard_paths(tmp_path / "empty")
    with pytest.raises(InputError, match="expected at least one model"):
        render_faces([], 3, tmp_path)
    with pytest.raises(InputError, match="expected size of 32 px or more"):
        random_face(model, 0, 16)
    with pytest.raises(InputError, match="no such folder of background pictures"):
        random_face(model, 0, 64, FaceVariation(backgrounds=tmp_path / "none"))
