"""The coefficients are read as Deep3DFaceRecon does it: its face, its camera, its picture."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from flames import own_pixels
from helpers import tiny_model, tiny_result, tiny_state
from scipy.io import loadmat
from test_export_targets import without_photos

from fitkit.errors import InputError
from fitkit.export.targets import export_result

SHAPES = {"id": 80, "exp": 64, "tex": 80, "angle": 3, "gamma": 27, "trans": 3, "coeff": 257}


def front_model():
    """`tiny_model` with the coefficients of BFM_model_front.mat."""
    tiny = tiny_model(num_identity=80)
    expression = torch.linspace(1, 0, 64)[:, None, None] * tiny.expression_basis[torch.arange(64) % 6]
    return replace(
        tiny,
        name="bfm-front",
        mean=tiny.mean + torch.tensor([2.0, -30.0, 10.0]),
        identity_basis=0.3 * tiny.identity_basis,
        expression_basis=0.2 * expression,
        expression_names=tuple(f"expression_{k}" for k in range(64)),
        expression_kind="gaussian",
    )


@pytest.fixture(scope="module")
def result():
    model = front_model()
    state = tiny_state(model, size=96)
    return tiny_result(model=model, state=state, size=96, colors=torch.full((model.num_vertices, 3), 0.6))


def rotation(angles):
    (a, b, c), (d, e, f) = np.cos(angles), np.sin(angles)
    x = np.array([[1, 0, 0], [0, a, -d], [0, d, a]])
    y = np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
    z = np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
    return z @ y @ x


def test_their_camera_sees_the_face_where_the_fit_has_it(result, tmp_path):
    path, notes = export_result(result, "deep3d", tmp_path / "a")
    assert notes[0] == "texture and light of Deep3DFaceRecon are not estimated: tex and gamma are 0"
    assert sorted(p.name for p in path.iterdir()) == [
        f"view{i}.{s}" for i in range(3) for s in ("mat", "png")
    ]
    model, truth = result.model, own_pixels(result)
    mean = model.mean.double().numpy() / 100
    mean -= mean.mean(0)
    for i in range(3):
        values = loadmat(path / f"view{i}.mat")
        assert {k: values[k].shape for k in SHAPES} == {k: (1, n) for k, n in SHAPES.items()}
        assert values["coeff"].dtype == np.float32
        c = values["coeff"][0].astype(float)
        for name, part in zip(
            ("id", "exp", "tex", "angle", "gamma", "trans"), np.split(c, [80, 144, 224, 227, 254])
        ):
            np.testing.assert_array_equal(values[name][0], part.astype(np.float32))
        face = mean + np.einsum("k,kvc->vc", c[:80], model.identity_basis.numpy() / 100)
        face = face + np.einsum("k,kvc->vc", c[80:144], model.expression_basis.numpy() / 100)
        seen = face @ rotation(c[224:227]).T + c[254:]
        depth = 10 - seen[:, 2]
        right, up = (1015 * seen[:, k] / depth + 112 for k in (0, 1))
        found = (
            np.stack([right, 224 - up], -1) - 0.5
        )  # from the corner of the picture to the middle of a pixel
        focal, principal = float(result.state.camera.focal[i]), result.state.camera.principal[i].numpy()
        expected = (truth[i] - principal) * 1015 / focal + 111.5
        np.testing.assert_allclose(found, expected, atol=0.01)
        picture = cv2.imread(str(path / f"view{i}.png"))[..., ::-1].astype(float)
        assert picture.shape == (224, 224, 3)
        photo = result.subject.views[i].image.astype(float)
        for x, y in ((45, 45), (55, 50), (40, 55)):
            u, v = (np.array([x, y]) - principal) * 1015 / focal + 111.5
            assert np.abs(picture[round(float(v)), round(float(u))] - photo[y, x]).max() < 20
        marks = model.landmarks
        corners = np.stack([right, 223 - up], -1)[model.triangles.numpy()[marks.triangle.numpy()]]
        points = (marks.barycentric.numpy()[..., None] * corners).sum(1)
        np.testing.assert_allclose(values["lm68"][0], points, atol=0.3)  # perspective between the corners


def test_faces_that_do_not_fit_the_picture_are_said(result, tmp_path):
    state = result.state
    near = replace(state.pose, translation=state.pose.translation * torch.tensor([1, 1, 0.4]))
    path, notes = export_result(replace(result, state=state.replace(pose=near)), "deep3d", tmp_path / "a")
    assert notes[1].startswith("the face leaves the picture of 224 px in view0, view1, view2: the camera was")
    with_detail = replace(result, displacement=torch.zeros(result.model.num_vertices))
    _, notes = export_result(with_detail, "deep3d", tmp_path / "b")
    assert "Deep3DFaceRecon knows no detail layer: it is left out" in notes


def test_results_that_are_refused(result, tmp_path):
    message = (
        r"^result of tiny: expected the face model of Deep3DFaceRecon \(bfm-front: 80 identity and 64 "
        r"expression shapes\), got 'tiny' with \d+ and \d+; convert it "
        r"first with 'fitkit convert RESULT --to bfm-front'$"
    )
    with pytest.raises(InputError, match=message):
        export_result(tiny_result(), "deep3d", tmp_path / "a")
    with pytest.raises(InputError, match="^result of tiny: deep3d needs the photos, and view0 is not there"):
        export_result(without_photos(result), "deep3d", tmp_path / "a")
    assert not list(tmp_path.iterdir())
