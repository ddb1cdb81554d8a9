"""Do the given positions of the cameras agree with the landmarks? If not, what was meant by them?

Each view alone tells how the head stands before its camera and, with the focal length, where it lies for a
head of the mean size. In the world of a rig all views must come to one head: one rotation, one place and one
size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fitkit.errors import InputError
from fitkit.fitting.cameras import rigs_of
from fitkit.fitting.initialize import line_of_sight
from fitkit.fitting.report import Contradiction
from fitkit.fitting.rig import UNSIZED, Agreement, Heads, agreement, degrees_of, positions
from fitkit.geometry.rotation import rotation_between_axis_and
from fitkit.geometry.weak_perspective import weak_perspective_pose
from fitkit.io.subject import Subject, View, some
from fitkit.models.face_model import FaceModel
from fitkit.observe.landmarks.types import Landmarks

STILL_DEG = 12.0  # how far a head that did not turn may seem to have turned
SIZE = 2.0  # a small child's face has 0.6 times the size of the mean one
UNITS = {"millimetres": 1.0, "centimetres": 0.1, "inches": 1 / 25.4, "feet": 1 / 304.8, "metres": 0.001}
MOST = 0.8  # of the views agree under the right reading; landmarks or a photo of the others may be wrong
# share of the misfit that the right reading leaves; more, and a rig is badly calibrated rather than misread
CLEAR = 0.4
NEEDED = (
    'fitkit needs x_camera = R x_world + t with x right, y down, z forward and t in mm, or the "unit" of t'
)
CHECK = f"check them ({NEEDED}; the head may not move between the photos) and the landmarks"


def check_rig(subject: Subject, found: Landmarks, model: FaceModel) -> tuple[Subject, list[Contradiction]]:
    """Take the positions from cameras that the landmarks contradict, moment by moment.

    Args:
        found: landmarks of the subject's views, px of the photos.
    Returns:
        the subject, without R and t where most other views of the moment contradict them; for each of these
        views what is wrong.
    Raises:
        InputError: R and t agree with the landmarks once they are read in another way (camera-to-world, other
            axes or units, ...), or one position is given for a head that turned; names the cameras and what
            to do.
    """
    contradictions = []
    for rig in rigs_of(subject.views):
        subject, more = _check_moment(subject, rig, found, model)
        contradictions += more
    return subject, contradictions


def _check_moment(
    subject: Subject, rig: Sequence[int], found: Landmarks, model: FaceModel
) -> tuple[Subject, list[Contradiction]]:
    """`check_rig` for the views `rig`, which see the head in one place."""
    views = [subject.views[i] for i in rig]
    R, t = positions(views)
    heads = heads_of(views, found.select(rig), model)
    cameras = subject.path / "cameras.json" if subject.path else f"the cameras of {subject.name}"
    where = f"{cameras}: R and t of {some(v.name for v in views)}"
    _refuse_one_place(where, heads, R, t)
    given = agreement(heads, R, t)
    known = all(v.camera.metric for v in views)
    right_size = not known or given.size_sigma > UNSIZED or _unit(given.size) == "millimetres"
    if given.agrees.all() and right_size:
        return subject, []
    if not (right_size and int(given.agrees.sum()) >= max(2, math.ceil(MOST * len(rig)))):
        _refuse_other_reading(where, heads, R, t, given, known)
    kept, contradictions = list(subject.views), []
    agree = (
        given.agrees
        if right_size and 2 * int(given.agrees.sum()) > len(rig)
        else torch.zeros(len(rig), dtype=torch.bool)
    )
    for i, view, good, turned, aside in zip(
        rig, views, agree.tolist(), given.turned.tolist(), given.aside.tolist()
    ):
        if not good:
            kept[i] = view.replace(camera=replace(view.camera, R=None, t=None))
            contradictions.append(
                Contradiction(
                    view.name,
                    f"view {view.name}: R and t of its camera put the head {turned:.0f} degrees and "
                    f"{aside:.0f} mm from where those of the others put it; only its K was used; {CHECK}",
                )
            )
    if not agree.any():
        message = f"{where} contradict the landmarks; only K was used; {CHECK}"
        contradictions = [Contradiction(None, message)]
    return replace(subject, views=tuple(kept)), contradictions


def _refuse_one_place(where: str, heads: Heads, R: Tensor, t: Tensor) -> None:
    """Views with one position, although the head turned."""
    far = 1e-4 * (1e-9 + t.norm(dim=-1).max())
    same = ((R[:, None] - R[None]).abs().amax((-1, -2)) < 1e-4) & ((t[:, None] - t[None]).norm(dim=-1) < far)
    angle = float((degrees_of(heads.rotation[:, None].transpose(-1, -2) @ heads.rotation[None]) * same).max())
    if angle > STILL_DEG:
        raise InputError(
            f"{where} put cameras in one place, but the head turned by {angle:.0f} degrees between their "
            "photos; R and t must be relative to the head: give only K, or, where several cameras took "
            'photos at once, the "moment" of each'
        )


def _refuse_other_reading(
    where: str, heads: Heads, R: Tensor, t: Tensor, given: Agreement, known: bool
) -> None:
    """The reading under which the views agree and the face has the size of a face in a known unit; else in
    any unit. known: t is said to be in mm."""
    needed = max(2, math.ceil(MOST * len(R)))
    fitting = []
    for reading, cameras in readings(R, t).items():
        result = agreement(heads, *cameras)
        clear = reading == ("", "") or result.misfit < CLEAR * given.misfit
        if int(result.agrees.sum()) >= needed and result.size_sigma <= UNSIZED and clear:
            fitting.append((*reading, result))
    fitting = [f for f in fitting if _unit(f[2].size)] or fitting
    if not fitting:
        return
    best = min(f[2].misfit for f in fitting)
    # Of several that are as good the simplest, which is the earliest.
    meaning, axes, result = next(f for f in fitting if f[2].misfit <= 1.5 * best)
    unit = _unit(result.size)
    read_as = (meaning or "world-to-camera") + (f" in {axes}" if axes else "")
    if known and unit != "millimetres":
        other = unit or f"a unit {1 / result.size:.3g} times as large as it says"
        read_as += f", t in {other} (by the size of the face)"
    raise InputError(
        f"{where} contradict the landmarks, but agree with them when they are read as {read_as}; convert "
        f"them ({NEEDED}), or give only K"
    )


def _unit(size: float) -> str | None:
    """The unit in which a face of this size, over that of the mean face in mm, is that of a person."""
    name = min(UNITS, key=lambda u: abs(math.log(max(size, 1e-12) / UNITS[u])))
    return name if abs(math.log(max(size, 1e-12) / UNITS[name])) < math.log(SIZE) else None


def heads_of(views: Sequence[View], found: Landmarks, model: FaceModel) -> Heads:
    """The mean face at the landmarks of each view, in closed form; `views` have cameras, float64."""
    inner = found.valid.clone()
    inner[:, :17] &= (
        inner[:, 17:].sum(1, keepdim=True) < 8
    )  # jaw points may be the outline, another place of the face in each view
    weight = inner.double() * found.confidence.double().clamp_min(1e-3)
    mean = model.landmark_basis.mean.cpu().double()
    scale, rotation, shift = weak_perspective_pose(
        mean[None], torch.nan_to_num(found.points.double()), weight
    )
    K = torch.stack([torch.as_tensor(v.camera.K, dtype=torch.float64) for v in views])
    place = line_of_sight(
        mean.mean(0)[:, None], scale, rotation, shift - K[:, :2, 2], K[:, 0, 0], K[:, 1, 1] / K[:, 0, 0]
    )
    return Heads(rotation_between_axis_and(place) @ rotation, place)


def _inverse(R: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    back = R.transpose(1, 2)
    return back, -(back @ t[..., None])[..., 0]


def _center(R: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return R, -(R @ t[..., None])[..., 0]


# What R and t may be instead, and how the axes of the camera may lie; each gives world-to-camera in OpenCV's
# axes.
MEANINGS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "": lambda R, t: (R, t),
    "camera-to-world": _inverse,
    "world-to-camera with the place of the camera as t": _center,
    "world-to-camera with R transposed": lambda R, t: (R.transpose(1, 2), t),
}
AXES = {
    "": (1, 1, 1),
    "the axes of OpenGL and Blender (y up, z backward)": (1, -1, -1),
    "the axes of PyTorch3D (x left, y up)": (-1, -1, 1),
    "left-handed axes (y up, as in Unity)": (1, -1, 1),
}


def readings(R: Tensor, t: Tensor) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """(what R and t mean, axes) -> R, t as they should have been given; the first is what was given."""
    out = {}
    for axes, signs in AXES.items():
        camera = torch.tensor(signs, dtype=R.dtype)
        # Left-handed cameras stand in a left-handed world.
        world = camera if camera.prod() < 0 else torch.ones_like(camera)
        for meaning, change in MEANINGS.items():
            foreign_R, foreign_t = change(R, t)
            out[meaning, axes] = camera[:, None] * foreign_R * world, camera * foreign_t
    return out
