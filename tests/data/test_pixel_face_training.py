"""Pixel-Face for trainings, on a tiny folder in its layout."""

import layouts
import numpy as np
import pytest
import torch
from helpers import write_pts

from fitkit.data.pixel_face import PixelFace, PixelFaceTrainingOptions, of_68, of_101
from fitkit.energies.landmarks3d import DFMVR_ANCHORS, lmk3d_align
from fitkit.errors import InputError
from fitkit.geometry.alignment import similarity_align
from fitkit.train.readers import reader
from fitkit.train.regressor_data import held_out, open_data, split
from fitkit.train.regressor_recipe import DataSource

PLACES = ("train/00001/01", "train/00001/other_1", "train/00002/01")
POINTS = "Images/fusion/nicp_106_pts.txt"


@pytest.fixture(scope="module")
def anna():
    return layouts.person()


@pytest.fixture
def folder(tmp_path, anna):
    for place in PLACES:
        layouts.pixel_face(tmp_path / "data", anna, place)
        for view, name in enumerate(("left", "front", "right")):
            marks = tmp_path / "marks" / place / f"{name}.pts"
            marks.parent.mkdir(parents=True, exist_ok=True)
            write_pts(marks, anna.result.landmarks.points[view].numpy())
    return tmp_path


def opened(folder, anna, **options):
    options = {"landmark_folder": str(folder / "marks"), "landmarks": "files"} | options
    return PixelFace(folder / "data", PixelFaceTrainingOptions(**options), anna.result.model)


def test_photos_are_upright_and_points_those_of_the_mesh(folder, anna):
    data = opened(folder, anna)
    assert data.ids == ("00001/01", "00001/other_1", "00002/01") and len(data) == 3
    sample = data[1]
    seen, labels = sample.observations, sample.observations.labels
    assert (
        seen.num_views == 3 and labels.parts == {"points3d", "moment"} and labels.moment.tolist() == [0, 0, 0]
    )
    # Px of the photos, whose first pixel the files count as 1.
    marks = seen.landmarks.points / seen.scale[:, None, None] + seen.offset[:, None]
    torch.testing.assert_close(marks, anna.result.landmarks.points, atol=0.02, rtol=0)
    upright = anna.result.subject.views[1].image
    x, y = (int(v) for v in anna.result.landmarks.points[1, 30].round())
    at = (marks.new_tensor([x, y]) - seen.offset[1]) * seen.scale[1]
    column, row = (int(v) for v in at.round())
    around = seen.images[1, :, row - 2 : row + 3, column - 2 : column + 3].mean((1, 2)) * 255
    assert np.abs(around.numpy() - upright[y - 2 : y + 3, x - 2 : x + 3].mean((0, 1))).max() < 12  # JPEG
    points = labels.points3d
    assert points.shape == (3, 68, 3) and torch.equal(points[0], points[2])
    np.testing.assert_allclose(points[0].numpy(), anna.points, atol=1e-3)
    # They lie on the model's points after a similarity.
    neutral = anna.result.landmarks3d[None].float()
    best = similarity_align(neutral, points[:1])
    assert float((best.apply(neutral) - points[:1]).abs().max()) < 1e-2


def test_of_106_points_101_are_left():
    points = np.arange(106.0)[:, None].repeat(3, 1)
    left = of_101(points)[:, 0]
    assert len(left) == 101 and sorted(set(range(106)) - set(left.astype(int))) == [3, 15, 17, 25, 27]
    # The anchors of the two numberings are the same points: eye corners, nose tip, mouth corners.
    assert left[list(DFMVR_ANCHORS)].tolist() == of_68(points)[[36, 39, 42, 45, 30, 48, 54], 0].tolist()
    assert of_68(points)[:17, 0].tolist() == list(range(0, 33, 2))
    assert of_68(points)[18, 0] == (34 + 64) / 2


def test_all_101_points_meet_vertices_of_a_model(folder, anna):
    sample = opened(folder, anna, points="dfmvr101")[0]
    assert sample.observations.labels.points3d.shape == (3, 101, 3)
    model, state = anna.result.model, anna.result.state
    with pytest.raises(
        InputError, match="'lmk3d_align': expected 68 labelled points, got 101; the option 'ver"
    ):
        lmk3d_align(model).residuals(state, sample.observations)
    energy = lmk3d_align(model, anchors=DFMVR_ANCHORS, vertices=range(101))
    assert energy.residuals(state, sample.observations).value.shape == (3, 101, 3)
    assert opened(folder, anna, points="none")[0].observations.labels.points3d is None


def test_people_are_held_out_as_a_whole(folder, anna):
    data = opened(folder, anna)
    share = next(s for s in np.linspace(0.05, 0.95, 19) if held_out("00001", s) != held_out("00002", s))
    source = DataSource("pixel", "pixel_face", str(folder / "data"))
    training, held = split(source, data, share)
    names = [{p.id(i).split("/")[1] for i in range(len(p.index))} for p in (training, held)]
    assert names in ([{"00001"}, {"00002"}], [{"00002"}, {"00001"}])
    assert len(training.index) + len(held.index) == 3


def test_a_recipe_can_name_it(folder, anna):
    options = {"landmark_folder": str(folder / "marks"), "landmarks": "files"}
    source = DataSource("pixel", "pixel_face", str(folder / "data"), options=options)
    assert reader("pixel_face")[0] is PixelFaceTrainingOptions
    assert open_data(source, anna.result.model)[0].observations.num_views == 3


def test_what_is_wrong_is_told(folder, anna):
    path = folder / "data" / PLACES[0] / POINTS
    rows = path.read_text().splitlines()
    path.write_text("\n".join(rows[:68]))
    with pytest.raises(InputError, match=r"nicp_106_pts.txt: not readable as 106 lines 'x y z'.*\[68, 3\]"):
        opened(folder, anna)[0]
    mirrored = np.loadtxt(rows) * [-1, 1, 1]
    np.savetxt(path, mirrored)
    with pytest.raises(InputError, match="points are those of a mirrored face.*turn the option 'mirrored'"):
        opened(folder, anna)[0]
    turned = opened(folder, anna, mirrored=True)[0].observations.labels.points3d[0].numpy()
    np.testing.assert_allclose(turned, anna.points, atol=1e-3)
    path.unlink()
    with pytest.raises(InputError, match="no such file; without 3D points: points: none"):
        opened(folder, anna)[0]
    (folder / "marks" / PLACES[1] / "front.pts").unlink()
    with pytest.raises(
        InputError, match=r"other_1/front: no landmark file \(.*\) for this view of Pixel-Face"
    ):
        opened(folder, anna)[1]
    with pytest.raises(InputError, match="no test/SUBJECT/EXPRESSION/Images/1/t.jpg"):
        opened(folder, anna, split="test")
