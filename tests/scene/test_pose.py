import torch
from scipy.spatial.transform import Rotation

from fitkit.geometry.rotation import so3_exp
from fitkit.scene.pose import Pose, yaw_pitch_roll

FRONTAL = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))


def poses(views=4):
    gen = torch.Generator().manual_seed(0)
    return Pose(
        torch.from_numpy(Rotation.random(views, rng=0).as_matrix()),
        500 * torch.randn(views, 3, generator=gen, dtype=torch.float64),
    )


def test_retract_moves_the_head_before_the_camera_sees_it():
    pose, gen = poses(), torch.Generator().manual_seed(1)
    step = torch.randn(4, 6, generator=gen, dtype=torch.float64)
    points = 100 * torch.randn(4, 9, 3, generator=gen, dtype=torch.float64)
    moved = points @ so3_exp(step[:, :3]).transpose(1, 2) + step[:, None, 3:]
    torch.testing.assert_close(pose.retract(step).apply(points), pose.apply(moved))


def test_zero_step_is_the_identity_and_the_rotation_stays_one():
    pose = poses()
    same = pose.retract(torch.zeros(4, 6, dtype=torch.float64))
    assert torch.equal(same.rotation, pose.rotation) and torch.equal(same.translation, pose.translation)
    for seed in range(50):
        pose = pose.retract(
            torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        )
    torch.testing.assert_close(
        pose.rotation @ pose.rotation.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
    )


def test_one_step_for_a_rig_keeps_the_cameras_where_they_are():
    # Two cameras with a fixed relative motion: after the same head step that motion is unchanged.
    pose = poses(2)
    step = torch.tensor([[0.2, -0.1, 0.3, 5, -8, 20]], dtype=torch.float64).expand(2, -1)

    def relative(p):
        R = p.rotation[1] @ p.rotation[0].T
        return R, p.translation[1] - R @ p.translation[0]

    for before, after in zip(relative(pose), relative(pose.retract(step))):
        torch.testing.assert_close(before, after)


def test_centers_project_to_the_origin():
    pose = poses()
    assert float(pose.apply(pose.centers()[:, None]).abs().max()) < 1e-9


def test_head_angles_and_their_signs():
    zero = yaw_pitch_roll(FRONTAL[None])
    assert torch.equal(zero, torch.zeros(1, 3, dtype=torch.float64))
    gen = torch.Generator().manual_seed(2)
    want = (torch.rand(20, 3, generator=gen, dtype=torch.float64) - 0.5) * 80
    for k, (axis, sign) in enumerate((([0, 1, 0], 1), ([1, 0, 0], -1), ([0, 0, 1], -1))):
        turn = so3_exp(torch.deg2rad(sign * want[:, k : k + 1]) * torch.tensor(axis, dtype=torch.float64))
        got = yaw_pitch_roll(FRONTAL @ turn)
        expected = torch.zeros_like(want)
        expected[:, k] = want[:, k]
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)
    nose, top = torch.tensor([0.0, 0, 1], dtype=torch.float64), torch.tensor([0.0, 1, 0], dtype=torch.float64)

    def pose_with(axis, degrees):
        return (
            FRONTAL
            @ so3_exp(
                torch.deg2rad(torch.tensor([degrees], dtype=torch.float64))[:, None]
                * torch.tensor(axis, dtype=torch.float64)
            )
        )[0]

    yaw = pose_with([0, 1, 0], 20.0)
    assert (
        float(yaw_pitch_roll(yaw[None])[0, 0]) > 0 and float((yaw @ nose)[0]) > 0
    )  # nose to the right of the image
    pitch = pose_with([1, 0, 0], -20.0)
    assert (
        float(yaw_pitch_roll(pitch[None])[0, 1]) > 0 and float((pitch @ nose)[1]) < 0
    )  # nose up in the image (y is down)
    roll = pose_with([0, 0, 1], -20.0)
    assert (
        float(yaw_pitch_roll(roll[None])[0, 2]) > 0 and float((roll @ top)[0]) > 0
    )  # top of the head to the right
