"""How well the head is told from hair, glasses and background: the tables of docs/masks.md.

fitkit synth held_generic --model generic --subjects 30 --seed 901 OPTIONS    # as in assets/README.md
fitkit synth held_makehuman --model makehuman --subjects 30 --seed 902 OPTIONS
python benchmarks/masks.py held_generic held_makehuman
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

from fitkit.evaluate.bench.photos import photos_at
from fitkit.evaluate.tables import text_table
from fitkit.fitting.head_masks import COLORS, head_mask, load_parser
from fitkit.nets.parser.photos import parse_photo
from fitkit.observe.face_parts import PARTS, UNKNOWN
from fitkit.synth.folder import read_classes

HIDERS = ("hair", "occluder", "glasses")


def measure(parser, folders: list[Path]) -> tuple[dict[str, float], np.ndarray]:
    """Shares in per cent and seconds of CPU time for a photo; intersection over union of each part."""
    count = dict.fromkeys(("mesh", "other", "mask", "wrong", "head", "kept", *HIDERS), 0.0)
    hidden, both, either, seconds, photos = dict.fromkeys(HIDERS, 0), 0, 0, 0.0, 0
    parts = np.arange(len(PARTS))[:, None, None]
    for folder in folders:
        for subject in sorted(folder.glob("subject_[0-9]*")):
            for view in photos_at(subject).views:
                truth_files = folder / "ground_truth" / subject.name
                truth = read_classes(truth_files / f"{view.name}_parts.png")
                mesh = read_classes(truth_files / f"{view.name}_region.png") > 0
                began = time.process_time()
                told = parse_photo(parser, view.image, view.landmarks[:, :2])
                seconds, photos = seconds + time.process_time() - began, photos + 1
                mask, head = head_mask(told) & mesh, head_mask(truth) & mesh
                count["mesh"] += mesh.sum()
                count["other"] += (mesh & ~head).sum()
                count["mask"] += mask.sum()
                count["wrong"] += (mask & ~head).sum()
                count["head"] += head.sum()
                count["kept"] += (mask & head).sum()
                for name in HIDERS:
                    there = mesh & (truth == PARTS.index(name))
                    count[name] += (there & mask).sum()
                    hidden[name] += there.sum()
                known = told != UNKNOWN
                mine, true = (told == parts) & known, (truth == parts) & known
                both, either = both + (mine & true).sum((1, 2)), either + (mine | true).sum((1, 2))
    shares = {
        "something else on the mesh, %": 100 * count["other"] / count["mesh"],
        "something else in the mask, %": 100 * count["wrong"] / count["mask"],
        "head kept, %": 100 * count["kept"] / count["head"],
        **{f"{name} taken for the head, %": 100 * count[name] / max(hidden[name], 1) for name in HIDERS},
        "CPU s for a photo": seconds / photos,
    }
    return shares, both / np.maximum(either, 1)


def main(folders: list[str]) -> None:
    torch.set_num_threads(1)
    (net, iou), (colors, _) = (
        measure(load_parser(weights), [Path(f) for f in folders]) for weights in ("", COLORS)
    )
    rows = [[name, f"{net[name]:.3g}", f"{colors[name]:.3g}"] for name in net]
    print(text_table(("", "network", "landmarks and colours"), rows))
    print("\n" + text_table(("part", "IoU"), [[p, f"{v:.2f}"] for p, v in zip(PARTS, iou)]))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python benchmarks/masks.py FOLDER ... (of fitkit synth)")
    main(sys.argv[1:])
