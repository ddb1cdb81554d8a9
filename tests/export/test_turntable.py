"""The film is read back frame by frame."""

from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers import tiny_model, tiny_result
from test_export_targets import small_textures, without_photos  # noqa: F401

from fitkit.errors import InputError
from fitkit.export.preview import draw_turn
from fitkit.export.targets import ExportOptions, export_result, turntable
from fitkit.export.targets.turntable import drawn_edges, write_turntable
from fitkit.export.topology import topology_of, with_quads


@pytest.fixture
def short(monkeypatch):
    """A small film of few frames."""
    monkeypatch.setattr(turntable, "FRAMES", 4)
    monkeypatch.setattr(turntable, "SIZE", 64)


def frames_of(path):
    film, frames = cv2.VideoCapture(str(path)), []
    while True:
        there, frame = film.read()
        if not there:
            return frames, film.get(cv2.CAP_PROP_FPS)
        frames.append(frame[..., ::-1].astype(float))


def test_the_film_shows_a_whole_turn(tmp_path, short):
    result = tiny_result()
    path, notes = export_result(result, "turntable", tmp_path / "out")
    assert notes == [] and [p.name for p in path.iterdir()] == ["turntable.mp4"]
    frames, rate = frames_of(path / "turntable.mp4")
    assert len(frames) == 4 and rate == 24 and frames[0].shape == (64, 64, 3)
    # The tiny head is half an ellipsoid: high where it is open, low where its nose points to.
    heights = [(frame[:, :, 0] > frame[:, :, 2] + 5).sum(0) for frame in frames]  # skin is red
    right, left = (h[h > 0] for h in heights[1::2])
    assert right[:6].mean() > 1.3 * right[-6:].mean() and left[-6:].mean() > 1.3 * left[:6].mean()


def test_colours_are_those_of_texture_model_or_clay():
    model = tiny_model()
    green = np.zeros((8, 8, 3), np.uint8) + np.array([20, 200, 20], np.uint8)
    drawn = {
        name: next(iter(draw_turn(model.mean, one, texture, frames=1, size=48)))[24, 24].astype(int)
        for name, one, texture in (
            ("texture", model, green),
            ("albedo", model, None),
            ("clay", replace(model, albedo_mean=None), None),
        )
    }
    r, g, b = drawn["texture"]
    assert g > r + 80 and g > b + 80
    assert drawn["albedo"][0] > drawn["albedo"][2] + 20
    assert np.ptp(drawn["clay"]) < np.ptp(drawn["albedo"])


def test_without_photos_a_note_says_so(tmp_path, short):
    _, notes = export_result(without_photos(tiny_result()), "turntable", tmp_path / "out")
    assert len(notes) == 1 and notes[0].startswith("the texture could not be computed (view view0: the photo")
    plain = tiny_result(model=replace(tiny_model(), uv=None, uv_triangles=None))
    assert export_result(plain, "turntable", tmp_path / "plain")[1] == []


def test_edges_are_those_of_the_exported_faces():
    model = tiny_model()
    shown = with_quads(model, topology_of(model))
    expected = Counter()
    for corners, _ in shown.faces(0):
        for face in shown.vertex[corners].tolist():
            expected.update({frozenset(edge) for edge in zip(face, face[1:] + face[:1])})
    edges, found = drawn_edges(model), set()
    for triangle, shows in zip(model.triangles.tolist(), edges.tolist()):
        for k in range(3):
            if shows[k]:
                found.add(frozenset((triangle[(k + 1) % 3], triangle[(k + 2) % 3])))
    assert found == set(expected) and not edges.all()


def test_wires_lie_on_the_projected_edges():
    # A square of two triangles before the camera, 100 mm wide; its diagonal is no edge of the quad.
    corners = torch.tensor([[-50.0, -50, 0], [50, -50, 0], [50, 50, 0], [-50, 50, 0]])
    points = torch.cat([corners, corners.new_tensor([[0.0, 0, -200]]).repeat(64, 1)])
    model = tiny_model()
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    marks = replace(
        model.landmarks, triangle=torch.zeros(68, dtype=torch.int64), barycentric=torch.full((68, 3), 1 / 3)
    )
    flat = torch.zeros(len(points), 3)
    square = replace(
        model,
        mean=points,
        triangles=faces,
        landmarks=marks,
        skin=torch.arange(len(points)) < 4,
        face=torch.arange(len(points)) < 4,
        albedo_mean=None,
        uv=None,
        uv_triangles=None,
        identity_basis=flat[None],
        expression_basis=flat[None],
        expression_names=("a",),
        region=torch.zeros(len(points), dtype=torch.int64),
    )
    edges = np.array([[True, False, True], [True, True, False]])
    pictures = [next(iter(draw_turn(points, square, None, e, 1, 96))).astype(int) for e in (None, edges)]
    changed = np.abs(pictures[1] - pictures[0]).sum(-1) > 60
    rows, columns = np.nonzero(changed)
    inside = changed[rows.min() + 3 : rows.max() - 2, columns.min() + 3 : columns.max() - 2]
    assert inside.size > 300 and not inside.any()  # no diagonal
    sides = changed[rows.min()], changed[rows.max()], changed[:, columns.min()], changed[:, columns.max()]
    assert all(side.sum() > 0.9 * np.ptp(rows) for side in sides)
    all_edges = next(iter(draw_turn(points, square, None, np.ones((2, 3), bool), 1, 96))).astype(int)
    middle = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
    assert np.abs(all_edges - pictures[0])[middle].sum() > 60


def test_the_wireframe_is_drawn_on_request(tmp_path, short, monkeypatch):
    monkeypatch.setattr(turntable, "FRAMES", 1)
    monkeypatch.setattr(turntable, "SIZE", 256)
    result = without_photos(tiny_result())
    for name, wireframe in (("plain", False), ("wires", True)):
        export_result(result, "turntable", tmp_path / name, ExportOptions(wireframe=wireframe))
    (plain,), (wires,) = (frames_of(tmp_path / n / "turntable.mp4")[0] for n in ("plain", "wires"))
    darker = (plain - wires).sum(-1)[100:150, 100:150]
    assert (darker > 60).mean() > 0.05 and (darker < 20).mean() > 0.3
    with pytest.raises(InputError, match="^export: wireframe is for target turntable, got target 'usd'$"):
        export_result(result, "usd", tmp_path / "a", ExportOptions(wireframe=True))


def test_a_film_that_was_not_written_whole_is_none(tmp_path, short, monkeypatch):
    monkeypatch.setattr(turntable, "draw_turn", lambda *_: [np.zeros((64, 64, 3), np.uint8)] * 3)
    with pytest.raises(
        InputError, match="OpenCV could not write it whole; is the disk full?.*nothing was left"
    ):
        export_result(tiny_result(), "turntable", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_the_codec(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda self: False, raising=False)
    with pytest.raises(InputError, match="this build of OpenCV writes no MPEG-4; install opencv-python"):
        write_turntable(without_photos(tiny_result()), tmp_path, ExportOptions())
