import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fitkit.io.landmark_files import read_landmarks
from fitkit.observe.landmarks import detectors
from fitkit.observe.landmarks.builtin import WEIGHTS
from fitkit.observe.landmarks.types import EveryFaceDetector, Landmarks

SHAPE = np.random.default_rng(0).uniform(0, 1, (68, 2))


class WhiteSquares(EveryFaceDetector):
    """Every white square is a face; its points lie in it, the first 17 hidden, the last one not seen."""

    name, jaw = "white", "outline"

    def __init__(self, device):
        pass

    def detect_all(self, image):
        count, _, boxes, _ = cv2.connectedComponentsWithStats((image.min(-1) > 200).astype(np.uint8))
        return [self.face(box) for box in boxes[1:count]]

    def face(self, box):
        points = torch.from_numpy(SHAPE * (box[2] - 1) + box[:2]).float()[None]
        seen = torch.ones(1, 68)
        seen[0, :17] = 0.2
        valid = torch.arange(68)[None] < 67
        return Landmarks(points, torch.full((1, 68), 1.5), valid, seen, self.jaw)


@pytest.fixture(autouse=True)
def white(monkeypatch):
    monkeypatch.setitem(detectors.DETECTORS, "white", WhiteSquares)
    monkeypatch.setattr(detectors, "AUTO", {"white": lambda: True})


def photo(path, *squares, size=(120, 160)):
    image = np.zeros((*size, 3), np.uint8)
    for x, y, side in squares:
        image[y : y + side, x : x + side] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_points_and_picture(run, tmp_path):
    photo(tmp_path / "a.png", (40, 30, 50))
    result = run("detect", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    assert (
        result.output
        == f"detector: white\na.png: {tmp_path / 'a.pts'}, sigma 1.5 px (median), 17 points hidden\n"
    )
    assert names(tmp_path) == ["a.png", "a.pts", "landmarks/a_landmarks.png"]
    points = read_landmarks(tmp_path / "a.pts")
    np.testing.assert_allclose(points[:67, :2], SHAPE[:67] * 49 + [40, 30], atol=1e-3)
    assert np.isnan(points[67, 0])
    assert max(Image.open(tmp_path / "landmarks/a_landmarks.png").size) == 900


def test_folders_and_output(run, tmp_path):
    for name in ("anna/view10.png", "anna/view2.jpg", "other/c.png"):
        photo(tmp_path / name, (40, 30, 50))
    (tmp_path / "anna/notes.txt").write_text("no photo")
    result = run(
        "detect",
        tmp_path / "anna",
        tmp_path / "other/c.png",
        "-o",
        tmp_path / "out/deep",
        "--landmarks",
        "white",
    )
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "out/deep") == [
        "c.pts",
        "landmarks/c_landmarks.png",
        "landmarks/view10_landmarks.png",
        "landmarks/view2_landmarks.png",
        "view10.pts",
        "view2.pts",
    ]
    assert result.output.index("view2.jpg") < result.output.index("view10.png")


def test_a_fit_takes_the_files_and_not_the_pictures(run, tmp_path):
    from fitkit.io.subject import load_subject

    photo(tmp_path / "a.png", (40, 30, 50))
    assert run("detect", tmp_path).exit_code == 0
    subject = load_subject(tmp_path)
    assert [v.landmark_source for v in subject.views] == ["file"] and subject.notes == ()


@pytest.mark.parametrize("file", ["a.pts", "a.json"])
def test_files_made_by_hand_stay(run, tmp_path, file):
    photo(tmp_path / "a.png", (40, 30, 50)), photo(tmp_path / "b.png", (40, 30, 50))
    (tmp_path / file).write_text("by hand")
    result = run("detect", tmp_path)
    assert (
        result.exit_code == 0
        and f"a.png: kept {file}, which is there (--overwrite replaces it)" in result.output
    )
    assert (tmp_path / file).read_text() == "by hand" and (tmp_path / "b.pts").is_file()
    assert "landmarks/a_landmarks.png" not in names(tmp_path)
    assert run("detect", tmp_path, "--overwrite").exit_code == 0
    assert len(read_landmarks(tmp_path / "a.pts")) == 68


def test_captions_are_no_landmarks_and_names_may_differ_in_case(run, tmp_path):
    (
        photo(tmp_path / "a.png", (40, 30, 50)),
        photo(tmp_path / "B.PNG", (40, 30, 50)),
        photo(tmp_path / "c.png", (40, 30, 50)),
    )
    (tmp_path / "a.txt").write_text("a portrait of Anna")
    (tmp_path / "b.png.pts").write_text("by hand")
    (tmp_path / "landmarks").mkdir()
    (tmp_path / "landmarks" / "c.pts").write_text("by hand")
    result = run("detect", tmp_path)
    assert result.exit_code == 0 and (tmp_path / "a.pts").is_file()
    assert (
        "B.PNG: kept b.png.pts, which is there" in result.output
        and "c.png: kept landmarks/c.pts, which is there" in result.output
    )
    assert not (tmp_path / "B.pts").exists() and not (tmp_path / "c.pts").exists()


def test_bad_images_do_not_stop_the_others(run, tmp_path):
    photo(tmp_path / "black.png"), photo(tmp_path / "good.png", (40, 30, 50))
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "hand.pts").write_text("by hand")
    result = run("detect", tmp_path / "none.png", tmp_path / "empty", tmp_path / "hand.pts", tmp_path)
    assert result.exit_code == 1
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 5
    for text in (
        "hand.pts: expected a photo or a folder of photos, got a file with the name of landmarks",
        "none.png: no such image file",
        "empty: no images in this folder",
        "black.png: no face found",
        "text.jpg: not a readable image",
    ):
        assert sum(text in line for line in errors) == 1, errors
    assert (tmp_path / "good.pts").is_file() and not (tmp_path / "black.pts").exists()


def test_several_faces(run, tmp_path):
    photo(tmp_path / "a.png", (5, 5, 20), (60, 40, 50))
    result = run("detect", tmp_path / "a.png")
    assert "2 faces, the largest was taken" in result.output
    assert read_landmarks(tmp_path / "a.pts")[:67, 0].min() > 59


def test_two_photos_of_one_name(run, tmp_path):
    photo(tmp_path / "x/a.png", (40, 30, 50)), photo(tmp_path / "y/a.png", (40, 30, 50))
    result = run("detect", tmp_path / "x", tmp_path / "y", "-o", tmp_path / "out")
    assert (
        result.exit_code == 1
        and "a.pts already holds the landmarks of" in result.output
        and "rename one of the two" in result.output
    )
    assert run("detect", tmp_path / "x", tmp_path / "y").exit_code == 0


def test_nothing_is_left_of_a_failed_write(run, tmp_path, monkeypatch):
    from fitkit.export import landmark_picture

    def full(image, landmarks):
        raise OSError(28, "No space left on device")

    photo(tmp_path / "a.png", (40, 30, 50))
    monkeypatch.setattr(landmark_picture, "draw_landmarks", full)
    result = run("detect", tmp_path / "a.png")
    assert (
        result.exit_code == 1
        and "a.pts: cannot be written (No space left on device); choose another folder with -o"
        in result.output
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_refusals(run, tmp_path):
    path = photo(tmp_path / "a.png", (40, 30, 50))
    result = run("detect", path, "--landmarks", "whit")
    assert (
        result.exit_code == 1 and "unknown landmark detector 'whit'; did you mean 'white'?" in result.output
    )
    assert "nothing would be detected" in run("detect", path, "--landmarks", "files").output
    assert "device 'tpu9': cannot be used here" in run("detect", path, "--device", "tpu9").output
    assert run("detect").exit_code == 2
    assert "--parser tells which masks are made; add --masks" in run("detect", path, "--parser", "x").output
    (tmp_path / "file").touch()
    result = run("detect", path, "-o", tmp_path / "file")
    assert result.exit_code == 1 and "cannot be written" in result.output and result.output.count("\n") == 2


def test_help_has_an_example(run):
    assert "Example: fitkit detect " in run("detect", "--help").output


SAMPLE = Path(__file__).resolve().parents[2] / "examples/sample"


@pytest.mark.slow
@pytest.mark.skipif(
    not (SAMPLE.parents[1] / "assets" / WEIGHTS).is_file(), reason="the weights are not trained yet"
)
def test_detect_then_fit(run, tmp_path):
    for path in SAMPLE.glob("*.jpg"):
        shutil.copy(path, tmp_path)
    result = run("detect", tmp_path, "--landmarks", "builtin")
    assert result.exit_code == 0, result.output
    result = run("fit", tmp_path, "--recipe", "landmarks", "--no-pictures")
    assert result.exit_code == 0 and "found by detector" not in result.output, result.output
    for path in tmp_path.glob("*.pts"):
        path.unlink()
    again = ("--landmarks", "builtin", "--overwrite", "--no-pictures")
    result = run("fit", tmp_path, "--recipe", "landmarks", *again)
    assert result.exit_code == 0 and "found by detector 'builtin' in 3 photos" in result.output, result.output


def test_a_folder_that_holds_something_else_is_refused(run, tmp_path):
    photo(tmp_path / "photos" / "a.png", (40, 30, 50))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("")
    result = run("detect", tmp_path / "photos", "-o", tmp_path / "out")
    assert result.exit_code == 1 and "out: holds 'thesis.txt', which detect does not write" in result.output
    assert (
        run("detect", tmp_path / "photos", "-o", tmp_path / "photos").exit_code == 0
    )  # where it writes by itself
    (tmp_path / "out" / "thesis.txt").unlink()
    for overwrite in ([], ["--overwrite"]):
        assert run("detect", tmp_path / "photos", "-o", tmp_path / "out", *overwrite).exit_code == 0


# ---- masks ----


@pytest.fixture
def light_is_head(monkeypatch):
    from fitkit.fitting import head_masks
    from fitkit.nets.parser import photos

    asked = []
    monkeypatch.setattr(
        head_masks, "load_parser", lambda weights="", device="cpu": asked.append(weights) or True
    )
    monkeypatch.setattr(
        photos, "parse_photo", lambda parser, image, points: (image[..., 0] > 128).astype(np.uint8)
    )
    return asked


def test_masks_beside_the_landmarks(run, tmp_path, light_is_head):
    photo(tmp_path / "a.png", (40, 30, 50))
    result = run("detect", tmp_path, "--masks", "--parser", tmp_path / "p.safetensors")
    assert result.exit_code == 0, result.output
    assert names(tmp_path) == ["a.png", "a.pts", "landmarks/a_landmarks.png", "masks/a.png"]
    assert "13 % of the photo is the head" in result.output and light_is_head == [
        str(tmp_path / "p.safetensors")
    ]
    mask = np.asarray(Image.open(tmp_path / "masks" / "a.png"))
    np.testing.assert_array_equal(mask > 0, np.asarray(Image.open(tmp_path / "a.png"))[..., 0] > 128)
    from fitkit.io.subject import load_subject

    np.testing.assert_array_equal(load_subject(tmp_path).views[0].mask, mask > 0)


def test_masks_are_kept_unless_asked_for(run, tmp_path, light_is_head):
    photo(tmp_path / "a.png", (40, 30, 50))
    run("detect", tmp_path, "--masks")
    before = (tmp_path / "masks" / "a.png").read_bytes()
    photo(tmp_path / "a.png", (10, 10, 20))
    result = run("detect", tmp_path, "--masks")
    assert "kept masks/a.png" in result.output and (tmp_path / "masks" / "a.png").read_bytes() == before
    assert run("detect", tmp_path, "--masks", "--overwrite").exit_code == 0
    assert (tmp_path / "masks" / "a.png").read_bytes() != before


# ---- a mirror of a whole tree ----


def test_a_tree_gets_its_landmark_files_once(run, tmp_path):
    root, out = tmp_path / "data", tmp_path / "data" / "marks"
    photo(root / "s1" / "a.png", (40, 30, 50))
    photo(root / "s2" / "deep" / "b.jpg", (20, 30, 60))
    photo(root / "s2" / "none.png")
    photo(root / ".hidden" / "c.png", (20, 30, 60))
    for other in ("s1/landmarks/a_landmarks.png", "s1/masks/a.png", "s1/fitkit/preview.png"):
        photo(root / other, (20, 30, 60))  # no photos of subjects
    (root / "s1" / "broken.png").write_text("no picture")
    result = run("detect", root, "--tree", "-o", out, "--landmarks", "white")
    assert result.exit_code == 1 and "broken.png" in result.output, result.output
    assert (
        "4 photos: 2 landmark files written, 1 without a face" in result.output
        and "1 with an error" in result.output
    )
    assert names(out) == ["no_face.txt", "s1/a.pts", "s2/deep/b.pts"]
    points = read_landmarks(out / "s1" / "a.pts")
    assert np.allclose(points[:67, :2], SHAPE[:67] * 49 + [40, 30], atol=1e-3) and points[67, 2] == 0
    before = (out / "s1" / "a.pts").stat().st_mtime_ns
    (root / "s1" / "broken.png").unlink()
    photo(root / "s1" / "new.png", (40, 30, 50))
    result = run("detect", root, "--tree", "-o", out, "--landmarks", "white")
    assert result.exit_code == 0 and "1 photos: 1 landmark files written, 0 without" in result.output
    assert (out / "s1" / "a.pts").stat().st_mtime_ns == before and (
        out / "no_face.txt"
    ).read_text() == "s2/none.png\n"
    result = run("detect", root, "--tree", "-o", out, "--landmarks", "white", "--overwrite")
    assert "4 photos: 3 landmark files written, 1 without" in result.output


def test_what_is_no_tree(run, tmp_path):
    photo(tmp_path / "data" / "a.png", (40, 30, 50))
    out = tmp_path / "out"
    for arguments, message in (
        ((tmp_path / "data",), "--tree: expected one folder and -o DIR"),
        ((tmp_path / "data", tmp_path / "data", "-o", out), "--tree: expected one folder and -o DIR"),
        ((tmp_path / "none", "-o", out), "none: no such folder; expected a tree of photos"),
        ((tmp_path / "data", "-o", tmp_path), "the photos lie in it; choose another folder with -o"),
        ((tmp_path / "data", "-o", out, "--masks"), "--tree writes landmark files only"),
        ((tmp_path / "data", "-o", out, "--workers", "0"), "workers: expected at least 1, got 0"),
    ):
        result = run(
            "detect", *arguments, "--tree", *(() if "--landmarks" in arguments else ("--landmarks", "white"))
        )
        assert result.exit_code == 1 and message in " ".join(result.output.split()), result.output
    (tmp_path / "empty").mkdir()
    assert "no photos below it" in run("detect", tmp_path / "empty", "--tree", "-o", out).output
    photo(tmp_path / "data" / "a.jpg", (40, 30, 50))
    result = run("detect", tmp_path / "data", "--tree", "-o", out, "--landmarks", "white")
    assert "would have the landmark file of" in " ".join(result.output.split())
