"""Shu et al.: a DenseNet for face model and pose, a U-Net for depth, another one for where colours can be
compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from fitkit.errors import InputError
from fitkit.geometry.spherical_harmonics import Y0
from fitkit.io.options import Length, Positive, Range, check_options
from fitkit.models.face_model import FaceModel
from fitkit.nets.mvdepth.face_depth import FaceDepth
from fitkit.nets.mvdepth.model_net import ModelNet
from fitkit.nets.mvdepth.unet import UNet
from fitkit.nets.predictor import Prediction, Predictor, ViewSlot, frames_of, table_of
from fitkit.observe.crop import CropOptions
from fitkit.observe.landmarks.network import LandmarkNetwork
from fitkit.scene.camera import Camera
from fitkit.scene.depth_state import DepthState, from_normalized
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

FOCAL = 1015.0 / 224.0  # sides of the picture: as wide a field of view as that of Deep3DFaceRecon
LOGIT = 0.02  # how near to 0 and 1 its normalized depth may come
EMPTY = 0.05  # normalized depth below which a trained network says that there is no surface
DEPTH_START, TRUST_START = 0.0, 2.0  # outputs before the sigmoid; the second as in Shu et al.: near 0.9


@dataclass(frozen=True)
class MvdepthOptions:
    """size: side of the pictures, px.

    Of g: trunk: 'densenet' as published, or 'landmarks', the network of the built-in landmark detector, which
    may start from its weights and whose points give a first pose; growth, blocks, features: of the DenseNet,
    32, 6 12 24 16 and 64 in DenseNet-121; pool: what the heads see of the last feature map, its mean ('mean',
    as published) or all of it at 32 channels ('grid'); hidden: width of the layer before the outputs.
    Of f: base: what its output is added to and what it sees beside the picture: 'model', the face of g in
    its pose; 'none' as published; width: factor on the channels, levels: how often the picture is halved, 1
    and 6 as published. Of h: trust_width: factor on the channels, 0.5 for half of those of f.
    expression: blend-shape weight, or standard deviations of a Gaussian coefficient, per unit of output;
    margin, up: of the crop, see CropOptions."""

    size: Annotated[int, Range(32, 2048, multiple=16)] = 96
    trunk: Literal["densenet", "landmarks"] = "densenet"
    growth: Annotated[int, Range(1, 256)] = 12
    blocks: Annotated[tuple[Annotated[int, Range(1, 128)], ...], Length(4, 4)] = (3, 6, 8, 6)
    features: Annotated[int, Range(1, 512)] = 24
    pool: Literal["mean", "grid"] = "grid"
    hidden: Annotated[int, Range(1, 8192)] = 256
    base: Literal["model", "none"] = "model"
    width: Annotated[float, Range(0.001, 16.0)] = 0.25
    levels: Annotated[int, Range(2, 8)] = 5
    trust_width: Annotated[float, Range(0.001, 16.0)] = 0.125
    expression: Positive = 0.3
    margin: Annotated[float, Range(0.1, 20.0)] = 1.6
    up: Annotated[float, Range(-5.0, 5.0)] = 0.05

    def __post_init__(self):
        check_options(self, "net mvdepth")
        if self.trunk == "landmarks" and self.size % 32:
            raise InputError(
                f"net mvdepth: size: expected a multiple of 32 with trunk 'landmarks', got {self.size}"
            )


class Mvdepth(Predictor):
    """See README.md beside this file for what is as published and what differs.

    Starts at the mean face, frontal and as large as the crop makes it, and its depth (a flat one with
    `base: none`). Each photo is looked at by itself: while it is trained the state has an identity for each
    frame, so that they can be compared; a trained network gives each person the mean of them. Depth and
    suitability are not computed in a step in which neither of them learns.
    """

    gives = ("state", "depth")
    camera_kind = "perspective"
    trunk_file = "torchvision's densenet121"
    feature_parts = ("trunk",)

    def __init__(
        self,
        model: FaceModel,
        views: tuple[ViewSlot, ...] = (),
        options: MvdepthOptions = MvdepthOptions(),
    ):
        super().__init__()
        if views:
            raise InputError(
                "net mvdepth: looks at each photo by itself; expected no named 'views', "
                f"got {', '.join(v.name for v in views)}"
            )
        o = options
        self.options, self.views, self.size = o, (), o.size
        self.crop = CropOptions(o.margin, o.up, o.size, o.size)
        self.focal = FOCAL * o.size
        self.model_name, self.num_identity, self.num_expression = (
            model.name,
            model.num_identity,
            model.num_expression,
        )
        self.model = ModelNet(model, o, self.crop, self.focal)
        self.depth = UNet(o.width, o.levels, DEPTH_START, 4 if o.base == "model" else 3)
        if o.base == "model":  # it starts at the face of g
            nn.init.zeros_(self.depth.out.weight)
        self.trust = UNet(o.trust_width, o.levels, TRUST_START)
        unit = o.expression * model.coefficients["expression"].unit(model.landmark_basis.mean)
        self.register_buffer("expression_unit", unit.detach().float().cpu().clone(), persistent=False)
        self.face = FaceDepth(model) if o.base == "model" else None

    def forward(self, images: Tensor, valid: Tensor, padded: bool = False) -> Prediction:
        frames, person = frames_of(images, valid, padded)
        codes, rotation, place = self.model(frames)
        mapped = not self.training or self.depth.training or self.trust.training
        depth, trust = None, None
        if mapped:
            depth, trust = self._depth(frames, codes, rotation, place), self.trust(frames)
        with torch.autocast(
            frames.device.type, enabled=False
        ):  # positions need more digits than half precision
            identity, expression = codes.split([self.num_identity, self.num_expression], 1)
            if self.training:
                subject = torch.arange(frames.shape[0], device=frames.device)
            else:
                identity, subject = self._of_people(identity, valid, padded), person
            state = self._state(identity, subject, expression, rotation, place)
            if depth is None or trust is None:
                return Prediction(state, subject=person)
            return Prediction(
                state, depth=self._mapped(depth.float(), trust.float(), state, person), subject=person
            )

    def _depth(self, frames: Tensor, codes: Tensor, rotation: Tensor, place: Tensor) -> Tensor:
        """What f says of pictures, before the sigmoid, [B, size, size]."""
        if self.face is None:
            return self.depth(frames)
        with torch.no_grad(), torch.autocast(frames.device.type, enabled=False):
            identity, expression = codes.split([self.num_identity, self.num_expression], 1)
            base = self.face(
                torch.cat([identity, self.expression_unit * expression], 1),
                rotation,
                place - rotation @ self.model.anchor,
                place[:, 2],
                self.focal,
                self.size,
            )
        found = self.depth(torch.cat([frames, base[:, None].to(frames.dtype)], 1))
        return found + torch.logit(base, LOGIT)

    def features(self, images: Tensor) -> Tensor:
        return self.model.maps(images).mean((2, 3))

    @staticmethod
    def _of_people(identity: Tensor, valid: Tensor, padded: bool) -> Tensor:
        """[B, K_id] of the frames -> [S, K_id], the mean over those of each person."""
        table = table_of(identity, valid, padded, identity.new_zeros(()))
        share = valid.to(identity)[..., None]
        return (table * share).sum(1) / share.sum(1)

    def _state(
        self, identity: Tensor, subject: Tensor, expression: Tensor, rotation: Tensor, place: Tensor
    ) -> SceneState:
        translation = place - rotation @ self.model.anchor
        focal = torch.full_like(translation[:, 0], self.focal)
        middle = torch.full_like(translation[:, :2], (self.size - 1) / 2)
        light = focal.new_zeros(focal.shape[0], 9, 1)
        light[:, 0] = 1 / Y0  # white from everywhere: nothing is predicted about it
        return SceneState(
            identity,
            subject,
            self.expression_unit.to(expression) * expression,
            Pose(rotation, translation),
            Camera(focal, middle, torch.ones_like(focal), self.camera_kind),
            light,
        )

    def _mapped(self, depth: Tensor, trust: Tensor, state: SceneState, person: Tensor) -> DepthState:
        value = torch.sigmoid(depth)
        found = DepthState(depth, state.pose, state.camera, person, torch.sigmoid(trust), self.model.anchor)
        away = from_normalized(value, found.distance())
        if (
            not self.training
        ):  # in a training all pixels have a depth, which the background's loss can pull at
            away = torch.where(value > EMPTY, away, torch.zeros_like(away))
        return DepthState(away, state.pose, state.camera, person, found.suitability, self.model.anchor)

    def load_trunk(self, weights: Any, where: str) -> None:
        """See `ModelNet.load_trunk`."""
        self.model.load_trunk(weights, where)

    def load_encoder(self, network: LandmarkNetwork, where: str) -> None:
        """See `ModelNet.load_encoder`."""
        self.model.load_encoder(network, where)

    def parts(self) -> dict[str, tuple[nn.Module | nn.Parameter, ...]]:
        return {
            "trunk": (self.model.trunk,),
            "heads": (self.model.squeeze, self.model.head),
            "depth": (self.depth,),
            "suitability": (self.trust,),
        }
