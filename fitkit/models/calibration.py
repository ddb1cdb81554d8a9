"""How well the error bars of a fit keep what they promise, measured for one face model."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass

from fitkit.io.resources import asset_path

TABLE = "calibration.csv"


@dataclass(frozen=True)
class Calibration:
    """What makes the error bars of fits with one face model right.

    inflation: factor on the standard deviations of the Laplace approximation; floor_mm: standard deviation
    along the normal of what the model cannot show or is misled by, because no person is exactly in its span;
    left: the share of the standard deviation that is left where the matches fix the displacement of the
    detail layer.
    """

    inflation: float
    floor_mm: float
    left: float = 0.9

    def __str__(self) -> str:
        """'inflation 1.25, floor 0.7 mm'."""
        return f"inflation {self.inflation:g}, floor {self.floor_mm:g} mm"


@functools.lru_cache
def shipped_calibrations() -> dict[str, Calibration]:
    """Model name -> calibration: of the models that fitkit knows, as `assets/calibration.csv` has them.

    Raises:
        InputError: the table is not there; the installation is incomplete.
    """
    lines = asset_path(TABLE).read_text().splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {
        row["model"]: Calibration(float(row["inflation"]), float(row["floor_mm"]), float(row["left"]))
        for row in rows
    }


def default_calibration() -> Calibration:
    """That of a model which nobody has calibrated: it is taken to be no better than `generic`."""
    return shipped_calibrations()["generic"]
