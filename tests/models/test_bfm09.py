"""The Basel Face Model of 2009, as published and as 3DDFA packs it, in small files of their layouts."""

import numpy as np
import pytest
import scipy.io
import torch
from model_files_bfm import LAST, NUMBERS, small_face, write_3ddfa, write_bfm09

from fitkit.data.w300lp import BfmCodes
from fitkit.errors import InputError
from fitkit.geometry.color import linear_from_srgb
from fitkit.geometry.normals import triangle_normals
from fitkit.io import foreign
from fitkit.models.formats import FORMATS, bfm09
from fitkit.models.formats.bfm09 import import_bfm09, read_3ddfa_model
from fitkit.models.io import load_model_file, save_model_file

FACE = small_face()
PARTIAL = [17, 30, 36, 39, 42, 45, 48, 54, 57]  # of a table like the published one


@pytest.fixture
def published(tmp_path, monkeypatch):
    """01_MorphableModel.mat and what belongs to it -> folder, arrays; the table of landmarks is for it."""
    arrays = write_bfm09(tmp_path)
    table = {k: int(arrays["trimIndex"][FACE.landmarks[k]]) for k in PARTIAL}
    monkeypatch.setattr(bfm09, "LANDMARKS", table)
    return tmp_path, arrays


def vertices(model, identity, expression):
    return model.vertices(*(torch.tensor(c[None]).float() for c in (identity, expression)))[0].numpy()


def change(path, **arrays):
    kept = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")} | arrays
    scipy.io.savemat(path, {k: v for k, v in kept.items() if v is not None})


def looks_out(model):
    nose = model.landmarks.triangle[30]
    return float(triangle_normals(model.mean[None], model.triangles)[0, nose, 2]) > 0


def test_the_published_model_with_expressions(published):
    folder, arrays = published
    model, rng = import_bfm09(folder), np.random.default_rng(0)
    a, e = rng.normal(size=6), rng.normal(size=4)
    kept = arrays["trimIndex"]
    shape = arrays["shapeMU"][:, 0] + arrays["shapePC"] @ (arrays["shapeEV"][:, 0] * a)
    wanted = shape.reshape(-1, 3)[kept] + (arrays["expMU"] + arrays["expPC"] @ e).reshape(-1, 3)
    np.testing.assert_allclose(vertices(model, a, e), wanted / 1000, atol=5e-4)
    np.testing.assert_allclose(model.coefficients["expression"].sigma, arrays["expEV"], rtol=1e-6)
    assert looks_out(model)
    assert {tuple(sorted(t)) for t in model.triangles.tolist()} == {
        tuple(sorted(t)) for t in FACE.triangles.tolist()
    }, "those of all three corners that have expressions"
    assert set(range(68)) - set(model.landmarks.missing) == set(PARTIAL)
    points = model.landmarks.points(model.mean[None], model.triangles)[0]
    neutral = FACE.mean + FACE.expression_mean.reshape(-1, 3)
    np.testing.assert_allclose(points[PARTIAL], neutral[FACE.landmarks[PARTIAL]], atol=1e-3)
    assert torch.allclose(model.albedo_mean, linear_from_srgb(torch.tensor(FACE.colors)).float(), atol=1e-5)
    assert model.albedo_basis.shape == (2, len(FACE.mean), 3)


def test_all_landmarks_from_the_files_of_the_front(tmp_path):
    write_bfm09(tmp_path, front=True)
    model = import_bfm09(tmp_path / "01_MorphableModel.mat")
    corners = model.triangles[model.landmarks.triangle]
    at = corners[torch.arange(68), model.landmarks.barycentric.argmax(1)]
    assert at.tolist() == FACE.landmarks.tolist()


@pytest.mark.parametrize("name", ["Model_Exp.mat", "Model_Expression.mat"])
def test_coefficients_of_300w_lp(tmp_path, name):
    """Shape_Para are the identity times sigma, Exp_Para the expression itself."""
    arrays = write_3ddfa(tmp_path)
    (tmp_path / "Model_Exp.mat").rename(tmp_path / name)
    model, rng = import_bfm09(tmp_path), np.random.default_rng(1)
    shape_para, exp_para = rng.normal(size=6) * arrays["sigma"][:, 0], rng.normal(size=4)
    wanted = (
        (arrays["mu_shape"] + arrays["mu_exp"])[:, 0] + arrays["w"] @ shape_para + arrays["w_exp"] @ exp_para
    )
    identity = shape_para / arrays["sigma"][:, 0]
    np.testing.assert_allclose(vertices(model, identity, exp_para), wanted.reshape(-1, 3) / 1000, atol=5e-4)
    codes, offset = BfmCodes.of(read_3ddfa_model(tmp_path), model)(shape_para, exp_para)
    np.testing.assert_allclose(codes, np.concatenate([identity, exp_para]), atol=1e-3)
    np.testing.assert_allclose(offset, np.zeros(3), atol=1e-3)
    np.testing.assert_allclose(model.coefficients["expression"].sigma, arrays["sigma_exp"][:, 0], rtol=1e-6)
    assert looks_out(model) and model.landmarks.missing == () and "Shape_Para" in model.notes
    assert torch.allclose(model.albedo_mean, linear_from_srgb(torch.tensor(FACE.colors)).float(), atol=1e-5)


def test_standard_deviations_of_expressions_in_a_file_of_their_own(tmp_path):
    sigma = write_3ddfa(tmp_path)["sigma_exp"]
    change(tmp_path / "Model_Exp.mat", sigma_exp=None)
    with pytest.raises(InputError, match="expected the standard deviations sigma .* sigma_exp.mat"):
        import_bfm09(tmp_path)
    scipy.io.savemat(tmp_path / "sigma_exp.mat", {"sigma_exp": sigma})
    np.testing.assert_allclose(
        import_bfm09(tmp_path).coefficients["expression"].sigma, sigma[:, 0], rtol=1e-6
    )


@pytest.mark.parametrize(
    "name, arrays, message",
    [
        ("Model_Shape.mat", {"keypoints": np.ones((1, 60))}, "arrays of different lengths"),
        ("Model_Shape.mat", {"sigma": np.ones((5, 1))}, "arrays of different lengths"),
        ("Model_Shape.mat", {"tex": np.ones((3, 7))}, "arrays of different lengths"),
        ("Model_Shape.mat", {"keypoints": np.full((1, 68), 1.5)}, "numbers that are not whole"),
        ("Model_Shape.mat", {"tri": np.full((3, 4), np.nan)}, "numbers that are not whole"),
        ("Model_Shape.mat", {"tri": np.full((3, 4), 1e6)}, "tri, counted from 0: expected indices in"),
        ("Model_Shape.mat", {"w": None}, "no entry 'w'"),
        ("Model_Exp.mat", {"w_exp": np.full((NUMBERS, 4), np.inf)}, "not all numbers are finite"),
        ("Model_Exp.mat", {"sigma_exp": np.zeros((4, 1))}, "expression_sigma: expected finite"),
    ],
)  # fmt: skip
def test_broken_files_of_3ddfa(tmp_path, name, arrays, message):
    write_3ddfa(tmp_path)
    change(tmp_path / name, **arrays)
    with pytest.raises(InputError, match=message):
        import_bfm09(tmp_path / "Model_Shape.mat")


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"texPC": None}, "it lacks texPC"),
        ({"shapeEV": np.ones((5, 1))}, r"shapeEV: expected shape \[6, 1\], got \[5, 1\]"),
        ({"tl": np.full((4, 3), 0.5)}, "numbers that are not whole"),
        ({"tl": np.full((4, 3), 1e5)}, "tl, counted from 0: expected indices"),
        ({"tl": np.ones((4, 4))}, r"tl: expected shape \['F', 3\]"),
    ],
)
def test_broken_published_files(published, arrays, message):
    change(published[0] / "01_MorphableModel.mat", **arrays)
    with pytest.raises(InputError, match=message):
        import_bfm09(published[0])


def test_broken_expressions(published):
    folder, _ = published
    path, held = folder / "Exp_Pca.bin", (folder / "Exp_Pca.bin").read_bytes()
    for data in (
        b"",
        held[:-4],
        held + b"1234",
        np.int32(10**9).tobytes() + held[4:],
        np.int32(-1).tobytes(),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match="Exp_Pca.bin: not the expressions of FaceWarehouse"):
            import_bfm09(folder)
    path.write_bytes(held)
    (folder / "std_exp.txt").write_text("1 2\n")
    with pytest.raises(
        InputError, match="std_exp.txt: .*expected 4 numbers as Exp_Pca.bin has shapes, got 2"
    ):
        import_bfm09(folder)
    for index, message in ((np.ones((7, 1)), "trimIndex names a vertex twice"), (np.zeros((7, 1)), "from 0")):
        scipy.io.savemat(folder / "BFM_exp_idx.mat", {"trimIndex": index})
        with pytest.raises(InputError, match=message):
            import_bfm09(folder)


def test_expressions_that_are_missing(published):
    folder, _ = published
    for name in ("Exp_Pca.bin", "BFM_exp_idx.mat"):
        (folder / name).unlink()
        with pytest.raises(
            InputError, match=f"{name}: .* the model of 2009 has no expressions of its own: put"
        ):
            import_bfm09(folder)
    (folder / "01_MorphableModel.mat").unlink()
    with pytest.raises(InputError, match="01_MorphableModel.mat: not the Basel Face Model of 2009"):
        import_bfm09(folder)


def test_landmarks_of_another_mesh(tmp_path):
    write_bfm09(tmp_path)
    with pytest.raises(InputError, match="expected 42826 or more vertices, as the published mesh"):
        import_bfm09(tmp_path)
    write_bfm09(tmp_path, front=True)
    scipy.io.savemat(tmp_path / "facemodel_info.mat", {"keypoints": np.full((1, 68), 9e4)})
    with pytest.raises(InputError, match=f"keypoints, counted from 0: expected indices in 0..{LAST}"):
        import_bfm09(tmp_path)


def test_the_table_of_landmarks_has_a_right_and_a_left():
    """The published mesh numbers its vertices from the right to the left of the face, roughly."""
    at = bfm09.LANDMARKS
    for right, left in ((17, 26), (19, 24), (21, 22), (36, 45), (39, 42), (48, 54)):
        assert at[right] < at[left] < 53490
    assert len(set(at.values())) == 18


def test_arrays_have_room_for_the_published_ones():
    """53,490 vertices, 199 shapes and 199 of colours in single precision; 3DDFA's 199 in double precision."""
    assert 4 * 3 * 53490 * (2 * 199 + 2) + 8 * 3 * 106333 < foreign.ARRAY_BYTES
    assert 8 * 3 * 53215 * (199 + 2) + 8 * 3 * 105840 < foreign.ARRAY_BYTES


def test_kind_and_storage(tmp_path):
    write_3ddfa(tmp_path)
    model = FORMATS["bfm09"].read(tmp_path)
    again = load_model_file(save_model_file(model, tmp_path / "a.npz"))
    assert again.name == "bfm09" and again.notes == model.notes
    torch.testing.assert_close(again.expression_basis, model.expression_basis)
    torch.testing.assert_close(again.expression_sigma, model.expression_sigma)
