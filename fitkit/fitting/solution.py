"""What the stages of a fit have found."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from fitkit.energies.objective import LeastSquaresProblem, TermReport
from fitkit.fitting.cameras import CameraPrior
from fitkit.fitting.detail import Detail
from fitkit.fitting.report import StageReport
from fitkit.models.face_model import FaceModel
from fitkit.observe.observations import Observations
from fitkit.scene.state import SceneState

Solved = tuple[LeastSquaresProblem, SceneState]  # a problem and its solution


@dataclass(frozen=True)
class Solution:
    """What is known after some stages of a fit, or after all of them. Pixels are those of the crops."""

    model: FaceModel  # on the device of the fit
    observations: Observations
    cameras: CameraPrior
    state: SceneState
    sigma: Tensor  # [B, 68] px, of the landmarks
    jaw_rule: str = "auto"  # what the jaw points are, see `LandmarkReprojection`; 'auto': not known yet
    start: str = "landmarks"  # or 'regressor': where the fit began
    offset_spread: float = 1.0  # of the landmarks' offsets, over what their prior states
    one_expression: bool = False  # all photos have been found to show the same
    light: Tensor | None = None  # [B, 9, C], the first estimate
    iterations: int = 0  # of the solver, trial fits included
    stages: tuple[StageReport, ...] = ()
    terms: dict[str, TermReport] = field(default_factory=dict)  # of the last stage
    last: Solved | None = None  # of the last stage
    shape: Solved | None = None  # of the last stage that moved the identity
    detail: Detail | None = None

    def sigma_photo(self) -> Tensor:
        """[B, 68] px of the photos, on the CPU: standard deviations of the landmarks."""
        return (self.sigma / self.observations.scale[:, None]).cpu()
