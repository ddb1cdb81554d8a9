"""The recipe `parser` on a few rendered people."""

import json

import pytest
import torch

from fitkit.nets import load_predictor
from fitkit.observe.face_parts import PARTS
from fitkit.synth.folder import write_subjects
from fitkit.synth.recipe import load_synth_recipe
from fitkit.train.regressor import train_regressor
from fitkit.train.regressor_recipe import load_regressor_training


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    write_subjects(load_synth_recipe("default", ["views=2", "size=64"]), 4, folder)
    return folder


def test_the_shipped_recipe_trains(people, tmp_path):
    recipe = load_regressor_training(
        "parser",
        [
            *(f"data.{name}.folder={people}" for name in ("generic", "makehuman", "frames")),
            *(f"data.{name}.held_out=0.0" for name in ("generic", "makehuman")),
            "data.frames.held_out=0.6",
            "data.frames.options.size=96",
            "net.options.size=64",
            "stages.joints.steps=3",
            "stages.all.steps=3",
            "batch=3",
            "save=3",
            "pictures=3",
            "accelerator=cpu",
        ],
    )
    lines = {}
    path = train_regressor(recipe, tmp_path, step_done=lambda step, values: lines.update({step: values}))
    assert len(lines) == 6 and all(0 < v["total"] < 5 for v in lines.values())
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["gives"] == ["parse"] and 0 <= card["metrics"]["parse_percent"] <= 100
    network = load_predictor(path)
    assert network.options.classes == len(PARTS) and network.size == 64
    assert (tmp_path / "pictures" / "step_0000006.png").is_file()
    assert torch.isfinite(network.logits(torch.rand(1, 3, 64, 64))).all()
