"""Networks that give depth instead of a face model's coefficients."""

from dataclasses import replace
from types import SimpleNamespace

import layouts
import numpy as np
import pytest
import small_nets
import torch
from helpers import tiny_model

from fitkit.errors import InputError
from fitkit.evaluate.depth_surface import face_of_depth
from fitkit.evaluate.distances import scan_to_surface
from fitkit.evaluate.predictions import read_prediction, write_face
from fitkit.evaluate.recipe import load_evaluate_recipe
from fitkit.evaluate.run import evaluate
from fitkit.models.io import save_model_file
from fitkit.nets import save_predictor
from fitkit.nets.predictor import Prediction
from fitkit.observe.crop import CropOptions, crop_views
from fitkit.render.rasterizer import rasterize
from fitkit.scene.camera import Camera
from fitkit.scene.depth_mesh import depth_mesh
from fitkit.scene.depth_state import DepthState


def camera(kind="perspective", size=20):
    return Camera(torch.tensor([30.0]), torch.tensor([[(size - 1) / 2] * 2]), torch.ones(1), kind)


@pytest.mark.parametrize("kind", ["perspective", "orthographic"])
def test_a_plane_becomes_two_triangles_for_four_pixels_that_face_the_camera(kind):
    depth = torch.full((20, 20), 500.0)
    vertices, triangles = depth_mesh(depth, camera(kind))
    assert len(triangles) == 2 * 19 * 19 and np.allclose(vertices[:, 2], 500)
    corners = vertices[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (normals[:, 2] < 0).all() and np.allclose(normals[:, :2], 0)  # z points away from the camera
    back = camera(kind).project(torch.from_numpy(vertices).float()[None])[0][0].reshape(20, 20, 2)
    torch.testing.assert_close(back[3, 7], torch.tensor([7.0, 3.0]))


def test_nothing_is_spanned_over_silhouettes_and_holes():
    depth = torch.full((20, 20), 500.0)
    depth[:, 10:] = 600.0  # farther than a surface can fall within a pixel
    depth[5, 5] = 0.0
    _, triangles = depth_mesh(depth, camera())
    assert len(triangles) == 2 * 19 * 18 - 6
    assert (
        5 * 20 + 5 not in triangles
        and not ((triangles % 20 == 9).any(1) & (triangles % 20 == 10).any(1)).any()
    )


@pytest.fixture
def predicted():
    """The exact depth of a tiny person's first photo in its crop, the subject, and its landmarks."""
    result = layouts.person(views=1, size=320).result
    found = result.landmarks
    crops = crop_views([result.subject.views[0].image], [None], found, CropOptions(1.5, 0.0, 256, 256))
    seen = result.state.camera.scaled(crops.scale, crops.offset)
    posed = result.state.pose.apply(result.vertices)
    depth = rasterize(seen.clip(posed), result.model.triangles, (256, 256)).depth
    state = DepthState(torch.nan_to_num(depth, posinf=0.0), None, seen, torch.zeros(1, dtype=torch.long))
    return SimpleNamespace(prediction=Prediction(depth=state), observations=crops, order=(0,)), result


def test_an_exact_depth_is_the_posed_face(predicted, tmp_path):
    said, result = predicted
    face = face_of_depth(said, result.subject, result.landmarks, "a")
    posed = result.state.pose.apply(result.vertices)[0].double().numpy()
    used = np.unique(face.triangles)
    away = scan_to_surface(face.posed[0][used], posed, result.model.triangles.numpy())
    assert np.median(away) < 1e-3 and face.vertices is None
    marks = result.model.landmarks.points(torch.from_numpy(posed)[None].float(), result.model.triangles)[
        0
    ].numpy()
    off = np.linalg.norm(face.posed_landmarks[0] - marks, axis=1)
    assert np.median(off) < 2.0  # a pixel is a millimetre; some points lie behind the silhouette
    np.testing.assert_allclose(face.focal, result.state.camera.focal.numpy(), rtol=1e-5)
    np.testing.assert_allclose(face.principal, result.state.camera.principal.numpy(), atol=1e-3)
    write_face(face, tmp_path)
    back = read_prediction(tmp_path, "a")
    assert back.vertices is None and np.array_equal(back.triangles, face.triangles)
    np.testing.assert_allclose(back.posed, face.posed)
    np.savez(tmp_path / "a.npz", posed=face.posed, triangles=np.full((4, 3), 10**6))
    with pytest.raises(InputError, match="a.npz: triangles: expected indices in 0"):
        read_prediction(tmp_path, "a")


def test_an_empty_depth_map_is_refused(predicted):
    said, result = predicted
    state = replace(said.prediction.depth, depth=torch.zeros(1, 256, 256))
    said.prediction = Prediction(depth=state)
    with pytest.raises(InputError, match="a: the predicted depth map is empty"):
        face_of_depth(said, result.subject, result.landmarks, "a")


def recipe(name, network, kind, tmp_path, *overrides):
    torch.manual_seed(0)
    save_predictor(network, kind, tmp_path / "net.safetensors", half=False)
    regressor = ("predictor=regressor", f"weights={tmp_path / 'net.safetensors'}", "pictures=0")
    return load_evaluate_recipe(
        name, (*regressor, *overrides), {"model": str(save_model_file(tiny_model(), tmp_path / "tiny.npz"))}
    )


def test_a_depth_network_where_surfaces_are_compared_and_where_not(tmp_path, monkeypatch):
    small_nets.registered(monkeypatch)
    person = layouts.person()
    settled = recipe("florence_renders", small_nets.SmallDepth(), "small_depth", tmp_path)
    report = evaluate(settled, layouts.florence_renders(tmp_path / "scans", person), tmp_path / "out")
    assert [r["error"] for r in report["rows"]] == [""] * len(report["rows"])
    assert report["summary"][0]["nme_aligned"]["mean"] > 0
    settled = recipe("now", small_nets.SmallDepth(), "small_depth", tmp_path)
    report = evaluate(settled, layouts.now(tmp_path / "now", person), tmp_path / "now_out")
    assert all("the prediction has no vertices and no points" in r["error"] for r in report["rows"])


def test_a_network_that_sees_no_surface_is_refused(tmp_path, monkeypatch):
    small_nets.registered(monkeypatch)
    settled = recipe("pixel_face", small_nets.SmallParser(), "small_parser", tmp_path)
    folder = layouts.pixel_face(tmp_path / "scans", layouts.person())
    with pytest.raises(
        InputError, match="gives parse; an evaluation needs a network that gives a state, a depth or"
    ):
        evaluate(settled, folder, tmp_path / "out")
    assert not (tmp_path / "out" / "predictions").exists()
