import json
import re

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fitkit.errors import InputError
from fitkit.io.landmark_files import check_inside, read_landmarks, without_strays, write_pts
from fitkit.observe.landmarks.face_shape import mean_face

POINTS = np.random.default_rng(0).uniform(20, 200, (68, 2)).round(3)


def pts(points, head="version: 1\nn_points: 68\n{\n", tail="}\n"):
    return head + "".join(f"{x:.3f} {y:.3f}\n" for x, y in points) + tail


@pytest.mark.parametrize("text", [
    pts(POINTS + 1),
    pts(POINTS + 1, "version 1\r\nn_points 68\r\n{\r\n"),
    pts(POINTS + 1, "\ufeff# made by hand\nVersion: 1.0\n\nN_Points:68\n{ // begin\n", "\n}\n\n"),
    pts(POINTS + 1, "", ""),
    "n_points: 68\n{\n" + "".join(f"{x}, {y}  # p\n\n" for x, y in POINTS + 1) + "}",
])
def test_pts_variants_are_counted_from_one(tmp_path, text):
    path = tmp_path / "a.pts"
    path.write_text(text, encoding="utf-8")
    points = read_landmarks(path)
    assert points.shape == (68, 3) and points.dtype == np.float64
    np.testing.assert_allclose(points[:, :2], POINTS, atol=1e-9)
    assert (points[:, 2] == 1).all()


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("suffix", [".npy", ".json", ".txt", ".TXT"])
def test_other_formats_are_counted_from_zero(tmp_path, suffix, columns):
    table = np.column_stack([POINTS, np.linspace(0.1, 1, 68)])[:, :columns]
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, table)
    elif suffix == ".json":
        path.write_text(json.dumps({"landmarks": table.tolist()} if columns == 3 else table.tolist()))
    else:
        path.write_text("# x y\n" + "".join(", ".join(map(str, row)) + "\n" for row in table))
    points = read_landmarks(path)
    np.testing.assert_allclose(points[:, :columns], table)
    assert columns == 3 or (points[:, 2] == 1).all()


def test_points_not_seen(tmp_path):
    table = np.column_stack([POINTS, np.ones(68)])
    table[3, 0], table[4, 2], table[5, 2] = np.nan, 0, np.nan
    np.save(tmp_path / "a.npy", table)
    points = read_landmarks(tmp_path / "a.npy")
    assert np.isnan(points[3:6, :2]).all() and (points[3:6, 2] == 0).all()
    assert np.isfinite(points).all(1).sum() == 65

    rows = POINTS.tolist()
    rows[0], rows[1] = None, [None, None]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    assert np.isnan(read_landmarks(tmp_path / "b.json")[:, 0]).tolist() == [True, True] + [False] * 66


@pytest.mark.parametrize("name, content, message", [
    ("a.pts", pts(POINTS[:5] + 1, "version: 1\nn_points: 5\n{\n"), r"a\.pts: landmarks: expected 68 points.*got \[5, 2\].*remove it"),
    ("a.pts", pts(POINTS[:67]), "n_points says 68, but there are 67"),
    ("a.pts", "version: 1\n{\nhello world\n}\n", "a.pts: not a readable landmark file"),
    ("a.pts", "", r"a\.pts: landmarks: expected 68 points"),
    ("a.txt", "1 2\n3 4 5\n", "different numbers of values"),
    ("a.txt", "a portrait of Anna", "a.txt: not a readable landmark file"),
    ("a.json", "{\"points\": []}", "expected a list of points"),
    ("a.json", "{not json", "a.json: not a readable landmark file"),
    ("a.json", "7", "expected a list of points"),
    ("a.json", "[[1, 2], 3]", "a.json: not a readable landmark file"),
    ("a.npy", "text", "a.npy: not a readable landmark file"),
    ("a.npy", np.zeros((2, 68)), r"expected 68 points.*got \[2, 68\]"),
    ("a.npy", np.array([{"x": 1}]), "a.npy: not a readable landmark file"),
    ("a.npy", np.zeros((68, 2), complex), "array of numbers"),
    ("a.npy", np.full((68, 2), np.inf), "infinite values; use NaN"),
    ("a.npy", np.column_stack([POINTS, np.linspace(-60, 60, 68)]), "third column is the confidence.*leave out a depth"),
    ("a.pts", b"\xff\xfe\x00\x01" * 20, "a.pts: not a readable landmark file"),
    ("a.csv", "1 2", "expected a landmark file .pts"),
])
def test_wrong_files_are_refused_by_name(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read_landmarks(path)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="none.pts: not a readable landmark file"):
        read_landmarks(tmp_path / "none.pts")


def face(offset=0.0, scale=1.0):
    return np.column_stack([POINTS * scale + offset, np.ones(68)])


def test_points_inside_or_slightly_outside_are_fine():
    check_inside(face(), (256, 256), "a.pts")
    check_inside(face(-60), (180, 180), "a.pts")  # tight crop: a quarter cut off
    check_inside(np.full((68, 3), np.nan), (256, 256), "a.pts")


@pytest.mark.parametrize("points, message", [
    (face(300), r"a\.pts: 68 of 68 landmarks lie outside the image of 256 x 256 px .x 3\d\d.*another image"),
    (face(0, 4.0), "lie outside the image"),
    (face(-2000), "lie outside the image"),
    (face(0, 1 / 256), "span only .* px; they must be in pixels"),
])
def test_points_of_another_image_are_refused(points, message):
    with pytest.raises(InputError, match=message):
        check_inside(points, (256, 256), "a.pts")


def test_writing_pts(tmp_path):
    points = np.random.default_rng(0).uniform(-5, 4000, (68, 2))
    points[7] = np.nan
    write_pts(tmp_path / "a.pts", points)
    assert (tmp_path / "a.pts").read_text().splitlines()[:3] == ["version: 1", "n_points: 68", "{"]
    back = read_landmarks(tmp_path / "a.pts")
    np.testing.assert_allclose(back[:, :2], points, atol=6e-4)
    assert back[7, 2] == 0 and back[8, 2] == 1


def with_strays(*strays):
    points = face(50.0)
    for i, x, y in strays:
        points[i, :2] = x, y
    return points


@pytest.mark.parametrize("stray", [(30, 5000.0, 80.0), (0, 80.0, -5000.0), (67, 30512.0, 80.0), (9, 1e6, 80.0), (9, 80.0, 1e19), (9, 1.7e308, -1.7e308)])
@pytest.mark.filterwarnings("error")
def test_a_point_far_from_all_others_is_left_out(stray):
    points, notes = without_strays(with_strays(stray), (224, 224), "a.pts")
    assert np.flatnonzero(np.isnan(points[:, 0])).tolist() == [stray[0]] and points[stray[0], 2] == 0
    assert len(notes) == 1 and re.match(rf"a.pts: landmark {stray[0]} \(counted from 0\) at x \S+, y \S+ lies far away from all others", notes[0])
    assert len(notes[0]) < 200
    check_inside(points, (224, 224), "a.pts")


def test_a_few_strays_are_left_out_and_many_are_none():
    few = with_strays((1, 4000.0, 80.0), (2, 80.0, 9000.0), (50, -7000.0, 80.0))
    points, notes = without_strays(few, (224, 224), "a.pts")
    assert np.flatnonzero(np.isnan(points[:, 0])).tolist() == [1, 2, 50] and len(notes) == 3
    many = with_strays(*((i, 1.7e308, -1.7e308) for i in range(20)))
    assert without_strays(many, (224, 224), "a.pts")[1] == []
    with pytest.raises(InputError, match=r"a.pts: \d+ of 68 landmarks lie outside the image of 224 x 224 px \(x .*1.7e\+308"):
        check_inside(many, (224, 224), "a.pts")


def test_faces_in_all_poses_have_no_strays():
    mean = mean_face()
    for yaw in range(-90, 91, 15):
        for pitch in (-60, -30, 0, 30, 60):
            turned = mean @ Rotation.from_euler("yx", [yaw, pitch], degrees=True).as_matrix().T
            points = np.column_stack([turned[:, :2], np.ones(68)])
            for shown in (slice(0, 68), slice(0, 30), slice(27, 68)):  # the others are not seen
                part = np.full((68, 3), np.nan)
                part[shown] = points[shown]
                assert without_strays(part, (1000, 1000), "a")[1] == []
    assert without_strays(np.full((68, 3), np.nan), (100, 100), "a")[1] == []
