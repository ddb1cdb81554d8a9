"""Joints of face models that others made: how far each usually turns."""

from __future__ import annotations

import torch

# Standard deviations of the rotation vectors, rad about x (nod, open), y (left, right) and z. A neck can
# hardly be told from the pose of the head; a jaw opens and hardly does more; eyes do not roll.
SIGMA = {
    "neck": (0.05, 0.05, 0.05),
    "head": (0.05, 0.05, 0.05),
    "jaw": (0.2, 0.05, 0.03),
    "eye": (0.15, 0.25, 0.02),
}


def joint_sigma(names: tuple[str, ...]) -> torch.Tensor:
    """[J, 3] rad for joints as fitkit names them: neck, head, jaw, eye_L, eye_R."""
    return torch.tensor([SIGMA[name.split("_")[0]] for name in names])
