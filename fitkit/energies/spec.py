"""What recipes, reports and the documentation know of an energy: one `EnergySpec` beside each; `registry.py`
has all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from fitkit.energies.base import Energy
from fitkit.energies.kernels import Kernel
from fitkit.errors import InputError
from fitkit.io.options import NonNegative, Positive
from fitkit.models.face_model import FaceModel
from fitkit.observe.flow import make_flow_estimator
from fitkit.observe.flow.types import FlowEstimator
from fitkit.observe.observations import Observations

# landmark: measured points in the picture; image: colours; flow: matches and flow; prior: what is known
# without a picture; label: a labelled scene; depth: depth maps.
Role = Literal["landmark", "image", "flow", "prior", "label", "depth"]
MVF, DFM, MVD, MFN, PGN, MGC, OURS = "MVF-Net", "DF-MVR", "Shu et al.", "MFNet", "PGN", "MGCNet", "ours"
# What a network has to predict for an energy, as messages name it.
PARTS = {
    "state": "a scene",
    "state.albedo": "albedo coefficients",
    "state.landmark_offset": "offsets of the landmarks",
    "state.joints": "rotations of joints",
    "identity_sigma": "standard deviations",
    "landmarks": "landmarks",
    "depth": "depth maps",
    "depth.pose": "the poses of its depth maps",
    "position_map": "position maps",
    "points3d": "3D points",
    "parse": "the parts of the face",
}


OWN = "own"  # as the network of an energy: the one that is trained


@dataclass(frozen=True)
class EnergyOptions:
    """What every energy of a recipe has."""

    weight: NonNegative = 1.0  # factor of the cost
    kernel: Kernel = Kernel()  # robust kernel, radius in sigmas


@dataclass(frozen=True)
class ExpressionOptions:
    """What a fit knows of expressions."""

    shared: bool = False  # one expression for all views
    sigma: Positive = 0.3  # of a blend shape's weight above 0; Gaussian coefficients have the model's own
    sigma_negative: Positive = 0.1  # and below


class KnownCameras(Protocol):
    """What a fit knows of the cameras of B views before it looks."""

    @property
    def focal_mean(self) -> Tensor: ...  # [B] px of the crop

    @property
    def focal_sigma(self) -> Tensor: ...  # [B] log units

    @property
    def first(self) -> Tensor: ...  # [B] bool, one view for each camera

    @property
    def principal_mean(self) -> Tensor: ...  # [B, 2] px of the crop

    @property
    def principal_sigma(self) -> Tensor: ...  # [B] px of the crop

    @property
    def aspect_mean(self) -> Tensor: ...  # [B]

    @property
    def aspect_sigma(self) -> Tensor: ...  # [B] log units

    @property
    def aspect_differs(self) -> bool: ...  # there are several cameras, not all with a known aspect

    @property
    def cameras(self) -> Tensor: ...  # [B] int64, views of one camera with one principal point

    @property
    def metric(self) -> bool: ...  # known positions of cameras, in a known unit, fix the head's scale


class Networks:
    """Flow estimators and frozen networks by name, each made once.

    flow: (estimator, weights) that an empty name stands for; make_flow, make_network: what makes them, from
    (name, weights, device); networks are frozen ones, see fitkit.nets.load_network; the name is 'own encoder'
    or 'own parser' where an energy looks through the network that is trained.
    """

    def __init__(
        self,
        device: str = "cpu",
        flow: tuple[str, str] = ("dis", ""),
        make_flow: Callable[[str, str | None, str], FlowEstimator] = make_flow_estimator,
        make_network: Callable[[str, str, str], nn.Module] | None = None,
    ):
        self.device, self.usual_flow = device, flow
        self.make_flow, self.make_network = make_flow, make_network
        self._flows: dict[tuple[str, str], FlowEstimator] = {}
        self._networks: dict[tuple[str, str], nn.Module] = {}

    def flow(self, estimator: str = "", weights: str = "") -> FlowEstimator:
        """A flow estimator.

        Raises:
            InputError, MissingWeightsError: one that cannot be had.
        """
        key = (estimator, weights) if estimator else self.usual_flow
        if key not in self._flows:
            self._flows[key] = self.make_flow(key[0], key[1] or None, self.device)
        return self._flows[key]

    def frozen(self, name: str, weights: str, looks_through: str) -> nn.Module:
        """A network that never learns. looks_through: what of it is asked for, 'encoder' or 'parser', where
        its name is OWN and does not say.

        Raises:
            InputError, MissingWeightsError: one that cannot be had.
        """
        if self.make_network is None:
            raise InputError(f"network '{name}': nothing makes networks here; give Networks a make_network")
        key = (f"{OWN} {looks_through}" if name == OWN else name, weights)
        if key not in self._networks:
            self._networks[key] = self.make_network(*key, self.device)
        return self._networks[key]


@dataclass(frozen=True)
class Context:
    """What an energy is made from. A fit and a training fill in what each of them knows.

    state: where residuals will be taken, see `EnergySpec.takes`: a SceneState, Landmarks, a DepthState, a
    PositionMap or the logits of a parse.
    """

    model: FaceModel
    observations: Observations
    state: Any = None
    networks: Networks = field(default_factory=Networks)
    seed: int = 0
    done: float = 0.0  # share of the stage that is done
    light: Tensor | None = None  # [B, 9, C], the first estimate of the light
    # [B] int64, views with the same one share an expression; None: each has its own
    expression_owner: Tensor | None = None
    # [B] int64, views with the same one show one expression, or may, as far as can be told; None: the owner's
    expression_alike: Tensor | None = None
    joint_owner: Tensor | None = None  # the same of the joints
    # what a fit knows; a training takes it from the options
    landmark_sigma: Tensor | None = None  # [B, 68] px of the crop
    offset_sigma: Tensor | None = None  # [68] mm
    jaw: str | None = None  # what points 0-16 are: 'outline', 'surface' or 'auto'
    cameras: KnownCameras | None = None
    expression: ExpressionOptions | None = None
    # of a training: all that the network says about these people, see nets.predictor.Prediction
    prediction: Any = None


@dataclass(frozen=True)
class Use:
    """How a paper or we ourselves use an energy. kernels: names for `Kernel`; note: weights and the like."""

    who: str
    kernels: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        how = ", ".join(part for part in ("/".join(self.kernels), self.note) if part)
        return f"{self.who} ({how})" if how else self.who


def use(who: str, kernels: str = "", note: str = "") -> Use:
    return Use(who, tuple(kernels.split()), note)


@dataclass(frozen=True)
class EnergyDoc:
    """What the documentation says about an energy."""

    formula: str  # of the residual, before its sigma
    unit: str = ""  # of that formula
    source: str = ""  # paper and equation
    uses: tuple[Use, ...] = ()  # by whom
    gradient: str = ""  # where it goes and what to know about it
    id: str = ""  # of the list of the papers' energies, 'E1' to 'E29'
    variants: tuple[str, ...] = ()  # names of the strict forms

    @property
    def used_by(self) -> tuple[str, ...]:
        return tuple(u.who for u in self.uses)


@dataclass(frozen=True)
class EnergySpec:
    """One energy: its options in recipes, how it is made, what it needs and what it counts as."""

    # what it is
    name: str  # in recipes and reports, the same as the energy's own
    cls: type  # with `residuals` and, where derivatives are written by hand, `linearize`
    make: Callable[[Context, Any], Energy]  # from a context and the options of a recipe
    role: Role
    doc: EnergyDoc
    # what recipes say: dataclasses of options; those of a training where defaults differ or a fit knows more
    options: type = EnergyOptions
    training: type | None = None
    # what it needs; several of these may be functions of the options
    needs: Callable[[Any], frozenset[str]] | tuple[str, ...] = ()  # labels, names of `Labels.parts`
    optional: tuple[str, ...] = ()  # labels that it takes where they are there
    # the part of a prediction it measures: also 'landmarks', 'depth', 'position_map', 'parse'
    takes: str = "state"
    parts: Callable[[Any], tuple[str, ...]] | tuple[str, ...] = ()  # more of a prediction, see PARTS
    load: Callable[[Networks, Any], Any] | None = None  # asks for its networks before the start
    not_in_fits: str = ""  # why a fit cannot use it
    applies: Callable[[Context], bool] = lambda context: True  # left out where it does not
    # which views it looks at together
    cross_view: bool = False  # compares views: needs two of a person
    one_person: bool = False  # all views that it is given must be of one person
    apart: Callable[[Observations, Any], Any] | None = None  # equal answers are taken together
    # what it counts as
    blocks: tuple[str, ...] = ()  # of a prior: the blocks of the state that it holds
    takes_means: bool = False  # a mean over people although its reduction is 'sum'
    light: Callable[[Any], int] | None = None  # channels of light it can estimate, 0: any
    # where it is one of several of its class: the function that builds it, and its own reduction
    builder: Callable[..., Any] | None = None
    reduction_of: str = ""

    @property
    def least_squares(self) -> bool:
        """Whether its derivatives are written by hand; others are had by automatic differentiation."""
        return hasattr(self.cls, "linearize")

    @property
    def derivatives(self) -> str:
        return "analytic" if self.least_squares else "automatic"

    @property
    def reduction(self) -> str:
        return self.reduction_of or getattr(self.cls, "reduction", "sum")

    @property
    def in_fit(self) -> bool:
        return not self.not_in_fits

    @property
    def where(self) -> str:
        """Module and name to import it by."""
        made = self.builder or self.cls
        return f"{made.__module__}.{made.__name__}"

    def training_options(self) -> type:
        return self.training or self.options

    def labels_for(self, options: Any) -> frozenset[str]:
        """The labels that it needs with these options."""
        return self.needs(options) if callable(self.needs) else frozenset(self.needs)

    def parts_for(self, options: Any) -> tuple[str, ...]:
        """The parts of a prediction that it needs with these options."""
        return (self.takes, *(self.parts(options) if callable(self.parts) else self.parts))
