from dataclasses import replace

import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.fit.report import judge, view_errors


def metrics(shares=(0.02, 0.03, 0.02), distances=(900.0, 900.0, 900.0), identity=0.0, expression=0.0):
    return {"views": [{"name": f"v{i}", "reprojection_share": s, "distance_mm": d} for i, (s, d) in enumerate(zip(shares, distances))],
            "identity": {"beyond_3_sigma": identity}, "expression": {"beyond_3_sigma": expression}}


def test_good_fit():
    assert judge(metrics()) == ("ok", ())
    assert judge(metrics(distances=(None, None, None))) == ("ok", ())  # scaled orthographic: no distance


def test_one_view_that_does_not_fit():
    status, reasons = judge(metrics(shares=(0.02, 0.075, 0.02)))
    assert status == "doubtful"
    assert reasons == ("view v1 does not fit its landmarks: they are off by 7.5 % of the face size (expected at most 6 %); "
                       "check its landmarks, or leave the photo out",)
    assert judge(metrics(shares=(0.02, 0.5, 0.02)))[0] == "doubtful"  # one of three


@pytest.mark.parametrize("shares,status", [((0.2, 0.3, 0.02), "failed"), ((0.2,), "failed"), ((0.2, 0.02), "failed"), ((0.1,), "doubtful"),
                                           ((0.06,), "ok"), ((float("nan"),), "failed"), ((float("nan"), 0.02, 0.02), "doubtful")])
def test_failed_when_half_of_the_views_are_far_off(shares, status):
    got, reasons = judge(metrics(shares=shares))
    assert got == status and len(reasons) == sum(not s <= 0.06 for s in shares)


def test_camera_in_the_face():
    status, reasons = judge(metrics(distances=(900.0, 120.0, None)))
    assert status == "doubtful"
    assert reasons == ("view v1: the camera came out 120 mm from the head; give its focal length in cameras.json",)


def test_unlikely_coefficients():
    status, reasons = judge(metrics(identity=0.08, expression=0.2))
    assert status == "doubtful" and len(reasons) == 2
    assert reasons[0] == ("8 % of the identity coefficients lie beyond 3 sigma (expected at most 5 %); "
                          "the landmarks or the cameras may be wrong")
    assert reasons[1].startswith("20 % of the expression coefficients lie beyond 3 sigma")
    assert judge(metrics(identity=0.05, expression=0.05))[0] == "ok"


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
