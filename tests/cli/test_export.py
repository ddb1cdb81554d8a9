import json
import shutil

import pytest
from helpers import tiny_result
from PIL import Image

import fitkit
from fitkit.export.targets import TARGETS


@pytest.fixture(scope="module")
def fitted(_rendered, tmp_path_factory):
    folder = shutil.copytree(_rendered, tmp_path_factory.mktemp("export") / "anna")
    fitkit.fit(folder, recipe="landmarks").save(folder / "fitkit", pictures=False)
    return folder


def test_a_result_goes_where_the_user_says_or_beside(run, fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("export", fitted / "fitkit", "--for", "blender", "--arkit-names", "suffix")
    assert done.exit_code == 0 and done.output == f"written: {tmp_path / 'anna_blender'}\n"
    names = json.loads((tmp_path / "anna_blender" / "arkit_names.json").read_text())["names"]
    assert len(names) == 52 and "browDown_L" in names and names[-1] == "tongueOut"
    again = run("export", fitted / "fitkit", "--for", "blender")
    assert (
        again.exit_code == 1 and "anna_blender: already exists; remove it or choose another" in again.output
    )


def test_photos_elsewhere(run, fitted, tmp_path):
    moved = shutil.copytree(fitted / "fitkit", tmp_path / "moved" / "result")
    done = run("export", moved, "--for", "metahuman", "-o", tmp_path / "a")
    assert done.exit_code == 0 and "note: the texture could not be computed (view view0: the" in done.output
    done = run("export", moved, "--for", "metahuman", "-o", tmp_path / "b", "--photos", fitted)
    assert done.output == f"written: {tmp_path / 'b'}\n" and (tmp_path / "b" / "texture.png").exists()


def test_another_face_model(run, fitted, tmp_path):
    done = run("export", fitted / "fitkit", "--for", "insta", "-o", tmp_path / "a")
    assert done.exit_code == 1 and not list(tmp_path.iterdir())
    assert "expected the face model FLAME, got 'generic'; convert it first with 'fitkit conv" in done.output


def test_a_coarser_mesh(run, fitted, tmp_path):
    done = run("export", fitted / "fitkit", "--for", "blender", "--vertices", "900", "-o", tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a" / "obj" / "neutral.obj").read_text().count("\nv ") == 900
    done = run("export", fitted / "fitkit", "--for", "usd", "--vertices", "20", "-o", tmp_path / "b")
    assert done.exit_code == 2 and "20 is not in the range x>=500" in done.output


def test_what_is_no_result(run, tmp_path):
    done = run("export", tmp_path, "--for", "blender")
    assert done.exit_code == 1 and "expected a result folder" in done.output
    tiny_result().save(tmp_path / "tiny", light=True)
    done = run("export", tmp_path / "tiny", "--for", "blender")
    assert done.exit_code == 1 and "tiny" in done.output


def test_the_help_names_every_target(run):
    text = run("export", "--help").output
    for name, target in TARGETS.items():
        assert f"  {name} " in text and target.about in text


def test_textures_of_another_size(run, fitted, tmp_path):
    done = run(
        "export", fitted / "fitkit", "--for", "textures", "--texture-size", "512", "-o", tmp_path / "a"
    )
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["albedo.png", "texture.png"]
    for path in (tmp_path / "a").iterdir():
        with Image.open(path) as picture:
            assert picture.size == (512, 512) and picture.mode == "RGB"


def test_textures_that_are_refused(run, fitted, tmp_path):
    moved = shutil.copytree(fitted / "fitkit", tmp_path / "moved" / "result")
    done = run("export", moved, "--for", "textures", "-o", tmp_path / "a")
    assert done.exit_code == 1 and "textures: the photo 'view0' of the result is not there" in done.output
    done = run("export", moved, "--for", "blender", "--texture-layout", "ict", "-o", tmp_path / "a")
    assert (
        done.exit_code == 1 and "texture_layout is for target textures, got target 'blender'" in done.output
    )
    done = run("export", moved, "--for", "textures", "--texture-size", "99", "-o", tmp_path / "a")
    assert done.exit_code == 2 and not (tmp_path / "a").exists()
