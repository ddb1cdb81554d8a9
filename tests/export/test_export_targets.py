"""What all targets of `fitkit export` share, and the files for artists, read back."""

import json
import os
import signal
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
import torch
import trimesh
from helpers import tiny_joints, tiny_model, tiny_result, tiny_skinned_model, tiny_state
from PIL import Image
from test_gltf import accessor, read

from fitkit.errors import FitError, InputError
from fitkit.export import texture
from fitkit.export.targets import TARGETS, ExportOptions, Target, export_result
from fitkit.fitting.detail import personal_model
from fitkit.io.subject import MissingPhoto
from fitkit.models.io import save_model_file


@pytest.fixture(autouse=True)
def small_textures(monkeypatch):
    monkeypatch.setattr(texture, "texture_size", lambda result: 64)


def without_photos(result):
    views = tuple(v.replace(image=MissingPhoto(v.name, v.size, "gone")) for v in result.subject.views)
    return replace(result, subject=replace(result.subject, views=views))


def skinned_result(seed=0):
    model = tiny_skinned_model(seed)
    state = tiny_state(model, seed=seed)
    return tiny_result(seed, model=model, state=state.replace(joints=tiny_joints(model, 3)))


def quaternions(values):
    """x, y, z, w [B, 4] -> matrices [B, 3, 3], by the formula of Hamilton."""
    out = []
    for x, y, z, w in values:
        out.append(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
    return np.array(out)


def test_outputs_that_are_refused(tmp_path):
    result = tiny_result()
    with pytest.raises(InputError, match="^export: expected one of blender.*, got 'maja'$"):
        export_result(result, "maja", tmp_path / "a")
    (tmp_path / "there").mkdir()
    for place in (tmp_path / "there", tmp_path):
        with pytest.raises(InputError, match="already exists; remove it or choose another --output$"):
            export_result(result, "blender", place)
    with pytest.raises(InputError, match="output: expected the path of a folder, got int"):
        export_result(result, "blender", 3)
    state = result.state.replace(expression=result.state.expression * float("nan"))
    with pytest.raises(FitError, match="expression holds values that are not finite"):
        export_result(replace(result, state=state), "blender", tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch):
    def write(result, folder, options):
        (folder / "half").write_text("x")
        raise InputError("no")

    monkeypatch.setitem(TARGETS, "blender", Target("", "broken:write"))
    monkeypatch.setattr(Target, "write", lambda self, *arguments: write(*arguments))
    with pytest.raises(InputError, match="^no$"):
        export_result(tiny_result(), "blender", tmp_path / "deep" / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="kills a process")
def test_what_a_killed_export_leaves_is_removed_by_the_next_one(tmp_path, monkeypatch):
    result = tiny_result()

    def write(self, result, folder, options):
        (folder / "half").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(Target, "write", write)
        process = get_context("fork").Process(target=export_result, args=(result, "blender", tmp_path / "a"))
        process.start()
        process.join()
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".fitkit-") and (tmp_path / left / "export" / "half").exists()
    export_result(result, "metahuman", tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]


def test_every_target_has_a_writer():
    for name, target in TARGETS.items():
        module, _, function = target.writer.partition(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function)), name


def test_obj_files_are_the_shapes_of_the_person_in_one_vertex_order(tmp_path):
    result = tiny_result()
    path, notes = export_result(result, "blender", tmp_path / "out", ExportOptions("suffix"))
    assert notes == [] and path == tmp_path / "out"
    names = ["jawOpen", "mouthSmile_L", "mouthSmile_R", "eyeBlink_L", "eyeBlink_R", "browInnerUp"]
    table = json.loads((path / "arkit_names.json").read_text())
    assert table["names"] == names and table["spelling"] == "suffix"
    assert len(table["not_in_model"]) == 46 and "tongueOut" in table["not_in_model"]
    objs = {p.stem for p in (path / "obj").glob("*.obj")}
    assert objs == {"neutral", *names}
    for k, name in enumerate(["neutral", *names]):
        expected = result.neutral + (result.model.expression_basis[k - 1] if k else 0)
        lines = (path / "obj" / f"{name}.obj").read_text().splitlines()
        vertices = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
        np.testing.assert_allclose(vertices, expected.numpy(), atol=1e-5)
        assert [line for line in lines if line.startswith("f ")] == [
            line for line in (path / "obj/neutral.obj").read_text().splitlines() if line.startswith("f ")
        ]
    textured = trimesh.load(path / "obj" / "neutral.obj", process=False)
    assert textured.visual.material.image.size == (64, 64)


def test_the_animation_shows_each_photo(tmp_path):
    result = tiny_result(seed=2)
    path, _ = export_result(result, "blender", tmp_path / "out")
    document, binary = read(path / "photos.glb")
    still, _ = read(path / "subject.glb")
    assert "animations" not in still
    mesh = document["meshes"][0]
    rest = accessor(document, binary, mesh["primitives"][0]["attributes"]["POSITION"]).astype(float)
    shapes = np.stack([accessor(document, binary, t["POSITION"]) for t in mesh["primitives"][0]["targets"]])
    animation = document["animations"][0]
    moves = {}
    for channel in animation["channels"]:
        sampler = animation["samplers"][channel["sampler"]]
        assert channel["target"]["node"] == 0
        np.testing.assert_allclose(
            accessor(document, binary, sampler["input"])[:, 0], np.arange(3) / 24, rtol=1e-6
        )
        moves[channel["target"]["path"]] = accessor(document, binary, sampler["output"])
    weights = moves["weights"].reshape(3, -1)
    np.testing.assert_allclose(weights, result.state.expression.numpy(), atol=1e-6)
    turn = quaternions(moves["rotation"])
    for i in range(3):
        seen = (rest + np.einsum("m,mvc->vc", weights[i], shapes)) @ turn[i].T + moves["translation"][i]
        posed = result.state.posed(result.model)[i].numpy() * [1e-3, -1e-3, -1e-3]
        np.testing.assert_allclose(seen, posed, atol=3e-5)  # vertices that hardly move are left out


@pytest.mark.parametrize("kind", ["blend_shape", "gaussian"])
def test_shapes_that_no_fit_estimates_come_last_and_rest_in_the_animation(tmp_path, kind):
    plain = tiny_model()
    extra = torch.zeros(3, plain.num_vertices, 3)
    extra[0, 5, 2], extra[1, 7, 1], extra[2, 8, 1] = 9.0, 2.0, 3.0
    names = ("tongueOut", "cheekPuff_L", "cheekPuff_R")
    result = tiny_result(model=replace(plain, extra_names=names, extra_basis=extra, expression_kind=kind))
    path, _ = export_result(result, "blender", tmp_path / "out")
    told = json.loads((path / "arkit_names.json").read_text())["names"]
    assert len(told) == 8 and told[-2:] == ["tongueOut", "cheekPuff"]
    document, binary = read(path / "photos.glb")
    mesh = document["meshes"][0]
    assert mesh["extras"]["targetNames"] == told
    delta = accessor(document, binary, mesh["primitives"][0]["targets"][6]["POSITION"])
    assert sorted(1e3 * delta[delta != 0]) == pytest.approx([9.0])
    animation = document["animations"][0]
    (channel,) = (c for c in animation["channels"] if c["target"]["path"] == "weights")
    weights = accessor(document, binary, animation["samplers"][channel["sampler"]]["output"]).reshape(3, 8)
    assert not weights[:, 6:].any() and weights[:, :6].any()
    shape = trimesh.load(path / "obj" / "cheekPuff.obj", process=False)
    neutral = trimesh.load(path / "obj" / "neutral.obj", process=False)
    moved = shape.vertices - neutral.vertices
    np.testing.assert_allclose(moved[[7, 8], 1], [2, 3], atol=2e-5)
    assert np.abs(moved).sum() == pytest.approx(5, abs=1e-3)


def test_the_animation_counts_gaussian_expressions_in_their_sigmas(tmp_path):
    sigma = torch.linspace(0.5, 2, 6)
    model = replace(tiny_model(), expression_kind="gaussian", expression_sigma=sigma)
    result = tiny_result(model=model)
    path, _ = export_result(result, "blender", tmp_path / "out")
    document, binary = read(path / "photos.glb")
    animation = document["animations"][0]
    (channel,) = (c for c in animation["channels"] if c["target"]["path"] == "weights")
    weights = accessor(document, binary, animation["samplers"][channel["sampler"]]["output"]).reshape(3, 6)
    np.testing.assert_allclose(weights * sigma.numpy(), result.state.expression.numpy(), rtol=1e-5)
    neutral, shape = (trimesh.load(path / "obj" / f"{n}.obj", process=False) for n in ("neutral", "jawOpen"))
    moved = 0.5 * model.expression_basis[0].numpy()
    np.testing.assert_allclose(shape.vertices - neutral.vertices, moved, atol=2e-5)


def test_the_animation_turns_the_joints(tmp_path):
    result = skinned_result()
    result = replace(result, model=replace(result.model, pose_basis=None))  # glTF has no place for it
    path, _ = export_result(result, "blender", tmp_path / "out")
    document, binary = read(path / "photos.glb")
    primitive = document["meshes"][0]["primitives"][0]
    attributes = {k: accessor(document, binary, v) for k, v in primitive["attributes"].items()}
    shapes = np.stack([accessor(document, binary, t["POSITION"]) for t in primitive["targets"]])
    joints = document["skins"][0]["joints"]
    inverse = accessor(document, binary, document["skins"][0]["inverseBindMatrices"])
    inverse = inverse.reshape(-1, 4, 4).transpose(0, 2, 1)
    moves = {}
    animation = document["animations"][0]
    for channel in animation["channels"]:
        values = accessor(document, binary, animation["samplers"][channel["sampler"]]["output"])
        moves[channel["target"]["node"], channel["target"]["path"]] = values
    state, model = result.state, result.model
    posed = state.posed(model).numpy() * [1e-3, -1e-3, -1e-3]
    for i in range(3):
        world = {}

        def place(node, parent):
            entry, local = document["nodes"][node], np.eye(4)
            local[:3, 3] = moves.get((node, "translation"), [entry["translation"]] * 3)[i]
            if (node, "rotation") in moves:
                local[:3, :3] = quaternions(moves[node, "rotation"])[i]
            world[node] = parent @ local
            for child in entry.get("children", []):
                place(child, world[node])

        place(joints[0], np.eye(4))
        matrices = np.stack([world[j] @ inverse[k] for k, j in enumerate(joints)])
        morphed = attributes["POSITION"] + np.einsum(
            "m,mvc->vc", moves[0, "weights"].reshape(3, -1)[i], shapes
        )
        blend = np.einsum("vk,vkij->vij", attributes["WEIGHTS_0"], matrices[attributes["JOINTS_0"]])
        seen = np.einsum("vij,vj->vi", blend[:, :3, :3], morphed) + blend[:, :3, 3]
        # Joints of glTF do not follow the expression, here by a millimetre; the smallest of five weights
        # is left out.
        off = np.linalg.norm(seen - posed[i], axis=1)
        still = np.linalg.norm(posed[i] - (attributes["POSITION"] @ np.eye(3)), axis=1)
        assert off.mean() < 4e-4 and off.max() < 3e-3 < still.min()


def test_results_without_photos_have_no_texture(tmp_path):
    path, notes = export_result(without_photos(tiny_result()), "blender", tmp_path / "out")
    assert len(notes) == 1 and notes[0].startswith("the texture could not be computed (view view0: the photo")
    assert not list(path.rglob("*.png")) and not list(path.rglob("*.mtl"))
    model = replace(tiny_model(), uv=None, uv_triangles=None)
    _, notes = export_result(tiny_result(model=model), "blender", tmp_path / "plain")
    assert notes == ["no texture: face model 'tiny' has no UV coordinates"]


def test_orthographic_cameras_have_no_animation(tmp_path):
    result = tiny_result()
    camera = replace(result.state.camera, kind="orthographic")
    flat = replace(result, state=result.state.replace(camera=camera))
    path, notes = export_result(flat, "blender", tmp_path / "out")
    assert notes == ["no photos.glb: orthographic cameras do not say where the head is"]
    assert (path / "subject.glb").exists() and not (path / "photos.glb").exists()


def test_detail_is_in_all_shapes(tmp_path):
    plain = tiny_result()
    displacement = torch.linspace(-1, 1, plain.model.num_vertices)
    result = replace(plain, displacement=displacement)
    path, _ = export_result(result, "blender", tmp_path / "out")
    mean = personal_model(result.model, result.state, displacement).mean
    assert float((mean - result.model.mean).norm(dim=1).max()) > 0.5
    shape = trimesh.load(path / "obj" / "jawOpen.obj", process=False)
    np.testing.assert_allclose(
        shape.vertices, (result.neutral + result.model.expression_basis[0]).numpy(), atol=1e-5
    )


def test_the_head_for_metahuman_stands_upright_in_centimetres(tmp_path):
    result = tiny_result()
    names = (*result.model.region_names, "eye_left")  # of no vertex
    result = replace(result, model=replace(result.model, region_names=names))
    path, notes = export_result(result, "metahuman", tmp_path / "out")
    assert notes == ["face model 'tiny' has no eyeballs, which MetaHuman needs to find the eyelids"]
    assert sorted(p.name for p in path.iterdir()) == ["albedo.png", "head.mtl", "head.obj", "texture.png"]
    head = trimesh.load(path / "head.obj", process=False)
    np.testing.assert_allclose(
        head.vertices @ [[10, 0, 0], [0, 0, -10], [0, 10, 0]], result.neutral, atol=1e-3
    )
    outside = (head.face_normals * (head.triangles_center - head.centroid)).sum(1)
    assert (outside > 0).mean() > 0.9 and np.ptp(head.vertices[:, 2]) > 20
    assert "centimetres; z up" in (path / "head.obj").read_text().splitlines()[0]
    region = result.model.region.clone()
    region[0] = len(names) - 1
    with_eyes = replace(result, model=replace(result.model, region=region))
    assert export_result(with_eyes, "metahuman", tmp_path / "eyes")[1] == []


def turned(model, **changes):
    """The tiny model, also by its name, with the layout mirrored."""
    return replace(model, uv=torch.stack([1 - model.uv[:, 0], model.uv[:, 1]], 1), **changes)


def test_textures_in_the_layout_of_another_file_with_the_same_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
    result = replace(tiny_result(), recipe={"masks": {"texture": "none"}})
    path = save_model_file(turned(result.model), tmp_path / "other.npz")
    for name, layout in (("plain", ""), ("mirrored", str(path))):
        export_result(result, "textures", tmp_path / name, ExportOptions(texture_layout=layout))
    plain, mirrored = (
        np.asarray(Image.open(tmp_path / name / "albedo.png")) for name in ("plain", "mirrored")
    )
    inside = slice(8, -8)
    off = [
        np.abs(m[inside, inside] - plain[inside, inside].astype(float)) for m in (mirrored[:, ::-1], mirrored)
    ]
    assert np.median(off[0]) <= 3 < np.median(off[1])


def test_textures_of_faces_that_cannot_be_laid_onto_each_other_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
    result = tiny_result()
    flat = turned(result.model, name="inside-out", triangles=result.model.triangles.flip(1))
    path = save_model_file(flat, tmp_path / "other.npz")
    with pytest.raises(
        InputError, match="'tiny' and 'inside-out': only 0 % of the face of the second can be"
    ):
        export_result(result, "textures", tmp_path / "a", ExportOptions(texture_layout=str(path)))
    assert not (tmp_path / "a").exists()
