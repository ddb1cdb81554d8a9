import numpy as np
import pytest
import torch

from fitkit.geometry.color import linear_from_srgb, srgb_from_linear
from fitkit.observe import crop
from fitkit.observe.crop import CropOptions, crop_views
from fitkit.observe.landmarks.types import Landmarks


def ramp(H, W):
    """A photo whose red and green tell the pixel: red = x, green = y (up to 255)."""
    y, x = np.mgrid[:H, :W]
    return np.stack([x, y, np.full_like(x, 40)], -1).astype(np.uint8)


def marks(boxes):
    gen = torch.Generator().manual_seed(0)
    points = []
    for x0, y0, x1, y1 in boxes:
        p = torch.rand(68, 2, generator=gen) * torch.tensor([x1 - x0, y1 - y0]) + torch.tensor([x0, y0])
        p[0], p[1] = torch.tensor([x0, y0]), torch.tensor([x1, y1])
        points.append(p)
    n = len(boxes)
    return Landmarks(
        torch.stack(points).float(),
        torch.full((n, 68), 2.0),
        torch.ones(n, 68, dtype=torch.bool),
        torch.ones(n, 68),
        "surface",
    )


def test_crop_and_photo_pixels_round_trip():
    found = marks([(60, 50, 180, 190), (100, 90, 150, 130)])
    obs = crop_views([ramp(240, 250), ramp(200, 220)], [None, None], found)
    back = obs.landmarks.points / obs.scale[:, None, None] + obs.offset[:, None]
    torch.testing.assert_close(back, found.points, atol=1e-3, rtol=0)
    torch.testing.assert_close(obs.landmarks.sigma, found.sigma * obs.scale[:, None])
    assert obs.landmarks.jaw == "surface" and obs.size[0] == obs.size[1] and obs.size[0] % 16 == 0
    assert abs(obs.pixel_unit - obs.size[0] / 224) < 1e-9


@pytest.mark.parametrize("size", [64, 192, 400])
def test_content_follows_the_landmarks(size):
    # The pictures are ramps, so the colour read at a crop pixel is the photo position it shows.
    found = marks([(70, 60, 170, 180)])
    photo = ramp(250, 250).astype(np.float32)  # OpenCV enlarges 8-bit images with errors of up to 0.7 levels
    obs = crop_views([photo], [None], found, CropOptions(max_size=size, min_size=size))
    assert obs.size == (-(-size // 16) * 16,) * 2
    y, x = torch.meshgrid(torch.arange(obs.size[0]), torch.arange(obs.size[1]), indexing="ij")
    place = torch.stack([x, y], -1) / obs.scale[0] + obs.offset[0]
    inner = obs.mask[0]
    inner[:2] = inner[-2:] = inner[:, :2] = inner[:, -2:] = False  # enlarging repeats the edge
    shown = obs.images[0, :2].permute(1, 2, 0) * 255
    torch.testing.assert_close(shown[inner], place[inner], atol=2e-3, rtol=0)


def test_all_views_share_one_size_and_faces_fill_the_same_share():
    found = marks([(60, 50, 180, 190), (100, 90, 150, 130)])
    obs = crop_views([ramp(240, 250), ramp(200, 220)], [None, None], found, CropOptions(margin=1.6))
    spread = obs.landmarks.points.amax(1) - obs.landmarks.points.amin(1)
    torch.testing.assert_close(spread.amax(1), torch.full((2,), obs.size[0] / 1.6), rtol=0.03, atol=0)


def test_what_lies_beyond_the_photo_or_the_mask_is_grey_and_not_usable():
    found = marks([(5, 5, 120, 130)])
    mask = np.ones((200, 200), bool)
    mask[:, 100:] = False
    obs = crop_views([ramp(200, 200)], [mask], found)
    y, x = torch.meshgrid(torch.arange(obs.size[0]), torch.arange(obs.size[1]), indexing="ij")
    place = torch.stack([x, y], -1) / obs.scale[0] + obs.offset[0]
    beyond = (place < -1).any(-1)
    assert int(beyond.sum()) > 100 and not bool(obs.mask[0][beyond].any())
    torch.testing.assert_close(obs.images[0][:, beyond], torch.full((3, int(beyond.sum())), 128 / 255))
    assert not bool(obs.mask[0][place[..., 0] > 100].any())
    assert bool(obs.mask[0][(place > 1).all(-1) & (place[..., 0] < 98)].all())


def test_points_that_are_not_valid_do_not_move_the_crop():
    found = marks([(60, 50, 180, 190)])
    points, valid = found.points.clone(), found.valid.clone()
    points[0, 10], valid[0, 10] = torch.nan, False
    other = Landmarks(points, found.sigma, valid, found.confidence)
    one, two = (crop_views([ramp(240, 250)], [None], f) for f in (found, other))
    assert torch.equal(one.offset, two.offset) and torch.equal(one.scale, two.scale)


def test_linear_luminance_of_grey():
    found = marks([(60, 50, 180, 190)])
    obs = crop_views([np.full((240, 250, 3), 188, np.uint8)], [None], found)
    # IEC 61966-2-1: 188/255 is 0.5029 linear
    torch.testing.assert_close(
        obs.linear_luminance[obs.mask[:, None]], torch.full((int(obs.mask.sum()),), 0.5029), atol=1e-4, rtol=0
    )
    values = torch.linspace(0, 1, 100)
    torch.testing.assert_close(srgb_from_linear(linear_from_srgb(values)), values, atol=1e-6, rtol=0)


def test_a_crop_that_is_scaled_down_before_it_is_padded_shows_the_same(monkeypatch):
    photo = np.full((240, 250, 3), 90, np.uint8)
    photo[60:180, 70:190] = np.indices((120, 120)).sum(0)[..., None] // 2 + 60
    found, options = marks([(60, 50, 180, 190)]), CropOptions(margin=5.0, max_size=128)
    whole = crop_views([photo], [None], found, options)  # a square of 700 px
    monkeypatch.setattr(crop, "MOST_PADDED", 350)
    small = crop_views([photo], [None], found, options)
    torch.testing.assert_close(small.scale, whole.scale)
    torch.testing.assert_close(small.offset, whole.offset)
    # The mean of blocks is rounded once more, and a block of two pixels is spread evenly over the pixels that
    # share it.
    apart = (small.images - whole.images).abs()
    assert (
        float(apart.max()) < 9 / 255
        and float(apart.mean()) < 0.3 / 255
        and torch.equal(small.mask, whole.mask)
    )


@pytest.mark.parametrize("x", [2e4, 1e9, 3e37])
def test_a_point_far_away_asks_for_no_more_memory(monkeypatch, x):
    monkeypatch.setattr(crop, "MOST_PADDED", 500)
    sizes, pad = [], crop.cv2.copyMakeBorder

    def padded(*arguments, **options):
        out = pad(*arguments, **options)
        sizes.append(max(out.shape[:2]))
        return out

    monkeypatch.setattr(crop.cv2, "copyMakeBorder", padded)
    found = marks([(60, 50, 180, 190)])
    found.points[0, 5, 0] = x
    obs = crop_views([ramp(240, 250)], [None], found)
    assert sizes and max(sizes) <= 500
    assert obs.images.shape == (1, 3, 512, 512) and bool(torch.isfinite(obs.landmarks.points).all())


def test_a_crop_beside_the_photo_is_grey():
    obs = crop_views(
        [ramp(240, 250)], [None], marks([(5000, 9000, 5100, 9100)]), CropOptions(max_size=96, min_size=96)
    )
    assert float((obs.images - 128 / 255).abs().max()) < 1.0 and int(obs.mask.sum()) <= 4


def test_a_published_crop_is_black_beyond_the_photo_and_cubic():
    """As PIL makes it: crop, which fills with 0, then resize with BICUBIC."""
    from PIL import Image

    photo = np.random.default_rng(0).integers(0, 255, (240, 250, 3), np.uint8)
    found = marks([(2, 20, 120, 130)])
    plain = crop_views([photo], [None], found, CropOptions(max_size=96, min_size=96))
    obs = crop_views(
        [photo], [None], found, CropOptions(max_size=96, min_size=96, fill="black", resize="cubic")
    )
    side = round(96 / float(obs.scale[0]))
    x, y = (int(round(float(v + 0.5 - 0.5 / obs.scale[0]))) for v in obs.offset[0])
    expected = np.asarray(
        Image.fromarray(photo).crop((x, y, x + side, y + side)).resize((96, 96), Image.BICUBIC)
    )
    np.testing.assert_array_equal((obs.images[0].permute(1, 2, 0) * 255).round().byte().numpy(), expected)
    assert x < -1 and not bool(obs.mask[0, :, 0].any()) and float(obs.images[0, :, 50, 0].max()) == 0
    assert float(plain.images[0, 0, 50, 0]) == pytest.approx(128 / 255)  # unless asked for, grey as ever
    assert torch.equal(plain.mask, obs.mask) and torch.equal(plain.landmarks.points, obs.landmarks.points)
