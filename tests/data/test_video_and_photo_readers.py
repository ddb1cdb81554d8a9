"""Readers of videos and single photos with landmarks, on tiny copies of their layouts."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import observe, photograph, tiny_model, tiny_state, write_pts
from PIL import Image

from fitkit.data.celeba import CelebA, CelebAOptions
from fitkit.data.menpo import Menpo, MenpoOptions, profile_to_68, read_menpo_points
from fitkit.data.video_frames import decode_frames
from fitkit.data.w300vw import Videos, VideosOptions
from fitkit.errors import InputError
from fitkit.io.landmark_files import read_pts
from fitkit.observe.landmarks.types import MIRRORED
from fitkit.train.regressor_data import open_data
from fitkit.train.regressor_recipe import DataSource

MODEL = tiny_model()
SIZE = 128
FRAMES = 6


@pytest.fixture(scope="module")
def seen():
    """A tiny person in pictures of 128 px: [B, H, W, 3] uint8 and points [B, 68, 2]."""
    state = tiny_state(MODEL, FRAMES, SIZE, seed=3)
    images = photograph(MODEL, state, SIZE).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return (images * 255).round().astype(np.uint8), observe(MODEL, state, SIZE).landmarks.points.numpy()


def level(k):
    """The grey of the corner of frame k, which tells frames apart."""
    return 20 + 35 * k


@pytest.fixture
def videos(tmp_path, seen):
    """Two videos; frame 0 of the second has no points."""
    images, points = seen
    for name, first in (("001", 0), ("002", 1)):
        (tmp_path / name / "annot").mkdir(parents=True)
        code = cv2.VideoWriter_fourcc(*"MJPG")
        video = cv2.VideoWriter(str(tmp_path / name / "vid.avi"), code, 25.0, (SIZE, SIZE))
        for k in range(FRAMES):
            frame = images[k][..., ::-1].copy()
            frame[:16, :16] = (0, 0, level(k))  # red, in the order of OpenCV
            video.write(frame)
            if k >= first:
                write_pts(tmp_path / name / "annot" / f"{k + 1:06d}.pts", points[k])
        video.release()
    return tmp_path


def test_frames_that_are_asked_for(videos):
    frames = decode_frames(videos / "001" / "vid.avi", [0, 2, 3, 5])
    assert [f.shape for f in frames] == 4 * [(SIZE, SIZE, 3)]
    for frame, k in zip(frames, (0, 2, 3, 5)):
        corner = frame[4:12, 4:12].reshape(-1, 3).mean(0)
        assert corner[0] == pytest.approx(level(k), abs=8) and corner[1:].max() < 12, k


def test_videos(videos, seen):
    data = Videos(videos, VideosOptions(samples=3, frames=4, size=96), MODEL)
    assert data.ids == ("001/0", "001/1", "001/2", "002/0", "002/1", "002/2") and len(data) == 6
    draws = [data[i].observations for i in range(3)]
    assert all(o.num_views == 4 and o.labels is None for o in draws)
    same = Videos(videos, VideosOptions(samples=3, frames=4, size=96), MODEL)[1].observations
    assert np.array_equal(same.images, draws[1].images)
    # The points of each frame are its own: back in the frame they are those of one of the video's.
    for o in draws:
        photo = o.landmarks.points / o.scale[:, None, None] + o.offset[:, None]
        away = np.abs(photo.numpy()[:, None] - seen[1][None]).max((2, 3))
        assert (away.min(1) < 0.01).all() and len(set(away.argmin(1))) == 4
    few = Videos(videos, VideosOptions(samples=1, frames=50), MODEL)
    assert few[0].observations.num_views == FRAMES and few[1].observations.num_views == FRAMES - 1


def test_broken_videos_are_named(videos, tmp_path):
    write_pts(videos / "001" / "annot" / "000050.pts", np.random.default_rng(0).uniform(20, 90, (68, 2)))
    everything = VideosOptions(samples=1, frames=50)
    with pytest.raises(
        InputError, match=r"001/vid.avi: frame 49, counted from 0, cannot be decoded; .* it has 6; "
    ):
        Videos(videos, everything, MODEL)[0]
    (videos / "001" / "annot" / "000003.pts").write_text("version: 1\nn_points: 68\n{\n1 2\n}\n")
    with pytest.raises(InputError, match=r"001/annot/000003.pts: .*n_points says 68, but there are 1 points"):
        Videos(videos, everything, MODEL)[0]
    (videos / "002" / "vid.avi").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"002/vid.avi: cannot be opened as a video; download it again"):
        Videos(videos, everything, MODEL)[1]
    (videos / "003").mkdir()
    (videos / "003" / "vid.avi").write_bytes(b"")
    with pytest.raises(InputError, match=r"003: no annot/000001.pts; expected 300-VW as 001/vid.avi with"):
        Videos(videos, everything, MODEL)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="none: no folder with vid.avi in it; expected 300-VW"):
        Videos(tmp_path / "none", everything, MODEL)


@pytest.fixture
def celeba(tmp_path, seen):
    """Three pictures; no face was found in the last. Landmarks in a folder of their own."""
    images, points = seen
    (tmp_path / "img_celeba").mkdir()
    (tmp_path / "points").mkdir()
    for k in range(3):
        Image.fromarray(images[k]).save(tmp_path / "img_celeba" / f"{k + 1:06d}.png")
        if k < 2:
            write_pts(tmp_path / "points" / f"{k + 1:06d}.pts", points[k])
    return tmp_path


def test_celeba(celeba, seen):
    options = CelebAOptions(landmark_folder=str(celeba / "points"), size=96)
    data = CelebA(celeba, options, MODEL)
    assert data.ids == ("000001/000001", "000002/000002")
    o = data[1].observations
    photo = o.landmarks.points[0] / o.scale[0] + o.offset[0]
    np.testing.assert_allclose(photo.numpy(), seen[1][1], atol=2e-3)
    (celeba / "identity_CelebA.txt").write_text("000001.png 2880\n000002.png 2937\n000003.png 8692\n")
    assert CelebA(celeba, options, MODEL).ids == ("2880/000001", "2937/000002")
    assert CelebA(celeba / "img_celeba", options, MODEL).ids == ("2880/000001", "2937/000002")
    for path in (celeba / "points").iterdir():
        path.rename(celeba / "img_celeba" / path.name)
    assert len(CelebA(celeba, CelebAOptions(most=1), MODEL)) == 1


def test_broken_celeba_is_named(celeba):
    there = CelebAOptions(landmark_folder=str(celeba / "points"))
    with pytest.raises(
        InputError, match="img_celeba: no landmark file of a picture in .*000001.pts; make them"
    ):
        CelebA(celeba, CelebAOptions(), MODEL)
    with pytest.raises(InputError, match="nowhere: no such folder; expected the landmark files of"):
        CelebA(celeba, CelebAOptions(landmark_folder=str(celeba / "nowhere")), MODEL)
    (celeba / "points" / "000002.pts").write_text("version: 1\nn_points: 68\n{\nx y\n}\n")
    with pytest.raises(InputError, match="000002.pts: "):
        CelebA(celeba, there, MODEL)[1]
    (celeba / "identity_CelebA.txt").write_text("000001.png 2880 and more\n")
    with pytest.raises(InputError, match="identity_CelebA.txt: cannot be read as a list 'PICTURE PERSON'"):
        CelebA(celeba, there, MODEL)
    (celeba / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no picture in it; expected CelebA as img_celeba/000001.jpg"):
        CelebA(celeba / "empty", there, MODEL)


# A head from its right side: jaw from the ear to the chin, brow, bridge and tip, base and wing, the eye
# from the upper lid over its outer corner, outer lips from the middle of the upper one, inner lips.
SIDE = np.array(
    [(20, 40 + 6 * k) for k in range(10)]
    + [(40 + 5 * k, 30) for k in range(6)]
    + [(80, 40), (84, 48), (88, 56), (92, 62)]  # bridge, tip
    + [(84, 70), (78, 68)]  # base, wing
    + [(68, 39), (60, 38), (54, 42), (60, 45), (68, 45)]  # upper lid, outer corner, lower lid
    + [(86, 78), (80, 77), (74, 79), (66, 82), (74, 88), (80, 89), (86, 88)]  # outer lips
    + [(84, 82), (78, 81), (68, 82), (78, 84), (84, 84)],  # inner lips
    float,
)


def test_points_from_the_side_are_some_of_the_68(tmp_path):
    right = profile_to_68(SIDE)
    known = np.flatnonzero(np.isfinite(right[:, 0]))
    assert len(known) == 23 and right[known, 2].tolist() == 23 * [1.0]
    assert right[30, :2].tolist() == [92, 62] and right[8, 2] == 0  # nose tip; the chin is not one of them
    assert right[36, :2].tolist() == [54, 42]  # outer corner of the right eye; the inner one is hidden
    assert np.isnan(right[39, 0])
    assert right[48, :2].tolist() == [66, 82] and right[51, :2].tolist() == [
        86,
        78,
    ]  # of the mouth, upper lip
    assert np.isnan(right[42:48, 0]).all() and np.isnan(right[54, 0])  # the side that is turned away
    # The lids lie above and below the corners, the inner lips between the outer ones.
    assert right[[37, 38], 1].max() < 42 < right[[40, 41], 1].min()
    assert right[50, 1] < right[61, 1] < right[67, 1] < right[58, 1]
    # Mirrored it is the left side.
    left = profile_to_68(SIDE * [-1, 1] + [127, 0])
    np.testing.assert_allclose(left[:, :2], (right[:, :2] * [-1, 1] + [127, 0])[MIRRORED])
    # A head that lies on its side is the same one.
    turned = profile_to_68(SIDE @ np.array([[0.0, 1.0], [-1.0, 0.0]]) + [127, 0])
    assert np.array_equal(np.isfinite(turned), np.isfinite(right))


def points_file(path, points):
    lines = [f"{x + 1:.3f} {y + 1:.3f}" for x, y in points]
    path.write_text(f"version: 1\nn_points: {len(points)}\n{{\n" + "\n".join(lines) + "\n}\n")


def test_menpo(tmp_path, seen):
    images, points = seen
    for name, where in (("a", points[0]), ("train/b", SIDE)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(images[0]).save(tmp_path / f"{name}.png")
        points_file(tmp_path / f"{name}.pts", where)
    data = Menpo(tmp_path, MenpoOptions(size=96), MODEL)
    assert data.ids == ("a", "train_b")
    front, side = data[0].observations, data[1].observations
    assert bool(front.landmarks.valid.all()) and int(side.landmarks.valid.sum()) == 23
    photo = side.landmarks.points[0, 30] / side.scale[0] + side.offset[0]
    np.testing.assert_allclose(photo.numpy(), [92, 62], atol=2e-3)
    assert Menpo(tmp_path, MenpoOptions(profiles=False), MODEL).ids == ("a",)
    np.testing.assert_allclose(read_pts(tmp_path / "train" / "b.pts"), SIDE, atol=1e-3)


def test_broken_menpo_is_named(tmp_path, seen):
    Image.fromarray(seen[0][0]).save(tmp_path / "a.png")
    points_file(tmp_path / "a.pts", SIDE[:30])
    with pytest.raises(InputError, match="a.pts: expected 68 points, or 39 of a head from the side, got 30"):
        Menpo(tmp_path, MenpoOptions(), MODEL)[0]
    points_file(tmp_path / "a.pts", np.where(np.arange(39)[:, None] == 3, np.nan, SIDE))
    with pytest.raises(InputError, match="a.pts: expected 39 points 'x y', some are no numbers"):
        read_menpo_points(tmp_path / "a.pts")
    (tmp_path / "a.pts").write_text("version: 1\n{\nhello\n}\n")
    with pytest.raises(InputError, match="a.pts: not a readable landmark file"):
        Menpo(tmp_path, MenpoOptions(), MODEL)[0]
    points_file(tmp_path / "a.pts", SIDE)
    with pytest.raises(InputError, match="only pictures with 39 points in it, and profiles is false"):
        Menpo(tmp_path, MenpoOptions(profiles=False), MODEL)


def test_recipes_name_them(videos, celeba):
    points = {"landmark_folder": str(celeba / "points")}
    for kind, count, options in (("300vw", 80, {}), ("celeba", 2, points), ("menpo", 1, {})):
        folder = Path(videos)
        if kind == "menpo":
            folder = celeba / "img_celeba"
            (celeba / "points" / "000001.pts").rename(folder / "000001.pts")
        data = open_data(DataSource("d", kind, str(folder), options=options), MODEL)
        assert len(data) == count and data.terms
