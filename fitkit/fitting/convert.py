"""The result of a fit with one face model as a result with another one."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from fitkit.errors import InputError, check_argument
from fitkit.fitting.findings import SEVERITIES, with_findings
from fitkit.fitting.metrics import (
    expression_report,
    identity_report,
    joints_report,
    part_shifts,
    view_errors,
)
from fitkit.fitting.report import BarsReport, ConversionReport, Finding, FitReport, TimeReport
from fitkit.fitting.result import FitResult
from fitkit.fitting.retarget import Expressions, Retargeted, retarget
from fitkit.models.correspondence import correspondence
from fitkit.models.face_model import FaceModel
from fitkit.scene.pose import yaw_pitch_roll

CONVERT = "convert"  # name of the recipe in a converted result
OF_MAPS = ("masks", "texture")  # what a recipe says of the maps holds for them in any layout
FAR_MM = 1.0  # mean distance of the surfaces from which on a converted face is doubtful


def convert(
    result: FitResult, model: FaceModel, expression: Expressions = "auto", detail: bool = True
) -> FitResult:
    """The face of a fit, or of a prediction, with another face model; the photos, cameras and landmarks stay.

    The identity is the one whose surface comes nearest to the neutral surface of the result, its displacement
    included, by the dense correspondence of the two models and under the prior of the new one.

    Args:
        model: the other face model.
        expression: 'names' carries weights of blend shapes over to those of the same name; 'surface' takes
            the coefficients whose surface moves as that of each photo, by least squares; 'auto' is by names
            where the other model has all shapes that are on. Joints always follow the surface.
        detail: what the shapes of the other model cannot show becomes the displacement of the result.
    Returns:
        a result whose report has the numbers that hold for the new face: reprojection, coefficients and error
        bars anew, without those of solver, flow and detail; the findings about the photos stay.
        `report.conversion` says how far apart the two surfaces are. Without a covariance of the identity.
    Raises:
        InputError: the result is one of this model already; the models cannot be laid onto each other;
            expressions by names where there are none.
    """
    check_argument("convert", result, FitResult, "a FitResult, e.g. from fitkit.fit or fitkit.load_result")
    check_argument("model", model, FaceModel, "a FaceModel, e.g. from fitkit.load_model")
    begun, source = (time.perf_counter(), time.process_time()), result.model
    model = model.to("cpu", torch.float32)
    if (source.name, source.mean.shape) == (model.name, model.mean.shape):
        raise InputError(
            f"convert: the face of {result.subject.name} is one of model '{model.name}' already; choose "
            "another model"
        )
    found = retarget(result.state, source, model, result.displacement, expression, detail)
    sigma = _carried_sigma(result, model, found)
    changed = replace(
        result,
        model=model,
        state=found.state,
        recipe={
            "name": CONVERT,
            "model": model.name,
            "expression": found.method,
            "detail": detail,
            **{key: result.recipe[key] for key in OF_MAPS if key in result.recipe},
            "of": result.recipe,
        },
        identity_covariance=None,
        vertex_sigma=sigma,
        displacement=found.displacement,
    )
    report = _measured(changed, result.report, _conversion(source, found))
    wall, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
    report = replace(report, time_s=TimeReport(round(wall, 3), round(wall, 3), round(cpu, 3)))
    said = [*result.report.verdict.findings, *_findings(report)]
    said.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return replace(changed, report=with_findings(report, said))


def _carried_sigma(result: FitResult, model: FaceModel, found: Retargeted) -> Tensor | None:
    """Error bars [V] mm of the new mesh: those of the old one at the same place, and how far the new one is
    from it, added in squares; where nothing corresponds, those of the nearest place."""
    if result.vertex_sigma is None:
        return None
    on = correspondence(result.model, model)
    sigma = on.carry(result.vertex_sigma, result.model)
    sigma = (sigma.square() + torch.nan_to_num(found.away).square()).sqrt()
    known = on.weight > 0
    nearest = cKDTree(model.mean[known].numpy()).query(model.mean.numpy())[1]
    return torch.where(known, sigma, sigma[known][torch.from_numpy(np.asarray(nearest))])


def _conversion(source: FaceModel, found: Retargeted) -> ConversionReport:
    return ConversionReport(
        source.name,
        found.method,
        found.neutral.mean,
        found.neutral.largest,
        found.views.mean,
        found.views.largest,
        found.coefficients.mean,
        found.coefficients.largest,
        found.left_out,
    )


def _measured(result: FitResult, before: FitReport, conversion: ConversionReport) -> FitReport:
    """The report of a converted result, yet with the verdict of the fit: what depends on the face model is
    measured anew, what tells of the fit's own solution is left out."""
    model, state = result.personal_model, result.state
    pixels, share = view_errors(model, state, result.landmarks)
    shifts = part_shifts(model, state, result.landmarks)
    angles, distance = yaw_pitch_roll(state.pose.rotation), state.pose.centers().norm(dim=-1)
    views = tuple(
        replace(
            view,
            reprojection_px=float(pixels[i]),
            reprojection_share=float(share[i]),
            part_shift_share=shifts[i],
            yaw_pitch_roll_deg=tuple(float(a) for a in angles[i]),
            distance_mm=float(distance[i]) if state.camera.kind == "perspective" else None,
            shape_shift=None,
            flow_sigma=None,
            flow_sigma_others=None,
        )
        for i, view in enumerate(before.views)
    )
    return replace(
        before,
        model=result.model.name,
        reprojection_px=float(pixels.nanmean()),
        reprojection_share=float(share.nanmean()),
        identity=identity_report(state.identity[0]),
        expression=expression_report(result.model, state.expression),
        joints=joints_report(result.model, state.joints),
        views=views,
        stages=(),
        detail=None,
        error_bars=_bars(result, before.error_bars),
        conversion=conversion,
    )


def _bars(result: FitResult, before: BarsReport | None) -> BarsReport | None:
    """What the report says about the error bars; how they were made is what it was."""
    if before is None or result.vertex_sigma is None:
        return None
    face = result.vertex_sigma[result.model.face]
    return replace(
        before,
        face_median_mm=float(face.median()),
        face_mean_mm=float(face.mean()),
        face_largest_mm=float(face.max()),
    )


def _findings(report: FitReport) -> list[Finding]:
    """What is to be known about the conversion."""
    c = report.conversion
    assert c is not None
    found = [
        Finding(
            "converted",
            "note",
            f"converted from face model '{c.source}': the neutral faces are {c.neutral_mean_mm:.2f} mm apart "
            f"in the mean, {c.coefficients_mean_mm:.2f} mm without displacement, those of the photos "
            f"{c.views_mean_mm:.2f} mm",
        )
    ]
    if c.left_out:
        found.append(
            Finding(
                "expressions_left_out",
                "note",
                f"face model '{report.model}' has no shapes of the names {', '.join(c.left_out)}, so they "
                "were left out; expressions by surface (--expression surface) come nearer",
            )
        )
    if not max(c.neutral_mean_mm, c.views_mean_mm) <= FAR_MM:
        found.append(
            Finding(
                "conversion_far",
                "doubtful",
                f"the face with model '{report.model}' is "
                f"{max(c.neutral_mean_mm, c.views_mean_mm):.1f} mm from that with '{c.source}' in the mean "
                f"(expected at most {FAR_MM:g} mm); look at the overlays",
            )
        )
    return found
