"""Gaussian-process identity model on the skin.

The displacement of a person from the mean face is  u(x) = P(x) a + A(x) g(x):

- P(x) a: the coarse shape: a mirror-symmetric affine motion (width, height, depth, shear), and smooth bumps
  around a few controls of the face, whose coefficients a have a measured covariance. What is seen from the
  front tells the depth of a face through it;
- g: three independent unit Gaussian processes (one per axis) with multi-scale squared-exponential correlation
  in position and in the planar layout, made mirror-symmetric; plus a weak antisymmetric part;
- A(x): symmetric root of the measured covariance at x of what P leaves, interpolated between
  sites.

Source:
    Luethi, Gerig, Jud and Vetter, "Gaussian Process Morphable Models", TPAMI 2018 (kernel algebra, low-rank
    form); Gerig et al., "Morphable Face Models - An Open Framework", FG 2018 (multi-scale symmetric face
    kernel). Differs: the amplitude varies over the face with measured covariances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FLIP = np.array([-1.0, 1.0, 1.0])
UNIT = 60.0  # mm per unit of the affine motion's coordinates
CONTACT = 1.0  # mm, how well the lips of a neutral face meet, at each of the pairs of points along them


@dataclass(frozen=True)
class KernelParameters:
    """Fitted by maximum likelihood to the sites (see `measure_figures.py`)."""

    centre: np.ndarray  # [3] mm, origin of the affine motion
    controls: np.ndarray  # [C, 3] mm, of the left half and the midline
    reach: float  # mm, standard deviation of the Gaussian bump around each
    coefficients: np.ndarray  # [N, N] covariance of the coefficients of `coarse_fields`, mm^2
    lengths: np.ndarray  # [S, 3] mm, per scale and axis
    weights: np.ndarray  # [S, 3] variance shares, sum to 1 over the scales
    stretch: np.ndarray  # [3] factor on each coordinate difference
    layout: float  # mm^2 per squared layout unit in the squared distance
    gain: float  # on the variance of the symmetric local part
    asymmetry: float  # standard deviation of the antisymmetric part relative to the symmetric one


def coarse_fields(
    points: np.ndarray, centre: np.ndarray, controls: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mirror-symmetric vector fields [N, V, 3] at points [V, 3], and which of them are the affine motion,
    [N] bool: first fields that move points sideways, then up, then forward, each time first the affine ones,
    then a Gaussian bump around each control and its mirror image."""
    x, y, z = ((points - centre) / UNIT).T
    near = lambda c: np.exp(-0.5 * ((points[:, None] - c) ** 2).sum(-1) / reach**2)
    side = controls[:, 0] > 0
    middle, left, right = near(controls[~side]).T, near(controls[side]).T, near(controls[side] * FLIP).T
    across = [x, *(left - right)]
    along = [np.ones_like(x), y, z, *middle, *(left + right)]
    fields, affine = [], []
    for axis, (values, first) in enumerate(((across, 1), (along, 3), (along, 3))):
        for k, value in enumerate(values):
            field = np.zeros((len(points), 3))
            field[:, axis] = value
            fields.append(field)
            affine.append(k < first)
    return np.stack(fields), np.array(affine)


def correlation(parameters: KernelParameters, axis: int, pa, ua, pb, ub) -> np.ndarray:
    """Unsymmetrised correlation [A, B] of one axis; p: positions, u: layout."""
    distance = ((pa[:, None] - pb[None]) ** 2 * parameters.stretch**2).sum(-1)
    distance += parameters.layout * ((ua[:, None] - ub[None]) ** 2).sum(-1)
    out = 0.0
    for length, weight in zip(parameters.lengths[:, axis], parameters.weights[:, axis]):
        out = out + weight * np.exp(-0.5 * distance / length**2)
    return out


def local_covariance(parameters: KernelParameters, root, pa, ua, pb, ub, root_b, sign: float) -> np.ndarray:
    """[A, 3, B, 3] covariance of the local part between left-half points; sign +1 symmetric, -1
    antisymmetric."""
    out = 0.0
    for axis in range(3):
        direct = correlation(parameters, axis, pa, ua, pb, ub)
        crossed = correlation(parameters, axis, pa, ua, pb * FLIP, ub * FLIP[:2])
        norm_a = own_variance(parameters, axis, pa, ua, sign)
        norm_b = own_variance(parameters, axis, pb, ub, sign)
        unit = (direct + sign * FLIP[axis] * crossed) / np.sqrt(norm_a[:, None] * norm_b[None])
        out = out + np.einsum("ia,ij,jb->iajb", root[:, :, axis], unit, root_b[:, :, axis])
    return out


def mirror_correlation(parameters: KernelParameters, axis: int, p, u) -> np.ndarray:
    """Correlation [A] of the unsymmetrised process between a point and its mirror image."""
    distance = (2 * p[:, 0] * parameters.stretch[0]) ** 2 + parameters.layout * (2 * u[:, 0]) ** 2
    return sum(
        w * np.exp(-0.5 * distance / s**2)
        for s, w in zip(parameters.lengths[:, axis], parameters.weights[:, axis])
    )


def own_variance(parameters: KernelParameters, axis: int, p, u, sign: float) -> np.ndarray:
    """Divisor [A] that gives the symmetrised process unit variance, where it does not vanish at the midline.

    Components that vanish there (x of the symmetric part; y, z of the antisymmetric one) must fade out
    smoothly: their divisor is 1, and the amplitude of the symmetric x component makes up for it
    (`AmplitudeField`).
    """
    if sign * FLIP[axis] < 0:
        return np.ones(len(p))
    return 1.0 + mirror_correlation(parameters, axis, p, u)


def identity_basis(
    parameters: KernelParameters,
    points: np.ndarray,
    layout: np.ndarray,
    root: np.ndarray,
    root_symmetric: np.ndarray,
    importance: np.ndarray,
    symmetric: int,
    antisymmetric: int,
    contact: tuple[np.ndarray, np.ndarray],
    rank: int = 700,
) -> np.ndarray:
    """Truncated eigen-expansion on the left half and the midline.

    The eigenfunctions are those of the covariance operator with measure `importance` (area times weight);
    each column is multiplied by the root of its eigenvalue, so that coefficients are standard-normal.

    Args:
        points: [V, 3] left half and midline, mm.  layout: [V, 2].
        root: [V, 3, 3] amplitude of the local part: root of its covariance.
        root_symmetric: [V, 3, 3] the same for the symmetric part, see `own_variance`.
        importance: [V]; a point of importance 0 has no part in the modes, which are evaluated there, too.
        contact: rows of the upper lip, and of the lower lip where it touches them (`touching`).
    Returns:
        [K, V, 3] on the left half: first the symmetric, then the antisymmetric modes, each by falling
        variance.
    """
    fields, _ = coarse_fields(points, parameters.centre, parameters.controls, parameters.reach)
    value, vector = np.linalg.eigh(parameters.coefficients)
    coarse = (
        np.einsum("pk,pvc->kvc", vector * np.sqrt(np.maximum(value, 0)), fields).reshape(len(value), -1).T
    )
    out = []
    for sign, count in ((1.0, symmetric), (-1.0, antisymmetric)):
        if count == 0:
            continue
        gain = parameters.gain if sign > 0 else parameters.asymmetry**2
        amplitude = (root_symmetric if sign > 0 else root) * np.sqrt(gain)
        factor = pivoted_cholesky(parameters, points, layout, amplitude, sign, importance, rank)
        if sign > 0:
            factor = np.concatenate([coarse, factor], axis=1)
        factor = touching(factor, *contact)
        weight = np.repeat(importance, 3)[:, None]
        value, vector = np.linalg.eigh(factor.T @ (weight * factor))
        order = np.argsort(value)[::-1][:count]
        basis = (factor @ vector[:, order]).T.reshape(count, -1, 3)
        counted = basis[:, importance > 0].reshape(count, -1)
        basis *= np.sign(counted[np.arange(count), np.abs(counted).argmax(1)])[:, None, None]
        out.append(basis)
    return np.concatenate(out)


def touching(factor: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """[3V, R]: a factor G of the covariance G G^T, given that upper and lower points differ as in the mean
    face, up to CONTACT: whoever looks neutral has closed lips, and no lips pass through each other. Without
    it a fit can open the jaw in all photos of a person whose lips are closed, and close them in the shape.

    Regression of Gaussians: G (I + C^T C / CONTACT^2)^(-1/2), C the rows of `upper` less those of `lower`.
    """
    each = factor.reshape(-1, 3, factor.shape[1])
    apart = (each[upper] - each[lower]).reshape(-1, factor.shape[1]) / CONTACT
    value, vector = np.linalg.eigh(np.eye(factor.shape[1]) + apart.T @ apart)
    return factor @ (vector / np.sqrt(value)) @ vector.T


def pivoted_cholesky(parameters, points, layout, root, sign, importance, rank) -> np.ndarray:
    """[3V, R] factor G with G G^T close to the local covariance; pivots are taken a block of points at a
    time.

    Source:
        Harbrecht, Peters and Schneider, "On the low-rank approximation by the pivoted Cholesky
        decomposition", 2012.
    """
    n = len(points)
    diagonal = np.zeros((n, 3))
    for axis in range(3):
        own = 1 + sign * FLIP[axis] * mirror_correlation(parameters, axis, points, layout)
        unit = own / own_variance(parameters, axis, points, layout, sign)
        diagonal += root[:, :, axis] ** 2 * unit[:, None]
    residual = diagonal.ravel().copy()
    scale = np.repeat(importance, 3)
    factor = np.zeros((3 * n, 0))
    per_round = 60
    while factor.shape[1] < rank:
        order = np.argsort(-residual * scale, kind="stable")
        # Spread the pivots of one round: one coordinate per point, points apart from each other.
        picked: list[int] = []
        for k in order[:4000]:
            p = points[k // 3]
            if all(((points[q // 3] - p) ** 2).sum() > 100.0 for q in picked):
                picked.append(int(k))
            if len(picked) == per_round:
                break
        at = np.array(picked)
        v, c = at // 3, at % 3
        column = local_covariance(parameters, root, points, layout, points[v], layout[v], root[v], sign)[
            :, :, np.arange(len(at)), c
        ].reshape(3 * n, -1)
        column = column - factor @ factor[at].T
        gram = column[at]
        value, vector = np.linalg.eigh(0.5 * (gram + gram.T))
        good = value > 1e-6 * max(value.max(), 1e-12)
        if not good.any() or value.max() < 1e-5:
            break
        factor = np.concatenate([factor, column @ (vector[:, good] / np.sqrt(value[good]))], axis=1)
        residual = np.maximum(diagonal.ravel() - (factor**2).sum(1), 0)
    return factor


def matrix_roots(covariance: np.ndarray) -> np.ndarray:
    """Symmetric roots of [N, 3, 3] covariances."""
    value, vector = np.linalg.eigh(covariance)
    return np.einsum("nik,nk,njk->nij", vector, np.sqrt(np.maximum(value, 1e-4)), vector)
