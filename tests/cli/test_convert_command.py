import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import fitkit
from fitkit.models.io import save_model_file


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, _rendered):
    """Photos with a fit beside them, and a models folder with another model, 'mine'."""
    folder = tmp_path_factory.mktemp("convert")
    anna = shutil.copytree(_rendered, folder / "anna")
    fitkit.fit(anna, recipe="landmarks").save(anna / "fitkit", pictures=False)
    model = fitkit.load_model("generic")
    few = replace(model, name="mine", identity_basis=model.identity_basis[:40], albedo_mean=None)
    save_model_file(few.with_mean(1.02 * model.mean), folder / "models/mine.npz")
    return folder


@pytest.fixture
def anna_fitted(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("FITKIT_MODELS", str(prepared / "models"))
    return shutil.copytree(prepared / "anna", tmp_path / "anna")


@pytest.mark.slow
def test_a_result_folder_with_another_model(run, anna_fitted):
    result = run("convert", anna_fitted / "fitkit", "--to", "mine")
    assert result.exit_code == 0, result.output
    folder = anna_fitted / "fitkit_mine"
    lines = dict(line.split(None, 1) for line in result.output.splitlines())
    assert lines["model"] == "generic -> mine, expressions by names"
    assert "mm mean distance" in lines["neutral"] and "mm mean distance" in lines["photos"]
    assert lines["result"] == str(folder)
    names = {p.name for p in folder.iterdir()}
    assert {"subject.glb", "subject.obj", "texture.png", "overlay", "cameras.json"} <= names
    conversion = json.loads((folder / "metrics.json").read_text())["conversion"]
    assert conversion["source"] == "generic" and 0 < conversion["neutral_mean_mm"] < 0.4
    before, after = fitkit.load_result(anna_fitted / "fitkit"), fitkit.load_result(folder)
    assert after.model.name == "mine" and after.state.identity.shape == (1, 40)
    # the mesh is 2 % larger where it comes from: the head frame moves, the face in the photo does not
    one, other = (r.state.pose.apply(r.vertices)[:, r.model.face] for r in (before, after))
    assert float((one - other).norm(dim=2).mean()) < 1.5
    again = run("convert", anna_fitted / "fitkit", "--to", "mine")
    assert again.exit_code == 1 and "use --overwrite" in again.output


def test_options(run, anna_fitted, tmp_path):
    common = ("convert", anna_fitted / "fitkit", "--to", "mine", "-q", "--no-pictures")
    photos = ("--photos", anna_fitted)
    by_surface = run(*common, *photos, "--expression", "surface", "--no-detail", "-o", tmp_path / "out")
    assert (by_surface.exit_code, by_surface.output) == (0, "")
    assert not list((tmp_path / "out").rglob("*.png"))
    with np.load(tmp_path / "out/parameters.npz") as parameters:
        assert "displacement" not in parameters
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["conversion"]["expression"] == "surface"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "none"), "unknown model 'none'"),
        (("--to", "generic"), "is one of model 'generic' already"),
        ((), "Missing option '--to'"),
    ],
)
def test_refused(run, anna_fitted, arguments, message):
    result = run("convert", anna_fitted / "fitkit", *arguments)
    assert result.exit_code != 0 and message in result.output
    assert not (anna_fitted / f"fitkit_{arguments[-1] if arguments else ''}").exists()


@pytest.mark.slow
def test_predictions_with_another_model(run, anna_fitted):
    result = run("predict", anna_fitted, "--model", "mine", "--overwrite", "--no-pictures")
    assert result.exit_code == 0, result.output
    metrics = json.loads((anna_fitted / "fitkit/metrics.json").read_text())
    assert metrics["model"] == "mine" and metrics["recipe"] == "predict"
    assert metrics["typical_error_mm"] == 1.5 and metrics["conversion"]["source"] == "generic"
    assert "note: converted from face model 'generic'" in result.output
    # and back: the result of a prediction is one as of a fit
    back = run("convert", anna_fitted / "fitkit", "--to", "generic", "--no-pictures")
    assert back.exit_code == 0, back.output
