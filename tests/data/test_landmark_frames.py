import cv2
import numpy as np
import pytest
from helpers import dotted_faces, write_pts
from PIL import Image

from fitkit.data.landmark_frames import (
    KEEP_SIDE,
    Augmentation,
    LabelledFace,
    held_out,
    list_frames,
    load_frame,
    load_surroundings,
    make_crop,
)
from fitkit.errors import InputError
from fitkit.io.landmark_files import read_landmarks
from fitkit.observe.landmarks.face_crop import MARGIN
from fitkit.observe.landmarks.network import MIRRORED_OUTPUTS as SWAP
from fitkit.observe.landmarks.network import NUM_OUTPUTS

PLAIN = Augmentation(grey=0, low_resolution=0, blur=0, noise=0, jpeg=0, cover=0)


@pytest.fixture
def tree(tmp_path):
    dotted_faces(tmp_path / "tree", people=("ann", "bob"), frames=2)
    return tmp_path / "tree"


def dots(image):
    """Positions [N, 2] px of the dark dots that `dotted_faces` draws at the points."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    holes = cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, np.ones((7, 7), np.uint8))
    count, _, _, centers = cv2.connectedComponentsWithStats((holes > 30).astype(np.uint8), connectivity=8)
    return centers[1:count]


def nearest(points, places):
    return np.linalg.norm(points[:, None] - places[None], axis=-1).min(1)


def test_frames_are_pairs_with_the_person_from_the_folder(tree):
    (tree / "ann" / "note.txt").write_text("no picture")
    Image.new("RGB", (40, 40)).save(tree / "ann" / "lonely.jpg")
    frames = list_frames(tree)
    assert [(f.person, f.image.name) for f in frames] == [
        ("ann", "0.png"),
        ("ann", "1.png"),
        ("bob", "0.png"),
        ("bob", "1.png"),
    ]


def test_a_folder_without_pairs_is_refused(tmp_path):
    with pytest.raises(InputError, match="no image with a .pts of the same name beside it"):
        list_frames(tmp_path)
    with pytest.raises(InputError, match="no such folder; expected a tree of images"):
        list_frames(tmp_path / "missing")


def test_a_file_with_too_few_points_is_named(tree):
    points = np.full((68, 2), np.nan)
    points[:5] = np.arange(10).reshape(5, 2)
    write_pts(tree / "ann" / "0.pts", points)
    with pytest.raises(InputError, match=r"0\.pts: expected at least 8 of the 68 points, got 5"):
        load_frame(list_frames(tree)[0])


def test_held_out_depends_on_the_name_alone():
    names = [f"person {i}" for i in range(4000)]
    first = [held_out(n) for n in names]
    assert first == [held_out(n) for n in reversed(names)][::-1]
    assert abs(np.mean(first) - 0.18) < 0.02  # three standard deviations of 4000 throws


def test_swap_is_its_own_inverse_and_keeps_the_middle():
    assert (SWAP[SWAP] == np.arange(NUM_OUTPUTS)).all()
    assert [i for i in range(NUM_OUTPUTS) if SWAP[i] == i] == [8, 27, 28, 29, 30, 33, 51, 57, 62, 66, 76]


def test_points_stay_on_the_picture_through_loading_and_cropping(tree):
    for frame in list_frames(tree):
        face = load_frame(frame)
        assert nearest(face.points[:27], dots(face.image)).max() < 1.0  # jaw and brows; the others touch
        for seed in range(6):
            crop = make_crop(face, 160, np.random.default_rng(seed), PLAIN)
            inside = ((crop.points > 4) & (crop.points < 155)).all(1)
            # Some dots are cut by the border, some touch.
            assert np.median(nearest(crop.points[inside], dots(crop.image))) < 1.0


def test_the_plain_crop_is_the_square_around_the_points(tree):
    face = load_frame(list_frames(tree)[0], 200)
    span = np.ptp(face.points[:68], axis=0).max()
    assert span == pytest.approx(199 / MARGIN / KEEP_SIDE, rel=0.02)
    crop = make_crop(face, 128)
    low, high = crop.points[:68].min(0), crop.points[:68].max(0)
    assert (high - low).max() == pytest.approx(128 / MARGIN, rel=1e-3)
    assert (low + high) / 2 == pytest.approx([63.5, 63.5], abs=0.01)


def test_a_mirrored_crop_has_mirrored_points():
    points = np.random.default_rng(0).uniform(60, 130, (NUM_OUTPUTS, 2)).astype(np.float32)
    face = LabelledFace(
        np.full((192, 192, 3), 128, np.uint8), points, *(np.ones(NUM_OUTPUTS, bool) for _ in range(3))
    )
    still = {"rough_size": (0, 0, 0), "fine_size": (0, 0, 0)}
    straight = make_crop(face, 128, np.random.default_rng(1), Augmentation(**still, mirror=0, cover=0))
    mirrored = make_crop(face, 128, np.random.default_rng(1), Augmentation(**still, mirror=1, cover=0))
    assert np.allclose(mirrored.points, (straight.points * [-1, 1] + [127, 0])[SWAP], atol=1e-4)


def test_patches_hide_the_points_below_them(tree):
    face = load_frame(list_frames(tree)[0])
    seen = []
    for seed in range(20):
        crop = make_crop(
            face,
            128,
            np.random.default_rng(seed),
            Augmentation(cover=1.0, noise=0, jpeg=0, blur=0, low_resolution=0),
        )
        assert (~crop.visible <= crop.visible_known).all()  # a hidden point is known to be hidden
        seen.append(crop.visible.mean())
    assert 0.5 < np.mean(seen) < 1.0


def test_crops_are_the_same_for_the_same_generator(tree):
    face = load_frame(list_frames(tree)[0])
    a, b = (make_crop(face, 128, np.random.default_rng(7)) for _ in range(2))
    assert (a.image == b.image).all() and (a.points == b.points).all()


def test_surroundings_hold_no_face_points(tree):
    frame = list_frames(tree)[0]
    found = load_surroundings(frame, np.random.default_rng(0), count=3)
    assert found
    for face in found:
        assert not face.known.any() and not face.visible.any() and face.visible_known.all()
        crop = make_crop(face, 128, np.random.default_rng(0))
        assert not crop.known.any() and crop.image.shape == (128, 128, 3)


def test_what_faces_show_is_known_but_for_the_side_turned_away(tree):
    frame = list_frames(tree)[0]
    front = load_frame(frame)
    assert front.visible_known.all() and front.visible.all()
    points = read_landmarks(frame.landmarks)[:, :2]
    middle = points[[27, 8]].mean(0)[0]
    for side in (1, -1):  # the half of the picture right or left of the nose becomes narrow
        far = side * (points[:, 0] - middle) > 0
        narrow = np.column_stack(
            [np.where(far, middle + 0.3 * (points[:, 0] - middle), points[:, 0]), points[:, 1]]
        )
        write_pts(frame.landmarks, narrow)
        turned = load_frame(frame)
        far_eye, near_eye = (slice(42, 48), slice(36, 42)) if side > 0 else (slice(36, 42), slice(42, 48))
        assert (
            not turned.visible_known[far_eye].any()
            and turned.visible_known[near_eye].all()
            and turned.visible_known[27:31].all()
        )
        assert not turned.known[68:].any() and not turned.visible_known[68:].any()
