"""Consistency of a fit without ground truth: what views say that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fitkit.energies.census import hard_census_distance
from fitkit.energies.flow_magnitude import both_ways, resized_photos
from fitkit.energies.registry import find
from fitkit.evaluate.landmark_accuracy import normalized_mean_error
from fitkit.fitting.choose_start import ChosenStart
from fitkit.fitting.initialize import initial_state, to_photos
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.fitting.stages import StageRunner, at_start
from fitkit.io.subject import View
from fitkit.models.face_model import FaceModel
from fitkit.observe.crop import crop_views
from fitkit.observe.flow import make_flow_estimator
from fitkit.observe.landmarks.types import Landmarks, box_size, join_landmarks
from fitkit.observe.observations import Observations
from fitkit.observe.sampling import erode
from fitkit.render.cross_view import SharedPixels
from fitkit.scene.state import SceneState

SIZE = 224  # px, longer side of the crops that are compared
WINDOW = 7  # px, of the census
DEAD_ZONE = 2.0  # grey levels
LEAST_PIXELS = 100  # that both views of a pair see


@dataclass(frozen=True)
class HeldOutErrors:
    """photo: mean absolute colour difference of held-out photo and rendering, grey levels (0 to 255); census:
    share of census signs that differ (window 7, dead zone 2 grey levels); flow: median length of the flow
    between them, px of the 224 px crop; landmarks: NME of the 68 points in per cent; covered: share of the
    face's pixels that a fitted view shows, which the first three are means over (None without any)."""

    photo: float | None
    census: float | None
    flow: float | None
    landmarks: float
    covered: float


def place_view(
    model: FaceModel, identity: Tensor, view: View, found: Landmarks, kind: str = "perspective"
) -> SceneState:
    """Pose, expression and focal length of a held-out view from its landmarks; the identity [1, K_id] stays
    as it is.

    The stages 'pose' and 'shape' of recipe `landmarks` with the identity not free. Returns: the state in
    pixels of the photo.
    """
    recipe = placing_recipe(kind)
    observations = crop_views([view.image], [view.mask], found, recipe.crop)
    state, cameras = initial_state(model, (view,), observations, recipe.camera)
    start = ChosenStart("landmarks", state.replace(identity=identity), cameras, observations)
    solution = StageRunner(recipe).solve(at_start(start, model, recipe))
    return to_photos(solution.state, observations)


def placing_recipe(kind: str) -> FitRecipe:
    """Stages 'pose' and 'shape' of recipe `landmarks` with the identity not free, for cameras of this
    kind."""
    recipe = load_recipe("landmarks", changes={"camera": {"kind": kind}})
    stages = []
    for stage in recipe.stages[:2]:
        energies = {k: v for k, v in stage.energies.items() if find(k).blocks != ("identity",)}
        free = tuple(name for name in stage.free if name != "identity")
        stages.append(replace(stage, free=free, energies=energies))
    return replace(recipe, stages=tuple(stages))


def held_out_errors(
    model: FaceModel,
    state: SceneState,
    views: Sequence[View],
    found: Landmarks,
    held: View,
    held_found: Landmarks,
    flow: str = "dis",
) -> HeldOutErrors:
    """Render the fitted views into one that the fit has not seen and compare.

    Each pixel of the held-out photo takes the colour of the fitted view that sees the surface behind it at
    the best angle; pixels that none sees are left out.

    Args:
        state: the fit of `views` [B], camera in pixels of the photos; found: their landmarks (they place the
            crops);
        held, held_found: the other view; flow: name of the flow estimator.
    Source:
        The losses of MVF-Net (colour), PGN (census) and both (flow) as measurements on a view that no one
        optimised.
    """
    placed = place_view(model, state.identity, held, held_found, state.camera.kind)
    marks = model.landmark_points(*placed.coefficients())
    points = placed.camera.project(placed.pose.apply(marks))[0].double()
    truth = held_found.points.double()
    valid = held_found.valid & model.landmarks.present
    nme = 100 * float(normalized_mean_error(points, torch.nan_to_num(truth), valid, box_size(truth)))

    everyone = (*views, held)
    marks = join_landmarks([found, held_found])
    observations = crop_views([v.image for v in everyone], [v.mask for v in everyone], marks)
    joined = _of_one_person(state, placed)
    joined = joined.replace(camera=joined.camera.scaled(observations.scale, observations.offset))
    photos = resized_photos(observations, SIZE)
    last = len(views)
    pairs = [(a, last) for a in range(last)]
    shared = SharedPixels.of(model, joined, photos.mask, photos.reduction, pairs)
    photo = photos.images[last:]
    with torch.no_grad():
        renderings = shared.render(model, joined, photos.images, photo.expand(len(pairs), -1, -1, -1))
    h, w = photo.shape[-2:]
    angle, best = shared.angle.max(0)
    seen = (angle > 0).reshape(h, w)
    face = model.skin[model.triangles].all(1)[shared.triangle[last].clamp_min(0)] & (
        shared.triangle[last] >= 0
    )
    covered = float(seen.sum() / face.sum().clamp_min(1))
    if not bool(seen.any()):
        return HeldOutErrors(None, None, None, nme, covered)
    rendering = renderings.gather(0, best.reshape(1, 1, h, w).expand(1, 3, h, w))
    difference = 255 * (rendering - photo).abs().mean(1)[0]
    inner = erode(seen[None, None].to(photo), WINDOW // 2)[0, 0] > 0.5
    hamming = hard_census_distance(photo, rendering, WINDOW, DEAD_ZONE)[0, 0]
    length = make_flow_estimator(flow).estimate(photo, rendering).displacement[0].norm(dim=0)
    return HeldOutErrors(
        float(difference[seen].mean()),
        float(hamming[inner].mean()) if bool(inner.any()) else None,
        float(length[seen].median()),
        nme,
        covered,
    )


@torch.no_grad()
def cross_view_flow(
    model: FaceModel, state: SceneState, observations: Observations, flow: str = "dis", size: int = SIZE
) -> float | None:
    """How far the photos of one person disagree about a state: mean over the pairs of neighbouring views,
    both ways, of the median length of the flow between a photo and the other view's colours rendered into it,
    px of a crop of `size` px; None without a pair that sees the same skin. 0: shape, poses and cameras
    explain where the skin lies in all photos.
    """
    photos = resized_photos(observations, size)
    pairs = both_ways(state, 1, "cross_view_flow", photos.moment)
    shared = SharedPixels.of(model, state, photos.mask, photos.reduction, pairs)
    photo = photos.images[[b for _, b in pairs]]
    rendering = shared.render(model, state, photos.images, photo)
    length = make_flow_estimator(flow).estimate(photo, rendering).displacement.norm(dim=1)
    h, w = photo.shape[-2:]
    seen = (shared.angle > 0).reshape(-1, h, w)
    lengths = [
        float(one[where].median()) for one, where in zip(length, seen) if int(where.sum()) >= LEAST_PIXELS
    ]
    return float(np.mean(lengths)) if lengths else None


def _of_one_person(one: SceneState, other: SceneState) -> SceneState:
    """The frames of both states, which show the person of the first."""
    joined = SceneState.join([one, other])
    subject = torch.zeros_like(joined.subject)
    return joined.replace(identity=one.identity, subject=subject, albedo=None, landmark_offset=None)


def identity_spread(codes: np.ndarray) -> float:
    """Root mean square over the K coefficients of their standard deviation (ddof 1) between fits to disjoint
    photos of one person: codes [n, K], whitened. 0: the same face each time; about 1: as different as two
    people."""
    return float(np.sqrt(np.asarray(codes, np.float64).var(axis=0, ddof=1).mean()))


def share_beyond(code: np.ndarray, limit: float = 3.0) -> float:
    """Share of whitened coefficients with |a| > limit; 0.0027 for a sample of the model."""
    return float((np.abs(code) > limit).mean())
