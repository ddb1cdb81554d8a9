import json
import re

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fitkit.errors import InputError
from fitkit.io.landmark_files import (
    NoLandmarksError,
    check_inside,
    open_landmarks,
    read_landmarks,
    without_strays,
    write_pts,
)
from fitkit.observe.landmarks.face_shape import mean_face

POINTS = np.random.default_rng(0).uniform(20, 200, (68, 2)).round(3)


def pts(points, head="version: 1\nn_points: 68\n{\n", tail="}\n"):
    return head + "".join(f"{x:.3f} {y:.3f}\n" for x, y in points) + tail


@pytest.mark.parametrize(
    "text",
    [
        pts(POINTS + 1),
        pts(POINTS + 1, "version 1\r\nn_points 68\r\n{\r\n"),
        pts(POINTS + 1, "\ufeff# made by hand\nVersion: 1.0\n\nN_Points:68\n{ // begin\n", "\n}\n\n"),
        pts(POINTS + 1, "", ""),
        "n_points: 68\n{\n" + "".join(f"{x}, {y}  # p\n\n" for x, y in POINTS + 1) + "}",
    ],
)
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


@pytest.mark.parametrize(
    "suffix, written, first",
    [
        (".npy", -1, 0),
        (".npy", 0, 0),
        (".txt", 0, 0),
        (".json", -9999, 0),
        (".pts", -1, 1),
        (".pts", 0, 1),
        (".pts", 1, 1),
    ],
)  # the last: 0 0, counted from 1
def test_placeholders_of_hidden_points(tmp_path, suffix, written, first):
    table = POINTS + first
    table[:9] = written
    table[9] = [written, 50.0]  # at the border
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, table)
    elif suffix == ".json":
        path.write_text(json.dumps(table.tolist()))
    else:
        path.write_text("".join(f"{x:.3f} {y:.3f}\n" for x, y in table))
    read = open_landmarks(path)
    assert (
        np.isnan(read.points[:9, :2]).all()
        and (read.points[:9, 2] == 0).all()
        and (read.points[9:, 2] == 1).all()
    )
    np.testing.assert_allclose(read.points[10:, :2], POINTS[10:])
    assert read.points[9, 0] == written - first
    assert read.notes == (f"points written as {written} {written} count as not seen",)


ROWS, OBJECTS = POINTS.tolist(), [{"x": x, "y": y, "z": 3.0} for x, y in POINTS]


@pytest.mark.parametrize(
    "content",
    [
        [ROWS],
        {"landmarks": [ROWS]},
        {"points": ROWS},
        {"faces": [{"box": [1, 2, 3, 4], "score": 0.9, "landmarks": ROWS}]},
        OBJECTS,
        {"landmarks": OBJECTS},
        {"kps": ROWS[:5], "landmark_68": ROWS},
        {"x": POINTS[:, 0].tolist(), "y": POINTS[:, 1].tolist()},
        {"points": {str(i): p for i, p in reversed(list(enumerate(ROWS, 1)))}},
        {"landmarks": ROWS, "landmarks_before": ROWS},
    ],
)
def test_json_of_detectors(tmp_path, content):
    (tmp_path / "a.json").write_text(json.dumps(content))
    np.testing.assert_array_equal(read_landmarks(tmp_path / "a.json")[:, :2], POINTS)


def test_array_of_one_face(tmp_path):
    np.save(tmp_path / "a.npy", POINTS[None])
    np.testing.assert_array_equal(read_landmarks(tmp_path / "a.npy")[:, :2], POINTS)


@pytest.mark.parametrize("separator", [" ", "\t", ";", "; ", ", "])
@pytest.mark.parametrize("suffix", [".pts", ".txt"])
def test_decimal_commas(tmp_path, separator, suffix):
    rows = [f"{x:.3f}{separator}{y:.3f}".replace(".", ",") for x, y in POINTS + (suffix == ".pts")]
    rows[3] = f"-1{separator}-1"
    (tmp_path / f"a{suffix}").write_text("\n".join(rows))
    read = open_landmarks(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(np.delete(read.points, 3, 0)[:, :2], np.delete(POINTS, 3, 0), atol=1e-9)
    assert read.notes[0] == "decimal commas were read as decimal points" and np.isnan(read.points[3, 0])


@pytest.mark.parametrize("separator", [",", ", "])
def test_commas_between_whole_numbers(tmp_path, separator):
    (tmp_path / "a.txt").write_text("".join(f"{x:.0f}{separator}{y:.0f}\n" for x, y in POINTS))
    read = open_landmarks(tmp_path / "a.txt")
    np.testing.assert_array_equal(read.points[:, :2], POINTS.round())
    assert read.notes == ()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "utf-32"])
def test_encodings(tmp_path, encoding):
    (tmp_path / "a.pts").write_text(pts(POINTS + 1), encoding=encoding)
    (tmp_path / "a.json").write_text(json.dumps(ROWS), encoding=encoding)
    for name in ("a.pts", "a.json"):
        np.testing.assert_allclose(read_landmarks(tmp_path / name)[:, :2], POINTS)
    (tmp_path / "a.txt").write_bytes(
        "# Zo\u00eb\n".encode("latin-1") + "".join(f"{x} {y}\n" for x, y in POINTS).encode()
    )
    np.testing.assert_allclose(read_landmarks(tmp_path / "a.txt")[:, :2], POINTS)


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.txt", "a photo of an astronaut, smiling"),
        ("a.txt", "1girl, solo\n"),
        ("a.txt", ""),
        ("a.json", '{"faces": []}'),
        ("a.json", "[]"),
        (
            "a.json",
            '{"title": "a.jpg", "geoData": {"latitude": 1.0, "longitude": 2.0}, "people": [{"name": '
            '"Anna"}]}',
        ),
        ("a.json", json.dumps([{"SourceFile": "a.jpg", **{f"Tag{i}": i for i in range(40)}}])),
    ],
)  # of a program that reads EXIF
def test_files_without_points_are_told_from_broken_ones(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(NoLandmarksError, match=f"{name}: not a readable landmark file .no "):
        read_landmarks(tmp_path / name)


@pytest.mark.parametrize("content", ["1 2\n3 x\n", "12.5 30.1 broken", ""])
def test_broken_pts_files_are_no_captions(tmp_path, content):
    (tmp_path / "a.pts").write_text(content)
    with pytest.raises(InputError) as error:
        read_landmarks(tmp_path / "a.pts")
    assert not isinstance(error.value, NoLandmarksError)


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "a.json",
            json.dumps([ROWS, ROWS]),
            "a.json: .*it holds 2 lists of 68 points, of several faces or kinds; keep one",
        ),
        (
            "a.json",
            json.dumps(POINTS.ravel().tolist()),
            r"a.json: .*expected a list of points \[x, y\].*got a list of 136 numbers",
        ),
        ("a.json", json.dumps({"kp": POINTS.ravel().tolist()}), "a.json: .*got an object with the keys kp"),
        ("a.json", json.dumps({"faces": [{"landmarks": ROWS[:5]}]}), r"got \[5, 2\]"),
        (
            "a.txt",
            "".join(f"{x},{y}\n".replace(".", ",") for x, y in POINTS),
            r"a.txt: .*got \[68, 4\], decimal commas\? write decimal points",
        ),
        (
            "a.json",
            json.dumps({"chin": ROWS[:17], "brow": ROWS[17:22]}),
            "a.json: .*it holds lists of 17, 5 points; write one list of 68",
        ),
        (
            "a.txt",
            "".join(f"({x}, {y})\n" for x, y in POINTS),
            r"a.txt: .*its lines hold more than numbers: '\(",
        ),
        ("a.npy", np.stack([POINTS, POINTS]), r"got \[2, 68, 2\], several faces; keep the points of one"),
        (
            "a.pts",
            pts(POINTS[:5] + 1, "version: 1\nn_points: 5\n{\n"),
            r"landmarks: expected 68 points.*got \[5, 2\].*remove it",
        ),
        ("a.pts", pts(POINTS[:67]), "n_points says 68, but there are 67"),
        ("a.pts", "version: 1\n{\nhello world\n}\n", "a.pts: not a readable landmark file"),
        ("a.pts", "", r"landmarks: expected 68 points"),
        ("a.txt", "1 2\n3 4 5\n", "different numbers of values"),
        ("a.txt", "a portrait of Anna", "a.txt: not a readable landmark file"),
        ("a.json", '{"points": []}', "expected a list of points"),
        ("a.json", "{not json", "a.json: not a readable landmark file"),
        ("a.json", "7", "expected a list of points"),
        ("a.json", "[[1, 2], 3]", "a.json: not a readable landmark file"),
        ("a.npy", "text", "a.npy: not a readable landmark file"),
        ("a.npy", np.zeros((2, 68)), r"expected 68 points.*got \[2, 68\]"),
        ("a.npy", np.array([{"x": 1}]), "a.npy: not a readable landmark file"),
        ("a.npy", np.zeros((68, 2), complex), "array of numbers"),
        ("a.npy", np.full((68, 2), np.inf), "infinite values; use NaN"),
        (
            "a.npy",
            np.column_stack([POINTS, np.linspace(-60, 60, 68)]),
            "third column is the confidence.*leave out a depth",
        ),
        ("a.pts", b"\xff\xfe\x00\x01" * 20, "a.pts: not a readable landmark file"),
        ("a.csv", "1 2", "expected a landmark file .pts"),
    ],
)
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


@pytest.mark.parametrize(
    "points, message",
    [
        (
            face(300),
            r"a\.pts: 68 of 68 landmarks lie outside the image of 256 x 256 px .x 3\d\d.*another image",
        ),
        (face(0, 4.0), "lie outside the image"),
        (face(-2000), "lie outside the image"),
        (face(0, 1 / 256), "span only .* px; they must be in pixels"),
    ],
)
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


@pytest.mark.parametrize(
    "stray",
    [
        (30, 5000.0, 80.0),
        (0, 80.0, -5000.0),
        (67, 30512.0, 80.0),
        (9, 1e6, 80.0),
        (9, 80.0, 1e19),
        (9, 1.7e308, -1.7e308),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_point_far_from_all_others_is_left_out(stray):
    points, notes = without_strays(with_strays(stray), (224, 224))
    assert np.flatnonzero(np.isnan(points[:, 0])).tolist() == [stray[0]] and points[stray[0], 2] == 0
    assert len(notes) == 1 and re.match(
        rf"landmark {stray[0]} \(counted from 0\) at x \S+, y \S+ lies far away from all others", notes[0]
    )
    assert len(notes[0]) < 200
    check_inside(points, (224, 224), "a.pts")


def test_a_few_strays_are_left_out_and_many_are_none():
    few = with_strays((1, 4000.0, 80.0), (2, 80.0, 9000.0), (50, -7000.0, 80.0))
    points, notes = without_strays(few, (224, 224))
    assert np.flatnonzero(np.isnan(points[:, 0])).tolist() == [1, 2, 50] and len(notes) == 3
    many = with_strays(*((i, 1.7e308, -1.7e308) for i in range(20)))
    assert without_strays(many, (224, 224))[1] == []
    with pytest.raises(
        InputError, match=r"a.pts: \d+ of 68 landmarks lie outside the image of 224 x 224 px \(x .*1.7e\+308"
    ):
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
                assert without_strays(part, (1000, 1000))[1] == []
    assert without_strays(np.full((68, 3), np.nan), (100, 100))[1] == []
