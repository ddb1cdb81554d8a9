"""The numbers of a fit and what they say about it."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fitkit.fit.initialize import CameraKnowledge
from fitkit.io.subject import Subject
from fitkit.models.face_model import FaceModel
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.pose import yaw_pitch_roll
from fitkit.scene.projection import project_points
from fitkit.scene.state import SceneState

if TYPE_CHECKING:
    from fitkit.fit.run import FitRun

# Thresholds of the verdict. A landmark detector is off by 2 to 4 % of the face size; a wrong pose by more than 10 %.
VIEW_DOUBTFUL, VIEW_FAILED = 0.06, 0.12
BEYOND_3_SIGMA = 0.05
NEAREST_MM = 150.0

SCALE_METRIC = "the positions of the cameras are known, so sizes are metric"
SCALE_PRIOR = ("no camera positions were given: sizes are metric only as far as this person's head is of the size the face "
               "model expects, and focal length and distance are known only up to a common factor")


def view_errors(model: FaceModel, state: SceneState, landmarks: Landmarks) -> tuple[Tensor, Tensor]:
    """Reprojection error of the 51 inner points per view: mean px [B] of the photos, and as a share of the face size [B].

    The face size is the square root of the area of the landmark box; NaN for a view without valid inner points.
    """
    points = project_points(model.landmark_basis, state).pixels
    distance = (points - landmarks.points).norm(dim=-1)
    inner = landmarks.valid.clone()
    inner[:, :17] = False
    mean = torch.where(inner, distance, torch.zeros_like(distance)).sum(1) / inner.sum(1)
    low = torch.where(landmarks.valid[..., None], landmarks.points, torch.inf).amin(1)
    high = torch.where(landmarks.valid[..., None], landmarks.points, -torch.inf).amax(1)
    return mean, mean / (high - low).prod(-1).sqrt()


def build_metrics(model: FaceModel, subject: Subject, state: SceneState, landmarks: Landmarks, run: "FitRun",
                  cameras: CameraKnowledge) -> dict[str, Any]:
    """Content of metrics.json. `state` is in pixels of the photos, on the CPU."""
    cpu = model.to("cpu") if model.device.type != "cpu" else model
    pixels, share = view_errors(cpu, state, landmarks)
    angles = yaw_pitch_roll(state.pose.rotation)
    distance = state.pose.centers().norm(dim=-1)
    focal_sigma = run.focal_uncertainty()
    sigma = run.sigma_photo()
    views = []
    for i, view in enumerate(subject.views):
        perspective = state.camera.kind == "perspective"
        views.append({
            "name": view.name,
            "reprojection_px": float(pixels[i]), "reprojection_share": float(share[i]),
            "landmarks": int(landmarks.valid[i].sum()), "landmark_sigma_px": float(sigma[i].median()),
            "yaw_pitch_roll_deg": [float(a) for a in angles[i]],
            "focal_px": float(state.camera.focal[i]), "focal_relative_sigma": focal_sigma[i],
            "distance_mm": float(distance[i]) if perspective else None,
            "camera_source": cameras.source[i],
        })
    identity, expression = state.identity[0], state.expression
    return {
        "model": model.name, "recipe": run.recipe.name, "num_views": len(views),
        "reprojection_px": float(pixels.nanmean()), "reprojection_share": float(share.nanmean()),
        "identity": {"beyond_3_sigma": float((identity.abs() > 3).float().mean()), "rms": float(identity.square().mean().sqrt()),
                     "largest": float(identity.abs().max())},
        "expression": {"beyond_3_sigma": float((expression.abs() > 3 * run.recipe.expression.sigma).float().mean()),
                       "largest": float(expression.abs().max())},
        "scale": {"metric": cameras.metric, "note": SCALE_METRIC if cameras.metric else SCALE_PRIOR},
        "jaw": run.jaw_rule, "crop_px": max(run.observations.size), "views": views, "stages": run.stages,
    }


def judge(metrics: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Verdict on a fit: status 'ok', 'doubtful' or 'failed', and one sentence for each reason."""
    reasons, failed = [], 0
    for view in metrics["views"]:
        share = view["reprojection_share"]
        if share != share:
            failed += 1
            reasons.append(f"view {view['name']} has no landmark inside the face, only on its outline; check its landmarks, or leave the photo out")
            continue
        if not share <= VIEW_DOUBTFUL:
            failed += not share <= VIEW_FAILED
            reasons.append(f"view {view['name']} does not fit its landmarks: they are off by {100 * share:.1f} % of the face size "
                           f"(expected at most {100 * VIEW_DOUBTFUL:.0f} %); check its landmarks, or leave the photo out")
        if view["distance_mm"] is not None and view["distance_mm"] < NEAREST_MM:
            reasons.append(f"view {view['name']}: the camera came out {view['distance_mm']:.0f} mm from the head; "
                           "give its focal length in cameras.json")
    for key, text in (("identity", "identity"), ("expression", "expression")):
        beyond = metrics[key]["beyond_3_sigma"]
        if beyond > BEYOND_3_SIGMA:
            reasons.append(f"{100 * beyond:.0f} % of the {text} coefficients lie beyond 3 sigma (expected at most "
                           f"{100 * BEYOND_3_SIGMA:.0f} %); the landmarks or the cameras may be wrong")
    if failed and failed * 2 >= len(metrics["views"]):
        return "failed", tuple(reasons)
    return ("doubtful" if reasons else "ok"), tuple(reasons)
