import json

import numpy as np
import pytest
import scipy.io
import torch
from click.testing import CliRunner
from helpers import dotted_faces, face_points
from PIL import Image

from fitkit.cli.main import main
from fitkit.data.landmark_frames import held_out
from fitkit.errors import InputError
from fitkit.evaluate import landmark_accuracy
from fitkit.evaluate.landmark_accuracy import (
    interocular_distance,
    labelled_pictures,
    measure,
    normalized_mean_error,
    summarize,
)
from fitkit.io.landmark_files import read_landmarks, write_pts
from fitkit.io.mesh_files import write_ply
from fitkit.observe.landmarks.types import Landmarks, box_size


class Teller:
    """A detector that knows the labels and answers with a shift in px; sigma as told."""

    name, scheme, jaw = "teller", "ibug68", "outline"

    def __init__(self, answers, shift=(0.0, 0.0), sigma=1.0):
        self.answers, self.shift, self.sigma = iter(answers), torch.tensor(shift), sigma

    def detect_all(self, image):
        points = torch.from_numpy(next(self.answers)).float()[None]
        seen = torch.isfinite(points).all(-1)
        return [Landmarks(points + self.shift, torch.full((1, 68), self.sigma), seen, seen.float(), self.jaw)]


def told(monkeypatch, folder, everyone=True, **options):
    answers = [p.points for p in labelled_pictures(folder, everyone)]
    monkeypatch.setattr(
        landmark_accuracy, "make_detector", lambda name, device: Teller([answers[0], *answers], **options)
    )
    return measure(folder, "teller", everyone)


def test_error_of_a_shift_is_the_shift_over_the_size():
    truth = torch.from_numpy(np.stack([face_points((100, 100), 80), face_points((50, 60), 40)]))
    valid = torch.ones(2, 68, dtype=torch.bool)
    assert normalized_mean_error(truth, truth, valid, box_size(truth)).tolist() == [0, 0]
    moved = truth + torch.tensor([3.0, 4.0])
    assert normalized_mean_error(moved, truth, valid, torch.tensor([100.0, 50.0])).tolist() == pytest.approx(
        [0.05, 0.1]
    )


def test_points_that_do_not_count_change_nothing():
    truth = torch.from_numpy(face_points((100, 100), 80))[None]
    moved, valid = truth.clone(), torch.ones(1, 68, dtype=torch.bool)
    moved[0, :10] += 1000
    valid[0, :10] = False
    assert float(normalized_mean_error(moved, truth, valid, torch.ones(1))[0]) == 0
    assert torch.isnan(
        normalized_mean_error(moved, truth, torch.zeros(1, 68, dtype=torch.bool), torch.ones(1))
    )[0]


def test_sizes_are_those_of_the_box_and_the_outer_eye_corners():
    points = torch.zeros(1, 68, 2)
    points[0, 3], points[0, 4] = torch.tensor([16.0, 0.0]), torch.tensor([0.0, 9.0])
    points[0, 36], points[0, 45] = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0])
    assert float(box_size(points)[0]) == 12 and float(interocular_distance(points)[0]) == 5


def test_a_tree_counts_only_people_held_out(tmp_path):
    people = [f"p{i}" for i in range(12)]
    dotted_faces(tmp_path, people, frames=1)
    out = labelled_pictures(tmp_path)
    assert [p.path.parent.name for p in out] == sorted(n for n in people if held_out(n))
    assert len(labelled_pictures(tmp_path, everyone=True)) == 12 and out[0].jaw == "outline"


def test_shifted_answers_give_the_shift(tmp_path, monkeypatch):
    dotted_faces(tmp_path, ["p0", "p1"], frames=2)
    sizes = [float(box_size(torch.from_numpy(p.points)[None])[0]) for p in labelled_pictures(tmp_path, True)]
    report = told(monkeypatch, tmp_path, shift=(0.6, 0.8))
    assert report["summary"]["nme_mean"] == pytest.approx(100 * np.mean(1 / np.array(sizes)), rel=1e-5)
    assert report["summary"]["found_percent"] == 100 and report["summary"]["failures_percent"] == 0
    assert told(monkeypatch, tmp_path)["summary"]["nme_mean"] == pytest.approx(0, abs=1e-4)


def test_missing_labels_do_not_count(tmp_path, monkeypatch):
    dotted_faces(tmp_path, ["a"], frames=2)
    first, second = sorted(tmp_path.rglob("*.pts"))
    points = read_landmarks(first)
    points[[36, 60]] = np.nan  # an outer eye corner, so there is no interocular distance
    write_pts(first, points[:, :2])
    report = told(monkeypatch, tmp_path, shift=(3.0, 4.0))
    one, other = report["rows"]
    size = box_size(torch.from_numpy(points[None, :, :2]))
    assert one["interocular"] is None and one["nme"] == pytest.approx(500 / float(size), rel=1e-5)
    assert report["summary"]["interocular_mean"] == other["interocular"]
    json.dumps(report, allow_nan=False)
    write_pts(first, np.full((68, 2), np.nan))
    with pytest.raises(InputError, match=f"{first.name}: expected labelled points, got none; take the file"):
        labelled_pictures(tmp_path, everyone=True)


def test_a_picture_without_a_common_point_has_no_error():
    row = {"picture": "a", "yaw": 10.0, "found": True, "nme": None, "interocular": None, "seconds": 0.1}
    out = summarize([row], np.zeros(0), np.zeros(0))
    assert out["found_percent"] == 100 and "nme_mean" not in out and out["nme_yaw_0_30"] is None


def test_another_face_in_the_picture_is_not_the_face(tmp_path, monkeypatch):
    dotted_faces(tmp_path, ["p0"], frames=1)
    report = told(monkeypatch, tmp_path, shift=(150.0, 0.0))
    assert report["summary"]["found_percent"] == 0 and "nme_mean" not in report["summary"]


def aflw(folder, yaws):
    for i, yaw in enumerate(yaws):
        Image.fromarray(np.full((450, 450, 3), 100, np.uint8)).save(folder / f"image{i}.jpg")
        points = face_points((225, 225), 200) + 1
        scipy.io.savemat(
            folder / f"image{i}.mat",
            {
                "pt3d_68": np.vstack([points.T, np.zeros(68)]),
                "Pose_Para": np.radians([[0.0, yaw, 0, 0, 0, 0, 0]]),
            },
        )


def test_aflw_labels_count_from_one_and_fall_into_yaw_bins(tmp_path, monkeypatch):
    aflw(tmp_path, [0, 30, 31, -75])
    pictures = labelled_pictures(tmp_path)
    assert pictures[0].points == pytest.approx(face_points((225, 225), 200)) and pictures[0].jaw == "surface"
    assert [round(p.yaw) for p in pictures] == [0, 30, 31, -75]
    report = told(monkeypatch, tmp_path, shift=(3.0, 4.0))
    value = 500 / float(box_size(torch.from_numpy(pictures[0].points)[None])[0])
    assert [report["summary"][f"nme_yaw_{a}_{b}"] for a, b in ((0, 30), (30, 60), (60, 90))] == pytest.approx(
        [value] * 3, rel=1e-5
    )


def bench_folder(folder):
    """A sphere with points on its equator, seen from the front: those on the far half are hidden."""
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=4, radius=50.0)
    angle = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    points = np.stack([50 * np.sin(angle), 10 * np.ones(68), 50 * np.cos(angle)], 1)
    points[:, [0, 2]] *= np.sqrt(1 - 0.04)
    truth = folder / "ground_truth" / "ball"
    truth.mkdir(parents=True)
    (folder / "ball").mkdir()
    Image.fromarray(np.full((200, 200, 3), 100, np.uint8)).save(folder / "ball" / "view0.png")
    write_ply(
        truth / "mesh.ply", torch.from_numpy(ball.vertices).float(), torch.from_numpy(np.array(ball.faces))
    )
    np.save(truth / "landmarks3d.npy", points)
    view = {
        "image": "view0.png",
        "mesh": "mesh.ply",
        "K": [[1000, 0, 99.5], [0, 1000, 99.5], [0, 0, 1]],
        "R": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
        "t": [0, 0, 1000],
    }
    (truth / "cameras.json").write_text(json.dumps({"views": [view]}))
    return points


def test_benchmark_points_are_projected_and_those_behind_do_not_count(tmp_path):
    points = bench_folder(tmp_path)
    (picture,) = labelled_pictures(tmp_path)
    depth = 1000 - points[:, 2]
    assert picture.points == pytest.approx(
        np.stack([99.5 + 1000 * points[:, 0] / depth, 99.5 - 1000 * points[:, 1] / depth], 1)
    )
    clear = np.abs(points[:, 2]) > 10  # the rim is hidden or not by a hair
    assert (picture.counted[clear] == (points[clear, 2] > 0)).all()
    assert picture.yaw == pytest.approx(0)
    points[0] = np.nan  # at the front
    np.save(tmp_path / "ground_truth/ball/landmarks3d.npy", points)
    (again,) = labelled_pictures(tmp_path)
    assert picture.counted[0] and not again.counted[0] and np.isnan(again.points[0]).all()
    np.testing.assert_array_equal(again.points[1:], picture.points[1:])


def test_reliability_is_one_for_honest_sigmas():
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.01, 0.05, 5000)
    error = np.linalg.norm(rng.normal(size=(5000, 2)) * sigma[:, None], axis=1)
    row = {"picture": "a", "yaw": None, "found": True, "nme": 1.0, "interocular": 2.0, "seconds": 0.1}
    out = summarize([row], sigma, error)
    assert out["sigma_over_error"] == pytest.approx(1.0, rel=0.03)
    assert 0.4 < out["sigma_correlation"] < 0.8 and 0.4 < out["sigma_rank_correlation"] < 0.8
    assert summarize([row], rng.permutation(sigma), error)["sigma_correlation"] == pytest.approx(0, abs=0.05)


def test_user_errors_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no such folder; expected pictures with landmark labels"):
        labelled_pictures(tmp_path / "missing")
    names = [n for n in (f"p{i}" for i in range(9)) if not held_out(n)][:2]
    dotted_faces(tmp_path / "seen", names, frames=1)
    with pytest.raises(InputError, match="nobody in it is held out from training; use --everyone"):
        labelled_pictures(tmp_path / "seen")
    (tmp_path / "aflw").mkdir()
    aflw(tmp_path / "aflw", [0])
    scipy.io.savemat(
        tmp_path / "aflw" / "image0.mat", {"pt3d_68": np.zeros((3, 21)), "Pose_Para": np.zeros((1, 7))}
    )
    with pytest.raises(InputError, match=r"image0\.mat: pt3d_68: expected \[3, 68\], got \[3, 21\]"):
        labelled_pictures(tmp_path / "aflw")
    (tmp_path / "aflw" / "image0.mat").write_bytes(b"no matlab file, but long enough to be read as one" * 9)
    with pytest.raises(InputError, match=r"image0\.mat: cannot be read as labels of AFLW2000-3D"):
        labelled_pictures(tmp_path / "aflw")
    (tmp_path / "empty" / "ground_truth").mkdir(parents=True)
    with pytest.raises(InputError, match="no ground_truth/SUBJECT/cameras.json in it"):
        labelled_pictures(tmp_path / "empty")


def test_command_prints_the_summary_and_writes_json(tmp_path, monkeypatch):
    dotted_faces(tmp_path / "tree", ["p0"], frames=2)
    answers = [p.points for p in labelled_pictures(tmp_path / "tree", True)]
    monkeypatch.setattr(
        landmark_accuracy, "make_detector", lambda name, device: Teller([answers[0], *answers])
    )
    result = CliRunner().invoke(
        main,
        ["bench", "landmarks", str(tmp_path / "tree"), "--everyone", "--json", str(tmp_path / "out.json")],
    )
    assert result.exit_code == 0 and "NME mean, %" in result.output
    report = json.loads((tmp_path / "out.json").read_text())
    assert [r["found"] for r in report["rows"]] == [True, True] and report["machine"]["versions"]["torch"]
