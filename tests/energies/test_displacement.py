"""The displacement's prior against its formula and the Matern covariance, its equations against brute
force."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_model
from scipy import sparse
from scipy.special import kv
from test_flow_correspondence import MODEL, energy_with, moved, perfect_matches, truth

from fitkit.energies.base import Residuals
from fitkit.energies.displacement import DisplacementPrior, displacement_equations, factorized
from fitkit.energies.kernels import Kernel
from fitkit.geometry.normals import vertex_normals
from fitkit.scene.camera import KINDS


def grid(n=61, spacing=2.0):
    x, y = np.meshgrid(np.arange(n) * spacing, np.arange(n) * spacing)
    a = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    triangles = np.concatenate([np.stack([a, a + 1, a + n + 1], 1), np.stack([a, a + n + 1, a + n], 1)])
    return np.stack([x.ravel(), y.ravel(), 0 * x.ravel()], 1), triangles


def test_prior_is_a_matern_process():
    """Far from the rim: standard deviation sigma at each vertex, and the closed-form correlation of the
    Matern family."""
    vertices, triangles = grid()
    prior = DisplacementPrior.of(vertices, triangles, np.ones(len(vertices), bool), 0.7, 20.0)
    middle = 30 * 61 + 30
    unit = np.zeros(len(vertices))
    unit[middle] = 1
    covariance = factorized(prior.precision, prior.free)[0](unit)
    assert covariance[middle] == pytest.approx(0.7**2, rel=0.05)  # elements of a tenth of the length
    distance = np.linalg.norm(vertices - vertices[middle], axis=1)
    for mm in (4.0, 10.0, 20.0):
        scaled = np.sqrt(8) / 20 * mm
        assert covariance[distance == mm] / 0.7**2 == pytest.approx(scaled * kv(1, scaled), abs=0.02)
    assert covariance[distance == 20.0] / 0.7**2 == pytest.approx(0.14, abs=0.02)


def test_prior_energy_by_brute_force():
    """The integral of (k^2 d - Laplacian d)^2, over 4 pi k^2 sigma^2, summed vertex by vertex from the angles
    of the triangles."""
    model = tiny_model(dtype=torch.float64)
    vertices, triangles = model.mean.numpy(), model.triangles.numpy()
    d = np.random.default_rng(0).normal(size=len(vertices))
    k2, sigma = 8 / 15.0**2, 0.5
    flux, area = np.zeros(len(d)), np.zeros(len(d))
    for t in triangles:
        p = vertices[t]
        for k in range(3):
            i, j = (k + 1) % 3, (k + 2) % 3
            u, v = p[i] - p[k], p[j] - p[k]
            angle = np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
            weight = 1 / np.tan(angle) / 2
            flux[t[i]] += weight * (d[t[i]] - d[t[j]])
            flux[t[j]] += weight * (d[t[j]] - d[t[i]])
            area[t[k]] += np.linalg.norm(np.cross(u, v)) / 6
    expected = (area * (k2 * d + flux / area) ** 2).sum() / (4 * np.pi * k2 * sigma**2)
    prior = DisplacementPrior.of(vertices, triangles, model.skin.numpy(), sigma, 15.0)
    assert len(prior.free) == len(vertices)  # one part: skin and what is connected with it
    assert d @ prior.precision @ d == pytest.approx(expected)


def test_parts_without_skin_stay():
    vertices, triangles = grid(5)
    both = np.concatenate([vertices, vertices + [0, 0, 50.0], [[0, 0, 99.0]]])
    mask = np.zeros(len(both), bool)
    mask[7] = mask[-1] = True
    prior = DisplacementPrior.of(both, np.concatenate([triangles, triangles + 25]), mask, 1.0, 10.0)
    assert prior.free.tolist() == list(range(25))
    assert abs(prior.precision[25:]).sum() == 0 and abs(prior.precision[:, 25:]).sum() == 0
    solution = factorized(prior.precision, prior.free)[0](np.ones(51))
    assert (solution[25:] == 0).all()
    np.testing.assert_allclose((prior.precision @ solution)[:25], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_the_matches(kind):
    """By the displacement of each corner along its normal, against central differences through a displaced
    mean face."""
    state = truth(kind)
    energy, at = energy_with(perfect_matches(state)), moved(truth(kind))
    normal = vertex_normals(at.neutral(MODEL), MODEL.triangles)[0]
    residuals, by_corner, corner = energy.linearize_surface(at)
    torch.testing.assert_close(residuals.value, energy.residuals(at, None).value)
    along = (by_corner * normal[corner][:, :, None]).sum(-1)  # [G, N, 2, 3]
    for vertex in corner[0, :8].unique().tolist():
        sides = []
        for h in (1e-4, -1e-4):
            mean = MODEL.mean.clone()
            mean[vertex] += h * normal[vertex]
            sides.append(replace(energy, model=replace(MODEL, mean=mean)).residuals(at, None).value)
        numeric = (sides[0] - sides[1]) / 2e-4
        analytic = (along * (corner == vertex)[:, :, None]).sum(-1)
        assert float(analytic.abs().max()) > 0.01
        torch.testing.assert_close(analytic, numeric, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kernel", [Kernel("gm", 2.0), Kernel("l1", 0.3)], ids=str)
def test_equations_by_brute_force(kernel):
    """Gradient and Gauss-Newton matrix of trust * rho / 2; the kernel enters by its derivative, invalid
    matches not at all."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    V, G, N = 9, 2, 5
    value, by_corner, normals = normal(G, N, 2), normal(G, N, 2, 3, 3), normal(V, 3)
    corner = torch.stack([torch.randperm(V, generator=generator)[:3] for _ in range(G * N)]).reshape(G, N, 3)
    valid = torch.ones(G, N, dtype=torch.bool)
    trust = torch.rand(G, N, generator=generator, dtype=torch.float64)
    valid[0, 2] = False
    value[0, 2] = torch.nan
    J = torch.zeros(G, N, 2, V, dtype=torch.float64)
    for g in range(G):
        for n in range(N):
            for k in range(3):
                J[g, n, :, corner[g, n, k]] = by_corner[g, n, :, k] @ normals[corner[g, n, k]]
    d = torch.zeros(V, dtype=torch.float64, requires_grad=True)
    moved_value = value[valid] + J[valid] @ d
    (trust[valid] * kernel.cost(moved_value) / 2).sum().backward()
    matrix, gradient = displacement_equations(
        Residuals(value, valid, trust), by_corner, corner, normals, kernel
    )
    np.testing.assert_allclose(gradient, d.grad, atol=1e-12)
    w = (trust[valid][:, None] * kernel.weights(value[valid])).expand(-1, 2)
    np.testing.assert_allclose(
        matrix.toarray(), torch.einsum("mc,mci,mcj->ij", w, J[valid], J[valid]), atol=1e-12
    )
    free = np.array([0, 2, 3, 6, 8])
    right = np.arange(9.0)
    solve, determinant = factorized(matrix + sparse.identity(V) * 0.1 * matrix.diagonal().max(), free)
    solution = solve(right)
    dense = (matrix.toarray() + 0.1 * matrix.diagonal().max() * np.eye(V))[np.ix_(free, free)]
    np.testing.assert_allclose(solution[free], np.linalg.solve(dense, right[free]), rtol=1e-9)
    assert determinant == pytest.approx(np.linalg.slogdet(dense)[1])
