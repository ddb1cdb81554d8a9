"""Curves of a training of a regressor from its log.csv: python benchmarks/training_curves.py LOG [LOG ...] -o
curves.png

Several logs are parts of one training, one behind the other. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import itertools

import matplotlib.pyplot as plt

from fitkit.io.foreign import foreign_file


def read(paths: list[str]) -> list[dict[str, str]]:
    """Rows of all logs, their steps counted on."""
    rows, before = [], 0
    for path in paths:
        with foreign_file(path, "not readable as the log of a training") as file:
            mine = [
                row | {"step": str(before + int(row["step"]))}
                for row in csv.DictReader(file.text().splitlines())
            ]
        rows += mine
        before = int(mine[-1]["step"])
    return rows


def column(rows: list[dict[str, str]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values where the column has any."""
    found = [(int(r["step"]), float(r[name])) for r in rows if r.get(name)]
    return np.array([s for s, _ in found]), np.array([v for _, v in found])


def smooth(values: np.ndarray, width: int = 15) -> np.ndarray:
    """Running mean; the ends take what is there."""
    if len(values) < 2:
        return values
    kernel = np.ones(min(width, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", nargs="+")
    parser.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args()
    rows = read(arguments.logs)
    energies = list(dict.fromkeys(n.removesuffix("_rms") for row in rows for n in row if n.endswith("_rms")))
    energies = [n for n in energies if len(column(rows, n)[0]) > 1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), dpi=90)
    for name in energies:
        steps, values = column(rows, name)
        left.plot(steps, smooth(values), label=name, linewidth=1.2)
    left.set(xlabel="step", ylabel="cost per person (weighted)", yscale="log", title="energies, running mean")
    left.legend(fontsize=7)
    for name, style in (
        ("vertex_mm", "C0-o"),
        ("mean_face_mm", "C0:"),
        ("shape_mm", "C1-o"),
        ("mean_shape_mm", "C1:"),
        ("nme_percent", "C2-o"),
        ("flow_px", "C3-o"),
    ):
        steps, values = column(rows, name)
        if len(steps):
            right.plot(steps, values, style, label=name, markersize=3, linewidth=1.2)
    right.set(xlabel="step", ylabel="mm, %, px", ylim=(0, None), title="people held out")
    right.legend(fontsize=7)
    for axis in (left, right):
        changes = [int(b["step"]) for a, b in itertools.pairwise(rows) if a["stage"] != b["stage"]]
        for step in changes:
            axis.axvline(step, color="0.7", linewidth=0.8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(Path(arguments.output))


if __name__ == "__main__":
    main()
