"""g of Shu et al.: face model and pose of each picture by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet

from fitkit.errors import InputError
from fitkit.models.face_model import FaceModel
from fitkit.nets.mvfnet.convention import rotation_of_euler
from fitkit.nets.pgn.placing import place_affine
from fitkit.nets.weak_perspective import place_in_crop
from fitkit.observe.crop import CropOptions
from fitkit.observe.landmarks.network import NUM_POINTS, LandmarkNetwork, NetworkOptions

UNIT_MM = 100.0  # of a predicted place
RESIDUAL_MM = 5.0  # of landmarks from the posed mean face, per unit of input
TIP = 30  # of the 68 points: the tip of the nose
SQUEEZED = 32  # channels of the feature map that a grid is made of
REDUCTION = 32  # sides of a picture over those of the last feature map
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures that published weights have seen


class ModelNet(nn.Module):
    """Pictures [B, 3, size, size] -> coefficients, and where the head is.

    trunk: DenseNet's layers, or the landmark network, whose points give a first pose in closed form; options:
    those of `MvdepthOptions`, which say more; focal: px.
    """

    def __init__(self, model: FaceModel, options, crop: CropOptions, focal: float):
        super().__init__()
        o = options
        self.options, self.size, self.focal = o, o.size, focal
        self.numbers = model.num_identity + model.num_expression
        if o.trunk == "landmarks":
            self.trunk: nn.Module = LandmarkNetwork(NetworkOptions(size=o.size))
            channels, told = self.trunk.options.widths[-1], 2 * NUM_POINTS + 9
        else:
            # The library's layers without its classifier, under the names of its weights.
            self.trunk = DenseNet(o.growth, o.blocks, o.features, num_classes=1).features
            channels, told = self.trunk[-1].num_features, 0
        self.squeeze: nn.Module = nn.Identity()
        if o.pool == "grid":
            self.squeeze = nn.Conv2d(channels, SQUEEZED, 1)
            channels = SQUEEZED * (o.size // REDUCTION) ** 2
        self.head = nn.Sequential(
            nn.Linear(channels + told, o.hidden), nn.ReLU(inplace=True), nn.Linear(o.hidden, self.numbers + 6)
        )
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)
        self._remember(model, crop)

    def _remember(self, model: FaceModel, crop: CropOptions) -> None:
        """What of the face model the network needs. It is no weight: the model's file has it."""
        points = model.landmark_basis.mean.detach().float().cpu()
        flip = points.new_tensor([1.0, -1.0, -1.0])
        fixed = {
            "anchor": points[TIP],
            "place": place_in_crop((points - points[TIP]) * flip, crop, self.focal),
            "points_mean": torch.nan_to_num(points),
            "points_present": model.landmarks.present,
            "flip": flip,
            "color_mean": torch.tensor(MEAN, device="cpu")[:, None, None],
            "color_std": torch.tensor(STD, device="cpu")[:, None, None],
        }
        for name, value in fixed.items():
            self.register_buffer(name, value.detach().float().cpu().clone(), persistent=False)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs for the coefficients [B, K_id + K_ex], rotations [B, 3, 3] of camera_from_head, and where
        the anchor, the tip of the mean nose, lies in the camera frame, [B, 3] mm."""
        if isinstance(self.trunk, LandmarkNetwork):
            found, features = self.trunk.locate(frames)
            with torch.autocast(frames.device.type, enabled=False):
                rotation, place, told = self._laid(*found.on_skin())
            seen = torch.cat([self._pooled(torch.relu(features)), told.to(features.dtype)], 1)
        else:
            seen = self._pooled(self.maps(frames))
            rotation, place = self.flip.diag()[None], self.place[None]
        with torch.autocast(
            frames.device.type, enabled=False
        ):  # positions need more digits than half precision
            codes, angles, shift = self.head(seen.float()).split([self.numbers, 3, 3], 1)
            turn = self.flip[:, None] * rotation_of_euler(angles)
            return codes, rotation @ turn, place + UNIT_MM * shift

    def maps(self, frames: Tensor) -> Tensor:
        """The last feature map [B, C, size / 32, size / 32]."""
        if isinstance(self.trunk, LandmarkNetwork):
            return torch.relu(self.trunk.locate(frames)[1])
        return torch.relu(self.trunk((frames - self.color_mean.to(frames)) / self.color_std.to(frames)))

    def _pooled(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3)) if self.options.pool == "mean" else self.squeeze(maps).flatten(1)

    def _laid(self, points: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean face on landmarks [B, 68, 2] px with standard deviations [B, 68]: rotation, place of the
        anchor, and how far the landmarks lie from it, [B, 2 * 68 + 9]."""
        weight = sigma.detach() ** -2 * self.points_present
        mean = self.points_mean.expand(points.shape[0], -1, -1)
        flat = torch.cat([points, torch.zeros_like(points[..., :1])], -1)
        scale, rotation, shift = place_affine(mean, flat, weight)
        turned = mean @ rotation.transpose(1, 2)
        shown = scale[:, None, None] * turned[..., :2] + shift[:, None, :2]
        apart = (points - shown) / (RESIDUAL_MM * scale[:, None, None])
        share = weight / weight.sum(1, keepdim=True)
        # The scale is that of the middle of the points.
        behind = turned[:, TIP, 2] - (share * turned[..., 2]).sum(1)
        away = self.focal / scale + behind
        at = (shown[:, TIP] - (self.size - 1) / 2) * (away / self.focal)[:, None]
        place = torch.cat([at, away[:, None]], 1)
        return (
            rotation,
            place,
            torch.cat([(apart * self.points_present[:, None]).flatten(1), rotation.flatten(1)], 1),
        )

    def load_trunk(self, weights: Any, where: str) -> None:
        """Take over torchvision's weights of a DenseNet with the layers of `options`; `where` names the file.

        Raises:
            InputError: other weights, or another trunk.
        """
        # Files of the first versions of torchvision count norms and convolutions of a layer behind a dot.
        given = weights if isinstance(weights, Mapping) else {}
        names = {k: re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", str(k)) for k in given}
        own = {n.removeprefix("features."): given[k] for k, n in names.items() if n.startswith("features.")}
        mine = {k: v for k, v in self.trunk.state_dict().items() if not k.endswith("num_batches_tracked")}
        if any(getattr(own.get(k), "shape", None) != v.shape for k, v in mine.items()):
            raise InputError(
                f"{where}: expected torchvision's weights of a DenseNet with growth {self.options.growth}, "
                f"blocks {list(self.options.blocks)} and {self.options.features} features, and net.options."
                "trunk=densenet; for densenet121 growth 32, blocks [6, 12, 24, 16] and features 64"
            )
        self.trunk.load_state_dict({k: own[k] for k in mine}, strict=False)

    def load_encoder(self, network: LandmarkNetwork, where: str) -> None:
        """Start the trunk from a landmark network; `where` names its file.

        Raises:
            InputError: one with other layers, or the trunk is another one.
        """
        own = self.trunk.options if isinstance(self.trunk, LandmarkNetwork) else None
        # The size of the pictures is none of the layers.
        if own is None or replace(network.options, size=own.size) != own:
            raise InputError(
                f"{where}: is a landmark network with {network.options}; expected net.options.trunk="
                f"landmarks with these, got {self.options.trunk}{f' with {own}' if own else ''}; or give "
                "net.start: weights of the trunk, or '' to start from nothing"
            )
        self.trunk.load_state_dict(network.state_dict())
