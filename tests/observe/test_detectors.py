import numpy as np
import pytest
import torch

from fitkit.errors import InputError, MissingWeightsError
from fitkit.io.subject import Subject, View
from fitkit.observe.landmarks import detectors
from fitkit.observe.landmarks.detectors import detect_landmarks, detect_view, make_detector, usable_views
from fitkit.observe.landmarks.types import Landmarks

POINTS = np.random.default_rng(0).uniform(10, 60, (68, 2))


class BrightestPixel:
    """Puts all 68 points on the brightest pixel; a black image has no face."""

    name, scheme, jaw = "brightest", "ibug68", "outline"

    def __init__(self, device="cpu"):
        self.seen = []

    def detect(self, images):
        self.seen.append(tuple(images.shape))
        B, _, H, W = images.shape
        value, index = images.sum(1).flatten(1).max(1)
        points = torch.stack([index % W, index // W], -1).float()[:, None].expand(B, 68, 2).clone()
        valid = (value > 0)[:, None].expand(B, 68)
        points[~valid] = torch.nan
        return Landmarks(points, torch.full((B, 68), torch.nan), valid, valid.float(), self.jaw)


@pytest.fixture
def brightest(monkeypatch):
    monkeypatch.setitem(detectors.DETECTORS, "brightest", BrightestPixel)
    monkeypatch.setattr(detectors, "AUTO", ("brightest",))


def view(name, landmarks=None, spot=(30, 20), size=(80, 70)):
    image = np.zeros((size[1], size[0], 3), np.uint8)
    if spot:
        image[spot[1], spot[0]] = 255
    if landmarks is not None:
        landmarks = np.column_stack([landmarks, np.full(68, 0.5)])
    return View(name, image, landmarks=landmarks, landmark_source="file" if landmarks is not None else "")


def subject(*views):
    return Subject("s", views)


def test_files_come_first_and_a_detector_does_the_rest(brightest):
    points = POINTS.copy()
    points[7] = np.nan
    calls = []
    landmarks, sources = detect_landmarks(subject(view("a", points), view("b"), view("c", spot=None)), progress=lambda v: calls.append(v.name))
    assert sources == ("file", "brightest", "brightest") and calls == ["a", "b", "c"]
    assert landmarks.points.shape == (3, 68, 2) and landmarks.points.dtype == torch.float32
    np.testing.assert_allclose(landmarks.points[0], points, rtol=1e-6)
    assert landmarks.valid.sum(1).tolist() == [67, 68, 0] and not landmarks.valid[0, 7]
    assert landmarks.confidence[0, 0] == 0.5 and landmarks.sigma.isnan().all()
    assert landmarks.points[1, 0].tolist() == [30, 20]
    assert landmarks.jaw == "auto"


def test_methods(brightest):
    both = subject(view("a", POINTS), view("b"))
    landmarks, sources = detect_landmarks(both, "files")
    assert sources == ("file", "none") and landmarks.valid.sum(1).tolist() == [68, 0] and landmarks.jaw == "auto"
    landmarks, sources = detect_landmarks(both, "brightest")
    assert sources == ("brightest",) * 2 and landmarks.jaw == "outline"
    assert detect_landmarks(subject(view("a"), view("b", spot=None)))[0].jaw == "outline"


def test_no_detector_is_made_when_all_views_have_landmarks(monkeypatch):
    monkeypatch.setattr(detectors, "DETECTORS", {})
    assert detect_landmarks(subject(view("a", POINTS)))[1] == ("file",)


def test_large_images_are_reduced_and_points_scaled_back():
    detector = BrightestPixel()
    image = np.zeros((2000, 2560, 3), np.uint8)
    image[600:602, 800:802] = 255  # one pixel of the reduced image
    found = detect_view(detector, image)
    assert detector.seen == [(1, 3, 1000, 1280)]
    assert found.points[0, 0].tolist() == [800.5, 600.5]


def test_unknown_method():
    with pytest.raises(InputError, match="unknown landmark detector 'fann'; did you mean 'fan'\\? known: auto, files, fan"):
        make_detector("fann")


def test_missing_weights_name_the_views(monkeypatch):
    def missing(device):
        raise MissingWeightsError("get the weights")

    monkeypatch.setattr(detectors, "DETECTORS", {"a": missing, "b": BrightestPixel, "c": missing})
    monkeypatch.setattr(detectors, "AUTO", ("a", "b"))
    assert make_detector("auto").name == "brightest"
    monkeypatch.setattr(detectors, "AUTO", ("a", "c"))
    with pytest.raises(MissingWeightsError, match="no landmarks beside b, c: get the weights"):
        detect_landmarks(subject(view("a", POINTS), view("b"), view("c")))


def test_views_without_a_face_are_left_out(brightest):
    few = POINTS.copy()
    few[7:] = np.nan
    s = subject(view("a", POINTS), view("b", spot=None), view("c", few), view("d"))
    kept, landmarks, notes = usable_views(s, detect_landmarks(s)[0])
    assert [v.name for v in kept.views] == ["a", "d"] and landmarks.points.shape == (2, 68, 2) and landmarks.valid.all()
    assert notes == ("left out: no face found in b", "left out: c has only 7 of 68 landmarks, at least 8 are needed")


def test_no_view_remains(brightest):
    s = subject(view("a", spot=None))
    with pytest.raises(InputError, match="no view can be used: no face found in a; give a photo that shows the face"):
        usable_views(s, detect_landmarks(s)[0])
