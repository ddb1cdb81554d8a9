import gzip
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fitkit.errors import InputError
from fitkit.models.formats import ict
from fitkit.models.formats.ict import EXPRESSIONS, LANDMARKS, import_ict, read_obj

DATA = Path(__file__).resolve().parents[3] / "shared/data/ict"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared test data are not here")
OBJ = (
    "# a comment\nmtllib x\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0.5\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nusemtl "
    "a\nf 1/1 2/2 3/3 4/4\nf 1/4/1 2/3/1 3/2/1\n"
)


@pytest.fixture(scope="module")
def model():
    return import_ict(DATA / "ict_facekit.npz")


def test_obj_quads_are_split_along_the_first_diagonal(tmp_path):
    (tmp_path / "a.obj").write_text(OBJ)
    with gzip.open(tmp_path / "b.obj.gz", "wt") as file:
        file.write(OBJ)
    for path in tmp_path.iterdir():
        vertices, uv, triangles, corners = read_obj(path)
        assert vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.5]] and uv[2].tolist() == [
            1,
            1,
        ]
        assert triangles.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 2]]
        assert corners.tolist() == [[0, 1, 2], [0, 2, 3], [3, 2, 1]]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "faces refer to vertices"),
        ("v 0 0 0\nvt 0 0\nf 1/1 2/1 3/1\n", "faces refer to vertices that the file does not have"),
        ("v 0 0 zero\n", "not a readable OBJ file"),
        ("v 0 0\n", "not a readable OBJ file"),
        ("v 0 0 0\nf 1 1 1\n", "not a readable OBJ file"),
        (None, "not a readable OBJ"),
    ],
)
def test_broken_obj_files(tmp_path, text, message):
    path = tmp_path / ("a.obj" if text is not None else "a.obj.gz")
    path.write_bytes(b"no gzip") if text is None else path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_obj(path)


@needs_data
def test_packed_model(model):
    with np.load(DATA / "ict_facekit.npz") as data:
        assert (
            model.num_vertices == 24591
            and model.num_identity == 100
            and model.expression_names == EXPRESSIONS == tuple(data["expression_names"])
        )
        assert (model.mean.numpy() == data["mean"][:24591]).all()
        assert tuple(LANDMARKS) == tuple(data["landmarks68"])
        points = model.landmark_points(torch.zeros(1, 100), torch.zeros(1, 53))[0]
        np.testing.assert_allclose(points, data["mean"][data["landmarks68"]], atol=1e-5)
        assert (
            model.region_names == tuple(data["region_names"][:12])
            and (model.region.numpy() == data["region"][:24591]).all()
        )
        assert (model.triangles.numpy() == data["faces"][(data["faces"] < 24591).all(1)]).all(), (
            "eyelashes go, nothing else"
        )
    assert "MIT" in model.license and "CVPR 2020" in model.source


@needs_data
def test_triangles_point_outwards(model):
    def volume(part):  # mm^3, positive for a closed surface with outward triangles
        region = model.region_names.index(part)
        corners = model.mean[model.triangles[(model.region[model.triangles] == region).all(1)]].double()
        corners = corners - corners.mean((0, 1))
        return float((corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum()) / 6

    assert volume("sclera_left") == pytest.approx(volume("sclera_right")) and volume("sclera_left") > 1e4
    assert volume("head_neck") > 0 and volume("face_narrow") > 0 and volume("teeth") > 0
    nose = model.mean[model.triangles[model.landmarks.triangle[30]]]
    assert torch.linalg.cross(nose[1] - nose[0], nose[2] - nose[0])[2] > 0


@needs_data
def test_skin_and_face(model):
    x, y, z = model.mean.T
    assert (model.region[model.face] == 0).all() and model.face.sum() == 6706
    assert (model.region[model.skin] <= 1).all() and model.skin[list(LANDMARKS[17:])].all()
    assert not model.skin[x.abs() > 80].any(), "ears"
    assert not model.skin[y > 92].any() and not model.skin[z < 0].any()
    assert (model.skin & model.face).sum() > 0.9 * model.face.sum()


@needs_data
def test_albedo(model):
    albedo = {n: model.albedo_mean[model.region == i].mean(0) for i, n in enumerate(model.region_names)}
    assert (model.albedo_mean >= 0).all() and (model.albedo_mean <= 1).all()

    def red(rgb):
        return float(rgb[0] / rgb[1])

    lip, cheek, brow = (model.albedo_mean[i] for i in (LANDMARKS[57], LANDMARKS[2], LANDMARKS[19]))
    assert red(lip) > 1.15 * red(cheek) and brow.sum() < 0.8 * cheek.sum()
    assert albedo["teeth"].min() > 0.4 and albedo["sclera_left"].sum() == pytest.approx(
        float(albedo["sclera_right"].sum()), rel=1e-3
    )


@needs_data
def test_texture_coordinates_do_not_overlap(model):
    uv, size = model.uv.double().numpy(), 2048
    assert uv.min() >= 0 and uv.max() <= 1 and model.uv_triangles.shape == model.triangles.shape
    corners = uv[model.uv_triangles.numpy()]
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / 2
    image = np.zeros((size, size), np.uint8)
    for corner in np.round(corners * (size - 1)).astype(np.int32):
        cv2.fillConvexPoly(image, corner, 1)  # with its edges, so the union comes out slightly too large
    assert area.sum() > 0.5
    assert 0.99 * area.sum() < image.mean() < 1.1 * area.sum()


@needs_data
def test_original_files_give_the_same_model(model, tmp_path):
    original = import_ict(DATA / "obj", "mine")
    assert (
        original.name == "mine"
        and original.num_identity == 3
        and original.expression_names == ("jawOpen", "mouthSmile_L")
    )
    torch.testing.assert_close(original.mean, model.mean, rtol=0, atol=1e-4)
    # The packed file has half precision (its README states these bounds).
    torch.testing.assert_close(original.identity_basis, model.identity_basis[:3], rtol=0, atol=0.004)
    torch.testing.assert_close(
        original.expression_basis[0], model.expression_basis[EXPRESSIONS.index("jawOpen")], rtol=0, atol=0.016
    )
    assert torch.equal(original.triangles, model.triangles) and torch.equal(
        original.uv_triangles, model.uv_triangles
    )
    torch.testing.assert_close(original.uv, model.uv, rtol=0, atol=1e-6)
    (tmp_path / "FaceXModel").symlink_to(DATA / "obj")
    assert torch.equal(import_ict(tmp_path).mean, original.mean), "the folder around FaceXModel works too"


def link(tmp_path, *leave_out):
    for path in (DATA / "obj").iterdir():
        if path.name.split(".")[0] not in leave_out:
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


@needs_data
@pytest.mark.parametrize(
    "leave_out, message",
    [
        (("generic_neutral_mesh",), "no generic_neutral_mesh.obj; expected the FaceXModel folder"),
        (
            ("identity001",),
            "identity001.obj is missing; expected identity000.obj, identity001.obj, ... without a gap",
        ),
        (("identity000", "identity001", "identity002"), "identity000.obj is missing"),
        (("jawOpen", "mouthSmile_L"), "no expression file"),
    ],
)
def test_missing_files(tmp_path, leave_out, message):
    with pytest.raises(InputError, match=message):
        import_ict(link(tmp_path, *leave_out))


@needs_data
def test_files_of_another_release(tmp_path):
    link(tmp_path, "jawOpen")
    with gzip.open(DATA / "obj/jawOpen.obj.gz", "rt") as file:
        lines = file.read().splitlines(True)
    first = next(i for i, line in enumerate(lines) if line.startswith("v "))
    (tmp_path / "jawOpen.obj").write_text("".join(lines[:first] + lines[first + 1 :]))
    with pytest.raises(
        InputError, match="jawOpen.obj: expected 26719 vertices as in generic_neutral_mesh, got 26718"
    ):
        import_ict(tmp_path)

    with np.load(DATA / "ict_facekit.npz") as data:
        arrays = {k: data[k] for k in data.files}
    arrays["identity_basis"], arrays["expression_basis"] = (
        arrays["identity_basis"][:1],
        arrays["expression_basis"][:1],
    )
    arrays["expression_names"] = arrays["expression_names"][:1]
    np.savez(tmp_path / "order.npz", **{**arrays, "mean": np.roll(arrays["mean"], 5, axis=0)})
    with pytest.raises(InputError, match="another release of ICT-FaceKit with another vertex order"):
        import_ict(tmp_path / "order.npz")
    np.savez(
        tmp_path / "loose.npz",
        **{**arrays, "faces": arrays["faces"][:1000], "faces_uv": arrays["faces_uv"][:1000]},
    )
    with pytest.raises(InputError, match="loose.npz: not usable as ICT-FaceKit .*; use the present files"):
        import_ict(tmp_path / "loose.npz")
    np.savez(tmp_path / "uv.npz", **{**arrays, "uv": np.full_like(arrays["uv"], np.nan)})
    with pytest.raises(
        InputError, match="uv.npz: not usable as ICT-FaceKit .uv holds values that are not finite"
    ):
        import_ict(tmp_path / "uv.npz")
    faces = arrays["faces"].copy()
    faces[0] = -1
    np.savez(tmp_path / "faces.npz", **{**arrays, "faces": faces})
    with pytest.raises(InputError, match=r"faces.npz: faces: expected indices in 0..26718, got -1 to 2\d+"):
        import_ict(tmp_path / "faces.npz")
    np.savez(tmp_path / "zero.npz", **{**arrays, "mean": np.array(3.0)})
    with pytest.raises(InputError, match=r"zero.npz: mean: expected shape \['V', 3\], got \[\]"):
        import_ict(tmp_path / "zero.npz")
    np.savez(tmp_path / "count.npz", **{**arrays, "mean": arrays["mean"][:100]})
    with pytest.raises(InputError, match="expected 26719 vertices of ICT-FaceKit, got 100"):
        import_ict(tmp_path / "count.npz")


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(InputError, match="no such file or folder; give the FaceXModel folder"):
        import_ict(tmp_path / "none")
    (tmp_path / "a.npz").write_text("text")
    with pytest.raises(InputError, match="a.npz: expected a folder of OBJ files or ict_facekit.npz"):
        import_ict(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", mean=np.zeros(3))
    with pytest.raises(InputError, match="not a packed ICT-FaceKit, it lacks identity_basis"):
        import_ict(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", np.zeros(3))
    with pytest.raises(InputError, match="c.npy: expected a folder of OBJ files or ict_facekit.npz"):
        import_ict(tmp_path / "c.npy")


def test_regions_cover_the_kept_vertices():
    ends = [end for _, end in ict.REGIONS]
    assert ends == sorted(ends) and ict.KEPT == 24591 and max(LANDMARKS) < dict(ict.REGIONS)["face_narrow"]
