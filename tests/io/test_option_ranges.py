"""Every option that comes from a recipe or an override says what it may be, and what no fit can use is
refused when it is read."""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Annotated, get_args, get_origin

import pytest

from fitkit.energies.registry import REGISTRY
from fitkit.errors import InputError
from fitkit.evaluate.bench.ablation import AblationRecipe, load_ablation
from fitkit.evaluate.protocols import PROTOCOLS
from fitkit.evaluate.recipe import EvaluateRecipe, load_evaluate_recipe
from fitkit.fitting import recipe as fits
from fitkit.fitting.recipe import FitRecipe, load_recipe
from fitkit.io.options import Length, Positive, Range, Share, build, check_options, option_types
from fitkit.nets import NETS, net_kind
from fitkit.synth.recipe import SynthRecipe, load_synth_recipe
from fitkit.train import regressor_recipe as trainings
from fitkit.train.ablation import TrainingAblation
from fitkit.train.landmark_recipe import LandmarkTraining, load_landmark_training
from fitkit.train.readers import reader_options
from fitkit.train.regressor_recipe import DataSource, RegressorTraining, load_regressor_training

ROOTS = (
    FitRecipe,
    RegressorTraining,
    LandmarkTraining,
    SynthRecipe,
    EvaluateRecipe,
    AblationRecipe,
    TrainingAblation,
    *(spec.options for spec in REGISTRY),
    *(spec.training_options() for spec in REGISTRY),
    *(p.options for p in PROTOCOLS.values()),
    *(net_kind(name).options for name in NETS),
    *(reader_options(kind) for kind in get_args(option_types(DataSource)["kind"])),
)


def classes_below(kind, found):
    """The dataclasses that a type leads to."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in found:
        found.append(kind)
        for part in option_types(kind).values():
            classes_below(part, found)
    for part in get_args(kind):
        classes_below(part, found)
    return found


CLASSES = []
for root in ROOTS:
    classes_below(root, CLASSES)


def bare_numbers(kind, ranged=False):
    """Number types in a type that no Range stands around."""
    if kind in (int, float):
        return [] if ranged else [kind]
    if get_origin(kind) is typing.Literal:
        return []
    rules = kind.__metadata__ if get_origin(kind) is Annotated else ()
    parts = get_args(kind)[:1] if rules else get_args(kind)
    return [
        bare for part in parts for bare in bare_numbers(part, any(isinstance(rule, Range) for rule in rules))
    ]


@dataclass(frozen=True)
class Forgotten:
    count: int = 1
    pair: tuple[float, Share] = (1.0, 0.5)
    sizes: Annotated[tuple[int, ...], Length(1)] = (1,)
    limit: Positive | None = None
    right: Positive = 1.0


def test_the_walk_sees_numbers_without_a_range():
    bare = {key for key, kind in option_types(Forgotten).items() if bare_numbers(kind)}
    assert bare == {"count", "pair", "sizes"}
    assert {
        fits.Stage,
        fits.SolverOptions,
        fits.LandmarkOptions,
        fits.DetailOptions,
        trainings.TrainingStage,
    } <= set(CLASSES)
    assert len(CLASSES) > 60


@pytest.mark.parametrize(
    "cls", CLASSES, ids=lambda cls: f"{cls.__module__.removeprefix('fitkit.')}.{cls.__name__}"
)
def test_every_number_has_a_range_and_its_default_lies_within(cls):
    kinds = option_types(cls)
    assert not [key for key, kind in kinds.items() if bare_numbers(kind)]
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            one = dataclasses.make_dataclass("One", [(field.name, kinds[field.name], field.default)])
            check_options(one(), cls.__name__)


@dataclass(frozen=True)
class Inner:
    share: Share = 0.5


@dataclass(frozen=True)
class Item:
    name: str
    size: Annotated[int, Range(32, 64, multiple=32)] = 32


@dataclass(frozen=True)
class Outer:
    part: Annotated[float, Range(0.0, 1.0, below=True)] = 0.0
    plain: float = 0.0
    names: Annotated[tuple[str, ...], Length(1)] = ("a",)
    three: Annotated[tuple[Share, ...], Length(3, 3)] = (0.0, 0.0, 0.0)
    pair: tuple[float, float] = (0.0, 1.0)
    limit: Positive | None = None
    inner: Inner = Inner()
    items: tuple[Item, ...] = ()


def test_what_lies_within_is_taken():
    data = {
        "part": "1e-3",
        "names": ["x"],
        "three": [0, 1, 0.5],
        "limit": 1,
        "inner": {"share": 1},
        "items": [{"name": "b", "size": 64}],
    }
    assert build(Outer, data, "file") == Outer(
        0.001, 0.0, ("x",), (0.0, 1.0, 0.5), (0.0, 1.0), 1.0, Inner(1.0), (Item("b", 64),)
    )


@pytest.mark.parametrize(
    "data, message",
    [
        ({"part": 1}, "file: part: expected a number from 0 to less than 1, got 1.0"),
        ({"part": float("nan")}, "file: part: expected a number from 0 to less than 1, got nan"),
        ({"part": "x"}, "file: part: expected a number from 0 to less than 1, got 'x'"),
        ({"plain": float("inf")}, "file: plain: expected float, got inf"),
        ({"plain": ".nan"}, "file: plain: expected float, got '.nan'"),
        ({"plain": "1e999"}, "file: plain: expected float, got '1e999'"),
        ({"plain": 10**400}, "file: plain: expected float, got 1000"),
        ({"names": []}, r"file: names: expected a list of 1 to 1000 items, got \[\]"),
        ({"names": "abc"}, "file: names: expected a list of 1 to 1000 items, got 'abc'"),
        ({"three": [0, 0]}, r"file: three: expected a list of 3 items, got \[0.0, 0.0\]"),
        ({"three": [0, 0, 2]}, "file: three: expected a number from 0 to 1, got 2.0"),
        ({"pair": [1, 2, 3]}, r"file: pair: expected a list of 2 items, got \[1, 2, 3\]"),
        ({"limit": 0}, r"file: limit: expected a number from 1e-09 to 1e\+09, got 0.0"),
        ({"inner": {"share": -1}}, "file: inner.share: expected a number from 0 to 1, got -1.0"),
        (
            {"items": [{"name": "a"}, {"name": "b", "size": 48}]},
            "file: items.b.size: expected a multiple of 32 from 32 to 64, got 48",
        ),
        (
            {"items": [{"name": "b", "size": 3.5}]},
            "file: items.b.size: expected a multiple of 32 from 32 to 64, got 3.5",
        ),
    ],
)
def test_what_lies_beyond_is_named_with_its_range(data, message):
    with pytest.raises(InputError, match=message):
        build(Outer, data, "file")


def test_options_made_without_a_recipe_are_checked_the_same_way():
    check_options(Outer(), "here")
    with pytest.raises(InputError, match="here: inner.share: expected a number from 0 to 1, got nan"):
        check_options(Outer(inner=Inner(float("nan"))), "here")


LOADERS = {
    "fit": load_recipe,
    "evaluate": load_evaluate_recipe,
    "synth": load_synth_recipe,
    "landmarks": load_landmark_training,
    "regressor": load_regressor_training,
    "bench": load_ablation,
}


@pytest.mark.parametrize(
    "loader, name, override, message",
    [
        (
            "fit",
            "landmarks",
            "crop.margin=1e9",
            "landmarks.yaml: crop.margin: expected a number from 0.1 to 20, got 1000000000.0",
        ),
        ("fit", "landmarks", "crop.margin=.nan", "crop.margin: expected a number from 0.1 to 20, got nan"),
        ("fit", "landmarks", "crop.margin=-1", "crop.margin: expected a number from 0.1 to 20, got -1.0"),
        (
            "fit",
            "landmarks",
            "crop.max_size=0",
            "crop.max_size: expected a whole number from 16 to 4096, got 0",
        ),
        ("fit", "landmarks", "expression.sigma=0", "expression.sigma: expected a number from"),
        (
            "fit",
            "multiview",
            "camera.focal_sigma=-1",
            "multiview.yaml: camera.focal_sigma: expected a number from",
        ),
        ("fit", "multiview", "camera.distance_mm=0", "camera.distance_mm: expected a number from 50 to"),
        ("fit", "landmarks", "landmarks.sigma=-.inf", "landmarks.sigma: expected a number from .*, got -inf"),
        (
            "fit",
            "landmarks",
            "stages.shape.free=[]",
            "stage 'shape': free: expected a list of 1 to 1000 items",
        ),
        (
            "fit",
            "landmarks",
            "stages.shape.solver.refresh=0",
            "stage 'shape': solver.refresh: expected a whole number from 1",
        ),
        (
            "fit",
            "landmarks",
            "stages.shape.energies.lmk2d.weight=-2",
            "stage 'shape': energies.lmk2d.weight: expected a number from 0",
        ),
        (
            "fit",
            "landmarks",
            "stages.shape.energies.lmk2d.kernel.radius=0",
            "stage 'shape': energies.lmk2d.kernel.radius: expected a number",
        ),
        (
            "fit",
            "landmarks",
            "seed=99999999999999999999999",
            "seed: expected a whole number from 0 to 9223372036854775807, got 9999",
        ),
        (
            "fit",
            "multiview",
            "detail.flow.neighbors=0",
            "detail.flow.neighbors: expected a whole number from 1",
        ),
        ("evaluate", "bench", "picture_mm=.nan", "bench.yaml: picture_mm: expected a number from"),
        ("evaluate", "now", "options.unit_mm=0", "options.unit_mm: expected a number from"),
        ("evaluate", "now", "options.challenges=[]", "options.challenges: expected a list of 1"),
        (
            "evaluate",
            "bench",
            "fit.crop.margin=.inf",
            "crop.margin: expected a number from 0.1 to 20, got inf",
        ),
        (
            "synth",
            "default",
            "variation.lamp=[0, .inf]",
            "variation.lamp: expected a number from 0 to 100, got inf",
        ),
        (
            "synth",
            "default",
            "path_tracing.roughness=[0.6, 0.2]",
            r"path_tracing.roughness: expected \[least, most\], got \[0.6, 0.2\]",
        ),
        (
            "landmarks",
            "landmarks",
            "schedule.learning_rate=.nan",
            "schedule.learning_rate: expected a number from",
        ),
        ("landmarks", "landmarks", "network.widths=[16]", "network.widths: expected a list of 5 items"),
        ("landmarks", "landmarks", "renders.models=[]", "renders.models: expected a list of 1"),
        ("regressor", "mvfnet", "validation.most=-1", "validation.most: expected a whole number from 0"),
        ("regressor", "mvfnet", "net.options.width=.nan", "net.options.width: expected a number from"),
        ("bench", "ablation", "views=[[]]", "ablation.yaml: views: expected a list of 1"),
        ("bench", "ablation", "arms=[]", "ablation.yaml: arms: expected a list of 1"),
    ],
)
def test_values_that_nothing_can_use_are_refused_when_read(loader, name, override, message):
    with pytest.raises(InputError, match=message):
        LOADERS[loader](name, [override])


def test_a_stage_whose_energies_are_all_off_is_refused():
    off = [
        f"stages.pose.energies.{name}=false"
        for name in next(s for s in load_recipe("landmarks").stages if s.name == "pose").energies
    ]
    with pytest.raises(
        InputError, match="stage 'pose': energies: all of them are false; expected at least one"
    ):
        load_recipe("landmarks", off)
