"""Depth maps of rendered people against their truth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_nets import SmallDepth, registered

from fitkit.errors import InputError
from fitkit.evaluate.predictions import PredictedFace, read_prediction
from fitkit.evaluate.protocols import PROTOCOLS
from fitkit.evaluate.recipe import load_evaluate_recipe
from fitkit.evaluate.relief import normal_errors, relief_errors
from fitkit.evaluate.run import evaluate
from fitkit.models.registry import load_model
from fitkit.nets import save_predictor
from fitkit.nets.mvdepth.network import Mvdepth, MvdepthOptions
from fitkit.scene.camera import Camera
from fitkit.scene.depth_mesh import depth_mesh
from fitkit.synth.dataset import SynthFolder
from fitkit.synth.folder import write_subjects
from fitkit.synth.recipe import load_synth_recipe

PROTOCOL = PROTOCOLS["depth_maps"]


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A rendered person in two photos."""
    folder = tmp_path_factory.mktemp("rendered") / "people"
    recipe = load_synth_recipe("clean", ["size=96", "views=2", "expression=per_view", "poses=random"])
    write_subjects(recipe, 1, folder)
    return folder


def true_face(people, view):
    """The person's own model, posed as in the photo."""
    model = load_model("generic")
    state = SynthFolder(people, model)[0].truth.state
    camera = state.camera.select([view])
    return PredictedFace(
        f"subject_00000/view{view}",
        triangles=model.triangles.numpy(),
        posed=state.posed(model, [view]).numpy(),
        focal=camera.focal.numpy(),
        principal=camera.principal.numpy(),
    )


def score(sample, face):
    return PROTOCOL.score(sample, face, PROTOCOL.options(), None).values


def test_each_photo_is_a_sample_and_the_true_face_has_no_error(people):
    samples = PROTOCOL.samples(people, PROTOCOL.options())
    assert [s.id for s in samples] == ["subject_00000/view0", "subject_00000/view1"]
    for view, sample in enumerate(samples):
        assert [v.name for v in sample.subject().views] == [f"view{view}"]
        values = score(sample, true_face(people, view))
        assert set(values) == set(PROTOCOL.units)
        assert (
            values["depth_mm"] < 0.3 and values["depth_scaled_mm"] < 0.3
        )  # the skin is not all of the model
        assert values["normals_deg"] < 9 and values["missing_percent"] < 1
    one = PROTOCOL.samples(people, PROTOCOL.options(views=(1,)))
    assert [s.id for s in one] == ["subject_00000/view1"]


def test_distance_is_no_error_and_a_flat_face_is_one(people):
    sample, face = PROTOCOL.samples(people, PROTOCOL.options())[0], true_face(people, 0)
    exact = score(sample, face)
    z = face.posed[..., 2:]
    middle = z.mean()
    # Farther away through a longer lens: in the same pixels, and as deep.
    farther = np.concatenate([face.posed[..., :2] * (z + 300) / z, z + 300], -1)
    moved = score(sample, replace(face, posed=farther))
    assert moved["depth_mm"] == pytest.approx(exact["depth_mm"], abs=0.1)
    flat = np.concatenate(
        [face.posed[..., :2] * (middle + 0.5 * (z - middle)) / z, middle + 0.5 * (z - middle)], -1
    )
    half = score(sample, replace(face, posed=flat))
    assert half["depth_mm"] > 4 > 0.5 > half["depth_scaled_mm"] and half["normals_deg"] > 8
    cut = replace(face, triangles=face.triangles[(face.posed[0][face.triangles][..., 0] < 0).all(1)])
    assert 30 < score(sample, cut)["missing_percent"] < 70


def test_errors_of_maps_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    depth, truth = (torch.from_numpy(500 + rng.normal(0, 3, (7, 9))) for _ in range(2))
    where = torch.from_numpy(rng.random((7, 9)) < 0.6)
    apart = sorted(float(depth[y, x] - truth[y, x]) for y in range(7) for x in range(9) if where[y, x])
    middle = apart[(len(apart) - 1) // 2]
    assert float(relief_errors(depth, truth, where).mean()) == pytest.approx(
        np.mean([abs(a - middle) for a in apart])
    )
    assert len(relief_errors(depth, truth, torch.zeros_like(where))) == 0
    camera = Camera(torch.tensor([100.0]), torch.tensor([[4.0, 3.0]]), torch.ones(1))
    plane = torch.full((7, 9), 500.0)
    tilted = torch.tensor([0.0, np.sin(0.3), -np.cos(0.3)]).float().expand(7, 9, 3)
    angles = normal_errors(plane, camera, tilted, torch.ones(7, 9, dtype=torch.bool))
    assert len(angles) == 6 * 8 and torch.allclose(
        angles, torch.full_like(angles, np.degrees(0.3)), atol=1e-3
    )


def test_a_depth_map_is_measured_as_the_mesh_that_it_shows(people):
    sample, truth = PROTOCOL.samples(people, PROTOCOL.options())[0], None
    truth = sample.truth()
    state = SynthFolder(people, load_model("generic"))[0].truth.state
    camera = state.camera.select([0])
    vertices, triangles = depth_mesh(truth.depth, camera)
    face = PredictedFace(
        "a",
        triangles=triangles,
        posed=vertices[None],
        focal=camera.focal.numpy(),
        principal=camera.principal.numpy(),
    )
    values = score(sample, face)
    assert values["depth_mm"] < 0.2 and values["missing_percent"] < 5


def test_what_it_refuses(people, tmp_path):
    with pytest.raises(
        InputError, match="expected a folder that fitkit synth has written, with the true depth"
    ):
        PROTOCOL.samples(tmp_path, PROTOCOL.options())
    with pytest.raises(InputError, match="views: expected numbers from 0 to 1, got 2"):
        PROTOCOL.samples(people, PROTOCOL.options(views=(2,)))
    sample, face = PROTOCOL.samples(people, PROTOCOL.options())[0], true_face(people, 0)
    with pytest.raises(InputError, match="the prediction and the true face have no pixel in common"):
        score(sample, replace(face, posed=face.posed + [[[5000.0, 0, 0]]]))
    with pytest.raises(InputError, match="the prediction has no posed"):
        score(sample, PredictedFace("a"))
    depth = Path(people) / "ground_truth" / "subject_00000" / "view0_depth.png"
    kept = depth.read_bytes()
    try:
        depth.write_bytes((depth.parent / "view0_parse.png").read_bytes())
        with pytest.raises(InputError, match="view0_depth.png"):
            sample.truth()
    finally:
        depth.write_bytes(kept)


def test_depth_stands_where_the_pose_comes_from(people, tmp_path, monkeypatch):
    torch.manual_seed(0)
    options = MvdepthOptions(
        size=32, growth=4, blocks=(1, 1, 1, 1), features=8, hidden=8, width=0.1, levels=3, trust_width=0.05
    )
    save_predictor(Mvdepth(load_model("generic"), (), options), "mvdepth", tmp_path / "net.safetensors")
    found = {}
    for pose in ("network", "landmarks"):
        words = (
            "predictor=regressor",
            f"weights={tmp_path / 'net.safetensors'}",
            "part=depth",
            "options.views=[0]",
            "fit.landmarks.source=files",
            f"pose={pose}",
        )
        report = evaluate(load_evaluate_recipe("depth_maps", words), people, tmp_path / pose)
        posed = read_prediction(tmp_path / pose / "predictions", "subject_00000/view0").posed[0]
        found[pose] = report["rows"][0]["depth_mm"], float(np.median(posed[posed[:, 2] > 0][:, 2]))
    assert found["network"][0] == pytest.approx(found["landmarks"][0], abs=0.2)
    assert abs(found["network"][1] - found["landmarks"][1]) > 1  # untrained, it does not know how far
    registered(monkeypatch)
    save_predictor(SmallDepth(), "small_depth", tmp_path / "depth.safetensors")
    words = ("predictor=regressor", f"weights={tmp_path / 'depth.safetensors'}", "pose=landmarks")
    with pytest.raises(InputError, match="gives depth; pose=landmarks needs a network that gives a state"):
        evaluate(load_evaluate_recipe("depth_maps", words), people, tmp_path / "none")
