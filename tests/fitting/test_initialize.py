from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.errors import FitError, InputError
from fitkit.fitting.initialize import initial_state
from fitkit.fitting.recipe import CameraOptions
from fitkit.io.subject import KnownCamera, View
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.projection import project_points

MODEL = tiny_model()


def mean_face(views=3, distance=1000.0):
    """The mean face itself in `views` pictures of 160 px, from afar."""
    state = tiny_state(MODEL, views)
    scale = distance / 900
    return state.replace(
        identity=torch.zeros_like(state.identity),
        expression=torch.zeros_like(state.expression),
        pose=Pose(state.pose.rotation, state.pose.translation * scale),
        camera=replace(state.camera, focal=state.camera.focal * scale),
    )


def photos(state, sizes=None, **fields):
    sizes = sizes or [(160, 160)] * state.num_views
    return [
        View(f"view{i}", np.zeros((h, w, 3), np.uint8), **{k: v[i] for k, v in fields.items()})
        for i, (w, h) in enumerate(sizes)
    ]


def known(state, rig=True):
    """The state's cameras as cameras.json would give them; the world is the head frame moved away."""
    R0, t0 = (
        torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0],
        torch.tensor([100.0, -40, 30]),
    )
    R0 = R0 * torch.linalg.det(R0)
    cameras = []
    for K, R, t in zip(state.camera.matrix(), state.pose.rotation, state.pose.translation):
        world_R = R @ R0.T  # x_world = R0 x_head + t0
        cameras.append(
            KnownCamera(K.numpy(), world_R.numpy(), (t - world_R @ t0).numpy())
            if rig
            else KnownCamera(K.numpy())
        )
    return cameras


def miss(state, obs):
    return (project_points(MODEL.landmark_basis, state).pixels - obs.landmarks.points).norm(dim=-1)


def test_unknown_cameras_are_placed_at_the_assumed_distance():
    truth = mean_face(distance=3000)
    obs = observe(MODEL, truth)
    state, cameras = initial_state(
        MODEL, photos(truth), obs, CameraOptions(distance_mm=1000.0, share_focal="no")
    )
    assert float(miss(state, obs).mean()) < 2 and cameras.source == ("estimated",) * 3 and not cameras.metric
    middle = MODEL.landmark_basis.mean.mean(0).expand(3, 1, 3)
    torch.testing.assert_close(state.pose.apply(middle)[:, 0, 2], torch.full((3,), 1000.0))
    torch.testing.assert_close(
        state.camera.focal / 1000, truth.camera.focal / truth.pose.apply(middle)[:, 0, 2], rtol=0.03, atol=0
    )
    assert torch.equal(cameras.focal_mean, state.camera.focal) and torch.equal(
        cameras.focal_sigma, torch.full((3,), 0.4)
    )
    assert cameras.focal_groups.tolist() == [0, 1, 2] and cameras.first.tolist() == [True] * 3
    assert float(state.identity.abs().max()) == 0 and float(state.expression.abs().max()) == 0


def test_pose_from_afar_is_nearly_exact():
    truth = mean_face(distance=50000)
    state, _ = initial_state(
        MODEL, photos(truth), observe(MODEL, truth), CameraOptions(distance_mm=50000.0, share_focal="no")
    )
    cosine = (
        (state.pose.rotation.transpose(1, 2) @ truth.pose.rotation).diagonal(dim1=1, dim2=2).sum(1) - 1
    ) / 2
    assert (
        float(torch.rad2deg(cosine.clamp(-1, 1).acos()).max()) < 0.6
    )  # float32: an angle of 0.1 degrees is lost in the cosine
    origin = [s.camera.project(s.pose.translation[:, None])[0] for s in (state, truth)]
    torch.testing.assert_close(*origin, atol=0.05, rtol=0)


def test_one_camera_for_photos_of_one_size():
    truth = mean_face()
    obs = observe(MODEL, truth)
    state, cameras = initial_state(MODEL, photos(truth), obs, CameraOptions())
    assert cameras.focal_groups.tolist() == [0, 0, 0] and cameras.first.tolist() == [True, False, False]
    assert (
        float(state.camera.focal.max() - state.camera.focal.min()) == 0 and float(miss(state, obs).mean()) < 3
    )
    for options, sizes, exif in (
        (CameraOptions(share_focal="no"), None, None),
        (CameraOptions(), [(160, 160), (160, 160), (170, 160)], None),
        (CameraOptions(), None, [500.0, 500.0, None]),
    ):
        _, cameras = initial_state(
            MODEL, photos(truth, sizes, **({"focal_px": exif} if exif else {})), obs, options
        )
        assert cameras.focal_groups.tolist() == [0, 1, 2] and cameras.first.tolist() == [True] * 3
    _, cameras = initial_state(
        MODEL, photos(truth, [(160, 160), (160, 160), (170, 160)]), obs, CameraOptions(share_focal="yes")
    )
    assert cameras.focal_groups.tolist() == [0, 0, 0]


def test_focal_length_from_exif():
    truth = mean_face(distance=800)
    obs = observe(MODEL, truth)
    state, cameras = initial_state(
        MODEL, photos(truth, focal_px=[float(f) for f in truth.camera.focal]), obs, CameraOptions()
    )
    torch.testing.assert_close(state.camera.focal, truth.camera.focal)
    # a scaled-orthographic reading at 800 mm
    torch.testing.assert_close(state.pose.translation[:, 2], truth.pose.translation[:, 2], rtol=0.1, atol=0)
    assert cameras.source == ("exif",) * 3 and torch.equal(cameras.focal_sigma, torch.full((3,), 0.1))


def test_known_intrinsics():
    truth = mean_face()
    principal = truth.camera.principal + torch.tensor([[5.0, -3], [0, 0], [1, 2]])
    truth = truth.replace(camera=Camera(truth.camera.focal, principal, torch.full((3,), 1.02)))
    obs = observe(MODEL, truth)
    state, cameras = initial_state(MODEL, photos(truth, camera=known(truth, rig=False)), obs, CameraOptions())
    for name in ("focal", "principal", "aspect"):
        torch.testing.assert_close(getattr(state.camera, name), getattr(truth.camera, name))
    assert cameras.source == ("cameras.json",) * 3 and cameras.pose_groups is None and not cameras.metric
    assert float(cameras.focal_sigma.max()) <= 0.0011 and cameras.focal_groups.tolist() == [0, 0, 0]
    assert float(miss(state, obs).mean()) < 3


def test_pixels_that_are_not_square_and_a_head_far_from_the_axis():
    truth = mean_face()
    camera = Camera(truth.camera.focal, truth.camera.principal - 100, torch.full((3,), 1.1))
    place = truth.pose.translation + torch.tensor([200.0, 180, 0])
    truth = truth.replace(camera=camera, pose=Pose(truth.pose.rotation, place))
    obs = observe(MODEL, truth)
    state, _ = initial_state(MODEL, photos(truth, camera=known(truth, rig=False)), obs, CameraOptions())
    origin = [s.camera.project(s.pose.translation[:, None])[0] for s in (state, truth)]
    assert float((origin[0] - origin[1])[..., 1].abs().max()) < 2  # of 100 px that it lies off the axis


def test_calibrated_rig_starts_with_one_head_pose():
    truth = mean_face()
    obs = observe(MODEL, truth)
    state, cameras = initial_state(MODEL, photos(truth, camera=known(truth)), obs, CameraOptions())
    assert cameras.metric and cameras.pose_groups.tolist() == [0, 0, 0]
    # The cameras stand to each other as the file says.
    for i in range(3):
        R = [p.rotation[i] @ p.rotation[0].T for p in (truth.pose, state.pose)]
        t = [p.translation[i] - r @ p.translation[0] for r, p in zip(R, (truth.pose, state.pose))]
        torch.testing.assert_close(R[0], R[1], atol=1e-5, rtol=0)
        torch.testing.assert_close(t[0], t[1], atol=0.02, rtol=0)
    torch.testing.assert_close(state.pose.translation, truth.pose.translation, atol=25, rtol=0)
    assert float(miss(state, obs).mean()) < 4


def test_cameras_in_one_place_keep_the_head_at_its_own_distance():
    # The lines of sight of a camera that only turned (or whose R and t were never measured) do not meet.
    truth = mean_face()
    cameras = [KnownCamera(K.numpy(), np.eye(3), np.zeros(3)) for K in truth.camera.matrix()]
    same = truth.replace(
        pose=Pose(truth.pose.rotation[1:2].expand(3, -1, -1), truth.pose.translation[1:2].expand(3, -1))
    )
    obs = observe(MODEL, same)
    state, _ = initial_state(MODEL, photos(same, camera=cameras), obs, CameraOptions())
    torch.testing.assert_close(state.pose.translation, same.pose.translation, rtol=0.1, atol=5)


def test_positions_of_some_cameras():
    truth = mean_face(4)
    obs = observe(MODEL, truth)
    cameras = known(truth)
    for missing, groups in ((KnownCamera(cameras[1].K), [0, 1, 0, 0]), (None, [0, 1, 0, 0])):
        given = [cameras[0], missing, *cameras[2:]]
        state, found = initial_state(MODEL, photos(truth, camera=given), obs, CameraOptions())
        assert found.metric and found.pose_groups.tolist() == groups
        assert found.notes == (
            "the positions of 3 of 4 cameras are known; those of the others were estimated",
        )
        R = [p.rotation[3] @ p.rotation[0].T for p in (truth.pose, state.pose)]
        torch.testing.assert_close(R[0], R[1], atol=1e-5, rtol=0)
    single = [cameras[0], *[None] * 3]
    _, found = initial_state(MODEL, photos(truth, camera=single), obs, CameraOptions())
    assert not found.metric and found.pose_groups is None
    assert found.notes == ("view view0: R and t of a single camera tell nothing and were not used",)
    same = [replace(c, R=np.eye(3), t=np.array([0, 0, 900.0])) for c in cameras]
    _, found = initial_state(MODEL, photos(truth, camera=same), obs, CameraOptions())
    assert not found.metric and found.pose_groups.tolist() == [0] * 4
    assert found.notes == (
        "the cameras are in one place, so their positions do not tell the size of the head",
    )


def test_focal_lengths_that_put_the_camera_into_the_face():
    truth = mean_face(distance=1000)
    obs = observe(MODEL, truth)
    f = float(truth.camera.focal[0])
    _, cameras = initial_state(MODEL, photos(truth, focal_px=[f, 0.2 * f, f]), obs, CameraOptions())
    assert cameras.source == ("exif", "estimated", "exif") and cameras.focal_sigma.tolist() == pytest.approx(
        [0.1, 0.4, 0.1]
    )
    assert cameras.notes[0].startswith(
        "the focal length in the EXIF data of view1 was not used: by it the camera would have been 190 mm"
    )


def test_scaled_orthographic():
    truth = mean_face()
    truth = truth.replace(camera=replace(truth.camera, kind="orthographic"))
    obs = observe(MODEL, truth)
    state, cameras = initial_state(MODEL, photos(truth), obs, CameraOptions(kind="orthographic"))
    assert state.camera.kind == "orthographic" and float(miss(state, obs).max()) < 1e-3
    torch.testing.assert_close(state.camera.focal, truth.camera.focal)
    torch.testing.assert_close(state.pose.rotation, truth.pose.rotation, atol=1e-5, rtol=0)
    assert float(cameras.focal_sigma.min()) >= 10 and cameras.focal_groups.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="camera.kind=orthographic cannot use cameras.json"):
        initial_state(MODEL, photos(truth, camera=known(truth)), obs, CameraOptions(kind="orthographic"))


def test_crops_of_any_scale_give_the_same_camera_in_the_photo():
    truth = mean_face()
    plain = observe(MODEL, truth)
    scale, offset = torch.tensor([2.0, 0.7, 1.3]), torch.tensor([[10.0, 20], [-5, 3], [40, 40]])
    marks = plain.landmarks
    cropped = replace(
        plain,
        landmarks=replace(marks, points=(marks.points - offset[:, None]) * scale[:, None, None]),
        scale=scale,
        offset=offset,
    )
    one, _ = initial_state(MODEL, photos(truth), plain, CameraOptions())
    two, _ = initial_state(MODEL, photos(truth), cropped, CameraOptions())
    torch.testing.assert_close(two.camera.focal / scale, one.camera.focal, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        two.camera.principal / scale[:, None] + offset, one.camera.principal, rtol=1e-4, atol=1e-3
    )
    torch.testing.assert_close(two.pose.translation, one.pose.translation, rtol=1e-3, atol=0.1)


def test_points_that_are_not_valid_do_not_matter():
    truth = mean_face()
    obs = observe(MODEL, truth)
    marks = obs.landmarks
    valid, points = marks.valid.clone(), marks.points.clone()
    valid[:, 5:9], points[:, 5:9] = False, torch.nan
    state, _ = initial_state(
        MODEL,
        photos(truth),
        replace(obs, landmarks=replace(marks, valid=valid, points=points)),
        CameraOptions(),
    )
    assert float(miss(state, obs).mean()) < 3


@pytest.mark.parametrize(
    "camera, message",
    [
        (
            KnownCamera(np.diag([1e300, 1e300, 1.0])),
            r"view 'v1': its camera cannot be used; expected numbers up to 1e\+09 .*got 1e\+300, 0, 0",
        ),
        (
            KnownCamera(np.diag([600.0, 1e-320, 1.0]), np.eye(3), np.full(3, np.nan)),
            "view 'v1': its camera cannot be used; .*nan",
        ),
        (
            KnownCamera(np.diag([-600.0, 600.0, 1.0])),
            "view 'v1': its camera cannot be used; .* focal lengths above 0, .*got -600",
        ),
        (
            KnownCamera(np.diag([1e-30, 1e9, 1.0])),
            "view 'v1': its camera cannot be used; .* focal lengths above 0, .*got 1e-30",
        ),
    ],
)
def test_cameras_that_see_no_head_name_the_view(camera, message):
    state = mean_face()
    obs = observe(MODEL, state)
    views = photos(state)
    views[1] = views[1].replace(name="v1", camera=camera)
    with pytest.raises(FitError, match=message):
        initial_state(MODEL, views, obs, CameraOptions())
    views[1] = views[1].replace(camera=None, focal_px=float("inf"))
    with pytest.raises(FitError, match="view 'v1': its focal length from EXIF cannot be used; .*got inf"):
        initial_state(MODEL, views, obs, CameraOptions())


def test_a_start_that_is_no_number_names_the_view():
    state = mean_face()
    obs = observe(MODEL, state)
    with pytest.raises(
        FitError,
        match=r"view 'view0': no head pose fits its landmarks and its camera \(estimated\); check the "
        r"landmarks",
    ):
        initial_state(MODEL, photos(state), obs, CameraOptions(distance_mm=float("inf")))
    views = photos(state, camera=known(state))
    views[2] = views[2].replace(camera=replace(views[2].camera, t=np.full(3, 1e9)))  # far, and still a start
    assert bool(torch.isfinite(initial_state(MODEL, views, obs, CameraOptions())[0].pose.translation).all())
