"""Photos beside the model in its predicted light."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_model, tiny_state
from PIL import Image

from fitkit.errors import InputError
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols import PROTOCOLS
from fitkit.evaluate.recipe import load_evaluate_recipe
from fitkit.models.io import save_model_file
from fitkit.render.lit import render_lit
from fitkit.scene.parameters import Parameters, load_parameters

PROTOCOL = PROTOCOLS["lit_photos"]
SIZE = 224


def waves(model):
    """The model with an albedo basis of two waves."""
    wave = torch.sin(model.mean / 30.0)
    return replace(model, albedo_basis=0.05 * torch.stack([wave, -wave[:, [1, 2, 0]]]))


MODEL = waves(tiny_model())


def scene(views=2):
    state = tiny_state(MODEL, views, SIZE)
    light = state.illumination.expand(-1, -1, 3).clone() * torch.tensor([1.0, 0.9, 0.7])
    light[:, 1, 0] = 0.3
    return state.replace(illumination=light, albedo=torch.tensor([[1.5, -0.8]]))


def photographed(folder, state, change=lambda picture: picture):
    """A person's folder with pictures of the state."""
    (folder / "anna").mkdir(parents=True)
    lit = render_lit(MODEL, state, (SIZE, SIZE))
    pictures = lit.over(torch.full_like(lit.colors, 0.5))
    for i, picture in enumerate(pictures):
        array = change((255 * picture.permute(1, 2, 0)).round().byte().numpy().copy())
        Image.fromarray(array).save(folder / "anna" / f"view{i}.png")
    return folder


def score(folder, state, tmp_path, options=None):
    options = options or PROTOCOL.options()
    (sample,) = PROTOCOL.samples(folder, options)
    names = tuple(v.name for v in sample.subject().views)
    stored = Parameters(
        state,
        MODEL.name,
        MODEL.expression_names,
        "anna",
        names,
        np.full((len(names), 2), SIZE),
        ("estimated",) * len(names),
    )
    path = stored.write(tmp_path / "p.npz")  # as an evaluation has it
    face = PredictedFace(sample.id, views=np.array(names, str), parameters=lambda: load_parameters(path))
    return PROTOCOL.score(sample, face, options, MODEL).values


def test_true_light_and_albedo_are_right_and_others_are_not(tmp_path):
    state = scene()
    folder = photographed(tmp_path / "people", state)
    right = score(folder, state, tmp_path)
    assert right["lit"] < 1.5 < 0.2 * right["even"] and right["even"] <= right["plain"]
    mean = score(folder, state.replace(albedo=None), tmp_path)
    assert mean["lit"] > right["lit"] + 3 and mean["even"] == pytest.approx(right["even"], abs=1e-3)
    one = score(folder, state.select([1]), tmp_path, PROTOCOL.options(views=(1,)))
    assert one["lit"] < 1.5


def test_errors_are_grey_levels_within_the_mask(tmp_path):
    state = scene(1)
    brighter = photographed(tmp_path / "brighter", state, lambda p: np.minimum(p, 245) + 10)
    exact = score(photographed(tmp_path / "exact", state), state, tmp_path)["lit"]
    assert score(brighter, state, tmp_path)["lit"] == pytest.approx(10, abs=exact + 0.5)

    def black_left(picture):
        picture[:, : SIZE // 2] = 0
        return picture

    half = photographed(tmp_path / "half", state, black_left)
    assert score(half, state, tmp_path)["lit"] > 30
    mask = np.full((SIZE, SIZE), 255, np.uint8)
    mask[:, : SIZE // 2 + 3] = 0
    (half / "anna" / "masks").mkdir()
    Image.fromarray(mask).save(half / "anna" / "masks" / "view0.png")
    assert score(half, state, tmp_path)["lit"] == pytest.approx(exact, abs=0.5)


def test_even_light_is_as_bright_as_suits_a_photo(tmp_path):
    """Photos of the mean albedo in half of even light are what it looks like in that light, not as it is."""
    state = scene().replace(albedo=None)
    light = torch.zeros_like(state.illumination)
    light[:, 0] = 0.5 * 3.5449077  # sqrt(4 pi)
    errors = score(photographed(tmp_path / "people", state.replace(illumination=light)), state, tmp_path)
    assert errors["even"] < 4 < 30 < errors["plain"]


def test_what_is_refused(tmp_path):
    state = scene(1)
    folder = photographed(tmp_path / "people", state)
    grey = state.replace(illumination=state.illumination[..., :1])
    with pytest.raises(InputError, match="anna: the prediction has no light in colours; expected that of"):
        score(folder, grey, tmp_path)
    away = state.replace(
        pose=replace(state.pose, translation=state.pose.translation + torch.tensor([9e3, 0, 0]))
    )
    with pytest.raises(InputError, match="anna: the predicted face covers fewer than 100 pixels of a photo"):
        score(folder, away, tmp_path)


def test_summary_and_recipe(tmp_path):
    rows = [{"lit": 4.0, "even": 10.0, "plain": 20.0}, {"lit": 6.0, "even": 15.0, "plain": 20.0}]
    out = PROTOCOL.summarize(rows, {}, PROTOCOL.options())
    assert out == pytest.approx({"lit over even": 0.4, "lit over plain": 0.25})
    assert PROTOCOL.summarize([], {}, PROTOCOL.options()) == {}
    model = save_model_file(MODEL, tmp_path / "tiny.npz")
    assert PROTOCOL.prepare([], PROTOCOL.options(), str(model)).albedo_basis.shape[0] == 2
    assert load_evaluate_recipe("lit_photos", ["options.views=[1]"]).options["views"] == [1]
