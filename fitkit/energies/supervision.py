"""Energies that compare a scene with a labelled one (E15-E18)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fitkit.energies.base import Linearization, PlainEnergy, Residuals, Slot, all_views
from fitkit.energies.spec import MVD, MVF, OURS, PGN, EnergyDoc, EnergyOptions, EnergySpec, use
from fitkit.errors import InputError
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.rotation import so3_log
from fitkit.io.options import Positive
from fitkit.models.face_model import FaceModel
from fitkit.observe.observations import Observations
from fitkit.scene.state import SceneState, first_views


def label(observations: Observations, part: str, energy: str):
    """A part of the labels, or an InputError that names the energy that needs it."""
    value = None if observations.labels is None else getattr(observations.labels, part)
    if value is None:
        raise InputError(
            f"energy '{energy}' needs labels with '{part}', and these frames have none; leave the energy "
            "out of the recipe for them"
        )
    return value


def _all(value: Tensor) -> Residuals:
    return Residuals(value, torch.ones(value.shape[:2], dtype=torch.bool, device=value.device))


@dataclass(frozen=True)
class IdentitySupervision(PlainEnergy):
    """identity_sup: (a - a*) / sqrt(sigma^2 + s^2), [S, K_id, 1], s the label's own standard deviation (E15).
    Sums.

    Coefficients are standard-normal, so sigma has no unit. Source: MVF-Net eq. 6 L_3DMM (kernel sq), Shu et
    al. eq. 3 (kernel l1). Differs: labels that are not sure count less.
    A network that looks at each frame by itself has an identity for each; all of them are compared with that
    of their person.
    """

    sigma: float = 0.3
    name = "identity_sup"

    def _inverse(self, state: SceneState, observations: Observations) -> Tensor:
        noise = observations.labels.identity_sigma
        variance = torch.full_like(state.identity, self.sigma**2)
        if noise is None:
            return variance.rsqrt()
        return (variance + _by_identity(state, observations, noise) ** 2).rsqrt()

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        truth = label(observations, "state", self.name).identity
        apart = state.identity - _by_identity(state, observations, truth)
        return _all((apart * self._inverse(state, observations))[..., None])

    def linearize(self, state: SceneState, observations: Observations) -> Linearization:
        residuals = self.residuals(state, observations)
        columns = torch.diag_embed(self._inverse(state, observations))[:, :, None]  # [S, K, 1, K]
        return Linearization(residuals, (Slot(first_views(state.subject), {"identity": columns}),))


def _by_identity(state: SceneState, observations: Observations, rows: Tensor) -> Tensor:
    """Labels [S, ...] of the people for each identity of the state."""
    rows = rows.to(state.identity)
    if len(rows) == len(state.identity):
        return rows
    person = label(observations, "state", "identity_sup").subject.to(rows.device)
    return rows[person]


@dataclass(frozen=True)
class IdentityLikelihood(PlainEnergy):
    """identity_nll: ((a - a*) / t, sqrt(2 log(t / t_0))), t^2 = sigma^2 + s^2, [S, K_id, 2]. Sums. For
    training.

    sigma: [S, K_id] standard deviations that a network predicts beside the identity, s the label's own, t_0 =
    FLOOR. With kernel 'sq' the cost is the negative logarithm of the normal likelihood up to a constant, so
    the network learns how far off it is.
    Source: Kendall and Gal, "What uncertainties do we need in Bayesian deep learning for computer vision?",
    NeurIPS 2017, eq. 5.
    Raises: InputError from `residuals`: no labelled state.
    """

    sigma: Tensor
    name = "identity_nll"
    FLOOR = 0.01  # below every sigma, so that the root has a derivative

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        truth = label(observations, "state", self.name).identity.to(state.identity)
        noise = observations.labels.identity_sigma
        total = self.sigma.clamp_min(2 * self.FLOOR)
        total = total if noise is None else (total**2 + noise.to(total) ** 2).sqrt()
        return _all(
            torch.stack([(state.identity - truth) / total, (2 * (total / self.FLOOR).log()).sqrt()], -1)
        )


@dataclass(frozen=True)
class ExpressionSupervision(PlainEnergy):
    """expression_sup: (b - b*) / sigma, [B, K_ex, 1] (E15). Sums. Source as IdentitySupervision.

    owner: [B] int64, views with the same one share an expression, which counts once, [O, K_ex, 1], or None;
    spread: [K_ex], what sigma is a multiple of, or None = 1.
    """

    sigma: float = 0.1
    owner: Tensor | None = None
    spread: Tensor | None = None
    name = "expression_sup"

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        truth = label(observations, "state", self.name).expression.to(state.expression)
        views = self._views(state)
        return _all(((state.expression[views] - truth[views]) / _scaled(self.sigma, self.spread))[..., None])

    def _views(self, state: SceneState) -> Tensor:
        return all_views(state) if self.owner is None else first_views(self.owner.to(state.subject))

    def linearize(self, state: SceneState, observations: Observations) -> Linearization:
        residuals = self.residuals(state, observations)
        views, K = self._views(state), state.expression.shape[1]
        eye = torch.eye(K, dtype=state.expression.dtype, device=state.expression.device)
        columns = (eye / _scaled(self.sigma, self.spread))[None, :, None].expand(len(views), K, 1, K)
        return Linearization(residuals, (Slot(views, {"expression": columns}),))


@dataclass(frozen=True)
class PoseSupervision(PlainEnergy):
    """pose_sup: rotation, translation and focal length against the label, [B, 7, 1] (E16). Sums. For
    training.

    The rotation vector of R*^T R over sigma_deg, the translation over sigma_mm, the logarithm of the focal
    length over sigma_focal. Source: MVF-Net eq. 6 L_pose. Differs: that paper squares normalized Euler
    angles; the angle here is the geodesic one, which has no seam and no gimbal lock.
    """

    sigma_deg: float = 2.0
    sigma_mm: float = 10.0
    sigma_focal: float = 0.1
    name = "pose_sup"

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        truth = label(observations, "state", self.name)
        turn = so3_log(truth.pose.rotation.to(state.pose.rotation).transpose(-1, -2) @ state.pose.rotation)
        shift = state.pose.translation - truth.pose.translation.to(state.pose.translation)
        focal = (state.camera.focal / truth.camera.focal.to(state.camera.focal)).log()[:, None]
        parts = (torch.rad2deg(turn) / self.sigma_deg, shift / self.sigma_mm, focal / self.sigma_focal)
        return _all(torch.cat(parts, -1)[..., None])


@dataclass(frozen=True)
class VertexSupervision(PlainEnergy):
    """vertex_sup: (vertex - labelled vertex) / sigma_mm, [B, V, 3] (E17). Mean over the vertices.

    frame: 'camera' compares posed vertices, 'head' the shape alone, 'aligned' the shape after the similarity
    of each frame that fits the region best: photos do not tell the size of a head, and its error would drown
    what they do tell. The similarity counts as constant, which leaves the gradient exact, for the cost is
    least by it. region: 'all', 'skin' or 'face' vertices.
    Labels: `vertices` (camera frame) or else the labelled state's own. Source: PGN, Fig. 1 baseline.
    """

    model: FaceModel
    sigma_mm: float = 1.0
    frame: Literal["camera", "head", "aligned"] = "camera"
    region: Literal["all", "skin", "face"] = "skin"
    name = "vertex_sup"
    reduction = "mean"

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        place, truth = self._place(state), self._truth(state, observations)
        counted = (
            torch.ones(self.model.num_vertices, dtype=torch.bool)
            if self.region == "all"
            else getattr(self.model, self.region)
        )
        counted = counted.to(place.device)[None].expand(place.shape[:2])
        if self.frame == "aligned":
            best = similarity_align(place.detach(), truth, counted)
            place = (
                best.scale[:, None, None] * place @ best.rotation.transpose(1, 2) + best.translation[:, None]
            )
        return Residuals((place - truth) / self.sigma_mm, counted)

    def _place(self, state: SceneState) -> Tensor:
        head = state.vertices(self.model)
        return state.pose.apply(head) if self.frame == "camera" else head

    def _truth(self, state: SceneState, observations: Observations) -> Tensor:
        if (
            self.frame == "camera"
            and observations.labels is not None
            and observations.labels.vertices is not None
        ):
            return observations.labels.vertices.to(state.identity)
        truth = label(observations, "state", self.name)
        return self._place(truth.to(device=state.identity.device, dtype=state.identity.dtype)).detach()


@dataclass(frozen=True)
class CodeConsistency(PlainEnergy):
    """identity_consistency, expression_consistency: (c_i - c_j) / (sqrt(2) sigma) for all pairs of frames
    that show one person (identity), at one instant (expression), [pairs, K, 1] (E18). Sums. For networks that
    predict each frame by itself.

    spread: [K], what sigma is a multiple of, or None = 1.
    Source: Shu et al. eq. 4 (kernel l1), which compares expressions of any pair; they agree only at one
    instant.
    """

    block: Literal["identity", "expression"] = "identity"
    sigma: float = 0.3
    spread: Tensor | None = None

    @property
    def name(self) -> str:
        return f"{self.block}_consistency"

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        codes = state.identity[state.subject] if self.block == "identity" else state.expression
        group = label(observations, "person" if self.block == "identity" else "moment", self.name).to(
            codes.device
        )
        i, j = torch.triu_indices(len(codes), len(codes), 1, device=codes.device)
        same = group[i] == group[j]
        sigma = _scaled(2**0.5 * self.sigma, self.spread)
        return _all(((codes[i] - codes[j])[same] / sigma)[..., None])


def _scaled(sigma: float, spread: Tensor | None) -> float | Tensor:
    return sigma if spread is None else sigma * spread


# ---- recipes ----


@dataclass(frozen=True)
class CodeTerm(EnergyOptions):
    sigma: Positive = 0.3  # of a coefficient: its standard deviations, or blend-shape weight


@dataclass(frozen=True)
class PoseTerm(EnergyOptions):
    sigma_deg: Positive = 2.0  # of the rotation
    sigma_mm: Positive = 10.0  # of the translation
    sigma_focal: Positive = 0.1  # of the focal length, log units


@dataclass(frozen=True)
class VertexTerm(EnergyOptions):
    """See VertexSupervision."""

    sigma_mm: Positive = 1.0  # of a vertex
    frame: Literal["camera", "head", "aligned"] = "head"  # posed vertices, the shape, or the aligned shape
    region: Literal["all", "skin", "face"] = "face"  # the vertices that count


def _vertex_labels(o: VertexTerm) -> frozenset[str]:
    return frozenset(
        {"identity", "expression", "pose"} if o.frame == "camera" else {"identity", "expression"}
    )


SPECS = (
    EnergySpec(
        name="identity_sup",
        cls=IdentitySupervision,
        make=lambda context, o: IdentitySupervision(o.sigma),
        role="label",
        doc=EnergyDoc(
            formula="a - a*",
            unit="standard deviations",
            source="MVF-Net eq. 6, Shu et al. eq. 3",
            uses=(use(MVF, "sq", "1"), use(MVD, "l1")),
            gradient="exact",
            id="E15",
        ),
        options=CodeTerm,
        needs=("identity",),
    ),
    EnergySpec(
        name="expression_sup",
        cls=ExpressionSupervision,
        make=lambda context, o: ExpressionSupervision(
            o.sigma, context.expression_owner, context.model.coefficients["expression"].sigma
        ),
        role="label",
        doc=EnergyDoc(
            formula="b - b*",
            unit="blend-shape weight, or standard deviations",
            source="MVF-Net eq. 6, Shu et al. eq. 3",
            uses=(use(MVF, "sq", "1"), use(MVD, "l1")),
            gradient="exact",
            id="E15",
        ),
        options=CodeTerm,
        needs=("expression",),
    ),
    EnergySpec(
        name="pose_sup",
        cls=PoseSupervision,
        make=lambda context, o: PoseSupervision(o.sigma_deg, o.sigma_mm, o.sigma_focal),
        role="label",
        doc=EnergyDoc(
            formula="log(R*^T R), t - t*, log(f / f*)",
            unit="degrees, mm, log units",
            source="MVF-Net eq. 6",
            uses=(use(MVF, "sq", "10"),),
            gradient="geodesic angle; not smooth at 180 degrees",
            id="E16",
        ),
        options=PoseTerm,
        needs=("pose",),
    ),
    EnergySpec(
        name="vertex_sup",
        cls=VertexSupervision,
        make=lambda context, o: VertexSupervision(context.model, o.sigma_mm, o.frame, o.region),
        role="label",
        doc=EnergyDoc(
            formula="V - V*",
            unit="mm",
            source="PGN fig. 1",
            uses=(use(PGN, "sq"),),
            gradient="exact",
            id="E17",
        ),
        options=VertexTerm,
        needs=_vertex_labels,
        optional=("vertices",),
    ),
    EnergySpec(
        name="identity_consistency",
        cls=CodeConsistency,
        make=lambda context, o: CodeConsistency("identity", o.sigma),
        role="label",
        doc=EnergyDoc(
            formula="(a_i - a_j) / sqrt(2), frames of one person",
            unit="standard deviations",
            source="Shu et al. eq. 4",
            uses=(use(MVD, "l1"),),
            gradient="exact",
            id="E18",
        ),
        options=CodeTerm,
        needs=("person",),
        not_in_fits="a fit has one identity for all frames; a network that looks at each frame by itself "
        "has one for each",
    ),
    EnergySpec(
        name="expression_consistency",
        cls=CodeConsistency,
        make=lambda context, o: CodeConsistency(
            "expression", o.sigma, context.model.coefficients["expression"].sigma
        ),
        role="label",
        doc=EnergyDoc(
            formula="(b_i - b_j) / sqrt(2), frames of one instant",
            unit="blend-shape weight, or standard deviations",
            source="Shu et al. eq. 4",
            uses=(use(MVD, "l1"),),
            gradient="exact",
            id="E18",
        ),
        options=CodeTerm,
        needs=("moment",),
    ),
    EnergySpec(
        name="identity_nll",
        cls=IdentityLikelihood,
        make=lambda context, o: IdentityLikelihood(context.prediction.identity_sigma),
        role="label",
        doc=EnergyDoc(
            formula="(a - a*) / t, sqrt(2 log(t / t_0)), t predicted",
            unit="none",
            source="Kendall and Gal 2017, eq. 5",
            uses=(use(OURS, "sq"),),
            gradient="to the identity and to its predicted standard deviations",
        ),
        needs=("identity",),
        parts=("identity_sigma",),
        not_in_fits="a fit predicts no standard deviations; a network does",
    ),
)
