"""The face-alignment package behind our detector interface.

Source: Bulat and Tzimiropoulos, "How far are we from solving the 2D & 3D Face Alignment problem?", ICCV 2017;
    github.com/1adrianb/face-alignment (BSD). Its 2D variant: jaw points follow the visible outline.
"""
from __future__ import annotations

import inspect
import pickle
import socket
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fitkit.errors import MissingWeightsError
from fitkit.observe.landmarks.types import Landmarks

TIMEOUT = 30  # seconds without an answer when it downloads its weights
OTHERWISE = "or put the 68 points beside each image (IMAGE.pts; see docs/subject_folder.md)"


class FanDetector:
    """Face detector and 2D landmark network of face-alignment; the largest face of each image is taken.

    Args:
        device: torch device.
        min_score: mean heat-map value of the 68 points below which a face does not count, 0 to 1.
    Raises:
        MissingWeightsError: package or weights are not on this machine and cannot be downloaded.
    """

    name = "fan"
    scheme = "ibug68"
    jaw = "outline"

    def __init__(self, device: str = "cpu", min_score: float = 0.2):
        self.min_score = min_score
        self.network = load_networks(device)

    def detect(self, images: Tensor) -> Landmarks:
        """images [B, 3, H, W] in [0, 1] -> Landmarks of B views; confidence is the heat map's value."""
        points = torch.full((len(images), 68, 2), torch.nan)
        confidence = torch.zeros(len(images), 68)
        for i, image in enumerate(images):
            pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            found = self._largest(pixels)
            if found is not None:
                points[i], confidence[i] = found
        valid = torch.isfinite(points).all(-1)
        return Landmarks(points, torch.full_like(confidence, torch.nan), valid, confidence, self.jaw)

    def _largest(self, pixels: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """Points [68, 2] and confidence [68] of the largest face in [H, W, 3] uint8, or None."""
        boxes = self.network.face_detector.detect_from_image(pixels.copy())
        if len(boxes) == 0:
            return None
        # Chosen before the landmark network, which would run on every face of a group photo.
        largest = max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
        # What it returns depends on these flags.
        points, scores, _ = self.network.get_landmarks_from_image(pixels, detected_faces=[largest], return_landmark_score=True)
        # With flip_input it adds the heat maps of the image and its mirror image, so scores run up to 2.
        confidence = np.clip(np.asarray(scores[0], dtype=np.float32).reshape(68) / 2, 0, 1)
        if confidence.mean() < self.min_score:
            return None
        # Points are quantised to 1/256 of the face crop, so whether they count from 0 or 1 does not show.
        return torch.as_tensor(np.asarray(points[0], dtype=np.float32)[:, :2]), torch.from_numpy(confidence)


def weights_folder() -> Path:
    """Where face-alignment keeps its weights (torch.hub's cache; moved by TORCH_HOME)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def load_networks(device: str = "cpu"):
    """face-alignment's networks; downloads their weights (about 180 MB) on first use.

    Raises:
        MissingWeightsError: no package, no weights and no network, or a damaged weight file.
    """
    try:
        import face_alignment
    except ImportError as error:
        raise MissingWeightsError(f"landmark detector 'fan' needs the package face-alignment ({error}); "
                                  f"pip install face-alignment, {OTHERWISE}") from error
    options = {"device": str(device), "flip_input": True, "face_detector": "sfd"}
    # Compiling takes a minute and pays off only for thousands of images; the option came with version 1.5.
    if "compile" in inspect.signature(face_alignment.FaceAlignment.__init__).parameters:
        options["compile"] = False
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # its download has none
    try:
        return face_alignment.FaceAlignment(face_alignment.LandmarksType.TWO_D, **options)
    except OSError as error:  # URLError, timeouts, a cache folder that cannot be written
        raise MissingWeightsError(
            f"landmark detector 'fan': its weights are not in {weights_folder()} and cannot be downloaded ({error}); "
            f"on a machine with network run 'fitkit model fetch fan' and copy that folder, {OTHERWISE}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:  # a file that is cut off
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingWeightsError(
            f"landmark detector 'fan': a weight file in {weights_folder()} is damaged ({reason}); "
            f"delete it and run 'fitkit model fetch fan', {OTHERWISE}") from error
    finally:
        socket.setdefaulttimeout(timeout)
