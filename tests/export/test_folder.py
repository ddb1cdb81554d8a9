import hashlib
import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
import yaml
from helpers import tiny_model, tiny_result
from PIL import Image

from fitkit.errors import FitError, InputError
from fitkit.export import folder, preview
from fitkit.export.cameras import camera_table
from fitkit.export.folder import file_stems, write_result
from fitkit.export.lighting import decompose_result, draw_lit, has_light
from fitkit.export.preview import TILE, Sides, draw_detail, draw_preview, draw_uncertainty
from fitkit.fitting.report import ConversionReport
from fitkit.geometry.color import srgb_from_linear
from fitkit.io import atomic
from fitkit.io.calibration import read_cameras
from fitkit.io.images import Distortion
from fitkit.io.options import plain
from fitkit.io.result_folder import ENTRIES, PREDICTED, check_output
from fitkit.io.subject import PREDICTION_MARK, KnownCamera, Subject
from fitkit.scene.camera import Camera
from fitkit.scene.parameters import load_parameters

OF_A_FIT = ENTRIES - PREDICTED.keys() - {PREDICTION_MARK}


@pytest.fixture(scope="module")
def result():
    return tiny_result(size=96)


@pytest.fixture(autouse=True)
def small_texture(monkeypatch):
    monkeypatch.setattr(folder, "texture_size", lambda result: 64)


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
    size, folder.texture_size = folder.texture_size, lambda result: 64
    tile, folder.TILE = folder.TILE, TILE
    try:
        return write_result(result, tmp_path_factory.mktemp("results") / "new" / "out")
    finally:
        folder.texture_size, folder.TILE = size, tile


def files(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


class TestContent:
    def test_files(self, written):
        assert {p.name for p in written.iterdir()} == OF_A_FIT - {"detail.png"}
        assert files(written / "views") == [f"view{i}.ply" for i in range(3)]
        assert files(written / "overlay") == [f"view{i}.png" for i in range(3)]
        assert [p.name for p in written.parent.iterdir()] == ["out"]  # nothing hidden beside it

    def test_without_pictures(self, written, result, tmp_path):
        out = write_result(result, tmp_path / "out", pictures=False)
        pictures = [
            f for f in files(written) if f.endswith((".png", ".jpg", ".html")) or f in ("overlay", "lighting")
        ]
        assert files(out) == [f for f in files(written) if f not in (*pictures, "subject.mtl")]
        for name in ("subject.ply", "views/view0.ply", "albedo.ply", "cameras.json", "metrics.json"):
            assert (out / name).read_bytes() == (written / name).read_bytes()
        assert load_parameters(out / "parameters.npz").light is not None
        assert "mtllib" not in (out / "subject.obj").read_text()
        write_result(result, out, overwrite=True)  # it is a result like others
        assert files(out) == files(written)

    def test_ply_keeps_the_vertex_order(self, written, result):
        mesh = trimesh.load(written / "subject.ply", process=False)
        np.testing.assert_allclose(mesh.vertices, result.neutral, atol=1e-4)  # float32 mm
        assert np.array_equal(mesh.faces, result.model.triangles)
        header = (written / "subject.ply").read_bytes()[:300]
        assert (
            b"binary_little_endian" in header
            and b"property float nx" in header
            and b"property float sigma_mm" in header
        )
        np.testing.assert_array_equal(
            mesh.metadata["_ply_raw"]["vertex"]["data"]["sigma_mm"].ravel(), result.vertex_sigma
        )
        for i in range(3):
            view = trimesh.load(written / "views" / f"view{i}.ply", process=False)
            np.testing.assert_allclose(view.vertices, result.vertices[i], atol=1e-4)

    def test_obj(self, written, result):
        lines = (written / "subject.obj").read_text().splitlines()
        rows = {
            k: [line.split()[1:] for line in lines if line.startswith(k + " ")]
            for k in ("v", "vt", "vn", "f")
        }
        np.testing.assert_allclose(np.array(rows["v"], float), result.neutral, atol=1e-4)
        np.testing.assert_allclose(np.array(rows["vt"], float), result.model.uv, atol=1e-5)
        corners = np.array([[c.split("/") for c in f] for f in rows["f"]], int) - 1
        assert np.array_equal(corners[..., 0], result.model.triangles) and np.array_equal(
            corners[..., 1], result.model.uv_triangles
        )
        assert "mtllib subject.mtl" in lines and "map_Kd texture.png" in (written / "subject.mtl").read_text()
        mesh = trimesh.load(written / "subject.obj", process=False)
        assert mesh.visual.material.image.size == (64, 64)
        np.testing.assert_allclose(
            mesh.triangles, result.neutral.numpy()[result.model.triangles.numpy()], atol=1e-4
        )

    def test_glb_shows_the_texture(self, written, result):
        mesh = next(iter(trimesh.load(written / "subject.glb", process=False).geometry.values()))
        texture = np.asarray(Image.open(written / "texture.png"))
        assert np.array_equal(np.asarray(mesh.visual.material.baseColorTexture.convert("RGB")), texture)
        np.testing.assert_allclose(mesh.extents, np.ptp(result.neutral.numpy(), 0) / 1000, atol=1e-6)

    def test_parameters(self, written, result):
        read = load_parameters(written / "parameters.npz")
        assert torch.equal(read.state.vertices(result.model), result.vertices)

    def test_albedo_and_light(self, written, result):
        parts = decompose_result(result)[0]
        mesh = trimesh.load(written / "albedo.ply", process=False)
        np.testing.assert_allclose(mesh.vertices, result.neutral, atol=1e-4)
        np.testing.assert_allclose(
            mesh.visual.vertex_colors[:, :3] / 255, srgb_from_linear(parts.albedo), atol=0.51 / 255
        )
        np.testing.assert_allclose(
            mesh.metadata["_ply_raw"]["vertex"]["data"]["seen"].ravel(), parts.seen, atol=1e-6
        )
        torch.testing.assert_close(load_parameters(written / "parameters.npz").light, parts.light)
        assert files(written / "lighting") == [f"view{i}.png" for i in range(3)]
        width, height = Image.open(written / "lighting" / "view0.png").size
        assert width > 3 * height  # photo, albedo, shading

    def test_cameras_json_is_what_a_subject_folder_accepts(self, written, result):
        cameras = read_cameras(written / "cameras.json")
        points = result.vertices.double().numpy()
        expected = result.state.camera.project(result.state.pose.apply(result.vertices))[0].numpy()
        for i, (name, camera) in enumerate(cameras.items()):
            assert name == f"view{i}"
            at = points[i] @ camera.R.T + camera.t
            pixel = (at / at[:, 2:]) @ camera.K.T
            np.testing.assert_allclose(pixel[:, :2], expected[i], atol=2e-3)  # the state is float32
        entry = json.loads((written / "cameras.json").read_text())["views"][0]
        assert (
            entry["source"] == "estimated"
            and entry["kind"] == "perspective"
            and (entry["width"], entry["height"]) == (96, 96)
        )

    def test_cameras_json_carries_the_distortion_that_was_removed(self, result, tmp_path):
        K = result.state.camera.matrix()[0].double().numpy()
        for lens in (
            Distortion(K, np.array([-0.1, 0.02, 0.0, 0.001, 0.3])),
            Distortion(K, np.array([0.1, 0.0, 0.0, 0.0]), fisheye=True),
        ):
            views = [
                v.replace(camera=KnownCamera(K, removed=lens if i else None))
                for i, v in enumerate(result.subject.views)
            ]
            table = camera_table(replace(result, subject=replace(result.subject, views=tuple(views))))
            (tmp_path / "cameras.json").write_text(json.dumps(table))
            plain, *bent = read_cameras(tmp_path / "cameras.json").values()
            assert plain.distortion is None
            assert all(
                c.distortion.tolist() == lens.coefficients.tolist() and c.fisheye == lens.fisheye
                for c in bent
            )

    def test_landmarks_lie_on_the_mesh(self, written):
        points = np.load(written / "landmarks.npy")
        assert points.shape == (68, 3) and points.dtype == np.float32
        mesh = trimesh.load(written / "subject.ply", process=False)
        _, distance, _ = trimesh.proximity.closest_point(mesh, points)
        assert distance.max() < 1e-3

    def test_metrics_are_strict_json(self, written):
        metrics = json.loads(
            (written / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name)
        )
        assert metrics["status"] == "ok" and metrics["warnings"] == []
        assert metrics["reprojection_px"] is None and metrics["views"][0]["part_shift_share"] == {"nose": 1.5}

    def test_recipe(self, written, result):
        assert yaml.safe_load((written / "recipe.yaml").read_text()) == result.recipe

    def test_pictures(self, written):
        overlay = np.asarray(Image.open(written / "overlay" / "view1.png"))
        preview = np.asarray(Image.open(written / "preview.png"))
        assert overlay.ndim == 3 and overlay.shape[1] > 2 * overlay.shape[0]
        assert preview.shape == (2 * 384, 5 * 320, 3)
        uncertainty = np.asarray(Image.open(written / "uncertainty.png"))
        assert uncertainty.shape[0] == 384 and uncertainty.shape[1] > 5 * 320
        half = (overlay.shape[1] - 8) // 2
        assert (
            np.abs(overlay[:, :half].astype(int) - overlay[:, -half:]).mean() > 3
        )  # something is drawn over the photo


class TestOtherInputs:
    def test_without_error_bars(self, result, tmp_path):
        out = write_result(replace(result, identity_covariance=None, vertex_sigma=None), tmp_path / "out")
        assert (
            "uncertainty.png" not in files(out)
            and b"sigma_mm" not in (out / "subject.ply").read_bytes()[:400]
        )

    def test_uncertain_parts_are_yellow(self, result):
        # The subject's left stands at the right side of a frontal picture.
        sigma = torch.where(result.neutral[:, 0] > 0, 2.0, 0.0)
        sides = Sides.of_head(result.neutral, result.model)
        picture = draw_uncertainty(sides, sigma)[:, 2 * 320 : 3 * 320].astype(int)
        blue_less = picture[192, :, 0] - picture[192, :, 2]
        assert blue_less[190] > 80 and blue_less[130] < -10

    def test_each_side_is_found_once(self, result, monkeypatch):
        looks, found = [], preview.Surface.visible
        monkeypatch.setattr(preview.Surface, "visible", lambda *args: looks.append(args) or found(*args))
        sides, numbers = Sides.of_head(result.neutral, result.model), result.neutral[:, 0]
        draw_preview(sides, result.model), draw_uncertainty(sides, numbers), draw_detail(sides, numbers)
        assert len(looks) == len({*preview.YAWS, *preview.SIGMA_YAWS}) == 7

    def test_orthographic_one_view_no_uv(self, result, tmp_path):
        model = replace(result.model, uv=None, uv_triangles=None, albedo_mean=None)
        single = tiny_result(views=1, size=64)
        state = single.state.replace(camera=replace(single.state.camera, kind="orthographic"))
        out = write_result(replace(single, model=model, state=state), tmp_path / "out")
        assert "texture.png" not in files(out) and "subject.mtl" not in files(out)
        assert Image.open(out / "preview.png").size == (5 * folder.TILE[1], folder.TILE[0])
        entry = json.loads((out / "cameras.json").read_text())["views"][0]
        assert entry["kind"] == "orthographic" and entry["t"][2] == Camera.REFERENCE_DEPTH
        assert b"vt " not in (out / "subject.obj").read_bytes()

    def test_missing_landmarks_and_a_face_outside_the_photo(self, result, tmp_path):
        landmarks = replace(
            result.landmarks,
            points=torch.full_like(result.landmarks.points, float("nan")),
            valid=torch.zeros_like(result.landmarks.valid),
        )
        # Beside the photo, behind the camera, in place.
        shift = torch.tensor([[9000.0, 0, 0], [0, 0, -2000.0], [0, 0, 0]])
        pose = replace(result.state.pose, translation=result.state.pose.translation + shift)
        out = write_result(
            replace(result, landmarks=landmarks, state=result.state.replace(pose=pose)), tmp_path / "out"
        )
        assert len(files(out / "overlay")) == 3

    def test_small_face_in_a_large_photo_is_cut_out(self, result, tmp_path):
        wide = np.zeros((900, 1200, 3), np.uint8)
        wide[100:196, 50:146] = result.subject.views[0].image
        view = replace(result.subject.views[0], image=wide)
        state = result.state
        camera = replace(
            state.camera.select([0]), principal=state.camera.principal[:1] + torch.tensor([[50.0, 100.0]])
        )
        single = replace(
            state,
            camera=camera,
            pose=state.pose.select([0]),
            expression=state.expression[:1],
            subject=state.subject[:1],
            illumination=state.illumination[:1],
        )
        first = result.landmarks.select([0])
        landmarks = replace(first, points=first.points + torch.tensor([50.0, 100.0]))
        small = replace(
            result, subject=Subject("t", (view,)), state=single, landmarks=landmarks, camera_source=("exif",)
        )
        out = write_result(small, tmp_path / "out")
        width, height = Image.open(out / "overlay" / "view0.png").size
        assert max(width // 2, height) <= 660 and width < 2 * 660
        assert (
            np.asarray(Image.open(out / "overlay" / "view0.png"))[:, : width // 3].mean() > 10
        )  # not the black surroundings alone

    def test_names_are_made_safe_and_distinct(self, result):
        names = ("a/b", "a:b", "A_B", "..")
        subject = Subject("t", tuple(replace(result.subject.views[0], name=n) for n in names))
        assert file_stems(replace(result, subject=subject)) == ["a_b", "a_b_2", "A_B_3", "view"]

    def test_values_that_are_not_finite_are_refused(self, result, tmp_path):
        bad = replace(result, state=result.state.replace(identity=result.state.identity * float("nan")))
        with pytest.raises(FitError, match="identity holds values that are not finite; nothing was written"):
            write_result(bad, tmp_path / "out")
        assert files(tmp_path) == []

    def test_plain(self):
        value = {
            "a": np.float32(0.5),
            2: (np.inf, torch.tensor([1, 2])),
            "p": os,
            "n": np.array([1.0, np.nan]),
            "t": np.bool_(True),
            "z": None,
        }
        assert plain(value) == {
            "a": 0.5,
            "2": [None, [1, 2]],
            "p": str(os),
            "n": [1.0, None],
            "t": True,
            "z": None,
        }


class TestRefusals:
    def test_existing_folder(self, result, tmp_path):
        (tmp_path / "out").mkdir()
        for call in (lambda: check_output(tmp_path / "out"), lambda: write_result(result, tmp_path / "out")):
            with pytest.raises(InputError, match="out: already exists; use --overwrite"):
                call()

    def test_existing_file(self, tmp_path):
        (tmp_path / "out").write_text("x")
        for overwrite in (False, True):
            with pytest.raises(InputError, match="expected a folder, but a file has that name"):
                check_output(tmp_path / "out", overwrite)

    def test_overwrite_never_replaces_another_folder(self, result, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "holiday.jpg").write_text("x")
        with pytest.raises(InputError, match="not a fitkit result folder .it holds 'holiday.jpg'."):
            write_result(result, tmp_path / "out", overwrite=True)
        (tmp_path / "out" / "metrics.json").write_text("{}")
        (tmp_path / "out" / "parameters.npz").write_text("")
        with pytest.raises(InputError, match="it holds 'holiday.jpg'"):
            write_result(result, tmp_path / "out", overwrite=True)
        (tmp_path / "half").mkdir()
        (tmp_path / "half" / "metrics.json").write_text("{}")
        with pytest.raises(InputError, match="it has no parameters.npz"):
            check_output(tmp_path / "half", overwrite=True)
        assert files(tmp_path) == [
            "half",
            "half/metrics.json",
            "out",
            "out/holiday.jpg",
            "out/metrics.json",
            "out/parameters.npz",
        ]

    @pytest.mark.parametrize(
        "name",
        [
            "views/my_notes.txt",
            "overlay/mine/thesis.txt",
            "views/holiday.ply",
            "lighting/link.png",
            "notes",
            "mine/a.txt",
        ],
    )
    def test_overwrite_looks_at_the_whole_tree(self, result, written, tmp_path, name):
        out = shutil.copytree(written, tmp_path / "out")
        (out / name).parent.mkdir(exist_ok=True)
        if "link" in name:
            (out / name).symlink_to(tmp_path)
        else:
            (out / name).write_text("mine")
        before = files(tmp_path)
        named = (
            name
            if name.count("/") == 1 and name[:4] != "mine"
            else "overlay/mine"
            if "thesis" in name
            else name.partition("/")[0]
        )
        with pytest.raises(
            InputError, match=f"not a fitkit result folder .it holds '{named}'., so it is not replaced"
        ):
            write_result(result, out, overwrite=True)
        assert files(tmp_path) == before

    def test_a_link_to_itself(self, tmp_path):
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(InputError, match="loop: cannot be written .*; choose another --output"):
            check_output(tmp_path / "loop")
        with pytest.raises(InputError, match="loop is no folder, so no folder can be made in it"):
            check_output(tmp_path / "loop" / "out")

    def test_a_link_that_points_to_nothing_yet(self, result, tmp_path):
        (tmp_path / "link").symlink_to("out")
        assert (
            write_result(result, tmp_path / "link", light=True) == tmp_path / "out"
            and (tmp_path / "link").is_symlink()
        )

    def test_a_file_in_the_way(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(InputError, match="file.*so no folder can be made in it|cannot be written"):
            check_output(tmp_path / "file" / "out")

    @pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system that refuses even root")
    def test_unwritable_place(self):
        with pytest.raises(InputError, match="/proc/out: cannot be written .*choose another --output"):
            check_output("/proc/out")

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
    def test_folder_without_write_permission(self, tmp_path):
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(InputError, match="cannot be written"):
                check_output(tmp_path / "out")
        finally:
            tmp_path.chmod(0o700)

    def test_check_writes_nothing(self, tmp_path):
        assert check_output(tmp_path / "a" / "b") == tmp_path / "a" / "b"
        assert files(tmp_path) == []


def broken(*args, **kwargs):
    raise RuntimeError("boom")


class TestWhatCannotBeDrawn:
    """It costs neither the fit nor the rest of the result, and metrics.json says what is missing."""

    def test_pictures(self, result, tmp_path, monkeypatch, caplog):
        for name in ("draw_overlay", "draw_preview", "draw_uncertainty", "draw_lighting"):
            monkeypatch.setattr(folder, name, broken)
        out = write_result(result, tmp_path / "out")
        lacking = json.loads((out / "metrics.json").read_text())["not_written"]
        pictures = [f"{d}/view{i}.png" for d in ("lighting", "overlay") for i in range(3)] + [
            "preview.png",
            "uncertainty.png",
        ]
        assert sorted(lacking) == [
            f"{p} could not be computed (unexpected RuntimeError: boom)" for p in pictures
        ]
        assert not any((out / p).exists() for p in pictures) and sorted(
            r.getMessage() for r in caplog.records if r.levelname == "WARNING"
        ) == sorted(lacking)
        assert (
            (out / "albedo.ply").is_file()
            and (out / "texture.png").is_file()
            and load_parameters(out / "parameters.npz").light is not None
        )

    @pytest.mark.slow
    def test_texture_and_light(self, result, tmp_path, monkeypatch):
        monkeypatch.setattr(folder, "fuse_result", broken)
        monkeypatch.setattr(folder, "decompose_result", broken)
        out = write_result(result, tmp_path / "out")
        lacking = json.loads((out / "metrics.json").read_text())["not_written"]
        assert sorted(line.partition(" could not be computed (")[0] for line in lacking) == [
            "albedo and light",
            "the texture",
        ]
        assert (
            not (out / "texture.png").exists()
            and not (out / "subject.mtl").exists()
            and not (out / "albedo.ply").exists()
        )
        assert (
            len(trimesh.load(out / "subject.obj", process=False).vertices) == 315
            and (out / "subject.glb").is_file()
        )
        assert load_parameters(out / "parameters.npz").light is None
        # It is a result like others.
        again = write_result(result, out, overwrite=True, pictures=False)
        assert "not_written" in json.loads((again / "metrics.json").read_text())

    def test_a_whole_result_lacks_nothing(self, written):
        assert "not_written" not in json.loads((written / "metrics.json").read_text())


ENDS = ("PIL.Image.Image.save", "yaml.safe_dump")


class TestWholeOrNotAtAll:
    @pytest.mark.slow
    def test_overwrite_replaces_a_result_and_an_empty_folder(self, result, tmp_path):
        (tmp_path / "out").mkdir()
        out = write_result(result, tmp_path / "out", overwrite=True, pictures=False)
        (out / "views" / "view0.ply").write_text("old")
        (out / ".DS_Store").write_text("left by a file browser")
        write_result(result, out, overwrite=True, pictures=False)
        assert len(trimesh.load(out / "views" / "view0.ply", process=False).vertices) == 315
        assert not (out / ".DS_Store").exists() and [p.name for p in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize(
        "writer, error, seen",
        [
            # The last writes when the threads have ended, the others in one of them.
            *(
                (writer, OSError(28, "No space left on device"), InputError)
                for writer in ("fitkit.export.folder.write_ply", "numpy.save", *ENDS)
            ),
            *((writer, ValueError("boom"), ValueError) for writer in ENDS),
            *((writer, KeyboardInterrupt(), KeyboardInterrupt) for writer in ENDS),
        ],
    )
    def test_nothing_is_left_after_a_failure(self, result, tmp_path, monkeypatch, error, seen, writer):
        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr(writer, fail)
        with pytest.raises(seen) as caught:
            write_result(result, tmp_path / "new" / "deep" / "out")
        if seen is InputError:
            assert "No space left on device" in str(caught.value) and "nothing was left behind" in str(
                caught.value
            )
        assert files(tmp_path) == []

    def test_ctrl_c_in_the_main_thread(self, result, tmp_path, monkeypatch):
        """A real interrupt arrives where the main thread waits for the writers."""
        import _thread
        import signal

        # A process that a shell started in the background ignores interrupts.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        started = threading.Event()
        draw = folder.draw_overlay

        def slow(*args):
            if not started.is_set():
                started.set()
                _thread.interrupt_main()
            return draw(*args)

        monkeypatch.setattr(folder, "draw_overlay", slow)
        try:
            with pytest.raises(KeyboardInterrupt):
                write_result(result, tmp_path / "out")
        finally:
            signal.signal(signal.SIGINT, before)
        assert started.is_set() and files(tmp_path) == []

    def test_a_failed_overwrite_leaves_the_old_result(self, result, written, tmp_path, monkeypatch):
        out = shutil.copytree(written, tmp_path / "out")
        before = {p: (out / p).read_bytes() for p in files(out) if (out / p).is_file()}
        monkeypatch.setattr(folder, "write_glb", broken)
        with pytest.raises(RuntimeError):
            write_result(result, out, overwrite=True)
        assert before == {p: (out / p).read_bytes() for p in files(out) if (out / p).is_file()}
        assert [p.name for p in tmp_path.iterdir()] == ["out"]

    def test_a_failed_exchange_puts_the_old_result_back(self, result, written, tmp_path, monkeypatch):
        out = shutil.copytree(written, tmp_path / "out")
        rename, calls = type(out).rename, []

        def second_fails(self, target):
            calls.append(self)
            if len(calls) == 2:
                raise OSError(16, "Device or resource busy")
            return rename(self, target)

        monkeypatch.setattr(type(out), "rename", second_fails)
        with pytest.raises(InputError, match="Device or resource busy"):
            write_result(result, out, overwrite=True)
        monkeypatch.undo()
        assert [p.name for p in tmp_path.iterdir()] == ["out"] and (out / "metrics.json").exists()

    def test_results_inside_a_result_stay(self, result, tmp_path):
        out = write_result(result, tmp_path / "out", light=True)
        write_result(result, out / "old", light=True)
        write_result(result, out / "more" / "of" / "it", light=True)
        (out / "old" / "metrics.json").write_text("kept")
        before = (out / "metrics.json").stat().st_ino
        write_result(result, out, overwrite=True, light=True)
        assert (out / "metrics.json").stat().st_ino != before and (
            out / "old" / "metrics.json"
        ).read_text() == "kept"
        assert sorted(p.name for p in (out / "more" / "of" / "it").iterdir()) == [
            "metrics.json",
            "parameters.npz",
            "recipe.yaml",
        ]
        assert os.listdir(tmp_path) == ["out"]
        (tmp_path / "town" / "anna").mkdir(parents=True)
        write_result(result, tmp_path / "town" / "anna", overwrite=True, light=True)
        write_result(result, tmp_path / "town", overwrite=True, light=True)  # it held another's result only

    @pytest.mark.skipif(os.name == "nt", reason="kills a process")
    @pytest.mark.parametrize("renames, old", [(0, True), (1, True), (2, True), (3, False)])
    def test_a_kill_is_mended_by_the_next_call(self, result, tmp_path, renames, old):
        """Killed while it writes, after the old result was moved away, after one inside it was moved on,
        after the exchange."""
        out = write_result(result, tmp_path / "out", light=True)
        write_result(result, out / "inside", light=True)
        (out / "metrics.json").write_text("old")

        def write():
            rename, done = Path.rename, []

            def counted(self, target):
                if len(done) == renames:
                    os.kill(os.getpid(), signal.SIGKILL)
                done.append(rename(self, target))

            Path.rename = counted
            shutil.rmtree = lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)
            write_result(result, out, overwrite=True, light=True)

        process = get_context("fork").Process(target=write)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL and len(os.listdir(tmp_path)) == (
            2 if renames in (0, 3) else 1
        )
        with pytest.raises(InputError, match="already exists"):
            check_output(out)
        assert ((out / "metrics.json").read_text() == "old") == old and (
            out / "inside" / "parameters.npz"
        ).is_file()
        assert os.listdir(tmp_path) == ["out"]

    def test_a_place_that_is_taken_meanwhile_costs_no_result(self, result, tmp_path, monkeypatch):
        out = write_result(result, tmp_path / "out", light=True)
        write_result(result, out / "inside", light=True)
        rename, calls = Path.rename, []

        def taken(self, target):
            calls.append(self)
            if len(calls) == 3:
                shutil.copytree(self, tmp_path / "theirs", ignore=shutil.ignore_patterns("inside"))
                os.replace(tmp_path / "theirs", target)
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", taken)
        with pytest.raises(InputError, match="out: cannot be written"):
            write_result(result, out, overwrite=True, light=True)
        assert (
            (out / "metrics.json").is_file()
            and (out / "inside" / "metrics.json").is_file()
            and os.listdir(tmp_path) == ["out"]
        )

    def test_foreign_litter_is_left_alone(self, tmp_path, monkeypatch):
        monkeypatch.setattr(atomic, "_ended", lambda process: True)
        for name, file in (
            ("ours", "new/views/a.ply"),
            ("earlier", "views/a.ply"),
            ("mixed", "new/notes.txt"),
            ("other", "thesis.txt"),
        ):
            path = tmp_path / f".fitkit-4711-{hashlib.sha256(name.encode()).hexdigest()[:8]}" / file
            path.parent.mkdir(parents=True)
            path.write_text(name)
        check_output(tmp_path / "out")
        assert sorted(p.read_text() for p in tmp_path.rglob("*") if p.is_file()) == ["mixed", "other"]

    def test_threads_of_torch_are_given_back(self, result, tmp_path):
        before = torch.get_num_threads()
        write_result(result, tmp_path / "out", pictures=False)
        assert torch.get_num_threads() == before


def test_save_of_the_result_object(result, tmp_path):
    assert result.save(tmp_path / "out", light=True) == tmp_path / "out"
    with pytest.raises(InputError, match="already exists"):
        result.save(tmp_path / "out")


def test_tiny_model_is_seeded_and_valid():
    from fitkit.models.io import check_model

    first, again, other = tiny_model(3), tiny_model(3), tiny_model(4)
    check_model(first, "tiny")
    assert torch.equal(first.identity_basis, again.identity_basis) and not torch.equal(
        first.identity_basis, other.identity_basis
    )


def test_states_in_double_precision_and_with_gradients(result, tmp_path):
    state = result.state.to(dtype=torch.float64)
    state = state.replace(
        identity=state.identity.clone().requires_grad_(),
        expression=state.expression.clone().requires_grad_(),
        camera=replace(state.camera, focal=state.camera.focal.clone().requires_grad_()),
    )
    out = write_result(
        replace(result, state=state, model=result.model.to(dtype=torch.float64)), tmp_path / "out"
    )
    assert {p.name for p in out.iterdir()} == OF_A_FIT - {"detail.png"}


def test_of_a_network_that_tells_light_the_model_in_it_is_drawn(result, tmp_path):
    """A red light makes a red face; fits, and networks that tell none, have no such pictures."""
    light = torch.zeros(3, 9, 3)
    light[:, 0, 0] = 3.5
    predicted = replace(
        result,
        state=result.state.replace(illumination=light),
        report=replace(result.report, recipe="predict"),
    )
    assert not has_light(result) and has_light(predicted)
    converted = ConversionReport("other", "names", 0.1, 1.0, 0.1, 1.0, 0.2, 2.0)
    assert not has_light(replace(predicted, report=replace(predicted.report, conversion=converted)))
    picture = draw_lit(predicted, 1)
    side = len(picture)
    photo, drawn, error = picture[:, :side], picture[:, -2 * side - 4 : -side - 4], picture[:, -side:]
    face = (drawn.astype(int) != photo).any(-1)
    assert 0.2 < face.mean() < 0.7 and (drawn[face][:, 1:] == 0).all() and (drawn[face][:, 0] > 60).all()
    assert (error[~face] == photo[~face] // 3).mean() > 0.99
    path = write_result(predicted, tmp_path / "out")
    assert sorted(p.name for p in (path / "lit").iterdir()) == [f"view{i}.png" for i in range(3)]
    assert not (write_result(predicted, tmp_path / "none", pictures=False) / "lit").exists()
