"""What is known to be true of B frames: the targets of supervised energies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fitkit.scene.state import SceneState

# What has a row for each frame; `state` has them, too. The first three are maps, as large as the pictures.
MAPS = ("depth", "prior_depth", "prior_trust", "normals", "parse", "parse_valid")
FRAMES = (*MAPS, "vertices", "crop_vertices", "points3d", "crop_points", "person", "moment", "visible")
LARGE = (*MAPS, "vertices", "crop_vertices")  # what takes as much memory as pictures do


@dataclass(frozen=True)
class Labels:
    """Every part may be None: not known. Each has one unit.

    state: the scene, of a fit or of a renderer; known: which of its parts are labels, the others only fill
    their places; identity_sigma: [S, K_id] standard deviation of its identity (0 or None: exact);
    vertices: [B, V, 3] mm, camera frame;
    points3d: [B, N, 3] mm, in any frame of each frame's own, NaN = not known;
    crop_points: [B, N, 3] px of the crop, x and y where the points are seen, z of the same scale behind the
    nearest of them; NaN = not known; see `in_crop`; crop_vertices: [B, V, 3] the same of all vertices, z
    behind the nearest of the 68 points;
    depth: [B, H, W] mm along the camera's axis, 0 = no surface; prior_depth: the same of a fitted face model,
    or in a fit what a network says; prior_trust: [B, H, W] in 0..1, how much each of its pixels counts;
    person: [B] int64, equal numbers are one person; moment: [B] int64, equal numbers are one instant of one
    person; parse: [B, H, W] int64, the part of the face that each pixel shows, in the classes of the parser
    that made it; parse_valid: [B, H, W] bool, where it is known (None: everywhere);
    normals: [B, 3, H, W] unit normals in the camera frame, 0 = no surface; visible: [B, 68] bool, landmarks
    that are in sight.
    """

    state: SceneState | None = None
    identity_sigma: Tensor | None = None
    vertices: Tensor | None = None
    points3d: Tensor | None = None
    depth: Tensor | None = None
    prior_depth: Tensor | None = None
    prior_trust: Tensor | None = None
    person: Tensor | None = None
    moment: Tensor | None = None
    parse: Tensor | None = None
    parse_valid: Tensor | None = None
    normals: Tensor | None = None
    visible: Tensor | None = None
    known: tuple[str, ...] = ("identity", "expression", "pose")
    crop_points: Tensor | None = None
    crop_vertices: Tensor | None = None

    @property
    def parts(self) -> frozenset[str]:
        """Names of what is known: fields, and of the state those parts that are labels."""
        fields = {name for name in FRAMES if getattr(self, name) is not None}
        return frozenset(fields | (set(self.known) if self.state is not None else set()))

    def each(self, change: Callable[[Tensor], Tensor], names: Sequence[str] = FRAMES) -> Labels:
        """With `change` made to those of the named fields that are known."""
        there = {name: getattr(self, name) for name in names}
        return replace(self, **{name: change(value) for name, value in there.items() if value is not None})

    def without(self, names: Sequence[str]) -> Labels:
        """With these fields not known."""
        return replace(self, **dict.fromkeys(names))

    def select(self, views: Tensor) -> Labels:
        """Those of the frames `views` [n] int64, in this order; all people of the state stay."""
        state = None if self.state is None else self.state.select(views)
        return replace(self.each(lambda x: x[views]), state=state)


def join_labels(parts: Sequence[Labels | None]) -> Labels | None:
    """Labels of the frames of several samples, each of one person: what all of them know; None where one has
    no labels.

    Persons and moments get new numbers: what two samples count is not the same.
    """
    if any(p is None for p in parts):
        return None
    numbered = []
    for number, part in enumerate(parts):
        moment = part.moment
        if moment is not None:
            moment = moment.unique(return_inverse=True)[1] + sum(
                len(p.moment) for p in numbered if p.moment is not None
            )
        person = None if part.person is None else torch.full_like(part.person, number)
        numbered.append(replace(part, person=person, moment=moment))
    common = {name for name in FRAMES if all(getattr(p, name) is not None for p in numbered)}
    if "parse" in common and any(p.parse_valid is not None for p in numbered):
        common.add("parse_valid")
        everywhere = (torch.ones_like(p.parse, dtype=torch.bool) for p in numbered)
        numbered = [
            replace(p, parse_valid=e if p.parse_valid is None else p.parse_valid)
            for p, e in zip(numbered, everywhere)
        ]
    state, sigma, known = None, None, tuple(k for k in parts[0].known if all(k in p.known for p in parts))
    if all(p.state is not None for p in parts):
        state = SceneState.join([p.state for p in parts])
        if any(p.identity_sigma is not None for p in parts):
            exact = (torch.zeros_like(p.state.identity) for p in parts)
            sigma = torch.cat(
                [e if p.identity_sigma is None else p.identity_sigma for p, e in zip(parts, exact)]
            )
    joined = {name: torch.cat([getattr(p, name) for p in numbered]) for name in common}
    return Labels(state, sigma, known=known, **joined)
