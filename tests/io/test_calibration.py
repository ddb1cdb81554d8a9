import json

import numpy as np
import pytest

from fitkit.errors import InputError
from fitkit.io.calibration import read_cameras

K = [[500, 0, 63.5], [0, 510, 47.5], [0, 0, 1]]
R = [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]


def write(tmp_path, content):
    path = tmp_path / "cameras.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_layouts(tmp_path):
    entry = {"K": K, "R": R, "t": [1, 2, 900], "width": 128, "height": 96, "distortion": [0.1, 0, 0, 0, 0.2]}
    for content, name in (
        ({"convention": "...", "views": [{"image": "a.jpg", **entry}]}, "a.jpg"),
        ({"a": entry}, "a"),
        ([{"name": "a.jpg", **entry}], "a.jpg"),
    ):
        camera = read_cameras(write(tmp_path, content))[name]
        np.testing.assert_allclose(camera.K, K)
        np.testing.assert_allclose(camera.R, R)
        assert (
            camera.t.tolist() == [1, 2, 900]
            and camera.size == (128, 96)
            and camera.distortion.tolist() == [0.1, 0, 0, 0, 0.2]
        )


def test_optional_parts(tmp_path):
    camera = read_cameras(
        write(tmp_path, {"a": {"K": K, "R": None, "t": None, "distortion": [[0, 0, 0, 0]]}})
    )["a"]
    assert camera.R is None and camera.t is None and camera.distortion is None and camera.size is None
    column = read_cameras(write(tmp_path, {"a": {"K": K, "R": R, "t": [[1], [2], [3]], "distortion": []}}))[
        "a"
    ]
    assert column.t.tolist() == [1, 2, 3] and column.distortion is None


@pytest.mark.parametrize("key", ["moment", "camera_id"])
def test_names_of_moments_and_cameras(tmp_path, key):
    content = {"a.jpg": {"K": K, key: "smile"}, "b.jpg": {"K": K}, "c.jpg": {"K": K, key: None}}
    assert [getattr(c, key) for c in read_cameras(write(tmp_path, content)).values()] == ["smile", "", ""]
    for wrong in (3, "", " ", ["smile"]):
        path = write(tmp_path, {"a.jpg": {"K": K, key: wrong}})
        expected = (
            f"view 'a.jpg': {key}: expected a name in quotes, the same for all photos .*, got {wrong!r}"
        )
        with pytest.raises(InputError, match=expected.replace("[", r"\[")):
            read_cameras(path)


def test_rounded_rotation_is_made_exact(tmp_path):
    angle = 0.3
    rounded = np.round([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]], 3)
    camera = read_cameras(write(tmp_path, {"a": {"K": K, "R": rounded.tolist(), "t": [0, 0, 1]}}))["a"]
    np.testing.assert_allclose(camera.R @ camera.R.T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cameras.json: not a readable JSON file"),
        ("[]", "no cameras; expected"),
        ("3", "no cameras; expected"),
        ({"convention": "x"}, "no cameras"),
        ({"views": [{"K": K}]}, "view 0: no image name"),
        ({"views": [{"image": "a", "K": K}, {"image": "a", "K": K}]}, "view 'a' occurs twice"),
        ({"a": {"R": R}}, "view 'a': K is missing; expected"),
        ({"a": {"K": [1, 2, 3]}}, r"view 'a': K: expected finite numbers, shape \[3, 3\], got shape \[3\]"),
        ({"a": {"K": "wide"}}, "view 'a': K: expected numbers"),
        ({"a": {"K": [[-5, 0, 1], [0, 5, 1], [0, 0, 1]]}}, "with fx, fy > 0"),
        ({"a": {"K": [[5, 0, 1], [2, 5, 1], [0, 0, 1]]}}, "with fx, fy > 0"),
        ({"a": {"K": np.array(K).T.tolist()}}, "with fx, fy > 0"),
        ({"a": {"K": K, "R": R}}, "t is missing; give R and t, or neither"),
        ({"a": {"K": K, "t": [0, 0, 1]}}, "R is missing; give R and t, or neither"),
        (
            {"a": {"K": K, "R": [[1, 0, 0], [0, 1, 0], [0, 0, -1]], "t": [0, 0, 1]}},
            r"R: not a rotation .det -1",
        ),
        ({"a": {"K": K, "R": [[2, 0, 0], [0, 2, 0], [0, 0, 2]], "t": [0, 0, 1]}}, "R: not a rotation"),
        ({"a": {"K": K, "R": R, "t": [0, 1]}}, r"t: expected finite numbers, shape \[3\], got shape \[2\]"),
        (
            {"a": {"K": K, "distortion": [1, 2, 3]}},
            "distortion: expected 4, 5, 8, 12 or 14 coefficients .*got 3",
        ),
    ],
)
def test_refusals(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_cameras(write(tmp_path, content))


@pytest.mark.parametrize(
    "entry, coefficients, fisheye",
    [
        (
            {"distortion_coefficients": {"rows": 1, "cols": 4, "data": [0.1, 0.2, 0, 0]}},
            [0.1, 0.2, 0, 0],
            False,
        ),
        ({"camera_model": "OPENCV", "k1": 0.1, "p2": 0.3}, [0.1, 0, 0, 0.3], False),
        ({"k1": 0.1, "k3": 0.2}, [0.1, 0, 0, 0, 0.2], False),
        ({"k4": 0.4}, [0, 0, 0, 0, 0, 0.4, 0, 0], False),
        ({"camera_model": "PINHOLE", "k1": 0, "s9": 0, "radial_distortion": []}, None, False),
        ({"camera_model": "OPENCV_FISHEYE", "distortion": [1, 2, 3, 4]}, [1, 2, 3, 4], True),
        ({"distortion_model": "equidistant", "D": [0, 0, 0, 0]}, [0, 0, 0, 0], True),
        ({"lens_model": "Kannala-Brandt", "k1": 1, "k4": 4}, [1, 0, 0, 4], True),
    ],
)
def test_distortion_under_other_names(tmp_path, entry, coefficients, fisheye):
    for content in (
        {"a": {"K": K, **entry}},
        {**entry, "views": [{"image": "a", "K": K}]},
    ):  # in the view, or for all of them
        camera = read_cameras(write(tmp_path, content))["a"]
        assert (
            camera.distortion if coefficients is None else camera.distortion.tolist()
        ) == coefficients and camera.fisheye == fisheye


@pytest.mark.parametrize(
    "entry, message",
    [
        (
            {"camera_model": "EQUIRECTANGULAR"},
            "the camera model 'EQUIRECTANGULAR' is not known; expected PINHOLE, OPENCV",
        ),
        ({"kind": "orthographic"}, "kind 'orthographic': such a camera has no K; remove its entry"),
        (
            {"camera_model": "OPENCV_FISHEYE", "distortion": [0.1] * 5},
            "expected 4 coefficients of OpenCV's fisheye model, got 5",
        ),
        (
            {"camera_model": "OPENCV_FISHEYE", "k1": 0.1, "p1": 0.1},
            "p1: a fisheye camera has the coefficients k1, k2, k3, k4 only",
        ),
        (
            {"radial_distortion": [0.1]},
            "the key 'radial_distortion' is not known, and looks like distortion of the lens; give "
            '"distortion"',
        ),
        ({"k7": 0.1}, "the key 'k7' is not known"),
        ({"fisheye": {"k": [0.1]}}, "the key 'fisheye' is not known"),
        ({"k1": "wide"}, "k1: expected numbers"),
        ({"k1": 0.1, "distortion": [0, 0, 0, 0]}, "distortion and k1 are both given"),
        ({"dist": [1] * 4, "D": [1] * 4}, "dist and D are both given"),
    ],
)
def test_distortion_that_is_not_understood(tmp_path, entry, message):
    with pytest.raises(InputError, match=f"cameras.json: view 'a': .*{message}"):
        read_cameras(write(tmp_path, {"a": {"K": K, **entry}}))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"K": [[1e300, 0, 1], [0, 1e300, 1], [0, 0, 1]]},
            r"view 'a': K: expected focal lengths of 1 to 1e\+06 px",
        ),
        ({"K": [[1e-300, 0, 1], [0, 1e-300, 1], [0, 0, 1]]}, "K: expected focal lengths of 1 to"),
        ({"K": [[1, 0, 1], [0, 1e5, 1], [0, 0, 1]]}, "at most 10 times apart"),
        ({"K": [[500, 0, 1e30], [0, 500, 1], [0, 0, 1]]}, "principal point up to"),
        ({"t": [0, 0, 1e300]}, r"t: expected millimetres, up to 1e\+08, got \[0.0, 0.0, 1e\+300\]"),
        ({"R": [[1e200, 0, 0], [0, 1e200, 0], [0, 0, 1]]}, r"R: not a rotation .it has an element 1e\+200"),
        ({"distortion": [1e300, 0, 0, 0]}, r"distortion: expected coefficients up to 1e\+06, got 1e\+300"),
        ({"t": [0, 0, 10**30]}, "t: expected millimetres"),
        ({"t": [0, 0, 10**400]}, "not a readable JSON file .a whole number has 401 digits"),
        ({"width": 1e300, "height": 1e300}, ""),
    ],
)
def test_absurd_numbers(tmp_path, change, message):
    path = write(tmp_path, {"a": {"K": K, "R": R, "t": [1, 2, 900], **change}})
    if not message:  # the size is compared with the photo's
        assert read_cameras(path)["a"].size == (10**9, 10**9)
        return
    with pytest.raises(InputError, match=f"cameras.json: .*{message}"):
        read_cameras(path)


def test_deep_and_long(tmp_path):
    with pytest.raises(
        InputError,
        match="cameras.json: not a readable JSON file .lists or objects are nested deeper than 64.",
    ):
        read_cameras(write(tmp_path, "[" * 5000))
    with pytest.raises(InputError, match="view 'x+[.]{3}x+': K is missing") as caught:
        read_cameras(write(tmp_path, {"x" * 10_000: {}}))
    assert len(str(caught.value)) < 500
