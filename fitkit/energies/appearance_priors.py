"""Priors on light and albedo, for fits and training with `photo_model` (E23 on the albedo, E25, E26)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fitkit.energies.base import Linearization, PlainEnergy, Residuals, Slot, all_views
from fitkit.energies.spec import DFM, EnergyDoc, EnergyOptions, EnergySpec, use
from fitkit.errors import InputError
from fitkit.io.options import Positive
from fitkit.models.face_model import FaceModel
from fitkit.observe.observations import Observations
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class LightMono(PlainEnergy):
    """light_mono: (illumination - its mean over RGB) / sigma, [B, 9 C, 1] (E25). Mean; zero for grey light (C
    = 1).

    sigma: of the light's own unit, in which a surface facing nothing but the first band is lit by 0.28 times
    its number.
    Source: the release of DF-MVR, weight 10 on the plain mean square (here sigma 1 and weight 20: costs are
    halved).
    """

    sigma: float = 1.0
    name = "light_mono"
    reduction = "mean"

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        light = state.illumination
        value = ((light - light.mean(-1, keepdim=True)) / self.sigma).flatten(1)[..., None]
        return Residuals(value, torch.ones(value.shape[:2], dtype=torch.bool, device=value.device))

    def linearize(self, state: SceneState, observations: Observations) -> Linearization:
        light = state.illumination
        C = light.shape[-1]
        eye = torch.eye(9 * C, dtype=light.dtype, device=light.device).reshape(9, C, 9, C)
        columns = (
            ((eye - eye.mean(1, keepdim=True)) / self.sigma)
            .reshape(9 * C, 1, 9 * C)
            .expand(len(light), -1, -1, -1)
        )
        return Linearization(
            self.residuals(state, observations), (Slot(all_views(state), {"illumination": columns}),)
        )


@dataclass(frozen=True)
class AlbedoPrior(PlainEnergy):
    """albedo_prior: the whitened albedo coefficients themselves, [S, K_al, 1] (E23 with w_tex). Training
    only: the coefficients are no block of a solver; in a fit `photo_model` solves for them under this prior.
    Source: DF-MVR eq. 8 (its weight 0.017)."""

    name = "albedo_prior"
    reduction = "sum"

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        value = coefficients(state, self.name)[..., None]
        return Residuals(value, torch.ones(value.shape[:2], dtype=torch.bool, device=value.device))


@dataclass(frozen=True)
class AlbedoVariance(PlainEnergy):
    """albedo_var: (T - mean of T) / sigma over the skin, T the model's albedo at the state's coefficients,
    linear RGB, [S, n, 3] (E26). Mean. Training only, see AlbedoPrior.

    Source: the release of DF-MVR, weight 5 on the plain mean (here sigma 1 and weight 10: costs are halved).
    """

    model: FaceModel
    sigma: float = 1.0
    name = "albedo_var"
    reduction = "mean"

    def __post_init__(self):
        if self.model.albedo_basis is None:
            raise InputError(
                f"energy 'albedo_var': face model '{self.model.name}' has no albedo basis, so there is "
                "nothing to keep even"
            )

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        skin = self.model.skin
        T = self.model.albedo_mean[skin] + torch.einsum(
            "sk,kvd->svd", coefficients(state, self.name), self.model.albedo_basis[:, skin]
        )
        value = (T - T.mean(1, keepdim=True)) / self.sigma
        return Residuals(value, torch.ones(value.shape[:2], dtype=torch.bool, device=value.device))


def coefficients(state: SceneState, name: str) -> Tensor:
    """The state's albedo coefficients [S, K_al]; `name` of the energy that needs them."""
    if state.albedo is None:
        raise InputError(
            f"energy '{name}' needs albedo coefficients: expected state.albedo [S, K_al], got None; "
            "a network predicts them, a fit leaves the energy out"
        )
    return state.albedo


# ---- recipes ----


NO_ALBEDO = "a fit has no albedo coefficients of its own; a network predicts them"


@dataclass(frozen=True)
class LightMonoTerm(EnergyOptions):
    sigma: Positive = 0.1  # allowed difference of the light's channels from their mean


@dataclass(frozen=True)
class AlbedoVarianceTerm(EnergyOptions):
    sigma: Positive = 1.0  # allowed difference of the albedo from its mean, linear RGB


SPECS = (
    EnergySpec(
        name="albedo_prior",
        cls=AlbedoPrior,
        make=lambda context, o: AlbedoPrior(),
        role="prior",
        doc=EnergyDoc(
            formula="g",
            unit="standard deviations",
            source="DF-MVR eq. 8",
            uses=(use(DFM, "sq", "3e-4 x 0.017"),),
            gradient="exact",
            id="E23",
        ),
        parts=("state.albedo",),
        not_in_fits=NO_ALBEDO,
    ),
    EnergySpec(
        name="light_mono",
        cls=LightMono,
        make=lambda context, o: LightMono(o.sigma),
        role="prior",
        doc=EnergyDoc(
            formula="light - its mean over RGB",
            unit="light",
            source="DF-MVR, public code",
            uses=(use(DFM, "sq", "10"),),
            gradient="exact",
            id="E25",
        ),
        options=LightMonoTerm,
        blocks=("illumination",),
    ),
    EnergySpec(
        name="albedo_var",
        cls=AlbedoVariance,
        make=lambda context, o: AlbedoVariance(context.model, o.sigma),
        role="prior",
        doc=EnergyDoc(
            formula="T - mean of T over the skin",
            unit="linear RGB",
            source="DF-MVR, public code",
            uses=(use(DFM, "sq", "5"),),
            gradient="exact",
            id="E26",
        ),
        options=AlbedoVarianceTerm,
        parts=("state.albedo",),
        not_in_fits=NO_ALBEDO,
    ),
)
