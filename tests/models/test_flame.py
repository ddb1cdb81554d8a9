"""FLAME: small files in its layout, read, evaluated by its published formula, and fitted."""

import pickle
from dataclasses import replace

import model_files_flame as files
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fit_own_renders import fit_of_own_renders
from old_pickles import python2
from scipy.spatial.transform import Rotation

import fitkit
from fitkit.cli.main import main
from fitkit.errors import InputError
from fitkit.models.formats import FORMATS
from fitkit.models.formats.flame import import_flame


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flame")
    files.write_flame(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return FORMATS["flame"].read(folder)


def published(arrays, shape, expression, pose):
    """Vertices [V, 3] m of FLAME for parameters [300], [100] and rotations [5, 3], the root's first."""
    betas = np.concatenate([shape, expression])
    shaped = arrays["v_template"] + arrays["shapedirs"] @ betas
    joints = arrays["J_regressor"] @ shaped
    turns = Rotation.from_rotvec(pose).as_matrix()
    corrected = shaped + arrays["posedirs"] @ (turns[1:] - np.eye(3)).reshape(-1)
    world = []
    for j, parent in enumerate(arrays["kintree_table"][0].astype(np.int64)):
        local = np.eye(4)
        local[:3, :3] = turns[j]
        local[:3, 3] = joints[j] - (joints[parent] if j else 0)
        world.append(world[parent] @ local if j else local)
    vertices = np.zeros_like(shaped)
    for j, weight in enumerate(arrays["weights"].T):
        moved = (corrected - joints[j]) @ world[j][:3, :3].T + world[j][:3, 3]
        vertices += weight[:, None] * moved
    return vertices


def test_vertices_are_those_of_the_published_formula(model):
    arrays, rng = files.model_arrays(), np.random.default_rng(1)
    shape, expression, pose = rng.normal(size=300), rng.normal(size=100), 0.2 * rng.normal(size=(5, 3))
    pose[0] = 0
    ours = model.vertices(
        torch.tensor(shape[None]).float(),
        torch.tensor(np.append(expression, [0, 0])[None]).float(),
        torch.tensor(pose[None, 1:]).float(),
    )[0]
    wanted = 1000 * published(arrays, shape, expression, pose)
    assert np.linalg.norm(wanted - 1000 * arrays["v_template"], axis=1).mean() > 5
    np.testing.assert_allclose(ours.numpy(), wanted, atol=1e-3)


def test_global_rotation_and_translation_as_the_notes_say(model):
    """Turned about the root joint by FLAME, about the origin by fitkit."""
    arrays, rng = files.model_arrays(), np.random.default_rng(2)
    shape, pose = rng.normal(size=300), np.zeros((5, 3))
    pose[0] = 0.5 * rng.normal(size=3)
    turn, moved = Rotation.from_rotvec(pose[0]).as_matrix(), np.array([10.0, 20.0, 900.0])
    identity = torch.tensor(shape[None]).float()
    ours = model.vertices(identity, torch.zeros(1, model.num_expression))[0].numpy() @ turn.T + moved
    root = model.joint_basis.points(identity, torch.zeros(1, model.num_expression))[0, 0].numpy() / 1000
    translation = moved / 1000 - root + turn @ root
    np.testing.assert_allclose(
        ours, 1000 * (published(arrays, shape, np.zeros(100), pose) + translation), atol=2e-3
    )
    assert "translation = t - J + R J" in model.notes


def test_what_the_model_says(model):
    assert model.num_identity == 300 and model.expression_names[99:] == (
        "expression_099",
        "eyeBlink_L",
        "eyeBlink_R",
    )
    kinds = model.coefficients
    assert (
        kinds["expression"].kind == "gaussian"
        and kinds["expression"].sigma.tolist() == [1.0] * 100 + [0.5] * 2
    )
    assert model.joint_names == ("neck", "jaw", "eye_L", "eye_R") and model.joint_parents == (-1, 0, 1, 1, 1)
    sigma = dict(zip(model.joint_names, model.joint_sigma.tolist()))
    assert sigma["jaw"][0] == max(sigma["jaw"]) > max(sigma["neck"]) and sigma["eye_L"] == sigma["eye_R"]
    assert model.landmarks.missing == () and model.uv is not None
    left, right = (
        (model.expression_basis[100 + k].norm(dim=1)[:, None] * model.mean).sum(0)[0] for k in (0, 1)
    )
    assert left > 0 > right
    assert "x 1000" in model.notes and "eyelid parameters" in model.notes
    triangle, weights = files.embedding()
    np.testing.assert_array_equal(model.landmarks.triangle, triangle)
    np.testing.assert_allclose(model.landmarks.barycentric, weights, atol=1e-6)


def test_parts_follow_the_masks(model):
    masks = files.masks()

    def vertices(part):
        return set(np.flatnonzero(model.region.numpy() == model.region_names.index(part)))

    eyes = set(masks["left_eyeball"]), set(masks["right_eyeball"])
    assert (vertices("eye_left"), vertices("eye_right")) == eyes
    ears = set(masks["left_ear"]) | set(masks["right_ear"])
    assert ears <= vertices("ears")  # and what those of `generic` come to lie at
    assert set(np.flatnonzero(model.face)) <= set(masks["face"]) - eyes[0] - eyes[1]
    assert not model.skin[list(eyes[0] | eyes[1] | ears)].any() and int(model.skin.sum()) > 80


@pytest.mark.parametrize(
    "name, landmarks",
    [
        ("flame2023.pkl", "deca"),
        ("flame2023_Open.pkl", "static"),
        ("FLAME_NEUTRAL.pkl", "deca"),
        ("generic_model.npz", "static"),
        ("generic_model.pkl", "inner"),
    ],
)
def test_releases_and_landmarks(name, landmarks, model, tmp_path):
    """Every kind of file gives the same model; where the contour of the jaw is missing, its points are."""
    files.write_model(tmp_path / name, files.model_arrays())
    files.write_landmarks(tmp_path, landmarks)
    read = import_flame(tmp_path / name, "mine")
    for key in ("mean", "identity_basis", "triangles", "pose_basis", "joint_regressor", "skinning_weights"):
        assert torch.equal(getattr(read, key), getattr(model, key))
    assert torch.equal(read.expression_basis, model.expression_basis[:100])
    present = torch.arange(68) >= (17 if landmarks == "inner" else 0)
    assert torch.equal(read.landmarks.present, present)
    assert torch.equal(read.landmarks.triangle[present], model.landmarks.triangle[present])
    assert read.name == "mine" and name in read.source and read.uv is None
    assert ("CC BY" in read.license) == ("Open" in name) and "eyelid" not in read.notes
    assert read.region_names == model.region_names and bool(read.skin.any() and read.face.any())


def test_points_beyond_the_68_are_pupils(model, tmp_path):
    triangle, weights = (np.concatenate([v, v[:2]])[None] for v in files.embedding())
    points = {"full_lmk_faces_idx": triangle, "full_lmk_bary_coords": weights}
    change(tmp_path)
    np.save(tmp_path / "landmark_embedding_with_eyes.npy", np.array(points, dtype=object), allow_pickle=True)
    (tmp_path / "landmark_embedding.npy").unlink()
    assert torch.equal(import_flame(tmp_path).landmarks.triangle, model.landmarks.triangle)


def test_texture_coordinates_of_the_same_triangles_in_another_order(model, folder, tmp_path):
    files.write_model(tmp_path / "flame2023.pkl", files.model_arrays())
    files.write_landmarks(tmp_path, "deca")
    np.savez(
        tmp_path / "FLAME_texture.npz", vt=files.MODEL.uv.numpy(), ft=files.MODEL.uv_triangles.numpy(), mean=0
    )
    texture = import_flame(tmp_path)
    files.write_template(tmp_path / "head_template.obj", turn=1)
    template = import_flame(tmp_path)
    for read in (model, texture, template):
        torch.testing.assert_close(
            read.uv[read.uv_triangles], files.MODEL.uv[files.MODEL.uv_triangles], atol=1e-6, rtol=0
        )


def test_stored_and_shown(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path))
    done = CliRunner().invoke(main, ["model", "import", "flame", str(folder)])
    assert (
        done.exit_code == 0
        and "315 vertices, 300 identity and 102 expression shapes, 4 joints" in done.output
    )
    shown = CliRunner().invoke(main, ["model", "info", "flame"]).output
    for line in (
        "identity    300 coefficients, sigma 1",
        "expression  102 coefficients, sigma 0.5 to 1: expression_000 ... eyeBlink_R",
        "joints      12 rotations, sigma 0.02 to 0.25: neck_x, ",
        "landmarks   68 (iBUG 68)",
        "licence     of FLAME: research, see flame.is.tue.mpg.de",
        "source      FLAME, flame.is.tue.mpg.de; Li et al., SIGGRAPH Asia 2017 (generic_model.pkl)",
        "notes       Identity and expression coefficients are FLAME's shape and expression parameters",
    ):
        assert line in shown
    stored, read = fitkit.load_model("flame"), import_flame(folder)
    for key in ("identity_basis", "pose_basis"):  # half precision
        torch.testing.assert_close(getattr(stored, key), getattr(read, key), atol=2e-3, rtol=1e-3)
    for key in ("mean", "expression_basis", "joint_regressor", "skinning_weights", "joint_sigma"):
        assert torch.equal(getattr(stored, key), getattr(read, key))


def test_a_fit_finds_the_vertices_again(model):
    found, of_mean = fit_of_own_renders(model, expression=0.5)
    assert found < 0.7 < 2.5 < of_mean  # mm; 300 shapes by 68 points


def change(folder, **arrays):
    files.write_model(folder / "flame2023.pkl", files.model_arrays() | arrays)
    files.write_landmarks(folder, "deca")


def pickled(name, value):
    def write(folder):
        change(folder)
        if name.endswith(".npy"):
            np.save(folder / name, np.array(value, dtype=object), allow_pickle=True)
        else:
            (folder / name).write_bytes(python2(value))

    return write


def saved(name, array):
    def write(folder):
        change(folder)
        np.save(folder / name, array)

    return write


def without_landmarks(folder):
    change(folder)
    (folder / "landmark_embedding.npy").unlink()


ARRAYS = files.model_arrays()
TRIANGLE, WEIGHTS = files.embedding()


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda folder: None, "no model file of FLAME; expected one of flame2023.pkl, flame2023_Open.pkl"),
        (without_landmarks, "no landmark embedding beside FLAME's model file; put landmark_embedding.npy"),
        (
            lambda f: change(f, shapedirs=ARRAYS["shapedirs"][..., :50]),
            r"flame2023.pkl: shapedirs: expected shape \[315, 3, 400\], got \[315, 3, 50\]",
        ),
        (lambda f: change(f, posedirs=None), "expected arrays v_template, .* got none for posedirs"),
        (
            lambda f: change(f, f=ARRAYS["f"] + np.uint32(1)),
            r"flame2023.pkl: f: expected \[F, 3\] indices in 0..314, got 1 to 315",
        ),
        (lambda f: change(f, f=ARRAYS["f"].astype(float)), "f: expected whole numbers, got float64"),
        (
            lambda f: change(f, kintree_table=np.array([[-1, 0, 9, 1, 1], range(5)])),
            "kintree_table, first row: expected indices in 0..3, got 0 to 9",
        ),
        (
            lambda f: change(f, v_template=1000 * ARRAYS["v_template"]),
            r"corners are 9\d+ apart|mean: expected",
        ),
        (
            lambda f: change(f, v_template=ARRAYS["v_template"] * np.nan),
            "flame2023.pkl: not usable as FLAME",
        ),
        (
            pickled("landmark_embedding.npy", {"a": 1}),
            "expected an embedding of landmarks with full_lmk_faces_idx and full_lmk_bary_coords or",
        ),
        (
            pickled("landmark_embedding.npy", {"lmk_face_idx": TRIANGLE[:9], "lmk_b_coords": WEIGHTS[:9]}),
            "expected 51 or 68 points, got 9",
        ),
        (
            pickled("landmark_embedding.npy", {"lmk_face_idx": TRIANGLE, "lmk_b_coords": WEIGHTS[:9]}),
            r"weights: expected shape \[68, 3\], got \[9, 3\]",
        ),
        (
            pickled("landmark_embedding.npy", {"lmk_face_idx": TRIANGLE + 10**6, "lmk_b_coords": WEIGHTS}),
            "triangles of the landmarks: expected indices in 0..559",
        ),
        (
            saved("l_eyelid.npy", np.zeros((315, 3))),
            "expected l_eyelid.npy and r_eyelid.npy, got one of them",
        ),
        (saved("r_eyelid.npy", np.zeros((9, 3))), r"eyeBlink_R: expected shape \[315, 3\], got \[9, 3\]"),
        (pickled("FLAME_masks.pkl", {"face": np.array([999])}), "face: expected indices in 0..314, got 999"),
        (pickled("FLAME_masks.pkl", {"face": "all"}), "face: expected shape"),
        (
            lambda f: (change(f), (f / "head_template.obj").write_text("v 0 0 0\nvt 0 0\nf 1/1 1/1 1/1\n")),
            "head_template.obj: its triangles are not those of the model file",
        ),
        (
            lambda f: (
                change(f),
                np.savez(f / "FLAME_texture.npz", vt=np.zeros((9, 2)), ft=np.zeros((9, 3), int)),
            ),
            r"ft: expected shape \[560, 3\], got \[9, 3\]",
        ),
        (
            lambda f: (change(f), np.savez(f / "FLAME_texture.npz", vt=np.zeros((9, 2)), ft=TRIANGLES + 9)),
            "texture coordinates of the triangles: expected indices in 0..8",
        ),
    ],
)
def test_refusals(write, message, tmp_path):
    write(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        import_flame(tmp_path)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


TRIANGLES = files.MODEL.triangles.numpy()


@pytest.mark.parametrize(
    "contour, message",
    [
        (
            {"lmk_face_idx": TRIANGLE[None, :9], "lmk_b_coords": WEIGHTS[None, :9]},
            r"expected shape \['?A'?, 17\]",
        ),
        (
            {"lmk_face_idx": TRIANGLE[None, :17][:0], "lmk_b_coords": WEIGHTS[None, :17][:0]},
            "expected the points of at least one angle, got none",
        ),
        ({"lmk_b_coords": WEIGHTS[None, :17]}, "expected an embedding of landmarks with lmk_face_idx and"),
    ],
)
def test_contours_that_are_none(contour, message, tmp_path):
    change(tmp_path)
    (tmp_path / "landmark_embedding.npy").unlink()
    files.write_landmarks(tmp_path, "static")
    np.save(tmp_path / "flame_dynamic_embedding.npy", np.array(contour, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=message):
        import_flame(tmp_path)


def test_nothing_runs(tmp_path):
    class Runs:
        def __reduce__(self):
            return eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    change(tmp_path)
    (tmp_path / "flame2023.pkl").write_bytes(pickle.dumps(files.model_arrays() | {"bs_type": Runs()}))
    with pytest.raises(
        InputError, match=r"flame2023.pkl: not readable as a file of FLAME \(it holds 'builtins.eval'"
    ):
        import_flame(tmp_path)
    np.save(tmp_path / "landmark_embedding.npy", np.array({"a": Runs()}, dtype=object), allow_pickle=True)
    files.write_model(tmp_path / "flame2023.pkl", files.model_arrays())
    with pytest.raises(InputError, match=r"landmark_embedding.npy: .* \(it holds 'builtins.eval'"):
        import_flame(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_larger_x_is_the_left_eye(model, folder, tmp_path):
    """Whatever the order of the eyes in the file."""
    arrays, order = files.model_arrays(), [0, 1, 2, 4, 3]
    swapped = {"J_regressor": arrays["J_regressor"][order], "weights": arrays["weights"][:, order]}
    change(tmp_path, **swapped)
    read = import_flame(tmp_path)
    assert read.joint_names == ("neck", "jaw", "eye_R", "eye_L")
    joints = 0.1 * torch.ones(1, 4, 3)
    joints[0, 3] = -0.2
    still = replace(read, pose_basis=None), replace(model, pose_basis=None)
    zero = torch.zeros(1, 300), torch.zeros(1, 100), torch.zeros(1, 102)
    torch.testing.assert_close(
        still[0].vertices(zero[0], zero[1], joints),
        still[1].vertices(zero[0], zero[2], joints[:, [0, 1, 3, 2]]),
        atol=1e-3,
        rtol=0,
    )
