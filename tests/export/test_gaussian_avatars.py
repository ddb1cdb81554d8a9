"""The folder is read as GaussianAvatars reads it, and its FLAME is the published one."""

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from flames import flame_result, flame_vertices, own_pixels, published
from helpers import tiny_result
from test_export_targets import without_photos

from fitkit.errors import InputError
from fitkit.export.targets import export_result

LAYOUT = {
    "shape": (300,),
    "expr": (1, 100),
    "rotation": (1, 3),
    "neck_pose": (1, 3),
    "jaw_pose": (1, 3),
    "eyes_pose": (1, 6),
    "translation": (1, 3),
    "static_offset": (1, 315, 3),
}


def exported(result, folder):
    path, notes = export_result(result, "gaussian-avatars", folder / "out")
    return path, notes


def frames_of(path, part="train"):
    return json.loads((path / f"transforms_{part}.json").read_text())["frames"]


def parameters(path, frame):
    with np.load(path / frame["flame_param_path"]) as file:
        values = dict(file)
    assert {k: v.shape for k, v in values.items()} == LAYOUT
    assert all(v.dtype == np.float32 for v in values.values())
    return {k: v.astype(float) for k, v in values.items()}


def pixels(path, frame, arrays):
    """As the renderer sees the vertices: the angle of view and the size, nothing else; a pixel's centre is at
    + 0.5."""
    p = parameters(path, frame)
    pose = np.concatenate([p[k][0] for k in ("rotation", "neck_pose", "jaw_pose", "eyes_pose")])
    vertices = flame_vertices(
        arrays, p["shape"], p["expr"][0], pose, p["translation"][0], p["static_offset"][0]
    )
    to_camera = np.linalg.inv(np.array(frame["transform_matrix"]))
    seen = vertices @ to_camera[:3, :3].T + to_camera[:3, 3]
    x, y, depth = seen[:, 0], -seen[:, 1], -seen[:, 2]
    assert (depth > 0).all()
    focal = frame["w"] / 2 / math.tan(frame["camera_angle_x"] / 2)
    return np.stack([focal * x / depth + frame["w"] / 2, focal * y / depth + frame["h"] / 2], -1) - 0.5


def test_the_published_flame_lies_where_the_fit_has_it(tmp_path):
    result = flame_result(lids=False)
    path, notes = exported(result, tmp_path)
    assert len(notes) == 1 and notes[0].startswith("no photo has a mask")
    arrays, frames = published(result.model), frames_of(path)
    assert [f["timestep_index"] for f in frames] == [0, 1, 2] and not frames_of(path, "val")
    truth = own_pixels(result)
    for i, frame in enumerate(frames):
        np.testing.assert_allclose(pixels(path, frame, arrays), truth[i], atol=0.01)
        image = cv2.imread(str(path / frame["file_path"]))
        np.testing.assert_array_equal(image[..., ::-1], result.subject.views[i].image)
        mask = cv2.imread(str(path / frame["fg_mask_path"]), cv2.IMREAD_UNCHANGED)
        drawn = np.abs(result.subject.views[i].image.astype(int) - 89).max(-1) > 8  # the background is grey
        assert mask.shape == (96, 96) and set(np.unique(mask)) == {0, 255}
        assert ((mask > 0) != drawn).mean() < 0.02  # pixels on the edge count as covered
    # Monocular, as VHAP has it: the camera stands, the head moves, its mean place is the origin.
    places = np.array([f["transform_matrix"] for f in frames])
    np.testing.assert_allclose(places, places[[0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(places[0, :3, :3], np.eye(3), atol=1e-6)
    moved = np.mean([parameters(path, f)["translation"] for f in frames], 0)
    np.testing.assert_allclose(moved, 0, atol=1e-6)


def test_photos_of_one_moment_share_their_parameters(tmp_path):
    result = flame_result(views=4, lids=False, moments=["a", "b", "a", "b"])
    path, _ = exported(result, tmp_path)
    frames = frames_of(path)
    assert [f["timestep_index"] for f in frames] == [0, 1, 0, 1]
    assert [f["camera_index"] for f in frames] == [0, 0, 1, 1]
    assert [f["timestep_id"] for f in frames] == ["a", "b", "a", "b"]
    assert sorted(p.name for p in (path / "flame_param").iterdir()) == ["00000.npz", "00001.npz"]
    assert sorted(p.name for p in (path / "images").iterdir()) == [
        f"0000{t}_0{c}.png" for t in (0, 1) for c in (0, 1)
    ]
    truth, arrays = own_pixels(result), published(result.model)
    for i, frame in enumerate(frames):
        np.testing.assert_allclose(pixels(path, frame, arrays), truth[i], atol=0.01)


def test_photos_whose_axis_is_not_in_the_middle_are_shifted(tmp_path):
    result = flame_result(views=2, lids=False)
    camera = replace(
        result.state.camera,
        principal=torch.tensor([[40.3, 47.5], [50.0, 60.2]]),
        aspect=torch.tensor([1.0, 1.1]),
    )
    result = replace(result, state=result.state.replace(camera=camera))
    path, _ = exported(result, tmp_path)
    arrays, truth = published(result.model), own_pixels(result)
    for i, frame in enumerate(frames_of(path)):
        focal, (cx, cy), aspect = (v[i].numpy() for v in (camera.focal, camera.principal, camera.aspect))
        scale = np.array([1.0, 1.0 / aspect])
        middle = np.array([frame["w"] - 1, frame["h"] - 1]) / 2
        expected = (truth[i] - [cx, cy]) * scale + middle
        np.testing.assert_allclose(pixels(path, frame, arrays), expected, atol=0.01)
        # The picture has moved as the vertices have, and all of the photo is still there.
        photo = result.subject.views[i].image.astype(float)
        picture = cv2.imread(str(path / frame["file_path"]))[..., ::-1].astype(float)
        for x, y in ((30, 40), (60, 50), (48, 70)):
            u, v = (np.array([x, y]) - [cx, cy]) * scale + middle
            shown = cv2.getRectSubPix(picture.astype(np.float32), (1, 1), (float(u), float(v)))[0, 0]
            assert np.abs(shown - photo[y, x]).max() < 20, (i, x, y)
        corner = (np.array([[-0.5, -0.5], [95.5, 95.5]]) - [cx, cy]) * scale + middle
        assert (corner[0] > -0.51).all() and (corner[1] < [frame["w"] - 0.49, frame["h"] - 0.49]).all()
        beyond = picture[picture.shape[0] // 2, 2] if i == 0 else picture[-3, picture.shape[1] // 2]
        assert (beyond == 255).all()


def test_masks_of_photos_take_the_background_away(tmp_path):
    result = flame_result(views=1)
    mask = np.zeros((96, 96), bool)
    mask[20:70, 30:60] = True
    views = tuple(v.replace(mask=mask) for v in result.subject.views)
    result = replace(result, subject=replace(result.subject, views=views))
    path, notes = exported(result, tmp_path)
    lids = float(result.state.expression[:, 100:].max())
    assert notes == [f"GaussianAvatars knows no eyelids: shapes of up to {lids:.2f} are left out"]
    image = cv2.imread(str(path / "images" / "00000_00.png"))[..., ::-1]
    assert (image[~mask] == 255).all() and (image[mask] == views[0].image[mask]).all()
    assert ((cv2.imread(str(path / "fg_masks" / "00000_00.png"))[..., 0] > 0) == mask).all()


def test_detail_is_the_static_offset(tmp_path):
    plain = flame_result(views=1, lids=False)
    displacement = torch.sin(torch.arange(315.0))
    result = replace(plain, displacement=displacement)
    path, _ = exported(result, tmp_path)
    frame = frames_of(path)[0]
    offset = parameters(path, frame)["static_offset"][0]
    expected = (result.personal_model.mean - result.model.mean).numpy() / 1000
    np.testing.assert_allclose(offset, expected, atol=1e-7)
    # Its joints follow the offset, those of a fit do not.
    off = np.abs(pixels(path, frame, published(result.model)) - own_pixels(result)[0])
    assert off.max() < 0.05 < np.abs(own_pixels(result)[0] - own_pixels(plain)[0]).max()


def test_the_canonical_face_is_neutral_with_an_open_jaw(tmp_path):
    result = flame_result(views=2)
    path, _ = exported(result, tmp_path)
    with np.load(path / "canonical_flame_param.npz") as file:
        values = dict(file)
    assert {k: v.shape for k, v in values.items()} == LAYOUT
    np.testing.assert_allclose(values.pop("jaw_pose"), [[0.3, 0, 0]])
    np.testing.assert_allclose(values.pop("shape"), result.state.identity[0].numpy(), rtol=1e-6)
    assert not any(v.any() for v in values.values())


def test_long_sequences_have_test_frames(tmp_path):
    result = flame_result(views=21, size=32)
    path, _ = exported(result, tmp_path)
    train, test = frames_of(path), frames_of(path, "test")
    assert [f["timestep_index"] for f in train] == list(range(19))
    assert [f["timestep_index"] for f in test] == [19, 20]
    everything = json.loads((path / "transforms.json").read_text())
    assert everything["timestep_indices"] == list(range(21)) and len(everything["frames"]) == 21


def test_results_that_are_refused(tmp_path):
    def refused(result, text):
        with pytest.raises(InputError, match=text):
            exported(result, tmp_path)
        assert not list(tmp_path.iterdir())

    refused(
        tiny_result(),
        "^result of tiny: expected the face model FLAME, got 'tiny'; convert it first with 'fitkit convert "
        "RESULT --to flame'$",
    )
    result = flame_result()
    refused(
        without_photos(result),
        "^result of tiny: gaussian-avatars needs the photos, and view0 is not there; give their folder with "
        "--photos$",
    )
    camera = replace(result.state.camera, kind="orthographic")
    flat = replace(result, state=result.state.replace(camera=camera))
    refused(
        flat, "expected perspective cameras, got orthographic ones, which other tools do not know; fit ag"
    )
