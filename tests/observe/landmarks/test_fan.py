import socket
import sys
import types

import numpy as np
import pytest
import torch

from fitkit.errors import InputError, MissingWeightsError
from fitkit.observe.landmarks.fan import (
    TIMEOUT,
    FanDetector,
    load_networks,
    peak_sigma,
    weight_files,
    weights_folder,
    weights_here,
)

BIG, SMALL = [10.0, 10, 60, 60, 0.9], [70.0, 5, 80, 15, 0.99]


def stand_in(boxes=(), scores=None, error=None):
    """A `face_alignment` module, interface of version 1.5: faces at `boxes`, points at their left side; or
    `error`."""

    class FaceAlignment:
        options = None

        def __init__(
            self, landmarks_type, device="cuda", flip_input=False, face_detector="sfd", compile=True
        ):
            FaceAlignment.options = {
                "type": landmarks_type,
                "device": device,
                "flip_input": flip_input,
                "compile": compile,
                "timeout": socket.getdefaulttimeout(),
            }
            if error:
                raise error

            self.face_detector = types.SimpleNamespace(
                detect_from_image=lambda image: [] if image.max() == 0 else boxes
            )

        def get_landmarks_from_image(
            self, image, detected_faces=None, return_bboxes=False, return_landmark_score=False
        ):
            assert (
                image.dtype == np.uint8
                and image.shape[2] == 3
                and return_landmark_score
                and not return_bboxes
            )
            (box,) = detected_faces
            return [np.full((68, 2), box[0], np.float32)], [scores], None

    module = types.ModuleType("face_alignment")
    module.FaceAlignment = FaceAlignment
    module.LandmarksType = types.SimpleNamespace(TWO_D=1, TWO_HALF_D=2)
    return module


def test_largest_face_is_taken(monkeypatch):
    module = stand_in([np.array(SMALL), BIG], np.linspace(0.2, 2.4, 68, dtype=np.float32))
    monkeypatch.setitem(sys.modules, "face_alignment", module)
    detector = FanDetector("cpu")
    assert detector.scheme == "ibug68" and detector.name == "fan"
    options = module.FaceAlignment.options
    assert (
        options["compile"] is False
        and options["device"] == "cpu"
        and options["type"] == 1
        and options["timeout"] == TIMEOUT
    )
    assert socket.getdefaulttimeout() is None
    found = detector.detect(torch.ones(2, 3, 50, 90) * torch.tensor([1.0, 0.0])[:, None, None, None])
    assert (
        found.points.shape == (2, 68, 2)
        and (found.points[0] == BIG[0]).all()
        and found.points[1].isnan().all()
    )
    assert found.valid.tolist() == [[True] * 68, [False] * 68] and found.jaw == "outline"
    # Scores are sums over the image and its mirror image.
    assert found.confidence[0, 0] == pytest.approx(0.1) and found.confidence[0].max() == 1
    assert found.sigma[0].diff().max() <= 0 and found.sigma[1].isnan().all()


def test_all_faces_of_a_large_photo(monkeypatch):
    bystander = [100.0, 0, 105, 5, 0.9]
    monkeypatch.setitem(
        sys.modules,
        "face_alignment",
        stand_in([bystander, [70.0, 5, 90, 25, 0.9], BIG], np.full(68, 1.0, np.float32)),
    )
    photo = np.ones((1000, 2560, 3), np.uint8)  # reduced by 2
    found = FanDetector(variant="fan3d").detect_all(photo)
    assert [f.points[0, 0].tolist() for f in found] == [[20.5, 20.5], [140.5, 140.5]] and found[
        0
    ].jaw == "surface"
    # A pixel of the heat map is (width + height) * 200 / 195 / 64 px of the reduced photo; a peak of 1/2
    # means t = 1.75 px.
    np.testing.assert_allclose(
        found[0].sigma[0].numpy(), np.hypot(1.75, 0.4) * 100 * 200 / 195 / 64 * 2, rtol=1e-5
    )


def test_sigma_from_the_peak():
    sigma = peak_sigma(np.array([1.0, 0.8, 0.5, 0.2, 0.0]))
    assert sigma[0] == 0.4 and (np.diff(sigma) > 0).all() and np.isfinite(sigma).all()
    # The mean of Gaussian targets around places that scatter by s peaks at t^2 / (t^2 + s^2).
    places = np.random.default_rng(0).normal(0, 2.0, (200_000, 2))
    peak = np.exp(-(places**2).sum(1) / (2 * 1.75**2)).mean()
    assert peak_sigma(np.array([peak]))[0] == pytest.approx(np.hypot(2.0, 0.4), rel=0.02)


def test_unknown_variant():
    with pytest.raises(InputError, match="variant must be one of fan, fan3d, got 'fan4d'"):
        FanDetector(variant="fan4d")


def test_weights_that_are_here(monkeypatch, tmp_path):
    pytest.importorskip("face_alignment")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert not weights_here()
    weights_folder().mkdir(parents=True)
    for name in weight_files("fan3d"):
        assert not weights_here("fan3d")
        (weights_folder() / name).touch()
    assert weights_here("fan3d") and not weights_here("fan")
    (weights_folder() / "2DFAN4-of-another-version.zip").touch()
    assert not weights_here("fan")


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 5)), [BIG]])
def test_no_face(monkeypatch, boxes):
    monkeypatch.setitem(sys.modules, "face_alignment", stand_in(boxes, np.full(68, 0.05, np.float32)))
    found = FanDetector().detect(torch.ones(1, 3, 50, 90))
    assert not found.valid.any() and found.points.isnan().all() and (found.confidence == 0).all()


@pytest.mark.parametrize(
    "error, message",
    [
        (
            OSError("no route"),
            "cannot be downloaded .no route.; on a machine with network run 'fitkit model fetch "
            "fan'.*IMAGE.pts",
        ),
        (TimeoutError("timed out"), "cannot be downloaded .timed out."),
        (
            RuntimeError("PytorchStreamReader failed\nmore"),
            "is damaged .PytorchStreamReader failed.; delete it and run",
        ),
        (EOFError("Ran out of input"), "is damaged"),
    ],
)
def test_missing_or_damaged_weights(monkeypatch, error, message):
    monkeypatch.setitem(sys.modules, "face_alignment", stand_in(error=error))
    with pytest.raises(MissingWeightsError, match=message) as caught:
        FanDetector()
    assert str(weights_folder()) in str(caught.value)
    assert socket.getdefaulttimeout() is None


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "face_alignment", None)
    message = (
        "needs the package face-alignment.*pip install face-alignment, use --landmarks builtin, or "
        "put the 68 points"
    )
    with pytest.raises(MissingWeightsError, match=message):
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
