from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import fitkit
from fitkit.errors import InputError
from fitkit.export.model_picture import DOT, TILE, draw_model_landmarks, write_landmark_picture
from fitkit.export.preview import Sides

GENERIC = fitkit.load_model("generic")


def dots(picture):
    """Red pixels of each of the three sides."""
    red = np.abs(picture.astype(int) - DOT).max(-1) < 30
    return [int(side.sum()) for side in np.split(red, 3, 1)]


def test_points_are_drawn_where_they_are_seen(tmp_path):
    path = write_landmark_picture(GENERIC, tmp_path / "a.png")
    picture = np.asarray(Image.open(path))
    assert picture.shape == (TILE[0], 3 * TILE[1], 3)
    whole = dots(picture)
    assert whole[1] > whole[0] > 500 and whole[1] > whole[2] > 500
    half = GENERIC.landmarks.triangle.clone()
    half[:36] = -1
    fewer = replace(GENERIC, landmarks=replace(GENERIC.landmarks, triangle=half))
    assert sum(dots(draw_model_landmarks(fewer))) < 0.7 * sum(whole)
    with pytest.raises(InputError, match="choose another place with --check"):
        write_landmark_picture(GENERIC, tmp_path / "a.png" / "b.png")


def test_what_lies_behind_the_head_is_hidden():
    nose = GENERIC.landmarks.points(GENERIC.mean[None], GENERIC.triangles)[0, 30]
    nape = GENERIC.mean[GENERIC.mean[:, 2].argmin()]
    sides = Sides.of_head(GENERIC.mean, GENERIC)
    places, seen = sides.project(torch.stack([nose, nape]), 0)
    assert seen.tolist() == [True, False]
    H, W = sides.tile
    assert abs(float(places[0, 0]) - (W - 1) / 2) < 2  # the nose in the middle
    assert sides.project(torch.stack([nose, nape]), 90)[0][0, 0] > W / 2  # and to the right
