import torch
from helpers import tiny_model, tiny_state

from fitkit.render.visibility import depth_maps, seen_by_depth
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState


def square(half, z):
    return [[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]]


def wall_with_plate():
    """A wall at 1000 mm and a small plate 20 mm in front of it; the camera sits in the head frame's
    origin."""
    vertices = torch.tensor([square(400.0, 1000.0) + square(100.0, 980.0)])
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    camera = Camera(torch.tensor([100.0]), torch.tensor([[47.5, 47.5]]), torch.ones(1))
    state = SceneState(
        torch.zeros(1, 0),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, 0),
        Pose(torch.eye(3)[None], torch.zeros(1, 3)),
        camera,
        torch.zeros(1, 9, 1),
    )
    return vertices, triangles, state


def test_what_lies_behind_an_occluder_is_hidden():
    vertices, triangles, state = wall_with_plate()
    points = torch.tensor(
        [[[0.0, 0, 1000], [0, 0, 980], [300, 0, 1000], [-50, 50, 1000], [0, 300, 1000], [0, 0, 983]]]
    )
    expected = [False, True, True, False, True, True]  # the last one lies within the tolerance
    pixels, _ = state.camera.project(points)
    for reduction in (1.0, 2.0):
        maps = depth_maps(vertices, triangles, state, (96, 96), reduction)
        assert maps.shape == (1, round(96 / reduction), round(96 / reduction))
        assert seen_by_depth(pixels, points[..., 2], maps, reduction, 3.5)[0].tolist() == expected


def test_outside_the_map_and_on_empty_pixels_nothing_is_visible():
    vertices, triangles, state = wall_with_plate()
    maps = depth_maps(vertices, triangles, state, (96, 96), 2.0)
    pixels = torch.tensor([[[-3.0, 40], [40, 99], [1e9, 0], [torch.nan, 3], [2, 2], [47, 47]]])
    depth = torch.full((1, 6), 900.0)
    assert seen_by_depth(pixels, depth, maps, 2.0, 3.5)[0].tolist() == [
        False,
        False,
        False,
        False,
        False,
        True,
    ]


def test_reduced_map_lies_on_the_same_pixels():
    # At reduction 2 map pixel (i, j) is the centre of four crop pixels; a slanted plane shows a shift of half
    # a pixel.
    vertices = torch.tensor([[[-400.0, -400, 600], [400, -400, 1400], [400, 400, 1400], [-400, 400, 600]]])
    _, _, state = wall_with_plate()
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3]])
    fine, coarse = (1 / depth_maps(vertices, triangles, state, (96, 96), r) for r in (1.0, 2.0))
    mean = torch.nn.functional.avg_pool2d(fine[:, None], 2)[:, 0]
    inside = torch.isfinite(mean) & torch.isfinite(coarse)
    assert int(inside.sum()) > 300
    # 1/z of a plane is linear on the screen.
    torch.testing.assert_close(coarse[inside], mean[inside], rtol=1e-5, atol=0)


def test_far_side_of_a_face_is_hidden_in_a_turned_view():
    model = tiny_model()
    state = tiny_state(model, 3)
    vertices = state.vertices(model)
    maps = depth_maps(vertices, model.triangles, state, (160, 160), 2.0)
    seen = state.pose.apply(vertices)
    pixels, _ = state.camera.project(seen)
    visible = seen_by_depth(pixels, seen[..., 2], maps, 2.0, 3.5)
    left, right = model.mean[:, 0] > 60, model.mean[:, 0] < -60  # flanks
    share = visible.float()
    assert float(share[1][model.face].mean()) > 0.95
    a, b = share[0], share[2]
    assert (a[left].mean() > 0.7) == (a[right].mean() < 0.4)
    assert (b[left].mean() < 0.4) == (b[right].mean() > 0.7)
    assert abs(float(a[left].mean() - b[right].mean())) < 0.2
