"""What synthetic subjects are made like. See `recipes/synth/` and docs/synthetic.md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fitkit.errors import InputError
from fitkit.io.options import (
    Degrees,
    Range,
    Seed,
    Share,
    apply_overrides,
    build,
    check_options,
    merge,
    read_yaml,
)
from fitkit.io.resources import find_recipe
from fitkit.synth.random_faces import FaceVariation

LARGEST_PX = 2048
MOST_PICTURES = 500  # of one subject


@dataclass(frozen=True)
class PathTracing:
    """For renderer 'mitsuba'. samples: per pixel; bounces: of the light; environments: folder of pictures of
    surroundings (.exr, .hdr, or 8-bit ones), empty = a procedural studio; visible: share of views with the
    surroundings as background; roughness, specular: of the skin, (least, most)."""

    samples: Annotated[int, Range(1, 10**6)] = 64
    bounces: Annotated[int, Range(1, 1000)] = 4
    environments: str = ""
    visible: Share = 0.5
    roughness: tuple[Share, Share] = (0.38, 0.6)
    specular: tuple[Share, Share] = (0.25, 0.5)


@dataclass(frozen=True)
class SynthRecipe:
    """Everything about synthetic subjects except how many of them.

    model: face model, name or file; views: cameras; frames: moments, each seen by every camera; size: side of
    the pictures, px. setup: 'rig' the head and the light stand still and the cameras stand around them,
    'turning' camera and light stand still and the head turns. poses: 'spread' yaw evenly over -variation.yaw
    to variation.yaw, each changed by up to `jitter` degrees, 'random' as in `random_faces`; movement: most
    turn of the head between two frames of a rig, degrees. expression: the same in all views of a frame,
    another one in each, or none; light, camera (focal length, distance, exposure and colours), background:
    the same for all views of a subject, or drawn for each;
    defocus: blur of the background over the size of the picture, (least, most);
    hair: the same in all views, or its outline another one in each.
    landmark_noise: standard deviation of the points in the .pts files, px; jaw: their points 0-16 are fixed
    points of the skin or the visible outline; cameras: write cameras.json for the fit, of a rig with frames
    as moments.
    renderer: 'own' or 'mitsuba' with `path_tracing`; variation: how much people, light and photos differ.
    """

    name: str
    model: str = "generic"
    views: Annotated[int, Range(1, MOST_PICTURES)] = 3
    frames: Annotated[int, Range(1, MOST_PICTURES)] = 1
    size: Annotated[int, Range(32, LARGEST_PX)] = 224
    seed: Seed = 0
    setup: Literal["rig", "turning"] = "rig"
    poses: Literal["spread", "random"] = "spread"
    jitter: Degrees = 5.0
    movement: Degrees = 8.0
    expression: Literal["shared", "per_view", "neutral"] = "shared"
    light: Literal["shared", "per_view"] = "shared"
    camera: Literal["shared", "per_view"] = "shared"
    background: Literal["shared", "per_view"] = "per_view"
    defocus: tuple[Share, Share] = (0.0, 0.0)
    hair: Literal["shared", "per_view"] = "shared"
    landmark_noise: Annotated[float, Range(0.0, 50.0, below=True)] = 1.0
    jaw: Literal["surface", "outline"] = "surface"
    cameras: bool = False
    renderer: Literal["own", "mitsuba"] = "own"
    path_tracing: PathTracing = PathTracing()
    variation: FaceVariation = FaceVariation()

    @property
    def pictures(self) -> int:
        """Pictures of one subject."""
        return self.views * self.frames


def load_synth_recipe(
    name: str | os.PathLike = "default", overrides: Sequence[str] = (), changes: dict[str, Any] | None = None
) -> SynthRecipe:
    """A shipped recipe by name or any recipe file by path; `changes` are laid over it, then the lines
    'a.b=value'.

    Raises:
        InputError: no such recipe, unknown keys (with the nearest known one), wrong types, values that make
            no pictures.
    """
    path = find_recipe("synth", name)
    recipe = build(SynthRecipe, apply_overrides(merge(read_yaml(path), changes or {}), overrides), path.name)
    check_synth_recipe(recipe, path.name)
    return recipe


def check_synth_recipe(recipe: SynthRecipe, where: str) -> None:
    """Types, ranges, and what depends on more than one value.

    Raises:
        InputError: one of them is wrong; `where` begins the message.
    """
    check_options(recipe, where)

    def expect(good: bool, key: str, what: str, value: Any) -> None:
        if not good:
            raise InputError(f"{where}: {key}: expected {what}, got {value}")

    expect(
        recipe.pictures <= MOST_PICTURES,
        "views x frames",
        f"at most {MOST_PICTURES} pictures of one subject",
        recipe.pictures,
    )
    tracing, variation = recipe.path_tracing, recipe.variation
    for part, prefix in ((recipe, ""), (tracing, "path_tracing."), (variation, "variation.")):
        for key, value in vars(part).items():
            if isinstance(value, tuple) and key != "motion":  # a share and a length
                expect(value[0] <= value[1], prefix + key, "[least, most]", list(value))
    expect(
        recipe.hair == "shared" or recipe.renderer == "own",
        "hair",
        "shared with renderer 'mitsuba'",
        recipe.hair,
    )
    for folder, key in (
        (variation.backgrounds, "variation.backgrounds"),
        (tracing.environments, "path_tracing.environments"),
    ):
        expect(not folder or Path(folder).is_dir(), key, "a folder of pictures", folder)
