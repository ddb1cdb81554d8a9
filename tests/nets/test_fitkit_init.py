"""fitkit-init: any number of views in any order, its own landmarks, weight files."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fitkit.errors import InputError
from fitkit.geometry.weak_perspective import lay_onto, weak_perspective_pose
from fitkit.models.registry import load_model
from fitkit.nets import load_predictor, net_kind, save_predictor, start_from
from fitkit.nets.fitkit_init.network import SIGMA_LIMITS, FitkitInit, FitkitInitOptions
from fitkit.nets.predictor import ViewSlot
from fitkit.observe.landmarks.builtin import load_network
from fitkit.scene.projection import project_points


@pytest.fixture(scope="module")
def model():
    return load_model("generic")


@pytest.fixture(scope="module")
def network(model):
    """Heads with large random weights, so that every output depends on every input."""
    torch.manual_seed(0)
    network = FitkitInit(model, (), FitkitInitOptions(size=32, token=24, heads=2, hidden=32)).eval()
    for head in (network.view_head, network.identity_head, network.sigma_head, network.first_pose):
        torch.nn.init.normal_(head[-1].weight, std=0.1)
    return network


def pictures(views, seed=0):
    return torch.rand(1, views, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_the_order_of_the_views_does_not_matter(network):
    images, valid = pictures(4), torch.ones(1, 4, dtype=torch.bool)
    order = torch.tensor([2, 0, 3, 1])
    one, two = network(images, valid), network(images[:, order], valid)
    assert torch.allclose(one.state.identity, two.state.identity, atol=1e-4)
    assert torch.allclose(one.identity_sigma, two.identity_sigma, atol=1e-4)
    assert torch.allclose(one.state.expression[order], two.state.expression, atol=1e-4)
    assert torch.allclose(one.state.pose.rotation[order], two.state.pose.rotation, atol=1e-4)
    assert float((one.state.identity - network(pictures(4, 5), valid).state.identity).abs().max()) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("views", [1, 2, 5])
def test_any_number_of_views_and_grey_ones_have_no_say(network, views):
    images, valid = pictures(views), torch.ones(1, views, dtype=torch.bool)
    alone = network(images, valid)
    assert alone.state.num_views == views and alone.landmarks.points.shape == (views, 68, 2)
    padded = torch.cat([images, torch.rand(1, 2, 3, 32, 32)], 1)
    beside = network(padded, torch.cat([valid, torch.zeros(1, 2, dtype=torch.bool)], 1))
    assert torch.allclose(
        alone.state.identity, beside.state.identity, atol=1e-4
    )  # other batches are summed in another order
    assert torch.allclose(alone.state.expression, beside.state.expression, atol=1e-4)
    # Two people of one batch have nothing to do with each other.
    both = network(torch.cat([images, pictures(views, 7)]), valid.expand(2, -1))
    assert (
        torch.allclose(both.state.identity[0], alone.state.identity[0], atol=1e-4)
        and both.state.subject.tolist() == [0] * views + [1] * views
    )


@torch.no_grad()
def test_the_face_lies_on_the_networks_own_landmarks(network, model):
    """Independent truth: numpy's least squares for scale and place of the projected points."""
    found = network(pictures(2), torch.ones(1, 2, dtype=torch.bool))
    pixels = project_points(model.landmark_basis, found.state).pixels.double().numpy()
    points, weight = found.landmarks.points.double().numpy(), found.landmarks.sigma.double().numpy() ** -1
    head = model.landmark_basis.points(found.state.identity[found.state.subject], found.state.expression)
    flat = (head @ found.state.pose.rotation.transpose(1, 2))[..., :2].double().numpy()
    for b in range(2):
        rows = np.concatenate([np.column_stack([flat[b][:, k], np.eye(2)[np.full(68, k)]]) for k in (0, 1)])
        w = np.tile(weight[b], 2)
        answer, *_ = np.linalg.lstsq(rows * w[:, None], np.concatenate(points[b].T) * w, rcond=None)
        expected = answer[0] * flat[b] + answer[1:]
        assert (
            answer[0] < 0 or np.abs(pixels[b] - expected).max() < 1e-2
        )  # a face laid upside down keeps a positive scale


def test_laying_points_onto_pixels_finds_the_map_that_made_them():
    points = torch.randn(3, 20, 2, dtype=torch.float64)
    pixels = 2.5 * points + torch.tensor([4.0, -7.0], dtype=torch.float64)
    scale, shift = lay_onto(points, pixels, torch.rand(3, 20, dtype=torch.float64) + 0.1)
    assert torch.allclose(scale, torch.full_like(scale, 2.5)) and torch.allclose(
        shift, shift.new_tensor([4.0, -7.0]).expand(3, 2)
    )
    assert float(lay_onto(points, -pixels, torch.ones(3, 20, dtype=torch.float64))[0].min()) > 0


def test_the_start_of_a_training_is_the_landmark_network(model):
    network = FitkitInit(model)
    start_from(network, "builtin", model)
    network.eval()
    images = torch.rand(1, 2, 3, 128, 128)
    with torch.no_grad():
        found = network(images, torch.ones(1, 2, dtype=torch.bool))
        theirs = load_network()(images[0])
    assert torch.allclose(found.landmarks.points[:, 17:], theirs.points[:, 17:68], atol=1e-2)
    assert torch.allclose(
        found.landmarks.points[:, :17], theirs.points[:, 68:], atol=1e-2
    )  # the jaw as fixed points of the skin
    assert float(found.state.identity.abs().max()) < 0.1 and float(found.state.expression.abs().max()) < 0.1
    assert bool((found.identity_sigma > 0.75 * SIGMA_LIMITS[1]).all()) and bool(
        (found.identity_sigma < SIGMA_LIMITS[1]).all()
    )
    with pytest.raises(
        InputError, match="builtin: expected a landmark network with the options .*size=32.*got .*size=128"
    ):
        start_from(FitkitInit(model, (), FitkitInitOptions(size=32)), "builtin", model)


def test_gradients_reach_all_parts(network):
    network.zero_grad()
    found = network(pictures(3), torch.ones(1, 3, dtype=torch.bool))
    (
        found.state.identity.sum()
        + found.identity_sigma.sum()
        + found.state.expression.sum()
        + found.state.pose.rotation.square().sum()
        + found.state.camera.focal.sum()
        + found.state.pose.translation.sum()
    ).backward()
    for name, modules in network.parts().items():
        assert all(
            any(float(p.grad.abs().max()) > 0 for p in m.parameters() if p.grad is not None) for m in modules
        ), name
    listed = {id(p) for modules in network.parts().values() for m in modules for p in m.parameters()}
    assert listed == {id(p) for p in network.parameters()}


def test_weight_files(network, model, tmp_path):
    path = tmp_path / "regressor.safetensors"
    save_predictor(network, "fitkit_init", path, half=False)
    again, images, valid = load_predictor(path, model), pictures(2), torch.ones(1, 2, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(again(images, valid).state.identity, network(images, valid).state.identity)
    other = FitkitInit(model, (), FitkitInitOptions(size=32, token=24, heads=2, hidden=48))
    with pytest.raises(InputError, match="these weights belong to another network"):
        start_from(other, path, model)


def test_what_the_network_refuses(model):
    assert not net_kind("fitkit_init").named_views and net_kind("mvfnet").named_views
    with pytest.raises(
        InputError, match="takes any photos in any order; expected no named 'views', got front"
    ):
        FitkitInit(model, (ViewSlot("front"),))
    with pytest.raises(InputError, match="size: expected a multiple of 32 from 32 to 2048, got 100"):
        FitkitInitOptions(size=100)
    with pytest.raises(InputError, match=r"token: expected a multiple of heads \(4\), got 30"):
        FitkitInitOptions(token=30)


def test_an_untrained_network_lays_the_mean_face_where_a_closed_form_would(model):
    """With zero angles the scale is that of the landmarks, as `weak_perspective_pose` finds it for a face
    from the front."""
    flat = model.landmark_basis.mean[None, :, :2] * torch.tensor([1.0, -1.0])
    pixels = 0.7 * flat + torch.tensor([60.0, 50.0])
    scale, shift = lay_onto(flat, pixels, torch.ones(1, 68))
    theirs, _, origin = weak_perspective_pose(model.landmark_basis.mean[None], pixels, torch.ones(1, 68))
    assert float(scale) == pytest.approx(float(theirs), rel=1e-3) and torch.allclose(shift, origin, atol=1e-2)


@torch.no_grad()
def test_gaussian_expressions_are_predicted_in_standard_deviations(network, model):
    sigma = torch.linspace(0.5, 2, model.num_expression)
    signed = FitkitInit(
        replace(model, expression_kind="gaussian", expression_sigma=sigma), (), network.options
    ).eval()
    signed.load_state_dict(network.state_dict())
    images, valid = pictures(2), torch.ones(1, 2, dtype=torch.bool)
    blend, gaussian = (n(images, valid).state.expression for n in (network, signed))
    torch.testing.assert_close(gaussian, sigma * blend)
