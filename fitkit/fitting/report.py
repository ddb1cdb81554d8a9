"""The numbers of a fit and what they say about it: `FitResult.report`, and as dictionaries the content of
metrics.json."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from fitkit.io.options import build, option_types

# A key of metrics.json that is there only where it says something.
WHERE_SAID: dict[str, Any] = {"where_said": True}
PREDICT = "predict"  # the recipe of what a network gave without a fit


@dataclass(frozen=True)
class ViewReport:
    """One view. Numbers that are not known are NaN where every view has them, else None."""

    name: str
    reprojection_px: float = math.nan  # mean error of the 51 inner landmarks, px of the photo
    reprojection_share: float = math.nan  # the same over the face size
    part_shift_share: dict[str, float] = field(default_factory=dict)  # by part, over the face size
    masked_share: float | None = None  # of the inner landmarks
    landmarks: int = 0  # number of valid ones
    landmark_sigma_px: float | None = None
    landmark_sigma_share: float | None = None  # over the face size
    shape_shift: float | None = None  # see `ViewAgreement`, as are the next two
    flow_sigma: float | None = None
    flow_sigma_others: float | None = None
    yaw_pitch_roll_deg: tuple[float, ...] = ()
    focal_px: float | None = None
    focal_relative_sigma: float | None = None
    stretch: float = 1.0  # height over width of what should be a square in the photo
    distance_mm: float | None = None  # None for scaled-orthographic cameras
    camera_source: str = ""  # 'cameras.json', 'exif' or 'estimated'
    landmark_doubt: str = field(default="", metadata=WHERE_SAID)


@dataclass(frozen=True)
class IdentityReport:
    beyond_3_sigma: float = 0.0  # share of the coefficients
    rms: float = math.nan
    largest: float = 0.0


@dataclass(frozen=True)
class ExpressionReport:
    out_of_range: float = 0.0  # share of the blend shapes' weights
    largest: float = math.nan  # weight, or standard deviations of a Gaussian coefficient
    beyond_3_sigma: float | None = field(default=None, metadata=WHERE_SAID)  # share of Gaussian ones


@dataclass(frozen=True)
class JointsReport:
    """Of the joint that is turned farthest for its standard deviations, over all views."""

    joint: str
    largest: float  # standard deviations of one axis of its rotation vector
    degrees: float  # how far it is turned


@dataclass(frozen=True)
class ScaleReport:
    metric: bool = False  # known camera positions, in a known unit, fix the size of the head
    note: str = ""
    unit_mm: float | None = field(default=None, metadata=WHERE_SAID)  # of camera positions, as it was found


@dataclass(frozen=True)
class TwoPeopleReport:
    views: tuple[str, ...]  # names of one of the two groups
    log_odds: float
    matched_apart: bool


@dataclass(frozen=True)
class StageReport:
    name: str
    status: str = ""
    seconds: float = math.nan
    identity_change: float | None = None  # root mean square, sigmas; None for the first stage that moves it
    messages: tuple[str, ...] = ()  # of the solver
    terms: dict[str, dict[str, float]] = field(default_factory=dict)  # energy -> cost, valid, rms


@dataclass(frozen=True)
class StartReport:
    source: str = "landmarks"  # or 'regressor'
    # Landmarks of each view that the network takes for wrong; None: no network was asked.
    stray: tuple[int, ...] | None = field(default=None, metadata=WHERE_SAID)
    # How badly each start fits the landmarks, where both were tried.
    cost: dict[str, float] | None = field(default=None, metadata=WHERE_SAID)
    iterations: int = 0  # of the solver, trial fits included


@dataclass(frozen=True)
class BarsReport:
    """The error bars over the face, mm."""

    face_median_mm: float
    face_mean_mm: float | None = None
    face_largest_mm: float | None = None
    inflation: float | None = None
    floor_mm: float | None = None
    true_over_bars: float | None = None  # by the model's calibration, of fits of so many photos
    noise: dict[str, float] = field(default_factory=dict)  # by energy, variance over the stated one


@dataclass(frozen=True)
class TimeReport:
    """Seconds."""

    solve: float = math.nan
    total: float = math.nan
    cpu: float = math.nan


@dataclass(frozen=True)
class Contradiction:
    """A camera position that the landmarks contradict."""

    view: str | None  # None: all of them
    message: str


@dataclass(frozen=True)
class DetailReport:
    """The displacement beyond the face model, see `fitkit.fitting.detail`."""

    sigma_mm: float  # of its prior; 0: no displacement
    log_evidence: float
    mean_mm: float
    median_mm: float
    percentile_95_mm: float
    pairs: int
    matches: int
    residual_before_px: float | None
    residual_after_px: float | None


@dataclass(frozen=True)
class ConversionReport:
    """Of a face that was fitted with another face model, see `fitkit.fitting.convert`. Distances in mm from
    the skin of the face of each of the two to the surface of the other: mean of both directions, and the
    largest of all."""

    source: str  # name of the face model of the fit
    expression: str  # 'names' or 'surface'
    neutral_mean_mm: float  # without expression
    neutral_largest_mm: float
    views_mean_mm: float  # over all photos, with their expressions
    views_largest_mm: float
    coefficients_mean_mm: float  # of the neutral face without the displacement
    coefficients_largest_mm: float
    left_out: tuple[str, ...] = ()  # shapes that are on and have no counterpart of their name


@dataclass(frozen=True)
class Finding:
    """One thing to know about a fit."""

    code: str  # what it is, for programs
    severity: Literal["failed", "doubtful", "note"]  # a note is worth knowing, but nothing wrong
    message: str  # one sentence
    view: str | None = None  # name of the view it is about


@dataclass(frozen=True)
class Verdict:
    summary: str = "not judged"  # one line for people
    expected_mm: float | None = None  # see `fitkit.fitting.findings.expected_error`
    upper_mm: float | None = None
    findings: tuple[Finding, ...] = ()  # what is wrong first


@dataclass(frozen=True)
class FitReport:
    """What is known about a fit. Fields that say nothing have their default; keys of metrics.json are the
    names of the fields."""

    status: Literal["ok", "doubtful", "failed", ""] = ""  # not in `metrics`, beside them in metrics.json
    model: str = ""
    recipe: str = ""
    num_views: int = 0
    parallax_deg: float | None = None
    reprojection_px: float = math.nan
    reprojection_share: float = math.nan
    identity: IdentityReport = IdentityReport()
    expression: ExpressionReport = ExpressionReport()
    scale: ScaleReport = ScaleReport()
    two_people: TwoPeopleReport | None = None
    jaw: str = ""  # what the jaw points were taken for
    crop_px: int = 0
    views: tuple[ViewReport, ...] = ()
    stages: tuple[StageReport, ...] = ()
    start: StartReport = StartReport()
    error_bars: BarsReport | None = None
    time_s: TimeReport = TimeReport()
    notes: tuple[str, ...] = ()
    typical_error_mm: float | None = None  # of a network without a fit, where it is known
    camera_contradictions: tuple[Contradiction, ...] = field(default=(), metadata=WHERE_SAID)
    detail: DetailReport | None = field(default=None, metadata=WHERE_SAID)
    joints: JointsReport | None = field(default=None, metadata=WHERE_SAID)  # of a face model with joints
    conversion: ConversionReport | None = field(default=None, metadata=WHERE_SAID)
    not_computed: tuple[str, ...] = field(default=(), metadata=WHERE_SAID)
    verdict: Verdict = Verdict()

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for each thing that is wrong."""
        return tuple(f.message for f in self.verdict.findings if f.severity != "note")

    @property
    def remarks(self) -> tuple[str, ...]:
        """One sentence for each thing that is worth knowing, but not wrong."""
        return tuple(f.message for f in self.verdict.findings if f.severity == "note")

    def to_metrics(self) -> dict[str, Any]:
        """The content of metrics.json, but status and warnings: numbers, texts, lists and dictionaries."""
        table = _table(self)
        del table["status"]
        if self.recipe != PREDICT:
            del table["typical_error_mm"]
            return table
        names = list(table)
        at = names.index("start")
        names[at : at + 2] = ["error_bars", "start"]  # the order of predictions, which files keep
        return {name: table[name] for name in names}

    @classmethod
    def from_metrics(cls, metrics: dict[str, Any], where: str = "metrics") -> FitReport:
        """The reverse, also of dictionaries that other versions of fitkit wrote: what is missing says
        nothing, unknown keys are passed over.

        Raises:
            InputError: a value of another kind; `where` begins the message.
        """
        return build(cls, _known(cls, metrics), where)


def _table(value: Any) -> Any:
    """Dataclasses as dictionaries, tuples as lists."""
    if dataclasses.is_dataclass(value):
        table = {f.name: (f, getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {k: _table(v) for k, (f, v) in table.items() if not f.metadata or v != f.default}
    if isinstance(value, (list, tuple)):
        return [_table(v) for v in value]
    return {k: _table(v) for k, v in value.items()} if isinstance(value, dict) else value


def _known(kind: Any, value: Any) -> Any:
    """What `kind` knows of a value, as `build` takes it: without NaN, and without None where that is not in
    the type."""
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = option_types(typing.cast(type, kind))
        kept = {k: v for k, v in value.items() if k in hints and not _unsaid(hints[k], v)}
        return {k: _known(hints[k], v) for k, v in kept.items()}
    inner = next((a for a in typing.get_args(kind) if dataclasses.is_dataclass(a)), None)
    if inner is None:
        return value
    return [_known(inner, v) for v in value] if isinstance(value, (list, tuple)) else _known(inner, value)


def _unsaid(kind: Any, value: Any) -> bool:
    return (isinstance(value, float) and math.isnan(value)) or (
        value is None and types.NoneType not in typing.get_args(kind)
    )


def status_line(report: FitReport) -> str:
    """'ok; expected error 1.2 mm (90 %: at most 1.7 mm)'."""
    said = report.verdict
    if said.expected_mm is None:
        return report.status
    return f"{report.status}; expected error {said.expected_mm:.1f} mm (90 %: at most {said.upper_mm:.1f} mm)"


def notes(metrics: dict[str, Any]) -> tuple[str, ...]:
    """The sentences of a verdict that are worth knowing, but nothing wrong, from the content of
    metrics.json."""
    return tuple(
        f["message"] for f in metrics.get("verdict", {}).get("findings", ()) if f["severity"] == "note"
    )
