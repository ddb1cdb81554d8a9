"""Length of the flow between a photo and the other view's colours rendered into it, through a flow network
(E4)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.energies.base import Residuals
from fitkit.energies.flow_correspondence import EstimatorOptions, FlowImages, FlowOptions, ask_flow
from fitkit.energies.masks import weight_features
from fitkit.energies.pair_masks import PairMask, shared_pixels
from fitkit.energies.parse_labels import ParseScheme, label_weights, parse_needed
from fitkit.energies.spec import MFN, MVF, OURS, PGN, Context, EnergyDoc, EnergySpec, use
from fitkit.energies.view_pairs import neighbor_views
from fitkit.errors import InputError
from fitkit.io.options import Cosine, Natural, NonNegative, Pixels, Positive, Range, Seed
from fitkit.models.face_model import FaceModel
from fitkit.observe.flow.consistency import consistent
from fitkit.observe.flow.types import DifferentiableFlow, Flow, FlowEstimator
from fitkit.observe.observations import Observations
from fitkit.observe.sampling import erode, gaussian_blur
from fitkit.render.cross_view import SharedPixels
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class FlowMagnitudeOptions:
    size: Pixels = 224  # side of the images the flow is computed on
    sigma_px: Positive = 0.5  # flow length that counts as 1, for a 224-pixel crop
    # each view is paired with this many next views of the same person in the order of their yaw, both ways
    neighbors: Annotated[int, Range(1, 1000)] = 1
    # 'forward' photo -> rendering, 'backward' rendering -> photo
    directions: Literal["both", "forward", "backward"] = "both"
    # What both images show where view a sees nothing of the surface: the photo of view b, the same smooth
    # noise ('texture'), or 'black'. With 'face' and 'none' photo b stays as it is; the rendering shows it on
    # the face and black around, or black.
    fill: Literal["photo", "texture", "black", "face", "none"] = "photo"
    consistent: bool = True  # only pixels that pass the forward-backward test
    angle: bool = True  # weight by the cosine of the viewing angle
    rim: Annotated[int, Range(0, 1000)] = 5  # pixels next to the fill that do not count
    min_pixels: Natural = 64  # pairs with fewer for a 224-pixel crop do not count
    # radius in flow pixels of the local contrast normalization (then grey), 0 = the colours as they are
    normalize: Annotated[float, Range(0.0, 100.0)] = 0.0
    min_cosine: Cosine = 0.25  # of the viewing angles, for mask 'zbuffer'
    depth_tolerance_mm: NonNegative = 3.5  # what lies further behind is hidden, for mask 'zbuffer'
    mask: PairMask = "zbuffer"  # what tells the pixels that both views see, see `pair_mask`
    parse: ParseScheme = "none"  # weights by the labelled face parse of view b, see `weight_parse`
    # weight of the model's eyes, nose and mouth over that of the rest, see `weight_features`; PGN: 5
    features: Positive = 1.0
    seed: Seed = 0


# What the papers state, without our weights: means of the pixels that their masks say both views see. MVF
# sums both directions, here they are averaged; its masks are also smoothed along edges of the photo, which is
# left out. PGN needs labels of a face parse (give parse: none without). Kernels, given with the Term: MVF
# 'sq' and PWC-Net; MFN 'sq' (its text; its equation prints |.|) and RAFT; PGN 'l2n'.
STRICT: dict[str, FlowMagnitudeOptions] = {
    "mvf": FlowMagnitudeOptions(
        directions="both", fill="texture", consistent=False, angle=False, rim=0, mask="landmarks"
    ),
    "mfn": FlowMagnitudeOptions(
        directions="forward", fill="black", consistent=False, angle=False, rim=0, mask="box"
    ),
    "pgn": FlowMagnitudeOptions(
        directions="forward", fill="face", consistent=False, angle=False, rim=0, mask="vertex", parse="pgn"
    ),
}


@dataclass(frozen=True)
class FlowMagnitude:
    """flow_mag: w / sigma for the flow w between photo b and I_{a->b}, [G, h * w, 2], G = pairs of views x
    directions.

    I_{a->b}(u) = I_a(Pr_a(Pr_b^-1(u))): view a's colours at the surface behind pixel u of view b. It carries
    the gradient to shape, poses and cameras, through the frozen network, the sampling of photo a and the
    plane of the triangle behind u; photo b is constant. Visibility, forward-backward test and weights are
    fixed by `freeze`, which comes first. The mean over the pixels of a pair, then over pairs and directions:
    each pair counts the same, a pair with too few pixels does not count.
    The network gives no residual whose Jacobian could be had at a sensible price, so it writes no
    derivatives: solvers of second order take `flow_corr` (E5), the same evidence with the flow as fixed
    matches. Gradients are smooth and reach far, but their size differs between networks by up to a hundred;
    choose the weight for the network.
    Source: MVF-Net eq. 8, MFNet eq. 6, PGN eq. 10; see STRICT.
    """

    model: FaceModel
    options: FlowMagnitudeOptions
    estimator: DifferentiableFlow
    photos: FlowImages
    shared: SharedPixels | None = None  # set by freeze
    weight: Tensor | None = None  # [G, h * w] of the residuals, 0 where not valid, set by freeze

    name = "flow_mag"
    reduction = "mean"

    @staticmethod
    def prepare(
        model: FaceModel, observations: Observations, estimator: FlowEstimator, options: FlowMagnitudeOptions
    ) -> FlowMagnitude:
        """The photos at the flow's size.

        Raises:
            InputError: an estimator that is not differentiable.
        """
        if not isinstance(estimator, DifferentiableFlow):
            raise InputError(
                f"energy 'flow_mag' differentiates through the flow: expected a network ('ptlflow:NAME'), "
                f"got '{estimator.name}'; energy 'flow_corr' takes it"
            )
        return FlowMagnitude(model, options, estimator, flow_photos(observations, options))

    def freeze(self, state: SceneState, observations: Observations) -> FlowMagnitude:
        with torch.no_grad():
            o, photos = self.options, self.photos
            h, w = photos.images.shape[-2:]
            pairs = both_ways(state, o.neighbors, self.name, photos.moment)
            shared = shared_pixels(self.model, state, photos, pairs, o)
            angles = shared.angle
            weight = angles if o.angle else (angles > 0).to(angles)
            if o.rim > 0:
                weight = weight * (
                    erode((angles > 0).to(angles).reshape(-1, 1, h, w), o.rim).reshape(-1, h * w) > 0
                )
            if o.parse != "none":
                parts = label_weights(observations, photos.mask, o.parse, self.name).flatten(1)
                weight = weight * parts[[b for _, b in pairs]]
            if o.features != 1:
                drawn = shared.triangle.clamp_min(0).flatten(1)[[b for _, b in pairs]]
                weight = weight * weight_features(self.model, o.features)[drawn].to(weight)
            if o.consistent:
                forward, backward = (
                    Flow(f, torch.isfinite(f).all(1))
                    for f in self._flows(state, shared, ("forward", "backward"))
                )
                good = {"forward": consistent(forward, backward), "backward": consistent(backward, forward)}
                weight = torch.cat([weight * good[d].reshape(-1, h * w) for d in self._directions()])
            else:
                weight = weight.repeat(len(self._directions()), 1)
            enough = (weight > 0).sum(1, keepdim=True) >= max(1.0, o.min_pixels * (max(h, w) / 224) ** 2)
            # Weights of every pair sum to the same, so the mean over all pixels is the mean over the pairs of
            # their means.
            total = weight.sum(1, keepdim=True)
            weight = torch.where(enough, weight / total.clamp_min(1e-12), 0)
            return replace(self, shared=shared, weight=weight / weight.max().clamp_min(1e-12))

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        if self.shared is None:
            raise InputError("energy 'flow_mag': freeze it at a state first, as Objective.freeze does")
        h, w = self.photos.images.shape[-2:]
        unit = self.options.sigma_px * max(h, w) / 224.0
        flows = torch.cat(self._flows(state, self.shared, self._directions()))
        return Residuals(flows.flatten(2).transpose(1, 2) / unit, self.weight > 0, self.weight)

    def _directions(self) -> tuple[str, ...]:
        return ("forward", "backward") if self.options.directions == "both" else (self.options.directions,)

    def _flows(self, state: SceneState, shared: SharedPixels, directions: tuple[str, ...]) -> list[Tensor]:
        """Flow of all pairs, [G, 2, h, w] px, for each direction."""
        rendering, photo = self.images(state, shared)
        return [
            self.estimator.displacement(photo, rendering)
            if d == "forward"
            else self.estimator.displacement(rendering, photo)
            for d in directions
        ]

    def images(self, state: SceneState, shared: SharedPixels | None = None) -> tuple[Tensor, Tensor]:
        """What the network sees: view a's colours at view b and photo b, both filled where a sees nothing,
        [pairs, C, h, w]."""
        shared = shared or self.shared
        images, fill = self.photos.images, self.options.fill
        photo = images[[b for _, b in shared.pairs]]
        base = photo
        if fill == "face":
            base = photo * (shared.triangle >= 0)[[b for _, b in shared.pairs], None]
        elif fill != "photo":
            base = (self._texture(images) if fill == "texture" else torch.zeros_like(images[0])).expand_as(
                photo
            )
        if fill in ("texture", "black"):
            photo = torch.where(shared.seen[:, None], photo, base)
        return shared.render(self.model, state, images, base), photo

    def _texture(self, images: Tensor) -> Tensor:
        """Fixed smooth noise [C, h, w] in [0, 1], waves of about 12 px."""
        generator = torch.Generator().manual_seed(self.options.seed)
        noise = gaussian_blur(torch.randn(1, *images.shape[1:], generator=generator), 2.0)
        return (0.5 + 0.2 * noise / noise.std()).clamp(0, 1).to(images)[0]


def both_ways(
    state: SceneState, neighbors: int, energy: str, moment: Tensor | None = None
) -> tuple[tuple[int, int], ...]:
    """Ordered pairs (a, b) of neighbouring views of one person, both ways; moment: [B], as in
    `neighbor_views`.

    Raises:
        InputError: there are none; it names the energy.
    """
    pairs = [(n.a, n.b) for n in neighbor_views(state, neighbors, moment)]
    if not pairs:
        raise InputError(
            f"energy '{energy}' compares views of one person: expected at least 2 and neighbors >= 1, "
            f"got {state.num_views} view(s) and neighbors {neighbors}; give its stage min_views: 2"
        )
    return (*pairs, *((b, a) for a, b in pairs))


def flow_photos(observations: Observations, options: FlowMagnitudeOptions) -> FlowImages:
    """The photos in colour at the flow's size, or grey and contrast-normalized; grey 0.5 outside the mask."""
    if options.normalize > 0:
        return FlowImages.of(
            _blanked(observations), FlowOptions(size=options.size, normalize=options.normalize)
        )
    return resized_photos(observations, options.size)


def resized_photos(observations: Observations, size: int) -> FlowImages:
    """The photos in colour with `size` pixels on the longer side; grey 0.5 outside the mask."""
    observations = _blanked(observations)
    H, W = observations.size
    reduction = max(H, W) / size
    shape = (round(H / reduction), round(W / reduction))
    mode = "area" if reduction > 1 else "bilinear"
    mask = F.interpolate(observations.mask[:, None].to(observations.images), size=shape, mode="area")
    images = F.interpolate(observations.images, size=shape, mode=mode)
    return FlowImages(images, mask, reduction, observations.moment)


def _blanked(observations: Observations) -> Observations:
    # A network looks far around each pixel: what lies beyond the mask must not be there at all.
    return replace(observations, images=torch.where(observations.mask[:, None], observations.images, 0.5))


# ---- recipes ----


@dataclass(frozen=True)
class FlowMagnitudeTerm(EstimatorOptions):
    """Only a network, 'ptlflow:NAME', can be used: the gradient runs through it."""

    options: FlowMagnitudeOptions = FlowMagnitudeOptions()


@dataclass(frozen=True)
class FlowMagnitudeTraining(FlowMagnitudeTerm):
    """A training has no `flow` of its own."""

    estimator: str = "ptlflow:pwcnet"


def _make(context: Context, o: FlowMagnitudeTerm) -> FlowMagnitude:
    options = replace(o.options, seed=context.seed)
    return FlowMagnitude.prepare(context.model, context.observations, ask_flow(context.networks, o), options)


SPECS = (
    EnergySpec(
        name="flow_mag",
        cls=FlowMagnitude,
        make=_make,
        role="flow",
        doc=EnergyDoc(
            formula="w, the flow between I_b and I_{a->b}",
            unit="px of a 224 px crop",
            source="MVF-Net eq. 8, MFNet eq. 6, PGN eq. 10",
            uses=(use(MVF, "sq", "0.1"), use(MFN, "sq", "1"), use(PGN, "l2n", "0.2"), use(OURS, "l2n")),
            gradient="through the frozen flow network to I_{a->b}; long-range and smooth, size differs by "
            "100 between networks",
            id="E4",
            variants=tuple(STRICT),
        ),
        options=FlowMagnitudeTerm,
        training=FlowMagnitudeTraining,
        needs=parse_needed,
        cross_view=True,
        load=ask_flow,
    ),
)
