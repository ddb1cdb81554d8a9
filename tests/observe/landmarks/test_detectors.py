import cv2
import numpy as np
import pytest
import torch

from fitkit.errors import InputError, MissingWeightsError
from fitkit.io.progress import Progress
from fitkit.io.subject import Subject, View
from fitkit.observe.landmarks import detectors, fan
from fitkit.observe.landmarks.detectors import (
    detect_landmarks,
    detect_view,
    faces_of,
    make_detector,
    usable_views,
)
from fitkit.observe.landmarks.types import EveryFaceDetector, Landmarks

POINTS = np.random.default_rng(0).uniform(10, 60, (68, 2))


class WhiteSquares(EveryFaceDetector):
    """Every white square of a dark image is a face, its points spread over it as POINTS are."""

    name, scheme, jaw = "white", "ibug68", "outline"

    def __init__(self, device="cpu"):
        pass

    def detect_all(self, image):
        count, _, boxes, _ = cv2.connectedComponentsWithStats((image.min(-1) > 200).astype(np.uint8))
        return [self.face(boxes[i]) for i in range(1, count)]

    def face(self, box):
        low, high = POINTS.min(0), POINTS.max(0)
        points = torch.from_numpy((POINTS - low) / (high - low) * (box[2] - 1) + box[:2]).float()[None]
        return Landmarks(
            points,
            torch.full((1, 68), torch.nan),
            torch.ones(1, 68, dtype=torch.bool),
            torch.ones(1, 68),
            self.jaw,
        )


@pytest.fixture
def white(monkeypatch):
    monkeypatch.setitem(detectors.DETECTORS, "white", WhiteSquares)
    monkeypatch.setattr(detectors, "AUTO", {"white": lambda: True})


def view(name, landmarks=None, spot=(30, 20), size=(80, 70)):
    image = np.zeros((size[1], size[0], 3), np.uint8)
    if spot:
        image[spot[1] : spot[1] + 21, spot[0] : spot[0] + 21] = 255
    if landmarks is not None:
        landmarks = np.column_stack([landmarks, np.full(68, 0.5)])
    return View(name, image, landmarks=landmarks, landmark_source="file" if landmarks is not None else "")


def subject(*views):
    return Subject("s", views)


def test_files_come_first_and_a_detector_does_the_rest(white):
    points = POINTS.copy()
    points[7] = np.nan
    calls = []
    s = subject(view("a", points), view("b"), view("c", spot=None))
    landmarks, sources = detect_landmarks(s, progress=Progress(lambda step: calls.append(step.item.name)))
    assert sources == ("file", "white", "white") and calls == ["a", "b", "c"]
    assert landmarks.points.shape == (3, 68, 2) and landmarks.points.dtype == torch.float32
    np.testing.assert_allclose(landmarks.points[0], points, rtol=1e-6)
    assert landmarks.valid.sum(1).tolist() == [67, 68, 0] and not landmarks.valid[0, 7]
    assert landmarks.confidence[0, 0] == 0.5 and landmarks.sigma.isnan().all()
    assert landmarks.points[1].amin(0).tolist() == [30, 20] and landmarks.points[1].amax(0).tolist() == [
        50,
        40,
    ]
    assert landmarks.jaw == "auto"
    assert landmarks.notes == ("landmarks: found by detector 'white' in 2 photos, given for 1",)


def test_methods(white):
    both = subject(view("a", POINTS), view("b"))
    landmarks, sources = detect_landmarks(both, "files")
    assert (
        sources == ("file", "none") and landmarks.valid.sum(1).tolist() == [68, 0] and landmarks.jaw == "auto"
    )
    landmarks, sources = detect_landmarks(both, "white")
    assert sources == ("white",) * 2 and landmarks.jaw == "outline"
    assert detect_landmarks(subject(view("a"), view("b", spot=None)))[0].jaw == "outline"


def test_no_detector_is_made_when_all_views_have_landmarks(monkeypatch):
    monkeypatch.setattr(detectors, "DETECTORS", {})
    assert detect_landmarks(subject(view("a", POINTS)))[1] == ("file",)


def test_the_largest_face_and_none():
    image = np.zeros((200, 300, 3), np.uint8)
    image[10:31, 20:41], image[50:111, 150:211], image[190:194, 5:9] = 255, 255, 255
    faces = faces_of(WhiteSquares(), image)
    assert [int(f.points[0, :, 0].min()) for f in faces] == [150, 20]  # the third one is far smaller
    found = detect_view(WhiteSquares(), image)
    assert found.points.shape == (1, 68, 2) and found.points[0].amin(0).tolist() == [150, 50]
    nothing = detect_view(WhiteSquares(), np.zeros_like(image))
    assert not nothing.valid.any() and nothing.points.isnan().all() and nothing.jaw == "outline"


def test_batches():
    images = torch.zeros(2, 3, 60, 80)
    images[1, :, 10:31, 20:41] = 1
    found = WhiteSquares().detect(images)
    assert (
        found.points.shape == (2, 68, 2) and found.valid.sum(1).tolist() == [0, 68] and found.jaw == "outline"
    )


def test_several_faces_in_a_photo(white, monkeypatch):
    s = subject(view("a"), view("b"), view("c", POINTS, spot=(10, 30)))
    s.views[1].image[0:15, 60:75] = 255
    landmarks, sources = detect_landmarks(s)
    assert sources == ("white", "white", "file") and landmarks.points[1].amin(0).tolist() == [30, 20]
    assert landmarks.notes == (
        "landmarks: found by detector 'white' in 2 photos, given for 1",
        "b: 2 faces; the largest was taken",
    )
    asked = []

    def second(faces, others):
        asked.append((len(faces), len(others)))
        return (1, True) if len(faces) > 1 else (0, False)

    monkeypatch.setattr(detectors, "choose_face", second)
    landmarks, _ = detect_landmarks(s)
    assert landmarks.points[1].amin(0).tolist() == [60, 0] and asked == [(1, 2), (2, 2), (1, 2)]
    assert landmarks.notes[1] == "b: 2 faces; the one most like the other photos was taken"
    assert usable_views(s, landmarks)[2] == landmarks.notes and usable_views(s, landmarks)[1].notes == ()


def test_unknown_method():
    known = "auto, files, builtin, builtin3d, fan, fan3d, mediapipe, onnx:PATH"
    with pytest.raises(
        InputError, match=f"unknown landmark detector 'fann'; did you mean 'fan'\\? known: {known}"
    ):
        make_detector("fann")


def test_missing_weights_name_the_views(monkeypatch, caplog):
    def missing(device):
        raise MissingWeightsError("get the weights")

    monkeypatch.setattr(detectors, "DETECTORS", {"a": missing, "b": WhiteSquares, "c": missing})
    monkeypatch.setattr(detectors, "AUTO", {"a": lambda: True, "b": lambda: True})
    assert make_detector("auto").name == "white" and "get the weights" in caplog.text
    monkeypatch.setattr(detectors, "AUTO", {"a": lambda: True, "c": lambda: True})
    with pytest.raises(MissingWeightsError, match="no landmarks beside b, c: get the weights"):
        detect_landmarks(subject(view("a", POINTS), view("b"), view("c")))


def test_auto_takes_fan_only_when_its_weights_are_here(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(
        detectors,
        "DETECTORS",
        {n: lambda device, n=n: made.append(n) or WhiteSquares() for n in ("fan", "builtin")},
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    make_detector("auto")
    pytest.importorskip("face_alignment")
    for name in fan.weight_files("fan"):
        (fan.weights_folder() / name).parent.mkdir(parents=True, exist_ok=True)
        (fan.weights_folder() / name).touch()
    make_detector("auto")
    assert made == ["builtin", "fan"]


def test_views_without_a_face_are_left_out(white):
    few = POINTS.copy()
    few[7:] = np.nan
    s = subject(view("a", POINTS), view("b", spot=None), view("c", few), view("d", spot=(10, 30)))
    kept, landmarks, notes = usable_views(s, detect_landmarks(s)[0])
    assert (
        [v.name for v in kept.views] == ["a", "d"]
        and landmarks.points.shape == (2, 68, 2)
        and landmarks.valid.all()
    )
    assert notes[0] == "landmarks: found by detector 'white' in 2 photos, given for 2"
    assert notes[1:] == (
        "left out: no face found in b",
        "left out: c has only 7 of 68 landmarks, at least 8 are needed",
    )


def test_a_photo_under_two_names_counts_once(white):
    saved_again = view("c", size=(160, 140), spot=(60, 40))
    saved_again.image[40:82, 60:102] = 251
    s = subject(view("a"), view("b", POINTS), view("c", spot=(33, 20)), view("d", spot=None))
    s = Subject("s", (*s.views, saved_again.replace(name="e")))
    kept, landmarks, notes = usable_views(s, detect_landmarks(s)[0])
    assert [v.name for v in kept.views] == ["b", "c"] and len(landmarks.points) == 2, (
        "the one with landmarks stays"
    )
    assert notes[1:] == (
        "left out: no face found in d",
        "left out: a shows the same picture as b, which counts once",
        "left out: e shows the same picture as b, which counts once",
    )


def test_points_that_are_all_hidden_are_named(white):
    s = subject(view("a", POINTS * np.nan), view("b"))
    assert (
        usable_views(s, detect_landmarks(s)[0])[2][1]
        == "left out: no face found in a: all of its given landmarks are marked as not seen"
    )
    with pytest.raises(
        InputError,
        match="no view can be used: no face found in a: all of its given landmarks are marked as not seen; "
        "give a photo",
    ):
        usable_views(subject(s.views[0]), detect_landmarks(subject(s.views[0]))[0])


def test_no_view_remains(white):
    s = subject(view("a", spot=None))
    with pytest.raises(
        InputError, match="no view can be used: no face found in a; give a photo that shows the face"
    ):
        usable_views(s, detect_landmarks(s)[0])
