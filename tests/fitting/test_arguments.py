"""What the Python functions are given, points for the photos of a folder, and how results show themselves."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_result

import fitkit
from fitkit.export.parameters import save_parameters
from fitkit.fitting.predict import predict
from fitkit.fitting.report import FitReport, Verdict
from fitkit.io.subject import KnownCamera, as_subject, load_subject

PICTURE = np.zeros((64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: fitkit.fit(5),
            "subject: expected a folder, the path of a photo, a Subject, or a list of images, got int",
        ),
        (
            lambda: fitkit.fit(PICTURE),
            r"subject: expected a list of images, got one array of shape \[64, 64, 3\]; put it into a list",
        ),
        (lambda: fitkit.fit({"a": 1}), "images: expected a list of paths, PIL images or arrays, got dict"),
        (lambda: fitkit.fit_many("anna"), "subjects: expected a list with a folder, .* each person, got str"),
        (lambda: fitkit.fit_many(Path("anna")), "subjects: expected a list with a folder, .* got .*Path"),
        (lambda: fitkit.fit_many(None), "subjects: expected a list with a folder, .* got NoneType"),
        (lambda: fitkit.fit_many([], batch_size="2"), "batch_size: expected a whole number, got str"),
        (lambda: fitkit.fit_many([], batch_size=2.5), "batch_size: expected a whole number, got float"),
        (
            lambda: fitkit.fit([PICTURE], model=5),
            "model: expected the name or path of a face model, or a FaceModel, got int",
        ),
        (
            lambda: fitkit.fit([PICTURE], recipe={}),
            "recipe: expected the name or path of a recipe, or a FitRecipe, got dict",
        ),
        (
            lambda: fitkit.fit([PICTURE], overrides="seed=1"),
            "overrides: expected a list of 'key=value', got str",
        ),
        (
            lambda: fitkit.fit([PICTURE], overrides=[5]),
            "overrides: expected texts 'key=value' in the list, got int",
        ),
        (
            lambda: fitkit.fit([PICTURE], seed="x"),
            "seed: expected a whole number from 0 to 9223372036854775807, got 'x'",
        ),
        (
            lambda: fitkit.fit([PICTURE], device=0),
            "device: expected the name of a torch device, e.g. cpu, got int",
        ),
        (
            lambda: fitkit.fit([PICTURE], progress=5),
            r"progress: expected a function of \(text, share\), got int",
        ),
        (
            lambda: fitkit.fit([PICTURE], landmarks="x"),
            "landmarks: expected a list with one entry for each of the 1 images, got str",
        ),
        (lambda: predict(5), "subject: expected a folder, "),
        (lambda: predict([PICTURE], weights=5), "weights: expected the path of a weight file, got int"),
        (lambda: predict([PICTURE], model="generic"), "model: expected a FaceModel, got str"),
        (
            lambda: predict([PICTURE], landmarks=[None]),
            "landmarks: expected where they come from, e.g. 'auto', got list",
        ),
        (
            lambda: fitkit.load_model(None),
            "load_model: expected the name or path of a face model, got NoneType",
        ),
        (lambda: fitkit.load_recipe(5), "load_recipe: expected the name or path of a recipe, got int"),
        (lambda: fitkit.load_recipe("multiview", [], 5), "changes: expected a mapping of options, got int"),
        (
            lambda: fitkit.load_subject(b"x"),
            "path: expected the path of a folder with photos of one person, got bytes",
        ),
        (
            lambda: fitkit.load_parameters(None),
            "load_parameters: expected the path of a parameter file, got NoneType",
        ),
        (
            lambda: fitkit.subject_from_images("abc"),
            "images: expected a list of paths, PIL images or arrays, got str",
        ),
        (
            lambda: fitkit.subject_from_images([PICTURE], names="a"),
            "names: expected a list with one entry for each of the 1 images, got str",
        ),
        (
            lambda: fitkit.subject_from_images([PICTURE], cameras=[5]),
            "view0: camera: expected a KnownCamera or None, got int",
        ),
        (lambda: fitkit.subject_from_images([PICTURE], name=5), "name: expected the subject's name, got int"),
    ],
)
def test_wrong_types_are_named(call, message):
    with pytest.raises(fitkit.FitkitError, match=message):
        call()


def test_points_for_the_photos_of_a_folder(anna):
    """In the order of the views, for one of them or all; they replace the files beside the photos."""
    subject = load_subject(anna)
    points = [v.landmarks[:, :2] for v in subject.views]
    given = as_subject(anna, [points[0] + 1, None, anna / "view0.pts"])
    assert [v.landmark_source for v in given.views] == ["given", "file", "file"]
    np.testing.assert_array_equal(given.views[0].landmarks[:, :2], points[0] + 1)
    np.testing.assert_array_equal(given.views[1].landmarks, subject.views[1].landmarks)
    np.testing.assert_array_equal(given.views[2].landmarks, subject.views[0].landmarks)
    assert (
        as_subject(subject, points).views[1].landmark_source == "given"
        and as_subject(anna / "view1.png", points[1:2]).views[0].landmarks is not None
    )
    for wrong, message in (
        (
            "anything at all",
            "landmarks: expected a list with one entry for each of the 3 views of .*anna, got str",
        ),
        (points[:2], "landmarks: expected one entry for each of the 3 views of .*anna, got 2"),
        ([points[0], None, points[2][:5]], "view2: landmarks: expected 68 points"),
        ([points[0] + 1000, None, None], "view0: .*outside"),
    ):
        with pytest.raises(fitkit.FitkitError, match=message):
            fitkit.fit(anna, landmarks=wrong)
    result = fitkit.fit(
        anna, recipe="landmarks", landmarks=[p + [3, 0] for p in points], overrides=["init.source=landmarks"]
    )
    np.testing.assert_allclose(result.landmarks.points, np.stack(points) + [3, 0], atol=1e-3)


def test_points_of_photos_with_distortion(anna):
    """They are those of the photo as it is, as in files."""
    camera = {"K": [[200.0, 0, 95.5], [0, 200, 95.5], [0, 0, 1]], "distortion": [-0.15, 0, 0, 0]}
    (anna / "cameras.json").write_text(json.dumps({"view0": camera}))
    read = load_subject(anna)
    (anna / "cameras.json").unlink()
    raw = load_subject(anna).views[0].landmarks
    given = as_subject(read, [raw, None, None]).views[0]
    np.testing.assert_allclose(given.landmarks, read.views[0].landmarks)
    assert isinstance(given.camera, KnownCamera) and np.abs(given.landmarks - raw).max() > 1


def test_each_thing_shows_itself_in_one_short_line(tmp_path):
    result = tiny_result(size=64)
    parameters = fitkit.load_parameters(save_parameters(result, tmp_path / "parameters.npz"))
    camera = KnownCamera(np.diag([900.0, 900, 1]))
    shown = {
        "FitResult('tiny': ok, 3 views, model 'tiny')": result,
        "FitResult('tiny': ok, expected error 1.2 mm, 3 views, model 'tiny')": replace(
            result, report=FitReport("ok", verdict=Verdict(expected_mm=1.23))
        ),
        "FaceModel('tiny': 315 vertices, 8 identity and 6 expression shapes, cpu)": result.model,
        "LandmarkEmbedding(68 points)": result.model.landmarks,
        "Subject('tiny', 3 views: view0, view1, view2)": result.subject,
        "Landmarks(204 valid points in 3 views, jaw 'surface')": result.landmarks,
        "SceneState(3 frames of 1 people, 8 identity and 6 expression coefficients, "
        "perspective cameras)": result.state,
        "Parameters('tiny': 3 views, face model 'tiny')": parameters,
        "KnownCamera(focal length 900.0 px, pose not known)": camera,
    }
    assert [repr(thing) for thing in shown.values()] == list(shown)


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="this system does not fork")
def test_a_forked_child_does_not_wait_for_threads_that_it_does_not_have():
    code = """
import os, sys
import fitkit, torch
torch.set_num_threads(2)
a = torch.rand(3000, 1000)
a.exp().sum()
child = os.fork()
if not child:
    a.exp().sum()
    os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")} | {
        "PYTHONPATH": str(Path(fitkit.__file__).parents[1])
    }
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 7
