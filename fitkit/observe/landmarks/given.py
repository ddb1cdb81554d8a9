"""Do given landmarks lie on the face of their photo? The built-in detector looks where they say that it
is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fitkit.io.subject import Subject
from fitkit.observe.landmarks.builtin import BuiltinDetector, Look, distinct
from fitkit.observe.landmarks.face_crop import square_of_points
from fitkit.observe.landmarks.face_shape import INNER, head_roll
from fitkit.observe.landmarks.network import NUM_POINTS
from fitkit.observe.landmarks.types import MIRRORED, Landmarks, join_landmarks

# Root mean square distance of the inner points from the detector's, in its own standard deviations. On 355
# photos with the right points (faces68 without the people it was trained on, renders of people, of a scan)
# 0.9 in the median, 1.4 at most in 99 of 100, never over 1.62; with those of another person, in the same
# place and pose: above 1.65 in 95 of 100.
FAR = 1.75
FLOOR = 0.01  # least standard deviation, over the face size
# A single point is stray from this share of the face size and this many standard deviations on.
STRAY, STRAY_SIGMA = (0.2, 6.0)
STRAY_MOST = 1 / 3  # of the points; of more the detector is more likely wrong
BEYOND = 4.0  # times the median distance from the median point: no face reaches so far


@dataclass(frozen=True)
class _Verdict:
    """On the points of one view. doubt: what is wrong with all of them, '' if nothing; face: what the
    detector has there instead; stray: [68] bool, single points that are far off."""

    doubt: str = ""
    face: Look | None = None
    stray: np.ndarray | None = None


def check_given(
    subject: Subject, landmarks: Landmarks, sources: Sequence[str], take: bool = True, device: str = "cpu"
) -> Landmarks:
    """Compare the points that were given with the photos.

    Points that do not lie on the face give way to those of the built-in detector, and a doubt says what they
    may be instead; single ones far off are left out, with a note. Where the detector sees no face the points
    stay, with a doubt.

    Args:
        landmarks, sources: as from `detect_landmarks`; take: false leaves all points as they are, and says
            the same of them.
    """
    rows = [
        i for i, s in enumerate(sources) if s in ("file", "given") and landmarks.valid[i, INNER].sum() >= 8
    ]
    if not rows:
        return landmarks
    detector = BuiltinDetector(device)
    parts, notes, doubts = (
        [landmarks.select([i]) for i in range(len(sources))],
        list(landmarks.notes),
        list(landmarks.doubts),
    )
    for i in rows:
        view = subject.views[i]
        points = torch.where(parts[i].valid[0][:, None], parts[i].points[0], torch.nan).double().numpy()
        found = _judge(detector, view.image, points)
        used = (
            "those of the detector were used (landmarks.source=files keeps yours)"
            if take
            else "they were used all the same"
        )
        if found.face is not None:
            doubts.append(
                (
                    view.name,
                    f"view {view.name}: its landmarks do not lie on the face of the photo; {found.doubt}; "
                    f"{used}",
                )
            )
            parts[i] = detector.landmarks(found.face) if take else parts[i]
        elif found.doubt:
            doubts.append((view.name, f"view {view.name}: {found.doubt}"))
        elif found.stray is not None and take:
            parts[i] = replace(parts[i], valid=parts[i].valid & ~torch.from_numpy(found.stray)[None])
            notes.append(
                f"view {view.name}: landmarks far from where the detector sees them were left out: "
                + ", ".join(str(n) for n in np.flatnonzero(found.stray))
                + " (counted from 0)"
            )
    return replace(join_landmarks(parts), notes=tuple(notes), doubts=tuple(doubts))


def _judge(detector: BuiltinDetector, image: np.ndarray, points: np.ndarray) -> _Verdict:
    """points: [68, 2] px, NaN = not seen."""
    accept, there = detector.options.judge.accept, _look_at(detector, image, points)
    if there.score >= accept and _apart(there, points) <= FAR:
        stray = _stray(there, points)
        return _Verdict(stray=stray) if stray.any() else _Verdict()
    faces = distinct([k for k in (there, *detector.find(image)) if k.score >= accept])
    if not faces:
        return _Verdict(
            "no face is seen where its landmarks lie, nor elsewhere in the photo; check the photo, or "
            "leave it out"
        )
    for mistake, moved in _mistakes(points, image.shape[1], image.shape[0]):
        face = min(faces, key=lambda k: _apart(k, moved(k)))
        if _apart(face, moved(face)) <= FAR:
            return _Verdict(mistake, face)
    face = min(faces, key=lambda k: _apart(k, points))
    return _Verdict("they may be of another photo or another person", face)


def _look_at(detector: BuiltinDetector, image: np.ndarray, points: np.ndarray) -> Look:
    """What the detector sees at the place of the points, after as many looks as it takes in a search. Few
    points far off do not count."""
    away = np.linalg.norm(points - np.nanmedian(points, 0), axis=1)
    near = away <= BEYOND * np.nanmedian(away)  # NaN is not; points that coincide are
    looks = detector.look(
        image, [square_of_points(points, near, head_roll(np.where(near[:, None], points, np.nan)))]
    )
    for turn in range(detector.options.passes):
        looks = detector.look(image, [looks[0].own_square], looks, mirror=turn == detector.options.passes - 1)
    return looks[0]


def _size(face: Look) -> float:
    """Square root of the area of the box of the points, px."""
    return float(np.sqrt(np.ptp(face.points[:NUM_POINTS], axis=0).prod()))


def _apart(face: Look, points: np.ndarray) -> float:
    """Root mean square of the coordinates of the inner points minus the detector's, in standard deviations.
    Single stray ones do not count."""
    sigma = np.hypot(face.sigma[:NUM_POINTS], FLOOR * _size(face))[:, None]
    away = np.where(_stray(face, points)[:, None], np.nan, (points - face.points[:NUM_POINTS]) / sigma)
    return float(np.sqrt(np.nanmean(away[INNER] ** 2)))


def _stray(face: Look, points: np.ndarray) -> np.ndarray:
    """[68] bool: single points that the detector sees elsewhere; those of the jaw under either rule. None
    where it would be many."""
    jaw = np.arange(NUM_POINTS)
    jaw[:17] += NUM_POINTS
    size = _size(face)
    over = [
        np.linalg.norm(points - face.points[rows], axis=1)
        / np.maximum(STRAY * size, STRAY_SIGMA * face.sigma[rows])
        for rows in (np.arange(NUM_POINTS), jaw)
    ]
    stray = np.minimum(*over) > 1  # NaN is not
    return stray if stray.sum() <= STRAY_MOST * np.isfinite(points).all(1).sum() else np.zeros_like(stray)


def _mistakes(points: np.ndarray, width: int, height: int) -> Iterator[tuple[str, object]]:
    """(sentence, function of a face) for usual mistakes: what the points would be without it."""
    x, y = points.T
    far_x, far_y = width - 1 - x, height - 1 - y

    def at(a: np.ndarray, b: np.ndarray, order: np.ndarray | slice = slice(None)):
        return lambda face: np.column_stack([a, b])[order]

    yield "left and right are exchanged in their order", at(x, y, MIRRORED)
    yield "they are of the mirrored picture", at(far_x, y, MIRRORED)
    yield "they are of the mirrored picture", at(far_x, y)
    yield "x and y are exchanged", at(y, x)
    yield "their y counts from the bottom, it must count from the top", at(x, far_y)
    for a, b in ((width - 1 - y, x), (y, height - 1 - x), (far_x, far_y)):
        yield "they are of the picture before its EXIF orientation turns it upright", at(a, b)

    def enlarged(face: Look) -> np.ndarray:
        seen = np.isfinite(points).all(1)
        seen[:17] = False
        p, q = points[seen] + 0.5, face.points[:NUM_POINTS][seen] + 0.5  # from the corner of the picture
        return (points + 0.5) * (p * q).sum() / (p * p).sum() - 0.5

    yield "they are of the picture in another size", enlarged

    def laid_on(face: Look) -> np.ndarray:
        seen = np.isfinite(points).all(1)
        seen[:17] = False
        p, q = points[seen], face.points[:NUM_POINTS][seen]
        scale = max(0.0, ((p - p.mean(0)) * (q - q.mean(0))).sum()) / ((p - p.mean(0)) ** 2).sum()
        return (points - p.mean(0)) * scale + q.mean(0)

    yield "they may be of another crop of the picture, or of another photo", laid_on
