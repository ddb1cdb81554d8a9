"""Parts of an exported head, read back from each format."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from gltf_files import accessor, read
from helpers import tiny_model, tiny_result

from fitkit.export.gltf import write_glb
from fitkit.export.meshes import write_obj
from fitkit.export.targets import export_result
from fitkit.export.topology import topology_of
from fitkit.io.gltf_shapes import read_gltf_shapes
from fitkit.models.registry import load_model


def with_parts():
    """The tiny model with eyes, teeth and gums that are marked on its surface."""
    model = tiny_model()
    x, y = model.mean[:, 0], model.mean[:, 1]
    region = model.region.clone()
    for number, here in (
        (2, (x > 12) & (y > 0)),
        (3, (x < -12) & (y > 0)),
        (4, (x.abs() < 30) & (y < -50)),
        (5, (x.abs() < 30) & (y < -30) & (y >= -50)),
    ):
        region[here] = number
    names = (*model.region_names, "sclera_left", "iris_right", "teeth", "upper_gums")
    return replace(model, region=region, region_names=names)


def expected(model):
    """Triangles of each part [F] by its name, corner by corner as the regions say."""
    names = {2: "eye_left", 3: "eye_right", 4: "teeth", 5: "teeth"}
    out = []
    for corners in model.region[model.triangles].tolist():
        kinds = {names.get(number, "skin") for number in corners}
        out.append(kinds.pop() if len(kinds) == 1 else "skin")
    return np.array(out)


def corners(model, part):
    return {tuple(row) for row in model.triangles.numpy()[expected(model) == part].tolist()}


NAMES = ["skin", "eye_left", "eye_right", "teeth"]


def test_parts_are_primitives_that_share_vertices_and_shapes(tmp_path):
    model = with_parts()
    document, binary = read(write_glb(tmp_path / "a.glb", model.mean, replace(model, uv=None)))
    assert [m["name"] for m in document["materials"]] == NAMES
    rough = [m["pbrMetallicRoughness"]["roughnessFactor"] for m in document["materials"]]
    assert rough[1] == rough[2] < rough[3] < rough[0]
    (mesh,) = document["meshes"]
    assert len(mesh["extras"]["targetNames"]) == len(mesh["weights"]) == model.num_expression
    for number, primitive in enumerate(mesh["primitives"]):
        assert primitive["material"] == number
        assert primitive["attributes"] == mesh["primitives"][0]["attributes"]
        assert primitive["targets"] == mesh["primitives"][0]["targets"]
        faces = accessor(document, binary, primitive["indices"]).reshape(-1, 3)
        assert {tuple(row) for row in faces.tolist()} == corners(model, NAMES[number])
    back = read_gltf_shapes(tmp_path / "a.glb")
    assert len(back.triangles) == len(model.triangles) and len(back.vertices) == model.num_vertices


def test_parts_are_groups_of_an_obj_with_materials(tmp_path):
    model = with_parts()
    write_obj(tmp_path / "a.obj", model.mean, model, "texture.png", topology=topology_of(model))
    found, group, material = {}, None, None
    for line in (tmp_path / "a.obj").read_text().splitlines():
        key, *rest = line.split()
        if key == "g":
            group = rest[0]
        elif key == "usemtl":
            material = rest[0]
        elif key == "f":
            assert group == material
            found.setdefault(group, set()).add(tuple(int(corner.split("/")[0]) - 1 for corner in rest))
    assert found == {name: corners(model, name) for name in NAMES}
    text = (tmp_path / "a.mtl").read_text()
    assert [line.split()[1] for line in text.splitlines() if line.startswith("newmtl")] == NAMES
    assert text.count("map_Kd texture.png") == 4


def test_a_model_without_such_regions_is_one_part(tmp_path):
    model = tiny_model()
    shown = topology_of(model)
    assert [part.name for part in shown.parts] == ["skin"]
    np.testing.assert_array_equal(shown.triangles, model.triangles)
    write_obj(tmp_path / "a.obj", model.mean, model, topology=shown)
    assert not [line for line in (tmp_path / "a.obj").read_text().splitlines() if line.startswith("g ")]


@pytest.mark.skipif(importlib.util.find_spec("pxr") is None, reason="usd-core is not installed")
def test_parts_are_subsets_of_a_usd_mesh(tmp_path):
    from pxr import Usd, UsdGeom, UsdShade

    result = tiny_result(model=with_parts())
    path, _ = export_result(result, "usd", tmp_path / "out")
    stage = Usd.Stage.Open(str(path / "subject.usdc"))
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/subject/face"))
    faces = np.array(mesh.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
    subsets = UsdShade.MaterialBindingAPI(mesh.GetPrim()).GetMaterialBindSubsets()
    assert [s.GetPrim().GetName() for s in subsets] == NAMES
    for subset, name in zip(subsets, NAMES):
        rows = np.array(subset.GetIndicesAttr().Get())
        assert {tuple(row) for row in faces[rows].tolist()} == corners(result.model, name)
        material = UsdShade.MaterialBindingAPI(subset.GetPrim()).ComputeBoundMaterial()[0]
        assert material.GetPrim().GetName() == name
    assert UsdGeom.Subset.ValidateFamily(mesh, UsdGeom.Tokens.face, "materialBind")[0]


def test_parts_of_the_embedded_head_are_closed_off_from_each_other():
    model = load_model("generic")
    shown = topology_of(model)
    assert [part.name for part in shown.parts] == [*NAMES, "tongue"]
    used = [set(shown.triangles[shown.of_part(n)].ravel().tolist()) for n in range(5)]
    assert sum(map(len, used)) == len(set.union(*used)) == model.num_vertices
    x = [float(model.mean[sorted(rows), 0].mean()) for rows in used]
    assert x[1] > 25 and x[2] < -25
    assert torch.equal(torch.from_numpy(np.sort(shown.triangles, 0)), model.triangles.sort(0).values)
