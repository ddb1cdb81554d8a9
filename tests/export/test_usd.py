"""The file is read back by OpenUSD itself, which also moves the face."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_model, tiny_result
from test_export_targets import skinned_result, small_textures, without_photos  # noqa: F401
from test_rig import with_neck_and_eyes

from fitkit.errors import InputError
from fitkit.export.targets import ExportOptions, export_result

needs_usd = pytest.mark.skipif(importlib.util.find_spec("pxr") is None, reason="usd-core is not installed")


def polygons(mesh):
    """The faces of a mesh, a list of vertices each."""
    counts = mesh.GetFaceVertexCountsAttr().Get()
    return np.split(np.array(mesh.GetFaceVertexIndicesAttr().Get()), np.cumsum(counts)[:-1])


def fans(face):
    """The triangles of a polygon, all round its first corner."""
    return [first_least((face[0], face[k], face[k + 1])) for k in range(1, len(face) - 1)]


def first_least(triangle):
    """A triangle that begins with its smallest number, turned the same way."""
    k = int(np.argmin(triangle))
    return tuple(int(v) for v in (*triangle[k:], *triangle[:k]))


def moved(stage, t):
    """The vertices in cm as OpenUSD's own code moves them at frame t."""
    from pxr import Usd, UsdGeom, UsdSkel, Vt

    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/subject/face"))
    cache = UsdSkel.Cache()
    root = UsdSkel.Root(stage.GetPrimAtPath("/subject"))
    cache.Populate(root, Usd.PrimDefaultPredicate)
    skinning = cache.GetSkinningQuery(mesh.GetPrim())
    skeleton = cache.GetSkelQuery(UsdSkel.Skeleton(stage.GetPrimAtPath("/subject/skeleton")))
    points = Vt.Vec3fArray(mesh.GetPointsAttr().Get())
    query = UsdSkel.BlendShapeQuery(UsdSkel.BindingAPI(mesh.GetPrim()))
    given = skeleton.GetAnimQuery().ComputeBlendShapeWeights(t)
    mapper = skinning.GetBlendShapeMapper()
    weights = mapper.Remap(given) if mapper is not None else given
    subs, parts, shapes = query.ComputeSubShapeWeights(weights)
    query.ComputeDeformedPoints(
        subs,
        parts,
        shapes,
        query.ComputeBlendShapePointIndices(),
        query.ComputeSubShapePointOffsets(),
        points,
    )
    transforms = skeleton.ComputeSkinningTransforms(t)
    assert skinning.ComputeSkinnedPoints(transforms, points, t)
    return np.array(points)


@needs_usd
@pytest.mark.parametrize("joints", [False, True])
def test_usd_shows_each_photo(tmp_path, joints):
    from pxr import Usd, UsdSkel

    result = skinned_result(seed=1) if joints else tiny_result(seed=1, model=with_neck_and_eyes(1))
    if joints:
        result = replace(result, model=replace(result.model, pose_basis=None))
    path, notes = export_result(result, "usd", tmp_path / "out")
    assert notes == []
    stage = Usd.Stage.Open(str(path / "subject.usdc"))
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode(), stage.GetTimeCodesPerSecond()) == (0, 2, 24)
    names = list(UsdSkel.Skeleton(stage.GetPrimAtPath("/subject/skeleton")).GetJointsAttr().Get())
    if not joints:
        head = "root/neck/head"
        assert names == ["root", "root/neck", head, f"{head}/eye_left", f"{head}/eye_right"]
    posed = result.state.posed(result.model).numpy() * [0.1, -0.1, -0.1]
    for t in range(3):
        off = np.linalg.norm(moved(stage, t) - posed[t], axis=1)  # cm
        # Joints do not follow the expression, as those of the model do.
        assert off.max() < (0.3 if joints else 4e-3), off.max()
        assert off.mean() < (0.03 if joints else 1e-3)
        still = np.linalg.norm(moved(stage, (t + 1) % 3) - posed[t], axis=1)
        assert still.min() > 0.1


@needs_usd
def test_shapes_texture_and_units(tmp_path):
    from pxr import Usd, UsdGeom, UsdShade, UsdSkel

    result = tiny_result()
    path, _ = export_result(result, "usd", tmp_path / "out", ExportOptions("suffix"))
    stage = Usd.Stage.Open(str(path / "subject.usdc"))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 0.01
    assert stage.GetDefaultPrim().GetPath() == "/subject"
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/subject/face"))
    np.testing.assert_allclose(mesh.GetPointsAttr().Get(), result.neutral.numpy() / 10, atol=1e-5)
    faces = polygons(mesh)
    assert np.mean([len(face) for face in faces]) > 3.9
    assert {turned for face in faces for turned in fans(face)} == {
        first_least(row) for row in result.model.triangles.tolist()
    }
    st = UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st").ComputeFlattened()
    assert torch.equal(result.model.uv_triangles, result.model.triangles)
    np.testing.assert_allclose(st, result.model.uv.numpy()[np.concatenate(faces)])
    names = json.loads((path / "arkit_names.json").read_text())["names"]
    binding = UsdSkel.BindingAPI(mesh.GetPrim())
    assert list(binding.GetBlendShapesAttr().Get()) == names and "eyeBlink_L" in names
    for target, basis in zip(binding.GetBlendShapeTargetsRel().GetTargets(), result.model.expression_basis):
        shape = UsdSkel.BlendShape(stage.GetPrimAtPath(target))
        full = np.zeros((len(basis), 3))
        full[np.array(shape.GetPointIndicesAttr().Get())] = shape.GetOffsetsAttr().Get()
        np.testing.assert_allclose(full, basis.numpy() / 10, atol=2.1e-3)
    material = UsdShade.MaterialBindingAPI(mesh.GetPrim()).ComputeBoundMaterial()[0]
    surface = material.ComputeSurfaceSource()[0]
    source = surface.GetInput("diffuseColor").GetConnectedSources()[0][0].source
    picture = UsdShade.Shader(source.GetPrim()).GetInput("file").Get()
    assert picture.path == "./texture.png" and (path / "texture.png").exists()
    assert picture.resolvedPath == str(path / "texture.png")


@needs_usd
def test_names_that_usd_does_not_take(tmp_path):
    from pxr import Usd, UsdSkel

    names = ("a b", "a_b", "3", "jaw/open", "ü", "a-b")
    result = tiny_result(model=replace(tiny_model(), expression_names=names))
    path, _ = export_result(result, "usd", tmp_path / "out")
    stage = Usd.Stage.Open(str(path / "subject.usdc"))
    binding = UsdSkel.BindingAPI(stage.GetPrimAtPath("/subject/face"))
    assert tuple(binding.GetBlendShapesAttr().Get()) == names
    assert len(set(binding.GetBlendShapeTargetsRel().GetTargets())) == 6
    rig = skinned_result()
    rig = replace(rig, model=replace(rig.model, joint_names=("rig:neck", "the jaw", "eye_L", "eye_R")))
    path, _ = export_result(rig, "usd", tmp_path / "rig")
    rigged = Usd.Stage.Open(str(path / "subject.usdc"))
    skeleton = UsdSkel.Skeleton(rigged.GetPrimAtPath("/subject/skeleton"))
    assert UsdSkel.Topology(skeleton.GetJointsAttr().Get()).Validate()[0]
    files, _ = export_result(result, "blender", tmp_path / "obj")
    assert len(list((files / "obj").glob("*.obj"))) == 7


@needs_usd
def test_what_usd_cannot_hold_is_said(tmp_path):
    path, notes = export_result(skinned_result(), "usd", tmp_path / "a")
    assert notes == ["USD has no place for the corrective shapes of turned joints; they are left out"]
    camera = replace(tiny_result().state.camera, kind="orthographic")
    result = tiny_result(model=replace(tiny_model(), uv=None, uv_triangles=None))
    result = without_photos(replace(result, state=result.state.replace(camera=camera)))
    path, notes = export_result(result, "usd", tmp_path / "b")
    assert notes == [
        "no texture: face model 'tiny' has no UV coordinates",
        "no animation: orthographic cameras do not say where the head is",
    ]
    assert sorted(p.name for p in path.iterdir()) == ["arkit_names.json", "subject.usdc"]


def test_without_the_package(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pxr" else find(name, *a)
    )
    with pytest.raises(
        InputError, match=r"^export: usd needs the package usd-core; pip install 'fitkit\[usd\]'$"
    ):
        export_result(tiny_result(), "usd", tmp_path / "out")
    assert not list(tmp_path.iterdir())
