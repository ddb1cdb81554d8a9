"""The shipped model `assets/generic.npz`: format, symmetry, anatomy, calibration, and that its script
rebuilds it."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets"
ICT = ROOT.parent / "shared" / "data" / "ict" / "ict_facekit.npz"
ARKIT_SUBSET = (
    "jawOpen",
    "mouthSmile_L",
    "mouthSmile_R",
    "eyeBlink_L",
    "eyeBlink_R",
    "browInnerUp_L",
    "mouthPucker",
)


@pytest.fixture(scope="module")
def model():
    return dict(np.load(ASSETS / "generic.npz", allow_pickle=False))


@pytest.fixture(scope="module")
def rebuilt():
    """Arrays straight from the build script (about ten seconds)."""
    sys.path.insert(0, str(ASSETS))
    try:
        import build_generic
    finally:
        sys.path.remove(str(ASSETS))
    return build_generic.model_arrays()


def landmarks(model, field=None):
    """[68, 3] of the mean or of a given [V, 3] mesh."""
    vertices = model["mean"] if field is None else field
    corners = model["triangles"][model["landmark_triangles"]]
    return np.einsum("lk,lkc->lc", model["landmark_barycentric"], vertices[corners].astype(np.float64))


def shape(model, name):
    return model["expression_basis"][[str(n) for n in model["expression_names"]].index(name)].astype(
        np.float64
    )


def directed_edges(triangles):
    return Counter(map(tuple, np.concatenate([triangles[:, [k, (k + 1) % 3]] for k in range(3)]).tolist()))


def components(triangles, count):
    label = np.arange(count)
    while True:
        lowest = label[triangles].min(1)
        new = label.copy()
        np.minimum.at(new, triangles.ravel(), np.repeat(lowest, 3))
        new = new[new]
        if (new == label).all():
            return label
        label = new


def test_format(model):
    v, f = len(model["mean"]), len(model["triangles"])
    assert (
        str(model["format"]) == "fitkit-model"
        and int(model["version"]) == 1
        and str(model["name"]) == "generic"
    )
    assert "ICT-FaceKit" in str(model["source"]) and str(model["license"])
    assert 5000 <= v <= 12000
    assert model["mean"].dtype == np.float32 and model["mean"].shape == (v, 3)
    k, e = len(model["identity_basis"]), len(model["expression_basis"])
    assert k <= 120 and e >= 30 and len(set(model["expression_names"].tolist())) == e
    assert model["identity_basis"].shape == (k, v, 3) and model["identity_basis"].dtype == np.float16
    assert model["expression_basis"].shape == (e, v, 3) and model["expression_basis"].dtype == np.float16
    assert model["triangles"].dtype == np.int32 and model["triangles"].max() == v - 1
    assert model["uv_triangles"].shape == (f, 3) and model["uv_triangles"].max() == len(model["uv"]) - 1
    assert model["region"].shape == (v,) and model["region"].max() < len(model["region_names"])
    assert model["skin"].dtype == bool and model["face"].dtype == bool and model["skin"][model["face"]].all()
    assert model["albedo_mean"].min() >= 0 and model["albedo_mean"].max() <= 1
    for name, value in model.items():
        assert value.dtype.kind in "fiubU", name
        assert value.dtype.kind != "f" or np.isfinite(value).all(), name
    assert set(ARKIT_SUBSET) <= set(model["expression_names"].tolist())
    assert (ASSETS / "generic.npz").stat().st_size < 8e6


def test_mean_and_topology_are_mirror_symmetric(model, rebuilt):
    mirror = rebuilt["mirror"]
    np.testing.assert_array_equal(mirror[mirror], np.arange(len(mirror)))
    # float32 storage of values up to 150 mm
    np.testing.assert_allclose(model["mean"][mirror], model["mean"] * [-1, 1, 1], atol=2e-5)
    canonical = lambda t: {tuple(np.roll(row, -int(np.argmin(row)))) for row in t.tolist()}  # noqa: E731
    assert canonical(mirror[model["triangles"]][:, [0, 2, 1]]) == canonical(model["triangles"])


def test_one_sided_shapes_are_mirror_images(model, rebuilt):
    names = [str(n) for n in model["expression_names"]]
    for name in names:
        if name.endswith("_L"):
            other = shape(model, name[:-1] + "R")[rebuilt["mirror"]] * [-1, 1, 1]
            # half precision of displacements up to 16 mm
            np.testing.assert_allclose(shape(model, name), other, atol=0.02, err_msg=name)


def test_mesh_is_an_oriented_manifold_with_known_openings(model):
    edges = directed_edges(model["triangles"])
    assert max(edges.values()) == 1, "an edge is used twice in the same direction"
    border = [e for e in edges if e[::-1] not in edges]
    starts = Counter(a for a, _ in border)
    assert max(starts.values()) == 1, "two openings touch"
    label = components(model["triangles"], len(model["mean"]))
    assert len(np.unique(label)) == 5  # skin with lining, two eyeballs, two rows of teeth
    region = model["region"][[a for a, _ in border]]
    used = {str(model["region_names"][r]) for r in region}
    # The neck, the hidden ends of the two eye sockets, the backs of eyeballs and teeth.
    assert used <= {"neck", "head", "face", "eye_left", "eye_right", "teeth"}
    a, b, c = (model["mean"][model["triangles"][:, k]].astype(np.float64) for k in range(3))
    assert np.linalg.norm(np.cross(b - a, c - a), axis=1).min() > 1e-3, "a triangle without area"


def test_triangles_face_outwards(model):
    names = [str(n) for n in model["region_names"]]
    a, b, c = (model["mean"][model["triangles"][:, k]].astype(np.float64) for k in range(3))
    normal, centre = np.cross(b - a, c - a), (a + b + c) / 3
    for part, inside, share in (
        (("face", "neck"), np.array([0.0, 10.0, 10.0]), 0.98),  # the alar groove turns inwards a little
        (("eye_left",), np.array([31.2, 36.0, 79.8]), 1.0),
        (("eye_right",), np.array([-31.2, 36.0, 79.8]), 1.0),
    ):
        rows = np.isin(model["region"][model["triangles"]], [names.index(p) for p in part]).all(1)
        if part[0] == "face":
            rows &= model["skin"][model["triangles"]].all(
                1
            )  # without nostrils and lid rims, which turn inwards
        assert ((normal * (centre - inside)).sum(1)[rows] > 0).mean() >= share, part


def test_landmarks_are_at_sensible_places(model):
    p = landmarks(model)
    assert (np.diff(p[:17, 0]) > 0).all(), "jaw runs from the subject's right to left"
    assert (np.diff(p[17:27, 0]) > 0).all() and (np.diff(p[27:31, 1]) < 0).all()
    assert (np.diff(p[31:36, 0]) > 0).all() and (np.diff(p[48:55, 0]) > 0).all()
    assert p[36:42, 0].max() < 0 < p[42:48, 0].min()
    assert p[8, 1] == p[:, 1].min() and p[30, 2] == p[:, 2].max()
    pairs = [(k, 16 - k) for k in range(8)] + [
        (36, 45),
        (39, 42),
        (37, 44),
        (41, 46),
        (48, 54),
        (60, 64),
        (31, 35),
    ]
    for a, b in pairs:
        np.testing.assert_allclose(p[a], p[b] * [-1, 1, 1], atol=1e-3)
    assert (np.abs(p[[8, 27, 28, 29, 30, 33, 51, 57, 62, 66], 0]) < 1e-3).all()
    assert np.linalg.norm(p[36] - p[45]) == pytest.approx(89, abs=4)  # outer eye corners, mm
    names = [str(n) for n in model["region_names"]]
    assert set(model["region"][model["triangles"][model["landmark_triangles"]]].ravel()) <= {
        names.index("face"), names.index("neck"), names.index("head"), names.index("mouth_interior")
    }  # fmt: skip
    sites = {
        q["ibug"]: q["position"] for q in json.loads((ASSETS / "generic_figures.json").read_text())["points"]
    }
    for k, position in sites.items():
        if k >= 0:
            # Nearly all are vertices.
            np.testing.assert_allclose(p[k], position, atol=0.1, err_msg=f"landmark {k}")


def test_uv_does_not_overlap(model):
    uv, triangles = model["uv"].astype(np.float64), model["uv_triangles"]
    assert uv.min() >= 0 and uv.max() <= 1
    a, b, c = (uv[triangles[:, k]] for k in range(3))
    ab, ac = b - a, c - a
    twice = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    assert (twice > 0).all(), "a triangle is turned over in the texture"
    generator = np.random.default_rng(0)
    for point in generator.uniform(0, 1, (1500, 2)):
        d = point - a
        w1 = (d[:, 0] * ac[:, 1] - d[:, 1] * ac[:, 0]) / twice
        w2 = (ab[:, 0] * d[:, 1] - ab[:, 1] * d[:, 0]) / twice
        assert ((w1 > 1e-6) & (w2 > 1e-6) & (w1 + w2 < 1 - 1e-6)).sum() <= 1, point
    face = list(model["region_names"]).index("face")
    inside = (model["region"][model["triangles"]] == face).all(1)
    assert twice[inside].sum() / twice.sum() > 0.4


def test_identity_modes_are_ordered_and_independent(model, rebuilt):
    basis = model["identity_basis"].astype(np.float64)
    odd = (basis[:, rebuilt["mirror"]] * [-1, 1, 1] * basis).sum((1, 2)) < 0
    assert not odd[: np.argmax(odd)].any() and odd[np.argmax(odd) :].all(), (
        "symmetric modes first, then the others"
    )
    face = basis[:, model["face"]].reshape(len(basis), -1)
    size = (face**2).sum(1)
    assert size[0] > 20 * size[40] and size[:10].sum() > 0.5 * size.sum()
    unit = face / np.linalg.norm(face, axis=1, keepdims=True)
    # Orthogonal with respect to the weighted measure of the expansion, so only nearly so here.
    assert np.abs(unit @ unit.T - np.eye(len(unit))).mean() < 0.08


def test_lips_of_a_neutral_face_touch(model):
    """Opposite points of the inner lips differ as in the mean face, to a quarter of a millimetre."""
    corners = model["triangles"][model["landmark_triangles"]]
    rows = model["identity_basis"][:, corners].astype(float)
    modes = np.einsum("kpjc,pj->kpc", rows, model["landmark_barycentric"])
    for upper, lower in ((61, 67), (62, 66), (63, 65)):
        assert np.linalg.norm(modes[:, upper] - modes[:, lower], axis=0).max() < 0.25
        assert np.linalg.norm(modes[:, upper], axis=0)[1:].min() > 1.5


def test_variance_at_landmarks_is_the_measured_one(model):
    """Coefficients ~ N(0, I) must reproduce the spread of people; 118 modes keep most, never more than a
    little."""
    table = json.loads((ASSETS / "generic_figures.json").read_text())
    corners = model["triangles"][model["landmark_triangles"]]
    basis = model["identity_basis"].astype(np.float64)
    at = np.einsum("lk,mlkc->mlc", model["landmark_barycentric"], basis[:, corners])
    ours = np.sqrt((at**2).sum((0, 2)))
    rows = [
        (p["ibug"], np.sqrt(p["covariance"][0] + p["covariance"][3] + p["covariance"][5]))
        for p in table["points"]
    ]
    ratio = np.array([ours[k] / measured for k, measured in rows if k >= 0])
    assert 0.85 < ratio.mean() < 1.05
    assert ratio.min() > 0.6 and ratio.max() < 1.45


@pytest.mark.parametrize("seed", range(3))
def test_random_people_keep_the_face_in_order(model, seed):
    coefficients = np.random.default_rng(seed).standard_normal(len(model["identity_basis"]))
    p = landmarks(
        model, model["mean"] + np.tensordot(coefficients, model["identity_basis"].astype(np.float64), 1)
    )
    assert (np.diff(p[27:31, 1]) < 0).all() and (np.diff(p[48:55, 0]) > 0).all()
    assert p[8, 1] < p[57, 1] < p[51, 1] < p[33, 1] < p[42, 1] < p[24, 1]


@pytest.mark.parametrize("side, upper, lower", [("L", (43, 44), (47, 46)), ("R", (37, 38), (41, 40))])
def test_blink_closes_the_lids(model, side, upper, lower):
    def gap(field):
        p = landmarks(model, field)
        return np.linalg.norm(p[list(upper)] - p[list(lower)], axis=1).mean()

    blink = shape(model, f"eyeBlink_{side}")
    assert gap(model["mean"] + blink) < 0.2 * gap(model["mean"])
    # The other eye stays open, and the lid does not enter the eyeball.
    other = (37, 38, 41, 40) if side == "L" else (43, 44, 47, 46)
    moved = landmarks(model, model["mean"] + blink)[list(other)] - landmarks(model)[list(other)]
    assert np.abs(moved).max() < 1.0
    centre = np.array([31.16 if side == "L" else -31.16, 36.02, 79.82])
    near = model["skin"] & (np.abs(blink).max(1) > 1.0)
    assert np.linalg.norm((model["mean"] + blink)[near] - centre, axis=1).min() > 15.5


def test_jaw_open_parts_the_lips(model):
    before, after = landmarks(model), landmarks(model, model["mean"] + shape(model, "jawOpen"))
    assert np.linalg.norm(before[62] - before[66]) < 1.5, "closed mouth in neutral"
    assert np.linalg.norm(after[62] - after[66]) > 20
    assert after[8, 1] < before[8, 1] - 15 and np.abs(after[36:48] - before[36:48]).max() < 1.5


def test_smile_lifts_and_widens_the_corners(model):
    smile = shape(model, "mouthSmile_L") + shape(model, "mouthSmile_R")
    before, after = landmarks(model), landmarks(model, model["mean"] + smile)
    assert (
        after[54, 1] > before[54, 1] + 3 and after[54, 0] - after[48, 0] > before[54, 0] - before[48, 0] + 4
    )


def test_half_precision_is_enough(model):
    # Spacing of half precision is 2^-6 mm from 16 mm on: half of it is the error.
    assert np.abs(model["identity_basis"]).max() < 16.0
    large = (np.abs(model["expression_basis"]) > 32.0).any((1, 2))
    assert {str(n) for n in model["expression_names"][large]} <= {"jawOpen", "mouthClose"}


def test_script_rebuilds_the_file(model, rebuilt):
    assert len(rebuilt["mean"]) == len(model["mean"])
    np.testing.assert_array_equal(rebuilt["triangles"], model["triangles"])
    np.testing.assert_array_equal(rebuilt["landmark_triangles"], model["landmark_triangles"])
    np.testing.assert_allclose(rebuilt["mean"], model["mean"], atol=1e-3)
    # Eigenvectors of nearly equal eigenvalues may turn with the linear algebra library; variances do not.
    ours, theirs = (m["identity_basis"].astype(np.float64) for m in (rebuilt, model))
    np.testing.assert_allclose((ours**2).sum(0), (theirs**2).sum(0), atol=0.05, rtol=0.01)
    np.testing.assert_allclose(
        rebuilt["expression_basis"].astype(np.float64),
        model["expression_basis"].astype(np.float64),
        atol=0.02,
    )
    np.testing.assert_allclose(rebuilt["albedo_mean"], model["albedo_mean"], atol=1e-3)
    np.testing.assert_allclose(rebuilt["uv"], model["uv"], atol=1e-5)


@pytest.mark.skipif(not ICT.exists(), reason="ICT-FaceKit data not found beside the repository")
def test_takes_the_shape_of_a_random_ict_person():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import generic_expressiveness as bench
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    ict = np.load(ICT)
    model = bench.Model(ASSETS / "generic.npz", 118)
    rows = np.arange(0, 6706, 6)
    mean, basis = ict["mean"].astype(np.float64), ict["identity_basis"].astype(np.float64)
    marks = ict["landmarks68"]
    zero = np.zeros(len(model.basis))
    pose = bench.similarity(model.landmarks(model.mean), mean[marks])
    assert bench.surface_error(model, zero, pose, mean[rows]).mean() < 0.5
    person = mean + np.tensordot(np.random.default_rng(7).standard_normal(100), basis, 1)
    coefficients, pose = bench.from_landmarks(model, person[marks])
    assert bench.surface_error(model, coefficients, pose, person[rows]).mean() < 1.4
    coefficients, pose = bench.register(model, person[rows], coefficients, pose)
    assert bench.surface_error(model, coefficients, pose, person[rows]).mean() < 0.6
