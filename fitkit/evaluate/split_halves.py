"""Split halves: two fits to disjoint photos of each person, without ground truth. Do they agree, and do they
tell people apart?

A fit that returns the mean face agrees with itself and identifies nobody; one that follows the noise of its
photos identifies nobody either. Only the shape that both halves share and other people lack counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitkit.errors import InputError
from fitkit.evaluate.compare import mean_interval
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.normals import vertex_normals

# Distances that differ by less are equal; copies of one mesh are aligned with errors of 1e-12 mm.
TIE_MM = 1e-6


def face_distances(vertices: Tensor, triangles: Tensor, face: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of all pairs of neutral faces of one topology: along the normals, and from point to point;
    both [H, H] mm, symmetric.

    d(a <- b) = mean over the face's vertices i of |n_i . (s R b_i + t - a_i)|, where s, R, t is the
    least-squares similarity of the face's vertices of b onto those of a, and n_i the unit normal of mesh a at
    vertex i. The result is (d(a <- b) + d(b <- a)) / 2.
    Point to point: the same with the length |s R b_i + t - a_i|. Every vertex counts the same, whatever its
    area. The similarity takes out size, which photos without a known camera do not show; sliding of vertices
    within the surface counts only from point to point.

    Args:
        vertices: [H, V, 3] mm; triangles: [F, 3] int64, counter-clockwise seen from outside; face: [V] bool,
            vertices that are compared.
    """
    points = vertices[:, face].double()
    along, length = (points.new_zeros(len(points), len(points)) for _ in range(2))
    for a, target in enumerate(points):
        normals = vertex_normals(vertices[a : a + 1].double(), triangles)[0, face]
        moved = similarity_align(points, target[None].expand_as(points)).apply(points) - target
        along[a] = (moved * normals).sum(-1).abs().mean(1)
        length[a] = moved.norm(dim=-1).mean(1)
    return tuple((d + d.T).fill_diagonal_(0.0) / 2 for d in (along, length))


@dataclass(frozen=True)
class Identification:
    """Of H halves; NaN where it is not defined.

    within [H] mm: distance from the other half of the same person; between [H] mm: mean distance from the
    halves of other people; nearest [H] mm: smallest of those; identified [H]: 1 where the nearest of all
    other halves is the same person's, 1/n where it is one of n equally near ones, else 0 (also where the
    person has no other half); NaN without other people.
    """

    within: np.ndarray
    between: np.ndarray
    nearest: np.ndarray
    identified: np.ndarray


def identify(distance: np.ndarray, person: Sequence) -> Identification:
    """Rank-1 identification of every half among all others.

    Args:
        distance: [H, H] mm, symmetric; person: [H] names or numbers, each at most twice.
    """
    distance, person = np.asarray(distance, np.float64), np.asarray(person)
    within, between, nearest, identified = np.full((4, len(person)), np.nan)
    for h, row in enumerate(distance):
        mate = person == person[h]
        others = row[~mate]
        mate[h] = False
        if mate.any():
            within[h] = row[mate][0]
        if len(others):
            between[h], nearest[h] = others.mean(), others.min()
            first = mate.any() and nearest[h] >= within[h] - TIE_MM
            identified[h] = 1 / (1 + int((others <= within[h] + TIE_MM).sum())) if first else 0.0
    return Identification(within, between, nearest, identified)


def pair_scores(distance: np.ndarray, person: Sequence) -> dict[str, float]:
    """within, between [mm]: mean over the pairs of halves of one person, and of different people; ratio:
    within / between, 0 = perfect, 1 = the halves of a person are as different as two people; separated: share
    of all (pair within, pair between) whose within is the smaller one, ties count half (area under the ROC
    curve: 1 = perfect, 0.5 = chance). What needs a pair that is not there is left out."""
    distance, person = np.asarray(distance, np.float64), np.asarray(person)
    first, second = np.triu_indices(len(person), 1)
    pairs, same = distance[first, second], person[first] == person[second]
    within, between = pairs[same], np.sort(pairs[~same])
    out = {}
    if len(within):
        out["within"] = float(within.mean())
    if len(between):
        out["between"] = float(between.mean())
    if len(within) and len(between):
        if between.mean() > TIE_MM:
            out["ratio"] = float(within.mean() / between.mean())
        smaller, ties = (
            np.searchsorted(between, within - TIE_MM, "left"),
            np.searchsorted(between, within + TIE_MM, "right"),
        )
        out["separated"] = float(1 - ((smaller + ties) / 2).mean() / len(between))
    return out


@dataclass(frozen=True)
class SplitHalfScores:
    """Of N people and their H = 2 N halves; row h = 2 n + k is half k of person n, NaN for a half that is not
    valid.

    along, point [H, H] mm: `face_distances`; from_mean [H] mm: distance along the normals from the mean face,
    NaN without one; halves: `Identification` by `along`, fields [H]; overall: what `overall_scores` says.
    """

    along: np.ndarray
    point: np.ndarray
    from_mean: np.ndarray
    halves: Identification
    overall: dict[str, float]


def split_half_scores(
    vertices: np.ndarray | Tensor,
    triangles: np.ndarray | Tensor,
    face: np.ndarray | Tensor | None = None,
    mean: np.ndarray | Tensor | None = None,
    valid: np.ndarray | None = None,
) -> SplitHalfScores:
    """Agreement and identification of two neutral faces of each person.

    Args:
        vertices: [N, 2, V, 3] mm, one topology; triangles: [F, 3], counter-clockwise seen from outside; face:
            [V] bool, vertices that
        are compared, None = all; mean: [V, 3] mm, the mean face; valid: [N, 2] bool, False = a failed fit,
        whose vertices are not read: it and its person's other half count as not identified; None = all.
    Raises:
        InputError: arrays of another shape.
    """
    vertices = torch.as_tensor(vertices)
    if vertices.ndim != 4 or vertices.shape[1] != 2 or vertices.shape[3] != 3:
        raise InputError(f"vertices: expected [N, 2, V, 3], got {list(vertices.shape)}")
    people, count = len(vertices), vertices.shape[2]
    face = torch.ones(count, dtype=torch.bool) if face is None else torch.as_tensor(face)
    known = np.ones((people, 2), bool) if valid is None else np.asarray(valid, bool)
    for name, shape, wanted in (
        ("face", tuple(face.shape), (count,)),
        ("valid", known.shape, (people, 2)),
        ("mean", (count, 3) if mean is None else tuple(mean.shape), (count, 3)),
    ):
        if shape != wanted:
            raise InputError(
                f"{name}: expected {list(wanted)} for vertices {list(vertices.shape)}, got {list(shape)}"
            )
    use = known.ravel()
    meshes = vertices.reshape(2 * people, count, 3)[torch.from_numpy(use)].double()
    if mean is not None:
        meshes = torch.cat([meshes, torch.as_tensor(mean).double()[None]])
    found = [d.numpy() for d in face_distances(meshes, torch.as_tensor(triangles).long(), face)]
    H, n = 2 * people, int(use.sum())
    along, point, from_mean = np.full((H, H), np.nan), np.full((H, H), np.nan), np.full(H, np.nan)
    along[np.ix_(use, use)], point[np.ix_(use, use)] = (d[:n, :n] for d in found)
    if mean is not None:
        from_mean[use] = found[0][n, :n]
    person = np.repeat(np.arange(people), 2)
    fields = {}
    for name, value in vars(identify(along[np.ix_(use, use)], person[use])).items():
        fields[name] = np.full(H, 0.0 if name == "identified" else np.nan)
        fields[name][use] = value
    return SplitHalfScores(
        along,
        point,
        from_mean,
        Identification(**fields),
        overall_scores(along[np.ix_(use, use)], point[np.ix_(use, use)], person[use], person, from_mean[use]),
    )


def overall_scores(
    along: np.ndarray, point: np.ndarray, person: Sequence, everyone: Sequence, from_mean: np.ndarray
) -> dict[str, float]:
    """All numbers of a set of halves.

    Args:
        along, point: [H, H] mm, of the halves that were fitted; person: [H]; everyone: person of every half,
            failed ones included;
        from_mean: [H] mm.
    Returns:
        people; halves: fitted ones; `pair_scores` along the normals, and from point to point with names that
        begin with 'point_'; rank1_percent: share of all halves, failed ones included, that are identified,
        rank1_low, rank1_high: its 95 % interval (bootstrap over the people); chance_percent: what guessing
        gives; point_rank1_percent; from_mean: mean over the halves, mm. Numbers that are not defined are left
        out.
    """
    names = list(dict.fromkeys(everyone))
    out: dict[str, float] = {"people": len(names), "halves": len(person)} | pair_scores(along, person)
    if len(names) > 1 and len(person):
        hits, total = identify(along, person).identified, len(everyone)
        by_person = np.array([hits[np.asarray(person) == name].sum() * len(names) / total for name in names])
        low, high = mean_interval(by_person)
        out |= {
            "rank1_percent": 100 * float(hits.sum()) / total,
            "rank1_low": 100 * low,
            "rank1_high": 100 * high,
            "chance_percent": 100 / (total - 1),
            "point_rank1_percent": 100 * float(identify(point, person).identified.sum()) / total,
        }
    out |= {f"point_{k}": v for k, v in pair_scores(point, person).items()}
    out["from_mean"] = float(np.mean(from_mean)) if len(from_mean) else np.nan
    return {k: v for k, v in out.items() if np.isfinite(v)}


def by_person(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Values of each person from the rows of its halves (id 'PERSON/half0'): status of both, and means of the
    numbers that are known."""
    out: dict[str, dict[str, Any]] = {}
    for row in rows:
        out.setdefault(row["id"].rpartition("/")[0], {}).setdefault("rows", []).append(row)
    for person in out.values():
        halves = person.pop("rows")
        person["status"] = [r["status"] for r in halves]
        for name in UNITS:
            known = [r[name] for r in halves if r.get(name) is not None]
            if known:
                person[name] = float(np.mean(known))
    return out


UNITS = {
    "within": "mm",
    "point_within": "mm",
    "between": "mm",
    "nearest_other": "mm",
    "identified": "share",
    "from_mean": "mm",
    "identity_rms": "sigma",
    "error_bar": "mm",
}
