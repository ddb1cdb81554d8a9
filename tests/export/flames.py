"""Results of a small model with the joints and coefficients of FLAME, and its published formula."""

from dataclasses import replace

import numpy as np
import torch
from helpers import tiny_joints, tiny_result, tiny_skinned_model, tiny_state

LIDS = ("eyeBlink_L", "eyeBlink_R")


def flame_model(seed=0, lids=True):
    """`tiny_skinned_model` with 300 identity and 100 expression shapes, as of PCAs, its frame moved away from
    the middle of the head, and, with lids, two more shapes."""
    tiny = tiny_skinned_model(seed)

    def many(basis, count):
        smaller = torch.linspace(0.5, 0, count)[:, None, None] ** 2
        return smaller * basis[torch.arange(count) % len(basis)]

    expression = many(tiny.expression_basis, 100)
    names = tuple(f"expression_{k:03d}" for k in range(100))
    if lids:
        expression = torch.cat([expression, tiny.expression_basis[3:5]])
        names += LIDS
    return replace(
        tiny,
        name="flame",
        mean=tiny.mean + torch.tensor([3.0, -40.0, 25.0]),
        identity_basis=many(tiny.identity_basis, 300),
        expression_basis=expression,
        expression_names=names,
        expression_kind="gaussian",
    )


def flame_result(seed=0, views=3, size=96, lids=True, moments=None, joints=0.15):
    """Perfect fits of such a person. moments: name of each view's moment; views of one share what a rig's
    photos share."""
    model = flame_model(seed, lids)
    state = tiny_state(model, views, size, seed)
    state = state.replace(joints=tiny_joints(model, views, joints, seed))
    if moments:
        first = [moments.index(m) for m in moments]
        state = state.replace(expression=state.expression[first], joints=state.joints[first])
    result = tiny_result(
        seed, model=model, state=state, size=size, colors=torch.full((model.num_vertices, 3), 0.6)
    )
    names = moments or [""] * views
    subject = replace(
        result.subject,
        views=tuple(v.replace(moment=m) for v, m in zip(result.subject.views, names)),
    )
    return replace(result, subject=subject)


def published(model):
    """The arrays of FLAME's file in its units, without the eyelids."""
    expression = [k for k, name in enumerate(model.expression_names) if name not in LIDS]
    return {
        "v_template": model.mean.numpy() / 1000,
        "shape": model.identity_basis.numpy() / 1000,
        "expr": model.expression_basis[expression].numpy() / 1000,
        "posedirs": model.pose_basis.numpy() / 1000,
        "J_regressor": model.joint_regressor.numpy(),
        "parents": model.joint_parents,
        "weights": model.skinning_weights.numpy(),
    }


def rodrigues(vector):
    angle = np.linalg.norm(vector)
    if angle == 0:
        return np.eye(3)
    x, y, z = vector / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def flame_vertices(arrays, shape, expression, pose, translation=np.zeros(3), offset=0.0):
    """[V, 3] m. shape [300], expression [100]; pose [15]: rotation vectors of the root, neck, jaw, left and
    right eye. SMPL's formula, eq. 2 to 10, by homogeneous matrices."""
    v = arrays["v_template"] + np.einsum("k,kvc->vc", shape, arrays["shape"]) + offset
    v = v + np.einsum("k,kvc->vc", expression, arrays["expr"])
    joints = arrays["J_regressor"] @ v
    turns = [rodrigues(w) for w in np.asarray(pose, float).reshape(5, 3)]
    feature = np.concatenate([(r - np.eye(3)).reshape(-1) for r in turns[1:]])
    v = v + np.einsum("k,kvc->vc", feature, arrays["posedirs"])
    world = []
    for j, parent in enumerate(arrays["parents"]):
        local = np.eye(4)
        local[:3, :3] = turns[j]
        local[:3, 3] = joints[j] - (joints[parent] if parent >= 0 else 0)
        world.append(local if parent < 0 else world[parent] @ local)
    out = np.zeros_like(v)
    for j, matrix in enumerate(world):
        carried = (v - joints[j]) @ matrix[:3, :3].T + matrix[:3, 3]
        out += arrays["weights"][:, j, None] * carried
    return out + translation


def own_pixels(result):
    """[B, V, 2] where fitkit sees the vertices in the photos, pixel (0, 0) the centre of the first one."""
    state = result.state.to(dtype=torch.float64)
    posed = state.posed(result.personal_model.to(dtype=torch.float64))
    return state.camera.project(posed)[0].numpy()
