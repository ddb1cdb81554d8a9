"""What is left of the light in colours that were divided by it, by comparing what must be alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Log units, what is expected of the coefficients: of the constant, and of the others.
GAIN, SHADE = 1.0, np.array([0.3] * 3 + [0.1] * 5)
APART = 0.15  # log units, from which on two colours count as different things
TRUSTED = 0.15  # share of the largest weight of its photo from which on a colour is compared
DARKEST, BRIGHTEST = 4e-3, 4.0
FEWEST, MOST = 30, 1500  # texels of a pair
TELLS = 30  # all texels of a pair tell as much as so many, because what is wrong with them has their size
STEPS = 6

Samples = Sequence[tuple[np.ndarray, np.ndarray]]
Pair = tuple[np.ndarray, np.ndarray, np.ndarray]


def leftover_light(
    samples: Samples, mirrored: Samples, basis: tuple[np.ndarray, np.ndarray], skin: np.ndarray
) -> np.ndarray:
    """Spherical harmonics [B, 9, 3] of the log of a light that makes the views' colours alike once they are
    divided by it: those of one point in two views, and those of two points that are each other's mirror image
    in the same view or another one.

    Damped least squares with a Cauchy kernel, since shadows, highlights and moles are no light. The more the
    views agree as they are, the less their light is in doubt: then the two halves of this face differ.

    Args:
        samples: per view the colours [N, 3] of texels, linear, and their weights [N]; mirrored: the same of
            the mirrored surface points.
        basis: [N, 9] harmonics in the normals of the texels, and of their mirrored points.
        skin: [N] bool, texels that are compared.
    """
    B, K = len(samples), basis[0].shape[1]
    here, there = ([usable_colors(*sample) & skin for sample in given] for given in (samples, mirrored))
    direct, across = [], []
    for i in range(B):
        for j in range(i):
            direct += _pair(i, j, samples, samples, here[i] & here[j], basis[0], basis[0])
        for j in range(i + 1):
            across += _pair(i, j, samples, mirrored, here[i] & there[j], *basis)
    apart = [float(np.median(np.abs(difference))) for _, _, difference in direct]
    doubt = min(1.0, np.mean(apart) / APART) if apart else 1.0
    prior = np.kron(np.eye(B), np.diag(np.r_[GAIN, SHADE * max(doubt, 1e-3)] ** -2))
    found = np.zeros((B * K, 3))
    for step in range(STEPS):
        radius = APART * max(1, 4 >> step)  # what is right shows only once the light is nearly right
        normal, right = prior.copy(), np.zeros((B * K, 3))
        for columns, rows, difference in direct + across:
            kernel = 1 / (1 + np.square((difference - rows @ found[columns]) / radius).mean(1))
            weighted = rows * (kernel * (TELLS / len(rows) / APART**2))[:, None]
            normal[np.ix_(columns, columns)] += weighted.T @ rows
            right[columns] += weighted.T @ difference
        found = np.linalg.solve(normal, right)
    return found.reshape(B, K, 3).astype(np.float32)


def usable_colors(rgb: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[N] bool, linear colours [N, 3] of one photo that can be compared, by their weights [N]."""
    return (weight > TRUSTED * weight.max(initial=0)) & (rgb.min(1) > DARKEST) & (rgb.max(1) < BRIGHTEST)


def _pair(
    i: int, j: int, own: Samples, other: Samples, both: np.ndarray, of_own: np.ndarray, of_other: np.ndarray
) -> list[Pair]:
    """Unknowns [M], what each adds to the difference [n, M], and the difference [n, 3] of the log colours;
    nothing where the two share few texels. Within one view the unknowns are its own, [K]."""
    at, K = np.flatnonzero(both), of_own.shape[1]
    if len(at) < FEWEST:
        return []
    at = at[:: -(-len(at) // MOST)]
    difference = np.log(own[i][0][at] / other[j][0][at])
    mine = np.arange(i * K, (i + 1) * K)
    if i == j:
        return [(mine, of_own[at] - of_other[at], difference)]
    return [(np.r_[mine, j * K : (j + 1) * K], np.concatenate([of_own[at], -of_other[at]], 1), difference)]
