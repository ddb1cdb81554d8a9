"""Landmarks for all views of a subject: from the files beside the images, else from a detector."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from fitkit.errors import InputError, MissingWeightsError, did_you_mean
from fitkit.io.progress import Progress
from fitkit.io.subject import Subject, View
from fitkit.observe.copies import copies
from fitkit.observe.landmarks.same_person import Appearance, appearance, choose_face
from fitkit.observe.landmarks.types import (
    LandmarkDetector,
    Landmarks,
    join_landmarks,
    larger_side,
    no_landmarks,
)

log = logging.getLogger("fitkit")
MIN_POINTS = 8  # seen in a view; fewer do not fix pose and scale robustly
ONNX = "onnx:"
BYSTANDER = 0.25  # faces smaller than this share of the largest of a photo are passed over


def _fan(variant: str) -> Callable[[str], LandmarkDetector]:
    def make(device: str) -> LandmarkDetector:
        from fitkit.observe.landmarks.fan import FanDetector  # loads face-alignment on first use

        return FanDetector(device, variant)

    return make


def _builtin(jaw: str) -> Callable[[str], LandmarkDetector]:
    def make(device: str) -> LandmarkDetector:
        from fitkit.observe.landmarks.builtin import BuiltinDetector

        return BuiltinDetector(device, jaw)

    return make


def _mediapipe(device: str) -> LandmarkDetector:
    from fitkit.observe.landmarks.mediapipe import MediapipeDetector  # needs packages of its own

    return MediapipeDetector(device)


def _fan_is_here() -> bool:
    from fitkit.observe.landmarks.fan import weights_here

    return weights_here()


# name -> how to make it
DETECTORS: dict[str, Callable[[str], LandmarkDetector]] = {
    "builtin": _builtin("outline"),
    "builtin3d": _builtin("surface"),
    "fan": _fan("fan"),
    "fan3d": _fan("fan3d"),
    "mediapipe": _mediapipe,
}
# `auto` takes the first of these that can be used without a download: name -> whether it can.
AUTO: dict[str, Callable[[], bool]] = {"fan": _fan_is_here, "builtin": lambda: True}


def make_detector(name: str, device: str = "cpu") -> LandmarkDetector:
    """The detector of this name; 'auto': the first that is ready for use, without a download; 'onnx:PATH': an
    ONNX file.

    Raises:
        InputError: unknown name; says the nearest known one. Or an ONNX file that cannot be used.
        MissingWeightsError: its weights are not here; says how to get them.
    """
    if name == "auto":
        ready = [candidate for candidate, here in AUTO.items() if here()]
        for candidate in ready:
            try:
                return DETECTORS[candidate](device)
            except MissingWeightsError as error:
                if candidate == ready[-1]:
                    raise
                log.warning("%s", error)
    if name.startswith(ONNX):
        from fitkit.observe.landmarks.onnx import OnnxDetector

        return OnnxDetector(name.removeprefix(ONNX), device)
    if name not in DETECTORS:
        known = ("auto", "files", *DETECTORS, f"{ONNX}PATH")
        hint = f"{did_you_mean(name, known)} known: {', '.join(known)}".lstrip()
        raise InputError(f"unknown landmark detector {name!r}; {hint}")
    return DETECTORS[name](device)


@dataclass(frozen=True)
class _Found:
    """What one view holds: faces, largest first, and how they look (only where it may be asked for)."""

    faces: list[Landmarks]
    looks: list[Appearance | None]
    source: str


def detect_landmarks(
    subject: Subject,
    method: str = "auto",
    device: str = "cpu",
    progress: Progress = Progress(),
) -> tuple[Landmarks, tuple[str, ...]]:
    """The 68 points of every view.

    Of several faces in a photo that one is taken that looks clearly more like the only faces of other views
    (or those with points in a file), else the largest; a note says so.

    Args:
        method: 'files' (only those given with the images), the name of a detector (for all views, files are
            passed over), or 'auto' (files, a detector for views without).
        device: torch device of the detector.
        progress: told of each view.
    Returns:
        Landmarks of all views in order (a view without points has valid = False throughout); per view where
        they come from: 'file', 'given', the detector's name, or 'none'.
    Raises:
        InputError: unknown method. MissingWeightsError: a detector is needed and its weights are not here.
    """
    detector, found = None, []
    if method not in ("auto", "files"):
        detector = make_detector(method, device)
    for number, view in enumerate(subject.views, 1):
        if method in ("auto", "files") and view.landmarks is not None:
            found.append(_Found([_from_view(view)], [None], view.landmark_source or "given"))
        elif method == "files":
            found.append(_Found([], [], "none"))
        else:
            if detector is None:
                try:
                    detector = make_detector("auto", device)
                except MissingWeightsError as error:
                    bare = [v.name for v in subject.views if v.landmarks is None]
                    some = ", ".join(bare[:5]) + (" ..." if len(bare) > 5 else "")
                    raise MissingWeightsError(f"no landmarks beside {some}: {error}") from error
            image = view.image
            faces = faces_of(detector, image)
            looks = (
                [appearance(image, _numbers(f)) for f in faces]
                if len(subject.views) > 1
                else [None] * len(faces)
            )
            found.append(_Found(faces, looks, detector.name))
        progress.counted(number, len(subject.views), view)
    results, notes = _take_one_face(subject, found)
    if detector is not None:
        notes.insert(0, _origin(found, detector.name))
    return replace(join_landmarks(results), notes=tuple(notes)), tuple(f.source for f in found)


def _take_one_face(subject: Subject, found: list[_Found]) -> tuple[list[Landmarks], list[str]]:
    """One face of each view, and a note for each view that has several."""
    others: list[Appearance] = []
    if any(len(f.faces) > 1 for f in found):
        for view, item in zip(subject.views, found):
            if len(item.faces) == 1:
                looks = item.looks[0] or appearance(view.image, _numbers(item.faces[0]))
                others += [looks] if looks is not None else []
    results, notes = [], []
    for view, item in zip(subject.views, found):
        index, by_looks = choose_face(item.looks, others)
        results.append(item.faces[index] if item.faces else no_landmarks())
        if len(item.faces) > 1:
            which = "the one most like the other photos" if by_looks else "the largest"
            notes.append(f"{_label(view)}: {len(item.faces)} faces; {which} was taken")
    return results, notes


def _origin(found: list[_Found], detector: str) -> str:
    """One line: where the points come from."""
    detected, given = (
        sum(f.source == detector for f in found),
        sum(f.source in ("file", "given") for f in found),
    )
    return f"landmarks: found by detector '{detector}' in {detected} photo{'s' * (detected != 1)}" + (
        f", given for {given}" if given else ""
    )


def faces_of(detector: LandmarkDetector, image: np.ndarray) -> list[Landmarks]:
    """The faces of an image [H, W, 3] uint8, largest first, without those far smaller than the largest."""
    faces = sorted(detector.detect_all(image), key=lambda f: -larger_side(f))
    return [f for f in faces if larger_side(f) >= BYSTANDER * larger_side(faces[0])]


def detect_view(detector: LandmarkDetector, image: np.ndarray) -> Landmarks:
    """The largest face of an image [H, W, 3] uint8; without a face valid = False everywhere."""
    return next(iter(faces_of(detector, image)), None) or no_landmarks(detector.jaw)


def _numbers(landmarks: Landmarks) -> np.ndarray:
    """Points [68, 2] float64 of one view, NaN where not valid."""
    return torch.where(landmarks.valid[0][:, None], landmarks.points[0], torch.nan).double().numpy()


def _label(view: View) -> str:
    return view.path.name if view.path else view.name


def usable_views(subject: Subject, landmarks: Landmarks) -> tuple[Subject, Landmarks, tuple[str, ...]]:
    """Leave out the views in which no face was found, and those that show the same picture as another one.

    Returns:
        the subject and the landmarks of the views with at least 8 points; the notes of the landmarks and one
        for each view left out.
    Raises:
        InputError: no view remains.
    """
    counts = landmarks.valid.sum(1).tolist()
    keep = [i for i, n in enumerate(counts) if n >= MIN_POINTS]
    notes = []
    for view, count in zip(subject.views, counts):
        if count < MIN_POINTS:
            hidden = view.landmarks is not None and not np.isfinite(view.landmarks[:, :2]).any()
            why = ": all of its given landmarks are marked as not seen" if hidden else ""
            notes.append(
                f"left out: no face found in {_label(view)}{why}"
                if count == 0
                else f"left out: {_label(view)} has only {count} of 68 landmarks, at least {MIN_POINTS} are "
                "needed"
            )
    views = [subject.views[i] for i in keep]
    same = copies(views)
    notes += [
        f"left out: {_label(views[i])} shows the same picture as {_label(views[same[i]])}, which counts once"
        for i in sorted(same)
    ]
    keep = [v for i, v in enumerate(keep) if i not in same]
    if not keep:
        reasons = "; ".join(n.removeprefix("left out: ") for n in notes[:5])
        raise InputError(
            f"no view can be used: {reasons or 'the subject has no views'}; "
            "give a photo that shows the face, or the 68 points beside it (IMAGE.pts)"
        )
    rows = torch.tensor(keep)
    parts = {k: getattr(landmarks, k)[rows] for k in ("points", "sigma", "valid", "confidence")}
    used = replace(landmarks, **parts, notes=())
    return replace(subject, views=tuple(subject.views[i] for i in keep)), used, (*landmarks.notes, *notes)


def _from_view(view: View) -> Landmarks:
    # Files do not say what their jaw points are.
    points = torch.from_numpy(np.asarray(view.landmarks, dtype=np.float32))[None]
    valid = torch.isfinite(points[..., :2]).all(-1)
    return Landmarks(
        points[..., :2], torch.full(valid.shape, torch.nan), valid, points[..., 2].nan_to_num(0.0), "auto"
    )
