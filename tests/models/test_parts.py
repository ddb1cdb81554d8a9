import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import fitkit
from fitkit.models.formats.parts import Carrier, at_vertices, parts_of, with_uv

GENERIC = fitkit.load_model("generic")


def test_landmarks_at_vertices():
    triangles = np.array([[0, 1, 2], [2, 1, 3], [3, 4, 0]])
    marks = at_vertices(triangles, [3, 0, -1, *[1] * 65])
    assert marks.triangle[:4].tolist() == [1, 0, -1, 0] and marks.missing == (2,)
    vertices = torch.arange(15.0).reshape(1, 5, 3)
    torch.testing.assert_close(
        marks.points(vertices, torch.from_numpy(triangles))[0, :2], vertices[0, [3, 0]]
    )


def test_parts_of_another_mesh_of_the_same_head():
    """Every triangle of `generic` in four, moved and bent: parts are known."""
    mean, triangles = GENERIC.mean.numpy(), GENERIC.triangles.numpy()
    edges = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1)
    pairs, at = np.unique(edges, axis=0, return_inverse=True)
    middle = at.reshape(-1, 3) + len(mean)
    ab, bc, ca = middle.T
    a, b, c = triangles.T
    fine = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    points = np.concatenate([mean, mean[pairs].mean(1)])
    points = points * [1.1, 0.95, 1.05] + [0.0, 4.0, -3.0]
    corner = GENERIC.landmarks.triangle.numpy()  # the first quarter of each triangle holds its corner a
    marks = at_vertices(fine, triangles[corner, GENERIC.landmarks.barycentric.argmax(1).numpy()])
    parts = parts_of(points, fine, marks)
    assert parts.region_names == GENERIC.region_names
    same = parts.region[: len(mean)] == GENERIC.region
    assert float(same.float().mean()) > 0.97
    assert float((parts.skin[: len(mean)] == GENERIC.skin).float().mean()) > 0.97


def test_shoulders_are_no_skin():
    far = GENERIC.mean.numpy() + [0, -400, 0]
    points = np.concatenate([GENERIC.mean.numpy(), far])
    triangles = GENERIC.triangles.numpy()
    parts = parts_of(points, np.concatenate([triangles, triangles + len(far)]), GENERIC.landmarks)
    below = parts.region[len(far) :]
    assert not parts.skin[len(far) :].any() and bool((below == GENERIC.region_names.index("neck")).all())
    torch.testing.assert_close(parts.skin[: len(far)], GENERIC.skin)


def test_shapes_carried_to_the_same_head():
    names = ("eyeLookUp_L", "eyeBlink_R", "mouthSmile_L", "jawOpen")
    rows = [GENERIC.expression_names.index(name) for name in names]
    wanted = torch.cat([GENERIC.expression_basis[rows], GENERIC.identity_basis[:2]])
    mean = GENERIC.mean.double().numpy()
    got = Carrier(mean, mean, GENERIC.triangles.numpy())(wanted)
    inside = torch.tensor(
        [name.startswith(("mouth", "teeth", "gums", "tongue")) for name in GENERIC.region_names]
    )
    outside = ~inside[GENERIC.region]
    rest, size = ((v.square().sum(-1)[:, outside].sum(1)).sqrt() for v in (got - wanted, wanted))
    assert bool((rest < 0.15 * size).all()), (rest / size).tolist()


def test_eyeballs_stay_round():
    """Though they are looked for among lids and sockets, they move as a whole."""
    mean = GENERIC.mean.double().numpy()
    look = GENERIC.expression_basis[[GENERIC.expression_names.index("eyeLookUp_L")]]
    moved = mean + Carrier(mean, mean, GENERIC.triangles.numpy())(look)[0].double().numpy()
    ball = (GENERIC.region == GENERIC.region_names.index("eye_left")).numpy()
    radius = np.linalg.norm(moved[ball] - moved[ball].mean(0), axis=1)
    before = np.linalg.norm(mean[ball] - mean[ball].mean(0), axis=1)
    assert np.abs(radius / before - 1).max() < 0.1  # a turn as a straight line stretches a little


def test_texture_coordinates_are_made():
    pytest.importorskip("xatlas")
    model = with_uv(replace(GENERIC, uv=None, uv_triangles=None))
    uv, corners = model.uv.numpy(), model.uv_triangles.numpy()
    assert corners.shape == GENERIC.triangles.shape and 0 <= uv.min() and uv.max() <= 1
    a, b, c = uv[corners].transpose(1, 2, 0)
    (x, y), (u, v) = b - a, c - a
    area = np.abs(x * v - y * u) / 2
    assert 0.4 < area.sum() < 1  # well filled, and no triangle on another one
    pieces = np.unique(corners[GENERIC.face.numpy()[GENERIC.triangles.numpy()].all(1)])
    assert len(pieces) < 1.5 * int(GENERIC.face.sum())  # charts of many triangles
    assert with_uv(GENERIC) is GENERIC


def test_without_xatlas(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "xatlas", None)
    assert with_uv(replace(GENERIC, uv=None, uv_triangles=None)).uv is None
    assert "pip install xatlas" in caplog.text
