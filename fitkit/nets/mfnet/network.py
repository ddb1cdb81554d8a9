"""MFNet: a trunk shared by the views; one identity, expression and jaw from the features of all; pose,
scaled-orthographic camera, albedo and light from those of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from fitkit.errors import InputError
from fitkit.geometry.rotation import so3_exp
from fitkit.geometry.spherical_harmonics import Y0, sh_basis
from fitkit.io.options import Positive, Range, check_options
from fitkit.models.face_model import FaceModel
from fitkit.models.skinned import SkinnedModel
from fitkit.nets.mfnet.deca import ENCODER, FLAME_JOINTS, HARMONICS, METRE, PARTS, DecaEncoder
from fitkit.nets.mfnet.trunks import Kind, load_landmarks, load_resnet, make_head, make_trunk
from fitkit.nets.predictor import Prediction, Predictor, ViewSlot, frames_of, mean_of_views, table_of
from fitkit.observe.crop import CropOptions
from fitkit.observe.landmarks.network import LandmarkNetwork
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

ANGLE = math.pi / 2  # rad per unit of output
SHIFT = 0.25  # of the side of the picture per unit of output
SCALE = 0.25  # of the scale of the start per unit of output
AMBIENT = 1 / Y0  # white light from everywhere
FLIP = (1.0, -1.0, -1.0)  # x right, y up, z to the viewer -> the axes of our cameras, and back


@dataclass(frozen=True)
class MfnetOptions:
    """size: side of the pictures, px, a multiple of 32; trunk: a ResNet of torchvision, 'resnet50' as
    published, or 'landmarks', the network of the built-in landmark detector, which may start from its
    weights; hidden: units of the hidden layer of each head; normalize: what ResNets see are pictures
    normalized as ImageNet's;
    joints: of a skinned model those that turn, one rotation for all views; names that the model lacks are
    left out; turn_about: what stays in its place when the head turns, the middle of the 'face', or the 'root'
    joint of a skinned model, as DECA has it; appearance: whether albedo and light are predicted;
    missing: what stands for the feature of a view that is not there, the mean of those that are, so that one
    photo is the same as this photo in all views, or a 'learned' vector;
    expression: blend-shape weight, or standard deviations of a Gaussian coefficient, per unit of output;
    margin, up, fill: the crop, see CropOptions."""

    size: Annotated[int, Range(32, 2048, multiple=32)] = 224
    trunk: Kind = "resnet50"
    hidden: Annotated[int, Range(1, 16384)] = 1024
    normalize: bool = False
    joints: tuple[str, ...] = ("jaw",)
    turn_about: Literal["face", "root"] = "face"
    appearance: bool = True
    missing: Literal["mean", "learned"] = "mean"
    expression: Positive = 0.3
    margin: Annotated[float, Range(0.1, 20.0)] = 1.6
    up: Annotated[float, Range(-5.0, 5.0)] = 0.0
    fill: Literal["grey", "black"] = "grey"

    def __post_init__(self):
        check_options(self, "net mfnet")


class Mfnet(Predictor):
    """See README.md beside this file for what is as published and what differs.

    Starts at the mean face: frontal, in the middle of the crop, as large as the crop makes it.
    """

    gives = ("state",)
    camera_kind = "orthographic"
    feature_parts = ("trunk",)
    trunk_file = "a ResNet of torchvision (.pth) or DECA's deca_model.tar"

    def __init__(self, model: FaceModel, views: tuple[ViewSlot, ...], options: MfnetOptions = MfnetOptions()):
        super().__init__()
        o = options
        self.options, self.views, self.size = o, tuple(views), o.size
        self.crop = CropOptions(o.margin, o.up, o.size, o.size, o.fill)
        self.model_name, self.num_identity, self.num_expression = (
            model.name,
            model.num_identity,
            model.num_expression,
        )
        names: tuple[str, ...] = model.joint_names if isinstance(model, SkinnedModel) else ()
        if o.turn_about == "root" and not names:
            raise InputError(
                f"net mfnet: turn_about: 'root' needs a face model with joints, and '{model.name}' has none; "
                "give turn_about=face"
            )
        self.turned = tuple(name for name in o.joints if name in names)
        self.joint_names = names
        self.num_albedo = len(model.albedo_basis) if o.appearance and model.albedo_basis is not None else 0
        self.trunk = make_trunk(o.trunk, model, o.size, o.normalize)
        channels = self.trunk.outputs
        # What each head gives, one behind the other.
        self.shared = (self.num_identity, self.num_expression, 3 * len(self.turned))
        self.own = (3, 3, self.num_albedo, 27 if o.appearance else 0)
        self.shape_head = make_head(channels * len(self.views), o.hidden, sum(self.shared))
        self.view_head = make_head(channels, o.hidden, sum(self.own))
        self.absent: nn.Parameter | None = None
        if o.missing == "learned":
            self.absent = nn.Parameter(torch.zeros(len(self.views), channels))
        self._remember(model, [names.index(name) for name in self.turned])

    def _remember(self, model: FaceModel, turned: list[int]) -> None:
        """What of the face model the network needs. It is no weight: the model's file has it."""
        o, points = self.options, model.landmark_basis.mean.detach().float().cpu()
        low, high = points.amin(0), points.amax(0)
        middle = (low + high) / 2
        # px per mm; the crop is cut around the box of the 68 points and moved up.
        self.mean_scale = o.size / (o.margin * float((high - low)[:2].max()))
        shift = -middle[:2].clone()
        shift[1] -= o.up * (high - low)[1]
        joint_unit = torch.zeros(len(turned), len(self.joint_names), 3, device="cpu")
        pivot, rows = middle, torch.zeros(3, model.num_identity + model.num_expression, device="cpu")
        if isinstance(model, SkinnedModel):
            for number, joint in enumerate(turned):
                joint_unit[number, joint] = model.joint_sigma[joint].float().cpu()
            if o.turn_about == "root":
                pivot, rows = model.joint_basis.mean[0], model.joint_basis.rows[0]
        directions = torch.nn.functional.normalize(_DIRECTIONS.cpu(), dim=1)
        fixed = {
            "expression_unit": o.expression * model.coefficients["expression"].unit(points),
            "joint_unit": joint_unit,  # [n, J, 3] rad per unit of output
            "pivot": pivot,
            "pivot_rows": rows,
            "start": shift,  # [2] mm, of the pivot's frame to the axis
            "directions": directions,
            "to_light": torch.linalg.pinv(sh_basis(directions.double())),
            "flip": torch.tensor(FLIP, device="cpu"),
        }
        for name, value in fixed.items():
            self.register_buffer(name, value.detach().float().cpu().clone(), persistent=False)

    def forward(self, images: Tensor, valid: Tensor, padded: bool = False) -> Prediction:
        frames, subject = frames_of(images, valid, padded)
        features = self.features(frames)
        codes = self.shape_head(self._table(features, valid, padded).flatten(1))
        views = self.view_head(features)
        with torch.autocast(
            features.device.type, enabled=False
        ):  # positions need more digits than half precision has
            state = self._state(codes.float(), views.float(), valid, subject, padded)
            return Prediction(state, shared_expression=True)

    def features(self, images: Tensor) -> Tensor:
        return self.trunk(images)

    def _table(self, features: Tensor, valid: Tensor, padded: bool) -> Tensor:
        """Features [S, V, C] of all views, also of those that are missing."""
        if self.absent is not None:
            return table_of(features, valid, padded, self.absent.to(features))
        mean = mean_of_views(features, valid, padded)
        return table_of(features, valid, padded, mean[:, None])

    def _state(
        self, codes: Tensor, views: Tensor, valid: Tensor, subject: Tensor, padded: bool
    ) -> SceneState:
        """codes [S, sum(shared)], views [B, sum(own)], both as the heads give them."""
        identity, expression, turned = codes.split(self.shared, 1)
        angles, place, albedo, light = views.split(self.own, 1)
        expression = self.expression_unit * expression
        turn = so3_exp(ANGLE * angles)  # head -> x right, y up, z to the viewer
        scale = self.mean_scale * positive(1 + SCALE * place[:, 0])  # px per mm
        shift = self.start + SHIFT * self.size / self.mean_scale * place[:, 1:]
        # As DECA: turned about the pivot, moved, then scaled.
        coefficients = torch.cat([identity, expression], 1)[subject]
        pivot = self.pivot + coefficients @ self.pivot_rows.T
        at = pivot - (turn @ pivot[..., None])[..., 0] + torch.cat([shift, torch.zeros_like(shift[:, :1])], 1)
        translation = self.flip * at
        depth = torch.full_like(scale, Camera.REFERENCE_DEPTH)
        translation = torch.cat([translation[:, :2], depth[:, None]], 1)
        middle = torch.full_like(shift, (self.size - 1) / 2)
        camera = Camera(scale * Camera.REFERENCE_DEPTH, middle, torch.ones_like(scale), self.camera_kind)
        joints = None
        if self.joint_names:
            turned = turned.unflatten(1, (len(self.turned), 3))
            joints = torch.einsum("snc,njc->sjc", turned, self.joint_unit)[subject]
        return SceneState(
            identity,
            subject,
            expression[subject],
            Pose(self.flip[:, None] * turn, translation),
            camera,
            self._light(light, turn),
            mean_of_views(albedo, valid, padded) if self.num_albedo else None,
            joints=joints,
        )

    def _light(self, light: Tensor, turn: Tensor) -> Tensor:
        """Illumination [B, 9, 3] in the head frame of what the head says of the light around the viewer;
        white light in one channel where nothing is predicted of it."""
        if not self.options.appearance:
            return torch.full_like(turn[:, :1, :1], AMBIENT) * _first_of_nine(turn)
        around = light.unflatten(1, (9, 3)) + AMBIENT * _first_of_nine(light)
        # Of bands 0 to 2, values at enough directions tell all nine numbers.
        seen = sh_basis(self.directions @ turn.transpose(1, 2))
        return self.to_light @ (seen @ around)

    def load_trunk(self, weights: Any, where: str) -> None:
        """Start from DECA's released checkpoint, or a ResNet trunk from weights of torchvision; `where` names
        the file.

        Raises:
            InputError: other weights, or options that do not fit them.
        """
        if isinstance(weights, Mapping) and isinstance(weights.get(ENCODER), Mapping):
            self._start_from_deca(weights[ENCODER], where)
            return
        load_resnet(self.trunk, weights, self.options.trunk, where)

    def _start_from_deca(self, weights: Mapping[str, Any], where: str) -> None:
        """Say of a picture in all views what DECA says of it.

        The first layer of the shape head is DECA's over the number of views, for each of them; the last
        layers are its rows, in units of this network. Of coefficients that only one of both has, those of
        DECA are left out, and the others start at 0; so does the albedo, whose coefficients are none of
        DECA's.
        """
        o = self.options
        if o.trunk != "resnet50" or o.normalize:
            raise InputError(
                f"{where}: DECA's encoder is a ResNet-50 that sees pictures in 0 to 1; expected "
                f"net.options.trunk resnet50 and normalize false, got {o.trunk} and {o.normalize}"
            )
        if set(self.joint_names) != FLAME_JOINTS:
            raise InputError(
                f"{where}: DECA's coefficients are those of FLAME; expected this face model, got "
                f"'{self.model_name}', which has not its joints"
            )
        if o.turn_about != "root" or o.missing != "mean":
            raise InputError(
                f"{where}: DECA turns heads about the root joint; expected net.options.turn_about root and "
                f"missing mean, got {o.turn_about} and {o.missing}"
            )
        theirs = DecaEncoder.of(weights, self.trunk.outputs, o.hidden, where)
        load_resnet(self.trunk, theirs.trunk, o.trunk, where)
        views = len(self.views)
        with torch.no_grad():
            for head, share in ((self.shape_head, views), (self.view_head, 1)):
                head[0].weight.copy_((theirs.hidden[0] / share).repeat(1, share))
                head[0].bias.copy_(theirs.hidden[1])
                nn.init.zeros_(head[-1].weight)
                nn.init.zeros_(head[-1].bias)
        self._take_shape(theirs)
        self._take_view(theirs)

    def _take_shape(self, theirs: DecaEncoder) -> None:
        layer, (identity, expression, _) = self.shape_head[-1], self.shared
        count = min(identity, PARTS["shape"])
        theirs.put(layer, 0, "shape", slice(0, count), torch.ones(count))
        count = min(expression, PARTS["expression"])
        theirs.put(layer, identity, "expression", slice(0, count), self.expression_unit[:count].cpu())
        if "jaw" in self.turned:
            number = self.turned.index("jaw")
            unit = self.joint_unit[number].sum(0).cpu()
            theirs.put(layer, identity + expression + 3 * number, "pose", slice(3, 6), unit)

    def _take_view(self, theirs: DecaEncoder) -> None:
        layer = self.view_head[-1]
        theirs.put(layer, 0, "pose", slice(0, 3), torch.full((3,), ANGLE))
        # DECA's picture reaches from -1 to 1, and its head is measured in metres.
        scale = 2 * METRE * self.mean_scale / self.size
        theirs.put(layer, 3, "camera", slice(0, 1), torch.full((1,), SCALE * scale), scale)
        reach = SHIFT * self.size / self.mean_scale / METRE
        theirs.put(layer, 4, "camera", slice(1, 3), torch.full((2,), reach), self.start.cpu() / METRE)
        if self.options.appearance:
            for number, (ours, factor) in enumerate(HARMONICS):
                of, unit = slice(3 * number, 3 * number + 3), torch.full((3,), 1 / factor)
                start = AMBIENT / factor if ours == 0 else 0.0
                theirs.put(layer, 6 + self.num_albedo + 3 * ours, "light", of, unit, start)

    def load_encoder(self, network: LandmarkNetwork, where: str) -> None:
        """Start a trunk 'landmarks' from a landmark network; `where` names its file.

        Raises:
            InputError: one with other layers, or the trunk is another one.
        """
        load_landmarks(self.trunk, network, self.options.trunk, "net.options.trunk=landmarks", where)

    def parts(self) -> dict[str, tuple[nn.Module | nn.Parameter, ...]]:
        shape = (self.shape_head,) if self.absent is None else (self.shape_head, self.absent)
        return {"trunk": (self.trunk,), "views": (self.view_head,), "shape": shape}


_DIRECTIONS = torch.tensor(
    [
        [1.0, 0, 0],
        [-1, 0, 0],
        [0, 1, 0],
        [0, -1, 0],
        [0, 0, 1],
        [0, 0, -1],
        [1, 1, 0],
        [1, -1, 0],
        [0, 1, 1],
        [0, 1, -1],
        [1, 0, 1],
        [1, 0, -1],
    ]
)


def positive(x: Tensor) -> Tensor:
    """x where it is above 1/2, and smoothly down to 0 below."""
    return 0.5 * (1 + torch.nn.functional.elu(2 * x - 1))


def _first_of_nine(like: Tensor) -> Tensor:
    """1 in the first of nine rows, [9, 1]."""
    return (torch.arange(9, device=like.device) == 0).to(like)[:, None]
