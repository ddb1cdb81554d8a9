"""What a face model says about colours: its regions by name, and an albedo for models that have none."""

from __future__ import annotations

import numpy as np

from fitkit.models.face_model import FaceModel

# Words in the names of regions: the eyeballs, and what lies inside the head.
EYES = ("sclera", "iris", "eyeball", "pupil", "cornea", "eye_left", "eye_right")
INSIDE = ("teeth", "gum", "tongue", "mouth_socket", "mouth_in", "eye_socket")


def default_albedo(model: FaceModel) -> np.ndarray:
    """Linear RGB [V, 3]: the model's mean albedo, or, for models without one, a plain colour per kind of
    region."""
    if model.albedo_mean is not None:
        return model.albedo_mean.cpu().numpy().astype(np.float32)
    colours = (
        ("teeth", (0.62, 0.56, 0.45)),
        ("gum", (0.35, 0.10, 0.09)),
        ("tongue", (0.35, 0.10, 0.09)),
        ("mouth_socket", (0.18, 0.05, 0.04)),
        ("sclera", (0.60, 0.56, 0.52)),
        ("eyeball", (0.60, 0.56, 0.52)),
        ("iris", (0.10, 0.07, 0.05)),
        ("lip", (0.40, 0.17, 0.15)),
    )
    table = [
        next((c for key, c in colours if key in name.lower()), (0.45, 0.28, 0.21))
        for name in model.region_names
    ]
    return np.array(table, np.float32)[model.region.cpu().numpy()]


def in_region(model: FaceModel, words: tuple[str, ...]) -> np.ndarray:
    """[V] bool: the vertex lies in a region whose name holds one of the words."""
    return np.array([any(w in name.lower() for w in words) for name in model.region_names])[
        model.region.numpy()
    ]
