"""Masks of heads by the face parser: in fits, textures and `fitkit detect`."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers import tiny_model, tiny_result

from fitkit.errors import InputError
from fitkit.export.texture import blend_texture
from fitkit.fitting import head_masks
from fitkit.fitting.head_masks import head_mask, load_parser, usable_pixels
from fitkit.fitting.recipe import MaskOptions, load_recipe
from fitkit.fitting.run import fit
from fitkit.io.subject import View
from fitkit.nets import save_predictor
from fitkit.nets.parser.by_colors import ByColors
from fitkit.nets.parser.network import Parser, ParserOptions
from fitkit.nets.parser.photos import ByNetwork, parse_photo
from fitkit.observe.crop import CropOptions
from fitkit.observe.face_parts import PARTS, UNKNOWN
from fitkit.observe.landmarks.types import Landmarks, join_landmarks

SKIN, HAIR, BACKGROUND = (PARTS.index(n) for n in ("skin", "hair", "background"))


class RedIsSkin:
    """A parser by colour: red is skin, green is hair, all else background."""

    crop = CropOptions(2.2, 0.18, 128, 128)

    def scores(self, image, points):
        image = image.astype(np.float32) / 255
        out = np.full((len(PARTS) + 1, *image.shape[:2]), -1, np.float32)
        out[BACKGROUND] = 0.3
        out[SKIN] = image[..., 0] - image[..., 1]
        out[HAIR] = image[..., 1] - image[..., 0]
        return out


@pytest.fixture
def parser():
    return RedIsSkin()


@pytest.fixture
def red_is_skin(monkeypatch, parser):
    monkeypatch.setattr(head_masks, "load_parser", lambda weights, device: parser)


def photo(size=(200, 260), face=(60, 40, 100)):
    """A red square face with green hair on top, blue around; its landmarks."""
    image = np.zeros((*size, 3), np.uint8)
    image[..., 2] = 255
    x, y, side = face
    image[y : y + side, x : x + side] = (255, 0, 0)
    image[y - 25 : y, x : x + side] = (0, 255, 0)
    rng = np.random.default_rng(0)
    return image, rng.uniform(0, side, (68, 2)) + [x, y]


def marks_of(points):
    ones = torch.ones(1, len(points))
    return Landmarks(torch.from_numpy(points)[None].float(), ones, ones > 0, ones)


def test_a_photo_is_parsed_in_its_own_pixels(parser):
    image, points = photo()
    parts = parse_photo(parser, image, points)
    assert parts.shape == image.shape[:2]
    inner = np.zeros_like(parts, bool)
    inner[44:136, 64:156] = True
    assert (parts[inner] == SKIN).all() and (parts[20:36, 64:156] == HAIR).all()
    assert (parts[60:120, 20:50] == BACKGROUND).all()
    assert (parts[:, 257:] == UNKNOWN).all()  # beyond the crop
    np.testing.assert_array_equal(head_mask(parts)[inner], True)
    assert not head_mask(parts)[20:36].any() and not head_mask(parts)[:, 257:].any()


def test_edges_lie_where_they_are_at_any_size(parser):
    """The face keeps its place to a pixel of the crop, also where the photo is larger or smaller than it."""
    for factor in (0.4, 1, 3):
        image, points = photo()
        size = tuple(round(s * factor) for s in (200, 260))
        rows, columns = (((np.arange(n) + 0.5) / factor).astype(int) for n in size)
        parts = parse_photo(parser, image[rows][:, columns], (points + 0.5) * factor - 0.5)
        seen = np.argwhere(parts == SKIN)
        low, high = seen.min(0), seen.max(0) + 1
        pixel = 2.2 * 100 * factor / 128
        np.testing.assert_allclose(low, [40 * factor, 60 * factor], atol=1 + pixel)
        np.testing.assert_allclose(high, [140 * factor, 160 * factor], atol=1 + pixel)


def test_whose_masks_count(red_is_skin):
    image, points = photo()
    given = np.zeros(image.shape[:2], bool)
    given[:90] = True
    views, marks = [View("a", image, mask=given), View("b", image)], marks_of(points)
    marks = join_landmarks([marks, marks])

    def masks(source, use="source"):
        return list(usable_pixels(views, marks, MaskOptions(**{use: source}), use=use))

    assert masks("none") == [None, None]
    first, second = masks("given")
    assert first is given and second is None
    first, second = masks("auto")
    assert second[44:136, 64:156].all() and not second[:36].any()
    np.testing.assert_array_equal(first, second & given)
    assert masks("none", "texture") == [None, None]
    # Evidence is taken from 1.5 % of a face of 100 px beyond the head, colours from that much within.
    inner = masks("auto", "texture")[1]
    head = head_mask(parse_photo(RedIsSkin(), image, points))
    beyond, within = (
        change(head.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0 for change in (cv2.dilate, cv2.erode)
    )
    assert (within <= inner).all() and (inner < head).any() and (inner <= head).all()
    assert (head <= second).all() and (second > head).any() and (second <= beyond).all()


def test_a_photo_without_a_head_counts_as_given(red_is_skin):
    blue, points = photo()
    blue[..., :2] = 0
    assert list(usable_pixels([View("a", blue)], marks_of(points), MaskOptions(source="auto"))) == [None]


def test_textures_leave_out_what_the_parser_leaves_out(monkeypatch):
    """Green paint over the upper half of the photos is in the texture, but with a parser that sees it."""
    result = tiny_result(views=2)
    views = []
    for view in result.subject.views:
        image = view.image.copy()
        image[: len(image) // 2] = (0, 255, 0)
        views.append(view.replace(image=image))
    painted = replaced(result, views, "given")
    clean = replaced(result, views, "auto")
    monkeypatch.setattr(head_masks, "load_parser", lambda weights, device: True)
    monkeypatch.setattr(
        head_masks,
        "parse_photo",
        lambda parser, image, points: np.where((image == (0, 255, 0)).all(-1), HAIR, SKIN),
    )

    def green(result):
        texture = blend_texture(result, 64).astype(int)
        return float(((texture[..., 1] - texture[..., 0] > 100) & (texture[..., 2] < 60)).mean())

    assert green(painted) > 0.1 and green(clean) < 0.2 * green(painted)


def replaced(result, views, texture):
    return replace(
        result, subject=replace(result.subject, views=tuple(views)), recipe={"masks": {"texture": texture}}
    )


def test_a_fit_asks_for_the_masks_of_its_recipe(red_is_skin, anna, monkeypatch):
    seen = []
    monkeypatch.setattr(
        head_masks, "parse_photo", lambda *a: seen.append(a[1].shape) or np.ones(a[1].shape[:2], np.uint8)
    )
    given = fit(anna, model=tiny_model(), recipe="landmarks")
    assert not seen and given.recipe["masks"]["source"] == "given"
    result = fit(anna, model=tiny_model(), recipe="landmarks", overrides=["masks.source=auto"])
    assert len(seen) == len(result.subject.views)
    assert load_recipe("multiview", ["masks.texture=none"]).masks.texture == "none"


def test_parsers_by_name(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "p.safetensors"
    assert isinstance(load_parser("colors"), ByColors) and isinstance(load_parser(), ByNetwork)
    save_predictor(Parser(options=ParserOptions(size=64)), "parser", path)
    network = load_parser(path)
    assert isinstance(network, ByNetwork) and load_parser(str(path)) is network
    image, points = photo()
    with torch.inference_mode():
        crop = torch.rand(64, 64, 3).mul(255).byte()
        told = network.network(crop.permute(2, 0, 1)[None, None] / 255, torch.ones(1, 1, dtype=torch.bool))
    np.testing.assert_allclose(network.scores(crop.numpy(), points), told.parse[0].numpy(), atol=1e-4)
    assert (parse_photo(network, image, points) < len(PARTS)).any()
    save_predictor(Parser(options=ParserOptions(size=64, classes=10)), "parser", path)
    with pytest.raises(InputError, match=r"p.safetensors: expected a network that tells the 17 .* with 10"):
        load_parser(path)
    with pytest.raises(InputError, match="nowhere.safetensors"):
        load_parser(tmp_path / "nowhere.safetensors")
