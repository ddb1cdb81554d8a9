"""A network with named views, perspective cameras, light and parse in use: prediction from one to three
photos, start of a fit."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fitkit.cli.main import main
from fitkit.fitting.predict import predict
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit
from fitkit.models.registry import load_model
from fitkit.nets import save_predictor
from fitkit.nets.dfmvr.network import Dfmvr, DfmvrOptions
from fitkit.nets.parser.network import ParserOptions
from fitkit.nets.predictor import ViewSlot
from fitkit.observe.landmarks.builtin import read_network
from fitkit.scene.projection import project_points

SLOTS = (ViewSlot("left", (-75.0, -12.0)), ViewSlot("front", (-12.0, 12.0)), ViewSlot("right", (12.0, 75.0)))
SMALL = {"size": 128, "fused": 64, "width": 0.05, "depth": 3, "backbone_width": 0.1, "blocks": (1, 1, 1, 1)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An untrained network: it predicts what the shipped landmark network and a linear guess tell."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("net") / "regressor.safetensors"
    options = DfmvrOptions(**SMALL, parser=ParserOptions(size=64, spatial=4, joined=8))
    network = Dfmvr(load_model("generic"), SLOTS, options)
    network.load_landmarks(read_network(None), "builtin")
    save_predictor(network, "dfmvr", path)
    return path


@pytest.mark.parametrize("names", [("view1",), ("view0", "view1"), ("view0", "view1", "view2")])
def test_one_two_or_three_photos(anna, weights, names):
    for name in {"view0", "view1", "view2"} - set(names):
        (anna / f"{name}.png").unlink()
        (anna / f"{name}.pts").unlink()
    result = predict(anna, weights, landmarks="files")
    state, model = result.state, result.model
    assert [v.name for v in result.subject.views] == list(names)
    assert state.camera.kind == "perspective" and state.illumination.shape == (len(names), 9, 3)
    assert [p.shape for p in result.maps.parse] == [v.image.shape[:2] for v in result.subject.views]
    seen = project_points(model.landmark_basis, state).pixels
    for points, given in zip(seen, result.landmarks.points):
        size = float((given.amax(0) - given.amin(0)).max())
        assert float((points - given).norm(dim=-1).mean()) < 0.12 * size


def test_the_command_writes_the_parse_beside_the_face(anna, weights):
    run = CliRunner().invoke(main, ["predict", str(anna), "--weights", str(weights), "--landmarks", "files"])
    folder = anna / "fitkit"
    assert json.loads((folder / "metrics.json").read_text())["num_views"] == 3, run.output
    parts = np.array(Image.open(folder / "parse" / "view1.png"))
    assert parts.shape == np.array(Image.open(anna / "view1.png")).shape[:2] and parts.dtype == np.uint8


def test_a_fit_starts_from_it(anna, weights):
    init = {"source": "regressor", "weights": str(weights)}
    started = fit(anna, recipe=load_recipe("landmarks", changes={"init": init}))
    plain = fit(anna, recipe=load_recipe("landmarks", changes={"init": {"source": "landmarks"}}))
    assert started.metrics["start"]["source"] == "regressor" and started.status == plain.status
    apart = (started.vertices - plain.vertices).norm(dim=-1)[:, started.model.face]
    assert float(apart.mean()) < 1.0  # mm: both end at the same face
