import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.errors import InputError
from fitkit.fitting import findings as said
from fitkit.fitting.findings import UPPER
from fitkit.fitting.metrics import masked_landmarks, part_shifts, view_errors
from fitkit.fitting.report import FitReport, Verdict, notes, status_line
from fitkit.io.subject import Subject, View
from fitkit.observe.landmarks.types import Landmarks


def metrics(shares=(0.02, 0.03, 0.02), distances=(900.0, 900.0, 900.0), identity=0.0, expression=0.0):
    return {
        "views": [
            {"name": f"v{i}", "reprojection_share": s, "distance_mm": d}
            for i, (s, d) in enumerate(zip(shares, distances))
        ],
        "identity": {"beyond_3_sigma": identity},
        "expression": {"out_of_range": expression},
    }


def judge(table):
    report = said.judge(FitReport.from_metrics(table))
    return report.status, report.warnings


def findings(table):
    return said.findings(FitReport.from_metrics(table))


def verdict(table):
    return said.judge(FitReport.from_metrics(table)).to_metrics()["verdict"]


def expected_error(table):
    return said.expected_error(FitReport.from_metrics(table))


def test_good_fit():
    assert judge(metrics()) == ("ok", ())
    assert judge(metrics(distances=(None, None, None))) == ("ok", ())  # scaled orthographic: no distance


def test_one_view_that_does_not_fit():
    status, reasons = judge(metrics(shares=(0.02, 0.075, 0.02)))
    assert status == "doubtful"
    assert reasons == (
        "view v1 does not fit its landmarks: they are off by 7.5 % of the face size (expected at most 6 %); "
        "check its landmarks, or leave the photo out",
    )
    assert judge(metrics(shares=(0.02, 0.5, 0.02)))[0] == "doubtful"  # one of three


@pytest.mark.parametrize(
    "shares,status",
    [
        ((0.2, 0.3, 0.02), "failed"),
        ((0.2,), "failed"),
        ((0.2, 0.02), "failed"),
        ((0.1,), "doubtful"),
        ((0.06,), "ok"),
        ((float("nan"),), "failed"),
        ((float("nan"), 0.02, 0.02), "doubtful"),
    ],
)
def test_failed_when_half_of_the_views_are_far_off(shares, status):
    got, reasons = judge(metrics(shares=shares))
    assert got == status and len(reasons) == sum(not s <= 0.06 for s in shares)


def test_camera_in_the_face():
    status, reasons = judge(metrics(distances=(900.0, 120.0, None)))
    assert status == "doubtful"
    assert reasons == (
        "view v1: the camera came out 120 mm from the head; give its focal length in cameras.json",
    )


def test_a_mask_that_hides_the_face():
    base = metrics()
    for view, share in zip(base["views"], (1.0, 0.4, None)):
        view["masked_share"] = share
    status, reasons = judge(base)
    assert status == "doubtful"
    assert reasons == (
        "view v0: its mask hides 100 % of the landmarks inside the face; it must be white where the photo "
        "can be used, so invert or remove it",
    )


def test_masked_landmarks():
    points = torch.full((3, 68, 2), 5.0)
    points[:, 17:43, 0] = 15.2  # 26 of the 51 inside the face
    points[1, 67] = torch.nan
    marks = Landmarks(points, points[..., 0], torch.isfinite(points[..., 0]), torch.ones(3, 68), "auto")
    image, mask = np.zeros((32, 40, 3), np.uint8), np.ones((32, 40), bool)
    mask[:, 10:] = False
    subject = Subject("s", (View("a", image, mask=mask), View("b", image, mask=~mask), View("c", image)))
    assert masked_landmarks(subject, marks) == [pytest.approx(26 / 51), pytest.approx(24 / 50), None]


def test_unlikely_coefficients():
    status, reasons = judge(metrics(identity=0.2, expression=0.2))
    assert status == "doubtful" and len(reasons) == 2
    assert reasons[0] == (
        "20 % of the identity coefficients lie beyond 3 sigma (expected at most 12 %); "
        "the landmarks or the cameras may be wrong"
    )
    assert reasons[1].startswith(
        "20 % of the expression weights lie outside of -0.3 to 1.2 (expected at most 2 %"
    )
    assert judge(metrics(identity=0.05, expression=0.02))[0] == "ok"


def test_all_reasons_are_given():
    status, reasons = judge(metrics(shares=(0.3, 0.3, 0.07), distances=(100.0, 900.0, 900.0), identity=0.5))
    assert status == "failed" and len(reasons) == 5


def test_view_errors():
    model = tiny_model()
    state = tiny_state(model, 3)
    marks = observe(model, state).landmarks
    pixels, share = view_errors(model, state, marks)
    assert float(pixels.max()) < 1e-3
    points = marks.points.clone()
    points[1, 17:] += torch.tensor([3.0, 4.0])
    points[1, :17] += 500  # the jaw does not count
    valid = marks.valid.clone()
    valid[1, :17] = False
    valid[2, 20] = False
    points[2, 20] = torch.nan
    pixels, share = view_errors(model, state, replace(marks, points=points, valid=valid))
    assert float(pixels[1]) == pytest.approx(5, abs=1e-3) and float(pixels[2]) < 1e-3
    size = (points[1, 17:].amax(0) - points[1, 17:].amin(0)).prod().sqrt()
    assert float(share[1]) == pytest.approx(5 / float(size), abs=1e-4)
    valid[0, 17:] = False
    assert bool(view_errors(model, state, replace(marks, points=points, valid=valid))[0][0].isnan())


def compared(shifts, flows=None, others=None, **more):
    base = metrics(shares=(0.02,) * len(shifts), distances=(900.0,) * len(shifts))
    flows, others = flows or [None] * len(shifts), others or [None] * len(shifts)
    for i, (view, shift, flow, other) in enumerate(zip(base["views"], shifts, flows, others)):
        view |= {
            "shape_shift": shift,
            "flow_sigma": flow,
            "flow_sigma_others": other,
            "yaw_pitch_roll_deg": [40.0 * i, 0.0, 0.0],
        }
    return base | more


@pytest.mark.parametrize(
    "shifts, flows, others, named",
    [
        ((0.9, 0.7, 0.8), None, None, None),
        ((1.4, 1.2, 0.95), None, None, None),
        ((1.8, 1.1, 1.5), None, None, None),
        ((2.2, 1.1, 1.5), None, None, None),
        ((3.0, 1.6, 1.7), None, None, "v0"),
        ((0.7, 0.8, 1.7, 0.7, 0.6), None, None, "v2"),
        ((1.65, 1.2, 1.2), (0.6, 0.37, 0.37), (0.37, None, 0.6), "v0"),
        ((0.9, 0.8, 0.8), (0.6, 0.37, 0.37), (0.37, None, 0.6), None),
        ((None, None, None), None, None, None),
    ],
)
def test_the_view_that_disagrees_is_named(shifts, flows, others, named):
    found = findings(compared(shifts, flows, others))
    assert [(f.code, f.view) for f in found] == ([("view_disagrees", named)] if named else [])
    assert judge(compared(shifts, flows, others))[0] == ("doubtful" if named else "ok")


def test_photos_that_match_show_one_person():
    """Three photos of one instant with an open mouth: the landmarks of the turned head are off, but the
    matches are good."""
    flows = (0.6, 0.5, 0.6), (0.5, 0.6, 0.5)
    assert not findings(compared((1.9, 0.8, 0.9), *flows))  # without matches another person
    found = findings(compared((2.9, 0.8, 0.9), *flows))[0]
    assert found.code == "view_disagrees" and found.message == (
        "view v0 does not agree with the others: leaving out its landmarks changes the shape 2.9 times as "
        "much as their noise would; the photos themselves match, so its landmarks may be off, as on an "
        "open mouth or a turned head; check them"
    )


@pytest.mark.parametrize(
    "flows, others, named",
    [
        ((0.6, 0.6, None), (None, None, 0.6), "v2"),
        ((0.6, 4.9, 0.7), (4.9, 0.6, 4.9), "v1"),
        ((0.6, 0.6, 0.6), (0.6, 0.6, 0.6), None),
        ((None, None, None), (None, None, None), None),
        ((0.6, 0.6, None, None), (None, None, 0.6, 0.6), None),
        ((4.9, 4.9, None), (None, None, 4.9), None),
        ((1.5, 1.5, None), (None, None, 1.5), None),
        ((1.5, 1.0, 1.0, None), (1.0, 1.5, 1.5, 1.0), None),
    ],
)
def test_a_view_that_matches_none_of_the_others(flows, others, named):
    found = findings(compared((0.8,) * len(flows), flows, others))
    assert [(f.code, f.view) for f in found] == ([("view_unmatched", named)] if named else [])
    if named:
        assert found[0].severity == "doubtful" and found[0].message == (
            f"view {named} does not match the others, although these match each other: was it taken at "
            "another time, is it blurred, mirrored, or of another person? if so, leave it out"
        )
        far = compared((0.8,) * len(flows), flows, others)
        # Too far from all others to be matched.
        next(v for v in far["views"] if v["name"] == named)["yaw_pitch_roll_deg"][0] = 150.0
        assert not findings(far)


def test_two_views_that_disagree():
    assert [f.code for f in findings(compared((3.0, 2.9)))] == ["views_disagree"] and not findings(
        compared((2.0, 1.1))
    )


def test_a_view_is_named_once():
    off = compared((0.8, 2.4, 0.9))
    off["views"][1]["reprojection_share"] = 0.2
    assert [(f.code, f.view) for f in findings(off)] == [("landmarks_off", "v1")]


def test_parallax():
    status, reasons = judge(compared((0.8, 0.8, 0.8), parallax_deg=1.23))
    assert status == "doubtful" and reasons == (
        "too little parallax: the views are at most 1.2 degrees apart (expected at least 10), so they show "
        "depth hardly better than one photo; add photos from the sides",
    )
    assert judge(compared((0.8, 0.8, 0.8), parallax_deg=40.0)) == ("ok", ())
    single = compared((None,), parallax_deg=None)
    assert judge(single) == ("ok", ()) and [(f.code, f.severity) for f in findings(single)] == [
        ("single_view", "note")
    ]


def test_landmark_noise_and_coefficients():
    loud = compared((0.8, 0.8, 0.8))
    loud["views"][2]["landmark_sigma_share"] = 0.045
    assert judge(loud) == (
        "doubtful",
        ("the landmarks of view v2 scatter by 4.5 % of the face size (usual: 1 to 3 %); check them",),
    )
    for view in loud["views"]:
        view["landmark_sigma_share"] = 0.045
    assert [f.view for f in findings(loud)] == [None] and "3 of 3 views" in findings(loud)[0].message
    odd = compared(
        (0.8, 0.8, 0.8),
        identity={"beyond_3_sigma": 0.01, "largest": 7.5},
        stages=[
            {"name": "pose"},
            {"name": "shape", "identity_change": None},
            {"name": "flow", "identity_change": 2.4},
        ],
    )
    assert [f.code for f in findings(odd)] == [
        "identity_extreme",
        "identity_jump",
    ] and "stage 'flow'" in findings(odd)[1].message


def test_gaussian_expressions_that_hardly_anybody_has():
    odd = metrics()
    odd["expression"] = {"beyond_3_sigma": 0.2, "largest": 7.4}
    assert judge(odd) == (
        "doubtful",
        (
            "20 % of the expression coefficients lie beyond 3 sigma (expected at most 12 %); the landmarks "
            "or the cameras may be wrong",
            "an expression coefficient lies at 7.4 sigma (expected at most 7); the landmarks or the cameras "
            "may be wrong",
        ),
    )
    odd["expression"] = {"beyond_3_sigma": 0.1, "largest": 6.0}
    assert judge(odd) == ("ok", ())
    odd["expression"] = {"largest": 7.4}  # a weight of a blend shape; those out of range are counted
    assert judge(odd) == ("ok", ())


def test_a_joint_that_nobody_turns_so_far():
    odd = metrics()
    odd["joints"] = {"joint": "jaw", "largest": 7.6, "degrees": 65.3}
    assert judge(odd) == (
        "doubtful",
        (
            "joint 'jaw' is turned by 65 degrees, 7.6 sigma (expected at most 7); the landmarks or the "
            "cameras may be wrong",
        ),
    )
    odd["joints"] |= {"largest": 6.9}
    assert judge(odd) == ("ok", ())


def test_verdict_in_one_line():
    good = verdict(compared((0.8, 0.8, 0.8), parallax_deg=56.4, error_bars={"face_median_mm": 0.913}))
    assert good == {
        "summary": "3 views up to 56 degrees apart; error bars 0.91 mm (1 sigma, median over the face); no "
        "remarks",
        "expected_mm": None,
        "upper_mm": None,
        "findings": [],
    }
    bad = verdict(compared((0.8, 0.8, 3.2), parallax_deg=3.0))
    assert bad["summary"] == "3 views up to 3 degrees apart; view disagrees (v2), little parallax"
    assert [f["code"] for f in bad["findings"]] == ["view_disagrees", "little_parallax"] and json.loads(
        json.dumps(bad)
    ) == bad


def sure(sigma, views=3, model="generic", **more):
    """A fit with nothing wrong whose error bars are sigma mm everywhere."""
    return compared(
        (0.8,) * views,
        model=model,
        recipe="multiview",
        error_bars={"face_median_mm": sigma, "face_mean_mm": sigma},
        parallax_deg=40.0 if views > 1 else None,
        **more,
    )


def test_expected_error_by_hand():
    # what older fits do not hold is told by the model's name
    for model, views, ratio in (
        ("generic", 1, 1.0),
        ("generic", 4, 1.1),
        ("ict", 1, 1.05),
        ("ict", 4, 1.15),
        ("unknown", 4, 1.1),
    ):
        expected, upper = expected_error(sure(0.9, views, model))
        assert expected == pytest.approx(ratio * 0.8 * 0.9) and upper == pytest.approx(UPPER * expected)
    own = sure(0.9, 4, "ict")
    own["error_bars"]["true_over_bars"] = 1.3
    assert expected_error(own)[0] == pytest.approx(1.3 * 0.8 * 0.9)
    assert expected_error(metrics()) is None
    assert expected_error(metrics() | {"error_bars": None, "typical_error_mm": 1.1}) == pytest.approx(
        (1.1, 1.1 * UPPER)
    )
    table = verdict(sure(0.9))
    assert (table["expected_mm"], table["upper_mm"]) == expected_error(sure(0.9))
    assert (
        status_line(FitReport("ok", verdict=Verdict(expected_mm=1.234, upper_mm=1.76)))
        == "ok; expected error 1.2 mm (90 %: at most 1.8 mm)"
    )
    assert status_line(FitReport("ok")) == "ok"


@pytest.mark.parametrize(
    "views, expected, status",
    [
        (3, 1.49, "ok"),
        (3, 1.51, "doubtful"),
        (1, 1.99, "ok"),
        (1, 2.01, "doubtful"),
        (3, 2.99, "doubtful"),
        (3, 3.01, "failed"),
        (1, 3.01, "failed"),
    ],
)
def test_status_follows_the_expected_error(views, expected, status):
    sigma = expected / expected_error(sure(1.0, views))[0]
    got, reasons = judge(sure(sigma, views))
    assert got == status
    assert reasons == (
        ()
        if status == "ok"
        else (
            f"the face is expected to be off by {expected:.2f} mm on average (for ok: at most "
            f"{2.0 if views == 1 else 1.5:.2f} mm); add photos, sharp ones and from other sides",
        )
    )


def test_what_is_wrong_comes_first_and_notes_are_no_warnings():
    lines = ["left out: no face found in b.jpg", "landmarks: found by detector 'builtin' in 3 photos"]
    off = sure(0.5, views=1, notes=lines)
    assert judge(off) == ("ok", ())
    single = (
        "one photo tells neither the depth of the profile nor the size of the head and shows little of the "
        "forehead and the cheeks, so there the face is the model's guess; add photos from the sides"
    )
    assert notes({"verdict": verdict(off)}) == (single, *lines)
    assert [f.code for f in findings(off)] == ["single_view", "left_out", "note"]
    off["views"][0] |= {"reprojection_share": 0.3, "distance_mm": 100.0}
    off["expression"] = {"out_of_range": 0.2}
    assert [f.severity for f in findings(off)] == ["failed", "doubtful", "doubtful", "note", "note", "note"]
    status, reasons = judge(off)
    assert (
        status == "failed"
        and len(reasons) == 3
        and reasons[0].startswith("view v0 does not fit its landmarks")
    )
    assert verdict(off)["summary"].endswith("; landmarks off (v0), camera near (v0), expression out of range")


def test_a_part_of_the_face_that_is_off():
    odd = compared((0.8, 0.8, 0.8))
    odd["views"][1] |= {
        "reprojection_px": 6.0,
        "reprojection_share": 0.03,
        "part_shift_share": {"brows": 0.01, "eyes": 0.07, "mouth": 0.02},
    }
    assert judge(odd) == (
        "doubtful",
        (
            "view v1: the eyes lie 14 px, 7.0 % of the face size, from their landmarks (expected at most "
            "3.0 %); look at its overlay, and check its landmarks",
        ),
    )
    odd["views"][1]["part_shift_share"] = {"nose": 0.046}
    assert (
        "the nose lies 9 px, 4.6 % of the face size, from its landmarks (expected at most 4.5 %)"
        in judge(odd)[1][0]
    )
    odd["views"][1]["part_shift_share"] = {"brows": 0.05, "nose": 0.045, "eyes": 0.03, "mouth": 0.04}
    assert judge(odd) == ("ok", ())


def test_part_shifts():
    model = tiny_model()
    state = tiny_state(model, 2)
    marks = observe(model, state).landmarks
    points, valid = marks.points.clone(), marks.valid.clone()
    points[0, 36:48] += torch.tensor([3.0, -4.0])
    points[1, 48:68:2] += 2.0
    points[1, 49:68:2] -= 2.0  # noise, nowhere together
    valid[1, 27:32] = False
    shifts = part_shifts(model, state, replace(marks, points=points, valid=valid))
    size = float((points[0].amax(0) - points[0].amin(0)).prod().sqrt())
    assert shifts[0] == pytest.approx({"brows": 0, "nose": 0, "eyes": 5 / size, "mouth": 0}, abs=1e-4)
    assert (
        set(shifts[1]) == {"brows", "eyes", "mouth"} and shifts[1]["mouth"] < 1e-4
    )  # of the nose too few points are seen


def test_a_fit_that_cannot_be_judged_is_doubtful():
    table = metrics() | {
        "not_computed": ["whether the photos agree could not be computed (unexpected TypeError: x)"]
    }
    assert judge(table)[0] == "doubtful" and findings(table)[0].code == "not_computed"
    broken = said.judge(replace(FitReport.from_metrics(metrics()), parallax_deg=1 + 2j))
    assert broken.status == "doubtful" and broken.warnings[0].startswith(
        "the verdict could not be computed (unexpected TypeError: "
    )
    assert status_line(broken) == "doubtful" and broken.remarks == ()
    assert broken.to_metrics()["verdict"]["findings"][0]["message"] == broken.warnings[0]


def test_metrics_are_read_back_as_the_report():
    table = said.judge(
        FitReport.from_metrics(sure(0.5, views=1, notes=["left out: b.jpg"], jaw="surface"))
    ).to_metrics()
    again = FitReport.from_metrics(json.loads(json.dumps(table)))
    assert again.to_metrics() == table and said.judge(again).to_metrics() == table
    assert notes(table) == again.remarks and len(again.remarks) == 2
    # What other versions wrote: unknown keys, and null where a number was not known.
    other = table | {"unknown": 1, "reprojection_px": None, "views": [table["views"][0] | {"new": 2}]}
    assert math.isnan(FitReport.from_metrics(other).reprojection_px)
    assert FitReport.from_metrics(other).views == again.views
    with pytest.raises(InputError, match="a.json: num_views: expected int, got 'many'"):
        FitReport.from_metrics(table | {"num_views": "many"}, "a.json")
    with pytest.raises(InputError, match="a.json: views: expected a list, got 3"):
        FitReport.from_metrics(table | {"views": 3}, "a.json")


def test_keys_of_the_metrics_stay_in_their_order():
    begin = (
        "model recipe num_views parallax_deg reprojection_px reprojection_share identity expression scale "
        "two_people jaw crop_px views stages"
    )
    fitted = f"{begin} start error_bars time_s notes verdict"
    assert list(FitReport(recipe="multiview").to_metrics()) == fitted.split()
    predicted = f"{begin} error_bars start time_s notes typical_error_mm verdict"
    assert list(FitReport(recipe="predict").to_metrics()) == predicted.split()
