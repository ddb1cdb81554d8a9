"""The numbers of a finished fit: how well it fits its landmarks, what it came to, whether its photos
agree."""

from __future__ import annotations

import torch
from torch import Tensor

from fitkit.errors import attempt
from fitkit.fitting.detail import personal_model
from fitkit.fitting.findings import PARTS, WEIGHT_LEAST, WEIGHT_MOST
from fitkit.fitting.noise import face_size
from fitkit.fitting.report import (
    ExpressionReport,
    FitReport,
    IdentityReport,
    JointsReport,
    ScaleReport,
    StartReport,
    TwoPeopleReport,
    ViewReport,
)
from fitkit.fitting.rig import unit_at
from fitkit.fitting.solution import Solution
from fitkit.fitting.uncertainty import ErrorBars, error_bars, focal_uncertainty, summary
from fitkit.fitting.view_consistency import TwoPeople, ViewAgreement, parallax, two_people, view_agreement
from fitkit.io.subject import Subject
from fitkit.models.face_model import FaceModel
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.pose import yaw_pitch_roll
from fitkit.scene.projection import project_points
from fitkit.scene.state import SceneState

SCALE_METRIC = "the positions of the cameras are known, so sizes are metric"
SCALE_PRIOR = (
    "no camera positions were given: sizes are metric only as far as this person's head is of the size the "
    "face model expects, and focal length and distance are known only up to a common factor"
)
SCALE_RIG = (
    "the positions of the cameras are in an unknown unit: sizes are those that the face model expects, not "
    "measured"
)


def _scale(solution: Solution, subject: Subject) -> ScaleReport:
    if solution.cameras.unit_mm is not None:
        return ScaleReport(False, SCALE_RIG, unit_at(subject.views, solution.state.pose))
    return ScaleReport(solution.cameras.metric, SCALE_METRIC if solution.cameras.metric else SCALE_PRIOR)


def _beyond_3_sigma(sigmas: Tensor) -> float:
    return float((sigmas.abs() > 3).float().mean())


def identity_report(identity: Tensor) -> IdentityReport:
    """How unusual identity coefficients [K_id] are."""
    return IdentityReport(
        _beyond_3_sigma(identity), float(identity.square().mean().sqrt()), float(identity.abs().max())
    )


def expression_report(model: FaceModel, expression: Tensor) -> ExpressionReport:
    """How unusual the expressions [B, K_ex] are for what the model's coefficients mean."""
    meaning = model.coefficients["expression"]
    sigmas = meaning.in_sigmas(expression)
    largest = float(sigmas.abs().max())
    if meaning.kind == "gaussian":
        return ExpressionReport(largest=largest, beyond_3_sigma=_beyond_3_sigma(sigmas))
    outside = (expression < WEIGHT_LEAST) | (expression > WEIGHT_MOST)
    return ExpressionReport(float(outside.float().mean()), largest)


def joints_report(model: FaceModel, joints: Tensor | None) -> JointsReport | None:
    """How unusual rotation vectors [B, J, 3] are for the model, None without any."""
    if joints is None:
        return None
    meaning = model.coefficients["joints"]
    sigmas = meaning.in_sigmas(joints.flatten(1)).abs().reshape(joints.shape).amax(2)  # [B, J]
    view, joint = divmod(int(sigmas.argmax()), sigmas.shape[1])
    degrees = float(torch.rad2deg(joints[view, joint].norm()))
    name = meaning.names[3 * joint].removesuffix("_x")
    return JointsReport(name, float(sigmas.max()), degrees)


def view_errors(model: FaceModel, state: SceneState, landmarks: Landmarks) -> tuple[Tensor, Tensor]:
    """Reprojection error of the 51 inner points per view: mean px [B] of the photos, and as a share of the
    face size [B].

    The face size is the square root of the area of the landmark box; NaN for a view without valid inner
    points.
    """
    points = project_points(model.landmark_basis, state).pixels
    distance = (points - landmarks.points).norm(dim=-1)
    inner = landmarks.valid.clone()
    inner[:, :17] = False
    mean = torch.where(inner, distance, torch.zeros_like(distance)).sum(1) / inner.sum(1)
    return mean, mean / face_size(landmarks)


def part_shifts(model: FaceModel, state: SceneState, landmarks: Landmarks) -> list[dict[str, float]]:
    """How far each part of the face lies from its landmarks as a whole: mean vector over its points, by view,
    as a share of the face size.

    The noise of single points cancels in it; a part in the wrong place does not. Parts with fewer than half
    of their points are left out.
    """
    away = project_points(model.landmark_basis, state).pixels - landmarks.points
    out = []
    for v, size in enumerate(face_size(landmarks)):
        parts = {name: away[v, a:b][landmarks.valid[v, a:b]] for name, (a, b, _) in PARTS.items()}
        out.append(
            {
                name: float(d.mean(0).norm() / size)
                for name, d in parts.items()
                if 2 * len(d) >= PARTS[name][1] - PARTS[name][0]
            }
        )
    return out


def masked_landmarks(subject: Subject, landmarks: Landmarks) -> list[float | None]:
    """Share of the inner landmarks of each view that its mask hides; None without a mask or inner
    landmarks."""
    out: list[float | None] = []
    for view, points, valid in zip(subject.views, landmarks.points, landmarks.valid):
        mask, inner = view.mask, points[17:][valid[17:]].round().long().numpy()
        if mask is None or not len(inner):
            out.append(None)
            continue
        x, y = inner[:, 0].clip(0, mask.shape[1] - 1), inner[:, 1].clip(0, mask.shape[0] - 1)
        out.append(1 - float(mask[y, x].mean()))
    return out


def fit_report(
    solution: Solution,
    model: FaceModel,
    subject: Subject,
    state: SceneState,
    landmarks: Landmarks,
    recipe: str,
) -> tuple[FitReport, ErrorBars | None]:
    """All that a solution tells, and its error bars; what was noted on the way to it and the times are the
    caller's to add.

    Args:
        model: that of the solution, state: its state in px of the photos, both on the CPU; landmarks: what
            was fitted, in px of the
        photos; recipe: its name.
    """
    failures: list[str] = []
    detail = solution.detail
    plain, model = model, model if detail is None else personal_model(model, state, detail.displacement)
    views = _views(solution, model, subject, state, landmarks, failures)
    people = None
    if solution.shape is not None:
        shape = solution.shape
        people = attempt("whether the photos show one person", lambda: two_people(*shape), None, failures)
    bars = None
    if solution.shape is not None:
        shape, known = solution.shape, None if detail is None else detail.known
        bars = attempt(
            "the error bars", lambda: error_bars(*shape, solution.model, known=known), None, failures
        )
    pixels, share = view_errors(model, state, landmarks)
    report = FitReport(
        model=model.name,
        recipe=recipe,
        num_views=len(views),
        parallax_deg=max((p[0] for p in parallax(state)), default=None),
        reprojection_px=float(pixels.nanmean()),
        reprojection_share=float(share.nanmean()),
        identity=identity_report(state.identity[0]),
        expression=expression_report(model, state.expression),
        scale=_scale(solution, subject),
        two_people=_named(people, subject),
        jaw=solution.jaw_rule,
        crop_px=max(solution.observations.size),
        views=views,
        stages=solution.stages,
        start=StartReport(solution.start, iterations=solution.iterations),
        error_bars=summary(bars, plain, len(views)),
        detail=None if detail is None else detail.report,
        joints=joints_report(model, state.joints),
        not_computed=tuple(failures),
    )
    return report, bars


def _named(people: TwoPeople | None, subject: Subject) -> TwoPeopleReport | None:
    if people is None:
        return None
    names = tuple(subject.views[i].name for i in people.group)
    return TwoPeopleReport(names, people.log_odds, people.apart)


def _views(
    solution: Solution,
    model: FaceModel,
    subject: Subject,
    state: SceneState,
    landmarks: Landmarks,
    failures: list[str],
) -> tuple[ViewReport, ...]:
    pixels, share = view_errors(model, state, landmarks)
    shifts, masked = part_shifts(model, state, landmarks), masked_landmarks(subject, landmarks)
    angles, distance = yaw_pitch_roll(state.pose.rotation), state.pose.centers().norm(dim=-1)
    focal_sigma: list[float | None] = [None] * len(subject.views)
    if solution.last is not None:
        last = solution.last
        focal_sigma = attempt(
            "how well the focal lengths are known", lambda: focal_uncertainty(*last), focal_sigma, failures
        )
    agreement = [ViewAgreement(None, None, None)] * len(subject.views)
    if solution.shape is not None:
        shape = solution.shape
        agreement = attempt("whether the photos agree", lambda: view_agreement(*shape), agreement, failures)
    sigma, doubts = solution.sigma_photo(), dict(landmarks.doubts)
    perspective = state.camera.kind == "perspective"
    return tuple(
        ViewReport(
            name=view.name,
            reprojection_px=float(pixels[i]),
            reprojection_share=float(share[i]),
            part_shift_share=shifts[i],
            masked_share=masked[i],
            landmarks=int(landmarks.valid[i].sum()),
            landmark_sigma_px=float(sigma[i].median()),
            landmark_sigma_share=float(sigma[i].median() * share[i] / pixels[i]),
            shape_shift=agreement[i].shift,
            flow_sigma=agreement[i].flow,
            flow_sigma_others=agreement[i].flow_others,
            yaw_pitch_roll_deg=tuple(float(a) for a in angles[i]),
            focal_px=float(state.camera.focal[i]),
            focal_relative_sigma=focal_sigma[i],
            stretch=float(state.camera.aspect[i] / solution.cameras.aspect_mean[i]),
            distance_mm=float(distance[i]) if perspective else None,
            camera_source=solution.cameras.source[i],
            landmark_doubt=doubts.get(view.name, ""),
        )
        for i, view in enumerate(subject.views)
    )
