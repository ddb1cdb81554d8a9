"""Time of a fit of three photos with models of other sizes, beside `generic`'s: python benchmarks/models.py

`generic` and, where it is imported, `ict`; then models of the sizes of FLAME (with joints), of the Basel
front of Deep3DFaceRecon and of the Basel Face Model of 2009, whose files may not be here: the head of
`generic` with as many vertices, and random but smooth shapes. Each is fitted to its own renders with exact
landmarks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from skinned import errors, fit, helpers, joints_of, linear_front, linear_model, person

from fitkit.evaluate.machine import describe, machine
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import list_models, load_model

# name: vertices, identity and expression shapes
SIZES = {
    "FLAME": (5023, 300, 100),
    "BFM front": (35709, 80, 64),
    "BFM 2009": (53215, 199, 29),
}


def models() -> Iterator[FaceModel]:
    """One after the other: the large ones take much memory."""
    for name in ("generic", "ict"):
        if name in list_models():
            yield load_model(name)
    for name, size in SIZES.items():
        model = linear_model(name, *size)
        if name == "FLAME":
            model = helpers.with_joints(model, joints_of(model), front=linear_front(model))
        yield model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=3)
    parser.add_argument("--recipe", default="multiview")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts, rows = machine(), []
    for model in models():
        fit(model, person(model, arguments.people), "landmarks")  # warm-up
        fits = []
        for seed in range(arguments.people):
            truth, began = person(model, seed), time.perf_counter()
            result, seconds = fit(model, truth, arguments.recipe)
            wall = time.perf_counter() - began
            fits.append({"cpu_s": seconds, "wall_s": wall, **errors(result, truth)})
        middle = {key: statistics.median(row[key] for row in fits) for key in fits[0]}
        size = {"vertices": model.num_vertices, "shapes": model.num_identity + model.num_expression}
        rows.append({"model": model.name, **size, **middle, "fits": fits})
        ratio = middle["cpu_s"] / rows[0]["cpu_s"]
        said = ", ".join(f"{key} {value:.3g}" for key, value in middle.items())
        print(f"{model.name}: {model.num_vertices} vertices, {said}, {ratio:.2f} times generic", flush=True)
    print(describe(facts))
    if arguments.output:
        report = {"machine": facts, "recipe": arguments.recipe, "models": rows}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
