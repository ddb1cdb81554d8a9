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
from fitkit.fitting.head_masks import find_heads, head_mask, load_parser, usable_pixels
from fitkit.fitting.recipe import load_recipe
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

    crops = (CropOptions(2.2, 0.18, 128, 128),)

    def scores(self, images, points):
        return np.stack([self.of_one(image.astype(np.float32) / 255) for image in images])

    def of_one(self, image):
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


def heads_of(views, points, valid=None):
    marks = marks_of(points)
    if valid is not None:
        marks = replace(marks, valid=torch.from_numpy(valid)[None])
    return list(find_heads(views, join_landmarks([marks] * len(views)), tiny_model()))


def test_of_a_given_mask_the_head_counts(red_is_skin):
    image, points = photo()
    given = np.zeros(image.shape[:2], bool)
    given[:90] = True
    views = [View("a", image, mask=given), View("b", image)]
    first, second = (usable_pixels(v, h, inwards=False) for v, h in zip(views, heads_of(views, points)))
    assert second[44:136, 64:156].all() and not second[:36].any()
    np.testing.assert_array_equal(first, second & given)
    assert usable_pixels(views[0], None, inwards=True) is given
    assert usable_pixels(views[1], None, inwards=True) is None


def test_borders_of_masks(red_is_skin):
    """Evidence is taken from 1.5 % of a face of 100 px beyond the head, colours from that much within."""
    image, points = photo()
    (mask,) = heads_of([View("a", image)], points)
    outer, inner = mask.pixels(inwards=False), mask.pixels(inwards=True)
    head = head_mask(parse_photo(RedIsSkin(), image, points))
    beyond, within = (
        change(head.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0 for change in (cv2.dilate, cv2.erode)
    )
    assert (within <= inner).all() and (inner < head).any() and (inner <= head).all()
    assert (head <= outer).all() and (outer > head).any() and (outer <= beyond).all()


@pytest.mark.parametrize("seen, usable", [(0.0, False), (0.2, False), (0.45, True), (1.0, True)])
def test_a_head_that_shows_hardly_any_face_is_not_believed(red_is_skin, seen, usable):
    """seen: share of the face, from its top, that the parser takes for skin."""
    image, points = photo()
    image[40 + round(100 * seen) : 140, 60:160] = (0, 0, 255)
    given = np.ones(image.shape[:2], bool)
    view = View("a", image, mask=given)
    (head,) = heads_of([view], points)
    assert head.share == pytest.approx(seen, abs=0.06) and head.usable == usable
    assert (usable_pixels(view, head, inwards=False) is given) == (not usable)


def test_a_head_is_looked_for_around_all_of_the_face(red_is_skin):
    """With points of the brows and eyes alone the crop would end above the mouth."""
    model, result = tiny_model(), tiny_result(views=1)
    points = result.landmarks.points[0].double().numpy()
    image = np.zeros((*result.subject.views[0].size[::-1], 3), np.uint8)
    image[..., 0] = 255
    few = np.zeros(68, bool)
    few[17:27] = few[36:48] = True
    whole, part = (heads_of([View("a", image)], points, valid)[0] for valid in (few | True, few))
    (alone,) = (parse_photo(RedIsSkin(), image, np.where(few[:, None], points, np.nan)),)
    assert model.landmarks.present[few].sum() >= 8
    assert part.pixels(False).sum() > 0.7 * whole.pixels(False).sum() > 0.9 * (alone == SKIN).sum()


def test_textures_leave_out_what_the_parser_leaves_out(monkeypatch):
    """Green paint over the upper half of the photos is in the texture, but with a parser that sees it."""
    result = tiny_result(views=2)
    views = []
    for view in result.subject.views:
        image = view.image.copy()
        image[: len(image) // 2] = (0, 255, 0)
        views.append(view.replace(image=image))

    class GreenIsHair(RedIsSkin):
        def of_one(self, image):
            green = np.where((image[..., 1] > 0.98) & (image[..., 0] < 0.02), 1.0, -1.0)
            out = np.full((len(PARTS), *image.shape[:2]), -2, np.float32)
            out[HAIR], out[SKIN] = green, -green
            return out

    monkeypatch.setattr(head_masks, "load_parser", lambda weights, device: GreenIsHair())

    def green(texture_from):
        masks = {"masks": {"texture": texture_from}}
        painted = replace(result, subject=replace(result.subject, views=tuple(views)), recipe=masks)
        texture = blend_texture(painted, 64).astype(int)
        return float(((texture[..., 1] - texture[..., 0] > 100) & (texture[..., 2] < 60)).mean())

    assert green("given") > 0.1 and green("none") == green("given") and green("auto") < 0.2 * green("given")


@pytest.fixture
def asked(monkeypatch, parser):
    """Photos that a parser was asked about, by the mean of their crops."""
    seen = []

    def of_one(self, image):
        seen.append(float(image.mean()))
        out = np.zeros((len(PARTS), *image.shape[:2]), np.float32)
        out[SKIN] = 1
        return out

    monkeypatch.setattr(RedIsSkin, "of_one", of_one)
    monkeypatch.setattr(head_masks, "load_parser", lambda weights, device: parser)
    return seen


def test_each_photo_is_parsed_once(asked, anna):
    """By `multiview` while it is fitted, by `landmarks`, which looks at no pixels, for the texture."""
    model, overrides = tiny_model(), ["init.source=landmarks", "masks.source=auto"]
    for recipe, before in (("landmarks", 0), ("multiview", 3)):
        result = fit(anna, model=model, recipe=recipe, overrides=overrides)
        assert len(asked) == before
        masks = [result.texture_mask(i) for i in range(3)] + [result.texture_mask(0)]
        assert len(asked) == 3 and all(mask.any() for mask in masks)
        again = replace(result, heads=None)  # as it is read back
        assert all(np.array_equal(masks[i], again.texture_mask(i)) for i in range(3)) and len(asked) == 6
        asked.clear()


def test_a_single_photo_is_not_parsed_for_matches(asked, anna):
    overrides = ["init.source=landmarks", "masks.source=auto"]
    fit(next(anna.glob("*.png")), model=tiny_model(), overrides=overrides)
    assert not asked
    fit(anna, model=tiny_model(), overrides=["init.source=landmarks", "masks.source=none"])
    assert not asked
    assert not load_recipe("landmarks", ["masks.source=auto"]).looks_at_pictures(3)
    assert not load_recipe("multiview").looks_at_pictures(1) and load_recipe("adam").looks_at_pictures(2)


def test_a_fit_says_where_its_masks_were_not_used(monkeypatch, parser, anna):
    def nothing(self, image):
        out = np.zeros((len(PARTS), *image.shape[:2]), np.float32)
        out[BACKGROUND] = 1
        return out

    monkeypatch.setattr(RedIsSkin, "of_one", nothing)
    monkeypatch.setattr(head_masks, "load_parser", lambda weights, device: parser)
    overrides = ["init.source=landmarks"]
    blind = fit(anna, model=tiny_model(), overrides=[*overrides, "masks.source=auto"])
    given = fit(anna, model=tiny_model(), overrides=[*overrides, "masks.source=given"])
    names = [view.name for view in blind.subject.views]
    assert [n for n in blind.notes if "parser" in n] == [
        f"view {name}: the face parser sees hardly any of the face where its landmarks are, so its mask "
        "was not used"
        for name in names
    ]
    assert not [n for n in given.notes if "parser" in n]
    torch.testing.assert_close(blind.vertices, given.vertices, rtol=0, atol=0)


def test_parsers_by_name(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "p.safetensors"
    assert isinstance(load_parser("colors"), ByColors) and isinstance(load_parser(), ByNetwork)
    own = Parser(options=ParserOptions(size=64)).eval()
    save_predictor(own, "parser", path, half=False)
    network = load_parser(path)
    assert isinstance(network, ByNetwork) and load_parser(str(path)) is network
    image, points = photo()
    with torch.inference_mode():
        crop = torch.rand(2, 64, 64, 3).mul(255).byte()
        told = own(crop.permute(0, 3, 1, 2)[None] / 255, torch.ones(1, 2, dtype=torch.bool))
    np.testing.assert_allclose(network.scores(crop.numpy(), points), told.parse.numpy(), atol=1e-4)
    assert (parse_photo(network, image, points) < len(PARTS)).any()
    save_predictor(Parser(options=ParserOptions(size=64, classes=10)), "parser", path)
    with pytest.raises(InputError, match=r"p.safetensors: expected a network that tells the 17 .* with 10"):
        load_parser(path)
    with pytest.raises(InputError, match="nowhere.safetensors"):
        load_parser(tmp_path / "nowhere.safetensors")
