import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from helpers import tiny_model, write_pts
from layouts import person as tiny_person
from PIL import Image

from fitkit.cli.main import main
from fitkit.data.photo_halves import PhotoHalves, draw_halves, half_samples
from fitkit.errors import FitError, InputError
from fitkit.evaluate import methods
from fitkit.evaluate.compare import read_report
from fitkit.evaluate.methods import Method
from fitkit.evaluate.predictions import read_prediction
from fitkit.evaluate.recipe import load_evaluate_recipe
from fitkit.evaluate.report import report_text
from fitkit.evaluate.run import evaluate
from fitkit.evaluate.split_halves import (
    by_person,
    face_distances,
    identify,
    overall_scores,
    pair_scores,
    split_half_scores,
)
from fitkit.geometry.rotation import so3_exp
from fitkit.models.io import save_model_file


def sphere(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """A closed ball of radius 100 mm with nearly even vertices, and its triangles."""
    from scipy.spatial import ConvexHull

    k = np.arange(count) + 0.5
    polar, turn = np.arccos(1 - 2 * k / count), np.pi * (1 + 5**0.5) * k
    points = 100 * np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], -1)
    triangles = ConvexHull(points).simplices.astype(np.int64)
    a, b, c = (points[triangles[:, i]] for i in range(3))
    inside = (np.cross(b - a, c - a) * a).sum(-1) < 0
    triangles[inside] = triangles[inside][:, ::-1]
    return points, triangles


def people(count: int, noise: float, person: float = 1.0, seed: int = 0) -> np.ndarray:
    """[N, 2, V, 3]: each person's own shape, plus noise of each half; coefficients of the tiny model."""
    model, rng = tiny_model(), np.random.default_rng(seed)
    codes = person * rng.normal(size=(count, 1, model.num_identity)) + noise * rng.normal(
        size=(count, 2, model.num_identity)
    )
    return model.mean.double().numpy() + np.einsum(
        "nhk,kvc->nhvc", codes, model.identity_basis.double().numpy()
    )


# ---- distances ----


def test_distance_is_that_of_the_formula():
    model = tiny_model()
    meshes = people(3, 0.5).reshape(6, -1, 3)
    along, point = face_distances(torch.from_numpy(meshes), model.triangles, model.face)
    face, triangles = model.face.numpy(), model.triangles.numpy()

    def one(a, b):  # step by step: scipy-free Procrustes of b onto a, triangle by triangle normals
        x, y = b[face], a[face]
        xc, yc = x - x.mean(0), y - y.mean(0)
        U, D, Vt = np.linalg.svd(yc.T @ xc)
        S = np.diag([1, 1, np.sign(np.linalg.det(U @ Vt))])
        moved = (np.trace(np.diag(D) @ S) / (xc**2).sum()) * xc @ (U @ S @ Vt).T + y.mean(0)
        normals = np.zeros_like(a)
        for t in triangles:
            for corner in t:
                normals[corner] += np.cross(a[t[1]] - a[t[0]], a[t[2]] - a[t[0]])
        normals = normals[face] / np.linalg.norm(normals[face], axis=1, keepdims=True)
        return np.abs(((moved - y) * normals).sum(1)).mean(), np.linalg.norm(moved - y, axis=1).mean()

    for a, b in ((0, 1), (0, 4), (2, 5)):
        expected = (np.array(one(meshes[a], meshes[b])) + one(meshes[b], meshes[a])) / 2
        np.testing.assert_allclose([along[a, b], point[a, b]], expected, rtol=1e-9)
    assert (
        torch.equal(along, along.T)
        and float(along.diagonal().abs().max()) == 0
        and bool((along <= point + 1e-12).all())
    )


def test_size_and_place_do_not_count_and_a_bump_counts_by_its_height():
    points, triangles = sphere()
    everywhere = torch.ones(len(points), dtype=torch.bool)
    moved = 1.2 * points @ so3_exp(torch.tensor([0.4, -1.0, 2.0]).double()).numpy().T + [10, 20, 30]
    # 1 mm out or in, without a pattern.
    bumpy = points * (1 + 0.01 * np.sign(np.sin(7 * np.arange(len(points)))))[:, None]
    along, point = face_distances(
        torch.from_numpy(np.stack([points, moved, bumpy])), torch.from_numpy(triangles), everywhere
    )
    assert float(along[0, 1]) < 1e-9 and float(point[0, 1]) < 1e-9
    # 1 mm; the similarity and the bent normals of the bumpy mesh take a few per cent of it.
    assert float(along[0, 2]) == pytest.approx(1.0, abs=0.1) and float(point[0, 2]) == pytest.approx(
        1.0, abs=0.02
    )


def test_sliding_within_the_surface_counts_only_from_point_to_point():
    points, triangles = sphere(2000)
    # Both halves turn against each other.
    slid = points + 2 * np.cross([0, 0, 1], points) * np.sign(points[:, 2:]) / 100
    slid *= 100 / np.linalg.norm(slid, axis=1, keepdims=True)
    along, point = face_distances(
        torch.from_numpy(np.stack([points, slid])),
        torch.from_numpy(triangles),
        torch.ones(2000, dtype=torch.bool),
    )
    assert float(point[0, 1]) > 1.2 and float(along[0, 1]) < 0.05 * float(point[0, 1])


def test_only_the_face_is_compared():
    model = tiny_model()
    meshes = torch.from_numpy(people(2, 0.0)[:, 0])
    before = face_distances(meshes, model.triangles, model.face)[1]
    meshes[0, ~model.face] += 50.0
    np.testing.assert_allclose(face_distances(meshes, model.triangles, model.face)[1], before, atol=0)


# ---- ranks ----


def on_a_line(*places: float) -> np.ndarray:
    """Distances of points on a line: every rank can be read off."""
    x = np.array(places)
    return np.abs(x[:, None] - x[None])


def test_ranks_that_can_be_read_off():
    # a a b b c c: b's second half lies nearer to c's first one than to its own.
    distance, person = on_a_line(0, 1, 10, 14, 16, 17), ["a", "a", "b", "b", "c", "c"]
    found = identify(distance, person)
    np.testing.assert_array_equal(found.identified, [1, 1, 1, 0, 1, 1])
    np.testing.assert_allclose(found.within, [1, 1, 4, 4, 1, 1])
    np.testing.assert_allclose(found.nearest, [10, 9, 6, 2, 2, 3])
    np.testing.assert_allclose(found.between[:2], [(10 + 14 + 16 + 17) / 4, (9 + 13 + 15 + 16) / 4])
    scores = overall_scores(distance, distance, person, person, np.ones(6))
    pairs = [(a, b) for a in range(6) for b in range(a + 1, 6)]
    between = [distance[a, b] for a, b in pairs if person[a] != person[b]]
    within = [distance[a, b] for a, b in pairs if person[a] == person[b]]
    assert scores["rank1_percent"] == pytest.approx(100 * 5 / 6) and scores["chance_percent"] == 20
    assert scores["within"] == pytest.approx(2) and scores["between"] == pytest.approx(np.mean(between))
    assert scores["ratio"] == pytest.approx(2 / np.mean(between))
    assert scores["separated"] == pytest.approx(
        np.mean([(w < b) + 0.5 * (w == b) for w in within for b in between])
    )
    assert scores["rank1_low"] <= scores["rank1_percent"] <= scores["rank1_high"] and scores["from_mean"] == 1


def test_failed_fits_are_misses_and_so_are_their_other_halves():
    everyone = ["a", "a", "b", "b", "c", "c"]
    keep = [0, 1, 2, 4, 5]
    person = [everyone[i] for i in keep]
    distance = on_a_line(0, 1, 10, 14, 16, 17)[np.ix_(keep, keep)]
    found = identify(distance, person)
    np.testing.assert_array_equal(found.identified, [1, 1, 0, 1, 1])
    assert np.isnan(found.within[2]) and found.nearest[2] == 6
    scores = overall_scores(distance, distance, person, everyone, np.ones(5))
    assert (
        scores["rank1_percent"] == pytest.approx(100 * 4 / 6)
        and scores["halves"] == 5
        and scores["people"] == 3
    )


def test_equal_faces_identify_by_chance():
    # Every half is the mean face: the mate is one of 7 equally near ones.
    vertices = np.broadcast_to(tiny_model().mean.numpy(), (4, 2, 315, 3)).copy()
    scores = split_half_scores(vertices, tiny_model().triangles, mean=tiny_model().mean)
    np.testing.assert_allclose(scores.halves.identified, 1 / 7)
    assert (
        scores.overall["rank1_percent"] == pytest.approx(scores.overall["chance_percent"])
        and "ratio" not in scores.overall
    )
    assert scores.overall["separated"] == pytest.approx(0.5) and scores.overall["from_mean"] == pytest.approx(
        0, abs=1e-9
    )


def test_what_is_not_there_has_no_number():
    assert pair_scores(np.zeros((1, 1)), ["a"]) == {} and overall_scores(
        np.zeros((0, 0)), np.zeros((0, 0)), [], ["a", "a"], []
    ) == {"people": 1, "halves": 0}
    alone = identify(on_a_line(0, 1), ["a", "a"])
    np.testing.assert_array_equal(alone.within, [1, 1])
    assert np.isnan([*alone.between, *alone.nearest, *alone.identified]).all()
    assert "rank1_percent" not in overall_scores(on_a_line(0, 1), on_a_line(0, 1), ["a", "a"], ["a", "a"], [])


def test_arrays_are_scored_as_brute_force_does():
    model, vertices = tiny_model(), people(6, 0.6)
    valid = np.ones((6, 2), bool)
    valid[2, 1] = False
    vertices[2, 1] = np.nan
    scores = split_half_scores(vertices, model.triangles, model.face, model.mean, valid)
    halves = [(n, k) for n in range(6) for k in range(2) if valid[n, k]]
    assert (
        np.isnan(scores.along[5]).all() and np.isnan(scores.from_mean[5]) and scores.halves.identified[5] == 0
    )
    hits, within, between = 0, [], []
    for n, k in halves:
        others = {(m, j): scores.along[2 * n + k, 2 * m + j] for m, j in halves if (m, j) != (n, k)}
        hits += min(others, key=others.get)[0] == n
        within += [d for (m, _), d in others.items() if m == n]
        between += [d for (m, _), d in others.items() if m != n]
    assert scores.overall["rank1_percent"] == pytest.approx(100 * hits / 12)
    assert scores.overall["within"] == pytest.approx(np.mean(within)) and scores.overall[
        "between"
    ] == pytest.approx(np.mean(between))
    d = face_distances(
        torch.from_numpy(np.stack([vertices[3, 0], model.mean.double().numpy()])), model.triangles, model.face
    )[0]
    assert scores.from_mean[6] == pytest.approx(float(d[0, 1]))


def test_noise_and_shrinking_cost_identification():
    model = tiny_model()
    scores = [
        split_half_scores(people(20, n, p), model.triangles, model.face, model.mean).overall
        for n, p in ((0.05, 1.0), (0.7, 1.0), (0.7, 0.0))
    ]
    assert scores[0]["rank1_percent"] == 100 and scores[0]["ratio"] < 0.15 and scores[0]["separated"] == 1
    assert 20 < scores[1]["rank1_percent"] < 100
    # No person in the shapes: both halves are as far apart as two people, the nearest is one of 39.
    assert scores[2]["rank1_percent"] < 15 and scores[2]["ratio"] == pytest.approx(1, abs=0.15)
    assert scores[2]["separated"] == pytest.approx(0.5, abs=0.15)
    # Half the size of everything: the ratio stays, the distance from the mean does not.
    half = split_half_scores(
        0.5 * (people(20, 0.7) - model.mean.numpy()) + model.mean.numpy(),
        model.triangles,
        model.face,
        model.mean,
    )
    assert half.overall["ratio"] == pytest.approx(scores[1]["ratio"], rel=0.02)
    assert half.overall["from_mean"] == pytest.approx(scores[1]["from_mean"] / 2, rel=0.03)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((np.zeros((4, 5, 3)),), r"vertices: expected \[N, 2, V, 3\], got \[4, 5, 3\]"),
        (
            (np.zeros((4, 2, 5, 3)), np.ones(4, bool)),
            r"face: expected \[5\] for vertices \[4, 2, 5, 3\], got \[4\]",
        ),
        ((np.zeros((4, 2, 5, 3)), None, np.zeros((4, 3))), r"mean: expected \[5, 3\]"),
        ((np.zeros((4, 2, 5, 3)), None, None, np.ones(8, bool)), r"valid: expected \[4, 2\].*got \[8\]"),
    ],
)
def test_arrays_of_another_shape(arguments, message):
    with pytest.raises(InputError, match=message):
        split_half_scores(arguments[0], np.array([[0, 1, 2]]), *arguments[1:])


# ---- drawing the halves ----


def test_halves_are_disjoint_and_as_the_options_say():
    names = [f"{i:02}" for i in range(9)]
    assert draw_halves(names, 4) == (["00", "02", "05", "07"], ["01", "03", "06", "08"])
    assert draw_halves(names, 4, "blocks") == (["00", "01", "02", "03"], ["05", "06", "07", "08"])
    assert draw_halves(names, 1) == (["00"], ["08"])  # neighbours of a video are nearly the same photo
    for photos in (1, 2, 3, 4):
        for draw in ("alternate", "blocks", "random"):
            a, b = draw_halves(names, photos, draw, 3, "anna")
            assert (
                len(set(a) | set(b)) == 2 * photos
                and len(a) == len(b) == photos
                and a == sorted(a)
                and b == sorted(b)
            )
    assert draw_halves(names, 4, "random", 1, "anna") == draw_halves(names, 4, "random", 1, "anna")
    assert len({str(draw_halves(names, 4, "random", s, p)) for s in range(3) for p in ("anna", "ben")}) == 6
    with pytest.raises(InputError, match="anna: expected at least 10 photos, got 9"):
        draw_halves(names, 5, person="anna")


@pytest.fixture
def folder(tmp_path):
    """anna 4, ben 3, carl 5, dora 4 photos; the faces of carl's first two are small."""
    points = tiny_person().result.landmarks.points[0].numpy()
    side = float((points.max(0) - points.min(0)).max())
    for name, count in (("anna", 4), ("ben", 3), ("carl", 5), ("dora", 4)):
        for i in range(count):
            path = tmp_path / "people" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((160, 160, 3), 90, np.uint8)).save(path)
            write_pts(path.with_suffix(".pts"), points * (0.5 if name == "carl" and i < 2 else 1.0))
    return tmp_path / "people", side


def chosen(folder, **options) -> list[str]:
    return [s.id for s in half_samples(folder, PhotoHalves(**options))]


def test_people_are_chosen_by_name_and_number_of_photos(folder):
    root, side = folder
    assert chosen(root, photos=2) == [f"{n}/half{k}" for n in ("anna", "carl", "dora") for k in range(2)]
    assert chosen(root, photos=2, people=2) == ["anna/half0", "anna/half1", "carl/half0", "carl/half1"]
    assert chosen(root, photos=2, skip=2) == [
        "dora/half0",
        "dora/half1",
    ]  # together with people=2: everybody once
    assert chosen(root, photos=2, skip=1, people=1) == ["carl/half0", "carl/half1"]
    assert len(chosen(root, photos=1)) == 8 and chosen(root / "anna", photos=2) == [
        "anna/half0",
        "anna/half1",
    ]
    # Three of carl's photos have a face of the full size, two of half the size.
    assert chosen(root, photos=2, min_face_px=0.9 * side) == [
        "anna/half0",
        "anna/half1",
        "dora/half0",
        "dora/half1",
    ]
    assert chosen(root, photos=1, max_face_px=0.6 * side) == ["carl/half0", "carl/half1"]
    sample = half_samples(root, PhotoHalves(photos=1, max_face_px=0.6 * side))[1]
    assert [v.name for v in sample.subject().views] == ["1"] and sample.truth() is None
    (root / "anna" / "0.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="the photo '0' cannot be read"):
        half_samples(root, PhotoHalves(photos=2))[0].subject()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"photos": 0}, "options.photos: expected a whole number from 1 to 1000000, got 0"),
        ({"skip": -1}, "options.skip: expected a whole number from 0 to"),
        ({"min_face_px": 9.0, "max_face_px": 5.0}, "expected min <= max"),
        ({"photos": 3}, "0 people have at least 6 photos, 0 of them are skipped"),
        ({"photos": 2, "skip": 3}, "3 people have at least 4 photos, 3 of them are skipped"),
        ({"photos": 2, "min_face_px": 900.0}, "4 photos whose face is at least 900 px"),
    ],
)
def test_refusals(folder, options, message):
    with pytest.raises(InputError, match=message):
        half_samples(folder[0], PhotoHalves(**options))


def test_no_such_folder(tmp_path):
    for name in ("split_halves", "held_out"):
        result = CliRunner().invoke(
            main, ["evaluate", name, str(tmp_path / "none"), "-o", str(tmp_path / "out")]
        )
        assert (
            result.exit_code == 1 and "no such folder; expected a folder of subject folders" in result.output
        )


# ---- the protocol ----


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three tiny people with four photos each, and their model as a file."""
    root = tmp_path_factory.mktemp("halves")
    for seed, name in enumerate(("anna", "ben", "carl")):
        p = tiny_person(seed=seed + 1, views=4)
        for view in range(4):
            p.photo(root / "people" / name / f"{view}.png", view)
    return root / "people", str(save_model_file(tiny_model(), root / "tiny.npz"))


def recipe(data, *overrides, name="split_halves"):
    return load_evaluate_recipe(
        name,
        ["fit=landmarks", *(("options.photos=2",) if name == "split_halves" else ()), *overrides],
        {"model": data[1]},
    )


@pytest.mark.slow
def test_end_to_end(data, tmp_path):
    result = CliRunner().invoke(
        main,
        [
            "evaluate",
            "split_halves",
            str(data[0]),
            "fit=landmarks",
            "options.photos=2",
            "--model",
            data[1],
            "-o",
            str(tmp_path),
            "-q",
        ],
    )
    report = read_report(tmp_path / "metrics.json")
    assert result.exit_code == 0 and [r["id"] for r in report["rows"]][:2] == ["anna/half0", "anna/half1"]
    line = report["overall"]["split halves"]
    # Exact landmarks of faces of the model: both halves find the person.
    assert (
        line["rank1_percent"] == 100 and line["ratio"] < 0.7 and line["people"] == 3 and line["halves"] == 6
    )
    assert sum(report["overall"]["fits"].values()) == 6 and report["overall"]["fits"]["failed"] == 0
    anna = report["overall"]["people"]["anna"]
    rows = report["rows"][:2]
    assert (
        anna["within"] == rows[0]["within"] == rows[1]["within"]
        and anna["identified"] == 1
        and len(anna["status"]) == 2
    )
    assert (
        anna["identity_rms"] == pytest.approx(np.mean([r["identity_rms"] for r in rows]))
        and rows[0]["error_bar"] > 0
    )
    assert "\nsplit halves: people 3, halves 6, within " in result.output and "\nfits: ok " in result.output
    assert "\npeople:" not in result.output  # a table of tables is for the file
    # The same numbers from the vertices alone.
    model = tiny_model()
    meshes = [
        [read_prediction(tmp_path / "predictions", f"{n}/half{k}") for k in range(2)]
        for n in ("anna", "ben", "carl")
    ]
    scores = split_half_scores(
        np.array([[m.vertices for m in pair] for pair in meshes]), model.triangles, model.face, model.mean
    )
    assert {k: pytest.approx(v, rel=1e-5) for k, v in scores.overall.items()} == line
    codes = meshes[0][0].parameters().state.identity[0].numpy()
    assert rows[0]["identity_rms"] == pytest.approx(float(np.sqrt((codes**2).mean())), rel=1e-5)


def test_resume_and_options_are_kept(data, tmp_path, monkeypatch):
    made, real = [], Method.predict
    monkeypatch.setattr(
        Method, "predict", lambda self, name, *rest: made.append(name) or real(self, name, *rest)
    )
    settled = recipe(data, "predictor=mean")
    evaluate(settled, data[0], tmp_path, limit=3)
    report = evaluate(settled, data[0], tmp_path, resume=True)
    assert made == [r["id"] for r in report["rows"]] and len(made) == 6
    line = report["overall"]["split halves"]
    assert (
        line["rank1_percent"] == pytest.approx(20)
        and "ratio" not in line
        and report["rows"][0]["identity_rms"] is None
    )
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["options"]["photos"] == 2


def test_other_photos_in_the_halves_are_not_taken_for_the_same(data, tmp_path):
    evaluate(recipe(data, "predictor=mean"), data[0], tmp_path)
    with pytest.raises(InputError, match="made with another recipe or model, or from other photos"):
        evaluate(recipe(data, "predictor=mean", "options.draw=blocks"), data[0], tmp_path, resume=True)


@pytest.mark.slow
def test_failures_are_counted(data, tmp_path, monkeypatch):
    real = methods.fit_observed

    def broken(subject, *rest):
        if subject.name == "ben" and subject.views[0].name == "0":
            raise FitError("no light today")
        return real(subject, *rest)

    monkeypatch.setattr(methods, "fit_observed", broken)
    report = evaluate(recipe(data), data[0], tmp_path)
    line, fits = report["overall"]["split halves"], report["overall"]["fits"]
    assert (
        fits["failed"] == 1
        and fits["ok"] + fits["doubtful"] == 5
        and line["halves"] == 5
        and line["people"] == 3
    )
    assert line["rank1_percent"] == pytest.approx(100 * 4 / 6)
    lonely = next(r for r in report["rows"] if r["id"] == "ben/half1")
    assert lonely["within"] is None and lonely["identified"] == 0 and lonely["between"] > 0
    assert report["overall"]["people"]["ben"]["status"] == [
        "failed",
        lonely["status"],
    ] and "no light today" in report_text(report)


def test_predictions_of_another_model_are_refused_row_by_row(data, tmp_path):
    evaluate(recipe(data, "predictor=mean"), data[0], tmp_path)
    other = replace(recipe(data, "predictor=mean"), model="generic")
    report = evaluate(other, data[0], tmp_path / "other", tmp_path / "predictions")
    assert {r["status"] for r in report["rows"]} == {"failed"} and report["overall"]["split halves"] == {
        "people": 3,
        "halves": 0,
    }
    assert "the prediction has 315 vertices, model 'generic' has" in report["rows"][0]["error"]
    assert json.loads((tmp_path / "other" / "metrics.json").read_text())["overall"]["fits"]["failed"] == 6


def test_by_person_keeps_what_is_known():
    rows = [
        {"id": "x/anna/half0", "status": "ok", "within": 1.0, "identity_rms": 0.5},
        {"id": "x/anna/half1", "status": "failed"},
    ]
    assert by_person(rows) == {"x/anna": {"status": ["ok", "failed"], "within": 1.0, "identity_rms": 0.5}}


@pytest.mark.slow
def test_held_out_takes_some_of_the_people(data, tmp_path):
    report = evaluate(recipe(data, "options.people=1", "options.skip=1", name="held_out"), data[0], tmp_path)
    assert [r["id"] for r in report["rows"]] == ["ben/fold0", "ben/fold1"]
    assert report["summary"][0]["landmarks"]["mean"] < 3 and report["summary"][0]["flow"]["scored"] == 2
    for override, message in (
        ("options.skip=3", "with more than the 3 people that are skipped"),
        ("options.people=-1", "options.people: expected a whole number from 0 to"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(recipe(data, override, name="held_out"), data[0], tmp_path / "none")
