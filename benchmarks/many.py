"""People fitted side by side against one after the other: python benchmarks/many.py --people 32

Renders people of `generic` with one to four photos each, fits each alone and then all with `fitkit.fit_many`,
on one thread, and counts those whose numbers are the same, bit for bit. What is saved are calls of torch with
little work in them; reading, rendering, flow and report take the time they take.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import fitkit
from fitkit.fitting.recipe import load_recipe
from fitkit.io.subject import Subject, load_subject
from fitkit.synth.folder import write_subjects
from fitkit.synth.recipe import load_synth_recipe

MOST = 4  # photos of a person


def timed(function: Callable, *args, **options) -> tuple[Any, float]:
    """What it gives, and CPU seconds."""
    began = time.process_time()
    result = function(*args, **options)
    return result, time.process_time() - began


def people(count: int, folder: Path, size: int) -> list[Subject]:
    """Person i with 1 + i modulo MOST of its photos."""
    changes = {"model": "generic", "views": MOST, "size": size, "seed": 16, "landmark_noise": size / 400}
    recipe = load_synth_recipe("clean", (), changes)
    subjects = [load_subject(place) for place in write_subjects(recipe, count, folder)]
    return [replace(s, views=s.views[: 1 + i % MOST]) for i, s in enumerate(subjects)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=32)
    parser.add_argument("--batch-size", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--recipe", nargs="+", default=["landmarks", "multiview"])
    parser.add_argument("--size", type=int, default=256, help="of the photos, px")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        subjects = people(arguments.people, Path(folder), arguments.size)
        for name in arguments.recipe:
            recipe, model = load_recipe(name), fitkit.load_model()
            fitkit.fit(subjects[-1], recipe=recipe, model=model)  # compiles and loads
            alone, seconds = timed(lambda: [fitkit.fit(s, recipe=recipe, model=model) for s in subjects])
            print(f"{name}: alone {seconds / len(subjects):.3f} CPU s per person", flush=True)
            for size in arguments.batch_size:
                many, cpu = timed(fitkit.fit_many, subjects, recipe=recipe, model=model, batch_size=size)
                pairs = list(zip(alone, many))
                apart = sorted(float((a.neutral - b.neutral).norm(dim=-1).max()) for a, b in pairs)
                same = sum(a.status == b.status for a, b in pairs)
                equal = sum(torch.equal(a.vertices, b.vertices) for a, b in pairs)
                print(
                    f"{name}: {size} side by side {cpu / len(subjects):.3f} CPU s per person, "
                    f"{cpu / seconds:.2f} of alone; neutral vertices differ by at most {apart[-1]:.4f} mm, "
                    f"median {apart[len(apart) // 2]:.4f} mm; same status: {same}, same bits: {equal} of "
                    f"{len(pairs)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
