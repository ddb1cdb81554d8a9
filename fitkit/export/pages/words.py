"""What the numbers of a fit mean, in sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fitkit.fitting.findings import (
    LARGEST_SIGMA,
    NOISE_LARGE,
    OK_MM,
    OUT_OF_RANGE,
    PARALLAX_DEG,
    SEVERITIES,
    SINGLE_OK_MM,
    TWO_PEOPLE,
    VIEW_DOUBTFUL,
    WEIGHT_LEAST,
    WEIGHT_MOST,
)
from fitkit.fitting.report import FitReport


@dataclass(frozen=True)
class Fact:
    """One number of a fit. judgement: 'good', 'doubtful', 'failed', or 'note' where there is nothing to
    judge; title: what it is; value: with its unit; text: what it means."""

    judgement: str
    title: str
    value: str
    text: str


def facts(report: FitReport) -> list[Fact]:
    """The numbers that tell how far a fit can be relied on, the most telling first. What is doubtful is what
    the findings of its verdict say."""
    parts: tuple[Callable[[FitReport], Fact | None], ...] = (
        _expected,
        _error_bars,
        _photos,
        _landmarks,
        _agreement,
        _identity,
        _expression,
        _joints,
        _size,
        _detail,
        _conversion,
        _time,
    )
    return [fact for part in parts if (fact := part(report)) is not None]


def _judged(report: FitReport, codes: str, otherwise: str = "good") -> str:
    """The gravest severity of the findings with these codes; `otherwise`: nothing is wrong."""
    found = {f.severity for f in report.verdict.findings if f.code in codes.split()} - {"note"}
    return next((s for s in SEVERITIES if s in found), otherwise)


def _known(*numbers: float | None) -> bool:
    return all(n is not None and math.isfinite(n) for n in numbers)


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _share(share: float) -> str:
    return f"{_percent(share)} lie" if share else "none lies"


def _expected(report: FitReport) -> Fact:
    verdict, limit = report.verdict, SINGLE_OK_MM if report.num_views == 1 else OK_MM
    if verdict.expected_mm is None or verdict.upper_mm is None:
        return Fact(
            _judged(report, "expected_error not_computed", "note"),
            "Expected error",
            "not known",
            "Without error bars nothing can be said of how far this face lies from the true one.",
        )
    return Fact(
        _judged(report, "expected_error conversion_far"),
        "Expected error",
        f"{verdict.expected_mm:.1f} mm",
        f"The face without expression should lie {verdict.expected_mm:.1f} mm from the true face on average, "
        f"once both are laid onto each other; in 90 of 100 fits it is at most {verdict.upper_mm:.1f} mm. "
        f"Up to {limit:.1f} mm count as ok. An average face, fitted to nobody, is off by 1.1 to 2.2 mm.",
    )


def _error_bars(report: FitReport) -> Fact | None:
    bars = report.error_bars
    if bars is None or not _known(bars.face_median_mm):
        return None
    largest = ""
    if _known(bars.face_largest_mm):
        largest = f" The largest on the face is {bars.face_largest_mm:.1f} mm."
    return Fact(
        "note",
        "Error bars",
        f"{bars.face_median_mm:.2f} mm",
        "Standard deviation of the surface along its normal, median over the face: two thirds of the skin "
        f"should be this near to the true one.{largest} The colours of the 3D view show where the photos say "
        "little.",
    )


def _photos(report: FitReport) -> Fact:
    angle, count = report.parallax_deg, report.num_views
    judged = _judged(report, "little_parallax")
    if count == 1:
        return Fact(
            "note",
            "Photos",
            "1",
            "One photo does not show how deep a face is: profile, cheeks and forehead are mostly the guess "
            "of the face model. Photos from other sides help most.",
        )
    if angle is None:
        return Fact(judged, "Photos", f"{count}", "Their directions are not known.")
    enough = "enough to see its depth" if angle >= PARALLAX_DEG else "too little to see its depth"
    return Fact(
        judged,
        "Photos",
        f"{count}, up to {angle:.0f}° apart",
        f"The photos see the head from directions that are up to {angle:.0f}° apart, which is {enough} "
        f"(needed are {PARALLAX_DEG:.0f}°, and 30° or more are good).",
    )


def _landmarks(report: FitReport) -> Fact | None:
    if not _known(report.reprojection_px, report.reprojection_share):
        return None
    noise = max((v.landmark_sigma_share or 0.0 for v in report.views), default=0.0)
    scatter = ""
    if noise:
        scatter = (
            f" They scatter by {_percent(noise)} at most (usual: 1 to 3 %, doubtful above "
            f"{_percent(NOISE_LARGE, 0)})."
        )
    return Fact(
        _judged(
            report,
            "landmarks_off part_off no_inner_landmarks landmark_noise landmarks_doubted mask_hides_face",
        ),
        "Fit to the landmarks",
        f"{report.reprojection_px:.1f} px, {_percent(report.reprojection_share)}",
        f"So far the points of brows, nose, eyes and mouth lie from those found in the photos, on average, "
        f"in pixels and as a share of the face size. Detectors are off by 2 to 4 % themselves; above "
        f"{_percent(VIEW_DOUBTFUL, 0)} a photo is doubtful.{scatter}",
    )


def _agreement(report: FitReport) -> Fact | None:
    if report.num_views < 2:
        return None
    judged = _judged(report, "two_people view_disagrees views_disagree view_unmatched")
    shifts = [v.shape_shift for v in report.views if v.shape_shift is not None]
    people = report.two_people
    if not shifts and people is None:
        return None
    said = []
    if people is not None:
        odds = "far below" if people.log_odds < 0 else "below" if people.log_odds <= TWO_PEOPLE else "above"
        said.append(
            f"Two different people would explain the landmarks with log odds of {people.log_odds:.1f}, "
            f"{odds} the {TWO_PEOPLE:.1f} from which on that is likely."
        )
    if shifts:
        said.append(
            f"Leaving one photo out changes the shape at most {max(shifts):.1f} times as much as the noise "
            "of its landmarks would; 0.4 to 1.9 is usual for one person."
        )
    return Fact(judged, "Do the photos agree?", "yes" if judged == "good" else "not wholly", " ".join(said))


def _identity(report: FitReport) -> Fact | None:
    identity = report.identity
    if not _known(identity.rms):
        return None
    return Fact(
        _judged(report, "identity_beyond_3_sigma identity_extreme identity_jump"),
        "How usual is the face?",
        f"{identity.rms:.2f} sigma",
        f"Root mean square of the identity coefficients: about 1 is a face as people have, 0 the average "
        f"face. The largest is {identity.largest:.1f} (suspicious above {LARGEST_SIGMA:.0f}), and "
        f"{_share(identity.beyond_3_sigma)} beyond 3.",
    )


def _expression(report: FitReport) -> Fact | None:
    found = report.expression
    if not _known(found.largest):
        return None
    judged = _judged(report, "expression_out_of_range expression_beyond_3_sigma expression_extreme")
    if found.beyond_3_sigma is not None:
        return Fact(
            judged,
            "Expressions",
            f"up to {found.largest:.1f} sigma",
            f"The strongest expression shape of all photos, in standard deviations, and "
            f"{_share(found.beyond_3_sigma)} beyond 3.",
        )
    return Fact(
        judged,
        "Expressions",
        f"up to {found.largest:.2f}",
        f"The strongest expression shape of all photos; they are made for weights from 0 to 1, and "
        f"{_share(found.out_of_range)} outside of {WEIGHT_LEAST} to {WEIGHT_MOST} (expected: at most "
        f"{_percent(OUT_OF_RANGE, 0)}).",
    )


def _joints(report: FitReport) -> Fact | None:
    joints = report.joints
    if joints is None:
        return None
    return Fact(
        _judged(report, "joint_extreme"),
        "Joints",
        f"{joints.degrees:.0f}°",
        f"The joint that is turned farthest, {joints.joint}, by {joints.largest:.1f} standard deviations.",
    )


def _size(report: FitReport) -> Fact | None:
    scale = report.scale
    if not scale.note:
        return None
    return Fact(
        _judged(report, "camera_contradicts camera_near", "good" if scale.metric else "note"),
        "Size of the head",
        "measured" if scale.metric else "assumed",
        scale.note[:1].upper() + scale.note[1:] + ".",
    )


def _detail(report: FitReport) -> Fact | None:
    detail = report.detail
    if detail is None:
        return None
    if not detail.sigma_mm:
        why = "One photo has none" if report.num_views < 2 else "The matches between the photos show none"
        return Fact("note", "Detail", "none", f"{why}: the face lies within what the face model can show.")
    return Fact(
        "note",
        "Detail",
        f"{detail.mean_mm:.2f} mm",
        f"Mean displacement of the skin beyond what the face model can show, from {detail.matches} matches "
        f"between the photos; 95 % of it is below {detail.percentile_95_mm:.2f} mm.",
    )


def _conversion(report: FitReport) -> Fact | None:
    found = report.conversion
    if found is None:
        return None
    return Fact(
        _judged(report, "conversion_far"),
        "Converted",
        f"{found.neutral_mean_mm:.2f} mm",
        f"Mean distance of this face from that of the fit, which was made with the face model "
        f"{found.source}; {found.neutral_largest_mm:.1f} mm at most.",
    )


def _time(report: FitReport) -> Fact | None:
    if not _known(report.time_s.solve):
        return None
    source = report.start.source
    begun = {"regressor": "what a network saw in the photos", "landmarks": "the average face"}
    return Fact(
        "note",
        "Time",
        f"{report.time_s.solve:.1f} s",
        f"Of the solver, {report.start.iterations} steps from {begun.get(source, source)} on.",
    )


def doubted_views(report: FitReport) -> dict[str, str]:
    """Name of a view -> the gravest severity of the findings about it."""
    found: dict[str, str] = {}
    for finding in report.verdict.findings:
        if finding.view is not None:
            found[finding.view] = _gravest((finding.severity, found.get(finding.view, "note")))
    return found


def _gravest(severities: Iterable[str]) -> str:
    return min(severities, key=SEVERITIES.index)
