"""Landmarks of one frame against the epipolar lines of another (E29)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fitkit.energies.base import PlainEnergy, Residuals
from fitkit.energies.spec import MGC, EnergyDoc, EnergyOptions, EnergySpec, use
from fitkit.errors import InputError
from fitkit.geometry.rotation import skew
from fitkit.io.options import Positive
from fitkit.observe.observations import Observations
from fitkit.scene.state import SceneState


def fundamental_matrices(state: SceneState, i: Tensor, j: Tensor) -> Tensor:
    """F [P, 3, 3] with (x_j, 1)' F (x_i, 1) = 0 for pixels x_i, x_j of one head point in frames i [P] and j
    [P].

    Raises:
        InputError: a camera that is not perspective; its rays have no common centre.
    Source: Hartley and Zisserman, "Multiple View Geometry", 2nd ed., eq. 9.2-9.4.
    """
    if state.camera.kind != "perspective":
        raise InputError(
            f"energy 'epi_lmk' needs perspective cameras, got '{state.camera.kind}'; set "
            "camera.kind=perspective"
        )
    turn = state.pose.rotation[j] @ state.pose.rotation[i].transpose(1, 2)
    shift = state.pose.translation[j] - (turn @ state.pose.translation[i][..., None])[..., 0]
    inverse = torch.linalg.inv(state.camera.matrix())
    return inverse[j].transpose(1, 2) @ skew(shift) @ turn @ inverse[i]


@dataclass(frozen=True)
class EpipolarLandmarks(PlainEnergy):
    """epi_lmk: distance of each landmark in frame j from the epipolar line of the same landmark in frame i,
    over sigma_px, for all ordered pairs of frames of one person, [P, 68, 1] (E29). Sums. For training.

    Depends on poses and focal lengths alone, not on the shape. Points 0-16 count only where they are fixed
    points of the skin. Frames from one centre have no epipolar lines and should not be paired. Source: MGCNet
    (Shang et al., ECCV 2020).
    """

    sigma_px: float = 1.0
    name = "epi_lmk"

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        same = state.subject[:, None] == state.subject[None]
        i, j = torch.where(same & ~torch.eye(len(same), dtype=torch.bool, device=same.device))
        marks = observations.landmarks
        points = torch.nan_to_num(marks.points).to(state.identity)
        points = torch.cat([points, torch.ones_like(points[..., :1])], -1)
        lines = points[i] @ fundamental_matrices(state, i, j).transpose(1, 2)
        distance = (lines * points[j]).sum(-1) / lines[..., :2].norm(dim=-1).clamp_min(1e-12)
        valid = marks.valid.to(i.device)
        valid = valid[i] & valid[j]
        if marks.jaw != "surface":
            valid = valid & (torch.arange(valid.shape[1], device=valid.device) > 16)
        return Residuals((distance / self.sigma_px)[..., None], valid)


# ---- recipes ----


@dataclass(frozen=True)
class EpipolarTerm(EnergyOptions):
    sigma_px: Positive = 1.0  # standard deviation of a distance, for a 224-pixel crop


SPECS = (
    EnergySpec(
        name="epi_lmk",
        cls=EpipolarLandmarks,
        make=lambda context, o: EpipolarLandmarks(o.sigma_px * context.observations.pixel_unit),
        role="landmark",
        doc=EnergyDoc(
            formula="distance of l_j from the epipolar line of l_i",
            unit="px of the crop",
            source="MGCNet",
            uses=(use(MGC, "", "off in its code"),),
            gradient="to poses and focal lengths alone",
            id="E29",
        ),
        options=EpipolarTerm,
        cross_view=True,
    ),
)
