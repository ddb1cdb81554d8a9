"""A result folder read back."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_model, tiny_result

import fitkit
from fitkit.errors import InputError
from fitkit.fitting.predict import predict
from fitkit.fitting.run import fit
from fitkit.io.mesh_files import read_vertex_numbers


@pytest.fixture(scope="module")
def fitted(_rendered, tmp_path_factory):
    """A fit in its default place: the folder of the photos, and the result."""
    folder = shutil.copytree(_rendered, tmp_path_factory.mktemp("fitted") / "anna")
    (folder / "view0.pts").unlink()  # a doubt or a note more does no harm
    result = fit(folder, recipe="landmarks", overrides=["landmarks.source=builtin"])
    result.save(folder / "fitkit")
    return folder, result


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_what_is_read_back_is_the_result_and_saves_the_same_files(fitted, tmp_path):
    folder, result = fitted
    again = fitkit.load_result(folder / "fitkit")
    assert torch.equal(again.neutral, result.neutral) and torch.equal(again.vertices, result.vertices)
    assert torch.equal(again.vertex_sigma, result.vertex_sigma)
    assert torch.equal(again.identity_covariance, result.identity_covariance)
    assert again.report == result.report and again.metrics == result.metrics
    assert (again.status, again.warnings, again.notes) == (result.status, result.warnings, result.notes)
    assert again.recipe == result.recipe and again.camera_source == result.camera_source
    for name in ("points", "sigma"):
        mine, theirs = getattr(again.landmarks, name), getattr(result.landmarks, name)
        assert torch.equal(mine[result.landmarks.valid], theirs[result.landmarks.valid])
    assert torch.equal(again.landmarks.valid, result.landmarks.valid)
    for view, other in zip(again.subject.views, result.subject.views):
        assert view.name == other.name and np.array_equal(view.image, other.image)
    again.save(tmp_path / "again")
    assert files(tmp_path / "again") == files(folder / "fitkit")


def test_a_prediction_is_read_back(anna):
    result = predict(anna)
    result.save(anna / "fitkit", light=True)
    again = fitkit.load_result(anna / "fitkit")
    assert again.report == result.report and torch.equal(again.vertices, result.vertices)
    assert again.recipe["name"] == "predict" and again.vertex_sigma is None and result.vertex_sigma is None


def test_a_result_without_its_photos(fitted, tmp_path):
    folder, result = fitted
    shutil.copytree(folder / "fitkit", tmp_path / "moved")
    again = fitkit.load_result(tmp_path / "moved")
    assert torch.equal(again.vertices, result.vertices) and again.subject.views[0].size == (192, 192)
    with pytest.raises(
        InputError,
        match="view view0: the photo of .*moved is not there; give the folder of the photos .--photos",
    ):
        _ = again.subject.views[0].image
    again.save(tmp_path / "saved")
    lacking = json.loads((tmp_path / "saved" / "metrics.json").read_text())["not_written"]
    assert any(
        line.startswith("overlay/view0.png could not be computed (view view0: the photo of")
        for line in lacking
    )
    kept, before = files(tmp_path / "saved"), files(folder / "fitkit")
    assert (
        kept["subject.ply"] == before["subject.ply"] and kept["views/view1.ply"] == before["views/view1.ply"]
    )
    with pytest.raises(
        InputError, match="already exists, and without the photo of view0 its texture and overlays would be"
    ):
        again.save(tmp_path / "moved", overwrite=True)
    assert files(tmp_path / "moved") == before
    found = fitkit.load_result(tmp_path / "moved", photos=folder)
    assert np.array_equal(found.subject.views[2].image, result.subject.views[2].image)


def test_photos_that_are_not_those_of_the_fit(fitted, anna, tmp_path):
    folder, _ = fitted
    (anna / "view1.png").unlink()
    with pytest.raises(
        InputError, match=r"anna: expected the photo 'view1' of .*fitkit, 192 x 192 px; it has none"
    ):
        fitkit.load_result(folder / "fitkit", photos=anna)
    other = tiny_result(size=64)
    views = tuple(v.replace(name=f"view{i}") for i, v in enumerate(other.subject.views))
    with pytest.raises(InputError, match="tiny: expected the photo 'view0' .* 192 px; there it has 64 x 64"):
        fitkit.load_result(folder / "fitkit", photos=replace(other.subject, views=views))
    shutil.copytree(folder / "fitkit", anna / "fitkit")
    (anna / "view0.png").write_bytes(b"no picture")
    names = [v.name for v in fitkit.load_result(anna / "fitkit").subject.views]
    assert names == ["view0", "view1", "view2"]  # photos that cannot be read do no harm


def test_light_results_and_models_that_only_python_knows(tmp_path):
    result = tiny_result(size=64)
    path = result.save(tmp_path / "tiny", light=True)
    with pytest.raises(InputError, match="tiny: .*or give the face model of the fit as `model`"):
        fitkit.load_result(path)
    again = fitkit.load_result(path, model=result.model)
    assert again.vertex_sigma is None and torch.equal(again.vertices, result.vertices)
    with pytest.raises(
        InputError, match="parameters.npz: parameters: expected face model 'tiny' with 8 identity"
    ):
        fitkit.load_result(path, model=tiny_model(num_identity=5))


def test_results_of_earlier_versions_have_no_landmarks(tmp_path):
    result = tiny_result(size=64)
    path = result.save(tmp_path / "tiny", light=True)
    with np.load(path / "parameters.npz") as file:
        old = {name: file[name] for name in file.files if name != "landmarks"}
    np.savez(path / "parameters.npz", **old)
    marks = fitkit.load_result(path, model=result.model).landmarks
    assert marks.points.shape == (3, 68, 2) and not marks.valid.any() and marks.points.isnan().all()


def test_folders_that_are_no_results(fitted, tmp_path):
    folder, _ = fitted
    with pytest.raises(
        InputError,
        match=r"expected a result folder, with metrics.json and parameters.npz; did you mean .*anna/fitkit\?",
    ):
        fitkit.load_result(folder)
    with pytest.raises(InputError, match="expected a result folder, with metrics.json and parameters.npz$"):
        fitkit.load_result(tmp_path)
    with pytest.raises(InputError, match="load_result: expected the path of a result folder, got int"):
        fitkit.load_result(3)
    with pytest.raises(InputError, match="model: expected a FaceModel, got str"):
        fitkit.load_result(folder / "fitkit", model="generic")


def test_files_that_were_changed(fitted, tmp_path):
    folder, _ = fitted
    broken = shutil.copytree(folder / "fitkit", tmp_path / "broken")
    metrics = json.loads((broken / "metrics.json").read_text())

    def written(table):
        (broken / "metrics.json").write_text(json.dumps(table))

    written(metrics | {"views": metrics["views"][1:]})
    with pytest.raises(
        InputError,
        match="metrics.json: expected the views of the parameters.npz beside it, view0, view1, view2; got "
        "view1, view2",
    ):
        fitkit.load_result(broken)
    written(metrics | {"status": "splendid"})
    with pytest.raises(InputError, match="metrics.json: status: expected one of ok, doubtful, failed"):
        fitkit.load_result(broken)
    written([])
    with pytest.raises(InputError, match="metrics.json: expected a mapping, got"):
        fitkit.load_result(broken)
    (broken / "metrics.json").write_bytes(b"\xff{")
    with pytest.raises(InputError, match="metrics.json: not readable as the metrics of a fit"):
        fitkit.load_result(broken)
    written(metrics)
    shutil.copy(tiny_result(size=32).save(tmp_path / "tiny") / "subject.ply", broken / "subject.ply")
    with pytest.raises(
        InputError, match="subject.ply: expected .* vertices, as face model 'generic' has, got 315"
    ):
        fitkit.load_result(broken)
    (broken / "subject.ply").write_bytes(b"ply\n")
    with pytest.raises(InputError, match="subject.ply: not a readable mesh"):
        fitkit.load_result(broken)
    (broken / "subject.ply").unlink()
    assert fitkit.load_result(broken).vertex_sigma is None


def test_numbers_of_vertices(fitted):
    folder, result = fitted
    mesh = folder / "fitkit" / "subject.ply"
    assert np.array_equal(
        read_vertex_numbers(mesh, "sigma_mm").astype(np.float32), result.vertex_sigma.numpy()
    )
    assert read_vertex_numbers(mesh, "unknown") is None
