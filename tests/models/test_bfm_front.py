"""Deep3DFaceRecon's front of the Basel Face Model, in a small file of its layout."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torch
from helpers import observe, photograph, tiny_state
from model_files_bfm import LAST, NUMBERS, small_face, write_bfm_front

from fitkit.errors import InputError
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit_observed
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.color import linear_from_srgb, srgb_from_linear
from fitkit.geometry.normals import triangle_normals
from fitkit.io.subject import Subject, View
from fitkit.models.formats import FORMATS
from fitkit.models.formats.bfm_front import import_bfm_front
from fitkit.models.io import load_model_file, save_model_file
from fitkit.models.registry import load_model

FACE = small_face()


@pytest.fixture
def path(tmp_path):
    write_bfm_front(tmp_path / "BFM_model_front.mat")
    return tmp_path / "BFM_model_front.mat"


def published(arrays, identity, expression, tex):
    """Vertices [V, 3] and colours [V, 3] of Deep3DFaceRecon's formulas: the mean of the mean shape is
    subtracted, colours are over 255."""
    mean = arrays["meanshape"].reshape(-1, 3).astype(float)
    mean = (mean - mean.mean(0, keepdims=True)).reshape(-1)
    shape = mean + arrays["idBase"] @ identity + arrays["exBase"] @ expression
    return shape.reshape(-1, 3), ((arrays["meantex"][0] + arrays["texBase"] @ tex) / 255).reshape(-1, 3)


def test_coefficients_keep_their_meaning(path):
    arrays, model = write_bfm_front(path), import_bfm_front(path)
    rng = np.random.default_rng(2)
    identity, expression, tex = rng.normal(size=6), rng.normal(size=4), rng.normal(size=2)
    vertices, _ = published(arrays, identity, expression, tex)
    got = model.vertices(torch.tensor(identity[None]).float(), torch.tensor(expression[None]).float())[0]
    np.testing.assert_allclose(got, 100 * vertices, atol=5e-4)  # units of 10 cm
    np.testing.assert_allclose(model.mean.mean(0), np.zeros(3), atol=1e-4)
    assert model.coefficients["expression"].sigma.tolist() == [1] * 4 and "257" in model.notes
    assert model.triangles.tolist() == FACE.triangles.tolist() and model.landmarks.missing == ()
    nose = model.landmarks.triangle[30]
    assert triangle_normals(model.mean[None], model.triangles)[0, nose, 2] > 0
    points = model.landmarks.points(model.mean[None], model.triangles)[0]
    np.testing.assert_allclose(points, (FACE.mean - FACE.mean.mean(0))[FACE.landmarks], atol=1e-3)


def test_albedo_is_linear_light(path):
    arrays, model = write_bfm_front(path), import_bfm_front(path)
    np.testing.assert_allclose(model.albedo_mean, linear_from_srgb(torch.tensor(FACE.colors)), atol=1e-6)
    tex = np.array([0.7, -0.4])
    _, color = published(arrays, np.zeros(6), np.zeros(4), tex)
    light = model.albedo_mean + torch.einsum("k,kvc->vc", torch.tensor(tex).float(), model.albedo_basis)
    # To first order: at colours 0.05 from the mean about 0.002 is left.
    moved = np.abs(color - FACE.colors).max()
    assert np.abs(srgb_from_linear(light).numpy() - color).max() < 0.1 * moved and moved > 0.03


def test_parts_are_those_of_the_same_head(path):
    generic, model = load_model("generic"), import_bfm_front(path)
    assert float((model.skin == generic.skin).float().mean()) > 0.97
    assert float((model.face == generic.face).float().mean()) > 0.97
    assert float((model.region == generic.region).float().mean()) > 0.97


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"exBase": None}, "it lacks exBase"),
        ({"idBase": np.ones((22350, 3))}, rf"idBase: expected shape \[{NUMBERS}, 'K'\], got \[22350, 3\]"),
        ({"tri": np.full((5, 3), 0.5)}, "numbers that are not whole"),
        ({"tri": np.full((5, 3), 1e6)}, f"triangles: expected .*indices in 0..{LAST}"),
        ({"tri": np.zeros((5, 3))}, f"triangles: expected .*indices in 0..{LAST}, got -1 to -1"),
        ({"keypoints": np.ones((1, 5))}, r"keypoints: expected shape \[1, 68\], got \[1, 5\]"),
        ({"keypoints": np.full((1, 68), 1e6)}, f"landmarks: expected 68 vertices in 0..{LAST}"),
        ({"keypoints": np.arange(1.0, 69)[None]}, "not where they belong on a face"),
        ({"meantex": np.full((1, NUMBERS), 1e4)}, "colours: expected a mean of 0 to 1"),
        ({"meanshape": np.full((1, NUMBERS), np.nan)}, "mean face holds values that are not finite"),
        ({"idBase": np.full((NUMBERS, 2), np.inf)}, "identity_basis holds values that are not finite"),
    ],
)
def test_broken_files(path, arrays, message):
    kept = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")} | arrays
    scipy.io.savemat(path, {k: v for k, v in kept.items() if v is not None})
    with pytest.raises(InputError, match=message) as caught:
        import_bfm_front(path)
    assert str(path) in str(caught.value)


def test_a_count_that_is_no_vertices(path):
    arrays = {k: np.ones((22352, 2)) for k in ("idBase", "exBase", "texBase")}
    arrays |= {k: np.ones((1, 22352)) for k in ("meanshape", "meantex")}
    scipy.io.savemat(path, arrays | {"tri": np.ones((4, 3)), "keypoints": np.ones((1, 68))})
    with pytest.raises(InputError, match="meanshape: expected x, y, z of each vertex, got 22352 numbers"):
        import_bfm_front(path)


def test_no_matlab_file(path):
    for data in (b"", b"MATLAB 7.3 MAT-file" + b"\0" * 200, path.read_bytes()[:5000]):
        path.write_bytes(data)
        with pytest.raises(InputError, match="not Deep3DFaceRecon's face model"):
            import_bfm_front(path)


@pytest.mark.parametrize("recipe", ["landmarks", "multiview"])
def test_a_fit_of_renders_finds_the_face_again(path, recipe):
    """Three views with expressions, landmarks exact; the second recipe matches the pictures too: the vertices
    come back, but for the scale, which photos do not tell, and the pull of the priors."""
    model = import_bfm_front(path)
    truth = tiny_state(model, 3, 400, expression=1.0)
    marks = replace(observe(model, truth, 400).landmarks, sigma=torch.full((3, 68), torch.nan))
    pictures = (255 * photograph(model, truth, 400)).byte().permute(0, 2, 3, 1).numpy()
    photos = Subject("test", tuple(View(f"view{i}", picture) for i, picture in enumerate(pictures)))
    result = fit_observed(photos, marks, model, load_recipe(recipe))
    face = model.face.nonzero()[:, 0]
    wanted, found = (state.vertices(model)[:, face] for state in (truth, result.state))

    def error(vertices):
        return float((similarity_align(vertices, wanted).apply(vertices) - wanted).norm(dim=-1).mean())

    mean = model.mean[face].expand(3, -1, -1)
    assert error(mean) > 1.2 and error(found) < 0.2


def test_kind_and_storage(path, tmp_path):
    model = FORMATS["bfm-front"].read(path)
    again = load_model_file(save_model_file(model, tmp_path / "a.npz"))
    assert again.name == "bfm-front" and again.expression_kind == "gaussian" and again.notes == model.notes
    torch.testing.assert_close(again.identity_basis, model.identity_basis, atol=2e-3, rtol=1e-3)
