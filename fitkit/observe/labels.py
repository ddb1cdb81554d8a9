"""What is known to be true of B frames: the targets of supervised energies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fitkit.scene.state import SceneState


@dataclass(frozen=True)
class Labels:
    """Every part may be None: not known.

    state: the scene, of a fit or of a renderer; known: which of its parts are labels, the others only fill their places;
    identity_sigma: [S, K_id] standard deviation of its identity (0 or None: exact);
    vertices: [B, V, 3] mm, camera frame; points3d: [B, N, 3] mm in any frame of each frame's own, NaN = not known;
    depth: [B, H, W] mm along the camera's axis, 0 = no surface; prior_depth: the same of a fitted face model;
    person: [B] int64, equal numbers are one person; moment: [B] int64, equal numbers are one instant of one person;
    parse: [B, H, W] int64, the part of the face that each pixel shows, in the classes of the parser that made it;
    parse_valid: [B, H, W] bool, where it is known (None: everywhere);
    normals: [B, 3, H, W] unit normals in the camera frame, 0 = no surface; visible: [B, 68] bool, landmarks that are in sight.
    """

    state: SceneState | None = None
    identity_sigma: Tensor | None = None
    vertices: Tensor | None = None
    points3d: Tensor | None = None
    depth: Tensor | None = None
    prior_depth: Tensor | None = None
    person: Tensor | None = None
    moment: Tensor | None = None
    parse: Tensor | None = None
    parse_valid: Tensor | None = None
    normals: Tensor | None = None
    visible: Tensor | None = None
    known: tuple[str, ...] = ("identity", "expression", "pose")
