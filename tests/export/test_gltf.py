"""The .glb is read back by trimesh and, for the morph targets that trimesh ignores, by a small reader of our
own."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from gltf_files import accessor, read, skinned
from helpers import tiny_joints, tiny_model, tiny_skinned_model
from PIL import Image

from fitkit.export.gltf import STILL_MM, arkit_shapes, write_glb


def png(color=(200, 100, 50)):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, format="PNG")
    return out.getvalue()


@pytest.fixture
def model():
    """The tiny model with a UV seam: the triangles of the left half use UV entries of their own."""
    model = tiny_model()
    V = model.num_vertices
    left = (model.mean[model.triangles][..., 0].mean(1) > 0)[:, None]
    return replace(
        model,
        uv=torch.cat([model.uv, model.uv * 0.5]),
        uv_triangles=torch.where(left, model.triangles + V, model.triangles),
    )


def test_trimesh_reads_the_textured_mesh(model, tmp_path):
    vertices = model.mean + 1.0
    path = write_glb(tmp_path / "a.glb", vertices, model, png())
    scene = trimesh.load(path, process=False)
    assert list(scene.geometry) == ["subject"] or len(scene.geometry) == 1
    mesh = next(iter(scene.geometry.values()))
    assert len(mesh.faces) == len(model.triangles)
    # Corner by corner: positions in metres, UV and picture.
    np.testing.assert_allclose(
        mesh.vertices[mesh.faces], vertices.numpy()[model.triangles.numpy()] * 1e-3, atol=1e-7
    )
    np.testing.assert_allclose(
        mesh.visual.uv[mesh.faces], model.uv.numpy()[model.uv_triangles.numpy()], atol=1e-6
    )
    picture = mesh.visual.material.baseColorTexture.convert("RGB")
    assert picture.size == (8, 8) and picture.getpixel((3, 3)) == (200, 100, 50)
    outside = np.einsum("ij,ij->i", mesh.vertex_normals, mesh.vertices)
    assert (outside > 0).mean() > 0.99


def test_vertices_are_repeated_only_along_the_seam(model, tmp_path):
    document, binary = read(write_glb(tmp_path / "a.glb", model.mean, model, png()))
    count = len(accessor(document, binary, document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]))
    assert model.num_vertices < count <= model.num_vertices + 2 * 15  # one or two grid columns meet at x = 0


def test_morph_targets_hold_the_expression_basis(model, tmp_path):
    document, binary = read(write_glb(tmp_path / "a.glb", model.mean, model, png()))
    mesh = document["meshes"][0]
    primitive = mesh["primitives"][0]
    names = mesh["extras"]["targetNames"]
    assert names == [
        "jawOpen",
        "mouthSmileLeft",
        "mouthSmileRight",
        "eyeBlinkLeft",
        "eyeBlinkRight",
        "browInnerUp",
    ]
    assert len(primitive["targets"]) == len(mesh["weights"]) == len(names) and not any(mesh["weights"])
    faces = accessor(document, binary, primitive["indices"]).reshape(-1, 3)
    for shape, target in zip(model.expression_basis.numpy(), primitive["targets"]):
        delta = accessor(document, binary, target["POSITION"])
        assert 0 < (delta != 0).any(1).sum() < 0.7 * len(delta)  # sparse
        np.testing.assert_allclose(delta[faces] * 1e3, shape[model.triangles.numpy()], atol=STILL_MM + 1e-5)


def test_left_and_right_halves_are_summed_where_arkit_has_one_shape():
    shapes = arkit_shapes(
        ("browInnerUp_L", "jawLeft", "browInnerUp_R", "eyeBlink_L", "cheekPuff_R", "cheekPuff_L", "smile")
    )
    assert shapes == [
        ("browInnerUp", [0, 2]),
        ("jawLeft", [1]),
        ("eyeBlinkLeft", [3]),
        ("cheekPuff", [4, 5]),
        ("smile", [6]),
    ]


def test_a_shape_that_moves_nothing_stays_a_valid_target(model, tmp_path):
    still = replace(model, expression_basis=torch.zeros_like(model.expression_basis))
    document, binary = read(write_glb(tmp_path / "a.glb", model.mean, still, png()))
    target = document["meshes"][0]["primitives"][0]["targets"][0]["POSITION"]
    assert (
        document["accessors"][target]["sparse"]["count"] == 1 and not accessor(document, binary, target).any()
    )


def test_without_uv_the_albedo_is_written_per_vertex(tmp_path):
    model = replace(tiny_model(), uv=None, uv_triangles=None)
    document, binary = read(write_glb(tmp_path / "a.glb", model.mean, model))
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    np.testing.assert_allclose(
        accessor(document, binary, attributes["COLOR_0"]), model.albedo_mean, atol=1e-6
    )
    assert "images" not in document
    assert (
        len(next(iter(trimesh.load(tmp_path / "a.glb", process=False).geometry.values())).vertices)
        == model.num_vertices
    )


def test_morph_targets_of_gaussian_coefficients_are_standard_deviations(tmp_path):
    sigma = torch.linspace(0.5, 2, 6)
    names = ("browInnerUp_L", "browInnerUp_R", "a", "b", "c", "d")  # no shapes of ARKit, whatever their names
    model = replace(
        tiny_model(), uv=None, expression_kind="gaussian", expression_sigma=sigma, expression_names=names
    )
    document, binary = read(write_glb(tmp_path / "a.glb", model.mean, model))
    mesh = document["meshes"][0]
    assert mesh["extras"]["targetNames"] == list(names)
    for s, shape, target in zip(sigma, model.expression_basis, mesh["primitives"][0]["targets"]):
        delta = accessor(document, binary, target["POSITION"]) * 1e3
        np.testing.assert_allclose(delta, (s * shape).numpy(), atol=STILL_MM + 1e-5)


# ---- joints ----


def few_influences(model):
    """The model without corrective shapes, each vertex with its 4 strongest joints."""
    strongest = model.skinning_weights.topk(4, 1)
    weights = torch.zeros_like(model.skinning_weights).scatter(1, strongest.indices, strongest.values)
    return replace(
        model, uv=None, uv_triangles=None, skinning_weights=weights / weights.sum(1, True), pose_basis=None
    )


def test_a_skin_moves_the_mesh_as_the_model_does(tmp_path):
    model = few_influences(tiny_skinned_model())
    identity, still = torch.randn(1, model.num_identity), torch.zeros(1, model.num_expression)
    joints = tiny_joints(model, 1, 0.3)
    # As of a fit with a detail layer: joints stay with the face model.
    personal = model.with_mean(model.mean + torch.rand_like(model.mean))
    neutral = personal.vertices(identity, still)[0]
    document, binary = read(write_glb(tmp_path / "a.glb", neutral, personal))
    names = [document["nodes"][at]["name"] for at in document["skins"][0]["joints"]]
    assert names == ["root", "neck", "jaw", "eye_L", "eye_R"]
    assert document["scenes"][0]["nodes"] == [0, 1]  # viewers warn of skinned meshes below other nodes
    np.testing.assert_allclose(skinned(document, binary, {}), neutral, atol=1e-4)
    turned = dict(zip(model.joint_names, joints[0].double().numpy()))
    expected = personal.vertices(identity, still, joints)[0]
    assert (expected - neutral).norm(dim=1).max() > 10  # mm
    np.testing.assert_allclose(skinned(document, binary, turned), expected, atol=1e-3)
    assert len(document["meshes"][0]["weights"]) == model.num_expression  # morph targets stay


def test_the_weakest_of_many_joints_is_left_out(tmp_path):
    whole = tiny_skinned_model()
    model = replace(
        whole,
        pose_basis=None,
        uv=None,
        uv_triangles=None,
        skinning_weights=0.8 * whole.skinning_weights + 0.2 / 5,
    )
    document, binary = read(write_glb(tmp_path / "a.glb", model.mean, model))
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    joints, weights = (accessor(document, binary, attributes[k]) for k in ("JOINTS_0", "WEIGHTS_0"))
    np.testing.assert_allclose(weights.sum(1), 1, atol=2e-7)
    true = np.sort(model.skinning_weights.numpy(), axis=1)[:, ::-1]
    np.testing.assert_allclose(weights, true[:, :4] / true[:, :4].sum(1, keepdims=True), atol=1e-6)
    assert (np.sort(joints, axis=1)[:, 1:] > np.sort(joints, axis=1)[:, :-1]).all()  # each joint once
    posed = torch.tensor([[[0.0, 0, 0], [0.2, 0, 0], [0, 0, 0], [0, 0, 0]]])
    zero = torch.zeros(1, model.num_identity), torch.zeros(1, model.num_expression)
    expected, dropped = model.vertices(*zero, posed)[0].numpy(), true[:, 4]
    away = np.linalg.norm(skinned(document, binary, {"jaw": posed[0, 1].numpy()}) - expected, axis=1)
    arm = np.linalg.norm(model.mean - (model.joint_regressor @ model.mean)[2], axis=1)
    assert away.max() > 0.05 and (away <= dropped * 0.2 * arm * 1.01 + 1e-3).all()


def test_a_model_of_one_joint_has_a_skin_of_two(tmp_path):
    whole = tiny_skinned_model()
    weights = torch.stack([whole.skinning_weights[:, 0], whole.skinning_weights[:, 1:].sum(1)], 1)
    model = replace(
        whole,
        joint_names=("jaw",),
        joint_regressor=whole.joint_regressor[[0, 2]],
        joint_parents=(-1, 0),
        skinning_weights=weights,
        joint_sigma=whole.joint_sigma[:1],
        pose_basis=None,
    )
    document, binary = read(write_glb(tmp_path / "a.glb", model.mean, model, png()))
    joints = torch.tensor([[[0.2, 0.1, 0.0]]])
    zero = torch.zeros(1, model.num_identity), torch.zeros(1, model.num_expression)
    found = skinned(document, binary, {"jaw": joints[0, 0].numpy()})
    np.testing.assert_allclose(found, model.vertices(*zero, joints)[0], atol=1e-3)  # UV without seams
