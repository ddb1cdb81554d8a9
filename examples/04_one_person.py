"""A network made better for one person, from photos or a video of that person alone.

    python examples/04_one_person.py [OUTPUT] [PHOTOS or VIDEO] [WEIGHTS]

WEIGHTS are those of a training of `pgn` (docs/regressor.md). Without them a tiny network is trained on
rendered people first: enough to see every step, not to see a face. On the command line the training is

    fitkit train-regressor pgn-person net.start=WEIGHTS data.person.folder=PHOTOS -o OUTPUT
"""

import sys
from pathlib import Path

import cv2
from PIL import Image

from fitkit.data.video_frames import decode_frames
from fitkit.fitting.predict import predict
from fitkit.io.options import to_plain
from fitkit.nets import read_about
from fitkit.train.regressor import train_regressor
from fitkit.train.regressor_recipe import load_regressor_training

SMALL = "net.options={size: 64, map: 32, width: 0.1}"
FRAMES = 12  # of a video, spread evenly
TERMS = ("lmk_guided", "census_xview", "sem_feat")


def photos_of(path, folder):
    """The folder of photos, or frames of a video in one."""
    if path.is_dir():
        return path
    count = int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT))
    numbers = sorted({round((k + 0.5) * count / FRAMES - 0.5) for k in range(FRAMES)}) if count else [0]
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in zip(numbers, decode_frames(path, numbers)):
        Image.fromarray(frame).save(folder / f"{number:06d}.png")
    return folder


def tiny_network(folder):
    """A few steps on rendered people."""
    changes = [
        SMALL,
        "data=[{name: synthetic, kind: synthetic, options: {recipe: clean, count: 4, overrides: [size=96]}}]",
        "validation.share=0.0",
        "pictures=0",
    ]
    for stage in ("decoder", "landmarks", "codes", "pairs", "fours"):
        changes += [f"stages.{stage}.steps=2", f"stages.{stage}.batch=2"]
    return train_regressor(load_regressor_training("pgn", changes), folder)


def train_for(photos, weights, folder, changes):
    about = read_about(weights)
    changes = [f"net.start={weights}", f"data.person.folder={photos}", f"model={about['model']}", *changes]
    changes.append(f"net.options={to_plain(about['options'])}")
    seen = []
    settings = load_regressor_training("pgn-person", changes)
    trained = train_regressor(settings, folder, step_done=lambda step, values: seen.append(values))
    few = max(1, len(seen) // 5)
    for term in TERMS:
        first, last = (sum(v[term] for v in part) / few for part in (seen[:few], seen[-few:]))
        print(f"  {term}: {first:.4g} in the first {few} steps, {last:.4g} in the last")
    return trained


if __name__ == "__main__":
    arguments = [Path(a) for a in sys.argv[1:]]
    output = arguments[0] if arguments else Path("one_person")
    photos = photos_of(
        arguments[1] if len(arguments) > 1 else Path(__file__).parent / "sample", output / "frames"
    )
    tiny = len(arguments) < 3
    weights = tiny_network(output / "tiny") if tiny else arguments[2]
    changes = ["stages.person.steps=4", "stages.person.batch=2", "pictures=0"] if tiny else []
    trained = train_for(photos, weights, output / "training", changes)
    for name, network in (("before", weights), ("after", trained)):
        views = predict(photos, network).metrics["views"]
        off = sum(v["reprojection_px"] for v in views) / len(views)
        print(f"{name}: landmarks of the predicted face {off:.2f} px off in {len(views)} photos")
    print("written:", trained)
