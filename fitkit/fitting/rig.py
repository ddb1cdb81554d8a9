"""What the positions of the cameras of a rig say about the head: where it is, how large, in which unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fitkit.fitting.cameras import rigs_of
from fitkit.io.subject import View
from fitkit.scene.pose import Pose

# How far a view may be from the head that all come to: degrees, and across its line of sight, mm of a head of
# mean size.
TURNED_DEG, ASIDE_MM = 35.0, 30.0
# How well a view alone places a head of known size, mm across its line of sight, and along it as a share of
# the distance.
ACROSS_MM, ALONG = 5.0, 0.1
UNSIZED = 0.3  # size_sigma of cameras in one place


@dataclass(frozen=True)
class Heads:
    """How each view alone sees the head: rotation [B, 3, 3] camera_from_head, place [B, 3] mm in the camera
    frame of a face of mean size."""

    rotation: Tensor
    place: Tensor


@dataclass(frozen=True)
class Agreement:
    """One head for all views of a rig.

    turned [B] degrees and aside [B] mm of a head of mean size: how far each view is from it; agrees [B] bool;
    size: of the face over the mean one, in the unit of the cameras; size_sigma: relative standard deviation
    of it.
    """

    turned: Tensor
    aside: Tensor
    agrees: Tensor
    size: float
    size_sigma: float

    @property
    def misfit(self) -> float:
        """The farthest view's distance from the one head, in units of the limits."""
        return float((self.turned / TURNED_DEG + self.aside / ASIDE_MM).max())


def positions(views: Sequence[View]) -> tuple[Tensor, Tensor]:
    """R [B, 3, 3] and t [B, 3] of views whose cameras have them, float64."""
    R, t = (
        torch.stack([torch.as_tensor(getattr(v.camera, k), dtype=torch.float64) for v in views]) for k in "Rt"
    )
    return R, t.reshape(-1, 3)


def agreement(heads: Heads, R: Tensor, t: Tensor) -> Agreement:
    """One head in the world of the cameras R [B, 3, 3], t [B, 3].

    The rotation is the one that most views agree with. Place p and size s come from least squares over R p +
    t = s place, where each view counts as its precision says and, by repeated weighting, the less the farther
    it is off. Where all cameras are in one place, s stays 1.
    """
    world = R.transpose(1, 2) @ heads.rotation
    between = degrees_of(world[:, None].transpose(-1, -2) @ world[None])
    turned = between[int(between.median(0).values.argmin())]
    trusted = (turned <= TURNED_DEG).to(R.dtype).clamp_min(1e-3)
    sight = torch.nn.functional.normalize(heads.place, dim=-1)
    along = ACROSS_MM / (ALONG * heads.place.norm(dim=-1)).clamp_min(ACROSS_MM)
    whiten = torch.eye(3, dtype=R.dtype) - (1 - along)[:, None, None] * sight[:, :, None] * sight[:, None]
    rows = whiten @ torch.cat([R, -heads.place[..., None]], 2)  # of the unknowns (p, s)
    goal = -(whiten @ t[..., None])[..., 0]

    def solve(unknowns: int, goal: Tensor) -> tuple[Tensor, Tensor, float]:
        weight, A = trusted, rows[..., :unknowns]
        for _ in range(8):
            normal = (weight[:, None, None] * A.transpose(1, 2) @ A).sum(0)
            normal = normal + 1e-9 * torch.diag(normal.diagonal())
            x = torch.linalg.solve(
                normal, (weight[:, None] * (A.transpose(1, 2) @ goal[..., None])[..., 0]).sum(0)
            )
            size = x[3] if unknowns == 4 else torch.ones(())
            aside = (A @ x - goal).norm(dim=-1) / size.abs().clamp_min(1e-9)
            weight = trusted / (1 + (aside / ASIDE_MM) ** 2)
        return aside, size, float(torch.linalg.inv(normal)[-1, -1].clamp_min(0).sqrt()) * ACROSS_MM

    aside, size, sigma = solve(4, goal)
    if sigma > UNSIZED:
        aside, size, _ = solve(3, goal - rows[..., 3])
    return Agreement(
        turned, aside, (turned <= TURNED_DEG) & (aside <= ASIDE_MM) & (size > 0), float(size), sigma
    )


def unit_of(views: Sequence[View], pose: Pose) -> float:
    """Millimetres in the unit of the positions, in which they agree best with heads as large as each view
    alone would have it, `pose` [B]; 0 where the cameras of each moment are in one place, so that no unit
    matters.

    The size of the head in the world, see `agreement`; of several moments the mean of its logarithm, each as
    its precision says.
    """
    total = weights = 0.0
    for rig in rigs_of(views):
        alone = pose.select(rig)
        heads = Heads(alone.rotation.cpu().double(), alone.translation.cpu().double())
        found = agreement(heads, *positions([views[i] for i in rig]))
        if found.size_sigma <= UNSIZED and found.size > 0:
            weight = 1 / max(found.size_sigma, 1e-6) ** 2
            total, weights = total - weight * math.log(found.size), weights + weight
    return math.exp(total / weights) if weights else 0.0


def unit_at(views: Sequence[View], pose: Pose) -> float:
    """Millimetres in the unit of the positions where the cameras see the head at `pose` [B]: the ratio of all
    distances between the cameras of a moment, which are not all in one place."""
    found = given = 0.0
    for rig in rigs_of(views):
        R, t = positions([views[i] for i in rig])
        given += float(torch.pdist(Pose(R, t).centers()).sum())
        found += float(torch.pdist(pose.select(rig).centers().cpu().double()).sum())
    return found / given


def degrees_of(rotation: Tensor) -> Tensor:
    """Angles [...] of the rotations [..., 3, 3]."""
    return torch.rad2deg(torch.arccos(((rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1)))
