from pathlib import Path

import cv2
import numpy as np
import pytest

from fitkit.errors import MissingWeightsError
from fitkit.io.images import read_image
from fitkit.io.landmark_files import read_landmarks
from fitkit.observe.landmarks import boxes
from fitkit.observe.landmarks.boxes import (
    FRONTAL,
    PROFILES,
    Candidate,
    Stage,
    grid_squares,
    merge,
    propose,
    reduced_grey,
    same_place,
    search,
)
from fitkit.observe.landmarks.face_crop import FaceSquare, square_of_points

SAMPLE = Path(__file__).resolve().parents[3] / "examples/sample"
UPRIGHT = Stage(320, (FRONTAL,), step=1.1, neighbors=2)


@pytest.fixture(scope="module")
def front():
    """A rendered face and the square of its points."""
    return read_image(SAMPLE / "front.jpg")[0], square_of_points(read_landmarks(SAMPLE / "front.pts")[:, :2])


def close(found: FaceSquare, truth: FaceSquare) -> bool:
    apart = np.hypot(found.center[0] - truth.center[0], found.center[1] - truth.center[1])
    return apart < 0.12 * truth.side and abs(np.log(found.side / truth.side)) < 0.25


def test_boxes_become_the_square_of_the_points(front):
    image, truth = front
    for cascade in (FRONTAL, boxes.FRONTAL_2):
        found = merge(search(*reduced_grey(image, 320), Stage(320, (cascade,), neighbors=2)))
        assert close(found[0].square, truth) and found[0].square.angle == 0


def test_reduced_pictures_give_the_same_square(front):
    image, truth = front
    large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    grey, factor = reduced_grey(large, 320)
    assert grey.shape == (320, 280) and factor == 6.4
    center = tuple(4 * (c + 0.5) - 0.5 for c in truth.center)
    assert close(merge(search(grey, factor, UPRIGHT))[0].square, FaceSquare(center, 4 * truth.side))
    assert reduced_grey(image, 5000)[1] == 1.0


@pytest.mark.parametrize("degrees", [40.0, -40.0, 90.0])
def test_turned_pictures(front, degrees):
    image, truth = front
    h, w = image.shape[:2]
    # A picture in which the head leans clockwise by `degrees`; OpenCV counts angles counter-clockwise.
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), -degrees, 0.6)
    leaning = cv2.warpAffine(image, matrix, (w, h), borderMode=cv2.BORDER_REPLICATE)
    found = merge(search(*reduced_grey(leaning, 320), Stage(320, (FRONTAL,), (degrees,), neighbors=2)))[
        0
    ].square
    assert np.degrees(found.angle) == pytest.approx(degrees)
    assert close(found, FaceSquare(tuple(matrix @ [*truth.center, 1]), 0.6 * truth.side))


def test_profiles_are_sought_in_the_mirrored_picture_too(monkeypatch):
    """A stand-in that sees a box at the same place of every picture."""

    class Window:
        def detectMultiScale2(self, picture, **options):
            return np.array([[10, 20, 40, 40]]), np.array([7])

    monkeypatch.setattr(boxes, "_classifier", lambda file: Window())
    monkeypatch.setattr(boxes, "PAD", 0.0)
    plain, mirrored = (
        c.square.center for c in search(np.zeros((100, 200), np.uint8), 1.0, Stage(200, PROFILES))
    )
    right, down = boxes.PROFILE.shift
    assert plain == pytest.approx((29.5 + 40 * right, 39.5 + 40 * down)) and mirrored == pytest.approx(
        (199 - plain[0], plain[1])
    )


def test_merge_and_same_place():
    a, b, far = (
        Candidate(FaceSquare((x, 50.0), 40.0), score) for x, score in ((50.0, 3.0), (54.0, 1.0), (80.0, 2.0))
    )
    merged = merge([b, a, far])
    assert [m.score for m in merged] == [4, 2]
    assert merged[0].square.center == pytest.approx((51, 50)) and merged[0].square.side == pytest.approx(40)
    assert same_place(a.square, b.square) and not same_place(a.square, far.square)
    assert not same_place(a.square, FaceSquare((50.0, 50.0), 80.0))
    turned = Candidate(FaceSquare((50.0, 50.0), 40.0, 0.7), 1.0)
    assert len(merge([a, turned])) == 2


@pytest.mark.parametrize("size", [(100, 100), (400, 200), (3000, 4000)])
def test_the_grid_covers_the_picture(size):
    squares = grid_squares(*size)
    assert 3 < len(squares) < 60
    for x in np.linspace(0.3, 0.7, 5) * size[0]:
        for y in np.linspace(0.3, 0.7, 5) * size[1]:
            for share in (0.65, 0.85, 1.1):  # faces of these sizes are met within what the network can stand
                side = share * min(size)
                assert any(
                    np.hypot(s.center[0] - x, s.center[1] - y) < 0.32 * side
                    and abs(np.log(s.side / side)) < 0.35
                    for s in squares
                ), (x, y, share)


def test_searches_come_in_turn_and_skip_what_shows_nothing_new(front):
    image, truth = front
    searches = propose(image)
    assert close(next(searches)[0].square, truth)
    next(searches)
    assert all(c.score == 0 for c in next(searches))
    assert len(list(propose(np.zeros((100, 120, 3), np.uint8)))) == 5  # frontal, profiles, grid, turned twice
    assert len(list(propose(np.zeros((700, 900, 3), np.uint8)))) == 6


def test_small_faces_in_large_photos(front):
    image, truth = front
    photo = np.full((2400, 3200, 3), 128, np.uint8)
    small = cv2.resize(image, (72, 82), interpolation=cv2.INTER_AREA)
    photo[1000:1082, 2500:2572] = small
    scale = 72 / image.shape[1]
    truth = FaceSquare((2500 + truth.center[0] * scale, 1000 + truth.center[1] * scale), truth.side * scale)
    assert truth.side / 1.5 < 45
    assert any(close(c.square, truth) for found in propose(photo) for c in found)


def test_without_cascades(monkeypatch, tmp_path):
    monkeypatch.setattr(cv2.data, "haarcascades", str(tmp_path))
    boxes._classifier.cache_clear()
    with pytest.raises(
        MissingWeightsError,
        match="face boxes need OpenCV 4 with its cascades.*frontalface_default.xml; pip install",
    ):
        next(propose(np.zeros((100, 100, 3), np.uint8)))
