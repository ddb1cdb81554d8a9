"""For what takes MICA's shape: `identity.npy`. Source: demo.py of MICA (github.com/Zielon/MICA)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fitkit.export.flame import detail_note, flame_parameters, numbers
from fitkit.export.targets import ExportOptions
from fitkit.fitting.result import FitResult


def write_mica(result: FitResult, folder: Path, options: ExportOptions) -> list[str]:
    """`identity.npy`: FLAME's 300 shape coefficients of the person, float32."""
    np.save(folder / "identity.npy", numbers(flame_parameters(result).shape))
    return detail_note(result, "MICA")
