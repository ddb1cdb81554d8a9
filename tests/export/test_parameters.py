from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_joints, tiny_model, tiny_result, tiny_skinned_model, tiny_state

from fitkit.errors import InputError
from fitkit.export.parameters import save_parameters
from fitkit.scene.parameters import OPTIONAL, SHAPES, TEXTS, load_parameters


@pytest.fixture(scope="module")
def result():
    return tiny_result(size=32)


@pytest.fixture
def path(result, tmp_path):
    return save_parameters(result, tmp_path / "parameters.npz")


def change(path, **arrays):
    with np.load(path) as data:
        content = {k: data[k] for k in data.files}
    content.update(arrays)
    np.savez(path, **{k: v for k, v in content.items() if v is not None})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_gives_the_same_vertices_and_pixels(result, tmp_path, dtype):
    result = replace(result, state=result.state.to(dtype=dtype), model=result.model.to(dtype=dtype))
    read = load_parameters(save_parameters(result, tmp_path / "p.npz"))
    read.check_model(result.model)
    assert read.state.identity.dtype == dtype
    vertices = read.state.vertices(result.model)
    assert torch.equal(vertices, result.vertices)
    pixels = read.state.camera.project(read.state.pose.apply(vertices))[0]
    assert torch.equal(pixels, result.state.camera.project(result.state.pose.apply(result.vertices))[0])
    assert (
        torch.equal(read.state.illumination, result.state.illumination)
        and read.state.camera.kind == "perspective"
    )
    assert read.view_names == ("view0", "view1", "view2") and read.camera_source == ("estimated",) * 3
    assert read.image_size.tolist() == [[32, 32]] * 3 and read.subject_name == "tiny"
    assert read.expression_names == result.model.expression_names
    assert torch.equal(read.identity_covariance, result.identity_covariance)


def test_files_of_version_1_load(result, path):
    change(path, version=1, identity_covariance=None)
    read = load_parameters(path)
    assert read.identity_covariance is None and torch.equal(read.state.identity, result.state.identity)


def test_joints_are_written_and_read_back(tmp_path):
    model = tiny_skinned_model()
    state = tiny_state(model).replace(joints=tiny_joints(model, 3))
    result = tiny_result(size=32, model=model, state=state)
    path = save_parameters(result, tmp_path / "p.npz")
    with np.load(path) as data:
        assert int(data["version"]) == 4 and data["joints"].shape == (3, 4, 3)
    read = load_parameters(path)
    read.check_model(model)
    assert torch.equal(read.state.joints, state.joints)
    assert torch.equal(read.state.vertices(model), result.vertices)
    with pytest.raises(InputError, match="expected face model 'tiny_skinned' with 4 joints, got one with 0"):
        read.check_model(replace(tiny_model(), name="tiny_skinned"))
    change(path, joints=np.zeros((3, 4)))
    with pytest.raises(InputError, match=r"joints: expected shape \[3, 'J', 3\], got \[3, 4\]"):
        load_parameters(path)
    change(path, joints=np.zeros((3, 0, 3)))
    assert load_parameters(path).state.joints is None


def test_without_error_bars(result, tmp_path):
    path = save_parameters(replace(result, identity_covariance=None, vertex_sigma=None), tmp_path / "p.npz")
    assert load_parameters(path).identity_covariance is None


def test_every_documented_key_is_there_and_plain(result, tmp_path):
    path = save_parameters(
        replace(result, displacement=torch.zeros(result.model.num_vertices)),
        tmp_path / "p.npz",
        torch.ones(3, 9, 3),
    )
    assert torch.equal(load_parameters(path).light, torch.ones(3, 9, 3))
    with np.load(path, allow_pickle=False) as data:
        assert set(data.files) == {*SHAPES, *OPTIONAL, *TEXTS, "version"} - {"joints", "albedo"}
        assert (
            str(data["format"]) == "fitkit-parameters"
            and int(data["version"]) == 3
            and "mm" in str(data["units"])
        )
        assert data["rotation"].shape == (3, 3, 3) and data["illumination"].shape == (3, 9, 1)


def test_orthographic_stays_orthographic(result, tmp_path):
    camera = replace(result.state.camera, kind="orthographic")
    read = load_parameters(
        save_parameters(replace(result, state=result.state.replace(camera=camera)), tmp_path / "p.npz")
    )
    assert read.state.camera.kind == "orthographic"


def test_another_model_is_refused(path):
    with pytest.raises(
        InputError,
        match="expected face model 'tiny' with 8 identity and 6 expression shapes, got 'tiny' with 3",
    ):
        load_parameters(path).check_model(tiny_model(num_identity=3))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="nothing.npz: no such file"):
        load_parameters(tmp_path / "nothing.npz")


def test_not_an_archive(tmp_path):
    (tmp_path / "p.npz").write_text("hello")
    with pytest.raises(InputError, match="not a readable fitkit parameter file"):
        load_parameters(tmp_path / "p.npz")
    np.save(tmp_path / "p.npy", np.zeros(3))
    with pytest.raises(InputError, match="not a readable fitkit parameter file"):
        load_parameters(tmp_path / "p.npy")


def test_cut_short(path):
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match="not a readable fitkit parameter file"):
        load_parameters(path)


def test_damaged_inside(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 40] = bytes(range(40))
    path.write_bytes(bytes(raw))
    with pytest.raises(InputError, match="not a readable fitkit parameter file"):
        load_parameters(path)


def test_pickles_are_not_opened(tmp_path):
    np.savez(tmp_path / "p.npz", format=np.array({"evil": 1}, object))
    with pytest.raises(InputError, match="not a readable fitkit parameter file"):
        load_parameters(tmp_path / "p.npz")


def test_another_archive(tmp_path):
    np.savez(tmp_path / "p.npz", a=1)
    with pytest.raises(InputError, match="expected format 'fitkit-parameters', got 'None'"):
        load_parameters(tmp_path / "p.npz")


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"version": 99}, "version 99, this fitkit reads up to 4; update fitkit"),
        ({"focal": None}, "lacks focal"),
        ({"identity_covariance": np.eye(3)}, r"identity_covariance: expected shape \[8, 8\], got \[3, 3\]"),
        ({"focal": np.ones(2)}, r"focal: expected shape \[3\], got \[2\]"),
        ({"rotation": np.ones((3, 3))}, r"rotation: expected shape \[3, 3, 3\], got \[3, 3\]"),
        ({"expression_names": np.array(["a"])}, r"expression_names: expected shape \[6\], got \[1\]"),
        ({"translation": np.full((3, 3), np.nan)}, "translation holds values that are not finite"),
        ({"focal": np.array(["a", "b", "c"])}, "focal: expected numbers"),
        ({"camera_source": np.zeros(3)}, "camera_source: expected text, got float64"),
        ({"camera_kind": "fisheye"}, "camera_kind: expected one of perspective, orthographic; got 'fisheye'"),
    ],
)
def test_refusals(path, arrays, message):
    change(path, **arrays)
    with pytest.raises(InputError, match=message):
        load_parameters(path)


def test_albedo_coefficients_are_written_and_read_back(result, tmp_path):
    state = result.state.replace(albedo=torch.tensor([[0.5, -1.0, 2.0]]))
    read = load_parameters(save_parameters(replace(result, state=state), tmp_path / "p.npz"))
    assert torch.equal(read.state.albedo, state.albedo) and result.state.albedo is None
    assert load_parameters(save_parameters(result, tmp_path / "p.npz")).state.albedo is None
