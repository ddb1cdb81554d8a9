"""How good a network is on the samples that are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fitkit.data.augment import PLAIN
from fitkit.energies.landmarks import EYE_PAIRS, LIP_PAIRS
from fitkit.energies.landmarks3d import map_places, vertex_places
from fitkit.energies.rendered_depth import model_depth
from fitkit.evaluate.photo_consistency import cross_view_flow
from fitkit.evaluate.relief import normal_errors, relief_errors
from fitkit.geometry.alignment import similarity_align
from fitkit.models.face_model import FaceModel
from fitkit.nets.predictor import Prediction, Predictor
from fitkit.observe.labels import Labels
from fitkit.observe.landmarks.types import box_size
from fitkit.observe.observations import Observations
from fitkit.observe.sampling import sample
from fitkit.scene.depth_state import depth_normals
from fitkit.scene.projection import project_points
from fitkit.scene.state import SceneState
from fitkit.train.regressor_data import Batch, InputOptions, Part, collate, prepare
from fitkit.train.regressor_recipe import RegressorTraining

VALIDATED = (
    "vertex_mm",
    "mean_face_mm",
    "shape_mm",
    "mean_shape_mm",
    "nme_percent",
    "sigma_ratio",
    "flow_px",
    "depth_mm",
    "parse_percent",
    "points3d_mm",
    "map_percent",
    "relief_mm",
    "normals_deg",
    "model_relief_mm",
    "model_normals_deg",
    "depth_percent",
    "eyes_mm",
    "mean_eyes_mm",
    "lips_mm",
    "mean_lips_mm",
)


class HeldOut:
    """The samples that are held out, read once."""

    def __init__(
        self, recipe: RegressorTraining, parts: Sequence[Part], model: FaceModel, network: Predictor
    ):
        self.recipe, self.model = recipe, model
        self.inputs = InputOptions.of(network, recipe.most_views)
        # Evenly from all of them, so that no data set is left out.
        places = [(p, i) for p in parts for i in range(len(p.index))]
        keep = (
            np.unique(
                np.linspace(0, len(places) - 1, min(recipe.validation.most, len(places))).round().astype(int)
            )
            if places
            else []
        )
        self.places = [places[k] for k in keep]
        self._samples: list | None = None

    def __len__(self) -> int:
        return len(self.places)

    def batches(self) -> list[Batch]:
        if self._samples is None:
            self._samples = []
            for part, position in self.places:
                name = part.id(position)
                sample = part.dataset[int(part.index[position])]
                self._samples.append(
                    (
                        name,
                        *prepare(
                            sample.observations,
                            name,
                            self.model,
                            self.inputs,
                            PLAIN,
                            np.random.default_rng(0),
                        ),
                    )
                )
        return [
            collate(self._samples[k : k + self.recipe.batch])
            for k in range(0, len(self._samples), self.recipe.batch)
        ]


@torch.no_grad()
def validate(network: Predictor, model: FaceModel, held: HeldOut) -> dict[str, float]:
    """Errors on the samples held out; {} without any. Each is the mean over the people for whom the network
    gives what it needs and the labels know it.

    vertex_mm: distance of the predicted from the labelled vertices of the face region, head frame, with
    expression; mean_face_mm: the same of the mean face; shape_mm, mean_shape_mm: the same two without what
    photos do not tell, after the similarity that fits best; sigma_ratio: root mean square of identity errors
    over their predicted standard deviations (and those of the labels), 1 = these are right; flow_px: see
    `cross_view_flow`, of the first `validation.flow` people with two views or more, px of 224; nme_percent:
    distance of the predicted from the given landmarks 17-67 over the square root of the landmark box's area,
    mean over the views; depth_mm: mean distance of depths where both have a surface, depth_percent: how much
    of the label's that is; relief_mm, normals_deg: the same without how far away the head is, and angles
    between the normals of both maps, see `relief_errors`; model_relief_mm, model_normals_deg: of the depth of
    the face model that the same network predicts, over the same pixels; parse_percent:
    pixels whose likeliest part is that of the label; points3d_mm: mean distance of 3D points after the
    similarity that fits best; map_percent: distance, x, y and z, of the position map from the labelled
    vertices of the face over the square root of the landmark box's area; eyes_mm, lips_mm: see
    `opening_errors`, mean_eyes_mm, mean_lips_mm: the same of the mean face.
    """
    training, device = network.training, next(network.parameters()).device
    network.eval()
    found: dict[str, list[float]] = {k: [] for k in VALIDATED}
    for batch in held.batches():
        batch = batch.to(device)
        prediction = network(batch.images, batch.valid)
        for i, seen in enumerate(batch.people):
            mine, labels = prediction.select([i]), seen.labels or Labels()
            points = predicted_landmarks(mine, model)
            if points is not None:
                known = seen.landmarks.only(model.landmarks.present)
                found["nme_percent"] += landmark_error(points, replace(seen, landmarks=known))
            if mine.state is not None:
                if seen.num_views > 1 and len(found["flow_px"]) < held.recipe.validation.flow:
                    length = cross_view_flow(model, mine.state, seen)
                    found["flow_px"] += [] if length is None else [length]
                if {"identity", "expression"} <= labels.parts:
                    _add(found, shape_errors(mine, labels, model))
            found["map_percent"] += position_map_error(mine, seen, model)
            _add(found, map_errors(mine, labels))
            _add(found, relief_of(mine, labels, model))
    network.train(training)
    out = {k: float(np.mean(v)) for k, v in found.items() if v}
    return out | {k: v**0.5 for k, v in out.items() if k == "sigma_ratio"}


def _add(found: dict[str, list[float]], values: dict[str, float]) -> None:
    for name, value in values.items():
        found[name].append(value)


def shape_errors(mine: Prediction, labels: Labels, model: FaceModel) -> dict[str, float]:
    """Of the state of one person; sigma_ratio: mean square, not its root."""
    assert mine.state is not None and labels.state is not None  # the caller has looked
    truth = labels.state.vertices(model)[:, model.face]
    shape, mean = mine.state.vertices(model)[:, model.face], model.mean[model.face].expand_as(truth)
    out = {
        "vertex_mm": float((shape - truth).norm(dim=-1).mean()),
        "mean_face_mm": float((mean - truth).norm(dim=-1).mean()),
        "shape_mm": aligned_distance(shape, truth),
        "mean_shape_mm": aligned_distance(mean, truth),
        **opening_errors(mine.state, labels.state, model),
    }
    if mine.identity_sigma is not None:
        # Labels may be unsure themselves.
        own = 0.0 if labels.identity_sigma is None else labels.identity_sigma
        error = (mine.state.identity - labels.state.identity) ** 2
        out["sigma_ratio"] = float((error / (mine.identity_sigma**2 + own**2)).mean())
    return out


def opening_errors(state: SceneState, truth: SceneState, model: FaceModel) -> dict[str, float]:
    """Error of how far lids and inner lips are apart, mm: of a state, and of the mean face. Means over the
    pairs of opposite points of `lmk2d_eye` and `lmk2d_lip` and over the frames; models that lack some of
    these points have none."""
    points, true = (model.landmark_basis.points(*s.coefficients()) for s in (state, truth))
    mean = model.landmark_basis.mean[None].expand_as(true)
    out = {}
    for name, pairs in (("eyes_mm", EYE_PAIRS), ("lips_mm", LIP_PAIRS)):
        a, b = (list(side) for side in zip(*pairs))
        if bool(model.landmarks.present[a + b].all()):
            wide, right, still = ((p[:, a] - p[:, b]).norm(dim=-1) for p in (points, true, mean))
            out[name] = float((wide - right).abs().mean())
            out[f"mean_{name}"] = float((still - right).abs().mean())
    return out


def map_errors(mine: Prediction, labels: Labels) -> dict[str, float]:
    """Of the parts of a prediction that are no state and no landmarks."""
    out = {}
    if mine.depth is not None and labels.depth is not None and bool((labels.depth > 0).any()):
        both = (labels.depth > 0) & (mine.depth.depth > 0)
        out["depth_percent"] = 100 * float(both.sum() / (labels.depth > 0).sum())
        if bool(both.any()):
            out["depth_mm"] = float((mine.depth.depth - labels.depth)[both].abs().mean())
    if mine.parse is not None and labels.parse is not None:
        known = (
            torch.ones_like(labels.parse, dtype=torch.bool)
            if labels.parse_valid is None
            else labels.parse_valid
        )
        if bool(known.any()):
            right = mine.parse.argmax(1) == labels.parse
            out["parse_percent"] = 100 * float(right[known].float().mean())
    if mine.points3d is not None and labels.points3d is not None:
        known = torch.isfinite(labels.points3d).all(-1)
        out["points3d_mm"] = aligned_distance(mine.points3d, torch.nan_to_num(labels.points3d), known)
    return out


def relief_of(mine: Prediction, labels: Labels, model: FaceModel) -> dict[str, float]:
    """Of the depth maps of one person, and of the face model's where the network gives both; means over the
    views."""
    said, truth = mine.depth, labels.depth
    if said is None or truth is None or labels.state is None:
        return {}
    both = (truth > 0) & (said.depth > 0)
    maps = {"": said.depth}
    if mine.state is not None:
        maps["model_"] = model_depth(model, mine.state, said.size)
        both = both & (maps["model_"] > 0)
    normals, known = depth_normals(truth, labels.state.camera)
    found: dict[str, list[float]] = {}
    for b in range(len(truth)):
        if not bool(both[b].any()):
            continue
        for name, depth in maps.items():
            relief = relief_errors(depth[b], truth[b], both[b])
            angles = normal_errors(depth[b], said.camera.select([b]), normals[b], both[b] & known[b])
            found.setdefault(f"{name}relief_mm", []).append(float(relief.mean()))
            if len(angles):
                found.setdefault(f"{name}normals_deg", []).append(float(angles.mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def position_map_error(mine: Prediction, seen: Observations, model: FaceModel) -> list[float]:
    """Per cent, one number for each view of a person whose vertices are known in the crops."""
    maps, labels, marks = mine.position_map, seen.labels, seen.landmarks
    if maps is None or maps.places is not None or labels is None or labels.crop_vertices is None:
        return []
    places, owner = vertex_places(model, tuple(maps.points.shape[-2:]), "face")
    read, _ = sample(maps.points, places.to(maps.points)[None].expand(len(maps.points), -1, -1))
    error = (read - labels.crop_vertices[:, owner]).norm(dim=-1).nanmean(1)
    return [100 * float(e / box_size(p, v)) for e, p, v in zip(error, marks.points, marks.valid)]


def predicted_landmarks(prediction: Prediction, model: FaceModel) -> Tensor | None:
    """The 68 points in the pictures, [B, 68, 2] px: of the state, the position map or the landmarks; None: it
    gives none of these."""
    if prediction.state is not None:
        return project_points(model.landmark_basis, prediction.state).pixels
    maps = prediction.position_map
    if maps is not None and (model.uv is not None or maps.places is not None):
        places = map_places(model, maps)[None].expand(len(maps.points), -1, -1)
        return sample(maps.points, places)[0][..., :2]
    return None if prediction.landmarks is None else prediction.landmarks.points


def aligned_distance(source: Tensor, target: Tensor, valid: Tensor | None = None) -> float:
    """Mean distance of points [B, N, 3] from corresponding ones after the similarity of each frame that fits
    best, in their unit.

    valid: [B, N] bool, pairs that count; None: all.
    """
    if valid is None:
        valid = torch.ones(source.shape[:2], dtype=torch.bool, device=source.device)
    best = similarity_align(source, target, valid)
    moved = best.scale[:, None, None] * source @ best.rotation.transpose(1, 2) + best.translation[:, None]
    return float((moved - target).norm(dim=-1)[valid].mean())


def landmark_error(points: Tensor, seen: Observations) -> list[float]:
    """NME of landmarks 17-67 in per cent, one number for each view that has any. points: [B, 68, 2] px."""
    marks, out = seen.landmarks, []
    for p, t, valid in zip(points, marks.points, marks.valid):
        inner = valid.clone()
        inner[:17] = False
        if bool(inner.any()):
            out.append(100 * float((p[inner] - t[inner]).norm(dim=-1).mean() / box_size(t, valid)))
    return out
