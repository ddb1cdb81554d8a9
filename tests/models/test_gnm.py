"""GNM Head: small files in its layout, read, evaluated by its published formula, and fitted."""

import model_files_gnm as files
import numpy as np
import pytest
import torch
from fit_own_renders import fit_of_own_renders
from scipy.spatial.transform import Rotation

from fitkit.errors import InputError
from fitkit.models.formats import FORMATS
from fitkit.models.formats.gnm import import_gnm
from fitkit.models.io import load_model_file, save_model_file

ARRAYS = files.model_arrays()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gnm")
    files.write_gnm(folder)
    return FORMATS["gnm"].read(folder)


def published(arrays, identity, expression, rotations, translation=(0, 0, 0)):
    """Vertices [V, 3] m of GNM for coefficients, rotation vectors [4, 3] and a translation [3]."""
    bind = arrays["template_vertex_positions"].astype(np.float64)
    bind = bind + np.tensordot(identity, arrays["vertex_identity_basis"], 1)
    bind = bind + np.tensordot(expression, arrays["expression_basis"], 1)
    joints = arrays["template_joint_positions"] + np.tensordot(identity, arrays["joint_identity_basis"], 1)
    turns = Rotation.from_rotvec(rotations).as_matrix()
    bind = bind + ((turns - np.eye(3)).reshape(-1) @ arrays["pose_correctives_regressor"]).reshape(-1, 3)
    world, vertices = [], np.zeros_like(bind)
    for j, parent in enumerate(arrays["joint_parent_indices"]):
        local = np.eye(4)
        local[:3, :3] = turns[j]
        local[:3, 3] = joints[j] - joints[parent] if j else joints[j] + translation
        world.append(world[parent] @ local if j else local)
        moved = (bind - joints[j]) @ world[j][:3, :3].T + world[j][:3, 3]
        vertices += arrays["skinning_weights"][j][:, None] * moved
    return vertices


@pytest.mark.parametrize("correctives", [False, True])
def test_vertices_are_those_of_the_published_formula(correctives, tmp_path):
    """Of joints that follow the identity and not the expression, and of corrective shapes where there are
    some."""
    arrays = files.write_gnm(tmp_path, files.model_arrays(correctives))
    model, rng = import_gnm(tmp_path), np.random.default_rng(1)
    assert (model.pose_basis is not None) == correctives
    identity, expression = rng.normal(size=model.num_identity), rng.normal(size=model.num_expression)
    rotations = 0.3 * rng.normal(size=(4, 3))
    rotations[0] = 0
    ours = model.vertices(*(torch.tensor(v[None]).float() for v in (identity, expression, rotations[1:])))[
        0
    ].numpy()
    wanted = 1000 * published(arrays, identity, expression, rotations)
    assert np.linalg.norm(wanted - 1000 * arrays["template_vertex_positions"], axis=1).mean() > 5
    np.testing.assert_allclose(ours, wanted, atol=5e-3)


def test_the_neck_is_the_pose_of_the_head_as_the_notes_say(model):
    rng = np.random.default_rng(2)
    identity, expression = rng.normal(size=model.num_identity), rng.normal(size=model.num_expression)
    rotations = 0.2 * rng.normal(size=(4, 3))
    turn, moved = Rotation.from_rotvec(rotations[0]).as_matrix(), np.array([10.0, 20.0, 900.0])
    ours = [torch.tensor(v[None]).float() for v in (identity, expression, rotations[1:])]
    neck = model.joint_basis.points(ours[0], ours[1])[0, 0].numpy() / 1000
    translation = moved / 1000 - neck + turn @ neck
    np.testing.assert_allclose(
        model.vertices(*ours)[0].numpy() @ turn.T + moved,
        1000 * published(ARRAYS, identity, expression, rotations, translation),
        atol=5e-3,
    )
    assert "rotation of the neck = R of the pose, translation = t - J + R J" in model.notes


def test_what_the_model_says(model):
    kinds = model.coefficients
    assert str(kinds["identity"]) == "19 coefficients, sigma 1"
    assert str(kinds["expression"]).startswith("20 coefficients, sigma 1: left_eye_region_000, ")
    assert model.expression_names[16:] == ("tongue_mean", "tongue_000", "tongue_001", "pupils_000")
    assert model.joint_names == ("head", "eye_L", "eye_R") and model.joint_parents == (-1, 0, 1, 1)
    assert model.joint_sigma[1].tolist() == pytest.approx([0.15, 0.25, 0.02])
    assert model.license.startswith("Apache-2.0") and "x 1000" in model.notes
    points = model.landmarks.points(model.mean[None], model.triangles)
    wanted = files.SKIN.landmarks.points(files.SKIN.mean[None], files.SKIN.triangles).float()
    torch.testing.assert_close(points, wanted, atol=5e-3, rtol=0)  # five digits of the weights


def test_parts_are_those_of_the_file(model):
    groups = ARRAYS["vertex_groups"] > 0
    of = dict(zip(ARRAYS["vertex_group_names"].tolist(), torch.from_numpy(groups)))
    for part, name in (
        ("left_eye", "eye_left"),
        ("tongue", "tongue"),
        ("upper_teeth_and_gums", "teeth"),
    ):
        assert bool((model.region[of[part]] == model.region_names.index(name)).all())
    assert bool(of["skin_exterior"][model.skin].all() and model.face.any())
    assert int(model.skin.sum()) > 100


@pytest.mark.parametrize("in_squares", [False, True])
def test_textures_lie_side_by_side(in_squares, tmp_path):
    """Whether the file has them on top of each other or in squares of their own; the skin gets most."""
    files.write_gnm(tmp_path, files.model_arrays(in_squares=in_squares))
    read = import_gnm(tmp_path)
    corners = read.uv[read.uv_triangles]
    assert 0 <= float(corners.min()) and float(corners.max()) <= 1
    part = ARRAYS["vertex_groups"][:6].argmax(0)[ARRAYS["triangles"][:, 0]]
    boxes = [(corners[part == k].amin((0, 1)), corners[part == k].amax((0, 1))) for k in range(6)]
    for i, (low, high) in enumerate(boxes):
        size = 0.75 if i == 0 else 0.25
        assert bool(((high - low) > 0.8 * size).all() and ((high - low) < size).all())
        for other_low, other_high in boxes[:i]:
            assert bool(((low > other_high) | (high < other_low)).any())
    inner = ARRAYS["triangle_uvs"][part == 0]
    np.testing.assert_allclose(
        corners[part == 0].numpy(), [0, 0.25] + 0.75 * (0.01 + 0.98 * inner), atol=1e-5
    )


def test_the_first_release_has_five_points_the_other_way_round(model, tmp_path):
    files.write_gnm(tmp_path, first_release=True)
    read = import_gnm(tmp_path)
    assert torch.equal(read.landmarks.triangle, model.landmarks.triangle)


def test_repository(model, tmp_path):
    files.write_gnm(tmp_path / "gnm/shape/data/versions/v3_0")
    (tmp_path / "gnm/shape/data/landmarks").mkdir()
    (tmp_path / "gnm/shape/data/versions/v3_0/head_sparse_68.txt").rename(
        tmp_path / "gnm/shape/data/landmarks/head_sparse_68.txt"
    )
    for path in (tmp_path, tmp_path / "gnm/shape/data/versions/v3_0/gnm_head.npz"):
        assert torch.equal(import_gnm(path, "mine").mean, model.mean)


def test_stored(model, tmp_path):
    read = load_model_file(save_model_file(model, tmp_path / "gnm.npz"))
    assert torch.equal(read.joint_regressor, model.joint_regressor) and read.notes == model.notes
    assert read.coefficients["expression"].kind == "gaussian" and read.pose_basis is None


def test_a_fit_finds_the_vertices_again(model):
    found, of_mean = fit_of_own_renders(model, expression=0.5)
    assert found < 0.4 < 1.8 < of_mean  # mm


def without(key):
    return {k: v for k, v in ARRAYS.items() if k != key}


@pytest.mark.parametrize(
    "arrays, message",
    [
        (without("joint_regressor"), "not a model of GNM, it lacks joint_regressor"),
        (
            ARRAYS | {"expression_basis": ARRAYS["expression_basis"][:, :-1]},
            r"expression_basis: expected shape \['?K_ex'?, 486, 3\], got \[20, 485, 3\]",
        ),
        (
            ARRAYS | {"pose_correctives_regressor": np.zeros((36, 7), np.float32)},
            "pose_correctives_regressor: expected 1458 columns, got 7",
        ),
        (ARRAYS | {"triangles": ARRAYS["triangles"] + 1}, r"triangles: expected \[F, 3\] indices in 0..485"),
        (
            ARRAYS | {"joint_names": np.array(["neck", "head", "jaw", "tail"])},
            "joint_names: expected neck, head, left_eye, right_eye, got neck, head, jaw, tail",
        ),
        (
            ARRAYS | {"joint_parent_indices": np.array([-1, 0, 1, 7])},
            "joint_parent_indices: expected indices in 0..2, got 0 to 7",
        ),
        (
            ARRAYS | {"mesh_component_names": np.array(["skin", "hat"])},
            "mesh_component_names: expected skin and other names of vertex_group_names, got skin, hat",
        ),
        (
            ARRAYS | {"triangle_uvs": np.float32(np.nan) * ARRAYS["triangle_uvs"]},
            "triangle_uvs: expected finite numbers",
        ),
        (
            ARRAYS
            | {"triangle_uvs": ARRAYS["triangle_uvs"] + np.arange(800)[:, None, None].astype(np.float32)},
            "triangle_uvs: expected up to 8 squares, got 8",
        ),
        (
            ARRAYS | {"template_vertex_positions": 0.1 * ARRAYS["template_vertex_positions"]},
            r"outer eye corners are 8.9\d+ apart; .* \(wrong unit\?\)",
        ),
        (
            ARRAYS
            | {
                "expression_basis": np.random.default_rng(0).normal(size=(400, 486, 3)).astype(np.float32),
                "expression_names": np.array([f"e{k}" for k in range(400)]),
            },
            "joint_regressor: expected vertices that tell the joints of each shape",
        ),
        (
            ARRAYS | {"template_vertex_positions": np.nan * ARRAYS["template_vertex_positions"]},
            "gnm_head.npz: not usable as GNM Head",
        ),
    ],
)
def test_refusals(arrays, message, tmp_path):
    files.write_gnm(tmp_path, arrays)
    with pytest.raises(InputError, match=message) as caught:
        import_gnm(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "gnm_head.npz"))


LINES = files.landmark_lines()


@pytest.mark.parametrize(
    "lines, message",
    [
        (LINES[:60], r"points: expected shape \[68, 6\], got \[60, 6\]"),
        (["486 1 0 0 0 0", *LINES[1:]], "expected vertices 0 to 485, got 0 to 486"),
        (["0.5 1 0 0 0 0", *LINES[1:]], "expected vertices 0 to 485"),
        (["nan 1 0 0 0 0", *LINES[1:]], "expected vertices 0 to 485"),
        (["0 1 0 1 0 0", *LINES[1:]], "expected weights of 0 to 1 with the sum 1 in each line"),
        (["0 2 0 -1 0 0", *LINES[1:]], "expected weights of 0 to 1"),
        (["0 nan 0 1 0 0", *LINES[1:]], "expected weights of 0 to 1"),
        (["one", *LINES[1:]], "not a readable landmark file of GNM .*; expected 68 lines of 6 numbers"),
    ],
)
def test_landmark_files_that_are_none(lines, message, tmp_path):
    files.write_gnm(tmp_path)
    (tmp_path / "head_sparse_68.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message) as caught:
        import_gnm(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "head_sparse_68.txt"))


def test_a_landmark_off_the_surface(tmp_path):
    arrays = files.write_gnm(tmp_path)
    arrays["triangles"] = arrays["triangles"][(arrays["triangles"] != arrays["triangles"][0, 0]).all(1)]
    arrays["triangle_uvs"] = arrays["triangle_uvs"][: len(arrays["triangles"])]
    np.savez(tmp_path / "gnm_head.npz", **arrays)
    lines = [f"{ARRAYS['triangles'][0, 0]} 1 0 0 0 0", *LINES[1:]]
    (tmp_path / "head_sparse_68.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match="vertex 0 of a landmark is part of no triangle"):
        import_gnm(tmp_path)


def test_files_that_are_missing(tmp_path):
    with pytest.raises(
        InputError, match="no gnm_head.npz; give its folder, or get it with 'fitkit model fetch"
    ):
        import_gnm(tmp_path)
    with pytest.raises(InputError, match="x.npz: no gnm_head.npz"):
        import_gnm(tmp_path / "x.npz")
    files.write_gnm(tmp_path)
    (tmp_path / "head_sparse_68.txt").unlink()
    with pytest.raises(
        InputError, match="no head_sparse_68.txt beside gnm_head.npz; put the file of that name"
    ):
        import_gnm(tmp_path)
    (tmp_path / "gnm_head.npz").write_bytes(b"x")
    (tmp_path / "head_sparse_68.txt").write_text("")
    with pytest.raises(InputError, match="gnm_head.npz: not readable as gnm_head.npz"):
        import_gnm(tmp_path)
