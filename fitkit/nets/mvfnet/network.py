"""MVF-Net: a trunk shared by the views, a pose for each view, one identity and expression from the features
of all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from fitkit.errors import InputError
from fitkit.geometry.spherical_harmonics import Y0
from fitkit.io.options import Positive, Range, check_options
from fitkit.models.face_model import FaceModel
from fitkit.nets.mvfnet.convention import rotation_of_angles
from fitkit.nets.predictor import Prediction, Predictor, ViewSlot, frames_of, table_of
from fitkit.observe.crop import CropOptions
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

CHANNELS = (64, 128, 256, 256, 512, 512, 512)  # of the seven convolutions
POOL_AFTER = (0, 1, 3, 4, 6)
POSE_HIDDEN, SHAPE_HIDDEN = 256, 768
ANGLE = math.pi / 2  # rad per unit of output
SHIFT = 0.25  # of the side of the picture per unit of output: 56 px of 224
LOG_SCALE = 0.25  # log units per unit of output
INITIAL_STD = 1e-4


@dataclass(frozen=True)
class MvfNetOptions:
    """size: side of the pictures, px; width: factor on all channel numbers, 1 = as published; missing: what
    stands for the feature of a view that is not there; expression: blend-shape weight, or standard deviations
    of a Gaussian coefficient, per unit of output; margin, up, fill, resize: the crop, see CropOptions."""

    size: Annotated[int, Range(16, 2048, multiple=16)] = 224
    width: Annotated[float, Range(0.001, 16.0)] = 1.0
    missing: Literal["learned", "zero"] = "learned"
    expression: Positive = 0.3
    margin: Annotated[float, Range(0.1, 20.0)] = 1.5
    up: Annotated[float, Range(-5.0, 5.0)] = 0.12
    fill: Literal["grey", "black"] = "grey"
    resize: Literal["area", "cubic"] = "area"

    def __post_init__(self):
        check_options(self, "net mvfnet")


class MvfNet(Predictor):
    """See README.md beside this file for what is as published and what differs.

    Starts at the mean face: frontal, in the middle of the crop, as large as the crop makes it.
    """

    gives = ("state",)
    camera_kind = "orthographic"
    feature_parts = ("trunk",)
    trunk_file = "torchvision's vgg11_bn"

    def __init__(
        self, model: FaceModel, views: tuple[ViewSlot, ...], options: MvfNetOptions = MvfNetOptions()
    ):
        super().__init__()
        self.options, self.views, self.size = options, tuple(views), options.size
        o = options
        self.crop = CropOptions(o.margin, o.up, o.size, o.size, o.fill, o.resize)
        self.model_name, self.num_identity, self.num_expression = (
            model.name,
            model.num_identity,
            model.num_expression,
        )
        channels = [max(1, round(c * options.width)) for c in CHANNELS]
        layers, inputs = [], 3
        for number, outputs in enumerate(channels):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
            if number in POOL_AFTER:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            inputs = outputs
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        hidden = [max(8, round(n * options.width)) for n in (POSE_HIDDEN, SHAPE_HIDDEN)]
        self.pose_head = nn.Sequential(
            nn.Linear(inputs, hidden[0]), nn.ReLU(inplace=True), nn.Linear(hidden[0], 6)
        )
        self.shape_head = nn.Sequential(
            nn.Linear(inputs * len(self.views), hidden[1]),
            nn.ReLU(inplace=True),
            nn.Linear(hidden[1], model.num_identity + model.num_expression),
        )
        self.absent = nn.Parameter(
            torch.zeros(len(self.views), inputs), requires_grad=options.missing == "learned"
        )
        for module in self.trunk:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        for head in (self.pose_head, self.shape_head):
            nn.init.normal_(head[-1].weight, std=INITIAL_STD)
            nn.init.zeros_(head[-1].bias)
        points = model.landmark_basis.mean.detach().float().cpu()
        low, high = points.amin(0), points.amax(0)
        # The crop is cut around the box of the 68 points and moved up; there the mean face starts.
        self.register_buffer("anchor", (low + high) / 2, persistent=False)
        unit = o.expression * model.coefficients["expression"].unit(points)
        self.register_buffer("expression_unit", unit, persistent=False)
        self.mean_scale = options.size / (options.margin * float((high - low)[:2].max()))  # px per mm
        # px below the middle of the crop.
        self.mean_drop = options.up * float((high - low)[1]) * self.mean_scale

    def forward(self, images: Tensor, valid: Tensor, padded: bool = False) -> Prediction:
        frames, subject = frames_of(images, valid, padded)
        features = self.features(frames)
        table = table_of(features, valid, padded, self.absent.to(features))
        poses, codes = self.pose_head(features), self.shape_head(table.flatten(1))
        with torch.autocast(
            features.device.type, enabled=False
        ):  # positions need more digits than half precision has
            return Prediction(self._state(poses.float(), codes.float(), subject), shared_expression=True)

    def features(self, images: Tensor) -> Tensor:
        return self.trunk(images)

    def _state(self, poses: Tensor, codes: Tensor, subject: Tensor) -> SceneState:
        """poses [B, 6]: pitch, yaw, roll, x, y, scale, normalized; codes [S, K_id + K_ex]; subject [B]."""
        rotation = rotation_of_angles(ANGLE * poses[:, :3])
        scale = self.mean_scale * (LOG_SCALE * poses[:, 5]).exp()
        # Of the anchor, px from the middle.
        at = SHIFT * self.size * poses[:, 3:5] + poses.new_tensor([0.0, self.mean_drop])
        shift = at / scale[:, None] - (rotation @ self.anchor.to(poses))[:, :2]
        translation = torch.cat([shift, torch.full_like(shift[:, :1], Camera.REFERENCE_DEPTH)], 1)
        middle = torch.full_like(shift, (self.size - 1) / 2)
        camera = Camera(scale * Camera.REFERENCE_DEPTH, middle, torch.ones_like(scale), self.camera_kind)
        light = poses.new_zeros(poses.shape[0], 9, 1)
        light[:, 0] = 1 / Y0  # white from everywhere: nothing is predicted about it
        identity, expression = codes.split([self.num_identity, self.num_expression], 1)
        return SceneState(
            identity,
            subject,
            self.expression_unit.to(expression) * expression[subject],
            Pose(rotation, translation),
            camera,
            light,
        )

    def load_trunk(self, weights: dict[str, Tensor], where: str) -> None:
        """The first seven convolutions of torchvision's vgg11_bn with their batch norms; `where` names the
        file.

        Raises:
            InputError: other weights, or a width other than 1.
        """
        mine = [m for m in self.trunk if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
        # vgg11_bn counts all its layers; those with weights are its convolutions and batch norms in their
        # order.
        layers = sorted(
            {int(k.split(".")[1]) for k in weights if k.startswith("features.") and k.endswith(".weight")}
        )[: len(mine)]
        names = [(f"features.{n}.", m) for n, m in zip(layers, mine)]
        fits = len(names) == len(mine) and all(
            getattr(weights.get(p + "weight"), "shape", None) == m.weight.shape for p, m in names
        )
        if not fits:
            raise InputError(
                f"{where}: expected the weights of torchvision's vgg11_bn and net.options.width 1, which "
                f"its layers have; the trunk has width {self.options.width:g}"
            )
        for prefix, module in names:
            module.load_state_dict(
                {k: weights[prefix + k] for k in module.state_dict() if prefix + k in weights}, strict=False
            )

    def parts(self) -> dict[str, tuple[nn.Module | nn.Parameter, ...]]:
        return {"trunk": (self.trunk,), "pose": (self.pose_head,), "shape": (self.shape_head, self.absent)}
