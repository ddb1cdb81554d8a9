"""Faults that are planted into photos, and fits that are judged against the truth."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
from click.testing import CliRunner
from test_bench import PEOPLE, data  # noqa: F401 - the fixture

from fitkit.cli.main import main
from fitkit.errors import InputError
from fitkit.evaluate.bench import planted_faults as faults
from fitkit.io.subject import View, load_subject


@pytest.fixture
def view():
    """A noisy photo [120, 160], and points around a face of 60 x 80 px in it."""
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    angle = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    points = np.stack([80 + 30 * np.cos(angle), 60 + 40 * np.sin(angle)], 1)
    return View("a", image, landmarks=np.column_stack([points, np.ones(68)]), landmark_source="given"), points


def planted(kind, view, seed=0, other=None):
    return faults.plant(kind, *view, np.random.default_rng(seed), other)


@pytest.mark.parametrize("kind", faults.FAULTS)
def test_a_faulty_photo_has_no_landmarks_and_leaves_the_first_as_it_was(view, kind):
    before = view[0].image.copy()
    got = planted(kind, view, other=View("b", 255 - before))
    assert got.name == "a" and got.landmarks is None and got.landmark_source == ""
    assert not np.array_equal(got.image, before) and np.array_equal(view[0].image, before)
    assert np.array_equal(got.image, planted(kind, view, other=View("b", 255 - before)).image)


def test_person_and_mirror(view):
    other = View("b", np.full((50, 40, 3), 9, np.uint8))
    assert np.array_equal(planted("person", view, other=other).image, other.image)
    assert np.array_equal(planted("mirror", view).image, np.fliplr(view[0].image))


@pytest.mark.parametrize("seed", range(4))
def test_the_occluder_covers_a_third_of_the_face(view, seed):
    image = planted("occluder", view, seed).image
    covered = (image == faults.OCCLUDER_RGB).all(-1)
    # A rasterized ellipse of these axes is too large by its rim, about half a pixel wide.
    assert covered.sum() == pytest.approx(60 * 80 / 3, rel=0.06)
    assert np.array_equal(image[~covered], view[0].image[~covered])
    middle = np.argwhere(covered).mean(0)[::-1]
    assert (np.abs(middle - (80, 60)) <= (15.5, 20.5)).all()  # the inner half of the box
    assert not np.array_equal(
        covered, (planted("occluder", view, seed + 10).image == faults.OCCLUDER_RGB).all(-1)
    )


def test_blur_is_a_gaussian_of_4_percent_of_the_face_size(view):
    width, height = np.ptp(view[1], axis=0)  # 68 points hardly reach the ends of the axes
    expected = scipy.ndimage.gaussian_filter(
        view[0].image.astype(float), (0.04 * np.sqrt(width * height),) * 2 + (0,), mode="mirror", truncate=4
    )
    inner = np.s_[15:-15, 15:-15]
    assert (
        np.abs(planted("blur", view).image[inner] - expected[inner]).max() < 2
    )  # 8 bits, kernels cut off at other places


def test_unknown_fault(view):
    with pytest.raises(
        InputError, match="fault: expected one of person, half, mirror, occluder, blur; got 'rain'"
    ):
        planted("rain", view)


# ---- fits ----


@pytest.fixture(scope="module")
def report(data):  # noqa: F811
    """Two tiny people, one and four photos, clean and with two faults. Landmarks are those of the files, also
    for a photo that stands among another person's; a blurred photo shows no face."""
    folder, model = data
    files = {v.image.tobytes(): v.landmarks for n in PEOPLE for v in load_subject(folder / n).views}
    detect, told = faults.detect_landmarks, []

    def found(subject, source):
        views = (
            v.replace(landmarks=files.get(v.image.tobytes(), np.full((68, 3), np.nan))) for v in subject.views
        )
        return detect(replace(subject, views=tuple(views)), source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "detect_landmarks", found)
        out = faults.measure(
            [folder],
            [model],
            "landmarks",
            (1, 4),
            ("person", "blur"),
            overrides=("landmarks.source=files",),
            tell=told.append,
        )
    assert len(told) == len(out["rows"])
    return out


@pytest.mark.slow
def test_rows_of_a_benchmark(report):
    rows = report["rows"]
    key = [(r["subject"], r["views"], r["fault"]) for r in rows]
    assert key == [
        (n, *rest)
        for n in ("anna", "ben")
        for rest in ((1, ""), (1, "blur"), (4, ""), (4, "person"), (4, "blur"))
    ]
    clean = [r for r in rows if not r["fault"]]
    assert all(
        r["now_mean"] < 1.5 and r["expected_mm"] > 0 and r["upper_mm"] > r["expected_mm"] for r in clean
    )
    lonely = rows[1]  # the only photo shows no face
    assert (
        lonely["status"] == "failed"
        and lonely["now_mean"] is None
        and "no view can be used" in lonely["error"]
    )
    judged = {(r["subject"], r["fault"]): r for r in faults.fault_rows(rows) if r["views"] == 4}
    for name in ("anna", "ben"):
        assert (
            judged[name, "blur"]["named"] and len(judged[name, "blur"]["metrics"]["views"]) == 3
        )  # left out
        other = judged[name, "person"]
        base = next(r["now_mean"] for r in clean if r["subject"] == name and r["views"] == 4)
        assert other["harm"] == pytest.approx(other["now_mean"] - base) and other["view"].startswith("view")
    json.dumps(report, allow_nan=False)
    printed = faults.text(report)
    assert "Verdicts, one photo" in printed and "Verdicts, several photos" in printed
    assert [line.split()[0] for line in printed.splitlines() if line.startswith(("person", "blur"))] == [
        "blur",
        "person",
    ]
    assert "calibration of 'tiny', several: " in printed and "UPPER: " in printed


def test_stored_fits_are_judged_again(report, tmp_path):
    path = tmp_path / "verdicts.json"
    changed = json.loads(json.dumps(report))
    for row in changed["rows"]:
        row["status"], row["expected_mm"] = "failed", 99.0
    path.write_text(json.dumps(changed))
    again = faults.read_report(path)
    assert [(r["status"], r["expected_mm"]) for r in again["rows"]] == [
        (r["status"], r["expected_mm"]) for r in report["rows"]
    ]
    run = CliRunner().invoke(
        main,
        ["bench", "verdicts", str(path), str(path), "--limit", "0.5", "--json", str(tmp_path / "both.json")],
    )
    assert run.exit_code == 0, run.output
    assert "> 0.5 mm" in run.output and len(json.loads((tmp_path / "both.json").read_text())["rows"]) == len(
        report["rows"]
    )


def test_constants_are_those_that_make_the_means_agree(report):
    rows = [dict(r) for r in report["rows"] if r["metrics"] is not None]
    for row in rows:  # errors twice and three times what the error bars say
        times = 2.0 if row["fault"] == "" else 3.0
        row["now_mean"] = times * faults.MEAN_OF_SIGMA * row["metrics"]["error_bars"]["face_mean_mm"]
    lines = dict(
        line.split(": ")
        for line in faults.text({"rows": rows}).splitlines()
        if line.startswith(("calibration of", "UPPER"))
    )
    assert lines.pop("UPPER").startswith("1.00 (")
    assert lines and all(v.startswith("2.00 (") for v in lines.values())


def test_refusals(data, tmp_path):  # noqa: F811
    with pytest.raises(
        InputError, match="faults: expected some of person, half, mirror, occluder, blur, got 'rain'"
    ):
        faults.measure([data[0]], faults=("rain",))
    with pytest.raises(InputError, match=r"views: expected numbers of photos from 1 on, got \[0\]"):
        faults.measure([data[0]], counts=(0,))
    (tmp_path / "other.json").write_text('{"benchmark": "speed"}')
    with pytest.raises(
        InputError,
        match="other.json: not a JSON file of 'fitkit bench verdicts' .it holds a benchmark 'speed'",
    ):
        faults.read_report(tmp_path / "other.json")
    run = CliRunner().invoke(main, ["bench", "verdicts", str(data[0]), str(tmp_path / "other.json")])
    assert run.exit_code == 1 and "expected either folders or JSON files" in run.output
