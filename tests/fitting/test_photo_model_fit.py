"""Fits whose recipe compares photos with the model's albedo: the light's channels and stages without
light."""

from dataclasses import replace

import pytest
import torch
from helpers import observe
from test_decompose import LIGHT, MODEL, SIZE, scene

from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit_observed
from fitkit.io.subject import Subject, View

PHOTO = ("stages.fine.energies.photo_model.weight=100", "stages.fine.energies.photo_model.options.points=300")
FAST = (
    "stages.flow.energies.flow_corr=false",
    "stages.fine.energies.flow_corr=false",
    "stages.fine.solver.refresh=1",
    "stages.fine.free=[identity, landmarks, expression, pose, focal, illumination]",
)
PRIOR = ("stages.fine.energies.light_prior={sigma: 0.5}",)
CROSS_VIEW = ("stages.fine.energies.photo_xview={weight: 200, kernel: {name: cauchy, radius: 2.0}}",)


def run(*overrides):
    state, obs = scene()
    images = (obs.images.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    subject = Subject("lit", tuple(View(f"view{i}", image) for i, image in enumerate(images)))
    marks = observe(MODEL, state, SIZE).landmarks
    marks = replace(marks, sigma=torch.full_like(marks.sigma, torch.nan))
    return fit_observed(subject, marks, MODEL, load_recipe("multiview", (*FAST, *overrides)))


@pytest.mark.parametrize("light,channels", [("rgb", 3), ("grey", 1)])
def test_the_light_has_the_channels_that_the_energy_asks_for(light, channels):
    extra = ("stages.fine.energies.light_mono.sigma=0.2",) if light == "rgb" else ()
    result = run(
        *PHOTO, *PRIOR, *CROSS_VIEW, f"stages.fine.energies.photo_model.options.light={light}", *extra
    )
    assert result.state.illumination.shape == (3, 9, channels)
    stage = result.metrics["stages"][-1]
    assert stage["terms"]["photo_model"]["valid"] > 300 and stage["terms"]["photo_model"]["rms"] < 1.0
    assert ("light_mono" in stage["terms"]) == (light == "rgb")
    assert all(s["terms"].get("photo_model") is None for s in result.metrics["stages"][:-1])
    if light == "rgb":  # the first view's lamp is warm, the last one's cold, as photographed
        warmth = result.state.illumination[:, 0, 0] / result.state.illumination[:, 0, 2]
        true = LIGHT[:, 0, 0] / LIGHT[:, 0, 2]
        torch.testing.assert_close(warmth / warmth[1], true / true[1], rtol=0.1, atol=0)


def test_light_is_solved_for_with_either_photometric_energy_or_not_at_all():
    alone = run(*PHOTO)
    assert alone.state.illumination.shape == (3, 9, 3) and float(alone.state.illumination[:, 0].min()) > 0.3
    between = run(*CROSS_VIEW)
    assert (
        between.state.illumination.shape == (3, 9, 1) and float(between.state.illumination[:, 0].min()) > 0.3
    )
    none = run()
    assert float(none.state.illumination.abs().max()) == 0
