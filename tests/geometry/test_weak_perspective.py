import pytest
import torch
from scipy.spatial.transform import Rotation

from fitkit.errors import DegenerateInputError
from fitkit.geometry.weak_perspective import weak_perspective_pose


def scene(n=20, views=5):
    gen = torch.Generator().manual_seed(0)
    points = torch.randn(1, n, 3, generator=gen, dtype=torch.float64) * torch.tensor(
        [60.0, 80.0, 40.0], dtype=torch.float64
    )
    rotation = torch.from_numpy(Rotation.random(views, rng=1).as_matrix())
    scale = torch.linspace(0.4, 3.0, views, dtype=torch.float64)
    shift = 200 * torch.rand(views, 2, generator=gen, dtype=torch.float64)
    pixels = scale[:, None, None] * (points @ rotation.transpose(1, 2))[..., :2] + shift[:, None]
    return points, pixels, scale, rotation, shift


def test_exact_pairs_give_the_exact_pose():
    points, pixels, scale, rotation, shift = scene()
    found = weak_perspective_pose(points, pixels, torch.ones(5, 20, dtype=torch.float64))
    for got, expected in zip(found, (scale, rotation, shift)):
        torch.testing.assert_close(got, expected)


def test_depth_direction_is_not_mirrored():
    # A scaled-orthographic image fits the point set mirrored in depth equally well unless the rotation is
    # proper.
    points, pixels, _, rotation, _ = scene()
    _, found, _ = weak_perspective_pose(points, pixels, torch.ones(5, 20, dtype=torch.float64))
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(
        (points @ found.transpose(1, 2))[..., 2], (points @ rotation.transpose(1, 2))[..., 2]
    )


def test_points_without_weight_change_nothing():
    points, pixels, scale, rotation, shift = scene()
    weight = torch.ones(5, 20, dtype=torch.float64)
    weight[:, 12:] = 0
    pixels[:, 12:] = 1e4
    found = weak_perspective_pose(points, pixels, weight)
    for got, expected in zip(found, (scale, rotation, shift)):
        torch.testing.assert_close(got, expected)


def test_weights_scale_the_influence():
    points, pixels, *_ = scene()
    noisy = pixels + 5 * torch.randn(
        pixels.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    weight = torch.ones(5, 20, dtype=torch.float64)
    weight[:, :5] = 3
    repeated = torch.cat([torch.arange(20), torch.arange(5), torch.arange(5)])
    one = weak_perspective_pose(points, noisy, weight)
    two = weak_perspective_pose(
        points[:, repeated], noisy[:, repeated], torch.ones(5, 30, dtype=torch.float64)
    )
    for a, b in zip(one, two):
        torch.testing.assert_close(a, b)


def test_few_points_are_refused():
    points, pixels, *_ = scene()
    weight = torch.ones(5, 20, dtype=torch.float64)
    weight[3, 3:] = 0
    with pytest.raises(DegenerateInputError, match="expected at least 4 landmarks per view, got 3"):
        weak_perspective_pose(points, pixels, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_landmarks_on_a_point_or_a_line_are_refused(dtype):
    points, pixels, *_ = (x.to(dtype) for x in scene())
    with pytest.raises(DegenerateInputError, match="all lie on one point or on one line"):
        weak_perspective_pose(points, torch.full_like(pixels, 7.0), torch.ones(5, 20, dtype=dtype))
    line = pixels.clone()
    line[2] = pixels[2, :, :1] * torch.tensor([1.0, 0.5], dtype=dtype)
    with pytest.raises(DegenerateInputError, match="on one point or on one line"):
        weak_perspective_pose(points, line, torch.ones(5, 20, dtype=dtype))
