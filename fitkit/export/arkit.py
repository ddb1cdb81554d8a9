"""Names of expression shapes after Apple's ARKit, in both spellings that tools ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

Spelling = Literal["apple", "suffix"]

# In the order of Apple's documentation of ARFaceAnchor.BlendShapeLocation.
ARKIT = tuple(
    (
        "eyeBlinkLeft eyeLookDownLeft eyeLookInLeft eyeLookOutLeft eyeLookUpLeft eyeSquintLeft eyeWideLeft "
        "eyeBlinkRight eyeLookDownRight eyeLookInRight eyeLookOutRight eyeLookUpRight eyeSquintRight "
        "eyeWideRight jawForward jawLeft jawRight jawOpen mouthClose mouthFunnel mouthPucker mouthLeft "
        "mouthRight mouthSmileLeft mouthSmileRight mouthFrownLeft mouthFrownRight mouthDimpleLeft "
        "mouthDimpleRight mouthStretchLeft mouthStretchRight mouthRollLower mouthRollUpper mouthShrugLower "
        "mouthShrugUpper mouthPressLeft mouthPressRight mouthLowerDownLeft mouthLowerDownRight "
        "mouthUpperUpLeft mouthUpperUpRight browDownLeft browDownRight browInnerUp browOuterUpLeft "
        "browOuterUpRight cheekPuff cheekSquintLeft cheekSquintRight noseSneerLeft noseSneerRight tongueOut"
    ).split()
)
WHOLE = ("browInnerUp", "cheekPuff")  # ARKit has them for both sides together
SIDES = {"_L": "Left", "_R": "Right"}
# jawLeft and mouthLeft say where the shape goes, not on which side it is.
SUFFIX = {
    name: name.removesuffix(word) + side
    for name in ARKIT
    for side, word in SIDES.items()
    if name.endswith(word) and name.removesuffix(word) not in ("jaw", "mouth")
}


def arkit_shapes(names: tuple[str, ...], spelling: Spelling = "apple") -> list[tuple[str, list[int]]]:
    """Names after ARKit and the model shapes that each one adds up.

    'mouthSmile_L' becomes 'mouthSmileLeft', or, as spelling 'suffix', 'mouthSmileLeft' becomes
    'mouthSmile_L'; shapes that ARKit has only as a whole (browInnerUp, cheekPuff) are summed. Names that
    follow another habit stay as they are.
    """
    targets: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        base, side = (name[:-2], name[-2:]) if name[-2:] in SIDES else (name, "")
        if base in WHOLE:
            name = base
        elif spelling == "suffix":
            name = SUFFIX.get(name, name)
        elif side:
            name = base + SIDES[side]
        targets.setdefault(name, []).append(i)
    return list(targets.items())


def missing_of_arkit(names: list[str]) -> list[str]:
    """The shapes of ARKit that are not among `names`, in either spelling; in Apple's."""
    return [name for name in ARKIT if name not in names and SUFFIX.get(name) not in names]


def write_names(names: list[str], spelling: Spelling, path: Path) -> None:
    """`arkit_names.json`: the names of morph targets in their order, and those of ARKit that are missing."""
    table = {"spelling": spelling, "names": names, "not_in_model": missing_of_arkit(names)}
    path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
