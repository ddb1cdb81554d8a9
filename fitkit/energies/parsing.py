"""What a face parser sees in the model's rendering against what it sees in the photo (E8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.energies.base import PlainEnergy, Residuals
from fitkit.energies.features import frozen_network
from fitkit.energies.flow_correspondence import FlowImages
from fitkit.energies.flow_magnitude import resized_photos
from fitkit.energies.parse_labels import labelled_parse
from fitkit.energies.spec import DFM, OURS, Context, EnergyDoc, EnergyOptions, EnergySpec, Networks, use
from fitkit.errors import InputError
from fitkit.io.options import Pixels, Range
from fitkit.models.face_model import FaceModel
from fitkit.observe.face_parts import PARSE, PARTS, ten
from fitkit.observe.observations import Observations
from fitkit.render.lit import Lit, render_lit
from fitkit.scene.state import SceneState

# (state with cameras of the picture, (H, W), fixed triangle map [B, H, W] or None) -> the face in the
# picture, differentiable.
Renderer = Callable[[SceneState, tuple[int, int], Tensor | None], Lit]

FLOOR = 1e-12  # cross entropy below which its root counts as 0


@dataclass(frozen=True)
class ParseOptions:
    """size: side of the images the parser sees; target: 'photo' the parser's own answer to the photo, its
    likeliest class, 'labels' `labels.parse`, in the parser's classes; region: pixels that count, 'image' all
    of them, 'face' those the rendering covers when frozen."""

    size: Pixels = 224
    target: Literal["photo", "labels"] = "photo"
    region: Literal["image", "face"] = "image"


@dataclass(frozen=True)
class ParsedRendering:
    """mask_parse: sqrt(2 CE) at each pixel, [B, h * w, 1], CE = cross entropy of parser(rendering over the
    photo) with parse(photo).

    A cross entropy is no square; its root is taken so that with kernel 'sq' the cost is the mean of CE over
    the pixels and views, exactly, and so is the gradient. The root has an infinite derivative at 0: a pixel
    whose CE is below 1e-12 counts as 0 without a gradient, which differs by that much. Other kernels would
    bend CE, not a distance. There is no `linearize`.
    The rendering is the model's albedo under the state's light (`render_lit`), or `renderer`. The graph is
    kept through parser and rendering, so the energy teaches shape, pose, light and albedo. Outside of the
    rendering the parser sees the photo, and grey in both where the mask hides it. At the truth the energy is
    the parser's own doubt about the picture, not 0.
    Visibility and targets are fixed by `freeze`, which comes first.
    Source: DF-MVR eq. 3, 10 classes (printed for two); its public code cuts the graph before the parser.
    """

    model: FaceModel
    options: ParseOptions
    parser: torch.nn.Module
    photos: FlowImages
    renderer: Renderer
    triangle: Tensor | None = None  # [B, h, w] int64, set by freeze
    target: Tensor | None = None  # [B, h, w] int64, set by freeze
    valid: Tensor | None = None  # [B, h, w] bool, set by freeze

    name = "mask_parse"
    reduction = "mean"

    @staticmethod
    def prepare(
        model: FaceModel,
        observations: Observations,
        parser: torch.nn.Module,
        options: ParseOptions = ParseOptions(),
        albedo: Tensor | None = None,
        renderer: Renderer | None = None,
    ) -> ParsedRendering:
        """The photos at the parser's size, and a frozen copy of it.

        Args:
            parser: images [B, 3, h, w], sRGB in [0, 1], -> logits [B, C, h, w]; what else it wants done to
                its input is its own part.
            albedo: [V, 3] or [B, V, 3] linear RGB, None: the model's under the state's coefficients;
                renderer: instead of `render_lit`.
        """
        draw = renderer or (lambda state, size, triangle: render_lit(model, state, size, albedo, triangle))
        return ParsedRendering(
            model, options, frozen_network(parser), resized_photos(observations, options.size), draw
        )

    def freeze(self, state: SceneState, observations: Observations) -> ParsedRendering:
        with torch.no_grad():
            lit = self._draw(state, None)
            mask = self.photos.mask[:, 0] > 0.999
            valid = mask if self.options.region == "image" else mask & lit.covered
            if self.options.target == "photo":
                target = self._logits(self.photos.images).argmax(1)
            else:
                target, known = labelled_parse(observations, mask.shape[-2:], self.name)
                valid = valid & known
            return replace(self, triangle=lit.triangle, target=target, valid=valid)

    def image(self, state: SceneState) -> Tensor:
        """What the parser sees, [B, 3, h, w]."""
        return self._draw(state, self.triangle).over(self.photos.images, self.photos.mask[:, 0] > 0.999)

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        if self.target is None:
            raise InputError("energy 'mask_parse': freeze it at a state first, as Objective.freeze does")
        logits = self._logits(self.image(state))
        return _root_of_entropy(logits, torch.where(self.valid, self.target, 0), self.valid, self.name)

    def _draw(self, state: SceneState, triangle: Tensor | None) -> Lit:
        reduction = self.photos.reduction
        return self.renderer(
            state.replace(camera=state.camera.resized(reduction)), self.photos.images.shape[-2:], triangle
        )

    def _logits(self, images: Tensor) -> Tensor:
        logits = self.parser(images)
        if logits.ndim != 4 or logits.shape[0] != len(images) or logits.shape[2:] != images.shape[2:]:
            raise InputError(
                f"energy 'mask_parse': expected a parser that gives [{len(images)}, C, {images.shape[2]}, "
                f"{images.shape[3]}], got {list(logits.shape)}"
            )
        return logits


@dataclass(frozen=True)
class ParseSupervision(PlainEnergy):
    """parse_sup: sqrt(2 CE) at each pixel, [B, H W, 1], CE = cross entropy of the network's own parse [B, C,
    H, W] logits with the labelled one. Mean over the pixels whose label is known.

    With kernel 'sq' the cost is the mean of CE, see ParsedRendering for the root. With `balance` b, CE of a
    pixel is multiplied by the share of the known pixels that show its part, to the power -b, over the mean of
    that: eyes and lips are small. Source: cross entropy, as face parsers are trained.
    """

    name = "parse_sup"
    reduction = "mean"
    balance: float = 0.0

    def residuals(self, state: Tensor, observations: Observations) -> Residuals:
        truth, known = labelled_parse(observations, state.shape[-2:], self.name)
        truth, known = torch.where(known, truth, 0).to(state.device), known.to(state.device)
        truth = _in_classes_of(state, truth)
        residuals = _root_of_entropy(state, truth, known, self.name)
        if self.balance == 0 or not bool(known.any()):
            return residuals
        share = torch.bincount(truth[known], minlength=state.shape[1]) / known.sum()
        weight = share.clamp_min(1e-6)[truth] ** -self.balance
        weight = weight / weight[known].mean()
        return replace(residuals, value=residuals.value * weight.sqrt().flatten(1)[..., None])


def _in_classes_of(logits: Tensor, target: Tensor) -> Tensor:
    """Labels may tell more parts than the ten that a parser of DF-MVR's knows."""
    more = logits.shape[1] == len(PARSE) and 0 <= int(target.min()) and int(target.max()) < len(PARTS)
    return ten(target) if more else target


def _root_of_entropy(logits: Tensor, target: Tensor, valid: Tensor, name: str) -> Residuals:
    target = _in_classes_of(logits, target)
    if int(target.max()) >= logits.shape[1] or int(target.min()) < 0:
        raise InputError(
            f"energy '{name}': expected labels 0 to {logits.shape[1] - 1}, the classes of the parser, "
            f"got {int(target.min())} to {int(target.max())}"
        )
    twice = 2 * F.cross_entropy(logits, target, reduction="none")
    counts = twice > FLOOR
    root = torch.where(counts, torch.where(counts, twice, 1.0).sqrt(), 0.0)
    return Residuals(root.flatten(1)[..., None], valid.flatten(1))


# ---- recipes ----


@dataclass(frozen=True)
class ParseTerm(EnergyOptions):
    # What the pictures are looked at through, see fitkit.nets.load_network; in a training also 'own': the
    # parser inside of the network that is trained.
    network: str = "parser"
    weights: str = ""  # of that network, regressor.safetensors; none for 'own'
    looks_through: ClassVar[str] = "parser"
    options: ParseOptions = ParseOptions()


@dataclass(frozen=True)
class ParseTraining(ParseTerm):
    """A fit renders under the light that it has estimated."""

    light: Literal["plain", "predicted"] = "plain"  # 'plain': white light from everywhere


@dataclass(frozen=True)
class ParseLabelTerm(EnergyOptions):
    # How much pixels of small parts count more; 1: all parts of a batch count alike.
    balance: Annotated[float, Range(0.0, 1.0)] = 0.0


def _load(networks: Networks, o: ParseTerm) -> torch.nn.Module:
    return networks.frozen(o.network, o.weights, o.looks_through)


def _make(context: Context, o: ParseTerm) -> ParsedRendering:
    photos = resized_photos(context.observations, o.options.size)
    return ParsedRendering(
        context.model,
        o.options,
        _load(context.networks, o),
        photos,
        lambda state, size, triangle: render_lit(context.model, state, size, None, triangle),
    )


SPECS = (
    EnergySpec(
        name="mask_parse",
        cls=ParsedRendering,
        make=_make,
        role="image",
        doc=EnergyDoc(
            formula="sqrt(2 CE(parser(rendering of the model), parse(I)))",
            unit="nats^(1/2)",
            source="DF-MVR eq. 3",
            uses=(use(DFM, "sq", "3"),),
            gradient="through the frozen parser to the rendering (the published code cuts it there)",
            id="E8",
        ),
        options=ParseTerm,
        training=ParseTraining,
        needs=lambda o: frozenset({"parse"} if o.options.target == "labels" else ()),
        load=_load,
    ),
    EnergySpec(
        name="parse_sup",
        cls=ParseSupervision,
        make=lambda context, o: ParseSupervision(o.balance),
        role="label",
        doc=EnergyDoc(
            formula="sqrt(2 CE(P, P*)), P the parse of a network",
            unit="nats^(1/2)",
            source="cross entropy",
            uses=(use(OURS, "sq"),),
            gradient="exact",
        ),
        options=ParseLabelTerm,
        takes="parse",
        needs=("parse",),
        not_in_fits="a fit has no parse of its own; a network predicts one",
    ),
)
