"""Every kind of face model does all that users do with one, as the table of docs/face_models.md says."""

import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from every_model import KINDS
from gltf_files import accessor, read, skinned
from helpers import observe, photograph, tiny_joints, tiny_state, write_pts
from PIL import Image

import fitkit
from fitkit.cli.main import main
from fitkit.export import folder as export
from fitkit.export.topology import topology_of
from fitkit.fitting.predict import load_trained, predict_observed
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit_observed
from fitkit.geometry.alignment import similarity_align
from fitkit.io.mesh_files import read_mesh
from fitkit.io.subject import load_subject
from fitkit.observe.landmarks.detectors import detect_landmarks

DOCS = Path(__file__).parents[2] / "docs" / "face_models.md"
SIZE, VIEWS, TEXTURE = 160, 3, 128


def table() -> dict[str, dict[str, str]]:
    """The table of the documentation: model -> column -> cell."""
    text = DOCS.read_text(encoding="utf-8")
    lines = text[text.index("## What works with which model") :].split("\n\n", 3)[2].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {cells[0]: dict(zip(head[1:], cells[1:])) for cells in rows}


def run(*words) -> str:
    outcome = CliRunner().invoke(main, [str(word) for word in words])
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def test_the_table_has_a_row_for_each_kind():
    assert list(table()) == [kind.label for kind in KINDS]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_every_model_does_everything(kind, tmp_path, monkeypatch):
    if kind.needs and not kind.needs.exists():
        pytest.skip(f"{kind.needs} is not here")
    if kind.unwrapped and find_spec("xatlas") is None:
        pytest.skip("xatlas, which makes texture coordinates, is not here")
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(export, "texture_size", lambda result: TEXTURE)
    model = imported(kind, tmp_path)
    truth = somebody(model)
    subject = photographed(model, truth, tmp_path / "people" / "anna")
    row = facts(model) | {"fit": fitted(model, truth, subject)}
    row |= written(model, subject)
    row |= {"trained network": trained(model, subject.parent, tmp_path), "synth": rendered(model, tmp_path)}
    assert row == table()[kind.label]


def imported(kind, folder: Path) -> fitkit.FaceModel:
    """The model as `fitkit model import` stores it."""
    name = kind.label
    if kind.write:
        name = "mine"
        (folder / "files").mkdir()
        run("model", "import", *kind.write(folder / "files"), "--name", name)
    model = fitkit.load_model(name)
    said = run("model", "info", name)
    assert f"vertices    {model.num_vertices}\n" in said and f"name        {name}\n" in said
    return model


def facts(model) -> dict[str, str]:
    """What the model has."""
    parts = {"UV": model.uv, "albedo": model.albedo_mean, "joints": model.num_joints or None}
    return {
        "landmarks": str(int(model.landmarks.present.sum())),
        "expressions": {"blend_shape": "blend shapes", "gaussian": "Gaussian"}[model.expression_kind],
        "has": ", ".join(name for name, part in parts.items() if part is not None) or "none of these",
    }


def somebody(model):
    """A person of the model in three views, with some expression, and joints turned where there are some."""
    state = tiny_state(model, VIEWS, SIZE)
    expression = torch.zeros_like(state.expression)
    expression[:, ::7] = state.expression[:, ::7]
    expression = expression * model.coefficients["expression"].unit(expression)
    joints = tiny_joints(model, VIEWS, 0.08) if model.num_joints else None
    return state.replace(identity=0.7 * state.identity, expression=expression, joints=joints)


def photographed(model, truth, folder: Path) -> Path:
    """A subject folder of pictures of the model, with exact landmarks."""
    folder.mkdir(parents=True)
    images = photograph(model, truth, SIZE, (1.2, 1.0, 0.9)).clamp(0, 1)
    for i, points in enumerate(observe(model, truth, SIZE).landmarks.points):
        pixels = (images[i].permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"view{i}.png")
        points[~model.landmarks.present] = torch.nan  # nobody has set them
        write_pts(folder / f"view{i}.pts", points.numpy())
    return folder


def fitted(model, truth, subject: Path) -> str:
    """A fit finds the face again; the result lies in fitkit/ below the photos."""
    photos = load_subject(subject)
    found, _ = detect_landmarks(photos, "files")  # what a detector sees in the photos depends on no model
    result = fit_observed(photos, found, model, load_recipe("multiview", ["init.source=landmarks"]))
    assert result.status != "failed"
    found, true = (state.vertices(model)[:, model.face] for state in (result.state, truth))
    mean = model.mean[model.face].expand_as(true)
    wrong, unfitted = (aligned_distance(some, true) for some in (found, mean))
    assert wrong < 0.6 and wrong < unfitted / 4  # mm
    result.save(subject / "fitkit")
    return "yes"


def aligned_distance(found, true) -> float:
    """Mean distance of vertices [B, N, 3] after a similarity, mm."""
    best = similarity_align(found, true, torch.ones(found.shape[:2], dtype=torch.bool))
    moved = best.scale[:, None, None] * found @ best.rotation.transpose(1, 2) + best.translation[:, None]
    return float((moved - true).norm(dim=-1).mean())


def written(model, subject: Path) -> dict[str, str]:
    """The result folder, read back."""
    folder = subject / "fitkit"
    result = fitkit.load_result(folder)
    assert result.model.name == model.name
    np.testing.assert_allclose(read_mesh(folder / "subject.ply")[0], result.neutral.numpy(), atol=1e-3)
    for i in range(VIEWS):
        shown = read_mesh(folder / f"views/view{i}.ply")[0]
        np.testing.assert_allclose(shown, result.vertices[i].numpy(), atol=1e-3)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "not_written" not in metrics
    sigma = result.vertex_sigma
    assert sigma is not None and bool((sigma > 0).all()) and metrics["error_bars"]["face_mean_mm"] > 0
    own = model.calibration is not None
    assert own != any("has no calibration" in note for note in result.notes)
    return {
        "texture": texture(model, folder),
        "`subject.glb`": glb(model, result, folder / "subject.glb"),
        "error bars": "yes" if own else "those of `generic`",
    }


def texture(model, folder: Path) -> str:
    """The colours that the photos gave the meshes."""
    document, binary = read(folder / "subject.glb")
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    if model.uv is not None:
        with Image.open(folder / "texture.png") as picture:
            assert picture.size == (TEXTURE, TEXTURE)
        assert "TEXCOORD_0" in attributes and len(document["images"]) == 1
        return "yes"
    assert not (folder / "texture.png").exists() and not (folder / "subject.mtl").exists()
    assert "images" not in document and (folder / "albedo.ply").is_file()
    if model.albedo_mean is None:
        assert "COLOR_0" not in attributes
        return "`albedo.ply`"
    assert len(accessor(document, binary, attributes["COLOR_0"])) == model.num_vertices
    return "`albedo.ply`, vertex colours"


def glb(model, result, path: Path) -> str:
    """The mesh with its morph targets and joints."""
    document, binary = read(path)
    mesh = document["meshes"][0]
    primitive = mesh["primitives"][0]
    points = accessor(document, binary, primitive["attributes"]["POSITION"])
    faces = [accessor(document, binary, p["indices"]).reshape(-1, 3) for p in mesh["primitives"]]
    shown = topology_of(model)
    assert [len(rows) for rows in faces] == np.bincount(shown.part).tolist()
    faces, corners = np.concatenate(faces), result.neutral.numpy()[shown.triangles]
    np.testing.assert_allclose(1e3 * points[faces], corners, atol=1e-3)
    names = mesh["extras"]["targetNames"]
    assert len(names) == len(set(names)) == len(primitive["targets"])
    assert len(names) <= model.num_expression + len(model.extra_names)
    assert all(p["targets"] == primitive["targets"] for p in mesh["primitives"])
    for target in primitive["targets"]:
        assert accessor(document, binary, target["POSITION"]).shape == points.shape
    if not model.num_joints:
        assert "skins" not in document
        return "morph targets"
    still = skinned(document, binary, {})
    np.testing.assert_allclose(still, 1e3 * points, atol=1e-3)
    turned = skinned(document, binary, {model.joint_names[0]: (0.2, 0.0, 0.0)})
    assert np.abs(turned - still).max() > 1  # mm
    return "morph targets, skin"


def trained(model, people: Path, folder: Path) -> str:
    """One step of a training of a network with this model, which then predicts."""
    recipe = {
        "name": "small",
        "model": model.name,
        "net": {"name": "fitkit_init", "options": {"size": 32, "token": 24, "heads": 2, "hidden": 32}},
        "views": [],
        "data": [{"name": "people", "kind": "frames"}],
        "batch": 1,
        "accelerator": "cpu",
        "pictures": 1,
        "validation": {"share": 0.0},
        "stages": [
            {
                "name": "all",
                "steps": 1,
                "energies": {"lmk2d": {"sigma_px": 5}, "identity_prior": {}, "expression_prior": {}},
            }
        ],
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(recipe))
    run("train-regressor", folder / "small.yaml", f"data.people.folder={people}", "-o", folder / "net")
    subject = load_subject(people / "anna")
    one = replace(subject, views=subject.views[:1])
    found, _ = detect_landmarks(one, "files")
    result = predict_observed(one, found, load_trained(folder / "net" / "regressor.safetensors"))
    assert result.model.name == model.name and bool(torch.isfinite(result.vertices).all())
    result.save(folder / "predicted", pictures=False)
    assert (folder / "predicted" / "subject.glb").is_file()
    return "yes"


def rendered(model, folder: Path) -> str:
    """Rendered people of the model."""
    words = ["synth", folder / "synth", "--model", model.name, "--subjects", 1, "--views", 2, "--size", 128]
    if model.landmarks.missing:
        outcome = CliRunner().invoke(main, [str(word) for word in words])
        assert outcome.exit_code == 1
        assert re.search("expected a face model with all 68 landmarks, but .* lacks", outcome.output)
        return "no"
    run(*words)
    truth = folder / "synth" / "ground_truth" / "subject_00000"
    kept = read_mesh(truth / "mesh.ply")[0]
    assert len(kept) <= model.num_vertices and (folder / "synth/subject_00000/view1.jpg").is_file()
    return "yes"
