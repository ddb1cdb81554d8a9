"""Where the face is in a mesh that says nothing of it, and its 68 landmarks.

The mesh is drawn grey from all sides and the built-in landmark detector looks at the pictures, which tells
axes, unit and place. Then `generic` is laid onto the surface, and its points are carried over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from fitkit.errors import DegenerateInputError, InputError
from fitkit.geometry.alignment import Similarity, similarity_align
from fitkit.geometry.closest_point import SurfaceIndex, barycentric
from fitkit.geometry.icp import LARGEST_GROWTH
from fitkit.geometry.membrane import Membrane
from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.patch import Patch
from fitkit.geometry.rotation import so3_exp
from fitkit.models.correspondence import outer
from fitkit.models.face_model import FaceModel, LandmarkEmbedding
from fitkit.models.formats.parts import NAMES, faces_away, real
from fitkit.models.registry import load_model
from fitkit.observe.landmarks.builtin import BuiltinDetector
from fitkit.render.shading import Surface, light_surface

SIDE, NEAR_SIDE = 320, 512  # px of pictures of the whole mesh, and of the face
HEAD_MM, FACE_MM = 300.0, 260.0  # what they show; the mesh counts as this large at first
GREY = 0.75  # of the background, sRGB
DIVISOR = 1000.0  # w of the orthographic camera
LEAN = 0.8  # rad: what leans more in a picture stands upright in another one
SCORE, SURE = 0.4, 0.8  # of the detector: least, and from which no other sides are looked at
RESIDUAL_MM = 8.0  # median distance of found points from those of the mean face; beyond it is none
FAR = 3.0  # medians of the distance beyond which a point does not count
YAWS = (0.0, -0.5, 0.5)  # rad, of the pictures of the face
# Points that a grey picture shows: no brows, which have colour only, and no jaw; of the chin it shows the
# height and the side, not the depth.
SHOWN = torch.arange(68) >= 27
CHIN = torch.zeros(68, dtype=torch.bool).index_fill(0, torch.arange(5, 12), True)


# ---- the face in pictures ----


UNSEEN = "no face seen, expected a head in neutral expression; give its landmarks with --landmarks FILE"


def find_face(
    vertices: np.ndarray, triangles: np.ndarray, where: str = "mesh"
) -> tuple[Similarity, np.ndarray]:
    """The face of a mesh with any unit and axes.

    Args:
        vertices: [V, 3], neutral expression; triangles: [F, 3] int, either way round; where: the file, for
        the message.
    Returns:
        mesh -> head frame in mm of a mean head; the points that were seen, [68, 3] in the mesh's frame, NaN
        where there is no surface.
    Raises:
        InputError: no face.
    """
    vertices = np.asarray(vertices, np.float64)
    detector, faces = (
        BuiltinDetector(jaw="surface"),
        torch.from_numpy(np.ascontiguousarray(triangles, np.int64)),
    )
    low, high = vertices.min(0), vertices.max(0)
    shown = max(float((high - low).max()), 1e-30) * 1.1
    highest, best = SCORE, None
    for turn in _sides():
        score, points = _look(detector, vertices, faces, turn, (low + high) / 2, shown, SIDE)
        if score > highest:
            frame, residual = onto_mean(points)
            if residual < RESIDUAL_MM:
                highest, best = score, frame
        if highest > SURE:
            break
    closer = None if best is None else _nearer(detector, vertices, faces, best)
    if closer is None:
        raise InputError(f"{where}: {UNSEEN}")
    return closer


def in_frame(frame: Similarity, points: np.ndarray) -> np.ndarray:
    """Points [N, 3] in the frame that `frame` leads to."""
    return frame.apply(torch.from_numpy(np.asarray(points, np.float64))[None])[0].numpy()


def _sides() -> Iterator[np.ndarray]:
    """Mesh -> camera (right, down, forward) along the axes, the usual ones first."""
    usual = [((1, 1), (2, 1)), ((2, 1), (1, -1)), ((1, 1), (2, -1)), ((1, 1), (0, 1)), ((2, 1), (0, 1))]
    every = [((u, s), (f, t)) for u, s, f, t in product(range(3), (1, -1), range(3), (1, -1)) if u != f]
    for up, face in dict.fromkeys(usual + every):
        down, forward = -up[1] * np.eye(3)[up[0]], -face[1] * np.eye(3)[face[0]]
        yield np.stack([np.cross(down, forward), down, forward])


def _look(
    detector: BuiltinDetector,
    vertices: np.ndarray,
    faces: torch.Tensor,
    turn: np.ndarray,
    center: np.ndarray,
    shown: float,
    side: int,
) -> tuple[float, np.ndarray]:
    """Score of the best upright face in one picture, and its points on the surface [68, 3], NaN where there
    is none.

    turn: [3, 3] mesh -> camera; center: [3] of the picture; shown: what it shows, in the mesh's unit.
    """
    points = torch.from_numpy((vertices - center) @ turn.T * (HEAD_MM / shown)).float()
    far = float(points.abs().max()) + HEAD_MM
    across = points[:, :2] * (side / HEAD_MM) + (side - 1) / 2
    w = points.new_full((len(points), 1), DIVISOR)
    surface = Surface.visible(torch.cat([across * w, points[:, 2:] + far, w], 1), faces, (side, side))
    if not len(surface.pixel):
        return 0.0, np.full((68, 3), np.nan)
    drawn = light_surface(surface, points, faces)
    alpha = drawn.alpha[..., None]
    picture = ((drawn.rgb * alpha + GREY * (1 - alpha)) * 255).round().byte().numpy()
    looks = [look for look in detector.find(picture) if abs(look.roll) < LEAN]
    if not looks:
        return 0.0, np.full((68, 3), np.nan)
    look = max(looks, key=lambda k: k.score)
    place = surface.image(surface.interpolate(torch.from_numpy(vertices - center).float()[faces])).numpy()
    x, y = detector.landmarks(look).points[0].round().long().clamp(0, side - 1).numpy().T
    hit = (drawn.alpha > 0).numpy()[y, x]
    return look.score, np.where(hit[:, None], place[y, x] + center, np.nan)


def onto_mean(points: np.ndarray, used: torch.Tensor = SHOWN) -> tuple[Similarity, float]:
    """The similarity that lays points [68, 3], NaN where missing, onto those of the mean face by those that
    are `used` [68], and the median of their distances, mm; infinite where they are too few.

    Points far off, which were looked at through a gap between lid and eyeball, are left out."""
    generic = load_model("generic")
    source = torch.from_numpy(np.asarray(points, np.float64))[None]
    target = generic.landmarks.points(generic.mean[None], generic.triangles).double()
    used = used & torch.isfinite(source[0]).all(-1)
    try:
        for _ in range(5):
            frame = similarity_align(source, target, used[None])
            rest = (frame.apply(source) - target)[0].norm(dim=-1)
            median = float(rest[used].median())
            used = used & (rest < FAR * median)
    except DegenerateInputError:
        return Similarity(torch.ones(1), torch.eye(3)[None], torch.zeros(1, 3)), np.inf
    return frame, median


def _nearer(
    detector: BuiltinDetector, vertices: np.ndarray, faces: torch.Tensor, frame: Similarity
) -> tuple[Similarity, np.ndarray] | None:
    """`find_face` by larger pictures of the face from three sides; None: seen in none of them."""
    scale, upright = float(frame.scale), np.diag([1.0, -1.0, -1.0]) @ frame.rotation[0].numpy()
    generic = load_model("generic")
    marks = generic.landmarks.points(generic.mean[None], generic.triangles)[0].double()
    center = ((marks.mean(0) - frame.translation[0]) @ frame.rotation[0] / scale).numpy()
    seen = []
    for yaw in YAWS:
        turn = so3_exp(torch.tensor([0.0, yaw, 0.0], dtype=torch.float64)).numpy() @ upright
        score, points = _look(detector, vertices, faces, turn, center, FACE_MM / scale, NEAR_SIDE)
        if score >= SCORE:
            seen.append(points)
    if not seen:
        return None
    known = np.isfinite(seen).all(-1).any(0)
    points = np.full((68, 3), np.nan)
    points[known] = np.nanmedian(np.stack(seen)[:, known], 0)
    return onto_mean(points)[0], points


# ---- generic on the surface ----

MODEL_STEPS, BEND_STEPS = 15, 4
SAMPLES = 1000  # vertices of the model that its coefficients are fitted by
PRIOR = 6.0  # weight of the prior of the coefficients: neighbouring distances are no independent ones
SURFACE_MM, POINT_MM = 1.0, 4.0  # standard deviations: of surface distances, and of points seen in pictures
POINT_SHARE = 0.1  # of the weight of all surface distances, for the points
REACH_MM = 25.0  # from partners farther than this nothing is bent


def register(
    model: FaceModel, vertices: np.ndarray, triangles: np.ndarray, points: np.ndarray | None = None
) -> np.ndarray:
    """The vertices of a model on the surface of another head in neutral expression.

    First the model's identity and a similarity, by the distances of its face along the normals of the nearest
    surface that faces the same way (robust, with the Gaussian prior of the coefficients), then a smooth
    displacement of the whole head.

    Args:
        vertices: [V, 3] mm, about in the head frame; triangles: [F, 3], counter-clockwise seen from outside;
        points: [68, 3] landmarks that were seen there, about right, NaN where unknown.
    Returns: [V of the model, 3] mm, in the frame of `vertices`.
    """
    surface = Patch.whole(vertices, triangles)
    laid = _with_identity(model, surface, points)
    membrane = Membrane(real(laid), model.triangles)
    rows = outer(model).nonzero().flatten().numpy()
    for _ in range(BEND_STEPS):
        partner, normal, weight = _partners(surface, laid, model.triangles, rows, REACH_MM)
        step, confidence = np.zeros_like(laid), np.zeros(len(laid))
        step[rows] = ((partner - laid[rows]) * normal).sum(1, keepdims=True) * normal
        confidence[rows] = weight
        laid = laid + membrane.solve(confidence, step, np.zeros(3))
    return laid


def _partners(
    surface: Patch, vertices: np.ndarray, triangles: torch.Tensor, rows: np.ndarray, reach: float = np.inf
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest places [N, 3] on a surface of the vertices `rows` [N] of a mesh, the normals there [N, 3] and
    weights 0 to 1 [N]: 0 where the surface faces elsewhere or is too far away, mm."""
    own = vertex_normals(torch.from_numpy(vertices)[None], triangles)[0].numpy()[rows]
    found = surface.closest(vertices[rows], own)
    limit = min(reach, max(FAR * float(np.median(found.distance)), 1.0))
    weight = np.clip(1 - (found.distance / limit) ** 2, 0, None) ** 2
    return found.point, found.normal, weight * found.facing


@dataclass(frozen=True)
class _Laid:
    """A model by its identity [K] and a similarity: scale * turn @ x + shift."""

    identity: np.ndarray
    scale: float
    turn: np.ndarray
    shift: np.ndarray

    def at(self, mean: np.ndarray, basis: np.ndarray) -> np.ndarray:
        """mean [N, 3], basis [K, N, 3] -> [N, 3]."""
        return self.scale * (mean + np.tensordot(self.identity, basis, 1)) @ self.turn.T + self.shift

    def columns(self, points: np.ndarray, basis: np.ndarray) -> np.ndarray:
        """Derivatives [N, 3, K + 7] of these points by identity, turn, shift and growth."""
        lever, eye = points - self.shift, np.eye(3)
        turned = np.stack([np.cross(eye[d], lever) for d in range(3)], 2)
        moved = (self.scale * basis @ self.turn.T).transpose(1, 2, 0)
        return np.concatenate([moved, turned, np.tile(eye, (len(points), 1, 1)), lever[..., None]], 2)

    def moved(self, step: np.ndarray) -> _Laid:
        """step: [K + 7], see `columns`."""
        K = len(self.identity)
        return _Laid(
            self.identity + step[:K],
            self.scale * float(np.exp(np.clip(step[K + 6], *LARGEST_GROWTH))),
            so3_exp(torch.from_numpy(step[K : K + 3])).numpy() @ self.turn,
            self.shift + step[K + 3 : K + 6],
        )


def _with_identity(model: FaceModel, surface: Patch, points: np.ndarray | None) -> np.ndarray:
    """`register` by identity and a similarity alone."""
    mean, basis = model.mean.double().numpy(), model.identity_basis.double().numpy()
    face = model.face.nonzero().flatten().numpy()
    rows = face[:: max(1, len(face) // SAMPLES)]
    known, sight = _seen(points)
    marks = model.landmarks
    share = marks.barycentric.double().numpy()[known]
    corners = model.triangles[marks.triangle].numpy()[known]
    marks_mean = np.einsum("lk,lkd->ld", share, mean[corners])
    marks_basis = np.einsum("lk,clkd->cld", share, basis[:, corners])
    K = len(basis)
    laid = _Laid(np.zeros(K), 1.0, np.eye(3), np.zeros(3))
    for step in range(MODEL_STEPS):
        vertices = laid.at(mean, basis)
        nearest, normal, weight = _partners(surface, vertices, model.triangles, rows)
        weight = np.sqrt(weight) / SURFACE_MM
        columns = np.einsum("ndk,nd->nk", laid.columns(vertices[rows], basis[:, rows]), normal)
        A = [columns * weight[:, None]]
        b = [((nearest - vertices[rows]) * normal).sum(1) * weight]
        if points is not None and len(known):
            at = laid.at(marks_mean, marks_basis)
            rest = (points[known] - at) * sight
            # Cauchy's kernel, of two standard deviations.
            weight = 1 / np.sqrt(1 + (rest**2).sum(1, keepdims=True) / (2 * POINT_MM) ** 2) / POINT_MM
            weight = weight * np.sqrt(POINT_SHARE * len(rows) / len(known))
            A.append((laid.columns(at, marks_basis) * (sight * weight)[..., None]).reshape(-1, K + 7))
            b.append((rest * weight).reshape(-1))
        # Stiff at first, while partners are still wrong ones.
        prior = np.r_[np.full(K, PRIOR * max(1.0, 6.0 - step)), np.full(7, 1e-6)]
        A, b, now = np.concatenate(A), np.concatenate(b), np.r_[laid.identity, np.zeros(7)]
        laid = laid.moved(np.linalg.solve(A.T @ A + np.diag(prior), A.T @ b - prior * now))
    return laid.at(mean, basis)


def _seen(points: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the points [68, 3] that a fit may use [L], and which of their coordinates are known [L, 3],
    0 or 1."""
    if points is None:
        return np.zeros(0, np.int64), np.zeros((0, 3))
    known = (np.isfinite(points).all(1) & (SHOWN | CHIN).numpy()).nonzero()[0]
    return known, np.where(CHIN.numpy()[known, None], [1.0, 1.0, 0.0], 1.0)


def carry(
    model: FaceModel, laid: np.ndarray, vertices: np.ndarray, triangles: np.ndarray
) -> LandmarkEmbedding:
    """The model's points at the nearest places of a surface.

    Args:
        laid: [V of the model, 3], its vertices there, see `register`; vertices: [V, 3]; triangles: [F, 3].
    """
    marks = model.landmarks.points(real(laid)[None], model.triangles)[0].double().numpy()
    nearest, _, triangle = SurfaceIndex(vertices, triangles).query(marks)
    corners = np.asarray(vertices, np.float64)[triangles[triangle]]
    return LandmarkEmbedding(NAMES, torch.from_numpy(triangle), real(barycentric(nearest, corners)))


def place_landmarks(mean: np.ndarray, triangles: np.ndarray) -> LandmarkEmbedding:
    """The 68 iBUG points of a head mesh that nothing else is known of.

    Args:
        mean: [V, 3], neutral expression, in any unit, with any axes; triangles: [F, 3] int, either way round.
    Raises:
        InputError: no face seen in it.
    """
    frame, points = find_face(mean, triangles)
    vertices, points = in_frame(frame, mean), in_frame(frame, points)
    inside_out = faces_away(vertices, triangles, points)
    facing = triangles[:, ::-1] if inside_out else triangles
    generic = load_model("generic")
    marks = carry(generic, register(generic, vertices, facing, points), vertices, facing)
    return replace(marks, barycentric=marks.barycentric.flip(1)) if inside_out else marks


def with_all_landmarks(model: FaceModel) -> FaceModel:
    """The model with all 68 points: those that it lacks are placed as `place_landmarks` does, from the others
    instead of pictures. `notes` say which.

    Raises:
        InputError: the points that it has are not those of a face.
    """
    marks, triangles = model.landmarks, model.triangles.numpy()
    vertices = model.mean.double().numpy()
    points = marks.points(model.mean[None], model.triangles)[0].double()
    points = torch.where(marks.present[:, None], points, torch.nan).numpy()
    frame, residual = onto_mean(points)
    if residual > RESIDUAL_MM:
        raise InputError(
            f"model {model.name!r}: its landmarks are {residual:.3g} mm from those of a mean face (median); "
            "they belong to another mesh"
        )
    vertices, points = in_frame(frame, vertices), in_frame(frame, points)
    generic = load_model("generic")
    placed = carry(generic, register(generic, vertices, triangles, points), vertices, triangles)
    there = marks.present
    lacked = ", ".join(map(str, marks.missing))
    return replace(
        model,
        landmarks=LandmarkEmbedding(
            marks.names,
            torch.where(there, marks.triangle, placed.triangle),
            torch.where(there[:, None], marks.barycentric, placed.barycentric),
        ),
        notes=f"{model.notes} Landmarks {lacked}, which the files do not mark, lie where those of 'generic' "
        "come to lie on the mean face: look at them before you compare landmarks.".strip(),
    )
