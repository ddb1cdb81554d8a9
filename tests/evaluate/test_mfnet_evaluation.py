"""A network with scaled-orthographic cameras and named views through the FaceScape protocols."""

from dataclasses import replace

import layouts
import numpy as np
import pytest
import torch

from fitkit.errors import InputError
from fitkit.evaluate import facescape
from fitkit.evaluate.predictions import read_prediction
from fitkit.evaluate.protocols import PROTOCOLS
from fitkit.evaluate.recipe import load_evaluate_recipe
from fitkit.evaluate.run import evaluate
from fitkit.models.io import save_model_file
from fitkit.models.registry import load_model
from fitkit.nets import save_predictor
from fitkit.nets.mfnet.network import Mfnet, MfnetOptions
from fitkit.nets.predictor import ViewSlot

SLOTS = (ViewSlot("front", (-15.0, 15.0)), ViewSlot("left", (-70.0, -15.0)), ViewSlot("right", (15.0, 70.0)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Both layouts with one tiny person seen from three sides, the model as a file, and a network that
    predicts its mean face, frontal, in the middle of each crop."""
    folder = tmp_path_factory.mktemp("facescape")
    person = layouts.person()
    model = save_model_file(person.result.model, folder / "tiny.npz")
    torch.manual_seed(0)
    network = Mfnet(load_model(model), SLOTS, MfnetOptions(size=32, trunk="resnet18", hidden=8))
    save_predictor(network, "mfnet", folder / "net.safetensors")
    for name in ("wild", "lab"):
        (folder / name).mkdir()
        getattr(layouts, f"facescape_{name}")(folder / name, person)
    return folder


@pytest.fixture(autouse=True)
def coarse_maps(monkeypatch):
    """Depth and cylinder maps of an eighth of the cells; tests/evaluate/test_facescape.py has them whole."""
    monkeypatch.setattr(facescape, "SIZE", 90)


def measured(place, protocol, out, *overrides):
    regressor = ("predictor=regressor", f"weights={place / 'net.safetensors'}", "fit.landmarks.source=files")
    recipe = load_evaluate_recipe(protocol, (*regressor, *overrides), {"model": str(place / "tiny.npz")})
    return evaluate(recipe, place / protocol.removeprefix("facescape_"), out)


@pytest.mark.slow
def test_one_photo_in_all_views_in_the_wild(place, tmp_path):
    rows = {}
    for pose in ("network", "landmarks"):
        report = measured(place, "facescape_wild", tmp_path / pose, "repeat=true", f"pose={pose}")
        (rows[pose],) = report["rows"]
        assert report["summary"][0]["failed"] == 0 and report["overall"]["done_percent"] == 100
        assert all(np.isfinite(rows[pose][key]) for key in ("cd", "mne_facescape", "mne_true", "cr"))
    # The head is turned by 40 degrees there, which the untrained network does not know.
    for key in ("cd", "mne_true", "mne_facescape"):
        assert rows["landmarks"][key] < 0.9 * rows["network"][key], [r[key] for r in rows.values()]
    assert rows["landmarks"]["cr"] > rows["network"]["cr"] > 0.5


@pytest.mark.slow
def test_three_photos_in_the_lab_are_scored_in_the_camera_of_the_first(place, tmp_path):
    errors = {}
    for first, views in ((0, "[[0, 1, 2]]"), (2, "[[2, 0, 1]]")):
        report = measured(
            place, "facescape_lab", tmp_path / str(first), "pose=landmarks", f"options.views={views}"
        )
        (errors[first],) = report["rows"]
        stored = read_prediction(tmp_path / str(first) / "predictions", errors[first]["id"])
        assert list(stored.views) == ["00_0_01", "00_0_00", "00_0_02"]  # as the views of the network
        assert stored.camera_kind == "orthographic"
    # Wherever it is scored, another person's mean face is some millimetres away, and not the pose's.
    assert all(row["cd"] < 8.0 and row["mne_true"] < 0.3 and row["cr"] > 0.9 for row in errors.values())
    sample = PROTOCOLS["facescape_lab"].samples(
        place / "lab", PROTOCOLS["facescape_lab"].options(views=((2, 0),))
    )[0]
    without = replace(stored, views=np.array(["00_0_00"]))
    with pytest.raises(InputError, match=r"first photo, and the prediction has only 00_0_00; put a photo"):
        PROTOCOLS["facescape_lab"].score(sample, without, None, None)


def test_where_poses_come_from_is_told(place, tmp_path):
    with pytest.raises(InputError, match="pose: expected"):
        load_evaluate_recipe("facescape_wild", ["predictor=regressor", "pose=deca"])
    with pytest.raises(InputError, match="weights, repeat, part and pose are for predictor=regressor"):
        load_evaluate_recipe("facescape_wild", ["pose=landmarks"])
