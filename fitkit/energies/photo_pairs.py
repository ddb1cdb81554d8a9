"""Colours of a photo against the other view's colours rendered into it, pair by pair (E1 as MVF-Net prints
it)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from fitkit.energies.base import Residuals
from fitkit.energies.flow_correspondence import FlowImages
from fitkit.energies.flow_magnitude import both_ways, resized_photos
from fitkit.energies.masks import union
from fitkit.energies.pair_masks import PairMask, half_faces, halving_points, shared_pixels
from fitkit.energies.parse_labels import ParseScheme, label_weights, parse_needed
from fitkit.energies.spec import MVF, PGN, EnergyDoc, EnergyOptions, EnergySpec, use
from fitkit.errors import InputError
from fitkit.io.options import Cosine, Natural, NonNegative, Pixels, Positive, Range
from fitkit.models.face_model import FaceModel
from fitkit.observe.observations import Observations
from fitkit.render.cross_view import SharedPixels
from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class PhotoPairsOptions:
    size: Pixels = 224  # side of the pictures that are compared
    sigma: Positive = 0.1  # difference of a colour that counts as 1, sRGB in 0..1
    # Each view is paired with so many next ones by yaw, both ways.
    neighbors: Annotated[int, Range(1, 1000)] = 1
    mask: PairMask = "zbuffer"  # what tells the pixels that both views see, see `pair_mask`
    # 'rendered' those pixels, 'union' also the half of the face in photo b that its landmarks outline: there
    # the rendering has the mean colour of what it shows, so that a silhouette in the wrong place costs
    region: Literal["rendered", "union"] = "rendered"
    parse: ParseScheme = "none"  # weights by the labelled face parse of view b, see `weight_parse`
    min_pixels: Natural = 64  # pairs that share fewer of a 224-pixel crop do not count
    min_cosine: Cosine = 0.25  # visibility of 'zbuffer'
    depth_tolerance_mm: NonNegative = 3.5


# What the paper states. The kernel, given with the Term: 'sq'.
STRICT = {"mvf": PhotoPairsOptions(sigma=1.0, mask="landmarks", region="union")}


@dataclass(frozen=True)
class PhotoPairs:
    """photo_pairs: (I_b - I_{a->b}) / sigma, [G, h * w, 3] in sRGB, G ordered pairs of views of one person
    (E1).

    I_{a->b} shows view a's colours at the surface behind the pixels of view b. No light and no albedo: views
    in different light are compared as they are, so it belongs beside energies that do not mind (flow,
    landmarks). The mean over the pixels of a pair, then over pairs. Gradients go through the sampling of
    photo a; where nothing is rendered there is none. Which pixels count is fixed by `freeze`, which comes
    first. There is no `linearize`: a fit by Levenberg-Marquardt does better with `photo_xview`.
    Source: MVF-Net eq. 7; PGN's ablation "Lp-" with kernel l1. Differs: the footprint in the observed photo
    is the outline of the landmarks there, without the paper's smoothing along edges. See STRICT.
    """

    model: FaceModel
    options: PhotoPairsOptions
    photos: FlowImages
    shared: SharedPixels | None = None  # set by freeze
    weight: Tensor | None = None  # [G, h * w], set by freeze

    name = "photo_pairs"
    reduction = "mean"

    @staticmethod
    def prepare(
        model: FaceModel, observations: Observations, options: PhotoPairsOptions = PhotoPairsOptions()
    ) -> PhotoPairs:
        """The photos at the size of the options."""
        return PhotoPairs(model, options, resized_photos(observations, options.size))

    def freeze(self, state: SceneState, observations: Observations) -> PhotoPairs:
        o, photos = self.options, self.photos
        pairs = both_ways(state, o.neighbors, self.name, photos.moment)
        shared = shared_pixels(self.model, state, photos, pairs, o)
        into, seen = [b for _, b in pairs], shared.seen
        weight = seen[:, None].to(photos.mask)
        if o.region == "union":
            outlined = outlined_faces(observations, photos)[into] & (photos.mask[into, 0] > 0.999)
            points = _points(self.model, state, observations)
            half = half_faces("landmarks", points, state, pairs, into, outlined, photos.reduction)
            weight = union(weight, half[:, None].to(weight))
        if o.parse != "none":
            weight = weight * label_weights(observations, photos.mask, o.parse, self.name)[into]
        least = max(1.0, o.min_pixels * (max(seen.shape[-2:]) / 224) ** 2)
        weight = weight.flatten(1) * (seen.flatten(1).sum(1, keepdim=True) >= least)
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
        return replace(self, shared=shared, weight=weight / weight.max().clamp_min(1e-12))

    def images(self, state: SceneState) -> tuple[Tensor, Tensor]:
        """View a's colours at view b, around them their mean, and photo b, [G, 3, h, w]."""
        images, seen = self.photos.images, self.shared.seen[:, None]
        photo = images[[b for _, b in self.shared.pairs]]
        with torch.no_grad():
            drawn = self.shared.render(self.model, state, images, torch.zeros_like(photo)) * seen
            count = seen.sum((2, 3), keepdim=True).clamp_min(1)
            mean = (drawn.sum((2, 3), keepdim=True) / count).expand_as(photo)
        return self.shared.render(self.model, state, images, mean), photo

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        if self.shared is None:
            raise InputError("energy 'photo_pairs': freeze it at a state first, as Objective.freeze does")
        rendering, photo = self.images(state)
        value = ((photo - rendering) / self.options.sigma).flatten(2).transpose(1, 2)
        return Residuals(value, self.weight > 0, self.weight)


def _points(model: FaceModel, state: SceneState, observations: Observations) -> Tensor:
    """The points seen in the photos, [B, 68, 2] px of the crops; the model's where none is."""
    marks = observations.landmarks
    own = halving_points(model, state)
    return torch.where(marks.valid[..., None].to(own.device), marks.points.to(own), own)


def outlined_faces(observations: Observations, photos: FlowImages) -> Tensor:
    """Pixels within the outline (convex hull) of each photo's landmarks, [B, h, w] bool at the size of
    `photos`."""
    marks, (h, w) = observations.landmarks, photos.images.shape[-2:]
    points = (marks.points.detach() + 0.5) / photos.reduction - 0.5
    masks = []
    for one, valid in zip(points.cpu().numpy(), marks.valid.cpu().numpy()):
        mask = np.zeros((h, w), np.uint8)
        if valid.sum() >= 3:
            cv2.fillConvexPoly(mask, cv2.convexHull(one[valid].round().astype(np.int32)), 1)
        masks.append(mask > 0)
    return torch.from_numpy(np.stack(masks)).to(photos.images.device)


# ---- recipes ----


@dataclass(frozen=True)
class PhotoPairsTerm(EnergyOptions):
    options: PhotoPairsOptions = PhotoPairsOptions()


SPECS = (
    EnergySpec(
        name="photo_pairs",
        cls=PhotoPairs,
        make=lambda context, o: PhotoPairs.prepare(context.model, context.observations, o.options),
        role="image",
        doc=EnergyDoc(
            formula="I_b - I_{a->b}",
            unit="sRGB in 0..1",
            source='MVF-Net eq. 7, PGN "Lp-"',
            uses=(use(MVF, "sq", "10"), use(PGN, "l1", "ablation")),
            gradient="through the sampling of photo a; bilinear, so it reaches 1-2 px; what counts is frozen",
            id="E1",
            variants=tuple(STRICT),
        ),
        options=PhotoPairsTerm,
        needs=parse_needed,
        cross_view=True,
    ),
)
