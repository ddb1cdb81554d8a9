import numpy as np
import pytest
from PIL import Image

from fitkit.errors import InputError
from fitkit.io import images
from fitkit.io.images import Distortion, ImageFile, open_image, picture_from_array, read_image

RNG = np.random.default_rng(0)
RGB = np.kron(RNG.integers(0, 256, (5, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)  # 40 x 48 px, blocks
GREY = RGB[..., 0]
ORIENTATION, EXIF_IFD, F35, F_MM, X_RES, RES_UNIT, WIDTH, HEIGHT = (
    274,
    0x8769,
    41989,
    37386,
    41486,
    41488,
    40962,
    40963,
)


def save(path, array_or_image, **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    "name, tolerance",
    [("a.png", 0), ("a.bmp", 0), ("a.tif", 0), ("a.TIFF", 0), ("a.jpg", 1), ("a.JPEG", 1), ("a.webp", 10)],
)
def test_formats(tmp_path, name, tolerance):
    options = (
        {"quality": 98, "subsampling": 0}
        if "jp" in name.lower()
        else {"quality": 98}
        if "webp" in name
        else {}
    )
    array, focal = read_image(save(tmp_path / name, RGB, **options))
    assert array.shape == (40, 48, 3) and array.dtype == np.uint8 and focal is None
    assert np.abs(array.astype(int) - RGB).mean() <= tolerance  # WebP halves the colour resolution


def test_modes(tmp_path):
    grey3 = np.repeat(GREY[..., None], 3, -1)

    def read(image, name="a.png"):
        return read_image(save(tmp_path / name, image))[0]

    assert (read(GREY) == grey3).all()
    assert (read(GREY.astype(np.uint16) * 257) == grey3).all()
    assert (read(GREY.astype(np.uint16) * 257, "a.tif") == grey3).all()
    assert (read(Image.fromarray(GREY / np.float32(255)), "a.tif") == grey3).all()
    assert (read(Image.fromarray(GREY.astype(np.float32)), "a.tif") == grey3).all()
    assert (read(Image.fromarray(GREY.astype(np.int32)), "a.tif") == grey3).all()
    assert (read(Image.fromarray(GREY > 127)) == np.where(grey3 > 127, 255, 0)).all()
    palette = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE)
    assert (read(palette) == np.array(palette.convert("RGB"))).all()
    cmyk = Image.fromarray(RGB).convert("CMYK")
    assert np.abs(read(cmyk, "a.tif").astype(int) - RGB).max() <= 1


def test_sixteen_bit_colour_png(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), RGB[..., ::-1].astype(np.uint16) * 257)
    assert np.abs(read_image(tmp_path / "a.png")[0].astype(int) - RGB).max() <= 1


def test_transparent_pixels_become_white(tmp_path):
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:8] = 0
    array = read_image(save(tmp_path / "a.png", np.dstack([RGB, alpha])))[0]
    assert (array[:8] == 255).all() and (array[8:] == RGB[8:]).all()
    array = read_image(save(tmp_path / "b.png", np.dstack([GREY, alpha])))[0]
    assert (array[:8] == 255).all() and (array[8:, :, 1] == GREY[8:]).all()


@pytest.mark.parametrize(
    "orientation, turn",
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = open_image(save(tmp_path / "a.png", RGB, exif=exif))
    assert (file() == turn(RGB)).all()
    assert file.size == turn(RGB).shape[1::-1]


def with_exif(tmp_path, size=(48, 36), **tags):
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD).update({globals()[k]: v for k, v in tags.items()})
    return read_image(save(tmp_path / "a.jpg", Image.new("RGB", size), exif=exif))[1]


def test_focal_length_from_exif(tmp_path):
    diagonal = np.hypot(36, 48)
    assert with_exif(tmp_path, F35=50) == pytest.approx(50 * diagonal / 43.2666)
    # 24 mm lens, 100 sensor pixels per cm, the picture reduced from 96 to 48 px: 24 mm * 10 / mm / 2.
    assert with_exif(tmp_path, F_MM=24.0, X_RES=100.0, RES_UNIT=3, WIDTH=96, HEIGHT=72) == pytest.approx(
        120.0
    )
    assert with_exif(
        tmp_path, F35=50, F_MM=24.0, X_RES=100.0, RES_UNIT=3, WIDTH=96, HEIGHT=72
    ) == pytest.approx(50 * diagonal / 43.2666)
    assert with_exif(tmp_path, F35=50, WIDTH=48, HEIGHT=72) is None, "cropped: other proportions than stated"
    for sides in ((48, 36), (36, 48), (60, 40), (64, 36), (50, 50), (428, 285)):
        assert with_exif(tmp_path, sides, F35=50) == pytest.approx(50 * np.hypot(*sides) / 43.2666)
    for sides in ((48, 40), (100, 40), (210, 200)):
        assert with_exif(tmp_path, sides, F35=50) is None, "cropped: no sensor has such sides"
    assert with_exif(tmp_path, F35=0) is None
    assert with_exif(tmp_path, F_MM=24.0) is None
    assert with_exif(tmp_path, F35=60000) is None


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\xff\xff" * 9,
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # fitkit.io.images does the same, pytest resets it
def test_damaged_exif_data_leave_the_photo_usable(tmp_path, exif):
    array, focal = read_image(save(tmp_path / "a.jpg", RGB, exif=exif))
    assert array.shape == RGB.shape and focal is None


@pytest.mark.parametrize(
    "content", [b"", b"a text file", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "cut", "cut png", "pdf"]
)
def test_unreadable_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "bad.jpg"
    if content == "cut":
        whole = save(
            tmp_path / "whole.jpg", RNG.integers(0, 256, (300, 300, 3)).astype(np.uint8)
        ).read_bytes()
        content = whole[: len(whole) // 2]
    elif content == "cut png":
        whole = save(
            tmp_path / "whole.png", RNG.integers(0, 256, (300, 300, 3)).astype(np.uint8)
        ).read_bytes()
        content = whole[: len(whole) // 2]
    elif content == "pdf":
        content = save(tmp_path / "a.pdf", RGB).read_bytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.jpg: not a readable image .*corrupt.*remove it"):
        open_image(path)


def test_missing_small_and_huge_images(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="none.png: no such image file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(InputError, match=r"the image has 10 x 20 px; expected at least 32 x 32"):
        open_image(save(tmp_path / "s.png", RGB[:20, :10]))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(InputError, match=r"larger than .* megapixels; reduce it"):
        open_image(save(tmp_path / "h.png", RGB))


def test_eight_thousand_by_six_thousand_pixels(tmp_path):
    path = save(tmp_path / "big.jpg", Image.new("RGB", (8000, 6000), (200, 120, 90)))
    file = open_image(path)
    assert file.size == (8000, 6000)
    assert file().shape == (6000, 8000, 3)


def test_arrays_are_cached_up_to_a_limit(tmp_path, monkeypatch):
    cache = images._Cache(3 * RGB.nbytes)
    monkeypatch.setattr(images, "_CACHE", cache)
    files = [open_image(save(tmp_path / f"{i}.png", RGB)) for i in range(5)]
    assert len(cache.items) == 3 and cache.used == 3 * RGB.nbytes
    assert files[4]() is files[4]()
    assert (files[0]() == RGB).all() and files[0] in cache.items and len(cache.items) == 3
    with pytest.raises(ValueError, match="read-only"):
        files[0]()[0] = 0


def test_masks(tmp_path):
    wanted = GREY > 127
    for i, image in enumerate(
        [
            wanted,
            wanted.astype(np.uint8),
            wanted.astype(np.uint16),
            np.dstack([wanted * np.uint8(255)] * 3),
            np.dstack([wanted * np.uint8(9), np.full(GREY.shape, 255, np.uint8)]),
            Image.fromarray(wanted * np.uint8(255)).convert("P"),
        ]
    ):
        mask = open_image(save(tmp_path / f"{i}.png", image), mask=True)()
        assert mask.dtype == bool and (mask == wanted).all()


@pytest.mark.parametrize(
    "values, wanted, note",
    [
        (
            np.where(GREY > 127, 250, 3).astype(np.uint8),
            GREY > 127,
            "of its values, 0 to 250, those from 125 on count as usable",
        ),
        (GREY, GREY >= GREY.max() / 2, "count as usable"),
        (np.float32(GREY > 127) * 0.9 + 0.01, GREY > 127, "of its values, 0 to 0.91"),
        (GREY % 18, GREY % 18 > 0, None),  # parts of a face
        (GREY > 127, GREY > 127, None),
    ],
)
def test_soft_masks(tmp_path, values, wanted, note):
    file = open_image(save(tmp_path / "a.tif", Image.fromarray(values)), mask=True)
    assert (file() == wanted).all()
    assert file.notes == () if note is None else note in file.notes[0]


def test_transparency_is_a_mask(tmp_path):
    shape = GREY > 127
    alpha = np.where(shape, 200, 90).astype(np.uint8)
    file = open_image(save(tmp_path / "a.png", np.dstack([RGB, alpha])))
    assert file.cut_out and file.notes == ()
    assert (open_image(tmp_path / "a.png", mask=True)() == shape).all()
    white = open_image(save(tmp_path / "b.png", np.dstack([np.full_like(RGB, 255), alpha])), mask=True)
    assert (white() == shape).all() and white.notes == ("the mask is in its alpha channel",)
    for level in (255, 128):
        file = open_image(save(tmp_path / "c.png", np.dstack([RGB, np.full_like(alpha, level)])))
        assert not file.cut_out and file.notes == ()
    file = open_image(save(tmp_path / "d.png", np.dstack([RGB, alpha * 0])))
    assert not file.cut_out and (file() == RGB).all() and "it was not used" in file.notes[0]


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.jfif", {"format": "JPEG", "quality": 98}),
        ("a.jpe", {"format": "JPEG"}),
        ("a.jp2", {}),
        ("a.ppm", {}),
        ("a.pgm", {}),
        ("a.avif", {"quality": 95}),
    ],
)
def test_unusual_formats(tmp_path, name, options):
    if name == "a.avif" and "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    assert (tmp_path / name).suffix in images.SUFFIXES
    array, _ = read_image(save(tmp_path / name, RGB if name != "a.pgm" else GREY, **options))
    assert np.abs(array.astype(int) - (RGB if name != "a.pgm" else GREY[..., None])).mean() < 12


@pytest.mark.parametrize("name", ["a.heic", "a.HIF", "a.jpg"])
def test_heic_that_cannot_be_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 16)
    with pytest.raises(
        InputError, match=f"{name}: not readable as a HEIC or AVIF photo.*; convert it to JPEG"
    ):
        open_image(tmp_path / name)


def test_raw_photos_are_not_read(tmp_path):
    save(tmp_path / "a.tif", RGB).rename(tmp_path / "a.DNG")  # the preview in it would be
    with pytest.raises(InputError, match="a.DNG: raw photos are not read; convert it to JPEG"):
        open_image(tmp_path / "a.DNG")


@pytest.mark.parametrize("kind", ["png", "tif", "ppm", "jp2"])
@pytest.mark.parametrize("bits, channels", [(10, 1), (12, 1), (12, 3), (12, 4), (14, 3), (16, 3), (16, 1)])
def test_fewer_bits_in_files_of_sixteen(tmp_path, kind, bits, channels):
    import cv2

    top = 2**bits - 1
    values = np.round((RGB if channels > 1 else GREY) * (top / 255)).astype(np.uint16)
    if channels == 4:
        if kind in ("ppm", "jp2"):
            pytest.skip("no such files")
        values = np.dstack([values, np.full(GREY.shape, 65535, np.uint16)])
    path = tmp_path / f"a.{'pgm' if kind == 'ppm' and channels == 1 else kind}"
    colors = (
        values
        if channels == 1
        else cv2.cvtColor(values, cv2.COLOR_RGB2BGR if channels == 3 else cv2.COLOR_RGBA2BGRA)
    )
    if not cv2.imwrite(
        str(path), colors, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000] if kind == "jp2" else []
    ):
        pytest.skip("OpenCV does not write it here")
    file = open_image(path)
    assert np.abs(file().astype(int) - (RGB if channels > 1 else GREY[..., None])).max() <= (
        12 if kind == "jp2" else 1
    )
    assert (f"; {top} was taken as white" in "".join(file.notes)) == (bits < 16)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # of the one that is cut off
def test_floating_point(tmp_path, channels):
    import cv2

    light = ((RGB if channels == 3 else GREY) / 255.0).astype(np.float32)
    read = []
    for number, values in enumerate(
        [
            light,
            light.astype(np.float64),
            light * 254.9,
            light**2.2 * 4,
            np.where(light > 0.95 * light.max(), 500, light**2.2).astype(np.float32),
        ]
    ):
        path = tmp_path / f"{number}.tif"
        cv2.imwrite(str(path), values if channels == 1 else np.ascontiguousarray(values[..., ::-1]))
        read.append(open_image(path))
    for file, note in zip(read, (None, None, "255 was taken as white", "linear light", "linear light")):
        assert (
            np.corrcoef(
                file().ravel(),
                np.broadcast_to(light if channels == 3 else light[..., None], RGB.shape).ravel(),
            )[0, 1]
            > 0.9
        )  # the brightest is cut
        assert file.notes == () if note is None else note in file.notes[0]
    assert (read[0]() == (RGB if channels == 3 else GREY[..., None])).all()
    (tmp_path / "cut.tif").write_bytes((tmp_path / "0.tif").read_bytes()[:300])
    with pytest.raises(InputError, match="cut.tif: not a readable image"):
        open_image(tmp_path / "cut.tif")


@pytest.mark.parametrize("channels", [1, 3])
def test_floating_point_around_zero(tmp_path, channels):
    import cv2

    pixels = RGB if channels == 3 else GREY
    cv2.imwrite(
        str(tmp_path / "a.tif"),
        np.float32(pixels[..., ::-1] if channels == 3 else pixels) / np.float32(127.5) - 1,
    )
    file = open_image(tmp_path / "a.tif")
    assert (file() == pixels.reshape(*pixels.shape[:2], channels)).all()
    assert file.notes == ("its values go from -1 to 1; -1 was taken as black",)


def test_floating_point_that_is_too_large(tmp_path, monkeypatch):
    import cv2

    cv2.imwrite(str(tmp_path / "a.tif"), RGB.astype(np.float32))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(InputError, match="a.tif: the image is larger than .* megapixels"):
        open_image(tmp_path / "a.tif")


def test_undistortion_inverts_the_lens(tmp_path):
    import cv2

    K, k = np.array([[60.0, 0, 23.5], [0, 60, 19.5], [0, 0, 1]]), np.array([-0.2, 0.05, 0.001, -0.002])
    ideal = np.array([[10.0, 12.0], [23.5, 19.5], [40.0, 30.0], [np.nan, np.nan]])
    rays = np.column_stack([(ideal - K[:2, 2]) / 60, np.ones(4)])[:3]
    photo = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), K, k)[0][:, 0]
    undone = Distortion(K, k).undistort_points(np.vstack([photo, [[np.nan, np.nan]]]))
    np.testing.assert_allclose(undone, ideal, atol=1e-3)  # OpenCV iterates

    photo = cv2.fisheye.distortPoints((rays[None, :, :2]), K, k)[0]
    undone = Distortion(K, k, fisheye=True).undistort_points(np.vstack([photo, [[np.nan, np.nan]]]))
    np.testing.assert_allclose(undone, ideal, atol=1e-3)
    beyond = np.array([[23.5 + 60 * 1.7, 19.5]])  # more than 90 degrees from the axis
    assert np.isnan(Distortion(K, np.zeros(4), fisheye=True).undistort_points(beyond)).all()

    picture = np.zeros((40, 48), np.uint8)
    x, y = np.round(photo[2]).astype(int)
    picture[y - 1 : y + 2, x - 1 : x + 2] = 255
    moved = np.argwhere(Distortion(K, k, fisheye=True).undistort_image(picture) > 99).mean(0)[::-1]
    assert np.abs(moved - ideal[2]).max() < 1
    file = open_image(save(tmp_path / "a.png", RGB)).undistorted(Distortion(K, k))
    assert isinstance(file, ImageFile) and file().shape == RGB.shape and not (file() == RGB).all()


@pytest.mark.parametrize(
    "array",
    [
        GREY,
        RGB,
        np.dstack([RGB, np.full(GREY.shape, 255, np.uint8)]),
        RGB.astype(np.uint16) * 257,
        RGB / 255.0,
    ],
)
def test_arrays_from_the_caller(array):
    result = picture_from_array(array, "view0").pixels
    assert result.dtype == np.uint8 and result.shape == RGB.shape
    assert (result == (RGB if array.ndim == 3 else GREY[..., None])).all()


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((3, 40, 40), np.uint8), r"view0: expected an image \[H, W\].*got shape \[3, 40, 40\]"),
        (np.zeros((4, 4), np.uint8), "at least 32 x 32"),
        (np.zeros(7), "got shape"),
        (RGB.astype(float), "must lie in 0..1, got .*divide by 255"),
        (RGB.astype(np.int64), "expected uint8, uint16 or float"),
        (np.full((40, 40), np.nan), "must lie in 0..1"),
        (None, "view0: expected an image .*got NoneType"),
        ([[1, 2], [3]], "view0: expected an image .*got list"),
    ],
)
def test_arrays_that_are_no_images(array, message):
    with pytest.raises(InputError, match=message):
        picture_from_array(array, "view0")
