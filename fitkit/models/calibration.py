"""How well the error bars of a fit keep what they promise, measured for one face model.

Measured on rendered people whom no model knows, in one light and instant (`fitkit synth --recipe outside
--seed 100`), in casual sets (`--recipe casual --seed 200`), and on a real head scan, with the built-in
landmarks. When a default recipe, a model or the detector has changed:

    fitkit bench verdicts OUTSIDE SCAN --views 1,2,3,5 --subjects 6 --faults '' --json a.json
    fitkit bench verdicts CASUAL --views 1,4 --subjects 6 --faults '' --json b.json
    fitkit bench verdicts a.json b.json

The first two take `--model` for each model. The last one prints `single` and `several` as they should be, and
UPPER of `fitting/findings.py` with them; write them there, into the table or into the model's file. Report on
other seeds. For a model that a user has imported `fitkit model calibrate` measures all five and writes them
into its file (`evaluate/bench/calibrate.py`).
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass, fields

from fitkit.io.resources import asset_path

TABLE = "calibration.csv"


@dataclass(frozen=True)
class Calibration:
    """What makes the error bars of fits with one face model right.

    inflation: factor on the standard deviations of the Laplace approximation; floor_mm: standard deviation
    along the normal of what the model cannot show or is misled by, because no person is exactly in its span;
    left: the share of the standard deviation that is left where the matches fix the displacement of the
    detail layer. single, several: true mean error over that of the error bars, in fits of one photo and of
    several.
    """

    inflation: float
    floor_mm: float
    left: float = 0.9
    single: float = 1.0
    several: float = 1.1

    def __str__(self) -> str:
        """'inflation 1.25, floor 0.7 mm; expected errors x 1 (one photo), x 1.1 (several)'."""
        return (
            f"inflation {self.inflation:g}, floor {self.floor_mm:g} mm; expected errors x {self.single:g} "
            f"(one photo), x {self.several:g} (several)"
        )

    def true_over_bars(self, photos: int) -> float:
        """True mean error over that of the error bars, in fits of so many photos."""
        return self.single if photos == 1 else self.several


@functools.lru_cache
def shipped_calibrations() -> dict[str, Calibration]:
    """Model name -> calibration: of the models that fitkit knows, as `assets/calibration.csv` has them.

    Raises:
        InputError: the table is not there; the installation is incomplete.
    """
    lines = asset_path(TABLE).read_text().splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {row["model"]: Calibration(*(float(row[f.name]) for f in fields(Calibration))) for row in rows}


def default_calibration(name: str = "") -> Calibration:
    """What is known of a model by its name; one that nobody has calibrated is taken to be no better than
    `generic`."""
    known = shipped_calibrations()
    return known.get(name, known["generic"])
