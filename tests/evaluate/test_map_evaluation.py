"""Networks that give position maps, measured by what their maps show."""

from dataclasses import replace
from types import SimpleNamespace

import layouts
import numpy as np
import pytest
import small_nets
import torch
from helpers import tiny_model, write_pts

from fitkit.errors import DegenerateInputError, InputError
from fitkit.evaluate.map_surface import face_of_map, vertex_places
from fitkit.evaluate.predictions import read_prediction, write_face
from fitkit.evaluate.recipe import load_evaluate_recipe
from fitkit.evaluate.run import evaluate
from fitkit.models.io import save_model_file
from fitkit.nets import save_predictor
from fitkit.nets.pgn.network import Pgn, PgnOptions, mean_map
from fitkit.nets.predictor import Prediction
from fitkit.observe.crop import CropOptions, crop_views
from fitkit.scene.position_map import PositionMap

MODEL = tiny_model()


def said(scale=1.6, size=128):
    """An exact position map of the mean face, turned and shifted, in the crop of a photo; and the points of
    its vertices in px of the photo."""
    result = layouts.person().result
    view = result.subject.views[0]
    crops = crop_views([view.image], [None], result.landmarks.select([0]), CropOptions(1.5, 0.0, 96, 96))
    turn = torch.tensor([[0.96, 0.0, 0.28], [0.0, -1.0, 0.0], [0.28, 0.0, -0.96]])
    shift = torch.tensor([48.0, 50.0, 90.0])

    def at(points):  # head frame -> px of the crop, and depth behind
        return scale * points @ turn.T + shift

    texels = at(mean_map(MODEL, size).flatten(1).T).T.unflatten(1, (size, size))
    maps = PositionMap(texels[None])
    predicted = SimpleNamespace(
        prediction=Prediction(position_map=maps, subject=torch.zeros(1, dtype=torch.int64)),
        observations=crops,
        order=(0,),
        model=MODEL,
    )
    photo = at(MODEL.mean) / crops.scale[0] + torch.cat([crops.offset[0], torch.zeros(1)])
    return predicted, replace(result.subject, views=(view,)), photo.numpy(), turn.numpy()


def test_an_exact_map_is_the_face_in_the_photo(tmp_path):
    predicted, subject, photo, turn = said()
    face = face_of_map(predicted, subject, "a")
    marks = MODEL.landmarks.points(torch.from_numpy(photo)[None].float(), MODEL.triangles)[0].numpy()
    texel = np.ptp(photo[:, 0]) / 128
    assert np.abs(face.pixels[0] - marks[:, :2]).max() < texel
    pixels = face.camera().project(torch.from_numpy(face.posed[0].astype(np.float64))[None])[0][0].numpy()
    assert np.abs(pixels - photo[:, :2]).max() < texel
    # Millimetres of the mean face, turned as the map is.
    want = MODEL.mean.numpy() @ turn.T
    posed = face.posed[0] - face.posed[0].mean(0) - (want - want.mean(0))
    assert np.abs(posed).max() < 0.03 * np.ptp(want[:, 0])
    assert face.vertices is None and face.camera_kind == "orthographic"
    write_face(face, tmp_path)
    back = read_prediction(tmp_path, "a")
    assert np.array_equal(back.triangles, MODEL.triangles.numpy()) and np.array_equal(
        back.pixels, face.pixels
    )


def test_what_a_map_does_not_say_is_not_there():
    predicted, subject, _, _ = said()
    marks = torch.rand(1, 3, 1, 68) * 90
    places = torch.stack([torch.arange(68.0), torch.zeros(68)], -1)
    predicted.prediction = Prediction(
        position_map=PositionMap(marks, places), subject=torch.zeros(1, dtype=torch.int64)
    )
    face = face_of_map(predicted, subject, "points")
    crops = predicted.observations
    want = marks[0, :2, 0].T / crops.scale[0] + crops.offset[0]
    np.testing.assert_allclose(face.pixels[0], want.numpy(), rtol=1e-5)
    assert face.posed is None and face.triangles is None and face.outer is None
    lacking = replace(
        MODEL.landmarks, triangle=MODEL.landmarks.triangle.index_fill(0, torch.tensor([8, 30]), -1)
    )
    predicted.model = replace(MODEL, landmarks=lacking)
    face = face_of_map(predicted, subject, "points")
    assert np.isnan(face.pixels[0]).any(1).nonzero()[0].tolist() == [8, 30]
    bare = replace(MODEL, uv=None, uv_triangles=None)
    with pytest.raises(
        InputError, match="model 'tiny' has no texture coordinates, so it has no position map"
    ):
        vertex_places(bare, (8, 8))
    predicted, subject, _, _ = said()
    predicted.model = bare
    with pytest.raises(DegenerateInputError, match="has no texture coordinates"):
        face_of_map(predicted, subject, "a")


@pytest.fixture
def place(tmp_path):
    model = str(save_model_file(MODEL, tmp_path / "tiny.npz"))
    torch.manual_seed(0)
    network = Pgn(MODEL, (), PgnOptions(size=32, map=32, width=0.05, encoder="prnet", start="mean"))
    with torch.no_grad():  # coefficients far from those of the map
        network.identity_head[-1].bias.fill_(2.0)
    save_predictor(network, "pgn", tmp_path / "net.safetensors", half=False)
    person = layouts.person()
    layouts.aflw2000(tmp_path / "aflw", person, yaws=(10.0,))
    write_pts(tmp_path / "aflw" / "image00000.pts", person.result.landmarks.points[0].numpy())
    return tmp_path, model


def recipe(place, *overrides, weights="net.safetensors"):
    folder, model = place
    regressor = ("predictor=regressor", f"weights={folder / weights}", "fit.landmarks.source=files")
    return load_evaluate_recipe("aflw2000", (*regressor, *overrides), {"model": model})


def test_a_network_is_measured_by_its_map_or_by_its_face_model(place):
    folder = place[0]
    by_part = {}
    for part in ("", "state", "position_map"):
        settled = recipe(place, f"part={part}") if part else recipe(place)
        method = settled.make_method()
        method.load()
        subject, found = layouts.person().result.subject, layouts.person().result.landmarks
        outcome = method.predict("a", (subject, found), folder / (part or "default"))
        face = read_prediction(folder / (part or "default"), "a")
        by_part[part] = face
        assert outcome.usable and method.made().get("part", "") == part
    np.testing.assert_array_equal(by_part[""].pixels, by_part["state"].pixels)
    assert by_part["state"].vertices is not None and by_part["position_map"].vertices is None
    away = np.linalg.norm(by_part["state"].pixels - by_part["position_map"].pixels, axis=-1)
    assert away.mean() > 0.5  # another identity than that of the map
    assert (folder / "position_map" / "a.npz").is_file()
    assert not (folder / "position_map" / "a.parameters.npz").exists()


def test_a_part_that_is_not_there_or_of_no_network(place, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="gives state, position_map; part=depth cannot be measured, leave"):
        evaluate(recipe(place, "part=depth"), tmp_path / "aflw", tmp_path / "out")
    with pytest.raises(
        InputError, match="weights, repeat, part and pose are for predictor=regressor, got predict"
    ):
        load_evaluate_recipe("aflw2000", ["part=position_map"])
    with pytest.raises(InputError, match="part: expected one of , state, depth, position_map; got 'map'"):
        recipe(place, "part=map")
    small_nets.registered(monkeypatch)
    save_predictor(small_nets.SmallPositions(), "small_positions", tmp_path / "map.safetensors", half=False)
    report = evaluate(recipe(place, weights="map.safetensors"), tmp_path / "aflw", tmp_path / "maps")
    row = report["rows"][0]  # of a network that gives a map alone
    assert (row["status"], row["error"]) == ("ok", "") and row["nme_2d"] > 1
    stored = read_prediction(tmp_path / "maps" / "predictions", row["id"])
    assert stored.vertices is None and stored.posed.shape == (1, MODEL.num_vertices, 3)
