"""Build the face model `generic.npz` from the measured figures in `generic_figures.json`.

    python assets/build_generic.py [-o generic.npz]

The model is a Gaussian-process morphable model: a head mesh of our own drawing through measured
anthropometric sites, an identity basis that is the truncated eigen-expansion of a multi-scale,
mirror-symmetric kernel, and named expressions interpolated from measured site displacements. The result is
the same at every run.

Source:
    Luethi et al., "Gaussian Process Morphable Models", TPAMI 2018; Gerig et al., "Morphable Face Models - An
    Open Framework", FG 2018. Figures: see the header of `generic_figures.json`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from generic_build.assemble import build_arrays
from generic_build.figures import load_figures

SYMMETRIC_MODES, ANTISYMMETRIC_MODES = 108, 10
NOT_STORED = ("mirror", "layout", "lid_loop", "lip_loop")
STORED_AS = {
    "mean": np.float32,
    "identity_basis": np.float16,
    "expression_basis": np.float16,
    "extra_basis": np.float16,
    "uv": np.float32,
    "landmark_barycentric": np.float32,
    "albedo_mean": np.float32,
}


def model_arrays(figures_path: Path = HERE / "generic_figures.json") -> dict[str, np.ndarray]:
    """All arrays of the file in the stored types, plus the ones in NOT_STORED that only the tests need."""
    arrays = build_arrays(load_figures(figures_path), SYMMETRIC_MODES, ANTISYMMETRIC_MODES)
    for name, kind in STORED_AS.items():
        arrays[name] = arrays[name].astype(kind)
    return arrays


def write_model(path: Path, arrays: dict[str, np.ndarray]) -> None:
    texts = {
        "format": np.array("fitkit-model"),
        "version": np.array(1),
        "name": np.array("generic"),
        "license": np.array("MIT"),
        "source": np.array(
            "fitkit, assets/build_generic.py (Gaussian-process morphable model on a mesh of our own); "
            "anthropometric figures measured on ICT-FaceKit (MIT licence; Li et al., CVPR 2020), see "
            "assets/generic_figures.json"
        ),
    }
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **texts, **{k: v for k, v in arrays.items() if k not in NOT_STORED})
    os.replace(part, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=HERE / "generic.npz")
    output = parser.parse_args().output
    built = model_arrays()
    write_model(output, built)
    print(
        f"{output.name}: {len(built['mean'])} vertices, {len(built['triangles'])} triangles, "
        f"{len(built['identity_basis'])} identity modes, {len(built['expression_basis'])} expressions, "
        f"{output.stat().st_size / 1e6:.2f} MB"
    )
