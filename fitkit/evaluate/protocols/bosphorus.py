"""Bosphorus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fitkit.data import bosphorus
from fitkit.data.samples import EvaluationSample
from fitkit.evaluate.protocols.pixel_face import PosedScan
from fitkit.io.options import Range


@dataclass(frozen=True)
class BosphorusOptions:
    angle: Annotated[int, Range(0, 180)] = 45  # degrees of the turned pictures beside a neutral frontal one
    # of the one to the right alone, 'random': another one for each scan; DF-MVR's table V
    right: Literal["angle", 10, 20, 30, 45, 90, "random"] = "angle"


class Bosphorus(PosedScan):
    """Posed faces against range images of the same moment.

    Data: Bosphorus (Savran et al., BIOID 2008), 105 people, expressions and turned heads.
    Metric: as `pixel_face`: `s2m_mean`, `s2m_rmse`, `p2plane_rmse`, mm.
    Source: DF-MVR (Zhao et al., 2025) (`evaluate.pixel_face.scan_errors`).
    """

    options = BosphorusOptions
    dataset = bosphorus.BOSPHORUS

    def samples(self, folder, options: BosphorusOptions) -> list[EvaluationSample]:
        return bosphorus.bosphorus_samples(
            folder, options.angle, 0 if options.right == "angle" else options.right
        )


PROTOCOL = Bosphorus()
