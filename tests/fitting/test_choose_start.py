"""A network's prediction as the start of a fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_model, tiny_state

from fitkit.errors import InputError, MissingWeightsError
from fitkit.fitting import network_start
from fitkit.fitting.cameras import CameraKnowledge
from fitkit.fitting.choose_start import align_to_landmarks, landmark_outliers
from fitkit.fitting.initialize import initial_state, landmark_start, lift, line_of_sight, to_photos
from fitkit.fitting.network_start import (
    Predicted,
    carry_expression,
    carry_identity,
    predict_views,
    regressor_start,
    start_of,
)
from fitkit.fitting.predict import predict
from fitkit.fitting.recipe import CameraOptions, InitOptions, load_recipe
from fitkit.fitting.report import notes
from fitkit.fitting.run import fit, fit_observed
from fitkit.geometry.rotation import rotation_between_axis_and
from fitkit.io.subject import load_subject
from fitkit.models.registry import load_model
from fitkit.nets import NETS, NetKind, load_predictor, save_predictor
from fitkit.nets.fitkit_init.network import FitkitInit, FitkitInitOptions
from fitkit.nets.mvfnet.network import MvfNet, MvfNetOptions
from fitkit.nets.predictor import Prediction, ViewSlot
from fitkit.nets.weak_perspective import to_orthographic
from fitkit.observe.crop import CropOptions, crop_views
from fitkit.observe.landmarks.detectors import detect_landmarks
from fitkit.scene.projection import project_points


@pytest.fixture
def seen(anna):
    subject = load_subject(anna)
    found, _ = detect_landmarks(subject, "files")
    return subject, found


@pytest.fixture(scope="module")
def truth(_rendered):
    """A good fit of anna, whose state stands for a network that is right."""
    return fit(_rendered, recipe="landmarks")


def predicted_from(result, subject, found, order=(0, 1, 2), kind="orthographic"):
    views = [subject.views[i] for i in order]
    crops = crop_views(
        (v.image for v in views),
        (v.mask for v in views),
        found.select(order),
        CropOptions(1.5, 0.0, 128, 128),
    )
    state = result.state if kind == "perspective" else to_orthographic(result.state, result.model)
    state = state.replace(
        subject=state.subject[list(order)],
        expression=state.expression[list(order)],
        pose=state.pose.select(list(order)),
        camera=state.camera.select(list(order)).scaled(crops.scale, crops.offset),
        illumination=state.illumination[list(order)],
    )
    return Predicted(Prediction(state), crops, tuple(order), result.model)


def crops_of(subject, found):
    return crop_views((v.image for v in subject.views), (v.mask for v in subject.views), found)


def begun(predicted, crops, model):
    """The start from a prediction, in px of the crops."""
    return start_of(predicted, landmark_start(model, crops), crops, model)


def lifted(start, subject, crops, model, options):
    return lift(start, CameraKnowledge.of(subject.views, crops, options), model)[0]


@pytest.mark.parametrize("kind", ["perspective", "orthographic"])
def test_a_fit_that_starts_from_the_right_state_starts_there(truth, seen, kind):
    subject, found = seen
    crops = crops_of(subject, found)
    start = begun(predicted_from(truth, subject, found), crops, truth.model)
    state = lifted(start, subject, crops, truth.model, CameraOptions(kind=kind))
    assert state.camera.kind == kind and torch.equal(state.identity, truth.state.identity)
    size = float((found.points.amax(1) - found.points.amin(1)).max())
    fitted = project_points(truth.model.landmark_basis, truth.state).pixels
    started = (
        project_points(truth.model.landmark_basis, state).pixels / crops.scale[:, None, None]
        + crops.offset[:, None]
    )
    assert (
        float((started - fitted).norm(dim=-1).mean()) < 0.02 * size
    )  # the assumed distance differs, and so does the perspective
    plain, _ = initial_state(truth.model, subject.views, crops, CameraOptions(kind=kind))
    unguided = (
        project_points(truth.model.landmark_basis, plain).pixels / crops.scale[:, None, None]
        + crops.offset[:, None]
    )
    # A scaled-orthographic camera shows neither start the perspective of the photos, so there the gain is
    # smaller.
    assert float((started - fitted).norm(dim=-1).mean()) < (0.5 if kind == "perspective" else 0.8) * float(
        (unguided - fitted).norm(dim=-1).mean()
    )


def test_a_perspective_prediction_of_a_known_scene_starts_a_fit_at_that_scene(truth, seen):
    subject, found = seen
    crops = crops_of(subject, found)
    # Far from the distance that the recipe assumes: what stands in the start can only be from the prediction.
    options = CameraOptions(distance_mm=2.5 * CameraOptions().distance_mm)
    start = begun(predicted_from(truth, subject, found, kind="perspective"), crops, truth.model)
    state = to_photos(lifted(start, subject, crops, truth.model, options), crops)
    assert torch.allclose(state.camera.focal, truth.state.camera.focal, rtol=0.02)
    assert torch.allclose(state.pose.rotation, truth.state.pose.rotation, atol=1e-3)
    assert torch.allclose(state.pose.translation, truth.state.pose.translation, rtol=0.02, atol=2.0)
    assert torch.equal(state.identity, truth.state.identity) and torch.equal(
        state.expression, truth.state.expression
    )
    fitted, started = (project_points(truth.model.landmark_basis, s).pixels for s in (truth.state, state))
    assert float((started - fitted).norm(dim=-1).max()) < 0.3
    flat = begun(predicted_from(truth, subject, found), crops, truth.model)
    assert bool(flat.distance.isnan().all())
    other = to_photos(lifted(flat, subject, crops, truth.model, options), crops)
    assert float((other.camera.focal / truth.state.camera.focal - 1).abs().min()) > 0.3


def test_a_known_focal_length_is_believed_more_than_the_network(truth, seen):
    subject, found = seen
    views = tuple(v.replace(focal_px=700.0) for v in subject.views)
    crops = crops_of(subject, found)
    start = begun(predicted_from(truth, subject, found, kind="perspective"), crops, truth.model)
    state = to_photos(
        lifted(start, replace(subject, views=views), crops, truth.model, CameraOptions()), crops
    )
    assert torch.allclose(state.camera.focal, torch.full_like(state.camera.focal, 700.0))


class Perspective(FitkitInit):
    """The network that comes with fitkit, its scene as perspective cameras see it from 700 mm away."""

    camera_kind = "perspective"

    def forward(self, images, valid, padded=False):
        said = super().forward(images, valid, padded)
        flat = said.state
        scale = flat.camera.focal / flat.camera.REFERENCE_DEPTH
        focal, middle = 700.0 * scale, self.points_mean.mean(0)[:, None]
        shift = scale[:, None] * flat.pose.translation[:, :2]
        position = line_of_sight(middle, scale, flat.pose.rotation, shift, focal, flat.camera.aspect)
        rotation = rotation_between_axis_and(position) @ flat.pose.rotation
        pose = replace(flat.pose, rotation=rotation, translation=position - (rotation @ middle)[..., 0])
        return replace(
            said, state=flat.replace(pose=pose, camera=replace(flat.camera, focal=focal, kind="perspective"))
        )


def test_a_fit_starts_from_a_perspective_network(anna, tmp_path, monkeypatch):
    monkeypatch.setitem(
        NETS, "perspective", lambda: NetKind(FitkitInitOptions, Perspective, named_views=False)
    )
    model = load_model("generic")
    shipped = load_predictor(network_start.shipped_weights(), model)
    network = Perspective(model, (), shipped.options)
    network.load_state_dict(shipped.state_dict())
    save_predictor(network, "perspective", tmp_path / "perspective.safetensors")
    init = {"source": "regressor", "weights": str(tmp_path / "perspective.safetensors")}
    near = fit(anna, recipe=load_recipe("landmarks", changes={"init": init}))
    flat = fit(anna, recipe=load_recipe("landmarks", changes={"init": {"source": "regressor"}}))
    assert near.metrics["start"]["source"] == "regressor" and near.status == flat.status
    apart = (near.vertices - flat.vertices).norm(dim=-1)[:, model.face]
    assert float(apart.mean()) < 1.0  # mm: both end at the same face
    said = predict(anna, tmp_path / "perspective.safetensors")
    assert said.state.camera.kind == "perspective"


def test_views_without_a_prediction_start_in_closed_form(truth, seen):
    subject, found = seen
    crops = crops_of(subject, found)
    start = begun(predicted_from(truth, subject, found, (2, 0)), crops, truth.model)
    assert start.predicted.tolist() == [True, False, True]
    state = lifted(start, subject, crops, truth.model, CameraOptions())
    plain, _ = initial_state(truth.model, subject.views, crops, CameraOptions())
    assert (
        torch.allclose(state.pose.rotation[1], plain.pose.rotation[1], atol=1e-5)
        and float(state.expression[1].abs().max()) == 0
    )
    assert torch.equal(state.expression[2], truth.state.expression[2])


def test_another_face_model_gets_pose_shape_and_expressions_by_name(truth, seen):
    subject, found = seen
    source = truth.model
    # The same model under another name, its shapes in another order and half as strong, its head frame moved.
    order = torch.randperm(source.num_expression, generator=torch.Generator().manual_seed(0))
    moved = source.mean + torch.tensor([3.0, -20.0, 11.0])
    other = replace(
        source,
        name="other",
        mean=moved,
        expression_basis=source.expression_basis[order],
        expression_names=tuple(source.expression_names[i] for i in order),
    )
    predicted = predicted_from(truth, subject, found)
    crops = crops_of(subject, found)
    start = begun(predicted, crops, other)
    assert torch.equal(start.expression, truth.state.expression[:, order])
    own = source.landmark_basis.points(truth.state.identity, torch.zeros(1, source.num_expression))
    carried = other.landmark_basis.points(
        start.identity, torch.zeros(1, source.num_expression)
    ) - torch.tensor([3.0, -20.0, 11.0])
    assert float((carried - own).norm(dim=-1).mean()) < 0.6 * float(
        (source.landmark_basis.mean - own).norm(dim=-1).mean()
    )
    straight = begun(predicted, crops, source)
    assert float((start.rotation - straight.rotation).abs().max()) < 0.05
    fewer = replace(
        other,
        expression_basis=other.expression_basis[:5],
        expression_names=("jawOpen", *other.expression_names[1:4], "unknown"),
    )
    carried = carry_expression(truth.state.expression, source, fewer)
    assert (
        torch.equal(carried[:, 0], truth.state.expression[:, source.expression_names.index("jawOpen")])
        and float(carried[:, 4].abs().max()) == 0
    )


def test_the_identity_of_points_that_a_model_made(truth):
    """Independent truth: the points that the ridge regression gives lie nearer to the wanted ones than those
    of any nearby coefficients, prior included."""
    model = truth.model
    torch.manual_seed(0)
    wanted = torch.randn(1, model.num_identity) * 0.7
    points = model.landmark_basis.points(wanted, torch.zeros(1, model.num_expression))
    found = carry_identity(points + torch.tensor([5.0, 6.0, 7.0]), model)

    def cost(a):
        p = model.landmark_basis.points(a, torch.zeros(1, model.num_expression))
        off = (p - p.mean(1, keepdim=True)) - (points - points.mean(1, keepdim=True))
        return float(off.square().sum() / network_start.POINT_MM**2 + a.square().sum())

    # The similarity turns the points a little before they are compared, so the minimum is met up to that
    # turn.
    least = cost(found)
    assert least < cost(torch.zeros_like(found)) / 5
    assert all(cost(found + 0.3 * torch.randn_like(found)) > least for _ in range(10))


@pytest.mark.slow
def test_the_better_start_is_taken_and_named(anna, tmp_path):
    torch.manual_seed(0)
    model, path = load_model("generic"), tmp_path / "net.safetensors"
    network = FitkitInit(model, (), FitkitInitOptions(size=32))  # knows nothing: its landmarks lie anywhere
    save_predictor(network, "fitkit_init", path)
    result = fit(anna, recipe="landmarks", overrides=["init.source=auto", f"init.weights={path}"])
    start = result.metrics["start"]
    assert (
        start["source"] == "landmarks"
        and start["cost"]["landmarks"] < start["cost"]["regressor"]
        and start["iterations"] > 0
    )
    plain = fit(anna, recipe="landmarks", overrides=["init.source=landmarks"])
    assert torch.equal(plain.state.identity, result.state.identity) and plain.metrics["start"] == {
        "source": "landmarks",
        "iterations": start["iterations"],
    }
    forced = fit(anna, recipe="landmarks", overrides=["init.source=regressor", f"init.weights={path}"])
    assert forced.metrics["start"]["source"] == "regressor"


def test_only_points_far_from_the_state_are_stray_and_never_most_of_a_view(truth, seen):
    _, found = seen
    crops = crop_views((v.image for v in truth.subject.views), (v.mask for v in truth.subject.views), found)
    state = truth.state.replace(camera=truth.state.camera.scaled(crops.scale, crops.offset))
    assert not bool(landmark_outliers(state, crops, truth.model).any())
    size = (crops.landmarks.points.amax(1) - crops.landmarks.points.amin(1)).prod(-1).sqrt()
    moved = crops.landmarks.points.clone()
    moved[0, [3, 30, 48, 60]] += 0.4 * size[0]
    moved[1, [30, 48]] += 0.05 * size[1]  # no worse than a poor detector
    moved[2, 10:60] += 0.4 * size[2]  # then the state is wrong
    stray = landmark_outliers(
        state, replace(crops, landmarks=replace(crops.landmarks, points=moved)), truth.model
    )
    assert stray[0].nonzero()[:, 0].tolist() == [3, 30, 48, 60] and not bool(stray[1:].any())
    few = crops.landmarks.valid.clone()
    few[0, :27], few[0, 31:48], few[0, 52:60] = False, False, False  # 16 are left, or 11
    for gone, count in (
        (61, 3),
        (67, 0),
    ):  # without the three or more that stray 10 would do, and 7 would not
        few[0, 61:gone] = False
        marks = replace(crops.landmarks, points=moved, valid=few)
        left = int(few[0].sum()) - 3
        named = int(landmark_outliers(state, replace(crops, landmarks=marks), truth.model)[0].sum())
        assert named == count and (left >= 8) == (count > 0)


def test_a_predicted_face_is_laid_onto_its_landmarks(truth, seen):
    subject, found = seen
    crops = crops_of(subject, found)
    start = begun(predicted_from(truth, subject, found), crops, truth.model)
    good = align_to_landmarks(start, crops, truth.model)
    off = replace(
        start,
        scale=1.2 * start.scale,
        origin=start.origin + 15.0,
        predicted=torch.tensor([True, True, False]),
    )
    back = align_to_landmarks(off, crops, truth.model)
    assert torch.allclose(back.scale[:2], good.scale[:2], rtol=1e-4) and torch.allclose(
        back.origin[:2], good.origin[:2], atol=1e-2
    )
    assert torch.equal(back.scale[2], off.scale[2]) and torch.equal(back.origin[2], off.origin[2])
    few = crops.landmarks.valid.clone()
    few[0, 24:] = False
    scarce = align_to_landmarks(
        off, replace(crops, landmarks=replace(crops.landmarks, valid=few)), truth.model
    )
    assert torch.equal(scarce.origin[0], off.origin[0]) and torch.equal(scarce.origin[1], back.origin[1])
    distance = (start.scale / good.scale - 1).abs()
    assert float(distance.max()) < 0.1  # the fit that stands for the network had seen the same points


@pytest.mark.slow
def test_the_shipped_network_finds_wrong_landmarks(anna, truth, seen):
    subject, found = seen
    points = found.points.clone()
    low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
    wrong = [1, 8, 20, 24, 30, 33, 37, 40, 43, 46, 48, 50, 54, 57, 60, 64]
    points[:, wrong] = high + low - points[:, wrong]  # on the other side of the face
    good = project_points(truth.model.landmark_basis, truth.state).pixels
    size = (high - low)[:, 0].prod(-1).sqrt()
    result, error = {}, {}
    for start in ("landmarks", "regressor", "auto"):
        recipe = load_recipe("landmarks", (), {"init": {"source": start}})
        result[start] = fit_observed(subject, replace(found, points=points), truth.model, recipe)
        away = (
            (project_points(truth.model.landmark_basis, result[start].state).pixels - good)
            .norm(dim=-1)[:, 17:]
            .mean(1)
        )
        error[start] = float((away / size).max())
    assert error["regressor"] < 0.03 and error["auto"] < 0.03 and error["landmarks"] > 2 * error["auto"]
    stray = result["auto"].metrics["start"]["stray"]
    assert all(8 <= n <= 16 for n in stray)  # those near the middle of the face move little
    assert any(
        f"view {subject.views[0].name}: {stray[0]} of its landmarks lie far from where the network sees them"
        in w
        for w in notes(result["auto"].metrics)
    )
    assert [int(v) for v in result["auto"].landmarks.valid.sum(1)] == [68 - n for n in stray]
    assert [s["name"] for s in result["regressor"].metrics["stages"]] == ["shape", "landmarks"]


def test_what_cannot_start_a_fit(seen, tmp_path, monkeypatch):
    subject, found = seen
    model, crops = load_model("generic"), crops_of(subject, found)
    with pytest.raises(InputError, match="none.safetensors: not readable as the weights of a regressor"):
        regressor_start(
            subject, found, crops, model, InitOptions("regressor", str(tmp_path / "none.safetensors"))
        )
    back = MvfNet(model, (ViewSlot("back", (120.0, 180.0)),), MvfNetOptions(size=32, width=0.05)).eval()
    with pytest.raises(InputError, match="none of its photos fits a view of the network"):
        predict_views(back, model, subject, found)

    def gone(name):
        raise InputError(f"{name}: gone")

    monkeypatch.setattr(network_start, "asset_path", gone)
    with pytest.raises(
        MissingWeightsError,
        match="fitkit-init.safetensors, which come with fitkit, are missing; install fitkit again",
    ):
        regressor_start(subject, found, crops, model, InitOptions("regressor"))


def test_the_network_is_read_once(seen, monkeypatch):
    subject, found = seen
    crops, own, reads = crops_of(subject, found), replace(load_model("generic")), []
    monkeypatch.setattr(
        network_start, "load_predictor", lambda *args: reads.append(args) or load_predictor(*args)
    )
    first, second = (regressor_start(subject, found, crops, own, InitOptions("regressor")) for _ in range(2))
    assert len(reads) == 1 and torch.equal(first.identity, second.identity)


def test_a_network_with_named_views_takes_one_photo_for_each(seen):
    subject, found = seen
    model = load_model("generic")
    torch.manual_seed(0)
    network = MvfNet(
        model,
        (ViewSlot("front", (-15.0, 15.0)), ViewSlot("right", (20.0, 70.0))),
        MvfNetOptions(size=32, width=0.05),
    ).eval()
    got = predict_views(network, model, subject, found)
    assert len(got.order) == 2 and got.prediction.state.num_views == 2 and len(set(got.order)) == 2
    assert np.isfinite(got.prediction.state.pose.translation.numpy()).all()


def test_tiny_models_too():
    model = tiny_model()
    state = tiny_state(model, 2)
    points = model.landmark_basis.points(state.identity, torch.zeros(1, model.num_expression))
    found = carry_identity(points, model)
    again = model.landmark_basis.points(found, torch.zeros(1, model.num_expression))
    centred = (again - again.mean(1, keepdim=True)) - (points - points.mean(1, keepdim=True))
    assert float(centred.norm(dim=-1).mean()) < 0.5 * float(
        (model.landmark_basis.mean - points).norm(dim=-1).mean()
    )


def test_names_of_gaussian_coefficients_say_nothing():
    source = tiny_model()
    weights = torch.rand(3, source.num_expression)
    signed = replace(source, name="signed", expression_kind="gaussian")
    assert torch.equal(carry_expression(weights, source, replace(source, name="other")), weights)
    for one, other in ((source, signed), (signed, source), (signed, replace(signed, name="other"))):
        assert float(carry_expression(weights, one, other).abs().max()) == 0
