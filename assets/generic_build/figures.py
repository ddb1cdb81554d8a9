"""Read the table of measured sites and interpolate between them."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .kernel import KernelParameters


@dataclass(frozen=True)
class Figures:
    """Measured sites of both halves of the head; right-half sites are mirror images."""

    names: list[str]  # left half and midline as in the table, then the mirrored ones with "_right"
    mirror: np.ndarray  # [P] row of the mirror image
    position: np.ndarray  # [P, 3] mm
    layout: np.ndarray  # [P, 2] place in the planar map of the head
    covariance: np.ndarray  # [P, 3, 3] mm^2, over people
    local: np.ndarray  # [P, 3, 3] mm^2, the same without the coarse shape
    expressions: dict[str, np.ndarray]  # name -> [P, 3] mm
    eye_centre: np.ndarray  # [3] left eyeball
    eye_radius: float
    iris_radius: float
    neck_end: np.ndarray  # [4] plane
    kernel: KernelParameters

    def rows(self, prefix: str) -> np.ndarray:
        """Rows of the left half whose name starts with `prefix`, in table order."""
        half = [i for i, n in enumerate(self.names) if n.startswith(prefix) and not n.endswith("_right")]
        return np.array(half)

    def ibug(self, k: int) -> int:
        return self.names.index(f"ibug_{k}")

    def curve(self, prefix: str, corners: list[int]) -> np.ndarray:
        """Rows along a contour: the iBUG points `corners` with the sites measured between them."""
        rows = []
        for a, b in itertools.pairwise(corners):
            rows.append(self.ibug(a))
            rows.extend(self.rows(f"{prefix}_{a}_{b}_"))
        if corners[-1] != corners[0]:
            rows.append(self.ibug(corners[-1]))
        return np.array(rows)


def load_figures(path: str | Path) -> Figures:
    table = json.loads(Path(path).read_text())
    points = table["points"]
    names = [p["name"] for p in points]
    position = np.array([p["position"] for p in points])
    layout = np.array([p["layout"] for p in points])
    square = [0, 1, 2, 1, 3, 4, 2, 4, 5]  # xx xy xz yy yz zz -> rows of the matrix
    covariance, local = (
        np.array([p[k] for p in points])[:, square].reshape(-1, 3, 3) for k in ("covariance", "local")
    )
    flip = np.array([-1.0, 1.0, 1.0])
    side = np.flatnonzero(position[:, 0] > 0.01)
    middle = np.flatnonzero(position[:, 0] <= 0.01)
    position[middle, 0] = 0.0
    layout[middle, 0] = 0.0
    n = len(names)
    mirror = np.arange(n + len(side))
    mirror[side] = np.arange(n, n + len(side))
    mirror[n:] = side
    expressions = {}
    for name, row in table["expressions"].items():
        here = np.array(row["here"]).reshape(-1, 3)
        there = np.array(row.get("there", row["here"])).reshape(-1, 3)
        if "there" not in row:
            here[middle, 0] = 0.0
        shape = np.concatenate([here, there[side] * flip])
        expressions[name] = shape
        if name.endswith("_L"):
            expressions[name[:-1] + "R"] = shape[mirror] * flip
        elif name.endswith("Left"):
            expressions[name[:-4] + "Right"] = shape[mirror] * flip
    return Figures(
        names=names + [names[i] + "_right" for i in side],
        mirror=mirror,
        position=np.concatenate([position, position[side] * flip]),
        layout=np.concatenate([layout, layout[side] * [-1, 1]]),
        covariance=np.concatenate([covariance, covariance[side] * np.outer(flip, flip)]),
        local=np.concatenate([local, local[side] * np.outer(flip, flip)]),
        expressions={k: expressions[k] for k in sorted(expressions)},
        eye_centre=np.array(table["eye"]["centre"]),
        eye_radius=table["eye"]["radius"],
        iris_radius=table["eye"]["iris_radius"],
        neck_end=np.array(table["neck_end"]),
        kernel=KernelParameters(
            **{
                k: np.array(v) if isinstance(v, list) else v
                for k, v in table["kernel"].items()
                if k in KernelParameters.__dataclass_fields__
            }
        ),
    )


class LayoutSpline:
    """Polyharmonic spline s(u) = sum_i w_i |u - u_i|^3 + a + B u on the planar layout.

    Source:
        Duchon, "Splines minimizing rotation-invariant semi-norms in Sobolev spaces", 1977.
    """

    def __init__(self, sites: np.ndarray, smoothing: float = 0.0):
        n = len(sites)
        system = np.zeros((n + 3, n + 3))
        system[:n, :n] = self._kernel(sites, sites) + smoothing * np.eye(n)
        system[:n, n] = 1.0
        system[:n, n + 1 :] = sites
        system[n:, :n] = system[:n, n:].T
        self.sites = sites
        self._inverse = np.linalg.inv(system)[:, :n]

    @staticmethod
    def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.linalg.norm(a[:, None] - b[None], axis=-1) ** 3

    def matrix(self, at: np.ndarray) -> np.ndarray:
        """[N, P] weights: the interpolated value at `at` [N, 2] is `matrix(at) @ values`."""
        return np.c_[self._kernel(at, self.sites), np.ones(len(at)), at] @ self._inverse
