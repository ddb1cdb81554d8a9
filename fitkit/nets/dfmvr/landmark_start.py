"""What landmarks say of a face, as the weights of a linear layer, from the face model alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fitkit.models.face_model import FaceModel
from fitkit.nets.mfnet.trunks import LandmarkTrunk
from fitkit.nets.mvfnet.convention import rotation_of_euler
from fitkit.nets.predictor import ViewSlot
from fitkit.nets.weak_perspective import place_in_crop
from fitkit.observe.crop import CropOptions

PEOPLE = 3000  # drawn
EXPRESSION = 0.2  # standard deviation of a blend shape's weight, or standard deviations of a coefficient
PITCH, ROLL = 12.0, 8.0  # degrees, standard deviations
DISTANCE = (0.4, 1.3)  # of the cameras, over that of the network's own
SHIFT = 0.03  # of the crop, standard deviation, share of its side
NOISE = 0.006  # of a landmark, share of the side
RIDGE = 1e-3  # of the variance of an input


def start_of_landmarks(
    model: FaceModel,
    trunk: LandmarkTrunk,
    views: Sequence[ViewSlot],
    crop: CropOptions,
    focal: float,
    anchor: Tensor,
    turn: Tensor,
    place: Tensor,
    unit_mm: float,
    unit_expression: Tensor,
) -> tuple[nn.Linear, Tensor]:
    """A linear layer from what `LandmarkTrunk.tell` says of all views, [S, V * told], to identity,
    expression and, for each view, three angles and a place, and what it takes off its input first, [V *
    told].

    Least squares over people drawn from the face model, seen by cameras at random distances, with noisy
    landmarks: so the layer is nearly the best linear guess before any photo was looked at.

    anchor: [3] mm, about which heads turn; turn, place: [V, 3], what angles (rad) and places (mm) are told
    from; unit_mm: of a place in the output; focal: px of the crop.
    """
    generator = torch.Generator().manual_seed(0)
    basis, size = model.landmark_basis, crop.max_size
    mean, rows = (x.detach().float().cpu() for x in (basis.mean, basis.rows))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    identity = draw(PEOPLE, model.num_identity)
    expression = (
        EXPRESSION * model.coefficients["expression"].unit(identity) * draw(PEOPLE, model.num_expression)
    )
    head = mean + torch.einsum("sk,ndk->snd", torch.cat([identity, expression], 1), rows)
    told, wanted = [], [identity, expression / unit_expression]
    for number, view in enumerate(views):
        low, high = (math.radians(angle) for angle in view.yaw)
        yaw = -(low + (high - low) * torch.rand(PEOPLE, generator=generator))  # see rotation_of_angles
        pitch, roll = (math.radians(angle) * draw(PEOPLE) for angle in (PITCH, ROLL))
        angles = torch.stack([pitch, yaw, roll], 1)
        turned = (head - anchor) @ rotation_of_euler(angles).transpose(1, 2)
        at = place_in_crop(turned, crop, focal)
        side = at[:, 2:] * size / focal  # mm that the crop shows
        at = torch.cat(
            [at[:, :2] + SHIFT * side * draw(PEOPLE, 2), at[:, 2:] * (1 + SHIFT * draw(PEOPLE, 1))], 1
        )
        # The same place in the picture and the same size from another distance.
        near = DISTANCE[0] + (DISTANCE[1] - DISTANCE[0]) * torch.rand(PEOPLE, 1, generator=generator)
        seen = turned + torch.cat([at[:, :2], near * at[:, 2:]], 1)[:, None]
        points = near[..., None] * focal * seen[..., :2] / seen[..., 2:] + (size - 1) / 2
        points = points + NOISE * size * draw(*points.shape)
        told.append(trunk.tell(points, torch.ones_like(points[..., 0])))
        wanted += [angles - turn[number], (at - place[number]) / unit_mm]
    seen, wanted = (torch.cat(columns, 1).double() for columns in (told, wanted))
    usual, bias = seen.mean(0), wanted.mean(0)
    seen, wanted = seen - usual, wanted - bias
    square = seen.T @ seen / PEOPLE
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    layer = nn.Linear(seen.shape[1], wanted.shape[1])
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.solve(square, seen.T @ wanted / PEOPLE).T)
        layer.bias.copy_(bias)
    return layer, usual.float()
