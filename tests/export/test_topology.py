"""Parts of an exported head, read back from each format."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from gltf_files import accessor, read, skinned
from helpers import tiny_model, tiny_result
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from test_export_targets import skinned_result
from test_usd import fans, first_least, polygons

from fitkit.errors import InputError
from fitkit.export import targets, texture
from fitkit.export.gltf import write_glb
from fitkit.export.meshes import write_obj
from fitkit.export.targets import ExportOptions, export_result
from fitkit.export.topology import topology_of, with_quads
from fitkit.geometry.normals import vertex_normals
from fitkit.io.gltf_shapes import read_gltf_shapes
from fitkit.io.mesh_files import obj_arrays, read_mesh
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


def test_parts_are_materials_of_an_obj(tmp_path):
    model = with_parts()
    write_obj(tmp_path / "a.obj", model.mean, model, "texture.png", topology=topology_of(model))
    found, material = {}, None
    for line in (tmp_path / "a.obj").read_text().splitlines():
        key, *rest = line.split()
        assert key != "g"  # Maya and others would make objects of groups
        if key == "usemtl":
            material = rest[0]
        elif key == "f":
            found.setdefault(material, set()).add(tuple(int(corner.split("/")[0]) - 1 for corner in rest))
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
    assert "usemtl" not in (tmp_path / "a.obj").read_text() and not (tmp_path / "a.mtl").exists()


@pytest.mark.skipif(importlib.util.find_spec("pxr") is None, reason="usd-core is not installed")
def test_parts_are_subsets_of_a_usd_mesh(tmp_path):
    from pxr import Usd, UsdGeom, UsdShade

    result = tiny_result(model=with_parts())
    path, _ = export_result(result, "usd", tmp_path / "out")
    stage = Usd.Stage.Open(str(path / "subject.usdc"))
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/subject/face"))
    faces = polygons(mesh)
    assert {len(face) for face in faces} == {3, 4}
    subsets = UsdShade.MaterialBindingAPI(mesh.GetPrim()).GetMaterialBindSubsets()
    assert [s.GetPrim().GetName() for s in subsets] == NAMES
    for subset, name in zip(subsets, NAMES):
        rows = subset.GetIndicesAttr().Get()
        found = {triangle for row in rows for triangle in fans(faces[row])}
        assert found == {first_least(triangle) for triangle in corners(result.model, name)}
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


# ---- fewer vertices ----


def edges(triangles):
    """Edges [E, 2] and of how many triangles each is."""
    pairs = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1)
    return np.unique(pairs, axis=0, return_counts=True)


def turned_over(points, triangles, normals):
    """How many triangles look against the normals [V, 3] of the full mesh at all of their corners."""
    a, b, c = (points[triangles[:, k]] for k in range(3))
    own = np.cross(b - a, c - a)
    return int((np.einsum("fi,fki->fk", own, normals[triangles]) < 0).all(1).sum())


@pytest.fixture(scope="module")
def small_head():
    model = load_model("generic")
    return model, topology_of(model, 2000)


def test_a_coarser_head_has_the_same_holes_and_parts(small_head):
    model, shown = small_head
    assert len(shown.vertex) == 2000 and (np.diff(shown.vertex) > 0).all()
    whole = model.triangles.numpy()
    some = shown.vertex[shown.triangles]
    assert len(np.unique(some)) == 2000
    for triangles in (whole, some):
        found, count = edges(triangles)
        holes, where = np.unique(found[count == 1], return_inverse=True)
        where = where.reshape(-1, 2)
        graph = coo_array((np.ones(len(where)), where.T), shape=(len(holes), len(holes)))
        assert connected_components(graph, directed=False)[0] == 8 and count.max() == 2
        assert len(np.unique(triangles)) - len(found) + len(triangles) == 4
    assert [part.name for part in shown.parts] == [*NAMES, "tongue"]
    full = topology_of(model)
    for number in range(5):
        inside = np.unique(full.triangles[full.of_part(number)])
        assert np.isin(some[shown.of_part(number)], inside).all()
    np.testing.assert_allclose(
        shown.uv[shown.uv_triangles], model.uv.numpy()[some], atol=1e-7
    )  # one row for each vertex
    marks = model.landmarks.triangle.numpy()
    assert np.isin(whole[marks], shown.vertex).all()


def test_a_coarser_head_is_near_the_full_one_and_not_turned_over_in_any_shape(small_head):
    model, shown = small_head
    some, face = shown.vertex[shown.triangles], np.flatnonzero(model.face.numpy())[::12]
    shapes = torch.cat([torch.zeros_like(model.mean)[None], model.expression_basis])
    for name, shape in zip(("neutral", *model.expression_names), shapes):
        points = (model.mean + shape).double()
        normals = vertex_normals(points[None], model.triangles)[0].numpy()
        before = turned_over(points.numpy(), model.triangles.numpy(), normals)
        assert turned_over(points.numpy(), some, normals) <= before, name
        if name in ("neutral", "jawOpen", "eyeBlink_L", "mouthPucker"):
            mesh = trimesh.Trimesh(points.numpy(), some, process=False)
            away = trimesh.proximity.closest_point(mesh, points.numpy()[face])[1]
            assert away.mean() < 0.18 and away.max() < 1.2, name  # mm; measured 0.14, and 0.6 to 0.9


def test_files_of_a_coarser_mesh(tmp_path, monkeypatch):
    monkeypatch.setattr(texture, "texture_size", lambda result: 64)
    monkeypatch.setattr(targets, "LEAST_VERTICES", 50)
    result = skinned_result()
    path, notes = export_result(result, "blender", tmp_path / "a", ExportOptions(vertices=150))
    assert notes == []
    shown = topology_of(result.model, 150)
    assert len(shown.vertex) == 150
    document, binary = read(path / "photos.glb")
    primitive = document["meshes"][0]["primitives"][0]
    faces = accessor(document, binary, primitive["indices"]).reshape(-1, 3)
    some = shown.vertex[shown.triangles]
    points = accessor(document, binary, primitive["attributes"]["POSITION"])
    np.testing.assert_allclose(1e3 * points[faces], result.neutral.numpy()[some], atol=1e-3)
    normals = vertex_normals(result.neutral[None].double(), result.model.triangles)[0].numpy()
    np.testing.assert_allclose(
        accessor(document, binary, primitive["attributes"]["NORMAL"])[faces], normals[some], atol=1e-5
    )
    for target, shape in zip(primitive["targets"], result.model.expression_basis.numpy()):
        delta = accessor(document, binary, target["POSITION"])
        np.testing.assert_allclose(1e3 * delta[faces], shape[some], atol=0.021)
    turned = skinned(document, binary, {"jaw": np.array([0.2, 0, 0])})
    joints = torch.zeros(1, result.model.num_joints, 3)
    joints[0, 1, 0] = 0.2
    plain = replace(result.model, pose_basis=None)
    zero = torch.zeros(1, plain.num_expression)
    wanted = plain.vertices(result.state.identity, zero, joints)[0].numpy()[some]
    # The smallest of five weights is left out, and joints of the file stay with the shape of the person.
    assert (
        np.abs(turned[faces] - wanted).mean() < 0.2
        and np.abs(wanted - result.neutral.numpy()[some]).max() > 5
    )
    for name, shape in (("neutral", 0), ("jawOpen", result.model.expression_basis[0])):
        read_back, triangles = read_mesh(path / "obj" / f"{name}.obj")
        np.testing.assert_allclose(read_back, (result.neutral + shape).numpy()[shown.vertex], atol=1e-5)
        assert set(map(first_least, triangles.tolist())) == set(map(first_least, shown.triangles.tolist()))


@pytest.mark.skipif(importlib.util.find_spec("pxr") is None, reason="usd-core is not installed")
def test_usd_of_a_coarser_mesh(tmp_path, monkeypatch):
    from pxr import Usd, UsdGeom, UsdSkel

    monkeypatch.setattr(texture, "texture_size", lambda result: 64)
    monkeypatch.setattr(targets, "LEAST_VERTICES", 50)
    result = tiny_result()
    path, _ = export_result(result, "usd", tmp_path / "out", ExportOptions(vertices=120))
    vertex = topology_of(result.model, 120).vertex
    stage = Usd.Stage.Open(str(path / "subject.usdc"))
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/subject/face"))
    np.testing.assert_allclose(mesh.GetPointsAttr().Get(), result.neutral.numpy()[vertex] / 10, atol=1e-5)
    shape = UsdSkel.BlendShape(stage.GetPrimAtPath("/subject/face/jawOpen"))
    full = np.zeros((120, 3))
    full[np.array(shape.GetPointIndicesAttr().Get())] = shape.GetOffsetsAttr().Get()
    np.testing.assert_allclose(full, result.model.expression_basis[0].numpy()[vertex] / 10, atol=2.1e-3)
    assert UsdSkel.BindingAPI(mesh.GetPrim()).GetJointWeightsPrimvar().Get() == [1.0] * 120


def test_coarser_meshes_that_are_refused_or_cannot_be(tmp_path, monkeypatch):
    monkeypatch.setattr(texture, "texture_size", lambda result: 64)
    result = tiny_result()
    with pytest.raises(InputError, match="^export: vertices: expected a whole number, got str$"):
        export_result(result, "blender", tmp_path / "a", ExportOptions(vertices="2000"))
    with pytest.raises(InputError, match="^export: vertices: expected 500 or more, got 499$"):
        export_result(result, "usd", tmp_path / "a", ExportOptions(vertices=499))
    for vertices in (5000, 499):
        with pytest.raises(
            InputError, match="^export: vertices is for targets blender and usd, got target 'me"
        ):
            export_result(result, "metahuman", tmp_path / "a", ExportOptions(vertices=vertices))
    assert not list(tmp_path.iterdir())
    _, notes = export_result(result, "blender", tmp_path / "b", ExportOptions(vertices=5000))
    assert notes == [] and len(read_mesh(tmp_path / "b/obj/neutral.obj")[0]) == 315
    monkeypatch.setattr(targets, "LEAST_VERTICES", 3)
    _, notes = export_result(result, "blender", tmp_path / "c", ExportOptions(vertices=3))
    count = len(read_mesh(tmp_path / "c/obj/neutral.obj")[0])
    assert notes == [
        f"the mesh has {count} vertices, not 3: without the others it would tear, fold or lose a landmark"
    ]


# ---- quads ----


def test_an_obj_of_quads_has_the_same_triangles(tmp_path):
    """A reader that splits quads at their first corner gets those of the model, with their texture."""
    model = with_parts()
    shown = with_quads(model, topology_of(model))
    write_obj(tmp_path / "a.obj", model.mean, model, "texture.png", topology=shown)
    vertices, uv, triangles, texture_corners = obj_arrays(tmp_path / "a.obj", corners=True)
    lines = [row.split()[1:] for row in (tmp_path / "a.obj").read_text().splitlines() if row.startswith("f ")]
    assert sum(len(line) == 4 for line in lines) == len(shown.quads) > 0.4 * len(model.triangles)
    np.testing.assert_array_equal(triangles, texture_corners)  # no seams here
    assert set(map(first_least, triangles.tolist())) == set(map(first_least, model.triangles.tolist()))
    material, inside = None, {}
    for line in (tmp_path / "a.obj").read_text().splitlines():
        if line.startswith("usemtl "):
            material = line[len("usemtl ") :]
        elif line.startswith("f "):
            face = [int(corner.split("/")[0]) - 1 for corner in line.split()[1:]]
            inside.setdefault(material, set()).update(fans(face))
    assert inside == {name: set(map(first_least, corners(model, name))) for name in NAMES}


def test_quads_do_not_cross_seams_of_the_texture():
    model = tiny_model()
    left = (model.mean[model.triangles][..., 0].mean(1) > 0)[:, None]
    V = model.num_vertices
    model = replace(
        model,
        uv=torch.cat([model.uv, model.uv * 0.5]),
        uv_triangles=torch.where(left, model.triangles + V, model.triangles),
    )
    shown = with_quads(model, topology_of(model))
    ((_, uv), _) = shown.faces(0)
    assert ((uv < V).all(1) | (uv >= V).all(1)).all() and len(shown.quads) > 250


def test_most_of_the_embedded_head_is_quads_that_stay_convex():
    model = load_model("generic")
    shown = with_quads(model, topology_of(model))
    used = shown.quads.ravel()
    assert len(np.unique(used)) == len(used) > 0.92 * len(model.triangles)  # measured 0.94
    quads = np.concatenate([shown.faces(number)[0][0] for number in range(5)])
    for shape in torch.cat([torch.zeros_like(model.mean)[None], model.expression_basis[::9]]):
        at = (model.mean + shape).double().numpy()[quads]
        normal = np.cross(at[:, 2] - at[:, 0], at[:, 3] - at[:, 1])
        for k in range(4):
            side, following = at[:, (k + 1) % 4] - at[:, k], at[:, (k + 2) % 4] - at[:, (k + 1) % 4]
            assert ((np.cross(side, following) * normal).sum(1) > 0).all()
