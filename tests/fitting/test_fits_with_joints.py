"""Fits of a face model with joints: what turned is found again, and written."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import observe, photograph, tiny_joints, tiny_skinned_model, tiny_state

import fitkit
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.report import FitReport
from fitkit.fitting.run import fit_observed
from fitkit.geometry.alignment import similarity_align
from fitkit.io.mesh_files import read_mesh
from fitkit.io.subject import Subject, View
from fitkit.models.face_model import FaceModel

SIZE, VIEWS = 320, 3
MODEL = tiny_skinned_model()
TRUTH = tiny_state(MODEL, VIEWS, SIZE).replace(joints=tiny_joints(MODEL, VIEWS, 0.12))
IMAGES = photograph(MODEL, TRUTH, SIZE)


def photos():
    pictures = (IMAGES.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    marks = replace(observe(MODEL, TRUTH, SIZE).landmarks, sigma=torch.full((VIEWS, 68), torch.nan))
    return Subject("test", tuple(View(f"view{i}", p) for i, p in enumerate(pictures))), marks


def fitted(recipe, model=MODEL, overrides=()):
    subject, marks = photos()
    return fit_observed(subject, marks, model, load_recipe(recipe, overrides))


def vertex_error(result):
    """Mean distance of the vertices of the face in each photo after a similarity, mm."""
    found, truth = result.state.vertices(result.model)[:, MODEL.face], TRUTH.vertices(MODEL)[:, MODEL.face]
    best = similarity_align(found, truth, torch.ones(found.shape[:2], dtype=torch.bool))
    moved = best.scale[:, None, None] * found @ best.rotation.transpose(1, 2) + best.translation[:, None]
    return float((moved - truth).norm(dim=-1).mean())


def errors(result):
    """Root mean square of what is wrong of each joint, over that of how far it is turned."""
    wrong = (result.state.joints - TRUTH.joints).square().mean((0, 2)).sqrt()
    return dict(zip(MODEL.joint_names, (wrong / TRUTH.joints.square().mean((0, 2)).sqrt()).tolist()))


@pytest.fixture(scope="module")
def landmarks():
    return fitted("landmarks")


def test_landmarks_tell_what_is_turned(landmarks):
    found = errors(landmarks)
    assert found["jaw"] < 0.1 and found["neck"] < 0.2
    assert found["eye_L"] < 0.5 and found["eye_R"] < 0.5  # six points each; how they roll hardly shows
    assert vertex_error(landmarks) < 0.3


def test_a_model_without_joints_cannot_show_it(landmarks):
    linear = FaceModel(**{name: getattr(MODEL, name) for name in FaceModel.__dataclass_fields__})
    result = fitted("landmarks", linear)
    assert result.state.joints is None
    assert vertex_error(result) > 3 * vertex_error(landmarks) and "joints" not in result.metrics


def test_the_report_names_the_joint_that_is_turned_farthest(landmarks):
    joints, said = landmarks.state.joints, landmarks.metrics["joints"]
    sigmas = joints.abs() / MODEL.joint_sigma
    view, joint, _ = (sigmas == sigmas.max()).nonzero()[0].tolist()
    assert said["joint"] == MODEL.joint_names[joint]
    assert said["largest"] == pytest.approx(float(sigmas.max()), rel=1e-5)
    assert said["degrees"] == pytest.approx(float(torch.rad2deg(joints[view, joint].norm())), rel=1e-5)
    assert FitReport.from_metrics(landmarks.metrics).joints == landmarks.report.joints


def test_photos_tell_it_with_flow_and_detail():
    result = fitted("multiview")
    found = errors(result)
    assert found["jaw"] < 0.1 and found["neck"] < 0.2 and vertex_error(result) < 0.3
    stage = result.metrics["stages"][-1]
    assert stage["terms"]["joint_prior"]["valid"] == VIEWS * 12 and "flow_corr" in stage["terms"]


def test_photos_of_one_moment_share_the_joints():
    result = fitted("landmarks", overrides=["expression.shared=true"])
    joints = result.state.joints
    assert torch.equal(joints, joints[:1].expand_as(joints)) and float(joints.abs().max()) > 0.01
    assert result.metrics["stages"][-1]["terms"]["joint_prior"]["valid"] == 12


def test_the_result_folder_keeps_the_joints(landmarks, tmp_path):
    folder = landmarks.save(tmp_path / "out")
    read = fitkit.load_result(folder, photos=landmarks.subject, model=MODEL)
    assert torch.equal(read.state.joints, landmarks.state.joints)
    assert torch.equal(read.vertices, landmarks.vertices) and torch.equal(read.neutral, landmarks.neutral)
    written = read_mesh(folder / "views/view1.ply")[0]
    np.testing.assert_allclose(written, landmarks.vertices[1].numpy(), atol=1e-3)
    at_rest = MODEL.vertices(landmarks.state.identity, torch.zeros(1, 6))[0].numpy()
    np.testing.assert_allclose(read_mesh(folder / "subject.ply")[0], at_rest, atol=1e-3)
