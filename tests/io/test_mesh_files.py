import json
import os
import struct
from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny_model

from fitkit.errors import InputError
from fitkit.export.meshes import write_obj
from fitkit.io.mesh_files import read_mesh, write_ply


@pytest.mark.parametrize("kind", ["ply", "obj"])
def test_what_is_written_is_read(tmp_path, kind):
    model = tiny_model()
    path = tmp_path / f"face.{kind}"
    if kind == "ply":
        write_ply(path, model.mean, model.triangles)
    else:
        write_obj(path, model.mean, replace(model, uv=None, uv_triangles=None))
    vertices, triangles = read_mesh(path)
    assert np.allclose(vertices, model.mean.numpy(), atol=1e-4)  # obj has five decimals
    assert (triangles == model.triangles.numpy()).all()


def test_unreferenced_vertices_stay(tmp_path):
    model = tiny_model()
    write_ply(tmp_path / "part.ply", model.mean, model.triangles[:50])
    assert len(read_mesh(tmp_path / "part.ply")[0]) == model.num_vertices


def test_refusals(tmp_path):
    with pytest.raises(InputError, match="no such mesh file"):
        read_mesh(tmp_path / "none.ply")
    (tmp_path / "text.ply").write_text("this is no mesh")
    with pytest.raises(InputError, match="text.ply: "):
        read_mesh(tmp_path / "text.ply")
    (tmp_path / "cloud.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    with pytest.raises(InputError, match="cloud.obj: "):
        read_mesh(tmp_path / "cloud.obj")
    (tmp_path / "nan.obj").write_text("v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(InputError, match="nan.obj: vertex 1 is not finite; repair the mesh"):
        read_mesh(tmp_path / "nan.obj")


@pytest.mark.parametrize("index", [-1, 3])
def test_triangles_of_vertices_that_are_not_there(tmp_path, index):
    (tmp_path / "a.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
        "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 "
        f"{index}\n"
    )
    with pytest.raises(InputError, match="a.ply: expected triangles of vertices 0 to 2, got"):
        read_mesh(tmp_path / "a.ply")


SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"


@pytest.mark.parametrize(
    "faces, triangles",
    [
        ("f 1 2 3 4\nf 1 2 3\n", [[0, 1, 2], [0, 2, 3], [0, 1, 2]]),
        ("f 1/1 2/2 3/1\nf 1//4 3//4 4//4 # last\n", [[0, 1, 2], [0, 2, 3]]),
        ("f -4 -3 -2\nv 5 5 5\nf -1 -4/-1 -2\n", [[0, 1, 2], [4, 1, 3]]),
        ("f 1 \\\n2 3\r\n", [[0, 1, 2]]),
    ],
)
def test_obj_files(tmp_path, faces, triangles):
    (tmp_path / "a.obj").write_bytes(f"mtllib none.mtl\n{SQUARE}vt 0 0\nvt 1 1\nusemtl a\n{faces}".encode())
    vertices, found = read_mesh(tmp_path / "a.obj")
    assert (
        vertices[:4].tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]] and found.tolist() == triangles
    )


def test_obj_files_as_trimesh_reads_them(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    model = tiny_model()
    write_obj(tmp_path / "a.obj", model.mean, replace(model, uv=None, uv_triangles=None))
    mesh = trimesh.load(tmp_path / "a.obj", process=False, maintain_order=True)
    vertices, triangles = read_mesh(tmp_path / "a.obj")
    assert np.array_equal(vertices, mesh.vertices) and np.array_equal(triangles, mesh.faces)
    write_obj(tmp_path / "b.obj", model.mean, model)  # with texture coordinates vertices keep their order too
    assert np.array_equal(read_mesh(tmp_path / "b.obj")[0], vertices) and np.array_equal(
        read_mesh(tmp_path / "b.obj")[1], triangles
    )


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "a.obj",
            SQUARE + "vt 0 0\nf 1/1 2/1 100000000/1\n",
            "expected triangles of vertices 0 to 3, got 0 to 99999999",
        ),
        ("a.obj", SQUARE + f"f 1 2 {'9' * 400}\n", "not a readable OBJ file"),
        ("a.obj", "v 0 0\nv 1 0\nv 1 1\nf 1 2 3\n", "not a readable OBJ file .*column"),
        ("a.obj", SQUARE + "f 1 2\n", "a face has 2 corners"),
        ("a.obj", SQUARE + "f 0 1 2\n", "expected triangles of vertices 0 to 3, got -1 to 1"),
        (
            "a.ply",
            "ply\nformat binary_little_endian 1.0\nelement vertex 99999999999\nproperty float "
            "x\nend_header\n",
            "the header states 99999999999 elements",
        ),
        ("a.off", "OFF\n999999999 1 0\n0 0 0\n", "the header states 999999999 elements"),
        ("a.zip", "x", "expected a mesh file .ply, .obj"),
        ("a.glb", "x", "not a readable mesh"),
    ],
)
def test_meshes_that_ask_for_too_much(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_mesh(tmp_path / name)


def glb(scene):
    text = json.dumps(scene).encode()
    text += b" " * (-len(text) % 4)
    return struct.pack("<4sIIII4s", b"glTF", 2, 20 + len(text), len(text), 0, b"JSON")[:16] + b"JSON" + text


@pytest.mark.parametrize(
    "scene, message",
    [
        (
            {"accessors": [{"count": 10**12, "type": "VEC3", "componentType": 5126}]},
            "an accessor has no data",
        ),
        ({"accessors": [{"bufferView": 0, "count": 10**12}]}, "the header states 1000000000000 elements"),
        (
            {
                "accessors": [{"bufferView": 0, "count": 20}],
                "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
                "nodes": [{"mesh": 0}] * 60,
            },
            "the header states",
        ),
        ({"meshes": [{"primitives": [{"attributes": {"POSITION": 3}}]}]}, "list index out of range"),
    ],
)
def test_glb_files_that_ask_for_too_much(tmp_path, scene, message):
    (tmp_path / "a.glb").write_bytes(glb(scene))
    with pytest.raises(InputError, match=f"a.glb: not a readable mesh .*{message}"):
        read_mesh(tmp_path / "a.glb")


def test_glb_files(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    model = tiny_model()
    trimesh.Trimesh(model.mean.numpy(), model.triangles.numpy(), process=False).export(tmp_path / "a.glb")
    vertices, triangles = read_mesh(tmp_path / "a.glb")
    assert np.allclose(vertices, model.mean.numpy(), atol=1e-4) and len(triangles) == len(model.triangles)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.timeout(10)
def test_nothing_that_a_mesh_names_is_opened(tmp_path):
    for name in ("pipe.mtl", "pipe.png", "pipe.obj"):
        os.mkfifo(tmp_path / name)  # opening one waits for ever
    (tmp_path / "a.obj").write_text(f"mtllib pipe.mtl\nusemtl a\n{SQUARE}vt 0 0\nf 1/1 2/1 3/1\n")
    (tmp_path / "a.ply").write_text(
        "ply\nformat ascii 1.0\ncomment TextureFile pipe.png\nelement vertex 3\nproperty float x\nproperty "
        "float y\n"
        "property float z\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 "
        "0\n0 1 0\n3 0 1 2\n"
    )
    assert len(read_mesh(tmp_path / "a.obj")[1]) == len(read_mesh(tmp_path / "a.ply")[1]) == 1
    with pytest.raises(InputError, match="pipe.obj: not a readable OBJ file .* .it is a pipe or a device"):
        read_mesh(tmp_path / "pipe.obj")
