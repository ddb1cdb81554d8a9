from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from fitkit.scene.camera import KINDS, Camera


def scene(kind="perspective"):
    gen = torch.Generator().manual_seed(0)
    points = torch.randn(3, 30, 3, generator=gen, dtype=torch.float64) * 90 + torch.tensor(
        [0.0, 0, 800], dtype=torch.float64
    )
    camera = Camera(
        torch.tensor([500.0, 900, 1500], dtype=torch.float64),
        300 * torch.rand(3, 2, generator=gen, dtype=torch.float64),
        torch.tensor([1.0, 1.1, 0.9], dtype=torch.float64),
        kind,
    )
    return points, camera


def test_perspective_projection_equals_opencv():
    points, camera = scene()
    pixels, in_front = camera.project(points)
    assert bool(in_front.all())
    for b in range(3):
        expected, _ = cv2.projectPoints(
            points[b].numpy(), np.zeros(3), np.zeros(3), camera.matrix()[b].numpy(), None
        )
        np.testing.assert_allclose(pixels[b].numpy(), expected[:, 0], atol=1e-9)


def test_orthographic_projection_ignores_depth_and_meets_perspective_at_the_reference_depth():
    points, camera = scene("orthographic")
    pixels, _ = camera.project(points)
    moved, _ = camera.project(points + torch.tensor([0.0, 0, 123.0], dtype=torch.float64))
    assert torch.equal(pixels, moved)
    at = points.clone()
    at[..., 2] = Camera.REFERENCE_DEPTH
    torch.testing.assert_close(replace(camera, kind="perspective").project(at)[0], pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_jacobian_equals_central_differences(kind):
    points, camera = scene(kind)
    by_point, by_focal = camera.project_jacobian(points)
    h = 1e-4  # mm; the third derivative of a pixel by mm is about 1e-9 here, rounding about 1e-9 px
    for k, unit in enumerate(torch.eye(3, dtype=torch.float64)):
        numeric = (camera.project(points + h * unit)[0] - camera.project(points - h * unit)[0]) / (2 * h)
        torch.testing.assert_close(by_point[..., k], numeric, atol=1e-7, rtol=1e-7)
    h = 1e-6
    numeric = (
        replace(camera, focal=camera.focal * np.exp(h)).project(points)[0]
        - replace(camera, focal=camera.focal * np.exp(-h)).project(points)[0]
    ) / (2 * h)
    torch.testing.assert_close(by_focal, numeric, atol=1e-6, rtol=1e-7)


def test_points_behind_the_camera_are_marked_and_finite():
    _, camera = scene()
    points = torch.tensor(
        [[[10.0, 20, -50], [1, 1, 0], [1, 1, 0.5], [1, 1, 900]]], dtype=torch.float64
    ).expand(3, -1, -1)
    pixels, in_front = camera.project(points)
    assert in_front.tolist() == [[False, False, False, True]] * 3
    assert bool(torch.isfinite(pixels).all()) and all(
        bool(torch.isfinite(j).all()) for j in camera.project_jacobian(points)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_camera_sees_the_scaled_image(kind):
    points, camera = scene(kind)
    scale, offset = (
        torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64),
        torch.tensor([[10.0, -4], [0.5, 0.5], [200, 100]], dtype=torch.float64),
    )
    expected = scale[:, None, None] * (camera.project(points)[0] - offset[:, None])
    scaled = camera.scaled(scale, offset)
    torch.testing.assert_close(scaled.project(points)[0], expected)
    back = scaled.scaled(1 / scale, -offset * scale[:, None])
    torch.testing.assert_close(back.project(points)[0], camera.project(points)[0])


def test_select():
    points, camera = scene()
    torch.testing.assert_close(
        camera.select([2, 0]).project(points[[2, 0]])[0], camera.project(points)[0][[2, 0]]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_picture_shows_the_same_places(kind):
    points, camera = scene(kind)
    small = camera.resized(4.0)
    torch.testing.assert_close(small.project(points)[0] + 0.5, (camera.project(points)[0] + 0.5) / 4)
    back = small.resized(1 / 4)
    torch.testing.assert_close(back.project(points)[0], camera.project(points)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_clip_coordinates_are_pixels_before_the_division(kind):
    points, camera = scene(kind)
    clip = camera.clip(points)
    torch.testing.assert_close(clip[..., :2] / clip[..., 3:], camera.project(points)[0])
    torch.testing.assert_close(clip[..., 2], points[..., 2])
