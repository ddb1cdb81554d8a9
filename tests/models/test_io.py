import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_joints, tiny_model, tiny_skinned_model

from fitkit.errors import InputError
from fitkit.models.calibration import Calibration, default_calibration, shipped_calibrations
from fitkit.models.face_model import FaceModel
from fitkit.models.io import load_model_file, save_model_file
from fitkit.models.skinned import SkinnedModel


def test_round_trip(tmp_path):
    model = replace(tiny_model(), source="here", license="MIT")
    loaded = load_model_file(save_model_file(model, tmp_path / "deep/tiny.npz"))
    for key in ("mean", "triangles", "region", "skin", "face", "uv", "uv_triangles", "albedo_mean"):
        assert torch.equal(getattr(loaded, key), getattr(model, key)), key
    for key in ("name", "expression_names", "region_names", "source", "license"):
        assert getattr(loaded, key) == getattr(model, key)
    # Half precision: 11 bits.
    torch.testing.assert_close(loaded.identity_basis, model.identity_basis, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(loaded.landmarks.barycentric, model.landmarks.barycentric)
    assert (
        torch.equal(loaded.landmarks.triangle, model.landmarks.triangle)
        and loaded.landmarks.names[30] == "ibug68/30"
    )
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["tiny.npz"]


def test_optional_parts_may_be_missing(tmp_path):
    model = replace(tiny_model(), uv=None, uv_triangles=None, albedo_mean=None)
    loaded = load_model_file(save_model_file(model, tmp_path / "m.npz"))
    assert loaded.uv is None and loaded.uv_triangles is None and loaded.albedo_mean is None


def test_blend_shapes_are_what_a_file_without_another_kind_holds(tmp_path):
    path = save_model_file(tiny_model(), tmp_path / "m.npz")
    with np.load(path) as data:  # older fitkits read it
        assert int(data["version"]) == 1 and not {"expression_kind", "expression_sigma"} & set(data.files)
    identity, expression = load_model_file(path).coefficients.values()
    assert (expression.name, expression.size, expression.per) == ("expression", 6, "frame")
    assert (expression.kind, expression.range, expression.sigma) == ("blend_shape", (0.0, 1.0), None)
    assert expression.names == tiny_model().expression_names
    assert (identity.name, identity.size, identity.per, identity.kind) == (
        "identity",
        8,
        "person",
        "gaussian",
    )
    assert identity.sigma.tolist() == [1.0] * 8 and identity.range == (-math.inf, math.inf)


def test_gaussian_expressions(tmp_path):
    sigma = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.25, 0.125])
    model = replace(tiny_model(), expression_kind="gaussian", expression_sigma=sigma)
    path = save_model_file(model, tmp_path / "m.npz")
    with np.load(path) as data:  # older fitkits would take them for blend shapes
        assert int(data["version"]) == 2
    meaning = load_model_file(path).coefficients["expression"]
    assert meaning.kind == "gaussian" and torch.equal(meaning.sigma, sigma) and meaning.range[0] == -math.inf
    assert torch.equal(meaning.in_sigmas(-2 * sigma[None]), torch.full((1, 6), -2.0))
    assert model.to(dtype=torch.float64).coefficients["expression"].sigma.dtype == torch.float64
    plain = load_model_file(save_model_file(replace(model, expression_sigma=None), path))
    assert plain.coefficients["expression"].sigma.tolist() == [1.0] * 6
    # what half precision would make 0
    far = replace(model, expression_sigma=1e9 * sigma, expression_basis=model.expression_basis / 1e9)
    assert torch.equal(load_model_file(save_model_file(far, path)).expression_basis, far.expression_basis)


def test_calibration_of_error_bars(tmp_path):
    path = tmp_path / "m.npz"
    given = Calibration(1.3, 0.45, 0.8, 1.2, 1.4)
    assert (given.true_over_bars(1), given.true_over_bars(2)) == (1.2, 1.4)
    assert (
        load_model_file(save_model_file(replace(tiny_model(), calibration=given), path)).calibration == given
    )
    # files of older fitkits hold none: what is known by the name
    known = shipped_calibrations()
    assert known == {
        "generic": Calibration(1.25, 0.7, 0.9, 1.0, 1.1),
        "ict": Calibration(1.0, 0.8, 0.9, 1.05, 1.15),
    }
    for name in ("generic", "ict", "tiny"):
        old = save_model_file(replace(tiny_model(), name=name), path)
        with np.load(old) as data:
            assert "calibration" not in data.files and int(data["version"]) == 1
        assert load_model_file(old).calibration == known.get(name)
    assert default_calibration() == default_calibration("tiny") == known["generic"]
    assert default_calibration("ict") == known["ict"]
    own = save_model_file(replace(tiny_model(), name="ict", calibration=given), path)
    assert load_model_file(own).calibration == given
    with np.load(own) as data:
        arrays = {k: data[k] for k in data.files}
    for name, ratios in (("ict", (1.05, 1.15)), ("tiny", (1.0, 1.1))):  # three numbers: no word on the truth
        np.savez(path, **(arrays | {"name": name, "calibration": arrays["calibration"][:3]}))
        assert load_model_file(path).calibration == Calibration(1.3, 0.45, 0.8, *ratios)


def test_landmarks_may_be_missing(tmp_path):
    model, missing = tiny_model(), (3, 60, 64)
    triangle = model.landmarks.triangle.clone()
    triangle[list(missing)] = -1
    lacking = replace(model, landmarks=replace(model.landmarks, triangle=triangle))
    path = save_model_file(lacking, tmp_path / "m.npz")
    with np.load(path) as data:  # older fitkits say that they cannot read it
        assert int(data["version"]) == 2
        arrays = {k: data[k] for k in data.files}
    arrays["landmark_barycentric"][list(missing)] = 0  # of no meaning there
    np.savez(path, **arrays)
    loaded = load_model_file(path)
    assert loaded.landmarks.missing == missing and torch.equal(loaded.landmarks.present, triangle >= 0)
    assert loaded.to(dtype=torch.float64).landmarks.missing == missing
    assert model.landmarks.missing == ()
    arrays["landmark_barycentric"][66] = 2
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=r"landmark_barycentric: .* got \[2.0, 2.0, 2.0\] for point 66"):
        load_model_file(path)


@pytest.mark.parametrize("correctives", [True, False])
def test_joints(tmp_path, correctives):
    model = tiny_skinned_model()
    model = model if correctives else replace(model, pose_basis=None)
    path = save_model_file(model, tmp_path / "m.npz")
    with np.load(path) as data:  # older fitkits would leave the joints out
        assert int(data["version"]) == 3 and ("pose_basis" in data.files) == correctives
    loaded = load_model_file(path)
    assert isinstance(loaded, SkinnedModel) and loaded.joint_names == ("neck", "jaw", "eye_L", "eye_R")
    assert loaded.joint_parents == (-1, 0, 1, 1, 1)
    still = replace(model, joint_sigma=torch.full((4, 3), 1e-6))
    assert load_model_file(save_model_file(still, tmp_path / "still.npz")).num_joints == 4
    values = torch.ones(2, 8), torch.full((2, 6), 0.4), tiny_joints(model, 2)
    torch.testing.assert_close(loaded.vertices(*values), model.vertices(*values), rtol=0, atol=0.02)
    assert type(load_model_file(save_model_file(tiny_model(), path))) is FaceModel


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"joint_sigma": None},
            "joint_names: expected joint_sigma with it, got none; a model with joints has",
        ),
        (
            dict.fromkeys(
                ("joint_names", "joint_regressor", "joint_parents", "joint_sigma", "skinning_weights")
            ),
            "pose_basis: expected joint_names with it, got none",
        ),
        (
            {"joint_names": np.array(["a", "b", "c", "a"])},
            r"joint_names: .* no two that are equal, got \['a', 'b'",
        ),
        ({"joint_names": np.array(["a"])}, r"joint_regressor: expected shape \(2, 315\), got \(5, 315\)"),
        ({"joint_names": np.arange(4)}, "joint_names: expected text, got int64"),
        (
            {"joint_parents": np.array([-1, 0, 1])},
            r"joint_parents: .* of the 4 joint_names, .* got \[-1, 0, 1\]",
        ),
        ({"joint_parents": np.array([0, 0, 1, 1, 1])}, r"joint_parents: .* got \[0, 0, 1, 1, 1\]"),
        (
            {"joint_parents": np.array([-1, 0, 2, 1, 1])},
            r"joint_parents: expected -1 for the root .* got \[-1, 0, 2",
        ),
        ({"joint_parents": np.int64(0)}, r"joint_parents: expected shape \['1 \+ J'\], got \[\]"),
        ({"joint_parents": np.zeros(5)}, "joint_parents: expected whole numbers, got float64"),
        (
            {"joint_regressor": np.ones((5, 315))},
            "joint_regressor: expected rows with the sum 1, got 315 in row 0",
        ),
        (
            {"skinning_weights": np.full((315, 5), 0.1)},
            "skinning_weights: expected rows with the sum 1, got 0.5",
        ),
        (
            {"skinning_weights": np.tile([2.0, -1, 0, 0, 0], (315, 1))},
            "skinning_weights: expected weights of 0 to 1, got -1",
        ),
        (
            {"skinning_weights": np.ones((315, 4))},
            r"skinning_weights: expected shape \(315, 5\), got \(315, 4\)",
        ),
        ({"joint_sigma": np.zeros((4, 3))}, "joint_sigma: .* deviations of 1e-06 rad or more, got 0"),
        ({"joint_sigma": np.full((4, 3), 9e-7)}, "joint_sigma: .* of 1e-06 rad or more, got 9e-07"),
        ({"joint_sigma": np.full((4, 3), np.nan)}, "joint_sigma holds values that are not finite"),
        (
            {"joint_sigma": np.full((4, 3), 8.6)},
            r"joint_sigma: expected values up to 4, got 8.6 \(wrong unit\?\)",
        ),
        ({"joint_sigma": np.ones(4)}, r"joint_sigma: expected shape \(4, 3\), got \(4,\)"),
        (
            {"pose_basis": np.ones((9, 315, 3))},
            r"pose_basis: expected shape \(36, 315, 3\), got \(9, 315, 3\)",
        ),
        ({"pose_basis": np.full((36, 315, 3), 1e5)}, r"pose_basis: expected values up to 1000, got 1e\+05"),
    ],
)
def test_wrong_joints_are_refused(tmp_path, change, message):
    path = save_model_file(tiny_skinned_model(), tmp_path / "m.npz")
    with np.load(path) as data:
        arrays = {**{k: data[k] for k in data.files}, **change}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(InputError, match=message):
        load_model_file(path)


def test_albedo_basis(tmp_path):
    basis = 0.03 * torch.randn(4, 315, 3, generator=torch.Generator().manual_seed(0))
    model = replace(tiny_model(), albedo_basis=basis)
    path = save_model_file(model, tmp_path / "m.npz")
    # Half precision.
    torch.testing.assert_close(load_model_file(path).albedo_basis, basis, rtol=1e-3, atol=1e-5)
    assert model.to(dtype=torch.float64).albedo_basis.dtype == torch.float64
    with np.load(path) as data:
        arrays = {k: data[k] for k in data.files}
    np.savez(path, **{**arrays, "albedo_basis": basis[:, :9].numpy()})
    with pytest.raises(InputError, match=r"albedo_basis: expected shape \(4, 315, 3\), got \(4, 9, 3\)"):
        load_model_file(path)
    np.savez(path, **{k: v for k, v in arrays.items() if k != "albedo_mean"})
    with pytest.raises(InputError, match="albedo_basis: expected albedo_mean with it, got none"):
        load_model_file(path)


def test_shapes_that_are_exported_only(tmp_path):
    extra = torch.zeros(2, 315, 3)
    extra[0, :, 2], extra[1, 9] = 4.0, 0.25
    model = replace(tiny_model(), extra_names=("tongueOut", "earsUp"), extra_basis=extra)
    path = save_model_file(model, tmp_path / "m.npz")
    loaded = load_model_file(path)
    assert loaded.extra_names == model.extra_names and torch.equal(loaded.extra_basis, extra)
    assert loaded.num_expression == 6 and loaded.coefficients["expression"].size == 6
    assert loaded.to(dtype=torch.float64).extra_basis.dtype == torch.float64
    assert torch.equal(loaded.with_mean(loaded.mean + 1).extra_basis, extra)
    with np.load(path) as data:
        assert int(data["version"]) == 1  # older fitkits read the rest
        arrays = {k: data[k] for k in data.files}
    assert load_model_file(save_model_file(tiny_model(), tmp_path / "n.npz")).extra_basis is None
    for change, message in (
        ({"extra_names": None}, "extra_names and extra_basis must both be given, with a name for each shape"),
        ({"extra_basis": None}, "extra_names and extra_basis must both be given"),
        ({"extra_names": np.array(["a"])}, r"extra_basis: expected shape \(1, 315, 3\), got \(2, 315, 3\)"),
        ({"extra_names": np.array(["a", "a"])}, "names that no other shape has, got 'a' twice"),
        ({"extra_names": np.array(["a", "jaw_open"])}, "names that no other shape has, got 'jaw_open' twice"),
        ({"extra_names": np.array(["a", "jawOpen"])}, "names that no other shape has, got 'jawOpen' twice"),
        ({"extra_basis": np.full((2, 315, 3), np.nan)}, "extra_basis holds values that are not finite"),
        ({"extra_basis": np.full((2, 315, 3), 1e4)}, "extra_basis: expected values up to 1000, got 1e"),
        ({"extra_names": np.ones(2)}, "extra_names: expected text, got float64"),
    ):
        np.savez(path, **{k: v for k, v in (arrays | change).items() if v is not None})
        with pytest.raises(InputError, match=message):
            load_model_file(path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "other"}, "not a fitkit model file"),
        ({"calibration": np.ones(2)}, r"calibration: expected shape \[5\], got \[2\]"),
        ({"calibration": np.array(["a"] * 3)}, "calibration: expected numbers, got <U1"),
        *(
            (
                {"calibration": np.array(wrong)},
                "calibration: expected inflation, floor_mm, left, single, several: finite, floor_mm",
            )
            for wrong in (
                [0, 0.7, 0.9],
                [np.nan, 0.7, 0.9],
                [1, -0.1, 0.9],
                [1, np.inf, 0.9],
                [1, 0.7, 1.1],
                [1, 0.7, 0.9, 0, 1],
                [1, 0.7, 0.9, 1, np.nan],
            )
        ),
        ({"version": 99}, "model file version 99, this fitkit reads up to 3; update fitkit"),
        ({"mean": None}, r"not a fitkit model file \(missing mean\); import it"),
        ({"skin": np.zeros(3, bool)}, r"skin: expected shape \(315,\), got \(3,\)"),
        ({"mean": np.full((315, 3), np.nan, np.float32)}, "mean holds values that are not finite"),
        ({"triangles": np.full((560, 3), 315)}, r"triangles: expected \[F, 3\] indices in 0..314"),
        ({"landmark_triangles": np.full(68, -2)}, "landmark_triangles: expected indices in 0..559, got -2"),
        (
            {"landmark_triangles": np.where(np.isin(np.arange(68), (30, 36, 45)), 9, -1)},
            "at least 8 of the 68 points .-1: the mesh lacks it., the outer eye corners 36 and 45 among "
            "them, got 3, the corners on triangles 9 and 9",
        ),
        (
            {"landmark_triangles": np.where(np.arange(68) == 45, -1, 9)},
            "got 67, the corners on triangles 9 and -1",
        ),
        ({"landmark_triangles": np.full(68, 560)}, "landmark_triangles: expected indices in 0..559"),
        ({"region": np.full(315, 9)}, "region: expected indices in 0..1"),
        ({"uv": None}, "uv and uv_triangles must both be given"),
        ({"version": "text"}, "version: expected whole numbers, got <U4"),
        ({"version": np.array([1, 2])}, r"version: expected shape \[\], got \[2\]"),
        ({"mean": np.array("text")}, "mean: expected numbers, got <U4"),
        ({"expression_names": np.array("a")}, r"expression_names: expected shape \['K_ex'\], got \[\]"),
        ({"landmark_triangles": np.array(3)}, r"landmark_triangles: expected shape \(68,\), got \(1,\)"),
        ({"skin": np.array([b"x"])}, "skin: expected true or false, got .S1"),
        ({"triangles": np.zeros((560, 3))}, "triangles: expected whole numbers, got float64"),
        ({"identity_basis": np.zeros((0, 315, 3))}, "identity_basis: expected at least one shape, got none"),
        (
            {"expression_basis": np.zeros((0, 315, 3)), "expression_names": np.zeros(0, "U1")},
            "expression_basis: expected at least one shape, got none",
        ),
        (
            {"triangles": np.zeros((0, 3), int), "uv_triangles": np.zeros((0, 3), int)},
            r"triangles: expected \[F, 3\] indices in 0..314, got none",
        ),
        ({"skin": np.zeros(315, bool)}, "skin: expected at least one vertex, got none"),
        ({"face": np.zeros(315, bool)}, "face: expected at least one vertex"),
        ({"uv": np.full((315, 2), np.nan)}, "uv holds values that are not finite"),
        ({"uv": np.zeros((315, 3))}, r"uv: expected shape \(315, 2\), got \(315, 3\)"),
        ({"uv": np.zeros((0, 2))}, r"uv_triangles: expected \[F, 3\] indices in 0..-1"),
        ({"uv_triangles": np.full((560, 3), -1)}, "uv_triangles: .* got -1 to -1"),
        (
            {"uv_triangles": np.full((560, 3), 315)},
            r"uv_triangles: expected \[F, 3\] indices in 0..314, got 315 to 315",
        ),
        (
            {"landmark_barycentric": np.tile([10.0, -5, -4], (68, 1))},
            r"landmark_barycentric: expected weights .* got \[10.0, -5.0, -4.0\] for point 0",
        ),
        (
            {"landmark_barycentric": np.full((68, 3), 0.5)},
            "landmark_barycentric: expected weights of the corners, 0 to 1 with the sum 1",
        ),
        ({"albedo_mean": np.full((315, 3), 1e30)}, r"albedo_mean: expected values up to 10, got 1e\+30"),
        ({"identity_basis": np.full((8, 315, 3), 1e300)}, "not finite"),
        (
            {"expression_basis": np.full((6, 315, 3), 1e6)},
            "expression_basis: expected values up to 1000, got 1e",
        ),
        (
            {"expression_kind": "rotation"},
            "expression_kind: expected 'blend_shape' or 'gaussian', got 'rotation'",
        ),
        ({"expression_kind": 1}, "expression_kind: expected text, got int64"),
        (
            {"expression_sigma": np.ones(6)},
            "expression_sigma: expected with expression_kind 'gaussian' only, got it with 'blend_shape'; the",
        ),
        (
            {"expression_kind": "gaussian", "expression_sigma": np.ones(5)},
            r"expression_sigma: expected shape \(6,\), got \(5,\)",
        ),
        (
            {"expression_kind": "gaussian", "expression_sigma": np.arange(6.0)},
            "expression_sigma: expected finite standard deviations of 1e-06 or more, got 0 to 5",
        ),
        (
            {"expression_kind": "gaussian", "expression_sigma": np.full(6, np.inf)},
            "expression_sigma: expected finite standard deviations of 1e-06 or more, got inf to inf",
        ),
    ],
)
def test_wrong_files_are_refused(tmp_path, change, message):
    path = save_model_file(tiny_model(), tmp_path / "m.npz")
    with np.load(path) as data:
        arrays = {**{k: data[k] for k in data.files}, **change}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(InputError, match=message):
        load_model_file(path)


def test_wrong_unit_is_refused(tmp_path):
    path = save_model_file(replace(tiny_model(), mean=tiny_model().mean / 10), tmp_path / "m.npz")
    with pytest.raises(
        InputError, match="outer eye corners are .* apart; a model in millimetres has 80 to 110"
    ):
        load_model_file(path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "m.npz").write_text("text")
    with pytest.raises(InputError, match="m.npz: not a readable fitkit model file"):
        load_model_file(tmp_path / "m.npz")
    with pytest.raises(InputError, match="none.npz: not a readable fitkit model file"):
        load_model_file(tmp_path / "none.npz")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("empty.npz", "array.npy"):
        with pytest.raises(InputError, match=f"{name}: not a readable fitkit model file"):
            load_model_file(tmp_path / name)


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(InputError, match=r"m.npz: cannot be written \(disk full\); set FITKIT_MODELS"):
        save_model_file(tiny_model(), tmp_path / "m.npz")
    assert not list(tmp_path.iterdir())
