"""Priors: coefficients (E23, E24), focal length, light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fitkit.energies.base import (
    DiagonalEnergy,
    Linearization,
    PlainEnergy,
    Residuals,
    Slopes,
    Slot,
    all_views,
)
from fitkit.energies.landmarks import offset_sigma
from fitkit.energies.spec import DFM, MFN, MVF, OURS, PGN, Context, EnergyDoc, EnergyOptions, EnergySpec, use
from fitkit.geometry.spherical_harmonics import white_light
from fitkit.io.options import NonNegative, Positive
from fitkit.models.face_model import FaceModel
from fitkit.observe.observations import Observations
from fitkit.scene.state import SceneState, first_views


def _eye(n: int, like: Tensor) -> Tensor:
    return torch.eye(n, dtype=like.dtype, device=like.device)


def _everything(value: Tensor) -> Tensor:
    return torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)


def _of_people(value: Tensor) -> Residuals:
    """Residuals of each person, [S, M, D], all of them valid."""
    return Residuals(value, _everything(value), person=torch.arange(len(value), device=value.device))


# Blend shapes that photos rarely show, and the sigma of their weights over that of the others. mouthClose
# belongs to an open jaw whose lips are shut: the two together change nothing but the length of the chin,
# which is a person's and not an expression.
RARE = {
    "mouthClose": 0.1,
    "mouthShrugUpper": 0.5,
    "mouthRollLower": 0.5,
    "mouthRollUpper": 0.5,
    "mouthLeft": 0.5,
    "mouthRight": 0.5,
    "jawForward": 0.5,
    "jawLeft": 0.5,
    "jawRight": 0.5,
    "cheekPuff": 0.5,
    "noseSneer": 0.5,
}


def shape_spread(names: Sequence[str]) -> Tensor:
    """[K_ex], the sigma of each blend shape's weight over the common one: 1, or that of RARE for ARKit's
    names, with or without side."""
    return torch.tensor([RARE.get(name.removesuffix("_L").removesuffix("_R"), 1.0) for name in names])


class IdentityPrior(DiagonalEnergy):
    """prior_l2 on the identity: the whitened coefficients themselves, [S, K_id, 1] (E23).

    Source: MVF-Net L_reg, MFNet eq. 10: negative log of the model's Gaussian, up to a constant.
    """

    name = "identity_prior"

    def join(self, parts: Sequence[IdentityPrior], views: Sequence[int]) -> IdentityPrior:
        return self

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        return _of_people(state.identity[..., None])

    def slopes(self, state: SceneState) -> Slopes:
        return Slopes(first_views(state.subject), "identity", torch.ones_like(state.identity))


@dataclass(frozen=True)
class ExpressionPrior(DiagonalEnergy):
    """prior_l2 on the expression: b / sigma for b >= 0 and b / sigma_negative below, [B, K_ex, 1] (E23).

    Blend-shape weights live in 0..1, so negative ones are only allowed as a small correction; Gaussian
    coefficients have one sigma for both signs. owner: [B] int64, views with the same one (a moment, a person)
    share an expression; None: each view has its own. shared_weight: how often an expression of several views
    counts for each of them; 0: once for all. alike: [B] int64, views with the same one may show one
    expression, and each of theirs counts as often, too; None: those of an owner only. group_radius: 0, or in
    sigmas: `freeze` gives blend shape k of a person the weight 1 / (1 + m_k / group_radius^2), m_k its mean
    squared residual over the expressions. A shape that they agree on costs little in all of them, one that is
    hardly used is pressed to zero, so that identity and expression do not share what one of them explains.
    spread: [K_ex], or None = 1: both sigmas of each coefficient over the common ones, see `shape_spread`; of
    Gaussian ones their standard deviations.
    Source: the weights of re-weighted least squares for a log penalty on groups; Chartrand and Yin,
    "Iteratively reweighted algorithms for compressive sensing", ICASSP 2008 (p = 0). Differs: the groups are
    one shape in all views.
    """

    sigma: float = 0.3
    sigma_negative: float = 0.1
    owner: Tensor | None = None
    group_radius: float = 0.0
    spread: Tensor | None = None
    shared_weight: float = 0.0
    alike: Tensor | None = None
    weight: Tensor | None = None  # [B, K_ex] in (0, 1], set by freeze
    name = "expression_prior"

    def freeze(self, state: SceneState, observations: Observations) -> ExpressionPrior:
        if self.group_radius <= 0:
            return self
        views = self._views(state)
        b, subject = state.expression.detach()[views], state.subject[views]
        square = (b * self._inverse(b)).square()
        people = len(state.identity)
        total = square.new_zeros(people, square.shape[1]).index_add(0, subject, square)
        expressions = torch.bincount(subject, minlength=people).clamp_min(1).to(square)
        mean = (total / expressions[:, None])[state.subject]
        return replace(self, weight=1 / (1 + mean / self.group_radius**2))

    def join(self, parts: Sequence[ExpressionPrior], views: Sequence[int]) -> ExpressionPrior | None:
        def kind(p: ExpressionPrior) -> tuple:
            return p.sigma, p.sigma_negative, p.shared_weight, p.weight is None

        if any(kind(p) != kind(self) or not _same(p.spread, self.spread) for p in parts):
            return None

        def numbers(own: Sequence[Tensor | None]) -> Tensor:
            each = [torch.arange(n) if o is None else o.cpu() for o, n in zip(own, views)]
            return torch.cat([o + sum(views) * k for k, o in enumerate(each)])

        weight = None if self.weight is None else torch.cat([p.weight for p in parts])
        alike = None
        if any(p.alike is not None for p in parts):
            alike = numbers([p.owner if p.alike is None else p.alike for p in parts])
        return replace(self, owner=numbers([p.owner for p in parts]), alike=alike, weight=weight)

    def _inverse(self, b: Tensor) -> Tensor:
        inverse = torch.where(
            b >= 0, torch.full_like(b, 1 / self.sigma), torch.full_like(b, 1 / self.sigma_negative)
        )
        return inverse if self.spread is None else inverse / self.spread.to(b)

    def _views(self, state: SceneState) -> Tensor:
        return all_views(state) if self.owner is None else first_views(self.owner.to(state.subject))

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        views = self._views(state)
        b = state.expression[views]
        value = (b * self._inverse(b))[..., None]
        weight = None if self.weight is None else self.weight[views].to(value)
        if self.shared_weight > 0 and self.owner is not None:
            seen = _seen(self.owner, views)
            alike = seen if self.alike is None else _seen(self.alike, views)
            times = torch.where(alike > 1, self.shared_weight * seen, 1.0).to(value)
            weight = times.expand(value.shape[:2]) if weight is None else weight * times
        return Residuals(value, _everything(value), weight, state.subject[views])

    def slopes(self, state: SceneState) -> Slopes:
        views = self._views(state)
        return Slopes(views, "expression", self._inverse(state.expression[views]))


@dataclass(frozen=True)
class JointPrior(DiagonalEnergy):
    """joint_prior: rotation vectors of the joints over their standard deviations, [B, 3 J, 1].

    sigma: [3 J] rad, of `FaceModel.coefficients`; owner: as of `ExpressionPrior`, whose views share the
    joints too. A neck, or eyes, that no photo shows turned stay at rest.
    """

    sigma: Tensor
    owner: Tensor | None = None
    name = "joint_prior"

    def _views(self, state: SceneState) -> Tensor:
        return all_views(state) if self.owner is None else first_views(self.owner.to(state.subject))

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        assert state.joints is not None, "no joints to hold"
        turned = state.joints[self._views(state)].flatten(1)
        value = (turned / self.sigma.to(turned))[..., None]
        return Residuals(value, torch.ones(value.shape[:2], dtype=torch.bool, device=value.device))

    def slopes(self, state: SceneState) -> Slopes:
        views = self._views(state)
        return Slopes(views, "joints", (1 / self.sigma.to(state.joints)).expand(len(views), -1))


@dataclass(frozen=True)
class MeanCoefficientPrior(PlainEnergy):
    """prior_l1: a and b / sigma, each divided among its own coefficients, [B, K_id + K_ex, 1] (E24).

    With kernel 'l1' of radius e and weight 1 / e the cost is mean |a| + expression * mean |b / sigma|,
    smoothed, |x| = sqrt(x^2 + e^2) - e: means over people and coefficients, and over frames and coefficients.
    A person counts once however many frames show it. The same as IdentityPrior and ExpressionPrior with that
    kernel, each over its number of coefficients.
    Source: PGN eq. 12, which prints sums; the factor of its second sum cannot be read with certainty, 1/2 is
    the likely one.
    """

    sigma: float = 0.3
    expression: float = 0.5
    spread: Tensor | None = None  # [K_ex], factor of sigma for each coefficient
    name = "prior_l1"

    def _sigma(self, b: Tensor) -> Tensor:
        sigma = b.new_full((b.shape[1],), self.sigma)
        return sigma if self.spread is None else sigma * self.spread.to(b)

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        a, b = state.identity[state.subject], state.expression / self._sigma(state.expression)
        views = torch.arange(len(b), device=b.device)
        first = views == torch.stack([(state.subject == s).nonzero()[0, 0] for s in state.subject])
        weights = (
            torch.full_like(a, 1 / state.identity.numel()),
            torch.full_like(b, self.expression / b.numel()),
        )
        valid = torch.cat([first[:, None].expand_as(a), torch.ones_like(b, dtype=torch.bool)], 1)
        return Residuals(torch.cat([a, b], 1)[..., None], valid, torch.cat(weights, 1), state.subject)

    def linearize(self, state: SceneState, observations: Observations) -> Linearization:
        B, K, L = len(state.expression), state.identity.shape[1], state.expression.shape[1]
        by_both = _eye(K + L, state.identity) * torch.cat(
            [state.identity.new_ones(K), 1 / self._sigma(state.expression)]
        )
        columns = by_both[None, :, None].expand(B, -1, -1, -1)
        return Linearization(
            self.residuals(state, observations),
            (Slot(all_views(state), {"identity": columns[..., :K], "expression": columns[..., K:]}),),
        )


@dataclass(frozen=True)
class LandmarkOffsetPrior(DiagonalEnergy):
    """o / sigma for the offsets of the 68 points of a person, [S, 68, 3].

    sigma_mm: [68], or [S, 68]. A landmark detector, or a person who sets points, marks another spot than the
    face model does, the same in all photos of a face: more photos do not average it away. With this latent
    offset, and without it in the residual, their noise is what changes from photo to photo.
    """

    sigma_mm: Tensor
    name = "landmark_prior"

    def join(self, parts: Sequence[LandmarkOffsetPrior], views: Sequence[int]) -> LandmarkOffsetPrior:
        return LandmarkOffsetPrior(torch.stack([p.sigma_mm for p in parts]))

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        S, offset = len(state.identity), state.landmark_offset
        offset = state.identity.new_zeros(S, 68, 3) if offset is None else offset
        return _of_people(offset / self.sigma_mm.to(offset)[..., None])

    def slopes(self, state: SceneState) -> Slopes:
        inverse = (1 / self.sigma_mm.to(state.identity)).repeat_interleave(3, -1)
        return Slopes(first_views(state.subject), "landmarks", inverse.expand(len(state.identity), -1))


@dataclass(frozen=True)
class _CameraRatioPrior(DiagonalEnergy):
    """log(number / mean) / sigma of the camera's number `block`, one per camera, [B, 1, 1].

    mean: [B]; sigma: [B], log units (0.05 = 5 %); first: [B] bool, one view per shared camera.
    """

    mean: Tensor
    sigma: Tensor
    first: Tensor
    block: ClassVar[str]

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        value = (torch.log(getattr(state.camera, self.block) / self.mean) / self.sigma)[:, None, None]
        return Residuals(value, self.first[:, None], person=state.subject)

    def slopes(self, state: SceneState) -> Slopes:
        return Slopes(all_views(state), self.block, (1 / self.sigma)[:, None])


class FocalPrior(_CameraRatioPrior):
    """log(focal / mean) / sigma, see `_CameraRatioPrior`; mean: [B] px of the crop."""

    name, block = "focal_prior", "focal"


class AspectPrior(_CameraRatioPrior):
    """log(aspect / mean) / sigma, see `_CameraRatioPrior`."""

    name, block = "aspect_prior", "aspect"


@dataclass(frozen=True)
class PrincipalPrior(DiagonalEnergy):
    """(principal - mean) / sigma, one per camera, [B, 2, 1].

    mean: [B, 2], sigma: [B] px of the crop; first: [B] bool, one view per camera.
    """

    mean: Tensor
    sigma: Tensor
    first: Tensor
    name = "principal_prior"

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        value = (state.camera.principal - self.mean) / self.sigma[:, None]
        return Residuals(value[..., None], self.first[:, None].expand(-1, 2))

    def slopes(self, state: SceneState) -> Slopes:
        slope = (state.camera.focal / self.sigma)[:, None].expand(-1, 2)
        return Slopes(all_views(state), "principal", slope)


@dataclass(frozen=True)
class LightPrior(DiagonalEnergy):
    """(illumination - anchor) / sigma, [B, 9 C, 1]: fixes the gauge between light and albedo.

    anchor: [B, 9, C], the light a linear estimate gave; sigma: relative to the length of the anchor's first
    band.
    """

    anchor: Tensor
    sigma: float = 0.5
    name = "light_prior"

    def _inverse(self) -> Tensor:
        return 1 / (self.sigma * self.anchor[:, :1].norm(dim=-1, keepdim=True).clamp_min(1e-3)).expand_as(
            self.anchor
        )

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        value = ((state.illumination - self.anchor) * self._inverse()).flatten(1)[..., None]
        return Residuals(value, _everything(value), person=state.subject)

    def slopes(self, state: SceneState) -> Slopes:
        return Slopes(all_views(state), "illumination", self._inverse().flatten(1))


@dataclass(frozen=True)
class SizePrior(PlainEnergy):
    """(identity . c) / sigma, [S, 1, 1]: the head's size, as log of the root mean square extent of its 68
    points.

    Photos from unknown distances say nothing about size, and a shorter identity vector always costs less, so
    without this term a fit shrinks the head freely. c: [K_id] change of log size per coefficient; sigma: log
    units (0.01 = 1 % of the size; grown-up heads differ by 3 %, the pull of the other priors needs the rest).
    Not used where the cameras' positions are known.
    """

    slope: Tensor
    sigma: float = 0.01
    name = "size_prior"

    @staticmethod
    def of(model: FaceModel, sigma: float) -> SizePrior:
        basis = model.landmark_basis
        mean = basis.mean - basis.mean.mean(0)
        rows = basis.rows[..., : basis.num_identity]
        rows = rows - rows.mean(0)
        return SizePrior((mean[..., None] * rows).sum((0, 1)) / (mean * mean).sum(), sigma)

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        return _of_people((state.identity @ self.slope.to(state.identity))[:, None, None] / self.sigma)

    def linearize(self, state: SceneState, observations: Observations) -> Linearization:
        columns = (self.slope.to(state.identity) / self.sigma).expand(len(state.identity), 1, 1, -1)
        view = first_views(state.subject)
        return Linearization(self.residuals(state, observations), (Slot(view, {"identity": columns}),))


# ---- recipes ----


@dataclass(frozen=True)
class GroupedOptions(EnergyOptions):
    """Which expressions are pressed to zero together."""

    group_radius: NonNegative = 0.0  # see ExpressionPrior, in sigmas; 0 = every coefficient by itself


@dataclass(frozen=True)
class ExpressionPriorTerm(GroupedOptions):
    """A fit takes both sigmas from its `expression`."""

    # How often an expression that several photos share, or may share, counts for each of them. More than 1:
    # what they show alike is the person's shape rather than an expression.
    shared_weight: Positive = 1.0


@dataclass(frozen=True)
class ExpressionPriorTraining(GroupedOptions):
    """A shared expression counts once."""

    sigma: Positive = 0.3  # of a blend shape's weight above 0; Gaussian coefficients have the model's own
    sigma_negative: Positive = 0.1  # and below


@dataclass(frozen=True)
class MeanPriorTerm(EnergyOptions):
    """See MeanCoefficientPrior."""

    sigma: Positive = 0.3  # of a blend shape's weight; Gaussian coefficients have the model's own
    expression: NonNegative = 0.5  # what the expression counts beside the identity


@dataclass(frozen=True)
class AspectPriorTraining(EnergyOptions):
    """A fit knows something of the cameras: calibration, or whether there are EXIF data."""

    sigma: Positive = 0.02  # of log(focal_y / focal_x), log units


@dataclass(frozen=True)
class FocalPriorTraining(EnergyOptions):
    """A fit knows something of the cameras: calibration, EXIF or what is usual."""

    focal_px: Positive = 1015.0  # expected, for a 224-pixel crop; scaled orthographic: 1000 times px per mm
    sigma: Positive = 0.4  # how sure that is, log units


@dataclass(frozen=True)
class PrincipalPriorTraining(EnergyOptions):
    """A fit knows something of the cameras."""

    sigma: Positive = 0.1  # of the principal point from the middle, share of the picture's longer side


@dataclass(frozen=True)
class LightPriorTerm(EnergyOptions):
    sigma: Positive = 0.5  # of the change of the light, relative to its first estimate (in a training: white)


@dataclass(frozen=True)
class SizePriorTerm(EnergyOptions):
    sigma: Positive = 0.01  # of the head's size, log units


def _seen(number: Tensor, views: Tensor) -> Tensor:
    """[n, 1]: how many views have the number that each of `views` has."""
    number = number.to(views)
    return (number[:, None] == number[views]).sum(0)[:, None]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _make_expression_prior(
    context: Context, o: ExpressionPriorTerm | ExpressionPriorTraining
) -> ExpressionPrior:
    """The spread of single blend shapes is the fit's: a network learns it."""
    owner, meaning = context.expression_owner, context.model.coefficients["expression"]
    shared = o.shared_weight if isinstance(o, ExpressionPriorTerm) else 0.0
    if meaning.kind == "gaussian":
        # Groups are for blend shapes, few of which are on. Gaussian coefficients all count alike, as much as
        # a group at one standard deviation.
        sigma = (1 + 1 / o.group_radius**2) ** 0.5 if o.group_radius > 0 else 1.0
        prior = ExpressionPrior(sigma, sigma, owner, spread=meaning.sigma)
        return replace(prior, shared_weight=shared, alike=context.expression_alike)
    known = context.expression
    spread = None if known is None else shape_spread(meaning.names)
    sigmas: Any = o if known is None else known
    prior = ExpressionPrior(sigmas.sigma, sigmas.sigma_negative, owner, o.group_radius, spread)
    return replace(prior, shared_weight=shared, alike=context.expression_alike)


def _make_joint_prior(context: Context, o: EnergyOptions) -> JointPrior:
    return JointPrior(context.model.coefficients["joints"].sigma, context.joint_owner)


def _make_mean_prior(context: Context, o: MeanPriorTerm) -> MeanCoefficientPrior:
    spread = context.model.coefficients["expression"].sigma
    return MeanCoefficientPrior(o.sigma if spread is None else 1.0, o.expression, spread)


def _make_offset_prior(context: Context, o: EnergyOptions) -> LandmarkOffsetPrior:
    return LandmarkOffsetPrior(offset_sigma() if context.offset_sigma is None else context.offset_sigma)


def _make_focal_prior(context: Context, o: FocalPriorTraining) -> FocalPrior:
    known = context.cameras
    if known is not None:
        return FocalPrior(known.focal_mean, known.focal_sigma, known.first)
    each = torch.ones_like(context.state.camera.focal)
    mean = o.focal_px * context.observations.pixel_unit * each
    return FocalPrior(mean, o.sigma * each, torch.ones_like(each, dtype=torch.bool))


def _make_principal_prior(context: Context, o: PrincipalPriorTraining) -> PrincipalPrior:
    known = context.cameras
    if known is not None:
        first = torch.zeros_like(known.principal_sigma, dtype=torch.bool)
        first[first_views(known.cameras)] = True
        return PrincipalPrior(known.principal_mean, known.principal_sigma, first)
    H, W = context.observations.size
    each = torch.ones_like(context.state.camera.focal)
    middle = torch.stack([each * (W - 1) / 2, each * (H - 1) / 2], -1)
    return PrincipalPrior(middle, o.sigma * max(H, W) * each, each > 0)


def _make_aspect_prior(context: Context, o: AspectPriorTraining) -> AspectPrior:
    known = context.cameras
    if known is not None:
        return AspectPrior(known.aspect_mean, known.aspect_sigma, known.first)
    each = torch.ones_like(context.state.camera.aspect)
    return AspectPrior(each, o.sigma * each, each > 0)


def _make_light_prior(context: Context, o: LightPriorTerm) -> LightPrior:
    anchor = white_light(context.state.illumination) if context.light is None else context.light
    return LightPrior(anchor, o.sigma)


SPECS = (
    EnergySpec(
        name="identity_prior",
        cls=IdentityPrior,
        make=lambda context, o: IdentityPrior(),
        role="prior",
        doc=EnergyDoc(
            formula="a",
            unit="standard deviations",
            source="MVF-Net L_reg, DF-MVR eq. 8, MFNet eq. 10",
            uses=(use(MVF, "sq", "1"), use(DFM, "sq", "3e-4"), use(MFN, "sq", "1e-4"), use(OURS, "sq")),
            gradient="exact",
            id="E23",
        ),
        blocks=("identity",),
    ),
    EnergySpec(
        name="expression_prior",
        cls=ExpressionPrior,
        make=_make_expression_prior,
        role="prior",
        doc=EnergyDoc(
            formula="b, other sigma below 0",
            unit="blend-shape weight, or standard deviations",
            source="MVF-Net L_reg, DF-MVR eq. 8, MFNet eq. 10",
            uses=(
                use(MVF, "sq", "1"),
                use(DFM, "sq", "3e-4 x 0.8"),
                use(MFN, "sq", "1e-4"),
                use(OURS, "sq huber"),
            ),
            gradient="exact",
            id="E23",
        ),
        options=ExpressionPriorTerm,
        training=ExpressionPriorTraining,
        blocks=("expression",),
    ),
    EnergySpec(
        name="joint_prior",
        cls=JointPrior,
        make=_make_joint_prior,
        role="prior",
        doc=EnergyDoc(
            formula="rotation vectors of the joints",
            unit="standard deviations of the model",
            source="ours",
            uses=(use(OURS, "sq"),),
            gradient="exact; left out for face models without joints",
        ),
        blocks=("joints",),
        parts=("state.joints",),
        applies=lambda context: context.model.num_joints > 0,
    ),
    EnergySpec(
        name="prior_l1",
        cls=MeanCoefficientPrior,
        make=_make_mean_prior,
        role="prior",
        doc=EnergyDoc(
            formula="a, b",
            unit="standard deviations, blend-shape weight",
            source="PGN eq. 12: mean |a / sigma| + 1/2 mean |b / sigma|",
            uses=(use(PGN, "l1", "1"),),
            gradient="exact; a kernel 'l1' of radius e needs weight 1 / e",
            id="E24",
        ),
        options=MeanPriorTerm,
        blocks=("identity", "expression"),
        takes_means=True,
    ),
    EnergySpec(
        name="landmark_prior",
        cls=LandmarkOffsetPrior,
        make=_make_offset_prior,
        role="prior",
        doc=EnergyDoc(
            formula="o",
            unit="mm, 0.9 at the eyes to 2.8 at the jaw",
            source="ours",
            uses=(use(OURS, "sq"),),
            gradient="exact",
        ),
        blocks=("landmarks",),
        parts=("state.landmark_offset",),
    ),
    EnergySpec(
        name="focal_prior",
        cls=FocalPrior,
        make=_make_focal_prior,
        role="prior",
        doc=EnergyDoc(
            formula="log(f / f_0)", unit="log units", source="ours", uses=(use(OURS, "sq"),), gradient="exact"
        ),
        training=FocalPriorTraining,
        blocks=("focal",),
    ),
    EnergySpec(
        name="aspect_prior",
        cls=AspectPrior,
        make=_make_aspect_prior,
        role="prior",
        doc=EnergyDoc(
            formula="log(r / r_0)",
            unit="log units",
            source="ours",
            uses=(use(OURS, "huber"),),
            gradient="exact",
        ),
        training=AspectPriorTraining,
        blocks=("aspect",),
        applies=lambda context: context.cameras is None or context.cameras.aspect_differs,
    ),
    EnergySpec(
        name="principal_prior",
        cls=PrincipalPrior,
        make=_make_principal_prior,
        role="prior",
        doc=EnergyDoc(
            formula="c - c_0", unit="px of the crop", source="ours", uses=(use(OURS, "sq"),), gradient="exact"
        ),
        training=PrincipalPriorTraining,
        blocks=("principal",),
    ),
    EnergySpec(
        name="light_prior",
        cls=LightPrior,
        make=_make_light_prior,
        role="prior",
        doc=EnergyDoc(
            formula="light - its first estimate",
            unit="share of the light",
            source="ours",
            uses=(use(OURS, "sq"),),
            gradient="exact",
        ),
        options=LightPriorTerm,
        blocks=("illumination",),
    ),
    EnergySpec(
        name="size_prior",
        cls=SizePrior,
        make=lambda context, o: SizePrior.of(context.model, o.sigma),
        role="prior",
        doc=EnergyDoc(
            formula="a . c, log of the head's size",
            unit="log units",
            source="ours",
            uses=(use(OURS, "sq"),),
            gradient="exact",
        ),
        options=SizePriorTerm,
        blocks=("identity",),
        applies=lambda context: context.cameras is None or not context.cameras.metric,
    ),
)
