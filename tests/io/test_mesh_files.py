from dataclasses import replace

import numpy as np
import pytest

from fitkit.errors import InputError
from fitkit.export.meshes import write_obj, write_ply
from fitkit.io.mesh_files import read_mesh
from helpers import tiny_model


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
    write_ply(tmp_path / "part.ply", model.mean, model.triangles[: 50])
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
    (tmp_path / "a.ply").write_text("ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
                                    f"element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 {index}\n")
    with pytest.raises(InputError, match="a.ply: expected triangles of vertices 0 to 2, got"):
        read_mesh(tmp_path / "a.ply")
