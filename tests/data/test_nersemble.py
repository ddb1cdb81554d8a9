"""NeRSemble: which cameras and instants are taken, and that its cameras see where the pictures show it."""

import json
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from fitkit.data.nersemble import HEIGHT, WIDTH
from fitkit.data.subject_sets import SubjectSource
from fitkit.errors import InputError

SIZE = (WIDTH // 4, HEIGHT // 4)  # of the pictures, px
K = np.array([[8190.0, 0, 1095], [0, 8200.0, 1610], [0, 0, 1]])
YAWS = {"11": -60, "12": -30, "13": 0, "14": 30, "15": 60, "16": -15}  # serial -> degrees
POINT = np.array([0.02, -0.03, 0.05])  # m, shown as a white spot
FRAMES = 7


def pose(yaw):
    """[4, 4] of a camera that looks at the origin from 1 m away."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("y", yaw, degrees=True).as_matrix()
    matrix[2, 3] = 1.0
    return matrix


def picture(yaw, frame):
    """Grey that tells instants apart, with the point where a camera without reduction has it, over 4."""
    image = np.full((SIZE[1], SIZE[0], 3), 10 + 20 * frame, np.uint8)
    x = K @ (pose(yaw)[:3, :3] @ POINT + pose(yaw)[:3, 3])
    corner = (x[:2] / x[2] + 0.5) / 4 - 0.5  # pixel centres, in the reduced picture
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    spot = np.exp(-((columns - corner[0]) ** 2 + (rows - corner[1]) ** 2) / 200)
    return np.maximum(image, (255 * spot).astype(np.uint8)[..., None])


def white_at(image):
    """(x, y) of the white spot, px."""
    weight = np.where(image[..., 0] > 180, image[..., 0] - 180.0, 0)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


@pytest.fixture
def data(tmp_path):
    """Person 017 in version 2, two sequences; person 030 in version 1, one."""
    for person in ("017", "030"):
        (tmp_path / person / "calibration").mkdir(parents=True)
        rig = {"intrinsics": K.tolist(), "world_2_cam": {s: pose(y).tolist() for s, y in YAWS.items()}}
        (tmp_path / person / "calibration" / "camera_params.json").write_text(json.dumps(rig))
    for sequence in ("EXP-1-head", "HAIR"):
        images = tmp_path / "017" / "sequences" / sequence / "images"
        images.mkdir(parents=True)
        for serial, yaw in YAWS.items():
            code = cv2.VideoWriter_fourcc(*"mp4v")
            video = cv2.VideoWriter(str(images / f"cam_{serial}.mp4"), code, 25, SIZE)
            # One camera stopped a frame early.
            for frame in range(FRAMES - (serial == "14")):
                video.write(picture(yaw, frame))
            video.release()
    for frame in (0, 3, 6):
        images = tmp_path / "030" / "sequences" / "EXP-1-head" / "timesteps" / f"frame_{frame:05d}" / "images"
        images.mkdir(parents=True)
        for serial, yaw in YAWS.items():
            Image.fromarray(picture(yaw, frame)).save(images / f"cam_{serial}.jpg", quality=95)
    return tmp_path


def subjects(folder, *options):
    return {
        e.name: pickle.loads(pickle.dumps(e.load))
        for e in SubjectSource(f"nersemble:{folder}", options).entries()
    }


def test_cameras_and_instants(data):
    found = subjects(data)
    assert list(found) == ["017/EXP-1-head", "030/EXP-1-head"]
    for subject in (load() for load in found.values()):
        # The middle one first, then the farthest from those taken.
        assert subject.views[0].camera.name in ("13", "16")
        assert {v.camera.name for v in subject.views[:3]} >= {"11", "15"} and len(subject.views) == 5
        for view in subject.views:
            assert view.moment == "00000" and view.name == f"00000_{view.camera.name}"
            x = view.camera.K @ (view.camera.R @ POINT + view.camera.t)  # in the unit of the file
            assert np.abs(x[:2] / x[2] - white_at(view.image)).max() < 0.15
            assert not view.camera.metric
    assert set(subjects(data, "sequences=[HAIR]")) == {"017/HAIR"}
    assert set(subjects(data, "sequences=[]")) == {*found, "017/HAIR"}


def test_many_instants(data):
    found = subjects(data, "frames=3", "cameras=0", "unit=m")
    for name, instants in (
        ("017/EXP-1-head", ("00000", "00002", "00005")),
        ("030/EXP-1-head", ("00000", "00003", "00006")),
    ):
        subject = found[name]()
        assert [v.moment for v in subject.views] == [i for i in instants for _ in YAWS]
        for view in subject.views:
            grey = np.median(view.image)
            assert abs(grey - 10 - 20 * int(view.moment)) < 5, name
            assert view.camera.metric and view.camera.t == pytest.approx([0, 0, 1000])


def test_what_is_wrong_is_named(data, tmp_path):
    with pytest.raises(InputError, match="nobody has a sequence EMO-1; expected NeRSemble as PERSON/calib"):
        subjects(data, "sequences=[EMO-1]")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no PERSON/calibration/camera_params.json; expected NeRS"):
        subjects(tmp_path / "empty")
    found = subjects(data, "cameras=1")
    path = data / "017" / "calibration" / "camera_params.json"
    rig = json.loads(path.read_text())
    for change, words in (
        ({"intrinsics": [[1, 2], [3, 4]]}, r"intrinsics: expected \[3, 3\] finite"),
        ({"world_2_cam": {"11": (2 * np.eye(4)).tolist()}}, "world_2_cam of 11: expected"),
        ({"world_2_cam": {"11": np.diag([-1.0, 1, 1, 1]).tolist()}}, "world_2_cam of 11: expected"),
        ({"world_2_cam": {"99": np.eye(4).tolist()}}, "images: no cam_SERIAL of a camera of calib"),
        ({"world_2_cam": 5}, "camera_params.json: cannot be read as cameras"),
    ):
        path.write_text(json.dumps({**rig, **change}))
        with pytest.raises(InputError, match=words):
            found["017/EXP-1-head"]()
    place = data / "030" / "sequences" / "EXP-1-head" / "timesteps"
    for image in (place / "frame_00000" / "images").iterdir():
        Image.new("RGB", (300, 300)).save(image)
    with pytest.raises(
        InputError, match="have 300 x 300 px, but the cameras are stated for 2200 x 3208; give"
    ):
        found["030/EXP-1-head"]()
    place.rename(place.with_name("other"))
    with pytest.raises(InputError, match="EXP-1-head: neither images/ nor timesteps/frame_00000/; expected"):
        found["030/EXP-1-head"]()
