"""Fit recipes: what is solved for in which stages, with which energies. See `recipes/fit/`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal

from fitkit.energies.registry import find, fit_options
from fitkit.energies.spec import EnergyOptions, ExpressionOptions
from fitkit.errors import InputError, check_argument
from fitkit.fitting.detail import DetailOptions
from fitkit.io.foreign import shown
from fitkit.io.options import (
    Length,
    Natural,
    NonNegative,
    Positive,
    Range,
    Seed,
    Share,
    apply_overrides,
    build,
    build_stages,
    merge,
    read_yaml,
    unknown_key,
)
from fitkit.io.resources import find_recipe, recipe_path
from fitkit.observe.crop import CropOptions
from fitkit.observe.flow import check_estimator
from fitkit.scene.layout import BLOCKS


@dataclass(frozen=True)
class LandmarkOptions:
    """Where the 68 points come from, and how far they are off."""

    source: str = "auto"  # as --landmarks; auto: files, else the built-in detector
    # Spread of what is the same in all photos about a point's error, over that of the prior.
    offset: NonNegative = 1.0
    # What points 0-16 are; auto: as the source says, else tried.
    jaw: Literal["auto", "outline", "surface"] = "auto"
    # Standard deviation of a point until the noise is measured, share of the face size (square root of
    # the area of the landmark box).
    sigma: Annotated[float, Range(1e-06, 10.0)] = 0.02
    min_sigma: Annotated[float, Range(0.0, 10.0)] = 0.003  # least measured value
    max_sigma: Annotated[float, Range(1e-06, 10.0)] = 0.05  # largest measured value


@dataclass(frozen=True)
class CameraOptions:
    """What is known of the cameras."""

    kind: Literal["perspective", "orthographic"] = "perspective"  # projection
    # One camera for all views; auto: when the photos have one size and nothing says otherwise.
    share_focal: Literal["auto", "yes", "no"] = "auto"
    distance_mm: Annotated[float, Range(50.0, 10**6.0)] = 1000.0  # of an unknown camera from the face
    focal_sigma: Annotated[float, Range(1e-06, 100.0)] = 0.4  # how sure that is, log units
    exif_sigma: Annotated[float, Range(1e-06, 100.0)] = 0.1  # the same of a focal length from EXIF
    known_sigma: Annotated[float, Range(1e-06, 100.0)] = 0.001  # and from cameras.json
    # How far from its middle the optical axis may meet a photo, share of its longer side, where a stage has
    # `principal` free.
    principal_sigma: Annotated[float, Range(1e-06, 100.0)] = 0.1
    # How far the pixels of a photo without EXIF data are from square, log units, where a stage has `aspect`
    # free: frames of films are often stretched.
    aspect_sigma: Annotated[float, Range(1e-06, 100.0)] = 0.02


@dataclass(frozen=True)
class MaskOptions:
    """Which pixels of the photos count."""

    # In the stages. given: those of masks beside the photos, where there are some; auto: of these, what a
    # face parser takes for the head, no hair, clothes, background; none: all.
    source: Literal["auto", "given", "none"] = "given"
    # The same for the texture, albedo and light of the result.
    texture: Literal["auto", "given", "none"] = "auto"
    # Of the parser, regressor.safetensors; empty = those of fitkit, colors = no network: landmarks
    # and colours tell the parts.
    weights: str = ""


@dataclass(frozen=True)
class MapOptions:
    """The UV maps of a result."""

    size: Literal[512, 1024, 2048, 4096] = 1024  # px, side of texture.png and albedo.png


@dataclass(frozen=True)
class RenderOptions:
    """What draws the mesh during the fit."""

    # auto: numba on a CPU, torch on a GPU; pytorch3d and nvdiffrast have to be installed.
    backend: Literal["auto", "torch", "numba", "pytorch3d", "nvdiffrast"] = "auto"


@dataclass(frozen=True)
class InitOptions:
    """Where a fit starts."""

    # landmarks: the mean face in the pose of the landmarks; regressor: what a network predicts; auto: the
    # better of the two for the landmarks and the priors.
    source: Literal["auto", "landmarks", "regressor"] = "auto"
    weights: str = ""  # of the network, regressor.safetensors; empty = the one that comes with fitkit


@dataclass(frozen=True)
class DepthOptions:
    """What a network sees of the depth of each photo, for energy depth_3dmm."""

    weights: str = ""  # of a network that gives a scene and depth, as mvdepth; empty = none


@dataclass(frozen=True)
class SolverOptions:
    """How a stage is solved."""

    name: Literal["levenberg_marquardt", "adam"] = "levenberg_marquardt"
    max_iterations: Annotated[int, Range(0, 10**6)] = 20  # for each refresh
    min_decrease: Share = 1e-3  # of the cost in a step, as its share; with less the solver stops
    # How often visibility, matches and weights are computed anew; adam does so in every iteration.
    refresh: Annotated[int, Range(1, 10**6)] = 1
    learning_rate: Positive = 0.01  # of adam


@dataclass(frozen=True)
class FlowSource:
    """What finds the flow between photos."""

    estimator: str = "dis"  # 'dis', 'dis:PRESET', 'farneback' or 'ptlflow:NAME', any network of that package
    weights: str = ""  # of a network: a checkpoint file or the name of a published one

    def __post_init__(self):
        check_estimator(self.estimator, self.weights)


@dataclass(frozen=True)
class Stage:
    """One stage of a fit."""

    name: str
    free: Annotated[tuple[str, ...], Length(1)]  # names of what is solved for
    energies: dict[str, EnergyOptions]
    solver: SolverOptions = SolverOptions()
    min_views: Natural = 1  # the stage is left out with fewer
    measure_noise: bool = False  # of the landmarks, from their residuals, before the stage
    measure_offsets: bool = False  # the spread of the landmarks' offsets, anew at each refresh
    # Whether three or more photos show one expression, which they then share from there on; joints stay their
    # own. Asked of stages that match photos, solve by least squares and free identity and expression.
    find_one_expression: bool = False
    start: Literal["any", "landmarks", "regressor"] = "any"  # the stage is for fits that start there


@dataclass(frozen=True)
class FitRecipe:
    """A whole fit; every option with its value."""

    name: str
    stages: tuple[Stage, ...]
    model: str = "generic"  # face model, a name or a file
    seed: Seed = 0  # of all that is drawn at random
    crop: CropOptions = CropOptions()
    landmarks: LandmarkOptions = LandmarkOptions()
    masks: MaskOptions = MaskOptions()
    texture: MapOptions = MapOptions()
    flow: FlowSource = FlowSource()
    camera: CameraOptions = CameraOptions()
    render: RenderOptions = RenderOptions()
    init: InitOptions = InitOptions()
    expression: ExpressionOptions = ExpressionOptions()
    detail: DetailOptions = DetailOptions()
    depth: DepthOptions = DepthOptions()

    def looks_at_pictures(self, views: int) -> bool:
        """Whether a fit of so many views takes more from its photos than landmarks."""
        looks = any(
            find(name).role in ("image", "flow")
            for stage in self.stages
            if views >= stage.min_views
            for name in stage.energies
        )
        return looks or (self.detail.enabled and views > 1)

    @property
    def detail_flow(self) -> FlowSource:
        """What finds the matches of the detail layer: the recipe's `flow`, 'dis' at full resolution. Between
        photos of different days that is the noisier one, so the stages do without; the detail layer has the
        evidence to tell."""
        return replace(self.flow, estimator="dis:fine") if self.flow.estimator == "dis" else self.flow


def load_recipe(
    name: str | os.PathLike = "multiview",
    overrides: Sequence[str] = (),
    changes: dict[str, Any] | None = None,
) -> FitRecipe:
    """A shipped recipe by name or any recipe file by path.

    Args:
        overrides: 'a.b=value' lines, stages by name: 'stages.shape.solver.max_iterations=5'.
        changes: a nested mapping laid over the recipe before the overrides.
    Raises:
        InputError: no such recipe, unknown keys (with the nearest known one), wrong types, values out of
            range.
    """
    check_argument("load_recipe", name, (str, os.PathLike), "the name or path of a recipe")
    check_argument("changes", changes, (dict, NoneType), "a mapping of options")
    path = find_recipe("fit", name)
    data = _read(path, ())
    data = apply_overrides(merge(data, changes or {}), overrides)
    return parse_recipe(data, str(path.name))


def _read(path: Path, seen: tuple[str, ...]) -> dict:
    """A recipe with the one it `extends` below it. Stages of the same name are merged, new ones are added
    behind."""
    place = os.path.realpath(path)  # the same file has many names
    if place in seen:
        raise InputError(f"{path}: recipes extend each other in a circle")
    data = read_yaml(path)
    parent = data.pop("extends", None)
    if parent is None:
        return data
    if not isinstance(parent, str):
        raise InputError(f"{path}: extends: expected the name of a recipe, got {shown(parent)}")
    beside = path.parent / f"{parent}.yaml"
    base = _read(beside if os.path.isfile(beside) else recipe_path("fit", parent), (*seen, place))
    stages, own = base.get("stages", []), data.pop("stages", [])
    for name, part in ((parent, stages), (path.name, own)):
        if not isinstance(part, list) or not all(isinstance(stage, dict) for stage in part):
            raise InputError(f"{path}: stages: expected a list of mappings, got {shown(part)} in {name}")
    stages = list(stages)
    for stage in own:
        names = [s.get("name") for s in stages]
        if stage.get("name") in names:
            at = names.index(stage["name"])
            stages[at] = merge(stages[at], stage)
        else:
            stages.append(stage)
    return {**merge(base, data), "stages": stages}


def parse_recipe(data: dict, where: str) -> FitRecipe:
    """FitRecipe from nested mappings, as read from YAML."""
    data = dict(data)
    parsed = []
    for stage, label in build_stages(Stage, fit_options, data.pop("stages", None), where):
        parsed.append(stage)
        for block in stage.free:
            if block not in BLOCKS:
                raise unknown_key(block, BLOCKS, f"{label}: free")
    return build(FitRecipe, {**data, "stages": parsed}, where)
