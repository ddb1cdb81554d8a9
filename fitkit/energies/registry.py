"""All energies in one table: what each measures, who uses it, which form it has. `fitkit energies` prints it."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any, Callable

from fitkit.energies import masks
from fitkit.energies.appearance_priors import AlbedoPrior, AlbedoVariance, LightMono
from fitkit.energies.census import VARIANTS, CrossViewCensus
from fitkit.energies.depth import (
    DepthAgreement,
    DepthPrior,
    DepthSupervision,
    DepthWarpPhotometric,
    DepthWarpStructure,
    NormalSupervision,
    SuitabilityPrior,
)
from fitkit.energies.epipolar import EpipolarLandmarks
from fitkit.energies.features import SemanticFeatures
from fitkit.energies.flow_correspondence import FlowCorrespondence
from fitkit.energies.flow_magnitude import STRICT as FLOW_STRICT
from fitkit.energies.flow_magnitude import FlowMagnitude
from fitkit.energies.flow_triangulated import TriangulatedFlow
from fitkit.energies.kernels import NAMES
from fitkit.energies.landmarks import LandmarkOffsets, LandmarkReprojection, eye_offsets, lip_offsets
from fitkit.energies.landmarks3d import AlignedLandmarks, PositionMapLandmarks, lmk3d_align, lmk_guided
from fitkit.energies.parsing import ParsedRendering
from fitkit.energies.photo_model import STRICT as MODEL_STRICT
from fitkit.energies.photo_model import ModelPhotometric
from fitkit.energies.photometric import CrossViewPhotometric
from fitkit.energies.priors import (
    ExpressionPrior,
    FocalPrior,
    IdentityPrior,
    LandmarkOffsetPrior,
    LightPrior,
    MeanCoefficientPrior,
    SizePrior,
)
from fitkit.energies.supervision import (
    CodeConsistency,
    ExpressionSupervision,
    IdentityLikelihood,
    IdentitySupervision,
    PoseSupervision,
    VertexSupervision,
)
from fitkit.io.options import unknown_key

LISTED = 29  # energies E1 to E29 of the list that the papers were read into
MVF, DFM, MVD, MFN, PGN, MGC, OURS = "MVF-Net", "DF-MVR", "Shu et al.", "MFNet", "PGN", "MGCNet", "ours"
PAPERS = {
    MVF: 'Wu et al., "MVF-Net: Multi-View 3D Face Morphable Model Regression", CVPR 2019',
    DFM: "weakly supervised multi-view reconstruction by deep fusion, 2025, and its public code",
    MVD: 'Shu et al., "Learning Monocular Face Reconstruction Using Multi-View Supervision", FG 2020',
    MFN: "multi-view regression of the FLAME model with flow alignment",
    PGN: 'Liu et al., "Learning 3D Face Reconstruction with a Pose Guidance Network", ACCV 2020',
    MGC: 'Shang et al., "Self-Supervised Monocular 3D Face Reconstruction by Occlusion-Aware Multi-View Geometry Consistency", ECCV 2020',
}


@dataclass(frozen=True)
class Use:
    """How a paper or we ourselves use an energy. kernels: names for `Kernel`; note: weights and the like."""

    who: str
    kernels: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        how = ", ".join(part for part in ("/".join(self.kernels), self.note) if part)
        return f"{self.who} ({how})" if how else self.who


def _use(who: str, kernels: str = "", note: str = "") -> Use:
    return Use(who, tuple(kernels.split()), note)


@dataclass(frozen=True)
class EnergyRow:
    """id: of the list, 'E1' to 'E29', '' for one that is ours alone; name: in recipes and reports; cls: its class, make: the function
    that builds it where it is one of several of its class; formula: of the residual, before its sigma; unit: of that formula;
    source: paper and equation; uses: by whom; gradient: where it goes and what to know about it; variants: names of the strict
    forms; own_reduction: of the instance, where it is not its class's."""

    id: str
    name: str
    cls: type
    formula: str
    unit: str
    source: str
    uses: tuple[Use, ...] = ()
    gradient: str = ""
    variants: tuple[str, ...] = ()
    make: Callable[..., Any] | None = None
    own_reduction: str = ""

    @property
    def used_by(self) -> tuple[str, ...]:
        return tuple(use.who for use in self.uses)

    @property
    def least_squares(self) -> bool:
        """Whether Gauss-Newton and Levenberg-Marquardt take it."""
        return hasattr(self.cls, "linearize")

    @property
    def solver(self) -> str:
        return "any" if self.least_squares else "first order"

    @property
    def reduction(self) -> str:
        return self.own_reduction or self.cls.reduction

    @property
    def where(self) -> str:
        """Module and name to import it by."""
        made = self.make or self.cls
        return f"{made.__module__}.{made.__name__}"


REGISTRY: tuple[EnergyRow, ...] = (
    EnergyRow(
        "E1",
        "photo_xview",
        CrossViewPhotometric,
        "log I_v(u_v) - log s_v(n) - mean over the views",
        "log of linear luminance",
        'MVF-Net eq. 7, PGN "Lp-", Shu et al. eq. 14; latent albedo ours',
        (_use(MVF, "sq", "10"), _use(PGN, "l1", "ablation"), _use(OURS, "cauchy")),
        "through both sampling positions; bilinear, so it reaches 1-2 px: use a pyramid; visibility frozen",
    ),
    EnergyRow(
        "E2",
        "photo_warp_depth",
        DepthWarpPhotometric,
        "C (I_i - I_{j->i})",
        "sRGB in 0..1",
        "Shu et al. eq. 11-14, MGCNet",
        (_use(MVD, "l1"), _use(MGC, "l1", "0.1 x 0.15")),
        "to depth, poses, camera and suitability; co-visibility detached",
    ),
    EnergyRow(
        "E3",
        "census_xview",
        CrossViewCensus,
        "q_o (t_o^a - t_o^b), t_o = d_o / sqrt(sigma^2 + d_o^2)",
        "soft census code",
        "PGN eq. 9; soft form of UnFlow and DDFlow",
        (_use(PGN, "", "0.2; 5 on eyes, nose, mouth"), _use(OURS, "sq", "sigma 8, 3, 0.9")),
        "a small sigma pulls at nearly equal pixels only: lower it step by step; `scalar` and `census_loss` are the printed sums",
        tuple(VARIANTS),
    ),
    EnergyRow(
        "E4",
        "flow_mag",
        FlowMagnitude,
        "w, the flow between I_b and I_{a->b}",
        "px of a 224 px crop",
        "MVF-Net eq. 8, MFNet eq. 6, PGN eq. 10",
        (_use(MVF, "sq", "0.1"), _use(MFN, "sq", "1"), _use(PGN, "l2n", "0.2"), _use(OURS, "l2n")),
        "through the frozen flow network to I_{a->b}; long-range and smooth, size differs by 100 between networks",
        tuple(FLOW_STRICT),
    ),
    EnergyRow(
        "E5",
        "flow_corr",
        FlowCorrespondence,
        "Pr_b(Pr_a^-1(a)) - b",
        "px of the crop",
        "ours: E4 with its flow as fixed matches",
        (_use(OURS, "gm"),),
        "exact for fixed matches, which each freeze finds anew",
        own_reduction="mean",
    ),
    EnergyRow(
        "E6",
        "sem_feat",
        SemanticFeatures,
        "phi(I_b) / |phi(I_b)| - phi(I_{a->b}) / |phi(I_{a->b})|; half its square is 1 - cos",
        "none",
        "PGN eq. 11",
        (_use(PGN, "sq", "10"),),
        "through the frozen network to I_{a->b}; weak and smooth",
    ),
    EnergyRow(
        "E7",
        "photo_model",
        ModelPhotometric,
        "I_v(u_v) - A(p) (H(n_p) . light_v)",
        "linear intensity",
        "DF-MVR eq. 2",
        (_use(DFM, "l2n", "4; 254, 128, 32 on features, skin, background"), _use(OURS, "l2n cauchy")),
        "to shape, pose, light, albedo coefficients; visibility frozen",
        tuple(MODEL_STRICT),
    ),
    EnergyRow(
        "E8",
        "mask_parse",
        ParsedRendering,
        "sqrt(2 CE(parser(rendering of the model), parse(I)))",
        "nats^(1/2)",
        "DF-MVR eq. 3",
        (_use(DFM, "sq", "3"),),
        "through the frozen parser to the rendering (the published code cuts it there)",
    ),
    EnergyRow(
        "E9",
        "lmk2d",
        LandmarkReprojection,
        "Pr(v_n) - l_n",
        "px of the crop",
        "MVF-Net, DF-MVR eq. 4, Shu et al. eq. 5, MFNet eq. 7",
        (
            _use(MVF, "sq", "0.1, then 1"),
            _use(DFM, "l2n", "0.02; 20 on nose and inner lips"),
            _use(MVD, "l1"),
            _use(MFN, "l1", "1"),
            _use(OURS, "huber"),
        ),
        "exact; the jaw's rule and vertices are frozen",
    ),
    EnergyRow(
        "E10",
        "lmk2d_eye",
        LandmarkOffsets,
        "(k_i - k_j) - (l_i - l_j), opposite lid points",
        "px of the crop",
        "MFNet eq. 8",
        (_use(MFN, "l1", "1"), _use(OURS, "huber", "0.5")),
        "exact; blind to a common shift",
        make=eye_offsets,
    ),
    EnergyRow(
        "E11",
        "lmk2d_lip",
        LandmarkOffsets,
        "(k_i - k_j) - (l_i - l_j), opposite inner lip points",
        "px of the crop",
        "MFNet eq. 9",
        (_use(MFN, "l1", "0.5"), _use(OURS, "huber", "0.5")),
        "exact; blind to a common shift",
        make=lip_offsets,
    ),
    EnergyRow(
        "E12",
        "lmk3d_align",
        AlignedLandmarks,
        "s R q_n + t - q'_n, similarity fitted to the anchors",
        "mm",
        "DF-MVR eq. 5-6",
        (_use(DFM, "l2n", "1"),),
        "the similarity is constant, or attached on request",
        make=lmk3d_align,
    ),
    EnergyRow(
        "E13",
        "lmk_posmap",
        PositionMapLandmarks,
        "X_UV(n) - L_n",
        "px of the crop",
        "PGN section 4",
        (_use(PGN, "l1"),),
        "to the texels around the 68 points",
    ),
    EnergyRow(
        "E14",
        "lmk_guided",
        AlignedLandmarks,
        "T X(a) - X_UV, T fitted to all points",
        "mm",
        "PGN eq. 8",
        (_use(PGN, "l1", "1; T affine"),),
        "through T as well, or T constant; the least-squares form holds it fixed",
        make=lmk_guided,
        own_reduction="sum",
    ),
    EnergyRow(
        "E15",
        "identity_sup",
        IdentitySupervision,
        "a - a*",
        "standard deviations",
        "MVF-Net eq. 6, Shu et al. eq. 3",
        (_use(MVF, "sq", "1"), _use(MVD, "l1")),
        "exact",
    ),
    EnergyRow(
        "E15",
        "expression_sup",
        ExpressionSupervision,
        "b - b*",
        "blend-shape weight",
        "MVF-Net eq. 6, Shu et al. eq. 3",
        (_use(MVF, "sq", "1"), _use(MVD, "l1")),
        "exact",
    ),
    EnergyRow(
        "E16",
        "pose_sup",
        PoseSupervision,
        "log(R*^T R), t - t*, log(f / f*)",
        "degrees, mm, log units",
        "MVF-Net eq. 6",
        (_use(MVF, "sq", "10"),),
        "geodesic angle; not smooth at 180 degrees",
    ),
    EnergyRow(
        "E17", "vertex_sup", VertexSupervision, "V - V*", "mm", "PGN fig. 1", (_use(PGN, "sq"),), "exact"
    ),
    EnergyRow(
        "E18",
        "identity_consistency",
        CodeConsistency,
        "(a_i - a_j) / sqrt(2), frames of one person",
        "standard deviations",
        "Shu et al. eq. 4",
        (_use(MVD, "l1"),),
        "exact",
    ),
    EnergyRow(
        "E18",
        "expression_consistency",
        CodeConsistency,
        "(b_i - b_j) / sqrt(2), frames of one instant",
        "blend-shape weight",
        "Shu et al. eq. 4",
        (_use(MVD, "l1"),),
        "exact",
    ),
    EnergyRow(
        "E19", "depth_sup", DepthSupervision, "D - D*", "mm", "Shu et al. eq. 8", (_use(MVD, "l1"),), "exact"
    ),
    EnergyRow(
        "E20",
        "normal_sup",
        NormalSupervision,
        "N(D) - N(D*)",
        "unit vector",
        "Shu et al. eq. 9",
        (_use(MVD, "l1"),),
        "to neighbouring depths",
    ),
    EnergyRow(
        "E21",
        "depth_3dmm",
        DepthPrior,
        "D - D_S, depth of a fitted face model",
        "mm",
        "Shu et al. eq. 10",
        (_use(MVD, "sq", "0.02"),),
        "D_S detached",
    ),
    EnergyRow(
        "E22",
        "suitability_reg",
        SuitabilityPrior,
        "C - 1",
        "none",
        "Shu et al. eq. 15",
        (_use(MVD, "sq"),),
        "exact",
    ),
    EnergyRow(
        "E23",
        "identity_prior",
        IdentityPrior,
        "a",
        "standard deviations",
        "MVF-Net L_reg, DF-MVR eq. 8, MFNet eq. 10",
        (_use(MVF, "sq", "1"), _use(DFM, "sq", "3e-4"), _use(MFN, "sq", "1e-4"), _use(OURS, "sq")),
        "exact",
    ),
    EnergyRow(
        "E23",
        "expression_prior",
        ExpressionPrior,
        "b, other sigma below 0",
        "blend-shape weight",
        "MVF-Net L_reg, DF-MVR eq. 8, MFNet eq. 10",
        (
            _use(MVF, "sq", "1"),
            _use(DFM, "sq", "3e-4 x 0.8"),
            _use(MFN, "sq", "1e-4"),
            _use(OURS, "sq huber"),
        ),
        "exact",
    ),
    EnergyRow(
        "E23",
        "albedo_prior",
        AlbedoPrior,
        "g",
        "standard deviations",
        "DF-MVR eq. 8",
        (_use(DFM, "sq", "3e-4 x 0.017"),),
        "exact",
    ),
    EnergyRow(
        "E24",
        "prior_l1",
        MeanCoefficientPrior,
        "a, b",
        "standard deviations, blend-shape weight",
        "PGN eq. 12: mean |a / sigma| + 1/2 mean |b / sigma|",
        (_use(PGN, "l1", "1"),),
        "exact; a kernel 'l1' of radius e needs weight 1 / e",
    ),
    EnergyRow(
        "E25",
        "light_mono",
        LightMono,
        "light - its mean over RGB",
        "light",
        "DF-MVR, public code",
        (_use(DFM, "sq", "10"),),
        "exact",
    ),
    EnergyRow(
        "E26",
        "albedo_var",
        AlbedoVariance,
        "T - mean of T over the skin",
        "linear RGB",
        "DF-MVR, public code",
        (_use(DFM, "sq", "5"),),
        "exact",
    ),
    EnergyRow(
        "E27",
        "ssim_xview",
        DepthWarpStructure,
        "((1 - SSIM(I_i, I_{j->i})) / 2)^(1/2), 3 x 3",
        "none",
        "MGCNet; Wang et al. 2004",
        (_use(MGC, "sq", "0.1 x 0.85"),),
        "to depth, poses and camera; the root is rounded at 0",
    ),
    EnergyRow(
        "E28",
        "depth_xview",
        DepthAgreement,
        "z_{i->j} - D_j(u_j), equal means",
        "mm",
        "MGCNet",
        (_use(MGC, "l1", "0.1 x 0.1"),),
        "to both depths, poses and camera",
    ),
    EnergyRow(
        "E29",
        "epi_lmk",
        EpipolarLandmarks,
        "distance of l_j from the epipolar line of l_i",
        "px of the crop",
        "MGCNet",
        (_use(MGC, "", "off in its code"),),
        "to poses and focal lengths alone",
    ),
    EnergyRow(
        "",
        "identity_nll",
        IdentityLikelihood,
        "(a - a*) / t, sqrt(2 log(t / t_0)), t predicted",
        "none",
        "Kendall and Gal 2017, eq. 5",
        (_use(OURS, "sq"),),
        "to the identity and to its predicted standard deviations",
    ),
    EnergyRow(
        "",
        "flow_triangulated",
        TriangulatedFlow,
        "n . (p - X), X where the rays of a match pass each other",
        "mm",
        "ours, after MVF-Net eq. 8",
        (_use(OURS, "gm"),),
        "to the shape alone: poses and cameras count as they were frozen",
    ),
    EnergyRow(
        "",
        "landmark_prior",
        LandmarkOffsetPrior,
        "o",
        "mm, 0.9 at the eyes to 2.8 at the jaw",
        "ours",
        (_use(OURS, "sq"),),
        "exact",
    ),
    EnergyRow(
        "", "focal_prior", FocalPrior, "log(f / f_0)", "log units", "ours", (_use(OURS, "sq"),), "exact"
    ),
    EnergyRow(
        "",
        "light_prior",
        LightPrior,
        "light - its first estimate",
        "share of the light",
        "ours",
        (_use(OURS, "sq"),),
        "exact",
    ),
    EnergyRow(
        "",
        "size_prior",
        SizePrior,
        "a . c, log of the head's size",
        "log units",
        "ours",
        (_use(OURS, "sq"),),
        "exact",
    ),
)

# rho of the squared length s with e = the kernel's radius; a test evaluates the formula and compares it with `Kernel.rho`.
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


def find(name: str) -> EnergyRow:
    """The row of an energy.

    Raises:
        InputError: no such energy; it names the nearest one.
    """
    rows = {row.name: row for row in REGISTRY}
    if name not in rows:
        raise unknown_key(name, rows, "energies")
    return rows[name]


def present() -> tuple[str, ...]:
    """Ids of the list that have an implementation, in its order."""
    return tuple(i for i in (f"E{n}" for n in range(1, LISTED + 1)) if any(row.id == i for row in REGISTRY))


def text() -> str:
    """The table for a terminal: one line for each energy."""
    rows = [("id", "name", "solver", "reduction", "used by", "residual")]
    rows += [(r.id or "-", r.name, r.solver, r.reduction, ", ".join(r.used_by), r.formula) for r in REGISTRY]
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[-1]]) for row in rows)


def describe(row: EnergyRow) -> str:
    """All that is known about one energy, with the documentation of its class."""
    lines = [
        f"{row.id} {row.name}".strip(),
        f"residual   {row.formula}",
        f"unit       {row.unit}",
        f"source     {row.source}",
        f"used by    {'; '.join(map(str, row.uses))}",
        f"reduction  {row.reduction}",
        f"solver     {row.solver}",
        f"gradient   {row.gradient}",
    ]
    lines += [f"variants   {', '.join(row.variants)}"] if row.variants else []
    return "\n".join([*lines, f"python     {row.where}", "", inspect.getdoc(row.make or row.cls) or ""])


def page() -> str:
    """The page docs/energies.md."""
    ids = present()
    missing = [f"E{n}" for n in range(1, LISTED + 1) if f"E{n}" not in ids]
    ours = sum(not row.id for row in REGISTRY)
    there = f"{len(ids)} of the {LISTED} energies E1 to E{LISTED} of the papers below are there"
    there += f", all but {', '.join(missing)}" if missing else ""
    parts = [
        "# Energies",
        "",
        "This page is the output of `fitkit energies --markdown`; a test compares the two.",
        "",
        f"{there}, and {ours} of our own (no id). An energy may stand in more than one row. Each gives residuals; `Objective` squares "
        "them, puts a robust kernel on them and takes the sum or the weighted mean over the valid ones. The same class serves a fit "
        "and the training of a network.",
        "",
        "- *solver*: any = has an analytic least-squares form (`linearize`), for Gauss-Newton and Levenberg-Marquardt as well as for "
        "first-order solvers; first order = gradient only, for solver `adam` and training.",
        "- *reduction*: sum for independent measurements, mean for pixels and the like.",
        "- *residual*: before it is divided by its standard deviation, in the *unit* beside it.",
        "- *used by*: with the kernel and, behind it, the weight and other numbers where the paper states them.",
        "",
        _table(
            ("id", "name", "residual", "unit", "reduction", "solver"),
            [(r.id, f"`{r.name}`", r.formula, r.unit, r.reduction, r.solver) for r in REGISTRY],
        ),
        "",
        "## Where they come from",
        "",
        _table(
            ("name", "source", "used by", "strict variants", "gradient", "python"),
            [
                (
                    f"`{r.name}`",
                    r.source,
                    "; ".join(map(str, r.uses)),
                    ", ".join(r.variants),
                    r.gradient,
                    f"`{r.where}`",
                )
                for r in REGISTRY
            ],
        ),
        "",
        *[f"- {name}: {title}." for name, title in PAPERS.items() if name != MVD],
        f"- {PAPERS[MVD]}.",
        "",
        "## Kernels",
        "",
        "`rho` of the squared length `s` of a residual, `e` = `radius`; `l1` takes each component of the residual by itself, `s` its "
        "square, and adds them up. `Kernel.published` gives the formula that the papers print, "
        "the same curve up to a factor and an offset.",
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
    return "\n".join(parts)


def mask_functions() -> list[tuple[str, Callable]]:
    """The public functions of masks.py in their order there."""
    own = [
        (name, f)
        for name, f in vars(masks).items()
        if inspect.isfunction(f) and f.__module__ == masks.__name__
    ]
    return [(name, f) for name, f in own if not name.startswith("_")]


def _users(kernel: str) -> str:
    uses = {row.name: [use.who for use in row.uses if kernel in use.kernels] for row in REGISTRY}
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
