import numpy as np
import pytest

from fitkit.fitting.skin_tone import skin_tone

LIGHT, DARK = np.array([0.55, 0.33, 0.25]), np.array([0.11, 0.055, 0.036])
EYE = np.array([0.37, 0.335, 0.31])


@pytest.mark.parametrize("skin", [LIGHT, DARK])
def test_the_white_of_the_eyes_tells_the_skin(skin):
    # In a light that gives every face the same brightness the photo alone says nothing.
    light = 0.2 / skin.mean()
    alone = skin_tone(light * skin)
    beside = skin_tone(light * skin, light * EYE)
    assert abs(np.log(beside / skin)).mean() < 0.7 * abs(np.log(alone / skin)).mean()
    assert abs(np.log(beside / skin)).max() < 0.45


def test_darker_photos_show_darker_skins():
    dark, middle, bright = (skin_tone(level * np.array([1.4, 0.9, 0.7])) for level in (0.08, 0.2, 0.4))
    assert (dark < middle).all() and (middle < bright).all()
    # No skin there is is lighter than the lightest by much, however bright the photo.
    assert skin_tone(np.array([0.95, 0.9, 0.9])).max() == pytest.approx(0.7)


def test_a_tinted_light_is_not_the_skins_colour():
    tint = np.array([1.25, 1.0, 0.7])
    plain, tinted = skin_tone(0.5 * LIGHT), skin_tone(0.5 * LIGHT * tint)
    change = np.log(tinted / plain)
    # It takes part of the tint only, and less of it with the eyes as reference.
    assert 0.2 < np.ptp(change) / np.ptp(np.log(tint)) < 0.8
    alone, seen = skin_tone(0.5 * LIGHT * tint), skin_tone(0.5 * LIGHT * tint, 0.5 * EYE * tint)
    assert np.ptp(np.log(seen / LIGHT)) < 0.8 * np.ptp(np.log(alone / LIGHT))


def test_a_brighter_light_on_skin_and_eyes_is_mostly_light():
    one, two = skin_tone(0.3 * LIGHT, 0.3 * EYE), skin_tone(0.6 * LIGHT, 0.6 * EYE)
    assert 0 < np.log(two / one).mean() < np.log(2)
