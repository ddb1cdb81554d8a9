import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from fitkit.errors import InputError
from fitkit.io.foreign import readable
from fitkit.io.images import ImageFile
from fitkit.io.subject import (
    KnownCamera,
    load_photos,
    load_subject,
    read_subject,
    subject_folders,
    subject_from_images,
)

RNG = np.random.default_rng(0)
POINTS = RNG.uniform(10, 60, (68, 2)).round(2)  # inside 80 x 70 px
K = [[90.0, 0, 39.5], [0, 90, 34.5], [0, 0, 1]]
BENCH = Path(__file__).resolve().parents[3] / "shared/data/bench"


def photo(path, size=(80, 70), seed=None):
    """Noise of its own for each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    w, h = size
    Image.fromarray(
        np.random.default_rng(crc32(path.name.encode()) if seed is None else seed)
        .integers(0, 256, (h, w, 3))
        .astype(np.uint8)
    ).save(path)
    return path


def pts(path, points=POINTS):
    path.write_text(
        "version: 1\nn_points: 68\n{\n" + "".join(f"{x + 1} {y + 1}\n" for x, y in points) + "}\n"
    )
    return path


def cameras(folder, content):
    (folder / "cameras.json").write_text(json.dumps(content))


def test_views_are_sorted_naturally_and_loaded_on_demand(tmp_path):
    for i, name in enumerate(["view10.png", "view2.PNG", "Anna 1.bmp", "view1.tif"]):
        photo(tmp_path / "anna" / name, seed=i)
    subject = load_subject(tmp_path / "anna")
    assert subject.name == "anna" and subject.path == tmp_path / "anna" and subject.notes == ()
    assert [v.name for v in subject.views] == ["Anna 1", "view1", "view2", "view10"]
    view = subject.views[0]
    assert isinstance(view.__dict__["_image_source"], ImageFile)
    assert view.size == (80, 70) and view.image.shape == (70, 80, 3) and view.image.dtype == np.uint8
    assert view.landmarks is view.camera is view.mask is view.focal_px is None and view.landmark_source == ""
    assert "80 x 70" in repr(view)
    with ThreadPoolExecutor(4) as pool:
        means = list(pool.map(lambda v: v.image.mean(), subject.views * 3))
    assert means == [v.image.mean() for v in subject.views] * 3
    other = view.replace(landmarks=np.zeros((68, 3)))
    assert (
        isinstance(other.__dict__["_image_source"], ImageFile)
        and other.mask is None
        and other.name == view.name
    )


def test_a_hundred_views(tmp_path):
    for i in range(100):
        photo(tmp_path / f"{i}.png", (40, 40), i)
    assert [v.name for v in load_subject(tmp_path).views] == [str(i) for i in range(100)]


def test_landmarks_beside_images(tmp_path):
    for name in "abcde":
        photo(tmp_path / f"{name}.png")
    pts(tmp_path / "a.pts")
    np.save(tmp_path / "b.npy", POINTS)
    (tmp_path / "c.json").write_text(json.dumps({"landmarks": POINTS.tolist()}))
    np.savetxt(tmp_path / "d.txt", POINTS)
    subject = load_subject(tmp_path)
    for view in subject.views[:4]:
        np.testing.assert_allclose(view.landmarks[:, :2], POINTS, atol=1e-6)
        assert view.landmark_source == "file"
    assert subject.views[4].landmarks is None and subject.notes == ()


def test_first_of_several_landmark_files(tmp_path):
    photo(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("not even landmarks")
    np.save(tmp_path / "a.npy", POINTS + 1)
    pts(tmp_path / "a.PTS")
    subject = load_subject(tmp_path)
    np.testing.assert_allclose(subject.views[0].landmarks[:, :2], POINTS, atol=1e-6)
    assert subject.notes == ("a.png: landmarks from a.PTS; not used: a.npy, a.txt",)


NFC, NFD = "Zo\u00eb", "Zoe\u0308"


@pytest.mark.parametrize(
    "picture, files",
    [
        ("A.JPG", ["a.pts"]),
        ("a.jpg", ["A.PTS"]),
        ("a.jpg", ["a.jpg.pts"]),
        ("A.jpg", ["a.JPG.pts"]),
        (f"{NFC}.png", [f"{NFD}.pts"]),
        (f"{NFD}.png", [f"{NFC}.pts"]),
        ("a.png", ["a.pts", "A.pts"]),
        ("a.png", ["a.pts", "a.png.pts"]),
        ("A.png", ["a.png.pts", "b.png.pts"]),
    ],
)
def test_landmark_files_by_name(tmp_path, picture, files):
    photo(tmp_path / "s" / picture)
    for shift, name in enumerate(files):
        pts(tmp_path / "s" / name, POINTS + shift)
    if len(list((tmp_path / "s").iterdir())) <= len(files):
        pytest.skip("this file system does not tell upper from lower case")
    for subject in (load_subject(tmp_path / "s"), subject_from_images([tmp_path / "s" / picture])):
        np.testing.assert_allclose(subject.views[0].landmarks[:, :2], POINTS, atol=1e-6)
        assert subject.views[0].landmark_source == "file"


def test_a_file_belongs_to_the_photo_of_just_its_name(tmp_path):
    photo(tmp_path / "a.png"), photo(tmp_path / "a.png.jpg")
    pts(tmp_path / "a.png.pts")
    assert [v.landmarks is None for v in load_subject(tmp_path).views] == [True, False]
    assert subject_from_images([tmp_path / "a.png"]).views[0].landmarks is None


def test_landmarks_in_folders(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg", "old/a.jpg"):
        photo(tmp_path / name)
    for folder in ("Landmarks", "points", "old", "fitkit"):
        (tmp_path / folder).mkdir(exist_ok=True)
        pts(tmp_path / folder / "a.pts")
    (
        pts(tmp_path / "b.pts"),
        pts(tmp_path / "Landmarks" / "b.pts", POINTS + 1),
        pts(tmp_path / "Landmarks" / "c.jpg.pts"),
    )
    subject = load_subject(tmp_path)
    for view in subject.views:
        np.testing.assert_allclose(view.landmarks[:, :2], POINTS, atol=1e-6)
    assert subject.notes == (
        "Landmarks/a.pts, Landmarks/c.jpg.pts: read as landmarks; none lie beside the photo",
        "b.jpg: landmarks from b.pts; not used: Landmarks/b.pts",
        "points/ holds files with the names of photos, which are not read: a.pts; landmarks lie beside the "
        "photos or in landmarks/",
        "ignored, not images or files of an image: old",
    )
    assert subject_from_images([tmp_path / "a.jpg"]).views[0].landmarks is not None
    assert [p.name for p in subject_folders(tmp_path)] == [tmp_path.name, "old"]


def test_captions_and_metadata_are_no_landmarks(tmp_path):
    for name in "abc":
        photo(tmp_path / f"{name}.jpg")
    (tmp_path / "a.txt").write_text("a photo of an astronaut, smiling")
    (tmp_path / "b.txt").write_text("1girl")
    (tmp_path / "c.jpg.json").write_text('{"title": "c.jpg", "geoData": {"latitude": 1.5}}')
    np.savetxt(tmp_path / "c.txt", POINTS)
    subject = load_subject(tmp_path)
    assert [v.landmarks is None for v in subject.views] == [True, True, False]
    assert subject.notes == (
        "a.txt, b.txt: not read as landmarks: there are no points in it",
        "c.jpg: landmarks from c.txt; not used: c.jpg.json",
    )
    (tmp_path / "c.txt").unlink()
    assert load_subject(tmp_path).notes == (
        "a.txt, b.txt, c.jpg.json: not read as landmarks: there are no points in it",
    )


def test_what_was_assumed_of_landmark_files(tmp_path):
    points = POINTS.copy()
    points[:9] = -1
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", points)
        photo(tmp_path / f"{name}.jpg")
    assert load_subject(tmp_path).notes == ("a.npy, b.npy: points written as -1 -1 count as not seen",)
    subject = subject_from_images([photo(tmp_path / "c.jpg")] * 2, [points, tmp_path / "a.npy"], ["x", "y"])
    assert np.isnan(subject.views[0].landmarks[:9, 0]).all()
    assert subject.notes == ("x: landmarks, a.npy: points written as -1 -1 count as not seen",)


@pytest.mark.parametrize(
    "points, message",
    [
        (POINTS[:5], r"a\.npy: landmarks: expected 68 points .*got \[5, 2\]"),
        (POINTS + 500, r"a\.npy: 68 of 68 landmarks lie outside the image of 80 x 70 px"),
    ],
)
def test_wrong_landmarks_are_refused(tmp_path, points, message):
    photo(tmp_path / "a.png"), photo(tmp_path / "b.png")
    np.save(tmp_path / "a.npy", points)
    with pytest.raises(InputError, match=message):
        load_subject(tmp_path)


def test_landmarks_refer_to_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 120)).save(tmp_path / "a.jpg", exif=exif)  # 120 x 40 px upright
    np.save(tmp_path / "a.npy", POINTS * [1.8, 0.6])
    view = load_subject(tmp_path).views[0]
    assert view.size == (120, 40) == view.image.shape[1::-1]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: None, "no such folder; give a folder with photos"),
        (lambda p: p.write_text("x"), "expected a folder with photos of one person, got a file"),
        (lambda p: p.mkdir(), r"no images in this folder; expected at least one of \*\.jpg"),
        (
            lambda p: (p.mkdir(), (p / "clip.mp4").write_text("x")),
            r"no images in this folder.*found clip\.mp4",
        ),
        (lambda p: (p.mkdir(), (p / "a.jpg").write_text("a text")), r"a\.jpg: not a readable image"),
        (
            lambda p: (photo(p / "a.png"), photo(p / "a.bmp")),
            r"a\.bmp and a\.png share the name 'a'.*rename or remove one",
        ),
        (lambda p: (photo(p / "a.png"), photo(p / "A.bmp")), "share the name"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, make, message):
    make(tmp_path / "s")
    with pytest.raises(InputError, match=message):
        load_subject(tmp_path / "s")


def test_unreadable_image_is_left_out_when_others_remain(tmp_path):
    photo(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_text("a text file")
    pts(tmp_path / "b.pts", POINTS[:3])
    cameras(tmp_path, {"a": {"K": K}, "b.jpg": {"K": K}})
    subject = load_subject(tmp_path)
    assert [v.name for v in subject.views] == ["a"]
    assert (
        len(subject.notes) == 1
        and subject.notes[0].startswith("left out:")
        and "b.jpg: not a readable image" in subject.notes[0]
    )


def test_other_files_are_ignored_in_one_line(tmp_path):
    photo(tmp_path / "a.png"), photo(tmp_path / "fitkit/overlay.png"), photo(tmp_path / "out/x.png")
    for name in (".DS_Store", "._a.jpg", "notes.md", "clip.mp4", "b.pts", "readme.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "old").mkdir()
    subject = load_subject(tmp_path, ignore=[tmp_path / "out"])
    assert len(subject.views) == 1
    assert subject.notes == (
        "ignored, not images or files of an image: b.pts, clip.mp4, notes.md, old, readme.txt",
    )


def test_cameras(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        photo(tmp_path / name)
    cameras(
        tmp_path,
        {
            "views": [
                {
                    "image": "a.png",
                    "K": K,
                    "R": np.eye(3).tolist(),
                    "t": [0, 0, 900],
                    "width": 80,
                    "height": 70,
                },
                {"image": "shots/B.png", "K": K},
                {"image": "z.png", "K": K},
            ]
        },
    )
    subject = load_subject(tmp_path)
    a, b, c = subject.views
    assert (
        a.camera.t.tolist() == [0, 0, 900]
        and (a.camera.K == K).all()
        and (b.camera.K == K).all()
        and b.camera.R is None
    )
    assert c.camera is None
    assert subject.notes == ("cameras.json: no image for: z.png", "cameras.json: no camera for: c.png")


@pytest.mark.parametrize(
    "content, message",
    [
        (
            {"a": {"K": K, "width": 160, "height": 140}},
            r"view 'a': K belongs to an image of 160 x 140 px, but a\.png has 80 x 70 px",
        ),
        ({"a": {"K": K}, "a.png": {"K": K}}, "'a' and 'a.png' are both cameras of the image 'a'"),
        ({"a": {"K": 3}}, "cameras.json: view 'a': K"),
    ],
)
def test_wrong_cameras(tmp_path, content, message):
    photo(tmp_path / "a.png")
    cameras(tmp_path, content)
    with pytest.raises(InputError, match=message):
        load_subject(tmp_path)


def test_distortion_is_removed_from_image_mask_and_landmarks(tmp_path):
    photo(tmp_path / "a.png"), photo(tmp_path / "b.png")
    pts(tmp_path / "a.pts")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.full((70, 80), 255, np.uint8)).save(tmp_path / "masks/a.png")
    plain = load_subject(tmp_path).views[0]
    # Pincushion: the undistorted image has corners that the lens did not see.
    lens = {"K": K, "distortion": [0.3, 0, 0, 0]}
    cameras(tmp_path, {"a": lens, "b": lens})
    a, b = load_subject(tmp_path).views
    assert a.size == (80, 70) and a.image.shape == (70, 80, 3) and not (a.image == plain.image).all()
    # x_d = x_u (1 + k r^2) in normalised coordinates
    u = (a.landmarks[:, :2] - [39.5, 34.5]) / 90
    back = u * (1 + 0.3 * (u**2).sum(1, keepdims=True)) * 90 + [39.5, 34.5]
    np.testing.assert_allclose(back, POINTS, atol=1e-3)  # OpenCV iterates
    assert (
        a.mask.dtype == b.mask.dtype == bool
        and not a.mask[0, 0]
        and not b.mask[0, 0]
        and a.mask[35, 40]
        and b.mask[35, 40]
    )


def test_masks(tmp_path):
    photo(tmp_path / "a.png"), photo(tmp_path / "b.png")
    mask = np.zeros((70, 80), np.uint8)
    mask[10:30] = 7
    (tmp_path / "masks").mkdir()
    for name in ("a.png", "z.png"):
        Image.fromarray(mask).save(tmp_path / "masks" / name)
    np.save(tmp_path / "masks/a.npy", mask)
    subject = load_subject(tmp_path)
    assert (subject.views[0].mask == (mask > 0)).all() and subject.views[1].mask is None
    assert subject.notes == ("ignored in masks/, not pictures with the name of a photo: a.npy, z.png",)


MASK = np.zeros((70, 80), np.uint8)
MASK[10:30] = 255


@pytest.mark.parametrize(
    "picture, file",
    [
        ("a.jpg", "masks/a.jpg.png"),
        ("A.JPG", "masks/a.png"),
        ("a.png", "masks/a.jpg"),
        ("a.png", "Masks/a.png.PNG"),
        ("a.png", "mask/a.bmp"),
        (f"{NFC}.png", f"masks/{NFD}.png.png"),
    ],
)
def test_masks_by_name(tmp_path, picture, file):
    photo(tmp_path / picture)
    (tmp_path / file).parent.mkdir()
    Image.fromarray(MASK).save(tmp_path / file, **({"quality": 75} if file.endswith("jpg") else {}))
    for subject in (load_subject(tmp_path), subject_from_images([tmp_path / picture])):
        assert (subject.views[0].mask == (MASK > 0)).all()
        assert len(subject.notes) == file.endswith("jpg")


def test_which_mask_is_used(tmp_path):
    cut_out = np.dstack([np.full((70, 80, 3), 90, np.uint8), MASK])
    Image.fromarray(cut_out).save(tmp_path / "a.png")
    subject = load_subject(tmp_path)
    assert (subject.views[0].mask == (MASK > 0)).all() and (subject.views[0].image[0] == 255).all()
    assert subject.notes == ("a.png: its transparent pixels (alpha below 128) are not used",)
    (tmp_path / "masks").mkdir()
    for name in ("a.png", "a.jpg", "A.png"):
        Image.fromarray(np.full((70, 80), 255, np.uint8)).save(tmp_path / "masks" / name)
    subject = load_subject(tmp_path)
    assert subject.views[0].mask.all()
    assert subject.notes == (
        "masks/a.png: this mask marks every pixel as usable, so it has no effect",
        "a.png: mask from masks/a.png; not used: masks/a.jpg, masks/A.png, its transparency",
    )
    for image in (cut_out, Image.fromarray(cut_out)):
        subject = subject_from_images([image])
        assert (subject.views[0].mask == (MASK > 0)).all()
        assert subject.notes == ("view0: its transparent pixels (alpha below 128) are not used",)
        assert subject_from_images([image], masks=[MASK == 0]).notes == ()


def test_masks_from_the_caller(tmp_path):
    image = np.zeros((70, 80, 3), np.uint8)
    Image.fromarray(MASK).save(tmp_path / "m.png")
    soft = np.where(MASK > 0, 0.9, 0.01)
    subject = subject_from_images([image] * 4, masks=[MASK > 0, MASK // 255, tmp_path / "m.png", soft])
    assert all((v.mask == (MASK > 0)).all() for v in subject.views)
    assert subject.notes == ("view3: mask: of its values, 0 to 0.9, those from 0.45 on count as usable",)


def test_unusual_photos(tmp_path):
    Image.fromarray(np.full((70, 80, 3), 90, np.uint8)).save(tmp_path / "a.jfif", format="JPEG")
    for name in ("b.heic", "c.HEIC", "c.CR2", "d.dng", "d.NEF"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 20)
    photo(tmp_path / "C.jpg")
    subject = load_subject(tmp_path)
    assert [v.name for v in subject.views] == ["a", "C"]
    assert (
        subject.notes[0].startswith(f"left out: {tmp_path / 'b.heic'}: ")
        and "convert it to JPEG" in subject.notes[0]
    )
    assert subject.notes[1:] == (
        "left out: c.CR2, c.HEIC, beside a photo of the same name in a usual format",
        "left out: d.dng, d.NEF; raw photos are not read, convert them to JPEG",
    )


def test_dark_photos_of_sixteen_bits_are_told(tmp_path):
    for name in "ab":
        Image.fromarray(np.random.default_rng(3).integers(0, 4096, (70, 80)).astype(np.uint16)).save(
            tmp_path / f"{name}.png"
        )
    notes = load_subject(tmp_path).notes
    assert notes == ("a.png, b.png: its values go up to 4095; 4095 was taken as white",)


@pytest.mark.parametrize(
    "mask, message",
    [
        (
            np.ones((80, 70), np.uint8),
            r"masks/a\.png: a mask must have the size of its image, 80 x 70 px, got shape \[80, 70\]",
        ),
        (np.zeros((70, 80), np.uint8), r"masks/a\.png: the mask is zero everywhere"),
        (None, r"masks/a\.png: not a readable image"),
    ],
)
def test_wrong_masks(tmp_path, mask, message):
    photo(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/a.png").write_text("x") if mask is None else Image.fromarray(mask).save(
        tmp_path / "masks/a.png"
    )
    with pytest.raises(InputError, match=message):
        load_subject(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.timeout(10)
def test_pipes_are_not_opened(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    os.mkfifo(tmp_path / "masks" / "a.png")
    os.mkfifo(tmp_path / "a.pts")
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(
        InputError, match="masks/a.png: it is a pipe or a device, no regular file; expected an image file"
    ):
        load_subject(tmp_path)
    with pytest.raises(InputError, match="b.png: it is a pipe or a device"):
        subject_from_images([tmp_path / "b.png"])
    os.unlink(tmp_path / "masks" / "a.png")
    subject = load_subject(tmp_path)
    assert (
        len(subject.views) == 1
        and "ignored, not images or files of an image: a.pts, b.png" in subject.notes[0]
    )


def test_a_name_that_is_too_long_for_the_files_beside_it(tmp_path):
    with pytest.raises(InputError, match="not a readable image"):
        subject_from_images([tmp_path / ("x" * 252 + ".jpeg")])


def test_subject_from_images(tmp_path):
    path = photo(tmp_path / "anna.png")
    pts(tmp_path / "anna.pts")
    array = np.random.default_rng(1).integers(0, 256, (70, 80, 3)).astype(np.uint8)
    subject = subject_from_images([str(path), Image.fromarray(array), 255 - array])
    assert [v.name for v in subject.views] == ["anna", "view1", "view2"]
    assert subject.views[0].landmark_source == "file" and subject.views[1].landmarks is None
    assert (
        (subject.views[1].image == array).all()
        and (subject.views[2].image == 255 - array).all()
        and subject.views[2].size == (80, 70)
    )

    camera = KnownCamera(np.array(K))
    subject = subject_from_images(
        [path, array],
        [POINTS, tmp_path / "anna.pts"],
        ["x", "y"],
        [None, camera],
        [np.ones((70, 80)), None],
        "anna",
    )
    x, y = subject.views
    np.testing.assert_allclose(x.landmarks[:, :2], y.landmarks[:, :2], atol=1e-6)
    assert (
        (x.landmark_source, y.landmark_source) == ("given", "file")
        and y.camera is camera
        and x.mask.all()
        and y.mask is None
    )
    assert (x.name, y.name, subject.name) == ("x", "y", "anna")


def test_pillow_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.arange(70 * 80 * 3, dtype=np.uint8).reshape(70, 80, 3)).save(
        tmp_path / "a.png", exif=exif
    )
    with Image.open(tmp_path / "a.png") as image:
        subject = subject_from_images([image], [POINTS], ["x"])
    assert (
        subject.views[0].size == (70, 80)
        and (subject.views[0].image == load_subject(tmp_path).views[0].image).all()
    )
    assert subject.notes == ("x: turned upright, as its EXIF data say",)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("a.jpg",), "images: expected a list of paths, PIL images or arrays, got str"),
        ((5,), "images: expected a list .* got int"),
        (
            (np.zeros((70, 80, 3), np.uint8),),
            r"images: expected a list of images, got one of shape \[70, 80, 3\]; put it into a list",
        ),
        (([None],), "view0: expected an image .* got NoneType"),
        (([np.zeros((70, 80), np.uint8)], 5), "landmarks: expected a list with one entry .* got int"),
        (([np.zeros((70, 80), np.uint8)], "a.pts"), "landmarks: expected a list with one entry .* got str"),
        (
            ([np.zeros((70, 80), np.uint8)], [["a"]]),
            r"view0: landmarks: expected \[68, 2\] or \[68, 3\] numbers",
        ),
        (
            ([np.zeros((70, 80), np.uint8)], None, None, [np.eye(3)]),
            "view0: camera: expected a KnownCamera or None, got ndarray",
        ),
        (([np.zeros((70, 80), np.uint8)], None, None, None, [{}]), "view0: mask: expected .* got dict"),
        (([],), "no images given"),
        (([np.zeros((4, 4))],), "view0: expected an image"),
        ((["missing.jpg"],), "missing.jpg: no such image file"),
        (
            ([np.zeros((70, 80), np.uint8)] * 2, [POINTS]),
            "landmarks: expected one entry for each of the 2 images, got 1",
        ),
        (([np.zeros((70, 80), np.uint8)], [POINTS[:5]]), r"view0: landmarks: expected 68 points"),
        (([np.zeros((70, 80), np.uint8)], [POINTS + 900]), "view0: 68 of 68 landmarks lie outside"),
        (([np.zeros((70, 80), np.uint8)], None, ["../a"]), r"'../a' cannot be the name of a view"),
        (
            ([np.zeros((70, 80), np.uint8)] * 2, None, ["a", "A"]),
            "image 0 and image 1 share the name 'A'.*give names",
        ),
        (
            ([np.zeros((70, 80), np.uint8)], None, None, None, [np.ones((3, 3))]),
            "view0: mask: a mask must have the size",
        ),
    ],
)
def test_images_that_cannot_be_used(arguments, message):
    with pytest.raises(InputError, match=message):
        subject_from_images(*arguments)


@pytest.mark.skipif(not BENCH.is_dir(), reason="the shared test data are not here")
def test_bench_subject_with_its_cameras(tmp_path):
    source = BENCH / "multiview_00"
    for p in source.iterdir():
        (tmp_path / p.name).symlink_to(p)
    (tmp_path / "cameras.json").symlink_to(BENCH / "ground_truth/multiview_00/cameras.json")
    subject = load_subject(tmp_path)
    assert len(subject.views) == 5 and subject.notes == ()
    truth = np.load(BENCH / "ground_truth/multiview_00/landmarks3d.npy")
    for view in subject.views:
        p = (truth @ view.camera.R.T + view.camera.t) @ view.camera.K.T
        error = p[:, :2] / p[:, 2:] - view.landmarks[:, :2]
        assert np.abs(error.mean(0)).max() < 0.6  # the points carry 1.2 px of noise, so their mean 0.15 px
        assert 0.9 < error.std() < 1.5


def test_a_result_is_no_folder_of_photos(tmp_path):
    for name in ("metrics.json", "parameters.npz"):
        (tmp_path / name).write_text("")
    photo(tmp_path / "preview.png"), photo(tmp_path / "texture.png")
    with pytest.raises(
        InputError, match="is a result of fitkit fit, no folder with photos; give the folder with the photos"
    ):
        load_subject(tmp_path)
    photo(tmp_path / "anna.png")  # somebody keeps photos there
    assert "anna" in [v.name for v in load_subject(tmp_path).views]


def test_photos_of_one_folder_and_the_files_beside_them(tmp_path):
    for name in ("a", "b10", "b2", "other"):
        photo(tmp_path / f"{name}.png")
    pts(tmp_path / "a.pts")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.pad(np.full((30, 40), 255, np.uint8), 20)).save(tmp_path / "masks" / "b2.png")
    cameras(tmp_path, {name: {"K": K} for name in ("a", "b2", "b10", "other")})
    (tmp_path / "notes.md").write_text("text")
    subject = load_photos([tmp_path / f"{n}.png" for n in ("b10", "a", "b2", "a")])
    assert (subject.name, subject.path, subject.notes) == ("b10", None, ())
    assert [v.name for v in subject.views] == ["a", "b2", "b10"]
    a, b, _ = subject.views
    assert a.landmark_source == "file" and b.landmarks is None and b.mask is not None and a.mask is None
    assert all(v.camera is not None for v in subject.views)
    assert [v.name for v in read_subject([tmp_path / "b2.png"]).views] == ["b2"] and len(
        read_subject([tmp_path]).views
    ) == 4


def test_photos_of_several_folders(tmp_path):
    pose = {"R": np.eye(3).tolist(), "t": [0, 0, 900]}
    for day in ("monday", "tuesday"):
        photo(tmp_path / day / "front.png")
        photo(tmp_path / day / f"{day}.png")
        cameras(tmp_path / day, {"front": {"K": K} | pose})
    pts(tmp_path / "tuesday" / "front.pts")
    subject = load_photos([*tmp_path.glob("*/front.png"), tmp_path / "monday/monday.png"])
    assert [v.name for v in subject.views] == ["monday", "monday_front", "tuesday_front"]
    assert [v.landmark_source for v in subject.views] == ["", "", "file"]
    assert subject.views[1].camera.K is not None and subject.views[1].camera.R is None
    assert subject.notes == (
        "cameras.json: no camera for: monday.png",
        "the photos have several cameras.json: their K is used, their R and "
        "t are not, since each may count from another origin",
    )
    alone = load_photos([tmp_path / "monday/front.png", tmp_path / "tuesday/tuesday.png"])
    assert alone.views[0].camera.R is not None  # of one folder only


def test_photos_that_cannot_be_used(tmp_path):
    for name in ("a.png", "b.png", "sub/c.png"):
        photo(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"cut")
    assert (
        load_photos([tmp_path / "sub/c.png", tmp_path / "b.png"])
        .notes[0]
        .startswith(f"left out: {tmp_path / 'b.png'}: not a readable")
    )
    for paths, message in (
        ([], "no photos given"),
        ([tmp_path / "b.png"], "b.png: not a readable image"),
        ([tmp_path], "got a folder"),
        ([tmp_path / "d.png"], "d.png: no such photo"),
    ):
        with pytest.raises(InputError, match=message):
            load_photos(paths)
    (tmp_path / "a.pts").write_text("1 2")
    with pytest.raises(InputError, match="a.pts: "):  # as in a folder: a wrong file is not passed over
        load_photos([tmp_path / "a.png", tmp_path / "sub/c.png"])


def test_folders_that_are_subjects(tmp_path):
    for name in (
        "b",
        "a",
        "a/old",
        "a/masks",
        "a/landmarks",
        "a/fitkit",
        "a/.hidden",
        "a/result/overlay",
        "ground_truth/a",
        "elsewhere",
    ):
        photo(tmp_path / "people" / name / "1.jpg")
    photo(tmp_path / "people" / "b" / "2.jpg")
    for name in ("metrics.json", "parameters.npz"):
        (tmp_path / "people" / "a" / "result" / name).write_text("")
    (tmp_path / "people" / "elsewhere").rename(tmp_path / "elsewhere")
    (tmp_path / "people" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "people" / "loop").symlink_to("loop")
    (tmp_path / "people" / "a" / "._x.jpg").write_bytes(b"")  # of a file browser

    def names(**options):
        return [
            p.relative_to(tmp_path / "people").as_posix()
            for p in subject_folders(tmp_path / "people", **options)
        ]

    assert names() == ["a", "a/old", "b", "link"] and names(min_views=2) == ["b"]


def test_names_that_are_not_utf8(tmp_path):
    assert (
        readable("Zo\udceb") == "Zo\u00eb"
        and readable("Zo\u00eb") == "Zo\u00eb"
        and readable("x\ud800") == "x?"
    )
    folder = tmp_path / "anna"
    photo(folder / "a.png")
    pts(folder / "a.pts")
    for suffix in ("png", "pts"):
        (folder / f"a.{suffix}").rename(folder / f"Zo\udceb.{suffix}")
    cameras(folder, {"views": [{"image": "Zo\u00eb.png", "K": K}]})
    (view,) = load_subject(folder).views
    assert view.name == "Zo\u00eb" and view.landmarks is not None and view.camera is not None
    assert subject_from_images([folder / "Zo\udceb.png"]).views[0].name == "Zo\u00eb"


def test_moments_of_images_and_of_folders(tmp_path):
    images = [np.full((40, 40, 3), 9 * i, np.uint8) for i in range(3)]
    subject = subject_from_images(images, moments=["smile", "smile", None])
    assert [v.moment for v in subject.views] == ["smile", "smile", ""]
    with pytest.raises(InputError, match="view1: moment: expected a name in quotes, .* got 2"):
        subject_from_images(images, moments=["smile", 2, None])
    with pytest.raises(InputError, match="moments: expected one entry for each of the 3 images, got 1"):
        subject_from_images(images, moments=["smile"])

    # The same name in two folders says nothing about photos of both.
    camera = {"K": K, "moment": "smile", "camera_id": "left"}
    for name in ("monday", "friday"):
        photo(tmp_path / name / "a.jpg")
        photo(tmp_path / name / "b.jpg")
        (tmp_path / name / "cameras.json").write_text(json.dumps({"a.jpg": camera, "b.jpg": camera}))
    views = load_photos(sorted(tmp_path.glob("*/*.jpg"))).views
    assert len({v.moment for v in views}) == 2 and views[0].moment == views[1].moment != views[2].moment
    assert views[0].camera.name == views[1].camera.name != views[2].camera.name
    views = load_photos(sorted(tmp_path.glob("monday/*.jpg"))).views
    assert {(v.moment, v.camera.name) for v in views} == {("smile", "left")}
