"""Energies of depth networks: supervision of a depth map (E19-E22) and comparisons between frames through it
(E2, E27, E28).

They take a DepthState: one that a network predicts, or in a fit that of the face model's surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.energies.base import PlainEnergy, Residuals
from fitkit.energies.masks import covis_depth
from fitkit.energies.spec import MGC, MVD, EnergyDoc, EnergyOptions, EnergySpec, use
from fitkit.energies.supervision import label
from fitkit.io.options import NonNegative, Positive
from fitkit.observe.observations import Observations
from fitkit.observe.sampling import sample
from fitkit.scene.depth_state import (
    BEFORE_MM,
    BEHIND_MM,
    DepthState,
    back_project,
    carry,
    depth_normals,
)


def _truth(state: DepthState, observations: Observations, relative: bool, energy: str) -> Tensor:
    """The labelled depth [B, H, W]; relative: of the same heads as far away as the state says, so that
    what is compared is how far each pixel lies behind the nose tip, as in Shu et al. eq. 7."""
    truth = label(observations, "depth", energy).to(state.depth)
    if not relative:
        return truth
    known = label(observations, "state", energy).pose
    moved = state.distance() - state.distance(known).to(truth)
    return torch.where(truth > 0, truth + moved[:, None, None], 0)


@dataclass(frozen=True)
class DepthSupervision(PlainEnergy):
    """depth_sup: (D - D*) / sigma_mm where the label has a surface, [B, H W, 1] (E19). Mean.
    Source: Shu et al. eq. 8 (kernel l1).

    relative: depths count from the nose tip of each pose, the predicted and the labelled one, as the paper's
    normalized depth does: how far away a head is, one picture hardly tells.
    relief: the median of D - D* of each frame is taken out, as a constant. Where a head is wrong as a whole
    by more than its relief, the residuals of all its pixels have one sign, and an L1 kernel learns nothing
    else.
    The paper's depths have no unit and it gives no constants; over 200 mm, as in `DepthPrior`, its weight 1
    is sigma_mm = 200.
    """

    sigma_mm: float = 2.0
    relative: bool = False
    relief: bool = False
    name = "depth_sup"
    reduction = "mean"

    def residuals(self, state: DepthState, observations: Observations) -> Residuals:
        truth = _truth(state, observations, self.relative, self.name)
        apart, known = (state.depth - truth).flatten(1), (truth > 0).flatten(1)
        if self.relief:
            middle = torch.where(known, apart.detach(), torch.nan).nanmedian(1, keepdim=True).values
            apart = torch.where(known, apart - middle, 0)
        return Residuals((apart / self.sigma_mm)[..., None], known)


@dataclass(frozen=True)
class NormalSupervision(PlainEnergy):
    """normal_sup: (N(D) - N(D*)) / sigma, [B, H W, 3], where both have a normal (E20). Mean.
    relative: as of `DepthSupervision`. Source: Shu et al. eq. 9 (kernel l1)."""

    sigma: float = 0.1
    relative: bool = False
    name = "normal_sup"
    reduction = "mean"

    def residuals(self, state: DepthState, observations: Observations) -> Residuals:
        truth = _truth(state, observations, self.relative, self.name)
        wanted, known = depth_normals(truth, state.camera)
        # Where the label lies on one surface the prediction should, too, so its own jumps do not excuse it.
        normal, _ = depth_normals(torch.where(truth > 0, state.depth, truth), state.camera, torch.inf)
        return Residuals(((normal - wanted) / self.sigma).flatten(1, 2), known.flatten(1))


@dataclass(frozen=True)
class DepthPrior(PlainEnergy):
    """depth_3dmm: (D - D_S) / sigma_mm, D_S the depth of a fitted face model, [B, H W, 1] (E21). Mean.

    background: usable pixels without a model surface count as well: how far a surface there lies before the
    plane behind_mm behind the state's anchor (the head's origin without one), over `background_mm`, so that a
    network learns an empty background. That is the paper's normalized depth, which is large near the camera
    and 0 where nothing is. Its constants are not printed; 150 and 200 mm are ours, see `from_normalized`.
    relief: what counts is how deep the pixels lie behind each other: of each frame the mean of D - D_S over
    the pixels that both have is taken out, and no others count. So a fit learns from the depth that a network
    sees (then D is the model's and D_S the network's), which hardly knows how far away a head is.
    Pixels count by the label `prior_trust`, where there is one.
    Source: Shu et al. eq. 7 and 10 (kernel sq, weight 0.02). D_S is detached, the head's place too.
    """

    sigma_mm: float = 10.0
    background: bool = False
    background_mm: float = BEFORE_MM + BEHIND_MM
    behind_mm: float = BEHIND_MM
    relief: bool = False
    name = "depth_3dmm"
    reduction = "mean"

    def residuals(self, state: DepthState, observations: Observations) -> Residuals:
        prior = label(observations, "prior_depth", self.name).to(state.depth).detach()
        trust = observations.labels.prior_trust
        weight = None if trust is None else trust.to(state.depth).flatten(1)
        if self.relief:
            both = ((prior > 0) & (state.depth > 0)).flatten(1)
            share = both.to(prior) if weight is None else both * weight
            apart = torch.where(both, (state.depth - prior).flatten(1), 0)
            middle = (share * apart).sum(1, keepdim=True) / share.sum(1, keepdim=True).clamp_min(1e-6)
            return Residuals(((apart - middle) / self.sigma_mm)[..., None], both, weight)
        plane = state.distance().detach()[:, None, None] + self.behind_mm
        before = torch.where(state.depth > 0, plane - state.depth, 0).clamp_min(0)
        value = torch.where(prior > 0, (state.depth - prior) / self.sigma_mm, before / self.background_mm)
        valid = prior > 0
        if self.background:
            valid = valid | observations.mask.to(valid.device)
        return Residuals(value.flatten(1)[..., None], valid.flatten(1), weight)


@dataclass(frozen=True)
class SuitabilityPrior(PlainEnergy):
    """suitability_reg: C - 1 on pixels with a surface, [B, H W, 1] (E22). Mean.
    Source: Shu et al. eq. 15."""

    name = "suitability_reg"
    reduction = "mean"

    def residuals(self, state: DepthState, observations: Observations) -> Residuals:
        C = torch.ones_like(state.depth) if state.suitability is None else state.suitability
        return Residuals((C - 1).flatten(1)[..., None], (state.depth > 0).flatten(1))


@dataclass(frozen=True)
class Warp:
    """Frames j as seen from frames i, for P ordered pairs (i, j): colors [P, 3, H, W], own: those of frames
    i; pixels [P, H W, 2] where they were read in frame j; depth [P, H W] mm of the surface point in frame j;
    valid [P, H W]: seen by both."""

    i: Tensor
    j: Tensor
    colors: Tensor
    own: Tensor
    pixels: Tensor
    depth: Tensor
    valid: Tensor


def warp(state: DepthState, observations: Observations, tolerance_mm: float = 10.0) -> Warp:
    """Inverse warp by the depth of the frame that is looked from.

    A pixel counts where both frames have a surface there, it falls inside the other picture, and the depth it
    should have there is that of the surface there, up to tolerance_mm (occlusion; the paper's 0.05 has no
    unit, of 200 mm it is 10). The test uses the fitted model's depth (`labels.prior_depth`) where there is
    one, else the state's own, detached.

    Source: Shu et al. eq. 11-13 with the inverse warp of "SfM-Net" (Vijayanarasimhan et al. 2017): the
    paper's words and its masks are those of the first frame, so the frame that is looked from is the one
    whose depth is used.
    """
    i, j = state.pairs()
    H, W = state.size
    camera_i, camera_j = state.camera.select(i), state.camera.select(j)
    pose_i, pose_j = state.pose.select(i), state.pose.select(j)
    moved = carry(back_project(state.depth[i], camera_i), pose_i, pose_j)
    pixels, in_front = camera_j.project(moved)
    # Whatever the mask hides, even NaN, must not reach a gradient.
    images = torch.where(observations.mask[:, None], observations.images, 0.5).to(state.depth)
    colors, inside = sample(images[j], pixels)
    labels = observations.labels
    model = state.depth if labels is None or labels.prior_depth is None else labels.prior_depth
    with torch.no_grad():
        model = model.to(state.depth)
        seen = (
            covis_depth(model[i], camera_i, pose_i, model[j], camera_j, pose_j, tolerance_mm)[:, 0].flatten(1)
            > 0
        )
        # All four pixels that a colour is read from must show the surface.
        mask = observations.mask.to(seen.device)
        readable = sample((mask & (model > 0))[j][:, None].to(state.depth), pixels)[0][..., 0] > 0.999
        usable = mask[i].flatten(1) & readable
    valid = seen & usable & inside & in_front & (state.depth[i].flatten(1) > 0)
    return Warp(
        i, j, colors.transpose(1, 2).reshape(len(i), 3, H, W), images[i], pixels, moved[..., 2], valid
    )


@dataclass(frozen=True)
class DepthWarpPhotometric(PlainEnergy):
    """photo_warp_depth: C (I_i - I_{j->i}) / sigma for all ordered pairs of frames of one person, [P, H W, 3]
    (E2). Mean.

    sRGB in [0, 1]; differentiable in depth, poses, camera and suitability.
    Source: Shu et al. eq. 14 (kernel l1).
    """

    sigma: float = 0.1
    tolerance_mm: float = 10.0
    name = "photo_warp_depth"
    reduction = "mean"

    def residuals(self, state: DepthState, observations: Observations) -> Residuals:
        w = warp(state, observations, self.tolerance_mm)
        value = (w.own - w.colors) / self.sigma
        if state.suitability is not None:
            value = value * state.suitability[w.i][:, None]
        return Residuals(value.flatten(2).transpose(1, 2), w.valid)


@dataclass(frozen=True)
class DepthWarpStructure(PlainEnergy):
    """ssim_xview: ((1 - SSIM) / 2)^(1/2) of 3 x 3 neighbourhoods of I_i and I_{j->i}, [P, H W, 3] (E27).
    Mean.

    The root makes the squared residual the dissimilarity itself. A pixel counts where its whole neighbourhood
    does.
    Source: Wang et al., "Image quality assessment", TIP 2004, with c1 = 0.01^2, c2 = 0.03^2 as in MGCNet
    (Shang et al., ECCV 2020).
    """

    tolerance_mm: float = 10.0
    name = "ssim_xview"
    reduction = "mean"

    def residuals(self, state: DepthState, observations: Observations) -> Residuals:
        w = warp(state, observations, self.tolerance_mm)
        P, H, W = len(w.i), *state.size
        a, b = w.own, w.colors

        def mean(x):
            return F.avg_pool2d(x, 3, 1, 1)

        ma, mb = mean(a), mean(b)
        va, vb, vab = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
        ssim = (2 * ma * mb + 1e-4) * (2 * vab + 9e-4) / ((ma * ma + mb * mb + 1e-4) * (va + vb + 9e-4))
        # The derivative of the root is infinite at 0, where the pictures are equal.
        value = ((1 - ssim).clamp(0, 2) / 2 + 1e-8).sqrt() - 1e-4
        whole = F.avg_pool2d(w.valid.reshape(P, 1, H, W).to(a), 3, 1, 1).flatten(1) > 0.999
        return Residuals(value.flatten(2).transpose(1, 2), whole)


@dataclass(frozen=True)
class DepthAgreement(PlainEnergy):
    """depth_xview: (z - D_j(u) m_z / m_D) / sigma_mm, z the depth in frame j of the surface of frame i,
    D_j(u) the depth map read there, m their means over the pair's valid pixels, [P, H W, 1] (E28). Mean.
    Source: MGCNet (Shang et al., ECCV 2020)."""

    sigma_mm: float = 5.0
    tolerance_mm: float = 10.0
    name = "depth_xview"
    reduction = "mean"

    def residuals(self, state: DepthState, observations: Observations) -> Residuals:
        w = warp(state, observations, self.tolerance_mm)
        read = sample(state.depth[w.j][:, None], w.pixels)[0][..., 0]
        counted = w.valid.to(read)
        ratio = (w.depth * counted).sum(1) / (read * counted).sum(1).clamp_min(1e-6)
        return Residuals(((w.depth - read * ratio[:, None]) / self.sigma_mm)[..., None], w.valid)


# ---- recipes ----


@dataclass(frozen=True)
class DepthTerm(EnergyOptions):
    sigma_mm: Positive = 2.0  # standard deviation of a depth
    relative: bool = False  # depths count from the nose tip of each pose, the predicted and the labelled one
    relief: bool = False  # without the median difference of each frame


@dataclass(frozen=True)
class NormalTerm(EnergyOptions):
    sigma: Positive = 0.1  # standard deviation of a component of a unit normal
    relative: bool = False  # as of depth_sup


@dataclass(frozen=True)
class DepthPriorTerm(EnergyOptions):
    sigma_mm: Positive = 10.0  # standard deviation of a depth
    background: bool = False  # pixels without a model surface count as well
    background_mm: Positive = BEFORE_MM + BEHIND_MM  # standard deviation of those
    relief: bool = False  # without the mean difference of each frame, where both have a surface


@dataclass(frozen=True)
class StructureTerm(EnergyOptions):
    tolerance_mm: NonNegative = 10.0  # a surface that far behind another is hidden


@dataclass(frozen=True)
class WarpTerm(StructureTerm):
    sigma: Positive = 0.1  # standard deviation of a colour, sRGB in 0..1


@dataclass(frozen=True)
class DepthAgreementTerm(StructureTerm):
    sigma_mm: Positive = 5.0  # standard deviation of a depth


def _depth_labels(o: DepthTerm | NormalTerm) -> frozenset[str]:
    return frozenset({"depth", "pose"} if o.relative else {"depth"})


def _depth_parts(o: DepthTerm | NormalTerm) -> tuple[str, ...]:
    return ("depth.pose",) if o.relative else ()


SPECS = (
    EnergySpec(
        name="photo_warp_depth",
        cls=DepthWarpPhotometric,
        make=lambda context, o: DepthWarpPhotometric(o.sigma, o.tolerance_mm),
        role="image",
        doc=EnergyDoc(
            formula="C (I_i - I_{j->i})",
            unit="sRGB in 0..1",
            source="Shu et al. eq. 11-14, MGCNet",
            uses=(use(MVD, "l1"), use(MGC, "l1", "0.1 x 0.15")),
            gradient="to depth, poses, camera and suitability; co-visibility detached",
            id="E2",
        ),
        options=WarpTerm,
        takes="depth",
        optional=("prior_depth",),
        cross_view=True,
    ),
    EnergySpec(
        name="depth_sup",
        cls=DepthSupervision,
        make=lambda context, o: DepthSupervision(o.sigma_mm, o.relative, o.relief),
        role="depth",
        doc=EnergyDoc(
            formula="D - D*",
            unit="mm",
            source="Shu et al. eq. 8",
            uses=(use(MVD, "l1"),),
            gradient="exact",
            id="E19",
        ),
        options=DepthTerm,
        takes="depth",
        needs=_depth_labels,
        parts=_depth_parts,
    ),
    EnergySpec(
        name="normal_sup",
        cls=NormalSupervision,
        make=lambda context, o: NormalSupervision(o.sigma, o.relative),
        role="depth",
        doc=EnergyDoc(
            formula="N(D) - N(D*)",
            unit="unit vector",
            source="Shu et al. eq. 9",
            uses=(use(MVD, "l1"),),
            gradient="to neighbouring depths",
            id="E20",
        ),
        options=NormalTerm,
        takes="depth",
        needs=_depth_labels,
        parts=_depth_parts,
    ),
    EnergySpec(
        name="depth_3dmm",
        cls=DepthPrior,
        make=lambda context, o: DepthPrior(o.sigma_mm, o.background, o.background_mm, relief=o.relief),
        role="depth",
        doc=EnergyDoc(
            formula="D - D_S, depth of a fitted face model",
            unit="mm; in a fit D_S is what the network of the option `depth` says",
            source="Shu et al. eq. 10",
            uses=(use(MVD, "sq", "0.02"),),
            gradient="D_S detached",
            id="E21",
        ),
        options=DepthPriorTerm,
        takes="depth",
        needs=("prior_depth",),
    ),
    EnergySpec(
        name="suitability_reg",
        cls=SuitabilityPrior,
        make=lambda context, o: SuitabilityPrior(),
        role="prior",
        doc=EnergyDoc(
            formula="C - 1",
            unit="none",
            source="Shu et al. eq. 15",
            uses=(use(MVD, "sq"),),
            gradient="exact",
            id="E22",
        ),
        takes="depth",
        not_in_fits="a fit compares all colours alike; a network predicts the suitability",
    ),
    EnergySpec(
        name="ssim_xview",
        cls=DepthWarpStructure,
        make=lambda context, o: DepthWarpStructure(o.tolerance_mm),
        role="image",
        doc=EnergyDoc(
            formula="((1 - SSIM(I_i, I_{j->i})) / 2)^(1/2), 3 x 3",
            unit="none",
            source="MGCNet; Wang et al. 2004",
            uses=(use(MGC, "sq", "0.1 x 0.85"),),
            gradient="to depth, poses and camera; the root is rounded at 0",
            id="E27",
        ),
        options=StructureTerm,
        takes="depth",
        optional=("prior_depth",),
        cross_view=True,
    ),
    EnergySpec(
        name="depth_xview",
        cls=DepthAgreement,
        make=lambda context, o: DepthAgreement(o.sigma_mm, o.tolerance_mm),
        role="depth",
        doc=EnergyDoc(
            formula="z_{i->j} - D_j(u_j), equal means",
            unit="mm",
            source="MGCNet",
            uses=(use(MGC, "l1", "0.1 x 0.1"),),
            gradient="to both depths, poses and camera",
            id="E28",
        ),
        options=DepthAgreementTerm,
        takes="depth",
        optional=("prior_depth",),
        cross_view=True,
    ),
)
