"""What is left of the light in colours that were divided by it, by comparing what must be alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

SIGMA = np.array([1.0] + [0.5] * 3 + [0.2] * 5)  # log units, what is expected of each harmonic at its largest
APART = 0.15  # log units, from which on two colours count as different things
TRUSTED = 0.15  # share of the largest weight of its photo from which on a colour is compared
DARKEST, BRIGHTEST = 4e-3, 4.0
MOST = 1500  # texels of a pair
STEPS = 6


def leftover_light(
    samples: Sequence[tuple[np.ndarray, np.ndarray]],
    mirrored: Sequence[tuple[np.ndarray, np.ndarray]],
    basis: tuple[np.ndarray, np.ndarray],
    skin: np.ndarray,
) -> np.ndarray:
    """Spherical harmonics [B, 9, 3] of the log of a light that makes the views' colours alike once they are
    divided by it: those of one point in two views, and those of two points that are each other's mirror image
    in the same view or another one.

    Args:
        samples: per view the colours [N, 3] of texels, linear, and their weights [N]; mirrored: the same of
            the mirrored surface points.
        basis: [N, 9] harmonics in the normals of the texels, and of their mirrored points.
        skin: [N] bool, texels that are compared.

    Damped least squares with a Cauchy kernel, since shadows, highlights, moles and partings are no light.
    """
    B, K = len(samples), basis[0].shape[1]
    pairs = list(_pairs(samples, mirrored, basis, skin))
    prior = np.kron(np.eye(B), np.diag(SIGMA**-2))
    found = np.zeros((B * K, 3))
    for step in range(STEPS):
        normal, right = prior.copy(), np.zeros((B * K, 3))
        for columns, rows, difference in pairs:
            error = difference - rows @ found[columns]
            kernel = 1 / (1 + np.square(error / (APART * 2.0 ** (2 - step if step < 2 else 0))).mean(1))
            # All texels of a pair tell as much as a few dozen, because what is wrong with them has their size.
            weighted = rows * (kernel * (30 / len(rows) / APART**2))[:, None]
            normal[np.ix_(columns, columns)] += weighted.T @ rows
            np.add.at(right, columns, weighted.T @ difference)
        found = np.linalg.solve(normal, right)
    return found.reshape(B, K, 3).astype(np.float32)


def _pairs(
    samples: Sequence[tuple[np.ndarray, np.ndarray]],
    mirrored: Sequence[tuple[np.ndarray, np.ndarray]],
    basis: tuple[np.ndarray, np.ndarray],
    skin: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Unknowns [M] (a view's twice for a pair within it), what each adds to the difference [n, M], and the
    difference [n, 3] of the log colours."""
    here, there = ([usable_colors(rgb, w) & skin for rgb, w in given] for given in (samples, mirrored))
    K = basis[0].shape[1]
    for i in range(len(samples)):
        for j in range(len(samples)):
            for other, seen, function in ((samples, here, basis[0]), (mirrored, there, basis[1])):
                if other is samples and j >= i or other is mirrored and j > i:
                    continue
                both = np.flatnonzero(here[i] & seen[j])
                if len(both) < 30:
                    continue
                both = both[:: -(-len(both) // MOST)]
                difference = np.log(samples[i][0][both] / other[j][0][both])
                own, its = basis[0][both], -function[both]
                if i == j:
                    yield np.arange(i * K, (i + 1) * K), own + its, difference
                else:
                    columns = np.r_[i * K : (i + 1) * K, j * K : (j + 1) * K]
                    yield columns, np.concatenate([own, its], 1), difference


def usable_colors(rgb: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[N] bool, linear colours [N, 3] of one photo that can be compared, by their weights [N]."""
    return (weight > TRUSTED * weight.max(initial=0)) & (rgb.min(1) > DARKEST) & (rgb.max(1) < BRIGHTEST)
