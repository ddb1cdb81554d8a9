"""Depth maps of rendered people, photo by photo."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fitkit.data.samples import EvaluationSample, images_in
from fitkit.errors import InputError
from fitkit.evaluate.bench.photos import photos_at
from fitkit.evaluate.predictions import PredictedFace
from fitkit.evaluate.protocols.base import Protocol, Scored
from fitkit.evaluate.relief import normal_errors, relief_errors
from fitkit.io.options import Natural
from fitkit.render.rasterizer import rasterize
from fitkit.synth.dataset import is_synth_folder, subjects_in
from fitkit.synth.folder import read_classes, read_depth, read_normals


@dataclass(frozen=True)
class DepthMapOptions:
    views: tuple[Natural, ...] = ()  # positions of the photos of each person, from 0; empty: all


@dataclass(frozen=True)
class TrueMaps:
    """depth [H, W] mm, normals [H, W, 3], face [H, W] bool: pixels that show the face."""

    depth: Tensor
    normals: Tensor
    face: Tensor


def read_maps(truth: Path, stem: str) -> TrueMaps:
    """The true maps of a photo of `fitkit synth`.

    Raises:
        InputError: a file that is missing or no such map.
    """
    depth, normals, parse = (
        torch.from_numpy(np.ascontiguousarray(read(truth / f"{stem}_{part}.png")))
        for part, read in (("depth", read_depth), ("normals", read_normals), ("parse", read_classes))
    )
    if not depth.shape == parse.shape == normals.shape[:2]:
        raise InputError(f"{truth}: the maps of {stem} have different sizes; render the subject again")
    return TrueMaps(depth, normals, (parse > 0) & (depth > 0))


class DepthMaps(Protocol):
    """How far the surface that is seen in each photo lies from the true one, pixel by pixel.

    Data: people of `fitkit synth`; each photo is predicted by itself.
    Metric: over the pixels that show the face (skin, brows, eyes, nose, mouth; nothing in front of it) and
    are predicted: depth_mm, mean of |d - t - m| with m their median, since one photo hardly tells how far
    away a head is; depth_p90_mm, its 90th percentile; depth_scaled_mm, the mean after the scale and shift
    of d that fit best; normals_deg, mean angle between the normals of d and the true ones; missing_percent,
    pixels of the face that are not predicted.
    Source: losses of Shu et al., FG 2020, as errors (`evaluate.relief`).
    """

    options = DepthMapOptions
    units: ClassVar[dict[str, str]] = {
        "depth_mm": "mm",
        "depth_p90_mm": "mm",
        "depth_scaled_mm": "mm",
        "normals_deg": "degrees",
        "missing_percent": "%",
    }
    drawn_by: ClassVar[tuple[str, ...]] = ("views",)

    def samples(self, folder: str | os.PathLike, options: DepthMapOptions) -> list[EvaluationSample]:
        root = Path(folder)
        if not is_synth_folder(root):
            raise InputError(f"{root}: expected a folder that fitkit synth has written, with the true depth")
        out = []
        for name in subjects_in(root):
            stems = [p.stem for p in images_in(root / name)]
            for place in options.views or range(len(stems)):
                if place >= len(stems):
                    raise InputError(
                        f"{root / name}: views: expected numbers from 0 to {len(stems) - 1}, got {place}"
                    )
                out.append(
                    EvaluationSample(
                        f"{name}/{stems[place]}",
                        partial(photos_at, root / name, (place,)),
                        partial(read_maps, root / "ground_truth" / name, stems[place]),
                        stems[place],
                    )
                )
        return out

    def score(
        self, sample: EvaluationSample, prediction: PredictedFace, options: DepthMapOptions, context: Any
    ) -> Scored:
        prediction.need("posed", "triangles", "focal", "principal")
        truth: TrueMaps = sample.truth()
        camera = prediction.camera()
        posed = torch.from_numpy(np.asarray(prediction.posed[0], np.float64))[None]
        triangles = torch.from_numpy(np.asarray(prediction.triangles))
        drawn = rasterize(camera.clip(posed), triangles, tuple(truth.depth.shape))
        depth, covered = drawn.depth[0], drawn.covered[0]
        both = covered & truth.face
        faces = int(truth.face.sum())
        if not faces or not bool(both.any()):
            raise InputError(f"{sample.id}: the prediction and the true face have no pixel in common")
        true = truth.depth.to(depth)
        errors = relief_errors(depth, true, both)
        angles = normal_errors(depth, camera, truth.normals.to(depth), both)
        return Scored(
            {
                "depth_mm": float(errors.mean()),
                "depth_p90_mm": float(errors.quantile(0.9)),
                "depth_scaled_mm": _scaled(depth[both], true[both]),
                "normals_deg": float(angles.mean()) if len(angles) else None,
                "missing_percent": 100 * (1 - int(both.sum()) / faces),
            }
        )


def _scaled(depth: Tensor, truth: Tensor) -> float:
    """Mean distance of depths [N] from the true ones after the scale and shift that fit best, mm."""
    line = torch.stack([depth - depth.mean(), torch.ones_like(depth)], 1)
    best = torch.linalg.lstsq(line, truth[:, None]).solution
    return float((line @ best - truth[:, None]).abs().mean())


PROTOCOL = DepthMaps()
