"""The Surrey Face Model: the published files, and small ones of every version of their layout."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import observe, tiny_state
from model_files_bfm import LAST, small_face
from model_files_surrey import EXPRESSIONS, MISSING, matrix, write_surrey

import fitkit
from fitkit.errors import InputError
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit_observed
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.normals import triangle_normals
from fitkit.io.subject import Subject, View
from fitkit.models.formats import FORMATS
from fitkit.models.formats.surrey import import_surrey, read_landmarks
from fitkit.models.io import load_model_file, save_model_file

DATA = Path(__file__).resolve().parents[3] / "shared/data/sfm"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared test data are not here")
FACE = small_face()


def check_against(model, mean, shapes, expressions, atol=2e-4):
    """Vertices of `model` at random coefficients are those of the published formula; float32 of 100 mm."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=shapes.shape[1]), rng.uniform(size=expressions.shape[1])
    wanted = (mean.reshape(-1) + shapes @ a + expressions @ b).reshape(-1, 3)
    got = model.vertices(torch.tensor(a[None]).float(), torch.tensor(b[None]).float())[0]
    np.testing.assert_allclose(got, wanted, atol=atol)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_every_version_of_the_layout(tmp_path, version):
    held = "file" if version < 3 else "blend_shapes"
    path = write_surrey(tmp_path, version, held, colors=version > 1)
    model = import_surrey(tmp_path if version == 1 else path)
    check_against(model, FACE.mean, FACE.shapes * FACE.sigma, 3 * FACE.expressions * FACE.expression_sigma)
    assert model.name == "surrey" and model.expression_names == EXPRESSIONS
    assert model.expression_kind == "blend_shape" and "0 to 1" in model.notes
    assert model.landmarks.missing == MISSING
    zero = torch.zeros(1, 6), torch.zeros(1, 4)
    there = model.landmarks.present
    np.testing.assert_allclose(
        model.landmark_points(*zero)[0][there], FACE.mean[FACE.landmarks][there.numpy()], atol=1e-4
    )
    # Texture coordinates of each corner, whichever indices they have, v up: the forehead is above the chin.
    flat = (FACE.mean[:, :2] - FACE.mean[:, :2].min(0)) / np.ptp(FACE.mean[:, :2], axis=0)
    np.testing.assert_allclose(model.uv[model.uv_triangles], flat[FACE.triangles], atol=1e-6)
    assert (model.albedo_mean is not None) == (version > 1)
    if version > 1:
        assert model.albedo_basis.shape == (2, len(FACE.mean), 3)


def test_principal_components_of_expressions_in_the_model_file(tmp_path):
    model = import_surrey(write_surrey(tmp_path, 4, "pca"))
    mean = FACE.mean + FACE.expression_mean.reshape(-1, 3)
    check_against(model, mean, FACE.shapes * FACE.sigma, FACE.expressions * FACE.expression_sigma)
    assert model.expression_kind == "gaussian" and model.expression_names[0] == "expression_1"
    assert model.coefficients["expression"].sigma.tolist() == [1.0] * 4 and "standard-normal" in model.notes


def test_clockwise_triangles_are_turned_with_their_texture(tmp_path):
    path = write_surrey(tmp_path)
    right = import_surrey(path)
    data = path.read_bytes()
    triangles = FACE.triangles.astype("<i4").tobytes()
    path.write_bytes(data.replace(triangles, FACE.triangles[:, ::-1].astype("<i4").tobytes()))
    model = import_surrey(path)
    assert torch.equal(model.triangles, right.triangles) and torch.equal(
        model.uv_triangles, right.uv_triangles
    )
    nose = model.landmarks.triangle[30]
    assert triangle_normals(model.mean[None], model.triangles)[0, nose, 2] > 0


def cut_off(data):
    return data[:-3]


@pytest.mark.parametrize(
    "change, message",
    [
        (cut_off, "it states an array of"),
        (lambda d: d + b"12", "2 bytes are left over"),
        (lambda d: struct.pack("<I", 0) + d[4:], "version 0 of the file, 1 to 4 are read"),
        (lambda d: d[:4] + struct.pack("<ii", 3 * 10**9 // 2, 1) + d[12:], "which it does not hold"),
        (lambda d: d[:4] + struct.pack("<ii", -3, 1) + d[12:], "which it does not hold"),
        (
            lambda d: d[:4] + struct.pack("<ii", 1, 3 * len(FACE.mean)) + d[12:],
            "expected one column of x, y, z",
        ),
        (
            lambda d: d.replace(struct.pack("<Q", len(FACE.triangles)), struct.pack("<Q", 10**18), 1),
            "not hold",
        ),
        (
            lambda d: d.replace(matrix(np.square(FACE.sigma)[:, None]), matrix(-np.ones((6, 1)))),
            "of 0 or more",
        ),
        (
            lambda d: d[:12] + struct.pack("<f", float("nan")) + d[16:],
            "mean face holds values that are not finite",
        ),
        (lambda d: b"", "it states an array of"),
    ],
)
def test_broken_model_files(tmp_path, change, message):
    path = write_surrey(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        import_surrey(path)
    assert str(path) in str(caught.value)


def test_triangles_of_vertices_that_are_not_there(tmp_path):
    path = write_surrey(tmp_path)
    triangles = FACE.triangles.astype("<i4")
    wrong = triangles.copy()
    wrong[5, 1] = 10**6
    path.write_bytes(path.read_bytes().replace(triangles.tobytes(), wrong.tobytes()))
    with pytest.raises(InputError, match="triangles: expected .*indices in 0"):
        import_surrey(path)


def test_landmarks_on_no_triangle(tmp_path):
    path = write_surrey(tmp_path)
    at = FACE.landmarks[30]
    triangles = FACE.triangles.astype("<i4")
    without = np.where((triangles == at).any(1, keepdims=True), triangles[:1], triangles)
    path.write_bytes(path.read_bytes().replace(triangles.tobytes(), without.astype("<i4").tobytes()))
    with pytest.raises(InputError, match=f"landmarks: vertex {at} is a corner of no triangle"):
        import_surrey(path)


def test_expressions_of_another_kind_or_mesh(tmp_path):
    path = write_surrey(tmp_path, 2, "pca")
    start = struct.pack("<ii", 3 * len(FACE.mean), 1)  # of the mean of expressions
    held = (struct.pack("<?i", False, kind) + start for kind in (0, 7))
    path.write_bytes(path.read_bytes().replace(*held))
    with pytest.raises(InputError, match="expected expressions of kind 0 or 1, got 7"):
        import_surrey(path)
    path = write_surrey(tmp_path)
    (tmp_path / "expression_blendshapes_29.bin").write_bytes(
        struct.pack("<QQ", 1, 5) + b"anger" + matrix(np.zeros((30, 1)))
    )
    with pytest.raises(InputError, match=f"'anger': expected one column of x, y, z of {LAST + 1} vertices"):
        import_surrey(path)


def test_files_that_are_missing(tmp_path):
    with pytest.raises(InputError, match="expected one sfm_shape_NUMBER.bin, got 0"):
        import_surrey(tmp_path)
    path = write_surrey(tmp_path)
    (tmp_path / "expression_blendshapes_29.bin").unlink()
    with pytest.raises(InputError, match="blendshapes_29.bin: not a file of expressions of eos"):
        import_surrey(path)
    (tmp_path / "ibug_to_sfm.txt").unlink()
    with pytest.raises(InputError, match="ibug_to_sfm.txt: not a file of landmarks of eos"):
        import_surrey(path)


def test_text_of_landmarks(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(
        "# [landmark_mappings]\n[landmark_mappings] # here\n 9 = 33 # chin\n#10 = 4\n[other]\n11 = 5\n"
    )
    assert read_landmarks(path) == [33 if k == 8 else -1 for k in range(68)]
    for text, message in (
        ("9 = 33\n", r"no section \[landmark_mappings\]"),
        ("[landmark_mappings]\n69 = 1\n", "expected points 1 to 68, got 69"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_landmarks(path)


@pytest.mark.parametrize(
    "table, message",
    [
        ({37: 10**6}, f"expected 68 vertices in 0..{LAST}"),
        ({37: None}, "expected the outer eye corners"),
        ({37: 46, 46: 37}, "not where they belong on a face"),
        ({31: 37}, "not where they belong on a face"),
        ({9: 28}, "not where they belong on a face"),
    ],
)
def test_landmarks_of_another_mesh(tmp_path, table, message):
    path = write_surrey(tmp_path)
    vertices = {k + 1: v for k, v in enumerate(FACE.landmarks) if k not in MISSING}
    vertices |= {k: vertices.get(v, v) for k, v in table.items()}
    lines = [f"{k} = {v}" for k, v in vertices.items() if v is not None]
    (tmp_path / "ibug_to_sfm.txt").write_text("[landmark_mappings]\n" + "\n".join(lines))
    with pytest.raises(InputError, match=message):
        import_surrey(path)


def test_a_fit_finds_the_face_again(tmp_path):
    """Landmarks of three views of a face of the model, exact: its vertices come back, but for their scale,
    which photos do not tell, and what the priors and the 50 points leave open."""
    model = import_surrey(write_surrey(tmp_path))
    truth = tiny_state(model, 3, 400, expression=0.0)
    marks = replace(observe(model, truth, 400).landmarks, sigma=torch.full((3, 68), torch.nan))
    grey = np.full((400, 400, 3), 128, np.uint8)
    photos = Subject("test", tuple(View(f"view{i}", grey) for i in range(3)))
    result = fit_observed(photos, marks, model, load_recipe("landmarks"))
    face = model.face.nonzero()[:, 0]
    wanted = truth.vertices(model)[:1, face]

    def error(vertices):
        aligned = similarity_align(vertices[None, face], wanted).apply(vertices[None, face])
        return float((aligned - wanted).norm(dim=-1).mean())

    assert error(model.mean) > 1.2 and error(result.neutral) < 0.2


def test_stored_and_read_again(tmp_path):
    model = import_surrey(write_surrey(tmp_path), "other")
    again = load_model_file(save_model_file(model, tmp_path / "other.npz"))
    assert again.name == "other" and again.notes == model.notes
    torch.testing.assert_close(again.mean, model.mean)


def test_the_kind_is_known(tmp_path):
    assert FORMATS["surrey"].read(write_surrey(tmp_path).parent).name == "surrey"


@needs_data
def test_the_published_model():
    model = import_surrey(DATA)
    data = (DATA / "sfm_shape_3448.bin").read_bytes()
    rows, number = 3 * 3448, 63
    numbers = np.frombuffer(data, "<f4", rows + 2 + rows * number + 2 + number, 12)
    mean, basis, variance = numbers[:rows], numbers[rows + 2 : -number - 2], numbers[-number:]
    shapes = basis.reshape(number, rows).T * np.sqrt(variance)
    held = (DATA / "expression_blendshapes_3448.bin").read_bytes()
    places = [held.index(n.encode()) + len(n) + 8 for n in model.expression_names]
    moves = np.stack([np.frombuffer(held, "<f4", rows, at) for at in places], 1)
    check_against(model, mean, shapes, moves)
    assert model.expression_names == ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
    assert model.landmarks.missing == MISSING and model.num_vertices == 3448 and len(model.triangles) == 6736
    points = model.landmarks.points(model.mean[None], model.triangles)[0]
    assert float((points[36] - points[45]).norm()) == pytest.approx(92.4, abs=0.1)  # so the unit is mm
    assert model.uv[model.triangles[model.landmarks.triangle[27]], 1].min() > 0.6  # the bridge above ...
    assert model.uv[model.triangles[model.landmarks.triangle[8]], 1].max() < 0.2  # ... the chin
    normals = triangle_normals(model.mean[None], model.triangles)[0]
    assert (normals[:, 2] > 0).float().mean() > 0.9
    assert 0.6 < model.face.float().mean() < 0.95 and not model.face[model.mean[:, 1].argmax()]


@needs_data
@pytest.mark.parametrize("person", ["mvfnet", "eos"])
def test_photos_with_the_published_model(person):
    """Real photos: its 50 points end near the given ones, and the face has the size of a face."""
    result = fitkit.fit(DATA.parent / "photos" / person, model=import_surrey(DATA), recipe="landmarks")
    assert result.status == "ok" and result.report.reprojection_share < 0.03
    corners = result.model.landmarks.points(result.neutral[None], result.model.triangles)[0, [36, 45]]
    assert 75 < float((corners[0] - corners[1]).norm()) < 105
