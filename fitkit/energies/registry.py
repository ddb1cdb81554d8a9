"""All energies in one table, for recipes, reports and the page that `fitkit energies` prints; each spec
stands beside its energy."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from fitkit.energies import (
    appearance_priors,
    census,
    depth,
    epipolar,
    features,
    flow_correspondence,
    flow_magnitude,
    flow_triangulated,
    landmarks,
    landmarks3d,
    masks,
    parsing,
    photo_model,
    photo_pairs,
    photometric,
    priors,
    supervision,
)
from fitkit.energies.base import Energy
from fitkit.energies.kernels import NAMES
from fitkit.energies.rendered_depth import on_rendered_depth
from fitkit.energies.spec import DFM, MFN, MGC, MVD, MVF, PARTS, PGN, Context, EnergyOptions, EnergySpec, Role
from fitkit.errors import InputError
from fitkit.io.options import to_plain, unknown_key

LISTED = 29  # energies E1 to E29 of the list that the papers were read into
PAPERS = {
    MVF: 'Wu et al., "MVF-Net: Multi-View 3D Face Morphable Model Regression", CVPR 2019',
    DFM: "weakly supervised multi-view reconstruction by deep fusion, 2025, and its public code",
    MVD: 'Shu et al., "Learning Monocular Face Reconstruction Using Multi-View Supervision", FG 2020',
    MFN: "multi-view regression of the FLAME model with flow alignment",
    PGN: 'Liu et al., "Learning 3D Face Reconstruction with a Pose Guidance Network", ACCV 2020',
    MGC: 'Shang et al., "Self-Supervised Monocular 3D Face Reconstruction by Occlusion-Aware Multi-View '
    'Geometry Consistency", ECCV 2020',
}


_FILES = (
    photometric,
    photo_pairs,
    depth,
    census,
    flow_magnitude,
    flow_correspondence,
    features,
    photo_model,
    parsing,
    landmarks,
    landmarks3d,
    supervision,
    flow_triangulated,
    priors,
    appearance_priors,
    epipolar,
)


def _by_number(spec: EnergySpec) -> int:
    return int(spec.doc.id[1:]) if spec.doc.id else LISTED + 1


REGISTRY: tuple[EnergySpec, ...] = tuple(
    sorted((spec for file in _FILES for spec in file.SPECS), key=_by_number)
)
_OWN: dict[str, EnergySpec] = {}  # what `register_energy` has added


def register_energy(spec: EnergySpec) -> EnergySpec:
    """Make an energy of your own known by its name, in fit recipes and training recipes of this process.

    Raises:
        InputError: fitkit has an energy of that name, or the spec does not belong to its class.
    """
    if any(known.name == spec.name for known in REGISTRY):
        raise InputError(f"energy '{spec.name}': fitkit has one of that name; choose another")
    if not hasattr(spec.cls, "residuals") or not hasattr(spec.cls, "freeze"):
        raise InputError(
            f"energy '{spec.name}': expected a class with freeze and residuals, got {spec.cls.__name__}; "
            "see fitkit.energies.base.PlainEnergy"
        )
    for options in (spec.options, spec.training_options()):
        if not issubclass(options, EnergyOptions):
            raise InputError(
                f"energy '{spec.name}': expected options that extend fitkit.energies.spec.EnergyOptions, "
                f"got {options.__name__}"
            )
    _OWN[spec.name] = spec
    return spec


def specs() -> dict[str, EnergySpec]:
    """All energies by name, those of `register_energy` behind fitkit's own."""
    return {spec.name: spec for spec in REGISTRY} | _OWN


def fit_options(name: str, where: str) -> type:
    """Options class of an energy in a fit recipe. where: begins the message.

    Raises:
        InputError: no such energy (with the nearest one), or one that a fit cannot use.
    """
    spec = find(name, where)
    if not spec.in_fit:
        raise InputError(f"{where}: '{name}' is for trainings: {spec.not_in_fits}")
    return spec.options


def energy_of_fit(name: str, context: Context, options: Any) -> Energy:
    """An energy as a fit minimizes it, at scene states."""
    spec = find(name)
    energy = spec.make(context, options)
    return on_rendered_depth(energy, context.model) if spec.takes == "depth" else energy


def training_options(name: str, where: str) -> type:
    """Options class of an energy in a training recipe; raises as `fit_options`."""
    return find(name, where).training_options()


def role_of(name: str) -> Role | None:
    """What an energy counts as; None for one that is not registered."""
    spec = specs().get(name)
    return None if spec is None else spec.role


def view_by_view_landmarks(name: str) -> bool:
    """Whether an energy speaks of the landmarks of each view by itself."""
    spec = specs().get(name)
    return spec is not None and spec.role == "landmark" and not spec.cross_view


# rho of the squared length s with e = the kernel's radius; a test evaluates the formula and compares it with
# `Kernel.rho`.
KERNELS: dict[str, str] = {
    "sq": "s",
    "l1": "2 * e * (sqrt(s + e^2) - e)",
    "l2n": "2 * e * (sqrt(s + e^2) - e)",
    "charb": "e^2 / 0.45 * ((1 + s / e^2)^0.45 - 1)",
    "ddf": "2 * e^2 / 0.4 * ((1 + (sqrt(s + (e / 100)^2) - e / 100) / e)^0.4 - 1)",
    "huber": "s if s <= e^2 else 2 * e * sqrt(s) - e^2",
    "cauchy": "e^2 * log(1 + s / e^2)",
    "gm": "s / (1 + s / e^2)",
}


def find(name: str, where: str = "energies") -> EnergySpec:
    """An energy by its name.

    Raises:
        InputError: no such energy; it names the nearest one.
    """
    known = specs()
    if name not in known:
        raise unknown_key(name, known, where)
    return known[name]


def present() -> tuple[str, ...]:
    """Ids of the list that have an implementation, in its order."""
    return tuple(
        i for i in (f"E{n}" for n in range(1, LISTED + 1)) if any(row.doc.id == i for row in REGISTRY)
    )


def text() -> str:
    """The table for a terminal: one line for each energy."""
    rows = [("id", "name", "fit", "training", "derivatives", "reduction", "used by", "residual")]
    rows += [
        (r.doc.id or "-", r.name, _yes(r.in_fit), "yes", r.derivatives, r.reduction, *_last(r))
        for r in specs().values()
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(7)]
    return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[-1]]) for row in rows)


def _yes(said: bool) -> str:
    return "yes" if said else "no"


def _last(r: EnergySpec) -> tuple[str, str]:
    return ", ".join(r.doc.used_by), r.doc.formula


def describe(row: EnergySpec) -> str:
    """All that is known about one energy, with the documentation of its class."""
    lines = [
        f"{row.doc.id} {row.name}".strip(),
        f"residual   {row.doc.formula}",
        f"unit       {row.doc.unit}",
        f"source     {row.doc.source}",
        f"used by    {'; '.join(map(str, row.doc.uses))}",
        f"reduction  {row.reduction}",
        f"fit        {'yes' if row.in_fit else f'no: {row.not_in_fits}'}",
        f"training   yes{f', with {_needs(row)}' if _needs(row) else ''}",
        f"derivative {row.derivatives}",
        f"gradient   {row.doc.gradient}",
    ]
    lines += [f"variants   {', '.join(row.doc.variants)}"] if row.doc.variants else []
    return "\n".join([*lines, f"python     {row.where}", "", inspect.getdoc(row.builder or row.cls) or ""])


def page() -> str:
    """The page docs/energies.md."""
    return "\n".join([*_all_of_them(), *_in_recipes(), *_sources(), *_kernels_and_masks()])


def _all_of_them() -> list[str]:
    ids = present()
    missing = [f"E{n}" for n in range(1, LISTED + 1) if f"E{n}" not in ids]
    ours = sum(not row.doc.id for row in REGISTRY)
    there = f"{len(ids)} of the {LISTED} energies E1 to E{LISTED} of the papers below are there"
    there += f", all but {', '.join(missing)}" if missing else ""
    return [
        "# Energies",
        "",
        "This page is the output of `fitkit energies --markdown`; a test compares the two.",
        "",
        f"{there}, and {ours} of our own (no id). An energy may stand in more than one row. Each gives "
        "residuals; `Objective` squares them, puts a robust kernel on them and takes the sum or the "
        "weighted mean over the valid ones. The same class serves a fit and the training of a network.",
        "",
        "- *fit*: whether a fit recipe can name it; a training recipe can name all of them.",
        "- *derivatives*: analytic = written by hand (`linearize`); automatic = by automatic "
        "differentiation where Gauss-Newton or Levenberg-Marquardt asks for them, one forward pass for "
        "each free parameter, which takes time and memory where residuals are pixels or look through a "
        "network: solver `adam` needs one gradient.",
        "- *reduction*: sum for independent measurements, mean for pixels and the like.",
        "- *residual*: before it is divided by its standard deviation, in the *unit* beside it.",
        "- *used by*: with the kernel and, behind it, the weight and other numbers where the paper states "
        "them.",
        "",
        _table(
            ("id", "name", "residual", "unit", "reduction", "fit", "derivatives"),
            [
                (
                    r.doc.id,
                    f"`{r.name}`",
                    r.doc.formula,
                    r.doc.unit,
                    r.reduction,
                    _yes(r.in_fit),
                    r.derivatives,
                )
                for r in REGISTRY
            ],
        ),
        "",
    ]


def _in_recipes() -> list[str]:
    return [
        "## In recipes",
        "",
        "Beside `weight` and `kernel` (`{name, radius}`, in standard deviations). A fit knows the noise of "
        "landmarks, the cameras and the light by itself; a training is told. People who lack a label are "
        "left out of the energies that need it.",
        "",
        _table(
            ("name", "options in a fit", "options in a training", "a training needs"),
            [
                (
                    f"`{r.name}`",
                    _options(r.options) if r.in_fit else f"no: {r.not_in_fits}",
                    "" if r.in_fit and r.training is None else _options(r.training_options()),
                    _needs(r),
                )
                for r in REGISTRY
            ],
        ),
        "",
        "An energy of your own: `fitkit.register_energy`, see `examples/03_own_energy.py`.",
        "",
    ]


def _sources() -> list[str]:
    return [
        "## Where they come from",
        "",
        _table(
            ("name", "source", "used by", "strict variants", "gradient", "python"),
            [
                (
                    f"`{r.name}`",
                    r.doc.source,
                    "; ".join(map(str, r.doc.uses)),
                    ", ".join(r.doc.variants),
                    r.doc.gradient,
                    f"`{r.where}`",
                )
                for r in REGISTRY
            ],
        ),
        "",
        *[f"- {name}: {title}." for name, title in PAPERS.items() if name != MVD],
        f"- {PAPERS[MVD]}.",
        "",
    ]


def _kernels_and_masks() -> list[str]:
    return [
        "## Kernels",
        "",
        "`rho` of the squared length `s` of a residual, `e` = `radius`; `l1` takes each component of the "
        "residual by itself, `s` its square, and adds them up. `Kernel.published` gives the formula that "
        "the papers print, the same curve up to a factor and an offset.",
        "",
        _table(
            ("name", "rho(s)", "energies of papers that use it"),
            [(f"`{k}`", f"`{KERNELS[k]}`", _users(k)) for k in NAMES],
        ),
        "",
        "## Masks",
        "",
        "Functions of `fitkit.energies.masks`; the results are constants and combine by product.",
        "",
        _table(
            ("name", "what counts", "source"), [(f"`{name}`", *_summary(f)) for name, f in mask_functions()]
        ),
        "",
    ]


def mask_functions() -> list[tuple[str, Callable]]:
    """The public functions of masks.py in their order there."""
    own = [
        (name, f)
        for name, f in vars(masks).items()
        if inspect.isfunction(f) and f.__module__ == masks.__name__
    ]
    return [(name, f) for name, f in own if not name.startswith("_")]


def _options(cls: type) -> str:
    """Names and defaults of the options, but for those that all energies have."""
    shown = []
    for f in fields(cls):
        if f.name not in ("weight", "kernel"):
            value = type(f.default).__name__ if is_dataclass(f.default) else to_plain(f.default)
            shown.append(f"`{f.name}` {value if value != '' else 'none'}")
    return ", ".join(shown)


def _needs(spec: EnergySpec) -> str:
    """What a training needs for an energy with its default options."""
    options = spec.training_options()()
    parts = [part for part in spec.parts_for(options) if part != "state"]
    labels = sorted(spec.labels_for(options))
    needs = [f"label{'s' if len(labels) > 1 else ''} {', '.join(f'`{name}`' for name in labels)}"] * bool(
        labels
    )
    needs += [f"a network that predicts {PARTS[part]}" for part in parts]
    needs += ["two views of a person"] * spec.cross_view
    return "; ".join(needs)


def _users(kernel: str) -> str:
    uses = {row.name: [use.who for use in row.doc.uses if kernel in use.kernels] for row in REGISTRY}
    return "; ".join(f"`{name}` ({', '.join(who)})" for name, who in uses.items() if who)


def _summary(function: Callable) -> tuple[str, str]:
    """First sentence and source of a docstring."""
    paragraph = " ".join(inspect.getdoc(function).split("\n\n")[0].split())
    sentence = re.match(r".*?[.;](?=\s|$)", paragraph).group().rstrip(".;")
    source = re.search(r"Source:\s*([^;.]+(?:\.(?=\S| \d)[^;.]*)*)", inspect.getdoc(function))
    return sentence, " ".join(source.group(1).split()) if source else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |"
        for line in lines
    )
