"""For slides and messages: a short film of the head turning round."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from fitkit.errors import InputError, attempt
from fitkit.export.morphs import FRAMES_PER_SECOND
from fitkit.export.preview import draw_turn
from fitkit.export.targets import ExportOptions
from fitkit.export.texture import blend_texture
from fitkit.export.topology import topology_of, with_quads
from fitkit.fitting.result import FitResult
from fitkit.models.face_model import FaceModel

FRAMES, SIZE = 120, 720
FILM = "turntable.mp4"


def write_turntable(result: FitResult, folder: Path, options: ExportOptions) -> list[str]:
    """`turntable.mp4`: the neutral face with its texture turns round once in five seconds; in the colours of
    the model, or grey, where there is no texture."""
    notes: list[str] = []
    model, texture = result.personal_model, None
    if model.uv is not None:
        texture = attempt("the texture", lambda: blend_texture(result), None, notes)
    edges = drawn_edges(result.model) if options.wireframe else None
    film = cv2.VideoWriter(
        str(folder / FILM), cv2.VideoWriter_fourcc(*"mp4v"), FRAMES_PER_SECOND, (SIZE, SIZE)
    )
    if not film.isOpened():
        raise InputError("export: this build of OpenCV writes no MPEG-4; install opencv-python from PyPI")
    try:
        for frame in draw_turn(result.neutral.detach(), model, texture, edges, FRAMES, SIZE):
            film.write(np.ascontiguousarray(frame[..., ::-1]))
    finally:
        film.release()
    if frames_of(folder / FILM) != FRAMES:  # the writer itself never says so
        raise OSError(f"{FILM}: OpenCV could not write it whole; is the disk full?")
    return notes


def frames_of(film: Path) -> int:
    """Frames that OpenCV finds in a film, 0 where it cannot be read."""
    capture = cv2.VideoCapture(str(film))
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    finally:
        capture.release()


def drawn_edges(model: FaceModel) -> np.ndarray:
    """Which edges of its triangles the faces of exported meshes have, [F, 3] bool, the k-th opposite the k-th
    corner: all but those within quads."""
    shown = with_quads(model, topology_of(model))
    pairs = shown.triangles[shown.quads]  # [Q, 2, 3]
    shared = pairs[:, 0][(pairs[:, 0][:, :, None] == pairs[:, 1][:, None]).any(2)].reshape(-1, 2)
    sides = model.triangles.numpy()[:, [[1, 2], [2, 0], [0, 1]]]  # [F, 3, 2]
    known, hidden = (
        ends.min(-1) * model.num_vertices + ends.max(-1) for ends in (sides, shown.vertex[shared])
    )
    return ~np.isin(known, hidden)
