import numpy as np
import torch

from fitkit.export.landmark_picture import SURE, UNKNOWN, draw_landmarks
from fitkit.observe.landmarks.types import Landmarks


def landmarks(**changes):
    """Points on a wide grid over 400 x 300 px."""
    x, y = np.meshgrid(np.linspace(100, 500, 17), np.linspace(100, 340, 4))
    parts = {
        "points": torch.from_numpy(np.stack([x.ravel(), y.ravel()], -1)[None]).float(),
        "sigma": torch.full((1, 68), 2.0),
        "valid": torch.ones(1, 68, dtype=torch.bool),
        "confidence": torch.ones(1, 68),
    }
    return Landmarks(**(parts | changes))


def color_at(picture, points, i, shape=(440, 600)):
    """Colour of the picture at point i; the picture shows all of an image of this shape (H, W)."""
    at = (points.points[0, i].numpy() + 0.5) * 900 / max(shape) - 0.5
    return picture[int(round(float(at[1]))), int(round(float(at[0])))]


def test_dots_lie_on_the_points_and_tell_sigma_and_visibility():
    image = np.zeros((440, 600, 3), np.uint8)
    marks = landmarks()
    marks.sigma[0, 3], marks.confidence[0, 20], marks.sigma[0, 30] = 40.0, 0.1, torch.nan
    picture = draw_landmarks(image, marks)
    assert picture.shape == (660, 900, 3) and picture.dtype == np.uint8 and not image.any()
    assert (color_at(picture, marks, 10) == SURE).all()
    assert color_at(picture, marks, 3)[0] > color_at(picture, marks, 3)[1]  # red: large sigma
    assert color_at(picture, marks, 20).max() < 150  # hollow
    assert (color_at(picture, marks, 30) == UNKNOWN).all()


def test_a_small_face_is_cut_out_and_points_may_lie_outside():
    image = np.random.default_rng(0).integers(0, 90, (3000, 4000, 3), dtype=np.uint8)
    marks = landmarks(points=landmarks().points - 150)
    marks.valid[0, 5] = False
    marks.points[0, 5] = torch.nan
    picture = draw_landmarks(image, marks)
    assert max(picture.shape) == 900 and (picture == SURE).all(-1).any()
