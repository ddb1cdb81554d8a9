"""The weights of fitkit-init that come with fitkit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fitkit.data.landmark_frames import held_out
from fitkit.fitting.metrics import view_errors
from fitkit.fitting.network_start import shipped_weights
from fitkit.fitting.predict import predict
from fitkit.fitting.run import fit
from fitkit.io.mesh_files import read_mesh
from fitkit.io.subject import load_subject
from fitkit.models.registry import load_model
from fitkit.train.validation import aligned_distance

SAMPLE = Path(__file__).parents[2] / "examples" / "sample"
TRUTH = SAMPLE.parent / "sample_truth"
FACES = Path(__file__).parents[3] / "shared" / "data" / "faces68"


@pytest.fixture(scope="module")
def model():
    return load_model("generic")


@pytest.fixture(scope="module")
def predicted(model):
    return predict(load_subject(SAMPLE, ignore=[SAMPLE / "fitkit"]), model=model)


def test_size_and_card():
    assert shipped_weights().stat().st_size < 6e6
    card = json.loads(shipped_weights().with_suffix(".json").read_text())
    assert (
        card["net"] == "fitkit_init"
        and "Udacity" in json.dumps(card["data"])
        and card["licence"].startswith("MIT")
    )


def test_the_sample_is_predicted_better_than_by_the_mean_face(predicted, model):
    assert predicted.status == "ok" and len(predicted.subject.views) == 3
    share = view_errors(model, predicted.state, predicted.landmarks)[1]
    assert float(share.max()) < 0.06
    vertices, _ = read_mesh(TRUTH / "neutral.ply")
    face = torch.from_numpy(np.flatnonzero(model.face.numpy()))
    truth = torch.from_numpy(vertices).float()[None, face]
    mine, mean = (aligned_distance(v[None, face], truth) for v in (predicted.neutral, model.mean))
    assert mine < 0.9 * mean
    assert 0.2 < float(predicted.identity_covariance.diagonal().sqrt().mean()) < 1.0


def test_a_fit_from_the_network_comes_to_the_same_face(model):
    subject = load_subject(SAMPLE, ignore=[SAMPLE / "fitkit"])
    one, two = (
        fit(subject, model=model, recipe="landmarks", overrides=[f"init.source={s}"])
        for s in ("landmarks", "regressor")
    )
    assert two.metrics["start"]["source"] == "regressor"
    assert two.metrics["reprojection_share"] == pytest.approx(one.metrics["reprojection_share"], rel=0.02)
    assert (
        float((one.neutral - two.neutral).norm(dim=-1)[model.face].mean()) < 0.15
    )  # mm; fits from the two starts stop within that


@pytest.mark.skipif(not FACES.is_dir(), reason="needs the shared data")
def test_people_that_no_training_has_seen(model):
    people = sorted(p for p in FACES.iterdir() if p.is_dir() and held_out(p.name))[:4]
    results = [predict(p, model=model, landmarks="files") for p in people]
    errors = torch.cat([view_errors(model, r.state, r.landmarks)[1] for r in results])
    assert len(errors) >= 20 and float(errors.mean()) < 0.05
