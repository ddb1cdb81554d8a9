from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.energies.masks import (
    PARSE,
    combine,
    covis_bbox,
    covis_depth,
    covis_lmk,
    covis_tri,
    covis_vertex,
    occl_parse,
    outside_mouth,
    render_mask,
    union,
    vis_normal,
    vis_zbuf,
    weight_features,
    weight_parse,
)
from fitkit.errors import InputError
from fitkit.geometry.normals import vertex_normals
from fitkit.models.registry import load_model
from fitkit.observe.face_parts import PARTS
from fitkit.render.rasterizer import rasterize
from fitkit.scene.camera import KINDS

MODEL = tiny_model(dtype=torch.float64)
SIZE = 64


def scene(views=3, size=SIZE, kind="perspective", expression=0.0):
    state = tiny_state(MODEL, views, size, expression=expression)
    state = state.replace(camera=replace(state.camera, kind=kind, aspect=state.camera.aspect * 1.05))
    seen = state.pose.apply(state.vertices(MODEL))
    return state, seen, rasterize(state.camera.clip(seen), MODEL.triangles, (size, size))


def hit_depths(origin, direction, corners):
    """Where rays from `origin` along `direction` [R, 3] meet triangles [F, 3, 3]: [R, F] in lengths of
    direction, infinity for a miss."""
    a, e, f = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    out = np.full((len(origin), len(corners)), np.inf)
    for r in range(len(origin)):
        for t in range(len(corners)):
            M = np.stack([e[t], f[t], -direction[r]], 1)
            if abs(np.linalg.det(M)) < 1e-12:
                continue
            u, v, s = np.linalg.solve(M, origin[r] - a[t])
            if u >= -1e-9 and v >= -1e-9 and u + v <= 1 + 1e-9:
                out[r, t] = s
    return out


# ---- vertices ----


@pytest.mark.parametrize("kind", KINDS)
def test_vis_normal_against_loops(kind):
    _, seen, _ = scene()
    got = vis_normal(seen, MODEL.triangles, kind)
    triangles = MODEL.triangles.numpy()
    for b in range(3):
        p = seen[b].numpy()
        normal = np.zeros_like(p)
        for t in triangles:
            for corner in t:
                normal[corner] += np.cross(p[t[1]] - p[t[0]], p[t[2]] - p[t[0]])
        facing = normal[:, 2] < 0 if kind == "orthographic" else (normal * p).sum(1) < 0
        assert np.array_equal(got[b].numpy(), facing) and 50 < facing.sum() < 315


def test_vis_zbuf_against_rays():
    state, seen, _ = scene(size=256)
    got = vis_zbuf(seen, MODEL.triangles, state.camera, (256, 256))[2].numpy()
    p = seen[2].numpy()
    every = np.arange(0, len(p), 3)
    # 1 = the vertex itself.
    depth = hit_depths(np.zeros((len(every), 3)), p[every], p[MODEL.triangles.numpy()])
    hidden = ((1 - depth) * np.linalg.norm(p[every], axis=1)[:, None] > 2.0).any(1)
    # On the rim of the open shell and where it is seen edge-on, the vertex's pixel may show what lies beside
    # it.
    grid = np.zeros((15, 21), bool)
    grid[1:-1, 1:-1] = True
    toward = -torch.nn.functional.normalize(seen[2], dim=-1)
    steep = (vertex_normals(seen, MODEL.triangles)[2] * toward).sum(-1).abs().numpy() < 0.25
    clear = (grid.ravel() & ~steep)[every]
    agree = (got[every] == ~hidden)[clear]
    assert hidden[clear].sum() > 5 and clear.sum() > 50 and agree.mean() > 0.95


# ---- what two views share ----


def test_covis_tri_against_sets():
    _, _, fragments = scene()
    triangles = MODEL.triangles.tolist()
    a, b = fragments.triangle[[0, 2]], fragments.triangle[[2, 1]]
    got = covis_tri(a, b, MODEL.triangles)
    assert got.shape == (2, 1, SIZE, SIZE)
    for g in range(2):
        shared = set(a[g].unique().tolist()) & set(b[g].unique().tolist()) - {-1}
        corners = {v for t in shared for v in triangles[t]}
        keep = {t for t in range(len(triangles)) if corners & set(triangles[t])}
        expected = torch.tensor([[float(t in keep) for t in row] for row in b[g].tolist()])
        assert torch.equal(got[g, 0], expected) and 0 < expected.mean() < (b[g] >= 0).float().mean()
    assert torch.equal(covis_tri(b, b, MODEL.triangles)[:, 0] > 0, b >= 0)
    assert float(covis_tri(torch.full_like(b, -1), b, MODEL.triangles).max()) == 0


def test_covis_vertex_against_loops():
    _, seen, fragments = scene()
    visible = vis_normal(seen, MODEL.triangles)
    part = replace(
        fragments, **{k: getattr(fragments, k)[1:] for k in ("triangle", "barycentric", "depth", "covered")}
    )
    got = covis_vertex(visible[:2], visible[1:], part, MODEL.triangles)
    assert got.shape == (2, 1, SIZE, SIZE)
    for g in range(2):
        for y in range(0, SIZE, 5):
            for x in range(0, SIZE, 3):
                t = int(part.triangle[g, y, x])
                expected = (
                    0.0
                    if t < 0
                    else sum(
                        float(w) * bool(visible[g, v] & visible[g + 1, v])
                        for w, v in zip(part.barycentric[g, y, x], MODEL.triangles[t])
                    )
                )
                assert float(got[g, 0, y, x]) == pytest.approx(expected, abs=1e-12)
    assert float(render_mask(fragments).sum()) == float((fragments.triangle >= 0).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_covis_depth_against_loops(kind):
    state, _, fragments = scene(kind=kind)
    depth = fragments.depth
    a, b = [0, 1], [1, 2]
    got = covis_depth(
        depth[a],
        state.camera.select(a),
        state.pose.select(a),
        depth[b],
        state.camera.select(b),
        state.pose.select(b),
        10.0,
    )
    camera, pose = state.camera, state.pose
    f = camera.focal.numpy(), (camera.focal * camera.aspect).numpy()
    c = camera.principal.numpy()
    for g, (i, j) in enumerate(zip(a, b)):
        for y in range(0, SIZE, 3):
            for x in range(0, SIZE, 3):
                z = float(depth[i, y, x])
                expected = 0.0
                if z > 0:
                    w = z if kind == "perspective" else 1000.0
                    p = np.array([(x - c[i, 0]) / f[0][i] * w, (y - c[i, 1]) / f[1][i] * w, z])
                    head = np.linalg.solve(pose.rotation[i].numpy(), p - pose.translation[i].numpy())
                    q = pose.rotation[j].numpy() @ head + pose.translation[j].numpy()
                    w = q[2] if kind == "perspective" else 1000.0
                    u, v = round(q[0] * f[0][j] / w + c[j, 0]), round(q[1] * f[1][j] / w + c[j, 1])
                    if 0 <= u < SIZE and 0 <= v < SIZE and depth[j, v, u] > 0:
                        expected = float(abs(float(depth[j, v, u]) - q[2]) < 10.0)
                assert float(got[g, 0, y, x]) == expected
    assert 0.3 < float(got.sum() / (depth[a] > 0).sum()) < 1
    same = covis_depth(depth, camera, pose, depth, camera, pose)
    assert torch.equal(same[:, 0] > 0, depth > 0)
    assert float(covis_depth(depth, camera, pose, torch.zeros_like(depth), camera, pose).max()) == 0


def test_masks_of_pairs_agree_with_each_other():
    # Three ways to say what both views see: mostly the same pixels.
    state, seen, fragments = scene(size=128)
    a, b = [0], [1]
    tri = covis_tri(fragments.triangle[a], fragments.triangle[b], MODEL.triangles)[0, 0] > 0
    visible = vis_zbuf(seen, MODEL.triangles, state.camera, (128, 128), 4.0)
    part = replace(
        fragments, **{k: getattr(fragments, k)[b] for k in ("triangle", "barycentric", "depth", "covered")}
    )
    vertex = covis_vertex(visible[a], visible[b], part, MODEL.triangles)[0, 0] > 0.5
    depth = (
        covis_depth(
            fragments.depth[b],
            state.camera.select(b),
            state.pose.select(b),
            fragments.depth[a],
            state.camera.select(a),
            state.pose.select(a),
            4.0,
        )[0, 0]
        > 0
    )
    for one, two in ((tri, vertex), (tri, depth), (vertex, depth)):
        assert float((one & two).sum() / (one | two).sum()) > 0.8


def turned(points, angle, about=31.5):
    c, s = np.cos(angle), np.sin(angle)
    return (points - about) @ torch.tensor([[c, s], [-s, c]], dtype=points.dtype) + about


def front():
    """A frontal face: 68 points [1, 68, 2] of the tiny model, and everything covered."""
    state = tiny_state(MODEL, 1, SIZE, expression=0.0)
    points = observe(MODEL, state, SIZE).landmarks.points
    return points, torch.ones(1, SIZE, SIZE, dtype=torch.bool)


@pytest.mark.parametrize("angle", [0.0, 0.5, -1.8])
@pytest.mark.parametrize("side", ["left", "right"])
def test_covis_lmk_against_loops(side, angle):
    points, covered = front()
    points = turned(points, angle)
    got = covis_lmk(points, covered, side, band=0.1)[0, 0].numpy()
    p = points[0].numpy()
    top = (p[21] + p[22]) / 2
    down = (p[8] - top) / np.linalg.norm(p[8] - top)
    across = np.array([down[1], -down[0]])
    across = across if across @ (p[16] - p[0]) > 0 else -across
    line = np.array([top] + [p[k] for k in (27, 28, 29, 30, 33, 8)]) - top
    s, t = np.maximum.accumulate(line @ down), line @ across
    width = np.ptp((p - top) @ across)
    for y in range(SIZE):
        for x in range(SIZE):
            q = np.array([x, y]) - top
            away = (q @ across - np.interp(q @ down, s, t)) * (1 if side == "left" else -1)
            assert got[y, x] == (away >= -0.1 * width) or abs(away + 0.1 * width) < 1e-9
    cut = covis_lmk(points, covered, side, band=0.0)[0, 0]
    jaw = p[8 + 6] if side == "left" else p[8 - 6]  # a point of that cheek is kept, the other cheek's is not
    other = p[8 - 6] if side == "left" else p[8 + 6]
    place, gone = (np.clip(np.round(v).astype(int), 0, SIZE - 1) for v in (jaw, other))
    assert cut[place[1], place[0]] == 1 and cut[gone[1], gone[0]] == 0
    none = covis_lmk(points, torch.zeros_like(covered), side)
    assert float(none.max()) == 0


@pytest.mark.parametrize("level_eyes", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_covis_bbox_against_loops(side, level_eyes):
    points, face = front()
    points = turned(points, 0.4)
    got = covis_bbox(points, face, side, 3.0, level_eyes)[0, 0].numpy()
    p = points[0].numpy()
    along = p[42:48].mean(0) - p[36:42].mean(0) if level_eyes else np.array([1.0, 0])
    along = along / np.linalg.norm(along)
    R = np.stack([along, [-along[1], along[0]]])
    q = p @ R.T
    brow, jaw = (q[17:22], q[0:9]) if side == "right" else (q[22:27], q[8:17])
    outer, ridge = np.concatenate([brow, jaw])[:, 0], q[27:31, 0]
    low, high = (outer.min(), ridge.max()) if side == "right" else (ridge.min(), outer.max())
    for y in range(SIZE):
        for x in range(SIZE):
            u, v = R @ np.array([x, y])
            assert got[y, x] == (
                low - 3 <= u <= high + 3 and brow[:, 1].min() - 3 <= v <= jaw[:, 1].max() + 3
            )
    assert 0 < got.mean() < 0.6
    half = face.double() * 0.5
    half[:, :, :20] = 0
    torch.testing.assert_close(
        covis_bbox(points, half, side, 3.0, level_eyes)[0, 0], torch.from_numpy(got).double() * half[0]
    )


def test_halves_cover_the_face():
    points, covered = front()
    for make in (covis_lmk, covis_bbox):
        left, right = make(points, covered, "left"), make(points, covered, "right")
        assert 0 < float((left * right).sum()) < float(left.sum())
    assert (
        float(union(covis_lmk(points, covered, "left", 0.0), covis_lmk(points, covered, "right", 0.0)).min())
        == 1
    )


# ---- parses ----


def parse():
    labels = torch.zeros(1, 24, 24, dtype=torch.int64)
    labels[:, 3:21, 4:20] = PARSE.index("skin")
    labels[:, 6, 6:9], labels[:, 8, 6:9], labels[:, 12, 11] = (
        PARSE.index("left_brow"),
        PARSE.index("left_eye"),
        PARSE.index("nose"),
    )
    return labels


def test_weight_parse_takes_all_parts_of_a_head():
    mask = torch.ones(1, 1, 24, 24)
    more, few = parse(), parse()
    more[0, :3], few[0, :3] = PARTS.index("hair"), PARSE.index("background")
    more[0, -3:], few[0, -3:] = PARTS.index("beard"), PARSE.index("skin")
    torch.testing.assert_close(weight_parse(more, mask, "dfmvr"), weight_parse(few, mask, "dfmvr"))


@pytest.mark.parametrize(
    "scheme, features, values", [("dfmvr", range(2, 10), (254, 128, 32)), ("pgn", range(4, 10), (5, 1, 0))]
)
@pytest.mark.parametrize("grow", [0, 2])
def test_weight_parse_against_loops(scheme, features, values, grow):
    labels = parse()
    mask = torch.ones(1, 1, 24, 24, dtype=torch.float64)
    mask[..., :5] = 0
    got = weight_parse(labels, mask, scheme, grow)
    raw = np.zeros((24, 24))
    for y in range(24):
        for x in range(24):
            near = labels[0, max(0, y - grow) : y + grow + 1, max(0, x - grow) : x + grow + 1]
            if labels[0, y, x] == 0:
                raw[y, x] = values[2]
            else:
                raw[y, x] = values[0] if any(int(v) in features for v in near.reshape(-1)) else values[1]
    raw *= mask[0, 0].numpy()
    torch.testing.assert_close(got[0, 0], torch.from_numpy(raw * mask.sum().item() / raw.sum()))
    assert float(got.sum() / mask.sum()) == pytest.approx(1) and float(got[..., :5].max()) == 0
    assert float(weight_parse(labels, torch.zeros_like(mask), scheme).abs().max()) == 0


def test_occl_parse():
    labels = torch.tensor([[[0, 17, 1], [6, 17, 10]]])
    assert occl_parse(labels, (17, 6)).tolist() == [[[[1, 0, 1], [0, 0, 1]]]]
    assert float(occl_parse(labels, ()).min()) == 1


# ---- combinations ----


def test_combine_against_loops():
    gen = torch.Generator().manual_seed(0)
    a, b = ((torch.rand(2, 1, 14, 15, generator=gen) > 0.08).double() for _ in range(2))
    b = b * 0.5
    for erosion in (0, 1, 2):
        got = combine(a, b, erosion=erosion)
        product = (a * b)[:, 0]
        for g in range(2):
            for y in range(14):
                for x in range(15):
                    inside = erosion <= y < 14 - erosion and erosion <= x < 15 - erosion
                    near = product[
                        g, max(0, y - erosion) : y + erosion + 1, max(0, x - erosion) : x + erosion + 1
                    ]
                    assert float(got[g, 0, y, x]) == (float(near.min()) if inside else 0.0)
    torch.testing.assert_close(union(a, b), torch.maximum(a, b))


def test_no_gradient_and_nothing_covered():
    state = tiny_state(MODEL, 2, SIZE)
    vertices = state.pose.apply(state.vertices(MODEL)).requires_grad_()
    fragments = rasterize(state.camera.clip(vertices), MODEL.triangles, (SIZE, SIZE))
    visible = vis_normal(vertices, MODEL.triangles)
    masks = [
        vis_zbuf(vertices, MODEL.triangles, state.camera, (SIZE, SIZE)),
        covis_vertex(visible, visible, fragments, MODEL.triangles),
        covis_depth(
            fragments.depth, state.camera, state.pose, fragments.depth.flip(0), state.camera, state.pose
        ),
    ]
    assert not any(m.requires_grad for m in masks)
    away = vertices + torch.tensor([0.0, 0, -5000.0])
    assert not bool(vis_zbuf(away, MODEL.triangles, state.camera, (SIZE, SIZE)).any())


def test_refusals():
    points, covered = front()
    for make in (covis_lmk, covis_bbox):
        with pytest.raises(InputError, match="side of the face: expected left or right"):
            make(points, covered, "front")
    with pytest.raises(InputError, match="weight_parse: expected scheme dfmvr or pgn; got 'plain'"):
        weight_parse(parse(), torch.ones(1, 1, 24, 24), "plain")
    with pytest.raises(InputError, match="combine: expected at least one mask"):
        combine()


def test_eyes_nose_and_mouth_of_the_model_weigh_more():
    model = load_model("generic")
    weights = weight_features(model, 5.0)
    assert weights.shape == (len(model.triangles),)
    assert weights.unique().tolist() == pytest.approx([0.2, 1.0])
    at = weights[model.landmarks.triangle]
    assert bool((at[[30, 37, 43, 51, 57, 62]] == 1).all())  # nose, lids, lips
    assert bool((at[[*range(17), 19, 24]] < 1).all())  # jaw, brows
    skin = model.skin[model.triangles].all(1)
    a, b, c = model.mean[model.triangles[skin]].unbind(1)
    area = torch.linalg.cross(b - a, c - a).norm(dim=1)
    assert 0.03 < float(area[weights[skin] == 1].sum() / area.sum()) < 0.5
    middle = model.mean[model.triangles].mean(1)
    far = torch.cdist(middle, model.landmark_basis.mean[27:]).amin(1) > 15
    assert bool((weights[far] < 1).all()) and bool((weight_features(model, 1.0) == 1).all())


def test_the_mouth_is_what_lies_inside_of_the_outer_lips():
    points, _ = front()
    points = turned(points, 0.3)
    kept = outside_mouth(points, (SIZE, SIZE))[0].numpy()
    lips = points[0, 48:60].numpy()
    inside = seen_all_around(lips, SIZE)
    assert np.array_equal(kept, ~inside) and 20 < (~kept).sum() < 0.1 * kept.size
    assert outside_mouth(points + 500.0, (SIZE, SIZE)).all()


def seen_all_around(corners, size):
    """Pixels inside of a polygon, by the sum of the angles at which its sides are seen."""
    y, x = np.mgrid[:size, :size]
    a = corners[:, None, None] - np.stack([x, y], -1)
    b = np.roll(a, -1, 0)
    cross = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    return np.abs(np.arctan2(cross, (a * b).sum(-1)).sum(0)) > np.pi
