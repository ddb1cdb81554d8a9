"""Distance of network features between a photo and the other view's colours rendered into it (E6)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fitkit.energies.base import Residuals
from fitkit.energies.flow_correspondence import FlowImages
from fitkit.energies.flow_magnitude import both_ways, resized_photos
from fitkit.energies.pair_masks import PairMask, shared_pixels
from fitkit.energies.spec import PGN, Context, EnergyDoc, EnergyOptions, EnergySpec, Networks, use
from fitkit.errors import InputError
from fitkit.io.options import Cosine, Natural, NonNegative, Pixels, Range
from fitkit.models.face_model import FaceModel
from fitkit.observe.observations import Observations
from fitkit.render.cross_view import SharedPixels
from fitkit.scene.state import SceneState


class FrozenNetwork(torch.nn.Module):
    """A network that never learns: its weights are constant, and it stays in evaluation mode whatever the
    rest of a training does, so that running statistics and dropout do not change. The graph to its input is
    kept."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenNetwork:
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def frozen_network(network: torch.nn.Module) -> FrozenNetwork:
    """A frozen copy, so that the caller's own network can go on learning; one that is frozen already stays as
    it is."""
    return network if isinstance(network, FrozenNetwork) else FrozenNetwork(deepcopy(network))


@dataclass(frozen=True)
class FeatureOptions:
    size: Pixels = 224  # side of the images the network sees
    # each view is paired with this many next views of the same person in the order of their yaw, both ways
    neighbors: Annotated[int, Range(1, 1000)] = 1
    min_pixels: Natural = 64  # pairs that share fewer for a 224-pixel crop do not count
    min_cosine: Cosine = 0.25  # of the viewing angles, for mask 'zbuffer'
    depth_tolerance_mm: NonNegative = 3.5  # what lies further behind is hidden, for mask 'zbuffer'
    mask: PairMask = "zbuffer"  # what tells the pixels that both views see, see `pair_mask`


@dataclass(frozen=True)
class SemanticFeatures:
    """sem_feat: phi(I_b) / |phi(I_b)| - phi(I_{a->b}) / |phi(I_{a->b})|, [G, 1, K], G ordered pairs of views
    of one person.

    Half the squared length is 1 - cos(phi(I_b), phi(I_{a->b})), so with kernel 'sq' the cost is the printed
    formula, mean over the pairs. I_{a->b} shows view a's colours where a sees the surface and photo b
    elsewhere, so that only the face differs. The gradient goes to shape, poses and cameras, through the
    frozen network and the sampling of photo a; photo b is constant.
    Weak and smooth. Derivatives of a network's features by all parameters cost a pass for each of them, so
    there is no `linearize`. Visibility is fixed by `freeze`, which comes first.
    Source: PGN eq. 11, whose phi is its own encoder, frozen; a face recognition network asks for the same
    person.
    """

    model: FaceModel
    options: FeatureOptions
    network: torch.nn.Module
    photos: FlowImages
    shared: SharedPixels | None = None  # set by freeze

    name = "sem_feat"
    reduction = "mean"

    @staticmethod
    def prepare(
        model: FaceModel,
        observations: Observations,
        network: torch.nn.Module,
        options: FeatureOptions = FeatureOptions(),
    ) -> SemanticFeatures:
        """The photos at the network's size, and a frozen copy of it.

        network: images [G, 3, h, w], sRGB in [0, 1], -> features [G, K]; what else it wants done to its input
        is its own part.
        """
        return SemanticFeatures(
            model, options, frozen_network(network), resized_photos(observations, options.size)
        )

    def freeze(self, state: SceneState, observations: Observations) -> SemanticFeatures:
        o, photos = self.options, self.photos
        pairs = both_ways(state, o.neighbors, self.name, photos.moment)
        shared = shared_pixels(self.model, state, photos, pairs, o)
        return replace(self, shared=shared)

    def images(self, state: SceneState) -> tuple[Tensor, Tensor]:
        """What the network compares: view a's colours over photo b, and photo b, [G, 3, h, w]."""
        photo = self.photos.images[[b for _, b in self.shared.pairs]]
        return self.shared.render(self.model, state, self.photos.images, photo), photo

    def residuals(self, state: SceneState, observations: Observations) -> Residuals:
        if self.shared is None:
            raise InputError("energy 'sem_feat': freeze it at a state first, as Objective.freeze does")
        rendering, photo = self.images(state)
        with torch.no_grad():
            wanted = self._direction(photo)
        count = (self.shared.angle > 0).sum(1, keepdim=True)
        enough = count >= max(1.0, self.options.min_pixels * (max(rendering.shape[-2:]) / 224) ** 2)
        return Residuals((wanted - self._direction(rendering))[:, None], enough)

    def _direction(self, images: Tensor) -> Tensor:
        features = self.network(images)
        if features.ndim != 2 or len(features) != len(images):
            raise InputError(
                f"energy 'sem_feat': expected a network that gives features [{len(images)}, K] for "
                f"{len(images)} images, got {list(features.shape)}; pool or flatten them in the network"
            )
        return F.normalize(features, dim=1)


# ---- recipes ----


@dataclass(frozen=True)
class FeatureTerm(EnergyOptions):
    # What the pictures are looked at through, see fitkit.nets.load_network; in a training also 'own': the
    # encoder of the network that is trained, in a stage in which it does not learn.
    network: str = "encoder"
    weights: str = ""  # of that network, regressor.safetensors; none for 'own'
    looks_through: ClassVar[str] = "encoder"
    options: FeatureOptions = FeatureOptions()


def _load(networks: Networks, o: FeatureTerm) -> torch.nn.Module:
    return networks.frozen(o.network, o.weights, o.looks_through)


def _make(context: Context, o: FeatureTerm) -> SemanticFeatures:
    photos = resized_photos(context.observations, o.options.size)
    return SemanticFeatures(context.model, o.options, _load(context.networks, o), photos)


SPECS = (
    EnergySpec(
        name="sem_feat",
        cls=SemanticFeatures,
        make=_make,
        role="image",
        doc=EnergyDoc(
            formula="phi(I_b) / |phi(I_b)| - phi(I_{a->b}) / |phi(I_{a->b})|; half its square is 1 - cos",
            unit="none",
            source="PGN eq. 11",
            uses=(use(PGN, "sq", "10"),),
            gradient="through the frozen network to I_{a->b}; weak and smooth",
            id="E6",
        ),
        options=FeatureTerm,
        cross_view=True,
        load=_load,
    ),
)
