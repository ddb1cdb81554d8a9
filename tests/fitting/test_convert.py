"""A result with another face model: the same face, in other coefficients."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_joints, tiny_model, tiny_result, tiny_skinned_model, tiny_state, with_joints

import fitkit
from fitkit.errors import InputError
from fitkit.evaluate.distances import mean, scan_to_surface, symmetric
from fitkit.export.texture import texture_size
from fitkit.fitting.convert import convert
from fitkit.fitting.detail import personal_model
from fitkit.fitting.report import BarsReport, Finding, Verdict
from fitkit.fitting.retarget import retarget
from fitkit.geometry.rotation import so3_exp
from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.models.formats.ict import import_ict
from fitkit.models.registry import load_model

ICT = Path(__file__).resolve().parents[3] / "shared/data/ict/ict_facekit.npz"


@pytest.fixture(autouse=True)
def models(tmp_path_factory, monkeypatch):
    """A models folder for all tests of this file: correspondences are found once."""
    folder = tmp_path_factory.getbasetemp() / "models of test_convert"
    monkeypatch.setenv("FITKIT_MODELS", str(folder))


def elsewhere(model, turn=(0.06, -0.04, 0.03), shift=(3.0, -20.0, 11.0)):
    """The same model under another name: its vertices in another order, its head frame turned and moved."""
    order = torch.randperm(model.num_vertices, generator=torch.Generator().manual_seed(0))
    rotation, back = so3_exp(torch.tensor(turn)).to(model.mean), order.argsort()
    changes = {name: getattr(model, name)[order] for name in ("region", "skin", "face")}
    changes |= {n: getattr(model, n)[:, order] @ rotation.T for n in ("identity_basis", "expression_basis")}
    moved = model.mean[order] @ rotation.T + torch.tensor(shift).to(model.mean)
    if model.num_joints:
        changes["joint_regressor"] = model.joint_regressor[:, order]
        changes["skinning_weights"] = model.skinning_weights[order]
        changes["pose_basis"] = None
    return replace(
        model, name="elsewhere", mean=moved, triangles=back[model.triangles], albedo_mean=None, **changes
    )


def posed(state, model, displacement=None):
    """Vertices of all frames in those of the cameras, [B, V, 3] mm."""
    return state.posed(model if displacement is None else personal_model(model, state, displacement))


def apart(one, model, other, other_model):
    """Mean distance of two surfaces, from the skin of each face to the other surface, both ways, mm."""
    one, other = one.double().numpy(), other.double().numpy()
    there = scan_to_surface(one[model.face & model.skin], other, other_model.triangles.numpy())
    back = scan_to_surface(other[other_model.face & other_model.skin], one, model.triangles.numpy())
    return symmetric(there, back)


def random_state(model, seed, shapes=6):
    """A random person with some random blend shapes on."""
    state, gen = tiny_state(model, 1, seed=seed, expression=0.0), torch.Generator().manual_seed(seed)
    on = torch.randperm(model.num_expression, generator=gen)[:shapes]
    state.expression[0, on] = torch.rand(shapes, generator=gen)
    return state


# ---- the same model in another frame: coefficients are known ----


@pytest.mark.parametrize("expression", ["names", "surface"])
def test_the_same_model_elsewhere_gets_the_same_coefficients(expression):
    source = tiny_model()
    state, target = tiny_state(source, views=3), elsewhere(source)
    found = retarget(state, source, target, expression=expression)
    assert float((found.state.identity - state.identity).abs().max()) < 0.05
    assert float((found.state.expression - state.expression).abs().max()) < (
        1e-6 if expression == "names" else 0.02
    )
    away = posed(found.state, target) - posed(state, source)[:, order_of(source)]
    assert float(away.norm(dim=2)[:, target.face].max()) < 0.5
    assert found.neutral.mean < 0.02 and found.views.mean < 0.1 and found.method == expression
    assert float(found.displacement.abs().max()) < 0.2


def order_of(model):
    return torch.randperm(model.num_vertices, generator=torch.Generator().manual_seed(0))


def test_joints_follow_the_surface():
    source = replace(tiny_skinned_model(), pose_basis=None)
    target = elsewhere(source, turn=(0.0, 0.0, 0.0))
    state = tiny_state(source, views=2, expression=0.0).replace(joints=tiny_joints(source, 2, 0.1))
    found = retarget(state, source, target)
    assert found.method == "surface"  # names say nothing of joints
    away = posed(found.state, target) - posed(state, source)[:, order_of(source)]
    assert float(away.norm(dim=2)[:, target.face].mean()) < 0.25
    jaw = source.joint_names.index("jaw")
    assert float((found.state.joints - state.joints)[:, jaw, 0].abs().max()) < 0.05
    named = retarget(state, source, target, expression="names")
    assert named.left_out == source.joint_names and torch.equal(named.state.expression, state.expression)


def test_the_light_turns_with_the_head_frame():
    source = tiny_model()
    target, state = elsewhere(source), tiny_state(source, views=2)
    state = state.replace(illumination=torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0)))
    found = retarget(state, source, target).state
    turn = found.pose.rotation.transpose(1, 2) @ state.pose.rotation  # from the old head frame to the new one
    normal = torch.nn.functional.normalize(torch.randn(50, 3), dim=1)
    before, after = sh_basis(normal) @ state.illumination, sh_basis(normal @ turn[0].T) @ found.illumination
    assert torch.allclose(before, after, atol=1e-4)


# ---- faces of models that differ ----


def test_a_displacement_is_part_of_the_face():
    source, target = tiny_model(0), replace(tiny_model(1), name="other")
    state = tiny_state(source, views=1)
    bump = 3.0 * torch.exp(-(source.mean - source.mean[source.face].mean(0)).square().sum(1) / 40**2)
    truth = posed(state, source, bump)[0]
    for detail, least, most in ((True, 0.0, 0.25), (False, 0.3, 3.0)):
        found = retarget(state, source, target, bump, "names", detail)
        assert (found.displacement is not None) == detail
        assert least < apart(truth, source, posed(found.state, target, found.displacement)[0], target) < most
        assert found.neutral.mean == pytest.approx(found.coefficients.mean) or detail
        assert found.coefficients.mean > 0.3


def skinned_like_generic():
    """`generic` bent to another mean, in another frame, with joints, and with expressions without names."""
    other = elsewhere(load_model("generic"))
    bent = other.mean + 3 * torch.sin(other.mean.roll(1, 1) / 30)
    return replace(
        with_joints(other.with_mean(bent)),
        name="skinned",
        expression_kind="gaussian",
        expression_names=tuple(f"e{k}" for k in range(other.num_expression)),
    )


@pytest.mark.slow
def test_generic_to_a_skinned_model():
    source, target = load_model("generic"), skinned_like_generic()
    for seed in range(2):
        state = random_state(source, seed)
        found = retarget(state, source, target)
        other = posed(found.state, target, found.displacement)[0]
        assert apart(posed(state, source)[0], source, other, target) < 0.4
        assert found.method == "surface" and found.views.mean < 0.4
        bare = retarget(state, source, target, detail=False)
        assert found.coefficients.mean < 0.8 and bare.views.mean < 0.8


@pytest.mark.slow
def test_generic_to_ict_and_back():
    if not ICT.is_file():
        pytest.skip("the shared test data are not here")
    source, target = load_model("generic"), import_ict(ICT)
    for seed in range(2):
        state = random_state(source, seed)
        found = retarget(state, source, target)
        back = retarget(found.state, target, source, found.displacement)
        assert torch.allclose(back.state.expression, state.expression, atol=1e-6)
        returned = posed(back.state, source, back.displacement)[0]
        assert apart(posed(state, source)[0], source, returned, source) < 0.4
        assert found.views.mean < 0.4 and back.views.mean < 0.4


@pytest.mark.slow
def test_ict_to_generic():
    if not ICT.is_file():
        pytest.skip("the shared test data are not here")
    source, target = import_ict(ICT), load_model("generic")
    found = retarget(random_state(source, 0), source, target)
    assert found.coefficients.mean < 0.8 and found.views.mean < 0.4


def test_frames_that_share_an_expression_share_it_afterwards():
    source, target = tiny_model(0), replace(tiny_model(1), name="other")
    state = tiny_state(source, views=4)
    state = state.replace(expression=state.expression[[0, 1, 0, 1]])
    found = retarget(state, source, target, expression="surface").state.expression
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
    assert float((found[0] - found[1]).abs().max()) > 0.01


# ---- expressions by name ----


def renamed(model, names):
    return replace(model, name="renamed", expression_names=tuple(names))


def test_names_carry_weights_over():
    source = tiny_model()
    spelled = [n.replace("_L", "Left").replace("_R", "Right") for n in source.expression_names]
    state = tiny_state(source, views=2)
    found = retarget(state, source, renamed(tiny_model(1), spelled))
    assert found.method == "names" and torch.equal(found.state.expression, state.expression)


def test_without_all_names_the_surface_says():
    source = tiny_model()
    target = renamed(tiny_model(1), ("jawOpen", "unknown", *source.expression_names[2:]))
    state = tiny_state(source, views=1)
    assert retarget(state, source, target).method == "surface"
    named = retarget(state, source, target, expression="names")
    assert named.left_out == ("mouthSmile_L",) and float(named.state.expression[0, 1]) == 0
    off = state.replace(expression=state.expression.index_fill(1, torch.tensor([1]), 0.0))
    assert retarget(off, source, target).method == "names"


def test_weights_by_surface_stay_within_their_range():
    source, target = tiny_model(), elsewhere(tiny_model())
    state = tiny_state(source, views=1, expression=0.0)
    state.expression[0, 0] = -0.6  # the jaw is pressed up, which no weight from 0 to 1 does
    target = renamed(target, [f"e{i}" for i in range(6)])
    found = retarget(state, source, target).state.expression
    assert float(found.min()) > -1e-5 and float(found.max()) < 1


def test_what_cannot_be_asked_for():
    source = tiny_model()
    state = tiny_state(source, views=1)
    nameless = renamed(tiny_model(1), [f"e{i}" for i in range(6)])
    with pytest.raises(InputError, match="'tiny' and 'renamed' have no blend shapes of the same name"):
        retarget(state, source, nameless, expression="names")
    with pytest.raises(InputError, match="expression: expected auto, names, surface, got 'name'"):
        retarget(state, source, nameless, expression="name")
    with pytest.raises(InputError, match="convert: the face of tiny is one of model 'tiny' already"):
        convert(tiny_result(), tiny_model(1))
    with pytest.raises(InputError, match="convert: expected a FitResult"):
        convert("anna/fitkit", source)
    with pytest.raises(InputError, match="model: expected a FaceModel, e.g. from fitkit.load_model, got str"):
        convert(tiny_result(), "ict")


# ---- results ----


@pytest.fixture
def fitted():
    """A result with a verdict."""
    result = tiny_result()
    found = (
        Finding("left_out", "note", "left out: a photo"),
        Finding("part_off", "doubtful", "an eye", "view1"),
    )
    report = replace(
        result.report,
        status="doubtful",
        error_bars=BarsReport(0.4, 0.5, 0.9, 1.25, 0.7, 1.0, {"lmk2d": 1.0}),
        verdict=Verdict("said", 0.4, 0.6, found),
    )
    return replace(result, report=report)


def test_what_holds_is_measured_anew_and_the_rest_left_out(fitted):
    other = fitkit.convert(fitted, replace(tiny_model(1), name="other"))
    report, before = other.report, fitted.report
    assert (report.model, report.recipe, report.stages) == ("other", before.recipe, ())
    assert report.identity.rms == pytest.approx(float(other.state.identity.square().mean().sqrt()))
    assert 0 < report.reprojection_px < 3 and report.views[0].flow_sigma is None
    assert report.conversion.source == "tiny" and report.conversion.expression == "names"
    codes = [f.code for f in report.verdict.findings]
    assert codes == ["part_off", "left_out", "converted"] and other.status == "doubtful"
    assert other.warnings == ("an eye",) and other.notes[-1].startswith("converted from face model 'tiny'")
    assert other.identity_covariance is None and other.recipe["of"] == fitted.recipe
    assert other.landmarks is fitted.landmarks and other.subject is fitted.subject


def test_what_the_recipe_says_of_the_maps_holds_for_the_converted_result(fitted):
    said = {"masks": {"texture": "none", "weights": ""}, "texture": {"size": 2048}}
    target = replace(tiny_model(1), name="other")
    other = convert(replace(fitted, recipe={"name": "mine", "seed": 1} | said), target)
    assert {key: other.recipe.get(key) for key in said} == said and "seed" not in other.recipe
    assert other.texture_mask(0) is None and texture_size(other) == 2048
    assert texture_size(convert(fitted, target)) == 1024


def test_error_bars_are_carried_over_and_hold_the_conversion(fitted):
    target = elsewhere(tiny_model())
    other = convert(fitted, target, detail=False)
    same = fitted.vertex_sigma[order_of(target)]
    assert torch.allclose(other.vertex_sigma[target.face], same[target.face], atol=0.05)
    assert torch.allclose(other.vertex_sigma, same, atol=0.5)  # of the border, those beside it
    bars = other.report.error_bars
    assert bars.face_mean_mm == pytest.approx(float(other.vertex_sigma[target.face].mean()))
    assert (bars.inflation, bars.noise) == (1.25, {"lmk2d": 1.0})
    far = convert(fitted, replace(tiny_model(1), name="other"), detail=False)
    assert float((far.vertex_sigma - fitted.vertex_sigma).mean()) > 0.1  # coefficients alone are farther off
    none = convert(replace(fitted, vertex_sigma=None), target)
    assert none.vertex_sigma is None and none.report.error_bars is None


def test_a_face_that_is_far_off_is_doubtful(fitted):
    fitted = replace(fitted, report=replace(fitted.report, status="ok", verdict=Verdict()))
    few = replace(tiny_model(1), name="few")
    few = replace(few, identity_basis=0.01 * few.identity_basis)
    other = convert(fitted, few, detail=False)
    assert other.status == "doubtful" and "mm from that with 'tiny' in the mean" in other.warnings[0]
    assert convert(fitted, few).status == "ok"  # the displacement makes up for it


def test_a_converted_result_is_saved_and_read_back(fitted, tmp_path):
    target = replace(tiny_skinned_model(1), name="other")
    other = convert(fitted, target)
    other.save(tmp_path / "out")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["conversion"]["neutral_mean_mm"] == other.report.conversion.neutral_mean_mm
    assert metrics["stages"] == [] and "detail" not in metrics and metrics["model"] == "other"
    again = fitkit.load_result(tmp_path / "out", model=target)
    assert torch.allclose(again.vertices, other.vertices, atol=1e-4)
    assert again.report.conversion == other.report.conversion
    assert np.allclose(np.load(tmp_path / "out/landmarks.npy"), other.landmarks3d, atol=1e-4)


def test_mean_distance_of_the_report_is_that_of_the_surfaces(fitted):
    """Against distances that do not ask what faces where."""
    target = replace(tiny_model(1), name="other")
    other = convert(fitted, target)
    one, two = posed(fitted.state, fitted.model)[0], posed(other.state, other.personal_model)[0]
    there = mean(scan_to_surface(one[fitted.model.face].numpy(), two.numpy(), target.triangles.numpy()))
    assert other.report.conversion.views_mean_mm == pytest.approx(there, rel=0.5)
