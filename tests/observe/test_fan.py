import socket
import sys
import types

import numpy as np
import pytest
import torch

from fitkit.errors import MissingWeightsError
from fitkit.observe.landmarks.fan import TIMEOUT, FanDetector, load_networks, weights_folder

BIG, SMALL = [10.0, 10, 60, 60, 0.9], [70.0, 5, 80, 15, 0.99]


def stand_in(boxes=(), scores=None, error=None):
    """A `face_alignment` module, interface of version 1.5: faces at `boxes`, points at their left side; or `error`."""

    class FaceAlignment:
        options = None

        def __init__(self, landmarks_type, device="cuda", flip_input=False, face_detector="sfd", compile=True):
            FaceAlignment.options = {"type": landmarks_type, "device": device, "flip_input": flip_input, "compile": compile,
                                     "timeout": socket.getdefaulttimeout()}
            if error:
                raise error

            self.face_detector = types.SimpleNamespace(detect_from_image=lambda image: [] if image.max() == 0 else boxes)

        def get_landmarks_from_image(self, image, detected_faces=None, return_bboxes=False, return_landmark_score=False):
            assert image.dtype == np.uint8 and image.shape[2] == 3 and return_landmark_score and not return_bboxes
            (box,) = detected_faces
            return [np.full((68, 2), box[0], np.float32)], [scores], None

    module = types.ModuleType("face_alignment")
    module.FaceAlignment = FaceAlignment
    module.LandmarksType = types.SimpleNamespace(TWO_D=1)
    return module


def test_largest_face_is_taken(monkeypatch):
    module = stand_in([np.array(SMALL), BIG], np.linspace(0.2, 2.4, 68, dtype=np.float32))
    monkeypatch.setitem(sys.modules, "face_alignment", module)
    detector = FanDetector("cpu")
    assert detector.scheme == "ibug68" and detector.name == "fan"
    options = module.FaceAlignment.options
    assert options["compile"] is False and options["device"] == "cpu" and options["type"] == 1 and options["timeout"] == TIMEOUT
    assert socket.getdefaulttimeout() is None
    found = detector.detect(torch.ones(2, 3, 50, 90) * torch.tensor([1.0, 0.0])[:, None, None, None])
    assert found.points.shape == (2, 68, 2) and (found.points[0] == BIG[0]).all() and found.points[1].isnan().all()
    assert found.valid.tolist() == [[True] * 68, [False] * 68] and found.jaw == "outline"
    # Scores are sums over the image and its mirror image.
    assert found.confidence[0, 0] == pytest.approx(0.1) and found.confidence[0].max() == 1 and found.sigma.isnan().all()


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 5)), [BIG]])
def test_no_face(monkeypatch, boxes):
    monkeypatch.setitem(sys.modules, "face_alignment", stand_in(boxes, np.full(68, 0.05, np.float32)))
    found = FanDetector().detect(torch.ones(1, 3, 50, 90))
    assert not found.valid.any() and found.points.isnan().all() and (found.confidence == 0).all()


@pytest.mark.parametrize("error, message", [
    (OSError("no route"), "cannot be downloaded .no route.; on a machine with network run 'fitkit model fetch fan'.*IMAGE.pts"),
    (TimeoutError("timed out"), "cannot be downloaded .timed out."),
    (RuntimeError("PytorchStreamReader failed\nmore"), "is damaged .PytorchStreamReader failed.; delete it and run"),
    (EOFError("Ran out of input"), "is damaged"),
])
def test_missing_or_damaged_weights(monkeypatch, error, message):
    monkeypatch.setitem(sys.modules, "face_alignment", stand_in(error=error))
    with pytest.raises(MissingWeightsError, match=message) as caught:
        FanDetector()
    assert str(weights_folder()) in str(caught.value)
    assert socket.getdefaulttimeout() is None


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "face_alignment", None)
    with pytest.raises(MissingWeightsError, match="needs the package face-alignment.*pip install face-alignment, or put the 68 points"):
        load_networks()


def test_the_real_package_without_network(monkeypatch, tmp_path):
    pytest.importorskip("face_alignment")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # an empty cache

    def no_network(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(MissingWeightsError, match="Name or service not known.*fitkit model fetch fan"):
        load_networks()


def test_the_real_package_with_a_damaged_file(monkeypatch, tmp_path):
    pytest.importorskip("face_alignment")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights_folder().mkdir(parents=True)
    (weights_folder() / "s3fd-619a316812.pth").write_bytes(b"cut off")
    with pytest.raises(MissingWeightsError, match="is damaged"):
        load_networks()
