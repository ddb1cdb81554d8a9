"""How light a skin is, and of which colour: what a photo leaves open between albedo and light."""

from __future__ import annotations

import numpy as np

# sRGB codes of the patches "light skin" and "dark skin" of the ColorChecker chart, which have the reflectance
# of people's skin: McCamy, Marcus and Davidson, "A color-rendition chart", 1976.
LIGHT_SKIN, DARK_SKIN = (194, 150, 130), (115, 82, 68)
MIDDLE, SPREAD = 0.45, 0.65  # of people on the line from light (0) to dark (1), mean and standard deviation
BESIDE = 0.10  # standard deviation of skins beside that line, log units
LIGHTEST = 0.7  # no skin reflects more
WHITE = (0.37, 0.335, 0.31)  # usual colour of the white of an eye, in the shadow of its lids
WHITE_LIGHTNESS, WHITE_COLOR = 0.38, 0.12  # standard deviations of its lightness and its colour, log units
EXPOSED = 0.25  # linear intensity that cameras give to a face of a middle skin
EXPOSED_FOR_FACE = 0.45  # share of a face's lightness that automatic exposure takes away
EXPOSURE, BALANCE = 0.30, 0.12  # standard deviations of exposure and white balance, log units


def skin_tone(photo: np.ndarray, white: np.ndarray | None = None) -> np.ndarray:
    """The most probable albedo [3], linear RGB, of a skin that photos show with the linear colour photo [3].

    Everything is Gaussian in log colours, so that it is a weighted mean of: what skins there are; how bright
    photos of faces usually are, and that their light is about white; and how much darker the skin is than the
    white of the eyes beside it.

    Args:
        photo: linear RGB [3], mean over the photos; white: [3], of the white of the eyes in the same light,
            None: not seen.
    """
    light, dark = (np.log(_linear(np.array(code) / 255)) for code in (LIGHT_SKIN, DARK_SKIN))
    along = dark - light
    mean = light + MIDDLE * along
    people = np.linalg.inv(SPREAD**2 * np.outer(along, along) + BESIDE**2 * np.eye(3))
    seen = np.log(np.maximum(photo, 1e-4))
    left = 1 - EXPOSED_FOR_FACE
    exposed = np.log(EXPOSED) - left * mean.mean()
    known = [(people, people @ mean), _measured(seen, seen.mean() - exposed, left, EXPOSURE, BALANCE)]
    if white is not None:
        beside = np.log(WHITE) + seen - np.log(np.maximum(white, 1e-4))
        known.append(_measured(beside, beside.mean(), 1.0, WHITE_LIGHTNESS, WHITE_COLOR))
    tone = np.exp(np.linalg.solve(sum(k[0] for k in known), sum(k[1] for k in known)))
    return tone * min(1.0, LIGHTEST / float(tone.max()))


def _measured(
    color: np.ndarray, lightness: float, share: float, sigma_lightness: float, sigma_color: float
) -> tuple[np.ndarray, np.ndarray]:
    """Information matrix [3, 3] and vector [3] about a log albedo a: a - mean a is color - mean color [3],
    and share * mean a is lightness, with these standard deviations."""
    even = np.full((3, 3), 1 / 3)
    beside, bright = (np.eye(3) - even) / sigma_color**2, share / sigma_lightness**2
    return beside + share * bright * even / 3, beside @ color + np.full(3, bright * lightness / 3)


def _linear(code: np.ndarray) -> np.ndarray:
    return ((code + 0.055) / 1.055) ** 2.4
