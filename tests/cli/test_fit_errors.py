"""Bad input: one clear sentence and an exit code, or a note and a result; never a half-written output."""

import errno
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

import cv2
import face_alignment
import numpy as np
import pytest

from fitkit.export import folder as export_folder
from fitkit.observe.landmarks import builtin

FAST = ("--recipe", "landmarks", "--init", "landmarks", "--no-pictures")


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture
def refused(run, tmp_path):
    """Run a command that must end with one sentence, exit code 1 and unchanged files -> the sentence."""

    def refused(*arguments):
        before = listing(tmp_path)
        result = run(*arguments)
        assert result.exit_code == 1, result.output
        lines = result.output.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("Error: "), result.output
        assert listing(tmp_path) == before
        return lines[0]

    return refused


@pytest.fixture
def no_weights(monkeypatch):
    class Offline:
        def __init__(self, *args, **kwargs):
            raise URLError("no network")

    monkeypatch.setattr(face_alignment, "FaceAlignment", Offline)
    monkeypatch.setattr(builtin, "WEIGHTS", "not-there.safetensors")


# ---- photos ----


def test_missing_folder(refused, tmp_path):
    assert "none: no such folder; give a folder with photos of one person" in refused(
        "fit", tmp_path / "none"
    )


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_folders_and_photos_are_not_mixed(refused, anna, command):
    message = (
        f"{anna}: a folder was given together with {anna / 'view0.png'}; give one folder, or photos only"
    )
    assert message in refused(command, anna, anna / "view0.png") and message in refused(
        command, anna / "view0.png", anna
    )
    assert f"{anna}: a folder was given together with {anna};" in refused(command, anna, anna)


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_files_that_are_no_photos(refused, anna, command):
    assert "view0.pts: expected a photo (*.jpg, " in refused(command, anna / "view0.png", anna / "view0.pts")
    assert "view0.pts: expected a photo (*.jpg, " in refused(command, anna / "view0.pts")
    assert "none.jpg: no such photo; give a folder" in refused(command, anna / "none.jpg")
    assert "none.jpg: no such photo" in refused(command, anna / "view0.png", anna / "none.jpg")


def test_predict_has_no_recipe(refused, anna):
    assert "seed=1: expected a folder or photos, and nothing else" in refused("predict", anna, "seed=1")


def test_empty_folder(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty: no images in this folder; expected at least one of *.jpg" in refused(
        "fit", tmp_path / "empty"
    )


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0 cut off", b"this is text", b""])
def test_only_image_is_corrupt(refused, tmp_path, content):
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna/a.jpg").write_bytes(content)
    assert "a.jpg: not a readable image (corrupt, cut off or another file type)" in refused(
        "fit", tmp_path / "anna"
    )


@pytest.mark.slow
def test_one_image_is_corrupt(run, anna):
    data = (anna / "view1.png").read_bytes()
    (anna / "view1.png").write_bytes(data[: len(data) // 2])
    (anna / "view3.jpg").write_text("this is text")
    result = run("fit", anna, *FAST)
    assert result.exit_code == 0 and "views      2 (2 left out)" in result.output
    assert result.output.count("note: left out: ") == 2 and (anna / "fitkit/views/view2.ply").is_file()


@pytest.mark.slow
def test_very_large_image(start, tmp_path, anna):
    folder = tmp_path / "large"
    folder.mkdir()
    small = cv2.imread(str(anna / "view1.png"))
    points = np.loadtxt(anna / "view1.pts", skiprows=3, max_rows=68) - 1
    scale, x0, y0 = 20, 2100, 1000
    face = cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    image = np.full((6000, 8000, 3), 90, np.uint8)
    image[y0 : y0 + face.shape[0], x0 : x0 + face.shape[1]] = face
    cv2.imwrite(str(folder / "large.jpg"), image)
    np.save(folder / "large.npy", (points + 0.5) * scale - 0.5 + [x0, y0])
    process = start("fit", folder)
    peak = peak_memory(process)
    assert process.returncode == 0, process.stderr.read()
    assert (folder / "fitkit/overlay/large.png").is_file()
    # torch, numba and the model take 0.6 GB, the photo 0.14 GB each time it is copied
    assert peak < 2 * 2**20


def peak_memory(process):
    """Most memory that a process took, kB, when it has ended; 0 where the system does not say. `getrusage`
    is of no use: a child begins with the peak of the process that started it."""
    peak = 0
    while process.poll() is None:
        with suppress(OSError):  # it has just ended, or this is not Linux
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.02)
    return peak


# ---- landmarks ----


def test_landmarks_of_wrong_count(refused, anna):
    (anna / "view1.pts").write_text("version: 1\nn_points: 5\n{\n" + "1 2\n" * 5 + "}\n")
    message = refused("fit", anna)
    assert "view1.pts: " in message and "68" in message and "5" in message


def test_landmarks_outside_the_image(refused, anna):
    (anna / "view1.pts").unlink()
    np.save(anna / "view1.npy", np.random.default_rng(0).uniform(1000, 1200, (68, 2)))
    message = refused("fit", anna)
    assert "view1.npy: " in message and "outside" in message


@pytest.mark.slow
def test_one_view_without_a_face(run, anna):
    (anna / "view2.pts").unlink()
    np.save(anna / "view2.npy", np.full((68, 2), np.nan))
    result = run("fit", anna, *FAST)
    assert result.exit_code == 0, result.output
    assert (
        "note: left out: no face found in view2.png" in result.output
        and "views      2 (1 left out)" in result.output
    )
    assert not (anna / "fitkit/views/view2.ply").exists()


def test_no_view_with_a_face(refused, anna):
    for i in range(3):
        (anna / f"view{i}.pts").unlink()
        np.save(anna / f"view{i}.npy", np.full((68, 2), np.nan))
    message = refused("fit", anna)
    assert "no view can be used: no face found in view0.png" in message and "IMAGE.pts" in message


def test_no_landmarks_and_no_weights(refused, anna, no_weights):
    for path in anna.glob("*.pts"):
        path.unlink()
    message = refused("fit", anna)
    assert "no landmarks beside view0, view1, view2: " in message
    assert (
        "landmark detector 'builtin': " in message
        and "install fitkit again" in message
        and "IMAGE.pts" in message
    )
    message = refused("fit", anna, "--landmarks", "fan")
    assert (
        "fitkit model fetch fan" in message
        and "use --landmarks builtin" in message
        and "IMAGE.pts" in message
    )
    assert "no face found in view0.png" in refused("fit", anna, "--landmarks", "files")


def test_unknown_detector(refused, anna):
    assert "unknown landmark detector 'fen'; did you mean 'fan'?" in refused(
        "fit", anna, "--landmarks", "fen"
    )


# ---- options ----


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--recipe", "multivew"], "no fit recipe 'multivew'; did you mean 'multiview'?"),
        (["--recipe", "none.yaml"], "none.yaml: cannot be read"),
        (["sead=1"], "unknown key 'sead'; did you mean 'seed'?"),
        (["camera.focal_sigm=1"], "camera: unknown key 'focal_sigm'; did you mean 'focal_sigma'?"),
        (["stages.fein.min_views=1"], "unknown key 'fein'; did you mean 'fine'?"),
        (["stages.fine.energies.lmk2.weight=1"], "unknown key 'lmk2'; did you mean 'lmk2d'?"),
        (["camera.focal_sigma=wide"], "camera.focal_sigma: expected a number from 1e-06 to 100, got 'wide'"),
        (["camera.kind=fisheye"], "expected one of perspective, orthographic; got 'fisheye'"),
        (["another_folder"], "override 'another_folder': expected key=value"),
        (["--model", "generik"], "unknown model 'generik'; did you mean 'generic'?"),
        (["--model", "none.npz"], "none.npz: no such model file"),
        (["--device", "cuda:99"], "device 'cuda:99': cannot be used here"),
        (["--device", "gpu"], "device 'gpu': cannot be used here"),
        (["--device", "meta"], "device 'meta': cannot be used here"),
    ],
)
def test_unknown_option_values(refused, anna, arguments, message):
    assert message in refused("fit", anna, *arguments)


def test_recipe_without_stages(refused, anna, tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    assert "mine.yaml: expected 'stages'" in refused("fit", anna, "--recipe", tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("name: [unclosed\n")
    assert "mine.yaml: not valid YAML" in refused("fit", anna, "--recipe", tmp_path / "mine.yaml")


def test_usage_error(run, anna):
    result = run("fit", anna, "--jaw", "square")
    assert result.exit_code == 2 and "Traceback" not in result.output and "'outline'" in result.output


# ---- output ----


def test_output_exists(refused, anna):
    (anna / "fitkit").mkdir()
    (anna / "fitkit/metrics.json").write_text("{}")
    assert "fitkit: already exists; use --overwrite" in refused("fit", anna)
    assert "not a fitkit result folder" in refused(
        "fit", anna, "--overwrite"
    )  # never anything else than a result


def test_output_cannot_be_written(refused, anna):
    assert "view0.png is a file" in refused("fit", anna, "-o", anna / "view0.png/out")
    if os.path.isdir("/proc/self"):  # not even root can make a folder there
        assert "cannot be written" in refused("fit", anna, "-o", "/proc/self/out")


def test_output_may_not_be_written(refused, anna, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert "cannot be written (Permission denied)" in refused("fit", anna, "-o", locked / "out")


def test_disk_full(refused, anna, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_folder, "save_parameters", full)
    assert "cannot be written (No space left on device); nothing was left behind" in refused(
        "fit", anna, *FAST
    )


@pytest.mark.slow
def test_unexpected_error(run, anna, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(export_folder, "save_parameters", broken)
    result = run("fit", anna, *FAST)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert (
        result.output
        == "Error: unexpected ZeroDivisionError: division by zero; run with --verbose for details\n"
    )
    result = run("fit", anna, *FAST, "--verbose")
    assert result.exit_code == 2 and "Traceback" in result.output and "in broken" in result.output
    assert not (anna / "fitkit").exists()


# ---- Ctrl-C ----


@pytest.mark.slow
def test_interrupted_while_fitting(start, anna, tmp_path):
    before = listing(tmp_path)
    # A shell that starts the tests in the background makes its children deaf to Ctrl-C.
    process = start(
        "fit",
        anna,
        "--verbose",
        "stages.flow.solver.refresh=100000",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    for line in process.stderr:
        if line.startswith("stage landmarks: "):
            break
    # Numba may still compile what the stage needs; an interrupt inside its callbacks is told twice.
    time.sleep(4)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stdout == ""
    assert stderr.strip() == "interrupted; nothing was written"
    assert listing(tmp_path) == before


def test_interrupted_while_writing(run, anna, tmp_path, monkeypatch):
    before = listing(tmp_path)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_folder, "save_parameters", interrupted)
    result = run("fit", anna, *FAST)
    assert result.exit_code == 130 and result.output.strip() == "interrupted; nothing was written"
    assert listing(tmp_path) == before


def test_interrupted_after_writing(run, anna, monkeypatch):
    class Interrupting:
        def __init__(self, *args, **kwargs):
            self.n = 0

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            if exception[0] is None:
                raise KeyboardInterrupt

        def set_description_str(self, *args, **kwargs):
            pass

        def update(self, *args):
            pass

        def refresh(self):
            pass

    monkeypatch.setattr("tqdm.tqdm", Interrupting)
    result = run("fit", anna, *FAST)
    assert (
        result.exit_code == 130
        and result.output.strip() == f"interrupted; the result is in {anna / 'fitkit'}"
    )
    assert (anna / "fitkit/metrics.json").is_file()


def test_terminated_while_writing_cleans_up(start, anna, tmp_path):
    before = listing(tmp_path)
    process = start("fit", anna, "--recipe", "landmarks", "--init", "landmarks", "-q")
    while not any(p.name.startswith(".fitkit-") for p in anna.iterdir()) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 143 and stdout == "" and stderr.strip() == "interrupted; nothing was written"
    assert listing(tmp_path) == before


# ---- streams and names ----


@pytest.mark.slow
@pytest.mark.parametrize("closed", [(2,), (1,), (1, 2)])
def test_closed_streams(start, anna, closed):
    process = start("fit", anna, *FAST, preexec_fn=lambda: [os.close(number) for number in closed])
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and stdout.startswith("status     ") == (1 not in closed)
    assert (anna / "fitkit" / "metrics.json").is_file()


def test_output_that_is_a_link_to_itself(refused, anna, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert "loop: cannot be written (" in refused("fit", anna, *FAST, "-o", tmp_path / "loop")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf8(run, anna):
    for suffix in (".png", ".pts"):
        os.rename(anna / f"view0{suffix}", os.fsencode(anna) + b"/Zo\xeb" + suffix.encode())
    result = run("fit", anna, *FAST)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (anna / "fitkit" / "views").iterdir()) == [
        "Zo\u00eb.ply",
        "view1.ply",
        "view2.ply",
    ]
    assert '"image": "Zo\u00eb.png"' in (anna / "fitkit" / "cameras.json").read_text(encoding="utf-8")
    assert run("fit", anna, *FAST, "-q", "--overwrite").exit_code == 0
