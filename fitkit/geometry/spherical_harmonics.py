"""Real spherical harmonics of bands 0 to 2: light from all directions in nine numbers per channel."""

from __future__ import annotations

import torch
from torch import Tensor

# Orthonormal on the sphere: the integral of the product of two basis functions is 1 for equal ones, else 0.
Y0 = 0.28209479177387814  # 1/2 sqrt(1/pi)
Y1 = 0.48860251190291992  # 1/2 sqrt(3/pi)
Y2 = 1.0925484305920792  # 1/2 sqrt(15/pi)
Y20 = 0.31539156525252005  # 1/4 sqrt(5/pi)
Y22 = 0.54627421529603959  # 1/4 sqrt(15/pi)


def white_light(like: Tensor) -> Tensor:
    """White light from everywhere, shading 1, of the shape of an illumination [B, 9, C]."""
    light = torch.zeros_like(like)
    light[:, 0] = 1 / Y0
    return light


def sh_basis(normals: Tensor) -> Tensor:
    """Basis values at unit vectors (x, y, z).

    Order (band, m): (0,0) 1; (1,-1) y; (1,0) z; (1,1) x; (2,-2) xy; (2,-1) yz; (2,0) 3z^2-1; (2,1) xz; (2,2)
    x^2-y^2, each times its constant above. With illumination [9, C] the shading is `sh_basis(n) @
    illumination` (the clamped-cosine factors pi, 2 pi/3, pi/4 are part of the illumination).

    Args:
        normals: [..., 3] unit vectors; in the head frame wherever a `SceneState.illumination` is applied.
    Returns:
        [..., 9].
    Source:
        Ramamoorthi and Hanrahan, "An efficient representation for irradiance environment maps", SIGGRAPH
        2001, eq. (3); the axes are those of the given vectors.
    """
    x, y, z = normals.unbind(-1)
    return torch.stack(
        [
            torch.full_like(x, Y0),
            Y1 * y,
            Y1 * z,
            Y1 * x,
            Y2 * x * y,
            Y2 * y * z,
            Y20 * (3 * z * z - 1),
            Y2 * x * z,
            Y22 * (x * x - y * y),
        ],
        -1,
    )
