from dataclasses import replace

import pytest
import torch
from helpers import tiny_joints, tiny_model, tiny_skinned_model

from fitkit.geometry.rotation import so3_exp
from fitkit.models.face_model import FaceModel

MODEL = tiny_skinned_model(dtype=torch.float64)
GEN = torch.Generator().manual_seed(0)
B = 3


def normal(*shape):
    return torch.randn(*shape, generator=GEN, dtype=torch.float64)


COEFFICIENTS = (normal(B, MODEL.num_identity), 0.5 * normal(B, MODEL.num_expression), tiny_joints(MODEL, B))
TRIANGLE = torch.randint(0, len(MODEL.triangles), (40,), generator=GEN)
BARYCENTRIC = torch.rand(40, 3, generator=GEN, dtype=torch.float64)
BARYCENTRIC = BARYCENTRIC / BARYCENTRIC.sum(1, keepdim=True)
VERTICES = torch.tensor([5, 3, 200, 77, 140, 150, 260])
OTHERS = torch.randint(0, MODEL.num_vertices, (B, 9), generator=GEN)


def obvious(model, identity, expression, joints):
    """Linear blend skinning of one frame as it is printed: 4 x 4 matrices along the chain of the joints."""
    shaped = model.mean + torch.einsum("k,kvc->vc", identity, model.identity_basis)
    shaped = shaped + torch.einsum("k,kvc->vc", expression, model.expression_basis)
    rest = model.joint_regressor @ shaped
    rotations = [torch.eye(3, dtype=torch.float64), *so3_exp(joints)]
    feature = torch.cat([(r - torch.eye(3)).reshape(9) for r in rotations[1:]])
    if model.pose_basis is not None:
        shaped = shaped + torch.einsum("k,kvc->vc", feature, model.pose_basis)
    world = []
    for j, parent in enumerate(model.joint_parents):
        local = torch.eye(4, dtype=torch.float64)
        local[:3, :3] = rotations[j]
        local[:3, 3] = rest[j] - (rest[parent] if parent >= 0 else 0)
        world.append(local if parent < 0 else world[parent] @ local)
    out = torch.zeros_like(shaped)
    for j, matrix in enumerate(world):
        carried = (shaped - rest[j]) @ matrix[:3, :3].T + matrix[:3, 3]
        out += model.skinning_weights[:, j, None] * carried
    return out


@pytest.mark.parametrize("correctives", [True, False])
def test_vertices_are_those_of_the_printed_formula(correctives):
    model = MODEL if correctives else replace(MODEL, pose_basis=None)
    vertices = model.vertices(*COEFFICIENTS)
    for b in range(B):
        torch.testing.assert_close(vertices[b], obvious(model, *(c[b] for c in COEFFICIENTS)))
    moved = (vertices - model.vertices(*COEFFICIENTS[:2])).norm(dim=-1)
    assert float(moved.amax(1).min()) > 5


def test_at_rest_it_is_the_linear_model():
    linear = tiny_model(dtype=torch.float64)
    expected = linear.vertices(*COEFFICIENTS[:2])
    torch.testing.assert_close(MODEL.vertices(*COEFFICIENTS[:2]), expected)
    torch.testing.assert_close(MODEL.vertices(*COEFFICIENTS[:2], 0 * COEFFICIENTS[2]), expected)
    assert isinstance(MODEL, FaceModel) and MODEL.num_joints == 4 and linear.num_joints == 0
    assert "4 joints" in repr(MODEL) and "joints" not in repr(linear)


def test_coefficients_name_each_axis_of_each_joint():
    joints = MODEL.coefficients["joints"]
    assert joints.names[3:6] == ("jaw_x", "jaw_y", "jaw_z") and joints.size == 12
    assert joints.kind == "rotation" and joints.per == "frame"
    torch.testing.assert_close(joints.sigma, torch.full((12,), 0.15, dtype=torch.float64))
    assert "joints" not in tiny_model().coefficients


def some_points():
    """Name, points, and the same from the whole mesh."""
    corners = MODEL.triangles[TRIANGLE]

    def between(v):
        return torch.einsum("nk,bnkc->bnc", BARYCENTRIC, v[:, corners])

    frames = torch.arange(B)[:, None]
    return {
        "at": (MODEL.at(TRIANGLE, BARYCENTRIC), between),
        "vertices": (MODEL.at_vertices(VERTICES), lambda v: v[:, VERTICES]),
        "by frame": (MODEL.at_vertices(OTHERS), lambda v: v[frames, OTHERS]),
        "selected": (MODEL.at(TRIANGLE, BARYCENTRIC).select(VERTICES[:2]), lambda v: between(v)[:, [5, 3]]),
        "landmarks": (MODEL.landmark_basis, lambda v: MODEL.landmarks.points(v, MODEL.triangles)),
    }


@pytest.mark.parametrize("name", list(some_points()))
def test_points_are_those_of_the_mesh(name):
    points, of_mesh = some_points()[name]
    torch.testing.assert_close(points.points(*COEFFICIENTS), of_mesh(MODEL.vertices(*COEFFICIENTS)))
    at_rest = COEFFICIENTS[:2]
    torch.testing.assert_close(points.points(*at_rest), of_mesh(MODEL.vertices(*at_rest)))
    if name != "by frame":
        torch.testing.assert_close(points.mean, of_mesh(MODEL.mean[None])[0])
        shapes = torch.cat([MODEL.identity_basis, MODEL.expression_basis])
        torch.testing.assert_close(points.rows, of_mesh(shapes).permute(1, 2, 0))


def jacobians(function, coefficients=COEFFICIENTS):
    """d function / d coefficients of the frame, [B, ..., K] by name, by automatic differentiation; function:
    coefficients -> [B, ...]."""
    out = {}
    for k, name in enumerate(("identity", "expression", "joints")):
        moved = [
            torch.func.jacfwd(
                lambda value, b=b: function(
                    *(value if i == k else c[[b]] for i, c in enumerate(coefficients))
                )
            )(coefficients[k][[b]])
            for b in range(B)
        ]
        out[name] = torch.cat([m.reshape(*m.shape[: -coefficients[k].ndim], -1) for m in moved])
    return out


def check(columns, by_head, jacobian):
    """Columns against by_head @ jacobian [G, N, 3, K]."""
    assert set(columns) == set(jacobian)
    for name, expected in jacobian.items():
        torch.testing.assert_close(columns[name], by_head @ expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in some_points() if n != "by frame"])
def test_motion_against_automatic_differentiation(name):
    points, _ = some_points()[name]
    jacobian = jacobians(points.points)
    N = jacobian["joints"].shape[1]
    by_head = normal(B, N, 2, 3)
    motion = points.motion(*COEFFICIENTS)
    check(motion.columns(by_head), by_head, jacobian)
    views = torch.tensor([2, 0, 2, 1])
    by_head = normal(4, N, 1, 3)
    check(motion.columns(by_head, views), by_head, {n: j[views] for n, j in jacobian.items()})
    at_rest = points.motion(*COEFFICIENTS[:2])
    resting = (*COEFFICIENTS[:2], 0 * COEFFICIENTS[2])
    check(
        at_rest.columns(by_head, views),
        by_head,
        {n: j[views] for n, j in jacobians(points.points, resting).items()},
    )


def test_motion_against_central_differences():
    points, h = MODEL.landmark_basis, 1e-5
    by_head = torch.eye(3, dtype=torch.float64).expand(B, 68, 3, 3)
    columns = points.motion(*COEFFICIENTS).columns(by_head)
    for k, name in enumerate(("identity", "expression", "joints")):
        for j in range(0, columns[name].shape[-1], 3):
            step = torch.zeros_like(COEFFICIENTS[k]).flatten(1)
            step[:, j] = h
            ends = [
                points.points(
                    *(c + s * step.reshape(c.shape) if i == k else c for i, c in enumerate(COEFFICIENTS))
                )
                for s in (1, -1)
            ]
            numeric = (ends[0] - ends[1]) / (2 * h)
            torch.testing.assert_close(columns[name][..., j], numeric, rtol=1e-6, atol=1e-6)


def test_motion_of_points_that_each_group_blends_anew():
    basis = MODEL.at_vertices(torch.arange(MODEL.num_vertices))
    views, corner = (
        torch.tensor([1, 2, 1, 0]),
        torch.randint(0, MODEL.num_vertices, (4, 10, 3), generator=GEN),
    )
    weights, by_head = normal(4, 10, 3), normal(4, 10, 2, 3)
    motion = basis.motion(*COEFFICIENTS).blended(corner, weights)
    whole = jacobians(lambda *c: MODEL.vertices(*c))
    expected = {
        n: torch.einsum("gnk,gnkcp->gncp", weights, j[views[:, None, None], corner]) for n, j in whole.items()
    }
    check(motion.columns(by_head, views), by_head, expected)


def test_motion_with_other_points_in_some_places():
    marks, jaw = MODEL.landmark_basis, MODEL.at_vertices(OTHERS)
    keep = torch.rand(B, 9, generator=GEN) < 0.5
    motion = marks.motion(*COEFFICIENTS).with_first(jaw.motion(*COEFFICIENTS), keep)
    whole, own = jacobians(lambda *c: MODEL.vertices(*c)), jacobians(marks.points)
    by_head = normal(B, 68, 2, 3)
    expected = {}
    for name, j in own.items():
        other = whole[name][torch.arange(B)[:, None], OTHERS]
        expected[name] = torch.cat([torch.where(keep[..., None, None], other, j[:, :9]), j[:, 9:]], 1)
    check(motion.columns(by_head), by_head, expected)


def test_motion_of_sums_over_vertices_and_of_the_mean():
    index = VERTICES.sort().values
    basis = MODEL.at_vertices(index)
    motion, jacobian = basis.motion(*COEFFICIENTS), jacobians(basis.points)
    group, point = torch.tensor([0, 0, 1, 3, 3, 3]), torch.tensor([1, 4, 0, 0, 2, 6])
    values = normal(6, 3)
    for b in range(B):
        sums = motion.sums(values, group, point, 4, b)
        for name, j in jacobian.items():
            each = (values[:, None] @ j[b, point])[:, 0]
            torch.testing.assert_close(
                sums[name], torch.zeros(4, j.shape[-1]).double().index_add(0, group, each)
            )
    by_head, views, at = normal(2, 5, 2, 3), torch.tensor([2, 0]), torch.randint(0, 7, (2, 5), generator=GEN)
    moved = motion.at_rest(by_head, at, views)
    offset = normal(len(MODEL.mean), 3)

    def vertices(size):
        return MODEL.with_mean(MODEL.mean + size * offset).at_vertices(index).points(*COEFFICIENTS)

    by_size = torch.func.jacfwd(vertices)(torch.zeros((), dtype=torch.float64))  # [B, 7, 3]
    torch.testing.assert_close(
        (moved * offset[index][at][:, :, None]).sum(-1),
        (by_head @ by_size[views[:, None], at][..., None])[..., 0],
    )


def test_a_model_that_lacks_landmarks_keeps_them_in_the_middle_of_the_others():
    triangle = MODEL.landmarks.triangle.clone()
    triangle[[3, 60]] = -1
    few = replace(MODEL, landmarks=replace(MODEL.landmarks, triangle=triangle))
    points = few.landmark_basis.points(*COEFFICIENTS)
    torch.testing.assert_close(points, few.landmark_points(*COEFFICIENTS))
    present = few.landmarks.present
    torch.testing.assert_close(points[:, 3], points[:, present].mean(1))
    by_head = normal(B, 68, 2, 3)
    columns = few.landmark_basis.motion(*COEFFICIENTS).columns(by_head)
    whole = MODEL.landmark_basis.motion(*COEFFICIENTS).columns(by_head)
    for name in columns:
        torch.testing.assert_close(columns[name][:, present], whole[name][:, present])
    torch.testing.assert_close(few.landmark_basis.select(present).mean, few.landmark_basis.mean[present])


def test_another_mean_leaves_shapes_and_joints_where_they_are():
    moved = MODEL.with_mean(MODEL.mean + 1)
    assert moved.rows is MODEL.rows and moved.joint_basis is MODEL.joint_basis
    single = MODEL.to(dtype=torch.float32)
    values = tuple(c.float() for c in COEFFICIENTS)
    torch.testing.assert_close(
        single.vertices(*values).double(), MODEL.vertices(*COEFFICIENTS), rtol=0, atol=1e-3
    )
