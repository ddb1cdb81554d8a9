import numpy as np
import scipy.special
import torch

from fitkit.geometry.spherical_harmonics import sh_basis


def sphere(n_theta=24, n_phi=48):
    """Gauss-Legendre product rule: points [N, 3] and weights, exact for the polynomials at hand."""
    z, w = np.polynomial.legendre.leggauss(n_theta)
    phi = np.arange(n_phi) * 2 * np.pi / n_phi
    r = np.sqrt(1 - z**2)
    points = np.stack(
        [r[:, None] * np.cos(phi), r[:, None] * np.sin(phi), np.broadcast_to(z[:, None], (n_theta, n_phi))],
        -1,
    )
    return torch.from_numpy(points.reshape(-1, 3)), torch.from_numpy(np.repeat(w, n_phi) * 2 * np.pi / n_phi)


def test_orthonormal():
    points, weights = sphere()
    basis = sh_basis(points)
    torch.testing.assert_close(
        basis.T @ (weights[:, None] * basis), torch.eye(9).double(), atol=1e-12, rtol=0
    )


def test_equals_scipy_without_the_condon_shortley_sign():
    points, _ = sphere(5, 7)
    x, y, z = points.numpy().T
    theta, phi = np.arccos(z), np.arctan2(y, x)
    order = [(0, 0), (1, -1), (1, 0), (1, 1), (2, -2), (2, -1), (2, 0), (2, 1), (2, 2)]
    for k, (band, m) in enumerate(order):
        value = scipy.special.sph_harm_y(band, abs(m), theta, phi) * (-1) ** m * (np.sqrt(2) if m else 1)
        np.testing.assert_allclose(sh_basis(points)[:, k], value.imag if m < 0 else value.real, atol=1e-12)


def test_keeps_leading_shape_and_type():
    assert (
        sh_basis(torch.zeros(2, 4, 3)).shape == (2, 4, 9) and sh_basis(torch.zeros(3)).dtype == torch.float32
    )
