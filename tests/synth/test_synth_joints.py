"""Rendered people of face models with joints, and of models that are a face alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_model, tiny_skinned_model, with_joints

from fitkit.geometry.rotation import so3_exp
from fitkit.io.mesh_files import read_mesh
from fitkit.models.io import save_model_file
from fitkit.models.registry import load_model, store_model
from fitkit.scene.projection import project_points
from fitkit.synth.dataset import SynthDataset, SynthFolder, open_folder
from fitkit.synth.folder import write_subjects
from fitkit.synth.paint import head_map
from fitkit.synth.recipe import load_synth_recipe
from fitkit.synth.subject import draw_subject, subject_hair

MODEL = tiny_skinned_model()


def recipe(*overrides, **changes):
    changes = {"views": 2, "size": 96, "landmark_noise": 0.0} | changes
    return load_synth_recipe("clean", ["variation.neutral=0", *overrides], changes)


def plan(*overrides, **changes):
    return draw_subject(MODEL, recipe(*overrides, **changes), 3)


def test_joints_turn_as_the_model_spreads_them():
    per_view, shared, neutral = (plan(f"expression={e}") for e in ("per_view", "shared", "neutral"))
    assert per_view.state.joints.shape == (2, 4, 3)
    assert not torch.equal(per_view.state.joints[0], per_view.state.joints[1])
    assert torch.equal(shared.state.joints[0], shared.state.joints[1])
    assert neutral.state.joints is None and draw_subject(tiny_model(), recipe(), 3).state.joints is None
    assert not draw_subject(MODEL, recipe("variation.neutral=1"), 3).state.joints.any()
    calm = recipe("variation.expression=[0.5,0.5]", "expression=per_view")
    many = torch.cat([draw_subject(MODEL, calm, i).state.joints for i in range(40)])
    assert float(many.std() / MODEL.joint_sigma[0, 0]) == pytest.approx(0.5, abs=0.05)


def test_the_truth_of_a_folder_has_the_joints(tmp_path, monkeypatch):
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
    store_model(MODEL)
    model = load_model(MODEL.name)
    asked = recipe("expression=per_view", model=model.name)
    write_subjects(asked, 1, tmp_path / "people")
    truth = tmp_path / "people/ground_truth/subject_00000"
    state = draw_subject(model, asked, 0).state
    marks, head = np.load(truth / "landmarks2d.npy"), state.vertices(model)
    np.testing.assert_allclose(marks, project_points(model.landmark_basis, state).pixels, atol=1e-3)
    for b in range(2):
        np.testing.assert_allclose(read_mesh(truth / f"view{b}.ply")[0], head[b], atol=1e-3)
        points = model.landmarks.points(head[[b]], model.triangles)[0]
        np.testing.assert_allclose(np.load(truth / f"landmarks3d_view{b}.npy"), points, atol=1e-3)
    np.testing.assert_allclose(read_mesh(truth / "neutral.ply")[0], state.neutral(model)[0], atol=1e-3)
    moved = state.replace(joints=None).vertices(model)
    assert float((head - moved).norm(dim=-1).max()) > 2  # mm
    read, made = SynthFolder(tmp_path / "people", model)[0], SynthDataset(asked, 1, model)[0]
    for sample in (read, made):
        torch.testing.assert_close(sample.truth.state.joints, state.joints)
        torch.testing.assert_close(sample.truth.vertices, state.posed(model), atol=2e-3, rtol=0)
    stored = json.loads((truth / "params.json").read_text())
    assert np.shape(stored["joints_per_view"]) == (2, 4, 3)
    stored["joints_per_view"] = stored["joints_per_view"][:1]
    (truth / "params.json").write_text(json.dumps(stored))
    with pytest.raises(Exception, match=r"do not tell the scene .* render the subject again"):
        SynthFolder(tmp_path / "people", model)[0]


def test_hair_follows_the_joints():
    generic = load_model("generic")
    # A neck that carries the whole head.
    model = with_joints(generic, {"neck": ("root", (0, 0, 0), 0, (0, -80, -40))}, front=-1e3)
    asked = recipe("variation.bald=0", "variation.hat=0", "variation.long_hair=0")
    person = draw_subject(model, asked, 0)
    still = replace(person, state=person.state.replace(joints=None))
    turn = torch.tensor([[0.0, 0.0, 0.15]])
    turned = replace(person, state=person.state.replace(joints=turn.expand(2, 1, 3)))
    before, after = (torch.from_numpy(subject_hair(model, asked, p).points) for p in (still, turned))
    pivot = model.joint_basis.points(person.state.identity, torch.zeros(1, model.num_expression))[0, 1]
    expected = (before - pivot) @ so3_exp(turn.double())[0].T + pivot
    away, moved = (expected - after).norm(dim=-1).median(), (before - after).norm(dim=-1).median()
    assert float(moved) > 15 and float(away) < 3  # mm; it rises away from a point that stays


def test_a_face_without_a_scalp_is_bald():
    assert not head_map(MODEL).has_scalp and plan("variation.bald=0", "variation.hat=1").hair.bald


def test_a_folder_names_its_model_by_what_the_model_file_says(tmp_path):
    file = save_model_file(MODEL, tmp_path / "head.npz")
    write_subjects(recipe(model=str(file)), 1, tmp_path / "people")
    people = open_folder(tmp_path / "people", load_model(file))
    assert isinstance(people, SynthFolder) and people.made_of == MODEL.name != "head"
    assert people[0].observations.labels.state.identity.shape == (1, MODEL.num_identity)
