"""The shipped sample and the numbered examples."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fitkit.geometry.alignment import similarity_align
from fitkit.io.landmark_files import read_landmarks
from fitkit.io.mesh_files import read_mesh
from fitkit.models.registry import load_model
from fitkit.nets import load_predictor

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SAMPLE, TRUTH = EXAMPLES / "sample", EXAMPLES / "sample_truth"
NAMES = ("front", "left", "right")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run an example in this process, which has loaded torch already -> what it prints."""

    def run(script: str, *arguments) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run


def started(script: str, *arguments, cwd: Path) -> str:
    """Run an example as a user would, as a process of its own; one thread, as in all tests."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def projected(truth: dict, view: str) -> np.ndarray:
    """Landmarks of the truth in this view, [68, 2]."""
    model = load_model(truth["model"])
    expression = torch.tensor([[truth["expression"].get(n, 0.0) for n in model.expression_names]])
    head = model.landmark_points(torch.tensor([truth["identity"]]), expression)[0].double().numpy()
    camera = next(v for v in truth["views"] if v["image"] == f"{view}.jpg")
    points = (head @ np.array(camera["R"]).T + camera["t"]) @ np.array(camera["K"]).T
    return points[:, :2] / points[:, 2:]


def test_sample_is_small_and_complete():
    files = sorted(p.name for p in SAMPLE.iterdir() if p.is_file())
    assert files == sorted(f"{n}.{s}" for n in NAMES for s in ("jpg", "pts"))
    assert sum(p.stat().st_size for p in SAMPLE.iterdir() if p.is_file()) < 300_000
    readme = (TRUTH / "README.md").read_text()
    assert "make_sample.py" in readme and "counted from 1" in readme


@pytest.mark.parametrize("name", NAMES)
def test_sample_landmarks_are_the_projected_truth(name):
    truth = json.loads((TRUTH / "parameters.json").read_text())
    points = read_landmarks(SAMPLE / f"{name}.pts")[:, :2]
    offset = points - projected(truth, name)
    sigma = truth["landmark_noise_px"]
    assert 0.75 * sigma < offset.std() < 1.25 * sigma  # 136 numbers: the standard deviation is good to 6 %
    assert np.abs(offset.mean(0)).max() < 4 * sigma / 68**0.5
    with Image.open(SAMPLE / f"{name}.jpg") as image:
        size = image.size
    assert points.min() > 0 and (points < np.array(size) - 1).all()


def test_sample_truth_belongs_to_the_model():
    """Fails when the generic model was rebuilt and the sample was not: run examples/make_sample.py."""
    truth = json.loads((TRUTH / "parameters.json").read_text())
    model = load_model(truth["model"])
    neutral = model.vertices(torch.tensor([truth["identity"]]), torch.zeros(1, model.num_expression))
    vertices, triangles = read_mesh(TRUTH / "neutral.ply")
    assert np.allclose(vertices, neutral[0].numpy(), atol=2e-3)  # coefficients are written with five decimals
    assert (triangles == model.triangles.numpy()).all()
    marks = np.load(TRUTH / "landmarks3d_neutral.npy")
    assert np.allclose(marks, model.landmarks.points(neutral, model.triangles)[0].numpy(), atol=2e-3)


def test_sample_can_be_made_again(run, tmp_path):
    run("make_sample.py", "-o", tmp_path)
    for name in NAMES:
        assert np.allclose(
            read_landmarks(tmp_path / "sample" / f"{name}.pts"),
            read_landmarks(SAMPLE / f"{name}.pts"),
            atol=0.01,
        )
        with (
            Image.open(tmp_path / "sample" / f"{name}.jpg") as new,
            Image.open(SAMPLE / f"{name}.jpg") as old,
        ):
            difference = np.asarray(new, float) - np.asarray(old, float)
        assert np.abs(difference).mean() < 1.5, (
            "the sample is out of date: run examples/make_sample.py"
        )  # other JPEG libraries round otherwise


def test_fit_folder_finds_the_person(tmp_path):
    out = started("01_fit_folder.py", SAMPLE, tmp_path / "result", cwd=tmp_path)
    assert "sample: ok, 3 views" in out and out.count("px off") == 3
    found, truth = read_mesh(tmp_path / "result" / "subject.ply")[0], read_mesh(TRUTH / "neutral.ply")[0]
    model = load_model("generic")

    def error(vertices):
        ours, theirs = (torch.from_numpy(v[model.face.numpy()])[None] for v in (vertices, truth))
        return float((similarity_align(ours, theirs).apply(ours) - theirs).norm(dim=-1).mean())

    assert error(found) < 1.0 and error(found) < 0.5 * error(model.mean.double().numpy())
    assert len(list((tmp_path / "result" / "overlay").glob("*.png"))) == 3


def test_astronaut(run, tmp_path):
    pytest.importorskip("skimage", reason="scikit-image carries the photograph")
    points = read_landmarks(EXAMPLES / "astronaut.pts")
    assert np.isfinite(points).all() and "public domain" in (EXAMPLES / "astronaut.pts").read_text()
    out = run("02_astronaut.py", tmp_path / "result")
    metrics = json.loads((tmp_path / "result" / "metrics.json").read_text())
    assert "ok" in out and metrics["status"] == "ok"
    assert metrics["reprojection_share"] < 0.025  # points placed by eye are good to 1 to 2 % of the face
    yaw, _, roll = metrics["views"][0]["yaw_pitch_roll_deg"]
    assert abs(yaw) < 6 and abs(roll) < 8  # she looks into the camera


def test_own_energy(tmp_path):
    """A user's energy in a fit and in a training: the face takes the distance that was measured, the training
    reports it."""
    lines = started("03_own_energy.py", tmp_path / "training", cwd=tmp_path).splitlines()
    for line, measured in zip(lines, (85.0, 95.0)):
        found = re.fullmatch(r"measured (\S+) mm, fitted (\S+) mm, (ok|doubtful)", line)
        assert float(found[1]) == measured and abs(float(found[2]) - measured) < 1.0
    steps = [line for line in lines if line.startswith("  step ")]
    assert len(steps) == 2 and all("'eye_distance': " in line for line in steps)
    assert (tmp_path / "training" / "regressor.safetensors").exists()


@pytest.mark.slow
def test_a_network_for_one_person_from_a_video(run, tmp_path):
    pictures = [cv2.imread(str(SAMPLE / f"{name}.jpg")) for name in NAMES]
    height, width = pictures[0].shape[:2]
    video = cv2.VideoWriter(
        str(tmp_path / "anna.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (width, height)
    )
    for picture in pictures:
        video.write(cv2.resize(picture, (width, height)))
    video.release()
    out = run("04_one_person.py", tmp_path / "out", tmp_path / "anna.avi")
    assert len(list((tmp_path / "out" / "frames").glob("*.png"))) == 3
    assert "census_xview: " in out and "sem_feat: " in out and "px off in 3 photos" in out
    # Only the heads have learned, from where the weights were.
    before, after = (
        load_predictor(tmp_path / "out" / name / "regressor.safetensors").state_dict()
        for name in ("tiny", "training")
    )
    changed = {k.partition(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"identity_head", "expression_head"}


def test_a_data_set(run, tmp_path):
    pytest.importorskip("matplotlib", reason="draws the histogram")
    shutil.copytree(SAMPLE, tmp_path / "people" / "ada")
    out = run("05_data_set.py", tmp_path / "people", tmp_path / "fits")
    assert "1 subjects: 1 ok" in out and (tmp_path / "fits" / "errors.png").stat().st_size > 1000
    assert (tmp_path / "fits" / "exported" / "ada" / "subject.glb").exists()
