from dataclasses import replace
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
import torch

from fitkit.errors import InputError, MissingWeightsError
from fitkit.geometry.spherical_harmonics import Y0, Y1
from fitkit.models.registry import load_model
from fitkit.render.rasterizer import rasterize
from fitkit.render.shading import average_blocks
from fitkit.synth import mitsuba
from fitkit.synth.dataset import SynthDataset
from fitkit.synth.folder import write_subjects
from fitkit.synth.mitsuba import STUDIO_SIZE, head_renderer, studio_picture
from fitkit.synth.recipe import load_synth_recipe
from fitkit.synth.studio import Scene
from fitkit.synth.subject import draw_subject, render_subject

needs_mitsuba = pytest.mark.skipif(
    find_spec("mitsuba") is None, reason="mitsuba is not installed (extra fitkit[synth])"
)
PLAIN = ["variation.occluded=0", "variation.glasses=0", "variation.dark_glasses=0"]


def recipe_of(*overrides, **changes):
    settings = {"renderer": "mitsuba", "views": 1, "size": 48, "path_tracing": {"samples": 16}, **changes}
    return load_synth_recipe("clean", [*PLAIN, *overrides], settings)


def test_a_missing_mitsuba_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(mitsuba, "find_spec", lambda name: None)
    message = (
        r"renderer 'mitsuba' is not installed here; install it with pip install 'fitkit\[synth\]', "
        r"or take renderer 'own'"
    )
    with pytest.raises(MissingWeightsError, match=message):
        write_subjects(recipe_of(), 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(MissingWeightsError, match=message):
        SynthDataset(recipe_of(), 1)


def test_studio_lights_a_diffuse_ball_as_the_scene_does():
    """The radiance of all directions, summed with the cosine, against the harmonics and the lamp."""
    light = torch.zeros(9, 3)
    light[0], light[1], light[3] = 0.5 / Y0, 0.1 / Y1, -0.08 / Y1
    scene = Scene(light, lamp=(0.3, 0.2, 0.9), lamp_strength=0.7, lamp_color=(1.0, 0.9, 0.8))
    picture = studio_picture(scene)
    towards = mitsuba._directions(*STUDIO_SIZE)
    polar = np.pi * (np.arange(STUDIO_SIZE[0]) + 0.5) / STUDIO_SIZE[0]
    area = np.broadcast_to(
        np.sin(polar)[:, None] * np.pi / STUDIO_SIZE[0] * 2 * np.pi / STUDIO_SIZE[1], STUDIO_SIZE
    )
    lamp = np.array(scene.lamp) / np.linalg.norm(scene.lamp)
    for normal in np.eye(3).tolist() + [lamp.tolist()]:
        normal = np.array(normal)
        found = (picture * (np.clip(towards @ normal, 0, None) * area)[..., None]).sum((0, 1)) / np.pi
        wanted = (
            0.5
            + 0.1 * normal[1]
            - 0.08 * normal[0]
            + 0.7 * max(normal @ lamp, 0) * np.array(scene.lamp_color)
        )
        np.testing.assert_allclose(found, wanted, rtol=0.03)  # a pixel is 1.4 degrees wide


def test_a_folder_without_surroundings_is_refused(tmp_path, monkeypatch):
    if find_spec("mitsuba") is None:
        pytest.skip("mitsuba is not installed (extra fitkit[synth])")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match="no pictures of surroundings here; expected .exr"):
        head_renderer(load_model("generic"), recipe_of(path_tracing={"environments": str(tmp_path)}))


@needs_mitsuba
def test_path_traced_heads_cover_the_pixels_of_the_truth():
    """The traced share of each pixel against a z-buffer of 8 x 8 samples; half a pixel aside it fits
    worse."""
    model, fine = load_model("generic"), 8
    recipe = recipe_of("variation.bald=1.0", "variation.hat=0", path_tracing={"samples": 64})
    plan = draw_subject(model, recipe, 0)
    rgb, alpha, _ = head_renderer(model, recipe)(plan, 0)
    clip = plan.state.camera.resized(1 / fine).clip(plan.state.pose.apply(plan.state.vertices(model)))
    covered = rasterize(clip, model.triangles, (48 * fine, 48 * fine)).covered[0].float()[..., None]

    def error(dx, dy):
        moved = torch.roll(covered, (dy * fine // 2, dx * fine // 2), (0, 1))
        share = average_blocks(moved, fine)[1:-1, 1:-1, 0].numpy()
        return float(np.abs(share - alpha[1:-1, 1:-1]).sum())

    steps = [(1, 0), (-1, 0), (0, 1), (0, -1)]
    assert error(0, 0) < 0.5 * min(error(*step) for step in steps)
    assert (alpha > 0.99).mean() == pytest.approx(
        float((average_blocks(covered, fine) > 0.99).float().mean()), abs=0.01
    )
    assert np.isfinite(rgb).all() and 0.01 < rgb[alpha > 0.99].mean() < 2


@needs_mitsuba
def test_path_traced_pictures_keep_the_truth_and_are_deterministic(tmp_path):
    model = load_model("generic")
    recipe = recipe_of("path_tracing.visible=1.0")
    plan = draw_subject(model, recipe, 1)
    first, second = (render_subject(model, recipe, plan, head_renderer(model, recipe))[0] for _ in range(2))
    own = render_subject(model, replace(recipe, renderer="own"), plan)[0]
    assert first.jpeg == second.jpeg != own.jpeg
    for field in ("landmarks", "given", "visible", "depth", "normals", "parse", "region", "covered"):
        np.testing.assert_array_equal(getattr(first, field), getattr(own, field))


@needs_mitsuba
def test_surroundings_of_a_folder_light_and_stand_behind_the_head(tmp_path):
    """Red light from everywhere makes red skin and a red background."""
    cv2.imwrite(str(tmp_path / "red.png"), np.full((16, 32, 3), (10, 10, 200), np.uint8))
    model = load_model("generic")
    recipe = recipe_of(path_tracing={"environments": str(tmp_path), "samples": 8, "visible": 1.0})
    rgb, alpha, behind = head_renderer(model, recipe)(draw_subject(model, recipe, 0), 0)
    assert (rgb[alpha > 0.9][:, 0] > 3 * rgb[alpha > 0.9][:, 1]).mean() > 0.9
    red = ((200 / 255 + 0.055) / 1.055) ** 2.4
    np.testing.assert_allclose(behind[..., 0], red, rtol=0.02)
    (tmp_path / "red.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="red.png: not a readable picture of surroundings"):
        head_renderer(model, recipe)(draw_subject(model, recipe, 0), 0)
