"""What the numbers of a fit say about it: findings, expected error, status.

How UPPER and the calibration of a model are measured: `models/calibration.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Literal

from fitkit.errors import attempt
from fitkit.fitting.report import Finding, FitReport, Verdict, ViewReport
from fitkit.models.calibration import default_calibration

# Thresholds of the verdict. A landmark detector is off by 2 to 4 % of the face size; a wrong pose by more
# than 10 %.
VIEW_DOUBTFUL, VIEW_FAILED = 0.06, 0.12
# People outside of the model, five photos: up to 0.1, with no larger error than the others.
BEYOND_3_SIGMA = 0.12
# A grimace uses a tenth of the blend shapes in full, never beyond.
WEIGHT_LEAST, WEIGHT_MOST, OUT_OF_RANGE = (-0.3, 1.2, 0.02)
NEAREST_MM = 150.0
STRETCHED = 0.05  # log units
MASKED = 0.5  # share of the inner landmarks; a hand or hair hides fewer
# A view that speaks for another face, by `ViewAgreement`. One person: largest shift of a set of four casual
# photos 1.4 in the median, 2.6 at most in 95 of 100 sets; another person among four good views of synthetic
# points: 1.5 to 1.8 (1.7 to 2.2 times that of the others).
SHIFT_SURE, SHIFT_LARGE, SHIFT_TIMES = 2.8, 1.4, 1.78
# Residual of its matches over that of the others, which counts as FLOW_USUAL at least.
FLOW_RATIO, FLOW_USUAL = (1.3, 0.3)
# In stated standard deviations: matches between photos of one instant 0.5 to 1.1, of other instants 1.0 to
# 4.3, with a mirrored photo 4.9.
FLOW_INSTANT, FLOW_LARGE = 1.2, 3.0
# Log odds, see `two_people`; one person in casual real photos: at most 4.3 in 35 of 36 sets of four.
TWO_PEOPLE = 4.5
TURNED_DEG = 60.0  # photos that differ by more yaw may have no match, whatever they show
NOISE_LARGE = 0.04  # landmark noise over the face size
# Points of the parts, first and last + 1, and how far a part may be off over the face size: a third more than
# in 200 views of good fits.
PARTS = {"brows": (17, 27, 0.05), "nose": (27, 36, 0.045), "eyes": (36, 48, 0.03), "mouth": (48, 68, 0.04)}
PARALLAX_DEG = 10.0
LARGEST_SIGMA = 7.0
JUMP_SIGMA = 2.2

# Expected error, see `expected_error`. Limits of the status, mm; the mean face of a model, fitted to nobody,
# is off by 1.1 to 2.2 mm.
OK_MM, SINGLE_OK_MM, FAILED_MM = 1.5, 2.0, 3.0
MEAN_OF_SIGMA = 0.8  # mean absolute value of a Gaussian, sqrt(2 / pi)
UPPER = 1.4  # 90 % of true over expected error

# true error of the network that comes with fitkit; what it says itself of its error tells nothing about it
SHIPPED_ERROR_MM = 1.5

SEVERITIES = ("failed", "doubtful", "note")  # a note says what is worth knowing, but not wrong


def findings(report: FitReport) -> list[Finding]:
    """Everything that is remarkable about a fit, what is wrong first."""
    found = []
    for view in report.views:
        share = view.reprojection_share
        if view.landmark_doubt:
            found.append(Finding("landmarks_doubted", "doubtful", view.landmark_doubt, view.name))
        if share != share:
            found.append(
                Finding(
                    "no_inner_landmarks",
                    "failed",
                    f"view {view.name} has no landmark inside the face, "
                    "only on its outline; check its landmarks, or leave the photo out",
                    view.name,
                )
            )
            continue
        if not share <= VIEW_DOUBTFUL:
            found.append(
                Finding(
                    "landmarks_off",
                    "doubtful" if share <= VIEW_FAILED else "failed",
                    f"view {view.name} does not fit its landmarks: they are off by {100 * share:.1f} % of "
                    f"the face size (expected at most {100 * VIEW_DOUBTFUL:.0f} %); check its landmarks, or "
                    "leave the photo out",
                    view.name,
                )
            )
        else:
            found += _part_off(view)
        masked = view.masked_share or 0.0
        if masked > MASKED:
            found.append(
                Finding(
                    "mask_hides_face",
                    "doubtful",
                    f"view {view.name}: its mask hides "
                    f"{100 * masked:.0f} % of the landmarks inside the face; it must be white where the "
                    "photo can be used, so invert or remove it",
                    view.name,
                )
            )
        if view.distance_mm is not None and view.distance_mm < NEAREST_MM:
            found.append(
                Finding(
                    "camera_near",
                    "doubtful",
                    f"view {view.name}: the camera came out {view.distance_mm:.0f} mm "
                    "from the head; give its focal length in cameras.json",
                    view.name,
                )
            )
    found += _stretched(report.views)
    found += [
        Finding("camera_contradicts", "doubtful", c.message, c.view) for c in report.camera_contradictions
    ]
    found += _two_people(report)
    named = {f.view for f in found}
    found += [f for f in _disagreement(report.views) if f.view is None or f.view not in named]
    found += (
        _landmark_noise(report.views) + _parallax(report) + _coefficients(report) + _expected_large(report)
    )
    found += [
        Finding("not_computed", "doubtful", f"{line}; look at the overlays") for line in report.not_computed
    ]
    found += [_note(line) for line in report.notes]
    return sorted(found, key=lambda f: SEVERITIES.index(f.severity))


def _stretched(views: Sequence[ViewReport]) -> list[Finding]:
    found = []
    for view in views:
        if view.stretch > 0 and abs(math.log(view.stretch)) > STRETCHED:
            side, times = ("height", view.stretch) if view.stretch > 1 else ("width", 1 / view.stretch)
            message = (
                f"view {view.name} looks stretched in {side} by about {100 * (times - 1):.0f} % beside the "
                "other photos, as the frames of some films are; the fit takes that much out"
            )
            found.append(Finding("stretched", "note", message, view.name))
    return found


def _note(line: str) -> Finding:
    """What the reading of the photos, the detector or a layer of the fit has to say."""
    return Finding("left_out" if line.startswith("left out:") else "note", "note", line)


def _part_off(view: ViewReport) -> list[Finding]:
    """The part of the face that lies too far from its landmarks as a whole, where the whole face lies well;
    of several the worst."""
    over = {name: share / PARTS[name][2] for name, share in view.part_shift_share.items()}
    name = max(over, key=over.__getitem__, default=None)
    if name is None or over[name] <= 1:
        return []
    share, one = view.part_shift_share[name], name in ("nose", "mouth")
    return [
        Finding(
            "part_off",
            "doubtful",
            f"view {view.name}: the {name} {'lies' if one else 'lie'} "
            f"{share * view.reprojection_px / view.reprojection_share:.0f} px, {100 * share:.1f} % of the "
            f"face size, from {'its' if one else 'their'} landmarks (expected at most "
            f"{100 * PARTS[name][2]:.1f} %); look at its overlay, and check its landmarks",
            view.name,
        )
    ]


def _two_people(report: FitReport) -> list[Finding]:
    """Two groups of photos that show two people rather than one."""
    people = report.two_people
    if people is None or not (people.matched_apart or people.log_odds > TWO_PEOPLE):
        return []
    one = people.views
    other = [v.name for v in report.views if v.name not in one]
    why = (
        "photos match within these groups, but not across, and their landmarks fit two faces"
        if people.matched_apart
        else "their landmarks fit two faces far better than one"
    )
    placed = report.scale.metric or report.scale.unit_mm is not None
    return [
        Finding(
            "two_people",
            "doubtful",
            f"{_listed(one)} may show another person than {_listed(other)}: {why}; check the photos"
            f"{' and the R and t of their cameras' if placed else ''}, and fit each person "
            "alone",
        )
    ]


def _listed(names: Sequence[str]) -> str:
    return (
        ("view " if len(names) == 1 else "views ")
        + ", ".join(names[:4])
        + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    )


def _expected_large(report: FitReport) -> list[Finding]:
    """An expected error that is too large to rely on the face."""
    expected, limit = (
        (expected_error(report) or (0.0, 0.0))[0],
        SINGLE_OK_MM if len(report.views) == 1 else OK_MM,
    )
    if expected <= limit:
        return []
    return [
        Finding(
            "expected_error",
            "failed" if expected > FAILED_MM else "doubtful",
            f"the face is expected to be off by {expected:.2f} mm "
            f"on average (for ok: at most {limit:.2f} mm); add photos, sharp ones and from other sides",
        )
    ]


def _disagreement(views: Sequence[ViewReport]) -> list[Finding]:
    """The view whose landmarks and matches speak most for another face than those of the others, if it is far
    off; else one that matches none of the others, although these match each other."""
    moved = [v.shape_shift or 0.0 for v in views]
    if len(views) < 2:
        return []
    if len(views) == 2:  # neither can be told from the other
        return (
            []
            if min(moved) <= SHIFT_SURE
            else [
                Finding(
                    "views_disagree",
                    "doubtful",
                    f"views {views[0].name} and {views[1].name} do not agree on the shape; "
                    "do they show one person? check the photos and their landmarks",
                )
            ]
        )
    i = max(range(len(views)), key=moved.__getitem__)
    view, mine, others = views[i], views[i].flow_sigma, views[i].flow_sigma_others
    times = moved[i] / max(median(moved[:i] + moved[i + 1 :]), 1e-6)
    flow = 0.0 if mine is None or others is None else mine / max(others, FLOW_USUAL)
    matched = mine is not None and flow <= FLOW_RATIO and mine <= FLOW_LARGE
    if not (
        moved[i] > SHIFT_SURE
        or (moved[i] > SHIFT_LARGE and not matched and (times > SHIFT_TIMES or flow > FLOW_RATIO))
    ):
        return _unmatched(views)
    far = f"; its matches are off {flow:.1f} times as far as those of the others" if flow > FLOW_RATIO else ""
    # Photos that are matched densely show one person at one moment: then it is the landmarks that are wrong.
    advice = (
        "the photos themselves match, so its landmarks may be off, as on an open mouth or a turned head; "
        "check them"
        if matched
        else "is it the same person? check the photo and its landmarks, or leave it out"
    )
    return [
        Finding(
            "view_disagrees",
            "doubtful",
            f"view {view.name} does not agree with the others: leaving out its "
            f"landmarks changes the shape {moved[i]:.1f} times as much as their noise would{far}; {advice}",
            view.name,
        )
    ]


def _unmatched(views: Sequence[ViewReport]) -> list[Finding]:
    """The one view that has no match with the others, or wrong ones, while these match as photos of one
    instant do."""
    bad = [v for v in views if v.flow_sigma is None or v.flow_sigma > FLOW_LARGE]
    rest = [v for v in views if v not in bad]
    if (
        len(bad) != 1
        or bad[0].flow_sigma_others is None
        or max(v.flow_sigma or 0.0 for v in rest) > FLOW_INSTANT
    ):
        return []
    if min(abs(v.yaw_pitch_roll_deg[0] - bad[0].yaw_pitch_roll_deg[0]) for v in rest) > TURNED_DEG:
        return []
    return [
        Finding(
            "view_unmatched",
            "doubtful",
            f"view {bad[0].name} does not match the others, although these match each other: was it taken "
            "at another time, is it blurred, mirrored, or of another person? if so, leave it out",
            bad[0].name,
        )
    ]


def _landmark_noise(views: Sequence[ViewReport]) -> list[Finding]:
    """Landmarks that scatter more than those of a detector that found the face."""
    loud = [v for v in views if (v.landmark_sigma_share or 0) > NOISE_LARGE]
    if not loud:
        return []
    worst = max(v.landmark_sigma_share or 0.0 for v in loud)
    where = f"view {loud[0].name}" if len(loud) == 1 else f"{len(loud)} of {len(views)} views"
    return [
        Finding(
            "landmark_noise",
            "doubtful",
            f"the landmarks of {where} scatter by {100 * worst:.1f} % of the face size "
            "(usual: 1 to 3 %); check them",
            loud[0].name if len(loud) == 1 else None,
        )
    ]


def _parallax(report: FitReport) -> list[Finding]:
    """Views from nearly one direction; a single view is only noted, since everybody knows that it is one."""
    if len(report.views) == 1:
        return [
            Finding(
                "single_view",
                "note",
                "one photo tells neither the depth of the profile nor the size of the head and shows little "
                "of the forehead and the cheeks, so there the face is the model's guess; add photos from "
                "the sides",
            )
        ]
    angle = report.parallax_deg
    if angle is None or angle >= PARALLAX_DEG:
        return []
    return [
        Finding(
            "little_parallax",
            "doubtful",
            f"too little parallax: the views are at most {angle:.1f} degrees apart "
            f"(expected at least {PARALLAX_DEG:.0f}), so they show depth hardly better than one photo; add "
            "photos from the sides",
        )
    ]


def _coefficients(report: FitReport) -> list[Finding]:
    """Coefficients that hardly any person has, and a shape that a late stage has turned into another."""
    outside, beyond = report.expression.out_of_range, report.expression.beyond_3_sigma
    found = _beyond("identity", report.identity.beyond_3_sigma)
    if outside > OUT_OF_RANGE:
        found.append(
            Finding(
                "expression_out_of_range",
                "doubtful",
                f"{100 * outside:.0f} % of the expression weights lie outside of "
                f"{WEIGHT_LEAST} to {WEIGHT_MOST} (expected at most {100 * OUT_OF_RANGE:.0f} %, weights are "
                "made for 0 to 1); the landmarks or the cameras may be wrong",
            )
        )
    found += _extreme("identity", report.identity.largest)
    if beyond is not None:  # Gaussian coefficients
        found += _beyond("expression", beyond) + _extreme("expression", report.expression.largest)
    joints = report.joints
    if joints is not None and joints.largest > LARGEST_SIGMA:
        found.append(
            Finding(
                "joint_extreme",
                "doubtful",
                f"joint '{joints.joint}' is turned by {joints.degrees:.0f} degrees, {joints.largest:.1f} "
                f"sigma (expected at most {LARGEST_SIGMA:.0f}); the landmarks or the cameras may be wrong",
            )
        )
    for stage in report.stages:
        change = stage.identity_change
        if change is not None and change > JUMP_SIGMA:
            found.append(
                Finding(
                    "identity_jump",
                    "doubtful",
                    f"stage '{stage.name}' moved the identity coefficients by "
                    f"{change:.1f} sigma (root mean square; expected at most {JUMP_SIGMA:.1f}): "
                    "the photos speak against the landmarks",
                )
            )
    return found


def _beyond(block: str, share: float) -> list[Finding]:
    """Too many Gaussian coefficients far from 0."""
    if share <= BEYOND_3_SIGMA:
        return []
    return [
        Finding(
            f"{block}_beyond_3_sigma",
            "doubtful",
            f"{100 * share:.0f} % of the {block} coefficients lie beyond 3 sigma "
            f"(expected at most {100 * BEYOND_3_SIGMA:.0f} %); the landmarks or the cameras may be wrong",
        )
    ]


def _extreme(block: str, largest: float) -> list[Finding]:
    """A Gaussian coefficient that nobody has."""
    if not largest > LARGEST_SIGMA:
        return []
    return [
        Finding(
            f"{block}_extreme",
            "doubtful",
            f"an {block} coefficient lies at {largest:.1f} sigma (expected at most "
            f"{LARGEST_SIGMA:.0f}); the landmarks or the cameras may be wrong",
        )
    ]


def expected_error(report: FitReport) -> tuple[float, float] | None:
    """Expected mean distance of the fitted neutral face from the true one after a similarity, and the bound
    that it keeps in 90 of 100 fits, mm; None where nothing is known.

    expected = `true_over_bars` of the model's calibration * 0.8 * mean of the error bars over the face; bound
    = UPPER * expected. Without error bars: the typical error of a network, where it is known.
    Findings cost nothing beyond: a fault widens the error bars itself (noise is measured, photos that do not
    match do not count), and fits with one are off by 0.8 to 1.1 times the expected error, those with wrong
    landmarks or another person in one photo too.
    """
    bars, expected = report.error_bars, report.typical_error_mm
    if bars is not None and bars.face_mean_mm is not None:
        # reports of older fits do not hold it
        ratio = bars.true_over_bars or default_calibration(report.model).true_over_bars(len(report.views))
        expected = ratio * MEAN_OF_SIGMA * bars.face_mean_mm
    return None if expected is None else (expected, UPPER * expected)


def judge(report: FitReport) -> FitReport:
    """The report with its status and its verdict. Cannot fail: a fit that cannot be judged is doubtful.

    ok: nothing is wrong, and the expected error is at most OK_MM; of a single photo at most SINGLE_OK_MM.
    Nearly every single photo has an expected error of about 1.5 mm, which is no fault of it or of its fit:
    'doubtful' for all would say nothing. So 'ok' promises what one photo can give; the expected error says
    that this is little, and a note what it lacks.
    doubtful: a finding, or a larger expected error. failed: half of the views or more have failed, or the
    expected error is above FAILED_MM: then even the mean face would be nearer to this person.
    """
    failures: list[str] = []
    judged = attempt("the verdict", lambda: with_findings(report, findings(report)), None, failures)
    if judged is not None:
        return judged
    finding = Finding("not_computed", "doubtful", f"{failures[0]}; look at the overlays")
    return replace(report, status="doubtful", verdict=Verdict(findings=(finding,)))


def with_findings(report: FitReport, found: Sequence[Finding]) -> FitReport:
    """The report with the status and the verdict that these findings make."""
    expected, upper = expected_error(report) or (None, None)
    verdict = Verdict(_summary(report, found), expected, upper, tuple(found))
    return replace(report, status=_status(report, found), verdict=verdict)


def _status(report: FitReport, found: Sequence[Finding]) -> Literal["ok", "doubtful", "failed"]:
    failed = [f.code == "expected_error" for f in found if f.severity == "failed"]
    if failed and (any(failed) or len(failed) * 2 >= len(report.views)):
        return "failed"
    return "doubtful" if any(f.severity != "note" for f in found) else "ok"


def _summary(report: FitReport, found: Sequence[Finding]) -> str:
    """One line for people."""
    views, angle, bars = len(report.views), report.parallax_deg, report.error_bars
    line = (
        "1 view"
        if views == 1
        else f"{views} views" + (f" up to {angle:.0f} degrees apart" if angle is not None else "")
    )
    if bars is not None:
        line += f"; error bars {bars.face_median_mm:.2f} mm (1 sigma, median over the face)"
    names = list(
        dict.fromkeys(
            f.code.replace("_", " ") + (f" ({f.view})" if f.view else "")
            for f in found
            if f.severity != "note"
        )
    )
    return line + "; " + (", ".join(names) if names else "no remarks")
