"""CAP4D, metrical-tracker (INSTA, FlashAvatar) and MICA: files are read as these read them."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import trimesh
from flames import flame_result, flame_vertices, own_pixels, published, rodrigues
from helpers import tiny_result
from test_export_targets import without_photos

from fitkit.errors import InputError
from fitkit.export.targets import export_result
from fitkit.io.mesh_files import read_mesh


def changed(result, principal=None, focal=None):
    camera = result.state.camera
    if principal is not None:
        camera = replace(camera, principal=torch.tensor(principal))
    if focal is not None:
        camera = replace(camera, focal=torch.tensor(focal))
    return replace(result, state=result.state.replace(camera=camera))


def at_rest(result, names):
    """With these joints not turned."""
    joints = result.state.joints.clone()
    joints[:, [result.model.joint_names.index(name) for name in names]] = 0
    return replace(result, state=result.state.replace(joints=joints))


# ---- CAP4D ----


def known_to_cap4d(result):
    """Without what CAP4D leaves out, and with both eyes turned alike: it knows one rotation for both."""
    state = result.state
    identity, expression, joints = state.identity.clone(), state.expression.clone(), state.joints.clone()
    identity[:, 150:], expression[:, 64:] = 0, 0
    left, right = (result.model.joint_names.index(name) for name in ("eye_L", "eye_R"))
    joints[:, right] = joints[:, left]
    state = state.replace(identity=identity, expression=expression, joints=joints)
    return replace(result, state=state)


def cap4d_pixels(fit, camera, step, arrays):
    """As CAP4D sees the vertices: FLAME at its own place, turned about the origin and moved in axes with y
    up, turned to y down, then seen by the camera. Counts from the corner of the picture."""
    assert fit["shape"].shape == (150,) and fit["expr"].shape[1] == 65
    shape, expression = np.zeros(300), np.zeros(100)
    shape[:150], expression[:64] = fit["shape"], fit["expr"][step, :64]
    pose = np.zeros(15)
    pose[9:12] = pose[12:] = fit["eye_rot"][step]
    vertices = flame_vertices(arrays, shape, expression, pose)
    vertices = vertices @ rodrigues(fit["rot"][step].astype(float)).T + fit["tra"][step]
    seen = vertices * [1, -1, -1] @ fit["extr"][camera, :3, :3].T + fit["extr"][camera, :3, 3]
    fx, fy, cx, cy = (fit[key][camera, 0] for key in ("fx", "fy", "cx", "cy"))
    return np.stack([fx * seen[:, 0] / seen[:, 2] + cx, fy * seen[:, 1] / seen[:, 2] + cy], -1)


def read_fit(path):
    with np.load(path / "fit.npz") as file:
        fit = dict(file)
    n, T = len(fit["camera_order"]), len(fit["expr"])
    shapes = {"fx": (n, 1), "fy": (n, 1), "cx": (n, 1), "cy": (n, 1), "extr": (n, 4, 4), "shape": (150,)}
    shapes |= {"expr": (T, 65), "rot": (T, 3), "tra": (T, 3), "eye_rot": (T, 3), "resolutions": (n, 2)}
    assert {k: fit[k].shape for k in shapes} == shapes
    assert all(fit[k].dtype == np.float32 for k in shapes if k != "resolutions")
    return fit


def photo_of(path, camera, step):
    """The photo that CAP4D takes for a timestep: by its place in the sorted folder, else the last one."""
    files = sorted((path / "images" / camera).iterdir())
    return cv2.imread(str(files[min(step, len(files) - 1)]))[..., ::-1]


def test_cap4d_sees_the_face_where_the_fit_has_it(tmp_path):
    result = known_to_cap4d(at_rest(flame_result(lids=False), ("neck", "jaw")))
    path, notes = export_result(result, "cap4d", tmp_path / "a")
    assert notes == ["no photo has a mask: the backgrounds should be white, or have masks in bg/"]
    fit, truth = read_fit(path), own_pixels(result)
    table = json.loads((path / "reference_images.json").read_text())
    assert table == [["cam0", 0], ["cam0", 1], ["cam0", 2]] and fit["resolutions"].tolist() == [[96, 96]]
    for camera, step in table:
        found = cap4d_pixels(fit, fit["camera_order"].tolist().index(camera), step, published(result.model))
        np.testing.assert_allclose(found - 0.5, truth[step], atol=0.01)
        np.testing.assert_array_equal(photo_of(path, camera, step), result.subject.views[step].image)


def test_photos_of_several_cameras_for_cap4d(tmp_path):
    result = known_to_cap4d(at_rest(flame_result(lids=False), ("neck", "jaw")))
    result = changed(result, [[47.5, 47.5], [40.0, 50.0], [47.5, 47.5]])
    path, _ = export_result(result, "cap4d", tmp_path / "a")
    fit, truth = read_fit(path), own_pixels(result)
    table = json.loads((path / "reference_images.json").read_text())
    assert table == [["cam0", 0], ["cam1", 1], ["cam2", 2]]
    for camera, step in table:
        found = cap4d_pixels(fit, step, step, published(result.model))
        np.testing.assert_allclose(found - 0.5, truth[step], atol=0.01)
        np.testing.assert_array_equal(photo_of(path, camera, step), result.subject.views[step].image)


def test_a_neck_goes_into_the_pose_of_cap4d(tmp_path):
    result = known_to_cap4d(at_rest(flame_result(lids=False), ("jaw",)))
    model = replace(result.model, pose_basis=torch.zeros_like(result.model.pose_basis))
    result = replace(result, model=model)
    path, notes = export_result(result, "cap4d", tmp_path / "a")
    assert len(notes) == 1
    carried = (model.skinning_weights[:, 0] < 1e-3).numpy()  # what the root holds turns along
    assert carried.sum() > 50
    fit, truth = read_fit(path), own_pixels(result)
    for i in range(3):
        found = cap4d_pixels(fit, 0, i, published(model)) - 0.5
        np.testing.assert_allclose(found[carried], truth[i][carried], atol=0.05)
        assert np.abs(found - truth[i]).max() > 1


def test_expressions_stand_in_for_the_jaw_that_cap4d_lacks(tmp_path):
    result = known_to_cap4d(at_rest(flame_result(lids=False), ("neck", "eye_L", "eye_R")))
    model, state = result.model, result.state
    joints = torch.zeros_like(state.joints)
    joints[:, model.joint_names.index("jaw"), 0] = 0.2
    # One of the shapes opens the mouth as FLAME's without a jaw do, nearly as the jaw.
    zero = torch.zeros_like(state.expression[:1])
    turned = model.vertices(state.identity, zero, joints[:1]) - model.vertices(state.identity, zero)
    basis = model.expression_basis.clone()
    basis[7] = turned[0] / 2
    model = replace(model, expression_basis=basis)
    result = replace(result, model=model, state=state.replace(joints=joints))
    path, notes = export_result(result, "cap4d", tmp_path / "a")
    fit, truth, face = read_fit(path), own_pixels(result), model.face.numpy()
    own = dict(fit) | {"expr": np.pad(result.state.expression[:, :64].numpy(), ((0, 0), (0, 1)))}
    found, plain = (
        np.mean([np.abs(cap4d_pixels(f, 0, i, published(model)) - 0.5 - truth[i])[face] for i in range(3)])
        for f in (fit, own)
    )
    assert found < 0.1 * plain, (found, plain)
    assert 1.8 < (fit["expr"] - own["expr"])[:, 7].mean() < 2.3
    assert all("0.1 mm off" in note for note in notes if note.startswith("CAP4D has"))


def test_what_cap4d_cannot_show_is_said(tmp_path):
    result = flame_result()
    mask = np.zeros((96, 96), bool)
    mask[30:60, 30:60] = True
    views = result.subject.views
    views = (views[0].replace(mask=mask), *views[1:])
    result = replace(result, subject=replace(result.subject, views=views))
    path, notes = export_result(result, "cap4d", tmp_path / "a")
    assert len(notes) == 1 and notes[0].startswith("CAP4D has 150 shapes, 64 expressions and no jaw: ")
    assert 0.2 < float(notes[0].split(" mm")[0].split()[-1]) < 20
    lids = result.state.expression[:, 100:].mean(1)
    np.testing.assert_allclose(read_fit(path)["expr"][:, 64], lids, rtol=1e-6)
    masks = [cv2.imread(str(path / "bg" / "cam0" / f"0000{i}.png"))[..., 0] for i in range(3)]
    np.testing.assert_array_equal(masks[0] == 255, mask)
    assert (masks[1] == 255).all() and (masks[0][~mask] == 0).all()


# ---- metrical-tracker ----


def six(values):
    """A rotation from its first two rows, made orthonormal, as PyTorch3D does it."""
    a, b = values[:3] / np.linalg.norm(values[:3]), values[3:]
    b = b - (a @ b) * a
    b /= np.linalg.norm(b)
    return np.stack([a, b, np.cross(a, b)])


def vector(rotation):
    return cv2.Rodrigues(rotation)[0][:, 0]


def read_frames(path):
    files = sorted((path / "checkpoint").iterdir())
    assert [f.name for f in files] == [f"{i:05d}.frame" for i in range(len(files))]
    # Later versions of torch ask for what the file may hold; arrays and text are all there is.
    return [torch.load(f, weights_only=False) for f in files]


SHAPES = {
    "flame": {
        "exp": (1, 100),
        "shape": (1, 300),
        "tex": (1, 140),
        "sh": (1, 9, 3),
        "eyes": (1, 12),
        "eyelids": (1, 2),
        "jaw": (1, 6),
    },
    "camera": {"R": (1, 6), "t": (1, 3), "fl": (1, 1), "pp": (1, 2)},
    "opencv": {"R": (1, 3, 3), "t": (1, 3), "K": (1, 3, 3)},
}


def test_frames_of_the_tracker_show_the_face_where_the_fit_has_it(tmp_path):
    result = at_rest(flame_result(), ("neck",))
    result = changed(result, [[47.5, 47.5], [40.0, 50.0], [44.0, 47.5]], [300.0, 280.0, 320.0])
    path, notes = export_result(result, "insta", tmp_path / "a")
    assert notes == []
    model, state, truth = result.model, result.state, own_pixels(result)
    arrays = published(model)
    lids = model.expression_basis[100:].numpy() / 1000
    first = read_frames(path)[0]["opencv"]["K"]
    for i, frame in enumerate(read_frames(path)):
        assert {g: {k: v.shape for k, v in frame[g].items()} for g in SHAPES} == SHAPES
        assert frame["frame_id"] == f"{i:05d}" and frame["img_size"].tolist() == [512, 512]
        flame, camera = frame["flame"], frame["camera"]
        pose = np.zeros(15)
        pose[6:9] = vector(six(flame["jaw"][0].astype(float)))
        for k in (0, 1):
            pose[9 + 3 * k : 12 + 3 * k] = vector(six(flame["eyes"][0, 6 * k : 6 * k + 6].astype(float)))
        open_eyes = flame_vertices(arrays, flame["shape"][0], flame["exp"][0], pose)
        own = state.expression.clone()
        own[:, 100:] = 0
        rest = model.vertices(state.identity.expand(3, -1), own, state.joints)[i].numpy() / 1000
        np.testing.assert_allclose(open_eyes, rest, atol=2e-6)
        np.testing.assert_allclose(flame["eyelids"][0], state.expression[i, 100:].numpy(), rtol=1e-6)
        vertices, _ = read_mesh(path / "mesh" / f"{i:05d}.ply")
        # The tracker adds the eyelids last, the fit before the joints turn.
        np.testing.assert_allclose(
            open_eyes + np.einsum("k,kvc->vc", flame["eyelids"][0], lids), vertices, atol=1e-3
        )
        seen = vertices @ frame["opencv"]["R"][0].T + frame["opencv"]["t"][0]
        K = frame["opencv"]["K"][0]
        np.testing.assert_array_equal(K, first[0])
        found = (seen @ K.T)[:, :2] / seen[:, 2:] - 0.5
        # The photo was scaled and shifted until its axis is in the middle.
        focal, principal = state.camera.focal[i].numpy(), state.camera.principal[i].numpy()
        expected = (truth[i] - principal) * (K[0, 0] / focal) + 255.5
        np.testing.assert_allclose(found, expected, atol=0.01)
        assert found.min() > 20 and found.max() < 492
        # PyTorch3D: points as rows, x left, y up, from -1 to 1.
        left = vertices @ six(camera["R"][0].astype(float)) + camera["t"][0]
        ndc = camera["fl"][0, 0] * left[:, :2] / left[:, 2:] + camera["pp"][0]
        np.testing.assert_allclose(256 - 256 * ndc - 0.5, expected, atol=0.01)
        picture = cv2.imread(str(path / "input" / f"{i:05d}.png"))[..., ::-1].astype(float)
        photo = result.subject.views[i].image.astype(float)
        assert picture.shape == (512, 512, 3)
        for x, y in ((35, 40), (60, 50), (48, 60)):
            u, v = (np.array([x, y]) - principal) * (K[0, 0] / focal) + 255.5
            shown = picture[round(float(v)), round(float(u))]
            assert np.abs(shown - photo[y, x]).max() < 20, (i, x, y)
        assert cv2.imread(str(path / "mask" / f"{i:05d}.png")).shape == (512, 512, 3)


def test_the_canonical_face_of_insta_opens_its_jaw(tmp_path):
    result = flame_result()
    path, notes = export_result(result, "insta", tmp_path / "a")
    assert len(notes) == 1 and notes[0].startswith("FlashAvatar knows no neck: turns of up to ")
    canonical = trimesh.load(path / "canonical.obj", process=False).vertices
    pose = np.zeros(15)
    pose[6] = np.radians(12)
    shape = result.state.identity[0].numpy()
    expected = flame_vertices(published(result.model), shape, np.zeros(100), pose)
    np.testing.assert_allclose(canonical, expected, atol=2e-5)


def test_the_shape_for_mica(tmp_path):
    result = flame_result()
    for target in ("mica", "insta"):
        path, _ = export_result(result, target, tmp_path / target)
        identity = np.load(path / "identity.npy")
        assert identity.shape == (300,) and identity.dtype == np.float32
        np.testing.assert_allclose(identity, result.state.identity[0].numpy(), rtol=1e-6)
    assert [p.name for p in (tmp_path / "mica").iterdir()] == ["identity.npy"]
    detailed = replace(without_photos(result), displacement=torch.zeros(result.model.num_vertices))
    path, notes = export_result(detailed, "mica", tmp_path / "no photos")
    assert (path / "identity.npy").exists() and notes == ["MICA knows no detail layer: it is left out"]


# ---- refusals ----


@pytest.mark.parametrize("target", ["cap4d", "insta", "mica"])
def test_results_that_are_refused(target, tmp_path):
    with pytest.raises(InputError, match="expected the face model FLAME, got 'tiny'; convert it first with"):
        export_result(tiny_result(), target, tmp_path / "a")
    if target != "mica":
        with pytest.raises(
            InputError, match=f"^result of tiny: {target} needs the photos, and view0 is not th"
        ):
            export_result(without_photos(flame_result()), target, tmp_path / "a")
    assert not list(tmp_path.iterdir())
