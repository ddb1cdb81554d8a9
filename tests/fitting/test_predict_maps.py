"""Networks that give depth, position maps and parses, on the photos of a person: maps in px of the photos,
result folders, refusals."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import trimesh
from click.testing import CliRunner
from helpers import tiny_model
from small_nets import KINDS, SmallNet, registered

from fitkit.cli.main import main
from fitkit.errors import FitError, InputError
from fitkit.fitting.network_start import predict_views, regressor_start
from fitkit.fitting.predict import predict, predict_maps
from fitkit.fitting.predicted_maps import maps_of, to_photo
from fitkit.fitting.recipe import InitOptions
from fitkit.io.landmark_files import read_landmarks
from fitkit.io.subject import load_subject, subject_folders
from fitkit.models.registry import load_model
from fitkit.nets import NETS, NetKind, save_predictor
from fitkit.nets.mvfnet.network import MvfNet, MvfNetOptions
from fitkit.nets.predictor import Prediction, frames_of
from fitkit.observe.landmarks.detectors import detect_landmarks
from fitkit.scene.pose import Pose
from fitkit.synth.folder import read_normals


class Everything(SmallNet):
    """Says of each picture where it is: all parts follow from the brightness of its pixels."""

    gives = ("depth", "position_map", "parse", "landmarks", "points3d")
    outputs = 1

    def forward(self, images, valid, padded=False):
        from fitkit.observe.landmarks.types import Landmarks
        from fitkit.scene.camera import Camera
        from fitkit.scene.depth_state import DepthState
        from fitkit.scene.position_map import PositionMap

        frames, subject = frames_of(images, valid, padded)
        light = frames.mean(1)
        focal = torch.full((len(frames),), 50.0)
        camera = Camera(focal, torch.zeros(len(frames), 2), torch.ones_like(focal), "perspective")
        depth = DepthState(500 + 100 * light, None, camera, subject, light)
        line = torch.arange(self.size, dtype=torch.float32)
        y, x = torch.meshgrid(line, line, indexing="ij")
        maps = torch.stack([x, y, x]).expand(len(frames), -1, -1, -1)
        parse = torch.stack([0.5 - light, light - 0.5], 1)
        points = torch.full((len(frames), 68, 2), 10.0)
        ones = torch.ones_like(points[..., 0])
        marks = Landmarks(points, ones, ones > 0, ones, "surface")
        return Prediction(
            None, None, marks, depth, PositionMap(maps), parse, torch.ones(len(frames), 5, 3), subject
        )


@pytest.fixture
def weights(tmp_path, monkeypatch):
    registered(monkeypatch)
    from small_nets import SmallOptions

    monkeypatch.setitem(NETS, "everything", lambda: NetKind(SmallOptions, Everything, named_views=False))
    torch.manual_seed(0)
    for name, kind in {**KINDS, "everything": Everything}.items():
        save_predictor(kind(), name, tmp_path / f"{name}.safetensors", half=False)
    return tmp_path


def test_maps_lie_where_the_photo_shows_what_they_are_of(anna, weights):
    subject = load_subject(anna)
    maps = predict_maps(anna, weights / "everything.safetensors", landmarks="files")
    assert maps.names == tuple(v.name for v in subject.views) and maps.gives == Everything.gives[:1] + (
        "position_map",
        "parse",
        "landmarks",
        "points3d",
    )
    found, _ = detect_landmarks(subject, "files")
    model = load_model("generic")
    seen = predict_views(Everything().eval(), model, subject, found).observations
    for b, view in enumerate(subject.views):
        width, height = view.size
        assert maps.depth[b].shape == maps.parse[b].shape == maps.confidence[b].shape == (height, width)
        # Depth follows the brightness, so the map is the photo, a bit blurred; 0 beyond the crop.
        inside = maps.depth[b] > 0
        light = view.image.astype(np.float32).mean(2) / 255
        assert 0.2 < inside.mean() <= 1
        error = np.abs((maps.depth[b] - 500) / 100 - light)[inside]
        assert error.mean() < 0.05
        assert np.array_equal(maps.parse[b][inside], ((maps.depth[b] - 500) / 100 > 0.5)[inside])
        scale, offset = float(seen.scale[b]), seen.offset[b].numpy()
        assert maps.landmarks[b][0] == pytest.approx(10 / scale + offset, abs=1e-3)
        assert maps.position_map[b][:, 3, 7] == pytest.approx(
            [*(np.array([7, 3]) / scale + offset), 7 / scale], abs=1e-3
        )


def test_the_surface_of_a_depth_map_shows_the_photo_where_it_is(anna, weights):
    """A bump on a plane in the middle of a photo's crop, a hole, and a piece by itself far behind."""
    subject = load_subject(anna)
    found, _ = detect_landmarks(subject, "files")
    model = load_model("generic")
    said = predict_views(Everything().eval(), model, subject, found)
    size = said.observations.size[0]
    depth = torch.full((len(subject.views), size, size), 500.0)
    depth[:, : size // 4] = 0.0
    depth[:, size // 2, size // 2] = 499.0
    depth[:, -4:] = 560.0
    old = said.prediction.depth
    pose = Pose(
        torch.eye(3).expand(len(depth), 3, 3), torch.tensor([[10.0, -20.0, 300.0]]).repeat(len(depth), 1)
    )
    for posed in (None, pose):
        maps = maps_of(
            replace(said, prediction=Prediction(depth=replace(old, depth=depth, pose=posed))), subject, {}
        )
        for b, surface in enumerate(maps.surface):
            assert surface.triangles.max() == len(surface.vertices) - 1
            assert len(surface.vertices) == size * (size - size // 4 - 4)  # the largest piece alone
            camera = surface.vertices + [10, -20, 300] if posed else surface.vertices * [1, -1, -1]
            assert camera[:, 2].min() == pytest.approx(499) and camera[:, 2].max() == pytest.approx(500)
            # A vertex projects into the photo where its texture coordinate points.
            seen = said.observations
            inside = (
                camera[:, :2] / camera[:, 2:] * float(old.camera.focal[b]) + old.camera.principal[b].numpy()
            )
            at = inside / float(seen.scale[b]) + seen.offset[b].numpy()
            width, height = subject.views[b].size
            h, w = surface.texture.shape[:2]
            uv = surface.uv * [1, -1] + [0, 1]
            spread = np.ptp(at, axis=0) / np.ptp(uv, axis=0)
            assert (spread >= 1).all() and (spread <= [width, height]).all() and h > 8 and w > 8
            inner = (at > 0).all(1) & (at < [width - 1, height - 1]).all(1)
            start = (at - uv * spread)[inner].mean(0)
            np.testing.assert_allclose(
                at[inner] - uv[inner] * spread, start[None].repeat(inner.sum(), 0), atol=0.1
            )


def test_a_photo_without_a_surface_has_no_mesh(anna, weights, tmp_path):
    subject = load_subject(anna)
    found, _ = detect_landmarks(subject, "files")
    said = predict_views(Everything().eval(), load_model("generic"), subject, found)
    empty = replace(said.prediction.depth, depth=torch.zeros_like(said.prediction.depth.depth))
    maps = maps_of(replace(said, prediction=Prediction(depth=empty)), subject, {})
    assert all(len(s.triangles) == len(s.vertices) == 0 for s in maps.surface)
    maps.save(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "prediction.json",
        "depth",
        "confidence",
        "normals",
    }


def test_a_pixel_of_a_crop_keeps_its_place():
    values = np.zeros((8, 8), np.float32)
    values[2, 5] = 7
    out = to_photo(values, 0.5, np.array([4.0, 6.0]), (40, 30))
    rows, columns = np.nonzero(out)
    assert out.shape == (30, 40) and set(out[rows, columns]) == {7}
    assert columns.mean() == pytest.approx(5 / 0.5 + 4, abs=0.51) and rows.mean() == pytest.approx(
        2 / 0.5 + 6, abs=0.51
    )


@pytest.mark.parametrize("net", ["everything", *KINDS])
def test_the_command_writes_one_file_for_each_photo(net, anna, weights, tmp_path):
    out = tmp_path / "out"
    arguments = ["predict", str(anna), "--weights", str(weights / f"{net}.safetensors"), "-o", str(out)]
    result = CliRunner().invoke(main, [*arguments, "--landmarks", "files"])
    assert result.exit_code == 0, result.output
    maps = predict_maps(anna, weights / f"{net}.safetensors", landmarks="files")
    content = json.loads((out / "prediction.json").read_text())
    assert content["gives"] == list(maps.gives) and content["network"]["net"] == net
    stems = [view["stem"] for view in content["views"]]
    wanted = {
        "small_depth": {"depth", "confidence", "normals", "surface"},
        "small_positions": {"posmap"},
        "small_parser": {"parse"},
    }
    everything = wanted["small_depth"] | {"posmap", "parse", "landmarks", "points3d"}
    assert {p.name for p in out.iterdir()} == {"prediction.json"} | wanted.get(net, everything)
    assert ", ".join(maps.gives) + f" of {len(stems)} photo(s), written: {out}" in result.output
    for b, stem in enumerate(stems):
        if maps.depth is not None:
            stored = cv2.imread(str(out / "depth" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
            assert stored.dtype == np.uint16 and np.abs(stored / 10 - maps.depth[b]).max() <= 0.0501
            trust = cv2.imread(str(out / "confidence" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
            assert trust.dtype == np.uint8 and np.abs(trust / 255 - maps.confidence[b]).max() < 0.002
            assert np.abs(read_normals(out / "normals" / f"{stem}.png") - maps.normals[b]).max() < 1e-4
            mesh = trimesh.load(out / "surface" / f"{stem}.glb", force="mesh", process=False)
            np.testing.assert_allclose(mesh.vertices * 1000, maps.surface[b].vertices, atol=0.01)
            assert np.array_equal(mesh.faces, maps.surface[b].triangles)
            texture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"))
            assert np.array_equal(texture, maps.surface[b].texture)
        if maps.parse is not None:
            assert np.array_equal(
                cv2.imread(str(out / "parse" / f"{stem}.png"), cv2.IMREAD_UNCHANGED), maps.parse[b]
            )
        if maps.position_map is not None:
            assert np.array_equal(np.load(out / "posmap" / f"{stem}.npy"), maps.position_map[b])
        if maps.landmarks is not None:
            assert np.allclose(
                read_landmarks(out / "landmarks" / f"{stem}.pts")[:, :2], maps.landmarks[b], atol=1e-3
            )
        if maps.points3d is not None:
            assert np.load(out / "points3d" / f"{stem}.npy").shape == (5, 3)
    # It is a result: replaced on request only, and no folder of photos for other commands.
    again = CliRunner().invoke(main, [*arguments, "--landmarks", "files"])
    assert again.exit_code == 1 and "already exists; use --overwrite" in again.output
    assert CliRunner().invoke(main, [*arguments, "--landmarks", "files", "--overwrite", "-q"]).output == ""
    assert subject_folders(tmp_path) == [anna]
    (out / "mine.txt").write_text("")
    refused = CliRunner().invoke(main, [*arguments, "--landmarks", "files", "--overwrite"])
    assert refused.exit_code == 1 and "it holds 'mine.txt'" in refused.output and (out / "mine.txt").exists()


def test_a_scene_and_maps_lie_in_one_result_folder(anna, tmp_path, monkeypatch):
    class Both(MvfNet):
        gives = ("state", "parse")

        def forward(self, images, valid, padded=False):
            frames, _ = frames_of(images, valid, padded)
            said = super().forward(images, valid, padded)
            return replace(said, parse=torch.stack([frames[:, 0], frames[:, 1]], 1))

    monkeypatch.setitem(NETS, "both", lambda: NetKind(MvfNetOptions, Both))
    from fitkit.nets.predictor import ViewSlot

    model = load_model("generic")
    network = Both(model, (ViewSlot("front", (-90.0, 90.0)),), MvfNetOptions(size=32, width=0.06))
    save_predictor(network, "both", tmp_path / "both.safetensors", half=False)
    result = predict(anna, tmp_path / "both.safetensors", landmarks="files")
    assert result.maps.gives == ("parse",) and len(result.maps.parse) == len(result.subject.views) == 1
    folder = result.save(tmp_path / "out")
    assert (folder / "parse" / f"{result.subject.views[0].name}.png").is_file() and (
        folder / "parameters.npz"
    ).is_file()
    result.save(tmp_path / "out", overwrite=True)


def test_what_is_refused(anna, weights, tmp_path):
    with pytest.raises(
        InputError, match=r"expected a network that gives a scene, it gives depth; call .*predict_maps"
    ):
        predict(anna, weights / "small_depth.safetensors", landmarks="files")
    with pytest.raises(
        InputError, match="expected a network that gives a scene, it gives depth, from which no fit can start"
    ):
        regressor_start(
            *(None,) * 3, tiny_model(), InitOptions("regressor", str(weights / "small_depth.safetensors"))
        )
    maps = [str(anna), "--weights", str(weights / "small_depth.safetensors"), "--model", "generic"]
    converted = CliRunner().invoke(main, ["predict", *maps])
    assert (
        converted.exit_code == 1 and "gives no scene, so no face model; leave --model out" in converted.output
    )
    sized = CliRunner().invoke(main, ["predict", *maps[:3], "--texture-size", "512"])
    assert sized.exit_code == 1 and "so no texture; leave --texture-size out" in sized.output
    from fitkit.nets.predictor import ViewSlot

    model = load_model("generic")
    network = MvfNet(model, (ViewSlot("front", (-90.0, 90.0)),), MvfNetOptions(size=32, width=0.06))
    save_predictor(network, "mvfnet", tmp_path / "scene.safetensors", half=False)
    with pytest.raises(InputError, match=r"gives nothing but a scene; call fitkit.fitting.predict.predict"):
        predict_maps(anna, tmp_path / "scene.safetensors", landmarks="files")
    subject = load_subject(anna)
    found, _ = detect_landmarks(subject, "files")
    predicted = predict_views(Everything().eval(), model, subject, found)
    bad = replace(predicted.prediction, parse=predicted.prediction.parse * torch.nan)
    bad = replace(bad, points3d=torch.full((len(predicted.order), 5, 3), torch.nan))
    with pytest.raises(
        FitError, match=f"prediction of {subject.name}: a map holds values that are not finite"
    ):
        maps_of(replace(predicted, prediction=bad), subject, {})
