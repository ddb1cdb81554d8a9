"""Fit the hyperparameters of the identity kernel to landmark displacements of random people (maximum
likelihood)."""

from __future__ import annotations

import numpy as np
import torch

from .kernel import FLIP, matrix_roots

RIDGE = 1e-3  # of the mean diagonal of the normal equations: bumps overlap


def fit_coarse(
    displacement: np.ndarray, fields: np.ndarray, affine: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Least-squares coefficients [N, K] of `coarse_fields` for mirror-symmetric displacements [K, V, 3]:
    first of the affine ones, which reach over the whole head, on the face alone; then of the bumps, on what
    these leave of the whole skin.

    counts: [V] how much a point counts, 1 on the face.
    """
    flat = fields.reshape(len(fields), -1)
    seen = displacement.reshape(len(displacement), -1).T
    found = np.zeros((len(fields), len(displacement)))
    for some, weight in ((affine, counts == 1), (~affine, counts)):
        weighted = flat[some] * np.repeat(weight, 3)
        normal = weighted @ flat[some].T
        normal += RIDGE * np.trace(normal) / len(normal) * np.eye(len(normal))
        found[some] = np.linalg.solve(normal, weighted @ seen)
        seen = seen - flat[some].T @ found[some]
    return found


def fit_kernel(
    sites: np.ndarray, layout: np.ndarray, local: np.ndarray, scales: int = 3, steps: int = 200
) -> dict:
    """Maximum-likelihood lengths, weights, stretch, layout factor and gain.

    The expected negative log-likelihood  (tr(K^-1 C) + log det K) / 2  is minimised, C being the covariance
    of the local displacements at the sites.

    Args:
        sites: [P, 3] left half and midline, mm.  layout: [P, 2].
        local: [K, P, 3] displacements (symmetric part, coarse shape removed) of K independent unit
            coefficients.
    """
    torch.set_default_dtype(torch.float64)
    p, u, flip = torch.tensor(sites), torch.tensor(layout), torch.tensor(FLIP)
    root = torch.tensor(matrix_roots(np.einsum("kpi,kpj->pij", local, local)))
    n = len(sites)
    flat = torch.tensor(local.reshape(len(local), -1))
    observed = flat.T @ flat
    free = {
        "lengths": torch.tensor(np.log(np.geomspace(8, 90, scales))[:, None].repeat(3, 1)),
        "weights": torch.zeros(scales, 3),
        "stretch": torch.zeros(3),
        "layout": torch.tensor(0.5),
        "gain": torch.tensor(0.0),
        "noise": torch.tensor(-1.5),
    }
    for v in free.values():
        v.requires_grad_(True)
    optimiser = torch.optim.Adam(free.values(), lr=0.05)

    def corr(axis, q, w):
        square = ((p[:, None] - q[None]) * torch.exp(free["stretch"])).pow(2).sum(-1)
        square = square + (u[:, None] - w[None]).pow(2).sum(-1) * torch.exp(free["layout"])
        share = torch.softmax(free["weights"][:, axis], 0)
        return sum(
            s * torch.exp(-0.5 * square / torch.exp(le) ** 2)
            for s, le in zip(share, free["lengths"][:, axis])
        )

    for _ in range(steps):
        optimiser.zero_grad()
        unit = []
        for axis in range(3):
            both = corr(axis, p, u) + flip[axis] * corr(axis, p * flip, u * flip[:2])
            norm = torch.sqrt(torch.clamp(torch.diagonal(both), 1e-3))
            unit.append(both / norm[:, None] / norm[None])
        kernel = torch.einsum("iac,cij,jbc->iajb", root, torch.stack(unit), root).reshape(3 * n, 3 * n)
        kernel = kernel * torch.exp(free["gain"]) + torch.exp(free["noise"]) ** 2 * torch.eye(3 * n)
        lower = torch.linalg.cholesky(kernel)
        loss = (
            0.5 * torch.trace(torch.cholesky_solve(observed, lower)) + torch.log(torch.diagonal(lower)).sum()
        )
        loss = loss + 0.5 * ((free["noise"] + 1.2) / 0.3) ** 2  # sites are good to about 0.3 mm
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        r = lambda t, d=4: np.round(t.numpy(), d).tolist()
        return {
            "lengths": r(torch.exp(free["lengths"]), 2),
            "weights": r(torch.softmax(free["weights"], 0)),
            "stretch": r(torch.exp(free["stretch"])),
            "layout": r(torch.exp(free["layout"])),
            "gain": r(torch.exp(free["gain"])),
            "log_likelihood": round(-float(loss), 2),
        }
