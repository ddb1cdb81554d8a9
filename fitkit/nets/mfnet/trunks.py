"""What makes a row of features of each picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fitkit.errors import InputError
from fitkit.models.face_model import FaceModel
from fitkit.nets.pgn.placing import place_affine
from fitkit.observe.landmarks.network import NUM_POINTS, LandmarkNetwork, NetworkOptions, NetworkOutput

Kind = Literal["resnet50", "resnet34", "resnet18", "landmarks"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures
SQUEEZED = 24  # channels of the deepest feature map that keep their places
INITIAL_STD = 1e-4  # of the last weights of a head
RESIDUAL_MM = 5.0  # of landmarks from the placed mean face, per unit of a feature


class ResNetTrunk(nn.Module):
    """A ResNet of torchvision without its classes: pictures [B, 3, h, w] in [0, 1] -> [B, outputs].

    normalize: take off the mean of ImageNet's pictures, and divide by their deviation, as weights trained
    there want it.
    Source: He et al., "Deep residual learning for image recognition", CVPR 2016.
    """

    def __init__(self, kind: Kind, normalize: bool):
        super().__init__()
        import torchvision  # takes a second to load

        self.network = getattr(torchvision.models, kind)(weights=None)
        self.outputs = self.network.fc.in_features
        self.network.fc = nn.Identity()
        self.normalize = normalize

    def forward(self, images: Tensor) -> Tensor:
        if self.normalize:
            mean, std = (images.new_tensor(x)[:, None, None] for x in (MEAN, STD))
            images = (images - mean) / std
        return self.network(images)


class LandmarkTrunk(nn.Module):
    """The network of the built-in landmark detector as a trunk: pictures [B, 3, size, size] in [0, 1] ->
    [B, outputs].

    The deepest features, as their mean and squeezed at their places; how the mean face lies on the landmarks
    that the network finds, and how far from it they are in that pose, which says more about a person than
    where they lie.
    """

    def __init__(self, model: FaceModel, size: int):
        super().__init__()
        self.network = LandmarkNetwork(NetworkOptions(size=size))
        deepest = self.network.options.widths[-1]
        self.squeeze = nn.Conv2d(deepest, SQUEEZED, 1)
        self.told = 2 * NUM_POINTS + 9 + 3
        self.outputs = deepest + SQUEEZED * (size // 32) ** 2 + self.told
        self.size = size
        fixed = {
            "points_mean": model.landmark_basis.mean,
            "points_present": model.landmarks.present.float(),
        }
        for name, value in fixed.items():
            self.register_buffer(name, value.detach().float().cpu().clone(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.look(images)[0]

    def look(self, images: Tensor) -> tuple[Tensor, NetworkOutput]:
        """The row of features of each picture, whose last `told` are those of `tell`, and the landmarks."""
        found, features = self.network.locate(images)
        with torch.autocast(features.device.type, enabled=False):
            points, sigma = found.on_skin()
            told = self.tell(points, sigma.detach())
        seen = torch.cat([features.mean((2, 3)), self.squeeze(features).flatten(1)], 1)
        return torch.cat([seen, told.to(seen.dtype)], 1), found

    def tell(self, points: Tensor, sigma: Tensor) -> Tensor:
        """Landmarks [B, 68, 2] px, jaw points as points of the skin, and their standard deviations [B, 68]
        px -> how far they are from the mean face in the pose that lays it onto them, and this pose, [B,
        told]."""
        weight = sigma**-2 * self.points_present
        flat = torch.cat([points, torch.zeros_like(points[..., :1])], -1)
        mean = self.points_mean.expand(points.shape[0], -1, -1)
        scale, rotation, shift = place_affine(mean, flat, weight)
        shown = scale[:, None, None] * (mean @ rotation.transpose(1, 2))[..., :2] + shift[:, None, :2]
        apart = (points - shown) / (RESIDUAL_MM * scale[:, None, None])
        apart = apart * self.points_present[:, None]
        place = torch.cat([shift[:, :2] / self.size - 0.5, scale[:, None] * 100 / self.size], 1)
        return torch.cat([apart.flatten(1), rotation.flatten(1), place], 1)


def make_trunk(kind: Kind, model: FaceModel, size: int, normalize: bool) -> ResNetTrunk | LandmarkTrunk:
    return LandmarkTrunk(model, size) if kind == "landmarks" else ResNetTrunk(kind, normalize)


def load_resnet(trunk: ResNetTrunk | LandmarkTrunk, weights: Any, kind: Kind, where: str) -> None:
    """Fill a ResNet trunk with the weights of torchvision, with or without the classes at its end.

    Raises:
        InputError: weights of something else, or the trunk is no ResNet.
    """
    if isinstance(trunk, LandmarkTrunk) or not isinstance(weights, Mapping):
        raise InputError(
            f"{where}: expected weights of torchvision, or DECA's checkpoint, and a trunk that is a ResNet; "
            f"the trunk is {kind}; give net.options.trunk=resnet50"
        )
    own = trunk.network.state_dict()
    wrong = [
        name
        for name, value in own.items()
        if not name.endswith("num_batches_tracked")
        and getattr(weights.get(name), "shape", None) != value.shape
    ]
    if wrong:
        raise InputError(
            f"{where}: expected the weights of torchvision's {kind}, which the trunk is; {wrong[0]} is "
            "missing or has another shape; give the file of this network, or another net.options.trunk"
        )
    trunk.network.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)


def load_landmarks(
    trunk: ResNetTrunk | LandmarkTrunk | None, network: LandmarkNetwork, kind: str, wanted: str, where: str
) -> None:
    """Start a trunk 'landmarks' from a landmark network; kind: what the trunk is, wanted: the option that
    makes it one of landmarks; `where` names the file.

    Raises:
        InputError: one with other layers, or the trunk is another one.
    """
    if not isinstance(trunk, LandmarkTrunk):
        raise InputError(
            f"{where}: expected the weights of the trunk, which is {kind}; got a landmark network with "
            f"{network.options}; give {wanted} for it, or net.start: weights of the trunk, or '' to start "
            "from nothing"
        )
    own = trunk.network.options
    # The size of the pictures is none of the layers.
    if replace(network.options, size=own.size) != own:
        raise InputError(
            f"{where}: expected the weights of the trunk, a landmark network with {own}; got a landmark "
            f"network with {network.options}; give the file of one like it, or net.start='' to start from "
            "nothing"
        )
    trunk.network.load_state_dict(network.state_dict())


def make_head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Features -> outputs, through one hidden layer; it begins by saying almost nothing."""
    head = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs))
    nn.init.normal_(head[-1].weight, std=INITIAL_STD)
    nn.init.zeros_(head[-1].bias)
    return head
