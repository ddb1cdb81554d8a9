"""The shipped model `assets/generic.npz`: format, symmetry, anatomy, calibration, and that its script
rebuilds it."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import LinearNDInterpolator
from scipy.signal import find_peaks
from scipy.spatial import Delaunay

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
    """Arrays straight from the build script (about ten seconds), with NaN in all memory that is not set."""
    sys.path.insert(0, str(ASSETS))
    try:
        import build_generic
    finally:
        sys.path.remove(str(ASSETS))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("empty", "empty_like"):
            patch.setattr(np, name, filled_with_nan(getattr(np, name)))
        return build_generic.model_arrays()


def filled_with_nan(make):
    def made(*args, **kwargs):
        array = make(*args, **kwargs)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    return made


def landmarks(model, field=None):
    """[68, 3] of the mean or of a given [V, 3] mesh."""
    vertices = model["mean"] if field is None else field
    corners = model["triangles"][model["landmark_triangles"]]
    return np.einsum("lk,lkc->lc", model["landmark_barycentric"], vertices[corners].astype(np.float64))


def shape(model, name):
    return model["expression_basis"][[str(n) for n in model["expression_names"]].index(name)].astype(
        np.float64
    )


def region(model, *names):
    """[V] bool."""
    return np.isin(model["region"], [list(model["region_names"]).index(n) for n in names])


def person(model, seed):
    """[V, 3] of a random person; None: the mean."""
    coefficients = np.zeros(len(model["identity_basis"]))
    if seed is not None:
        coefficients = np.random.default_rng(seed).standard_normal(len(coefficients))
    return model["mean"] + np.tensordot(coefficients, model["identity_basis"].astype(np.float64), 1)


def first_met(vertices, triangles, points):
    """What rays towards -z first meet: z [N], NaN where they miss, and the row of the triangle [N]; points:
    [N, 2]."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    (ux, uy, uz), (vx, vy, vz) = (b - a).T, (c - a).T
    dx, dy = np.moveaxis(points[:, None] - a[None, :, :2], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        area = ux * vy - uy * vx
        s, t = (dx * vy - dy * vx) / area, (dy * ux - dx * uy) / area
        z = np.where((s >= 0) & (t >= 0) & (s + t <= 1), a[:, 2] + s * uz + t * vz, -np.inf)
    row = z.argmax(1)
    z = z[np.arange(len(z)), row]
    return np.where(np.isfinite(z), z, np.nan), row


def seen_from(vertices, azimuth):
    """Vertices turned so that +z looks at what faces `azimuth` degrees from the front to the left."""
    turn = np.radians(azimuth)
    c, s = np.cos(turn), np.sin(turn)
    return vertices @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]).T


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
    assert len(np.unique(label)) == 6  # skin with ears and lining, two eyeballs, two rows of teeth, tongue
    region = model["region"][[a for a, _ in border]]
    used = {str(model["region_names"][r]) for r in region}
    # The neck, the hidden ends of the two eye sockets, the backs of eyeballs, rows of teeth and tongue.
    assert used == {"neck", "face", "eye_left", "eye_right", "teeth", "gums", "tongue"}
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


def left_side(model):
    """Triangles of the left ear and of the skin around it [F, 3]."""
    triangles, centre = model["triangles"], model["mean"][model["triangles"]].mean(1)
    near = (centre[:, 0] > 50) & (np.abs(centre[:, 1] - 12) < 45) & (np.abs(centre[:, 2] - 10) < 40)
    return triangles[near]


@pytest.mark.parametrize("azimuth", [15, 50, 90, 130, 165])
def test_no_back_of_a_triangle_of_the_ear_is_seen(model, azimuth):
    triangles, vertices = left_side(model), seen_from(model["mean"].astype(np.float64), azimuth)
    at = vertices[region(model, "ears") & (model["mean"][:, 0] > 0)]
    x, y = (np.arange(low + 0.1234, high, 0.8) for low, high in zip(at.min(0)[:2], at.max(0)[:2]))
    depth, row = first_met(vertices, triangles, np.stack(np.meshgrid(x, y), -1).reshape(-1, 2))
    a, b, c = (vertices[triangles[row, k]] for k in range(3))
    faces = np.cross(b - a, c - a)[:, 2] > 0
    ear = region(model, "ears")[triangles[row]].all(1) & np.isfinite(depth)
    assert ear.sum() > 500 and faces[ear].all()


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_ears_have_the_relief_of_ears(model, seed):
    """A level line over the canal from the cheek backwards: tragus, bowl, antihelix, groove, helix, head."""
    vertices, rest = person(model, seed), model["mean"]
    left = region(model, "ears") & (rest[:, 0] > 0)
    # The deepest place that is seen from the side.
    side, triangles = seen_from(vertices, 90), left_side(model)
    low, high = np.percentile(side[left], [25, 75], axis=0)[:, :2]
    grid = np.stack(np.meshgrid(*(np.arange(a, b, 0.7) for a, b in zip(low, high))), -1).reshape(-1, 2)
    deep = grid[np.nanargmin(first_met(side, triangles, grid)[0])]
    across = np.arange(-30, 30, 0.25)  # mm backwards from there
    line, _ = first_met(side, triangles, np.c_[deep[0] + across, np.full(len(across), deep[1])])
    bowl = int(np.flatnonzero(across == 0)[0])
    peaks, _ = find_peaks(np.nan_to_num(line, nan=line[np.isfinite(line)].min()), prominence=0.4)
    before, after = peaks[peaks < bowl], peaks[peaks > bowl]
    tragus, antihelix, helix = before[-1], after[0], after[1]
    assert 3 < across[bowl] - across[tragus] < 15 and line[tragus] - line[bowl] > 4
    assert line[antihelix] - line[bowl] > 10 and 5 < across[antihelix] < 18
    assert 3 < across[helix] - across[antihelix] < 12
    assert min(line[antihelix], line[helix]) - line[antihelix:helix].min() > 0.5
    assert line[helix] - line[helix:].min() > 7, "the rim stands off the head"
    if seed is None:  # turned out of the head, and as wide from tragus to helix as an ear is
        aside, back = line[helix] - line[tragus], across[helix] - across[tragus]
        assert 17 < np.degrees(np.arctan2(aside, back)) < 25 and 23 < back < 30
        assert 57 < np.ptp(rest[left, 1]) < 67
    # As long as ears are, between brow and nose base.
    brow, nose = (landmarks(model, vertices)[k, 1] for k in (24, 33))
    top, bottom = vertices[left, 1].max(), landmarks(model, vertices)[33, 1] - 12
    assert nose < deep[1] < brow and nose + 35 < top < brow + 5
    assert 0.8 < np.ptp(vertices[left, 1]) / np.ptp(rest[left, 1]) < 1.25 and bottom < vertices[left, 1].min()


def test_mouth_is_hidden_behind_the_lips(model):
    """Of neutral faces: every vertex of teeth, gums, tongue and of the bag lies behind the skin."""
    rest, outer = model["mean"], region(model, "face") & model["skin"]
    outer &= (rest[:, 2] > 50) & (np.abs(rest[:, 0]) < 60) & (rest[:, 1] < 8)
    lips = landmarks(model)[60:68]
    inner = region(model, "teeth", "gums", "tongue")
    inner |= region(model, "mouth_interior") & (np.linalg.norm(rest[:, None] - lips, axis=-1).min(1) > 8)
    for seed in (None, *range(10)):
        vertices = person(model, seed)
        skin = LinearNDInterpolator(vertices[outer, :2], vertices[outer, 2])
        behind = skin(vertices[inner, :2]) - vertices[inner, 2]
        assert np.nanmin(behind) > 1.0, seed
        teeth = vertices[region(model, "teeth")]
        front = teeth[np.abs(teeth[:, 0]) < 4, 2].max()
        assert 2 < landmarks(model, vertices)[[62, 66], 2].min() - front < 12, seed


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_tongue_lies_in_the_mouth(model, seed):
    rows = {n: region(model, n) for n in ("teeth", "tongue", "mouth_interior")}
    for opened in (0.0, 0.8):
        vertices = person(model, seed) + opened * shape(model, "jawOpen")
        bag, tongue = Delaunay(vertices[rows["mouth_interior"]]), vertices[rows["tongue"]]
        assert (bag.find_simplex(tongue) >= 0).all()
        low = vertices[rows["teeth"] & (model["mean"][:, 1] < landmarks(model)[66, 1] - 4)]
        middle = low[np.abs(low[:, 0]) < 4]
        assert tongue[:, 2].max() < middle[:, 2].max() - 2, "its tip is behind the lower teeth"


def test_lower_teeth_and_tongue_go_with_the_jaw(model):
    names = [str(n) for n in model["expression_names"]]
    upper = region(model, "teeth") & (model["mean"][:, 1] > landmarks(model)[62, 1] + 1)
    lower = region(model, "teeth") & (model["mean"][:, 1] < landmarks(model)[66, 1] - 3)
    assert upper.sum() > 50 and lower.sum() > 50
    for name in names:
        moved = shape(model, name)
        assert not moved[upper].any(), name
        if name.startswith("jaw"):
            both = lower | region(model, "tongue")
            before, after = model["mean"][both], model["mean"][both] + moved[both]
            apart = lambda p: np.linalg.norm(p[:, None] - p[None], axis=-1)  # noqa: E731
            np.testing.assert_allclose(apart(after), apart(before), atol=0.05)
        else:
            assert not moved[lower].any(), name
    assert -30 < shape(model, "jawOpen")[lower, 1].mean() < -15


def test_teeth_are_single_crowns(model):
    """Seen from the front at half the height of the crowns: a groove between any two teeth, and none else."""
    vertices, triangles = model["mean"].astype(np.float64), model["triangles"]
    teeth = triangles[region(model, "teeth")[triangles].any(1)]
    lips = landmarks(model)[62, 1]
    for y, borders in ((lips + 3.5, (8.0, 14.0, 19.5)), (lips - 6.0, (5.2, 10.6, 16.2))):
        x = np.arange(-23, 23, 0.1) + 0.003
        line, _ = first_met(vertices, teeth, np.c_[x, np.full(len(x), y)])
        found, _ = find_peaks(-line + np.polyval(np.polyfit(x, line, 6), x), prominence=0.25)
        wanted = np.array([*(-b for b in borders[::-1]), 0.0, *borders])
        near = x[found][np.abs(x[found]) < borders[-1] + 2]
        np.testing.assert_allclose(near, wanted, atol=1.0)


def test_a_smile_shows_the_upper_teeth_below_the_upper_lip(model):
    smile = shape(model, "mouthSmile_L") + shape(model, "mouthSmile_R")
    names = list(model["region_names"])
    for seed in (None, 0, 1, 2):
        vertices = person(model, seed) + smile + 0.2 * shape(model, "jawOpen")
        lip = landmarks(model, vertices)[62]
        points = np.c_[np.repeat([-6.0, 0.1, 6.0], 2), np.tile([-1.8, -2.6], 3) + lip[1]]
        _, row = first_met(vertices, model["triangles"], points)
        assert {names[r] for r in model["region"][model["triangles"][row]].ravel()} == {"teeth"}, seed


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


def test_the_tongue_comes_out_between_the_lips(model):
    (name,), (out,) = model["extra_names"], model["extra_basis"].astype(np.float64)
    assert name == "tongueOut" and name not in model["expression_names"]
    mean, jaw = model["mean"].astype(np.float64), shape(model, "jawOpen")
    tongue = region(model, "tongue")
    # All else does what the jaw does; so the rows of teeth come apart.
    np.testing.assert_allclose(out[~tongue], 0.33 * jaw[~tongue], atol=0.02)
    after = mean + out
    marks = landmarks(model, after)
    upper, lower = marks[62], marks[66]  # the lips in the middle
    assert 7 < upper[1] - lower[1] < 14
    root = tongue & (mean[:, 2] == mean[tongue, 2].min())
    np.testing.assert_allclose(out[root], 0.33 * jaw[root], atol=0.05)
    front = after[tongue]
    assert 10 < front[:, 2].max() - marks[[51, 57], 2].max() < 25  # mm ahead of both lips
    # Where it passes the rows of teeth and the lips, it lies between them.
    middle = np.abs(front[:, 0]) < 1
    for row, bound, side in (
        ("upper", after[region(model, "teeth") & (jaw[:, 1] == 0) & (np.abs(mean[:, 0]) < 4)], -1),
        ("lower", after[region(model, "teeth") & (jaw[:, 1] < 0) & (np.abs(mean[:, 0]) < 4)], 1),
    ):
        edge = bound[(-side * bound[:, 1]).argmin()]
        near = middle & (np.abs(front[:, 2] - edge[2]) < 9)
        assert near.sum() >= 4 and (side * (front[near, 1] - edge[1]) > 0).all(), row
    over = middle & (front[:, 2] > lower[2] - 2) & (front[:, 2] < lower[2] + 4)
    assert over.any() and (front[over, 1] > lower[1]).all() and (front[over, 1] < upper[1]).all()
    # As broad as a tongue, within the corners of the mouth, mirror-symmetric.
    assert np.ptp(front[front[:, 2] > lower[2], 0]) == pytest.approx(25, abs=3)
    np.testing.assert_allclose(
        np.sort(front[front[:, 0] > 0.01, 0]), np.sort(-front[front[:, 0] < -0.01, 0]), atol=0.03
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
    np.testing.assert_allclose(rebuilt["extra_basis"], model["extra_basis"], atol=0.02)
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
