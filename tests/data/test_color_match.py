"""Colours of other pictures: one map for all photos of a person."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fitkit.data.augment import FaceAugmentation, augment
from fitkit.data.color_match import color_table, match_colors
from fitkit.errors import InputError
from fitkit.observe.crop import CropOptions
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations


def photos(seed=0, size=40, views=2):
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(views, 3, 5, 5, generator=rng)
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear").clamp(0, 1)
    images = (images * 255).round() / 255
    points = 5 + 30 * torch.rand(views, 68, 2, generator=rng)
    ones = torch.ones(views, 68)
    marks = Landmarks(points, ones, ones > 0, ones, "surface")
    mask = torch.ones(views, size, size, dtype=torch.bool)
    return Observations(images, marks, mask, torch.ones(views), torch.zeros(views, 2))


@pytest.fixture
def references(tmp_path):
    rng = np.random.default_rng(1)
    folder = tmp_path / "references"
    folder.mkdir()
    picture = rng.normal((180, 90, 60), (20, 30, 8), (40, 40, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(picture).save(folder / "a.png")
    return folder, picture


def test_a_whole_picture_is_matched_as_skimage_does(references):
    exposure = pytest.importorskip("skimage.exposure")
    folder, picture = references
    seen = photos(views=1)
    nowhere = replace(seen.landmarks, valid=torch.zeros(1, 68, dtype=torch.bool))
    mine = match_colors(replace(seen, landmarks=nowhere), str(folder), np.random.default_rng(0)).images[0]
    image = (seen.images[0].permute(1, 2, 0) * 255).round().byte().numpy()
    theirs = exposure.match_histograms(image.astype(float), picture.astype(float), channel_axis=-1)
    np.testing.assert_allclose(mine.permute(1, 2, 0).numpy() * 255, theirs, atol=0.01)


def test_equal_colours_of_two_photos_stay_equal_and_the_face_alone_decides(references):
    folder, picture = references
    seen = photos()
    images = seen.images.clone()
    images[1] = images[0].flip(-1)  # the same colours in other places
    out = match_colors(replace(seen, images=images), str(folder), np.random.default_rng(0)).images
    torch.testing.assert_close(out[1], out[0].flip(-1))
    around = images.clone()
    around[:, :, :4], around[:, :, -4:] = 0.0, 1.0  # beyond the boxes of the landmarks
    again = match_colors(replace(seen, images=around), str(folder), np.random.default_rng(0)).images
    torch.testing.assert_close(again[:, :, 5:34], out[:, :, 5:34])
    mean = torch.from_numpy(picture.reshape(-1, 3).mean(0)).float() / 255
    assert float((out[0, :, 8:32, 8:32].mean((1, 2)) - mean).abs().max()) < 0.12
    assert float((images[0, :, 8:32, 8:32].mean((1, 2)) - mean).abs().max()) > 0.15
    hidden = replace(
        seen, images=images, mask=torch.zeros_like(seen.mask).index_fill(2, torch.arange(20), True)
    )
    kept = match_colors(hidden, str(folder), np.random.default_rng(0)).images
    assert torch.equal(kept[..., 20:], images[..., 20:]) and not torch.equal(kept[..., :20], images[..., :20])


def test_a_table_takes_levels_where_as_much_lies_below():
    source, target = np.zeros(256, int), np.zeros(256, int)
    source[[10, 20]] = 50, 50
    target[[100, 200]] = 50, 50
    table = color_table(source, target)
    assert table[10] == 100 and table[20] == 200 and np.all(np.diff(table) >= 0)


def test_it_is_an_augmentation_of_a_share_of_the_people(references):
    folder, _ = references
    seen, crop = photos(), CropOptions(1.5, 0.0, 32, 32)
    still = FaceAugmentation(shift=0.0, gain=0.0, offset=0.0)
    plain = augment(seen, crop, still, np.random.default_rng(0), "p").images
    for share, same in ((0.0, True), (1.0, False)):
        options = replace(still, references=str(folder), matched=share)
        out = augment(seen, crop, options, np.random.default_rng(0), "p").images
        assert torch.equal(out, plain) == same


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a folder of pictures whose colours photos may take"):
        match_colors(photos(), str(tmp_path), np.random.default_rng(0))
