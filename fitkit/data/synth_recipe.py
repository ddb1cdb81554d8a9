"""What synthetic subjects are made like. See `recipes/synth/` and docs/synthetic.md."""
from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Sequence

from fitkit.data.random_faces import FaceVariation
from fitkit.errors import InputError
from fitkit.io.options import apply_overrides, build, merge, read_yaml
from fitkit.io.resources import find_recipe

FARTHEST_MM = 6000.0  # depth maps of 16 bits in 0.1 mm end at 6.5 m
NEAREST_MM = 250.0
LARGEST_PX = 2048
SHARES = ("frontal", "cut", "neutral", "lamp_share", "stubble", "beard", "make_up", "freckles", "moles", "bald", "long_hair", "fringe",
          "gray", "hat", "glasses", "dark_glasses", "occluded", "jpeg_share", "reduce_share", "monochrome", "adapt", "asymmetry")


@dataclass(frozen=True)
class PathTracing:
    """For renderer 'mitsuba'. samples: per pixel; bounces: of the light; environments: folder of pictures of surroundings
    (.exr, .hdr, or 8-bit ones), empty = a procedural studio; visible: share of views with the surroundings as background;
    roughness, specular: of the skin, (least, most)."""

    samples: int = 64
    bounces: int = 4
    environments: str = ""
    visible: float = 0.5
    roughness: tuple[float, float] = (0.38, 0.6)
    specular: tuple[float, float] = (0.25, 0.5)


@dataclass(frozen=True)
class SynthRecipe:
    """Everything about synthetic subjects except how many of them.

    model: face model, name or file; views: cameras; frames: moments, each seen by every camera; size: side of the pictures, px.
    setup: 'rig' the head and the light stand still and the cameras stand around them, 'turning' camera and light stand still and
    the head turns. poses: 'spread' yaw evenly over -variation.yaw to variation.yaw, each changed by up to `jitter` degrees,
    'random' as in `random_faces`; movement: most turn of the head between two frames of a rig, degrees.
    expression: the same in all views of a frame, another one in each, or none; light, camera (focal length, distance, exposure and
    colours), background: the same for all views of a subject, or drawn for each;
    defocus: blur of the background over the size of the picture, (least, most);
    hair: the same in all views, or its outline another one in each.
    landmark_noise: standard deviation of the points in the .pts files, px; jaw: their points 0-16 are fixed points of the skin or
    the visible outline; cameras: write cameras.json for the fit.
    renderer: 'own' or 'mitsuba' with `path_tracing`; variation: how much people, light and photos differ.
    """

    name: str
    model: str = "generic"
    views: int = 3
    frames: int = 1
    size: int = 224
    seed: int = 0
    setup: Literal["rig", "turning"] = "rig"
    poses: Literal["spread", "random"] = "spread"
    jitter: float = 5.0
    movement: float = 8.0
    expression: Literal["shared", "per_view", "neutral"] = "shared"
    light: Literal["shared", "per_view"] = "shared"
    camera: Literal["shared", "per_view"] = "shared"
    background: Literal["shared", "per_view"] = "per_view"
    defocus: tuple[float, float] = (0.0, 0.0)
    hair: Literal["shared", "per_view"] = "shared"
    landmark_noise: float = 1.0
    jaw: Literal["surface", "outline"] = "surface"
    cameras: bool = False
    renderer: Literal["own", "mitsuba"] = "own"
    path_tracing: PathTracing = PathTracing()
    variation: FaceVariation = FaceVariation()

    @property
    def pictures(self) -> int:
        """Pictures of one subject."""
        return self.views * self.frames


def load_synth_recipe(name: str | os.PathLike = "default", overrides: Sequence[str] = (),
                      changes: dict[str, Any] | None = None) -> SynthRecipe:
    """A shipped recipe by name or any recipe file by path; `changes` are laid over it, then the lines 'a.b=value'.

    Raises:
        InputError: no such recipe, unknown keys (with the nearest known one), wrong types, values that make no pictures.
    """
    path = find_recipe("synth", name)
    recipe = build(SynthRecipe, apply_overrides(merge(read_yaml(path), changes or {}), overrides), path.name)
    check_synth_recipe(recipe, path.name)
    return recipe


def check_synth_recipe(recipe: SynthRecipe, where: str) -> None:
    """Values that a type does not exclude.

    Raises:
        InputError: one of them is out of range; `where` begins the message.
    """
    def expect(good: bool, key: str, what: str, value: Any) -> None:
        if not good:
            raise InputError(f"{where}: {key}: expected {what}, got {value}")

    expect(recipe.views >= 1, "views", "at least 1", recipe.views)
    expect(recipe.frames >= 1, "frames", "at least 1", recipe.frames)
    expect(recipe.pictures <= 500, "views x frames", "at most 500 pictures of one subject", recipe.pictures)
    expect(32 <= recipe.size <= LARGEST_PX, "size", f"32 to {LARGEST_PX} px", recipe.size)
    expect(recipe.seed >= 0, "seed", "0 or more", recipe.seed)
    expect(0 <= recipe.landmark_noise < 50, "landmark_noise", "0 to 50 px", recipe.landmark_noise)
    blur = recipe.defocus
    expect(len(blur) == 2 and 0 <= blur[0] <= blur[1] <= 1, "defocus", "[least, most] within 0 to 1", list(blur))
    variation = recipe.variation
    for f in fields(FaceVariation):
        value = getattr(variation, f.name)
        if isinstance(value, tuple):
            expect(len(value) == 2, f"variation.{f.name}", "two numbers", list(value))
            expect(f.name == "motion" or value[0] <= value[1], f"variation.{f.name}", "[least, most]", list(value))
        if f.name in SHARES:
            expect(0 <= value <= 1, f"variation.{f.name}", "a share from 0 to 1", value)
    least, most = variation.distance
    expect(NEAREST_MM <= least and most <= FARTHEST_MM, "variation.distance", f"{NEAREST_MM:.0f} to {FARTHEST_MM:.0f} mm", [least, most])
    expect(variation.fill[0] >= 1, "variation.fill", "1 or more", list(variation.fill))
    expect(recipe.hair == "shared" or recipe.renderer == "own", "hair", "shared with renderer 'mitsuba'", recipe.hair)
    tracing = recipe.path_tracing
    expect(tracing.samples >= 1 and tracing.bounces >= 1, "path_tracing", "at least 1 sample and 1 bounce",
           [tracing.samples, tracing.bounces])
    for folder, key in ((variation.backgrounds, "variation.backgrounds"), (tracing.environments, "path_tracing.environments")):
        expect(not folder or Path(folder).is_dir(), key, "a folder of pictures", folder)
