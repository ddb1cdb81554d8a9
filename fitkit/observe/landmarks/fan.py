"""The face-alignment package behind our detector interface.

Source: Bulat and Tzimiropoulos, "How far are we from solving the 2D & 3D Face Alignment problem?", ICCV 2017;
    github.com/1adrianb/face-alignment (BSD). 'fan' is its 2D network (jaw points follow the visible outline),
    'fan3d' its 3D network (jaw points are fixed on the skin, hidden ones are guessed), without the depth it
    could add.
"""

from __future__ import annotations

import importlib
import inspect
import socket
from pathlib import Path
from urllib.parse import urlparse

import cv2
import numpy as np
import torch

from fitkit.errors import InputError, MissingWeightsError
from fitkit.observe.landmarks.types import EveryFaceDetector, Landmarks

TIMEOUT = 30  # seconds without an answer when it downloads its weights
OTHERWISE = (
    "use --landmarks builtin, or put the 68 points beside each image (IMAGE.pts; see docs/subject_folder.md)"
)
# name -> attribute of face_alignment.LandmarksType, weight file's name up to the first dash, what the jaw
# points are. TWO_HALF_D runs the 3D network and leaves out the depth network, another 200 MB.
VARIANTS = {"fan": ("TWO_D", "2DFAN4", "outline"), "fan3d": ("TWO_HALF_D", "3DFAN4", "surface")}
DETECTOR_SIDE = 1280  # px, longest side that it gets
MOST_FACES = 4  # the landmark network takes a second for each
BYSTANDER = 0.33  # faces smaller than this share of the largest are passed over
TARGET_SIGMA = 1.75  # px of the heat map: Gaussians of its training, 0.25 of their 7 px window
SIGMA_FLOOR = 0.4  # px of the heat map: its points are read off to a quarter of a pixel
HEAT_MAP_PER_BOX = 200 / 195 / 64  # a pixel of the heat map, over width + height of the box


class FanDetector(EveryFaceDetector):
    """Face detector and landmark network of face-alignment.

    Args:
        device: torch device.
        variant: 'fan' (2D, outline) or 'fan3d' (3D, surface).
        min_score: mean heat-map value of the 68 points below which a face does not count, 0 to 1.
    Raises:
        MissingWeightsError: package or weights are not on this machine and cannot be downloaded.
    """

    def __init__(self, device: str = "cpu", variant: str = "fan", min_score: float = 0.2):
        if variant not in VARIANTS:
            raise InputError(f"face-alignment: variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        self.name, self.jaw = variant, VARIANTS[variant][2]
        self.min_score = min_score
        self.network = load_networks(device, variant)

    def detect_all(self, image: np.ndarray) -> list[Landmarks]:
        """image [H, W, 3] uint8 sRGB -> one Landmarks of one view for each face, the largest face first;
        confidence is the heat map's value, sigma follows from it (see `peak_sigma`)."""
        h, w = image.shape[:2]
        factor = max(1.0, max(h, w) / DETECTOR_SIDE)
        if factor > 1:
            image = cv2.resize(
                image, (max(1, round(w / factor)), max(1, round(h / factor))), interpolation=cv2.INTER_AREA
            )
        scale = np.array([w / image.shape[1], h / image.shape[0]])
        boxes = self.network.face_detector.detect_from_image(image.copy())
        boxes = sorted(boxes, key=lambda box: -(box[2] - box[0]) * (box[3] - box[1]))
        large = [b for b in boxes if b[2] - b[0] >= BYSTANDER * (boxes[0][2] - boxes[0][0])]
        found = (self._face(image, box, scale) for box in large[:MOST_FACES])
        return [f for f in found if f is not None]

    def _face(self, image: np.ndarray, box, scale: np.ndarray) -> Landmarks | None:
        """The face in a box of the reduced image, in px of the photo, which is `scale` (x, y) times as
        large."""
        # What it returns depends on these flags.
        points, scores, _ = self.network.get_landmarks_from_image(
            image.copy(), detected_faces=[box], return_landmark_score=True
        )
        # With flip_input it adds the heat maps of the image and its mirror image, so scores run up to 2.
        confidence = np.clip(np.asarray(scores[0], dtype=np.float32).reshape(68) / 2, 0, 1)
        if confidence.mean() < self.min_score:
            return None
        # Points are quantised to 1/256 of the face crop, so whether they count from 0 or 1 does not show.
        # Pixel centres are whole numbers, so the corner of the image is at -0.5.
        points = (np.asarray(points[0], dtype=np.float64)[:, :2] + 0.5) * scale - 0.5
        unit = float(box[2] - box[0] + box[3] - box[1]) * HEAT_MAP_PER_BOX * float(scale.mean())
        parts = (torch.from_numpy(v[None]).float() for v in (points, peak_sigma(confidence) * unit))
        points, sigma = parts
        return Landmarks(
            points, sigma, torch.isfinite(points).all(-1), torch.from_numpy(confidence[None]), self.jaw
        )


def peak_sigma(peak: np.ndarray) -> np.ndarray:
    """Standard deviation of each coordinate, in px of the heat map, from the height of its peak, 0 to 1.

    The network learns the mean of its targets, Gaussians of height 1 and standard deviation t = 1.75 px
    around the point. A point whose place it knows up to a standard deviation s gives a mean of height t^2 /
    (t^2 + s^2), so s = t sqrt(1 / height - 1).
    """
    return np.hypot(TARGET_SIGMA * np.sqrt(1 / np.clip(peak, 0.01, 1) - 1), SIGMA_FLOOR)


def weights_here(variant: str = "fan") -> bool:
    """Whether all weights of this variant are in the cache, so that it needs no download."""
    folder = weights_folder()
    if not any(folder.glob("s3fd*")) or not any(folder.glob(f"{VARIANTS[variant][1]}*")):
        return False  # the package takes seconds to load
    try:
        return all((folder / name).is_file() for name in weight_files(variant))
    except (ImportError, AttributeError, StopIteration):
        return False


def weight_files(variant: str = "fan") -> tuple[str, str]:
    """Names of the weight files (face detector, landmark network) that the installed package asks for."""
    api = importlib.import_module("face_alignment.api")
    key = f"{VARIANTS[variant][1][:-1]}-4"
    # Version 1.4 has tables for old versions of torch and, for torch 2, a default one.
    network = api.models_urls if key in api.models_urls else api.default_model_urls
    boxes = importlib.import_module("face_alignment.detection.sfd.sfd_detector").models_urls
    return Path(urlparse(boxes["s3fd"]).path).name, Path(urlparse(network[key]).path).name


def weights_folder() -> Path:
    """Where face-alignment keeps its weights (torch.hub's cache; moved by TORCH_HOME)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def load_networks(device: str = "cpu", variant: str = "fan"):
    """face-alignment's networks for a variant; downloads their weights (about 180 MB) on first use.

    Raises:
        MissingWeightsError: no package, no weights and no network, or a damaged weight file.
    """
    try:
        import face_alignment
    except ImportError as error:
        raise MissingWeightsError(
            f"landmark detector '{variant}' needs the package face-alignment ({error}); "
            f"pip install face-alignment, {OTHERWISE}"
        ) from error
    options = {"device": str(device), "flip_input": True, "face_detector": "sfd"}
    # Compiling takes a minute and pays off only for thousands of images; the option came with version 1.5.
    if "compile" in inspect.signature(face_alignment.FaceAlignment.__init__).parameters:
        options["compile"] = False
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # its download has none
    try:
        return face_alignment.FaceAlignment(
            getattr(face_alignment.LandmarksType, VARIANTS[variant][0]), **options
        )
    except OSError as error:  # URLError, timeouts, a cache folder that cannot be written
        raise MissingWeightsError(
            f"landmark detector '{variant}': its weights are not in {weights_folder()} and cannot be "
            f"downloaded ({error}); on a machine with network run 'fitkit model fetch {variant}' and copy "
            f"that folder, {OTHERWISE}"
        ) from error
    except Exception as error:  # a file that is cut off raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingWeightsError(
            f"landmark detector '{variant}': a weight file in {weights_folder()} is damaged ({reason}); "
            f"delete it and run 'fitkit model fetch {variant}', {OTHERWISE}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
