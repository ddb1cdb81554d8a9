"""What surrounds a rendered face: backgrounds, things in front of it, and what a camera does to a picture."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import torch

from fitkit.errors import InputError
from fitkit.geometry.color import linear_from_srgb, srgb_from_linear
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.synth.paint import clouds, step

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; a wide one is made on a smaller picture, which looks the same and costs less."""
    if sigma < 4:
        return cv2.GaussianBlur(picture, (0, 0), sigma)
    H, W = picture.shape[:2]
    shrink = sigma / 2
    small = cv2.resize(
        picture, (max(4, round(W / shrink)), max(4, round(H / shrink))), interpolation=cv2.INTER_AREA
    )
    return cv2.resize(cv2.GaussianBlur(small, (0, 0), 2.0), (W, H), interpolation=cv2.INTER_LINEAR)


def random_color(rng: np.random.Generator) -> np.ndarray:
    """A linear RGB colour, more often dull and dark than not, [3] float32."""
    value, pure = rng.uniform(0.02, 0.95) ** 1.6, rng.uniform(0, 1) ** 2
    hue = rng.dirichlet([1, 1, 1]) * 3
    return (value * (1 - pure + pure * hue)).clip(0, 1).astype(np.float32)


def background(rng: np.random.Generator, size: int, folder: Path | None = None) -> np.ndarray:
    """A linear RGB picture [size, size, 3]: gradients, blurred blobs, stripes, noise or a piece of a user's
    picture."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES) if folder is not None else []
    if files and rng.random() < 0.7:
        image = None
        with (
            suppress(InputError),
            foreign_file(files[rng.integers(len(files))], "no picture", limit=DATA_BYTES) as file,
        ):
            image = file.picture()
        if image is not None:
            return _piece(image, rng, size)
    first, second = random_color(rng), random_color(rng)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    turn = rng.uniform(0, 2 * np.pi)
    ramp = step(0.5 + (x * np.cos(turn) + y * np.sin(turn)) * rng.uniform(0.5, 3))[..., None]
    picture = first * (1 - ramp) + second * ramp
    kind = rng.choice(["plain", "blobs", "stripes", "clutter", "grain"], p=[0.2, 0.25, 0.15, 0.3, 0.1])
    if kind == "blobs":
        for _ in range(rng.integers(3, 14)):
            _ellipse(picture, rng, size, rng.uniform(0.03, 0.4))
        picture = blurred(picture, rng.uniform(0.01, 0.08) * size)
    elif kind == "stripes":
        wave = np.sin(
            (x * np.cos(turn) + y * np.sin(turn)) * 2 * np.pi * rng.uniform(2, 25) + rng.uniform(0, 6)
        )
        picture = picture + (random_color(rng) - picture) * step(
            0.5 + wave[..., None] * rng.uniform(0.6, 4)
        ) * rng.uniform(0.2, 1)
    elif kind == "clutter":
        for _ in range(rng.integers(6, 40)):
            if rng.random() < 0.5:
                _ellipse(picture, rng, size, rng.uniform(0.02, 0.3))
            else:
                a, b = rng.uniform(0, size, 2), rng.uniform(0, size, 2)
                wide = rng.uniform(0.02, 0.5) * size
                side = np.array([-(b - a)[1], (b - a)[0]]) / (np.linalg.norm(b - a) + 1e-6) * wide
                corners = np.round(np.array([a, b, b + side, a + side])).astype(np.int32)
                cv2.fillPoly(picture, [corners], random_color(rng).tolist(), cv2.LINE_AA)
        if rng.random() < 0.7:
            picture = blurred(picture, rng.uniform(0.4, 6) * size / 320)
    grain = clouds(rng, (size, size), rng.uniform(1.5, 30) * size / 320)
    return np.clip(picture * (1 + (0.5 if kind == "grain" else rng.uniform(0, 0.15)) * grain), 0, 1).astype(
        np.float32
    )


def _piece(image: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    short = min(image.shape[:2])
    side = max(8, int(short * rng.uniform(0.3, 1)))
    top, left = rng.integers(image.shape[0] - side + 1), rng.integers(image.shape[1] - side + 1)
    crop = cv2.resize(
        image[top : top + side, left : left + side, ::-1], (size, size), interpolation=cv2.INTER_AREA
    )
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    return linear_from_srgb(torch.from_numpy(np.ascontiguousarray(crop)).float() / 255).numpy()


def _ellipse(picture: np.ndarray, rng: np.random.Generator, size: int, extent: float) -> None:
    center = rng.integers(0, size, 2).tolist()
    axes = [max(1, int(size * extent * rng.uniform(0.4, 1))) for _ in range(2)]
    cv2.ellipse(
        picture, center, axes, float(rng.uniform(0, 180)), 0, 360, random_color(rng).tolist(), -1, cv2.LINE_AA
    )


def occluder(
    rng: np.random.Generator, size: int, face: np.ndarray, skin: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Something in front of the face.

    Args:
        face: [4] px, x0, y0, x1, y1 of the landmark box; skin: [3] linear RGB for hands.
    Returns:
        colour [size, size, 3] linear RGB and cover [size, size] in [0, 1].
    """
    cover = np.zeros((size, size), np.uint8)
    extent = max(face[2] - face[0], face[3] - face[1])
    turn = rng.uniform(0, 2 * np.pi)
    # Mostly from outside into the face: its middle lies on a circle around the face.
    middle = (face[:2] + face[2:]) / 2 + np.array([np.cos(turn), np.sin(turn)]) * extent * rng.uniform(
        0.2, 0.75
    )
    kind = rng.choice(["blob", "bar", "hand", "side"], p=[0.35, 0.2, 0.3, 0.15])
    y, x = np.mgrid[:size, :size].astype(np.float32)
    color = np.broadcast_to(random_color(rng), (size, size, 3)).copy()
    if kind == "blob":
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        bumps = sum(rng.normal() * 0.18 / k * np.sin(k * angle + rng.uniform(0, 6)) for k in (1, 2, 3, 5))
        radius = extent * rng.uniform(0.08, 0.28) * (1 + bumps)
        shape = middle + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        cv2.fillPoly(cover, [np.round(shape).astype(np.int32)], 255, cv2.LINE_AA)
    elif kind == "bar":
        along = np.array([np.cos(turn + rng.normal() * 0.5), np.sin(turn + rng.normal() * 0.5)])
        a, b = middle - along * extent * rng.uniform(0, 0.4), middle + along * 2 * size
        cv2.line(
            cover,
            tuple(int(v) for v in a),
            tuple(int(v) for v in b),
            255,
            max(2, int(extent * rng.uniform(0.04, 0.2))),
            cv2.LINE_AA,
        )
    elif kind == "side":
        normal = np.array([np.cos(turn), np.sin(turn)])
        edge = middle + normal * extent * rng.uniform(-0.1, 0.3)
        wave = (
            rng.uniform(0, 0.06)
            * extent
            * np.sin((x * -normal[1] + y * normal[0]) * rng.uniform(2, 14) / extent)
        )
        cover[((x - edge[0]) * normal[0] + (y - edge[1]) * normal[1] + wave) > 0] = 255
    else:
        _hand(cover, rng, middle, turn, extent)
        color[:] = skin * rng.uniform(0.7, 1.2)
        color *= np.float32(1) + 0.35 * (
            blurred(cover, extent * 0.03).astype(np.float32)[..., None] / 255 - 0.6
        )
    if kind != "hand":
        if rng.random() < 0.5:
            wave = np.sin((x * np.cos(turn) + y * np.sin(turn)) * rng.uniform(10, 60) / extent)[..., None]
            color = color + (random_color(rng) - color) * step(0.5 + 2 * wave)
        color *= 1 + 0.3 * clouds(rng, (size, size), rng.uniform(2, 40) * size / 320)
    soft = cv2.GaussianBlur(cover, (0, 0), rng.uniform(0.6, 1.6) * size / 320).astype(np.float32) / 255
    return np.clip(color, 0, 1).astype(np.float32), soft


def _hand(
    cover: np.ndarray, rng: np.random.Generator, middle: np.ndarray, turn: float, extent: float
) -> None:
    """A palm and fingers that point to the face."""
    towards = np.array([-np.cos(turn), -np.sin(turn)])
    side = np.array([-towards[1], towards[0]])
    wide = extent * rng.uniform(0.16, 0.26)
    palm = middle - towards * wide * 1.2
    cv2.ellipse(
        cover,
        tuple(int(v) for v in palm),
        (max(2, int(wide)), max(2, int(wide * 0.75))),
        float(np.degrees(turn)),
        0,
        360,
        255,
        -1,
        cv2.LINE_AA,
    )
    cv2.line(
        cover,
        tuple(int(v) for v in palm),
        tuple(int(v) for v in palm - towards * 4 * extent),
        255,
        max(2, int(wide * 1.2)),
        cv2.LINE_AA,
    )
    spread = rng.uniform(0.05, 0.35)
    for k in range(4):
        lean = (k - 1.5) * spread + rng.normal() * 0.06
        base = palm + side * (k - 1.5) * wide * 0.42 + towards * wide * 0.3
        ray = towards * np.cos(lean) + side * np.sin(lean)
        tip = base + ray * wide * rng.uniform(1.1, 1.7)
        cv2.line(
            cover,
            tuple(int(v) for v in base),
            tuple(int(v) for v in tip),
            255,
            max(2, int(wide * 0.36)),
            cv2.LINE_AA,
        )
    thumb = palm + side * wide * rng.choice([-1, 1]) * 0.6
    tip = thumb + (towards + side * np.sign((thumb - palm) @ side)) * wide * 0.7
    cv2.line(
        cover,
        tuple(int(v) for v in thumb),
        tuple(int(v) for v in tip),
        255,
        max(2, int(wide * 0.38)),
        cv2.LINE_AA,
    )


def camera(
    linear: np.ndarray,
    rng: np.random.Generator,
    noise: float,
    blur_px: float,
    motion_px: float,
    quality: int | None,
    reduce: float = 1.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    curve: float = 0.0,
    white: np.ndarray | None = None,
) -> np.ndarray:
    """Linear RGB [H, W, 3] -> the photo, uint8 sRGB.

    noise: standard deviation in sRGB; blur_px: of a Gaussian; motion_px: length of a straight motion;
    quality: JPEG's or None; reduce: the picture is made this much smaller and enlarged again; curve: 0 to 1,
    how strongly a camera's S-shaped tone curve deepens shadows and brightens lights; white: [3] colour cast.
    """
    picture = linear if white is None else linear * white.astype(np.float32)
    if blur_px > 0.15:
        picture = cv2.GaussianBlur(picture, (0, 0), blur_px)
    if motion_px > 1:
        n = int(np.ceil(motion_px)) | 1
        kernel = np.zeros((n, n), np.float32)
        turn = rng.uniform(0, np.pi)
        reach = np.array([np.cos(turn), np.sin(turn)]) * (motion_px - 1) / 2
        ends = [tuple(int(v) for v in np.round(((n - 1) / 2 + s * reach) * 16)) for s in (-1, 1)]
        cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_8, 4)
        picture = cv2.filter2D(picture, -1, kernel / kernel.sum())
    H, W = picture.shape[:2]
    if reduce > 1.05:
        small = cv2.resize(
            picture, (max(8, round(W / reduce)), max(8, round(H / reduce))), interpolation=cv2.INTER_AREA
        )
        picture = np.clip(cv2.resize(small, (W, H), interpolation=cv2.INTER_LINEAR), 0, None)
    srgb = srgb_from_linear(torch.from_numpy(picture)).numpy()
    srgb = srgb + curve * (step(srgb) - srgb)
    srgb = 0.5 + (srgb - 0.5) * contrast
    gray = srgb @ np.array([0.299, 0.587, 0.114], np.float32)
    srgb = gray[..., None] + (srgb - gray[..., None]) * saturation
    if noise > 0:
        grain = rng.normal(size=srgb.shape).astype(np.float32)
        if rng.random() < 0.4:
            grain = cv2.GaussianBlur(grain, (0, 0), 0.8) * 2
        srgb = srgb + noise * grain
    out = np.clip(srgb * 255 + 0.5, 0, 255).astype(np.uint8)
    if quality is not None:
        out = cv2.imdecode(
            cv2.imencode(".jpg", out[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1],
            cv2.IMREAD_COLOR,
        )[..., ::-1]
    return np.ascontiguousarray(out)
