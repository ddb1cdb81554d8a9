import numpy as np
import pytest
from model_files_own import Gltf

from fitkit.errors import InputError
from fitkit.io import gltf_shapes
from fitkit.io.gltf_shapes import read_gltf_shapes

QUAD = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
CORNERS = np.array([0, 1, 2, 0, 2, 3], np.uint32)


def quad(**attributes) -> Gltf:
    out = Gltf()
    primitive = {
        "attributes": {"POSITION": out.array(QUAD), **{k: out.array(v) for k, v in attributes.items()}},
        "indices": out.array(CORNERS),
        "targets": [{"POSITION": out.sparse(4, np.array([2]), np.array([[0, 0, 1.0]]))}],
    }
    out.mesh(primitive, ["up"])
    out.document["nodes"] = [{"mesh": 0}]
    return out


def test_transforms_of_nodes_and_sparse_targets(tmp_path):
    file = quad()
    half = np.sqrt(0.5)
    file.document["nodes"] = [
        {"mesh": 0, "translation": [0, 0, 1], "scale": [2, 2, 2]},
        {"children": [0], "rotation": [0, 0, half, half]},  # a quarter turn about z: x becomes y
    ]
    mesh = read_gltf_shapes(file.write(tmp_path / "a.glb"))
    np.testing.assert_allclose(mesh.vertices, [[0, 0, 1], [0, 2, 1], [-2, 2, 1], [-2, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(mesh.shapes["up"], [[0, 0, 0], [0, 0, 0], [0, 0, 2], [0, 0, 0]], atol=1e-6)
    assert mesh.triangles.tolist() == [[0, 1, 2], [0, 2, 3]] and mesh.uv is None


def test_a_matrix_that_mirrors_turns_triangles_round(tmp_path):
    file = quad()
    file.document["nodes"] = [{"mesh": 0, "matrix": np.diag([-1.0, 1, 1, 1]).T.reshape(-1).tolist()}]
    assert read_gltf_shapes(file.write(tmp_path / "a.glb")).triangles.tolist() == [[2, 1, 0], [3, 2, 0]]


def test_meshes_are_joined_and_seams_closed(tmp_path):
    file = Gltf()
    seam = QUAD[[0, 1, 2, 0, 2, 3]]  # both triangles have corners of their own
    uv = np.array([[0, 0], [1, 0], [1, 1], [0.5, 0], [0.5, 1], [0, 1]], np.float32)
    for names in (["up"], ["up", "other"]):
        targets = [{"POSITION": file.array(np.full((6, 3), len(names), np.float32))} for _ in names]
        attributes = {"POSITION": file.array(seam), "TEXCOORD_0": file.array(uv)}
        file.mesh({"attributes": attributes, "targets": targets}, names)
    file.document["nodes"] = [{"mesh": 0}, {"mesh": 1}]
    mesh = read_gltf_shapes(file.write(tmp_path / "a.glb"))
    np.testing.assert_array_equal(mesh.vertices, [*QUAD, *QUAD])
    assert mesh.triangles.tolist() == [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]
    assert list(mesh.shapes) == ["up", "other"]
    np.testing.assert_array_equal(mesh.shapes["up"][:, 0], [1] * 4 + [2] * 4)
    np.testing.assert_array_equal(mesh.shapes["other"][:, 0], [0] * 4 + [2] * 4)
    np.testing.assert_allclose(mesh.uv[mesh.uv_triangles[1]], [[0.5, 1], [0.5, 0], [0, 0]])


def test_skinned_meshes_stand_at_rest(tmp_path):
    file = quad()
    inverse = np.eye(4, dtype=np.float32)
    inverse[:3, 3] = (0, -1, 0)
    file.document["skins"] = [
        {"joints": [1], "inverseBindMatrices": file.array(inverse.T.reshape(1, 16).copy())}
    ]
    file.document["nodes"] = [
        {"mesh": 0, "skin": 0, "scale": [9, 9, 9]},  # which does not count
        {"translation": [5, 1, 0]},
    ]
    mesh = read_gltf_shapes(file.write(tmp_path / "a.glb"))
    np.testing.assert_allclose(mesh.vertices, QUAD + [5, 0, 0], atol=1e-6)


def test_a_buffer_beside_the_file(tmp_path):
    file = quad()
    (tmp_path / "my data.bin").write_bytes(file.data)
    mesh = read_gltf_shapes(file.write(tmp_path / "a.gltf", "my%20data.bin"))
    np.testing.assert_array_equal(mesh.vertices, QUAD)


@pytest.mark.parametrize(
    "uri, words",
    [
        ("../secret.bin", "without '..'"),
        ("%2e%2e/secret.bin", "without '..'"),
        ("/etc/passwd", "without '..'"),
        ("file:///etc/passwd", "expected the name of a file beside it"),
        ("https://example.org/a.bin", "expected the name of a file beside it"),
        ("data:application/octet-stream;base64,AAAA", "export it as .glb"),
        ("nothing.bin", "No such file"),
    ],
)
def test_buffers_elsewhere_are_refused(tmp_path, uri, words):
    folder = tmp_path / "here"
    folder.mkdir()
    file = quad()
    (tmp_path / "secret.bin").write_bytes(file.data)
    with pytest.raises(InputError, match=words):
        read_gltf_shapes(file.write(folder / "a.gltf", uri))


def change(key, number, **values):
    return lambda document: document[key][number].update(values)


def other_target(document):
    document["accessors"][2]["count"] = 3


@pytest.mark.parametrize(
    "edit, words",
    [
        (change("accessors", 0, count=10**9), "more than the 384 MB"),
        (change("accessors", 2, count=10**9), "more than the 384 MB"),
        (change("accessors", 0, count=5000), "beyond its buffer"),
        (change("accessors", 0, count=-1), "expected a whole number of 0 or more, got -1"),
        (change("accessors", 0, byteOffset=8), "beyond its buffer"),
        (change("accessors", 0, type="VEC2"), "expected vectors of 3 numbers, got 2"),
        (change("bufferViews", 0, byteLength=10**9), "beyond its buffer"),
        (change("bufferViews", 0, byteStride=4), "overlap"),
        (change("bufferViews", 0, buffer=3), "buffers"),
        (change("nodes", 0, children=[0]), "no triangles"),
        (change("nodes", 0, mesh=7), r"meshes\[7\]: expected 0 to 0"),
        (lambda d: d["nodes"].append({"children": [0]}) or d["nodes"].append({"children": [0]}), "below two"),
        (lambda d: d["meshes"][0]["primitives"][0].update(mode=1), "strips beside triangles"),
        (lambda d: d.update(extensionsRequired=["KHR_draco_mesh_compression"]), "compressed with KHR_draco"),
        (other_target, "a target has 3 vertices, its mesh 4"),
        (lambda d: d.update(nodes=7), "not readable as glTF"),
    ],
)
def test_broken_files_are_refused(tmp_path, edit, words):
    file = quad()
    edit(file.document)
    path = file.write(tmp_path / "a.glb")
    with pytest.raises(InputError, match=words) as caught:
        read_gltf_shapes(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_sparse_rows_that_are_not_there_are_refused(tmp_path):
    file = quad()
    target = file.sparse(4, np.array([4]), np.ones((1, 3)))
    file.document["meshes"][0]["primitives"][0]["targets"] = [{"POSITION": target}]
    with pytest.raises(InputError, match="replaces rows that are not there"):
        read_gltf_shapes(file.write(tmp_path / "a.glb"))


def test_triangles_of_other_vertices_are_refused(tmp_path):
    file = quad()
    at = file.document["bufferViews"][1]["byteOffset"]
    file.data = file.data[:at] + np.uint32(9).tobytes() + file.data[at + 4 :]
    with pytest.raises(InputError, match="beyond the 4 of their mesh"):
        read_gltf_shapes(file.write(tmp_path / "a.glb"))


def test_files_that_ask_for_too_much_are_refused(tmp_path, monkeypatch):
    path = quad().write(tmp_path / "a.glb")
    monkeypatch.setattr(gltf_shapes, "MOST_NODES", 0)
    with pytest.raises(InputError, match="more than the 0 nodes that are read"):
        read_gltf_shapes(path)
    monkeypatch.undo()
    file = quad()
    file.document["nodes"] = [{"mesh": 0}] * 9  # small arrays, many times
    path = file.write(tmp_path / "a.glb")
    monkeypatch.setattr(gltf_shapes, "ARRAY_BYTES", 800)
    monkeypatch.setattr(gltf_shapes._Reader, "_take", lambda *_: None)
    with pytest.raises(InputError, match="36 vertices with 1 shapes are more than are read"):
        read_gltf_shapes(path)


def test_no_gltf(tmp_path):
    for data in (b"", b"glTF", b"glTF" + bytes(60)):
        (tmp_path / "a.glb").write_bytes(data)
        with pytest.raises(InputError, match="not readable as glTF 2.0"):
            read_gltf_shapes(tmp_path / "a.glb")
    with pytest.raises(InputError, match="no such file"):
        read_gltf_shapes(tmp_path / "b.glb")
