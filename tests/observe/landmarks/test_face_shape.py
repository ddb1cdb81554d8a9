import numpy as np
import pytest

from fitkit.observe.landmarks.face_shape import head_roll, mean_face, shape_residual
from fitkit.observe.landmarks.types import MIRRORED


def seen_from(yaw, pitch=0.0, roll=0.0):
    """Mean face in px of a picture, turned by angles in degrees; positive roll leans clockwise."""
    y, p, r = np.radians([yaw, pitch, roll])
    turn = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    nod = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    picture = (mean_face() @ (nod @ turn).T)[:, :2] * [1, -1]
    return picture @ np.array([[np.cos(r), -np.sin(r)], [np.sin(r), np.cos(r)]]).T + [300, 200]


@pytest.mark.parametrize("yaw", [-90, -50, 0, 30, 80])
@pytest.mark.parametrize("roll", [-45, 0, 20, 170])
def test_roll_at_any_yaw(yaw, roll):
    assert np.degrees(head_roll(seen_from(yaw, 10, roll))) == pytest.approx(roll, abs=0.1)


def test_roll_of_what_is_seen():
    points = seen_from(20, 0, 30)
    points[[*range(17), *range(42, 48)]] = np.nan
    assert np.degrees(head_roll(points)) == pytest.approx(30, abs=0.1)
    assert head_roll(np.full((68, 2), np.nan)) == 0 and head_roll(np.ones((68, 2))) == 0


def test_shape_residual():
    assert shape_residual(seen_from(60, 20, 10)) < 1e-9
    noisy = seen_from(0) + np.random.default_rng(0).normal(0, 2.0, (68, 2))
    assert shape_residual(noisy) == pytest.approx(2 * np.sqrt(2), rel=0.15)


def test_mirrored_numbers():
    points = mean_face()
    # The mean face is nearly symmetric.
    np.testing.assert_allclose(points[MIRRORED] * [-1, 1, 1], points, atol=3.0)
    assert (MIRRORED[MIRRORED] == np.arange(68)).all()
