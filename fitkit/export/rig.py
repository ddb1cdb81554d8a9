"""The joints that exported files have: those of the face model, or of models without any a neck, a head and
eyes to turn. Fits know nothing of the latter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from torch import Tensor

from fitkit.export.topology import OTHERS, part_of_vertices
from fitkit.geometry.laplacian import cotangent_laplacian, symmetric_factors
from fitkit.models.appearance import EYES, INSIDE, in_region
from fitkit.models.face_model import FaceModel
from fitkit.models.skinned import SkinnedModel

ROOT = "root"  # the joint that carries the others; models do not name it
CHIN, NOSE_BRIDGE = 8, 27  # landmarks
# The head begins at a plane: so far below the chin, in distances from there to the bridge of the nose, and
# rising so steeply to the nape.
BELOW_CHIN, RISE = 0.115, 0.26


@dataclass(frozen=True)
class Rig:
    """J joints of a face, the root first, and what they carry.

    names: of the joints; parents: number of each one's parent, a smaller one than its own, -1 of the root;
    places: [J, 3] mm, head frame, in the neutral face; weights: [V, J], rows sum to 1.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    places: np.ndarray
    weights: np.ndarray

    @property
    def offsets(self) -> np.ndarray:
        """[J, 3] mm: the places as seen from each joint's parent."""
        carried = np.array(self.parents) >= 0
        return self.places - self.places[list(self.parents)] * carried[:, None]


def own_rig(model: FaceModel, neutral: Tensor) -> Rig | None:
    """The joints that a model has, in the neutral face [V, 3] mm of this model; None if it has none."""
    if not isinstance(model, SkinnedModel):
        return None
    # The joints of this face: they follow its shapes, not what a detail layer has added to the mean.
    moved = model.joint_regressor.double() @ (neutral - model.mean).double()
    weights = model.skinning_weights.double().clamp_min(0).numpy()
    return Rig(
        (ROOT, *model.joint_names),
        tuple(model.joint_parents),
        (model.joint_basis.mean.double() + moved).numpy(),
        weights / weights.sum(1, keepdims=True),
    )


def rig_of(model: FaceModel, neutral: Tensor) -> Rig:
    """The joints of the model, in the neutral face [V, 3] mm of this model, or, if it has none:

    root > neck > head > eye_left, eye_right. The root is in the middle of the lower border of the neck, which
    stays with it. A share that is harmonic on the neck, 0 at that border and 1 where the head begins, tells
    how much of the turn of the head its skin follows. The head is in the middle of where it begins, the neck
    half way to it. Eyes turn about the centre of the sphere that fits their vertices best.

    Without an open end in a region called a neck, eyes hang on the root; without eyeballs there are none;
    without both there is the root alone, at the origin.
    """
    own = own_rig(model, neutral)
    if own is not None:
        return own
    points, triangles = neutral.double().numpy(), model.triangles.numpy()
    names, parents, places = [ROOT], [-1], [np.zeros(3)]
    share = _share_of_head(model)
    weights = np.ones((len(points), 1))
    if share is not None:
        low, high = (_middle_of_edge(points, triangles, inside) for inside in (share <= 0, share >= 1))
        names, parents = [ROOT, "neck", "head"], [-1, 0, 1]
        places = [low, 0.5 * (low + high), high]
        # The turn of the neck is spread over two thirds of it, that of the head over all.
        neck, head = _smooth_step(1.5 * share), _smooth_step(share)
        weights = np.stack([1 - neck, neck - head, head], 1)
    carrier, part = len(names) - 1, part_of_vertices(model)
    for number, (eye, words, _) in enumerate(OTHERS, 1):
        ball = part == number
        if words is not EYES or not ball.any():
            continue
        names.append(eye.name)
        parents.append(carrier)
        places.append(_middle_of_sphere(points[ball]))
        weights = np.concatenate([weights * ~ball[:, None], ball[:, None]], 1)
    return Rig(tuple(names), tuple(parents), np.stack(places), weights)


def _share_of_head(model: FaceModel) -> np.ndarray | None:
    """How much of the turn of the head each vertex of the mean face follows, [V] in [0, 1]; None: no neck."""
    if {CHIN, NOSE_BRIDGE} & set(model.landmarks.missing):
        return None
    points, triangles = model.mean.double().numpy(), model.triangles.numpy()
    marks = model.landmarks.points(model.mean[None].double(), model.triangles)[0].numpy()
    chin, size = marks[CHIN], np.linalg.norm(marks[NOSE_BRIDGE] - marks[CHIN])
    plane = chin[1] - BELOW_CHIN * size + RISE * (chin[2] - points[:, 2]).clip(min=0)
    free = (points[:, 1] < plane) & ~in_region(model, (*EYES, *INSIDE))
    edges = np.sort(triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1)
    unique, count = np.unique(edges, axis=0, return_counts=True)
    border = np.isin(np.arange(len(points)), unique[count == 1]) & free & in_region(model, ("neck",))
    if not border.any() or free.all():
        return None
    share = np.where(free, 0.0, 1.0)
    free &= ~border
    stiffness = cotangent_laplacian(points, triangles)[0].tocsr()
    # Parts that hang on nothing go with the head.
    loose = 1e-9 * stiffness.diagonal().mean()
    system = stiffness[free][:, free] + loose * sparse.eye_array(int(free.sum()))
    share[free] = symmetric_factors(system).solve(loose - stiffness[free][:, ~free] @ share[~free])
    return share.clip(0, 1).round(5)


def _middle_of_edge(points: np.ndarray, triangles: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The middle [3] of the line along which the vertices `inside` [V] end, each edge by its length."""
    crossing = triangles[inside[triangles].sum(1) == 2]
    ends = points[crossing[inside[crossing]].reshape(-1, 2)]  # [E, 2, 3]
    return np.average(ends.mean(1), axis=0, weights=np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1))


def _middle_of_sphere(points: np.ndarray) -> np.ndarray:
    """The middle [3] of the sphere that fits points [N, 3] best: |p|^2 = 2 p . middle + rest, linear least
    squares."""
    system = np.c_[2 * points, np.ones(len(points))]
    return np.linalg.lstsq(system, (points**2).sum(1), rcond=None)[0][:3]


def _smooth_step(x: np.ndarray) -> np.ndarray:
    """From 0 to 1 with x, level at both ends."""
    x = x.clip(0, 1)
    return x * x * (3 - 2 * x)
