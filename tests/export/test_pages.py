"""`report.html` of fits and of batches, by what is in the files."""

import base64
import json
import shutil
from dataclasses import replace
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from flames import flame_result
from gltf_files import accessor, read
from helpers import tiny_model, tiny_result
from pages import Page
from PIL import Image

from fitkit.errors import InputError
from fitkit.export import folder as result_writer
from fitkit.export import overlay
from fitkit.export.gltf import write_glb
from fitkit.export.overlay import draw_overlay, overlay_halves
from fitkit.export.pages import batch as batch_page
from fitkit.export.pages.batch import write_batch_page
from fitkit.export.pages.document import element, embedded, markup
from fitkit.export.pages.fit import grouped, write_fit_page
from fitkit.export.pages.pictures import draw_thumbnail
from fitkit.export.pages.words import facts
from fitkit.export.preview import SIGMA_LARGEST, Sides, draw_preview, preview_front, scale_colour
from fitkit.fitting.report import (
    BarsReport,
    ConversionReport,
    DetailReport,
    ExpressionReport,
    Finding,
    FitReport,
    IdentityReport,
    JointsReport,
    ScaleReport,
    StartReport,
    TimeReport,
    TwoPeopleReport,
    Verdict,
    ViewReport,
)
from fitkit.io.gltf_shapes import read_glb_points
from fitkit.models.io import save_model_file

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
EVIL_VIEW = "\"><b onclick='alert(3)'>&amp;"


def doubtful(result):
    """The result with names and messages that try to be more than text."""
    names = [EVIL_VIEW, "view1", "view2"]
    views = tuple(replace(v, name=n) for v, n in zip(result.subject.views, names))
    angles = [(40.0, 0.0, 0.0), (-3.0, 1.0, 0.5), (-35.0, 0.0, 0.0)]
    report = replace(
        result.report,
        status="doubtful",
        views=tuple(
            ViewReport(name, 2.5, 0.021, yaw_pitch_roll_deg=a, camera_source="exif")
            for name, a in zip(names, angles)
        ),
        verdict=Verdict(
            "what it comes to",
            1.23,
            1.72,
            (
                Finding(
                    "view_disagrees", "doubtful", f"view {EVIL_VIEW} does not agree </script>", EVIL_VIEW
                ),
                Finding("note", "note", "a note: <b>bold</b>"),
            ),
        ),
    )
    return replace(result, subject=replace(result.subject, name=EVIL, views=views), report=report)


@pytest.fixture(scope="module")
def result():
    return doubtful(tiny_result(size=96))


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
    size, result_writer.texture_size = result_writer.texture_size, lambda result: 64
    try:
        result.save(tmp_path_factory.mktemp("pages") / "result")
    finally:
        result_writer.texture_size = size
    return tmp_path_factory.getbasetemp() / "pages0" / "result"


@pytest.fixture(scope="module")
def page(written):
    return Page.read(written / "report.html")


def picture(uri):
    data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


class TestFit:
    def test_names_and_messages_stay_text(self, page):
        assert page.title == f"{EVIL} - fitkit" and page.texts("h1")[0].startswith(EVIL)
        assert not page.all("b", onclick=None) and len(page.all("img")) == 6
        assert page.texts("figcaption")[0].startswith(f"!{EVIL_VIEW}")
        assert page.texts("li") == [
            f"!View {EVIL_VIEW} does not agree </script>.",
            "iA note: <b>bold</b>.",
        ]

    def test_what_is_wrong_comes_first_and_the_expected_error_is_said(self, page):
        assert page.texts("h2") == [
            "Findings",
            "The face in 3D",
            "Photos",
            "How good is it?",
            "Each photo in numbers",
        ]
        assert page.texts("p", class_="lead") == ["Expected error 1.2 mm, in 90 of 100 fits at most 1.7 mm"]
        assert page.all("span", class_="pill doubtful")
        rows = page.texts("tr")
        assert rows[1] == f"!{EVIL_VIEW}2.5 px2.1 %40°, 0°, 0°--exif0-" and rows[2].startswith("✓view1")

    def test_the_face_is_the_file_with_all_of_its_shapes(self, page, written, result):
        glb = written / "subject.glb"
        assert page.file("glb") == glb.read_bytes()
        document, _ = read(glb)
        names = document["meshes"][0]["extras"]["targetNames"]
        sliders = {a["data-shape"]: a for _, a, _ in page.all("input", type="range") if "data-shape" in a}
        assert sorted(sliders) == sorted(names)
        assert {(s["min"], s["max"], s["value"]) for s in sliders.values()} == {("0", "1", "0")}
        assert page.texts("summary") == ["Jaw 1", "Mouth 2", "Eyes 2", "Brows 1"]
        weights = page.data("face-data")["weights"]
        expression = dict(zip(names, result.state.expression.T.numpy()))
        for name, values in expression.items():
            np.testing.assert_allclose([w[name] for w in weights], values, atol=1e-4)
        assert page.texts("option") == ["neutral", f"as in {EVIL_VIEW}", "as in view1", "as in view2", "own"]

    def test_error_bars_are_those_of_the_vertices(self, page, written, result):
        document, binary = read(written / "subject.glb")
        primitive = document["meshes"][0]["primitives"][0]
        corners = accessor(document, binary, primitive["indices"]).reshape(-1, 3)
        data = page.data("face-data")
        expected = result.vertex_sigma[result.model.triangles]
        np.testing.assert_allclose(np.array(data["sigma"])[corners], expected, atol=6e-4)  # 3 digits
        assert data["largest"] == SIGMA_LARGEST
        np.testing.assert_array_equal(data["scale"][0], scale_colour(np.zeros(1))[0])
        assert "2.0+" in page.texts("span")

    def test_photos_with_and_without_the_mesh(self, page, result):
        found = [picture(a["src"]) for _, a, _ in page.all("img")]
        for i in range(3):
            photo, fitted = overlay_halves(draw_overlay(result, i))
            for image, wanted in ((found[2 * i], photo), (found[2 * i + 1], fitted)):
                assert image.shape == wanted.shape
                # JPEG: thin lines lose some of their colour
                assert np.abs(image.astype(int) - wanted).mean() < 4
            assert np.abs(found[2 * i].astype(int) - fitted).mean() > 5

    def test_it_is_made_again_of_the_files_elsewhere_too(self, written, tmp_path):
        assert write_fit_page(written) == written / "report.html"
        other = write_fit_page(written, tmp_path / "new" / "page.html")
        assert other.read_bytes() == (written / "report.html").read_bytes()

    def test_many_photos_are_smaller(self, result, written, tmp_path, monkeypatch):
        monkeypatch.setattr("fitkit.export.pages.fit.MANY_PHOTOS", 2)
        monkeypatch.setattr("fitkit.export.pages.fit.LONGEST_OF_MANY", 100)
        page = Page.read(write_fit_page(written, tmp_path / "page.html"))
        assert all(max(picture(a["src"]).shape) == 100 for _, a, _ in page.all("img"))

    def test_without_pictures(self, result, tmp_path):
        result.save(tmp_path / "out", pictures=False)
        assert not (tmp_path / "out" / "report.html").exists()
        page = Page.read(write_fit_page(tmp_path / "out"))
        assert not page.all("img") and page.file("glb") == (tmp_path / "out" / "subject.glb").read_bytes()
        assert any("without pictures; fit again without --no-pictures" in t for t in page.texts("p"))

    def test_numbers_only(self, result, tmp_path):
        result.save(tmp_path / "out", light=True)
        page = Page.read(write_fit_page(tmp_path / "out"))
        assert not page.all("script", id="glb") and not page.all("div", id="stage")
        assert any("numbers only" in t for t in page.texts("p"))

    def test_what_could_not_be_drawn_is_said_and_costs_nothing_else(self, result, tmp_path, monkeypatch):
        def fail(*_):
            raise InputError("no light <i>here</i>")

        monkeypatch.setattr(result_writer, "texture_size", lambda result: 64)
        monkeypatch.setattr(result_writer, "draw_lighting", fail)
        monkeypatch.setattr(result_writer, "write_fit_page", fail)
        out = result.save(tmp_path / "out")
        lacking = json.loads((out / "metrics.json").read_text())["not_written"]
        assert len(lacking) == 4 and (out / "thumbnail.jpg").is_file()
        assert lacking[3] == "report.html could not be computed (no light <i>here</i>)"
        told = Page.read(write_fit_page(out)).texts("li")
        assert [f"i{line[:1].upper()}{line[1:]}." for line in lacking] == told[2:]

    def test_no_error_bars(self, result, tmp_path):
        replace(result, vertex_sigma=None).save(tmp_path / "out", pictures=False)
        page = Page.read(write_fit_page(tmp_path / "out"))
        assert page.data("face-data")["sigma"] is None and not page.all("input", value="bars")

    def test_a_face_without_shapes(self, result, tmp_path):
        out = result.save(tmp_path / "out", pictures=False)
        write_glb(out / "subject.glb", result.neutral, result.model, morphs=[])
        page = Page.read(write_fit_page(out))
        assert not page.all("select") and "This face model has no expression shapes." in page.texts("p")

    def test_gaussian_expressions_and_joints(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
        plain = flame_result(views=2)
        scaled = replace(plain.model, expression_sigma=torch.linspace(0.5, 2.0, 102))
        gaussian = ExpressionReport(largest=1.0, beyond_3_sigma=0.0)
        result = replace(
            plain, model=scaled, report=replace(plain.report, model="flame", expression=gaussian)
        )
        out = result.save(tmp_path / "out", pictures=False)
        page = Page.read(write_fit_page(out))
        assert page.data("face-data")["weights"] is None and page.texts("option") == ["neutral", "own"]
        assert any("need the face model 'flame', which was not on" in t for t in page.texts("p"))
        save_model_file(scaled, tmp_path / "models" / "flame.npz")
        page = Page.read(write_fit_page(out))
        (slider,) = page.all("input", data_shape="expression_003")
        assert (slider[1]["min"], slider[1]["max"]) == ("-3", "3")
        weights = [w["expression_003"] for w in page.data("face-data")["weights"]]
        expected = result.state.expression[:, 3] / scaled.expression_sigma[3]
        np.testing.assert_allclose(weights, expected, atol=1e-4)
        np.testing.assert_allclose(page.data("face-data")["joints"], result.state.joints, atol=1e-6)
        assert page.texts("summary") == ["Eyes 2", "Other shapes 100"]

    def test_refusals(self, written, tmp_path):
        with pytest.raises(InputError, match="expected a result folder, with metrics.json and parameters"):
            write_fit_page(tmp_path)
        broken = shutil.copytree(written, tmp_path / "broken")
        Image.new("RGB", (11, 10)).save(broken / "overlay" / "view1.png")
        with pytest.raises(
            InputError, match="view1.png: not readable as a picture of a result .expected two"
        ):
            write_fit_page(broken)
        (broken / "overlay" / "view1.png").write_bytes(b"no picture")
        with pytest.raises(
            InputError, match="view1.png: not readable as a picture of a result .it is no pic"
        ):
            write_fit_page(broken)
        (broken / "subject.glb").write_bytes(b"glTF")
        with pytest.raises(InputError, match="subject.glb: not readable as binary glTF 2.0"):
            write_fit_page(broken)
        (tmp_path / "place").mkdir()
        with pytest.raises(InputError, match="place: cannot be written"):
            write_fit_page(written, tmp_path / "place")


class TestBatch:
    @pytest.fixture
    def people(self, written, tmp_path):
        """A batch of two results, one of them old and without a page, and two subjects without one."""
        shutil.copytree(written, tmp_path / "out" / "town #1" / "anna")
        shutil.copytree(written, tmp_path / "out" / "bert")
        for name in ("report.html", "thumbnail.jpg"):
            (tmp_path / "out" / "bert" / name).unlink()
        rows = [
            {
                "subject": "town #1/anna",
                "status": "ok",
                "message": "",
                "expected_mm": 0.8,
                "upper_mm": 1.1,
                "reprojection_share": 0.013,
                "seconds": 3.5,
                "views": 3,
                "what_nobody_knows": [1],
            },
            {"subject": "bert", "status": "doubtful", "message": EVIL, "expected_mm": None, "views": 3},
            {"subject": EVIL, "status": "error", "message": "no face </script>"},
            {"subject": "../written", "status": "strange <b>", "seconds": True, "views": float("nan")},
        ]
        self.write(tmp_path / "out", rows)
        return tmp_path / "out"

    def write(self, folder, rows):
        (folder / "batch.json").write_text(json.dumps({"subjects": rows}))

    def test_a_row_for_each_subject(self, people):
        path = write_batch_page(people)
        page = Page.read(path)
        assert path == people / "report.html" and page.title == "out - fitkit batch"
        rows = page.data("rows")
        assert [row["subject"] for row in rows] == ["town #1/anna", "bert", EVIL, "../written"]
        assert rows[0] | {"picture": ""} == {
            "subject": "town #1/anna",
            "status": "ok",
            "message": "",
            "link": "town%20%231/anna/report.html",
            "expected_mm": 0.8,
            "upper_mm": 1.1,
            "reprojection_share": 0.013,
            "seconds": 3.5,
            "views": 3,
            "picture": "",
        }
        assert rows[1]["link"] == "bert" and "expected_mm" not in rows[1]
        assert all(row["link"] == "" and "picture" not in row for row in rows[2:])
        assert "seconds" not in rows[3] and "views" not in rows[3]
        assert (people / unquote(rows[0]["link"])).is_file()
        buttons = [" ".join(t.split()) for t in page.texts("button") if t[:1].islower()]
        assert buttons == ["all 4", "ok 1", "doubtful 1", "no face 1", "strange <b> 1"]
        assert page.texts("p", class_="lead") == ["Expected error 0.8 mm in the median, 0.8 mm at most"]

    def test_thumbnails(self, people, written, monkeypatch):
        rows = Page.read(write_batch_page(people)).data("rows")
        stored = (people / "town #1" / "anna" / "thumbnail.jpg").read_bytes()
        assert base64.b64decode(rows[0]["picture"]) == stored
        assert rows[1]["picture"] == rows[0]["picture"]  # drawn from the same pictures
        monkeypatch.setattr(batch_page, "MOST_PICTURES", 3)
        self.write(people, [{"subject": "bert", "status": s} for s in ("ok", "ok", "failed", "error")])
        rows = Page.read(write_batch_page(people)).data("rows")
        assert ["picture" in row for row in rows] == [True, False, True, True]

    def test_links_lead_from_another_place(self, people, tmp_path):
        rows = Page.read(write_batch_page(people, tmp_path / "elsewhere" / "page.html")).data("rows")
        assert rows[0]["link"] == "../out/town%20%231/anna/report.html"

    def test_a_damaged_result_has_no_picture(self, people):
        (people / "bert" / "preview.png").write_bytes(b"")
        assert "picture" not in Page.read(write_batch_page(people)).data("rows")[1]

    def test_no_subject_was_fitted(self, tmp_path):
        self.write(tmp_path, [])
        page = Page.read(write_batch_page(tmp_path))
        assert page.data("rows") == [] and not page.all("p", class_="lead")

    def test_refusals(self, people, tmp_path):
        with pytest.raises(InputError, match="nowhere: expected the folder of a batch, with batch.json"):
            write_batch_page(tmp_path / "nowhere")
        self.write(people, [{"subject": "a"}, 5])
        with pytest.raises(
            InputError, match="batch.json: subject 2: expected its name and its numbers, got 5"
        ):
            write_batch_page(people)
        (people / "batch.json").write_text("[")
        with pytest.raises(InputError, match="batch.json: not readable as the report of a batch"):
            write_batch_page(people)
        self.write(people, [])
        (people / "report.html").mkdir()
        with pytest.raises(InputError, match="report.html: expected a file to write, but a folder has that"):
            write_batch_page(people)


class TestPictures:
    def test_the_thumbnail_shows_the_photo_that_is_doubted_and_the_face(self, result, written, monkeypatch):
        found = cv2.imread(str(written / "thumbnail.jpg"))[..., ::-1]
        preview = np.asarray(Image.open(written / "preview.png"))
        height, width = preview.shape[:2]
        front = preview[height // 2 :, 2 * width // 5 : 3 * width // 5]
        for view, near in ((0, True), (1, False)):
            fitted = overlay_halves(draw_overlay(result, view))[1]
            parts = [
                cv2.resize(p, (round(p.shape[1] * 112 / p.shape[0]), 112), interpolation=cv2.INTER_AREA)
                for p in (fitted, front)
            ]
            wanted = np.concatenate(parts, 1)
            assert wanted.shape == found.shape
            assert (np.abs(wanted.astype(int) - found).mean() < 4) == near

    def test_without_a_doubt_it_shows_the_photo_from_the_front(self, result, written):
        report = replace(result.report, verdict=Verdict())
        found = cv2.imdecode(np.frombuffer(draw_thumbnail(written, report), np.uint8), cv2.IMREAD_COLOR)
        fitted = overlay_halves(draw_overlay(result, 1))[1]
        small = cv2.resize(fitted, (112, 112), interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - found[:, :112, ::-1]).mean() < 4

    def test_no_pictures(self, result, tmp_path):
        assert draw_thumbnail(tmp_path, result.report) is None

    def test_wide_photos_are_cut(self, result, tmp_path):
        (tmp_path / "overlay").mkdir()
        one = np.zeros((640, 1600, 3), np.uint8)
        both = np.concatenate([one, np.zeros((640, 19, 3), np.uint8), one + 200], 1)  # gap: 6 * 1600 / 512
        Image.fromarray(both).save(tmp_path / "overlay" / "view1.png")
        report = replace(result.report, verdict=Verdict())
        found = cv2.imdecode(np.frombuffer(draw_thumbnail(tmp_path, report), np.uint8), cv2.IMREAD_COLOR)
        assert found.shape == (112, 179, 3) and found.min() > 190

    @pytest.mark.parametrize("size", [(96, 96), (70, 133), (640, 427), (1024, 768)])
    def test_halves_of_an_overlay(self, size):
        gap = max(4, round(6 * max(size) / 512))
        left, right = np.full((*size, 3), 10, np.uint8), np.full((*size, 3), 200, np.uint8)
        both = np.concatenate([left, np.full((size[0], gap, 3), 255, np.uint8), right], 1)
        photo, fitted = overlay_halves(both)
        assert np.array_equal(photo, left) and np.array_equal(fitted, right)

    def test_the_front_of_a_preview(self):
        model = tiny_model()
        sides = Sides.of_head(model.mean, model)
        picture = draw_preview(sides, model)
        assert np.array_equal(preview_front(picture), picture[384:, 640:960])
        bare = draw_preview(sides, replace(model, albedo_mean=None, albedo_basis=None))
        assert np.array_equal(preview_front(bare), bare[:, 640:960])
        with pytest.raises(ValueError, match="expected one or two rows of 5 pictures, got 320 x 384 px"):
            preview_front(bare[:, :320])

    def test_points_of_a_glb_file_keep_their_order(self, written):
        points, names = read_glb_points(written / "subject.glb")
        document, binary = read(written / "subject.glb")
        primitive = document["meshes"][0]["primitives"][0]
        assert np.array_equal(points, accessor(document, binary, primitive["attributes"]["POSITION"]))
        assert names == document["meshes"][0]["extras"]["targetNames"]


class TestWords:
    def report(self, **changes):
        """A fit with all of its numbers, in which nothing is wrong."""
        whole = FitReport(
            status="ok",
            num_views=3,
            parallax_deg=64.0,
            reprojection_px=1.5,
            reprojection_share=0.021,
            identity=IdentityReport(0.0, 0.71, 2.0),
            expression=ExpressionReport(0.0, 0.35),
            scale=ScaleReport(False, "no camera positions were given"),
            two_people=TwoPeopleReport(("a",), -30.0, False),
            views=(
                ViewReport("a", landmark_sigma_share=0.013, shape_shift=0.8),
                ViewReport("b", shape_shift=1.1),
            ),
            error_bars=BarsReport(0.68, 0.7, 1.65),
            time_s=TimeReport(7.7),
            start=StartReport("regressor", iterations=30),
            detail=DetailReport(0.125, 55.0, 0.05, 0.03, 0.13, 2, 5541, 0.1, 0.1),
            joints=JointsReport("jaw", 1.2, 14.0),
            conversion=ConversionReport("ict", "names", 0.4, 2.1, 0.5, 2.5, 0.4, 2.2),
            verdict=Verdict("fine", 0.6, 0.9),
        )
        return replace(whole, **changes)

    def said(self, **changes):
        return {fact.title: fact for fact in facts(self.report(**changes))}

    def test_all_numbers(self):
        said = self.said()
        assert {title: fact.value for title, fact in said.items()} == {
            "Expected error": "0.6 mm",
            "Error bars": "0.68 mm",
            "Photos": "3, up to 64° apart",
            "Fit to the landmarks": "1.5 px, 2.1 %",
            "Do the photos agree?": "yes",
            "How usual is the face?": "0.71 sigma",
            "Expressions": "up to 0.35",
            "Joints": "14°",
            "Size of the head": "assumed",
            "Detail": "0.05 mm",
            "Converted": "0.40 mm",
            "Time": "7.7 s",
        }
        assert not [f for f in said.values() if f.judgement not in ("good", "note")]
        assert "at most 0.9 mm. Up to 1.5 mm count as ok." in said["Expected error"].text
        assert "They scatter by 1.3 % at most" in said["Fit to the landmarks"].text
        assert "at most 1.1 times" in said["Do the photos agree?"].text
        assert "far below the 4.5" in said["Do the photos agree?"].text
        assert "and none lies outside of -0.3 to 1.2" in said["Expressions"].text

    @pytest.mark.parametrize(
        ("code", "title"),
        [
            ("expected_error", "Expected error"),
            ("little_parallax", "Photos"),
            ("landmarks_off", "Fit to the landmarks"),
            ("two_people", "Do the photos agree?"),
            ("identity_extreme", "How usual is the face?"),
            ("expression_out_of_range", "Expressions"),
            ("joint_extreme", "Joints"),
            ("camera_contradicts", "Size of the head"),
            ("conversion_far", "Converted"),
        ],
    )
    def test_what_the_findings_doubt_is_doubtful(self, code, title):
        for severity in ("doubtful", "failed"):
            found = (Finding(code, "note", "-"), Finding(code, severity, "-"))
            judged = {t: f.judgement for t, f in self.said(verdict=Verdict("-", 1.0, 1.4, found)).items()}
            assert judged.pop(title) == severity
            assert set(judged.values()) <= {"good", "note"} or code == "conversion_far"
        if code == "two_people":
            assert self.said(verdict=Verdict("-", 1.0, 1.4, found))[title].value == "not wholly"

    def test_one_photo(self):
        said = self.said(
            num_views=1, views=(ViewReport("a"),), detail=DetailReport(0, 0, 0, 0, 0, 0, 0, None, None)
        )
        assert said["Photos"].judgement == "note" and "Do the photos agree?" not in said
        assert "Up to 2.0 mm count as ok" in said["Expected error"].text
        assert said["Detail"].value == "none" and said["Detail"].text.startswith("One photo has none")

    def test_what_is_not_known_is_left_out(self):
        assert [fact.title for fact in facts(FitReport(num_views=2))] == ["Expected error", "Photos"]
        assert facts(FitReport())[0].value == "not known"

    def test_gaussian_expressions(self):
        fact = self.said(expression=ExpressionReport(largest=2.4, beyond_3_sigma=0.02))["Expressions"]
        assert fact.value == "up to 2.4 sigma" and "2.0 % lie beyond 3" in fact.text

    def test_groups_of_shapes(self):
        names = [
            "noseSneerLeft",
            "jawOpen",
            "mouthSmile_L",
            "expression_3",
            "tongueOut",
            "browDownLeft",
            "JawX",
        ]
        assert grouped(names) == {
            "Jaw": ["jawOpen", "JawX"],
            "Mouth": ["mouthSmile_L"],
            "Brows": ["browDownLeft"],
            "Nose": ["noseSneerLeft"],
            "Tongue": ["tongueOut"],
            "Other shapes": ["expression_3"],
        }


class TestDocument:
    def test_texts_and_attributes_are_escaped(self):
        part = element(
            "p", {"title": '"><b>', "hidden": True, "id": None, "lang": False}, "a < b", element("i"), "&"
        )
        assert markup(part) == '<p title="&quot;&gt;<b&gt;" hidden="">a &lt; b<i></i>&amp;</p>'

    def test_data_cannot_end_its_element(self):
        text = markup(embedded("d", {"a": "</script><!--<script>", "b": float("nan")}))
        assert "</script><" not in text[:-9] and "<!--" not in text
        page = Page(f"<html><title>t</title>{text}</html>")
        assert page.data("d") == {"a": "</script><!--<script>", "b": None}


class TestNotebook:
    def test_verdict_photos_and_face(self, result, monkeypatch):
        monkeypatch.setattr(overlay, "SHORT_LONG_SIDE", 640)  # as outside of the tests
        page = Page(f"<title></title>{result._repr_html_()}")
        assert not page.all("script") and not page.all("style") and not page.all("b", onclick=None)
        text = page.texts("div")[0]
        assert f"{EVIL} (tiny, 3 views): doubtful; expected error 1.2 mm (90 %: at most 1.7 mm)" in text
        assert f"view {EVIL_VIEW} does not agree </script>" in text
        images = [picture(a["src"]) for _, a, _ in page.all("img")]
        assert [max(i.shape) for i in images] == [480, 480, 480, 960]

    def test_photos_that_are_not_there_are_left_out(self, tmp_path, monkeypatch, result):
        monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
        import fitkit

        result.save(tmp_path / "out", light=True)
        again = fitkit.load_result(tmp_path / "out", model=result.model)
        assert len(Page(f"<title></title>{again._repr_html_()}").all("img")) == 1

    def test_many_findings(self, result):
        found = tuple(Finding("note", "note", f"number {i}") for i in range(12))
        many = replace(result, report=replace(result.report, verdict=Verdict("-", 1.0, 1.4, found)))
        text = Page(f"<title></title>{many._repr_html_()}").texts("div")[0]
        assert "number 7" in text and "number 8" not in text and "and 4 more in .report" in text


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
class TestInABrowser:
    POSITIONS = "Array.from(fitkit.face.mesh.geometry.attributes.position.array)"
    EYE = "fitkit.camera.position.toArray()"

    @pytest.fixture
    def face(self, browser, written):
        """The page of the fit with its face, and no problem at the end."""
        page = (written / "report.html").resolve()
        if browser.run("location.href") != page.as_uri():
            browser.open(page)
            browser.wait("!document.getElementById('stage-note')")
        yield browser
        assert browser.problems == []

    def points(self, browser):
        return np.array(browser.run(self.POSITIONS)).reshape(-1, 3)

    def change(self, browser, selector, value, event="input"):
        browser.run(
            f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('{event}')); }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    def test_sliders_and_photos_move_the_vertices_as_the_file_says(self, face, written, result):
        document, binary = read(written / "subject.glb")
        mesh = document["meshes"][0]
        primitive, names = mesh["primitives"][0], mesh["extras"]["targetNames"]
        rest = accessor(document, binary, primitive["attributes"]["POSITION"])
        np.testing.assert_array_equal(self.points(face), rest)
        normals = np.array(face.run("Array.from(fitkit.face.mesh.geometry.attributes.normal.array)"))
        wanted = accessor(document, binary, primitive["attributes"]["NORMAL"])
        assert ((normals.reshape(-1, 3) * wanted).sum(1) > 0.999).all()
        shape = accessor(document, binary, primitive["targets"][names.index("jawOpen")]["POSITION"])
        self.change(face, "input[data-shape=jawOpen]", "0.5")
        np.testing.assert_allclose(self.points(face), rest + 0.5 * shape, atol=1e-7)
        assert face.run("document.getElementById('expression').value") == "own"
        # Metres; sliders have two digits, and what moves less than 0.02 mm is not in the file.
        self.change(face, "#expression", "1", "change")
        corners = accessor(document, binary, primitive["indices"]).reshape(-1, 3)
        fitted = result.vertices[1].numpy()[result.model.triangles] / 1000
        np.testing.assert_allclose(self.points(face)[corners], fitted, atol=4e-4)
        assert np.abs(rest[corners] - fitted).max() > 2e-3
        face.run("document.getElementById('reset').click()")
        np.testing.assert_array_equal(self.points(face), rest)

    def test_all_parts_of_a_face_are_shown(self, browser, written, result, tmp_path):
        out = shutil.copytree(written, tmp_path / "out")
        region = (result.model.mean[:, 1] > 0).long() * 2
        model = replace(result.model, region=region, region_names=("face", "head", "teeth"))
        write_glb(out / "subject.glb", result.neutral, model)
        document, binary = read(out / "subject.glb")
        parts = [accessor(document, binary, p["indices"]) for p in document["meshes"][0]["primitives"]]
        browser.open(write_fit_page(out))
        browser.wait("!document.getElementById('stage-note')")
        drawn = browser.run("Array.from(fitkit.face.mesh.geometry.index.array)")
        assert len(parts) == 2 and drawn == np.concatenate(parts)[:, 0].tolist()
        meshes = "(n => { fitkit.face.root.traverse((o) => { if (o.isMesh) n += 1; }); return n; })(0)"
        assert browser.run(meshes) == 1 and browser.problems == []

    def test_surfaces_and_keys(self, face):
        for surface, legend in (("clay", True), ("bars", False), ("texture", True)):
            face.run(f"document.querySelector('input[value={surface}]').click()")
            assert face.run("fitkit.face.surface") == surface
            assert face.run("document.getElementById('legend').hidden") == legend
        before = np.array(face.run(self.EYE))
        face.run("document.getElementById('stage').focus()")
        for key in ("ArrowLeft", "ArrowUp", "+"):
            face.press(key)
        after = np.array(face.run(self.EYE))
        target = np.array(face.run("fitkit.controls.target.toArray()"))
        near = np.linalg.norm(after - target) / np.linalg.norm(before - target)
        assert near == pytest.approx(0.85) and after[0] > before[0] and after[1] < before[1]
        face.press("Home")
        np.testing.assert_allclose(face.run(self.EYE), before, atol=1e-9)

    def test_the_line_over_a_photo_moves(self, face):
        self.change(face, ".compare input", "80")
        style = "getComputedStyle(document.querySelector('.compare .over')).clipPath"
        assert face.run(style) == "inset(0px 0px 0px 80%)"

    def test_nothing_in_a_name_is_run(self, face):
        assert face.run("document.title").startswith(EVIL)
        assert face.run("document.querySelectorAll('[onclick], [onerror]').length") == 0

    def test_it_is_drawn(self, face, tmp_path):
        face.run("document.getElementById('stage').scrollIntoView()")
        ways = {}
        for way in ("light", "dark"):
            face.dark(way == "dark")
            face.picture(tmp_path / f"{way}.png", whole=False)
            ways[way] = np.asarray(Image.open(tmp_path / f"{way}.png").convert("RGB")).astype(float)
        face.dark(False)
        for picture in ways.values():
            assert picture[300:500, 200:600].std() > 10  # a face, and no empty stage
        assert ways["light"][:, :8].mean() > 200 and ways["dark"][:, :8].mean() < 60

    def test_joints_turn_as_in_the_photo(self, browser, tmp_path, monkeypatch):
        monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
        plain = flame_result(views=2)
        save_model_file(plain.model, tmp_path / "models" / "flame.npz")
        gaussian = ExpressionReport(largest=1.0, beyond_3_sigma=0.0)
        result = replace(plain, report=replace(plain.report, expression=gaussian))
        out = result.save(tmp_path / "out", pictures=False)
        browser.open(write_fit_page(out))
        browser.wait("!document.getElementById('stage-note')")
        self.change(browser, "#expression", "1", "change")
        skinned = """(() => {
            const mesh = fitkit.face.mesh, place = fitkit.camera.position.clone(), points = [];
            fitkit.face.root.updateMatrixWorld(true);
            for (let v = 0; v < mesh.geometry.attributes.position.count; v++)
                points.push(...mesh.getVertexPosition(v, place).applyMatrix4(mesh.matrixWorld));
            return points;
        })()"""
        document, binary = read(out / "subject.glb")
        corners = accessor(document, binary, document["meshes"][0]["primitives"][0]["indices"]).reshape(-1, 3)
        found = 1000 * np.array(browser.run(skinned)).reshape(-1, 3)[corners]
        wanted = result.vertices[1].numpy()[result.model.triangles]
        # glTF knows neither corrective shapes nor more than four joints of a vertex.
        assert np.abs(found - wanted).max() < 1.5
        assert np.abs(result.neutral.numpy()[result.model.triangles] - wanted).max() > 20
        assert browser.problems == []

    def test_rows_are_made_sorted_and_filtered(self, browser, tmp_path):
        rows = [
            {
                "subject": f"p{i}",
                "status": ("ok", "failed")[i % 2],
                "expected_mm": 1 + i / 1000,
                "message": "",
            }
            for i in range(200)
        ]
        rows[7] |= {"message": f"{EVIL} too dark", "status": "error", "expected_mm": None}
        rows[9]["status"] = "constructor"  # which every object of the script language has
        (tmp_path / "batch.json").write_text(json.dumps({"subjects": rows}))
        browser.open(write_batch_page(tmp_path))
        names = "[...document.querySelectorAll('tbody th')].map(e => e.textContent)"
        first = browser.run(names)
        assert first[:3] == ["p7", "p1", "p3"] and len(first) < 200
        browser.run("scrollTo(0, 1e6)")
        browser.wait("scrollTo(0, 1e6), document.querySelectorAll('tbody tr').length == 200")
        browser.run("document.querySelector('[data-key=expected_mm]').click()")
        assert browser.run(names)[:2] == ["p199", "p198"]
        browser.run("document.querySelector('[data-key=expected_mm]').click()")
        assert browser.run(names)[:2] == ["p0", "p1"]
        browser.run("document.querySelector('[data-status=failed]').click()")
        assert browser.run("document.getElementById('count').textContent") == "98 of 200"
        browser.run("document.querySelector('[data-status=error]').click()")
        self.change(browser, "#text", "TOO dark")
        assert browser.run(names) == ["p7"] and EVIL in browser.run(
            "document.querySelector('tbody').textContent"
        )
        self.change(browser, "#text", "nobody")
        assert browser.run(names) == [] and not browser.run("document.getElementById('none').hidden")
        assert browser.problems == []
