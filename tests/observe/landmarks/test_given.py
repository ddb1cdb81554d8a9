"""Given landmarks that do not belong to their photo, made of those of the shipped sample."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fitkit
from fitkit.fitting.findings import findings
from fitkit.io.images import read_image
from fitkit.io.landmark_files import read_landmarks
from fitkit.io.subject import subject_from_images
from fitkit.observe.landmarks.detectors import detect_landmarks
from fitkit.observe.landmarks.given import check_given
from fitkit.observe.landmarks.types import MIRRORED

SAMPLE = Path(__file__).resolve().parents[3] / "examples/sample"


@pytest.fixture(scope="module")
def front():
    return read_image(SAMPLE / "front.jpg")[0], read_landmarks(SAMPLE / "front.pts")[:, :2]


def checked(image, points, take=True):
    subject = subject_from_images([image], [points])
    found, sources = detect_landmarks(subject, "files")
    return check_given(subject, found, sources, take)


def test_right_points_stay(front):
    for name in ("front", "left", "right"):
        points = read_landmarks(SAMPLE / f"{name}.pts")[:, :2]
        out = checked(read_image(SAMPLE / f"{name}.jpg")[0], points)
        assert out.doubts == out.notes == () and bool(out.valid.all())
        np.testing.assert_allclose(out.points[0], points, rtol=1e-6)


def turned(image, points):
    """The photo on its side, so that (x, y) of the photo are (y, W - 1 - x) of the result's upright
    picture."""
    return np.ascontiguousarray(np.rot90(image)), points


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda image, p: (image, p[MIRRORED]), "left and right are exchanged in their order"),
        (
            lambda image, p: (
                read_image(SAMPLE / "left.jpg")[0][:, ::-1].copy(),
                read_landmarks(SAMPLE / "left.pts")[:, :2],
            ),
            "they are of the mirrored picture",
        ),
        (
            lambda image, p: (
                np.pad(image, ((60, 0), (0, 0), (0, 0))),
                np.column_stack([p[:, 1] + 60, p[:, 0]]),
            ),
            "x and y are exchanged",
        ),
        (
            lambda image, p: (
                np.pad(image, ((90, 0), (0, 0), (0, 0))),
                np.column_stack([p[:, 0], len(image) - 1 - p[:, 1]]),
            ),
            "their y counts from the bottom, it must count from the top",
        ),
        (turned, "they are of the picture before its EXIF orientation turns it upright"),
        (lambda image, p: (image, 0.8 * p), "they are of the picture in another size"),
        (
            lambda image, p: (image, p + [40.0, 10.0]),
            "they may be of another crop of the picture, or of another photo",
        ),
        (
            lambda image, p: (image, read_landmarks(SAMPLE / "left.pts")[:, :2]),
            "they may be of another photo or another person",
        ),
    ],
)
def test_points_that_do_not_belong_give_way(front, spoil, message):
    image, wrong = spoil(*front)
    out = checked(image, wrong)
    ((name, doubt),) = out.doubts
    assert (
        name == "view0"
        and message in doubt
        and doubt.startswith("view view0: its landmarks do not lie on the face of the photo; ")
    )
    assert "those of the detector were used (landmarks.source=files keeps yours)" in doubt
    alone, _ = detect_landmarks(subject_from_images([image]), "builtin")
    assert float((out.points - alone.points)[:, 17:].norm(dim=-1).mean()) < 3  # px: it sees the same face
    kept = checked(image, wrong, take=False)
    assert "they were used all the same" in kept.doubts[0][1]
    np.testing.assert_allclose(kept.points[0], wrong, rtol=1e-6)


def test_single_points_far_off_are_left_out(front):
    image, points = front
    points = points.copy()
    points[3], points[30, 0], points[50] = points[3] - 120, points[30, 0] + 150, points[50] + 90
    out = checked(image, points)
    assert torch.nonzero(~out.valid[0])[:, 0].tolist() == [3, 30, 50] and out.doubts == ()
    assert out.notes == (
        "view view0: landmarks far from where the detector sees them were left out: 3, 30, 50 (counted "
        "from 0)",
    )
    assert bool(checked(image, points, take=False).valid.all())


def test_points_of_which_most_coincide_give_way(front):
    image, points = front
    points = np.where(np.arange(68)[:, None] % 3 > 0, points.mean(0), points)
    out = checked(image, points)
    ((_, doubt),) = out.doubts
    assert "its landmarks do not lie on the face of the photo" in doubt and bool(out.valid.all())
    assert float((out.points[0] - torch.from_numpy(front[1])).norm(dim=-1).mean()) < 15  # px: the detector's


@pytest.mark.slow
def test_without_a_face_the_points_stay_in_doubt(front):
    noise = np.random.default_rng(0).integers(0, 255, front[0].shape, np.uint8)
    out = checked(noise, front[1])
    assert (
        "no face is seen where its landmarks lie, nor elsewhere in the photo; check the photo, or leave it "
        "out" in out.doubts[0][1]
    )
    assert bool(out.valid.all())


def test_detected_points_are_not_asked_again(front, monkeypatch):
    subject = subject_from_images([front[0]])
    found, sources = detect_landmarks(subject, "builtin")
    monkeypatch.setattr("fitkit.observe.landmarks.given.BuiltinDetector", None)
    assert check_given(subject, found, sources) is found


def test_a_fit_with_points_of_a_mirrored_order_is_doubtful(front):
    result = fitkit.fit([front[0]], landmarks=[front[1][MIRRORED]], recipe="landmarks")
    assert result.status == "doubtful"
    (found,) = (f for f in findings(result.report) if f.code == "landmarks_doubted")
    assert (
        found.view == "view0"
        and found.severity == "doubtful"
        and "left and right are exchanged" in found.message
    )
    assert result.metrics["views"][0]["reprojection_share"] < 0.06  # the fit took the detector's
