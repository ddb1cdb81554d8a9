from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from model_files_own import (
    gltf_head,
    head,
    write_arrays,
    write_folder,
    write_landmarks,
    write_obj,
)

import fitkit
from fitkit.cli.main import main
from fitkit.errors import InputError
from fitkit.models.formats import FORMATS, own
from fitkit.models.formats.own import import_own, known_names, read_landmarks

GENERIC = fitkit.load_model("generic")
HEAD = head()
CORNERS = np.array([[0, 1, 2], [0, 2, 3]])


def points(model):
    return model.landmarks.points(model.mean[None], model.triangles)[0].numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A rig in centimetres, z up, and its landmark file."""
    path = write_folder(tmp_path_factory.mktemp("rig") / "hero", HEAD)
    marks = GENERIC.landmarks
    write_landmarks(path.parent / "reversed.txt", replace(marks, barycentric=marks.barycentric.flip(1)))
    return path, write_landmarks(path.parent / "landmarks.txt", marks)


@pytest.fixture(scope="module")
def from_folder(folder):
    return import_own(folder[0], landmarks=folder[1])


def test_a_folder_of_obj_files(from_folder):
    model = from_folder
    assert model.name == "hero" and model.source == "hero"
    moved = HEAD.vertices - model.mean.numpy()
    np.testing.assert_allclose(moved, moved[:1].repeat(len(moved), 0), atol=1e-3)  # the same head elsewhere
    assert np.abs(moved[0]).max() < 15
    torch.testing.assert_close(model.triangles, GENERIC.triangles)
    np.testing.assert_allclose(points(model), HEAD.points - moved[0], atol=1e-3)
    assert model.expression_names == ("browInnerUp_R", "jawOpen", "mouthSmile_L")
    own_shapes = HEAD.shapes["browInnerUp_R"], HEAD.shapes["jawOpen"], HEAD.shapes["mouthSmileLeft"]
    np.testing.assert_allclose(model.expression_basis.numpy(), own_shapes, atol=1e-3)
    np.testing.assert_allclose(model.identity_basis.numpy(), HEAD.identity, atol=1e-3)


def test_parts_are_those_of_the_model_laid_onto_it(from_folder):
    assert from_folder.region_names == GENERIC.region_names
    for key in ("region", "skin", "face"):
        same = (getattr(from_folder, key) == getattr(GENERIC, key)).float().mean()
        assert float(same) > 0.95, key


def test_notes_lead_back_to_the_file(from_folder):
    shift = HEAD.vertices[0] - from_folder.mean[0].double().numpy()
    there = -shift - 10 * np.array([3, 5, -4])  # of 10 * (x, z, -y) of the file
    stated = ", ".join(f"{v:.3f}" for v in there)
    assert f"10 * (x, z, -y) + ({stated[:5]}" in from_folder.notes and "unit is 1 cm" in from_folder.notes
    assert "carried over" not in from_folder.notes and "automatically" not in from_folder.notes


@pytest.fixture(scope="module")
def from_gltf(tmp_path_factory):
    return import_own(gltf_head(HEAD).write(tmp_path_factory.mktemp("gltf") / "hero.glb"))


def test_a_glb_in_metres_without_landmarks(from_gltf):
    model = from_gltf
    assert "unit is 1 m" in model.notes and "placed automatically" in model.notes
    assert model.num_vertices == len(HEAD.vertices)
    moved = HEAD.vertices.mean(0) - model.mean.double().numpy().mean(0)
    apart = np.linalg.norm(points(model) + moved - HEAD.points, axis=1)
    assert apart[17:].mean() < 1.5 and apart[:17].mean() < 4.0
    assert model.expression_names == ("jawOpen", "mouthSmile_L", "browInnerUp_R")
    largest = model.expression_basis.norm(dim=-1).amax(1).numpy()
    wanted = [np.linalg.norm(row, axis=1).max() for row in HEAD.shapes.values()]
    np.testing.assert_allclose(largest, wanted, rtol=1e-3)


def test_texture_coordinates_of_a_glb_stay(from_gltf):
    corners = from_gltf.uv[from_gltf.uv_triangles].mean(1)
    wanted = GENERIC.uv[GENERIC.uv_triangles].mean(1)
    order, other = (np.lexsort(c.numpy().round(4).T) for c in (corners, wanted))
    np.testing.assert_allclose(corners[order], wanted[other], atol=2e-4)


def test_identity_is_carried_over_where_there_is_none(from_gltf):
    """Nearly that of `generic`, whose mesh it is in another order."""
    assert "Identity shapes are those of 'generic'" in from_gltf.notes
    assert from_gltf.num_identity == GENERIC.num_identity
    moved = torch.from_numpy(HEAD.vertices).float().mean(0) - from_gltf.mean.mean(0)
    apart = torch.cdist(from_gltf.mean + moved, torch.from_numpy(HEAD.vertices).float())
    vertex = apart.argmin(1)
    face = GENERIC.face[vertex]
    for k in range(5):
        wanted = GENERIC.identity_basis[k, vertex][face]
        rest = (from_gltf.identity_basis[k][face] - wanted).norm(dim=-1).mean()
        assert float(rest) < 0.25 * float(wanted.norm(dim=-1).mean()), k


def test_arrays_of_a_neutral_head_alone(tmp_path, folder):
    path = tmp_path / "plain.npz"
    np.savez(path, vertices=HEAD.vertices, triangles=HEAD.triangles)
    model = import_own(path, "face", folder[1])
    assert model.name == "face" and model.expression_names == GENERIC.expression_names
    jaw = model.expression_names.index("jawOpen")
    wanted = GENERIC.expression_basis[jaw].norm(dim=-1)
    rest = (model.expression_basis[jaw] - GENERIC.expression_basis[jaw]).norm(dim=-1)
    assert float(rest[GENERIC.face].mean()) < 0.2 * float(wanted[GENERIC.face].mean())


def test_names_of_shapes():
    names = ("mouthSmileLeft", "Head.jawOpen", "rig:EyeBlink_R", "head.mouthFrown.L", "jawLeft", "mySmirk")
    known = ("mouthSmile_L", "jawOpen", "eyeBlink_R", "mouthFrown_L", "jawLeft", "mySmirk")
    assert known_names(names) == known
    assert known_names(("jawOpen", "JawOpen")) == ("jawOpen", "JawOpen")  # which would be two of one name


def test_polygons_are_split(tmp_path):
    rig = own._read(write_obj(tmp_path / "a.obj", np.eye(4, 3), [[0, 1, 2, 3]]))
    assert rig.mesh.triangles.tolist() == CORNERS.tolist() and rig.mesh.uv is None


def test_texture_coordinates_of_obj_files(tmp_path):
    path = tmp_path / "a.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0.25\nvt 1 0\nvt 0 1\nf 1/3 2/2 3/1\n", encoding="utf-8")
    mesh = own._read(path).mesh
    np.testing.assert_array_equal(mesh.uv[mesh.uv_triangles], [[[0, 1], [1, 0], [0, 0.25]]])


def test_paths_that_are_nothing(tmp_path):
    with pytest.raises(InputError, match="got nothing there"):
        import_own(tmp_path / "a.glb.zip")
    with pytest.raises(InputError, match="no neutral.obj; expected"):
        import_own(tmp_path)
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="expected a folder with neutral.obj, or a file"):
        import_own(tmp_path / "a.txt")


def test_shapes_of_another_mesh_are_refused(tmp_path):
    write_obj(tmp_path / "neutral.obj", np.eye(4, 3), CORNERS)
    write_obj(tmp_path / "smile.obj", np.eye(5, 3), CORNERS)
    with pytest.raises(InputError, match=r"smile.obj: expected 4 vertices as in neutral.obj, got 5"):
        import_own(tmp_path)


def test_too_many_shapes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "ARRAY_BYTES", 47)
    for name in ("neutral", "a", "b", "c"):
        write_obj(tmp_path / f"{name}.obj", np.eye(4, 3), CORNERS)
    with pytest.raises(InputError, match="more shapes than are read"):
        import_own(tmp_path)


def test_tiles_and_shapes_without_motion_are_left_out(folder):
    rig = own._read(folder[0])
    mesh = replace(rig.mesh, uv=HEAD.uv + [1, 0], uv_triangles=HEAD.uv_triangles)
    mesh.shapes["nothing"] = np.zeros_like(mesh.vertices)
    head = own._upright(replace(rig, mesh=mesh), folder[1], "hero")
    assert head.rig.mesh.uv is None and "nothing" not in head.rig.mesh.shapes
    inside_out = replace(mesh, uv=HEAD.uv, triangles=mesh.triangles[:, ::-1].copy())
    turned = own._upright(replace(rig, mesh=inside_out), folder[1].with_name("reversed.txt"), "hero").rig.mesh
    np.testing.assert_array_equal(turned.triangles, HEAD.triangles)
    np.testing.assert_array_equal(turned.uv_triangles, HEAD.uv_triangles[:, ::-1])


def test_faces_of_vertices_that_are_not_there_are_refused(tmp_path):
    path = write_obj(tmp_path / "a.obj", np.eye(4, 3), [[0, 1, 10**9]])
    with pytest.raises(InputError, match=r"faces: expected indices in 0..3, got 0 to 1000000000"):
        import_own(path)


def test_too_many_vertices_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "MOST_VERTICES", 3)
    with pytest.raises(InputError, match="expected at most 3 vertices, got 4; leave out hair"):
        import_own(write_obj(tmp_path / "a.obj", np.eye(4, 3), CORNERS))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"triangles": None}, "no array 'triangles'"),
        ({"shape_names": None}, "no array 'shape_names'"),
        ({"shapes": np.zeros((1, 4, 3))}, r"shapes: expected shape .*, got \[1, 4, 3\]"),
        (
            {"triangles": np.array([[0, 1, GENERIC.num_vertices]])},
            f"triangles: expected indices in 0..{GENERIC.num_vertices - 1}",
        ),
        ({"uv": np.zeros((3, 2)), "uv_triangles": HEAD.triangles}, "uv_triangles: expected indices in 0..2"),
        ({"vertices": np.array(["a"])}, "vertices: expected shape"),
        ({"shape_names": np.array(["a", "b", "a"])}, "expected a name of its own for each shape"),
    ],
)
def test_broken_arrays_are_refused(tmp_path, change, words):
    arrays = dict(np.load(write_arrays(tmp_path / "a.npz", HEAD))) | change
    np.savez(tmp_path / "b.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(InputError, match=words):
        import_own(tmp_path / "b.npz")


def test_names_of_files_in_either_case(tmp_path, folder):
    rig = write_folder(tmp_path / "rig", HEAD)
    (rig / "neutral.obj").rename(rig / "Neutral.OBJ")
    (rig / "jawOpen.obj").rename(rig / "jawOpen.OBJ")
    (rig / "._jawOpen.obj").write_bytes(b"\0\5\x16\7 of macOS")
    model = import_own(rig, landmarks=folder[1])
    assert model.expression_names == ("browInnerUp_R", "jawOpen", "mouthSmile_L")


@pytest.mark.parametrize("kind", ["shapes", "identity"])
def test_shapes_that_cannot_be_right_are_refused(tmp_path, kind):
    arrays = dict(np.load(write_arrays(tmp_path / "a.npz", HEAD)))
    arrays["identity"] = 0.001 * HEAD.identity
    name = str(arrays["shape_names"][1]) if kind == "shapes" else "identity001"
    order = np.random.default_rng(0).permutation(len(HEAD.vertices))
    for wrong, words in (
        (np.where(np.arange(3) == 1, np.nan, arrays[kind][1]), "holds numbers that are not finite"),
        ((arrays["vertices"] + arrays[kind][1])[order] - arrays["vertices"], "edges several times as long"),
    ):
        both = arrays[kind].copy()
        both[1] = wrong
        np.savez(tmp_path / "b.npz", **arrays | {kind: both})
        with pytest.raises(InputError, match=f"b.npz: shape '{name}'.*{words}"):
            import_own(tmp_path / "b.npz")


def test_a_mesh_that_is_none_is_refused(tmp_path):
    (tmp_path / "neutral.obj").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(InputError, match="neutral.obj: expected a mesh, got 0 vertices and no faces"):
        import_own(tmp_path)
    vertices = HEAD.vertices.copy()
    vertices[10, 1] = np.nan
    write_obj(tmp_path / "neutral.obj", vertices, HEAD.triangles)
    with pytest.raises(InputError, match="vertex 10 of the neutral head is not finite"):
        import_own(tmp_path)


def test_landmark_files(tmp_path):
    path = tmp_path / "l.txt"
    path.write_text("3  # a vertex\n1 0.5 0.25 0.25\n-1\n" + "0\n" * 65, encoding="utf-8")
    marks = read_landmarks(path, CORNERS, 4)
    vertices = torch.arange(12.0).reshape(1, 4, 3)
    found = marks.points(vertices, torch.from_numpy(CORNERS))[0]
    torch.testing.assert_close(found[0], vertices[0, 3])
    torch.testing.assert_close(found[1], 0.5 * vertices[0, 0] + 0.25 * vertices[0, 2] + 0.25 * vertices[0, 3])
    assert marks.missing == (2,)


@pytest.mark.parametrize(
    "text, words",
    [
        ("0\n" * 67, "expected 68 lines, one for each iBUG point, got 67"),
        ("0\n" * 67 + "4\n", "point 67: expected a vertex of a triangle, 0 to 3"),
        ("0\n" * 67 + "2 1 0 0\n", "or a triangle, 0 to 1, with three weights"),
        ("0\n" * 67 + "0.5\n", "point 67: expected a vertex"),
        ("nan\n" + "0\n" * 67, "point 0: expected a vertex"),
        ("0 1\n" + "0\n" * 67, "point 0: expected a vertex"),
        ("nose\n" + "0\n" * 67, "not a readable file of landmarks"),
    ],
)
def test_broken_landmark_files_are_refused(tmp_path, text, words):
    path = tmp_path / "l.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        read_landmarks(path, CORNERS, 4)


def test_points_that_are_no_face_are_refused(tmp_path):
    path = write_arrays(tmp_path / "a.npz", HEAD)
    marks = tmp_path / "l.txt"
    marks.write_text("\n".join(map(str, range(68))), encoding="utf-8")
    with pytest.raises(InputError, match="l.txt: expected the 68 iBUG points of a face, got points"):
        import_own(path, landmarks=marks)
    marks.write_text("\n".join(["-1"] * 68), encoding="utf-8")
    with pytest.raises(InputError, match="point 36: expected it, an outer eye corner, got -1"):
        import_own(path, landmarks=marks)


def test_command(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
    arguments = ["model", "import", "own", str(folder[0]), "--landmarks", str(folder[1])]
    picture = tmp_path / "points.png"
    result = CliRunner().invoke(main, [*arguments, "--name", "mine", "--check", str(picture)])
    assert result.exit_code == 0, result.output
    assert f"{GENERIC.num_vertices} vertices, 2 identity and 3 expression shapes" in result.output
    assert picture.is_file() and "points.png: look whether its 68 points are right" in result.output
    assert fitkit.load_model("mine").expression_names == ("browInnerUp_R", "jawOpen", "mouthSmile_L")
    result = CliRunner().invoke(main, [*arguments, "--name", "other", "--check", str(tmp_path)])
    assert result.exit_code == 1 and "choose another place with --check" in result.output
    assert not (tmp_path / "models/other.npz").exists()
    result = CliRunner().invoke(main, [*arguments, "--name", "a" * 101])
    assert result.exit_code == 1 and "expected up to 100 characters, got 101" in result.output
    result = CliRunner().invoke(main, ["model", "import", "npz", "a.npz", "--landmarks", "l.txt"])
    assert "--landmarks: expected with kind 'own' only, got it with 'npz'" in result.output


def test_a_picture_lies_beside_models_whose_points_were_placed(tmp_path, monkeypatch, from_gltf):
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path))
    monkeypatch.setattr(type(FORMATS["own"]), "read", lambda *_, **__: from_gltf)
    result = CliRunner().invoke(main, ["model", "import", "own", "hero.glb"])
    assert result.exit_code == 0 and Path(tmp_path / "hero_landmarks.png").is_file()
