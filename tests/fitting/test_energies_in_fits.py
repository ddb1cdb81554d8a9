"""Every energy that a fit can use, in a recipe with Levenberg-Marquardt; those that compare with labels say
that there are none."""

import math
import sys
from pathlib import Path

import pytest
from helpers import LucasKanade, tiny_model, tiny_skinned_model

import fitkit
from fitkit.energies.features import frozen_network
from fitkit.energies.registry import REGISTRY
from fitkit.errors import InputError
from fitkit.fitting import stages

sys.path.append(str(Path(__file__).resolve().parents[1] / "energies"))
from test_features import Encoder
from test_parsing import Parser

RECIPE = """
name: one
camera: {{share_focal: "no"}}  # photos of several cameras may be stretched
flow: {{estimator: "ptlflow:raft"}}
landmarks: {{source: files}}
init: {{source: landmarks}}
crop: {{max_size: 64, min_size: 64}}
stages:
  - name: pose
    free: [pose]
    energies: {{lmk2d: {{}}}}
    solver: {{max_iterations: 5}}
  - name: one
    free: [identity, landmarks, expression, joints, pose, focal, aspect, illumination]
    energies:
      lmk2d: {{}}
      identity_prior: {{}}
      {name}: {options}
    solver: {{max_iterations: 1}}
"""
OPTIONS = {
    "flow_mag": "{options: {size: 32, min_pixels: 1}}",
    "flow_triangulated": "{options: {size: 96, points: 100, min_parallax_deg: 1.0}}",
    "sem_feat": "{options: {size: 48, min_pixels: 1}}",
    "mask_parse": "{options: {size: 32}}",
    "photo_pairs": "{options: {size: 48, min_pixels: 1}}",
}


@pytest.fixture
def fitted(anna, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "make_flow_estimator", lambda *asked: LucasKanade())
    networks = {"encoder": Encoder, "parser": Parser}
    monkeypatch.setattr(stages, "load_network", lambda name, *more: frozen_network(networks[name]().float()))

    def fit(name):
        path = tmp_path / "one.yaml"
        path.write_text(RECIPE.format(name=name, options=OPTIONS.get(name, "{}")))
        model = tiny_skinned_model() if name == "joint_prior" else tiny_model()
        return fitkit.fit(anna, model=model, recipe=str(path))

    return fit


def labelled(spec):
    return bool(spec.labels_for(spec.options()))


@pytest.mark.parametrize(
    "name",
    [s.name for s in REGISTRY if s.in_fit and not labelled(s) and s.name not in ("lmk2d", "identity_prior")],
)
def test_a_fit_can_use_it(fitted, name):
    stage = fitted(name).metrics["stages"][-1]
    term = stage["terms"][name]
    assert math.isfinite(term["cost"]) and term["valid"] > 0


@pytest.mark.parametrize("name", [s.name for s in REGISTRY if s.in_fit and labelled(s)])
def test_a_fit_says_that_its_photos_have_no_labels(fitted, name):
    sentence = r"energy '\w+' needs labels with '\w+', and these frames have none"
    if name == "depth_3dmm":  # whose labels are what a network says
        sentence = "energy 'depth_3dmm' compares with the depth that a network sees"
    with pytest.raises(InputError, match=sentence):
        fitted(name)


def test_a_network_inside_of_a_second_order_solver_is_told(fitted, caplog):
    fitted("sem_feat")
    said = [r.getMessage() for r in caplog.records if "may take many minutes" in r.getMessage()]
    assert said == [
        "stage 'one': energy 'sem_feat' looks at pictures and has no derivatives of its own, so that solver "
        "'levenberg_marquardt' may take many minutes; 'adam' is faster"
    ]
