"""DF-MVR: named views with their face parses through a fusing U-Net and a RedNet: one face with its albedo,
and pose and light of each view."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from fitkit.energies.features import FrozenNetwork
from fitkit.errors import InputError
from fitkit.geometry.spherical_harmonics import Y0
from fitkit.io.options import Length, Positive, Range, check_options
from fitkit.models.face_model import FaceModel
from fitkit.nets.dfmvr.rednet import Backbone
from fitkit.nets.dfmvr.tri_unet import Stacked, TriUNet
from fitkit.nets.mvfnet.convention import rotation_of_euler
from fitkit.nets.parser.network import Parser, ParserOptions
from fitkit.nets.predictor import Prediction, Predictor, ViewSlot, frames_of, resized, table_of
from fitkit.nets.weak_perspective import place_in_crop
from fitkit.observe.crop import CropOptions
from fitkit.observe.face_parts import PARSE, ten
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

FOCAL = 1015.0 / 224.0  # sides of the picture, that of Deep3DFaceRecon
UNIT_MM = 100.0  # of a predicted translation
AMBIENT = 0.8 * math.sqrt(math.pi / 4)  # shading before anything is learned: 0.8 of their first harmonic
# Channels of the parse that the network sees beside the colours.
CHANNELS = {"one_hot": len(PARSE), "scaled": 1, "integer": 1, "none": 0}


@dataclass(frozen=True)
class DfmvrOptions:
    """size: side of the pictures, px, a multiple of 32; width: factor on the channels of the U-Net, depth:
    its levels; backbone_width: factor on the channels of the RedNet, blocks: of its four stages; 224, 1, 5, 1
    and 3, 4, 6, 3 as published.
    fusion: 'tri_unet', an encoder for each view; 'unet', one for the views stacked; 'cnn', two convolutions;
    fusion_out: 'concat' as in the published code, 'conv' as printed, see TriUNet; backbone: see Backbone;
    pool: the last map's 'mean' as published, or beside it features of each of its places ('grid');
    masks: how the parse enters: a channel for each of its ten parts, the number of the part over 9, the
    number itself (published code), or not at all, without a parser; light: of each 'view', or one of the
    'person'; start: heads begin in the middle of their slot's yaw ('slots') or 'frontal';
    expression: blend-shape weight, or standard deviations of a Gaussian coefficient, per unit of output;
    margin, up: of the crop, see CropOptions; parser: options of the network that parses the pictures."""

    size: Annotated[int, Range(32, 2048, multiple=32)] = 96
    width: Annotated[float, Range(0.001, 16.0)] = 0.125
    depth: Annotated[int, Range(2, 6)] = 5
    backbone_width: Annotated[float, Range(0.001, 16.0)] = 0.25
    blocks: Annotated[tuple[Annotated[int, Range(1, 64)], ...], Length(4, 4)] = (3, 4, 6, 3)
    fusion: Literal["tri_unet", "unet", "cnn"] = "tri_unet"
    fusion_out: Literal["concat", "conv"] = "concat"
    backbone: Literal["rednet", "resnet"] = "rednet"
    pool: Literal["mean", "grid"] = "grid"
    masks: Literal["one_hot", "scaled", "integer", "none"] = "one_hot"
    light: Literal["view", "person"] = "view"
    start: Literal["slots", "frontal"] = "slots"
    expression: Positive = 0.3
    margin: Annotated[float, Range(0.1, 20.0)] = 1.6
    up: Annotated[float, Range(-5.0, 5.0)] = 0.1
    parser: ParserOptions = ParserOptions()

    def __post_init__(self):
        check_options(self, "net dfmvr")


class Dfmvr(Predictor):
    """See README.md beside this file for what is as published and what differs.

    Starts at the mean face with the mean albedo under even light, as large as the crop makes it.
    """

    gives: tuple[str, ...] = ("state", "parse")
    camera_kind = "perspective"

    def __init__(self, model: FaceModel, views: tuple[ViewSlot, ...], options: DfmvrOptions = DfmvrOptions()):
        super().__init__()
        o = options
        self.options, self.views, self.size = o, tuple(views), o.size
        self.crop = CropOptions(o.margin, o.up, o.size, o.size, "black")
        self.model_name, self.num_identity, self.num_expression = (
            model.name,
            model.num_identity,
            model.num_expression,
        )
        self.num_albedo = 0 if model.albedo_basis is None else len(model.albedo_basis)
        V, inputs = len(self.views), 3 + CHANNELS[o.masks]
        self.parser: FrozenNetwork | None = None
        if o.masks == "none":
            self.gives = ("state",)
        else:
            self.parser = FrozenNetwork(Parser(None, (), o.parser))
            self.needs, self.parse_parts = "weights of a face parser", ("parser",)
            # Heads are as large in the parser's pictures as those that it was trained on.
            self.parse_size = max(64, 64 * round(o.parser.size * o.margin / o.parser.margin / 64))
        if o.fusion == "tri_unet":
            self.fusion: TriUNet | Stacked = TriUNet(V, inputs, o.width, o.depth, o.fusion_out == "conv")
        else:
            depth = o.depth if o.fusion == "unet" else 1
            self.fusion = Stacked(V, inputs, o.width, depth, o.fusion_out == "conv")
        for module in self.fusion.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        grid = o.size // 32 if o.pool == "grid" else 0
        self.backbone = Backbone(o.backbone, self.fusion.outputs, o.backbone_width, o.blocks, grid)
        self.sizes = (
            self.num_identity,
            self.num_expression,
            self.num_albedo,
            27 * (V if o.light == "view" else 1),
            6 * V,
        )
        self.head = nn.Linear(self.backbone.outputs, sum(self.sizes))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._remember(model)

    def _remember(self, model: FaceModel) -> None:
        """What of the face model the network needs. It is no weight: the model's file has it."""
        o, points = self.options, model.landmark_basis.mean.detach().float().cpu()
        anchor = (points.amin(0) + points.amax(0)) / 2
        self.focal = FOCAL * o.size
        middles = [math.radians(v.middle) if o.start == "slots" else 0.0 for v in self.views]
        turn = torch.zeros(len(middles), 3, device="cpu")
        turn[:, 1] = -torch.tensor(middles, device="cpu")  # see rotation_of_angles for its sign
        turned = (points - anchor) @ rotation_of_euler(turn).transpose(1, 2)
        fixed = {
            "anchor": anchor,
            "place": place_in_crop(turned, self.crop, self.focal),  # there the mean face starts
            "turn": turn,
            "expression_unit": o.expression * model.coefficients["expression"].unit(points),
        }
        for name, value in fixed.items():
            self.register_buffer(name, value.detach().float().cpu().clone(), persistent=False)

    def forward(self, images: Tensor, valid: Tensor, padded: bool = False) -> Prediction:
        frames, subject = frames_of(images, valid, padded)
        parse, seen = None, frames
        if self.parser is not None:
            with torch.no_grad():
                parse = self.parse_of(frames)
            seen = torch.cat([frames, self._channels(parse).to(frames)], 1)
        # A missing view is black, without any part of a face.
        table = table_of(seen.flatten(1), valid, padded, seen.new_zeros(()))
        found = self.head(self.backbone(self.fusion(table.unflatten(2, seen.shape[1:]))))
        with torch.autocast(
            found.device.type, enabled=False
        ):  # positions need more digits than half precision has
            state = self._state(found.float(), valid, subject, padded)
            return Prediction(state, parse=parse, shared_expression=True)

    def parse_of(self, images: Tensor) -> Tensor:
        if self.parser is None:
            return super().parse_of(images)
        logits = self.parser.network.logits(resized(images, (self.parse_size,) * 2))
        return resized(logits.float(), images.shape[-2:])

    def _channels(self, parse: Tensor) -> Tensor:
        """Logits [B, C, h, w] -> what the network sees of them, [B, 10 or 1, h, w]."""
        part = parse.argmax(1)
        if parse.shape[1] != len(PARSE):
            part = ten(part)
        if self.options.masks == "one_hot":
            return (part[:, None] == torch.arange(len(PARSE), device=part.device)[:, None, None]).float()
        return part[:, None].float() / (len(PARSE) - 1 if self.options.masks == "scaled" else 1)

    def _state(self, found: Tensor, valid: Tensor, subject: Tensor, padded: bool) -> SceneState:
        """found: [S, sum(self.sizes)]: identity, expression, albedo, light, and of each view three angles and
        a place."""
        identity, expression, albedo, light, poses = found.split(self.sizes, 1)

        def of_frames(rows: Tensor) -> Tensor:
            return rows.flatten(0, 1) if padded else rows[valid]

        poses = poses.unflatten(1, (len(self.views), 6))
        rotation = rotation_of_euler(of_frames(poses[..., :3] + self.turn.to(poses)))
        at = of_frames(UNIT_MM * poses[..., 3:] + self.place.to(poses))
        translation = at - rotation @ self.anchor.to(poses)
        if self.options.light == "view":
            light = of_frames(light.unflatten(1, (len(self.views), 27)))
        else:
            light = light[subject]
        light = light.unflatten(1, (9, 3))
        ambient = torch.zeros_like(light[:1])
        ambient[:, 0] = AMBIENT / Y0
        focal = torch.full_like(translation[:, 0], self.focal)
        middle = torch.full_like(translation[:, :2], (self.size - 1) / 2)
        return SceneState(
            identity,
            subject,
            self.expression_unit.to(expression) * expression[subject],
            Pose(rotation, translation),
            Camera(focal, middle, torch.ones_like(focal), self.camera_kind),
            light + ambient,
            albedo if self.num_albedo else None,
        )

    def load_parser(self, network: Predictor, where: str) -> None:
        """Take over a trained parser; `where` names its file.

        Raises:
            InputError: one with other options than this network's, or this network has none.
        """
        if self.parser is None:
            raise InputError(
                f"{where}: are the weights of a face parser, and this network looks at none (net.options."
                "masks is none); leave net.start out"
            )
        if network.options != self.options.parser:
            raise InputError(
                f"{where}: expected a parser with the options {self.options.parser}, got {network.options}; "
                "give them as net.options.parser"
            )
        self.parser.network.load_state_dict(network.state_dict())

    def parts(self) -> dict[str, tuple[nn.Module | nn.Parameter, ...]]:
        """The parser never learns, whatever is freed."""
        own: dict[str, tuple[nn.Module | nn.Parameter, ...]] = {
            "fusion": (self.fusion,),
            "backbone": (self.backbone,),
            "heads": (self.head,),
        }
        return own if self.parser is None else own | {"parser": (self.parser,)}
