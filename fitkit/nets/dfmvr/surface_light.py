"""Light from the colours that a photo has on a predicted face."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fitkit.energies.photo_model import counted_vertices, least_squares_light
from fitkit.energies.photometric import point_normals, sample_skin
from fitkit.geometry.color import linear_from_srgb
from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.models.appearance import default_albedo
from fitkit.models.face_model import FaceModel
from fitkit.observe.sampling import sample
from fitkit.scene.state import SceneState

POINTS = 240  # of the front of the face, eyes and mouth included
LEAST_COSINE = (
    0.2  # between normal and direction to the camera: points nearer to the outline are not looked at
)
LEAST_SEEN = 6.0  # sum of these cosines below which a photo says nothing about its light
ROUNDS = 3  # solves, each with the weights of a robust kernel around the one before
SIGMA = 0.05  # of that Cauchy kernel, linear intensity
APART = 0.1  # linear intensity, per unit of what the heads see of the rest


@dataclass(frozen=True)
class SeenColors:
    """colors: [B, POINTS, 3] linear; weight: [B, POINTS], 0 where a point is not seen."""

    colors: Tensor
    weight: Tensor


class SurfaceLight(nn.Module):
    """Points of a face model and what light their colours in a photo tell.

    The points move with the coefficients; normals are those of the mean face, which is accurate enough for
    nine harmonics. No gradient passes. Nothing here learns, and all is made from the face model.
    """

    def __init__(self, model: FaceModel):
        super().__init__()
        with torch.device("cpu"):  # also where a network is made without memory, to be filled from a file
            self._remember(model.to(device="cpu"))

    def _remember(self, model: FaceModel) -> None:
        triangle, corners = sample_skin(model, POINTS, 0, counted_vertices(model, "front"))
        points = model.at(triangle, corners)
        normal = point_normals(model, triangle, corners, model.mean[None])[0]
        ours = model.triangles[triangle]

        def at(values: Tensor) -> Tensor:  # [..., V, 3] -> [..., POINTS, 3]
            return (corners[:, :, None] * values[..., ours, :]).sum(-2)

        mean = model.albedo_mean
        if mean is None:
            mean = torch.from_numpy(default_albedo(model)).to(model.mean)
        fixed = {
            "mean": points.mean,
            "rows": points.rows.flatten(0, 1).T,
            "harmonics": sh_basis(normal),
            "normal": normal,
            "albedo_mean": at(mean),
        }
        if model.albedo_basis is not None:
            fixed["albedo_rows"] = at(model.albedo_basis).flatten(1)
        for name, value in fixed.items():
            self.register_buffer(name, value.detach().float().cpu().clone(), persistent=False)

    @torch.no_grad()
    def look(self, images: Tensor, face: Tensor | None, state: SceneState) -> SeenColors:
        """images: [B, 3, h, w] sRGB; face: [B, 1, h, w], 1 where a pixel shows the face, or None; state: of
        the same pictures."""
        coefficients = torch.cat([state.identity[state.subject], state.expression], 1).detach()
        head = self.mean + (coefficients @ self.rows).unflatten(1, (-1, 3))
        rotation, translation = state.pose.rotation.detach(), state.pose.translation.detach()
        seen = head @ rotation.transpose(1, 2) + translation[:, None]
        pixels, _ = state.camera.project(seen)
        turned = self.normal @ rotation.transpose(1, 2)
        cosine = -(turned * nn.functional.normalize(seen, dim=-1)).sum(-1)
        layers = linear_from_srgb(images)
        layers = layers if face is None else torch.cat([layers, face.to(layers)], 1)
        found, inside = sample(layers, pixels)
        weight = cosine * ((cosine > LEAST_COSINE) & inside).to(cosine)
        if face is not None:
            weight = weight * found[..., 3]
        return SeenColors(found[..., :3], weight)

    @torch.no_grad()
    def solve(self, seen: SeenColors, albedo: Tensor | None, fallback: Tensor) -> tuple[Tensor, Tensor]:
        """The light that explains the colours best.

        albedo: [B, K_al] coefficients, None = the mean albedo; fallback: [9, 3], the light of a picture that
        hardly shows the face.
        Returns: light [B, 9, 3] in the head frame; colours that it leaves, [B, POINTS, 3] in units of APART,
        at most 3, and 0 where nothing is seen.
        """
        colors = self.albedo_mean.expand_as(seen.colors)
        if albedo is not None:
            colors = colors + (albedo.detach() @ self.albedo_rows).unflatten(1, (-1, 3))
        B = colors.shape[0]  # not its len, which exported programs would keep
        harmonics = self.harmonics.expand(B, -1, -1)
        weight, told = seen.weight, seen.weight.sum(1)[:, None, None] > LEAST_SEEN
        light, rest = fallback.expand(B, -1, -1), torch.zeros_like(colors)
        for _ in range(ROUNDS):
            found = least_squares_light(harmonics, colors, seen.colors, weight, 3, solve_positive)
            light = torch.where(told, found, fallback)
            rest = seen.colors - colors * (harmonics @ light)
            weight = seen.weight / (1 + rest.square().sum(-1) / SIGMA**2)
        rest = (rest / APART).clamp(-3, 3) * (seen.weight[..., None] > 0).to(rest)
        return light, rest


def solve_positive(matrix: Tensor, right: Tensor) -> Tensor:
    """x of matrix x = right for symmetric positive matrices [..., n, n] and right sides [..., n] or
    [..., n, m], by Gauss-Jordan steps: exported programs have no other solver."""
    vector = right.ndim < matrix.ndim
    right = right[..., None] if vector else right
    matrix = matrix.expand(*right.shape[:-2], *matrix.shape[-2:])
    rows = torch.cat([matrix, right], -1)
    n = matrix.shape[-1]
    one = torch.eye(n).to(matrix)
    for k in range(n):
        pivot = rows[..., k : k + 1, :] / rows[..., k : k + 1, k : k + 1]
        factor = rows[..., k : k + 1] - one[:, k : k + 1]  # row k itself becomes the pivot's
        rows = rows - factor * pivot
    return rows[..., n] if vector else rows[..., n:]
