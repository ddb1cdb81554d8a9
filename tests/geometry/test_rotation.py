import numpy as np
import torch
from scipy.spatial.transform import Rotation

from fitkit.geometry.rotation import skew, so3_exp, so3_left_jacobian, so3_log


def vectors() -> np.ndarray:
    """Rotation vectors of all lengths that matter: zero, near zero, around the series switch, near and at
    pi."""
    rng = np.random.default_rng(0)
    axis = rng.normal(size=(60, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = np.concatenate(
        [[0, 1e-12, 1e-8, 9.9e-5, 1.01e-4, 1e-3, np.pi - 1e-6, np.pi - 1e-3], rng.uniform(0, np.pi, 52)]
    )
    return axis * angle[:, None]


def test_skew_is_the_cross_product():
    a, b = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close((skew(a) @ b[..., None])[..., 0], torch.linalg.cross(a, b))


def test_exp_and_log_equal_scipy():
    w = vectors()
    expected = Rotation.from_rotvec(w).as_matrix()
    np.testing.assert_allclose(so3_exp(torch.from_numpy(w)).numpy(), expected, atol=1e-14)
    np.testing.assert_allclose(
        so3_log(torch.from_numpy(expected)).numpy(), Rotation.from_matrix(expected).as_rotvec(), atol=1e-9
    )


def test_log_at_pi_is_one_of_the_two_axes():
    for axis in np.eye(3).tolist() + [[0.6, 0.8, 0.0], [-1 / np.sqrt(3)] * 3]:
        R = torch.from_numpy(Rotation.from_rotvec(np.pi * np.array(axis)).as_matrix())
        w = so3_log(R)
        assert abs(float(w.norm()) - np.pi) < 1e-7
        torch.testing.assert_close(so3_exp(w), R, atol=1e-7, rtol=0)


def test_single_precision_stays_at_its_own_accuracy():
    w = torch.from_numpy(vectors()).float()
    expected = Rotation.from_rotvec(w.double().numpy()).as_matrix()
    np.testing.assert_allclose(so3_exp(w).numpy(), expected, atol=4e-7)  # a few units in the last place of 1


def test_derivatives_including_zero_and_the_switch():
    w = torch.from_numpy(
        np.concatenate([np.zeros((1, 3)), vectors()[3:6], [[0.3, -1.2, 0.5]]])
    ).requires_grad_()
    assert torch.autograd.gradcheck(so3_exp, (w,), eps=1e-7, atol=1e-5)
    jacobian = torch.autograd.functional.jacobian(so3_exp, torch.zeros(3, dtype=torch.float64))
    for k, unit in enumerate(torch.eye(3, dtype=torch.float64)):
        assert torch.equal(jacobian[..., k], skew(unit))


def test_left_jacobian_is_the_derivative_of_exp():
    w = torch.from_numpy(np.concatenate([np.zeros((1, 3)), [[9e-3, 2e-3, 0], [0, 1.1e-2, 0]], vectors()[3:]]))
    by_vector = torch.func.vmap(torch.func.jacfwd(so3_exp))(w)  # [N, 3, 3, 3]
    spun = skew(so3_left_jacobian(w).transpose(1, 2)) @ so3_exp(w)[:, None]  # by each component
    torch.testing.assert_close(spun.permute(0, 2, 3, 1), by_vector, rtol=1e-7, atol=1e-9)
    single = so3_left_jacobian(w.float())
    torch.testing.assert_close(single, so3_left_jacobian(w).float(), rtol=0, atol=2e-6)


def test_batches_of_any_shape():
    w = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    assert so3_exp(w).shape == (2, 4, 3, 3)
    torch.testing.assert_close(
        so3_log(so3_exp(w)),
        torch.from_numpy(Rotation.from_rotvec(w.reshape(-1, 3).double().numpy()).as_rotvec())
        .float()
        .reshape(2, 4, 3),
        atol=1e-5,
        rtol=0,
    )
