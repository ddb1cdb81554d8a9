"""Parts of a head by landmarks and colours, against rendered people whose parts are known."""

import numpy as np
import pytest

from fitkit.models.registry import load_model
from fitkit.nets.parser.by_colors import ByColors, cheeks, color_distance, expected_parts, guess_parts
from fitkit.nets.parser.photos import cut_out, parse_photo
from fitkit.observe.face_parts import HEAD, PARTS, UNKNOWN, numbers
from fitkit.synth.recipe import load_synth_recipe
from fitkit.synth.subject import draw_subject, render_subject


def part(name):
    return PARTS.index(name)


@pytest.fixture(scope="module")
def rendered():
    """Rendered people with short hair whose parts are known."""
    model = load_model("generic")
    recipe = load_synth_recipe(
        "clean",
        [
            "views=1",
            "size=224",
            "variation.fill=[2.0,2.2]",
            "variation.bald=0",
            "variation.long_hair=0",
            "jaw=outline",
        ],
    )
    return [render_subject(model, recipe, draw_subject(model, recipe, k))[0] for k in range(4)]


def test_guesses_are_right_where_they_are_made(rendered):
    right, made, hits = 0, 0, {}
    for view in rendered:
        guess = guess_parts(view.image, view.given.astype(np.float64))
        known = (guess != UNKNOWN) & (guess != part("clothes"))  # rendered shoulders are narrow
        right, made = right + (guess == view.parts)[known].sum(), made + known.sum()
        for name in ("skin", "hair", "nose", "left_eye", "upper_lip"):
            mine, truth = guess == part(name), view.parts == part(name)
            hits.setdefault(name, []).append((mine & truth).sum() / max(1, mine.sum()))
    assert made > 0.3 * 4 * 224**2 and right / made > 0.88
    assert np.mean(hits["skin"]) > 0.9 and np.mean(hits["nose"]) > 0.8
    assert np.mean(hits["left_eye"]) > 0.6 and np.mean(hits["upper_lip"]) > 0.6


def test_the_mean_head_stands_where_the_landmarks_are(rendered):
    view = rendered[0]
    expected, up, scale = expected_parts(view.landmarks.astype(np.float64), 224)
    both = (expected > 0) & (view.depth > 0)
    assert both.sum() / ((expected > 0) | (view.depth > 0)).sum() > 0.8
    assert up[1] < -0.9 and scale == pytest.approx(np.ptp(view.landmarks[:, 1]) / 128, rel=0.15)


def test_without_landmarks_of_eyes_and_mouth_these_stay_open(rendered):
    view = rendered[0]
    points = view.given.astype(np.float64)
    points[36:] = np.nan
    guess = guess_parts(view.image, points)
    assert not np.isin(guess, [part(n) for n in ("left_eye", "right_eye", "mouth", "upper_lip")]).any()


def test_the_head_without_hair_clothes_and_background(rendered):
    for view in rendered:
        parts = parse_photo(ByColors(), view.image, view.given.astype(np.float64))
        head, truth = np.isin(parts, numbers(HEAD)), np.isin(view.parts, numbers(HEAD))
        assert (head & truth).sum() / head.sum() > 0.95  # 0.97 on average of 60 people with glasses and hands
        assert (head & truth).sum() / truth.sum() > 0.6
        inner = (view.parse > part("skin")) & (view.covered == 0)
        assert head[inner].mean() > 0.95


def test_where_cheeks_and_nose_are_unlike_the_face_nothing_is_told(rendered):
    image, points = cut_out(rendered[0].image, rendered[0].given.astype(np.float64), ByColors.crops[0])
    image[cheeks(points, expected_parts(points, len(image))[0])] = (0, 220, 30)
    assert (parse_photo(ByColors(), image, points) == UNKNOWN).all()


def test_colors_are_measured_in_those_of_the_sample():
    image = np.full((40, 40, 3), (200, 150, 120), np.uint8)
    image[:, 20:] = (40, 60, 160)
    sample = np.zeros((40, 40), bool)
    sample[:, :12] = True
    far = color_distance(image, sample)
    assert far[:, :16].max() < 0.1 and far[:, 25:].min() > 6
    assert np.isinf(color_distance(image, np.zeros_like(sample))).all()
