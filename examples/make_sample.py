"""Make examples/sample: three pictures of a person who does not exist, rendered by fitkit from its own face
model.

    python examples/make_sample.py [-o examples]

Deterministic: the same model gives the same files. sample_truth/ beside it holds what the pictures were made
from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fitkit.io.mesh_files import write_ply
from fitkit.models.registry import load_model
from fitkit.synth.studio import Appearance, head_shot_state, photograph, studio

SEED = 11
NAMES = ("left", "front", "right")  # the side of the picture that the face looks to
YAW_PITCH_ROLL = ((-35.0, -2.0, 1.5), (1.0, 1.5, -2.0), (34.0, 0.0, 2.0))
WIDTH, HEIGHT = 448, 512
NOISE_PX = 0.7
EXPRESSION = {
    "mouthSmile_L": 0.35,
    "mouthSmile_R": 0.30,
    "cheekSquint_L": 0.2,
    "cheekSquint_R": 0.2,
    "browInnerUp_L": 0.15,
    "browInnerUp_R": 0.15,
}
FILES = """# Truth of the sample subject

`../sample` holds three pictures of a person who does not exist: a random face of \
fitkit's own `generic` model with painted skin, rendered by
`examples/make_sample.py` (deterministic). Part of fitkit, same licence. `left` means that the face \
looks to the left side
of the picture.

The `.pts` files hold the 68 iBUG points, counted from 1: projections of the model's landmarks (fixed points \
on the skin,
hidden ones included) with Gaussian noise of {noise} px. What the pictures were made from is in this
folder, for tests, not for the fit: millimetres; cameras in the OpenCV convention, x_camera = R x_head + t.

    fitkit fit examples/sample
"""


def write_pts(path: Path, points: np.ndarray) -> None:
    """points [68, 2] px counted from 0; the file counts from 1."""
    rows = "\n".join(f"{x:.3f} {y:.3f}" for x, y in points + 1)
    path.write_text(f"version: 1\nn_points: 68\n{{\n{rows}\n}}\n", encoding="utf-8")


def main(folder: Path) -> None:
    model = load_model("generic")
    generator = torch.Generator().manual_seed(SEED)
    identity = torch.randn(model.num_identity, generator=generator).clamp(-2, 2)
    expression = torch.tensor([EXPRESSION.get(name, 0.0) for name in model.expression_names]).expand(3, -1)
    state = head_shot_state(
        model,
        identity,
        expression,
        torch.tensor(YAW_PITCH_ROLL),
        (HEIGHT, WIDTH),
        distance=850.0,
        face_share=0.5,
        row=0.6,
    )
    images = photograph(model, state, (HEIGHT, WIDTH), studio(), Appearance(seed=SEED), seed=SEED)

    vertices = state.pose.apply(state.vertices(model))
    points, _ = state.camera.project(model.landmarks.points(vertices, model.triangles))
    noisy = points + NOISE_PX * torch.randn(points.shape, generator=generator)

    sample, truth = folder / "sample", folder / "sample_truth"
    for place in (sample, truth):
        place.mkdir(parents=True, exist_ok=True)
    for name, image, xy in zip(NAMES, images, noisy.double().numpy()):
        Image.fromarray(image).save(sample / f"{name}.jpg", quality=92, subsampling=0, optimize=True)
        write_pts(sample / f"{name}.pts", xy)

    neutral = state.neutral(model)
    np.save(
        truth / "landmarks3d_neutral.npy",
        model.landmarks.points(neutral, model.triangles)[0].numpy().astype(np.float32),
    )
    write_ply(truth / "neutral.ply", neutral[0], model.triangles)
    views = [
        {
            "image": f"{name}.jpg",
            "K": state.camera.matrix()[i].tolist(),
            "R": state.pose.rotation[i].tolist(),
            "t": state.pose.translation[i].tolist(),
            "width": WIDTH,
            "height": HEIGHT,
            "yaw_pitch_roll_deg": list(YAW_PITCH_ROLL[i]),
        }
        for i, name in enumerate(NAMES)
    ]
    parameters = {
        "model": model.name,
        "seed": SEED,
        "identity": [round(float(v), 5) for v in identity],
        "expression": EXPRESSION,
        "landmark_noise_px": NOISE_PX,
        "views": views,
    }
    (truth / "parameters.json").write_text(json.dumps(parameters, indent=1) + "\n", encoding="utf-8")
    (truth / "README.md").write_text(FILES.format(noise=NOISE_PX), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(__file__).resolve().parent,
        help="where sample/ and sample_truth/ go",
    )
    main(parser.parse_args().output)
