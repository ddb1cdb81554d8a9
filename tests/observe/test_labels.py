from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.data.augment import recrop, roll
from fitkit.geometry.normals import vertex_normals
from fitkit.nets.weak_perspective import to_orthographic
from fitkit.observe.crop import CropOptions
from fitkit.observe.label_crops import cut_labels, in_crop, turn_labels
from fitkit.observe.labels import Labels, join_labels
from fitkit.render.rasterizer import interpolate, rasterize

MODEL = tiny_model(dtype=torch.float64)
SIZE = 96


def maps(state, size, model=MODEL):
    """Depth [B, H, W], normals [B, 3, H, W] and numbers of the triangles, rendered for the cameras of the
    state."""
    vertices = state.pose.apply(state.vertices(model))
    fragments = rasterize(state.camera.clip(vertices), model.triangles, size)
    normals = interpolate(fragments, model.triangles, vertex_normals(vertices, model.triangles))
    normals = torch.nn.functional.normalize(normals, dim=-1) * fragments.covered[..., None]
    return fragments.depth * fragments.covered, normals.permute(0, 3, 1, 2), fragments.triangle + 1


def labelled(views=3, size=SIZE, seed=0):
    state = tiny_state(MODEL, views, size, seed)
    depth, normals, parse = maps(state, (size, size))
    head = state.vertices(MODEL)
    points3d = MODEL.landmarks.points(head, MODEL.triangles)
    labels = Labels(
        state,
        vertices=state.pose.apply(head),
        points3d=points3d,
        crop_points=in_crop(state.pose.apply(points3d), state.camera),
        crop_vertices=in_crop(state.pose.apply(head), state.camera, state.pose.apply(points3d)),
        depth=depth,
        prior_depth=depth + 2 * (depth > 0),
        person=torch.full((views,), 7),
        moment=torch.arange(views) // 2 + 5,
        parse=parse,
        normals=normals,
        visible=torch.rand(views, 68, generator=torch.Generator().manual_seed(seed)) > 0.5,
    )
    return replace(observe(MODEL, state, size), labels=labels)


@pytest.mark.parametrize("size", [64, 160])
def test_maps_of_a_crop_are_those_that_its_camera_sees(size):
    seen = labelled()
    shift = torch.tensor([[0.07, -0.04]]).expand(3, 2)
    cut = recrop(seen, CropOptions(1.5, 0.1, size, size), "x", shift)
    depth, normals, parse = maps(cut.labels.state, (size, size))
    got = cut.labels
    both = (got.depth > 0) & (depth > 0)
    assert float(((got.depth > 0) != (depth > 0)).double().mean()) < 0.04  # the rim
    assert float((got.depth - depth)[both].abs().quantile(0.9)) < 1.0
    cosine = (got.normals * normals).sum(1)[both]
    assert (
        float(cosine.quantile(0.1)) > 0.99 and float((got.normals.norm(dim=1)[both] - 1).abs().max()) < 1e-6
    )
    torch.testing.assert_close(got.prior_depth > 0, got.depth > 0)
    assert float((got.parse == parse)[both].double().mean()) > 0.7  # triangles are a few pixels wide
    assert got.parse.dtype == torch.int64 and set(got.parse.unique().tolist()) <= set(
        seen.labels.parse.unique().tolist()
    )


def test_no_depth_is_mixed_across_an_edge():
    depth = torch.full((1, 8, 8), 500.0)
    depth[:, :, 4:] = 900.0
    depth[:, :3] = 0.0
    labels = Labels(
        depth=depth,
        normals=torch.where(depth > 600, -1.0, 0.0)[:, None] * torch.tensor([0, 0, 1.0])[:, None, None],
    )
    cut = cut_labels(labels, torch.tensor([2.0]), torch.tensor([[-0.25, -0.25]]), (16, 16))
    assert set(cut.depth.unique().tolist()) == {0.0, 500.0, 900.0}
    assert set(cut.normals.norm(dim=1).unique().tolist()) == {0.0, 1.0}
    sloped = Labels(depth=500 + torch.arange(8.0).expand(1, 8, 8))
    cut = cut_labels(sloped, torch.tensor([2.0]), torch.tensor([[-0.25, -0.25]]), (16, 16))
    torch.testing.assert_close(cut.depth[0, 5, 3:7], torch.tensor([501.25, 501.75, 502.25, 502.75]))


def test_beyond_the_picture_nothing_is_known():
    labels = Labels(depth=torch.full((1, 4, 4), 500.0), parse=torch.full((1, 4, 4), 6))
    cut = cut_labels(labels, torch.ones(1), torch.tensor([[-2.0, 0.0]]), (4, 4))
    assert cut.depth[0, 0].tolist() == [0, 0, 500, 500]
    assert cut.parse[0, 0].tolist() == [0, 0, 6, 6] and cut.parse_valid[0, 0].tolist() == [
        False,
        False,
        True,
        True,
    ]
    whole = cut_labels(labels, torch.ones(1), torch.zeros(1, 2), (4, 4))
    assert whole.parse_valid is None
    known = replace(labels, parse_valid=torch.eye(4, dtype=torch.bool)[None])
    cut = cut_labels(known, torch.full((1,), 2.0), torch.tensor([[-0.25, -0.25]]), (8, 8))
    assert torch.equal(cut.parse_valid[0], torch.eye(4).repeat_interleave(2, 0).repeat_interleave(2, 1) > 0)


def test_a_rolled_picture_is_what_the_rolled_camera_sees():
    seen = labelled()
    rolled = roll(seen, torch.tensor([30.0, -75.0, 180.0]))
    state = rolled.labels.state
    turned = state.pose.rotation @ seen.labels.state.pose.rotation.transpose(1, 2)
    assert torch.rad2deg(torch.atan2(turned[:, 1, 0], turned[:, 0, 0]))[:2].tolist() == pytest.approx(
        [30, -75]
    )
    places = state.pose.apply(MODEL.landmarks.points(state.vertices(MODEL), MODEL.triangles))
    torch.testing.assert_close(rolled.labels.crop_points, in_crop(places, state.camera), rtol=1e-4, atol=1e-3)
    vertices = state.pose.apply(state.vertices(MODEL))
    torch.testing.assert_close(
        rolled.labels.crop_vertices, in_crop(vertices, state.camera, places), rtol=1e-4, atol=1e-3
    )
    shown = in_crop(places, state.camera)[..., :2].to(rolled.landmarks.points)
    before = seen.landmarks.points - seen.labels.crop_points[..., :2].to(seen.landmarks.points)
    after = rolled.landmarks.points - shown
    torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), rtol=0, atol=1e-2)
    torch.testing.assert_close(
        rolled.labels.vertices, state.pose.apply(state.vertices(MODEL)), rtol=1e-4, atol=1e-3
    )
    depth, normals, _ = maps(state, (SIZE, SIZE))
    both = (rolled.labels.depth > 0) & (depth > 0)
    assert float(((rolled.labels.depth > 0) != (depth > 0)).double().mean()) < 0.04
    assert float((rolled.labels.depth - depth)[both].abs().quantile(0.9)) < 1.0
    assert float((rolled.labels.normals * normals).sum(1)[both].quantile(0.1)) > 0.99
    back = roll(rolled, torch.tensor([-30.0, 75.0, -180.0]))
    inner = (back.mask & seen.mask)[:, None].expand_as(seen.images)
    assert float((back.images - seen.images)[inner].abs().mean()) < 0.05
    torch.testing.assert_close(back.landmarks.points, seen.landmarks.points, rtol=1e-4, atol=1e-3)


def test_points_move_along_and_keep_their_units():
    seen = labelled()
    cut = recrop(seen, CropOptions(1.5, 0.1, 64, 64), "x")
    state = cut.labels.state
    places = state.pose.apply(MODEL.landmarks.points(state.vertices(MODEL), MODEL.triangles))
    torch.testing.assert_close(cut.labels.crop_points, in_crop(places, state.camera), rtol=1e-5, atol=1e-4)
    vertices = state.pose.apply(state.vertices(MODEL))
    torch.testing.assert_close(
        cut.labels.crop_vertices, in_crop(vertices, state.camera, places), rtol=1e-5, atol=1e-4
    )
    marked = MODEL.landmarks.points(cut.labels.crop_vertices, MODEL.triangles)  # one scale, one origin
    assert float((marked[..., 2] - cut.labels.crop_points[..., 2]).abs().max()) < 1e-6
    for name in ("points3d", "vertices", "visible", "person", "moment"):
        assert torch.equal(
            getattr(cut.labels, name), getattr(seen.labels, name)
        )  # mm in the camera and the head frame


def test_depth_behind_the_nearest_point_in_pixels():
    seen = labelled(1)
    state, points = seen.labels.state, seen.labels.crop_points
    places = state.pose.apply(seen.labels.points3d)
    assert float(points[..., 2].min()) == 0
    scale = state.camera.focal / places[..., 2].mean()
    torch.testing.assert_close(
        points[0, 8, 2] - points[0, 30, 2], scale[0] * (places[0, 8, 2] - places[0, 30, 2])
    )
    flat = to_orthographic(state, MODEL)
    inside = in_crop(flat.pose.apply(seen.labels.points3d), flat.camera)
    assert float((inside - points).abs().max()) < 4  # the perspective that such a camera cannot show


def test_labels_of_a_camera_are_those_of_the_orthographic_one_that_stands_for_it():
    seen = labelled()
    flat = to_orthographic(seen.labels.state, MODEL)
    turned = turn_labels(seen.labels, flat)
    assert turned.state is flat
    torch.testing.assert_close(turned.vertices, flat.pose.apply(flat.vertices(MODEL)))
    depth, normals, _ = maps(flat, (SIZE, SIZE))
    both = (depth > 0) & (turned.depth > 0)
    assert torch.equal(turned.depth > 0, seen.labels.depth > 0) and float(both.double().mean()) > 0.1
    # The same head seen without perspective: elsewhere by a pixel or two, so by what the surface rises on
    # this way.
    assert float((turned.depth - depth)[both].abs().median()) < 1.5
    assert float((turned.normals * normals).sum(1)[both].median()) > 0.99


def test_joined_labels_keep_all_that_every_sample_has():
    a, b = labelled(3, seed=1).labels, labelled(2, seed=2).labels
    both = join_labels([a, b])
    for name in (
        "vertices",
        "points3d",
        "crop_points",
        "crop_vertices",
        "depth",
        "prior_depth",
        "parse",
        "normals",
        "visible",
    ):
        assert torch.equal(getattr(both, name), torch.cat([getattr(a, name), getattr(b, name)]))
    assert both.person.tolist() == [0, 0, 0, 1, 1]  # both were number 7 in their data sets
    same = both.moment[:, None] == both.moment
    assert torch.equal(same[:3, :3], a.moment[:, None] == a.moment) and not bool(same[:3, 3:].any())
    assert both.parse_valid is None and both.parts == a.parts
    some = join_labels([a, replace(b, depth=None, parse_valid=b.parse > 3, state=None)])
    assert some.depth is None and some.state is None and "pose" not in some.parts
    assert torch.equal(some.parse_valid, torch.cat([torch.ones_like(a.parse), b.parse > 3]).bool())
    assert join_labels([a, None]) is None
    assert np.isclose(float(both.state.identity[1, 0]), float(b.state.identity[0, 0]))
