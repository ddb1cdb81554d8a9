"""`fitkit predict`: a network alone, in the form of a fit."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import write_pts
from PIL import Image

from fitkit.cli.main import main
from fitkit.errors import InputError
from fitkit.fitting.findings import SHIPPED_ERROR_MM
from fitkit.fitting.predict import predict
from fitkit.fitting.report import notes
from fitkit.fitting.run import fit
from fitkit.io.subject import load_subject
from fitkit.models.registry import load_model
from fitkit.nets import save_predictor
from fitkit.nets.mvfnet.network import MvfNet, MvfNetOptions
from fitkit.nets.predictor import ViewSlot
from fitkit.scene.parameters import load_parameters
from fitkit.scene.projection import project_points

SLOTS = (ViewSlot("front", (-15.0, 15.0)), ViewSlot("left", (-70.0, -20.0)), ViewSlot("right", (20.0, 70.0)))


@pytest.fixture
def weights(tmp_path):
    """An untrained network: it predicts the mean face from the front, in the middle of each crop."""
    torch.manual_seed(0)
    path = tmp_path / "regressor.safetensors"
    save_predictor(MvfNet(load_model("generic"), SLOTS, MvfNetOptions(size=64, width=0.05)), "mvfnet", path)
    return path


def test_the_untrained_network_puts_the_mean_face_where_the_faces_are(anna, weights):
    result = predict(anna, weights, landmarks="files")
    assert [v.name for v in result.subject.views] == ["view1", "view0", "view2"]  # in the order of the slots
    assert result.state.camera.kind == "orthographic" and float(result.state.identity.abs().max()) < 0.05
    model = load_model("generic")
    points = result.state.camera.project(
        result.state.pose.apply(model.landmarks.points(result.vertices, model.triangles))
    )[0]
    truth = fit(anna, recipe="landmarks")
    given = {v.name: torch.from_numpy(v.landmarks[:, :2]).float() for v in truth.subject.views}
    front = given["view1"]
    size = float((front.amax(0) - front.amin(0)).max())
    assert float((points[0] - front).norm(dim=-1).mean()) < 0.08 * size
    assert result.metrics["verdict"]["expected_mm"] is None  # nobody knows what this network is worth
    assert (
        result.recipe["name"] == "predict"
        and result.recipe["regressor"]["net"] == "mvfnet"
        and result.metrics["recipe"] == "predict"
    )


def test_the_command_writes_the_folder_of_a_fit(anna, weights):
    (anna / "view0.png").unlink()
    (anna / "view0.pts").unlink()
    run = CliRunner().invoke(main, ["predict", str(anna), "--weights", str(weights), "--landmarks", "files"])
    folder = anna / "fitkit"
    assert (folder / "subject.obj").is_file() and (folder / "overlay" / "view1.png").is_file(), run.output
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_views"] == 2 and metrics["status"] in ("ok", "doubtful", "failed")
    assert run.exit_code == (1 if metrics["status"] == "failed" else 0) and "in the network" in run.output
    assert list(load_parameters(folder / "parameters.npz").view_names) == ["view1", "view2"]
    again = CliRunner().invoke(main, ["predict", str(anna), "--weights", str(weights)])
    assert again.exit_code == 1 and "overwrite" in again.output
    bare = CliRunner().invoke(
        main, ["predict", str(anna), "--weights", str(weights), "--overwrite", "--no-pictures"]
    )
    assert (folder / "subject.obj").is_file() and not [*folder.rglob("*.png")], bare.output
    assert "look at" not in bare.output and ("fit the photos" in bare.output) == (bare.exit_code == 1)


def take_again(folder):
    """again.png: view1.png in less light."""
    Image.fromarray(np.asarray(Image.open(folder / "view1.png").convert("RGB")) // 2).save(
        folder / "again.png"
    )
    (folder / "again.pts").write_bytes((folder / "view1.pts").read_bytes())


def test_photos_without_a_place_are_left_out(anna, weights, tmp_path):
    take_again(anna)
    result = predict(anna, weights, landmarks="files")
    assert len(result.subject.views) == 3
    assert any(
        line.startswith("left out: ") and "one photo for each of front, left, right" in line
        for line in notes(result.metrics)
    )
    model, path = load_model("generic"), tmp_path / "back.safetensors"
    save_predictor(
        MvfNet(model, (ViewSlot("back", (120.0, 180.0)),), MvfNetOptions(size=64, width=0.05)), "mvfnet", path
    )
    with pytest.raises(
        InputError,
        match=r"anna: none of its photos fits a view of .*back.safetensors \(yaw in degrees: back 120 to "
        r"180\)",
    ):
        predict(anna, path, landmarks="files")


def test_what_the_network_that_comes_with_fitkit_is_worth(anna):
    result = predict(anna, landmarks="files")
    assert (
        result.metrics["verdict"]["expected_mm"] == SHIPPED_ERROR_MM and result.metrics["error_bars"] is None
    )


def test_eyes_beside_the_eyes_are_told(anna):
    """Landmarks with the eyes 10 px too high on a face of about 130 px: the rest fits, so the mean does not
    show it."""
    for path in anna.glob("*.pts"):
        points = np.loadtxt(path, skiprows=3, max_rows=68) - 1
        points[36:48, 1] -= 10
        write_pts(path, points)
    result = predict(anna, landmarks="files")
    assert (
        result.status == "doubtful" and max(v["reprojection_share"] for v in result.metrics["views"]) < 0.06
    )
    assert any("the eyes lie" in line for line in result.warnings)


def test_known_cameras_are_not_used_and_a_note_says_so(anna, weights):
    K = [[400.0, 0.0, 95.5], [0.0, 400.0, 95.5], [0.0, 0.0, 1.0]]
    (anna / "cameras.json").write_text(json.dumps({v.name: {"K": K} for v in load_subject(anna).views}))
    result = predict(anna, weights, landmarks="files")
    assert (
        "cameras.json was not used" in " ".join(notes(result.metrics))
        and np.isfinite(result.state.camera.focal.numpy()).all()
    )


def test_a_network_of_position_maps_gives_a_scene_and_maps(anna, tmp_path):
    from fitkit.nets.pgn.network import Pgn, PgnOptions

    torch.manual_seed(0)
    path, model = tmp_path / "pgn.safetensors", load_model("generic")
    save_predictor(Pgn(model, (), PgnOptions(size=32, map=16, width=0.05)), "pgn", path)
    result = predict(anna, path, landmarks="files")
    out = result.save(tmp_path / "out", pictures=False)
    views = result.subject.views
    assert {p.name for p in (out / "posmap").iterdir()} == {f"{v.name}.npy" for v in views}
    for view, pixels in zip(views, project_points(model.landmark_basis, result.state).pixels):
        stored = np.load(out / "posmap" / f"{view.name}.npy")
        assert stored.shape == (3, 16, 16)  # px of the photo, where the scene's face is laid
        middle = stored[:2].reshape(2, -1).mean(1)
        size = float((pixels.amax(0) - pixels.amin(0)).max())
        assert np.linalg.norm(middle - pixels.mean(0).numpy()) < size


def test_any_number_of_photos_and_how_sure_the_network_is(anna, tmp_path):
    from fitkit.nets.fitkit_init.network import FitkitInit, FitkitInitOptions

    torch.manual_seed(0)
    path = tmp_path / "any.safetensors"
    save_predictor(FitkitInit(load_model("generic"), (), FitkitInitOptions(size=32)), "fitkit_init", path)
    take_again(anna)
    result = predict(anna, path, landmarks="files")
    assert [v.name for v in result.subject.views] == [
        "again",
        "view0",
        "view1",
        "view2",
    ]  # nobody is left out
    variance = result.identity_covariance.diagonal()
    assert (
        torch.equal(result.identity_covariance, torch.diag(variance))
        and 0.6 < float(variance.sqrt().mean()) < 1.2
    )
    assert (
        result.metrics["start"] == {"source": "regressor", "iterations": 0}
        and result.metrics["error_bars"] is None
    )
    assert (
        load_parameters(result.save(tmp_path / "out", light=True) / "parameters.npz").identity_covariance
        is not None
    )
