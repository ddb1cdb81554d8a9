"""Readers of training data on tiny copies of their layouts, and the real samples of AFLW2000-3D where they
are."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import torch
from helpers import observe
from training_layouts import MODEL, SIZE, lp_source, pie_tree, save_picture, views

from fitkit.data.aflw2000 import read_3ddfa_model
from fitkit.data.fit_results import FitResults, FitResultsOptions
from fitkit.data.multipie import CAMERAS, FRONT, OVERHEAD, MultiPie, MultiPieOptions
from fitkit.data.subject_frames import SubjectFrames, SubjectFramesOptions
from fitkit.data.w300lp import W300LP, W300LPOptions, read_lp_labels
from fitkit.errors import InputError
from fitkit.geometry.rotation import so3_log
from fitkit.geometry.weak_perspective import weak_perspective_pose
from fitkit.models.registry import load_model
from fitkit.nets.mvfnet.convention import labels_of_pose
from fitkit.observe.landmarks.types import MIRRORED
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose, yaw_pitch_roll
from fitkit.scene.projection import project_points
from fitkit.train.regressor_data import open_data
from fitkit.train.regressor_recipe import DataSource

AFLW2000 = Path("/work/shared/data/aflw2000_sample")


def in_picture(observations):
    """Landmarks of the crops in pixels of the pictures."""
    return observations.landmarks.points / observations.scale[:, None, None] + observations.offset[:, None]


def angle(a, b):
    return torch.rad2deg(so3_log(a.transpose(-1, -2) @ b).norm(dim=-1))


def test_triplets_of_300w_lp(tmp_path):
    state = lp_source(tmp_path / "AFW", "AFW_12_1", [5, -30, -50, 40])
    lp_source(tmp_path / "AFW_Flip", "AFW_12_1", [-5, 30, 50, -40], seed=2)
    lp_source(tmp_path / "HELEN", "HELEN_3_1", [0, -35], seed=3)
    data = W300LP(tmp_path, W300LPOptions(triplets=2, size=160), MODEL)
    assert data.ids == (
        "AFW_12_1/AFW/0",
        "AFW_12_1/AFW/1",
        "AFW_12_1/AFW_Flip/0",
        "AFW_12_1/AFW_Flip/1",
        "HELEN_3_1/HELEN/0",
        "HELEN_3_1/HELEN/1",
    )
    sample = data[0]
    yaw = yaw_pitch_roll(sample.truth.state.pose.rotation)[:, 0]
    assert len(yaw) == 3 and abs(float(yaw[0])) < 15 and -70 < float(yaw[1]) < -20 and 20 < float(yaw[2]) < 70
    chosen = [0, 1 if abs(float(yaw[1]) + 30) < 10 else 2, 3]
    assert float(angle(sample.truth.state.pose.rotation, state.pose.rotation[chosen]).max()) < 0.05
    truth = observe(MODEL, state, SIZE).landmarks.points[chosen]
    assert torch.allclose(in_picture(sample.observations), truth, atol=2e-3)  # counted from 0, y down
    # The head's place: the mean face under the labelled rotation lies on the points as well as a mean face
    # can.
    seen = sample.observations
    pixels = project_points(MODEL.landmark_basis, sample.truth.state).pixels
    box = (seen.landmarks.points.amax(1) - seen.landmarks.points.amin(1)).prod(-1).sqrt()
    assert float(((pixels - seen.landmarks.points).norm(dim=-1)[:, 17:].mean(1) / box).max()) < 0.03
    assert sample.truth.known == ("pose",) and sample.observations.images.shape == (3, 3, 160, 160)
    assert sample.observations.landmarks.jaw == "surface" and sample.truth.moment.tolist() == [0, 0, 0]
    outline = W300LP(tmp_path, W300LPOptions(points="outline", size=160), MODEL)[0].observations
    assert outline.landmarks.jaw == "outline"
    assert torch.allclose(in_picture(outline), truth + 0.5, atol=2e-3)
    assert W300LP(tmp_path, W300LPOptions(triplets=2, mirror=False), MODEL)[4].observations.num_views == 2
    assert W300LP(tmp_path, W300LPOptions(flips=False), MODEL).ids[-1] == "HELEN_3_1/HELEN/3"


def test_a_side_that_is_not_there_is_the_other_side_mirrored(tmp_path):
    state = lp_source(tmp_path / "HELEN", "HELEN_3_1", [0, -35], seed=3)
    sample = W300LP(tmp_path, W300LPOptions(triplets=1, size=160), MODEL)[0]
    seen = sample.observations
    yaw = yaw_pitch_roll(sample.truth.state.pose.rotation)[:, 0]
    assert (
        seen.num_views == 3
        and float(yaw[2]) == pytest.approx(-float(yaw[1]), abs=0.01)
        and float(yaw[2]) > 20
    )
    points = observe(MODEL, state, SIZE).landmarks.points[1]
    assert torch.allclose(
        in_picture(seen)[2],
        (points * torch.tensor([-1, 1]) + torch.tensor([SIZE - 1, 0]))[MIRRORED],
        atol=2e-3,
    )
    # The picture is turned with its labels: the mean face under the mirrored pose lies on the mirrored
    # points.
    pixels = project_points(MODEL.landmark_basis, sample.truth.state).pixels
    box = (seen.landmarks.points.amax(1) - seen.landmarks.points.amin(1)).prod(-1).sqrt()
    assert float(((pixels - seen.landmarks.points).norm(dim=-1)[:, 17:].mean(1) / box).max()) < 0.03
    inner = seen.images[:, :, 8:-8, 8:-8]
    error = (inner[2] - inner[1].flip(-1)).abs().mean()
    assert float(error) < 0.25 * float((inner[2] - inner[1]).abs().mean())


def test_a_mirrored_copy_has_the_mirrored_points_of_its_original(tmp_path):
    lp_source(tmp_path / "AFW", "AFW_1", [5, -30, 40])
    copy = tmp_path / "AFW_Flip"
    for path in sorted((tmp_path / "AFW").glob("*.jpg")):
        save_picture(
            copy / path.name, torch.from_numpy(cv2.imread(str(path))[:, ::-1, ::-1] / 255).permute(2, 0, 1)
        )
        content = {
            k: v for k, v in scipy.io.loadmat(path.with_suffix(".mat")).items() if not k.startswith("__")
        }
        pose = content["Pose_Para"] * [1, -1, -1, -1, 1, 1, 1] + [0, 0, 0, SIZE + 1, 0, 0, 0]
        scipy.io.savemat(copy / path.with_suffix(".mat").name, content | {"Pose_Para": pose})
    data = W300LP(tmp_path, W300LPOptions(triplets=1, size=160), MODEL)
    for index in range(2):
        sample = data[index]
        pixels = project_points(MODEL.landmark_basis, sample.truth.state).pixels
        points = sample.observations.landmarks.points
        box = (points.amax(1) - points.amin(1)).prod(-1).sqrt()
        assert float(((pixels - points).norm(dim=-1)[:, 17:].mean(1) / box).max()) < 0.03


def test_without_the_folder_of_points_300w_lp_is_refused(tmp_path):
    lp_source(tmp_path / "AFW", "AFW_1", [0, 30])
    shutil.rmtree(tmp_path / "landmarks")
    with pytest.raises(
        InputError,
        match=r"AFW_1_0.mat: expected its points in .*landmarks/AFW/AFW_1_0_pts.mat \(pt2d shows the face "
        r"before it was turned\); "
        "unpack the folder landmarks",
    ):
        W300LP(tmp_path, W300LPOptions(), MODEL)
    with pytest.raises(InputError, match="expected its points in .*landmarks/AFW/AFW_1_0_pts.mat"):
        W300LP(tmp_path / "AFW", W300LPOptions(), MODEL)[0]  # one set opened by itself


def bfm(folder, model, offset=(3.0, -8.0, 5.0)):
    """The tiny model packed as 3DDFA's: micrometres, another origin, bases in other scales and 199 and 29
    columns."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    w, w_exp = np.zeros((model.num_vertices * 3, 199)), np.zeros((model.num_vertices * 3, 29))
    scale, scale_exp = (
        rng.uniform(0.5, 2, model.num_identity) * 1e-3,
        rng.uniform(-2, -1, model.num_expression),
    )
    w[:, : model.num_identity] = (
        model.identity_basis.double().numpy().reshape(model.num_identity, -1).T * scale
    )
    w_exp[:, : model.num_expression] = (
        model.expression_basis.double().numpy().reshape(model.num_expression, -1).T * scale_exp
    )
    keypoints = model.triangles[model.landmarks.triangle, 0].numpy() + 1
    scipy.io.savemat(
        folder / "Model_Shape.mat",
        {
            "mu_shape": (model.mean.double().numpy() + offset).reshape(-1, 1) * 1000,
            "w": w,
            "tri": model.triangles.numpy().T + 1,
            "keypoints": keypoints[None],
        },
    )
    scipy.io.savemat(
        folder / "Model_Exp.mat", {"mu_exp": np.zeros((model.num_vertices * 3, 1)), "w_exp": w_exp}
    )
    return scale, scale_exp


def test_with_the_basel_face_model_coefficients_become_labels(tmp_path):
    scale, scale_exp = bfm(tmp_path / "bfm", MODEL)
    state = views([5, -30, 40], expression=0.4)
    identity, expression = state.identity[0].double().numpy(), state.expression[0].double().numpy()
    shape, exp = np.zeros(199), np.zeros(29)
    shape[: MODEL.num_identity], exp[: MODEL.num_expression] = (
        identity * 1000 / scale,
        expression * 1000 / scale_exp,
    )
    assert 1e5 < np.abs(shape).max() < 1e7
    # Labels of the same pictures for their head frame, whose origin lies elsewhere.
    shift = torch.tensor([3.0, -8.0, 5.0])
    theirs = state.replace(
        pose=Pose(state.pose.rotation, state.pose.translation - state.pose.rotation @ shift)
    )
    folder = tmp_path / "data" / "IBUG"
    lp_source(folder, "IBUG_1", [], state=state, shape=shape, expression=exp)
    for k, parameters in enumerate(labels_of_pose(theirs.pose, theirs.camera, SIZE).double().numpy()):
        content = {
            key: v
            for key, v in scipy.io.loadmat(folder / f"IBUG_1_{k}.mat").items()
            if not key.startswith("__")
        }
        scipy.io.savemat(folder / f"IBUG_1_{k}.mat", content | {"Pose_Para": parameters[None]})
    sample = W300LP(tmp_path / "data", W300LPOptions(bfm=str(tmp_path / "bfm")), MODEL)[0]
    got = sample.truth.state
    assert sample.truth.known == ("identity", "expression", "pose")
    head = got.vertices(MODEL)
    places = got.pose.apply(MODEL.landmarks.points(head, MODEL.triangles))
    depth = (
        (places[..., 2] - places[..., 2].amin(1, keepdim=True))
        * got.camera.focal[:, None]
        / Camera.REFERENCE_DEPTH
    )
    assert torch.allclose(sample.truth.crop_points[..., 2], depth, atol=0.01)
    assert torch.equal(sample.truth.crop_points[..., :2], sample.observations.landmarks.points)
    shutil.rmtree(tmp_path / "data" / "landmarks")  # then the points are the model's own
    again = W300LP(tmp_path / "data", W300LPOptions(bfm=str(tmp_path / "bfm")), MODEL)[0].observations
    corner = MODEL.triangles[MODEL.landmarks.triangle, 0]
    own = got.camera.project(got.pose.apply(got.vertices(MODEL)))[0][:, corner]
    own = own / sample.observations.scale[:, None, None] + sample.observations.offset[:, None]
    assert torch.allclose(in_picture(again), own, atol=0.02) and again.landmarks.jaw == "surface"
    assert np.allclose(got.identity[0].numpy(), identity, atol=1e-3) and np.allclose(
        got.expression[0].numpy(), expression, atol=1e-3
    )
    # Independent truth: their own formula for the vertices in the picture.
    parameters = labels_of_pose(theirs.pose, theirs.camera, SIZE)[0].double().numpy()
    dense = read_3ddfa_model(tmp_path / "bfm").in_picture(shape, exp, parameters, SIZE)
    seen = sample.observations
    pixels = got.camera.project(got.pose.apply(got.vertices(MODEL)))[0][0] / seen.scale[0] + seen.offset[0]
    assert np.abs(pixels.numpy() - dense[:, :2]).max() < 0.01
    with pytest.raises(
        InputError, match="its coefficients belong to a mesh of 315 vertices, face model 'generic' has"
    ):
        W300LP(tmp_path / "data", W300LPOptions(bfm=str(tmp_path / "bfm")), load_model("generic"))
    with pytest.raises(
        InputError,
        match="cannot be read as 3DDFA's face model .* licence form is at https://faces.dmi.unibas.ch",
    ):
        W300LP(tmp_path / "data", W300LPOptions(bfm=str(tmp_path / "nowhere")), MODEL)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p.write_bytes(b"no matlab"), "cannot be read as labels of 300W-LP"),
        (
            lambda p: scipy.io.savemat(p, {"Pose_Para": np.zeros((1, 7))}),
            "cannot be read as labels of 300W-LP",
        ),
        (
            lambda p: _change(p, pt3d_68=np.zeros((2, 5))),
            r"pt3d_68: expected \[68, 2\] finite numbers, got shape \[5, 2\]",
        ),
        (lambda p: _change(p, Pose_Para=np.full((1, 7), np.nan)), "Pose_Para: expected"),
        (
            lambda p: _change(p, Pose_Para=np.zeros((1, 7))),
            "expected a scale above 0 as its last number, got 0",
        ),
        (lambda p: _change(p, Shape_Para=np.zeros((80, 1))), r"Shape_Para: expected \[199\] finite numbers"),
        (lambda p: _change(p, pt3d_68=np.full((2, 68), -1.0)), "expected at least 8 labelled points, got 0"),
    ],
)
def test_a_broken_label_file_is_named(tmp_path, change, message):
    lp_source(tmp_path / "LFPW", "LFPW_1", [0, 30])
    bad = tmp_path / "LFPW" / "LFPW_1_1.mat"
    change(bad)
    data = W300LP(tmp_path, W300LPOptions(triplets=1), MODEL)
    with pytest.raises(InputError, match=message) as caught:
        data[0]
    assert str(caught.value).startswith(str(bad)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"pts_3d": np.zeros((5, 2))}, r"pts_3d: expected \[68, 2\] finite numbers, got shape \[5, 2\]"),
        ({"pts_2d": np.zeros((68, 2))}, r"cannot be read as points of 300W-LP \(pts_3d\)"),
    ],
)
def test_a_broken_file_of_points_is_named(tmp_path, content, message):
    lp_source(tmp_path / "LFPW", "LFPW_1", [0, 30])
    bad = tmp_path / "landmarks" / "LFPW" / "LFPW_1_1_pts.mat"
    scipy.io.savemat(bad, content)
    with pytest.raises(InputError, match=message) as caught:
        W300LP(tmp_path, W300LPOptions(triplets=1), MODEL)[0]
    assert str(caught.value).startswith(str(bad))


def _change(path, **changes):
    content = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}
    scipy.io.savemat(path, content | changes)


@pytest.mark.skipif(not AFLW2000.is_dir(), reason="the samples of AFLW2000-3D are not on this machine")
def test_real_labels_agree_with_their_own_landmarks():
    """Rotation of Pose_Para against the one that 68 points on a mean face give, and both against the side the
    nose points to; what needs the Basel Face Model (vertices onto landmarks) is tested above with a model
    packed in its form."""
    model = load_model("generic")
    data = W300LP(AFLW2000, W300LPOptions(), model)
    assert len(data) == 8
    for i in range(len(data)):
        labels = read_lp_labels(AFLW2000 / f"{data.ids[i].partition('/')[0]}.mat")
        assert labels.jaw == "surface"
        seen, rotation = data[i].observations, data[i].truth.state.pose.rotation
        marks = seen.landmarks
        _, own, _ = weak_perspective_pose(
            model.landmark_basis.mean[None], torch.nan_to_num(marks.points), marks.valid.float()
        )
        assert float(angle(own, rotation)) < 13
        if abs(labels.yaw) > 15:
            nose, eyes = marks.points[0, 30], marks.points[0, 36:48].mean(0)
            up = rotation[0, :2, 1]
            right = torch.stack([-up[1], up[0]])
            assert float((nose - eyes) @ right) * labels.yaw > 0
        pixels = project_points(model.landmark_basis, data[i].truth.state).pixels[0]
        box = (marks.points[0].amax(0) - marks.points[0].amin(0)).prod().sqrt()
        assert float((pixels - marks.points[0]).norm(dim=-1)[17:].mean() / box) < 0.07


def test_multi_pie(tmp_path):
    root = tmp_path / "pie"
    points = pie_tree(root)
    data = MultiPie(root, MultiPieOptions(triplets=3, landmarks="files", size=160), MODEL)
    assert data.ids == tuple(f"001/session02_02_07_{k}" for k in range(3))
    for i in range(3):
        sample = data[i]
        assert sample.observations.num_views == 3 and sample.truth is None
        assert sample.observations.labels.parts == {"moment"}
        found = weak_perspective_pose(
            MODEL.landmark_basis.mean[None], sample.observations.landmarks.points, torch.ones(3, 68)
        )[1]
        yaw = yaw_pitch_roll(found)[:, 0]
        assert abs(float(yaw[0])) < 8 and -60 < float(yaw[1]) < -20 and 20 < float(yaw[2]) < 75
    assert torch.allclose(in_picture(data[0].observations)[0], torch.from_numpy(points[0]), atol=2e-3)
    assert (
        sorted(CAMERAS.values()) == list(range(-90, 91, 15))
        and CAMERAS[FRONT] == 0
        and not set(OVERHEAD) & set(CAMERAS)
    )
    elsewhere = tmp_path / "marks"
    for path in root.rglob("*.pts"):
        (elsewhere / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, elsewhere / path.relative_to(root))
    data = MultiPie(root, MultiPieOptions(landmark_folder=str(elsewhere), landmarks="files"), MODEL)
    assert data[0].observations.num_views == 3
    for path in elsewhere.rglob("*_051_07.pts"):
        path.unlink()
    with pytest.raises(InputError, match=r"001_02_02_051_07: no landmark file \(\*.pts"):
        data[0]
    with pytest.raises(InputError, match="no picture of camera 05_1 with one beside it .*licence of CMU"):
        MultiPie(root, MultiPieOptions(sessions=("04",)), MODEL)
    with pytest.raises(InputError, match="no folder sessionSS/multiview"):
        MultiPie(root / "session02", MultiPieOptions(), MODEL)


def test_folders_of_subjects(tmp_path, anna):
    data = SubjectFrames(tmp_path, SubjectFramesOptions(size=160), MODEL)
    assert data.ids == ("anna",) and data[0].id == "anna" and data[0].observations.num_views == 3
    assert data[0].observations.images.shape == (3, 3, 160, 160)
    (anna / "view1.pts").write_text("version: 1\nn_points: 68\n{\n1 2\n}\n")
    with pytest.raises(InputError, match=r"anna/view1.pts: "):
        data[0]
    for path in anna.glob("*.pts"):
        path.unlink()
    with pytest.raises(InputError, match="anna"):
        data[0]
    with pytest.raises(InputError, match="no folder with at least 9 pictures below it"):
        SubjectFrames(tmp_path, SubjectFramesOptions(min_views=9), MODEL)
    with pytest.raises(InputError, match="no such folder; expected a folder of subject folders"):
        SubjectFrames(tmp_path / "nowhere", SubjectFramesOptions(), MODEL)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, _rendered):
    from fitkit.fitting.run import fit

    folder = tmp_path_factory.mktemp("fits") / "anna"
    shutil.copytree(_rendered, folder)
    result = fit(folder, recipe="landmarks")
    from fitkit.export.parameters import save_parameters

    (folder / "fitkit").mkdir()
    save_parameters(result, folder / "fitkit" / "parameters.npz")
    (folder / "fitkit" / "metrics.json").write_text('{"status": "ok"}')
    return folder, result


def test_fits_as_labels_weighted_by_how_sure_they_are(fitted, tmp_path):
    folder, result = fitted
    model = load_model("generic")
    data = FitResults(folder.parent, FitResultsOptions(size=192), model)
    sample = data[0]
    assert data.ids == ("anna",) and torch.allclose(
        sample.truth.state.identity, result.state.identity.float()
    )
    sigma = result.identity_covariance.diagonal().sqrt().clamp_max(1)
    assert torch.allclose(sample.truth.identity_sigma[0], sigma.float(), atol=1e-5) and 0 < float(
        sigma.min()
    ) < float(sigma.max())
    seen, state = sample.observations, sample.truth.state
    pixels = project_points(model.landmark_basis, state).pixels
    box = (seen.landmarks.points.amax(1) - seen.landmarks.points.amin(1)).amax(-1)
    assert float(((pixels - seen.landmarks.points).norm(dim=-1).mean(1) / box).max()) < 0.03
    shutil.copytree(folder, folder.parent / ".fitkit-4711-deadbeef" / "new")  # of a fit that was killed
    own = FitResults(folder.parent, FitResultsOptions(landmarks="fit", size=192), model)
    assert len(own) == len(data)
    marks = own[0].observations.landmarks
    assert marks.jaw == "surface"
    assert torch.allclose(
        marks.points, project_points(model.landmark_basis, own[0].truth.state).pixels, atol=1e-2
    )
    with pytest.raises(InputError, match="parameters.npz: .*expected face model 'generic'"):
        FitResults(folder.parent, FitResultsOptions(), MODEL)[0]
    with pytest.raises(InputError, match="none of 1 results of fitkit fit below it has status failed"):
        FitResults(folder.parent, FitResultsOptions(status=("failed",)), model)
    broken = tmp_path / "copy" / "anna"
    shutil.copytree(folder, broken)
    with np.load(folder / "fitkit" / "parameters.npz") as arrays:
        np.savez(broken / "fitkit" / "parameters.npz", **{**arrays, "subject_name": str(folder)})
    data = FitResults(broken.parent, FitResultsOptions(photos=str(folder.parent), size=64), model)
    assert data[0].id == "anna"  # the name of the result is enough
    shutil.move(broken, broken.with_name("ben"))
    with pytest.raises(
        InputError, match="parameters.npz: no subject 'ben' or '/.*anna' in .*; set the option photos to what"
    ):
        FitResults(broken.parent, FitResultsOptions(photos=str(folder.parent)), model)[0]
    shutil.move(broken.with_name("ben"), broken)
    (broken / "fitkit" / "parameters.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match="anna/fitkit/parameters.npz: not a readable fitkit parameter file"):
        FitResults(broken.parent, FitResultsOptions(), model)[0]
    shutil.copy(folder / "fitkit" / "parameters.npz", broken / "fitkit" / "parameters.npz")
    (broken / "view2.png").unlink()
    with pytest.raises(InputError, match="its photo 'view2' is not in"):
        FitResults(broken.parent, FitResultsOptions(), model)[0]
    (broken / "fitkit" / "metrics.json").write_text("{")
    with pytest.raises(InputError, match="metrics.json: not readable as the metrics of a fit"):
        FitResults(broken.parent, FitResultsOptions(), model)


def test_data_sets_by_kind(tmp_path):
    lp_source(tmp_path / "AFW", "AFW_1", [0, 30])
    data = open_data(DataSource("lp", "300wlp", str(tmp_path), options={"triplets": 2}), MODEL)
    assert isinstance(data, W300LP) and len(data) == 2
    with pytest.raises(
        InputError, match="data 'lp': options: unknown key 'triplet'; did you mean 'triplets'"
    ):
        open_data(DataSource("lp", "300wlp", str(tmp_path), options={"triplet": 2}), MODEL)
    made = open_data(
        DataSource("s", "synthetic", options={"count": 3, "recipe": "clean"}), load_model("generic")
    )
    assert len(made) == 3
    for reader, options in ((W300LP, W300LPOptions()), (MultiPie, MultiPieOptions())):
        with pytest.raises(InputError, match="no such folder; expected .* as "):
            reader(tmp_path / "nowhere", options, MODEL)
