"""Landmarks for all views of a subject: from the files beside the images, else from a detector."""
from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import torch

from fitkit.errors import InputError, MissingWeightsError
from fitkit.io.subject import Subject, View
from fitkit.observe.landmarks.types import LandmarkDetector, Landmarks

MIN_POINTS = 8  # seen in a view; fewer do not fix pose and scale robustly
DETECTOR_SIDE = 1280  # px, longest side that a detector gets


def _fan(device: str) -> LandmarkDetector:
    from fitkit.observe.landmarks.fan import FanDetector  # loads face-alignment on first use

    return FanDetector(device)


# name -> how to make it; `auto` takes the first of AUTO whose weights can be had.
DETECTORS: dict[str, Callable[[str], LandmarkDetector]] = {"fan": _fan}
AUTO = ("fan",)


def make_detector(name: str, device: str = "cpu") -> LandmarkDetector:
    """The detector of this name, or for 'auto' the first one that is ready for use.

    Raises:
        InputError: unknown name; says the nearest known one.
        MissingWeightsError: its weights are not here; says how to get them.
    """
    if name == "auto":
        for i, candidate in enumerate(AUTO):
            try:
                return DETECTORS[candidate](device)
            except MissingWeightsError:
                if i == len(AUTO) - 1:
                    raise
    if name not in DETECTORS:
        known = ("auto", "files", *DETECTORS)
        near = difflib.get_close_matches(name, known, n=1)
        raise InputError(f"unknown landmark detector {name!r}; " + (f"did you mean {near[0]!r}? " if near else "")
                         + f"known: {', '.join(known)}")
    return DETECTORS[name](device)


def detect_landmarks(subject: Subject, method: str = "auto", device: str = "cpu",
                     progress: Callable[[View], None] | None = None) -> tuple[Landmarks, tuple[str, ...]]:
    """The 68 points of every view.

    Args:
        method: 'files' (only those given with the images), the name of a detector (for all views, files are passed
            over), or 'auto' (files, a detector for views without).
        device: torch device of the detector.
        progress: called after each view.
    Returns:
        Landmarks of all views in order (a view without points has valid = False throughout); per view where they come
        from: 'file', 'given', the detector's name, or 'none'.
    Raises:
        InputError: unknown method. MissingWeightsError: a detector is needed and its weights are not here.
    """
    detector, results, sources = None, [], []
    if method not in ("auto", "files"):
        detector = make_detector(method, device)
    for view in subject.views:
        if method in ("auto", "files") and view.landmarks is not None:
            results.append(_from_view(view))
            sources.append(view.landmark_source or "given")
        elif method == "files":
            results.append(_nothing())
            sources.append("none")
        else:
            if detector is None:
                try:
                    detector = make_detector("auto", device)
                except MissingWeightsError as error:
                    bare = [v.name for v in subject.views if v.landmarks is None]
                    some = ", ".join(bare[:5]) + (" ..." if len(bare) > 5 else "")
                    raise MissingWeightsError(f"no landmarks beside {some}: {error}") from error
            results.append(detect_view(detector, view.image))
            sources.append(detector.name)
        if progress:
            progress(view)
    return _join(results), tuple(sources)


def detect_view(detector: LandmarkDetector, image: np.ndarray) -> Landmarks:
    """Run a detector on one image [H, W, 3] uint8, reduced to at most 1280 px -> Landmarks in px of the full image."""
    h, w = image.shape[:2]
    scale = max(1.0, max(h, w) / DETECTOR_SIDE)
    small = image
    if scale > 1:
        small = cv2.resize(image, (max(1, round(w / scale)), max(1, round(h / scale))), interpolation=cv2.INTER_AREA)
    found = detector.detect(torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255)
    factor = torch.tensor([w / small.shape[1], h / small.shape[0]])
    # Pixel centres are whole numbers, so the corner of the image is at -0.5.
    return replace(found, points=(found.points + 0.5) * factor - 0.5, sigma=found.sigma * float(factor.mean()))


def usable_views(subject: Subject, landmarks: Landmarks) -> tuple[Subject, Landmarks, tuple[str, ...]]:
    """Leave out the views in which no face was found.

    Returns:
        the subject and the landmarks of the views with at least 8 points; one note for each view left out.
    Raises:
        InputError: no view remains.
    """
    counts = landmarks.valid.sum(1).tolist()
    keep = [i for i, n in enumerate(counts) if n >= MIN_POINTS]
    notes = []
    for view, count in zip(subject.views, counts):
        if count < MIN_POINTS:
            label = view.path.name if view.path else view.name
            notes.append(f"left out: no face found in {label}" if count == 0 else
                         f"left out: {label} has only {count} of 68 landmarks, at least {MIN_POINTS} are needed")
    if not keep:
        reasons = "; ".join(n.removeprefix("left out: ") for n in notes[:5])
        raise InputError(f"no view can be used: {reasons or 'the subject has no views'}; "
                         "give a photo that shows the face, or the 68 points beside it (IMAGE.pts)")
    rows = torch.tensor(keep)
    parts = {k: getattr(landmarks, k)[rows] for k in ("points", "sigma", "valid", "confidence")}
    return replace(subject, views=tuple(subject.views[i] for i in keep)), replace(landmarks, **parts), tuple(notes)


def _from_view(view: View) -> Landmarks:
    # Files do not say what their jaw points are.
    points = torch.from_numpy(np.asarray(view.landmarks, dtype=np.float32))[None]
    valid = torch.isfinite(points[..., :2]).all(-1)
    return Landmarks(points[..., :2], torch.full(valid.shape, torch.nan), valid, points[..., 2].nan_to_num(0.0), "auto")


def _nothing() -> Landmarks:
    nan = torch.full((1, 68, 2), torch.nan)
    return Landmarks(nan, nan[..., 0], torch.zeros(1, 68, dtype=torch.bool), torch.zeros(1, 68))


def _join(parts: list[Landmarks]) -> Landmarks:
    # Views without points have no say in what the jaw points are.
    jaws = {p.jaw for p in parts if p.valid.any()}
    return Landmarks(*(torch.cat([getattr(p, k) for p in parts]) for k in ("points", "sigma", "valid", "confidence")),
                     jaw=jaws.pop() if len(jaws) == 1 else "auto")
